"""The comparison of the runs of a search: who is best on validation, by how much, and what that is worth."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from django.db.models import Min

from registry.models import ModelVersion
from xrayplatform.jobs import Job

from . import searching
from .configurations import OPTIONS
from .models import EpochMetric, Search, TrainingRun

TEST_FIGURES = ("accuracy", "auc", "f1")


@dataclass(frozen=True)
class Standing:
    """One run: its best epoch (the lowest validation loss) and the place that this gives it among all.

    options: those that the search varies, with this run's values. is_best: the one to choose.
    """

    run: TrainingRun
    place: int | None
    best: EpochMetric | None
    is_best: bool
    options: dict[str, Any]

    @property
    def words(self) -> str:
        shown = [f"{OPTIONS[name].label.lower()} {OPTIONS[name].words(value)}" for name, value in self.options.items()]
        return ", ".join([self.run.architecture, *shown])

    @property
    def shown_options(self) -> list[str]:
        return [OPTIONS[name].words(value) for name, value in self.options.items()]

    @property
    def figures(self) -> str:
        if self.best is None:
            return "no figures"
        auc = "" if self.best.val_auc is None else f", AUC {self.best.val_auc:.3f}"
        return f"loss {self.best.val_loss:.3f}{auc} after {_epochs(self.best.epoch)}"

    @property
    def test(self) -> dict[str, float | None] | None:
        """Figures of the finished version on the test part: to report, never to choose by."""
        version = self.run.version
        return version and {name: version.metrics.get(name) for name in TEST_FIGURES}

    def to_json(self) -> dict[str, Any]:
        run, best = self.run, self.best
        return {
            "run": run.pk,
            "state": run.state,
            "held": run.held,
            "message": run.message,
            "architecture": run.architecture,
            "options": self.options,
            "epoch": run.epoch,
            "epochs": run.epochs,
            "epoch_limit": run.epoch_limit,
            "place": self.place,
            "best": self.is_best,
            "best_epoch": best and best.epoch,
            "validation_loss": best and best.val_loss,
            "validation_auc": best and best.val_auc,
            "version": run.version and run.version.number,
            "test": self.test,
        }


@dataclass(frozen=True)
class Comparison:
    """All runs of a search, the best on validation first, those without any figure last."""

    search: Search
    standings: list[Standing]

    @property
    def is_active(self) -> bool:
        return any(standing.run.is_active for standing in self.standings)

    @property
    def ended(self) -> int:
        return sum(not standing.run.is_active for standing in self.standings)

    @property
    def too_few(self) -> str:
        """Why the runs cannot be told apart, where a class has too few validation images for that; "" otherwise."""
        counts = self.search.preparation.counts.get("validation", {})
        name = min(counts, key=counts.get, default=None)
        if name is None or counts[name] >= searching.LEAST_OF_A_CLASS:
            return ""
        return (
            f"These are too few validation images to tell them apart: {counts[name]} of {name}, where at least "
            f"{searching.LEAST_OF_A_CLASS} of each class are needed to rank the runs. Which one comes first is mostly "
            "chance; add images, or give the validation part a larger share."
        )

    @property
    def architectures(self) -> int:
        return len({standing.run.architecture for standing in self.standings})

    @property
    def options(self) -> list[str]:
        """The names of the options that differ, in words."""
        return [OPTIONS[name].label for name in self.search.varied]

    @property
    def curves(self) -> list[dict[str, Any]]:
        """Of each run its validation loss and AUC epoch by epoch, for the chart and its table."""
        rows = defaultdict(list)
        for metric in EpochMetric.objects.filter(run__search=self.search).order_by("epoch"):
            rows[metric.run_id].append(metric)
        return [
            {
                "run": standing.run.pk,
                "label": f"Run {standing.run.pk}: {standing.words}",
                "best": standing.is_best,
                "epoch": [metric.epoch for metric in rows[standing.run.pk]],
                "val_loss": [metric.val_loss for metric in rows[standing.run.pk]],
                "val_auc": [metric.val_auc for metric in rows[standing.run.pk]],
            }
            for standing in self.standings
        ]

    @property
    def conclusion(self) -> list[str]:
        """What came out, in sentences; empty while runs go on."""
        if self.is_active:
            return []
        finished = [item for item in self.standings if item.run.state == Job.State.SUCCEEDED and item.best]
        if not finished:
            return ["No run of this search finished, so there is nothing to choose from. Each run's page says why."]
        others = [item for item in self.standings if item not in finished]
        too_few = self.too_few
        return [
            _best_words(self.search, finished, others, ranked=not too_few),
            *([too_few] if too_few else _chance_words(self.search, finished)),
            _test_words(self.search),
        ]


def compare(search: Search) -> Comparison:
    """The runs as they stand now. The best is, of those that finished, or while none has, of those that go on."""
    runs = {run.pk: run for run in search.runs.select_related("version__condition", "created_by").order_by("pk")}
    best: dict[int, EpochMetric] = {}
    figures = EpochMetric.objects.filter(run__search=search, val_loss__isnull=False)
    for metric in figures.order_by("val_loss", "epoch"):
        best.setdefault(metric.run_id, metric)
    order = searching.ranking({pk: best[pk].val_loss if pk in best else None for pk in runs})
    finished = {pk for pk, run in runs.items() if run.state == Job.State.SUCCEEDED}
    eligible = finished or {pk for pk, run in runs.items() if run.is_active}
    chosen = next((pk for pk in order if pk in best and pk in eligible), None)
    standings = [
        Standing(
            run=runs[pk],
            place=place if pk in best else None,
            best=best.get(pk),
            is_best=pk == chosen,
            options={name: runs[pk].configuration.get(name) for name in search.varied},
        )
        for place, pk in enumerate(order, start=1)
    ]
    return Comparison(search, standings)


def test_uses(search: Search) -> int:
    """How many versions were measured on the test part of this split: each look makes it less of a test."""
    preparation = search.preparation
    if not preparation.split_digest:
        return ModelVersion.objects.filter(run__preparation=preparation).count()
    return ModelVersion.objects.filter(split_digest=preparation.split_digest).count()


def _best_words(search: Search, finished: list[Standing], others: list[Standing], *, ranked: bool) -> str:
    """ranked: whether there are images enough to call a run better than another."""
    first = finished[0]
    claim = "is best" if ranked else "has the lowest loss"
    words = f"On the validation part run {first.run.pk} ({first.words}) {claim}: {first.figures}."
    if len(finished) > 1:
        second = finished[1]
        return (
            f"{words} The next is run {second.run.pk} ({second.words}): {second.figures}; its loss is higher by "
            f"{second.best.val_loss - first.best.val_loss:.3f}."
        )
    stopped = next((item for item in others if item.best and item.run.state == Job.State.CANCELLED), None)
    if search.mode != Search.Mode.HALVING or stopped is None:
        return f"{words} No other run finished, so that nothing trained to the end can be compared with it."
    return f"{words} {_lead_words(first, stopped)}"


def _lead_words(first: Standing, stopped: Standing) -> str:
    """How far ahead the winner was when its closest rival was stopped: both had trained equally long then."""
    epochs = stopped.run.epoch
    then = first.run.metrics.filter(epoch__lte=epochs).aggregate(Min("val_loss"))["val_loss__min"]
    lead = "" if then is None else f", where the best had {then:.3f}"
    return (
        f"The next, run {stopped.run.pk} ({stopped.words}), was stopped after {_epochs(epochs)} with a loss of "
        f"{stopped.best.val_loss:.3f}{lead}."
    )


def _chance_words(search: Search, finished: list[Standing]) -> list[str]:
    """How much of the difference may be luck, where two classes allow to tell."""
    counts = search.preparation.counts.get("validation", {})
    positives, images = counts.get(search.preparation.positive_class, 0), sum(counts.values())
    auc = finished[0].best.val_auc
    margin = None if auc is None or len(counts) != 2 else searching.auc_margin(auc, positives, images - positives)
    if margin is None or len(finished) == 1:
        return []
    close = sum(item.best.val_auc is not None and auc - item.best.val_auc <= margin for item in finished[1:])
    words = {0: "No other finished run lies", 1: "One other finished run lies"}
    within = words.get(close, f"{close} other finished runs lie")
    return [
        f"With {images} validation images an AUC of {auc:.3f} is uncertain by about {margin:.3f} (95 %). {within} "
        "within that. The best of several is also a little lucky: expect it to do slightly worse on new images."
    ]


def _test_words(search: Search) -> str:
    uses = test_uses(search)
    return (
        f"The test part of this split has been looked at {'once' if uses == 1 else f'{uses} times'}, one time for each "
        "version that was measured on it. Report its figures for the model that you choose on validation; whoever "
        "chooses by them has no test left."
    )


def _epochs(number: int) -> str:
    return f"{number} epoch{'' if number == 1 else 's'}"
