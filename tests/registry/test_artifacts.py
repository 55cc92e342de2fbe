"""A version folder appears whole or not at all, and is refused once a byte of it differs."""

import json
import shutil

import numpy as np
import pytest

from registry import artifacts
from registry.artifacts import ArtifactError

WEIGHTS = {"head/kernel": np.arange(6, dtype=np.float32).reshape(3, 2), "normalization/count": np.int32(7)}
PREDICTIONS = {"test_labels": np.array([0, 1]), "test_probabilities": np.array([[0.9, 0.1], [0.2, 0.8]])}


@pytest.fixture
def graph(tmp_path):
    folder = tmp_path / "graph"
    folder.mkdir()
    (folder / "model.xml").write_text("<net/>")
    (folder / "model.bin").write_bytes(bytes(100))
    return folder


@pytest.fixture
def saved(tmp_path, graph):
    folder = tmp_path / "registry" / "1"
    digest = artifacts.save(
        folder, manifest={"architecture": "Custom_CNN"}, weights=WEIGHTS, openvino=graph, predictions=PREDICTIONS
    )
    return folder, digest


def test_a_saved_version_loads_with_what_was_put_in(saved):
    artifact = artifacts.load(*saved)
    assert artifact.manifest["architecture"] == "Custom_CNN"
    assert artifact.openvino_xml.read_text() == "<net/>"
    weights, predictions = artifact.weights(), artifact.predictions()
    assert weights.keys() == WEIGHTS.keys() and predictions.keys() == PREDICTIONS.keys()
    assert all(np.array_equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert all(np.array_equal(predictions[name], PREDICTIONS[name]) for name in PREDICTIONS)


def test_the_manifest_lists_size_and_digest_of_every_other_file(saved):
    folder, _ = saved
    listed = json.loads((folder / "manifest.json").read_text())["members"]
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(listed) == there - {"manifest.json"}
    assert listed["openvino/model.bin"]["size"] == 100


@pytest.mark.parametrize("member", artifacts.MEMBERS)
def test_one_changed_byte_in_any_file_is_refused(saved, member):
    folder, digest = saved
    content = bytearray((folder / member).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / member).write_bytes(content)
    with pytest.raises(ArtifactError, match=member) as refusal:
        artifacts.load(folder, digest)
    assert refusal.value.reason == "changed"


@pytest.mark.parametrize("member", artifacts.MEMBERS)
def test_a_truncated_file_is_refused(saved, member):
    folder, digest = saved
    (folder / member).write_bytes((folder / member).read_bytes()[:-1])
    with pytest.raises(ArtifactError) as refusal:
        artifacts.load(folder, digest)
    assert refusal.value.reason == "truncated"


@pytest.mark.parametrize("member", [*artifacts.MEMBERS, artifacts.MANIFEST])
def test_a_missing_file_is_refused(saved, member):
    folder, digest = saved
    (folder / member).unlink()
    with pytest.raises(ArtifactError) as refusal:
        artifacts.load(folder, digest)
    assert refusal.value.reason == "missing"


def test_a_manifest_rewritten_to_fit_changed_weights_is_refused(saved):
    folder, digest = saved
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["threshold"] = 0.01
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="changed after it was registered") as refusal:
        artifacts.load(folder, digest)
    assert refusal.value.reason == "changed"


def test_a_newer_format_is_refused_with_the_advice_to_upgrade(saved, monkeypatch):
    monkeypatch.setattr(artifacts, "FORMAT", 0)
    with pytest.raises(ArtifactError, match="Upgrade") as refusal:
        artifacts.load(*saved)
    assert refusal.value.reason == "newer format"


def test_a_member_outside_the_folder_is_refused_even_under_a_fitting_digest(saved, monkeypatch):
    folder, _ = saved
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "MEMBERS", (*artifacts.MEMBERS, "../graph/model.xml"))
        shutil.rmtree(folder)
        (folder.parent / "graph").mkdir()
        (folder.parent / "graph" / "model.xml").write_text("<net/>")
        digest = artifacts.save(folder, manifest={}, weights=WEIGHTS, openvino=None, predictions={})
    with pytest.raises(ArtifactError, match="no part of a version"):
        artifacts.load(folder, digest)


def test_a_crashed_save_leaves_no_version_and_does_not_hinder_the_next(tmp_path, graph, monkeypatch):
    folder = tmp_path / "1"

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "sync_tree", fail)
        with pytest.raises(OSError, match="No space left"):
            artifacts.save(folder, manifest={}, weights=WEIGHTS, openvino=graph, predictions={})
    assert not folder.exists()
    digest = artifacts.save(folder, manifest={}, weights=WEIGHTS, openvino=graph, predictions={})
    assert artifacts.load(folder, digest).sha256 == digest
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_saving_again_replaces_what_an_earlier_attempt_staged(saved):
    folder, earlier = saved
    digest = artifacts.save(folder, manifest={"attempt": 2}, weights=WEIGHTS, openvino=None, predictions={})
    assert digest != earlier
    assert artifacts.load(folder, digest).manifest["attempt"] == 2
    assert not (folder / "openvino").exists()


def test_weights_that_are_not_numbers_are_not_saved(tmp_path):
    broken = {"head/kernel": np.array([1.0, np.nan], np.float32)}
    with pytest.raises(ArtifactError, match="head/kernel") as refusal:
        artifacts.save(tmp_path / "1", manifest={}, weights=broken, openvino=None, predictions={})
    assert refusal.value.reason == "unusable"
    assert list(tmp_path.iterdir()) == []


def test_pickled_predictions_are_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("was unpickled",))

    with pytest.raises(ValueError, match="allow_pickle=False"):
        artifacts.save(
            tmp_path / "1",
            manifest={},
            weights=WEIGHTS,
            openvino=None,
            predictions={"x": np.array([Trap()], dtype=object)},
        )


def test_a_version_without_openvino_graph_says_so(tmp_path):
    digest = artifacts.save(tmp_path / "1", manifest={}, weights=WEIGHTS, openvino=None, predictions={})
    with pytest.raises(ArtifactError, match="derive it from the weights"):
        _ = artifacts.load(tmp_path / "1", digest).openvino_xml


def test_placing_moves_the_folder_and_replaces_what_a_crash_left(saved, tmp_path):
    folder, digest = saved
    target = tmp_path / "chest-pneumonia" / "1"
    target.mkdir(parents=True)
    (target / "half-written").write_text("")
    artifacts.place(folder, target)
    assert artifacts.load(target, digest).folder == target
    assert not folder.exists()
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_golden_images_are_the_same_for_ever_and_use_the_whole_range():
    images = artifacts.golden_images(7, 3, 64)
    assert images.shape == (3, 64, 64) and images.dtype == np.uint8
    assert images.min() < 30 and images.max() > 225
    assert np.abs(np.diff(images.astype(int), axis=2)).max() < 40, "smooth like a radiograph, no noise"
    assert images[:, ::20, ::20].reshape(3, -1).sum(axis=1).tolist() == [2153, 2238, 2004]
