"""With a secret, nothing is unpickled that was not made by a holder of the secret for exactly this place."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._payload import Decoder, Encoder
from rush_executor._payload.envelope import Envelope
from rush_executor.errors import PayloadError
from tests.unit.payload import support
from tests.unit.payload.support import CLIENT, NETWORK, SECRET, TASK, Bomb, Sides

PLACES = ["call", "function", "initializer", "finished", "failed"]


@pytest.fixture(autouse=True)
def _nothing_exploded() -> Iterator[None]:
    Bomb.exploded.clear()
    yield
    assert Bomb.exploded == []


class BombError(Exception):
    """An exception whose unpickling is seen."""

    def __reduce__(self) -> Any:
        return support.explode, ("exception",)


def payloads(sides: Sides) -> dict[str, bytes]:
    """One payload of each kind; all of them show it when they are unpickled."""
    bomb = Bomb("argument")
    function = sides.encoder.encode_function(lambda: bomb)
    assert function.digest is not None
    assert function.body is not None
    sides.bodies[function.digest] = function.body
    return {
        "call": sides.encode(support.same, bomb, array=np.zeros(5)),
        "function": function.body,
        "initializer": sides.encoder.encode_initializer(support.same, (bomb,)),
        "finished": sides.decoder.encode_result(TASK, bomb),
        "failed": sides.decoder.encode_failure(TASK, BombError()),
    }


def open_payload(sides: Sides, kind: str, payload: bytes, task_id: str = TASK) -> None:
    """Opens a payload of a kind; raises the PayloadError wherever it comes out."""
    if kind == "call":
        sides.decoder.decode_call(CLIENT, task_id, payload)
    elif kind == "initializer":
        sides.decoder.decode_initializer(CLIENT, payload)
    elif kind == "finished":
        sides.encoder.decode_outcome(task_id, kind, payload)
    elif kind == "failed":
        failure = sides.encoder.decode_failure(task_id, payload)
        assert isinstance(failure, PayloadError)
        raise failure
    else:
        (digest,) = sides.bodies
        sides.bodies[digest] = payload
        call = sides.encoder.encode_call(TASK, sides.encoder.encode_function(support.same), (), {})
        # The call of that function: by hand, since the function itself must not be pickled again.
        spec = b"\0\x11D" + bytes.fromhex(digest)
        head = 33 if sides.encoder._envelope.is_sealing else 1
        old = int.from_bytes(call[head : head + 2], "big") + 2
        content = spec + call[head + old :]
        call = sides.encoder._envelope.wrap("call", TASK, call[0] & 0x7F, content)
        sides.decoder.decode_call(CLIENT, TASK, call)


@pytest.mark.parametrize("kind", PLACES)
def test_every_byte_counts(kind: str) -> None:
    """Flags, seal, function, pickle, buffers, table: a bit that was flipped anywhere is seen, nothing is unpickled."""
    sides = Sides(SECRET)
    payload = payloads(sides)[kind]
    for at in range(len(payload)):
        altered = bytearray(payload)
        altered[at] ^= 1 << (at % 8)
        with pytest.raises(PayloadError):
            open_payload(sides, kind, bytes(altered))


@pytest.mark.parametrize("kind", PLACES)
def test_cut_and_extended(kind: str) -> None:
    """So are bytes that are missing or were added at the end."""
    sides = Sides(SECRET)
    payload = payloads(sides)[kind]
    for altered in (payload[:-1], payload[:40], payload[:33], payload[:5], payload[:1], b"", payload + b"\0"):
        with pytest.raises(PayloadError):
            open_payload(sides, kind, altered)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("other", PLACES)
def test_moved_to_another_kind(kind: str, other: str) -> None:
    """A sealed payload of one kind is no payload of another."""
    if kind != other:
        sides = Sides(SECRET)
        with pytest.raises(PayloadError, match="seal"):
            open_payload(sides, other, payloads(sides)[kind])


@pytest.mark.parametrize("kind", ["call", "finished", "failed"])
def test_moved_to_another_task(kind: str) -> None:
    """A sealed payload of one task is no payload of another."""
    sides = Sides(SECRET)
    with pytest.raises(PayloadError, match="seal"):
        open_payload(sides, kind, payloads(sides)[kind], task_id=TASK + "1")


def test_function_under_another_digest() -> None:
    """One function's sealed body cannot be stored in place of another's."""
    sides = Sides(SECRET)
    payload = sides.encode(lambda: 1)
    (digest,) = sides.bodies
    sides.function(lambda: 2)
    sides.bodies[digest] = next(body for other, body in sides.bodies.items() if other != digest)
    with pytest.raises(PayloadError, match="seal"):
        sides.decoder.decode_call(CLIENT, TASK, payload)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize(
    ("network_id", "secret", "text"),
    [
        ("other", SECRET, "wrong seal"),
        (NETWORK, b"another", "wrong seal"),
        (NETWORK, None, "RUSH_SECRET"),
    ],
)
def test_other_network_or_secret(kind: str, network_id: str, secret: bytes | None, text: str) -> None:
    """A payload of another network, with another secret, or sealed where no secret is known, is refused with a text."""
    made = payloads(Sides(SECRET))[kind]
    sides = Sides(secret, network_id)
    payloads(sides)
    with pytest.raises(PayloadError, match=text):
        open_payload(sides, kind, made)


@pytest.mark.parametrize("kind", PLACES)
def test_unsealed_where_a_secret_is_set(kind: str) -> None:
    """Who can write to the server but does not know the secret gets nothing unpickled."""
    made = payloads(Sides(None))[kind]
    sides = Sides(SECRET)
    payloads(sides)
    with pytest.raises(PayloadError, match=r"no seal.*RUSH_SECRET"):
        open_payload(sides, kind, made)
    # Nor with the flag of a seal and something in its place.
    with pytest.raises(PayloadError, match="wrong seal"):
        open_payload(sides, kind, bytes((made[0] | 0x80,)) + bytes(32) + made[1:])


def test_fields_cannot_be_shifted() -> None:
    """The seal frames its fields: no letter moves from network to kind to task."""
    for (n1, k1, t1), (n2, k2, t2) in [
        (("ab", "call", "c"), ("a", "bcall", "c")),
        (("a", "call", "bc"), ("a", "callb", "c")),
        (("a", "", "call"), ("a", "call", "")),
    ]:
        sealed = Envelope(n1, SECRET).wrap(k1, t1, 0, b"content")
        with pytest.raises(PayloadError):
            Envelope(n2, SECRET).open(k2, t2, sealed)


@given(st.binary(min_size=1, max_size=200), st.text(max_size=20), st.text(max_size=20), st.binary(max_size=100))
def test_round_trip(secret: bytes, network_id: str, task_id: str, content: bytes) -> None:
    """Any secret, network, task and content; short and long secrets alike."""
    sealed = Envelope(network_id, secret).wrap("call", task_id, 3, content)
    flags, start = Envelope(network_id, secret).open("call", task_id, sealed)
    assert (flags, sealed[start:]) == (3, content)


def test_long_secrets_are_hashed() -> None:
    """BLAKE2b takes keys of 64 bytes; of a longer secret every byte counts, and so does every byte of 64."""
    for n in (64, 65, 200):
        sealed = Envelope(NETWORK, b"k" * n).wrap("call", TASK, 0, b"x")
        with pytest.raises(PayloadError):
            Envelope(NETWORK, b"k" * (n - 1) + b"l").open("call", TASK, sealed)
    assert blake2b.MAX_KEY_SIZE == 64


@pytest.mark.parametrize("make", [lambda: Encoder(NETWORK, b""), lambda: Decoder(NETWORK, b"", lambda *_: b"")])
def test_empty_secret_is_refused(make: Any) -> None:
    """An empty key makes a hash that anybody can make."""
    with pytest.raises(ValueError, match="empty"):
        make()


def test_secret_is_not_shown() -> None:
    """Neither a repr nor a message nor the attributes show the secret, and it cannot be pickled by accident."""
    sides = Sides(SECRET)
    shown = [repr(sides.encoder), repr(vars(sides.encoder)), repr(sides.decoder), repr(sides.encoder._envelope)]
    try:
        open_payload(sides, "call", b"\x80" + bytes(100))
    except PayloadError as error:
        shown.append(repr(error))
    assert not [text for text in shown if SECRET.decode() in text]
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle.dumps(sides.encoder)


def test_sealed_works() -> None:
    """With the same secret on both sides everything works as without."""
    sides = Sides(SECRET)
    assert sides.call(support.add, 1, b=2) == 3
    assert sides.call(lambda value: value + 1, 1) == 2
    assert sides.call(np.sum, np.ones(1000)) == 1000
    assert isinstance(sides.fail(ValueError(1)), ValueError)
    assert sides.chunk(support.add, [(1, 2), (3, 4)]).values == [3, 7]


def test_body_is_sealed_once() -> None:
    """Asked twice for its body (two threads of one `map`), a function gives the same bytes."""
    function = Encoder(NETWORK, SECRET).encode_function(lambda: 1)
    assert function.body == function.body
    assert function.body[:1] == b"\x80"
