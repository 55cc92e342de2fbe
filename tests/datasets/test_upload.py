"""The upload job: what it adds to a dataset folder, what it refuses and why, and that it ends whole or not at all."""

import json
import os
import shutil
import time
import zipfile
from io import BytesIO

import pytest
from django.core.management import CommandError, call_command
from django.db.models import ProtectedError
from django.utils import timezone
from django_q.models import OrmQ

from datasets import uploading
from datasets.archives import path_danger
from datasets.cataloguing import _tells_of
from datasets.models import Dataset, Scan, Upload
from datasets.models.upload import check_free, checked_class_folder, checked_name
from datasets.placing import Journal
from datasets.receiving import Inbox
from datasets.tasks import run_scan, run_upload, upload
from tests.datasets.files import dicom, encode, gradient, save
from tests.factories import DatasetFactory, TeamFactory, UploadFactory
from xrayplatform import jobs, system
from xrayplatform.audit import AuditEntry
from xrayplatform.conditions import Condition
from xrayplatform.jobs import JobError

GIB = system.GIB


def png(seed):
    """A picture that differs for every seed."""
    return encode(gradient(seed=seed), "PNG")


def zipped(members):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def scan():
    job = Scan.waiting() or Scan.create(None)
    run_scan(job, job.attempt)
    assert job.state == "succeeded", job.error


def tree(folder):
    """The files below a folder, also hidden ones."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def root(settings):
    return settings.DATASET_ROOT


@pytest.fixture
def dataset(root, team):
    """Two classes with three pictures each, scanned, of alice's team."""
    for number in range(6):
        save(root / "CHEST/study" / ("NORMAL", "PNEUMONIA")[number % 2] / f"{number}.png", png(number))
    scan()
    found = Dataset.objects.get()
    found.condition.team = team
    found.condition.save()
    return found


def send(files, by=None, **options):
    """An upload of files (content by name) that waits for its worker."""
    inbox = Inbox()
    for name, content in files.items():
        with inbox.open(name) as out:
            out.write(content)
        inbox.size += len(content)
    try:
        return inbox.submit(by, **options)
    finally:
        inbox.discard()


def do(files, by=None, **options):
    """The same, done. Whatever came of it, nothing of what was received may be left."""
    job = send(files, by, **options)
    run_upload(job, job.attempt)
    assert not job.staging.exists()
    job.refresh_from_db()
    return job


def reasons(job):
    return {refusal["name"]: refusal["reason"] for refusal in job.refusals}


# -- Into a dataset


def test_good_images_are_added_to_the_chosen_class_and_a_scan_is_started(dataset, alice):
    job = do({"a.png": png(10), "b.jpg": png(11)}, alice, dataset=dataset, class_folder="NORMAL")
    assert (job.state, job.accepted, job.refused) == ("succeeded", 2, 0)
    assert job.size == len(png(10)) + len(png(11))
    assert (dataset.folder / "NORMAL/a.png").read_bytes() == png(10)
    assert "A scan has been started" in job.message
    assert [message.task["func"] for message in OrmQ.objects.all()] == ["datasets.tasks.scan"]
    scan()
    dataset.refresh_from_db()
    assert dataset.counts == {"NORMAL": 5, "PNEUMONIA": 3}


def test_the_audit_log_tells_who_sent_how_much_and_no_file_names(dataset, alice):
    job = do({"Smith John.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    entries = AuditEntry.objects.filter(object_type="upload", object_id=str(job.pk)).order_by("seq")
    assert [entry.action for entry in entries] == ["upload.create", "upload.succeeded"]
    assert {entry.actor for entry in entries} == {alice}
    assert entries[0].after["files"] == 1 and entries[0].after["folder"] == "CHEST/study"
    assert entries[1].after == {"accepted": 1, "refused": 0, "bytes": len(png(10))}
    assert "Smith" not in json.dumps([entry.after for entry in entries])


def test_a_zip_with_class_folders_is_sorted_into_them(dataset, alice):
    archive = zipped({"NORMAL/a.png": png(10), "PNEUMONIA/b.png": png(11), "NORMAL/c.dcm": dicom(gradient(seed=12))})
    job = do({"new.zip": archive}, alice, dataset=dataset)
    assert job.accepted == 3
    assert set(tree(dataset.folder)) >= {"NORMAL/a.png", "PNEUMONIA/b.png", "NORMAL/c.dcm"}


def test_a_file_that_cannot_be_read_is_refused_with_its_reason_and_the_others_are_added(dataset, alice):
    files = {
        "good.png": png(10),
        "empty.png": b"",
        "text.jpg": b"this is no picture",
        "half.png": png(11)[:200],
        "notes.txt": b"x",
    }
    job = do(files, alice, dataset=dataset, class_folder="NORMAL")
    assert (job.state, job.accepted, job.refused) == ("succeeded", 1, 4)
    assert set(reasons(job)) == {"empty.png", "text.jpg", "half.png", "notes.txt"}
    assert "empty" in reasons(job)["empty.png"]
    assert "not .txt" in reasons(job)["notes.txt"]
    assert "NORMAL/good.png" in tree(dataset.folder)
    assert "NORMAL/empty.png" not in tree(dataset.folder)


def test_a_picture_that_the_dataset_has_is_refused_whatever_its_name_and_format(dataset, alice):
    same_pixels = encode(gradient(seed=1), "PNG", compress_level=0)
    assert same_pixels != png(1)
    job = do({"other name.png": same_pixels, "new.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    assert reasons(job) == {"other name.png": "The same picture is in the dataset already: PNEUMONIA/1.png."}
    assert job.accepted == 1


def test_a_picture_that_comes_twice_is_added_once(dataset, alice):
    job = do({"a.png": png(10), "b.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    assert job.accepted == 1
    assert reasons(job) == {"b.png": "The same picture is in this upload already: a.png."}


def test_a_picture_that_was_removed_from_the_folder_may_come_again(dataset, alice):
    (dataset.folder / "PNEUMONIA/1.png").unlink()
    job = do({"again.png": png(1)}, alice, dataset=dataset, class_folder="PNEUMONIA")
    assert job.accepted == 1


def test_an_existing_file_is_never_overwritten(dataset, alice):
    before = (dataset.folder / "NORMAL/0.png").read_bytes()
    job = do({"0.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    assert job.accepted == 1
    assert (dataset.folder / "NORMAL/0.png").read_bytes() == before
    assert (dataset.folder / "NORMAL/0 (2).png").read_bytes() == png(10)


def test_files_of_one_name_in_one_upload_are_numbered(dataset, alice):
    archives = {f"{number}.zip": zipped({"NORMAL/x.png": png(10 + number)}) for number in range(3)}
    job = do(archives, alice, dataset=dataset)
    assert job.accepted == 3
    assert [name for name in tree(dataset.folder) if "x" in name] == [
        "NORMAL/x (2).png", "NORMAL/x (3).png", "NORMAL/x.png",
    ]  # fmt: skip


def test_the_same_bytes_under_the_same_name_are_refused_even_where_no_scan_has_seen_them(dataset, alice):
    save(dataset.folder / "NORMAL/late.png", png(10))
    job = do({"late.png": png(10), "new.png": png(11)}, alice, dataset=dataset, class_folder="NORMAL")
    assert reasons(job) == {"late.png": "The same file is in the dataset already: NORMAL/late.png."}
    assert "NORMAL/late (2).png" not in tree(dataset.folder)


def test_an_upload_that_adds_nothing_fails_and_lists_the_reasons(dataset, alice):
    before = tree(dataset.folder)
    job = do({"a.png": png(0), "b.png": b"no"}, alice, dataset=dataset, class_folder="NORMAL")
    assert (job.state, job.accepted, job.refused, job.size) == ("failed", 0, 2, 0)
    assert "No image could be added" in job.error
    assert len(job.refusals) == 2
    assert tree(dataset.folder) == before
    assert not Scan.objects.active().exists()


def test_refusals_are_capped_and_counted(dataset, alice, monkeypatch):
    monkeypatch.setattr(uploading, "REFUSALS_KEPT", 2)
    files = {f"{number}.txt": b"" for number in range(5)} | {"a.png": png(10)}
    job = do(files, alice, dataset=dataset, class_folder="NORMAL")
    assert (job.refused, len(job.refusals)) == (5, 2)


# -- Folders


def test_images_without_a_class_are_refused_where_folders_are_the_classes(dataset, alice):
    job = do({"loose.png": png(10), "z.zip": zipped({"NORMAL/a.png": png(11)})}, alice, dataset=dataset)
    assert job.accepted == 1
    assert "no class folder" in reasons(job)["loose.png"]


def test_the_folder_around_a_packed_folder_is_left_out_and_told(dataset, alice):
    archive = zipped({"My export/NORMAL/a.png": png(10), "My export/PNEUMONIA/b.png": png(11)})
    job = do({"x.zip": archive}, alice, dataset=dataset)
    assert {"NORMAL/a.png", "PNEUMONIA/b.png"} <= set(tree(dataset.folder))
    assert "My export" in job.notes[0]


@pytest.mark.parametrize(
    ("names", "class_folder", "expected"),
    [
        (["NORMAL/a.png"], "", ["NORMAL/a.png"]),
        (["export/a.png"], "NORMAL", ["NORMAL/a.png"]),
        (["NORMAL/a.png"], "NORMAL", ["NORMAL/a.png"]),
        (["NORMAL/patient7/a.png"], "", ["NORMAL/patient7/a.png"]),
        (["patient7/a.png", "patient8/a.png"], "NORMAL", ["NORMAL/patient7/a.png", "NORMAL/patient8/a.png"]),
        (["train/NORMAL/a.png"], "", ["train/NORMAL/a.png"]),
        (["export/train/NORMAL/a.png"], "", ["train/NORMAL/a.png"]),
        (["NORMAL/a.png", "PNEUMONIA/b.png"], "train", ["train/NORMAL/a.png", "train/PNEUMONIA/b.png"]),
        (["NORMAL/a.png"], "train", ["train/NORMAL/a.png"]),
        (["normal/a.png"], "", ["NORMAL/a.png"]),
        (["fracture/a.png"], "", ["fracture/a.png"]),
    ],
)
def test_where_the_files_of_a_zip_go(dataset, alice, names, class_folder, expected):
    before = tree(dataset.folder)
    archive = zipped({name: png(20 + number) for number, name in enumerate(names)})
    job = do({"x.zip": archive}, alice, dataset=dataset, class_folder=class_folder)
    assert sorted(set(tree(dataset.folder)) - set(before)) == expected, job.error


def test_a_zip_with_classes_of_its_own_does_not_go_into_one_class(dataset, alice):
    archive = zipped({"NORMAL/a.png": png(10), "PNEUMONIA/b.png": png(11)})
    job = do({"x.zip": archive}, alice, dataset=dataset, class_folder="NORMAL")
    assert job.state == "failed"
    assert "but the class NORMAL was chosen" in reasons(job)["PNEUMONIA/b.png"]


def test_a_new_class_folder_is_made_and_told(dataset, alice):
    job = do({"a.png": png(10)}, alice, dataset=dataset, class_folder="tuberculosis")
    assert "tuberculosis/a.png" in tree(dataset.folder)
    assert "New folders in the dataset: tuberculosis." in job.notes


def test_a_link_in_the_dataset_folder_is_not_followed(dataset, alice, tmp_path):
    (dataset.folder / "elsewhere").symlink_to(tmp_path)
    job = do({"a.png": png(10)}, alice, dataset=dataset, class_folder="elsewhere")
    assert job.state == "failed"
    assert "is no folder" in reasons(job)["a.png"]
    assert list(tmp_path.iterdir()) == []


def test_a_csv_file_is_not_put_into_an_existing_dataset(dataset, alice):
    job = do({"labels.csv": b"image,label", "a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    assert "Ask IT" in reasons(job)["labels.csv"]
    assert job.accepted == 1


def test_where_a_csv_file_has_the_labels_images_go_to_the_others_and_the_page_says_so(root, alice):
    for number in range(4):
        save(root / "KNEE/study/images" / f"{number}.png", png(number))
    rows = "".join(f"{number}.png,{'arthrosis' if number % 2 else 'normal'}\n" for number in range(4))
    (root / "KNEE/study/labels.csv").write_text(f"image,label\n{rows}")
    scan()
    dataset = Dataset.objects.get()
    assert dataset.layout == "images-csv"
    job = do({"9.png": png(9)}, alice, dataset=dataset)
    assert "images/9.png" in tree(dataset.folder)
    assert "Ask IT to add their rows" in job.notes[0]


@pytest.mark.parametrize(
    "folder",
    [
        "../x",
        "a\\b",
        "C:x",
        ".hidden",
        "__MACOSX",
        "a//b",
        "a/../b",
        "masks",
        "a\u202eb",
        "x" * 201,
        "a/b/c/d",
        "a?",
    ],
)
def test_class_folders_with_names_that_cannot_be_are_refused(dataset, alice, folder):
    with pytest.raises(JobError, match="The name of the class folder"):
        send({"a.png": png(10)}, alice, dataset=dataset, class_folder=folder)
    assert not Upload.objects.exists()
    assert tree(Upload.root()) == []


@pytest.mark.parametrize("folder", ["", "NORMAL", "train/NORMAL", "Grade 1", "肺炎", " padded / NORMAL "])
def test_ordinary_class_folders_are_taken(folder):
    assert checked_class_folder(folder) == "/".join(part.strip() for part in folder.split("/"))


def test_a_dangerous_name_of_a_single_file_is_refused(dataset, alice):
    """A browser sends base names; the command sends paths."""
    files = {"../../escape.png": png(10), "a\\b.png": png(11), "fine.png": png(12), ".hidden.png": png(13)}
    job = do(files, alice, dataset=dataset, class_folder="NORMAL")
    assert set(reasons(job)) == {"../../escape.png", "a\\b.png"}
    assert (job.accepted, path_danger("fine.png")) == (1, "")


# -- A new folder


def test_a_new_folder_becomes_a_dataset_that_only_the_team_sees(root, team, alice, charlie):
    classes = {f"{('normal', 'fracture')[number % 2]}/{number}.png": png(number) for number in range(6)}
    job = do({"x.zip": zipped(classes)}, alice, name="WRIST/new study", team=team)
    assert job.state == "succeeded", job.error
    assert tree(root) == sorted(f"WRIST/new study/{name}" for name in classes)
    scan()
    found = Dataset.objects.get()
    job.refresh_from_db()
    assert (found.name, found.condition.team, job.dataset) == ("WRIST/new study", team, found)
    assert not Dataset.objects.visible_to(charlie).exists()
    assert AuditEntry.objects.filter(action="upload.adopt").count() == 1
    scan()
    assert AuditEntry.objects.filter(action="upload.adopt").count() == 1


def test_a_condition_that_somebody_gave_to_another_team_stays_there(root, team, alice):
    do({"x.zip": zipped({"a/1.png": png(1), "b/2.png": png(2)})}, alice, name="new", team=team)
    other = TeamFactory()
    DatasetFactory(name="new", condition=Condition.objects.create(slug="x", name="x", team=other))
    Upload.adopt_found()
    assert Dataset.objects.get().condition.team == other


def two_studies():
    """One zip with the folders of two datasets, each with two classes."""
    return zipped(
        {
            f"{part}/{name}/{number}.png": png(10 * number + len(part) + len(name))
            for part in ("KNEE", "WRIST")
            for name in ("normal", "arthrosis")
            for number in range(4)
        }
    )


def test_every_dataset_of_one_upload_belongs_to_its_team_alone(root, team, alice, charlie):
    job = do({"x.zip": two_studies()}, alice, name="study", team=team)
    assert job.state == "succeeded", job.error
    scan()
    owners = dict(Dataset.objects.values_list("name", "condition__team"))
    assert owners == {"study/KNEE": team.pk, "study/WRIST": team.pk}
    assert not Dataset.objects.visible_to(charlie).exists()
    for number in range(6):
        save(root / "study/HAND" / ("a", "b")[number % 2] / f"{number}.png", png(90 + number))
    scan()
    assert Dataset.objects.get(name="study/HAND").condition.team == team, "also one that comes much later"


def test_a_scan_while_the_files_are_moved_makes_nothing_public(root, team, alice, charlie, monkeypatch):
    original = uploading._finish

    def scanned(*args):
        scan()
        assert Dataset.objects.count() == 1
        assert not Dataset.objects.visible_to(charlie).exists()
        return original(*args)

    monkeypatch.setattr(uploading, "_finish", scanned)
    classes = {f"{('normal', 'fracture')[number % 2]}/{number}.png": png(number) for number in range(6)}
    job = do({"x.zip": zipped(classes)}, alice, name="new study", team=team)
    assert job.state == "succeeded", job.error
    assert job.dataset == Dataset.objects.get()
    assert Dataset.objects.get().condition.team == team


@pytest.mark.parametrize(("state", "owned"), [("failed", True), ("cancelled", False)])
def test_a_folder_is_still_the_teams_when_its_upload_has_just_failed_but_not_when_it_never_began(
    root, team, state, owned
):
    """The scan may have seen its files before they were taken away."""
    started = timezone.now() if owned else None
    UploadFactory(dataset=None, name="new", team=team, state=state, started_at=started, finished_at=timezone.now())
    for number in range(6):
        save(root / "new" / ("a", "b")[number % 2] / f"{number}.png", png(number))
    scan()
    assert Dataset.objects.get().condition.team == (team if owned else None)


def test_what_somebody_has_made_visible_to_all_stays_so(root, team, alice):
    do({"x.zip": two_studies()}, alice, name="study", team=team)
    scan()
    Condition.objects.update(team=None)
    scan()
    assert set(Condition.objects.values_list("team", flat=True)) == {None}


@pytest.mark.parametrize("above", ["WRIST", "."])
@pytest.mark.parametrize("shared", [True, False])
def test_folders_of_uploads_that_become_classes_of_one_dataset_are_seen_by_no_other_team(
    root, team, alice, charlie, above, shared
):
    other = team if shared else charlie.teams.get()
    for seed, (name, owner) in enumerate({"fracture": team, "normal": other}.items()):
        files = {f"{number}.png": png(10 * seed + number) for number in range(3)}
        job = do(files, alice, name=f"{above}/{name}".removeprefix("./"), class_folder=f"patient{seed}", team=owner)
        assert job.state == "succeeded", job.error
    scan()
    dataset = Dataset.objects.get()
    assert (dataset.name, dataset.source_classes) == (above, ["fracture", "normal"])
    seen = [Dataset.objects.visible_to(user).exists() for user in (alice, charlie)]
    assert seen == [shared, False]
    assert dataset.condition.team is not None


def test_a_team_with_uploads_cannot_be_deleted(team):
    UploadFactory(dataset=None, name="new", team=team)
    with pytest.raises(ProtectedError):
        team.delete()


def test_a_folder_of_a_team_without_a_dataset_is_counted_and_not_named_in_the_scan(root, team, alice):
    job = do({"x.png": png(1), "y.png": png(2)}, alice, name="Smith/study of J", class_folder="a", team=team)
    assert job.state == "succeeded", job.error
    shutil.rmtree(root / "Smith/study of J/a")
    (root / "Jones").mkdir()
    save(root / "loose/1.png", png(3))
    scan()
    problems = Scan.objects.latest("pk").problems
    assert not Dataset.objects.exists()
    assert {"loose", "Jones"} <= {problem["path"] for problem in problems}
    assert "Smith" not in json.dumps(problems)
    assert problems[-1]["reason"].startswith("1 problem in folders of teams")


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("CHEST/study", True),
        ("CHEST/study/inner", True),
        ("CHEST/study 2", False),
        ("CHEST", False),
        ("Smith", True),
        (".", False),
        (f"{'Long ' * 16}…{'x' * 39}", True),
        (f"{'Other ' * 14}…{'x' * 39}", False),
    ],
)
def test_which_problems_of_a_scan_tell_of_a_teams_folder(root, path, hidden):
    for folder in ("CHEST/study", "CHEST/open", "Smith/only his"):
        (root / folder).mkdir(parents=True)
    names = ["CHEST/study", "Smith/only his", "Long " * 30]
    assert _tells_of(path, names, root) == hidden


@pytest.mark.parametrize("name", ["HIP/hidden", "hip/HIDDEN", "HIP", "HIP/hidden/x", "other/upload/x", "other"])
def test_names_of_datasets_that_are_not_there_and_of_other_uploads_are_taken(team, name):
    """Nothing of them is on the disk now; when it comes back, the images would lie in it."""
    DatasetFactory(name="HIP/hidden", state="offline", condition__team=team)
    UploadFactory(dataset=None, name="other/upload", team=team)
    with pytest.raises(JobError) as refused:
        check_free(name)
    assert str(refused.value) == "The name is taken."
    assert "hidden" not in refused.value.hint and "upload/" not in refused.value.hint


def test_a_name_that_was_taken_while_the_images_were_checked_fails_the_upload(root, alice, monkeypatch):
    job = send({"a.png": png(1)}, alice, name="new", class_folder="a")
    original = uploading._check_room

    def taken(*args):
        DatasetFactory(name="new/inner", state="offline")
        return original(*args)

    monkeypatch.setattr(uploading, "_check_room", taken)
    run_upload(job, 1)
    assert (job.state, job.error) == ("failed", "The name is taken.")
    assert tree(root) == []


def test_a_folder_that_is_made_while_the_images_are_moved_is_not_entered(root, alice, monkeypatch):
    job = send({"a.png": png(1)}, alice, name="new", class_folder="a")
    original = uploading.check_free

    def made(*args, **options):
        original(*args, **options)
        save(root / "new/a/theirs.png", png(2))

    monkeypatch.setattr(uploading, "check_free", made)
    run_upload(job, 1)
    assert (job.state, job.error) == ("failed", "The name is taken.")
    assert tree(root) == ["new/a/theirs.png"]


def test_of_two_uploads_into_one_another_the_first_has_the_name(root, alice):
    first = send({"a.png": png(1)}, alice, name="new", class_folder="a")
    with pytest.raises(JobError, match="The name is taken"):
        send({"b.png": png(2)}, alice, name="new/inner", class_folder="a")
    UploadFactory(dataset=None, name="new/inner", state="queued")
    run_upload(first, 1)
    assert first.state == "succeeded", first.error


def test_a_csv_file_may_come_with_a_new_dataset(root, alice):
    files = {"labels.csv": b"image,label\n1.png,a\n2.png,b\n", "images/1.png": png(1), "images/2.png": png(2)}
    job = do({"x.zip": zipped({f"export/{name}": content for name, content in files.items()})}, alice, name="new")
    assert job.accepted == 3, job.error
    assert tree(root) == sorted(f"new/{name}" for name in files)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b/c",
        "/..",
        ".hidden",
        "a\\b",
        "a\0b",
        "x" * 201,
        "train",
        "CHEST/val",
        "a:b",
        "masks",
        "a.",
    ],
)
def test_names_that_a_new_folder_cannot_have(db, name):
    with pytest.raises(JobError, match="The name of the new folder"):
        checked_name(name)


@pytest.mark.parametrize(
    "name",
    ["CHEST/study", "chest/study", "CHEST/STUDY", "CHEST", "CHEST/study/inner", "chest/other", "link/x", "file.txt"],
)
def test_a_new_folder_must_be_new_and_lie_in_no_dataset(dataset, root, tmp_path, name):
    (root / "link").symlink_to(tmp_path)
    (root / "file.txt").write_text("x")
    with pytest.raises(JobError):
        checked_name(name)


def test_a_new_folder_may_lie_beside_datasets(dataset):
    assert checked_name(" CHEST/other study/ ") == "CHEST/other study"
    assert checked_name("new") == "new"


def test_a_folder_that_came_into_being_meanwhile_is_not_touched(root, alice):
    job = send({"a.png": png(1)}, alice, name="new", class_folder="a")
    save(root / "new/a/mine.png", png(2))
    run_upload(job, 1)
    assert job.state == "failed"
    assert tree(root) == ["new/a/mine.png"]


# -- Archives


def test_a_hostile_archive_fails_the_upload_with_its_reason_and_leaves_nothing(dataset, alice):
    before = tree(dataset.folder)
    archive = zipped({"NORMAL/a.png": png(10), "../../escape.png": png(11)})
    job = do({"good.png": png(12), "bad.zip": archive}, alice, dataset=dataset, class_folder="NORMAL")
    assert job.state == "failed"
    assert "bad.zip was refused" in job.error and "leads out of the folder" in job.error
    assert tree(dataset.folder) == before
    assert tree(Upload.root()) == []


def test_what_an_archive_holds_besides_images_is_listed(dataset, alice):
    archive = zipped({"NORMAL/a.png": png(10), "NORMAL/inner.zip": b"x", "Thumbs.db": b"x", "__MACOSX/._a.png": b"x"})
    job = do({"x.zip": archive}, alice, dataset=dataset)
    assert (job.accepted, set(reasons(job))) == (1, {"NORMAL/inner.zip", "Thumbs.db"})


def test_an_archive_without_images_says_so(dataset, alice):
    job = do({"x.zip": zipped({})}, alice, dataset=dataset)
    assert "holds no images" in job.error


# -- Limits


def test_the_quota_counts_what_was_accepted_of_the_whole_team(dataset, alice, bob, team, settings):
    settings.UPLOAD_QUOTA_GB = 10_000 / GIB
    do({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    assert Upload.quota(team).used == len(png(10))
    do({"b.png": b"unreadable" * 10}, bob, dataset=dataset, class_folder="NORMAL")
    assert Upload.quota(team).used == len(png(10)), "what was refused does not count"
    with pytest.raises(JobError, match="are left"):
        send({"c.png": b"x" * 10_000}, bob, dataset=dataset, class_folder="NORMAL")
    assert Upload.quota(TeamFactory()).used == 0


def test_an_archive_that_unpacks_to_more_than_the_quota_is_refused(dataset, alice, settings):
    settings.UPLOAD_QUOTA_GB = 100_000 / GIB
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("NORMAL/a.dcm", dicom(gradient(400, 600)))
    assert len(buffer.getvalue()) < 100_000
    job = do({"x.zip": buffer.getvalue()}, alice, dataset=dataset)
    assert job.state == "failed"
    assert "larger than" in job.error


def test_two_uploads_at_a_time_do_not_both_pass_the_quota(dataset, alice, team, settings, root):
    """The second has just been received; the first must see what it is about to add."""
    first = send({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    UploadFactory(dataset=None, name="other", team=team, state="running", size=GIB)
    settings.UPLOAD_QUOTA_GB = 1
    run_upload(first, 1)
    assert first.state == "failed"
    assert "team's" in first.error or "larger" in first.error


def test_a_disk_without_room_is_told_before_anything_is_written(dataset, alice, settings):
    before = tree(dataset.folder)
    settings.MIN_FREE_DISK_GB = 10**9
    job = do({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    assert "free some space" in job.hint
    assert tree(dataset.folder) == before


def test_one_upload_at_a_time_goes_into_a_folder(dataset, alice):
    send({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    with pytest.raises(JobError, match="is under way"):
        send({"b.png": png(11)}, alice, dataset=dataset, class_folder="NORMAL")
    assert Upload.objects.count() == 1
    assert len(list(Upload.root().iterdir())) == 1


# -- Read-only


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_read_only_folder_takes_nothing(dataset, alice, settings, when):
    before = tree(dataset.folder)
    if when == "before":
        settings.DATASET_READ_ONLY = True
        with pytest.raises(JobError, match="read-only"):
            send({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    else:
        job = send({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
        settings.DATASET_READ_ONLY = True
        run_upload(job, 1)
        assert job.state == "failed" and "read-only" in job.error
    assert tree(dataset.folder) == before


def test_a_folder_that_is_not_there_takes_nothing(dataset, alice):
    shutil.rmtree(dataset.folder)
    with pytest.raises(JobError, match="is not there"):
        send({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")


# -- Ends


@pytest.fixture
def many():
    return {f"{number}.png": png(10 + number) for number in range(6)}


def test_a_cancelled_job_that_waits_removes_what_was_received(dataset, alice, many):
    job = send(many, alice, dataset=dataset, class_folder="NORMAL")
    assert job.staging.is_dir()
    assert job.request_cancel(alice)
    assert not job.staging.exists()
    upload(job.pk, 1)
    job.refresh_from_db()
    assert job.state == "cancelled"


@pytest.mark.parametrize("step", ["_find_places", "_examine", "_move"])
def test_a_cancel_leaves_nothing_behind_wherever_it_comes(dataset, alice, many, monkeypatch, step):
    before = tree(dataset.folder)
    job = send(many, alice, dataset=dataset, class_folder="new class")
    original = getattr(uploading, step)

    def cancelled(*args):
        Upload.objects.filter(pk=job.pk).update(cancel_requested=True)
        return original(*args)

    monkeypatch.setattr(uploading, step, cancelled)
    run_upload(job, 1)
    assert job.state == "cancelled"
    assert tree(dataset.folder) == before
    assert not (dataset.folder / "new class").exists()
    assert not job.staging.exists()


def test_a_cancel_between_two_files_takes_back_those_that_were_there(dataset, alice, many, monkeypatch):
    before = tree(dataset.folder)
    monkeypatch.setattr(jobs, "REPORT_EVERY_SECONDS", 0)
    job = send(many, alice, dataset=dataset, class_folder="new class")
    original = uploading._Placed.put
    there = []

    def put(placed, item):
        reason = original(placed, item)
        there.append(len(tree(dataset.folder)) - len(before))
        if len(there) == 3:
            Upload.objects.filter(pk=job.pk).update(cancel_requested=True)
        return reason

    monkeypatch.setattr(uploading._Placed, "put", put)
    run_upload(job, 1)
    assert there == [1, 2, 3]
    assert job.state == "cancelled"
    assert tree(dataset.folder) == before
    assert not (dataset.folder / "new class").exists()


def test_a_full_disk_in_the_middle_takes_back_those_that_were_there_and_names_no_path(
    dataset, alice, many, monkeypatch
):
    before = tree(dataset.folder)
    job = send(many, alice, dataset=dataset, class_folder="NORMAL")
    original = uploading._bring
    brought = []

    def full(source, part):
        brought.append(part)
        if len(brought) == 4:
            part.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(part))
        original(source, part)

    monkeypatch.setattr(uploading, "_bring", full)
    run_upload(job, 1)
    assert job.state == "failed"
    assert "No space left on device" in job.error and str(dataset.folder) not in job.error
    assert tree(dataset.folder) == before
    assert (job.accepted, job.size) == (0, 0)


def test_a_worker_that_lost_its_lease_takes_back_what_it_added(dataset, alice, many, monkeypatch):
    before = tree(dataset.folder)
    job = send(many, alice, dataset=dataset, class_folder="NORMAL")
    original = uploading._finish

    def reaped(*args):
        Upload.objects.filter(pk=job.pk).update(state="failed", lease_token=None, error="The worker died")
        return original(*args)

    monkeypatch.setattr(uploading, "_finish", reaped)
    with pytest.raises(jobs.LeaseLost):
        run_upload(job, 1)
    assert tree(dataset.folder) == before
    assert not Scan.objects.active().exists()
    job.refresh_from_db()
    assert (job.state, job.error) == ("failed", "The worker died")


class Killed(BaseException):
    """As a SIGKILL: nothing of the process runs after it."""


def killed_after(files, monkeypatch, job):
    """Do the job until so many files are in place; then the process is gone, and reaped."""
    original, renamed = uploading._rename_new, []

    def rename(part, path):
        original(part, path)
        renamed.append(path)
        if len(renamed) == files:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(uploading, "_rename_new", rename)
        patched.setattr(uploading._Placed, "undo", lambda placed: None)
        patched.setattr(uploading.Path, "unlink", lambda *args, **options: None)
        patched.setattr(Upload, "discard", lambda upload: None)
        with pytest.raises(Killed):
            run_upload(job, 1)
    Upload.objects.filter(pk=job.pk).update(lease_until=timezone.now() - jobs.LEASE)
    assert jobs.reap() == 1


@pytest.mark.parametrize("by", ["the next upload", "the next scan"])
def test_what_a_killed_upload_had_put_in_place_is_taken_away(dataset, alice, many, monkeypatch, by):
    before = tree(dataset.folder)
    job = send(many, alice, dataset=dataset, class_folder="new class")
    killed_after(3, monkeypatch, job)
    left = [name for name in tree(dataset.folder) if name not in before]
    assert len([name for name in left if ".part" not in name]) == 3
    (dataset.folder / "new class/0.png").unlink()
    save(dataset.folder / "new class/0.png", png(80))
    if by == "the next scan":
        scan()
    else:
        Upload.remove_left_over()
    assert tree(dataset.folder) == sorted([*before, "new class/0.png"]), "what others put there since stays"
    assert not job.staging.exists()


def test_the_journal_of_a_killed_upload_waits_while_the_dataset_folder_is_not_there(
    dataset, root, alice, many, monkeypatch
):
    before = tree(dataset.folder)
    job = send(many, alice, dataset=dataset, class_folder="NORMAL")
    killed_after(2, monkeypatch, job)
    away = root.rename(root.with_name("unmounted"))
    Upload.remove_left_over()
    assert job.journal.exists()
    away.rename(root)
    Upload.remove_left_over()
    assert tree(dataset.folder) == before and not job.staging.exists()


def test_a_journal_that_ends_in_the_middle_of_a_line_is_read_up_to_there(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    journal = Journal(tmp_path / "journal", tmp_path)
    journal.file(tmp_path / "a.png", tmp_path / "a.png")
    with (tmp_path / "journal").open("a") as file:
        file.write('{"kind": "fi')
    assert Journal.read(tmp_path / "journal", tmp_path).undo()
    assert tree(tmp_path) == ["journal"]


def test_nothing_of_an_upload_that_succeeded_is_taken_away(dataset, alice, many):
    job = send(many, alice, dataset=dataset, class_folder="NORMAL")
    job.claim(1)
    uploading.upload(job)
    assert job.journal.exists(), "killed between its end and its tidying up"
    Upload.remove_left_over()
    assert len(tree(dataset.folder)) == 12
    assert not job.staging.exists()


def test_files_from_another_file_system_are_copied_whole(dataset, alice, many, monkeypatch):
    """As where MODEL_ROOT and DATASET_ROOT are two disks, and where there are no hard links."""
    original = uploading.Path.rename

    def rename(path, target):
        if "uploads" in path.parts:
            raise OSError(18, "Invalid cross-device link")
        return original(path, target)

    def no_links(path, target):
        raise OSError(1, "Operation not permitted")

    job = send(many, alice, dataset=dataset, class_folder="NORMAL")
    monkeypatch.setattr(uploading.Path, "rename", rename)
    monkeypatch.setattr(uploading.Path, "hardlink_to", no_links)
    run_upload(job, 1)
    assert (job.state, job.accepted) == ("succeeded", 6), job.error
    assert (dataset.folder / "NORMAL/3.png").read_bytes() == many["3.png"]
    assert not [name for name in tree(dataset.folder) if "part" in name]


def test_a_message_that_comes_twice_does_the_work_once(dataset, alice):
    job = send({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    upload(job.pk, 1)
    upload(job.pk, 1)
    assert [name for name in tree(dataset.folder) if "a" in name.rpartition("/")[2].split(".")[0]] == ["NORMAL/a.png"]


def test_a_second_message_does_not_remove_the_files_of_a_job_at_work(dataset, alice):
    job = send({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    job.claim(1)
    upload(job.pk, 1)
    assert job.staging.is_dir()


def test_when_a_scan_runs_already_the_message_says_so(dataset, alice):
    Scan.create(alice)
    job = do({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    assert "A scan is running already" in job.message
    assert Scan.objects.active().count() == 1


def test_what_dead_workers_and_broken_connections_left_is_removed(dataset, alice):
    dead = send({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    Upload.objects.filter(pk=dead.pk).update(state="failed")
    lost, fresh = Upload.root() / "incoming-lost", Upload.root() / "incoming-fresh"
    for folder in (lost, fresh):
        folder.mkdir()
    os.utime(lost, (time.time() - 2 * 86400,) * 2)
    part = dataset.folder / "NORMAL/.upload-old.part"
    part.write_bytes(b"half")
    os.utime(part, (time.time() - 2 * 86400,) * 2)
    do({"b.png": png(11)}, alice, dataset=dataset, class_folder="NORMAL")
    assert not dead.staging.exists() and not lost.exists() and not part.exists()
    assert fresh.exists()


# -- Who sees it


def test_an_upload_is_seen_by_whom_the_dataset_is_seen(dataset, alice, bob, charlie, admin_user):
    job = send({"a.png": png(10)}, alice, dataset=dataset, class_folder="NORMAL")
    seen = {user.username: Upload.objects.visible_to(user).filter(pk=job.pk).exists() for user in (alice, bob, charlie)}
    assert seen == {"alice": True, "bob": True, "charlie": False}
    assert Upload.objects.visible_to(admin_user).count() == 1


def test_an_upload_into_a_new_folder_is_seen_by_its_team_or_its_sender_alone(alice, bob, charlie, team):
    job = UploadFactory(dataset=None, name="new", team=team, created_by=alice)
    own = UploadFactory(dataset=None, name="other", created_by=charlie)
    assert set(Upload.objects.visible_to(alice)) == set(Upload.objects.visible_to(bob)) == {job}
    assert set(Upload.objects.visible_to(charlie)) == {own}


# -- The command


def command(*arguments, capsys):
    call_command("upload_images", *arguments, "--json")
    return json.loads(capsys.readouterr().out)


def test_the_command_uploads_files_archives_and_folders_and_scans(dataset, tmp_path, capsys):
    save(tmp_path / "one.png", png(10))
    (tmp_path / "two.zip").write_bytes(zipped({"NORMAL/b.png": png(11)}))
    save(tmp_path / "three/PNEUMONIA/c.png", png(12))
    save(tmp_path / "three/PNEUMONIA/c2.png", png(12))
    result = command(
        "CHEST/study", str(tmp_path / "two.zip"), str(tmp_path / "three"), str(tmp_path / "one.png"), capsys=capsys
    )
    assert (result["accepted"], result["refused"]) == (2, 2)
    dataset.refresh_from_db()
    assert dataset.counts == {"NORMAL": 4, "PNEUMONIA": 4}
    result = command("CHEST/study", str(tmp_path / "one.png"), "--class", "NORMAL", capsys=capsys)
    assert (result["accepted"], result["scan"]) == (1, "succeeded")
    assert "failed" not in result
    assert tree(Upload.root()) == []


def test_the_command_makes_a_new_dataset_for_the_users_team(root, alice, team, tmp_path, capsys):
    for number in range(4):
        save(tmp_path / "in" / ("a", "b")[number % 2] / f"{number}.png", png(number))
    result = command("HAND/study", str(tmp_path / "in"), "--new", "--user", "alice", capsys=capsys)
    assert result["accepted"] == 4
    assert Dataset.objects.get(name="HAND/study").condition.team == team


def test_the_command_fails_with_the_scan_but_tells_what_was_added(dataset, tmp_path, capsys, monkeypatch):
    def broken(job):
        raise JobError("The dataset folder is not there.", "Mount it.")

    monkeypatch.setattr("datasets.tasks.scan_root", broken)
    path = save(tmp_path / "a.png", png(10))
    with pytest.raises(SystemExit) as ended:
        call_command("upload_images", "CHEST/study", str(path), "--class", "NORMAL", "--json")
    result = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1
    assert (result["accepted"], result["scan"]) == (1, "failed")
    assert result["scan_error"] == "The dataset folder is not there. Mount it."


@pytest.mark.parametrize("user", ["bob", "charlie", "nobody"])
def test_the_command_refuses_who_may_not(dataset, alice, bob, charlie, tmp_path, user):
    path = save(tmp_path / "a.png", png(10))
    with pytest.raises(CommandError):
        call_command("upload_images", "CHEST/study", str(path), "--class", "NORMAL", "--user", user)
    assert not Upload.objects.exists()


def test_the_command_says_why_nothing_was_added(dataset, tmp_path, capsys):
    path = save(tmp_path / "a.png", png(0))
    with pytest.raises(CommandError, match="No image could be added"):
        call_command("upload_images", "CHEST/study", str(path), "--class", "NORMAL")
    assert "in the dataset already" in capsys.readouterr().err
    with pytest.raises(CommandError, match="Add --new"):
        call_command("upload_images", "CHEST/unknown", str(path))


def test_the_json_of_a_failed_upload_tells_the_reason_of_each_file(dataset, tmp_path, capsys):
    paths = [str(save(tmp_path / "a.png", png(0))), str(save(tmp_path / "b.png", b"no image"))]
    with pytest.raises(SystemExit) as ended:
        call_command("upload_images", "CHEST/study", *paths, "--class", "NORMAL", "--json")
    result = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1
    assert result["error"].startswith("No image could be added; 2 files refused.")
    assert (result["failed"], result["accepted"], result["refused"]) == (True, 0, 2)
    reasons = {refusal["name"]: refusal["reason"] for refusal in result["refusals"]}
    assert reasons.keys() == {"a.png", "b.png"}
    assert "in the dataset already" in reasons["a.png"] and reasons["b.png"]


# -- Real radiographs


def test_real_radiographs_become_a_dataset_and_are_known_when_they_come_again(real_images, root, alice, team):
    """JPEG and DICOM as they are, in a zip, through the decoders, and scanned."""
    chest = real_images / "Dataset/CHEST/chest_xray Pneumonia"
    pictures = {
        f"{name}/{path.name}": path.read_bytes()
        for name in ("NORMAL", "PNEUMONIA")
        for path in sorted(chest.rglob(f"{name}/*.jpeg"))[:4]
    }
    files = pictures | {f"NORMAL/{path.name}": path.read_bytes() for path in (real_images / "dicom").glob("*.dcm")}
    job = do(
        {"x.zip": zipped({f"export/{name}": content for name, content in files.items()})}, alice, name="new", team=team
    )
    assert job.state == "succeeded", job.error
    assert job.accepted + job.refused == len(files)
    assert set(pictures) <= set(tree(root / "new"))
    scan()
    dataset = Dataset.objects.get(name="new")
    assert dataset.images_count == job.accepted
    again = do(pictures, alice, dataset=dataset)
    assert (again.state, again.refused) == ("failed", len(pictures))
    assert all("in the dataset already" in reason for reason in reasons(again).values())
