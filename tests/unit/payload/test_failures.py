"""The exception that a task raised arrives as it was, and where that is impossible, what it said arrives."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copyreg
import gc
import json
import subprocess
import sys
import threading
import traceback
import types
import urllib.error
import weakref
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import tblib.pickling_support
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._payload.failure import pack_failure
from rush_executor.errors import PayloadError, RemoteError, RemoteTraceback, WorkerLostError
from tests.unit.payload.support import NETWORK, SECRET, TASK, Sides, raised


def carried(exc: BaseException) -> BaseException:
    """Raises an exception in a worker and returns what the client gets."""
    return Sides().fail(raised(exc))


def functions_of(exc: BaseException) -> list[str]:
    """Names of the functions in a traceback, outermost first."""
    return [frame.name for frame in traceback.extract_tb(exc.__traceback__)]


def text_of(exc: BaseException) -> str:
    """The remote text at the end of the causes."""
    while exc.__cause__ is not None or exc.__context__ is not None:
        exc = exc.__cause__ or exc.__context__  # type: ignore[assignment]
    assert type(exc) is RemoteTraceback
    return exc.tb


class Plain(Exception):
    pass


class Required(Exception):
    """Has arguments that its base does not know."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.detail = detail


class SilentInit(Exception):
    """Never calls its base."""

    def __init__(self, a: int, b: int) -> None:
        self.total = a + b


class OwnNew(Exception):
    def __new__(cls, a: int, b: int) -> Self:
        exc = super().__new__(cls, a)
        exc.b = b
        return exc


@dataclass
class DataError(Exception):
    code: int
    detail: str = "d"


class OwnReduce(Exception):
    def __init__(self, a: int) -> None:
        super().__init__("message", a)
        self.a = a

    def __reduce__(self) -> Any:
        return OwnReduce, (self.a,)


class MyOSError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "gone", path)
        self.path = path


class MyExit(SystemExit):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(code)
        self.why = why


class MyGroup(ExceptionGroup[Exception]):
    def __new__(cls, errors: list[Exception]) -> Self:
        return super().__new__(cls, "several", errors)

    def derive(self, excs: Any) -> MyGroup:
        return MyGroup(excs)


def full(exc: BaseException) -> Any:
    return type(exc), exc.args, str(exc), {k: v for k, v in vars(exc).items() if k != "__notes__"}


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("a", 1),
        KeyError("k"),
        Plain(),
        Required(3, detail="x"),
        SilentInit(1, 2),
        OwnNew(1, 2),
        DataError(5),
        OwnReduce(7),
        MyOSError("/x"),
        OSError(2, "no", "/f"),
        OSError("only a text"),
        FileNotFoundError(2, "no", "/f", None, "/g"),
        UnicodeDecodeError("utf8", b"x", 0, 1, "bad"),
        SyntaxError("m", ("f", 1, 2, "text")),
        json.JSONDecodeError("m", "doc", 1),
        subprocess.CalledProcessError(3, ["cmd"], b"out", b"err"),
        subprocess.TimeoutExpired("cmd", 1.0),
        WorkerLostError("lost", task_id="t", worker_id="w", exitcode=-9, attempts=3),
        RemoteError("a.B", "message", "text"),
        PayloadError("p"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_exceptions_are_what_they_were(exc: BaseException) -> None:
    """Type, args, text and attributes, whatever the class's constructor wants."""
    assert full(carried(exc)) == full(exc)


@pytest.mark.parametrize(
    "exc",
    [
        SystemExit(3),
        MyExit(4, "w"),
        KeyboardInterrupt("k"),
        GeneratorExit(),
        StopIteration(5),
        StopAsyncIteration(),
        concurrent.futures.CancelledError(),
        asyncio.CancelledError("c"),
        TimeoutError("t"),
        concurrent.futures.BrokenExecutor("b"),
        BrokenProcessPool("b"),
        MemoryError(),
        RecursionError("r"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_special_exceptions(exc: BaseException) -> None:
    """SEMANTICS 5: exceptions that mean something to Python or to executors are a task's outcome like any other."""
    assert full(carried(exc)) == full(exc)


def test_fields_of_builtin_exceptions() -> None:
    """What builtin classes keep outside of args and `__dict__` comes too."""
    assert carried(SystemExit(3)).code == 3
    assert carried(MyExit(4, "w")).code == 4
    assert carried(StopIteration(5)).value == 5
    back: Any = carried(MyOSError("/x"))
    assert (back.errno, back.filename, type(back)) == (2, "/x", MyOSError)
    back = carried(ImportError("m", name="n", path="p"))
    assert (back.name, back.path) == ("n", "p")
    back = carried(urllib.error.HTTPError("http://x", 404, "no", {}, None))  # type: ignore[arg-type]
    assert (type(back), back.code) == (urllib.error.HTTPError, 404)


def fail_deep(depth: int) -> None:
    if depth:
        fail_deep(depth - 1)
    raise Plain("deep")


def test_traceback_is_real() -> None:
    """It has the task's own lines, is good for raising and printing, and carries no locals."""
    with pytest.raises(Plain) as caught:
        Sides().call(fail_deep, 3)
    exc = caught.value
    assert functions_of(exc)[-4:] == ["fail_deep"] * 4
    assert [frame.line for frame in traceback.extract_tb(exc.__traceback__)][-1] == 'raise Plain("deep")'
    entry: Any = exc.__traceback__
    while entry.tb_next is not None:
        entry = entry.tb_next
    assert entry.tb_frame.f_locals == {}
    assert entry.tb_frame.f_globals["__name__"] == __name__


def test_remote_text_is_the_cause() -> None:
    """As the standard library does it, so that printing the exception shows the worker's traceback."""
    back = Sides().fail(raised(Plain("a")))
    assert type(back.__cause__) is RemoteTraceback
    assert "raise exc" in back.__cause__.tb
    assert back.__cause__.tb.startswith("Traceback (most recent call last):")
    assert back.__cause__.tb in "".join(traceback.format_exception(back))


def test_own_frames_are_trimmed() -> None:
    """The worker's own outermost frames are neither in the traceback nor in the text."""

    def worker() -> bytes:
        try:
            fail_deep(0)
        except Plain as exc:
            return Sides().decoder.encode_failure(TASK, exc, trim=1)
        raise AssertionError

    back = Sides().encoder.decode_failure(TASK, worker())
    assert functions_of(back) == ["fail_deep"]
    assert "in worker" not in text_of(back)
    assert functions_of(Sides().fail(raised(Plain()), trim=5)) == []


def chain() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as exc:
            raise ValueError("second") from exc
    except ValueError:
        raise Plain("third")  # noqa: B904 - a context is wanted


def test_chain_is_kept() -> None:
    """Causes and contexts arrive with their tracebacks, and the remote text hangs at their end."""
    with pytest.raises(Plain) as caught:
        Sides().call(chain)
    third = caught.value
    assert third.__cause__ is None
    second = third.__context__
    assert type(second) is ValueError
    first = second.__cause__
    assert type(first) is KeyError
    assert functions_of(first) == functions_of(second) == ["chain"]
    assert type(first.__cause__) is RemoteTraceback
    printed = "".join(traceback.format_exception(third))
    assert "During handling" in printed
    assert "direct cause" in printed


def test_suppressed_context() -> None:
    """`raise ... from None` hides the context here as it did there, and keeps it."""

    def task() -> None:
        try:
            raise KeyError("hidden")
        except KeyError:
            raise Plain("shown") from None

    with pytest.raises(Plain) as caught:
        Sides().call(task)
    assert caught.value.__suppress_context__
    assert type(caught.value.__context__) is KeyError
    assert type(caught.value.__cause__) is RemoteTraceback


def test_notes_are_kept() -> None:
    """Of the exception and of its causes."""
    exc, cause = raised(Plain("a")), raised(OwnReduce(1))
    exc.add_note("one")
    exc.add_note("two")
    cause.add_note("three")
    exc.__cause__ = cause
    back = Sides().fail(exc)
    assert back.__notes__ == ["one", "two"]
    assert back.__cause__.__notes__ == ["three"]  # type: ignore[union-attr]


def test_groups() -> None:
    """Exception groups keep members, nesting, subclasses, and the members' tracebacks and causes."""
    member = raised(ValueError(1))
    member.__cause__ = raised(KeyError("cause"))
    inner = raised(MyGroup([raised(Required(1, detail="d"))]))  # type: ignore[list-item]
    group = raised(BaseExceptionGroup("g", [member, inner, raised(KeyboardInterrupt())]))
    back = Sides().fail(group)
    assert type(back) is BaseExceptionGroup
    assert back.message == "g"
    assert [type(exc) for exc in back.exceptions] == [ValueError, MyGroup, KeyboardInterrupt]
    assert functions_of(back.exceptions[0]) == ["raised"]
    assert type(back.exceptions[0].__cause__) is KeyError
    inner_back = back.exceptions[1]
    assert isinstance(inner_back, MyGroup)
    assert inner_back.message == "several"
    assert vars(inner_back.exceptions[0]) == {"code": 1, "detail": "d"}
    assert type(carried(ExceptionGroup("e", [ValueError()]))) is ExceptionGroup


def test_cycles() -> None:
    """Exceptions that refer to themselves or to each other end neither side in a loop."""
    first, second = raised(Plain("first")), raised(ValueError("second"))
    first.__context__, second.__context__ = second, first
    first.me = first  # type: ignore[attr-defined]
    back = Sides().fail(first)
    assert type(back) is Plain
    assert back.me is back  # type: ignore[attr-defined]
    assert type(back.__context__) is ValueError
    assert back.__context__.__context__ is back


def test_an_exception_is_one_object() -> None:
    """An exception that is cause and attribute at once is one in the client too."""
    cause = raised(KeyError())
    exc = raised(Plain(cause))
    exc.__cause__ = exc.__context__ = exc.original = cause  # type: ignore[attr-defined]
    back = Sides().fail(exc)
    assert back.args[0] is back.__cause__ is back.__context__ is back.original  # type: ignore[attr-defined]


def test_long_chains() -> None:
    """A chain longer than the recursion limit (a retry loop) arrives whole."""
    exc: BaseException = raised(ValueError(0))
    for n in range(1, 3000):
        following = raised(ValueError(n))
        following.__context__ = exc
        exc = following
    back: BaseException | None = Sides().fail(exc)
    n_found = 0
    while type(back) is ValueError:
        n_found += 1
        back = back.__context__ or back.__cause__
    assert n_found == 3000


def endless(n: int = 0) -> int:
    return endless(n + 1) + 1


def test_recursion_error() -> None:
    """A task that recurses for ever raises RecursionError in the client, with its traceback."""
    with pytest.raises(RecursionError) as caught:
        Sides().call(endless)
    names = functions_of(caught.value)
    assert names.count("endless") > 500
    assert "repeated" in text_of(caught.value)


def test_deep_tracebacks() -> None:
    """Of tens of thousands of frames both ends arrive, in a time that does not grow with the depth."""
    limit = sys.getrecursionlimit()
    answers: list[BaseException] = []

    def work() -> None:
        try:
            fail_deep(20_000)
        except Plain as exc:
            answers.append(Sides().fail(exc))

    sys.setrecursionlimit(50_000)
    threading.stack_size(256 << 20)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(0)
    (back,) = answers
    assert type(back) is Plain
    names = functions_of(back)
    assert len(names) == 2000
    assert (names[0], names[-1]) == ("work", "fail_deep")


class WithLock(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class NoReduce(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit("reduce")


class BadRebuild(Exception):
    def __reduce__(self) -> Any:
        return explode, ()


class NotAnException(Exception):
    def __reduce__(self) -> Any:
        return int, (5,)


def explode() -> None:
    raise SystemExit("rebuild")


class BadStr(Exception):
    def __str__(self) -> str:
        raise SystemExit("str")

    __repr__ = __str__


class OddStr(Exception):
    def __str__(self) -> str:
        class Odd(str):
            __slots__ = ()

        return Odd("odd")


@pytest.mark.parametrize("cls", [WithLock, NoReduce, BadRebuild, NotAnException])
def test_what_cannot_be_carried(cls: type[Exception]) -> None:
    """SEMANTICS 2, 4: a RemoteError with type name, message and traceback; no SystemExit in worker or client."""
    back = carried(cls())
    assert type(back) is RemoteError
    assert back.type_name == f"{__name__}.{cls.__name__}"
    assert back.message == str(cls())
    assert "raise exc" in back.traceback_text
    assert type(back.__cause__) is RemoteTraceback
    assert functions_of(back) == ["raised"]
    assert str(back) == f"{back.type_name}: {back.message}"


def test_str_that_fails() -> None:
    """An exception whose text cannot be had arrives all the same."""
    back = carried(BadStr())
    assert type(back) is BadStr
    assert "BadStr" in text_of(back)
    back = carried(OddStr(threading.Lock()))
    assert type(back) is RemoteError
    assert (back.message, type(back.message)) == ("odd", str)


def test_one_that_cannot_be_carried_spoils_only_itself() -> None:
    """In a chain or a group, a RemoteError stands in its place, and the others are what they were."""
    exc, middle, last = raised(Plain("a")), raised(WithLock()), raised(ValueError("c"))
    exc.__cause__, middle.__context__ = middle, last
    exc.original = middle  # type: ignore[attr-defined]
    back = Sides().fail(exc)
    assert type(back) is Plain
    assert type(back.__cause__) is RemoteError
    assert back.__cause__.type_name.endswith("WithLock")
    assert "holds a lock" in back.__cause__.traceback_text
    assert back.original is back.__cause__  # type: ignore[attr-defined]
    assert type(back.__cause__.__context__) is ValueError
    back = carried(ExceptionGroup("g", [ValueError(1), WithLock(), BadRebuild()]))
    assert type(back) is ExceptionGroup
    assert [type(member) for member in back.exceptions] == [ValueError, RemoteError, RemoteError]
    exc = raised(WithLock())
    exc.__cause__ = raised(KeyError("k"))
    back = Sides().fail(exc)
    assert type(back) is RemoteError
    assert type(back.__cause__) is KeyError


def test_class_that_the_client_does_not_have() -> None:
    """A class of a module that only the worker has: RemoteError; as a mere context it does not spoil the exception."""
    module = types.ModuleType("only_in_the_worker")
    exec("class Odd(Exception): pass", module.__dict__)
    exc = raised(Plain("a"))
    exc.__context__ = raised(module.Odd("odd"))
    sides = Sides()
    sys.modules["only_in_the_worker"] = module
    try:
        alone = sides.decoder.encode_failure(TASK, exc.__context__)
        context = sides.decoder.encode_failure(TASK, exc)
    finally:
        del sys.modules["only_in_the_worker"]
    back = sides.encoder.decode_failure(TASK, alone)
    assert type(back) is RemoteError
    assert (back.type_name, back.message) == ("only_in_the_worker.Odd", "odd")
    back = sides.encoder.decode_failure(TASK, context)
    assert type(back) is Plain
    assert type(back.__context__) is RemoteError
    assert back.__context__.type_name == "only_in_the_worker.Odd"


class BadState(Exception):
    def __init__(self) -> None:
        super().__init__("a")
        self.attribute = 1

    def __setstate__(self, state: Any) -> None:
        raise SystemExit("state")


def test_state_that_fails() -> None:
    """Without its attributes it is still the exception that an `except` clause waits for."""
    assert type(carried(BadState())) is BadState


def test_traceback_as_an_attribute() -> None:
    """An exception that keeps a traceback of its own can be carried."""
    exc = raised(Plain())
    exc.where = raised(ValueError()).__traceback__  # type: ignore[attr-defined]
    back = Sides().fail(exc)
    assert isinstance(back.where, types.TracebackType)  # type: ignore[attr-defined]


# In a process where nobody else has used the traceback library.
PACK_AND_UNPACK = """
import copyreg, types
from tests.unit.payload.support import Sides, raised

sides = Sides()
back = sides.fail(raised(ValueError("a")))
assert type(back) is ValueError and back.__traceback__ is not None
assert types.TracebackType not in copyreg.dispatch_table
assert ValueError not in copyreg.dispatch_table
"""


def test_copyreg_is_left_alone() -> None:
    """The traceback library is not registered for other users of pickle in this process."""
    subprocess.run([sys.executable, "-c", PACK_AND_UNPACK], check=True, cwd=Path(__file__).parents[3])


@pytest.mark.parametrize(
    "exc", [SystemExit(3), StopIteration("stop"), BaseExceptionGroup("a", [SystemExit(1), ValueError(2)]), Plain("a")]
)
def test_reducers_of_other_libraries(exc: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tblib's, as dask and others register them for the process: a failure still goes our way."""
    for cls in (types.TracebackType, type(exc), ValueError):
        monkeypatch.setitem(copyreg.dispatch_table, cls, copyreg.dispatch_table.get(cls))
    tblib.pickling_support.install(type(exc), ValueError)
    back = Sides().fail(raised(exc))
    assert type(back) is type(exc)
    assert (str(back), repr(back.args)) == (str(exc), repr(exc.args))
    assert getattr(back, "code", None) == getattr(exc, "code", None)
    assert "Traceback (most recent call last)" in text_of(back)


def test_without_traceback() -> None:
    """An exception that was never raised (a worker's own verdict) can be carried too."""
    back = Sides().fail(Plain("a"))
    assert (type(back), back.__traceback__) == (Plain, None)
    assert "Plain: a" in text_of(back)


@given(st.binary(max_size=60))
def test_damaged_failure(damage: bytes) -> None:
    """Whatever the bytes are, decode_failure returns an exception."""
    encoder = Sides().encoder
    assert isinstance(encoder.decode_failure(TASK, b"\0" + damage), BaseException)
    assert isinstance(encoder.decode_failure(TASK, damage), BaseException)


def test_cut_failure() -> None:
    """So for a failure that was cut anywhere."""
    sides = Sides()
    body = sides.decoder.encode_failure(TASK, raised(Plain("a")))
    for end in range(len(body)):
        assert isinstance(sides.encoder.decode_failure(TASK, body[:end]), PayloadError)


def test_refusal_is_returned() -> None:
    """A failure that does not verify is a PayloadError for the Future, not one for the listener."""
    body = Sides(SECRET).decoder.encode_failure(TASK, Plain())
    back = Sides(b"other").encoder.decode_failure(TASK, body)
    assert type(back) is PayloadError
    assert NETWORK not in str(back)


def test_locals_are_let_go() -> None:
    """What the client gets does not keep the worker's frames alive, nor does the worker's decoder."""

    class Local:
        pass

    def task(local: Any) -> None:
        raise Plain("a")

    local = Local()
    gone = weakref.ref(local)
    gc.disable()
    try:
        try:
            task(local)
        except Plain as exc:
            packed = pack_failure(exc)
        del local
        assert gone() is None
        assert packed
    finally:
        gc.enable()


def test_nested_remote_failures() -> None:
    """An exception that came from a worker and is raised again by a task keeps both remote texts."""
    first = Sides().fail(raised(Plain("a")))
    second = Sides().fail(first)
    assert type(second) is Plain
    assert type(second.__cause__) is RemoteTraceback
    assert type(second.__cause__.__cause__) is RemoteTraceback
