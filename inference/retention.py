"""How long analysed radiographs are kept: KEEP_RADIOGRAPHS_DAYS, and as long as work that is not done needs them.

A radiograph whose answer a reader corrected is kept no longer than others: make a dataset of corrections in time, which
has copies of its own.
"""

from itertools import chain

from xrayplatform import audit

from . import radiographs
from .models import Batch, DicomDelivery, Prediction


def expire() -> int:
    """Remove what was kept long enough, with an audit entry; returns how many files went."""
    removed = radiographs.expire(needed())
    if removed:
        audit.record("radiographs.expire", after={"removed": removed})
    return removed


def needed() -> set[str]:
    """Digests of the radiographs of batches that have not ended and of results that are still to be sent."""
    of_batches = Prediction.objects.filter(batch__in=Batch.objects.active()).order_by()
    waiting = DicomDelivery.objects.filter(state=DicomDelivery.State.WAITING).order_by()
    return set(
        chain(
            of_batches.values_list("image_digest", flat=True),
            waiting.values_list("received__prediction__image_digest", flat=True),
        )
    )
