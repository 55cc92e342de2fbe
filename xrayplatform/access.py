"""Deny by default for pages: every view carries `@allow`, and a test walks the URLs to see that it does.

And how the API knows the users of pages, without reading what they send.
"""

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from rest_framework.authentication import SessionAuthentication
from rest_framework.request import Request

View = Callable[..., HttpResponse]


def allow(*permissions: str) -> Callable[[View], View]:
    """Let users through who have all `permissions`; with none named, every logged-in user."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if not request.user.has_perms(permissions):
                raise PermissionDenied
            return view(request, *args, **kwargs)

        guarded.permissions = permissions  # type: ignore[attr-defined]
        return guarded

    return decorate


class HeaderSessionAuthentication(SessionAuthentication):
    """The session of a browser, with the CSRF token in the header alone.

    Django looks for the token in the form first, which reads the whole body: an upload of gigabytes would be written
    to the disk before anybody asked whether the user may send one.
    """

    def enforce_csrf(self, request: Request) -> None:
        # For a PUT Django takes the token from the header only. A copy: the request itself stays a POST.
        seen = copy.copy(request._request)
        seen.method = "PUT" if seen.method == "POST" else seen.method
        super().enforce_csrf(seen)
