"""`manage.py benchmark scan|prepare`: images a second, beside the bare walk and bare decoding of the same files."""

import os
import resource
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from PIL import Image

from xrayplatform.benchmarks import BenchmarkFailed, register
from xrayplatform.jobs import Job

from . import decoding
from .models import Dataset, Preparation, Scan
from .tasks import run_preparation, run_scan

SIZE = 224
REPEATS = 5
MIB = 1024**2


def _scan_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--files", type=int, default=10_000, help="small JPEG files to make (default 10,000)")
    parser.add_argument("--folders", type=int, default=20, help="class folders to spread them over")


def _prepare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--files", type=int, default=1_000, help="JPEG files to make (default 1,000)")
    parser.add_argument("--side", type=int, default=1024, help="their pixels a side (default 1024)")
    parser.add_argument("--images", help="an existing folder of datasets to measure instead; it is only read")


@register("scan", "first scan and rescan of small files", _scan_arguments)
def scan(options: dict[str, Any]) -> dict[str, Any]:
    """The first scan beside decoding alone, the rescan beside `os.scandir` with `stat`, alternating."""
    root = settings.DATASET_ROOT
    _make_files(root / "Benchmark", options["files"], 64, options["folders"])
    bare = _decoding_alone(_files(root), None)
    first, job = _timed(_scan)
    if job.images != options["files"]:
        raise BenchmarkFailed(f"Of {options['files']} files {job.images} were found: {job.error or job.message}")
    walks, rescans = [], []
    for _ in range(REPEATS):
        walks.append(_timed(partial(_walk, root))[0])
        rescans.append(_timed(_scan)[0])
    walk, rescan = statistics.median(walks), statistics.median(rescans)
    return {
        "files": options["files"],
        "first_scan": _rate(first, options["files"]),
        "decoding_alone": _rate(bare, options["files"]),
        "first_scan_ratio": round(first / bare, 3),
        "rescan": _rate(rescan, options["files"]) | {"all_seconds": [round(value, 3) for value in rescans]},
        "bare_walk": _rate(walk, options["files"]) | {"all_seconds": [round(value, 3) for value in walks]},
        "rescan_ratio": round(rescan / walk, 3),
        "memory": _memory(),
    }


@register("prepare", "prepare a dataset for training", _prepare_arguments)
def prepare(options: dict[str, Any]) -> dict[str, Any]:
    """Preparing beside decoding and resizing alone, alternating; then preparing again with nothing changed."""
    if options["images"]:
        settings.DATASET_ROOT = Path(options["images"]).resolve()
    else:
        _make_files(settings.DATASET_ROOT / "Benchmark", options["files"], options["side"], 2)
    _scan()
    return {
        "datasets": [
            _prepare_one(dataset)
            for dataset in Dataset.objects.filter(state=Dataset.State.PRESENT)
            if dataset.images_count and not dataset.is_asking and min(dataset.counts.values(), default=0) >= 10
        ],
        "memory": _memory(),
    }


def _prepare_one(dataset: Dataset) -> dict[str, Any]:
    files = [dataset.folder / path for path in dataset.images.values_list("path", flat=True)]
    alone, prepared = [], []
    for repeat in range(3):
        alone.append(_decoding_alone(files, SIZE))
        # Another shape of the pixels each time would be cached by none; removing them is the same.
        seconds, job = _timed(partial(_prepare, dataset, repeat))
        prepared.append(seconds)
        if job.state != Job.State.SUCCEEDED:
            return {"name": dataset.name, "error": job.error}
        if repeat < 2:
            job.remove_pixels(by=None)
    again, _ = _timed(partial(_prepare, dataset, 3))
    ratios = [ours / theirs for ours, theirs in zip(prepared, alone, strict=True)]
    return {
        "name": dataset.name,
        "images": len(files),
        "prepare": _rate(statistics.median(prepared), len(files)),
        "decode_and_resize_alone": _rate(statistics.median(alone), len(files)),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "another_seed_seconds": round(again, 3),
    }


# -- What the machine could do at best


def _walk(root: Path) -> int:
    """`os.scandir` and `stat` of every file, and nothing else."""
    found = 0
    waiting = [os.fspath(root)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    entry.stat(follow_symlinks=False)
                    found += 1
    return found


def _decoding_alone(files: list[Path], size: int | None) -> float:
    """Seconds to decode the files (and resize them) with the same library in one process a core, start not counted."""
    with ProcessPoolExecutor(decoding.WORKERS, mp_context=get_context("fork")) as pool:
        list(pool.map(_warm_up, range(decoding.WORKERS * 4)))
        seconds, _ = _timed(lambda: list(pool.map(partial(_decode, size=size), files, chunksize=16)))
    return seconds


def _warm_up(_: int) -> None:
    Image.new("L", (8, 8)).resize((4, 4))
    time.sleep(0.05)


def _decode(path: Path, size: int | None) -> None:
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as picture:
            grey = picture.convert("L")
            if size:
                np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR))
    except OSError:
        pass  # DICOM, or damaged


# -- Parts


def _scan() -> Scan:
    job = Scan.create(None)
    run_scan(job, 1)
    return job


def _prepare(dataset: Dataset, seed: int) -> Preparation:
    job = Preparation.create(dataset, None, seed=seed, image_size=SIZE)
    run_preparation(job, 1)
    return job


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _rate(seconds: float, files: int) -> dict[str, float]:
    return {"seconds": round(seconds, 3), "per_second": round(files / seconds, 1)}


def _memory() -> dict[str, float]:
    """Peaks in MiB: of this process, and of the largest of its children."""
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    decoding.shared().close()
    children = max(children, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return {"peak_mib": round(own * 1024 / MIB, 1), "largest_child_peak_mib": round(children * 1024 / MIB, 1)}


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*.jpg") if path.is_file()]


def _make_files(root: Path, count: int, side: int, folders: int) -> None:
    """Pictures that differ from each other, spread over class folders."""
    random = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"class{number % folders}"
        if number < folders:
            folder.mkdir(parents=True)
        coarse = Image.fromarray(random.integers(0, 256, (9, 9), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=85)
