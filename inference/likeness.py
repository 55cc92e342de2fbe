"""What the images of a version look like to it: computed once in the queue, held by each process that serves."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from registry.models import ModelVersion

from .measures import Distributions
from .models.serving import ServingReference
from .reference import Reference, ReferenceUnusable

# A reference is computed soon after its version went into service; until then it is asked for so often.
ASK_AGAIN_SECONDS = 60.0
# A command may compute it anew.
RENEW_SECONDS = 3600.0
KEPT = 32


@dataclass(frozen=True)
class Known:
    """Both None for a version whose own images are not here, or not yet."""

    reference: Reference | None = None
    distributions: Distributions | None = None


@dataclass(frozen=True)
class _Held:
    known: Known
    asked_at: float


_held: "OrderedDict[int, _Held]" = OrderedDict()
_lock = threading.Lock()


def of(version: ModelVersion) -> Known:
    """The version's reference; one query a minute while there is none, one an hour once there is."""
    with _lock:
        held = _held.get(version.pk)
    if held is not None:
        lasts = RENEW_SECONDS if held.known.distributions else ASK_AGAIN_SECONDS
        if time.monotonic() < held.asked_at + lasts:
            return held.known
    known = _read(version)
    with _lock:
        _held[version.pk] = _Held(known, time.monotonic())
        _held.move_to_end(version.pk)
        while len(_held) > KEPT:
            _held.popitem(last=False)
    return known


def forget() -> None:
    """Ask the database anew."""
    with _lock:
        _held.clear()


def _read(version: ModelVersion) -> Known:
    row = ServingReference.objects.filter(version=version).first()
    if row is None or not row.distributions:
        return Known()
    return Known(_reference(row), Distributions.from_json(row.distributions))


def _reference(row: ServingReference) -> Reference | None:
    if not row.reference:
        return None
    try:
        return Reference.from_bytes(bytes(row.reference))
    except ReferenceUnusable:
        return None
