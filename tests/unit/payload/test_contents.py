"""Large contents stay out of the payload: in files of one machine, or in chunks; and arrive as they were sent."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._payload import (
    ContentElsewhereError,
    ContentInMemory,
    EncodedFunction,
    decompress,
    read_place_of_chunks,
)
from rush_executor._payload.content import LARGE, Stub, digest_of, lay_out, open_content
from rush_executor._payload.scattered import RushReference
from rush_executor._protocol.records import StoredBody, chunk_name
from rush_executor._shared.directory import SharedDirectory
from rush_executor._shared.files import SharedFiles
from rush_executor.errors import PayloadError
from tests.unit.payload import support
from tests.unit.payload.support import SECRET, Bomb, Sides

CLIENT = "c1a2"
TASK = f"{CLIENT}-7"
MB = 1 << 20


class Neighbours(Sides):
    """A client and a worker of one machine."""

    def __init__(self, root: Path, secret: bytes | None = None) -> None:
        directory = SharedDirectory.make(CLIENT, str(root))
        assert directory is not None
        self.directory = directory
        super().__init__(secret, files=directory, files_of=lambda owner: SharedFiles(owner, str(root)))
        self.dropped: list[str] = []

    def send(self, fn: Any, *args: Any, **kwargs: Any) -> tuple[bytes, list[Any]]:
        """A call, and what keeps its content."""
        keep: list[Any] = []
        return self.encoder.encode_call(TASK, self.function(fn), args, kwargs, keep=keep), keep

    def run(self, payload: bytes, client_id: str = CLIENT) -> Any:
        call = self.decoder.decode_call(client_id, TASK, payload)
        body = self.decoder.encode_result(TASK, call.fn(*call.args, **call.kwargs))
        del call
        return self.encoder.decode_outcome(TASK, "finished", body)

    def call(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        payload, keep = self.send(fn, *args, **kwargs)
        try:
            return self.run(payload)
        finally:
            keep.clear()

    def scatter(self, obj: Any, ident: str = "0123") -> RushReference:
        body, nested = self.encoder.encode_scattered(ident, obj)
        self.bodies[ident] = body
        return RushReference(ident, body, nested, home=self.encoder, when_dropped=self.dropped.append)

    def files(self) -> list[str]:
        root = Path(self.directory.path)
        return sorted(str(path.relative_to(root).parent) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[Neighbours]:
    sides = Neighbours(tmp_path)
    yield sides
    sides.directory.remove()


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Neighbours]:
    sides = Neighbours(tmp_path, SECRET)
    yield sides
    sides.directory.remove()


@pytest.fixture(params=[None, SECRET])
def any_sides(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Neighbours]:
    sides = Neighbours(tmp_path, request.param)
    yield sides
    sides.directory.remove()


def values() -> list[Any]:
    read_only = np.arange(float(MB))
    read_only.flags.writeable = False
    return [
        np.arange(float(MB)),
        np.asfortranarray(np.arange(float(MB)).reshape(64, -1)),
        np.arange(float(MB)).reshape(64, -1)[:, ::3],
        read_only,
        os.urandom(MB),
        bytearray(os.urandom(MB)),
        "ä" * MB,
        [os.urandom(50_000) for _ in range(20)],
        {number: np.arange(number) for number in range(1000)},
        [np.arange(float(MB)), os.urandom(17 * MB), {"a": np.zeros(5 * MB, dtype=np.uint8)}, "text", None],
        [np.array([], dtype=float), np.arange(float(MB))],
    ]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, list):
        return type(b) is list and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("number", range(len(values())))
def test_there_and_back(tmp_path: Path, number: int, is_sealed: bool) -> None:
    """The same value of the same type, whatever it is made of; arrays may be written to on both sides."""
    sides = Neighbours(tmp_path, SECRET if is_sealed else None)
    value = values()[number]
    payload, keep = sides.send(support.same, value)
    assert len(payload) < 200
    result = sides.run(payload)
    assert equal(value, result)
    if isinstance(result, np.ndarray):
        result[:1] = 0
        result = sides.run(payload)
        result += 1
    keep.clear()
    del result
    gc.collect()
    assert set(sides.files()) <= {"idle"}
    sides.directory.remove()


def test_what_is_small_stays_in_the_payload(sides: Neighbours) -> None:
    """A file would cost more than it spares."""
    array = np.zeros(LARGE // 2, dtype=np.uint8)
    payload, keep = sides.send(support.same, array)
    assert keep == []
    assert len(payload) > LARGE // 2
    assert equal(sides.run(payload), array)
    assert sides.files() == []


def test_a_large_bytes_object_is_not_copied_on_its_way_out(sides: Neighbours) -> None:
    """Nor an array: what is written to the file is what the user has."""
    for value in (os.urandom(20 * MB), np.ones(20 * MB, dtype=np.uint8)):
        tracemalloc.start()
        payload, keep = sides.send(support.same, value)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MB
        assert len(payload) < 200
        keep.clear()


@pytest.mark.parametrize("is_writable", [True, False])
def test_an_array_is_not_copied_on_its_way_in(sides: Neighbours, is_writable: bool) -> None:
    """It is a view on the file, which may be written to, also where the array may not."""
    array = np.ones(20 * MB, dtype=np.uint8)
    array.flags.writeable = is_writable
    payload, _keep = sides.send(support.same, array)
    tracemalloc.start()
    call = sides.decoder.decode_call(CLIENT, TASK, payload)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MB
    call.args[0][0] = 2
    assert call.args[0][-1] == 1


def test_a_task_finds_what_was_sent(sides: Neighbours) -> None:
    """At a second attempt as well, whatever the first has done to it."""

    def spoil(array: Any) -> Any:
        array[:] = 7
        return array.sum()

    payload, _keep = sides.send(spoil, np.ones(8 * MB, dtype=np.uint8))
    assert [int(sides.run(payload)) for _ in range(3)] == [7 * 8 * MB] * 3
    assert sides.decoder.decode_call(CLIENT, TASK, payload).args[0].max() == 1


def test_results_stay_apart(sides: Neighbours) -> None:
    """Files are written again, but not those on which there are arrays."""
    results = [sides.call(support.same, np.full(MB, number, dtype=np.uint8)) for number in range(10)]
    assert [(int(result.min()), int(result.max())) for result in results] == [(number, number) for number in range(10)]
    kept = results[3]
    del results
    gc.collect()
    for number in range(20, 30):
        sides.call(support.same, np.full(MB, number, dtype=np.uint8))
    assert (int(kept.min()), int(kept.max())) == (3, 3)


def test_an_argument_that_the_worker_keeps(sides: Neighbours) -> None:
    """In a global, say: it stays what it was."""
    kept: list[Any] = []

    def keep_it(array: Any) -> None:
        kept.append(array)

    sides.decoder._functions.space(CLIENT)
    payload, keep = sides.send(support.same, np.full(8 * MB, 1, dtype=np.uint8))
    kept.append(sides.decoder.decode_call(CLIENT, TASK, payload).args[0])
    keep.clear()
    for number in range(3):
        sides.call(support.same, np.full(8 * MB, number, dtype=np.uint8))
    assert (int(kept[0].min()), int(kept[0].max())) == (1, 1)


def test_chunks_of_calls(sides: Neighbours) -> None:
    """Their arguments and their results are one content each."""
    arrays = [np.full(100_000, number, dtype=np.uint8) for number in range(5)]
    keep: list[Any] = []
    payload = sides.encoder.encode_call(
        TASK, sides.function(support.same), ([(a,) for a in arrays],), {}, is_chunk=True, keep=keep
    )
    assert len(keep) == 1
    call = sides.decoder.decode_call(CLIENT, TASK, payload)
    body = sides.decoder.encode_chunk(TASK, [call.fn(*args) for args in call.args[0]], None)
    assert len(body) < 200
    result = sides.encoder.decode_outcome(TASK, "finished", body)
    assert equal(result.values, arrays)


def test_a_result_for_nobody_here(tmp_path: Path, sides: Neighbours) -> None:
    """The client of the task is on another machine: its directory is not here, so the result is in the payload."""
    result = np.ones(MB, dtype=np.uint8)
    assert len(sides.decoder.encode_result("0ff1-1", result)) > MB
    sides.directory.remove()
    assert len(sides.decoder.encode_result(TASK, result)) > MB


def test_a_file_that_is_gone(sides: Neighbours) -> None:
    """The error says what to do; so it does for who has no files at all."""
    payload, keep = sides.send(support.same, np.ones(MB, dtype=np.uint8))
    keep.clear()
    with pytest.raises(PayloadError, match=r"not in the shared memory of this machine .* redis://"):
        sides.decoder.decode_call(CLIENT, TASK, payload)
    far = Sides()
    with pytest.raises(PayloadError, match="not in the shared memory of this machine"):
        far.decoder.decode_call(CLIENT, TASK, payload)


def test_a_call_that_did_not_find_its_arguments(tmp_path: Path, any_sides: Neighbours) -> None:
    """The client makes it anew with all in it: the same call, for a worker that has no files."""
    sides = any_sides
    array = np.arange(float(MB))
    payload, keep = sides.send(support.same, [array, b"x" * MB], key="a")
    moved = sides.encoder.move_call(TASK, payload)
    assert len(moved) > 9 * MB > 1000 > len(payload)
    assert sides.encoder.move_call(TASK, moved) is moved
    keep.clear()
    with pytest.raises(ContentElsewhereError):
        sides.run(payload)
    shutil.rmtree(sides.directory.path)
    call = sides.decoder.decode_call(CLIENT, TASK, moved)
    assert equal(call.args[0], [array, b"x" * MB])
    assert call.kwargs == {"key": "a"}
    small, _ = sides.send(support.same, 1)
    assert sides.encoder.move_call(TASK, small) is small


def test_a_body_that_was_not_found(any_sides: Neighbours) -> None:
    """Its content is stored in chunks, and the file stays for those who find it."""
    sides = any_sides
    obj = {"a": np.arange(float(3 * MB)), "b": b"x" * MB}
    reference = sides.scatter(obj)
    sides.bodies[reference.ident] = bytes(reference.body)
    sides.encoder.send_no_files()
    moved = sides.encoder.move_body("scattered", reference.ident, reference.body)
    assert isinstance(moved, StoredBody)
    assert [len(chunk) for chunk in moved.chunks] == [16 * MB, moved.size - 16 * MB]
    assert sides.encoder.move_body("scattered", reference.ident, moved) is moved
    assert sides.files() == ["in"]
    found = sides.call(support.same, reference)
    assert equal(found, obj), "a worker on this machine, that has the old body"
    reference.body = moved
    assert equal(reference.result(), obj)
    del reference, moved
    gc.collect()
    assert "in" not in sides.files()


def test_a_result_can_be_had_once(sides: Neighbours) -> None:
    """The client that has it is the one that frees it."""
    body = sides.decoder.encode_result(TASK, np.ones(MB, dtype=np.uint8))
    sides.encoder.decode_outcome(TASK, "finished", body)
    with pytest.raises(PayloadError, match="the result of task"):
        sides.encoder.decode_outcome(TASK, "finished", body)


@pytest.mark.parametrize("end", [b"", b"\0", b"\0" * 21, b"\xff" * 40, b"in/x.0"])
def test_a_damaged_stub(sides: Neighbours, end: bytes) -> None:
    """It is an error of the task, and no worker ends."""
    payload, _keep = sides.send(support.same, np.ones(MB, dtype=np.uint8))
    start = payload.index(b"tests.unit.payload.support:same") + len(b"tests.unit.payload.support:same")
    with pytest.raises(PayloadError):
        sides.decoder.decode_call(CLIENT, TASK, payload[:start] + end)


def test_a_file_that_was_cut(sides: Neighbours) -> None:
    """Nobody touches a page that is not there."""
    payload, _keep = sides.send(support.same, np.ones(8 * MB, dtype=np.uint8))
    [path] = Path(sides.directory.path, "in").iterdir()
    os.truncate(path, 4 * MB)
    with pytest.raises(PayloadError):
        sides.decoder.decode_call(CLIENT, TASK, payload)


@pytest.mark.parametrize("at", ["table", "pickle", "first buffer", "second buffer"])
def test_the_seal_covers_the_content(sealed: Neighbours, at: str) -> None:
    """What was altered in the file is not unpickled."""
    Bomb.exploded.clear()
    value = [Bomb("x"), np.ones(300_000, dtype=np.uint8), np.ones(8 * MB, dtype=np.uint8)]
    payload, _keep = sealed.send(support.same, value)
    [path] = Path(sealed.directory.path, "in").iterdir()
    content = path.read_bytes()
    offset = {
        "table": 8,
        "pickle": content.index(b"explode"),
        "first buffer": content.index(b"\1" * 100) + 100,
        "second buffer": len(content) - 1,
    }[at]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([content[offset] ^ 1]))
    with pytest.raises(PayloadError, match=r"sealed|short"):
        sealed.decoder.decode_call(CLIENT, TASK, payload)
    assert Bomb.exploded == []


def test_the_seal_covers_the_stub(sealed: Neighbours) -> None:
    """Another file cannot be put in the place of the right one, nor the digest be left out."""
    Bomb.exploded.clear()
    payload, _keep = sealed.send(support.same, [Bomb("x"), np.ones(MB, dtype=np.uint8)])
    other, _other_keep = sealed.send(support.same, [Bomb("y"), np.ones(MB, dtype=np.uint8)])
    for forged in (payload[:-4] + other[-4:], payload[:60] + other[60:], other[:33] + payload[33:]):
        with pytest.raises(PayloadError, match="seal"):
            sealed.decoder.decode_call(CLIENT, TASK, forged)
    assert Bomb.exploded == []


def test_a_large_function_is_stored_once(sides: Neighbours) -> None:
    """However often it is submitted; its file goes when nobody needs it any more."""
    data = np.arange(float(MB))

    def total(n: int) -> float:
        return float(data[:n].sum())

    first = sides.encoder.encode_function(total)
    assert len(first.body or b"") < 200
    second = sides.encoder.encode_function(total)
    assert first == second
    assert sides.files() == ["in"]
    assert sides.call(total, 10) == 45.0
    data += 1
    third = sides.encoder.encode_function(total)
    assert third.digest != first.digest
    assert sides.files() == ["in", "in"]
    del first, second
    sides.bodies.clear()
    gc.collect()
    assert sides.files() == ["idle", "in"]
    assert sides.call(total, 10) == 55.0
    del third


def test_a_partial_is_loaded_anew_for_each_task(sides: Neighbours) -> None:
    """Its state is an argument; the file is read again each time."""
    fn = functools.partial(_spoil, np.ones(8 * MB, dtype=np.uint8))
    assert [sides.call(fn) for _ in range(3)] == [1, 1, 1]
    assert sides.n_fetched == 1


def _spoil(array: Any) -> int:
    first = int(array[0])
    array[:] = 7
    return first


def test_a_scattered_object(sides: Neighbours) -> None:
    """Each task gets one of its own, wherever the reference is; the body is fetched once."""
    reference = sides.scatter(np.ones(8 * MB, dtype=np.uint8))
    assert [sides.call(_spoil, reference) for _ in range(3)] == [1, 1, 1]
    inside = sides.call(support.same, {"a": [reference, reference], "b": (1, reference)})
    assert all(equal(found, np.ones(8 * MB, dtype=np.uint8)) for found in (*inside["a"], inside["b"][1]))
    assert sides.call(functools.partial(_spoil, reference)) == 1
    assert sides.call(lambda: int(reference[5])) == 1
    assert sides.call(support.echo, key=reference)[1]["key"].shape == (8 * MB,)
    assert sides.n_fetched == 3, "the object, the partial and the lambda"
    result = reference.result()
    result[:] = 9
    assert reference.result().max() == 1


@pytest.mark.parametrize("obj", [None, 7, "text", {"a": 1}, [1, 2, 3], support.add, os.urandom(200_000)])
def test_anything_can_be_scattered(sides: Neighbours, obj: Any) -> None:
    """Small or large."""
    reference = sides.scatter(obj)
    assert sides.call(support.same, reference) == obj
    assert reference.result() == obj


def test_references_in_what_is_scattered(sides: Neighbours) -> None:
    """They become their objects, too, and live as long."""
    inner = sides.scatter(np.arange(float(MB)), "00aa")
    outer = sides.scatter({"inner": inner, "more": 1}, "00bb")
    assert outer.nested == (inner,)
    del inner
    gc.collect()
    assert sides.dropped == []
    assert equal(sides.call(support.same, outer)["inner"], np.arange(float(MB)))
    assert equal(outer.result()["inner"], np.arange(float(MB)))
    del outer
    assert sides.dropped == ["00bb", "00aa"]


def test_what_keeps_a_reference(sides: Neighbours) -> None:
    """A call that has it, and a function that has it."""
    made = [sides.scatter(np.ones(MB, dtype=np.uint8))]
    payload, keep = sides.send(support.same, made)
    assert keep == made
    function = sides.encoder.encode_function(functools.partial(support.same, made[0]))
    assert function.references == tuple(made)
    made.clear()
    gc.collect()
    assert equal(sides.run(payload)[0], np.ones(MB, dtype=np.uint8))
    keep.clear()
    assert sides.dropped == []
    del function
    gc.collect()
    assert sides.dropped == ["0123"]


def test_references_go_nowhere_else(sides: Neighbours, tmp_path: Path) -> None:
    """Not to tasks of another executor, to an initializer, or into a pickle of one's own: the error says so."""
    reference = sides.scatter([1, 2])
    other = Neighbours(tmp_path / "..", None)
    with pytest.raises(PayloadError, match="executor that has scattered it"):
        other.send(support.same, reference)
    with pytest.raises(PayloadError, match="executor that has scattered it"):
        other.encoder.encode_function(lambda: reference)
    with pytest.raises(PayloadError, match="nowhere else"):
        sides.encoder.encode_initializer(support.same, (reference,))
    with pytest.raises(PayloadError, match="nowhere else"):
        pickle.dumps(reference)
    other.directory.remove()


def test_a_reference_beside_what_cannot_be_pickled(sides: Neighbours) -> None:
    """The one to blame is named."""
    reference = sides.scatter([1, 2])
    with pytest.raises(PayloadError, match="argument 2 of same"):
        sides.send(support.same, reference, (number for number in ()))


def test_what_cannot_be_scattered(sides: Neighbours) -> None:
    """It is said at once, and nothing is kept."""
    with pytest.raises(PayloadError, match="cannot be pickled"):
        sides.scatter([os.urandom(MB), (number for number in ())])
    assert sides.files() == []


def test_a_body_that_the_server_has_lost(sides: Neighbours) -> None:
    """The error names it."""
    reference = sides.scatter([1, 2])
    sides.bodies.clear()
    with pytest.raises(PayloadError, match="scattered object 0123 of this call is gone"):
        sides.call(support.same, reference)


@pytest.mark.parametrize("is_sealed", [False, True])
def test_bodies_in_chunks(is_sealed: bool) -> None:
    """Where workers are elsewhere, a large function or object is stored in chunks, and put together there."""
    sides = Sides(SECRET if is_sealed else None, in_chunks=True, files_of=lambda _: Far(sides))
    data = os.urandom(40 * MB)
    function = sides.encoder.encode_function(lambda start: data[start : start + 10])
    assert function.digest is not None
    body = function.body
    assert isinstance(body, StoredBody)
    assert (len(body) < 200, len(body.chunks), body.size // MB) == (True, 3, 40)
    _store(sides, function)
    assert sides.encoder.encode_function(lambda: 1).digest is not None
    payload = sides.encoder.encode_call(support.TASK, function, (20 * MB,), {})
    assert sides.run(payload) == data[20 * MB : 20 * MB + 10]
    array = np.arange(float(MB))
    scattered, nested = sides.encoder.encode_scattered("00aa", array)
    reference = RushReference("00aa", scattered, nested, home=sides.encoder, when_dropped=lambda _: None)
    assert equal(reference.result(), array)


class Far:
    """A worker elsewhere: chunks come from the server."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides

    def open_place(self, place: str, size: int) -> ContentInMemory:
        ident, n_chunks, is_packed = read_place_of_chunks(place)
        chunks = [self._sides.bodies[chunk_name(ident, number)] for number in range(n_chunks)]
        content = b"".join(map(decompress, chunks) if is_packed else chunks)
        assert len(content) == size
        return ContentInMemory(content)

    def keep_result(self, stem: str, pieces: Any, size: int) -> str:
        return ""


def _store(sides: Sides, function: EncodedFunction) -> None:
    assert function.digest is not None
    assert isinstance(function.body, StoredBody)
    sides.bodies[function.digest] = function.body
    for number, chunk in enumerate(function.body.chunks):
        sides.bodies[chunk_name(function.digest, number)] = chunk


@given(st.lists(st.binary(max_size=200)), st.lists(st.integers(0, 300_000), max_size=6))
def test_a_layout_reads_back(parts: list[bytes], lengths: list[int]) -> None:
    """Whatever the sizes: pieces do not overlap, and the buffers are where the table says."""
    buffers = [os.urandom(length) for length in lengths]
    layout = lay_out(parts, [memoryview(buffer) for buffer in buffers])
    content = bytearray(layout.size)
    end = 0
    for offset, piece in layout.pieces:
        assert offset >= end
        end = offset + len(piece)
        content[offset:end] = piece
    assert end <= layout.size
    for digest in (b"", digest_of(layout.table, *parts, *buffers)):
        stub = Stub.from_bytes(Stub("in/x.0", layout.size, layout.pickle_size, layout.n_buffers, digest).to_bytes())
        assert stub.place == "in/x.0"
        stream, found = open_content(ContentInMemory(bytes(content)), stub)
        assert stream.read(layout.pickle_size) == b"".join(parts)
        assert found == buffers
