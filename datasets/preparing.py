"""Prepare a dataset: choose what goes where, decode it once, and freeze both with a proof."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from django.db import models, transaction

from xrayplatform.jobs import JobError
from xrayplatform.system import NotEnoughDisk, require_disk

from . import cataloguing, decoding, imaging, patterns, splitting
from .cache import SPLITS, CacheError, PixelStore, pixels_key, write_rows
from .models import Dataset, Preparation, PreparedImage

# Rows of the manifest in one transaction: others wait for the writer on SQLite.
BATCH = 2000
# Groups on both sides of the folders' division that are named by examples.
STRADDLING_LISTED = 10


@dataclass
class _Plan:
    """Which image goes where; the lists run along each other. left_out: images by the reason why they are not here."""

    paths: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    pipeline: dict[str, Any] = field(default_factory=dict)
    group_key: str = ""
    group_description: str = ""
    warnings: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def prepare(job: Preparation) -> None:
    """Split, decode and freeze; ends the job."""
    _record_choices(job)
    _forget_left_over(job)
    dataset = job.dataset
    if dataset.read_with != cataloguing.reading() or not dataset.digest:
        raise JobError(
            "The last scan of this dataset did not finish, or the platform or its secret key changed since.",
            "Scan again, then prepare.",
        )
    plan = _plan(job)
    if not Dataset.objects.filter(pk=dataset.pk, digest=dataset.digest).exists():
        # A scan blanks the digest before it writes: part of the plan may be from before and part from after it.
        raise JobError(
            "A scan changed the dataset while the splits were chosen.",
            "Wait until it has finished, then prepare again.",
        )
    key = pixels_key(plan.digests, job.image_size, plan.pipeline)
    store = PixelStore(job.cache_root() / f"pixels-{dataset.pk}-{key[:24]}", len(plan.paths), job.image_size)
    try:
        _decode(job, plan, store)
        store.finish()
        cache_digest = _write_rows(job, plan, store)
    except (CacheError, OSError) as error:
        # The text of an OSError names the path, which is nobody's business but the administrator's.
        raise _not_written((isinstance(error, OSError) and error.strerror) or str(error)) from error
    try:
        _store_manifest(job, plan)
        _freeze(job, plan, store, cache_digest)
    except BaseException:
        shutil.rmtree(job.cache_folder, ignore_errors=True)
        _forget_manifest(job)
        raise


def _record_choices(job: Preparation) -> None:
    """Take the team's choices, all of one moment. Those that come while the job runs are for the next one."""
    job.dataset.refresh_from_db()
    dataset = job.dataset
    job.renew(
        message="Choosing the splits",
        classes=dataset.classes,
        class_choices=dataset.class_choices,
        positive_class=dataset.positive_class,
        ordinal=dataset.ordinal,
        synthetic=dataset.synthetic,
        pattern=dataset.pattern,
    )


# -- What goes where


def _plan(job: Preparation) -> _Plan:
    plan = _Plan()
    rows, source_splits, square = _choose_images(job, plan)
    empty = [name for name in job.classes if name not in set(plan.labels)]
    if empty and plan.labels:
        raise JobError(
            f"No image of class {', '.join(empty)} is left to prepare.",
            "Leave the class out under Classes and patients, add images, or take back what was left out by hand.",
        )
    job.renew()
    try:
        keys = splitting.group_keys(rows, job.pattern)
        job.renew()
        result = splitting.split(
            plan.labels,
            keys.keys,
            source_splits,
            seed=job.seed,
            fractions=(1 - job.validation_share - job.test_share, job.validation_share, job.test_share),
        )
    except splitting.SplitError as error:
        raise JobError(str(error), "Correct the folder or the choices, then prepare it again.") from error
    except patterns.PatternError as error:
        raise JobError(str(error), "Correct the dataset's pattern for file names, then prepare it again.") from error
    job.renew()
    numbers = {key: number for number, key in enumerate(sorted(set(keys.keys)))}
    plan.splits, plan.groups = result.splits, [numbers[key] for key in keys.keys]
    plan.group_key, plan.group_description = keys.name, keys.description
    plan.warnings = [*keys.warnings, *result.warnings, *_straddling(plan.paths, source_splits, result.straddling)]
    if plan.left_out.get("label-conflict"):
        plan.warnings.append(
            f"{plan.left_out['label-conflict']} images were left out: the same picture has two labels."
        )
    plan.pipeline = imaging.PIPELINE | {"fit": _fit(job, square, plan.warnings)}
    if job.steps:
        # Without any the pipeline is written as before there were steps, and names the same pixels.
        plan.pipeline["steps"] = list(job.steps)
    return plan


def _choose_images(job: Preparation, plan: _Plan) -> tuple[list[splitting.Row], list[str], bool]:
    """Fill paths, digests and labels of the plan; returns the rows to group, their source splits, and whether all are
    square."""
    dataset = job.dataset
    conflicting = dataset.conflicting_images()
    rows: list[splitting.Row] = []
    source_splits: list[str] = []
    square = True
    left_out: Counter[str] = Counter({"unreadable": dataset.unreadable_count})
    left_out["excluded"] = dataset.images.count() - dataset.images.included().count()
    known = dataset.images.included().in_byte_order()
    columns = known.values_list(
        "pk", "path", "digest", "class_name", "source_split", "patient_key", "patient_source", "cluster", "width",
        "height",
    )  # fmt: skip
    for pk, path, digest, class_name, source, patient, patient_source, cluster, width, height in columns.iterator(2000):
        label = dataset.label_of(class_name)
        if not label or pk in conflicting:
            left_out["label-conflict" if label else "dropped-class"] += 1
            continue
        plan.paths.append(path)
        plan.digests.append(digest)
        plan.labels.append(label)
        source_splits.append(source if job.source_splits == Preparation.SourceSplits.HONOUR else "")
        rows.append(splitting.Row(path, digest, patient or None, patient_source, cluster))
        square = square and width == height
    plan.left_out = {reason: count for reason, count in left_out.items() if count}
    return rows, source_splits, square


def _straddling(paths: list[str], sources: list[str], groups: list[list[int]]) -> Iterator[str]:
    """The first groups that the folders had on several sides, each by a file of every side and never by its patient."""
    if not groups:
        return
    listed = sorted(", ".join(f"{paths[row]} ({sources[row] or 'train'})" for row in group) for group in groups)
    more = f" And {len(listed) - STRADDLING_LISTED} more." if len(listed) > STRADDLING_LISTED else ""
    yield f"In several folder parts, by example files: {'; '.join(listed[:STRADDLING_LISTED])}.{more}"


def _fit(job: Preparation, square: bool, warnings: list[str]) -> str:
    """How images become square. Published collections often come squeezed to squares already.

    A model that only ever saw squeezed chests does not recognise one between black bars: on full-size originals of
    the paediatric chest collection its sensitivity fell from 0.95 to 0.05. New images are then squeezed the same way.
    """
    if job.fit != Preparation.Fit.AUTO:
        return job.fit
    if square:
        warnings.append(
            "Every image of this dataset is square, so they were probably squeezed to that shape; new radiographs "
            "will be squeezed to a square too. Choose otherwise if these are true crops."
        )
        return Preparation.Fit.STRETCH.value
    return Preparation.Fit.PAD.value


# -- Pixels


def _require_disk(size: int) -> None:
    try:
        require_disk(int(1.02 * size))
    except NotEnoughDisk as error:
        raise JobError(
            str(error),
            "Remove decoded pixels that are not needed under Storage, or free some space; then prepare again.",
        ) from error


def _decode(job: Preparation, plan: _Plan, store: PixelStore) -> None:
    """Fill the rows that are still missing, with all cores."""
    report, total = job.reporter(), len(plan.paths)

    def checked(rows: int) -> None:
        report(rows, total, f"{rows:,} of {total:,} decoded images checked")

    fresh = not store.part.exists() and not store.is_complete
    missing = store.open(checked, _require_disk)
    if fresh:
        _take_over(job, plan, store, checked)
        missing = store.unwritten()
    done = total - len(missing)
    for row, answer in decoding.shared().run(_requests(job, plan, store, missing)):
        if "error" in answer:
            raise _unusable(job, plan.paths[row], answer)
        store.wrote()
        done += 1
        report(done, total, f"{done:,} of {total:,} images decoded")
    job.renew(message="Writing the decoded images to the disk")


def _take_over(job: Preparation, plan: _Plan, store: PixelStore, checked: Callable[[int], None]) -> None:
    """Copy what the newest preparation with the same pixel pipeline has decoded already."""
    earlier = (
        Preparation.objects.with_pixels()
        .filter(dataset=job.dataset, image_size=job.image_size, pipeline=plan.pipeline)
        .exclude(pixels="")
        .first()
    )
    if earlier is None:
        return
    theirs = dict(earlier.manifest.order_by().values_list("digest", "row").iterator(2000))
    other = PixelStore(job.cache_root() / earlier.pixels, earlier.manifest.count(), job.image_size)
    if other.is_complete:
        known = [(row, theirs[digest]) for row, digest in enumerate(plan.digests) if digest in theirs]
        store.copy_from(other, known, checked)


def _requests(job: Preparation, plan: _Plan, store: PixelStore, missing: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    folder = job.dataset.folder
    for row in missing.tolist():
        yield row, store.request(row, folder / plan.paths[row], plan.digests[row], plan.pipeline)


def _unusable(job: Preparation, path: str, answer: dict[str, Any]) -> JobError:
    if answer["error"] == "not-written":
        return _not_written(answer["message"])
    # Size and time may be those of the scan; without this the next scan would not look at the file.
    dataset = job.dataset
    dataset.images.filter(path=path).update(mtime_ns=cataloguing.UNKNOWN_TIME)
    dataset.folders.filter(path=cataloguing.image_folder(path)).delete()
    Dataset.objects.filter(pk=dataset.pk).update(signature="")
    if answer["error"] == "changed":
        return JobError(f"{path} has other pixels than at the scan.", "Scan again, then prepare.")
    return JobError(f"{path} could be read at the scan but not now: {answer['message']}", "Scan again, then prepare.")


def _not_written(reason: str) -> JobError:
    return JobError(
        f"The decoded images could not be written: {reason}",
        "Check the disk, then prepare again with the same choices: it goes on where it stopped.",
    )


def _write_rows(job: Preparation, plan: _Plan, store: PixelStore) -> str:
    numbers = {name: number for number, name in enumerate(job.classes)}
    return write_rows(
        job.cache_folder,
        store,
        labels=[numbers[label] for label in plan.labels],
        splits=plan.splits,
        groups=plan.groups,
        digests=plan.digests,
        classes=job.classes,
        positive_class=job.positive_class,
        ordinal=job.ordinal,
        pipeline=plan.pipeline,
    )


# -- The frozen manifest


def _store_manifest(job: Preparation, plan: _Plan) -> None:
    """Store the rows in short transactions. Nobody reads them before the state of their preparation says so."""
    report, total = job.reporter(), len(plan.paths)
    for start in range(0, total, BATCH):
        report(start, total, f"{start:,} of {total:,} rows stored")
        with transaction.atomic():
            PreparedImage.objects.bulk_create(_manifest(job, plan, start))


def _forget_manifest(preparation: Preparation, beat: Callable[[], None] = lambda: None) -> None:
    """Delete rows that will be of no preparation, as shortly; the first ones last, see `_forget_left_over`."""
    rows = preparation.manifest.order_by()
    last = rows.aggregate(last=models.Max("row"))["last"]
    for start in reversed(range(0, 0 if last is None else last + 1, BATCH)):
        rows.filter(row__gte=start, row__lt=start + BATCH).delete()
        beat()


def _forget_left_over(job: Preparation) -> None:
    """Rows of preparations that were killed: whoever ended them in their place did not know how far they were."""
    report = job.reporter()
    ended = (Preparation.State.FAILED, Preparation.State.CANCELLED)
    for other in Preparation.objects.filter(state__in=ended, manifest__row=0):
        _forget_manifest(other, lambda: report(0, 0, "Forgetting what a killed preparation left"))


def _freeze(job: Preparation, plan: _Plan, store: PixelStore, cache_digest: str) -> None:
    """Prove from the stored manifest that no group is shared, and end the job; both or neither."""
    train = [label for label, split in zip(plan.labels, plan.splits, strict=True) if split == "train"]
    found = {
        "pipeline": plan.pipeline,
        "group_key": plan.group_key,
        "group_description": plan.group_description,
        "counts": _split_counts(plan),
        "class_weights": splitting.class_weights(train),
        "warnings": plan.warnings,
        "excluded": sum(plan.left_out.values()),
        "left_out": plan.left_out,
        "dataset_digest": job.dataset.digest,
        "split_digest": _split_digest(plan),
        "cache_digest": cache_digest,
        "cache_bytes": store.bytes_used(),
        "pixels": store.folder.name,
    }
    job.renew(message="Proving that no patient is on two sides")
    with transaction.atomic():
        shared, group_counts = _proof(job)
        job.write(**found, shared_patients=shared, group_counts=group_counts)
        job.succeed(
            f"{len(plan.paths)} images prepared, {shared} shared patients"
            + ("" if job.patients_are_known else " (patients are not known; pictures and their copies are kept apart)"),
            after={"split": job.split_digest, "shared_patients": shared},
        )


def _manifest(job: Preparation, plan: _Plan, start: int) -> list[PreparedImage]:
    return [
        PreparedImage(
            preparation=job,
            row=row,
            path=plan.paths[row],
            digest=plan.digests[row],
            class_name=plan.labels[row],
            split=plan.splits[row],
            group=plan.groups[row],
        )
        for row in range(start, min(start + BATCH, len(plan.paths)))
    ]


def _proof(job: Preparation) -> tuple[int, dict[str, int]]:
    """Groups on more than one side, and groups of each side, counted in the stored manifest itself.

    Raises JobError unless there are none: such a split is worse than none at all.
    """
    rows = job.manifest.order_by()
    shared = rows.values("group").annotate(sides=models.Count("split", distinct=True)).filter(sides__gt=1).count()
    copies = rows.values("digest").annotate(sides=models.Count("split", distinct=True)).filter(sides__gt=1)
    if shared or copies.exists():
        what = "Images of one patient" if shared else "Pictures with equal pixels"
        raise JobError(f"{what} would be in two splits.", "This is an error of the platform; tell us.")
    counted = dict(rows.values_list("split").annotate(models.Count("group", distinct=True)))
    return shared, {split: counted.get(split, 0) for split in SPLITS}


def _split_counts(plan: _Plan) -> dict[str, dict[str, int]]:
    counts = {split: Counter[str]() for split in SPLITS}
    for label, split in zip(plan.labels, plan.splits, strict=True):
        counts[split][label] += 1
    return {split: dict(counter) for split, counter in counts.items()}


def _split_digest(plan: _Plan) -> str:
    """SHA-256 over path, pixels, class, split and group of every row: two equal digests are the same split.

    The rows are in the order of their paths.
    """
    content = hashlib.sha256()
    for path, digest, label, split, group in zip(
        plan.paths, plan.digests, plan.labels, plan.splits, plan.groups, strict=True
    ):
        content.update(f"{path}\0{digest}\0{label}\0{split}\0{group}\n".encode())
    return content.hexdigest()
