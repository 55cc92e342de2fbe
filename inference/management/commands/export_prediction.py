"""`manage.py export_prediction NUMBER OUT --as fhir|sr|sc`: a prediction as a file for other systems."""

import uuid
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from inference import exporting
from inference.models import Prediction
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "inference.view_prediction"
    help = "Write a prediction as FHIR JSON, DICOM structured report or DICOM secondary capture."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("prediction", type=uuid.UUID, help="the prediction's number")
        parser.add_argument("out", type=Path, help="the file to write; one that is there is replaced")
        parser.add_argument("--as", dest="form", choices=["fhir", "sr", "sc"], default="fhir")
        parser.add_argument("--image", type=Path, help="the DICOM file that was analysed, where it is not kept")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by, out = self.actor(options), options["out"]
        rows = Prediction.objects.seen_by(by).filter(shown=True).select_related("version__condition", "received")
        prediction = rows.filter(pk=options["prediction"]).first()
        if prediction is None:
            raise CommandError(f"There is no prediction {options['prediction']}.")
        try:
            file = self._file(prediction, by, options)
            out.write_bytes(file.content)
        except exporting.REFUSALS as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{error.filename} cannot be read or written: {error.strerror}.") from error
        return {"prediction": str(prediction.pk), "form": options["form"], "file": str(out), "size": len(file.content)}

    def _file(self, prediction: Prediction, by: Any, options: dict[str, Any]) -> exporting.File:
        if options["form"] == "fhir":
            url = f"{settings.SITE_URL.rstrip('/')}{prediction.get_absolute_url()}" if settings.SITE_URL else ""
            return exporting.take_fhir(prediction, by=by, url=url)
        take = exporting.take_report if options["form"] == "sr" else exporting.take_capture
        return take(prediction, by=by, given=options["image"].read_bytes() if options["image"] else None)

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"{result['file']}: {result['size']:,} bytes")
