"""A scan brings the tables up to date with the dataset folder, reads a file once, and loses nothing by accident."""

import json
import shutil
from io import StringIO

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from PIL import Image

from datasets import cataloguing, imaging, layouts, scanning
from datasets.models import Dataset, DatasetImage, Preparation, Scan
from datasets.tasks import run_preparation, run_scan
from tests.datasets.files import dicom, encode, gradient, save
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError

pytestmark = pytest.mark.django_db


@pytest.fixture
def root(settings):
    """Two datasets: class folders and train/test folders, with pictures that all differ."""
    root = settings.DATASET_ROOT
    seed = 0
    for folder in ("CHEST/lungs/NORMAL", "CHEST/lungs/PNEUMONIA", "HAND/bones/train/broken", "HAND/bones/train/whole"):
        for number in range(3):
            save(root / folder / f"{number}.png", seed=(seed := seed + 1))
    save(root / "HAND/bones/test/broken/a.jpg", seed=90)
    save(root / "HAND/bones/test/whole/b.jpeg", seed=91)
    return root


def noise(seed, height=24, width=32):
    """A picture like no other: coarse random noise, which no turn or crop brings near that of another seed."""
    coarse = np.random.default_rng(seed).integers(20, 235, (6, 8), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def scan(by=None):
    job = Scan.create(by)
    run_scan(job, 1)
    job.refresh_from_db()
    return job


def lungs():
    return Dataset.objects.get(name="CHEST/lungs")


def spy_on_reads(monkeypatch):
    """The names of the files that the decoders are asked about from now on."""
    asked = []
    real = scanning.request

    def request(candidate):
        asked.append(candidate.relative)
        return real(candidate)

    monkeypatch.setattr(scanning, "request", request)
    return asked


def reasons(dataset):
    return {problem["path"]: problem["reason"] for problem in dataset.listed_problems}


def test_datasets_are_found_by_their_path_with_layout_classes_and_counts(root):
    job = scan()
    assert (job.state, job.images, job.message) == ("succeeded", 14, "2 datasets, 14 images")
    bones = Dataset.objects.get(name="HAND/bones")
    assert (lungs().layout, bones.layout) == ("class-folders", "split-folders")
    assert lungs().counts == {"NORMAL": 3, "PNEUMONIA": 3}
    assert lungs().classes == ["NORMAL", "PNEUMONIA"] and lungs().positive_class == "PNEUMONIA"
    assert bones.counts == {"broken": 4, "whole": 4}
    assert set(bones.images.filter(source_split="test").values_list("format", flat=True)) == {"JPEG"}
    assert (lungs().condition.slug, lungs().state, lungs().problems) == ("chest-lungs", "present", [])


def test_each_image_is_known_by_size_shape_and_pixels(root):
    scan()
    image = lungs().images.get(path="NORMAL/0.png")
    file = root / "CHEST/lungs/NORMAL/0.png"
    assert (image.size, image.mtime_ns) == (file.stat().st_size, file.stat().st_mtime_ns)
    assert (image.width, image.height, image.format) == (32, 24, "PNG")
    assert image.digest == imaging.read(file).digest


def test_files_that_cannot_be_read_are_listed_with_the_reason(root):
    normal = root / "CHEST/lungs/NORMAL"
    jpeg = encode(gradient(64, 64), "JPEG")
    save(normal / "text.jpg", b"Dear colleague,\nplease find attached\n" * 4)
    save(normal / "cut.jpg", jpeg[: len(jpeg) // 2])
    save(normal / "empty.png", b"")
    save(normal / "report.dcm", dicom(np.zeros((4, 4), np.uint16), PixelData=b"").split(b"\xe0\x7f\x10\x00")[0])
    scan()
    told = reasons(lungs())
    assert "a text file" in told["NORMAL/text.jpg"]
    assert "ends too early" in told["NORMAL/cut.jpg"]
    assert "empty" in told["NORMAL/empty.png"]
    assert "pixel" in told["NORMAL/report.dcm"].lower() or "picture" in told["NORMAL/report.dcm"]
    assert (lungs().unreadable_count, lungs().problems_count, lungs().images_count) == (4, 4, 6)
    assert set(told) == {f"NORMAL/{name}" for name in ("text.jpg", "cut.jpg", "empty.png", "report.dcm")}


def test_a_second_scan_reads_no_file_again(root, monkeypatch):
    scan()
    before = list(DatasetImage.objects.values())
    digest = lungs().digest
    asked = spy_on_reads(monkeypatch)
    assert scan().state == "succeeded"
    assert asked == []
    assert list(DatasetImage.objects.values()) == before
    assert lungs().digest == digest


def test_a_changed_file_is_read_again_and_changes_the_digest(root):
    scan()
    before = lungs()
    save(root / "CHEST/lungs/NORMAL/0.png", encode(gradient(48, 48, seed=77), "PNG"))
    scan()
    assert lungs().images.get(path="NORMAL/0.png").width == 48
    assert lungs().digest != before.digest
    assert lungs().images.count() == 6


def test_a_file_that_was_removed_or_added_is_gone_or_there_after_the_next_scan(root):
    scan()
    (root / "CHEST/lungs/NORMAL/0.png").unlink()
    save(root / "CHEST/lungs/PNEUMONIA/new.png", seed=50)
    scan()
    assert lungs().counts == {"NORMAL": 2, "PNEUMONIA": 4}
    paths = set(lungs().images.values_list("path", flat=True))
    assert "NORMAL/0.png" not in paths and "PNEUMONIA/new.png" in paths


def test_a_file_that_became_unreadable_is_no_image_any_more(root):
    scan()
    save(root / "CHEST/lungs/NORMAL/0.png", b"not an image at all")
    scan()
    assert (lungs().images_count, lungs().unreadable_count) == (5, 1)


def test_when_the_dataset_folder_is_not_there_nothing_changes_and_the_job_says_what_to_do(root):
    scan()
    before = list(DatasetImage.objects.values())
    shutil.move(root, root.with_name("elsewhere"))
    job = scan()
    assert (job.state, job.error) == ("failed", "The dataset folder is not there.")
    assert "DATASET_ROOT" in job.hint
    assert list(DatasetImage.objects.values()) == before
    assert set(Dataset.objects.values_list("state", flat=True)) == {"present"}


def test_a_dataset_whose_folder_is_gone_is_offline_and_keeps_its_rows(root):
    scan()
    shutil.move(root / "CHEST", root.with_name("elsewhere"))
    scan()
    assert (lungs().state, lungs().images.count()) == ("offline", 6)
    assert Dataset.objects.get(name="HAND/bones").state == "present"
    shutil.move(root.with_name("elsewhere"), root / "CHEST")
    scan()
    assert lungs().state == "present"


def test_a_scan_keeps_the_condition_that_a_user_chose(root):
    scan()
    condition = lungs().condition
    condition.name = "Pneumonia of children"
    condition.save()
    scan()
    assert lungs().condition.name == "Pneumonia of children"


def test_the_same_picture_under_two_labels_is_reported_in_any_file_format(root):
    picture = gradient(40, 40, seed=123)
    save(root / "CHEST/lungs/NORMAL/x.png", encode(picture, "PNG"))
    save(root / "CHEST/lungs/PNEUMONIA/y.dcm", dicom(picture, WindowCenter=128, WindowWidth=256))
    save(root / "CHEST/lungs/PNEUMONIA/z.png", encode(picture, "PNG"))
    scan()
    told = dict(lungs().findings.filter(code="label-conflict").values_list("image__path", "detail"))
    assert told == {
        "NORMAL/x.png": "The same pixels are labelled NORMAL here and differently in PNEUMONIA/y.dcm (PNEUMONIA) "
        "and 1 more.",
        "PNEUMONIA/y.dcm": "The same pixels are labelled PNEUMONIA here and differently in NORMAL/x.png (NORMAL).",
        "PNEUMONIA/z.png": "The same pixels are labelled PNEUMONIA here and differently in NORMAL/x.png (NORMAL).",
    }


def test_a_corrected_csv_relabels_without_reading_the_pixels_again(settings, monkeypatch):
    folder = settings.DATASET_ROOT / "knee"
    for number in range(4):
        save(folder / "images" / f"{number}.png", seed=number)
    (folder / "labels.csv").write_text("file,label\n0.png,no\n1.png,no\n2.png,yes\n3.png,yes\n")
    scan()
    asked = spy_on_reads(monkeypatch)
    (folder / "labels.csv").write_text("file,label\n0.png,no\n1.png,yes\n2.png,yes\n3.png,yes\n")
    scan()
    assert asked == []
    assert Dataset.objects.get().counts == {"no": 1, "yes": 3}


def test_a_corrected_patient_in_the_csv_is_taken_over(settings):
    folder = settings.DATASET_ROOT / "knee"
    for number in range(4):
        save(folder / "images" / f"{number}.png", seed=number)
    rows = "0.png,no,p1\n1.png,no,p2\n2.png,yes,p3\n3.png,yes,"
    (folder / "labels.csv").write_text(f"file,label,patient\n{rows}p4\n")
    scan()
    assert len(set(DatasetImage.objects.values_list("patient_key", flat=True))) == 4
    (folder / "labels.csv").write_text(f"file,label,patient\n{rows}p3\n")
    scan()
    keys = dict(DatasetImage.objects.values_list("path", "patient_key"))
    assert keys["images/3.png"] == keys["images/2.png"] != keys["images/1.png"]


def test_another_secret_key_does_not_make_two_patients_of_one(root, settings):
    """An image that came before the change and one that came after it must still be on the same side."""
    films = root / "CHEST/lungs/NORMAL"
    save(films / "first.dcm", dicom(gradient(seed=500), PatientID="HOSP-1"))
    scan()
    before = lungs().images.get(path="NORMAL/first.dcm").patient_key
    settings.SECRET_KEY = "another"
    save(films / "second.dcm", dicom(gradient(seed=501), PatientID="HOSP-1"))
    scan()
    first, second = lungs().images.filter(format="DICOM").values_list("patient_key", flat=True)
    assert first == second != before


def test_a_new_version_of_the_pixel_code_reads_every_file_again(root, monkeypatch):
    scan()
    asked = spy_on_reads(monkeypatch)
    monkeypatch.setitem(imaging.PIPELINE, "version", 1000)
    scan()
    assert len(asked) == len(set(asked)) == 14
    scan()
    assert len(asked) == 14


def test_a_scan_that_was_to_read_everything_again_and_was_cancelled_leaves_that_to_the_next(
    root, settings, alice, monkeypatch
):
    scan()
    settings.SECRET_KEY = "another"
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    job = Scan.create(alice)
    job.listener = lambda job: Scan.objects.get(pk=job.pk).request_cancel(alice)
    run_scan(job, 1)
    assert job.state == "cancelled"
    for dataset in Dataset.objects.all():
        preparation = Preparation.create(dataset, alice)
        run_preparation(preparation, 1)
        assert "The last scan of this dataset did not finish" in preparation.error
    asked = spy_on_reads(monkeypatch)
    scan()
    assert len(asked) >= 13, "all but what had been read when it was cancelled"
    assert {dataset.read_with for dataset in Dataset.objects.all()} == {cataloguing.reading()}
    assert all(dataset.digest for dataset in Dataset.objects.all())


def test_names_that_the_tables_cannot_hold_are_reported_and_left_out(root):
    long = "x" * 190
    films = root / "CHEST/lungs"
    save(films / ("y" * 201) / "0.png", seed=400)
    save(films / "NORMAL" / long / long / long / long / "1.png", seed=401)
    for label in ("well", "ill"):
        save(root / long / long / long / label / "2.png", seed=402)
    job = scan()
    assert job.state == "succeeded"
    assert set(Dataset.objects.values_list("name", flat=True)) == {"CHEST/lungs", "HAND/bones"}
    assert (lungs().classes, lungs().images_count) == (["NORMAL", "PNEUMONIA"], 6)
    told = sorted(reasons(lungs()).values())
    assert "The name of this class folder has 201 characters, at most 200 can be used; its 1 image" in told[0]
    assert "The path has 776 characters, at most 700 can be used" in told[1]
    assert max(map(len, reasons(lungs()))) <= 120
    (problem,) = job.problems
    assert "The path to the images below this folder has more than 400 characters" in problem["reason"]


def test_names_just_short_enough_are_kept(root):
    dataset = root / ("d" * 199) / ("e" * 200)
    path = f"{'c' * 200}/patient1{'f' * 232}/study1{'g' * 234}/{'h' * 13}.png"
    assert len(path) == 700
    save(dataset / path, seed=400)
    save(dataset / "other" / "0.png", seed=401)
    scan()
    kept = Dataset.objects.get(name=f"{'d' * 199}/{'e' * 200}")
    assert kept.images.filter(path=path, class_name="c" * 200).exists()
    assert kept.problems == []


def test_a_patient_folder_is_called_a_folder_and_not_a_csv_file(root):
    save(root / "CHEST/lungs/NORMAL/patient12/0.png", seed=410)
    scan()
    scan()
    sources = dict(lungs().images.values_list("path", "patient_source"))
    assert (sources["NORMAL/patient12/0.png"], sources["NORMAL/0.png"]) == ("folder", "")


def test_a_csv_file_that_came_later_corrects_the_patient_of_the_folder(settings):
    folder = settings.DATASET_ROOT / "knee"
    for number in range(4):
        save(folder / "images" / f"patient{number}" / f"{number}.png", seed=number)
    rows = [f"{number}.png,{'yes' if number % 2 else 'no'}" for number in range(4)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    scan()
    assert set(DatasetImage.objects.values_list("patient_source", flat=True)) == {"folder"}
    (folder / "labels.csv").write_text("\n".join(["file,label,patient", *(f"{row},same" for row in rows)]))
    scan()
    assert DatasetImage.objects.values_list("patient_source", "patient_key").distinct().get()[0] == "csv"


def test_two_scans_of_one_folder_cannot_run_at_once(root):
    first = Scan.create(None)
    with pytest.raises(JobError, match=f"{first} is already under way") as refusal:
        Scan.create(None)
    assert "Wait until it has finished, or cancel it" in refusal.value.hint
    first.request_cancel(None)
    assert Scan.create(None).state == "queued"


def test_of_two_clicks_at_once_the_second_is_told_so_too(root, monkeypatch):
    """Both looked before either wrote: the constraint of the table decides."""
    Scan.create(None)
    monkeypatch.setattr(type(Scan.objects.all()), "active", lambda self: self.none())
    with pytest.raises(JobError, match=r"Another scan has just been started\."):
        Scan.create(None)
    assert Scan.objects.count() == AuditEntry.objects.count() == 1


def test_a_cancelled_scan_stops_and_what_was_known_stays(root, alice, monkeypatch):
    scan()
    save(root / "CHEST/lungs/NORMAL/new.png", seed=60)
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    job = Scan.create(alice)
    job.listener = lambda job: Scan.objects.get(pk=job.pk).request_cancel(alice)
    run_scan(job, 1)
    job.refresh_from_db()
    assert (job.state, job.message) == ("cancelled", "Cancelled on request")
    assert (lungs().images.count(), lungs().state) == (6, "present")


def reports(monkeypatch):
    """(progress, message) of every report of a scan."""
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    told = []
    job = Scan.create(None)
    job.listener = lambda job: told.append((job.progress, job.message))
    run_scan(job, 1)
    return told


def test_progress_counts_the_files_of_all_datasets_and_names_none(root, monkeypatch):
    """Everybody sees a scan; what another team's datasets are called is not everybody's business."""
    told = reports(monkeypatch)
    reading = [report for report in told if report[1].endswith("files read")]
    assert reading == [(number / 14, f"{number} of 14 files read") for number in range(1, 15)]
    assert told[-1] == (1.0, "2 datasets, 14 images")
    shares = [share for share, _ in told]
    assert shares == sorted(shares)


def test_progress_never_runs_backwards_when_files_come_or_have_no_row_in_the_csv(root, monkeypatch):
    for number in range(4):
        save(root / "ANKLE/study/images" / f"{number}.png", seed=200 + number)
    (root / "ANKLE/study/labels.csv").write_text("file,label\n0.png,no\n1.png,yes\n")
    real = layouts.find_in

    def find_then_let_a_file_come(*args):
        found = real(*args)
        save(root / "CHEST/lungs/NORMAL/late.png", seed=300)
        return found

    monkeypatch.setattr(layouts, "find_in", find_then_let_a_file_come)
    told = reports(monkeypatch)
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert [text for _, text in told if text.endswith("files read")][-1] == "18 of 18 files read"
    assert lungs().images_count == 7


def test_an_empty_dataset_folder_is_a_success_with_nothing_found(settings):
    job = scan()
    assert (job.state, job.message) == ("succeeded", "0 datasets, 0 images")


def test_folders_without_anything_usable_are_named(root):
    save(root / "FOOT/notes/readme.txt", b"no images here")
    assert any("FOOT" in problem["path"] for problem in scan().problems)


def test_a_scan_is_in_the_audit_log_from_start_to_end(root, alice):
    scan(alice)
    actions = AuditEntry.objects.order_by("seq").values_list("action", "actor_name", "outcome")
    assert list(actions) == [("dataset.scan", "alice", "success"), ("scan.succeeded", "alice", "success")]


def test_the_command_prints_one_json_object_and_nothing_else(root, capfd):
    save(root / "CHEST/lungs/NORMAL/text.jpg", b"hello, this is text")
    out = StringIO()
    call_command("scan_dataset", json=True, stdout=out, stderr=StringIO())
    answer = json.loads(out.getvalue())
    assert set(answer) >= {"datasets", "seconds"}
    chest = next(row for row in answer["datasets"] if row["name"] == "CHEST/lungs")
    assert (chest["condition"], chest["layout"], chest["images"]) == ("chest-lungs", "class-folders", 6)
    assert chest["classes"] == {"NORMAL": 3, "PNEUMONIA": 3}
    assert [problem["path"] for problem in chest["problems"]] == ["NORMAL/text.jpg"]
    assert capfd.readouterr().out == ""


def test_the_command_fails_when_the_folder_is_not_there(settings, tmp_path):
    settings.DATASET_ROOT = tmp_path / "nowhere"
    with pytest.raises(CommandError, match="The dataset folder is not there"):
        call_command("scan_dataset", stdout=StringIO(), stderr=StringIO())
