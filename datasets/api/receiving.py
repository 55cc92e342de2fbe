"""API: what actions have in common that take files onto the disk as they come."""

from typing import Any

from django.conf import settings
from django.core.exceptions import TooManyFilesSent
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from ..receiving import receiving, require_room


class ReceivingMixin:
    """For view sets whose `create` takes files: they are in `self.inbox`, which is discarded after the request."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        with receiving(request) as self.inbox:
            return super().dispatch(request, *args, **kwargs)

    def perform_authentication(self, request: Request) -> None:
        """A session's token may stand in the body, which is read to look for it: first, whether there is any point."""
        user = _session_user(request)
        if user:
            known = Request(request._request, authenticators=[])
            known.user = user
            try:
                self.check_permissions(known)
                if self.action == "create":
                    require_room(request._request)
            except Exception:
                # Whom the audit log is to name; asking would read the body.
                request.user = user
                raise
        super().perform_authentication(request)

    def handle_exception(self, error: Exception) -> Response:
        if isinstance(error, TooManyFilesSent):
            most = f"At most {settings.DATA_UPLOAD_MAX_NUMBER_FILES:,} files at once; send more as a zip."
            error = ValidationError({"files": [most]})
        return super().handle_exception(error)


def _session_user(request: Request) -> Any:
    """Who is logged in, when the session decides and nothing before it, such as an API token, does; else None."""
    for authenticator in request.authenticators or ():
        if isinstance(authenticator, SessionAuthentication):
            user = request._request.user
            return user if user.is_authenticated and user.is_active else None
        if authenticator.authenticate(request):
            return None
    return None
