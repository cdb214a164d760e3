"""What cannot be pickled is named: which argument, where in it, of what type, and what to do."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

from rush_executor.errors import PayloadError
from tests.unit.payload import support
from tests.unit.payload.support import TASK, Reducing, Sides, module

LOCK = threading.Lock()


class Model:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def train(self) -> None:
        pass


class Slotted:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = LOCK


class Callable:
    def __init__(self) -> None:
        self.lock = LOCK

    def __call__(self) -> None:
        pass


def message(fn: Any, *args: Any, **kwargs: Any) -> str:
    """What the error of a call says."""
    with pytest.raises(PayloadError) as caught:
        Sides().encode(fn, *args, **kwargs)
    assert caught.value.__cause__ is not None
    return str(caught.value)


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((1, LOCK), {}, "argument 2 of echo() (a _thread.lock) cannot be pickled: TypeError: cannot pickle"),
        ((1, {"lock": LOCK}), {}, "argument 2 of echo() cannot be pickled: args[1]['lock'] is a _thread.lock:"),
        (([[0], (1, LOCK)],), {}, "args[0][1][1] is a _thread.lock:"),
        ((Model(a=1, inner=Model(lock=LOCK)),), {}, "args[0].inner.lock is a _thread.lock:"),
        ((Slotted(),), {}, "args[0].lock is a _thread.lock:"),
        ((), {"model": {1: LOCK}}, "keyword argument 'model' of echo() cannot be pickled: model[1] is a _thread.lock:"),
        ((lambda: LOCK,), {}, "args[0], global 'LOCK', is a _thread.lock:"),
        ((functools.partial(support.add, LOCK),), {}, "args[0].args[0] is a _thread.lock:"),
        ((Model(lock=LOCK).train,), {}, "args[0].__self__.lock is a _thread.lock:"),
        (
            (Reducing(ValueError("own")),),
            {},
            "(a tests.unit.payload.support.Reducing) cannot be pickled: ValueError: own",
        ),
        ((i for i in ()), {}, None),
    ],
)
def test_argument_is_named(args: Any, kwargs: Any, expected: str | None) -> None:
    """By position or keyword, with the path to what is inside of it."""
    if expected is not None:
        said = message(support.echo, *args, **kwargs)
        assert expected in said
        assert said.endswith("Leave it out, or create it inside the task.")


def test_generators_and_files(tmp_path: Any) -> None:
    """Things that people try to pass."""
    assert "argument 1 of same() (a generator) cannot" in message(support.same, (i for i in range(3)))
    with (tmp_path / "f").open("w") as file:
        assert "argument 1 of same() (a _io.TextIOWrapper) cannot" in message(support.same, file)


def closure() -> Any:
    lock = threading.Lock()

    def inner() -> Any:
        return lock

    return inner


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (closure(), "inner, variable 'lock' of its closure, is a _thread.lock:"),
        (module("import threading\nlock = threading.Lock()\ndef f(): return lock")["f"], "f, global 'lock', is a"),
        (Callable(), "Callable.lock is a _thread.lock:"),
        (Model(lock=LOCK).train, "train.__self__.lock is a _thread.lock:"),
        (
            functools.partial(support.add, LOCK),
            "partial(add)() cannot be pickled: partial(add).args[0] is a _thread.lock:",
        ),
    ],
)
def test_function_is_named(fn: Any, expected: str) -> None:
    """A closure, a global, a bound object."""
    said = message(fn)
    assert said.startswith("function ")
    assert expected in said


@pytest.mark.parametrize("exc", [SystemExit(3), GeneratorExit(), RecursionError("deep"), MemoryError(), Exception()])
def test_whatever_pickling_raises(exc: BaseException) -> None:
    """SEMANTICS 1: it is a PayloadError with that as its cause, on both sides."""
    sides = Sides()
    with pytest.raises(PayloadError) as caught:
        sides.encode(support.same, Reducing(exc))
    cause = caught.value.__cause__
    assert cause is not None
    # cloudpickle puts a PicklingError around a RecursionError.
    assert type(exc) in (type(cause), type(cause.__cause__))
    assert ".." not in str(caught.value)
    with pytest.raises(PayloadError):
        sides.encoder.encode_function(functools.partial(support.same, Reducing(exc)))
    with pytest.raises(PayloadError, match="initarg 1 of same"):
        sides.encoder.encode_initializer(support.same, (Reducing(exc),))
    with pytest.raises(PayloadError, match=r"the result of the task \(a .*Reducing\) cannot be pickled"):
        sides.decoder.encode_result(TASK, Reducing(exc))


def test_interrupt_in_a_worker_is_the_tasks_error() -> None:
    """In a worker nobody presses Ctrl-C, so a KeyboardInterrupt from a result's pickling is the task's."""
    with pytest.raises(PayloadError, match="KeyboardInterrupt"):
        Sides().decoder.encode_result(TASK, [Reducing(KeyboardInterrupt())])


def test_a_result_that_cannot_be_pickled() -> None:
    """What to do with an argument would be of no use."""
    with pytest.raises(PayloadError) as caught:
        Sides().decoder.encode_result(TASK, (i for i in range(3)))
    assert str(caught.value).startswith("the result of the task (a generator) cannot be pickled: ")
    assert "Return what can be: a list in place of a generator" in str(caught.value)
    assert "inside the task" not in str(caught.value)


def test_result_is_named() -> None:
    """With the path inside of it."""
    with pytest.raises(
        PayloadError, match=r"the result of the task cannot be pickled: result\['a'\]\[1\] is a _thread"
    ):
        Sides().decoder.encode_result(TASK, {"a": [1, LOCK]})


def test_initializer_is_named() -> None:
    """The function, or which of its arguments."""
    encoder = Sides().encoder
    with pytest.raises(PayloadError, match=r"initializer .*inner\(\) cannot be pickled: .*'lock' of its closure"):
        encoder.encode_initializer(closure(), ())
    with pytest.raises(PayloadError, match=r"initarg 2 of same\(\) \(a _thread.lock\)"):
        encoder.encode_initializer(support.same, (1, LOCK))


def test_chunk_names_call_and_argument() -> None:
    """For `map` with a chunksize: which call of the chunk, and which of its arguments."""
    encoder = Sides().encoder
    fn = encoder.encode_function(support.add)
    with pytest.raises(PayloadError, match=r"argument 2 of add\(\), call 2 of its chunk, \(a _thread.lock\)"):
        encoder.encode_call(TASK, fn, ([(1, 2), (3, LOCK)],), {}, is_chunk=True)


class Flaky:
    """Fails to be pickled the first time only."""

    def __init__(self) -> None:
        self.n = 0

    def __reduce__(self) -> Any:
        self.n += 1
        if self.n == 1:
            raise ValueError("not yet")
        return Flaky, ()


def test_culprit_that_cannot_be_found() -> None:
    """If every argument can be pickled alone, the error still says what happened."""
    assert "the arguments of same() cannot be pickled: ValueError: not yet" in message(support.same, Flaky())


class Hostile:
    """Raises whatever is done to it."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("__reduce_ex__", "__class__"):
            return object.__getattribute__(self, name)
        raise SystemExit(name)

    def __reduce__(self) -> Any:
        raise ValueError("no")


def test_hostile_object() -> None:
    """The search for the culprit survives objects that must not be looked at."""
    sides = Sides()
    assert "argument 1 of same()" in message(support.same, Hostile())
    with pytest.raises(PayloadError):
        sides.decoder.encode_result(TASK, Hostile())


def test_search_is_bounded() -> None:
    """Among a million parts, and in endless depth, the search gives up and names what it has."""
    assert "argument 1 of same() (a list)" in message(support.same, [None] * 1_000_000 + [LOCK])
    deep: Any = LOCK
    for _ in range(50):
        deep = [deep]
    assert "args[0][0][0][0][0][0][0][0][0] is a list" in message(support.same, deep)


def test_too_deep_to_pickle() -> None:
    """A structure deeper than the recursion limit is the call's error, not the end of the client."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert "argument 1 of same()" in message(support.same, deep)
    while deep:
        deep = deep[0]
