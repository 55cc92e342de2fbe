"""Queue tasks: scan DATASET_ROOT, prepare a dataset. They join the pure modules with the tables."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from django.db import models, transaction
from django.utils import timezone
from numpy.typing import NDArray

from xrayplatform.jobs import JobError
from xrayplatform.system import NotEnoughDisk, require_disk

from . import imaging, layouts, scanning, splitting
from .cache import SPLITS, CacheError, write_cache
from .models import Dataset, DatasetImage, Preparation, PreparedImage, Scan, patient_key, patient_key_fingerprint

BATCH = 500
# A modification time that no file has: the next scan reads the file again.
UNKNOWN_TIME = -1
PROBLEMS_KEPT = 1000
KNOWN = ("path", "size", "mtime_ns", "class_name", "source_split", "patient_key", "patient_source")


def scan(scan_id: int, attempt: int) -> None:
    run_scan(Scan.objects.get(pk=scan_id), attempt)


def run_scan(job: Scan, attempt: int) -> None:
    job.run(attempt, lambda: _scan(job))


def prepare(preparation_id: int, attempt: int) -> None:
    run_preparation(Preparation.objects.select_related("dataset").get(pk=preparation_id), attempt)


def run_preparation(job: Preparation, attempt: int) -> None:
    job.run(attempt, lambda: _prepare(job))


# -- Scan


def _scan(job: Scan) -> None:
    root = Path(job.root)
    if not root.is_dir():
        raise JobError(
            "The dataset folder is not there.",
            "Mount it or correct DATASET_ROOT, then scan again. What was found before stays as it is.",
        )
    report = job.reporter()
    found = layouts.find_datasets(root)
    images, before, total = 0, 0, sum(folder.file_count for folder in found)
    for folder in found:
        images += _scan_dataset(folder, partial(_tell_files_read, report, folder.file_count, before, total))
        before += folder.file_count
    Dataset.objects.exclude(name__in=[folder.name for folder in found]).update(state=Dataset.State.OFFLINE)
    job.write(images=images, problems=_problem_rows(layouts.folder_problems(root, found)))
    count = f"{len(found)} dataset{'' if len(found) == 1 else 's'}"
    job.succeed(f"{count}, {images:,} images", after={"datasets": [folder.name for folder in found], "images": images})


def _tell_files_read(
    report: Callable[[int, int, str], None], expected: int, before: int, total: int, done: int
) -> None:
    """Report on all datasets' files together, by number alone: everybody sees it, the names not everybody may.

    expected: files of this dataset when it was found; those that came since are not counted, so that nothing runs
    backwards. before: files of the datasets before it.
    """
    read = before + min(done, expected)
    report(read, total, f"{read:,} of {total:,} files read")


def _reading() -> str:
    """What images are read with: the pixel code and the key of the pseudonyms. Another one has to read them anew."""
    return f"{imaging.PIPELINE['id']}-{imaging.PIPELINE['version']}-{patient_key_fingerprint()}"


def _problem_rows(problems: Iterable[layouts.Problem]) -> list[dict[str, str]]:
    return [{"path": problem.path, "reason": problem.reason} for problem in problems]


def _scan_dataset(folder: layouts.FoundDataset, report: Callable[[int], None]) -> int:
    """Bring the tables up to date with one folder; returns its number of readable images."""
    dataset = _dataset_row(folder)
    known = {image.path: image for image in dataset.images.only(*KNOWN)}
    unchanged = {path: (image.size, image.mtime_ns) for path, image in known.items()} if dataset.read_with else {}
    problems: list[layouts.Problem] = []
    changed: list[DatasetImage] = []
    seen: set[str] = set()
    for number, outcome in enumerate(scanning.scan_files(folder.files(), unchanged), 1):
        report(number)
        if isinstance(outcome, layouts.Problem):
            problems.append(outcome)
            continue
        seen.add(outcome.path)
        if isinstance(outcome, scanning.Unchanged):
            _relabel(known[outcome.path], outcome)
            continue
        changed.append(_image_row(dataset, outcome))
        if len(changed) == BATCH:
            _save_images(changed)
            changed = []
    _save_images(changed)
    _drop_images(dataset, set(known) - seen)
    return _summarise(dataset, folder, problems)


def _dataset_row(folder: layouts.FoundDataset) -> Dataset:
    dataset = Dataset.objects.filter(name=folder.name).first() or Dataset(
        name=folder.name, condition=Dataset.new_condition(folder.name, folder.body_part)
    )
    if dataset.read_with != _reading():
        # Blank until every file has been read: a scan that stops half-way leaves images of both kinds behind.
        dataset.read_with = ""
    dataset.state = Dataset.State.PRESENT
    dataset.layout, dataset.layout_label, dataset.because = folder.layout, folder.label, folder.because
    dataset.classes, dataset.positive_class = list(folder.classes), folder.positive_class
    dataset.ordinal, dataset.synthetic = folder.ordinal, folder.synthetic
    dataset.save()
    return dataset


def _image_row(dataset: Dataset, record: scanning.Record) -> DatasetImage:
    return DatasetImage(
        dataset=dataset,
        path=record.path,
        size=record.size,
        mtime_ns=record.mtime_ns,
        digest=record.digest,
        class_name=record.class_name,
        source_split=record.source_split,
        patient_key=patient_key(record.patient) if record.patient else "",
        patient_source=record.patient_source,
        width=record.width,
        height=record.height,
        format=record.format,
    )


def _relabel(image: DatasetImage, outcome: scanning.Unchanged) -> None:
    """The pixels are those of the last scan, but a CSV file may say something else about them now."""
    said = {"class_name": outcome.class_name, "source_split": outcome.source_split}
    if image.patient_source != "dicom":
        said["patient_key"] = patient_key(outcome.patient) if outcome.patient else ""
        said["patient_source"] = outcome.patient_source
    changed = [name for name, value in said.items() if getattr(image, name) != value]
    for name in changed:
        setattr(image, name, said[name])
    if changed:
        image.save(update_fields=changed)


def _save_images(rows: list[DatasetImage]) -> None:
    """Insert or update a batch; short transactions, because others wait for the writer on SQLite."""
    changing = [
        "size", "mtime_ns", "digest", "class_name", "source_split", "patient_key", "patient_source", "width",
        "height", "format",
    ]  # fmt: skip
    DatasetImage.objects.bulk_create(
        rows, update_conflicts=True, unique_fields=["dataset", "path"], update_fields=changing
    )


def _drop_images(dataset: Dataset, gone: set[str]) -> None:
    paths = sorted(gone)
    for start in range(0, len(paths), BATCH):
        dataset.images.filter(path__in=paths[start : start + BATCH]).delete()


def _summarise(dataset: Dataset, folder: layouts.FoundDataset, unreadable: list[layouts.Problem]) -> int:
    content = hashlib.sha256()
    identities = list(dataset.images.order_by("path").values_list("path", "digest", "class_name"))
    for path, digest, class_name in identities:
        content.update(f"{path}\0{digest}\0{class_name}\n".encode())
    conflicts = scanning.label_conflicts(identities)
    problems = _problem_rows([*folder.problems, *unreadable, *conflicts])
    counted = dataset.images.order_by("class_name").values_list("class_name").annotate(models.Count("pk"))
    dataset.counts = dict.fromkeys(folder.classes, 0) | dict(counted)
    dataset.images_count = len(identities)
    dataset.unreadable_count = len(unreadable)
    dataset.problems, dataset.problems_count = problems[:PROBLEMS_KEPT], len(problems)
    dataset.digest = content.hexdigest()
    dataset.read_with = _reading()
    dataset.scanned_at = timezone.now()
    dataset.save()
    return len(identities)


# -- Prepare


@dataclass(frozen=True)
class _Plan:
    """Which image goes where; the lists run along `images`."""

    images: list[DatasetImage]
    splits: list[str]
    groups: list[int]
    keys: splitting.GroupKeys
    pipeline: dict[str, Any]
    warnings: list[str]


def _prepare(job: Preparation) -> None:
    job.renew(message="Choosing the splits")
    if job.dataset.read_with != _reading():
        raise JobError(
            "The last scan of this dataset did not finish, or the platform or its secret key changed since.",
            "Scan again, then prepare.",
        )
    plan = _plan(job)
    try:
        require_disk(int(1.1 * len(plan.images) * job.image_size**2))
    except NotEnoughDisk as error:
        raise JobError(str(error), "Free some space, then prepare again.") from error
    cache_digest = _write_cache(job, plan)
    try:
        _freeze(job, plan, cache_digest)
    except BaseException:
        shutil.rmtree(job.cache_folder, ignore_errors=True)
        raise


def _write_cache(job: Preparation, plan: _Plan) -> str:
    dataset = job.dataset
    try:
        return write_cache(
            job.cache_folder,
            _model_inputs(job, plan),
            labels=[dataset.classes.index(image.class_name) for image in plan.images],
            splits=plan.splits,
            groups=plan.groups,
            digests=[image.digest for image in plan.images],
            image_size=job.image_size,
            classes=dataset.classes,
            positive_class=dataset.positive_class,
            ordinal=dataset.ordinal,
            pipeline=plan.pipeline,
        )
    except (CacheError, OSError) as error:
        # The text of an OSError names the path, which is nobody's business but the administrator's.
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise JobError(
            f"The decoded images could not be written: {reason}", "Check the disk, then try again."
        ) from error


def _plan(job: Preparation) -> _Plan:
    every = list(job.dataset.images.order_by("path"))
    conflicting = scanning.label_conflicts((image.path, image.digest, image.class_name) for image in every)
    conflicts = {conflict.path for conflict in conflicting}
    images = [image for image in every if not image.excluded and image.path not in conflicts]
    rows = [
        splitting.Row(image.path, image.digest, image.patient_key or None, image.patient_source) for image in images
    ]
    keys = splitting.group_keys(rows)
    labels = [image.class_name for image in images]
    try:
        result = splitting.split(labels, keys.keys, [image.source_split for image in images], seed=job.seed)
    except splitting.SplitError as error:
        raise JobError(str(error), "Correct the folder, scan it again, then prepare it.") from error
    numbers = {key: number for number, key in enumerate(sorted(set(keys.keys)))}
    warnings = [*keys.warnings, *result.warnings]
    if conflicts:
        warnings.append(f"{len(conflicts)} images were left out: the same picture has two labels.")
    fit = _fit(job, images, warnings)
    return _Plan(
        images, result.splits, [numbers[key] for key in keys.keys], keys, imaging.PIPELINE | {"fit": fit}, warnings
    )


def _fit(job: Preparation, images: list[DatasetImage], warnings: list[str]) -> str:
    """How images become square. Published collections often come squeezed to squares already.

    A model that only ever saw squeezed chests does not recognise one between black bars: on full-size originals of
    the paediatric chest collection its sensitivity fell from 0.95 to 0.05. New images are then squeezed the same way.
    """
    if job.fit != Preparation.Fit.AUTO:
        return job.fit
    if all(image.width == image.height for image in images):
        warnings.append(
            "Every image of this dataset is square, so they were probably squeezed to that shape; new radiographs "
            "will be squeezed to a square too. Choose otherwise if these are true crops."
        )
        return Preparation.Fit.STRETCH.value
    return Preparation.Fit.PAD.value


def _model_inputs(job: Preparation, plan: _Plan) -> Iterator[NDArray[np.uint8]]:
    """Decode in all cores, in order."""
    report, total = job.reporter(), len(plan.images)
    decode = partial(_model_input, job.dataset.folder, size=job.image_size, fit=plan.pipeline["fit"])
    decoded = scanning.map_ahead(decode, plan.images)
    for done, (image, pixels) in enumerate(zip(plan.images, decoded, strict=True), 1):
        if isinstance(pixels, JobError):
            # Its size and time may be those of the scan; without this the next scan would not look at it.
            DatasetImage.objects.filter(pk=image.pk).update(mtime_ns=UNKNOWN_TIME)
            raise pixels
        yield pixels
        report(done, total, f"{done:,} of {total:,} images decoded")


def _model_input(folder: Path, image: DatasetImage, size: int, fit: str) -> NDArray[np.uint8] | JobError:
    """The image as the network will see it, or why it is not the one that was scanned."""
    try:
        radiograph = imaging.read(folder / image.path)
    except imaging.ImageError as error:
        return JobError(f"{image.path} could be read at the scan but not now: {error}", "Scan again, then prepare.")
    if radiograph.digest != image.digest:
        return JobError(f"{image.path} has other pixels than at the scan.", "Scan again, then prepare.")
    return imaging.to_model_input(radiograph.pixels, size, fit)


def _freeze(job: Preparation, plan: _Plan, cache_digest: str) -> None:
    """Store the manifest, prove from it that no group is shared, and end the job; all or nothing."""
    manifest = [
        PreparedImage(
            preparation=job,
            row=row,
            path=image.path,
            digest=image.digest,
            class_name=image.class_name,
            split=plan.splits[row],
            group=plan.groups[row],
        )
        for row, image in enumerate(plan.images)
    ]
    dataset = job.dataset
    train = [image.class_name for image, split in zip(plan.images, plan.splits, strict=True) if split == "train"]
    with transaction.atomic():
        PreparedImage.objects.bulk_create(manifest, batch_size=BATCH)
        shared = splitting.shared_groups(plan.splits, [str(group) for group in plan.groups])
        job.write(
            classes=dataset.classes,
            positive_class=dataset.positive_class,
            ordinal=dataset.ordinal,
            synthetic=dataset.synthetic,
            pipeline=plan.pipeline,
            group_key=plan.keys.name,
            group_description=plan.keys.description,
            counts=_split_counts(manifest),
            class_weights=splitting.class_weights(train),
            warnings=plan.warnings,
            shared_patients=shared,
            excluded=dataset.unreadable_count + dataset.images.count() - len(plan.images),
            dataset_digest=dataset.digest,
            split_digest=_split_digest(manifest),
            cache_digest=cache_digest,
            cache_bytes=sum(path.stat().st_size for path in job.cache_folder.iterdir()),
        )
        job.succeed(f"{len(manifest)} images prepared, {shared} shared patients", after={"split": job.split_digest})


def _split_counts(manifest: list[PreparedImage]) -> dict[str, dict[str, int]]:
    counts = {split: Counter[str]() for split in SPLITS}
    for image in manifest:
        counts[image.split][image.class_name] += 1
    return {split: dict(counter) for split, counter in counts.items()}


def _split_digest(manifest: list[PreparedImage]) -> str:
    """SHA-256 over path, pixels, class, split and group of every row: two equal digests are the same split."""
    content = hashlib.sha256()
    for image in sorted(manifest, key=lambda image: image.path):
        content.update(f"{image.path}\0{image.digest}\0{image.class_name}\0{image.split}\0{image.group}\n".encode())
    return content.hexdigest()
