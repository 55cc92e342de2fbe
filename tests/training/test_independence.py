"""A network that starts from a version has seen that version's images: where they are tested on now, it is said."""

import pytest

from datasets.duplicates import fingerprint
from datasets.models import DatasetImage, PreparedImage
from tests.datasets.test_duplicates import clouds
from tests.factories import (
    DatasetFactory,
    DatasetImageFactory,
    ModelVersionFactory,
    PreparationFactory,
    TrainingRunFactory,
)
from training.independence import warnings_of


def prepared(dataset, **splits):
    """A preparation whose parts hold these images; the letter is the patient, the number the image."""
    preparation = PreparationFactory(dataset=dataset)
    images = [(name, split) for split, names in splits.items() for name in names.split()]
    PreparedImage.objects.bulk_create(
        PreparedImage(
            preparation=preparation, row=row, path=f"{name}.png", digest=name, class_name="NORMAL", split=split,
            group=ord(name[0]),
        )
        for row, (name, split) in enumerate(images)
    )  # fmt: skip
    return preparation


def trained_on(preparation, parent=None):
    version = ModelVersionFactory(condition=preparation.dataset.condition, parent=parent)
    TrainingRunFactory(preparation=preparation, state="succeeded", version=version)
    return version


@pytest.fixture
def first(world):
    return prepared(world.dataset, train="a1 a2 b1 c1", validation="d1", test="e1 f1")


def test_a_training_from_scratch_has_nothing_to_fear(first):
    assert warnings_of(None, first) == []


def test_the_same_division_is_independent(first):
    assert warnings_of(trained_on(first), first) == []


def test_new_images_beside_the_same_division_are_independent(world, first):
    grown = prepared(world.dataset, train="a1 a2 b1 c1 g1", validation="d1", test="e1 f1 h1")
    assert warnings_of(trained_on(first), grown) == []


def test_images_that_moved_from_training_to_test_are_counted_with_all_of_their_patient(world, first):
    anew = prepared(world.dataset, train="b1 e1 f1", validation="c1", test="a1 a2 a3 d1")
    validation, test = warnings_of(trained_on(first), anew)
    assert "of 1 of the 1 validation images" in validation
    assert "of 3 of the 4 test images" in test and "too good" in test


def test_what_an_earlier_ancestor_learned_counts_too(world, first):
    parent = trained_on(first)
    second = prepared(world.dataset, train="x1", validation="y1", test="z1")
    child = trained_on(second, parent)
    (said,) = warnings_of(child, prepared(world.dataset, train="q1", validation="r1", test="b1"))
    assert "of 1 of the 1 test images" in said


def test_of_a_version_from_elsewhere_it_is_said_that_nobody_knows(first):
    imported = ModelVersionFactory(condition=first.dataset.condition)
    (said,) = warnings_of(imported, first)
    assert said.startswith(f"It is not known here which images {imported} learned from.")


# -- Near-duplicates


def scanned_with(dataset, **fingerprints):
    """The images of a dataset as a scan stores them; the value is the number of the picture that they show."""
    for name, picture in fingerprints.items():
        image = DatasetImageFactory(
            dataset=dataset, path=f"{name}.png", digest=name, fingerprint=fingerprint(clouds(picture))
        )
        DatasetImage.objects.filter(pk=image.pk).update(cluster=picture)


def test_near_duplicates_in_the_same_dataset_count_as_its_scan_has_found_them(world):
    scanned_with(world.dataset, a1=1, b1=2, c1=3, d1=1)
    version = trained_on(prepared(world.dataset, train="a1", validation="b1", test="c1"))
    (said,) = warnings_of(version, prepared(world.dataset, train="b1", validation="c1", test="d1"))
    assert "patients or copies of 1 of the 1 test images" in said


def test_near_duplicates_in_another_dataset_count_where_they_are_looked_for(world):
    other = DatasetFactory(condition=world.dataset.condition)
    scanned_with(other, a1=1)
    scanned_with(world.dataset, b1=2, c1=3, d1=1)
    version = trained_on(prepared(other, train="a1", validation="y1", test="z1"))
    preparation = prepared(world.dataset, train="b1", validation="c1", test="d1 d2")
    assert warnings_of(version, preparation) == []
    (said,) = warnings_of(version, preparation, compare=True)
    assert "patients or copies of 2 of the 2 test images" in said
