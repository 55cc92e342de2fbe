"""What every request passes through: upload limit, audit context, idle log-off; and errors as problem details."""

import time
import uuid
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, ClassVar

import django_filters
from django import forms
from django.conf import settings
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import Resolver404, resolve
from django.utils.cache import patch_vary_headers
from django_htmx.middleware import HtmxDetails
from rest_framework import exceptions
from rest_framework.pagination import CursorPagination
from rest_framework.response import Response
from rest_framework.views import exception_handler

from . import audit
from .jobs import JobError

GetResponse = Callable[[HttpRequest], HttpResponse]
TOUCH_SESSION_EVERY_SECONDS = 60
MB = 1024 * 1024
# Where programs ask, who are answered with problem details and not with pages.
PROGRAMS = ("/api/", "/dicomweb/")


class HtmxHttpRequest(HttpRequest):
    htmx: HtmxDetails


class RequestLimitMiddleware:
    """Refuses NUL in an address, and a body announced as larger than MAX_UPLOAD_MB before a byte of it is read.

    For addresses that take archives the limit is MAX_ARCHIVE_MB: for a view with `takes_archives`, and for the actions
    that a view set of the API lists under this name.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        length = announced_length(request)
        if length > settings.MAX_UPLOAD_MB * MB and length > _archive_limit(request):
            return too_large(request)
        if "\0" in request.path or "%00" in request.META.get("QUERY_STRING", ""):
            return refused_address(request)
        return self.get_response(request)


def announced_length(request: HttpRequest) -> int:
    try:
        return int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        return 0


def _archive_limit(request: HttpRequest) -> int:
    """Bytes that the address takes beyond MAX_UPLOAD_MB; 0 where it takes no archives."""
    try:
        view = resolve(request.path_info).func
    except Resolver404:
        return 0
    takes = getattr(getattr(view, "cls", view), "takes_archives", False)
    if hasattr(view, "actions"):
        takes = takes and view.actions.get(str(request.method).lower()) in takes
    return settings.MAX_ARCHIVE_MB * MB if takes else 0


def too_large(request: HttpRequest) -> HttpResponse:
    name = "MAX_ARCHIVE_MB" if _archive_limit(request) else "MAX_UPLOAD_MB"
    detail = (
        f"The upload is larger than the limit of {getattr(settings, name)} MB. Send fewer or smaller files, or ask an "
        f"administrator to raise {name}."
    )
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if request.path.startswith(PROGRAMS):
        return problem_response(status, detail)
    return render(request, "error.html", {"title": "The upload is too large", "detail": detail}, status=status)


def refused_address(request: HttpRequest) -> HttpResponse:
    detail = "The address holds a character (NUL) that no name here can have. Correct it."
    if request.path.startswith(PROGRAMS):
        return problem_response(HTTPStatus.BAD_REQUEST, detail)
    return render(request, "error.html", {"title": "Bad address", "detail": detail}, status=HTTPStatus.BAD_REQUEST)


class RequestContextMiddleware:
    """Gives audit entries the request's address and id, and prolongs the session when a person did something."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request_id = uuid.uuid4().hex
        token = audit.context.set(
            audit.Context(
                address=request.META.get("REMOTE_ADDR", ""),
                request_id=request_id,
                channel="api" if request.path.startswith(PROGRAMS) else "web",
            )
        )
        try:
            _touch_session(request)
            response = self.get_response(request)
        finally:
            audit.context.reset(token)
        response["X-Request-Id"] = request_id
        # A page and its fragment share an address; the browser's cache must not mix them up.
        patch_vary_headers(response, ["HX-Request"])
        return response


def _touch_session(request: HttpRequest) -> None:
    """An open page that polls must not keep its user logged in; and a write a minute is enough."""
    if request.headers.get("X-Poll") or not request.user.is_authenticated:
        return
    now = int(time.time())
    if now - request.session.get("seen", 0) >= TOUCH_SESSION_EVERY_SECONDS:
        request.session["seen"] = now


MAX_ROW = 2**63 - 1


def row_number(text: str) -> int | None:
    """The number of a row that an address or a command names; None for what no row can have."""
    if not (text.isascii() and text.isdecimal()):
        return None
    # One digit more than MAX_ROW has is out of range, however many follow.
    number = int(text[:20])
    return number if number <= MAX_ROW else None


def row_filter(field: str) -> django_filters.NumberFilter:
    """By the number of a row. One that no row can have is a wrong value, not an error of the database.

    Not by a choice of rows: a choice would tell which numbers other teams have.
    """
    return django_filters.NumberFilter(field, min_value=0, max_value=MAX_ROW, decimal_places=0)


class _Flag(forms.NullBooleanField):
    """true, false or nothing; the usual field takes every other word for nothing."""

    widget = forms.TextInput
    words: ClassVar = {"": None, "true": True, "1": True, "false": False, "0": False}

    def to_python(self, value: Any) -> bool | None:
        word = str(value or "").strip().lower()
        if word not in self.words:
            raise ValidationError("Must be true or false.")
        return self.words[word]


class FlagFilter(django_filters.BooleanFilter):
    """By true or false; another word is a wrong value."""

    field_class = _Flag


def choice_filter(choices: Iterable[Any], *, coerce: Callable[[str], Any] = str) -> django_filters.ChoiceFilter:
    """By one of some values; a wrong one is answered with the right ones."""
    values = list(choices)
    wrong = f"%(value)s is not a choice; there are {', '.join(map(str, values))}."
    return django_filters.TypedChoiceFilter(
        choices=[(value, value) for value in values], coerce=coerce, error_messages={"invalid_choice": wrong}
    )


class NewestFirstPagination(CursorPagination):
    ordering = "-pk"
    page_size = 50
    max_page_size = 200
    page_size_query_param = "page_size"

    def paginate_queryset(self, queryset: Any, request: Any, view: Any = None) -> Any:
        try:
            return super().paginate_queryset(queryset, request, view)
        except (ValueError, ValidationError) as error:
            raise exceptions.NotFound(self.invalid_cursor_message) from error


class Conflict(exceptions.APIException):
    """The request is well-formed, but the object is not in a state that allows it.

    wait: after how many seconds it may be, where somebody knows.
    """

    wait: int | None = None
    status_code = HTTPStatus.CONFLICT
    default_code = "conflict"


class Unprocessable(exceptions.APIException):
    """The request was understood and cannot be done. code, members: what the problem details say besides."""

    status_code = HTTPStatus.UNPROCESSABLE_ENTITY
    default_code = "unprocessable"

    def __init__(self, detail: str, *, code: str, **members: Any) -> None:
        super().__init__(detail, code)
        self.members = {"code": code, **members}


class Unavailable(exceptions.APIException):
    """The request was right and may be sent again. retry_after: after how many seconds, when somebody knows."""

    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_code = "unavailable"

    def __init__(self, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        # The framework's own handler makes the header Retry-After of it.
        self.wait = retry_after


def problem_details(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: every error as RFC 9457 problem details, and refusals into the audit log.

    A job that cannot be started now is a conflict with the state of things, wherever it is raised.
    """
    if isinstance(error, JobError):
        error = Conflict(f"{error} {error.hint}")
    response = exception_handler(error, context)
    if response is None:
        return None
    request = context["request"]
    if isinstance(error, PermissionDenied | exceptions.PermissionDenied):
        record_refusal(request)
    fields = response.data if isinstance(error, exceptions.ValidationError) else None
    members = getattr(error, "members", {})
    response.data = _problem(response.status_code, _detail(error, response.data), fields) | _encodable(members)
    response.content_type = "application/problem+json"
    return response


def _detail(error: Exception, data: Any) -> str:
    if isinstance(error, exceptions.ValidationError):
        return "Some values are missing or not allowed; see `errors`."
    if isinstance(error, Http404):
        return "There is no such object, or it belongs to another team."
    return str(data.get("detail", "")) if isinstance(data, dict) else str(data)


def _problem(status: int, detail: str, errors: Any = None) -> dict[str, Any]:
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": int(status), "detail": detail}
    if errors is not None:
        body["errors"] = errors if isinstance(errors, dict) else {"non_field_errors": errors}
    encodable: dict[str, Any] = _encodable(body)
    return encodable


def _encodable(found: Any) -> Any:
    """Errors repeat what was sent, and JSON can name half a character (a lone surrogate), which no answer can hold."""
    if isinstance(found, dict):
        return {_encodable(key): _encodable(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_encodable(value) for value in found]
    return found.encode("utf-8", "replace").decode() if isinstance(found, str) else found


def problem_response(status: int, detail: str) -> JsonResponse:
    return JsonResponse(_problem(status, detail), status=status, content_type="application/problem+json")


def record_refusal(request: Any) -> None:
    audit.record(
        "access.refused",
        actor=request.user,
        outcome=audit.AuditEntry.Outcome.REFUSED,
        after={"method": request.method, "path": request.path[:200]},
    )
