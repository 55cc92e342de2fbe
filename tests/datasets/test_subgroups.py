"""Groups of a preparation's images: what is known of each, and folders that name a source but never a person."""

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from datasets.models import DatasetImage, Preparation, PreparedImage
from datasets.subgroups import MAX_GROUPS, MIN_PATIENTS, of_preparation, source_folders
from datasets.tasks import run_preparation
from tests.datasets.files import dicom, encode, save
from tests.datasets.test_scan import noise, scan
from tests.factories import DatasetFactory, PreparationFactory

CLASSES = ("NORMAL", "PNEUMONIA")


def sources(*folders, classes=CLASSES, each=MIN_PATIENTS, patients=None):
    """The name that each of these folders of `each` images gets; every image is of its own patient."""
    paths = [f"{folder}/{number}.png".lstrip("/") for folder in folders for number in range(each)]
    groups = patients or range(len(paths))
    found = source_folders(paths, list(groups), classes).reshape(len(folders), each)
    assert all(len(set(names)) == 1 for names in found)
    return [str(names[0]) for names in found]


# -- Source folders


def test_folders_below_the_classes_tell_the_source():
    assert sources("NORMAL/North", "PNEUMONIA/North", "NORMAL/South", "PNEUMONIA/South") == [
        "North", "North", "South", "South",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "folders",
    [
        ["train/NORMAL", "train/PNEUMONIA", "test/NORMAL", "holdout/PNEUMONIA"],
        ["images/normal", "images/Pneumonia"],
        ["NORMAL/patient1/study1", "NORMAL/patient2/study1_negative"],
        ["", ""],
    ],
)
def test_splits_classes_patients_and_studies_are_no_source(folders):
    assert set(sources(*folders)) == {""}


def test_the_source_may_lie_around_or_between_splits_classes_and_patients():
    assert sources("North/train/NORMAL", "South/test/NORMAL") == ["North", "South"]
    assert sources("train/North/NORMAL/patient7", "images/South") == ["North", "South"]


def test_a_folder_around_all_images_tells_nothing_so_that_the_next_level_is_used():
    assert sources("archive/NORMAL/North", "archive/PNEUMONIA/South") == ["North", "South"]
    assert sources("archive/NORMAL", "archive/PNEUMONIA") == ["", ""]


def test_a_class_that_is_named_by_two_folders_is_no_source():
    two_levels = ("BROKEN arm", "BROKEN leg", "WHOLE arm")
    assert sources("BROKEN/arm", "BROKEN/leg", "WHOLE/arm", classes=two_levels) == ["", "", ""]
    assert sources("BROKEN/arm/North", "BROKEN/leg/South", classes=two_levels) == ["North", "South"]


def test_images_beside_the_folders_are_a_group_of_their_own():
    assert sources("NORMAL", "NORMAL/added 2024") == ["no subfolder", "added 2024"]


def test_of_many_folders_the_largest_are_told_and_the_rest_are_one_group():
    paths, twelve = [], [f"ward {number}" for number in range(MAX_GROUPS)]
    for number, ward in enumerate([*twelve, "ward 12"]):
        paths += [f"NORMAL/{ward}/{image}.png" for image in range(MIN_PATIENTS + number)]
    found = source_folders(paths, list(range(len(paths))), CLASSES)
    assert set(found) == {*(f"ward {number}" for number in range(2, 13)), "other"}
    only_twelve = [path for path in paths if "ward 12" not in path]
    assert set(source_folders(only_twelve, list(range(len(only_twelve))), CLASSES)) == set(twelve)


def test_a_folder_of_a_few_patients_is_not_named():
    """A patient may have a folder of many images among those of wards."""
    paths = [f"NORMAL/{name}/{number}.png" for name in ("North", "South", "Mustermann") for number in range(20)]
    patients = [*range(40), *[99] * 20]
    assert set(source_folders(paths, patients, CLASSES)) == {"North", "South", "other"}


def test_folders_that_are_mostly_of_a_few_patients_are_no_sources():
    paths = [f"NORMAL/{number:08}/{image}.png" for number in range(40) for image in range(6)]
    paths += [f"NORMAL/misc/{number}.png" for number in range(30)]
    patients = [*np.repeat(np.arange(40), 6).tolist(), *range(100, 130)]
    assert set(source_folders(paths, patients, CLASSES)) == {""}


def test_no_image_is_no_group():
    assert source_folders([], [], CLASSES).shape == (0,)


# -- Of a preparation


@pytest.fixture
def preparation(db):
    """Twelve images of two wards, the last of which is not in the dataset any more; rows against the order of paths."""
    dataset = DatasetFactory()
    preparation = PreparationFactory(dataset=dataset)
    images = [
        DatasetImage(
            dataset=dataset, path=f"NORMAL/{'North' if number < 6 else 'South'}/{number}.x", size=1, mtime_ns=1,
            width=9, height=9, digest=f"{number:064d}", class_name="NORMAL", format="DICOM" if number < 6 else "PNG",
            attributes={"sex": "FMO"[number % 3], "age": "40-59", "site": "site 00000a"} if number < 6 else {},
        )
        for number in range(12)
    ]  # fmt: skip
    DatasetImage.objects.bulk_create(images[:11])
    PreparedImage.objects.bulk_create(
        PreparedImage(
            preparation=preparation, row=11 - number, path=image.path, digest=image.digest, class_name="healthy",
            split="test", group=number,
        )
        for number, image in enumerate(images)
    )  # fmt: skip
    return preparation


def test_each_group_is_told_in_the_order_of_the_rows(preparation):
    found = of_preparation(preparation, np.array([11, 1, 10, 9, *range(2, 9)]))
    assert list(found) == ["folder", "sex", "age", "format", "site"]
    assert all(names.dtype.kind == "U" and names.shape == (11,) for names in found.values())
    assert {name: names[:4].tolist() for name, names in found.items()} == {
        "folder": ["North", "South", "North", "North"],
        "sex": ["female", "", "male", "other"],
        "age": ["40-59", "", "40-59", "40-59"],
        "format": ["DICOM", "PNG", "DICOM", "DICOM"],
        "site": ["site 00000a", "", "site 00000a", "site 00000a"],
    }


def test_of_an_image_that_is_gone_or_has_other_pixels_only_the_folder_is_known(preparation):
    DatasetImage.objects.filter(path="NORMAL/North/0.x").update(digest="f" * 64)
    found = of_preparation(preparation, range(12))
    for row, folder in ((0, "South"), (11, "North")):
        told = {name: str(names[row]) for name, names in found.items()}
        assert told == {"folder": folder, "sex": "", "age": "", "format": "", "site": ""}


def test_no_rows_give_empty_groups_and_an_unknown_row_is_refused(preparation):
    assert {names.shape for names in of_preparation(preparation, []).values()} == {(0,)}
    with pytest.raises(KeyError):
        of_preparation(preparation, [12])


def test_a_class_folder_that_was_renamed_is_still_no_source(preparation):
    preparation.classes, preparation.class_choices = ["healthy", "ill"], {"NORMAL": "healthy"}
    preparation.dataset.source_classes = []
    assert set(of_preparation(preparation, range(12))["folder"]) == {"North", "South"}


def test_many_rows_cost_as_many_queries_as_few(preparation):
    def queries(rows):
        fresh = Preparation.objects.get(pk=preparation.pk)
        with CaptureQueriesContext(connection) as captured:
            of_preparation(fresh, rows)
        return len(captured)

    assert queries([3]) == queries(range(12)) == 3


def test_what_was_scanned_and_prepared_is_told(settings, db):
    """The whole way, from files to groups."""
    root = settings.DATASET_ROOT / "CHEST/lungs"
    for number in range(24):
        film = dicom(
            noise(number).astype(np.uint16), PatientID=f"P{number}", PatientSex="FM"[number % 2],
            PatientAge=f"{10 + 3 * number:03d}Y", InstitutionName=f"Clinic {number // 12}",
        )  # fmt: skip
        save(root / CLASSES[number % 2] / f"{number}.dcm", film)
        save(root / CLASSES[number % 2] / f"{number}.png", encode(noise(100 + number), "PNG"))
    scan()
    job = Preparation.create(DatasetImage.objects.first().dataset, by=None, image_size=224)
    run_preparation(job, 1)
    found = of_preparation(Preparation.objects.get(), range(48))
    counts = {name: dict(zip(*np.unique(names, return_counts=True), strict=True)) for name, names in found.items()}
    assert counts["sex"] == {"": 24, "female": 12, "male": 12}
    assert counts["format"] == {"DICOM": 24, "PNG": 24}
    assert counts["age"] == {"": 24, "0-17": 3, "18-39": 7, "40-59": 7, "60-79": 7}
    assert sorted(counts["site"].values()) == [12, 12, 24] and not any("Clinic" in site for site in counts["site"])
    assert counts["folder"] == {"": 48}
