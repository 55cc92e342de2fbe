"""X-ray Analysis with a model that really answers: by page, API and command, over activations and failures."""

import json
import os
import shutil
from io import StringIO
from uuid import uuid4

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.urls import reverse

from datasets import imaging
from inference import radiographs
from inference.engine import Engine
from inference.models import Prediction, Unanswered, prediction
from registry.models import ActivationError, Deployment, Evaluation, ThresholdSet
from tests.datasets.files import dicom, encode
from tests.factories import ConditionFactory, PredictionFactory
from tests.inference.versions import BRIGHT, DARK, bright_probability, make_version
from xrayplatform.audit import AuditEntry

PAGE = "/analysis/"
API = "/api/v1/predictions/"
HTMX = {"HX-Request": "true"}


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """Each test is a process that has no model loaded yet."""
    engine = Engine()
    monkeypatch.setattr(prediction, "ENGINE", engine)
    return engine


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team, intended_use="For research by trained readers.")


@pytest.fixture
def version(chest, alice):
    version = make_version(chest)
    version.activate(by=alice, reason="agreed")
    return version


@pytest.fixture
def send(client, bob):
    """Upload bytes as bob, by page or API."""
    client.force_login(bob)

    def upload(content, name="radiograph.png", url=PAGE, condition="chest", **options):
        image = SimpleUploadedFile(name, content)
        return client.post(url, {"condition": condition, "image": image}, **options)

    return upload


def text(response):
    return response.content.decode()


def png(pixels):
    return encode(pixels, "PNG")


# -- What an answer is


@pytest.mark.parametrize(
    ("content", "file_format"),
    [
        (png(BRIGHT), "PNG"),
        (encode(BRIGHT, "JPEG", quality=100), "JPEG"),
        (dicom(BRIGHT.astype(np.uint16), WindowCenter=128, WindowWidth=256), "DICOM"),
    ],
    ids=["PNG", "JPEG", "DICOM"],
)
def test_a_radiograph_of_each_format_is_answered_and_stored(version, send, bob, content, file_format):
    response = send(content, name="any name")
    prediction = Prediction.objects.get()
    assert (response.status_code, response.url) == (302, prediction.get_absolute_url())
    brightness = imaging.to_model_input(imaging.read(content).pixels, 64).mean() / 255
    assert prediction.probabilities["PNEUMONIA"] == pytest.approx(bright_probability(brightness), abs=1e-4)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert (prediction.version, prediction.decision, prediction.threshold) == (version, "PNEUMONIA", 0.5)
    assert (prediction.file_format, prediction.created_by) == (file_format, bob)
    assert prediction.latency_ms > 0
    assert prediction.image_digest == imaging.read(content).digest


def test_a_dark_image_is_decided_the_other_way(version, send):
    send(png(DARK))
    assert Prediction.objects.get().decision == "NORMAL"


def test_a_version_sees_new_images_with_the_preprocessing_of_its_training(chest, send, alice):
    treatment = {"id": "grey-pad", "version": 2, "fit": "pad", "steps": ["crop_borders"]}
    make_version(chest, preprocessing=treatment).activate(by=alice, reason="agreed")
    page = text(send(png(np.pad(BRIGHT, 16)), follow=True))
    prediction = Prediction.objects.get()
    # Without the borders it is all bright; with them it would be half dark.
    assert prediction.probabilities["PNEUMONIA"] == pytest.approx(bright_probability(BRIGHT.mean() / 255), abs=1e-4)
    assert "Uniform dark or bright borders cropped" in page


def test_an_answer_is_after_the_temperature_of_the_version(chest, send, alice):
    make_version(chest, temperature=2.0).activate(by=alice, reason="agreed")
    send(png(BRIGHT))
    raw = bright_probability(BRIGHT.mean() / 255)
    expected = np.sqrt(raw) / (np.sqrt(raw) + np.sqrt(1 - raw))
    assert Prediction.objects.get().probabilities["PNEUMONIA"] == pytest.approx(expected, abs=1e-4)


def test_the_threshold_of_the_version_decides(chest, send, alice):
    make_version(chest, threshold=0.999).activate(by=alice, reason="agreed")
    send(png(BRIGHT))
    prediction = Prediction.objects.get()
    assert 0.5 < prediction.probabilities["PNEUMONIA"] < 0.999
    assert (prediction.decision, prediction.threshold) == ("NORMAL", 0.999)


def test_the_page_shows_probabilities_version_intended_use_and_the_picture(version, send):
    page = text(send(png(BRIGHT), follow=True))
    prediction = Prediction.objects.get()
    probability = f"{100 * prediction.probabilities['PNEUMONIA']:.1f}"
    for expected in ("Chest: PNEUMONIA", "chest v1", "For research by trained readers.", probability):
        assert expected in page
    assert f'href="{reverse("inference:prediction-image", args=[prediction.pk])}?' in page


def test_htmx_gets_the_result_alone_and_the_address_of_the_record(version, send):
    response = send(png(BRIGHT), headers=HTMX)
    assert "Chest: PNEUMONIA" in text(response) and "<html" not in text(response)
    assert response["HX-Push-Url"] == Prediction.objects.get().get_absolute_url()


@pytest.mark.parametrize("days", [0, 90])
def test_of_the_image_only_the_pixels_are_kept_and_where_the_hospital_wants_none_not_even_these(
    version, send, settings, days
):
    settings.KEEP_RADIOGRAPHS_DAYS = days
    before = {path for path in settings.MODEL_ROOT.rglob("*") if path.is_file()}
    content = dicom(BRIGHT.astype(np.uint16), PatientName="Mustermann^Erika", PatientID="HOSP-7")
    send(content)
    new = {path for path in settings.MODEL_ROOT.rglob("*") if path.is_file()} - before
    assert len(new) == (1 if days else 0)
    for path in new:
        assert b"Mustermann" not in path.read_bytes() and b"HOSP-7" not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0
        assert radiographs.load(Prediction.objects.get().image_digest).digest == imaging.read(content).digest
    stored = str(list(Prediction.objects.values()) + list(AuditEntry.objects.values()))
    assert Prediction.objects.get().study_uid == "2.25.2"
    assert "Mustermann" not in stored and "HOSP-7" not in stored


def test_an_answer_is_in_the_audit_log_under_the_id_of_its_request(version, send, bob):
    response = send(png(BRIGHT))
    prediction = Prediction.objects.get()
    entry = AuditEntry.objects.get(action="prediction.create")
    assert (entry.actor, entry.object_id, entry.after) == (bob, str(prediction.pk), {"version": "chest v1"})
    assert entry.request_id == prediction.request_id == response["X-Request-Id"]


def test_a_prediction_is_never_changed_or_deleted(db):
    prediction = PredictionFactory()
    prediction.decision = "NORMAL"
    with pytest.raises(TypeError, match="never changed"):
        prediction.save()
    with pytest.raises(TypeError, match="never deleted"):
        prediction.delete()
    assert Prediction.objects.get().decision == "PNEUMONIA"


def test_the_same_image_is_answered_alike_each_time(version, send):
    for _ in range(3):
        send(png(BRIGHT))
    answers = Prediction.objects.values_list("probabilities", "image_digest")
    assert len(answers) == 3 and len({str(answer) for answer in answers}) == 1


# -- What is refused

BAD = {
    "text": (b"Dear colleague, this is a letter and not an image.", "a text file"),
    "empty": (b"", "empty"),
    "cut": (encode(np.tile(np.arange(200, dtype=np.uint8), (200, 1)), "JPEG")[:600], "ends too early"),
    "web page": (b"<!doctype html><script>alert(1)</script>", "a web page"),
    "no pixels": (dicom(BRIGHT, PixelData=b"").split(b"\xe0\x7f\x10\x00")[0], "pi"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_file_that_is_no_radiograph_is_refused_in_words_and_written_down(version, send, bob, bad):
    content, words = BAD[bad]
    page = send(content, name="x.png")
    assert page.status_code == 400
    assert words in " ".join(page.context["form"].errors["image"])
    answer = send(content, name="x.png", url=API)
    assert answer.status_code == 400
    assert words in " ".join(answer.json()["errors"]["image"])
    assert not Prediction.objects.exists()
    assert not AuditEntry.objects.filter(action="prediction.create").exclude(outcome="failed").exists()
    # An empty upload is refused by the form, before anybody asks for an answer.
    ways = [] if bad == "empty" else ["web", "api"]
    for row, way in zip(Unanswered.objects.order_by("pk"), ways, strict=True):
        assert (row.kind, row.channel, row.created_by) == ("unreadable", way, bob)
        assert words in row.text


def test_without_a_file_the_field_is_named(version, client, bob):
    client.force_login(bob)
    page = client.post(PAGE, {"condition": "chest"})
    assert page.status_code == 400
    assert "This field is required." in text(page)
    assert list(client.post(API, {"condition": "chest"}).json()["errors"]) == ["image"]


def test_a_condition_without_a_model_in_service_is_409_with_what_to_do(chest, send):
    for url in (PAGE, API):
        response = send(png(BRIGHT), url=url)
        assert response.status_code == 409
        assert "No model is in service for Chest" in text(response)
        assert "Model Management" in text(response)
    assert not Prediction.objects.exists()


def test_another_teams_condition_does_not_exist(version, client, charlie):
    client.force_login(charlie)
    for url in (PAGE, API):
        image = SimpleUploadedFile("x.png", png(BRIGHT))
        response = client.post(url, {"condition": "chest", "image": image})
        assert response.status_code == 400
        assert "Chest" not in text(response)
    assert not Prediction.objects.exists()


# -- Activations while the platform runs


def test_after_an_activation_the_next_request_is_answered_by_the_new_version(chest, version, send, alice):
    send(png(BRIGHT))
    contrary = make_version(chest, -8.0)
    contrary.activate(by=alice, reason="agreed")
    send(png(BRIGHT))
    version.activate(by=alice, reason="agreed")
    send(png(BRIGHT))
    answers = Prediction.objects.order_by("created_at").values_list("version__number", "decision")
    assert list(answers) == [(1, "PNEUMONIA"), (2, "NORMAL"), (1, "PNEUMONIA")]


def test_a_new_version_whose_files_were_spoilt_after_its_activation_leaves_the_old_one_in_service(
    chest, version, send, alice
):
    send(png(BRIGHT))
    contrary = make_version(chest, -8.0)
    contrary.activate(by=alice, reason="agreed")
    (contrary.folder / "openvino" / "model.bin").write_bytes(b"spoilt")
    page = text(send(png(BRIGHT), follow=True))
    newest = Prediction.objects.first()
    assert (newest.version, newest.decision) == (version, "PNEUMONIA")
    assert "chest v1 answered: the version in service could not be loaded." in page


def test_a_graph_that_computes_something_else_than_when_it_was_saved_is_not_put_in_service(chest, alice):
    lying = make_version(chest, golden={"seed": 7, "count": 2, "outputs": [[0.1, 0.9], [0.1, 0.9]]})
    with pytest.raises(ActivationError, match="does not compute here what it computed"):
        lying.activate(by=alice, reason="agreed")
    assert not Deployment.objects.filter(active__isnull=False).exists()


def test_a_version_without_a_graph_is_not_put_in_service(chest, alice):
    with pytest.raises(ActivationError, match="holds no OpenVINO graph"):
        make_version(chest, graph=False).activate(by=alice, reason="agreed")


def test_a_version_whose_files_are_lost_after_its_activation_answers_503(chest, version, send):
    shutil.rmtree(version.folder)
    for url in (PAGE, API):
        response = send(png(BRIGHT), url=url)
        assert response.status_code == 503
        assert "not where they should be" in text(response)
    assert not Prediction.objects.exists()


# -- Reading predictions


def test_the_api_answers_with_everything_about_the_prediction(version, send, client):
    answer = send(png(BRIGHT), url=API)
    assert answer.status_code == 201
    body = answer.json()
    assert (body["condition"], body["version_number"], body["decision"]) == ("chest", 1, "PNEUMONIA")
    assert body["intended_use"] == "For research by trained readers."
    assert body["created_by"] == "bob"
    assert client.get(f"{API}{body['id']}/").json() == body


def test_predictions_are_listed_newest_first_on_the_page_and_by_the_api(version, client, bob):
    made = [PredictionFactory(version=version, id=uuid4()).pk for _ in range(6)]
    client.force_login(bob)
    page = client.get(reverse("inference:prediction-list")).context["page"]
    assert [prediction.pk for prediction in page] == made[::-1]
    first = client.get(API, {"page_size": 4}).json()
    rest = client.get(first["next"]).json()
    assert [row["id"] for row in first["results"] + rest["results"]] == [str(pk) for pk in made[::-1]]


# -- Commands


def run(name, *args, **options):
    out = StringIO()
    call_command(name, *map(str, args), stdout=out, stderr=StringIO(), **options)
    return out.getvalue()


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "new"
    for name, pixels in {"NORMAL/1.png": DARK, "NORMAL/2.png": BRIGHT, "pneumonia/3.png": BRIGHT}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(pixels))
    (folder / "NORMAL" / "letter.png").write_bytes(b"this is only text")
    (folder / "OTHER").mkdir()
    (folder / "OTHER" / "4.png").write_bytes(png(DARK))
    return folder


def test_the_command_predict_answers_for_each_file_and_says_which_could_not_be_read(version, files):
    paths = [files / "NORMAL/1.png", files / "NORMAL/letter.png", files / "nothing.png"]
    answer = json.loads(run("predict", "chest", *paths, json=True))["predictions"]
    assert [row["decision"] for row in answer] == ["NORMAL", None, None]
    assert (answer[0]["version"], answer[0]["error"]) == (1, None)
    assert sum(answer[0]["probabilities"].values()) == pytest.approx(1)
    assert "a text file" in answer[1]["error"] and "No such file" in answer[2]["error"]
    assert Prediction.objects.count() == 1
    entries = AuditEntry.objects.filter(action="prediction.create").order_by("pk")
    assert [(entry.channel, entry.outcome) for entry in entries] == [("command", "success"), ("command", "failed")]


def test_the_command_predict_fails_when_no_file_could_be_read(version, files):
    out = StringIO()
    with pytest.raises(SystemExit) as end:
        call_command("predict", "chest", str(files / "NORMAL/letter.png"), json=True, stdout=out, stderr=StringIO())
    assert end.value.code == 1
    assert json.loads(out.getvalue())["predictions"][0]["error"]


def test_the_command_predict_names_what_is_missing(chest, files):
    with pytest.raises(CommandError, match="No model is in service for Chest"):
        run("predict", "chest", files / "NORMAL/1.png")
    with pytest.raises(CommandError, match=r"no condition 'knee'\. Known conditions: chest"):
        run("predict", "knee", files / "NORMAL/1.png")


def test_the_command_predict_knows_no_conditions_of_other_teams(version, files, charlie):
    with pytest.raises(CommandError, match=r"no condition 'chest'\. Known conditions: none"):
        run("predict", "chest", files / "NORMAL/1.png", user="charlie")
    assert not Prediction.objects.exists()


def test_the_command_evaluate_measures_class_folders_and_lists_what_it_could_not_use(version, files):
    answer = json.loads(run("evaluate", "chest", 1, files, json=True))
    assert (answer["n"], answer["classes"]) == (3, ["NORMAL", "PNEUMONIA"])
    assert answer["confusion_matrix"] == [[1, 1], [0, 1]]
    assert answer["accuracy"] == pytest.approx(2 / 3)
    assert (answer["precision"], answer["recall"]) == (pytest.approx(1 / 2), pytest.approx(1))
    assert answer["auc"] == pytest.approx(0.75)
    told = {problem["path"]: problem["reason"] for problem in answer["errors"]}
    assert set(told) == {"OTHER", "NORMAL/letter.png"}
    assert "Not a class of this version (NORMAL, PNEUMONIA)" in told["OTHER"]
    evaluation = Evaluation.objects.get(pk=answer["evaluation"])
    kept = {"evaluation": evaluation.pk, "kind": "external", "dataset": "new", "images": 3}
    assert AuditEntry.objects.get(action="version.evaluate").after == kept
    assert not Prediction.objects.exists()


def test_the_command_evaluate_takes_any_version_in_service_or_not(chest, version, files):
    make_version(chest, -8.0)
    assert json.loads(run("evaluate", "chest", 2, files, json=True))["confusion_matrix"] == [[1, 1], [1, 0]]


def test_the_command_evaluate_refuses_a_folder_without_class_folders(version, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CommandError, match="has no files in folders named NORMAL, PNEUMONIA"):
        run("evaluate", "chest", 1, tmp_path / "empty")
    with pytest.raises(CommandError, match="is not a folder"):
        run("evaluate", "chest", 1, tmp_path / "nowhere")


def test_the_command_refuses_a_pipe_instead_of_waiting_for_ever(version, tmp_path):
    pipe = tmp_path / "film.dcm"
    os.mkfifo(pipe)
    out = StringIO()
    with pytest.raises(SystemExit):
        call_command("predict", "chest", str(pipe), json=True, stdout=out)
    assert "not a regular file" in json.loads(out.getvalue())["predictions"][0]["error"]


def test_a_user_named_on_the_command_line_needs_the_right(version, alice, auditor, tmp_path):
    (tmp_path / "film.png").write_bytes(png(BRIGHT))
    with pytest.raises(CommandError, match="no role that allows this"):
        call_command("predict", "chest", str(tmp_path / "film.png"), user="otto")
    call_command("predict", "chest", str(tmp_path / "film.png"), user="alice", stdout=StringIO())
    assert Prediction.objects.get().created_by == alice


# -- The threshold in service


def test_the_threshold_set_in_service_decides_and_its_activation_needs_no_restart(chest, version, alice, send):
    send(png(BRIGHT))
    strict = ThresholdSet.objects.add(version, 0.95, by=alice, reason="fewer false alarms", criterion="by hand")
    assert Prediction.objects.first().decision == "PNEUMONIA"
    version.activate(by=alice, reason="fewer false alarms", threshold_set=strict)
    send(png(BRIGHT))
    prediction = Prediction.objects.first()
    assert prediction.probabilities["PNEUMONIA"] < 0.95
    assert (prediction.threshold, prediction.decision) == (0.95, "NORMAL")


def test_an_older_version_that_answers_instead_keeps_the_threshold_it_had(chest, version, alice, send):
    strict = ThresholdSet.objects.add(version, 0.95, by=alice, reason="fewer false alarms", criterion="by hand")
    version.activate(by=alice, reason="agreed", threshold_set=strict)
    send(png(BRIGHT))
    contrary = make_version(chest, -8.0)
    contrary.activate(by=alice, reason="agreed")
    (contrary.folder / "openvino" / "model.bin").write_bytes(b"spoilt")
    send(png(BRIGHT))
    newest = Prediction.objects.first()
    assert (newest.version, newest.threshold, newest.decision) == (version, 0.95, "NORMAL")
