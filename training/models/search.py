"""Several trainings as one: a grid of architectures and settings, or a race that drops the hopeless ones."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse
from django.utils import timezone

from datasets.models import Dataset, Preparation
from xrayplatform import audit
from xrayplatform.jobs import Job
from xrayplatform.teams import TeamScopedQuerySet

from .. import announcing, searching
from ..configurations import OPTIONS

if TYPE_CHECKING:
    from registry.models import ModelVersion

    from .run import TrainingRun

logger = logging.getLogger(__name__)


class SearchQuerySet(TeamScopedQuerySet):
    team_path = "preparation__dataset__condition__team"

    def with_counts(self) -> "SearchQuerySet":
        """Annotated with `runs_count`, `active_count` and `finished_count`."""

        def count(**condition: Any) -> models.Count:
            return models.Count("runs", filter=models.Q(**condition), distinct=True)

        return self.annotate(
            runs_count=models.Count("runs", distinct=True),
            active_count=count(runs__state__in=Job.ACTIVE),
            finished_count=count(runs__state=Job.State.SUCCEEDED),
        )

    def decide(self) -> int:
        """Decide wherever runs wait for it; returns in how many searches something was decided.

        Called every minute: whoever should have decided may have died before.
        """
        waiting = self.filter(runs__held=True, runs__state=Job.State.QUEUED).distinct()
        return sum(_decided(search) for search in waiting)


def _decided(search: "Search") -> bool:
    try:
        return search.decide()
    except Exception:
        # The others must not wait for this one.
        logger.exception("%s could not be decided", search)
        return False


class Search(models.Model):
    """A batch of runs on one preparation that are compared at the end."""

    class Mode(models.TextChoices):
        GRID = "grid", "Train all to the end"
        HALVING = "halving", "Stop hopeless ones early"

    name = models.CharField(max_length=80)
    preparation = models.ForeignKey(Preparation, models.PROTECT, related_name="searches", editable=False)
    mode = models.CharField(max_length=10, choices=Mode)
    parameters = models.JSONField(editable=False, help_text="architectures, and the values of each option that varies")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, editable=False, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = SearchQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"Search {self.pk}: {self.name}"

    def get_absolute_url(self) -> str:
        return reverse("training:search-detail", args=[self.pk])

    # -- Starting and cancelling

    @classmethod
    def start(
        cls,
        dataset: Dataset,
        plan: searching.Plan,
        by: Any,
        *,
        name: str = "",
        priority: int | None = None,
        initial: str = "auto",
        version: "ModelVersion | None" = None,
    ) -> "Search":
        """Create the search and all its runs, and put them into the queue: all or nothing. Raises JobError.

        Their priority is low unless told otherwise, so that single trainings of colleagues go first.
        initial, version: what all runs start from, as `TrainingRun.create` takes it.
        """
        # The module of runs needs this one for its own table.
        from .run import TrainingRun, chosen_weights

        # What all runs of an architecture start from is read and verified once.
        start = {"initial": initial, "version": version, "choose": cache(chosen_weights), "recorded": False}
        with transaction.atomic():
            runs = [
                TrainingRun.create(dataset, item.architecture, item.configuration, by, preset=plan.preset, **start)
                for item in plan.candidates
            ]
            plan = plan.starting_from_weights(run.architecture for run in runs if run.starts_from_weights)
            ladder = plan.rungs
            first_rung = ladder[0] if ladder and len(ladder) > 1 else None
            search = cls.objects.create(
                name=name.strip()[:80] or _default_name(plan),
                preparation=runs[0].preparation,
                mode=cls.Mode.HALVING if plan.eta else cls.Mode.GRID,
                parameters={**plan.to_json(), "initial": initial, "initial_version": version and version.pk},
                created_by=by,
            )
            rank = TrainingRun.Priority.LOW if priority is None else priority
            fields = {"search": search, "priority": rank, "epoch_limit": first_rung}
            TrainingRun.objects.filter(pk__in=[run.pk for run in runs]).update(**fields)
            audit.record("search.start", search, actor=by, after={"runs": len(runs), **search.parameters})
            for run in search.runs.order_by("pk"):
                run.record_start(by)
                run.enqueue()
        return search

    def cancel(self, by: Any) -> int:
        """Cancel every run that has not ended; returns how many. Runs that finished keep their versions."""
        with transaction.atomic():
            self._lock()
            # Those that wait for the others first: while others go on, nobody decides that they go on too.
            active = self.runs.filter(state__in=Job.ACTIVE).order_by("-held", "pk")
            cancelled = sum(run.request_cancel(by) for run in active)
            if cancelled:
                audit.record("search.cancel", self, actor=by, after={"runs": cancelled})
        return cancelled

    @property
    def is_active(self) -> bool:
        return self.runs.filter(state__in=Job.ACTIVE).exists()

    def _lock(self) -> None:
        Search.objects.select_for_update().get(pk=self.pk)

    @property
    def varied(self) -> list[str]:
        """The options that differ between the runs, in their usual order: PostgreSQL keeps none in JSON."""
        return [name for name in OPTIONS if name in self.parameters.get("values", {})]

    # -- Successive halving

    @property
    def eta(self) -> int:
        return self.parameters.get("eta") or searching.ETA

    def decide(self) -> bool:
        """When all runs of the present rung have got there or ended, let the best go on and stop the rest.

        Does nothing while a run is still on its way, when there is nothing to decide, and when it was decided before;
        so it may be called at any time and as often as one likes. Runs that failed or were cancelled do not count as
        rivals, but they do not give their places away either: the best 1/eta of those that set out go on, and who ties
        with the last of them.
        """
        if self.mode != self.Mode.HALVING:
            return False
        with transaction.atomic():
            self._lock()
            runs = list(self.runs.annotate(best_loss=models.Min("metrics__val_loss")).order_by("pk"))
            limits = [run.epoch_limit for run in runs if run.is_active and run.epoch_limit is not None]
            rung = min(limits, default=None)
            here = [run for run in runs if run.epoch_limit == rung]
            if rung is None or any(run.is_active and not run.held for run in here):
                return False
            self._settle(here, rung)
            announcing.tell_end_of_search(self)
        return True

    def _settle(self, here: Sequence["TrainingRun"], rung: int) -> None:
        rivals = {run.pk: run for run in here if _waits(run) or run.state == Job.State.SUCCEEDED}
        rivals = {pk: run for pk, run in rivals.items() if not run.cancel_requested}
        losses = {pk: run.best_loss for pk, run in rivals.items()}
        order = searching.ranking(losses)
        places = searching.places(len(here), eta=self.eta)
        going_on = searching.going_on(losses, places)
        for run in filter(_waits, here):
            if run.pk not in rivals:
                self._stop(run, "Cancelled on request", {"epochs": rung})
                continue
            place = order.index(run.pk) + 1
            found = {"search": self.pk, "epochs": rung, "place": place, "of": len(order), "val_loss": run.best_loss}
            if run.pk in going_on:
                level = f", level with the {ordinal(places)}" if place > places else ""
                self._let_go_on(run, f"Goes on after {rung} epochs: {ordinal(place)} of {len(order)}{level}", found)
            else:
                words = f"Stopped by the search after {rung} epochs: {ordinal(place)} of {len(order)}"
                self._stop(run, words, found)

    def _let_go_on(self, run: "TrainingRun", message: str, found: dict[str, Any]) -> None:
        following = searching.next_rung(self.parameters.get("rungs") or [], found["epochs"])
        waiting = self.runs.filter(pk=run.pk, state=Job.State.QUEUED, held=True)
        if waiting.update(held=False, epoch_limit=following, message=message):
            audit.record("trainingrun.continue", run, actor=self.created_by, after=found)
            run.enqueue()

    def _stop(self, run: "TrainingRun", message: str, found: dict[str, Any]) -> None:
        waiting = self.runs.filter(pk=run.pk, state=Job.State.QUEUED, held=True)
        if waiting.update(state=Job.State.CANCELLED, held=False, finished_at=timezone.now(), message=message):
            audit.record("trainingrun.cancelled", run, actor=self.created_by, after={"message": message, **found})
            transaction.on_commit(run.clean_up, robust=True)


def _waits(run: "TrainingRun") -> bool:
    return run.held and run.is_active


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th; 11th to 13th."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _default_name(plan: searching.Plan) -> str:
    options = [OPTIONS[name].label for name in plan.values]
    if len(plan.architectures) > 1:
        options.insert(0, f"{len(plan.architectures)} architectures")
    return ", ".join(options)[:80]
