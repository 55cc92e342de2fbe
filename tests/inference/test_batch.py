"""Batches as jobs: what is analysed and what is not, over cancels, killed workers, busy times and lost models."""

import csv
import io
import json
import zipfile
from io import BytesIO, StringIO
from unittest.mock import patch

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from datasets.receiving import Inbox
from inference import batch_results, batches
from inference.analysing import analyse
from inference.engine import Engine, EngineError
from inference.models import Batch, BatchItem, Prediction, ServingPolicy, Unanswered, prediction
from inference.models.batch import GOES_ON_WITHIN
from inference.tasks import analyse_batch
from inference.turns import Busy
from tests.datasets.files import dicom, encode
from tests.factories import ConditionFactory, DatasetFactory, TeamFactory
from tests.inference.versions import make_version
from xrayplatform import jobs
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError
from xrayplatform.notifications import Notification
from xrayplatform.spreadsheets import csv_lines, neutral

SPOT = 30 * np.exp(-((np.mgrid[0:64, 0:64] - 32) ** 2).sum(axis=0) / 400)
DARK, BRIGHT = (25 + SPOT).astype(np.uint8), (205 + SPOT).astype(np.uint8)
DARK_PNG, BRIGHT_PNG = encode(DARK, "PNG"), encode(BRIGHT, "PNG")
LETTER = b"Dear colleague, this is a letter."


class Killed(BaseException):
    """What a worker dies of."""


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setattr(prediction, "ENGINE", Engine())


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def version(chest, alice):
    version = make_version(chest)
    version.activate(by=alice, reason="agreed")
    return version


@pytest.fixture
def batch(chest, bob):
    """Makes a batch of named contents."""

    def make(**files):
        return sent(chest, bob, [(name.replace("_", "."), content) for name, content in files.items()])

    return make


def sent(condition, by, files):
    inbox = Inbox()
    for name, content in files:
        with inbox.open(name) as out:
            out.write(content)
    return Batch.of_files(condition, inbox.seal(), by=by)


def run(job, attempt=None):
    analyse_batch(job.pk, attempt or job.attempt)
    job.refresh_from_db()
    return job


def packed(files):
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
    return out.getvalue()


def told(job):
    return [(item.name, item.state, item.prediction and item.prediction.decision) for item in job.items.all()]


def killed_after(count, *, before_it_is_noted=False):
    """A worker that dies once it has had so many answers; a dead one writes nothing any more."""
    answered = []

    def settle(*args, **fields):
        answered.append(1)
        if before_it_is_noted and len(answered) == count:
            raise Killed
        noted(*args, **fields)
        if len(answered) == count:
            raise Killed

    noted = batches._settle
    return patch.object(batches, "_settle", settle)


def lose(job):
    """The worker is gone, and somebody notices."""
    Batch.objects.filter(pk=job.pk).update(lease_until=timezone.now() - jobs.LEASE)
    with patch.object(jobs._clock, "is_trusted", return_value=True):
        assert jobs.reap() == 1
    job.refresh_from_db()


# -- What is analysed


def test_each_file_gets_an_answer_or_the_reason_why_there_is_none(version, batch, bob):
    job = run(batch(dark_png=DARK_PNG, letter_png=LETTER, bright_png=BRIGHT_PNG))
    assert told(job) == [
        ("dark.png", "answered", "NORMAL"),
        ("letter.png", "refused", None),
        ("bright.png", "answered", "PNEUMONIA"),
    ]
    assert (job.state, job.progress) == ("succeeded", 1.0)
    assert job.message == "2 files analysed, 1 refused."
    assert "a text file" in job.items.get(name="letter.png").error
    for answer in Prediction.objects.all():
        assert (answer.channel, answer.batch, answer.created_by) == ("batch", job, bob)
    row = Unanswered.objects.get()
    assert (row.batch, row.kind, row.channel) == (job, "unreadable", "batch")
    assert not job.folder.exists()
    told_bob = Notification.objects.get(user=bob)
    assert told_bob.text == f"Batch {job.pk} has finished: 2 files analysed, 1 refused."
    assert told_bob.url == job.get_absolute_url()
    entry = AuditEntry.objects.get(action="batch.succeeded")
    assert entry.after == {"answered": 2, "refused": 1, "hidden": 0}


def test_the_same_file_twice_is_answered_twice(version, batch):
    job = run(batch(a_png=BRIGHT_PNG, b_png=BRIGHT_PNG))
    assert [state for _, state, _ in told(job)] == ["answered", "answered"]
    assert job.items.values("prediction").distinct().count() == 2


def test_an_answer_with_a_warning_is_counted_as_such(version, batch, chest):
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[..., 0], colours[..., 1] = BRIGHT, 60
    ServingPolicy.objects.update_or_create(condition=chest, defaults={"on_colour": "warn", "on_picture": "warn"})
    job = run(batch(plain_png=BRIGHT_PNG, pink_png=encode(colours, "PNG")))
    counted = Batch.objects.counted().get()
    assert (counted.answered, counted.warned, counted.refused) == (2, 1, 0)
    assert job.items.get(name="pink.png").code
    assert "1 of the answers with a warning" in job.message


def test_of_a_zip_hidden_files_are_left_out_other_kinds_and_inner_zips_are_refused_and_dicom_needs_no_ending(
    version, batch
):
    film = dicom(BRIGHT.astype(np.uint16), WindowCenter=128, WindowWidth=256)
    content = packed(
        [
            ("night/a.png", DARK_PNG),
            ("__MACOSX/night/._a.png", b"x"),
            (".DS_Store", b"x"),
            ("night/IM0001", film),
            ("night/1.2.840.55", film),
            ("inner.zip", packed([("b.png", DARK_PNG)])),
            ("notes.txt", b"x"),
        ]
    )
    job = run(batch(films_zip=content))
    assert told(job)[:3] == [
        ("a.png", "answered", "NORMAL"),
        ("IM0001", "answered", "PNEUMONIA"),
        ("1.2.840.55", "answered", "PNEUMONIA"),
    ]
    refused = {item.name: item.error for item in job.items.filter(state="refused")}
    assert set(refused) == {"inner.zip", "notes.txt"}
    assert "not unpacked" in refused["inner.zip"] and "not .txt" in refused["notes.txt"]
    assert "2 hidden files in the archive left out" in job.message


def test_names_are_only_ever_shown(version, chest, bob):
    job = sent(chest, bob, [("C:/etc/=cmd|' calc'!A0\u202egnp.png", BRIGHT_PNG)])
    assert {path.name for path in job.folder.iterdir()} == {"received-000000", "received.json"}
    assert run(job).items.get().name == "=cmd|' calc'!A0\\u202egnp.png"


def test_a_batch_without_a_file_and_one_of_nothing_but_hidden_files_are_refused(version, batch):
    with pytest.raises(JobError, match="No file was sent"):
        batch()
    job = run(batch(a_zip=packed([("__MACOSX/._a.png", b"x")])))
    assert (job.state, job.error) == ("failed", "There is no file to analyse.")


def test_more_files_than_a_batch_takes_are_refused(version, batch, monkeypatch):
    monkeypatch.setattr(batches, "MAX_FILES", 1)
    job = run(batch(a_png=DARK_PNG, b_png=DARK_PNG))
    assert "more than 1 files" in job.error and not job.items.exists()


def test_a_file_above_the_limit_is_not_read(version, batch, settings):
    settings.MAX_UPLOAD_MB = 0
    job = run(batch(a_png=DARK_PNG))
    assert job.items.get().code == "too-large"


def test_a_file_that_fails_for_no_known_reason_does_not_keep_the_others_from_their_answers(version, batch):
    def broken(condition, source, **way):
        if source == DARK_PNG:
            raise MemoryError
        return analyse(condition, source, **way)

    with patch("inference.analysing.analyse", broken):
        job = run(batch(a_png=DARK_PNG, b_png=BRIGHT_PNG))
    assert [state for _, state, _ in told(job)] == ["refused", "answered"]
    assert job.items.get(position=0).code == "failed"


# -- Folders of datasets


@pytest.fixture
def dataset(chest):
    found = DatasetFactory(name="CHEST/study", condition=chest)
    for path, content in {"test/A/1.png": DARK_PNG, "test/B/2.png": BRIGHT_PNG, "tested/3.png": BRIGHT_PNG}.items():
        (found.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (found.folder / path).write_bytes(content)
        found.images.create(
            path=path,
            folder=path.rpartition("/")[0],
            size=1,
            mtime_ns=1,
            digest=path,
            class_name="A",
            width=1,
            height=1,
        )
    return found


def test_a_folder_of_a_dataset_is_read_where_it_lies(version, dataset, chest, bob):
    job = run(Batch.of_dataset(chest, dataset, "test", by=bob))
    assert told(job) == [("1.png", "answered", "NORMAL"), ("2.png", "answered", "PNEUMONIA")]
    assert (dataset.folder / "test/A/1.png").is_file() and not job.folder.exists()
    assert str(job) == "CHEST/study/test"


def test_a_link_in_place_of_a_file_or_folder_is_not_followed(version, dataset, chest, bob, tmp_path):
    (tmp_path / "2.png").write_bytes(BRIGHT_PNG)
    (dataset.folder / "test/A/1.png").unlink()
    (dataset.folder / "test/A/1.png").symlink_to(tmp_path / "2.png")
    (dataset.folder / "test/B/2.png").unlink()
    (dataset.folder / "test/B").rmdir()
    (dataset.folder / "test/B").symlink_to(tmp_path)
    job = run(Batch.of_dataset(chest, dataset, "test", by=bob))
    assert [item.code for item in job.items.all()] == ["link", "link"]
    assert not Prediction.objects.exists()


def test_a_folder_that_the_scan_did_not_find_and_a_dataset_of_another_team_are_refused(version, dataset, chest, bob):
    with pytest.raises(JobError, match="no images"):
        Batch.of_dataset(chest, dataset, "../..", by=bob)
    dataset.condition = ConditionFactory(team=TeamFactory())
    with pytest.raises(JobError, match="names of its files would be seen"):
        Batch.of_dataset(chest, dataset, by=bob)
    assert not Batch.objects.exists()


# -- Hostile archives


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("../evil.png", DARK_PNG)], "leads out of the folder"),
        ([("/etc/evil.png", DARK_PNG)], "absolute path"),
        ([("a.png", DARK_PNG), ("A.png", DARK_PNG)], "one name on many computers"),
    ],
)
def test_a_hostile_archive_is_refused_whole_and_leaves_nothing(version, batch, files, words):
    job = run(batch(a_zip=packed(files), b_png=BRIGHT_PNG))
    assert job.state == "failed" and words in job.error
    assert not job.items.exists() and not job.folder.exists() and not job.can_go_on


def test_a_bomb_is_refused_by_the_bytes_that_come_out_of_it(version, batch):
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(20 * 1024**2))
    job = run(batch(a_zip=out.getvalue()))
    assert "times larger" in job.error and not job.folder.exists()


# -- Interrupted


def test_a_batch_whose_worker_was_killed_goes_on_without_analysing_a_file_twice(version, batch):
    job = batch(a_png=DARK_PNG, b_png=BRIGHT_PNG, c_png=DARK_PNG)
    with killed_after(2), pytest.raises(Killed):
        run(job)
    job.refresh_from_db()
    assert job.state == "running" and job.items.filter(state="answered").count() == 2
    lose(job)
    assert (job.state, job.attempt) == ("queued", 2)
    run(job)
    assert job.state == "succeeded" and Prediction.objects.count() == 3
    assert [decision for _, _, decision in told(job)] == ["NORMAL", "PNEUMONIA", "NORMAL"]


def test_an_answer_that_the_killed_worker_could_not_note_is_found_again_also_of_equal_files(version, batch):
    job = batch(a_png=DARK_PNG, b_png=DARK_PNG, c_png=DARK_PNG)
    with killed_after(2, before_it_is_noted=True), pytest.raises(Killed):
        run(job)
    assert Prediction.objects.count() == 2 and job.items.filter(state="answered").count() == 1
    lose(job)
    run(job)
    assert job.state == "succeeded" and Prediction.objects.count() == 3
    assert job.items.values("prediction").distinct().count() == 3


def test_a_worker_that_was_killed_while_it_unpacked_begins_anew(version, batch):
    job = batch(a_zip=packed([("a.png", DARK_PNG), ("b.png", BRIGHT_PNG)]))
    with patch.object(batches, "_rows", side_effect=Killed), pytest.raises(Killed):
        run(job)
    lose(job)
    run(job)
    assert [state for _, state, _ in told(job)] == ["answered", "answered"]


def test_a_file_that_kills_its_worker_again_and_again_does_not_keep_the_others_from_their_answers(version, batch):
    job = batch(a_png=DARK_PNG, bad_png=BRIGHT_PNG, c_png=DARK_PNG)
    with patch.object(batches, "_begin", lambda job, position: 3 if position == 1 else 1):
        run(job)
    assert [state for _, state, _ in told(job)] == ["answered", "refused", "answered"]
    assert "killed 2 times" in job.items.get(position=1).error


def test_only_who_is_killed_leaves_a_note_of_what_was_begun(version, batch):
    job = batch(a_png=DARK_PNG)
    assert [batches._begin(job, 0), batches._begin(job, 0), batches._begin(job, 1), batches._begin(job, 0)] == [
        1,
        2,
        1,
        1,
    ]
    with killed_after(1), pytest.raises(Killed):
        run(job)
    assert not (job.folder / batches.BEGUN).exists()


def test_files_that_are_gone_are_told(version, batch):
    job = batch(a_png=DARK_PNG)
    job.discard()
    assert "not there any more" in run(job).error


def test_a_frozen_worker_that_wakes_up_cannot_write_over_what_came_after_it(version, batch):
    job = batch(a_png=DARK_PNG)
    job.claim(1)
    batches._make_plan(job)
    frozen = Batch.objects.get(pk=job.pk)
    lose(job)
    run(job)
    with pytest.raises(jobs.LeaseLost):
        batches._settle(frozen, job.items.get(), state="refused", code="late")
    assert told(job) == [("a.png", "answered", "NORMAL")]


def test_a_cancelled_batch_keeps_its_answers_and_loses_its_files(version, batch, bob):
    job = batch(a_png=DARK_PNG, b_png=BRIGHT_PNG)

    def cancelled(condition, source, **way):
        Batch.objects.get(pk=job.pk).request_cancel(bob)
        return analyse(condition, source, **way)

    with patch("inference.analysing.analyse", cancelled), patch.object(jobs, "REPORT_EVERY_SECONDS", 0):
        run(job)
    assert job.state == "cancelled"
    assert told(job) == [("a.png", "answered", "NORMAL"), ("b.png", "waiting", None)]
    assert not job.folder.exists()


def test_a_batch_that_is_cancelled_before_it_began_loses_its_files_at_once(batch, bob):
    job = batch(a_png=DARK_PNG)
    job.request_cancel(bob)
    assert job.state == "cancelled" and not job.folder.exists()


def test_when_too_many_wait_the_batch_waits_and_goes_on(version, batch, monkeypatch):
    asked, slept = [], []

    def busy(condition, source, **way):
        asked.append(source)
        if len(asked) < 3:
            raise Busy(3)
        return analyse(condition, source, **way)

    monkeypatch.setattr(batches, "_wait", lambda job, seconds: slept.append(seconds))
    with patch("inference.analysing.analyse", busy):
        job = run(batch(a_png=DARK_PNG))
    assert (told(job), slept) == ([("a.png", "answered", "NORMAL")], [3, 3])


def test_who_waits_renews_the_lease_and_heeds_a_cancel(batch, bob):
    job = batch(a_png=DARK_PNG)
    job.claim(1)
    before = job.lease_until
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        Batch.objects.get(pk=job.pk).request_cancel(bob)

    with pytest.raises(jobs.JobCancelled):
        batches._wait(job, 30, sleep)
    assert len(slept) == 1 and job.lease_until > before


# -- Without a model


def test_without_a_model_in_service_the_batch_fails_with_what_to_do_and_can_go_on_for_a_day(chest, batch, alice, bob):
    job = run(batch(a_png=DARK_PNG))
    assert job.state == "failed" and "No model is in service for Chest" in job.error
    assert "let the batch go on" in job.hint and job.can_go_on
    make_version(chest).activate(by=alice, reason="agreed")
    job.go_on(bob)
    run(job)
    assert (job.state, told(job)) == ("succeeded", [("a.png", "answered", "NORMAL")])
    assert AuditEntry.objects.filter(action="batch.go_on", actor=bob).exists()
    with pytest.raises(JobError, match="only a failed one can"):
        job.go_on(bob)


def test_a_model_that_is_lost_on_the_way_ends_the_batch_and_leaves_the_rest_for_later(version, batch):
    with patch("inference.analysing.analyse", side_effect=EngineError("The version is damaged.")):
        job = run(batch(a_png=DARK_PNG))
    assert (job.state, job.error) == ("failed", "The version is damaged.")
    assert told(job) == [("a.png", "waiting", None)]


def test_files_of_a_failed_batch_and_those_that_nobody_owns_are_swept_after_a_day(chest, batch):
    job = run(batch(a_png=DARK_PNG))
    Batch.sweep()
    assert job.folder.is_dir()
    Batch.objects.update(finished_at=timezone.now() - GOES_ON_WITHIN * 2)
    (Batch.root() / "on its way").mkdir()
    Batch.sweep()
    assert [folder.name for folder in Batch.root().iterdir()] == ["on its way"]


def test_a_batch_goes_on_only_while_its_files_are_there(chest, batch, bob):
    job = run(batch(a_png=DARK_PNG))
    job.discard()
    with pytest.raises(JobError, match="cannot go on"):
        job.go_on(bob)


# -- Results


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "  =x", "\uff1dx"])
def test_a_text_that_a_spreadsheet_would_compute_becomes_a_plain_one(text):
    assert neutral(text) == f"'{text}"
    assert next(iter(csv.reader(csv_lines([[text]])))) == [f"'{text}"]


@pytest.mark.parametrize("cell", ["a=1", "", "IM-001", -1.5, 0, None, "'=x"])
def test_other_cells_stay_as_they_are(cell):
    assert neutral(cell) == cell


def test_the_results_as_csv_and_json_have_every_file_and_no_formula(version, batch, chest, bob):
    job = run(sent(chest, bob, [("=HYPERLINK(1).png", BRIGHT_PNG), ("@letter.png", LETTER)]))
    head, first, second = csv.reader(io.StringIO("".join(csv_lines(batch_results.csv_rows(job)))))
    answer = dict(zip(head, first, strict=True))
    assert (answer["file"], answer["decision"], answer["version"]) == ("'=HYPERLINK(1).png", "PNEUMONIA", "1")
    assert float(answer["probability of NORMAL"]) + float(answer["probability of PNEUMONIA"]) == pytest.approx(1)
    refused = dict(zip(head, second, strict=True))
    assert (refused["file"], refused["state"]) == ("'@letter.png", "refused") and "text file" in refused["error"]
    told = batch_results.as_json(job, bob)
    assert [result["name"] for result in told["results"]] == ["=HYPERLINK(1).png", "@letter.png"]
    assert AuditEntry.objects.filter(action="batch.export", actor=bob).count() == 1


def test_a_batch_over_an_activation_has_the_classes_of_both_versions(version, batch, chest, alice):
    job = batch(a_png=DARK_PNG, b_png=BRIGHT_PNG)
    with killed_after(1), pytest.raises(Killed):
        run(job)
    make_version(chest, -8.0).activate(by=alice, reason="agreed")
    lose(job)
    run(job)
    rows = batch_results.as_json(job, alice)["results"]
    assert [(row["version"], row["decision"]) for row in rows] == [(1, "NORMAL"), (2, "NORMAL")]


# -- The command


def command(*args, **options):
    out = StringIO()
    call_command("analyse_batch", *map(str, args), stdout=out, stderr=StringIO(), **options)
    return out.getvalue()


def test_the_command_analyses_files_folders_and_archives(version, tmp_path):
    (tmp_path / "films/deep").mkdir(parents=True)
    (tmp_path / "films/deep/a.png").write_bytes(DARK_PNG)
    (tmp_path / "films/.hidden.png").write_bytes(DARK_PNG)
    (tmp_path / "b.zip").write_bytes(packed([("b.png", BRIGHT_PNG)]))
    out = tmp_path / "out.csv"
    answer = json.loads(command("chest", tmp_path / "films", tmp_path / "b.zip", json=True, csv=out))
    assert [(row["name"], row["decision"]) for row in answer["results"]] == [
        ("a.png", "NORMAL"),
        ("b.png", "PNEUMONIA"),
    ]
    assert len(out.read_text().splitlines()) == 3
    assert (tmp_path / "films/deep/a.png").is_file() and Batch.objects.get().state == "succeeded"


def test_the_command_fails_where_the_batch_does_and_names_what_is_missing(chest, tmp_path):
    (tmp_path / "a.png").write_bytes(DARK_PNG)
    out = StringIO()
    with pytest.raises(SystemExit):
        call_command("analyse_batch", "chest", str(tmp_path), json=True, stdout=out, stderr=StringIO())
    assert "No model is in service" in json.loads(out.getvalue())["error"]
    with pytest.raises(CommandError, match="Known conditions: chest"):
        command("knee", tmp_path)
    with pytest.raises(CommandError, match="no file or folder"):
        command("chest", tmp_path / "nothing")


def test_the_command_as_a_user_sees_the_conditions_of_their_teams_only(version, charlie, tmp_path):
    (tmp_path / "a.png").write_bytes(DARK_PNG)
    with pytest.raises(CommandError, match="Known conditions: none"):
        command("chest", tmp_path, user="charlie")
    assert not BatchItem.objects.exists()
