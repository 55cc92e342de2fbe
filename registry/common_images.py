"""Evaluations cut down to the images that all of them have, so that versions are compared on the same ones.

Each version is measured without the images that it learned from. Two versions of other trainings therefore seldom have
the very same images, even where both were measured on the same dataset.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from registry import reports
from registry.comparing import Contender
from registry.reports import EvaluatedImages


@dataclass(frozen=True)
class Shared:
    """The versions measured anew on the images that all share. relabelled: how many of these were left out because
    their labels differ between the evaluations. contenders is empty where nothing is left.
    """

    contenders: tuple[Contender, ...]
    relabelled: int


def on_shared_images(contenders: Sequence[Contender]) -> Shared:
    """Compute every report again on the images that all have, by digest; about half a second each for 10,000 images.

    Of pictures that occur several times in an evaluation the first counts. Subgroups are left out. Raises ValueError
    where the classes of the versions differ, so that labels do not mean the same.
    """
    if len({contender.question.classes for contender in contenders}) > 1:
        raise ValueError("The versions answer with different classes.")
    ordered = [_each_picture_once(contender.images) for contender in contenders]
    digests = reduce(np.intersect1d, [images.digests for images in ordered])
    shared = [images.where(np.searchsorted(images.digests, digests)) for images in ordered]
    agreed = reduce(np.logical_and, [images.labels == shared[0].labels for images in shared])
    relabelled = int((~agreed).sum())
    if not agreed.any():
        return Shared((), relabelled)
    measured = [
        _measured(contender, images.where(agreed)) for contender, images in zip(contenders, shared, strict=True)
    ]
    return Shared(tuple(measured), relabelled)


def _each_picture_once(images: EvaluatedImages) -> EvaluatedImages:
    """Sorted by digest, as np.unique returns them."""
    _, first = np.unique(images.digests, return_index=True)
    return replace(images, subgroups={}).where(first)


def _measured(contender: Contender, images: EvaluatedImages) -> Contender:
    images = images.in_order()
    report, replicates = reports.make(images, contender.question)
    return replace(contender, images=images, report=report, replicates=replicates)
