"""`manage.py run_queue xray|train`: the workers of one queue under a watchdog. This is what a service runs."""

import argparse
import os
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from xrayplatform import audit
from xrayplatform.processes import die_with_parent, forks_die_with_parent
from xrayplatform.system import CLUSTERS
from xrayplatform.watchdog import Watchdog, cluster_command


class Command(BaseCommand):
    help = "Run the workers of a queue; they are started again when they die or freeze. SIGTERM stops without loss."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("queue", choices=list(CLUSTERS))
        # How the watchdog starts the cluster itself: the number of the watchdog's process.
        parser.add_argument("--cluster-of", type=int, help=argparse.SUPPRESS)

    def handle(self, *args: Any, **options: Any) -> None:
        audit.context.set(audit.Context(channel="system"))
        queue, parent = options["queue"], options["cluster_of"]
        if parent is None:
            Watchdog(queue, cluster_command(queue)).run()
            return
        if os.environ.get("Q_CLUSTER_NAME") != queue:
            raise CommandError("The cluster is started by its watchdog; leave --cluster-of out.")
        die_with_parent(parent)
        forks_die_with_parent()
        call_command("qcluster")
