"""A request that is sent again, because its answer got lost on the way, must not be done twice.

Who sends it names it with a header, `Idempotency-Key`. The answer to it is stored for a day and given again to the same
request of the same user. What is not stored may be tried again under the same key: failures of the server, and refusals
that say how things stand now (409, 429).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.db import IntegrityError, models, transaction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from .http import Conflict, Unprocessable

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
KEPT_FOR = timedelta(hours=24)
# Whoever works for longer without an answer is taken for dead.
UNDER_WAY_FOR = timedelta(minutes=10)
RETRY_SECONDS = 2
_LONGEST_KEY = 255
_NOT_STORED = (HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)

PARAMETER = OpenApiParameter(
    HEADER,
    str,
    OpenApiParameter.HEADER,
    description=(
        "Any text of up to 255 characters, such as a UUID, that you send again with the same request when its answer "
        "got lost: it is done once, and the stored answer has the header `Idempotency-Replayed: true`. Kept for 24 "
        "hours. 422 with another body; 409 while the first is under way."
    ),
)


class IdempotentAnswerQuerySet(models.QuerySet):
    def begin(self, user: Any, key: str, method: str, path: str, body_digest: str) -> "IdempotentAnswer":
        """The row of this request: a new one, with no status yet, for who is to do the work; or the stored answer.

        Raises Conflict while another process works on it, Unprocessable when the key was used for something else.
        """
        for _ in range(2):
            try:
                with transaction.atomic():
                    return self.create(user=user, key=key, method=method, path=path, body_digest=body_digest)
            except IntegrityError:
                found = self.filter(user=user, key=key, path=path).first()
            if found is not None and not found.is_over:
                return found.checked(method, body_digest)
            if found is not None:
                self.filter(pk=found.pk).delete()
        raise _under_way()

    def forget(self) -> None:
        """Remove the answers that were kept long enough."""
        self.filter(created_at__lt=timezone.now() - KEPT_FOR).delete()


class IdempotentAnswer(models.Model):
    """What a user was answered to a request with a key. status: None as long as somebody works on it."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    key = models.CharField(max_length=_LONGEST_KEY)
    method = models.CharField(max_length=10)
    path = models.CharField(max_length=300)
    body_digest = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField(null=True)
    body = models.JSONField(null=True, encoder=DjangoJSONEncoder)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    objects = IdempotentAnswerQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "key", "path"], name="one_answer_per_key")]

    def __str__(self) -> str:
        return f"{self.method} {self.path}: {self.status or 'under way'}"

    @property
    def is_over(self) -> bool:
        kept = KEPT_FOR if self.status else UNDER_WAY_FOR
        return self.created_at < timezone.now() - kept

    def checked(self, method: str, body_digest: str) -> "IdempotentAnswer":
        if (self.method, self.body_digest) != (method, body_digest):
            raise Unprocessable(
                f"This {HEADER} was used for another request. Send the same request again, or a new one with a key of "
                "its own.",
                code="idempotency-key-reused",
            )
        if self.status is None:
            raise _under_way()
        return self

    @property
    def response(self) -> Response:
        response = Response(self.body, status=self.status, headers={REPLAYED: "true"})
        if self.status and self.status >= HTTPStatus.BAD_REQUEST:
            response.content_type = "application/problem+json"
        return response

    def settle(self, status: int, body: Any) -> None:
        """Store the answer, or forget that there was a request when it may be tried again."""
        row = IdempotentAnswer.objects.filter(pk=self.pk)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _NOT_STORED:
            row.delete()
        else:
            row.update(status=status, body=body)


def _under_way() -> Conflict:
    conflict = Conflict(f"The same request is being worked on. Ask again in {RETRY_SECONDS} seconds.")
    conflict.wait = RETRY_SECONDS
    return conflict


class _Replay(Exception):
    """Ends a request before its work is done again."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


class IdempotentMixin:
    """For view sets of the API; first among the bases. The actions named in `idempotent_actions` heed the header."""

    idempotent_actions: tuple[str, ...] = ("create",)
    _held: IdempotentAnswer | None = None

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return super().dispatch(request, *args, **kwargs)
        finally:
            # Only after an error that nobody reckoned with.
            self._settle(HTTPStatus.INTERNAL_SERVER_ERROR, None)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        key = request.headers.get(HEADER)
        if key is None or self.action not in self.idempotent_actions:
            return
        if not re.fullmatch(rf"[!-~ ]{{1,{_LONGEST_KEY}}}", key):
            raise ValidationError({HEADER: [f"Must be 1 to {_LONGEST_KEY} printable ASCII characters."]})
        answer = IdempotentAnswer.objects.begin(
            request.user, key, request.method, request.path[:300], self._body_digest(request)
        )
        if answer.status is not None:
            raise _Replay(answer.response)
        self._held = answer

    def handle_exception(self, error: Exception) -> Response:
        if isinstance(error, _Replay):
            return error.response
        return super().handle_exception(error)

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        self._settle(response.status_code, getattr(response, "data", None))
        return response

    def _settle(self, status: int, body: Any) -> None:
        if self._held is not None:
            self._held.settle(status, body)
            self._held = None

    def sent_files(self, request: Request) -> Iterator[tuple[str, str, Iterable[bytes]]]:
        """The files of the request: field, name and content; read again after this."""
        for field, files in request.FILES.lists():
            for file in files:
                yield field, str(file.name), file.chunks()
                file.seek(0)

    def _body_digest(self, request: Request) -> str:
        """Equal for the same content: a form that is sent again has another boundary between its parts."""
        digest = hashlib.sha256()
        fields = dict(request.data.lists()) if hasattr(request.data, "lists") else request.data
        files = set(request.FILES)
        sent = {name: fields[name] for name in fields if name not in files} if isinstance(fields, dict) else fields
        _add(digest, [request.META.get("QUERY_STRING", "").encode(), json.dumps(sent, sort_keys=True).encode()])
        for field, name, content in self.sent_files(request):
            inner = hashlib.sha256()
            for chunk in content:
                inner.update(chunk)
            _add(digest, [field.encode(), name.encode("utf-8", "replace"), inner.digest()])
        return digest.hexdigest()


def _add(digest: Any, parts: Iterable[bytes]) -> None:
    """With the length before each part, so that no two lists of parts read alike."""
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part)
