"""The answers of shadows, made after the answer that is shown: in the background, and never at its cost.

A web process has one thread for them. It waits for a moment in which nobody else needs the processor; what cannot wait
any longer is dropped and counted. Commands and the queue's workers have time, and make the answer at once.
"""

import atexit
import contextvars
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.db import connections, transaction

from datasets.radiograph import Radiograph

from .experiments import CHALLENGER, Routed, guard
from .models import Experiment, Prediction, Unanswered
from .models.prediction import TURNS
from .turns import Turns

if TYPE_CHECKING:
    from .analysing import Asked

logger = logging.getLogger(__name__)

WAITING = 16
# Decoded radiographs that may wait, in bytes.
WAITING_BYTES = 256 * 1024 * 1024
PATIENCE_SECONDS = 10.0
_LOOK_AGAIN_SECONDS = 0.02
_STOP_SECONDS = 2.0

FULL = "Too many answers of the challenger waited already; this one was left out. The radiograph was answered."
NO_QUIET_MOMENT = "The platform had no quiet moment for the challenger; it was left out. The radiograph was answered."
STOPPED = "The process ended before the challenger could answer; it was left out. The radiograph was answered."


@dataclass(frozen=True)
class Wanted:
    """One answer that a shadow is to make. shown: what the champion answered. before: see `answer_unseen`."""

    routed: Routed
    asked: "Asked"
    shown: Prediction
    radiograph: Radiograph
    before: float

    @property
    def bytes(self) -> int:
        fine = self.radiograph.fine
        return int(self.radiograph.grey.nbytes) + (int(fine.nbytes) if fine is not None else 0)

    def make(self) -> None:
        """Let the challenger answer, unless the experiment has ended meanwhile. Whatever goes wrong is written down."""
        from .analysing import answer_unseen

        experiment = self.routed.experiment
        if not Experiment.objects.running().filter(pk=experiment.pk).exists():
            return
        try:
            answer_unseen(self.asked, self.routed, self.shown, self.radiograph, self.before)
        except Exception as error:
            logger.exception("The shadow of experiment %s failed", experiment.pk)
            count_failure(self.asked, self.routed, Unanswered.Kind.FAILED, error)
        guard(experiment)

    def leave_out(self, kind: str, text: str) -> None:
        """Count it as not answered by the challenger."""
        count_failure(self.asked, self.routed, kind, RuntimeError(text))


def count_failure(asked: "Asked", routed: Routed, kind: str, error: Exception) -> None:
    """Write down that the challenger gave no answer. That this cannot be written costs nobody the champion's."""
    told = error if str(error) else RuntimeError(type(error).__name__)
    about = {"version": routed.challenger, "experiment": routed.experiment, "variant": CHALLENGER}
    try:
        asked.unanswered(kind, told, **about)
    except Exception:
        logger.exception("What the challenger of experiment %s did not answer was not counted", routed.experiment.pk)


class Background:
    """One thread that makes what is wanted, one after the other, as long as nobody waits for an answer."""

    def __init__(self, turns: Turns, most: int = WAITING, most_bytes: int = WAITING_BYTES) -> None:
        self._turns = turns
        self._most = most
        self._most_bytes = most_bytes
        self._waiting: deque[tuple[Wanted, contextvars.Context]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._making: Wanted | None = None
        self._stopping = False

    def submit(self, wanted: Wanted) -> bool:
        """Make it later; at once False, and nothing will be made, where there is no room or the process ends."""
        with self._changed:
            if self._stopping or not self._has_room(wanted):
                return False
            # The audit log's entry belongs to the same request.
            self._waiting.append((wanted, contextvars.copy_context()))
            # Of a process that was forked from one with such a thread, only the remains are here.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="shadows", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def stop(self) -> None:
        """Drop what waits, count it, and wait a little for what is being made."""
        with self._changed:
            self._stopping = True
            dropped = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for wanted, context in dropped:
            context.run(wanted.leave_out, Unanswered.Kind.BUSY, STOPPED)
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def wait_until_idle(self, seconds: float) -> bool:
        """Whether all that was wanted has been made or dropped within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and self._making is None, seconds)

    def _has_room(self, wanted: Wanted) -> bool:
        if not self._waiting:
            return True
        held = sum(waiting.bytes for waiting, _ in self._waiting)
        return len(self._waiting) < self._most and held + wanted.bytes <= self._most_bytes

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                wanted, context = self._waiting.popleft()
                self._making = wanted
            try:
                context.run(self._make, wanted)
            except Exception:
                logger.exception("A shadow could not be made")
            finally:
                # This thread's own; an open one would keep a server's connection for good.
                connections.close_all()
                with self._changed:
                    self._making = None
                    self._changed.notify_all()

    def _make(self, wanted: Wanted) -> None:
        if self._quiet_moment():
            wanted.make()
        else:
            wanted.leave_out(Unanswered.Kind.BUSY, NO_QUIET_MOMENT)

    def _quiet_moment(self) -> bool:
        """Wait until nobody works or waits; False when that does not come, or the process ends."""
        until = time.monotonic() + PATIENCE_SECONDS
        while self._turns.working or self._turns.waiting:
            if self._stopping or time.monotonic() > until:
                return False
            time.sleep(_LOOK_AGAIN_SECONDS)
        return True


BACKGROUND = Background(TURNS)
atexit.register(BACKGROUND.stop)

# Somebody waits for these answers; the others are made by commands and by workers of the queue.
_SOMEBODY_WAITS = {Prediction.Channel.WEB, Prediction.Channel.API}


def after(routed: Routed, asked: "Asked", shown: Prediction, radiograph: Radiograph, before: float) -> None:
    """What an experiment has to do once an answer is stored: look at the guard rails, or let the shadow answer too.

    before: see `answer_unseen`.
    """
    experiment = routed.experiment
    if shown.variant == CHALLENGER:
        guard(experiment)
    if not experiment.is_shadow or shown.version_id != experiment.champion_id:
        return
    wanted = Wanted(routed, asked, shown, radiograph, before)
    if asked.channel in _SOMEBODY_WAITS:
        transaction.on_commit(lambda: _later(wanted))
    else:
        wanted.make()


def _later(wanted: Wanted) -> None:
    if not BACKGROUND.submit(wanted):
        wanted.leave_out(Unanswered.Kind.BUSY, FULL)
