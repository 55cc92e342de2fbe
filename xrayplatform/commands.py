"""The base of the platform's commands: one JSON object on standard output, exit status 0 only on success."""

import contextlib
import json
import logging
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError

from . import audit
from .jobs import Job

logger = logging.getLogger(__name__)


class PlatformCommand(BaseCommand):
    """Subclasses implement `run(options) -> dict` (the JSON object) and `show(result)` (words for people).

    permission: what a user named by --user must be allowed. Without --user the command acts with the rights of who can
    start it on the server, and the audit log says "command line".
    """

    permission = ""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        parser.add_argument("--user", help="act as this user (default: the command line itself)")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def show(self, result: dict[str, Any]) -> None:
        raise NotImplementedError

    def handle(self, *args: Any, **options: Any) -> None:
        audit.context.set(audit.Context(channel="command"))
        try:
            with _stdout_to_stderr():
                result = self.run(options)
        except Exception as error:
            if not options["json"]:
                raise
            if not isinstance(error, CommandError):
                logger.exception("%s failed", type(self).__module__)
            self.stdout.write(json.dumps({"error": str(error) or type(error).__name__}))
            sys.exit(1)
        if options["json"]:
            self.stdout.write(json.dumps(result))
        else:
            self.show(result)
        if result.get("failed"):
            sys.exit(1)

    def tell(self, text: str) -> None:
        """Progress for a person; never on standard output."""
        self.stderr.write(text, style_func=lambda words: words)

    def tell_progress(self, job: Job) -> None:
        self.tell(f"  {job.progress:4.0%} {job.message}")

    def actor(self, options: dict[str, Any]) -> Any:
        """The user named by --user, or None. Raises CommandError for an unknown one, or one without the right."""
        if not options.get("user"):
            return None
        user = get_user_model().objects.filter(username=options["user"], is_active=True).first()
        if user is None:
            raise CommandError(f"There is no active user {options['user']}.")
        if self.permission and not user.has_perm(self.permission):
            raise CommandError(f"{user} has no role that allows this ({self.permission}).")
        return user


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Libraries in C write to file descriptor 1; while the work runs that is standard error."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:
        yield
        return
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
