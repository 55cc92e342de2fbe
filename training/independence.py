"""Whether what a network is tested on is new to it, when it starts from a version that has learned before."""

from collections.abc import Iterator

from datasets import copies
from datasets.models import Preparation, PreparedImage
from registry.models import ModelVersion

PARTS = ("validation", "test")


def warnings_of(version: ModelVersion | None, preparation: Preparation, *, compare: bool = False) -> list[str]:
    """What is to be said about a training on `preparation` that starts from `version`; nothing when all is new.

    A network that starts from a version knows what that version learned from. Where such images, or others of the same
    patients, are in the validation or test part now (the dataset was divided anew in between), the figures are too
    good. Pixels are compared and not names, so that a copy in another dataset counts too; so do near-duplicates in the
    same dataset. compare: also look for near-duplicates in other datasets, which may take as long as `copies.among`.
    """
    if version is None:
        return []
    ancestors = list(version.lineage)
    known = ModelVersion.objects.filter(pk__in=[one.pk for one in ancestors], run__isnull=False)
    unknown = [str(one) for one in ancestors if one not in set(known)]
    said = [f"Not independent: {text}" for text in _seen(known, preparation, compare)]
    if unknown:
        said.append(
            f"It is not known here which images {', '.join(unknown)} learned from. If images of the test part were "
            "among them, the test figures are too good."
        )
    return said


def _seen(known: object, preparation: Preparation, compare: bool) -> Iterator[str]:
    learned = PreparedImage.objects.filter(preparation__runs__version__in=known, split="train").order_by()
    images = list(preparation.manifest.filter(split__in=PARTS).values_list("split", "group", "digest"))
    seen = set(learned.values_list("digest", flat=True))
    if compare:
        new = {digest for _, _, digest in images} - seen
        seen |= copies.among(copies.Pictures.of(preparation.dataset), new, learned).digests
    else:
        seen |= copies.copies_inside(preparation.dataset, learned)
    for part in PARTS:
        groups = [group for split, group, _ in images if split == part]
        familiar = {group for split, group, digest in images if split == part and digest in seen}
        count = sum(group in familiar for group in groups)
        if count:
            yield (
                f"the version that this training starts from, or one before it, learned from patients or copies of "
                f"{count} of the {len(groups)} {part} images. The {part} figures are too good; prepare with the "
                "division that version had, or start from other weights."
            )
