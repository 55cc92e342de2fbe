"""DICOMweb: store radiographs over HTTP (STOW-RS, PS3.18 10.5), for accounts of devices."""

import logging

from django.conf import settings
from django.http import HttpResponse, JsonResponse
from drf_spectacular.utils import extend_schema
from knox.auth import TokenAuthentication
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.views import APIView

from xrayplatform.http import MB, problem_response

from . import receiving, stow
from .inbox import Instance
from .models.dicom import inbox

logger = logging.getLogger(__name__)


class DicomJsonRenderer(JSONRenderer):
    media_type, format = stow.MEDIA_TYPE, "dicom-json"


@extend_schema(exclude=True)
class StowView(APIView):
    """Images are acknowledged when they are safely kept; the queue analyses them.

    Only tokens are accepted: a page of another site cannot send one along, as it can a browser's session.
    """

    authentication_classes = [TokenAuthentication]
    renderer_classes = [DicomJsonRenderer, JSONRenderer]
    permissions = {"post": "inference.add_receivedobject"}
    # A study in one request; each of its images is bound by MAX_UPLOAD_MB.
    takes_archives = True

    def post(self, request: Request, study_uid: str = "") -> HttpResponse:
        limits = stow.Limits(part_bytes=settings.MAX_UPLOAD_MB * MB, body_bytes=settings.MAX_ARCHIVE_MB * MB)
        try:
            status, answer = stow.receive(
                request.META.get("CONTENT_TYPE", ""),
                # The body as a stream: the framework's parsers would hold all of it.
                request._request,
                study_uid=study_uid,
                sender=receiving.sender_of(request.user),
                inbox=inbox(),
                received=_hand_over,
                limits=limits,
            )
        except stow.StowError as error:
            return problem_response(error.status, str(error))
        return JsonResponse(answer, status=status, content_type=stow.MEDIA_TYPE)


def _hand_over(name: str, instance: Instance) -> None:
    try:
        receiving.hand_over(name, instance)
    except Exception:
        # The image is safe, and the queue looks through the inbox each minute.
        logger.exception("A stored image could not be handed over; it waits in the inbox")
