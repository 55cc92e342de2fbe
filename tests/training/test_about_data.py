"""What a version's manifest says of its data: counts, and no name of a folder, a file or a patient."""

import json

import pytest

from tests.factories import PreparationFactory
from training.measured import about_data


@pytest.fixture
def preparation(db):
    return PreparationFactory(
        dataset__name="CHEST/Mueller, Hans",
        group_key="file-name",
        group_description="4 images by the file name (like Meier_12)",
        group_counts={"train": 4, "validation": 2, "test": 2},
        left_out={"excluded": 2, "label-conflict": 1},
        seed=7,
    )


def test_counts_of_images_and_patients_and_how_patients_were_told_apart(preparation):
    assert about_data(preparation) == {
        "counts": preparation.counts,
        "groups": {"train": 4, "validation": 2, "test": 2},
        "group_key": "file-name",
        "shared_patients": 0,
        "left_out": 3,
        "seed": 7,
    }


def test_no_name_is_among_them(preparation):
    told = json.dumps(about_data(preparation))
    assert "Mueller" not in told
    assert "Meier" not in told
