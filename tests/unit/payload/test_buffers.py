"""Arrays travel beside the pickle, are copied once on each side, and arrive writable."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rush_executor._payload.arrays import OTHER_WAY
from rush_executor._payload.wire import BUFFERS, read_buffers, table_of
from rush_executor.errors import PayloadError
from tests.unit.payload import support
from tests.unit.payload.support import SECRET, TASK, Sides


def received(array: Any) -> Any:
    """The array as a task gets it."""
    sides = Sides()
    return sides.decoder.decode_call("c", TASK, sides.encode(support.same, array)).args[0]


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


BASE = np.arange(24.0).reshape(4, 6)
ARRAYS = {
    "C": BASE,
    "Fortran": np.asfortranarray(BASE),
    "transposed": BASE.reshape(2, 3, 4).transpose(1, 0, 2),
    "strided": BASE[::2, 1::2],
    "reversed": BASE[::-1],
    "broadcast": np.broadcast_to(np.ones(3), (4, 3)),
    "empty": np.zeros((0, 3)),
    "scalar array": np.array(5.0),
    "read-only": read_only(BASE.copy()),
    "read-only Fortran": read_only(np.asfortranarray(BASE)),
    "of frombuffer": np.frombuffer(bytes(16), dtype="i8"),
    "dates": np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
    "text": np.array(["a", "bcd"]),
    "objects": np.array([1, "a", None], dtype=object),
    "structured": np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
    "booleans": np.array([True, False]),
    "complex": np.array([1j, 2]),
    "masked": np.ma.masked_array([1, 2, 3], mask=[0, 1, 0]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_equal_and_writable(name: str) -> None:
    """Of every layout and type, from writable and read-only sources, in and out."""
    array = ARRAYS[name]
    for back in (received(array), Sides().back(array), Sides(SECRET).back(array)):
        assert type(back) is type(array)
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert np.array_equal(back, array, equal_nan=array.dtype.kind in "fcM")
        assert back.flags.writeable
        if back.size:
            back[...] = back.flat[0]


@given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(max_dims=3, max_side=5)), st.booleans())
def test_any_array(array: Any, is_writable: bool) -> None:
    """Whatever the type and shape; NumPy is free to change the byte order to the machine's own."""
    array.flags.writeable = is_writable
    back = received(array)
    native = array.dtype.newbyteorder("=")
    assert back.dtype.newbyteorder("=") == native
    assert back.shape == array.shape
    assert back.astype(native).tobytes() == array.astype(native).tobytes()
    assert back.flags.writeable


def test_array_in_a_closure_is_writable() -> None:
    """A function by value carries its arrays inside the pickle; those are writable too."""
    data = read_only(np.zeros(3))

    def fill() -> Any:
        data[:] = 1
        return data

    assert Sides().call(fill).tolist() == [1, 1, 1]


def test_layout_is_kept() -> None:
    """A Fortran array stays one: a task's algorithm may count on it."""
    assert received(np.asfortranarray(BASE)).flags.f_contiguous


def test_shared_arrays_stay_shared() -> None:
    """The same array twice is one array in the task, and is carried once."""
    sides = Sides()
    array = np.zeros(1000)
    payload = sides.encode(support.same, (array, array))
    assert len(payload) < 2 * array.nbytes
    ((first, second),) = sides.decoder.decode_call("c", TASK, payload).args
    assert first is second


def test_tasks_do_not_share_memory() -> None:
    """Each decoding has memory of its own; what one does to its array no other sees."""
    sides = Sides()
    payload = sides.encode(support.same, np.zeros(3))
    first, second = (sides.decoder.decode_call("c", TASK, payload).args[0] for _ in range(2))
    first[:] = 1
    assert second.tolist() == [0, 0, 0]


@pytest.mark.parametrize("secret", [None, SECRET])
def test_large_array_is_copied_once(secret: bytes | None) -> None:
    """Encoding 80 MB takes the payload (and an eighth reserved while it grows), decoding the array; sealed or not."""
    sides = Sides(secret)
    function = sides.function(support.same)
    array = np.ones(10_000_000)
    tracemalloc.start()
    try:
        payload = sides.encoder.encode_call(TASK, function, (array,), {})
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 1.15 * array.nbytes
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        call = sides.decoder.decode_call("c", TASK, payload)
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < 1.05 * array.nbytes
    finally:
        tracemalloc.stop()
    assert np.array_equal(call.args[0], array)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("part", [slice(None), slice(1, 3), (slice(None), slice(1, 3))], ids=["all", "rows", "columns"])
def test_mapped_file(tmp_path: Path, mode: str, part: Any) -> None:
    """A memmap travels as the array that it shows: the other side has no such file."""
    BASE.tofile(tmp_path / "file")
    mapped = np.memmap(tmp_path / "file", BASE.dtype, mode, shape=BASE.shape)[part]
    for back in (received(mapped), Sides().back(mapped)):
        assert type(back) is np.ndarray
        assert np.array_equal(back, BASE[part])
        assert back.flags.writeable


def test_other_way() -> None:
    """Who submits may send some arrays in another way than through the pickle; nobody else's are touched."""
    large, small = np.zeros(1000), np.ones(3)
    seen = []

    def elsewhere(array: Any) -> Any:
        seen.append(array)
        return (list, (range(3),)) if array is large else None

    token = OTHER_WAY.set(elsewhere)
    try:
        back = received({"a": [large, small]})
    finally:
        OTHER_WAY.reset(token)
    assert back["a"][0] == [0, 1, 2]
    assert back["a"][1].tolist() == [1, 1, 1]
    assert [array is large for array in seen] == [True, False]
    assert received(large).tolist() == large.tolist()


def test_pickle_buffers() -> None:
    """A PickleBuffer of the user's own arrives as a buffer; one that pickle refuses fails its call with a name."""
    sides = Sides()
    assert bytes(sides.call(support.same, PickleBuffer(b"abc"))) == b"abc"
    assert bytes(sides.call(support.same, PickleBuffer(np.asfortranarray(BASE)))) == BASE.tobytes("F")
    with pytest.raises(PayloadError, match=r"argument 1 of same\(\).*PickleBuffer.*non-contiguous"):
        sides.encode(support.same, PickleBuffer(BASE[::2, ::2]))


def test_buffers_do_not_leave_the_client_locked() -> None:
    """A bytearray under an array can be resized again once the call is encoded."""
    memory = bytearray(80)
    Sides().encode(support.same, np.frombuffer(memory, dtype="f8"))
    memory.extend(b"x")


def test_lengths_are_64_bit() -> None:
    """The table has room for buffers of more than 4 GiB."""
    assert table_of([2**40 + 1]) == (2**40 + 1).to_bytes(8, "little") + b"\1\0\0\0"


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"\1",
        table_of([10**6]),
        b"\xff\xff\xff\xff",
        table_of([5, 5])[:-4] + b"\3\0\0\0",
        table_of([2**64 - 1] * 2),
    ],
)
def test_damaged_table(tail: bytes) -> None:
    """A table that does not fit is found before anything is read by it."""
    with pytest.raises(ValueError, match=r"buffers"):
        read_buffers(b"abcdef" + tail if tail else b"ab", 3)


def test_flag_only_with_buffers() -> None:
    """A call without arrays has no table."""
    sides = Sides()
    assert not sides.encode(support.same, [1, [2]])[0] & BUFFERS
    assert sides.encode(support.same, np.zeros(1))[0] & BUFFERS
