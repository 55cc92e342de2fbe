"""A package of another site becomes a version, or is refused for its reason and leaves nothing behind."""

import io
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.middleware.csrf import _get_new_csrf_string
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ
from knox.models import AuthToken

from registry import artifacts, packages, rebuilding
from registry.models import Event, ModelVersion, PackageImport, ReceivedPackage, TrustedOrigin, Webhook
from registry.models.package import UNDECIDED_AFTER
from registry.package_tasks import run_import
from registry.packages import CARD, EVALUATIONS, MANIFEST, WEIGHTS, PackageError
from tests.factories import ConditionFactory, ModelVersionFactory, TeamFactory, UserFactory
from tests.inference.versions import manifest, write_graph
from tests.registry import malicious
from tests.registry.malicious import CASES, KEY, STRANGER
from xrayplatform import jobs
from xrayplatform.audit import AuditEntry
from xrayplatform.conditions import INTENDED_USE, Condition
from xrayplatform.jobs import JobCancelled
from xrayplatform.notifications import Notification

pytestmark = pytest.mark.django_db
PAGE = "/models/packages/"
CLASSES = ["NORMAL", "PNEUMONIA"]
VERSION = {"number": 3, "architecture": "Custom_CNN", "classes": CLASSES, "figures": {"accuracy": 0.9, "auc": 0.95}}
LINEAGE = {"version": "a" * 64, "dataset": "b" * 64, "split": "c" * 64, "parent": ""}
DESCRIPTION = {"version": VERSION, "lineage": LINEAGE}


def sound(changes=None, *, key=KEY, told=None, description=None):
    """A package of a version that the tests' fake rebuild takes; told: fields of its manifest."""
    weights = safetensors.numpy.save(malicious.ARRAYS)
    content = manifest(**(told or {})) | {"format": 1, "members": {WEIGHTS: malicious.measured(weights)}}
    members = {
        MANIFEST: packages.to_bytes(content),
        "golden.json": packages.to_bytes(content["golden"]),
        WEIGHTS: weights,
    }
    return malicious.assemble(
        malicious.build(members | (changes or {}), description=description or DESCRIPTION, key=key)
    )


def fake_rebuild(package, told, target, look):
    """What the training app does, without TensorFlow: a graph of the tests instead of an architecture."""
    look()
    write_graph(target.parent / "graph")
    weights = dict(safetensors.numpy.load_file(package / WEIGHTS))
    return artifacts.save(target, manifest=told, weights=weights, openvino=target.parent / "graph", predictions=None)


@pytest.fixture(autouse=True)
def origin(db):
    return TrustedOrigin.objects.create(name="Our friends", public_key=KEY.public_key)


@pytest.fixture(autouse=True)
def rebuilt(monkeypatch):
    """The packages that were rebuilt."""
    done = []

    def rebuild(*asked):
        done.append(asked)
        return fake_rebuild(*asked)

    monkeypatch.setattr(rebuilding, "REBUILDERS", [rebuild])
    return done


def receive(content, by=None):
    return ReceivedPackage.objects.receive(io.BytesIO(content), by=by)


def run(package, by=None, **options):
    job = PackageImport.create(package, by, **{"condition": None, **options})
    run_import(job, job.attempt)
    job.refresh_from_db()
    return job


def left(settings):
    """Files that are anywhere but in a version's folder."""
    root = Path(settings.MODEL_ROOT)
    return [
        path for path in root.rglob("*") if path.is_file() and (".staging" in path.parts or "packages" in path.parts)
    ]


# -- From file to version


def test_a_package_becomes_a_candidate_of_a_new_condition(alice, settings):
    job = run(receive(sound(), alice), alice, team=alice.teams.get())
    assert (job.state, job.error) == ("succeeded", "")
    version = job.version
    assert str(version) == "chest-pneumonia v1"
    assert (version.condition.name, version.condition.team) == ("Pneumonia", alice.teams.get())
    assert (version.state, version.parent, version.created_by) == ("candidate", None, alice)
    assert version.origin == "imported from St. Example, there v3"
    assert (version.dataset_digest, version.split_digest) == ("b" * 64, "c" * 64)
    assert version.environment == {"python": "3.11"}
    assert version.metrics["accuracy"] == 0.9
    assert artifacts.load(version.folder, version.sha256).manifest["members"].keys() >= {WEIGHTS}
    assert left(settings) == []


def test_a_package_goes_into_a_condition_that_is_there(alice, team):
    condition = ConditionFactory(slug="lungs", team=team)
    ModelVersionFactory(condition=condition, number=7).folder.mkdir(parents=True)
    job = run(receive(sound(), alice), alice, condition=condition)
    assert str(job.version) == "lungs v8"
    assert not Condition.objects.filter(slug="chest-pneumonia").exists()


def told(user):
    return list(Notification.objects.of(user).order_by("pk").values_list("text", flat=True))


def test_an_imported_version_is_told_like_a_trained_one_and_its_end_to_who_imported_it(alice, team):
    carol = UserFactory(username="carol", roles=["model manager"])
    team.members.add(carol)
    webhook = Webhook.objects.create(name="PACS", url="https://pacs.example/", secret="x" * 16, events=Event.values)
    version = run(receive(sound(), alice), alice, team=team).version
    assert told(carol) == [f"New version: {version} (Custom_CNN, test AUC 0.950)."]
    assert told(alice) == ["Import of chest-pneumonia v3 of St. Example has finished: Version 1 of Pneumonia."]
    assert Notification.objects.get(user=alice).url == version.get_absolute_url()
    assert webhook.deliveries.get().payload["version"] == version.number


def test_who_started_an_import_is_told_that_it_failed_and_why(alice):
    package = receive(sound(), alice)
    malicious_file = sound(told={"architecture": "Another_CNN"})
    package.file.write_bytes(malicious_file)
    job = run(package, alice)
    assert job.state == "failed"
    (words,) = told(alice)
    assert words == f"Import of chest-pneumonia v3 of St. Example has failed: {job.error}"
    assert Notification.objects.get(user=alice).url == job.get_absolute_url()


def test_nothing_in_service_changes(alice):
    version = run(receive(sound(), alice), alice).version
    assert not version.condition.activations.exists()


def test_what_the_origin_told_is_kept_and_shown_with_the_version(alice, client):
    evaluations = [
        {
            "kind": "test",
            "images": 624,
            "patients": 300,
            "report": {"metrics": {"auc": {"value": 0.93, "low": 0.9, "high": 0.96}}},
        }
    ]
    card = {
        "format": 1,
        "title": "Pneumonia v3",
        "sections": [{"title": "Limits", "paragraphs": ["Adults only."], "facts": [["Sex", "both"]], "tables": []}],
    }
    content = sound({EVALUATIONS: packages.to_bytes(evaluations), CARD: packages.to_bytes(card)})
    version = run(receive(content, alice), alice).version
    client.force_login(alice)
    page = client.get(version.get_absolute_url()).content.decode()
    for words in ("imported from St. Example, there v3", "Adults only.", "624 images of 300 patients", "0.960"):
        assert words in page, words


def test_the_same_package_twice_is_one_version(alice):
    first = run(receive(sound(), alice), alice)
    again = receive(sound(), alice)
    assert again.known_to(alice) == first.version
    second = run(again, alice)
    assert second.state == "succeeded"
    assert "imported before, as chest-pneumonia v1" in second.message
    assert ModelVersion.objects.count() == 1


def test_another_team_does_not_learn_that_a_package_is_here(alice, charlie):
    run(receive(sound(), alice), alice, team=alice.teams.get())
    package = receive(sound(), charlie)
    assert package.known_to(charlie) is None
    assert str(run(package, charlie, team=charlie.teams.get()).version) == "chest-pneumonia-2 v1"


def test_an_import_into_a_condition_with_other_classes_is_refused(alice):
    condition = ConditionFactory(slug="knee")
    ModelVersionFactory(condition=condition, classes=["healthy", "arthrosis"], positive_class="arthrosis")
    package = receive(sound(), alice)
    assert condition not in package.conditions_for(alice)
    with pytest.raises(jobs.JobError, match="tells apart arthrosis, healthy"):
        PackageImport.create(package, alice, condition=condition)


def test_the_classes_that_count_are_those_of_the_manifest_not_of_the_label(alice, settings):
    condition = ConditionFactory(slug="knee")
    ModelVersionFactory(condition=condition, classes=["healthy", "arthrosis"], positive_class="arthrosis")
    lying = sound(description={"version": VERSION | {"classes": ["healthy", "arthrosis"]}})
    job = run(receive(lying, alice), alice, condition=condition)
    assert job.state == "failed"
    assert "tells apart arthrosis, healthy" in job.error
    assert left(settings) == []


# -- Who answers for it


@pytest.mark.parametrize(("key", "state"), [(None, "unsigned"), (STRANGER, "unknown-key")])
def test_without_a_trusted_origin_an_import_needs_an_explicit_yes_which_is_audited(alice, key, state):
    package = receive(sound(key=key), alice)
    for accepted in ("", "unsigned" if state == "unknown-key" else "unknown-key"):
        with pytest.raises(jobs.JobError, match=r"not signed|not one of the trusted"):
            PackageImport.create(package, alice, condition=None, accepted=accepted)
    job = run(package, alice, accepted=state)
    assert job.state == "succeeded"
    assert AuditEntry.objects.get(action="package.import").after["accepted"] == state
    # Each result shows this text, so that nobody unknown writes it.
    assert job.condition.intended_use == INTENDED_USE


def test_an_origin_that_is_not_active_any_more_is_not_trusted(alice, origin):
    package = receive(sound(), alice)
    assert package.signature_now == "trusted"
    TrustedOrigin.objects.update(active=False)
    assert package.signature_now == "unknown-key"


def test_trust_that_ends_before_the_work_begins_ends_the_import(alice, origin, settings):
    job = PackageImport.create(receive(sound(), alice), alice, condition=None)
    TrustedOrigin.objects.update(active=False)
    run_import(job, 1)
    job.refresh_from_db()
    assert (job.state, job.reason) == ("failed", "unknown-key")
    assert left(settings) == []


def test_the_same_key_in_another_spelling_is_the_same_origin(origin):
    spelled = " ".join(KEY.public_key.upper()[i : i + 4] for i in range(0, 64, 4))
    again = TrustedOrigin(name="Again", public_key=spelled)
    again.clean()
    assert (again.public_key, again.key_id) == (origin.public_key, origin.key_id)


# -- Refusals


@pytest.mark.parametrize(("make", "reason"), [pytest.param(make, reason, id=name) for name, make, reason in CASES])
def test_a_malicious_package_is_refused_audited_and_gone(make, reason, settings, rebuilt, bob):
    """Through the whole import, whoever says yes to it: refused with the label, or when it is unpacked."""
    try:
        package = receive(make(), bob)
    except PackageError as error:
        assert error.reason == reason
        assert not PackageImport.objects.exists()
    else:
        if reason in ("unsigned", "unknown-key"):
            with pytest.raises(jobs.JobError):
                PackageImport.require_yes(package, "", by=bob)
            package.discard()
        else:
            job = run(package, bob, accepted=package.signature_now.value)
            assert (job.state, job.reason, job.version) == ("failed", reason, None)
            assert job.error
    assert rebuilt == []
    refusal = AuditEntry.objects.get(action="package.refuse")
    assert (refusal.outcome, refusal.after["reason"], refusal.actor) == ("refused", reason, bob)
    assert left(settings) == []
    assert not ModelVersion.objects.exists()
    assert not Condition.objects.exists()


@pytest.mark.parametrize(
    "told",
    [
        {"classes": "NORMAL"},
        {"classes": ["NORMAL", "NORMAL"]},
        {"classes": ["NORMAL", "PNEU\u202eMONIA"]},
        {"image_size": 10**6},
        {"image_size": True},
        {"architecture": "../../evil"},
        {"positive_class": "FRACTURE"},
        {"threshold": 3},
        {"temperature": 0},
        {"preprocessing": {"id": "x"}},
        {"metrics": {"test": {}}},
        {"metrics": {"test": {"accuracy": "high"}, "validation": {}}},
        {"metrics": {"test": {"confusion_matrix": [[1, 2]]}, "validation": {}}},
        {"history": [["loss"]]},
        {"configuration": {"epochs": {"deep": 1}}},
        {"golden": {"seed": 7, "count": 10**9, "outputs": []}},
        {"golden": {"seed": 7, "count": 1, "outputs": [[1.0]]}},
        {"initial_weights": "x" * 5000},
    ],
    ids=str,
)
def test_a_manifest_that_tells_nonsense_is_refused_before_anything_is_rebuilt(told, rebuilt, alice, settings):
    job = run(receive(sound(told=told), alice), alice)
    assert (job.state, job.reason) == ("failed", "malformed")
    assert rebuilt == []
    assert left(settings) == []


@pytest.mark.parametrize(
    "changes",
    [
        {CARD: b'{"title": 1, "sections": []}'},
        {CARD: b'{"title": "x", "sections": [{"title": "x", "facts": [["one"]]}]}'},
        {EVALUATIONS: b'{"not": "a list"}'},
        {EVALUATIONS: b'[{"report": {"metrics": {"auc": {"value": "<script>"}}}}]'},
        {"golden.json": b'{"seed": 8, "count": 1, "outputs": []}'},
    ],
    ids=["card", "fact", "list", "figure", "golden"],
)
def test_documents_of_another_form_are_refused(changes, rebuilt, alice):
    assert run(receive(sound(changes), alice), alice).reason == "malformed"
    assert rebuilt == []


def test_what_cannot_be_rebuilt_is_refused(alice, settings, monkeypatch):
    def refuse(package, told, target, look):
        target.mkdir()
        raise PackageError("golden-differs", "It answers otherwise.")

    monkeypatch.setattr(rebuilding, "REBUILDERS", [refuse])
    job = run(receive(sound(), alice), alice)
    assert (job.state, job.reason, job.error) == ("failed", "golden-differs", "It answers otherwise.")
    assert left(settings) == []
    assert not ModelVersion.objects.exists()


def test_a_file_that_is_exchanged_after_its_label_was_read_is_refused(alice):
    package = receive(sound(), alice)
    package.file.write_bytes(sound(description=DESCRIPTION | {"version": VERSION | {"number": 4}}))
    assert run(package, alice).reason == "changed"


def test_a_cancelled_import_leaves_nothing(alice, settings, monkeypatch):
    def cancel(*asked):
        raise JobCancelled

    monkeypatch.setattr(rebuilding, "REBUILDERS", [cancel])
    assert run(receive(sound(), alice), alice).state == "cancelled"
    assert left(settings) == []


def test_what_a_crash_left_goes_when_the_dead_worker_is_found(alice, settings):
    job = PackageImport.create(receive(sound(), alice), alice, condition=None)
    assert job.claim(1)
    packages.read(job.package.file, job.staging / "package", trusted={KEY.key_id: KEY.public_key})
    PackageImport.objects.update(lease_until=timezone.now() - 2 * jobs.LEASE)
    assert left(settings)
    jobs.reap()
    job.refresh_from_db()
    assert job.state == "failed"
    assert left(settings) == []


def test_the_sweep_removes_what_nobody_needs_and_nothing_else(alice, settings):
    waiting = PackageImport.create(receive(sound(), alice), alice, condition=None)
    waiting.staging.mkdir(parents=True)
    undecided = receive(sound(key=None), alice)
    old = receive(sound(key=STRANGER), alice)
    long_ago = timezone.now() - 2 * UNDECIDED_AFTER
    ReceivedPackage.objects.filter(pk=old.pk).update(created_at=long_ago)
    orphan = Path(settings.MODEL_ROOT) / "packages" / "nobody.zip"
    export = Path(settings.MODEL_ROOT) / "exports" / "left.zip"
    crashed = waiting.staging.with_name("import-999999")
    export.parent.mkdir()
    for file in (orphan, export):
        file.write_bytes(b"x")
    for file in (orphan, export, old.file, waiting.package.file):
        os.utime(file, (time.time() - 2 * UNDECIDED_AFTER.total_seconds(),) * 2)
    crashed.mkdir()
    PackageImport.sweep()
    assert [file.exists() for file in (orphan, export, old.file, crashed)] == [False] * 4
    assert [file.exists() for file in (waiting.package.file, waiting.staging, undecided.file)] == [True] * 3
    assert not ReceivedPackage.objects.filter(pk=old.pk).exists()


# -- Pages


@pytest.fixture
def sent(logged_in):
    def send(content):
        return logged_in.post(PAGE, {"file": SimpleUploadedFile("v.xrpkg.zip", content)})

    return send


def test_the_label_comes_before_the_import(sent, logged_in, team):
    answer = sent(sound())
    package = ReceivedPackage.objects.get()
    assert answer.url == package.get_absolute_url()
    page = logged_in.get(answer.url).content.decode()
    for words in (
        "Version 3 of St. Example",
        "Our friends",
        "Custom_CNN",
        "NORMAL, PNEUMONIA",
        "90.0",
        "0.950",
        "Research.",
    ):
        assert words in page, words
    assert "answer for" not in page
    assert not PackageImport.objects.exists()
    answer = logged_in.post(answer.url, {"condition": "", "team": team.pk})
    job = PackageImport.objects.get()
    assert answer.url == job.get_absolute_url()
    assert OrmQ.objects.count() == 1
    run_import(job, 1)
    assert "chest-pneumonia v1" in logged_in.get(PAGE).content.decode()
    assert "See the version" in logged_in.get(job.get_absolute_url()).content.decode()


def test_an_unsigned_package_warns_and_needs_the_yes(sent, logged_in, team):
    address = sent(sound(key=None)).url
    assert "anybody can have made this package" in logged_in.get(address).content.decode()
    answer = logged_in.post(address, {"condition": "", "team": team.pk})
    assert answer.status_code == 400
    assert "Without your yes" in answer.content.decode()
    assert not PackageImport.objects.exists()
    assert AuditEntry.objects.get(action="package.refuse").after["reason"] == "unsigned"
    logged_in.post(address, {"condition": "", "team": team.pk, "accept": "on"})
    assert PackageImport.objects.get().accepted == "unsigned"


def test_a_refused_file_is_explained_on_the_page(sent, settings):
    answer = sent(b"no zip at all")
    assert answer.status_code == 400
    assert "The package is refused" in answer.content.decode()
    assert left(settings) == []


def test_somebody_of_a_team_cannot_make_a_version_that_everybody_sees_by_leaving_the_team_out(sent, logged_in):
    assert logged_in.post(sent(sound()).url, {"condition": ""}).status_code == 400


def test_a_package_is_shown_to_who_sent_it_alone(sent, client, charlie):
    address = sent(sound()).url
    client.force_login(charlie)
    assert client.get(address).status_code == 404


def test_a_package_that_is_here_already_is_not_offered_again(sent, logged_in, alice):
    run(receive(sound(), alice), alice)
    page = logged_in.get(sent(sound()).url).content.decode()
    assert "It is here already" in page


def test_two_clicks_are_one_import(sent, logged_in, team):
    address = sent(sound()).url
    for _ in range(2):
        logged_in.post(address, {"condition": "", "team": team.pk})
    assert PackageImport.objects.count() == 1


def test_an_upload_by_who_may_not_import_is_refused_before_it_is_read(client, bob, settings):
    client.force_login(bob)
    assert client.post(PAGE, {"file": SimpleUploadedFile("v.zip", sound())}).status_code == 403
    assert not ReceivedPackage.objects.exists()


def test_a_package_may_be_larger_than_a_picture(sent, settings):
    settings.MAX_UPLOAD_MB = 0
    assert sent(sound()).status_code == 302


# -- API


def test_the_api_imports_and_tells_how_far_it_is(logged_in, alice):
    answer = logged_in.post("/api/v1/packages/", {"file": SimpleUploadedFile("v.zip", sound())})
    assert answer.status_code == 202, answer.content
    job = PackageImport.objects.get()
    run_import(job, 1)
    told = logged_in.get(f"/api/v1/packages/{job.pk}/").json()
    assert (told["state"], told["condition"], told["number_there"]) == ("succeeded", "chest-pneumonia", 3)
    assert told["version"] == ModelVersion.objects.get().pk
    again = logged_in.post("/api/v1/packages/", {"file": SimpleUploadedFile("v.zip", sound())})
    assert (again.status_code, again.json()["id"]) == (200, job.pk)


class Untouched:
    """A body that nobody reads."""

    def read(self, *args):
        raise AssertionError("The body was read.")

    readline = read


@pytest.fixture
def send_unread():
    def send(client, **headers):
        request = {
            "wsgi.input": Untouched(),
            "CONTENT_LENGTH": str(2**20),
            "CONTENT_TYPE": "multipart/form-data; boundary=x",
        }
        return client.generic("POST", "/api/v1/packages/", **request, **headers)

    return send


def test_the_api_refuses_who_may_not_import_before_the_body_is_read(bob, send_unread):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(bob)
    token = _get_new_csrf_string()
    browser.cookies["csrftoken"] = token
    answer = send_unread(browser, HTTP_X_CSRFTOKEN=token)
    assert (answer.status_code, "role does not allow" in answer.json()["detail"]) == (403, True)
    _, key = AuthToken.objects.create(bob)
    assert send_unread(Client(), HTTP_AUTHORIZATION=f"Token {key}").status_code == 403
    assert send_unread(Client()).status_code == 401


def test_a_browser_sends_its_csrf_token_to_the_api_in_the_header(alice, send_unread):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(alice)
    token = _get_new_csrf_string()
    browser.cookies["csrftoken"] = token
    assert browser.get("/api/v1/packages/").status_code == 200
    assert "CSRF" in send_unread(browser).json()["detail"]
    assert "CSRF" in send_unread(browser, HTTP_X_CSRFTOKEN="a" * 32).json()["detail"]
    file = {"file": SimpleUploadedFile("v.zip", sound())}
    assert browser.post("/api/v1/packages/", file, headers={"X-CSRFToken": token}).status_code == 202


def test_the_api_refuses_with_the_reason(logged_in, settings):
    answer = logged_in.post("/api/v1/packages/", {"file": SimpleUploadedFile("v.zip", malicious.with_file(b"../x"))})
    assert answer.status_code == 400
    assert answer.json()["errors"]["reason"] == ["path-traversal"]
    for data, status in (({}, 409), ({"accept": "unknown-key"}, 409), ({"accept": "unsigned"}, 202)):
        sent = {"file": SimpleUploadedFile("v.zip", sound(key=None)), **data}
        assert logged_in.post("/api/v1/packages/", sent).status_code == status
    assert ReceivedPackage.objects.count() == 1
    assert len(left(settings)) == 1


def test_the_api_takes_no_condition_of_another_team(logged_in):
    ConditionFactory(slug="theirs", team=TeamFactory())
    sent = {"file": SimpleUploadedFile("v.zip", sound()), "condition": "theirs"}
    assert logged_in.post("/api/v1/packages/", sent).status_code == 404
    assert not ReceivedPackage.objects.exists()


# -- Command


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "v.xrpkg.zip"
    path.write_bytes(sound())
    return path


def test_the_command_imports_and_says_the_same_the_second_time(file, capsys):
    told = []
    for _ in range(2):
        call_command("import_model", str(file), "--json")
        told.append(json.loads(capsys.readouterr().out))
    assert told[0]["new"] is True
    assert told[0] | {"new": False} == told[1]
    assert (told[0]["condition"], told[0]["version"], told[0]["number_there"]) == ("chest-pneumonia", 1, 3)
    assert file.exists()


def test_the_command_needs_the_yes_too(file, settings):
    file.write_bytes(sound(key=STRANGER))
    with pytest.raises(CommandError, match="not one of the trusted origins"):
        call_command("import_model", str(file))
    assert left(settings) == []
    call_command("import_model", str(file), "--accept-unknown-key")
    assert ModelVersion.objects.exists()


def test_the_command_says_why_a_package_is_refused(file, tmp_path):
    with pytest.raises(CommandError, match="cannot be read"):
        call_command("import_model", str(tmp_path / "nothing.zip"))
    file.write_bytes(sound(told={"threshold": 7}))
    with pytest.raises(CommandError, match=r"refused \(malformed\)"):
        call_command("import_model", str(file))
    file.write_bytes(malicious.with_file(b"/etc/passwd"))
    with pytest.raises(CommandError, match=r"refused \(absolute-path\)"):
        call_command("import_model", str(file))


# -- Trusted origins


def test_an_administrator_adds_an_origin_and_it_is_audited(client, administrator):
    client.force_login(administrator)
    listing = reverse("admin:registry_trustedorigin_changelist")
    page = client.get(listing).content.decode()
    from registry.exporting import site_key

    assert site_key().public_key in page
    add = reverse("admin:registry_trustedorigin_add")
    client.post(add, {"name": "Other site", "public_key": STRANGER.public_key.upper(), "active": "on"})
    added = TrustedOrigin.objects.get(name="Other site")
    assert (added.public_key, added.key_id) == (STRANGER.public_key, STRANGER.key_id)
    assert AuditEntry.objects.filter(action="trustedorigin.add", actor=administrator).exists()
    answer = client.post(add, {"name": "Nonsense", "public_key": "abc", "active": "on"})
    assert "not the public key of a site" in answer.content.decode()


def test_a_model_manager_cannot_trust_anybody(client, alice):
    alice.is_staff = True
    alice.save()
    client.force_login(alice)
    assert client.get(reverse("admin:registry_trustedorigin_add")).status_code == 403


def test_numbers_of_the_weights_come_through_unchanged(alice):
    version = run(receive(sound(), alice), alice).version
    weights = artifacts.load(version.folder, version.sha256).weights()
    assert all(np.array_equal(weights[name], array) for name, array in malicious.ARRAYS.items())
    shutil.rmtree(version.folder)
