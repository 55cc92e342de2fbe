"""A folder of radiographs with class labels, and how a team wants it to be read."""

import hashlib
import hmac
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse

from xrayplatform import audit
from xrayplatform.conditions import Condition, free_slug, name_for, slug_for
from xrayplatform.jobs import Job, JobError
from xrayplatform.teams import TeamScopedQuerySet

from ..names import MAX_CLASS_NAME, is_ordinal, names_tell, positive_class, printable, shortened
from ..patterns import PatternError, Preview, preview
from ..quality import CODES

if TYPE_CHECKING:
    from .image import DatasetImage
    from .preparation import Preparation


PROBLEMS_LISTED = 1000
# File names that the live preview of a pattern looks at; enough to judge it, few enough to be quick.
NAMES_PREVIEWED = 5000
LABEL_CONFLICT = "label-conflict"
NEAR_CONFLICT = "near-label-conflict"
# Written by trainings and by people, not by scans; a scan leaves them alone.
CHECK_LABEL, FLAGGED_LABEL = "check-label", "flagged-label"
ABOUT_LABELS = (CHECK_LABEL, FLAGGED_LABEL)
# Findings about copies, and what copies of one picture have in common.
COPIES = {"exact-duplicate": "digest", "near-duplicate": "cluster"}
# Images that one decision over the web may be about: others wait while it is written.
DECIDED_AT_ONCE = 50_000
BATCH = 500
# What choices of classes change. Nothing else is written, because a scan may be writing what it finds.
CHOSEN_CLASSES = (
    "class_choices", "positive_choice", "ordinal_choice", "classes", "positive_class", "ordinal", "counts",
    "unnamed_grades",
)  # fmt: skip


class DatasetQuerySet(TeamScopedQuerySet):
    team_path = "condition__team"

    def for_pages(self) -> "DatasetQuerySet":
        """With what lists show of each: its condition and its preparations, in two queries for all."""
        return self.select_related("condition").prefetch_related("preparations")

    def named(self, name: str) -> "Dataset":
        """The dataset at that path below DATASET_ROOT. Raises JobError, naming those there are."""
        dataset = self.select_related("condition").filter(name=name.strip("/") or ".").first()
        if dataset is None:
            names = ", ".join(self.values_list("name", flat=True)) or "none"
            raise JobError(f"There is no dataset {name!r}. Known datasets: {names}.", "Scan first if it is new.")
        return dataset


class Dataset(models.Model):
    """A folder of radiographs with class labels. Its name is its path below DATASET_ROOT.

    What a scan finds (`source_classes`) and what a team makes of it (`class_choices`: renamed, merged, dropped) are
    kept apart: a later scan changes the first and honours the second. `classes` is what comes out of both.
    """

    class State(models.TextChoices):
        PRESENT = "present", "Present"
        OFFLINE = "offline", "Offline"

    name = models.CharField(max_length=400, unique=True, editable=False)
    condition = models.ForeignKey(Condition, models.PROTECT, related_name="datasets")
    layout = models.CharField(max_length=40, editable=False)
    layout_label = models.CharField(max_length=100, editable=False)
    because = models.TextField(blank=True, editable=False)
    question = models.JSONField(null=True, editable=False, help_text="what the scan could not decide by itself")
    answer = models.CharField(max_length=400, blank=True, editable=False, help_text="what a user chose")
    source_classes = models.JSONField(default=list, editable=False, help_text="as folders or a CSV file name them")
    source_counts = models.JSONField(default=dict, editable=False, help_text="readable images per class found")
    class_choices = models.JSONField(default=dict, editable=False, help_text="class found: class used, empty: dropped")
    positive_choice = models.CharField(max_length=200, blank=True, editable=False)
    ordinal_choice = models.BooleanField(null=True, editable=False)
    unnamed_grades = models.BooleanField(default=False, editable=False)
    classes = models.JSONField(default=list, editable=False, help_text="class names, in the order of the outputs")
    positive_class = models.CharField(max_length=200, blank=True, editable=False)
    ordinal = models.BooleanField(default=False, editable=False)
    pattern = models.CharField(max_length=200, blank=True, editable=False, help_text="patient in a file's name")
    synthetic = models.BooleanField(default=False, editable=False)
    counts = models.JSONField(default=dict, editable=False, help_text="readable images per class used")
    images_count = models.PositiveIntegerField(default=0, editable=False)
    unreadable_count = models.PositiveIntegerField(default=0, editable=False)
    missing_count = models.PositiveIntegerField(default=0, editable=False, help_text="known images not there any more")
    missing_accepted = models.BooleanField(default=False, editable=False)
    problems = models.JSONField(default=list, editable=False, help_text="of folders and CSV files")
    problems_count = models.PositiveIntegerField(default=0, editable=False)
    quality = models.JSONField(default=dict, editable=False, help_text="distributions, hints, findings by kind")
    digest = models.CharField(max_length=64, blank=True, editable=False)
    signature = models.CharField(max_length=64, blank=True, editable=False, help_text="names, sizes and times")
    read_with = models.CharField(
        max_length=64, blank=True, editable=False, help_text="pixel code and patient key of the last scan"
    )
    state = models.CharField(max_length=10, choices=State, default=State.PRESENT, editable=False)
    scanned_at = models.DateTimeField(null=True, editable=False)

    objects = DatasetQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        permissions = [
            ("scan_dataset", "Can scan the dataset folder"),
            ("prepare_dataset", "Can prepare a dataset for training"),
            ("curate_dataset", "Can set classes, condition and patients of a dataset, and judge its images"),
            ("upload_dataset", "Can upload images into a dataset folder"),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("datasets:dataset-detail", args=[self.pk])

    @property
    def folder(self) -> Path:
        return Path(settings.DATASET_ROOT) / self.name

    @property
    def is_read_only(self) -> bool:
        """Whether IT mounted the folder for reading only, or the settings say so."""
        return settings.DATASET_READ_ONLY or not os.access(self.folder, os.W_OK)

    @property
    def is_asking(self) -> bool:
        """Whether the scan had to guess and nobody has said yet what is right."""
        return bool(self.question) and not self.answer

    @property
    def vanished(self) -> list[dict[str, Any]]:
        """Classes of which the last scans forgot images together with their folder, or all: class, folder, images.

        Told until the folder comes back or somebody accepts the loss.
        """
        found: list[dict[str, Any]] = self.quality.get("vanished", [])
        return found

    @property
    def listed_problems(self) -> list[dict[str, str]]:
        """The first problems: what vanished, those of folders and CSV files, then those of single files."""
        first = [*(_vanished_problem(loss) for loss in self.vanished), *self.problems][:PROBLEMS_LISTED]
        files = self.file_problems.values("path", "reason")[: PROBLEMS_LISTED - len(first)]
        return [*first, *files]

    @property
    def preparation(self) -> "Preparation | None":
        """The newest finished preparation with pixels, which training uses."""
        done = (item for item in self.preparations.all() if item.state == Job.State.SUCCEEDED)
        return next((item for item in done if item.removed_at is None), None)

    @property
    def active_preparation(self) -> "Preparation | None":
        return next((item for item in self.preparations.all() if item.is_active), None)

    @property
    def positive_is_a_guess(self) -> bool:
        """Whether neither the names of the two classes nor a person says which of them means disease."""
        return len(self.classes) == 2 and not self.positive_choice and not names_tell(self.classes)

    @property
    def imbalance(self) -> float | None:
        """Images of the largest class for one of the smallest; None when a class is empty."""
        sizes = [self.counts.get(name, 0) for name in self.classes]
        return max(sizes) / min(sizes) if sizes and min(sizes) else None

    @property
    def class_rows(self) -> list[dict[str, Any]]:
        total = self.images_count or 1
        return [
            {"name": name, "count": self.counts.get(name, 0), "percent": 100 * self.counts.get(name, 0) / total}
            for name in self.classes
        ]

    @staticmethod
    def new_condition(name: str, body_part: str) -> Condition:
        """A condition of its own for a dataset that is found for the first time.

        Never one that exists: two folders with like names may ask different questions, or belong to different teams.
        """
        slug = free_slug(slug_for(name))
        return Condition.objects.create(slug=slug, name=name_for(name), body_part=body_part[:40])

    def lock(self, *fields: str) -> None:
        """Wait for others who choose, decide or write findings here, and read the row as they left it.

        Holds to the end of the transaction, without which it cannot be called. fields: what is read; none: all.
        """
        self.refresh_from_db(fields=fields or None, from_queryset=Dataset.objects.select_for_update())

    # -- Classes: what was found, and what a team makes of it

    def label_of(self, source_class: str) -> str:
        """The class under which images of a class found are used; empty when it was dropped."""
        return str(self.class_choices.get(source_class, source_class))

    def derive_classes(self) -> None:
        """Set what follows from the classes found and the choices; does not save."""
        self.classes = used_classes(self.source_classes, self.class_choices)
        self.ordinal = is_ordinal(self.source_classes) if self.ordinal_choice is None else self.ordinal_choice
        self.ordinal = self.ordinal and len(self.classes) > 2
        chosen = self.positive_choice if self.positive_choice in self.classes else ""
        self.positive_class = (chosen or positive_class(self.classes)) if len(self.classes) == 2 else ""
        counts = dict.fromkeys(self.classes, 0)
        for name, count in self.source_counts.items():
            if self.label_of(name):
                counts[self.label_of(name)] = counts.get(self.label_of(name), 0) + count
        self.counts = counts
        self.unnamed_grades = any(name.isdecimal() for name in self.classes)

    def apply_choices(self, choices: Mapping[str, Any], *, by: Any) -> None:
        """Several choices at once, all or none; see the methods of the same names. Raises JobError.

        choices: answer, classes, positive_class, ordinal, condition (a Condition), pattern, accept_missing.
        """
        with transaction.atomic():
            self.lock()
            if "answer" in choices:
                self.choose_answer(choices["answer"], by=by)
            if {"classes", "positive_class", "ordinal"} & set(choices):
                self.choose_classes(
                    {name: self.label_of(name) for name in self.source_classes} | choices.get("classes", {}),
                    positive=choices.get("positive_class"),
                    ordinal=choices.get("ordinal", self.ordinal_choice),
                    by=by,
                )
            if "condition" in choices:
                self.choose_condition(choices["condition"], by=by)
            if "pattern" in choices:
                self.choose_pattern(choices["pattern"], by=by)
            if choices.get("accept_missing"):
                self.accept_missing(by=by)

    def choose_classes(
        self, choices: Mapping[str, str], *, positive: str | None = None, ordinal: bool | None = None, by: Any
    ) -> None:
        """Rename, merge (two to the same name) or drop (to the empty name) classes. Raises JobError.

        positive: of two classes; empty: as the names suggest; None: the one it was, under its new name.
        """
        with transaction.atomic():
            self.lock()
            wanted = _checked_choices(self.source_classes, choices)
            used = used_classes(self.source_classes, wanted)
            positive = self._positive_after(wanted, used) if positive is None else positive
            if positive and positive not in used:
                raise JobError(
                    f"The positive class {shortened(positive)} is not one of the classes: {', '.join(used)}."
                )
            before = {"classes": self.class_choices, "positive": self.positive_class, "ordinal": self.ordinal}
            self.class_choices, self.positive_choice, self.ordinal_choice = wanted, positive, ordinal
            self.derive_classes()
            self.save(update_fields=CHOSEN_CLASSES)
            self.write_conflicts()
            after = {"classes": self.class_choices, "positive": self.positive_class, "ordinal": self.ordinal}
            audit.record("dataset.choose_classes", self, actor=by, before=before, after=after)

    def _positive_after(self, wanted: Mapping[str, str], used: Sequence[str]) -> str:
        """The positive class under the name that it gets; empty where the names suggest it, or it is none any more.

        A class must not become the positive one because the other was renamed.
        """
        label = self.positive_class
        names = {wanted.get(name, name) for name in self.source_classes if label and self.label_of(name) == label}
        kept = names.pop() if len(names) == 1 else ""
        return kept if kept in used and kept != positive_class(used) else ""

    def choose_condition(self, condition: Condition, *, by: Any) -> None:
        """Say which clinical question the dataset answers, and with that which team it belongs to."""
        with transaction.atomic():
            self.lock()
            if condition.team is None and self.condition.team is not None and by is not None and not by.is_superuser:
                raise JobError(
                    f"The condition {condition} belongs to no team: every team would see the dataset.",
                    "Choose a condition of your team, or ask an administrator.",
                )
            before = {"condition": self.condition.slug}
            self.condition = condition
            self.save(update_fields=["condition"])
            audit.record("dataset.choose_condition", self, actor=by, before=before, after={"condition": condition.slug})

    def choose_pattern(self, pattern: str, *, by: Any) -> None:
        """Say where the patient stands in a file's name; empty: the built-in patterns. Raises JobError."""
        if pattern:
            # On real names: whether an expression takes for ever cannot be seen from itself.
            self.preview_pattern(pattern)
        with transaction.atomic():
            self.lock()
            before = {"pattern": self.pattern}
            # Without a signature the next scan counts the patients anew.
            self.pattern, self.signature = pattern, ""
            self.save(update_fields=["pattern", "signature"])
            audit.record("dataset.choose_pattern", self, actor=by, before=before, after={"pattern": pattern})

    def preview_pattern(self, pattern: str) -> Preview:
        """What the pattern (empty: the built-in ones) finds in the first file names. Raises JobError."""
        paths = self.images.order_by("path").values_list("path", flat=True)[:NAMES_PREVIEWED]
        try:
            return preview(pattern, paths)
        except PatternError as error:
            raise JobError(str(error), "Correct the expression; the preview shows what it finds.") from error

    def choose_answer(self, value: str, *, by: Any) -> None:
        """Answer the question that the scan asked. The next scan reads the folder that way. Raises JobError."""
        with transaction.atomic():
            self.lock()
            options = {option["value"] for option in (self.question or {}).get("options", [])}
            if value not in options:
                raise JobError("This is not one of the possible answers.", "Choose one of those that the page offers.")
            before = {"answer": self.answer}
            self.answer = value
            self.save(update_fields=["answer"])
            audit.record("dataset.choose_answer", self, actor=by, before=before, after={"answer": value})

    def accept_missing(self, *, by: Any) -> None:
        """Confirm that the images which are not there any more were removed on purpose; the next scan forgets them.

        Those that a scan has forgotten already, because they were few, are not told any more.
        """
        with transaction.atomic():
            self.lock()
            vanished = self.vanished
            if not self.missing_count and not vanished:
                raise JobError("No images of this dataset are missing.")
            before = {"missing": self.missing_count} | ({"vanished": vanished} if vanished else {})
            audit.record("dataset.accept_missing", self, actor=by, before=before)
            self.missing_accepted = self.missing_count > 0
            self.quality = {name: told for name, told in self.quality.items() if name != "vanished"}
            self.problems_count = max(self.problems_count - len(vanished), 0)
            self.save(update_fields=["missing_accepted", "quality", "problems_count"])

    # -- Findings, and decisions about many of them

    def decide_all(
        self, code: str, action: str, reason: str, *, spare_one: bool = False, most: int | None = None, by: Any
    ) -> dict[str, int]:
        """Decide about all images with this finding that nobody has judged. Raises JobError.

        spare_one: of pictures that are (nearly) the same, the first by path is kept and the others are left out.
        most: refuse to decide about more images than that.
        Copies under different labels are left to a person: the alphabet must not decide which label is right.
        Returns how many were left out ("exclude"), kept ("keep") and not decided for that reason ("contested").
        """
        decision = self.decisions.model
        reason = checked_reason(code, reason, CODES)
        _check_action(code, action, spare_one)
        with transaction.atomic():
            self.lock("class_choices")
            count = self.findings.undecided(code).count()
            if most is not None and count > most:
                raise JobError(
                    f"There are {count:,} such images; here at most {most:,} are judged at once.",
                    f"Use the command: manage.py quality_report {self.name!r} --{action}-all {code}.",
                )
            spared, contested = self._copies(code) if spare_one else (set(), set())
            counts = Counter[str]()
            for batch in self._undecided_batches(code):
                decisions = [
                    decision(
                        dataset=self,
                        path=path,
                        digest=digest,
                        code=code,
                        action=decision.Action.KEEP if path in spared else action,
                        reason=reason,
                        decided_by=by,
                    )
                    for path, digest in batch
                    if path not in contested
                ]
                self.decisions.bulk_create(
                    decisions,
                    update_conflicts=True,
                    unique_fields=["dataset", "path", "code"],
                    update_fields=["digest", "action", "reason", "decided_by", "decided_at"],
                )
                counts.update(item.action for item in decisions)
            decided = {name: counts[name] for name in decision.Action.values}
            # Which images, is in the decisions; what they were decided by, for each, too.
            if contested:
                decided["contested"] = len(contested)
            after = {"code": code, "action": action, "spare_one": spare_one, "reason": reason, **decided}
            audit.record("dataset.decide_all", self, actor=by, after=after)
            self.write_conflicts()
        return decided

    def _copies(self, code: str) -> tuple[set[str], set[str]]:
        """Of copies that nobody has judged: the first path of each group, and the paths of groups with two labels."""
        groups: dict[Any, list[tuple[str, str]]] = {}
        rows = self.findings.undecided(code).values_list(f"image__{COPIES[code]}", "image__path", "image__class_name")
        for group, path, class_name in rows.iterator(2000):
            groups.setdefault(group, []).append((path, self.label_of(class_name)))
        contested = {
            path for group in groups.values() if len({label for _, label in group if label}) > 1 for path, _ in group
        }
        return {min(group)[0] for group in groups.values()} - contested, contested

    def _undecided_batches(self, code: str) -> Iterator[list[tuple[str, str]]]:
        """(path, digest) of the images with the finding, so many at a time; those before may be decided meanwhile."""
        last = 0
        while rows := list(
            self.findings.undecided(code)
            .filter(pk__gt=last)
            .order_by("pk")
            .values_list("pk", "image__path", "image__digest")[:BATCH]
        ):
            last = rows[-1][0]
            yield [(path, digest) for _, path, digest in rows]

    def conflicting_images(self) -> set[int]:
        """Numbers of the images to leave out because equal pixels bear another label.

        What somebody left out contradicts nothing. Where somebody kept a copy, its label holds, and only those that
        are labelled otherwise are left out; where none was kept, or two with different labels, all are.
        """
        return {pk for conflict in self._conflicts() for pk in conflict.left_out()}

    def write_conflicts(self, digest: str = "") -> None:
        """Write anew which images bear another label than equal, or nearly equal, pixels elsewhere in the dataset.

        digest: only for images with these pixels and their near-duplicates.
        """
        with transaction.atomic():
            self.lock("class_choices")
            old = self.findings.filter(code=LABEL_CONFLICT)
            (old.filter(image__digest=digest) if digest else old).delete()
            self.findings.bulk_create(
                [
                    self.findings.model(dataset=self, image_id=pk, code=LABEL_CONFLICT, detail=detail[:400])
                    for conflict in self._conflicts(digest)
                    for pk, detail in conflict.details()
                ],
                batch_size=BATCH,
            )
            self._write_near_conflicts(digest)

    def _write_near_conflicts(self, digest: str) -> None:
        images = self.images.exclude(cluster=None)
        old = self.findings.filter(code=NEAR_CONFLICT)
        if digest:
            clusters = list(images.filter(digest=digest).order_by().values_list("cluster", flat=True).distinct())
            images, old = images.filter(cluster__in=clusters), old.filter(image__cluster__in=clusters)
        old.delete()
        self.findings.bulk_create(
            [
                self.findings.model(dataset=self, image_id=pk, code=NEAR_CONFLICT, detail=detail[:400])
                for group in self._mixed_clusters(images.included())
                for pk, detail in _near_conflicts(group)
            ],
            batch_size=BATCH,
        )

    def _mixed_clusters(self, images: models.QuerySet) -> Iterator[list[tuple[str, int, str, str]]]:
        """(path, number, digest, label) of near-duplicates that lie in several classes, cluster by cluster."""
        several = images.order_by().values("cluster").annotate(n=models.Count("class_name", distinct=True))
        groups: dict[int, list[tuple[str, int, str, str]]] = {}
        rows = images.filter(cluster__in=several.filter(n__gt=1).values("cluster"))
        columns = ("cluster", "path", "pk", "digest", "class_name")
        for cluster, path, pk, pixels, name in rows.order_by().values_list(*columns).iterator(2000):
            # A dropped class contradicts nothing.
            if label := self.label_of(name):
                groups.setdefault(cluster, []).append((path, pk, pixels, label))
        yield from (sorted(group) for group in groups.values())

    def _conflicts(self, digest: str = "") -> "Iterator[_Conflict]":
        images = self.images.included().filter(**({"digest": digest} if digest else {}))
        kept = set(self._kept_copies().values_list("path", "digest"))
        for pixels, group in images.repeated_pixels().items():
            # A dropped class contradicts nothing.
            rows = sorted((path, pk, self.label_of(name)) for pk, path, name in group if self.label_of(name))
            if len({label for *_, label in rows}) > 1:
                held = {label for path, _, label in rows if (path, pixels) in kept}
                yield _Conflict(rows, held.pop() if len(held) == 1 else "")

    def _kept_copies(self) -> models.QuerySet:
        return self.decisions.filter(code=LABEL_CONFLICT, action="keep")

    def kept_otherwise(self, image: "DatasetImage") -> str:
        """Path of an image with equal pixels that somebody kept under another label; empty if there is none."""
        kept = self._kept_copies().filter(digest=image.digest).exclude(path=image.path).values("path")
        copies = self.images.included().filter(digest=image.digest, path__in=kept)
        labels = {path: self.label_of(name) for path, name in copies.values_list("path", "class_name")}
        others = [path for path, label in labels.items() if image.label and label not in ("", image.label)]
        return min(others, default="")

    def write_doubts(self, doubts: Iterable[tuple[str, str, float, str]]) -> None:
        """Write anew which labels a training doubts: (path, digest of the pixels, loss, why in words)."""
        told = {(path, digest): (loss, why) for path, digest, loss, why in doubts}
        with transaction.atomic():
            self.lock("class_choices")
            self.findings.filter(code=CHECK_LABEL).delete()
            images = self.images.filter(path__in=[path for path, _ in told]).values_list("pk", "path", "digest")
            found = [(pk, *told[path, digest]) for pk, path, digest in images if (path, digest) in told]
            self.findings.bulk_create(
                [
                    self.findings.model(dataset=self, image_id=pk, code=CHECK_LABEL, value=loss, detail=why[:400])
                    for pk, loss, why in found
                ],
                batch_size=BATCH,
                ignore_conflicts=True,
            )


@dataclass(frozen=True)
class _Conflict:
    """Equal pixels under several labels.

    images: (path, number, label), by path. label: the one that a person kept; empty while the conflict is open.
    """

    images: list[tuple[str, int, str]]
    label: str

    def left_out(self) -> Iterator[int]:
        return (pk for _, pk, label in self.images if label != self.label)

    def details(self) -> Iterator[tuple[int, str]]:
        """What is wrong with each image, in words."""
        settled = f" {self.label} was kept, so the images labelled otherwise are left out." if self.label else ""
        for _, pk, label in self.images:
            others = [f"{path} ({other})" for path, _, other in self.images if other != label]
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            yield pk, f"The same pixels are labelled {label} here and differently in {others[0]}{more}.{settled}"


def _near_conflicts(group: Sequence[tuple[str, int, str, str]]) -> Iterator[tuple[int, str]]:
    """(number, what is wrong in words) of near-duplicates with another label; equal pixels are told as such."""
    first: dict[str, list[tuple[str, str]]] = {}
    for path, _, pixels, label in group:
        # Two of each label with different pixels are enough to find one that differs from any image.
        known = first.setdefault(label, [])
        if len(known) < 2 and pixels not in {digest for _, digest in known}:
            known.append((path, pixels))
    for _, pk, pixels, label in group:
        others = [
            (path, other)
            for other, known in first.items()
            for path, digest in known
            if other != label and digest != pixels
        ]
        if others:
            path, other = min(others)
            yield pk, f"Labelled {label} here, and nearly the same picture {path} is labelled {other}."


def checked_reason(code: str, reason: str, codes: Collection[str]) -> str:
    """The reason for a decision as it is stored. Raises JobError when there is none, or no such finding."""
    if code not in codes:
        raise JobError(f"There is no finding {shortened(code)}.", f"Known are: {', '.join(codes)}.")
    reason = " ".join(reason.split())[:300]
    if not reason:
        raise JobError("A decision needs a reason.", "Say in a few words why.")
    return reason


def _check_action(code: str, action: str, spare_one: bool) -> None:
    """Whether it can be done with all images that have the finding. Raises JobError."""
    if spare_one and code not in COPIES:
        raise JobError("Keeping one of each makes sense for copies only.", f"Those are: {', '.join(COPIES)}.")
    if spare_one and action == "keep":
        raise JobError("Keeping one of each leaves the others out.", "Choose to leave out, or to keep all.")
    if action == "keep" and code == LABEL_CONFLICT:
        raise JobError(
            "A picture cannot be kept under two labels.",
            "Keep the image whose label is right; its copies with another label are then left out.",
        )


def used_classes(source_classes: Sequence[str], choices: Mapping[str, str]) -> list[str]:
    """The classes used, in the order of the classes found; merged ones stand where the first of them does."""
    return [name for name in dict.fromkeys(choices.get(name, name) for name in source_classes) if name]


def _checked_choices(source_classes: Sequence[str], choices: Mapping[str, str]) -> dict[str, str]:
    """Only what differs from the classes found. Raises JobError."""
    unknown = [name for name in choices if name not in source_classes]
    if unknown:
        raise JobError(f"The dataset has no class {shortened(unknown[0])}. It has: {', '.join(source_classes)}.")
    cleaned = {name: " ".join(str(choices.get(name, name)).split()) for name in source_classes}
    for name in cleaned.values():
        if len(name) > MAX_CLASS_NAME or printable(name) != name:
            raise JobError(f"A class name has at most {MAX_CLASS_NAME} characters that can all be shown.")
    spelling = {name.casefold(): name for name in cleaned.values() if name}
    clashing = [name for name in cleaned.values() if name and spelling[name.casefold()] != name]
    if clashing:
        raise JobError(
            f"{clashing[0]!r} and {spelling[clashing[0].casefold()]!r} differ only in upper and lower case.",
            "Write both the same way to merge them.",
        )
    if len(used_classes(source_classes, cleaned)) < 2 <= len(source_classes):
        raise JobError("A classifier needs at least two classes.", "Keep two classes that are not merged.")
    return {name: target for name, target in cleaned.items() if target != name}


def _vanished_problem(loss: Mapping[str, Any]) -> dict[str, str]:
    reason = (
        f"The class {loss['class']} lost {loss['images']:,} image{'' if loss['images'] == 1 else 's'}: files that "
        "earlier scans knew, here or in other folders, are not there any more, nor were they moved within the "
        "dataset. Bring them back and scan again; if they were removed on purpose, say so under Overview."
    )
    return {"path": printable(loss["folder"]) or ".", "reason": reason}


def patient_key(patient: str) -> str:
    """Pseudonym of a patient: HMAC-SHA256 under a key derived from SECRET_KEY; the id itself is never stored."""
    key = hashlib.sha256(b"patient-key" + settings.SECRET_KEY.encode()).digest()
    return hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:32]


def site_pseudonym(institution: str) -> str:
    """Pseudonym of a hospital, such as "site 3f9a2c", by the same keyed hash, however its name is spaced and cased."""
    name = " ".join(institution.casefold().split())
    # No number of a patient has a NUL, so that no site has the beginning of a patient's pseudonym.
    return f"site {patient_key('institution' + chr(0) + name)[:6]}"


def patient_key_fingerprint() -> str:
    """Tells whether pseudonyms were made with the present key; says nothing about the key."""
    return patient_key("fingerprint of the key")[:12]
