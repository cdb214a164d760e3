"""What travels through a server is compressed where that was asked for, can be done, and is worth it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rush_executor._payload import Encoder, compression
from rush_executor._payload.compression import compress, decompress
from rush_executor._payload.scattered import RushReference
from rush_executor._protocol.records import StoredBody
from rush_executor.errors import PayloadError
from tests.unit.payload import support
from tests.unit.payload.support import NETWORK, SECRET, TASK, Sides
from tests.unit.payload.test_contents import Far, _store

MB = 1 << 20
REGULAR = np.arange(MB) % 100


@pytest.fixture
def no_zstd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without it."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    compression._zstd.cache_clear()
    yield
    compression._zstd.cache_clear()


class Compressing(Sides):
    def __init__(self, secret: bytes | None = None) -> None:
        super().__init__(secret, files_of=lambda _: Far(self))
        self.encoder = Encoder(NETWORK, secret, in_chunks=True, compresses=True)


def test_there_and_back_again() -> None:
    """Whatever the pieces are."""
    pieces: list[bytes | memoryview] = [b"abc" * 100_000, memoryview(bytes(MB)), b"", b"x"]
    packed = compress(pieces)
    assert packed is not None
    assert len(packed) < 10_000
    assert decompress(packed) == decompress(memoryview(packed)) == b"".join(pieces)


@pytest.mark.parametrize("pieces", [[], [b"a" * 1000], [os.urandom(MB)], [os.urandom(9999) for _ in range(99)]])
def test_what_is_not_worth_it(pieces: list[bytes]) -> None:
    """Few bytes, and such as do not get smaller."""
    assert compress(pieces) is None


@pytest.mark.parametrize("secret", [None, SECRET])
def test_calls_and_results(secret: bytes | None) -> None:
    """Both, when the client has asked for it; the worker learns that from the call."""
    sides = Compressing(secret)
    payload = sides.encode(support.same, REGULAR)
    assert len(payload) < 6 * MB
    call = sides.decoder.decode_call("c", TASK, payload)
    assert np.array_equal(call.args[0], REGULAR)
    call.args[0][0] = 5
    body = sides.decoder.encode_result(TASK, REGULAR)
    assert len(body) < 6 * MB
    result = sides.encoder.decode_outcome(TASK, "finished", body)
    assert np.array_equal(result, REGULAR)
    result[0] = 5
    assert sides.chunk(support.same, [(REGULAR,), (1,)]).values[1] == 1
    assert len(sides.encode(support.same, os.urandom(MB))) > MB


def test_only_who_asks_for_it_gets_it() -> None:
    """A call that does not say so has a result that everybody opens."""
    sides = Compressing()
    other = Sides()
    other.decoder = sides.decoder
    sides.call(support.same, 1)
    assert len(sides.decoder.encode_result(TASK, REGULAR)) < 6 * MB
    other.call(support.same, 1)
    assert len(sides.decoder.encode_result(TASK, REGULAR)) > 8 * MB


def test_bodies() -> None:
    """Functions and scattered objects, small ones in one piece, large ones in chunks."""
    sides = Compressing()
    data = REGULAR.tobytes() * 3
    function = sides.function(lambda n: data[n])
    assert isinstance(function.body, StoredBody)
    assert (len(function.body.chunks), sum(map(len, function.body.chunks)) < 12 * MB) == (2, True)
    _store(sides, function)
    assert sides.run(sides.encoder.encode_call(TASK, function, (100,), {})) == data[100]
    text = "abc" * 100_000
    assert len(sides.function(lambda n: text[n]).body or b"") < 10_000
    assert sides.call(lambda n: text[n], 4) == "b"
    body, nested = sides.encoder.encode_scattered("00aa", data)
    reference = RushReference("00aa", body, nested, home=sides.encoder, when_dropped=lambda _: None)
    assert reference.result() == data


def test_a_client_without_it(no_zstd: Any) -> None:
    """Nothing is compressed, and nothing fails."""
    sides = Compressing()
    assert len(sides.encode(support.same, REGULAR)) > 8 * MB
    assert np.array_equal(sides.call(support.same, REGULAR), REGULAR)


def test_a_worker_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the task says what to install there."""
    sides = Compressing()
    payload = sides.encode(support.same, REGULAR)
    monkeypatch.setattr(compression, "_zstd", lambda: None)
    with pytest.raises(PayloadError, match=r"pip install rush-executor\[zstd\]"):
        sides.decoder.decode_call("c", TASK, payload)


def test_damaged_bytes() -> None:
    """They are an error of the task."""
    sides = Compressing()
    payload = sides.encode(support.same, REGULAR)
    with pytest.raises(PayloadError):
        sides.decoder.decode_call("c", TASK, payload[:-10_000] + os.urandom(10_000))
    with pytest.raises(PayloadError):
        sides.decoder.decode_call("c", TASK, payload[: len(payload) // 2])
