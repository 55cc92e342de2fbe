"""`manage.py dicom_receiver`: take radiographs from the hospital's systems by C-STORE until told to stop.

It analyses nothing itself: what arrives is written into the inbox, acknowledged, and handed to the queue. SIGTERM and
SIGINT end it after the images that are just arriving. What was not analysed waits in the inbox, where the queue looks
each minute.
"""

import signal
import threading
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.db import close_old_connections

from inference import receiving
from inference.inbox import Instance
from inference.models.dicom import inbox
from inference.receiver import Receiver, parse_callers
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    help = "Receive radiographs by DICOM C-STORE from the systems in DICOM_CALLERS."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--host", default=settings.DICOM_HOST, help="address to listen at (default: %(default)s)")
        parser.add_argument("--port", type=int, default=settings.DICOM_PORT, help="port (default: %(default)s)")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        receiver = _receiver(options["host"], options["port"])
        try:
            receiver.start()
        except OSError as error:
            raise CommandError(
                f"Nothing can listen at {options['host']}:{options['port']}: {error.strerror}. "
                "Choose another DICOM_PORT, or stop what uses it."
            ) from error
        self.tell(f"{settings.DICOM_AE_TITLE} receives at {options['host']}:{receiver.port}.")
        stopped.wait()
        receiver.stop()
        return {"stopped": True, "kept": len(receiver.inbox.waiting())}

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"Stopped. Images in the inbox: {result['kept']}.")


def _receiver(host: str, port: int) -> Receiver:
    try:
        callers = parse_callers(settings.DICOM_CALLERS)
    except ValueError as error:
        raise CommandError(f"DICOM_CALLERS: {error}") from error
    if not callers:
        raise CommandError(
            "Nobody may send: DICOM_CALLERS is empty. Name the systems that may, such as PACS@10.20.1.5."
        )
    return Receiver(settings.DICOM_AE_TITLE, (host, port), callers, inbox(), _hand_over)


def _hand_over(name: str, instance: Instance) -> None:
    # Each association has a thread, and each thread a connection to the database of its own.
    close_old_connections()
    try:
        receiving.hand_over(name, instance)
    finally:
        close_old_connections()
