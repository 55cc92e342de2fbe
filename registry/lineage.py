"""From a dataset to the answers and back: what a version came from, and what came of it.

The registry knows versions with their parents, evaluations, activations and packages. What comes before a version (run,
preparation, dataset) and after it (predictions) other apps hand down: they append to UPSTREAM and DOWNSTREAM.

Nobody learns here of what another team keeps to itself. Where something that a version came from may not be seen, a
step without name and number says so: that a version came from something is no secret. What came of something is left
out instead, without a word, because that there is anything would be told by it.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.db import models

from . import claims
from .models import Activation, Evaluation, ModelVersion, PackageImport


class Kind(models.TextChoices):
    DATASET = "dataset", "Dataset"
    PREPARATION = "preparation", "Preparation"
    RUN = "run", "Training run"
    PACKAGE = "package", "Package"
    VERSION = "version", "Version"
    EVALUATION = "evaluation", "Evaluation"
    EVALUATION_RUN = "evaluation-run", "Evaluation under way"
    ACTIVATION = "activation", "Activation"
    PREDICTIONS = "predictions", "Predictions"


@dataclass(frozen=True)
class Step:
    """One thing on the way from images to answers.

    id: its primary key, where it has a page of its own. digest: hex SHA-256 of its content. by: who made it, in words.
    facts: what else is to be known of it, by name. count: how many rows it stands for. hidden: something is there that
    the reader may not see.
    """

    kind: Kind
    label: str
    id: int | None = None
    url: str = ""
    digest: str = ""
    when: datetime | None = None
    by: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    hidden: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "kind": self.kind.value, "when": self.when and self.when.isoformat()}


# The steps of each of the versions by its primary key, as far as the user (None: the command line) may see them. One
# call is for all versions at once, so that the number of queries does not grow with them.
Provider = Callable[[Sequence[ModelVersion], Any], Mapping[int, Sequence[Step]]]

# What a version came from, the earliest first (training). A version about which none of them knows, the registry
# describes by its own record.
UPSTREAM: list[Provider] = []
# What came of a version besides evaluations and activations (inference).
DOWNSTREAM: list[Provider] = []

# What is large in a version's row, and stands in no step.
NOT_TOLD = (
    "metrics", "validation_metrics", "configuration", "history", "environment", "preprocessing", "classes",
)  # fmt: skip
# The title under which a model card describes the data.
DATA_SECTION = "Data"


@dataclass(frozen=True)
class Member:
    """A version of a family, with what it came from by itself and what came of it; parents and children are members.

    through: how it belongs to the family, in words.
    """

    version: Step
    upstream: Sequence[Step] = ()
    downstream: Sequence[Step] = ()
    through: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version.to_json(),
            "through": self.through,
            "upstream": [step.to_json() for step in self.upstream],
            "downstream": [step.to_json() for step in self.downstream],
        }

    @property
    def groups(self) -> list[tuple[Kind, list[Step]]]:
        """What came of it, by kind, in the order of the kinds."""
        found = [(kind, [step for step in self.downstream if step.kind == kind]) for kind in Kind]
        return [(kind, steps) for kind, steps in found if steps]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are of each kind of what came of it."""
        return {kind.value: sum(step.count for step in steps) for kind, steps in self.groups}

    @property
    def evaluations(self) -> list[Step]:
        return [step for step in self.downstream if step.kind == Kind.EVALUATION]

    @property
    def activations(self) -> list[Step]:
        return [step for step in self.downstream if step.kind == Kind.ACTIVATION]

    @property
    def predictions(self) -> Step | None:
        return next((step for step in self.downstream if step.kind == Kind.PREDICTIONS), None)


@dataclass(frozen=True)
class VersionLineage:
    """ancestors: the earliest first. descendants: all versions that go back to it, the newest first."""

    ancestors: Sequence[Member]
    member: Member
    descendants: Sequence[Member] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "ancestors": [one.to_json() for one in self.ancestors],
            **self.member.to_json(),
            "descendants": [one.to_json() for one in self.descendants],
        }


class Family:
    """Which version started from the weights of which, of all teams, read in one query. Members are primary keys."""

    def __init__(self) -> None:
        started = ModelVersion.objects.filter(parent__isnull=False).order_by()
        self.parents: dict[int, int] = dict(started.values_list("pk", "parent"))
        self.children: dict[int, list[int]] = defaultdict(list)
        for child, parent in self.parents.items():
            self.children[parent].append(child)

    def ancestors(self, pk: int) -> Iterator[int]:
        """The version whose weights it started from, then the one before that, and so on."""
        while (parent := self.parents.get(pk)) is not None:
            yield parent
            pk = parent

    def descendants(self, pks: Collection[int]) -> set[int]:
        """All that go back to one of these, and none of these unless it goes back to another one."""
        found: set[int] = set()
        ahead = list(pks)
        while ahead:
            new = set(self.children.get(ahead.pop(), ())) - found
            found |= new
            ahead += new
        return found


def lineage_of(version: ModelVersion, user: Any) -> VersionLineage:
    """Everything before a version that the user may see, and everything after it; some ten queries."""
    family = Family()
    before = origin_of(version, user, family)
    after = downstream_of([version], user)[version.pk]
    later = versions_seen(family.descendants([version.pk]), user)
    words = parents_in_words(later, user, family)
    descendants = [Member(version_step(one), through=words[one.pk]) for one in later]
    return VersionLineage(before.ancestors, replace(before.member, downstream=after), descendants)


def origin_of(version: ModelVersion, user: Any, family: Family | None = None) -> VersionLineage:
    """The way back from a version alone: without what came of it."""
    line = list((family or Family()).ancestors(version.pk))
    seen = {one.pk: one for one in versions_seen(line, user)}
    steps = upstream_of([version, *seen.values()], user)
    ancestors: list[Member] = []
    for pk in reversed(line):
        if pk in seen:
            ancestors.append(Member(version_step(seen[pk]), steps[pk]))
        elif not (ancestors and ancestors[-1].version.hidden):
            # How many of them follow each other is not told.
            ancestors.append(Member(hidden_step(Kind.VERSION)))
    return VersionLineage(ancestors, Member(version_step(version), steps[version.pk]))


def members(versions: Sequence[ModelVersion], user: Any, through: Mapping[int, str]) -> list[Member]:
    """Versions with all their steps, in a number of queries that does not grow with them."""
    before, after = upstream_of(versions, user), downstream_of(versions, user)
    return [Member(version_step(one), before[one.pk], after[one.pk], through.get(one.pk, "")) for one in versions]


def versions_seen(pks: Collection[int], user: Any) -> list[ModelVersion]:
    """Those of these versions that the user may see, the newest first."""
    if not pks or not may(user, "registry.view_modelversion"):
        return []
    versions = ModelVersion.objects.seen_by(user).filter(pk__in=pks).defer(*NOT_TOLD)
    return list(versions.select_related("condition", "created_by").order_by("-pk"))


def parents_in_words(versions: Sequence[ModelVersion], user: Any, family: Family) -> dict[int, str]:
    """From which version each started; nothing of those that started from none."""
    parents = {one.pk: family.parents[one.pk] for one in versions if one.pk in family.parents}
    names = {one.pk: str(one) for one in versions_seen(set(parents.values()), user)}
    return {pk: f"started from {names.get(parent, 'a version that is not shown')}" for pk, parent in parents.items()}


def may(user: Any, permission: str) -> bool:
    """Whether the user, or the command line (None), has the right."""
    return user is None or bool(user.has_perm(permission))


# -- Steps


def version_step(version: ModelVersion) -> Step:
    return Step(
        Kind.VERSION,
        str(version),
        version.pk,
        version.get_absolute_url(),
        version.sha256,
        version.created_at,
        in_words(version.created_by),
        {"Architecture": version.architecture, "State": version.get_state_display(), "Origin": version.origin},
    )


def hidden_step(kind: Kind) -> Step:
    return Step(kind, f"A {kind.label.lower()} that is not shown: you may not see it", hidden=True)


def in_words(user: Any) -> str:
    """Who did something. It was the command line where no user is known."""
    return user.get_username() if user else "the command line"


def moment(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC" if at else ""


def upstream_of(versions: Sequence[ModelVersion], user: Any) -> dict[int, list[Step]]:
    """What each version came from besides its parent, the earliest first."""
    found = _gathered([*UPSTREAM, _packages], versions, user)
    for version in versions:
        if not any(step.kind == Kind.DATASET for step in found[version.pk]):
            found[version.pk].insert(0, _recorded_dataset(version))
    return found


def downstream_of(versions: Sequence[ModelVersion], user: Any) -> dict[int, list[Step]]:
    """What came of each version besides its children: evaluations, activations, predictions; the newest first."""
    return _gathered([_evaluations, _activations, *DOWNSTREAM], versions, user)


def _gathered(providers: Sequence[Provider], versions: Sequence[ModelVersion], user: Any) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = {version.pk: [] for version in versions}
    for provider in providers if versions else ():
        for pk, steps in provider(versions, user).items():
            found[pk] += steps
    return found


def _recorded_dataset(version: ModelVersion) -> Step:
    """The dataset as the version's own record has it, where nobody here knows more."""
    facts = {"Digest of the split": version.split_digest} if version.split_digest else {}
    return Step(Kind.DATASET, version.dataset_name, digest=version.dataset_digest, facts=facts)


def _packages(versions: Sequence[ModelVersion], user: Any) -> dict[int, list[Step]]:
    """Where an imported version comes from, as its origin told it."""
    if not may(user, "registry.view_packageimport"):
        return {}
    imports = PackageImport.objects.seen_by(user).filter(version__in=versions)
    return {one.version_id: [_package(one)] for one in imports.select_related("package", "created_by")}


def _package(job: PackageImport) -> Step:
    package = job.package
    told = claims.lineage(package.description)
    facts = {
        "Site": package.origin,
        "Number there": str(package.description["version"]["number"]),
        "Digest of the version there": told["version"],
        "Digest of the version that it started from there": told["parent"],
        "Data, as its card tells": _data_of(job.documents.get("card") or {}),
    }
    facts = {name: value for name, value in facts.items() if value}
    label = f"Package of {package.origin}"
    who = in_words(job.created_by)
    return Step(Kind.PACKAGE, label, job.pk, job.get_absolute_url(), package.sha256, job.created_at, who, facts)


def _data_of(card: Mapping[str, Any]) -> str:
    """What the card says in its section about the data, in one line."""
    said: list[str] = []
    for section in card.get("sections", []):
        if section["title"] == DATA_SECTION:
            said += section["paragraphs"]
            said += [f"{label}: {value}" for label, value in section["facts"]]
            said += [_row_in_words(table["header"], row) for table in section["tables"] for row in table["rows"]]
    return "; ".join(said)


def _row_in_words(header: Sequence[str], row: Sequence[str]) -> str:
    """The row ["Test", "5", "7"] below ["Part", "NORMAL", "Patients"] is "Test: NORMAL 5, Patients 7"."""
    cells = [f"{name} {value}" for name, value in zip(header[1:], row[1:], strict=False)]
    return f"{row[0] if row else ''}: {', '.join(cells)}"


def evaluation_step(evaluation: Evaluation) -> Step:
    return Step(
        Kind.EVALUATION,
        f"{evaluation.get_kind_display()}: {evaluation.dataset_name}",
        evaluation.pk,
        evaluation.get_absolute_url(),
        evaluation.dataset_digest,
        evaluation.created_at,
        in_words(evaluation.created_by),
        {"Images": f"{evaluation.images_count:,}", "Patients": f"{evaluation.patients_count:,}"},
    )


def evaluations_seen(user: Any) -> Any:
    """Without the reports, which are large."""
    if not may(user, "registry.view_evaluation"):
        return Evaluation.objects.none()
    return Evaluation.objects.seen_by(user).defer("report").select_related("created_by").order_by("-pk")


def _evaluations(versions: Sequence[ModelVersion], user: Any) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = defaultdict(list)
    for evaluation in evaluations_seen(user).filter(version__in=[version.pk for version in versions]):
        found[evaluation.version_id].append(evaluation_step(evaluation))
    return found


def _activations(versions: Sequence[ModelVersion], user: Any) -> dict[int, list[Step]]:
    """Each time that a version went into service, and until when it answered in this way."""
    if not may(user, "registry.view_activation"):
        return {}
    wanted = {version.pk for version in versions}
    rows = Activation.objects.filter(condition__in={version.condition_id for version in versions}).order_by("-pk")
    found: dict[int, list[Step]] = defaultdict(list)
    next_at: dict[int, datetime] = {}
    for row in rows.select_related("by", "threshold_set", "to_version", "from_version__condition"):
        if row.to_version_id in wanted:
            found[row.to_version_id].append(_activation(row, next_at.get(row.condition_id)))
        next_at[row.condition_id] = row.at
    return found


def _activation(row: Activation, until: datetime | None) -> Step:
    same = row.from_version_id == row.to_version_id
    facts = {
        "Until": moment(until) if until else "now",
        "Reason": row.reason,
        "Threshold": "" if row.threshold is None else f"{row.threshold:.4g}",
        "Instead of": str(row.from_version) if row.from_version and not same else "",
    }
    return Step(
        Kind.ACTIVATION,
        "Given another threshold" if same else "Put in service",
        when=row.at,
        by=in_words(row.by),
        facts={name: value for name, value in facts.items() if value},
    )


def activation_at(version: ModelVersion, at: datetime, user: Any) -> Step | None:
    """By whose decision the version answered at that time; None when it was not in service, or the user may not see."""
    if not may(user, "registry.view_activation"):
        return None
    rows = version.activations.select_related("by", "threshold_set", "to_version", "from_version__condition")
    row = rows.filter(at__lte=at).first()
    if row is None:
        return None
    later = Activation.objects.filter(condition=version.condition_id, pk__gt=row.pk).order_by("pk").first()
    return _activation(row, later.at if later else None)
