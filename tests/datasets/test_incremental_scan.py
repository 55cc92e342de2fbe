"""A later scan looks only at what changed, forgets nothing that may come back, and goes on where another stopped."""

import json
import os
import re
import shutil
import signal
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from datasets import cataloguing, decoding, layouts
from datasets.models import (
    Dataset,
    DatasetImage,
    Decision,
    FileProblem,
    Preparation,
    Scan,
    ScannedFolder,
    patient_key,
    site_pseudonym,
)
from datasets.tasks import run_preparation, run_scan
from tests.datasets.files import dicom, encode, gradient, save
from tests.datasets.test_scan import noise, scan, spy_on_reads
from xrayplatform.audit import AuditEntry
from xrayplatform.conditions import Condition
from xrayplatform.jobs import JobError

pytestmark = pytest.mark.django_db


@pytest.fixture
def folder(settings):
    return settings.DATASET_ROOT / "CHEST" / "lungs"


def fill(folder, count=12, name="{}.png"):
    """`count` different pictures in each of two classes."""
    for offset, label in enumerate(("NORMAL", "PNEUMONIA")):
        for number in range(count):
            picture = noise(10_000 * offset + number, 12, 16)
            save(folder / label / name.format(number), encode(picture, "PNG"))


def add_rows(dataset, count, folder):
    """Rows of images that an earlier scan would have found, without files; of one picture each."""
    DatasetImage.objects.bulk_create(
        DatasetImage(
            dataset=dataset, path=f"{folder}/{number}.png", folder=folder, size=1, mtime_ns=1, width=9, height=9,
            digest=f"{number:064x}", class_name="NORMAL", format="PNG",
        )
        for number in range(count)
    )  # fmt: skip


def only():
    return Dataset.objects.get()


def answer_first(monkeypatch, answers):
    """Let the decoders give these answers, once each, for files of these names."""
    real = decoding.Decoders.run

    def run(self, requests):
        for key, answer in real(self, requests):
            yield key, answers.pop(Path(key.relative).name, answer)

    monkeypatch.setattr(decoding.Decoders, "run", run)


# -- Unchanged


def queries_of_a_scan():
    with CaptureQueriesContext(connection) as queries:
        assert scan().state == "succeeded"
    return [query["sql"] for query in queries]


def test_an_unchanged_dataset_asks_nothing_of_decoders_and_images(folder, monkeypatch):
    fill(folder)
    scan()
    asked = spy_on_reads(monkeypatch)
    queries = queries_of_a_scan()
    assert asked == []
    for table in (DatasetImage, FileProblem, ScannedFolder):
        assert not [sql for sql in queries if table._meta.db_table in sql]


def test_a_large_unchanged_dataset_costs_as_many_queries_as_a_small_one(folder):
    fill(folder, 15)
    scan()
    few = len(queries_of_a_scan())
    fill(folder, 150)
    scan()
    assert only().images_count == 300
    assert len(queries_of_a_scan()) == few


def test_files_beside_the_images_are_told_although_no_image_changed(folder, monkeypatch):
    fill(folder)
    scan()
    save(folder / "NORMAL" / "letter.txt", b"Dear colleague")
    asked = spy_on_reads(monkeypatch)
    scan()
    assert asked == []
    (problem,) = only().listed_problems
    assert problem["path"] == "NORMAL" and "of other kinds" in problem["reason"]


# -- Changed


def test_of_a_changed_folder_only_the_changed_file_is_read_and_of_others_no_row(folder, monkeypatch):
    fill(folder)
    scan()
    save(folder / "NORMAL/3.png", encode(noise(555), "PNG"))
    asked = spy_on_reads(monkeypatch)
    with CaptureQueriesContext(connection) as queries:
        scan()
    assert asked == ["NORMAL/3.png"]
    loaded = [query["sql"] for query in queries if " IN (" in query["sql"] and "/4.png" in query["sql"]]
    assert any("NORMAL/4.png" in sql for sql in loaded)
    assert not any("PNEUMONIA/4.png" in sql for sql in loaded)


def test_a_file_of_the_same_time_and_another_size_is_read_and_one_of_the_same_size_and_another_time(
    folder, monkeypatch
):
    fill(folder)
    scan()
    longer, touched = folder / "NORMAL/1.png", folder / "NORMAL/2.png"
    time = longer.stat().st_mtime_ns
    longer.write_bytes(longer.read_bytes() + b"\0")
    os.utime(longer, ns=(time, time))
    os.utime(touched, ns=(time, touched.stat().st_mtime_ns + 1))
    asked = spy_on_reads(monkeypatch)
    scan()
    assert sorted(asked) == ["NORMAL/1.png", "NORMAL/2.png"]


def test_a_renamed_class_folder_is_another_class_and_leaves_no_rows_behind(folder, monkeypatch):
    fill(folder, 60)
    scan()
    (folder / "NORMAL").rename(folder / "HEALTHY")
    asked = spy_on_reads(monkeypatch)
    scan()
    dataset = only()
    assert {name.split("/")[0] for name in asked} == {"HEALTHY"}
    assert dataset.counts == {"HEALTHY": 60, "PNEUMONIA": 60}
    assert (dataset.state, dataset.missing_count, dataset.images.count()) == ("present", 0, 120)
    assert set(dataset.folders.values_list("path", flat=True)) == {"HEALTHY", "PNEUMONIA"}
    assert dataset.vanished == [], "they were moved"


def test_a_corrected_csv_relabels_without_reading_and_its_missing_rows_take_images_out(settings, monkeypatch):
    folder = settings.DATASET_ROOT / "KNEE" / "study"
    for number in range(6):
        save(folder / "images" / f"{number}.png", encode(noise(number), "PNG"))
    save(folder / "images" / "broken.png", b"no picture")
    rows = [f"{number}.png,{'yes' if number % 2 else 'no'}" for number in range(6)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows, "broken.png,no"]))
    scan()
    assert (only().counts, only().unreadable_count) == ({"no": 3, "yes": 3}, 1)
    before = only().digest
    (folder / "labels.csv").write_text("\n".join(["file,label", "0.png,yes", *rows[1:5]]))
    asked = spy_on_reads(monkeypatch)
    scan()
    assert asked == []
    assert only().counts == {"no": 2, "yes": 3}
    assert only().unreadable_count == 0, "the broken file is no part of the dataset any more"
    assert only().digest != before


def test_a_decision_outlives_a_scan_that_did_not_see_the_file(folder):
    fill(folder)
    scan()
    only().images.get(path="NORMAL/3.png").decide("by-hand", "exclude", "a lateral view", by=None)
    file = folder / "NORMAL/3.png"
    content = file.read_bytes()
    file.unlink()
    scan()
    assert not only().images.filter(path="NORMAL/3.png").exists()
    save(file, content)
    scan()
    assert only().images.with_exclusion().get(path="NORMAL/3.png").excluded
    save(file, encode(noise(777), "PNG"))
    scan()
    assert not only().images.with_exclusion().get(path="NORMAL/3.png").excluded, "judged were other pixels"
    assert Decision.objects.count() == 1


def test_what_a_model_thought_of_the_old_pixels_is_forgotten_with_them(folder):
    fill(folder)
    scan()
    rows = [(image.path, image.digest, 9.0, "high loss") for image in only().images.all()[:2]]
    only().write_doubts(rows)
    save(folder / rows[0][0], encode(noise(555), "PNG"))
    scan()
    doubted = only().findings.filter(code="check-label").values_list("image__path", flat=True)
    assert list(doubted) == [rows[1][0]]


def test_names_of_every_script_are_found_again_and_give_the_digest_that_their_bytes_give(folder, monkeypatch):
    names = [
        "äpfel.png",
        "Zebra.png",
        "zebra.png",
        "ñandú.png",
        "рентген.png",
        "胸部.png",
        "_1.png",
        "-1.png",
        "Ö 2.png",
    ]
    for offset, label in enumerate(("NORMAL", "Öl")):
        for number, name in enumerate(names):
            save(folder / label / name, encode(noise(100 * offset + number), "PNG"))
    scan()
    paths = list(only().images.in_byte_order().values_list("path", flat=True))
    assert paths == sorted(paths, key=lambda path: path.encode())
    assert len(paths) == 2 * len(names)
    asked = spy_on_reads(monkeypatch)
    save(folder / "Öl" / "neu.png", encode(noise(999), "PNG"))
    scan()
    assert asked == ["Öl/neu.png"]


# -- Files that cannot be read now


def test_a_file_that_changed_while_it_was_read_is_looked_at_again_by_the_next_scan(folder, monkeypatch):
    fill(folder)
    changing = {"error": "changing", "message": "The file changes while it is read."}
    answer_first(monkeypatch, {"0.png": changing})
    scan()
    assert only().unreadable_count == 1
    assert [problem["reason"] for problem in only().listed_problems] == [changing["message"]]
    asked = spy_on_reads(monkeypatch)
    scan()
    assert len(asked) == 1
    assert (only().unreadable_count, only().images_count) == (0, 24)
    scan()
    assert len(asked) == 1


@pytest.mark.parametrize("code", ["unreadable", "timeout", "decoder-crashed"])
def test_what_may_be_over_is_tried_again_although_the_file_looks_the_same(folder, monkeypatch, code):
    fill(folder)
    answer_first(monkeypatch, {"3.png": {"error": code, "message": "The file cannot be opened: Permission denied."}})
    scan()
    (problem,) = FileProblem.objects.all()
    assert problem.code == code
    scan()
    assert (FileProblem.objects.count(), only().images_count) == (0, 24)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold back the superuser")
def test_a_file_that_may_not_be_opened_is_read_once_it_may(folder):
    fill(folder)
    (folder / "NORMAL/3.png").chmod(0)
    scan()
    assert "Permission denied" in only().listed_problems[0]["reason"]
    (folder / "NORMAL/3.png").chmod(0o644)
    scan()
    assert only().images_count == 24


def test_a_damaged_file_is_not_read_again_before_it_changes(folder, monkeypatch):
    fill(folder)
    save(folder / "NORMAL/bad.png", b"no picture")
    scan()
    save(folder / "NORMAL/new.png", encode(noise(900), "PNG"))
    asked = spy_on_reads(monkeypatch)
    scan()
    assert asked == ["NORMAL/new.png"]
    save(folder / "NORMAL/bad.png", encode(noise(901), "PNG"))
    scan()
    assert asked[1:] == ["NORMAL/bad.png"]
    assert (only().unreadable_count, only().images_count) == (0, 26)


def test_a_file_that_waits_for_permission_does_not_have_all_images_judged_again(folder, monkeypatch):
    """It keeps the dataset from being unchanged, so that it is tried again; judging a million images is not free."""
    fill(folder)
    denied = {"error": "unreadable", "message": "The file cannot be opened: Permission denied."}
    answer_first(monkeypatch, {"denied.png": dict(denied)})
    save(folder / "NORMAL/denied.png", encode(noise(900), "PNG"))
    scan()
    judged = []
    monkeypatch.setattr(cataloguing.findings, "refresh", lambda dataset, say: judged.append(dataset))
    answer_first(monkeypatch, {"denied.png": dict(denied)})
    asked = spy_on_reads(monkeypatch)
    scan()
    assert (asked, judged) == (["NORMAL/denied.png"], [])
    scan()
    assert len(judged) == 1, "now it could be read"


def test_a_decoder_that_is_ended_from_outside_costs_no_file(folder, monkeypatch):
    """As when the machine runs out of memory: what was being read is read by another one."""
    fill(folder, 60)
    decoders = decoding.shared()
    decoders.ask({"op": "examine", "path": str(folder / "NORMAL/0.png")})
    real = decoding._Child.send
    ended = []

    def send(child, requests):
        if len(requests) > 1 and not ended:
            ended.append(child.process.pid)
            os.kill(child.process.pid, signal.SIGKILL)
        real(child, requests)

    monkeypatch.setattr(decoding._Child, "send", send)
    assert scan().state == "succeeded"
    assert len(ended) == 1
    assert (FileProblem.objects.count(), only().images_count) == (0, 120)


def test_a_file_that_ends_each_decoder_is_the_only_one_left_out_and_tried_again(folder, monkeypatch):
    fill(folder, 30)
    real = decoding._Child.send

    def send(child, requests):
        if any(request["path"].endswith("NORMAL/7.png") for _, request in requests):
            os.kill(child.process.pid, signal.SIGKILL)
        real(child, requests)

    with monkeypatch.context() as patch:
        patch.setattr(decoding._Child, "send", send)
        assert scan().state == "succeeded"
    (problem,) = FileProblem.objects.all()
    assert (problem.path, problem.code, only().images_count) == ("NORMAL/7.png", "decoder-crashed", 59)
    scan()
    assert (FileProblem.objects.count(), only().images_count) == (0, 60)


# -- Gone


def test_a_removed_folder_with_most_images_is_missing_and_nothing_is_forgotten(folder):
    fill(folder, 20)
    scan()
    add_rows(only(), 150, "NORMAL/archive")
    save(folder / "PNEUMONIA/new.png", encode(noise(500), "PNG"))
    scan()
    dataset = only()
    assert (dataset.state, dataset.missing_count, dataset.images.count()) == ("offline", 150, 191)
    with pytest.raises(JobError, match="was not there at the last scan"):
        Preparation.create(dataset, None)
    scan()
    assert (only().missing_count, only().images.count()) == (150, 191)


def test_the_loss_is_forgotten_once_a_person_accepts_it(folder, alice):
    fill(folder, 20)
    scan()
    add_rows(only(), 150, "NORMAL/archive")
    save(folder / "PNEUMONIA/new.png", encode(noise(500), "PNG"))
    scan()
    only().accept_missing(by=alice)
    scan()
    dataset = only()
    assert (dataset.state, dataset.missing_count, dataset.images.count()) == ("present", 0, 41)
    assert not dataset.missing_accepted
    assert AuditEntry.objects.get(action="dataset.accept_missing").before == {"missing": 150}


def test_accepting_a_loss_accepts_none_that_comes_later(folder, alice):
    """Between the click and the next scan the whole disk may have been unmounted."""
    fill(folder, 20)
    scan()
    add_rows(only(), 150, "NORMAL/archive")
    save(folder / "PNEUMONIA/new.png", encode(noise(500), "PNG"))
    scan()
    only().accept_missing(by=alice)
    shutil.rmtree(folder / "NORMAL")
    (folder / "NORMAL").mkdir()
    save(folder / "NORMAL/0.png", encode(noise(501), "PNG"))
    scan()
    dataset = only()
    assert (dataset.state, dataset.missing_count, dataset.missing_accepted) == ("offline", 169, False)
    assert dataset.images.count() == 191


def test_missing_images_that_come_back_need_no_reading(folder, settings, monkeypatch):
    fill(folder, 60)
    away = settings.DATASET_ROOT.with_name("away")
    for number in range(60, 200):
        save(folder / "NORMAL" / f"{number}.png", encode(noise(20_000 + number, 12, 16), "PNG"))
    scan()
    shutil.move(folder / "NORMAL", away)
    save(folder / "NORMAL/1.png", encode(noise(600), "PNG"))
    scan()
    assert (only().state, only().missing_count) == ("offline", 199)
    shutil.rmtree(folder / "NORMAL")
    shutil.move(away, folder / "NORMAL")
    asked = spy_on_reads(monkeypatch)
    scan()
    assert asked == ["NORMAL/1.png"]
    assert (only().state, only().images_count, only().missing_count) == ("present", 260, 0)


def test_a_folder_that_is_as_it_was_before_an_unfinished_scan_is_not_taken_for_unchanged(folder, monkeypatch, alice):
    """As when a backup is restored with its times: in between, a scan had read other pixels."""
    fill(folder, 20)
    scan()
    right = dict(only().images.values_list("path", "digest"))
    backup = folder.parent / "backup"
    shutil.copytree(folder / "NORMAL", backup, copy_function=shutil.copy2)
    for number in range(20):
        save(folder / f"NORMAL/{number}.png", encode(noise(700 + number), "PNG"))
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    cancel_after(30, alice)
    assert dict(only().images.values_list("path", "digest")) != right
    shutil.rmtree(folder / "NORMAL")
    backup.rename(folder / "NORMAL")
    scan()
    assert dict(only().images.values_list("path", "digest")) == right


def test_a_small_loss_is_a_removal(folder):
    fill(folder, 60)
    scan()
    for number in range(59):
        (folder / f"NORMAL/{number}.png").unlink()
    scan()
    assert (only().state, only().images.count()) == ("present", 61)


@pytest.fixture
def three_classes(folder):
    """60, 60 and 20 images: too few of any class for its loss to be taken for a folder that is not mounted."""
    fill(folder, 60)
    for number in range(20):
        save(folder / f"COVID/{number}.png", encode(noise(30_000 + number, 12, 16), "PNG"))
    scan()
    return folder


COVID = {"class": "COVID", "folder": "COVID", "images": 20}


def test_a_class_folder_that_is_gone_is_told_with_its_class_and_number_until_it_is_back(three_classes, settings):
    away = settings.DATASET_ROOT.with_name("away")
    shutil.move(three_classes / "COVID", away)
    for _ in range(2):
        scan()
        dataset = only()
        assert (dataset.state, dataset.classes, dataset.images_count) == ("present", ["NORMAL", "PNEUMONIA"], 120)
        assert dataset.vanished == [COVID]
        assert dataset.problems_count == len(dataset.listed_problems) == 1
        assert dataset.listed_problems[0]["path"] == "COVID"
        assert "The class COVID lost 20 images" in dataset.listed_problems[0]["reason"]
    save(three_classes / "NORMAL/new.png", encode(noise(500), "PNG"))
    scan()
    assert only().vanished == [COVID]
    shutil.move(away, three_classes / "COVID")
    scan()
    assert (only().vanished, only().listed_problems, only().images_count) == ([], [], 141)


def test_a_loss_of_a_class_is_in_the_json_of_the_scan_and_on_the_page_where_it_can_be_accepted(
    three_classes, client, alice, team
):
    dataset = only()
    dataset.condition.team = team
    dataset.condition.save()
    shutil.rmtree(three_classes / "COVID")
    out = StringIO()
    call_command("scan_dataset", json=True, stdout=out)
    told = json.loads(out.getvalue())["datasets"][0]
    assert told["vanished"] == [COVID]
    assert [problem["path"] for problem in told["problems"]] == ["COVID"]
    client.force_login(alice)
    assert "20 of class COVID" in client.get(dataset.get_absolute_url()).content.decode()
    assert client.get(reverse("api:dataset-detail", args=[dataset.pk])).json()["vanished"] == [COVID]
    client.post(reverse("datasets:missing-accept", args=[dataset.pk]))
    assert (only().vanished, only().problems_count, only().missing_accepted) == ([], 0, False)
    assert AuditEntry.objects.get(action="dataset.accept_missing").before == {"missing": 0, "vanished": [COVID]}
    assert "of class COVID" not in client.get(dataset.get_absolute_url()).content.decode()


def test_a_part_of_a_class_that_lay_in_one_folder_is_told_and_single_files_are_not(folder):
    for part in ("train", "test"):
        fill(folder / part, 6, name=part + "{}.png")
    scan()
    (folder / "train/NORMAL/train0.png").unlink()
    scan()
    assert only().vanished == []
    shutil.rmtree(folder / "test/NORMAL")
    scan()
    assert only().vanished == [{"class": "NORMAL", "folder": "test/NORMAL", "images": 6}]


def test_images_of_a_vanished_folder_that_were_moved_are_no_loss(three_classes):
    for number in range(5):
        (three_classes / f"COVID/{number}.png").rename(three_classes / f"NORMAL/was covid {number}.png")
    shutil.rmtree(three_classes / "COVID")
    scan()
    assert only().vanished == [COVID | {"images": 15}]


def test_a_loss_that_a_person_accepted_is_not_told_again(folder, alice):
    fill(folder, 20)
    scan()
    add_rows(only(), 150, "NORMAL/archive")
    save(folder / "PNEUMONIA/new.png", encode(noise(500), "PNG"))
    scan()
    only().accept_missing(by=alice)
    scan()
    assert (only().images.count(), only().vanished) == (41, [])


def test_a_loss_is_counted_once_although_the_scan_that_forgot_it_was_cancelled(three_classes, monkeypatch, alice):
    shutil.rmtree(three_classes / "COVID")
    monkeypatch.setattr(cataloguing, "BATCH", 5)
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    cancel_at("5 of 20 images that are gone forgotten", alice)
    assert only().images.filter(class_name="COVID").count() < 20
    scan()
    assert only().vanished == [COVID]


def test_a_folder_that_may_not_be_entered_any_more_does_not_end_the_scan(folder, monkeypatch):
    """`stat` of what lies in it is refused then, and does not just say that there is nothing."""
    fill(folder)
    scan()
    add_rows(only(), 150, "PNEUMONIA/archive")
    save(folder / "NORMAL/new.png", encode(noise(500), "PNG"))
    real_lstat, real_stat = Path.lstat, Path.stat

    def refusing(real):
        def stat(self, **options):
            if "archive" in self.parts:
                raise PermissionError(13, "Permission denied", str(self))
            return real(self, **options)

        return stat

    monkeypatch.setattr(Path, "lstat", refusing(real_lstat))
    monkeypatch.setattr(Path, "stat", refusing(real_stat))
    assert scan().state == "succeeded"
    assert (only().state, only().missing_count) == ("offline", 150)


def test_a_root_that_vanished_fails_the_scan_and_changes_nothing(folder, settings):
    fill(folder)
    scan()
    before = list(Dataset.objects.values()), list(DatasetImage.objects.values())
    shutil.move(settings.DATASET_ROOT, settings.DATASET_ROOT.with_name("elsewhere"))
    job = scan()
    assert (job.state, job.error) == ("failed", "The dataset folder is not there.")
    assert (list(Dataset.objects.values()), list(DatasetImage.objects.values())) == before


def test_an_emptied_root_makes_its_datasets_offline_and_forgets_nothing(folder, settings, monkeypatch):
    """A mount point without its disk is an empty folder."""
    fill(folder)
    scan()
    shutil.move(folder.parent, settings.DATASET_ROOT.with_name("disk"))
    job = scan()
    assert (job.state, job.images) == ("succeeded", 0)
    assert (only().state, only().images.count()) == ("offline", 24)
    shutil.move(settings.DATASET_ROOT.with_name("disk"), folder.parent)
    asked = spy_on_reads(monkeypatch)
    scan()
    assert asked == []
    assert only().state == "present"


def messages_of_a_scan(monkeypatch):
    """All that a scan reports, and the statements that it deletes with."""
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    job, messages = Scan.create(None), []
    job.listener = lambda job: messages.append(job.message)
    with CaptureQueriesContext(connection) as queries:
        run_scan(job, 1)
    return messages, [query["sql"] for query in queries if query["sql"].startswith("DELETE")]


def test_what_is_gone_is_forgotten_a_few_at_a_time_with_a_word_in_between(folder, monkeypatch):
    """A lease that nobody renews for two minutes is lost, and a long transaction keeps others waiting."""
    fill(folder, 20)
    for number in range(7):
        save(folder / f"NORMAL/bad{number}.png", b"no picture")
        save(folder / f"PNEUMONIA/more/bad{number}.png", b"no picture")
    save(folder / "PNEUMONIA/more/good.png", encode(noise(900), "PNG"))
    scan()
    assert only().unreadable_count == 14
    shutil.rmtree(folder / "PNEUMONIA/more")
    for number in range(7):
        (folder / f"NORMAL/{number}.png").unlink()
        (folder / f"NORMAL/bad{number}.png").unlink()
    monkeypatch.setattr(cataloguing, "BATCH", 3)
    messages, deletions = messages_of_a_scan(monkeypatch)
    assert (only().images_count, only().unreadable_count) == (33, 0)
    tables = (DatasetImage._meta.db_table, FileProblem._meta.db_table)
    listed = [sql.count(",") + 1 for sql in deletions if any(f'FROM "{table}"' in sql for table in tables)]
    assert listed and max(listed) <= 3
    said = ("3 of 8 images that are gone forgotten", "Forgetting what was said about removed files")
    assert set(messages) >= {cataloguing.LOOKING_FOR_GONE, "Summing up the images", "Looking for datasets", *said}


def test_a_scan_can_be_cancelled_while_it_forgets_and_the_next_one_forgets_the_rest(folder, monkeypatch, alice):
    fill(folder, 20)
    scan()
    for number in range(8):
        (folder / f"NORMAL/{number}.png").unlink()
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    monkeypatch.setattr(cataloguing, "BATCH", 3)
    cancel_at("gone forgotten", alice)
    assert 32 < only().images.count() < 40
    scan()
    assert only().images_count == only().images.count() == 32


# -- Stopped half-way


def cancel_at(message, by):
    """A scan that is cancelled at its first report with these words."""
    job = Scan.create(by)

    def listener(job):
        if message in job.message:
            Scan.objects.get(pk=job.pk).request_cancel(by)

    job.listener = listener
    run_scan(job, 1)
    job.refresh_from_db()
    assert job.state == "cancelled"


def cancel_after(count, by):
    """A scan that is cancelled when that many files have been looked at."""
    job = Scan.create(by)

    def listener(job):
        if " of " in job.message and int(job.message.split(" of ")[0]) >= count:
            Scan.objects.get(pk=job.pk).request_cancel(by)

    job.listener = listener
    run_scan(job, 1)
    job.refresh_from_db()
    assert job.state == "cancelled"


def test_after_a_cancelled_scan_the_next_one_reads_only_what_is_left(folder, monkeypatch, alice):
    fill(folder, 30)
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    cancel_after(25, alice)
    known = only().images.count()
    assert known >= 25
    assert (only().digest, only().signature) == ("", "")
    asked = spy_on_reads(monkeypatch)
    scan()
    assert len(asked) == len(set(asked)) == 60 - known
    assert only().images_count == 60


def test_whoever_lost_the_lease_writes_nothing_more(folder, monkeypatch):
    fill(folder, 30)
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    job = Scan.create(None)

    def listener(job):
        if job.message.startswith("25 of"):
            Scan.objects.filter(pk=job.pk).update(state="failed")

    job.listener = listener
    with pytest.raises(Exception, match="no longer ours"):
        run_scan(job, 1)
    assert not DatasetImage.objects.exists()


def test_a_dataset_that_was_scanned_half_way_is_not_prepared(folder, monkeypatch, alice):
    fill(folder, 30)
    scan()
    for number in range(30):
        os.utime(folder / "NORMAL" / f"{number}.png", ns=(1, 1))
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    cancel_after(20, alice)
    job = Preparation.create(only(), None)
    run_preparation(job, 1)
    assert job.error.startswith("The last scan of this dataset did not finish")


def test_another_secret_key_has_everything_read_anew_even_when_that_is_interrupted(
    folder, settings, monkeypatch, alice
):
    fill(folder, 20)
    scan()
    settings.SECRET_KEY = "another"
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    asked = spy_on_reads(monkeypatch)
    cancel_after(15, alice)
    done = only().images.exclude(mtime_ns=cataloguing.UNKNOWN_TIME).count()
    assert 0 < done < 40
    asked.clear()
    scan()
    assert len(asked) == 40 - done
    asked.clear()
    scan()
    assert asked == []


def test_a_change_of_key_that_stops_before_the_rows_are_marked_is_begun_again(folder, settings, monkeypatch):
    fill(folder)
    scan()
    settings.SECRET_KEY = "another"
    queryset = type(DatasetImage.objects.all())

    def killed(self, **fields):
        raise SystemExit

    monkeypatch.setattr(queryset, "update", killed)
    with pytest.raises(SystemExit):
        scan()
    monkeypatch.undo()
    settings.SECRET_KEY = "another"
    asked = spy_on_reads(monkeypatch)
    scan()
    assert len(asked) == 24


# -- People and scans at the same time


def choose_during_the_scan(dataset, choose):
    """Run a scan in which somebody makes a choice while it reads."""
    job = Scan.create(None)
    done = []

    def listener(job):
        if not done and " of " in job.message:
            done.append(choose(Dataset.objects.get(pk=dataset.pk)))

    job.listener = listener
    run_scan(job, 1)
    assert done and Scan.objects.get(pk=job.pk).state == "succeeded"


def test_what_people_choose_while_a_scan_runs_is_kept(folder, monkeypatch, alice, team):
    fill(folder)
    scan()
    save(folder / "NORMAL/new.png", encode(noise(500), "PNG"))
    condition = Condition.objects.create(slug="other", name="Other", team=team)
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)

    def choose(dataset):
        dataset.apply_choices(
            {"classes": {"NORMAL": "healthy"}, "condition": condition, "pattern": r"(?P<patient>\d+)"}, by=alice
        )
        return True

    choose_during_the_scan(only(), choose)
    dataset = only()
    assert (dataset.condition, dataset.pattern) == (condition, r"(?P<patient>\d+)")
    assert dataset.class_choices == {"NORMAL": "healthy"}
    assert dataset.classes == ["healthy", "PNEUMONIA"]
    assert dataset.counts == {"healthy": 13, "PNEUMONIA": 12}


# -- Questions


@pytest.fixture
def asking(settings):
    """Class folders beside train and test: which ones count?"""
    folder = settings.DATASET_ROOT / "CHEST" / "mixed"
    seed = 0
    for above in ("train", "test", "."):
        for label in ("NORMAL", "PNEUMONIA"):
            for number in range(12):
                save(folder / above / label / f"{number}.png", encode(noise(seed := seed + 1), "PNG"))
    return folder


def test_a_question_is_stored_with_its_answers_and_holds_up_the_preparation(asking):
    scan()
    dataset = only()
    assert dataset.is_asking
    assert dataset.question["code"] == "splits-beside-classes"
    assert {option["value"] for option in dataset.question["options"]} == {"splits", "classes", "both"}
    assert all(option["counts"] and option["examples"] for option in dataset.question["options"])
    assert dataset.images_count == sum(
        next(o for o in dataset.question["options"] if o["value"] == dataset.question["suggested"])["counts"].values()
    )
    with pytest.raises(JobError, match="can be read in more than one way"):
        Preparation.create(dataset, None)


def test_an_answer_is_used_by_the_next_scan_and_kept_by_those_after_it(asking, alice, monkeypatch):
    scan()
    only().choose_answer("both", by=alice)
    asked = spy_on_reads(monkeypatch)
    scan()
    assert (only().images_count, only().answer, only().is_asking) == (72, "both", False)
    assert len(asked) == 24, "those that the suggested answer left out"
    save(asking / "NORMAL/new.png", encode(noise(800), "PNG"))
    scan()
    assert (only().images_count, only().answer) == (73, "both")
    only().choose_answer("classes", by=alice)
    scan()
    assert (only().images_count, set(only().images.values_list("source_split", flat=True))) == (25, {""})


def test_an_answer_that_fits_no_longer_is_dropped(asking, alice):
    scan()
    only().choose_answer("classes", by=alice)
    scan()
    for label in ("NORMAL", "PNEUMONIA"):
        shutil.rmtree(asking / label)
    scan()
    dataset = only()
    assert (dataset.question, dataset.answer, dataset.is_asking) == (None, "", False)
    assert dataset.images_count == 48


def test_between_the_answer_and_the_scan_that_uses_it_nothing_is_prepared(asking, alice):
    """The images are still those of the suggested answer."""
    scan()
    only().choose_answer("both", by=alice)
    with pytest.raises(JobError, match="answered after the last scan") as refusal:
        Preparation.create(only(), None)
    assert "Scan again" in refusal.value.hint
    scan()
    assert Preparation.create(only(), None).state == "queued"


def test_an_answer_that_only_confirms_what_was_suggested_needs_no_scan(asking, alice):
    scan()
    only().choose_answer(only().question["suggested"], by=alice)
    assert Preparation.create(only(), None).state == "queued"


def test_an_answer_that_comes_while_a_scan_runs_is_kept_for_the_next(asking, alice, monkeypatch):
    scan()
    save(asking / "train/NORMAL/new.png", encode(noise(801), "PNG"))
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)

    def choose(dataset):
        dataset.choose_answer("both", by=alice)
        return True

    choose_during_the_scan(only(), choose)
    assert only().answer == "both"
    scan()
    assert only().images_count == 73


def test_an_answer_that_comes_before_a_running_scan_is_at_the_dataset_is_kept_too(asking, alice, monkeypatch):
    scan()
    real = layouts.find_in

    def find_then_let_somebody_answer(*args):
        found = real(*args)
        only().choose_answer("both", by=alice)
        return found

    monkeypatch.setattr(layouts, "find_in", find_then_let_somebody_answer)
    scan()
    assert (only().answer, only().images_count) == ("both", 48)
    with pytest.raises(JobError, match="answered after the last scan"):
        Preparation.create(only(), None)
    monkeypatch.setattr(layouts, "find_in", real)
    scan()
    assert (only().answer, only().images_count) == ("both", 72)


# -- Patients


def test_of_a_patient_only_the_pseudonym_is_stored_whatever_the_source(folder):
    fill(folder)
    picture = gradient(seed=5).astype(np.uint16)
    save(folder / "NORMAL/a.dcm", dicom(picture, PatientID="HOSP-1"))
    save(folder / "NORMAL/patient77/b.png", encode(noise(700), "PNG"))
    scan()
    keys = dict(only().images.exclude(patient_key="").values_list("path", "patient_key"))
    assert set(keys) == {"NORMAL/a.dcm", "NORMAL/patient77/b.png"}
    assert set(map(len, keys.values())) == {32}
    assert keys["NORMAL/a.dcm"] == patient_key("|HOSP-1")
    assert not [key for key in keys.values() if "HOSP" in key or "patient" in key]


# -- What a file says of the patient and the place

TOLD = {
    "PatientSex": "F", "PatientBirthDate": "19510203", "StudyDate": "20200405", "InstitutionName": "St. Secret Clinic",
}  # fmt: skip


def save_film(path, seed=5, **tags):
    return save(path, dicom(gradient(seed=seed).astype(np.uint16), **tags))


def test_sex_age_band_and_the_sites_pseudonym_are_stored_and_nothing_that_identifies_anybody(folder):
    fill(folder, 2)
    save_film(folder / "NORMAL/a.dcm", **TOLD)
    scan()
    stored = {image.path: image.attributes for image in only().images.all()}
    site = stored["NORMAL/a.dcm"]["site"]
    assert stored.pop("NORMAL/a.dcm") == {"sex": "F", "age": "60-79", "site": site}
    assert re.fullmatch("site [0-9a-f]{6}", site)
    assert all(attributes == {} for attributes in stored.values())
    everything = json.dumps(list(DatasetImage.objects.values()), default=str)
    assert not [secret for secret in ("1951", "2020-04", "20200405", "Secret", "Doe") if secret in everything]


def test_only_what_is_known_is_stored(folder):
    fill(folder, 2)
    save_film(folder / "NORMAL/a.dcm", PatientSex="X", PatientAge="060Y", InstitutionName="")
    scan()
    assert only().images.get(path="NORMAL/a.dcm").attributes == {"age": "60-79"}


def test_a_hospital_has_one_pseudonym_however_its_name_is_written_and_another_under_another_key(settings):
    site = site_pseudonym("North Clinic")
    assert site_pseudonym("NORTH  clinic ") == site != site_pseudonym("South Clinic")
    settings.SECRET_KEY = "another"
    assert site_pseudonym("North Clinic") != site


def test_a_corrected_header_changes_the_attributes_although_the_pixels_are_the_same(folder):
    fill(folder, 2)
    save_film(folder / "NORMAL/a.dcm", **TOLD)
    scan()
    save_film(folder / "NORMAL/a.dcm", PatientSex="M", PatientAge="030Y")
    scan()
    assert only().images.get(path="NORMAL/a.dcm").attributes == {"sex": "M", "age": "18-39"}


def test_images_of_an_earlier_release_get_their_attributes_by_the_next_scan(folder, monkeypatch):
    """An unchanged file is not read again, unless what is read of a file has become more."""
    fill(folder, 2)
    save_film(folder / "NORMAL/a.dcm", **TOLD)
    monkeypatch.setattr(cataloguing, "MEASURED", cataloguing.MEASURED - 1)
    scan()
    DatasetImage.objects.update(attributes={})
    scan()
    assert only().images.get(path="NORMAL/a.dcm").attributes == {}
    monkeypatch.undo()
    scan()
    assert only().images.get(path="NORMAL/a.dcm").attributes["sex"] == "F"
