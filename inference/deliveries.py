"""Results on their way to the hospital's archives, each tried several times."""

import logging

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from django_q.tasks import async_task
from pydicom.dataset import Dataset

from datasets.imaging import ImageError
from xrayplatform import audit

from . import radiographs, reporting, viewing
from .dicom_context import NotDicom, WrongSource
from .models import DicomDelivery, DicomDestination, Prediction, ReceivedObject
from .models.dicom import check_archive_url, listed_networks

logger = logging.getLogger(__name__)

TASK = "inference.tasks.deliver_result"
# What no other try changes.
_HOPELESS = (NotDicom, WrongSource, ImageError, viewing.NoMap, radiographs.NotKept)


class _Gone(Exception):
    """There is nothing to send, or nowhere to send it to."""


def plan(received: ReceivedObject) -> None:
    """Enqueue what the destinations of the condition want; inside the transaction that stores the answer."""
    for destination in DicomDestination.objects.filter(active=True, conditions=received.condition):
        for what in _wanted(destination, received.prediction):
            about = {"received": received, "destination": destination, "what": what}
            delivery, is_new = DicomDelivery.objects.get_or_create(**about, defaults={"next_at": timezone.now()})
            if is_new:
                hand_over(delivery.pk)


def hand_over(number: int) -> None:
    async_task(TASK, number, cluster="xray", task_name=f"dicom-delivery-{number}")


def deliver(number: int) -> None:
    """Make a try, if it is time for one and nobody else does."""
    found = DicomDelivery.objects.select_related("destination", "received__prediction__version__condition")
    delivery = found.filter(pk=number).first()
    if delivery is None or not delivery.claim():
        return
    _try(delivery)
    delivery.received.tidy()


def send_again(delivery: DicomDelivery, by: object) -> bool:
    """Begin from the first try, as somebody wants it; false when nothing is there to be sent."""
    if not delivery.received.file:
        return False
    with transaction.atomic():
        delivery.begin_again()
        audit.record("dicom.send_again", delivery, actor=by)
        hand_over(delivery.pk)
    return True


def _wanted(destination: DicomDestination, prediction: Prediction) -> list[str]:
    """A version without class activation maps has no picture to send."""
    wanted = [DicomDelivery.What.REPORT] if destination.report else []
    return [*wanted, DicomDelivery.What.CAPTURE] if destination.capture and prediction.activation_frame else wanted


def _try(delivery: DicomDelivery) -> None:
    # It loads the whole network stack, which no page needs.
    from .sending import SendError

    try:
        _send(delivery.destination, _content(delivery))
    except SendError as error:
        _failed(delivery, str(error), is_temporary=error.is_temporary)
    except (_Gone, *_HOPELESS) as error:
        _failed(delivery, str(error), is_temporary=False)
    except ValidationError as error:
        # The name of the host may be known again later.
        _failed(delivery, " ".join(error.messages), is_temporary=True)
    except Exception as error:
        logger.exception("%s failed", delivery)
        text = f"It failed unexpectedly ({type(error).__name__}); the log of the queue says more."
        _failed(delivery, text, is_temporary=True)
    else:
        with transaction.atomic():
            delivery.succeed()
            audit.record("dicom.deliver", delivery, after=_about(delivery))


def _content(delivery: DicomDelivery) -> Dataset:
    if not delivery.destination.active:
        raise _Gone("The destination was switched off.")
    source = delivery.received.read()
    if source is None:
        raise _Gone("The received image is not kept any more. Send it to the platform again.")
    write = reporting.report if delivery.what == DicomDelivery.What.REPORT else reporting.capture
    return write(delivery.received.prediction, source)


def _send(destination: DicomDestination, content: Dataset) -> None:
    from .sending import Peer, WebPeer, store, store_web

    if destination.kind == DicomDestination.Kind.STOW:
        check_archive_url(destination.url)
        store_web(WebPeer(destination.url, destination.authorization), [content], listed_networks())
    else:
        peer = Peer(destination.ae_title, destination.host, destination.port or 0)
        store(peer, settings.DICOM_AE_TITLE, [content])


def _failed(delivery: DicomDelivery, message: str, *, is_temporary: bool) -> None:
    logger.warning("%s, try %s: %s", delivery, delivery.tries, message)
    with transaction.atomic():
        delivery.fail(message, is_temporary=is_temporary)
        if delivery.state == DicomDelivery.State.FAILED:
            outcome = audit.AuditEntry.Outcome.FAILED
            audit.record("dicom.deliver", delivery, outcome=outcome, after=_about(delivery))


def _about(delivery: DicomDelivery) -> dict[str, str]:
    return {"prediction": str(delivery.received.prediction_id), "destination": delivery.destination.name}
