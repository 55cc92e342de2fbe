"""Radiographs that arrive over the DICOM network, where they go, and where the results go."""

import ipaddress
import re
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone

from registry import outgoing
from xrayplatform.conditions import Condition
from xrayplatform.teams import TeamScopedQuerySet
from xrayplatform.tries import Tried, next_try_after

from ..inbox import Inbox, Refused
from .prediction import Prediction

# What a worker that died had begun is taken up again after this, longer than the queue lets a task run.
TRY_LASTS = timedelta(minutes=16)

# PS3.5 6.2: AE and CS of at most 16 characters.
_AE_TITLE = re.compile(r"[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?")
_CODE_STRING = re.compile(r"[A-Z0-9_]([A-Z0-9 _]{0,14}[A-Z0-9_])?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,198}[A-Za-z0-9])?")


def inbox() -> Inbox:
    """Where received images wait until their results are delivered."""
    return Inbox(settings.MODEL_ROOT / "dicom-inbox", int(settings.MIN_FREE_DISK_GB * 1024**3))


def check_ae_title(title: str) -> None:
    if not _AE_TITLE.fullmatch(title):
        raise ValidationError(
            "An AE title has 1 to 16 ASCII characters, none of them a backslash, and no blanks at its ends."
        )


def check_code(code: str) -> None:
    if not _CODE_STRING.fullmatch(code):
        raise ValidationError(
            "DICOM writes this with at most 16 capital letters, digits, blanks and underscores, such as DX or CHEST."
        )


def check_host(host: str) -> None:
    if not _HOST.fullmatch(host):
        raise ValidationError("Give the name or the address of the archive's host alone, such as pacs.hospital.")


def listed_networks() -> list[outgoing.Network]:
    """Networks of the hospital's own that may be called."""
    return [ipaddress.ip_network(text) for text in settings.WEBHOOK_PRIVATE_NETWORKS]


def check_archive_url(url: str) -> None:
    """An archive is called by https; without, only within a listed network, because results name patients."""
    try:
        parts = outgoing.parse(url)
        if parts.query or parts.fragment:
            raise ValidationError("Give the address up to and without /studies, without ? and #.")
        if parts.scheme == "https":
            _check_literal(parts.hostname or "")
            return
        address = ipaddress.ip_address(outgoing.resolve(url, listed_networks()).address)
    except outgoing.OutgoingError as error:
        raise ValidationError(str(error)) from error
    if not any(address.version == network.version and address in network for network in listed_networks()):
        raise ValidationError(
            "Results name patients: over http:// they are only sent within a network that is listed in "
            "WEBHOOK_PRIVATE_NETWORKS. Use https://."
        )


def _check_literal(host: str) -> None:
    """An address that will never be called is refused when it is entered; a name is looked up with each call."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not outgoing.is_allowed(address, listed_networks()):
        raise ValidationError(
            f"{host} is no public address. Networks of your own have to be listed in WEBHOOK_PRIVATE_NETWORKS."
        )


class DicomRoute(models.Model):
    """Which condition answers for what arrives; the first that fits in `position`, then nothing. Empty fits all."""

    position = models.PositiveSmallIntegerField(default=100, help_text="routes are tried from the lowest number on")
    modality = models.CharField(
        max_length=16, blank=True, validators=[check_code], help_text="such as DX or CR; empty: any"
    )
    body_part = models.CharField(
        max_length=40, blank=True, validators=[check_code], help_text="such as CHEST; empty: any"
    )
    calling_ae = models.CharField(
        max_length=150,
        blank=True,
        help_text="AE title that sent it, or the name of the account that stored it over DICOMweb; empty: any",
    )
    condition = models.ForeignKey(Condition, models.PROTECT, related_name="dicom_routes")
    active = models.BooleanField(default=True)

    class Meta:
        ordering = ["position", "pk"]

    def __str__(self) -> str:
        return f"{self.modality or 'any'} {self.body_part or 'any'} to {self.condition}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.modality, self.body_part = self.modality.strip().upper(), self.body_part.strip().upper()
        super().save(*args, **kwargs)


class DicomDestination(models.Model):
    """Where results are sent back: an archive over C-STORE or STOW-RS."""

    class Kind(models.TextChoices):
        CSTORE = "cstore", "C-STORE"
        STOW = "stow", "STOW-RS"

    name = models.CharField(max_length=100, unique=True)
    kind = models.CharField(max_length=10, choices=Kind)
    host = models.CharField(max_length=200, blank=True, validators=[check_host], help_text="for C-STORE")
    port = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(65535)],
        help_text="for C-STORE, usually 104 or 11112",
    )
    ae_title = models.CharField(
        "AE title", max_length=16, blank=True, validators=[check_ae_title], help_text="of the archive, for C-STORE"
    )
    url = models.CharField("address", max_length=500, blank=True, help_text="for STOW-RS, up to and without /studies")
    authorization = models.CharField(
        max_length=1000,
        blank=True,
        help_text="for STOW-RS: what the archive wants to be sent as Authorization, such as Bearer and a token",
    )
    report = models.BooleanField(default=True, help_text="send the structured report")
    capture = models.BooleanField(default=True, help_text="send the secondary capture with the map")
    conditions = models.ManyToManyField(
        Condition,
        related_name="dicom_destinations",
        blank=True,
        help_text="whose results are sent there; none chosen: nothing is sent",
    )
    active = models.BooleanField(default=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """What a delivery needs is there, so that none fails on it later."""
        needed = {"host": self.host, "port": self.port, "ae_title": self.ae_title}
        if self.kind == self.Kind.STOW:
            needed = {"url": self.url}
        missing = {name: f"{self.get_kind_display()} needs this." for name, value in needed.items() if not value}
        if missing:
            raise ValidationError(missing)
        if self.kind == self.Kind.STOW:
            try:
                check_archive_url(self.url)
            except ValidationError as error:
                raise ValidationError({"url": error.messages}) from error
            if not self.authorization.isprintable():
                raise ValidationError({"authorization": "The header is one line."})


class ReceivedObjectQuerySet(TeamScopedQuerySet):
    team_path = "condition__team"

    def due(self) -> "ReceivedObjectQuerySet":
        """What waits for its first analysis or another try, and may have it now."""
        return self.filter(state=ReceivedObject.State.WAITING, next_at__lte=timezone.now())

    def with_file(self) -> "ReceivedObjectQuerySet":
        return self.exclude(file="")

    def outdated(self) -> "ReceivedObjectQuerySet":
        """Whose file was kept long enough for somebody to route it, or to send its results, by hand."""
        ended = timezone.now() - timedelta(days=settings.DICOM_KEEP_DAYS)
        waiting = DicomDelivery.objects.filter(state=DicomDelivery.State.WAITING)
        old = self.with_file().exclude(state=ReceivedObject.State.WAITING).filter(ended_at__lte=ended)
        return old.exclude(pk__in=waiting.values("received"))


class ReceivedObject(Tried):
    """One object that a device sent; its file is kept until its results are delivered."""

    try_lasts = TRY_LASTS

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        ANSWERED = "answered", "Answered"
        REFUSED = "refused", "Refused"
        UNROUTED = "unrouted", "No route"

    file = models.CharField(max_length=255, blank=True, db_index=True, help_text="in the inbox; empty: deleted")
    sop_uid = models.CharField(max_length=64, db_index=True)
    digest = models.CharField(max_length=64, blank=True, help_text="SHA-256 of the data set as it came")
    study_uid = models.CharField(max_length=64, db_index=True)
    modality = models.CharField(max_length=16, blank=True)
    body_part = models.CharField(max_length=40, blank=True)
    source = models.CharField(max_length=150, help_text="AE title, or the account that stored it over DICOMweb")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    condition = models.ForeignKey(Condition, models.PROTECT, null=True, related_name="received_objects")
    prediction = models.OneToOneField(Prediction, models.PROTECT, null=True, related_name="received")
    state = models.CharField(max_length=10, choices=State, default=State.WAITING, db_index=True)
    next_at = models.DateTimeField(default=timezone.now, help_text="not before this time")
    message = models.CharField(max_length=500, blank=True)
    received_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True)

    objects = ReceivedObjectQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["sop_uid", "digest"], name="one_row_of_a_received_object")]

    def __str__(self) -> str:
        return f"{self.sop_uid} from {self.source}"

    def end(self, state: str, message: str = "", **fields: Any) -> None:
        self._write(state=state, message=message[:500], ended_at=timezone.now(), **fields)

    def postpone(self, message: str) -> bool:
        """Wait for the next try; false when there was the last one, and it ended as refused."""
        next_at = next_try_after(self.tries)
        if next_at is None:
            self.end(self.State.REFUSED, message)
            return False
        self._write(message=message[:500], next_at=next_at)
        return True

    def begin_again(self, **fields: Any) -> None:
        """Wait for an analysis as if it had just come."""
        again = {"state": self.State.WAITING, "tries": 0, "message": "", "ended_at": None}
        self._write(**again, next_at=timezone.now(), **fields)

    def read(self) -> bytes | None:
        """The file as it came; None when it is not kept any more, or was damaged."""
        try:
            found = inbox().read(self.file) if self.file else None
        except Refused:
            return None
        return found[0] if found else None

    def drop_file(self) -> None:
        # In this order: a row that still names its file is looked at again.
        if self.file:
            inbox().done(self.file)
            self._write(file="")

    def tidy(self) -> None:
        """Delete the file once its results have arrived everywhere; what failed can still be sent again by hand."""
        undelivered = self.deliveries.exclude(state=DicomDelivery.State.DONE)
        if self.state == self.State.ANSWERED and not undelivered.exists():
            self.drop_file()

    def _write(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        self.save(update_fields=list(fields))


class DicomDeliveryQuerySet(TeamScopedQuerySet):
    team_path = "received__condition__team"

    def due(self) -> "DicomDeliveryQuerySet":
        return self.filter(state=DicomDelivery.State.WAITING, next_at__lte=timezone.now())


class DicomDelivery(Tried):
    """One result on its way to a destination."""

    try_lasts = TRY_LASTS

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        DONE = "done", "Delivered"
        FAILED = "failed", "Failed"

    class What(models.TextChoices):
        REPORT = "report", "Structured report"
        CAPTURE = "capture", "Secondary capture"

    received = models.ForeignKey(ReceivedObject, models.CASCADE, related_name="deliveries")
    destination = models.ForeignKey(DicomDestination, models.CASCADE, related_name="deliveries")
    what = models.CharField(max_length=10, choices=What)
    state = models.CharField(max_length=10, choices=State, default=State.WAITING, db_index=True)
    next_at = models.DateTimeField(help_text="not before this time")
    message = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = DicomDeliveryQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        verbose_name_plural = "DICOM deliveries"
        constraints = [
            models.UniqueConstraint(fields=["received", "destination", "what"], name="one_delivery_of_a_result")
        ]

    def __str__(self) -> str:
        return f"{self.get_what_display()} to {self.destination}"

    def succeed(self) -> None:
        self._write(state=self.State.DONE, message="")

    def fail(self, message: str, *, is_temporary: bool) -> None:
        """Wait for the next try where there is one left and it may help, else give up."""
        next_at = next_try_after(self.tries) if is_temporary else None
        if next_at is not None:
            self._write(message=message[:500], next_at=next_at)
        else:
            self._write(message=message[:500], state=self.State.FAILED)

    def begin_again(self) -> None:
        self._write(state=self.State.WAITING, tries=0, message="", next_at=timezone.now())

    def _write(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        self.save(update_fields=list(fields))
