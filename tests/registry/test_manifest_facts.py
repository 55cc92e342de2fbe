"""What is read of a version's files without loading them: the verified manifest, and the number of weights."""

import json

import numpy as np
import pytest

from registry import artifacts


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "1"
    weights = {"dense/kernel": np.ones((3, 4), np.float32), "dense/bias": np.zeros(4, np.float32)}
    manifest = {"data": {"seed": 7}}
    return folder, artifacts.save(folder, manifest=manifest, weights=weights, openvino=None, predictions={})


def test_the_manifest_is_read_without_the_other_files(saved):
    folder, sha256 = saved
    (folder / artifacts.WEIGHTS).unlink()
    assert artifacts.load_manifest(folder, sha256)["data"] == {"seed": 7}


def test_a_manifest_with_another_digest_is_refused(saved):
    folder, _ = saved
    with pytest.raises(artifacts.ArtifactError, match="was changed"):
        artifacts.load_manifest(folder, "0" * 64)


def test_weights_are_counted_by_the_shapes_in_the_head_of_their_file(saved):
    assert artifacts.count_weights(saved[0]) == 16


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (9).to_bytes(8, "little") + b"{",
        (2).to_bytes(8, "little") + b"[]",
        (11).to_bytes(8, "little") + b'{"a":"b"} x',
        (20).to_bytes(8, "little") + json.dumps({"a": {"shape": 3}}).encode(),
    ],
)
def test_what_is_no_file_of_weights_has_no_number(tmp_path, content):
    (tmp_path / artifacts.WEIGHTS).write_bytes(content)
    assert artifacts.count_weights(tmp_path) is None


def test_without_a_file_there_is_no_number(tmp_path):
    assert artifacts.count_weights(tmp_path) is None
