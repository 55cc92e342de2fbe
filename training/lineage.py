"""What the trainings know of the way from a dataset to its versions, and the whole way from a dataset onwards."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import Q

from datasets.models import Dataset, Preparation
from datasets.splitting import SPLITS
from registry.lineage import (
    Family,
    Kind,
    Member,
    Step,
    evaluation_step,
    evaluations_seen,
    hidden_step,
    in_words,
    may,
    members,
    parents_in_words,
    versions_seen,
)
from registry.models import ModelVersion

from .models import TrainingRun

SAME_CONTENT = "made elsewhere or of a copy, of images with the same digest"
CHANGED = "The dataset has changed since: its digest was another one when it was prepared."


@dataclass(frozen=True)
class DatasetLineage:
    """members: every version that learned from the dataset, by itself or from an ancestor, the newest first.

    measured: evaluations on its images of versions that did not learn from it.
    """

    dataset: Step
    preparations: Sequence[Step]
    members: Sequence[Member]
    measured: Sequence[Step]

    @property
    def totals(self) -> dict[str, int]:
        """How many there are of each kind of thing that came of the dataset."""
        counts = [member.counts for member in self.members]
        kinds = (Kind.EVALUATION, Kind.ACTIVATION, Kind.PREDICTIONS)
        came = {kind.value: sum(one.get(kind.value, 0) for one in counts) for kind in kinds}
        return {Kind.VERSION.value: len(self.members), **came}

    @property
    def in_service(self) -> list[Member]:
        """The versions that answer now."""
        return [one for one in self.members if any(step.facts["Until"] == "now" for step in one.activations)]

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset.to_json(),
            "preparations": [step.to_json() for step in self.preparations],
            "totals": self.totals,
            "in_service": [one.version.label for one in self.in_service],
            "versions": [one.to_json() for one in self.members],
            "measured": [step.to_json() for step in self.measured],
        }


def upstream(versions: Sequence[ModelVersion], user: Any) -> Mapping[int, list[Step]]:
    """Dataset, preparation and run of the versions that were trained here; one step without a name where the dataset
    belongs to another team by now."""
    runs = TrainingRun.objects.filter(version__in=[version.pk for version in versions])
    runs = runs.select_related("preparation__dataset", "preparation__created_by", "created_by")
    seen = set()
    if may(user, "training.view_trainingrun") and may(user, "datasets.view_dataset"):
        seen = set(TrainingRun.objects.seen_by(user).filter(pk__in=runs.values("pk")).values_list("pk", flat=True))
    return {run.version_id: _before(run) if run.pk in seen else [hidden_step(Kind.DATASET)] for run in runs}


def _before(run: TrainingRun) -> list[Step]:
    preparation = run.preparation
    return [
        dataset_step(preparation.dataset, preparation.dataset_digest),
        preparation_step(preparation),
        Step(
            Kind.RUN,
            f"Run {run.pk}: {run.architecture}",
            run.pk,
            run.get_absolute_url(),
            when=run.finished_at or run.created_at,
            by=in_words(run.created_by),
            facts={"Configuration": run.preset, "Epochs": f"{run.epoch} of {run.epochs}"},
        ),
    ]


def dataset_step(dataset: Dataset, digest: str = "") -> Step:
    """digest: of its content when it was prepared, which may be another one than now."""
    changed = bool(digest and dataset.digest and digest != dataset.digest)
    return Step(
        Kind.DATASET,
        dataset.name,
        dataset.pk,
        dataset.get_absolute_url(),
        digest or dataset.digest,
        facts={"Note": CHANGED} if changed else {},
    )


def preparation_step(preparation: Preparation) -> Step:
    shared = preparation.shared_patients
    # PostgreSQL keeps the keys of JSON in an order of its own.
    parts = [(part, preparation.counts[part]) for part in SPLITS if part in preparation.counts]
    facts = {
        "Images": ", ".join(f"{part} {sum(counts.values()):,}" for part, counts in parts),
        "Patients in more than one part": "not counted" if shared is None else f"{shared:,}",
        "Seed": str(preparation.seed),
    }
    return Step(
        Kind.PREPARATION,
        f"Preparation {preparation.pk}",
        preparation.pk,
        preparation.get_absolute_url(),
        preparation.split_digest,
        preparation.finished_at or preparation.created_at,
        in_words(preparation.created_by),
        facts,
    )


def lineage_of(dataset: Dataset, user: Any) -> DatasetLineage:
    """Everything that came of a dataset and that the user may see; a number of queries that does not grow with it."""
    preparations = list(dataset.preparations.filter(state=Preparation.State.SUCCEEDED).select_related("created_by"))
    digests = {dataset.digest, *(one.dataset_digest for one in preparations)} - {""}
    trained = _trained_on(dataset)
    same = set(ModelVersion.objects.filter(dataset_digest__in=digests).values_list("pk", flat=True)) - set(trained)
    family = Family()
    learned = {*trained, *same}
    found = versions_seen(learned | family.descendants(learned), user)
    through = {**parents_in_words(found, user, family), **dict.fromkeys(same, SAME_CONTENT), **trained}
    versions = members(found, user, through)
    measured = _measured_on(dataset, digests, {one.pk for one in found}, user)
    return DatasetLineage(dataset_step(dataset), [preparation_step(one) for one in preparations], versions, measured)


def _trained_on(dataset: Dataset) -> dict[int, str]:
    """How the versions of its own trainings learned from it, in words, by their primary keys."""
    runs = TrainingRun.objects.filter(preparation__dataset=dataset, version__isnull=False)
    rows = runs.values_list("version", "pk", "preparation")
    return {version: f"trained on it: run {run}, preparation {preparation}" for version, run, preparation in rows}


def _measured_on(dataset: Dataset, digests: Collection[str], learned: Collection[int], user: Any) -> list[Step]:
    on_it = Q(dataset_digest__in=digests) | Q(dataset_name=dataset.name)
    rows = evaluations_seen(user).filter(on_it).exclude(version__in=learned).select_related("version__condition")
    return [_of_version(evaluation_step(row), str(row.version)) for row in rows]


def _of_version(step: Step, version: str) -> Step:
    return replace(step, facts={"Version": version, **step.facts})
