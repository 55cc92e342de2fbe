"""Received radiographs to answers: each file of the inbox is one row, one route and one prediction, however often a
step is repeated.
"""

import hashlib
import logging
from typing import Any

from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction
from django_q.models import OrmQ
from django_q.tasks import async_task

from datasets.imaging import ImageError
from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.http import row_number
from xrayplatform.tries import PAUSES

from . import deliveries
from .analysing import GateRefused
from .engine import EngineError
from .inbox import Instance, Refused, content_digest
from .models import DicomDelivery, DicomRoute, NoActiveModel, Prediction, ReceivedObject
from .models.dicom import inbox
from .routing import Route, route

logger = logging.getLogger(__name__)

# Called in the queue with the name of a file in the inbox; a name that is done with is nothing to do.
TASK = "inference.tasks.analyse_received"
# Messages a minute about what may have been forgotten, and the longest queue that more of them are put into.
MOST_MESSAGES = 50
# So long the message about a file that has just come is trusted to be on its way.
_TRUSTED_SECONDS = 120.0
# No AE title holds a backslash: what begins with one names an account of the platform.
_ACCOUNT = "\\"


def sender_of(user: Any) -> str:
    """Under which name images of an account of the platform stand in the inbox."""
    return f"{_ACCOUNT}{user.pk}"


def hand_over(name: str, instance: Instance | None = None) -> None:
    """Have a file of the inbox analysed in the queue."""
    async_task(TASK, name, cluster="xray", task_name=f"dicom-{name[:36]}")


def analyse_received(name: str) -> None:
    """Take the file in and answer it, as far as that has not been done."""
    received = ReceivedObject.objects.filter(file=name).first() or _taken_in(name)
    if received is not None:
        answer(received)


def sweep() -> None:
    """Take up again what is due or was forgotten, and delete what was kept long enough; called each minute."""
    for received in ReceivedObject.objects.outdated()[:MOST_MESSAGES]:
        received.drop_file()
    if OrmQ.objects.count() >= MOST_MESSAGES:
        return
    due = ReceivedObject.objects.due().with_file().values_list("file", flat=True)
    for name in [*due[:MOST_MESSAGES], *_forgotten()][:MOST_MESSAGES]:
        hand_over(name)
    for number in DicomDelivery.objects.due().values_list("pk", flat=True)[:MOST_MESSAGES]:
        deliveries.hand_over(number)


def _forgotten() -> list[str]:
    """Files of the inbox that have no row, because the message about them was lost."""
    known = set(ReceivedObject.objects.with_file().values_list("file", flat=True))
    return [name for name in inbox().waiting(_TRUSTED_SECONDS) if name not in known]


# -- A file to a row


def _taken_in(name: str) -> ReceivedObject | None:
    """The row of a file; None when there is nothing more to do with it, and it was deleted."""
    try:
        found = inbox().read(name)
    except Refused as error:
        # It was looked at before it was acknowledged: the disk changed it.
        failed = audit.AuditEntry.Outcome.FAILED
        audit.record("dicom.receive", outcome=failed, after={"file": name[:36], "reason": str(error)[:200]})
        inbox().done(name)
        return None
    if found is None:
        return None
    data, instance = found
    digest = content_digest(data)
    try:
        received = _row(name, instance, digest)
    except IntegrityError:
        # The same instance came twice at the same time, and the other one was faster.
        received = _row(name, instance, digest)
    if received is None:
        inbox().done(name)
    return received


def _row(name: str, instance: Instance, digest: str) -> ReceivedObject | None:
    """The row of this instance; None when it needs no other file than it has, or had."""
    source, account = _sender(instance.sender)
    with transaction.atomic():
        rows = ReceivedObject.objects.select_for_update().filter(sop_uid=instance.sop_uid, digest=digest)
        known = rows.first()
        received = known or ReceivedObject.objects.create(
            file=name,
            sop_uid=instance.sop_uid,
            digest=digest,
            study_uid=instance.study_uid,
            modality=instance.modality,
            body_part=instance.body_part,
            source=source,
            created_by=account,
        )
        is_needed = known is None or _needs(known, name)
        after = {"source": source, "again": known is not None}
        audit.record("dicom.receive", received, actor=account, actor_name=source, after=after)
    return received if is_needed else None


def _needs(known: ReceivedObject, name: str) -> bool:
    """Whether a file that came again is needed; one that had no answer, or whose results did not arrive, begins again.

    The file that is kept already serves as well as the new one.
    """
    file = known.file or name
    if known.state == ReceivedObject.State.WAITING:
        return file == name
    if known.state != ReceivedObject.State.ANSWERED:
        known.begin_again(file=file, condition=None)
        if file != name:
            hand_over(file)
        return file == name
    failed = list(known.deliveries.filter(state=DicomDelivery.State.FAILED))
    if failed and not known.file:
        known.file = name
        known.save(update_fields=["file"])
    for delivery in failed:
        delivery.begin_again()
        deliveries.hand_over(delivery.pk)
    return bool(failed) and file == name


def _sender(sender: str) -> tuple[str, Any]:
    """What stands in the row, and the account where it was one."""
    if not sender.startswith(_ACCOUNT):
        return sender, None
    account = get_user_model().objects.filter(pk=row_number(sender[len(_ACCOUNT) :])).first()
    return (account.get_username() if account else "deleted account"), account


# -- A row to an answer


def answer(received: ReceivedObject) -> None:
    """Make a try to answer, if it is time for one and nobody else does."""
    if not received.claim():
        return
    if received.tries > len(PAUSES) + 1:
        _refuse(received, "The analysis was begun and never ended, several times. The log of the queue may say why.")
        return
    source = received.read()
    if source is None:
        _refuse(received, "The file is not in the inbox any more, or is damaged. Send the image again.")
        received.drop_file()
        return
    if received.condition is None and not _routed(received):
        return
    _answer(received, source)


def analyse_again(received: ReceivedObject, condition: Condition | None, by: Any) -> bool:
    """Have it analysed for a condition, None: for the one that the routes name now, as somebody wants it.

    False when that cannot be: it has an answer, waits for one, or its file was deleted.
    """
    ended = (ReceivedObject.State.UNROUTED, ReceivedObject.State.REFUSED)
    if received.state not in ended or not received.file:
        return False
    with transaction.atomic():
        received.begin_again(condition=condition)
        chosen = condition.slug if condition else "by the routes"
        audit.record("dicom.route", received, actor=by, after={"condition": chosen, "by_hand": True})
        hand_over(received.file)
    return True


def _routed(received: ReceivedObject) -> bool:
    """Find the condition by the routes, and write it or that there is none down."""
    routes = [
        Route(found.modality, found.body_part, found.condition.slug, found.calling_ae)
        for found in DicomRoute.objects.filter(active=True).select_related("condition")
    ]
    slug = route(received.modality, received.body_part, routes, received.source)
    with transaction.atomic():
        if slug is None:
            told = f"{received.modality or 'no modality'}, {received.body_part or 'no body part'}"
            message = f"No route takes it ({told} from {received.source})."
            received.end(ReceivedObject.State.UNROUTED, message)
            audit.record("dicom.route", received, outcome=audit.AuditEntry.Outcome.FAILED)
            return False
        received.condition = Condition.objects.get(slug=slug)
        received.save(update_fields=["condition"])
        audit.record("dicom.route", received, after={"condition": slug})
    return True


def _answer(received: ReceivedObject, source: bytes) -> None:
    try:
        prediction = _answered_before(received, source) or _analysed(received, source)
    except (ImageError, GateRefused) as error:
        _refuse(received, str(error))
    except (NoActiveModel, EngineError) as error:
        _postpone(received, str(error))
    except Exception as error:
        logger.exception("Received object %s could not be analysed", received.pk)
        text = f"The analysis failed unexpectedly ({type(error).__name__}); the log of the queue says more."
        _postpone(received, text)
    else:
        with transaction.atomic():
            received.end(ReceivedObject.State.ANSWERED, prediction=prediction)
            deliveries.plan(received)
        received.tidy()


def _analysed(received: ReceivedObject, source: bytes) -> Prediction:
    by, channel = received.created_by, Prediction.Channel.DICOM
    return Prediction.objects.analyse(received.condition, source, by=by, channel=channel).prediction


def _answered_before(received: ReceivedObject, source: bytes) -> Prediction | None:
    """The answer of a try that was stored, and whose worker died before it could write that down here."""
    stored = Prediction.objects.shown().filter(
        channel=Prediction.Channel.DICOM,
        file_digest=hashlib.sha256(source).hexdigest(),
        version__condition=received.condition,
        created_at__gte=received.received_at,
        received__isnull=True,
    )
    return stored.first()


def _postpone(received: ReceivedObject, message: str) -> None:
    with transaction.atomic():
        if not received.postpone(message):
            _tell_refused(received)


def _refuse(received: ReceivedObject, message: str) -> None:
    with transaction.atomic():
        received.end(ReceivedObject.State.REFUSED, message)
        _tell_refused(received)


def _tell_refused(received: ReceivedObject) -> None:
    outcome = audit.AuditEntry.Outcome.FAILED
    audit.record("dicom.answer", received, outcome=outcome, after={"reason": received.message[:200]})
