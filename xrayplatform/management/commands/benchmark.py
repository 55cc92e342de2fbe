"""`manage.py benchmark NAME --json`: how fast the platform is, beside what the machine could do at best."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from xrayplatform import benchmarks
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    help = "Measure the platform on empty folders of its own; the site's data are not touched."

    def add_arguments(self, parser: ArgumentParser) -> None:
        subparsers = parser.add_subparsers(dest="benchmark", required=True)
        for benchmark in benchmarks.known().values():
            subparser = subparsers.add_parser(benchmark.name, help=benchmark.help)
            super().add_arguments(subparser)
            benchmark.arguments(subparser)

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        benchmark = benchmarks.known()[options["benchmark"]]
        try:
            if benchmarks.in_sandbox():
                return benchmark.run(options)
            return benchmarks.run_in_sandbox(benchmarks.arguments_for(benchmark, options))
        except benchmarks.BenchmarkFailed as error:
            raise CommandError(str(error)) from error

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(json.dumps(result, indent=2))
