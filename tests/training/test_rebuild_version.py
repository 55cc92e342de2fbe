"""A version of another site is rebuilt in a process of its own, from our own code, and proved before it is kept."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from django.conf import settings as platform
from django.core.management import call_command
from django.urls import reverse

from inference.engine import load
from registry import artifacts, claims, exporting, packages
from registry.models import ModelVersion, PackageImport, ReceivedPackage, TrustedOrigin
from registry.openvino_runtime import load_openvino
from registry.package_tasks import run_import
from registry.packages import MANIFEST, WEIGHTS
from registry.weights_file import check
from tests.factories import ConditionFactory
from tests.inference.versions import manifest
from tests.registry import malicious
from tests.registry.evaluations import make_evaluation
from training.ml import architectures, export, rebuilding
from training.ml.rebuilding import rebuild_foreign, write_keras, write_onnx
from training.rebuilding import writer

SIZE = 32


@pytest.fixture(scope="module")
def network():
    """An untrained network of the catalogue; what it answers is as good as anything."""
    return architectures.build("Custom_CNN", image_size=SIZE, classes=2)


def register(condition, network, folder, by=None):
    content = manifest(image_size=SIZE, golden=export.golden(network))
    graph = folder / "graph"
    graph.mkdir(parents=True)
    export.to_openvino(network, graph)
    staged = Path(platform.MODEL_ROOT) / "registry" / ".staging" / "trained"
    sha256 = artifacts.save(
        staged, manifest=content, weights=export.weights_of(network), openvino=graph, predictions={}
    )
    return ModelVersion.objects.register(
        condition, staged, sha256=sha256, manifest=content, by=by, dataset_name="CHEST/secret study",
        dataset_digest="d" * 64, split_digest="e" * 64, origin="trained here, run 1",
    )  # fmt: skip


@pytest.fixture
def version(team, alice, network, tmp_path):
    version = register(ConditionFactory(slug="chest", name="Chest", team=team), network, tmp_path / "made", alice)
    make_evaluation(version, patients=10)
    return version


def answers(folder, sha256):
    images = np.random.default_rng(5).integers(0, 256, (12, SIZE, SIZE), np.uint8)
    return load(folder, sha256).answer(images)


# -- In this process: what is refused, and why


@pytest.fixture
def package(network, tmp_path):
    """The parts of a package of the network: file of the weights, manifest, where the version is to go."""
    from safetensors.numpy import save_file

    save_file(export.weights_of(network), tmp_path / WEIGHTS)
    told = claims.manifest(manifest(image_size=SIZE, golden=export.golden(network)) | {"format": 1})
    return tmp_path / WEIGHTS, told, tmp_path / "version"


def rebuild(weights, told, target):
    return rebuild_foreign(weights, check(weights), told, target)


def refused(reason, weights, told, target):
    with pytest.raises(packages.PackageError) as error:
        rebuild(weights, told, target)
    assert error.value.reason == reason
    assert not target.exists()


def test_a_sound_package_becomes_a_version_folder(package, network):
    weights, told, target = package
    artifact = artifacts.load(target, rebuild(weights, told, target))
    assert artifact.manifest["golden"] == told["golden"]
    assert artifact.openvino_xml.exists()
    assert "predictions.npz" not in artifact.manifest["members"]
    kept = artifact.weights()
    assert all(np.array_equal(kept[name], array) for name, array in export.weights_of(network).items())
    load(target, artifact.sha256)


def test_an_architecture_that_is_not_ours_is_refused(package):
    weights, told, target = package
    refused("unknown-architecture", weights, told | {"architecture": "InceptionV9"}, target)


def test_a_treatment_of_pixels_that_is_not_ours_is_refused(package):
    weights, told, target = package
    refused(
        "unknown-preprocessing", weights, told | {"preprocessing": {"id": "x", "version": 1, "fit": "warp"}}, target
    )
    steps = {"id": "x", "version": 1, "fit": "pad", "steps": ["download"]}
    refused("unknown-preprocessing", weights, told | {"preprocessing": steps}, target)


def test_weights_of_another_shape_name_or_type_are_refused(package, network, tmp_path):
    from safetensors.numpy import save_file

    _, told, target = package
    weights = export.weights_of(network)
    for number, changed in enumerate((
        weights | {"head/bias": np.zeros(3, np.float32)},
        weights | {"more/kernel": np.zeros(3, np.float32)},
        {name: array for name, array in weights.items() if name != "head/bias"},
        weights | {"head/bias": np.zeros(2, np.float64)},
    )):  # fmt: skip
        save_file(changed, tmp_path / f"{number}.safetensors")
        refused("wrong-shapes", tmp_path / f"{number}.safetensors", told, target)


def test_a_network_that_answers_otherwise_is_refused(package, network, tmp_path):
    weights, told, target = package
    shifted = [[first + 0.001, second - 0.001] for first, second in told["golden"]["outputs"]]
    refused("golden-differs", weights, told | {"golden": told["golden"] | {"outputs": shifted}}, target)


# -- In a process of its own


@pytest.mark.slow
def test_the_keras_file_loads_elsewhere_and_answers_as_the_version_does(version, tmp_path, logged_in, settings):
    from training.ml.runtime import keras

    writer("keras")(version, tmp_path / "v.keras")
    model = keras.models.load_model(tmp_path / "v.keras")
    golden = json.loads((version.folder / MANIFEST).read_text())["golden"]
    images = artifacts.golden_images(golden["seed"], golden["count"], SIZE)
    outputs = model.predict_on_batch(images[..., None].astype(np.float32) / np.float32(255))
    assert np.abs(outputs - np.array(golden["outputs"])).max() < 1e-4
    answer = logged_in.get(reverse("registry:version-export", args=[version.pk]), {"as": "keras"})
    assert 'filename="chest-v1.keras"' in answer["Content-Disposition"]
    assert b"".join(answer.streaming_content).startswith(b"PK")
    assert list((settings.MODEL_ROOT / "exports").iterdir()) == []


@pytest.mark.slow
def test_the_onnx_file_is_read_by_another_program_and_answers_as_the_version_does(version, tmp_path):
    pytest.importorskip("tf2onnx", reason="the converter to ONNX is not installed")
    writer("onnx")(version, tmp_path / "v.onnx")
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = load_openvino().Core().compile_model(str(tmp_path / "v.onnx"), "CPU", options)
    golden = json.loads((version.folder / MANIFEST).read_text())["golden"]
    images = artifacts.golden_images(golden["seed"], golden["count"], SIZE)
    outputs = compiled([images[..., None].astype(np.float32) / np.float32(255)])[0]
    assert np.abs(outputs - np.array(golden["outputs"])).max() < 1e-4


def test_without_the_converter_the_export_says_so(version, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(artifacts.ArtifactError, match="not installed on this server"):
        write_onnx(artifacts.load(version.folder, version.sha256), tmp_path / "v.onnx")
    assert not (tmp_path / "v.onnx").exists()


def test_a_keras_file_that_answers_otherwise_is_not_kept(version, tmp_path, monkeypatch):
    monkeypatch.setattr(rebuilding, "predictions", lambda model, manifest: np.full((4, 2), 0.5))
    with pytest.raises(artifacts.ArtifactError, match="was not kept"):
        write_keras(artifacts.load(version.folder, version.sha256), tmp_path / "v.keras")
    assert not (tmp_path / "v.keras").exists()


def harmful(version, tmp_path, **told):
    """A signed package of the version that tells something else of it."""
    exporting.export(version, tmp_path / "v.zip", by=None)
    read = packages.read(tmp_path / "v.zip", tmp_path / "read", trusted={}, accept=["unknown-key"])
    changed = read.documents[MANIFEST] | told
    members = {name: (read.folder / name).read_bytes() for name in packages.MEMBERS}
    members |= {MANIFEST: packages.to_bytes(changed), "golden.json": packages.to_bytes(changed["golden"])}
    packages.write(tmp_path / "harmful.zip", read.label.description, members, key=malicious.KEY)
    return (tmp_path / "harmful.zip").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"architecture": "InceptionV9"}, "unknown-architecture"),
        ({"image_size": 64, "architecture": "MobileNetV3Small"}, "wrong-shapes"),
        ({"golden": {"seed": 1, "count": 1, "outputs": [[0.25, 0.75]]}}, "golden-differs"),
    ],
    ids=["architecture", "shapes", "golden"],
)
def test_what_cannot_be_rebuilt_is_refused_audited_and_gone(told, reason, version, alice, tmp_path, settings):
    from xrayplatform.audit import AuditEntry

    TrustedOrigin.objects.create(name="Friends", public_key=malicious.KEY.public_key)
    package = ReceivedPackage.objects.receive(io.BytesIO(harmful(version, tmp_path, **told)), by=alice)
    job = PackageImport.create(package, alice, condition=version.condition)
    run_import(job, 1)
    job.refresh_from_db()
    assert (job.state, job.reason) == ("failed", reason)
    assert AuditEntry.objects.get(action="package.refuse").after["reason"] == reason
    assert not job.staging.exists()
    assert not package.file.exists()
    assert ModelVersion.objects.count() == 1


def other_site(root, *arguments):
    """A command of a platform with its own database, its own models and its own key."""
    environment = os.environ | {
        "DATABASE_URL": f"sqlite:///{root / 'db.sqlite3'}", "MODEL_ROOT": str(root / "models"),
        "DATASET_ROOT": str(root / "Dataset"), "SECRET_KEY": "another site", "SITE_NAME": "The other site",
        "DJANGO_SETTINGS_MODULE": "xrayplatform.settings", "MIN_FREE_DISK_GB": "0",
    }  # fmt: skip
    command = [sys.executable, str(platform.BASE_DIR / "manage.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_version_travels_to_another_site_and_answers_the_same_there(version, tmp_path, settings):
    settings.SITE_NAME = "St. Example"
    file, root = tmp_path / "chest-v1.xrpkg.zip", tmp_path / "other"
    (root / "models").mkdir(parents=True)
    (root / "Dataset").mkdir()
    call_command("export_model", "chest", "1", str(file), "--json")
    other_site(root, "migrate", "-v", "0")
    told = json.loads(other_site(root, "import_model", file, "--accept-unknown-key", "--json").splitlines()[-1])
    assert (told["condition"], told["version"], told["origin"], told["number_there"]) == ("chest", 1, "St. Example", 1)
    folder = root / "models" / "registry" / "chest" / "1"
    there = artifacts.load(folder, told["sha256"]).manifest
    here = artifacts.load(version.folder, version.sha256).manifest
    for part in ("test", "validation"):
        known = there["metrics"][part]
        assert {name: value for name, value in known.items() if name in here["metrics"][part]} == here["metrics"][part]
    assert np.abs(answers(folder, told["sha256"]) - answers(version.folder, version.sha256)).max() < 1e-4
    again = json.loads(other_site(root, "import_model", file, "--accept-unknown-key", "--json").splitlines()[-1])
    assert again == told | {"new": False}
    back = tmp_path / "back.xrpkg.zip"
    other_site(root, "export_model", "chest", 1, back, "--json")
    assert packages.read_label(back, trusted={}).description["origin"]["name"] == "The other site"
