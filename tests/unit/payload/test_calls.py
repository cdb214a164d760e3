"""Arguments and results go there and back as cloudpickle would carry them."""

from __future__ import annotations

import collections
import enum
import gc
import sys
import weakref
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._payload import Encoder
from rush_executor._payload.scalars import is_plain
from rush_executor._payload.wire import PLAIN
from rush_executor.errors import PayloadError
from tests.unit.payload import support
from tests.unit.payload.support import NETWORK, SECRET, TASK, Sides

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary(max_size=9000)
)
VALUES = st.recursive(
    SCALARS | st.fractions(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=5)
        | st.frozensets(SCALARS, max_size=1)
    ),
    max_leaves=40,
)


@given(st.lists(VALUES, max_size=5).map(tuple), st.dictionaries(st.text(), VALUES, max_size=4), st.booleans())
def test_arguments_and_result_round_trip(args: tuple[Any, ...], kwargs: dict[str, Any], is_sealed: bool) -> None:
    """Whatever the arguments are, the function gets equal ones of the same types, and so does the client."""
    sides = Sides(SECRET if is_sealed else None)
    back = sides.call(support.echo, *args, **kwargs)
    assert back == (args, kwargs)
    assert repr(back) == repr((args, kwargs))


@given(st.lists(VALUES, max_size=6).map(tuple))
def test_plain_means_the_same_as_cloudpickle(items: tuple[Any, ...]) -> None:
    """The fast path takes only what cloudpickle pickles to the very same bytes."""
    if is_plain(items):
        sides = Sides()
        payload = sides.encode(support.echo, *items)
        assert payload[0] & PLAIN
        assert payload.endswith(cloudpickle.dumps(items, 5))


class Text(str):
    __slots__ = ()


class Level(enum.IntEnum):
    LOW = 1


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - a plain named tuple is a subclass of tuple


@dataclass
class Record:
    value: int


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize(
    "value",
    [
        Text("a"),
        Level.LOW,
        Point(1, 2),
        Record(1),
        collections.OrderedDict(a=1),
        (1, [Text("a")]),
        {Text("a"): 1},
        {"a": Text("a")},
        [[1]],
        list(range(100)),
        {i: i for i in range(20)},
        "x" * 5000,
        RECURSIVE,
        int,
        len,
        bytearray(b"x"),
    ],
    ids=repr,
)
def test_not_plain(value: Any) -> None:
    """Subclasses, nested, large and recursive values are left to cloudpickle."""
    assert not is_plain((value,))


@pytest.mark.parametrize(
    "value", [1, 2**80, 1.5, True, None, 1j, "a", b"a", (), [], {}, (1, "a"), [None], {"a": 1}, {1: b"x"}], ids=repr
)
def test_plain(value: Any) -> None:
    """Exact builtin scalars and one level of small containers take the fast path."""
    assert is_plain((value,))


def test_types_survive() -> None:
    """Values that look like builtin ones keep their class."""
    sides = Sides()
    for value in (Text("a"), Level.LOW, Point(1, 2), Record(1), collections.OrderedDict(a=1), Fraction(1, 3)):
        back = sides.back(value)
        assert back == value
        assert type(back) is type(value)


def test_keyword_names_of_a_str_subclass() -> None:
    """A keyword's name may be of a subclass of str, which is no plain value."""
    sides = Sides()
    payload = sides.encode(support.echo, **{Text("a"): 1})
    assert not payload[0] & PLAIN
    assert sides.run(payload) == ((), {"a": 1})


def test_identity_within_a_call() -> None:
    """An argument that is given twice is one object in the task, as in a local call."""
    shared = [1]
    (first, second), kwargs = Sides().call(support.echo, shared, shared, third=shared)
    assert first is second is kwargs["third"]


def test_recursive_argument() -> None:
    """A list that contains itself arrives so."""
    ((back,), _) = Sides().call(support.echo, RECURSIVE)
    assert back[0] is back


def test_objects_of_main_come_back_as_such() -> None:
    """An instance of a class of `__main__` that a task returns is an instance of the client's class."""
    cls = support.module("class Model:\n    def __init__(self, n): self.n = n")["Model"]
    back = Sides().call(support.same, cls(3))
    assert type(back) is cls
    assert back.n == 3


def test_large_in_band_payload_is_not_copied_twice() -> None:
    """Bytes of 50 MB cost the pickle and nothing more."""
    import tracemalloc

    sides = Sides()
    function = sides.function(support.same)
    value = bytes(50_000_000)
    tracemalloc.start()
    try:
        payload = sides.encoder.encode_call(TASK, function, (value,), {})
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 1.3 * len(value)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        call = sides.decoder.decode_call("c", TASK, payload)
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < 1.3 * len(value)
    finally:
        tracemalloc.stop()
    assert call.args == (value,)


class Thing:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def test_references_are_dropped() -> None:
    """Neither side keeps an argument or a result alive after its call, without the help of the garbage collector."""
    sides = Sides()
    gc.disable()
    try:
        thing = Thing()
        sent = weakref.ref(thing)
        payload = sides.encode(support.same, thing)
        del thing
        assert sent() is None
        call = sides.decoder.decode_call("c", TASK, payload)
        received = weakref.ref(call.args[0])
        body = sides.decoder.encode_result(TASK, call.args[0])
        del call
        assert received() is None
        result = sides.encoder.decode_outcome(TASK, "finished", body)
        returned = weakref.ref(result)
        del result
        assert returned() is None
    finally:
        gc.enable()


def test_by_value_arguments_are_dropped() -> None:
    """That holds for objects of a class that goes by value as well."""
    sides = Sides()
    cls = support.module("class Model: pass")["Model"]
    gc.disable()
    try:
        call = sides.decoder.decode_call("c", TASK, sides.encode(support.same, cls()))
        received = weakref.ref(call.args[0])
        del call
        assert received() is None
    finally:
        gc.enable()


def test_failed_pickling_drops_references() -> None:
    """The error of an argument that cannot be pickled does not keep the arguments."""
    sides = Sides()
    function = sides.function(support.same)
    thing = Thing(bad=sys._getframe())
    sent = weakref.ref(thing)
    gc.disable()
    try:
        try:
            sides.encoder.encode_call(TASK, function, (thing,), {})
        except PayloadError as caught:
            error = caught.with_traceback(None)
        thing.bad = None
        del thing
        assert sent() is None
        assert error.__cause__ is not None
    finally:
        gc.enable()


def test_failed_unpickling_drops_references() -> None:
    """The error of an argument that cannot be unpickled does not keep those that could."""
    sides = Sides()
    made: list[Any] = []
    support.Restoring.made = made  # type: ignore[attr-defined]
    payload = sides.encode(support.same, Thing(), support.Restoring(ValueError("no")))
    gc.disable()
    try:
        with pytest.raises(PayloadError) as caught:
            sides.decoder.decode_call("c", TASK, payload)
        caught.value.with_traceback(None)
        del caught
        assert not [thing for thing in gc.get_objects() if type(thing) is Thing]
    finally:
        gc.enable()


@pytest.mark.parametrize("cut", [1, 2, 5, 12, 20])
def test_damaged_payload(cut: int) -> None:
    """A call that was cut short is an error with a text, not a crash of the worker's loop."""
    sides = Sides()
    for args in ((1,), (Fraction(1, 2),)):
        payload = sides.encode(support.same, *args)
        with pytest.raises(PayloadError):
            sides.decoder.decode_call("c", TASK, payload[:-cut])
        with pytest.raises(PayloadError):
            sides.decoder.decode_call("c", TASK, payload[:cut])
        body = sides.decoder.encode_result(TASK, args)
        with pytest.raises(PayloadError):
            sides.encoder.decode_outcome(TASK, "finished", body[:-cut])
    with pytest.raises(PayloadError):
        sides.decoder.decode_call("c", TASK, b"")
    with pytest.raises(PayloadError, match="another version"):
        sides.decoder.decode_call("c", TASK, b"\x40" + payload[1:])


def test_interrupt_passes_in_the_client() -> None:
    """Ctrl-C while a large argument is pickled is the user's, not the task's: it reaches the caller of `submit`."""
    encoder = Encoder(NETWORK)
    fn = encoder.encode_function(support.same)
    bad = support.Reducing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        encoder.encode_call(TASK, fn, (bad,), {})
    with pytest.raises(KeyboardInterrupt):
        encoder.encode_function(lambda: bad)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode_initializer(support.same, (bad,))
