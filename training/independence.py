"""Whether what a network is tested on is new to it, when it starts from a version that has learned before."""

from collections.abc import Iterator

from datasets.models import Preparation, PreparedImage
from registry.models import ModelVersion

PARTS = ("validation", "test")


def warnings_of(version: ModelVersion | None, preparation: Preparation) -> list[str]:
    """What is to be said about a training on `preparation` that starts from `version`; nothing when all is new.

    A network that starts from a version knows what that version learned from. Where such images, or others of the same
    patients, are in the validation or test part now (the dataset was divided anew in between), the figures are too
    good. Pixels are compared and not names, so that a copy in another dataset counts too.
    """
    if version is None:
        return []
    ancestors = list(_line(version))
    known = ModelVersion.objects.filter(pk__in=[one.pk for one in ancestors], run__isnull=False)
    unknown = [str(one) for one in ancestors if one not in set(known)]
    said = [f"Not independent: {text}" for text in _seen(known, preparation)]
    if unknown:
        said.append(
            f"It is not known here which images {', '.join(unknown)} learned from. If images of the test part were "
            "among them, the test figures are too good."
        )
    return said


def _line(version: ModelVersion) -> Iterator[ModelVersion]:
    """The version, the one that it started from, and so on."""
    one: ModelVersion | None = version
    while one is not None:
        yield one
        one = one.parent


def _seen(known: object, preparation: Preparation) -> Iterator[str]:
    learned = PreparedImage.objects.filter(preparation__runs__version__in=known, split="train").values("digest")
    for part in PARTS:
        images = preparation.manifest.filter(split=part)
        groups = images.filter(digest__in=learned).values("group").distinct()
        count, of = images.filter(group__in=groups).count(), images.count()
        if count:
            yield (
                f"the version that this training starts from, or one before it, learned from patients of {count} of "
                f"the {of} {part} images. The {part} figures are too good; prepare with the division that version had, "
                "or start from other weights."
            )
