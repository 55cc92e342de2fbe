"""Radiographs as the whole body of a request, without a form around them."""

from collections.abc import Mapping
from typing import Any

from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import QueryDict
from django.utils.datastructures import MultiValueDict
from rest_framework.parsers import BaseParser, DataAndFiles


class RadiographParser(BaseParser):
    """The body is the image; what a form would say besides stands in the address (`?condition=`).

    Its length is bound by MAX_UPLOAD_MB before anything of it is read.
    """

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping | None = None) -> DataAndFiles:
        data = QueryDict(mutable=True)
        request = (parser_context or {})["request"]
        if "condition" in request.query_params:
            data["condition"] = request.query_params["condition"]
        image = SimpleUploadedFile("body", stream.read(), self.media_type)
        return DataAndFiles(data, MultiValueDict({"image": [image]}))


class DicomParser(RadiographParser):
    media_type = "application/dicom"


class JpegParser(RadiographParser):
    media_type = "image/jpeg"


class PngParser(RadiographParser):
    media_type = "image/png"


RADIOGRAPHS = (DicomParser, JpegParser, PngParser)
