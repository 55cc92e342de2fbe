"""A version leaves as a signed package, or as files for other tools; nothing about patients leaves with it."""

import io
import json
import stat
import zipfile

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from registry import exporting, packages, signing
from registry.packages import MEMBERS, PACKAGE
from registry.signing import SignatureState
from tests.factories import ConditionFactory, ModelVersionFactory
from tests.inference.versions import make_version
from tests.registry.evaluations import make_evaluation
from tests.tampering import tampered
from xrayplatform.audit import AuditEntry

pytestmark = pytest.mark.django_db
SECRETS = ("secret study", "CHEST/", "person12", "predictions", "Another clinic")


@pytest.fixture
def version(team, alice, settings):
    settings.SITE_NAME = "St. Example"
    condition = ConditionFactory(slug="chest", name="Chest", team=team)
    made = make_version(condition, by=alice)
    tampered(made, dataset_name="CHEST/secret study person12")
    made.refresh_from_db()
    make_evaluation(made, patients=10)
    make_evaluation(made, kind="external", patients=10, seed=3)
    return made


@pytest.fixture
def package(version, alice, tmp_path):
    exporting.export(version, tmp_path / "v.zip", by=alice)
    return tmp_path / "v.zip"


def trusted():
    key = exporting.site_key()
    return {key.key_id: key.public_key}


def test_a_package_is_read_by_whoever_trusts_the_key_of_this_site(package, tmp_path, version):
    read = packages.read(package, tmp_path / "staging", trusted=trusted())
    told = read.label.description
    assert read.label.signature.state == SignatureState.TRUSTED
    assert told["origin"]["name"] == "St. Example"
    assert told["condition"]["slug"] == "chest"
    assert told["version"]["number"] == version.number
    assert told["lineage"]["version"] == version.sha256
    assert [row["kind"] for row in read.documents["evaluations.json"]] == ["test", "external"]
    assert read.documents["model_card.json"]["sections"]


def test_nothing_of_patients_files_or_predictions_leaves(package):
    with zipfile.ZipFile(package) as archive:
        assert [name for name in archive.namelist() if name not in ("signature.json", PACKAGE)] == list(MEMBERS)
        texts = [archive.read(name).decode() for name in archive.namelist() if not name.endswith(".safetensors")]
    for secret in SECRETS:
        assert not any(secret in text for text in texts), secret


def test_the_answers_behind_the_figures_stay(package, version):
    digest = version.evaluations.first().images.digests[0]
    assert str(digest).encode() not in package.read_bytes()


def test_the_key_of_the_site_is_made_once_and_only_its_owner_reads_it(package, version, alice, tmp_path, settings):
    path = exporting.key_file()
    assert path.is_relative_to(settings.MODEL_ROOT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    exporting.export(version, tmp_path / "again.zip", by=alice)
    assert path.read_bytes() == before


def test_the_key_may_lie_elsewhere(version, alice, tmp_path, settings):
    key = signing.create_key(tmp_path / "elsewhere.pem")
    settings.SIGNING_KEY = str(tmp_path / "elsewhere.pem")
    exporting.export(version, tmp_path / "v.zip", by=alice)
    label = packages.read_label(tmp_path / "v.zip", trusted={key.key_id: key.public_key})
    assert label.signature.state == SignatureState.TRUSTED
    assert not (settings.MODEL_ROOT / "keys").exists()


def test_an_export_is_in_the_audit_log(package, version, alice):
    entry = AuditEntry.objects.get(action="version.export")
    assert (entry.actor, entry.object_id) == (alice, str(version.pk))
    assert entry.after == {
        "package": packages.read_label(package, trusted={}).sha256, "key": exporting.site_key().key_id,
    }  # fmt: skip


@pytest.mark.parametrize("address", ["registry:version-export", "api:version-export"])
def test_page_and_api_stream_the_same_package_and_leave_nothing(address, version, logged_in, settings, tmp_path):
    answer = logged_in.get(reverse(address, args=[version.pk]))
    assert answer.status_code == 200
    assert 'filename="chest-v1.xrpkg.zip"' in answer["Content-Disposition"]
    content = b"".join(answer.streaming_content)
    assert int(answer["Content-Length"]) == len(content)
    (tmp_path / "v.zip").write_bytes(content)
    assert packages.read_label(tmp_path / "v.zip", trusted=trusted()).signature.state == SignatureState.TRUSTED
    assert list((settings.MODEL_ROOT / "exports").iterdir()) == []


@pytest.mark.parametrize(
    ("address", "status"), [("registry:version-export", 302), ("api:version-export", 409)], ids=["page", "api"]
)
def test_a_damaged_version_is_not_exported(address, status, version, logged_in, settings):
    with (version.folder / "weights.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    answer = logged_in.get(reverse(address, args=[version.pk]))
    assert answer.status_code == status
    assert not AuditEntry.objects.filter(action="version.export").exists()
    assert list((settings.MODEL_ROOT / "exports").iterdir()) == []


def test_a_form_that_there_is_none_of_is_refused(version, logged_in):
    assert logged_in.get(reverse("registry:version-export", args=[version.pk]), {"as": "pickle"}).status_code == 404
    answer = logged_in.get(reverse("api:version-export", args=[version.pk]), {"as": "pickle"})
    assert answer.status_code == 400
    assert answer.json()["errors"] == {"as": ["There are package, openvino, keras, onnx."]}


def test_the_openvino_graph_leaves_as_a_zip_that_answers_like_the_version(version, logged_in, tmp_path):
    from registry.openvino_runtime import load_openvino

    answer = logged_in.get(reverse("registry:version-export", args=[version.pk]), {"as": "openvino"})
    with zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content))) as archive:
        assert sorted(archive.namelist()) == ["model.bin", "model.xml"]
        archive.extractall(tmp_path)
    compiled = (
        load_openvino().Core().compile_model(str(tmp_path / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    )
    golden = json.loads((version.folder / "manifest.json").read_text())["golden"]
    images = packages.artifacts.golden_images(golden["seed"], golden["count"], version.image_size)
    outputs = compiled([images[..., None].astype(np.float32) / np.float32(255)])[0]
    assert np.abs(outputs - np.array(golden["outputs"])).max() < 1e-4


def test_the_page_offers_the_files_to_model_managers_alone(version, client, alice, bob):
    for user, offered in ((alice, True), (bob, False)):
        client.force_login(user)
        page = client.get(version.get_absolute_url()).content.decode()
        assert ("?as=keras" in page) is offered


def test_the_command_writes_the_package(version, tmp_path, capsys):
    call_command("export_model", "chest", "1", str(tmp_path / "out.zip"), "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["package"] == packages.read_label(tmp_path / "out.zip", trusted={}).sha256
    assert told["size"] == (tmp_path / "out.zip").stat().st_size


def test_the_command_says_what_is_wrong(version, tmp_path, bob):
    out = str(tmp_path / "out.zip")
    for arguments, words in (
        (["chest", "9", out], "There is no version 9"),
        (["chest", "1", str(tmp_path / "no folder" / "out.zip")], "cannot be written"),
        (["chest", "1", out, "--user", "bob"], "no role that allows this"),
    ):
        with pytest.raises(CommandError, match=words):
            call_command("export_model", *arguments)


def test_a_version_without_files_is_not_exported(db, tmp_path, alice):
    with pytest.raises(CommandError, match="not where they should be"):
        version = ModelVersionFactory()
        call_command("export_model", version.condition.slug, str(version.number), str(tmp_path / "out.zip"))


# -- A whole condition: by the command, which waits for it; the job is in test_condition_export.py


def test_a_whole_condition_leaves_with_its_history(version, alice, tmp_path, capsys):
    second = make_version(version.condition, by=alice)
    damaged = make_version(version.condition, by=alice)
    (damaged.folder / "weights.safetensors").unlink()
    version.condition.activations.create(to_version=version, by=alice, reason="the first")
    version.condition.activations.create(from_version=version, to_version=second, by=alice, reason="better")
    call_command("export_condition", "chest", str(tmp_path / "chest.zip"), "--json", "--user", "alice")
    assert [path.name for path in tmp_path.glob("*.zip*")] == ["chest.zip"]
    with zipfile.ZipFile(tmp_path / "chest.zip") as archive:
        assert archive.namelist() == ["chest-v1.xrpkg.zip", "chest-v2.xrpkg.zip", "history.json"]
        history = json.loads(archive.read("history.json"))
        archive.extractall(tmp_path)
    assert json.loads(capsys.readouterr().out)["versions"] == history["versions"]
    for number, told in ((1, history["versions"][0]), (2, history["versions"][1])):
        label = packages.read_label(tmp_path / f"chest-v{number}.xrpkg.zip", trusted=trusted())
        assert label.signature.state == SignatureState.TRUSTED
        assert (told["number"], told["package"]) == (number, label.sha256)
    assert "is missing" in history["versions"][2]["problem"]
    assert [(row["from"], row["to"], row["reason"]) for row in history["activations"]] == [
        (None, 1, "the first"), (1, 2, "better"),
    ]  # fmt: skip
    assert not any(secret in json.dumps(history) for secret in SECRETS)
    assert AuditEntry.objects.filter(action="condition.export", actor=alice).exists()
