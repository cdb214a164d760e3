"""What cannot be unpickled fails its own task or Future, with the cause, the module and the class."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from rush_executor.errors import PayloadError
from tests.unit.payload import support
from tests.unit.payload.support import CLIENT, TASK, Restoring, Sides

ERRORS = [ValueError("v"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), RecursionError(), MemoryError()]


@pytest.mark.parametrize("exc", ERRORS, ids=lambda exc: type(exc).__name__)
def test_argument_that_raises(exc: BaseException) -> None:
    """SEMANTICS 3: the worker gets a PayloadError, whatever a `__setstate__` raises."""
    sides = Sides()
    payload = sides.encode(support.same, 1, Restoring(exc))
    with pytest.raises(PayloadError) as caught:
        sides.decoder.decode_call(CLIENT, TASK, payload)
    assert type(caught.value.__cause__) is type(exc)
    said = str(caught.value)
    assert said.startswith(f"an argument of same() cannot be unpickled in the worker: {type(exc).__name__}")
    assert "(at tests.unit.payload.support.Restoring.__setstate__)" in said


@pytest.mark.parametrize("exc", ERRORS, ids=lambda exc: type(exc).__name__)
def test_result_that_raises(exc: BaseException) -> None:
    """SEMANTICS 2: that Future's PayloadError; nothing that the listener would die of."""
    sides = Sides()
    body = sides.decoder.encode_result(TASK, [Restoring(exc)])
    with pytest.raises(PayloadError) as caught:
        sides.encoder.decode_outcome(TASK, "finished", body)
    assert type(caught.value.__cause__) is type(exc)
    assert "the result of task client-1:7 cannot be unpickled in the client" in str(caught.value)
    assert "support.Restoring.__setstate__" in str(caught.value)


@pytest.fixture(name="fleeting")
def _fleeting(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("fleeting")
    exec("def fn(): return 1\nclass Thing: pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "fleeting", module)
    return module


def test_missing_module(fleeting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that the worker does not have is named, for functions, arguments and results."""
    sides = Sides()
    by_name = sides.encode(fleeting.fn)
    argument = sides.encode(support.same, fleeting.Thing())
    body = sides.decoder.encode_result(TASK, fleeting.Thing())
    monkeypatch.delitem(sys.modules, "fleeting")
    for payload, what in ((by_name, "function fleeting.fn()"), (argument, "an argument of same()")):
        with pytest.raises(PayloadError, match="No module named 'fleeting'") as caught:
            sides.decoder.decode_call(CLIENT, TASK, payload)
        assert str(caught.value).startswith(what)
        assert str(caught.value).endswith("The module must be importable in the worker too.")
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(PayloadError, match="No module named 'fleeting'"):
        sides.encoder.decode_outcome(TASK, "finished", body)


def test_missing_name(fleeting: Any) -> None:
    """So is a function or class that the worker's version of a module does not have."""
    sides = Sides()
    by_name = sides.encode(fleeting.fn)
    argument = sides.encode(support.same, fleeting.Thing())
    del fleeting.fn, fleeting.Thing
    with pytest.raises(PayloadError, match=r"fleeting.*'fn'"):
        sides.decoder.decode_call(CLIENT, TASK, by_name)
    with pytest.raises(PayloadError, match=r"Thing.*fleeting.*same version"):
        sides.decoder.decode_call(CLIENT, TASK, argument)


@pytest.mark.parametrize("source", ["raise SystemExit(5)", "1 / 0", "import no_such_module_at_all", "def ("])
def test_module_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fleeting: Any, source: str
) -> None:
    """A module that raises while it is imported, even SystemExit, is that task's error and is tried again later."""
    sides = Sides()
    payload = sides.encode(fleeting.fn)
    monkeypatch.delitem(sys.modules, "fleeting")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "fleeting.py").write_text(source)
    with pytest.raises(PayloadError, match=r"function fleeting.fn\(\) cannot be unpickled in the worker"):
        sides.decoder.decode_call(CLIENT, TASK, payload)
    module = types.ModuleType("fleeting")
    module.fn = fleeting.fn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fleeting", module)
    assert sides.decoder.decode_call(CLIENT, TASK, payload).fn is fleeting.fn


def test_function_that_raises() -> None:
    """A closure that cannot be unpickled names itself by its digest, and where it went wrong."""
    bad = Restoring(ValueError("v"))
    sides = Sides()
    with pytest.raises(PayloadError, match=r"the function [0-9a-f]{32} of this call .*Restoring.__setstate__"):
        sides.call(lambda: bad)


def test_initializer_that_raises() -> None:
    """The initializer's payload too; what it is to break is the caller's to decide."""
    sides = Sides()
    payload = sides.encoder.encode_initializer(support.same, (Restoring(SystemExit(1)),))
    with pytest.raises(PayloadError, match="the initializer cannot be unpickled in the worker"):
        sides.decoder.decode_initializer(CLIENT, payload)


def test_error_reaches_the_client() -> None:
    """The worker's PayloadError arrives in the client with its cause."""
    with pytest.raises(PayloadError) as caught:
        Sides().call(support.same, Restoring(ValueError("v")))
    assert type(caught.value.__cause__) is ValueError
