"""A weights file is looked at block by block, and refused before anything is made of it. See malicious.py for more."""

import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry import weights_file
from registry.weights_file import WeightsError
from tests.registry.malicious import MB, described, keras_archive, pickled, weights

RAW = {"F64": "<u8", "F32": "<u4", "F16": "<u2"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def reason(path, content):
    path.write_bytes(content)
    with pytest.raises(WeightsError) as refused:
        weights_file.check(path)
    assert len(str(refused.value).split()) > 8, "says what is wrong and what to do"
    return refused.value.reason


def test_what_the_library_writes_is_sound(path):
    arrays = {
        "head/kernel": np.ones((3, 2), np.float32),
        "head/scale": np.array(0.5, np.float64),
        "half": np.array([np.finfo(np.float16).max, -0.0, 6e-8], np.float16),
        "count": np.array(7, np.int64),
        "bytes": np.arange(256, dtype=np.uint8),
    }
    safetensors.numpy.save_file(arrays, path, metadata={"format": "np"})
    assert weights_file.check(path) == {name: array.shape for name, array in arrays.items()}


@pytest.mark.parametrize("dtype", weights_file.ITEM_BYTES)
def test_every_kind_of_number_that_is_taken_can_be_loaded(path, dtype):
    path.write_bytes(
        weights(
            {"a": described(dtype, [2], 0, 2 * weights_file.ITEM_BYTES[dtype])},
            bytes(16)[: 2 * weights_file.ITEM_BYTES[dtype]],
        )
    )
    assert weights_file.check(path) == {"a": (2,)}
    assert safetensors.numpy.load_file(path)["a"].shape == (2,)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dtype=st.sampled_from(list(RAW)), data=st.data())
def test_what_is_finite_is_what_numpy_says(path, dtype, data):
    size = weights_file.ITEM_BYTES[dtype]
    special = st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0, 1.0])
    raw = st.binary(min_size=size, max_size=size)
    kind = np.dtype(RAW[dtype].replace("u", "f"))
    numbers = data.draw(st.lists(raw | special.map(lambda value: kind.type(value).tobytes()), min_size=1, max_size=5))
    content = b"".join(numbers)
    path.write_bytes(weights({"a": described(dtype, [len(numbers)], 0, len(content))}, content))
    finite = bool(np.isfinite(np.frombuffer(content, kind)).all())
    try:
        weights_file.check(path)
        assert finite
    except WeightsError as refused:
        assert refused.reason == "not-finite" and not finite


@pytest.mark.parametrize("position", [0, MB // 4 - 1, MB // 4, MB // 2 + 12_344])
def test_one_value_that_is_no_number_is_found_in_any_block(path, position):
    array = np.zeros(MB // 2 + 12_345, np.float32)
    array[position] = np.nan
    assert reason(path, safetensors.numpy.save({"before": np.zeros(3, np.float32), "kernel": array})) == "not-finite"


def test_whole_numbers_may_have_any_bits(path):
    path.write_bytes(weights({"a": described("I32", [2], 0, 8)}, b"\xff" * 8))
    assert weights_file.check(path) == {"a": (2,)}


@pytest.mark.parametrize(
    ("content", "kind"), [(pickled(), "pickle"), (keras_archive(), "zip archive"), (b"\x89HDF\r\n\x1a\n" * 9, "HDF5")]
)
def test_another_format_is_named(path, content, kind):
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=kind) as refused:
        weights_file.check(path)
    assert refused.value.reason == "disguised"


def test_a_head_may_begin_like_a_pickle_by_chance(path):
    """Its length in bytes, 0x0280, is the beginning of a pickle as well; a sound head decides."""
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(0x0280)
    path.write_bytes(weights(text, b"1"))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert weights_file.check(path) == {"a": (1,)}


def test_a_name_in_a_refusal_is_short_and_harmless(path):
    name = "\x1b[31m" + "x" * 500
    path.write_bytes(weights({name: described("F32", [1], 0, 4)}, bytes(4)))
    with pytest.raises(WeightsError) as refused:
        weights_file.check(path)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 200


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(path, monkeypatch):
    monkeypatch.setattr(weights_file, "_check_places", lambda arrays, available: None)
    assert reason(path, weights({"a": described("F32", [4], 0, 16)}, bytes(10))) == "truncated"


def test_a_large_file_is_read_in_blocks(path):
    safetensors.numpy.save_file({"kernel": np.ones(10 * MB, np.float32)}, path)
    tracemalloc.start()
    try:
        weights_file.check(path)
        assert tracemalloc.get_traced_memory()[1] < 5 * MB
    finally:
        tracemalloc.stop()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 20))
def test_a_damaged_file_is_refused_or_can_be_loaded(path, position, byte, cut):
    content = bytearray(safetensors.numpy.save({"a/b": np.ones((2, 3), np.float32), "c": np.arange(4)}))
    content[position % len(content)] = byte
    path.write_bytes(content[: len(content) - cut])
    try:
        shapes = weights_file.check(path)
    except WeightsError:
        return
    assert {name: array.shape for name, array in safetensors.numpy.load_file(path).items()} == shapes
