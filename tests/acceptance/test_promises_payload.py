"""Promises about what travels: calls, results and exceptions (1-4, 12, 13, 18, 19, 21).

The promises are listed in docs/explanation/promises.md.
"""

from __future__ import annotations

import concurrent.futures
import gc
import importlib
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rush_executor import PayloadError, RemoteError, RushExecutor
from tests.acceptance import tasks
from tests.acceptance.programs import DEADLINE_S, environment, run_program

Eventually = Callable[[Callable[[], object]], object]

# ------------------------------------------------------------------------------------------------- 1: arguments


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit, MemoryError, pickle.PicklingError])
def test_promise_1_pickling_may_raise_anything(lone: RushExecutor, error: type[BaseException]) -> None:
    """Promise 1: `submit` does not raise what pickling raised; the Future does, and names the culprit."""
    worker = lone.submit(tasks.pid).result()
    futures = [
        lone.submit(tasks.echo, tasks.Unpicklable(error)),
        lone.submit(tasks.echo_all, 1, ["in", {"deep": tasks.Unpicklable(error)}]),
        lone.submit(tasks.echo_all, 1, keyword=tasks.Unpicklable(error)),
    ]
    places = ["argument 1 of echo()", "args[1][1]['deep']", "keyword argument 'keyword' of echo_all()"]
    for future, place in zip(futures, places, strict=True):
        failure = future.exception()
        assert isinstance(failure, PayloadError)
        assert isinstance(failure, pickle.PickleError)
        assert place in str(failure)
        assert "Unpicklable" in str(failure)
        assert error.__name__ in str(failure)
        assert isinstance(failure.__cause__, error)
        assert not future.cancelled()
    assert lone.submit(tasks.pid).result() == worker


def test_promise_1_what_is_nested_too_deeply(lone: RushExecutor) -> None:
    """Promise 1: what exceeds the recursion limit is no different."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    failure = lone.submit(tasks.echo, deep).exception()
    assert isinstance(failure, PayloadError)
    assert "recursion" in str(failure)
    assert lone.submit(tasks.square, 3).result() == 9
    # The interpreter takes apart even this without recursion.
    deep.clear()


def test_promise_1_the_function_itself(executor: RushExecutor) -> None:
    """Promise 1: a function that cannot be pickled fails its Future, alone or in `map`."""
    lock = threading.Lock()

    def locked(x: int) -> bool:
        return lock.locked() or bool(x)

    before = executor.submit(tasks.square, 3)
    failure = executor.submit(locked, 1).exception()
    assert isinstance(failure, PayloadError)
    assert "locked" in str(failure)
    assert "'lock'" in str(failure)
    results = executor.map(locked, range(3))
    with pytest.raises(PayloadError, match="'lock'"):
        next(results)
    assert before.result() == 9
    assert executor.submit(tasks.square, 4).result() == 16


@pytest.mark.parametrize("chunksize", [1, 2])
def test_promise_1_in_map(executor: RushExecutor, chunksize: int) -> None:
    """Promise 1: `map` gives the results that came before the culprit, and then its error."""
    items = [1, 2, threading.Lock(), 4]
    results = executor.map(tasks.echo, items, chunksize=chunksize)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(PayloadError, match="lock"):
        next(results)


def test_promise_1_ctrl_c_while_pickling_leaves_nothing_to_wait_for(lone: RushExecutor) -> None:
    """Promise 1, its limit: KeyboardInterrupt is the user's, `submit` raises it; the executor goes on all the same."""
    with pytest.raises(KeyboardInterrupt):
        lone.submit(tasks.echo, tasks.Unpicklable(KeyboardInterrupt))
    assert lone.submit(tasks.square, 5).result() == 25


# --------------------------------------------------------------------------------------------------- 2: results


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_promise_2_unpickling_a_result_may_raise_anything(lone: RushExecutor, error: type[BaseException]) -> None:
    """Promise 2: a result that fails to unpickle here is its Future's error; the next result comes."""
    worker = lone.submit(tasks.pid).result()
    future = lone.submit(tasks.make_homebody, error)
    after = lone.submit(tasks.pid)
    failure = future.exception(DEADLINE_S)
    assert isinstance(failure, PayloadError)
    assert isinstance(failure.__cause__, error)
    assert "far from home" in str(failure)
    assert "stay_home" in str(failure)
    assert after.result(DEADLINE_S) == worker


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_promise_2_an_exception_that_cannot_be_rebuilt(lone: RushExecutor, error: type[BaseException]) -> None:
    """Promise 2: an exception that fails to unpickle here is told as text; the next result comes."""
    future = lone.submit(tasks.fail_as_homebody, error)
    after = lone.submit(tasks.square, 2)
    failure = future.exception(DEADLINE_S)
    assert isinstance(failure, RemoteError)
    assert failure.type_name.endswith("HomebodyError")
    assert failure.message == "lost my way"
    assert "in fail_as_homebody" in failure.traceback_text
    assert after.result(DEADLINE_S) == 4


def test_promise_2_in_map(lone: RushExecutor) -> None:
    """Promise 2: in `map`, plain or in chunks, it is the error of the items that it travels with."""
    errors = [ValueError, SystemExit]
    for chunksize in (1, 2):
        with pytest.raises(PayloadError, match="far from home"):
            list(lone.map(tasks.make_homebody, errors, chunksize=chunksize))
    assert list(lone.map(tasks.square, range(3))) == [0, 1, 4]


def test_a_result_that_cannot_be_pickled_fails_its_task_alone(lone: RushExecutor) -> None:
    """Promises 1 and 2, on the worker's side: the error says what it was, the worker lives."""
    worker = lone.submit(tasks.pid).result()
    for error in (ValueError, SystemExit, KeyboardInterrupt):
        failure = lone.submit(tasks.make_unpicklable, error).exception(DEADLINE_S)
        assert isinstance(failure, PayloadError)
        assert "Unpicklable" in str(failure)
        assert error.__name__ in str(failure)
    assert lone.submit(tasks.pid).result() == worker


# --------------------------------------------------------------------------------------------- 3: in the worker


@pytest.fixture
def late_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a module that this process finds, but no worker that has been started before."""

    def make(text: str) -> Any:
        (tmp_path / "only_here.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "only_here", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return importlib.import_module("only_here")

    yield make
    sys.modules.pop("only_here", None)


def test_promise_3_a_module_that_the_worker_does_not_have(lone: RushExecutor, late_module: Any) -> None:
    """Promise 3: the error names the module and the class, for a function and for an argument."""
    worker = lone.submit(tasks.pid).result()
    module = late_module(
        """
        class Thing:
            pass

        def function():
            pass
        """
    )
    for future in (lone.submit(module.function), lone.submit(tasks.echo, [module.Thing()])):
        failure = future.exception(DEADLINE_S)
        assert isinstance(failure, PayloadError)
        assert isinstance(failure.__cause__, ModuleNotFoundError)
        assert "No module named 'only_here'" in str(failure)
    assert "only_here.Thing" in str(failure)
    assert lone.submit(tasks.pid).result() == worker


def test_promise_3_a_name_that_the_worker_does_not_have(server_url: str, late_module: Any, tmp_path: Path) -> None:
    """Promise 3: where the worker has another version of the module, the error says so."""
    module = late_module("def function(): return 1")
    with RushExecutor(1, url=server_url) as executor:
        assert executor.submit(module.function).result() == 1
        module = late_module("class Thing: pass\ndef function(): return 1\ndef other(): return 2")
        for future, name in (
            (executor.submit(module.other), "other"),
            (executor.submit(len, [module.Thing()]), "Thing"),
        ):
            failure = future.exception(DEADLINE_S)
            assert isinstance(failure, PayloadError)
            assert isinstance(failure.__cause__, AttributeError)
            assert f"only_here.{name}" in str(failure)
            assert "same version" in str(failure)
        assert executor.submit(module.function).result() == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_promise_3_unpickling_may_raise_anything(lone: RushExecutor, error: type[BaseException]) -> None:
    """Promise 3: the error of an argument that does not unpickle in the worker names the culprit; the worker lives."""
    worker = lone.submit(tasks.pid).result()
    failure = lone.submit(tasks.echo, {"who": tasks.Homebody(error)}).exception(DEADLINE_S)
    assert isinstance(failure, PayloadError)
    assert "far from home" in str(failure)
    assert error.__name__ in str(failure)
    assert f"{tasks.__name__}.stay_home" in str(failure)
    assert lone.submit(tasks.pid).result() == worker


def test_promise_3_setstate_may_raise(lone: RushExecutor) -> None:
    """Promise 3: module, class and cause are in the message; the user's line in the traceback of the cause."""
    failure = lone.submit(tasks.echo, tasks.Fragile()).exception(DEADLINE_S)
    assert isinstance(failure, PayloadError)
    assert isinstance(failure.__cause__, LookupError)
    assert f"{tasks.__name__}.Fragile.__setstate__" in str(failure)
    assert "the fragile state broke" in str(failure)
    assert 'raise LookupError("the fragile state broke")' in "".join(traceback.format_exception(failure))
    assert lone.submit(tasks.square, 3).result() == 9


# ------------------------------------------------------------------------------------------------- 4: exceptions


def test_promise_4_required_arguments_are_no_obstacle(lone: RushExecutor) -> None:
    """Promise 4: an exception whose `__init__` asks for arguments arrives as itself, with its attributes."""
    worker = lone.submit(tasks.pid).result()
    failure = lone.submit(tasks.fail_needy).exception(DEADLINE_S)
    assert type(failure) is tasks.NeedyError
    assert str(failure) == "error 42 at home"
    assert (failure.code, failure.place) == (42, "home")
    assert traceback.extract_tb(failure.__traceback__)[-1].name == "fail_needy"
    assert lone.submit(tasks.pid).result() == worker


def test_promise_4_what_cannot_be_pickled_is_told_as_text(lone: RushExecutor) -> None:
    """Promise 4: of an exception that holds a lock, type name, message and traceback are kept."""
    worker = lone.submit(tasks.pid).result()
    failure = lone.submit(tasks.fail_locked).exception(DEADLINE_S)
    assert isinstance(failure, RemoteError)
    assert failure.type_name == f"{tasks.__name__}.LockedError"
    assert failure.message == "the lock is mine"
    assert 'raise LockedError("the lock is mine")' in failure.traceback_text
    assert "the lock is mine" in str(failure)
    assert "in fail_locked" in "".join(traceback.format_exception(failure))
    assert lone.submit(tasks.pid).result() == worker


def test_promise_4_only_the_culprit_of_a_chain_is_replaced(lone: RushExecutor) -> None:
    """Promise 4: an exception that can be carried is itself, whatever caused it."""
    failure = lone.submit(tasks.fail_because_locked).exception(DEADLINE_S)
    assert type(failure) is ValueError
    assert isinstance(failure.__cause__, RemoteError)
    assert failure.__cause__.type_name.endswith("LockedError")
    assert "in fail_locked" in "".join(traceback.format_exception(failure))


def test_promise_4_even_one_that_cannot_be_printed(lone: RushExecutor) -> None:
    """Promise 4: a `__str__` and a `__reduce__` that raise, even SystemExit, cost the message but not the worker."""
    worker = lone.submit(tasks.pid).result()
    failure = lone.submit(tasks.fail_mute).exception(DEADLINE_S)
    assert isinstance(failure, RemoteError)
    assert failure.type_name.endswith("MuteError")
    assert "in fail_mute" in failure.traceback_text
    assert lone.submit(tasks.pid).result() == worker


# --------------------------------------------------------------------------------------- 12: state of `__main__`


def test_promise_12_the_state_of_main_stays_in_the_worker(tmp_path: Path) -> None:
    """Promise 12: a global that a function of `__main__` changes is there for the next task, of any function."""
    out, err = run_program(
        """
        from rush_executor import RushExecutor

        counter = 0
        notes = {}
        step = 1
        model = None

        def count():
            global counter
            counter += step
            return counter

        def count_twice(_):
            count()
            return count()

        def put(key, value):
            notes[key] = value

        def get():
            return notes, counter

        def load():
            global model
            if model is None:
                model = object()
            return id(model)

        executor = RushExecutor(1)
        print([executor.submit(count).result() for _ in range(3)])
        print(list(executor.map(count_twice, range(2))))
        executor.submit(put, "a", 1).result()
        executor.submit(put, "b", 2).result()
        print(executor.submit(get).result())
        print(len({executor.submit(load).result() for _ in range(5)}))
        step = 10
        print(executor.submit(count).result())
        print(counter, notes, model)
        """,
        directory=tmp_path,
    )
    assert err == ""
    assert out.splitlines() == [
        "[1, 2, 3]",
        "[5, 7]",
        "({'a': 1, 'b': 2}, 7)",
        "1",
        "17",  # what the client has changed since arrives, and what the worker has counted stays
        "0 {} None",
    ]


# ------------------------------------------------------------------------------------ 13: wherever it was defined

_EVERYWHERE = """
    import enum
    from rush_executor import RushExecutor

    executor = RushExecutor(2)
    offset = 100

    class Model:
        def __init__(self, x):
            self.x = x
        def run(self, y):
            return helper(self.x) + y + offset

    class Color(enum.Enum):
        RED = 1

    def helper(x):
        return 10 * x

    def is_model(thing):
        return isinstance(thing, Model), type(thing) is Model

    def is_red(color):
        return color is Color.RED

    def make_adder(n):
        class Adder:
            def add(self, x):
                return x + n
        return Adder(), lambda x: Adder().add(x)

    def version():
        return 1

    print(executor.submit(Model(1).run, 2).result())
    print(executor.submit(is_model, Model(1)).result(), executor.submit(is_model, Model(2)).result())
    print(executor.submit(is_red, Color.RED).result())
    adder, add = make_adder(5)
    print(executor.submit(adder.add, 1).result(), list(executor.map(add, range(3))))
    print(isinstance(executor.submit(Model, 3).result(), Model), executor.submit(Model, 3).result().run(0))

    print([executor.submit(version).result() for _ in range(4)])
    def version():
        return 2
    print([executor.submit(version).result() for _ in range(4)])
    def helper(x):
        return 1000 * x
    print([executor.submit(Model(1).run, 2).result() for _ in range(4)])
    try:
        executor.submit(lambda: 1 / 0).result()
    except ZeroDivisionError as error:
        print("caught", error)
    """

_EVERYWHERE_OUT = [
    "112",
    "(True, True) (True, True)",
    "True",
    "6 [5, 6, 7]",
    "True 130",
    "[1, 1, 1, 1]",
    "[2, 2, 2, 2]",
    "[1102, 1102, 1102, 1102]",
    "caught division by zero",
]


@pytest.mark.parametrize("how", ["path", "-c", "stdin", "-m", "zip"])
def test_promise_13_wherever_a_function_was_defined(tmp_path: Path, how: str) -> None:
    """Promise 13: no main guard, functions defined after the executor, closures, local classes, redefinitions."""
    text = textwrap.dedent(_EVERYWHERE)
    path = tmp_path / ("__main__.py" if how == "zip" else "some_program.py")
    path.write_text(text)
    command = {
        "path": [str(path)],
        "-c": ["-c", text],
        "stdin": ["-"],
        "-m": ["-m", "some_program"],
        "zip": [str(tmp_path)],
    }[how]
    done = subprocess.run(
        [sys.executable, *command],
        input=text if how == "stdin" else "",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == _EVERYWHERE_OUT
    assert done.returncode == 0


def test_promise_13_in_cells_of_a_notebook(tmp_path: Path) -> None:
    """Promise 13: cells are compiled one by one into a `__main__` without a file; a traceback shows the cell's line."""
    cells = [
        "from rush_executor import RushExecutor\nexecutor = RushExecutor(2)",
        "def f(x):\n    return x + 1\nprint(list(executor.map(f, range(3))))",
        "def f(x):\n    return x + g()\ndef g():\n    return 7\nprint(list(executor.map(f, range(3))))",
        "def g():\n    return 8\nprint(list(executor.map(f, range(3))))",
        "def bad():\n    return {}['nothing']\nfuture = executor.submit(bad)",
        "import traceback\nprint(''.join(traceback.format_exception(future.exception())))",
        "executor.shutdown()",
    ]
    out, err = run_program(
        f"""
        import linecache, sys, types
        # As IPython does it: a module of its own stands in as __main__, cells are known to linecache.
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        for number, cell in enumerate({cells!r}, 1):
            name = f"<ipython-input-{{number}}-abc>"
            linecache.cache[name] = len(cell), None, cell.splitlines(True), name
            exec(compile(cell, name, "exec"), main.__dict__)
        """,
        directory=tmp_path,
    )
    assert err == ""
    assert out.splitlines()[:3] == ["[1, 2, 3]", "[7, 8, 9]", "[8, 9, 10]"]
    assert "KeyError: 'nothing'" in out
    assert "return {}['nothing']" in out


def test_promise_13_closures_and_local_classes_of_a_test(executor: RushExecutor) -> None:
    """Promise 13: what is defined in a function travels by value, and as it is at the time of the call."""
    n = 1

    class Local:
        def times(self, x: int) -> int:
            return n * x

    def nested() -> Callable[[int], int]:
        return lambda x: Local().times(x) + n

    assert executor.submit(nested(), 5).result() == 6
    n = 10
    assert executor.submit(nested(), 5).result() == 60
    assert list(executor.map(lambda x: Local().times(x), range(3))) == [0, 10, 20]
    assert type(executor.submit(Local).result()) is Local


# -------------------------------------------------------------------------------------------------- 18: 512 MB


def test_promise_18_a_result_larger_than_any_string_of_the_server(lone: RushExecutor) -> None:
    """Promise 18: 520 MiB come back whole and in order."""
    n = 520 * 1024 * 1024 // 8

    def make(n: int) -> Any:
        return np.arange(n, dtype=np.uint64)

    result = lone.submit(make, n).result()
    assert result.shape == (n,)
    assert result[0] == 0
    assert result[-1] == n - 1
    assert bool((np.diff(result) == 1).all())


# ----------------------------------------------------------------------------------------------- 19: references


def test_promise_19_an_argument_is_let_go_when_it_was_sent(
    lone: RushExecutor, eventually: Eventually, tmp_path: Path
) -> None:
    """Promise 19: while its task runs or waits, nobody here holds an argument any more."""
    gate = tmp_path / "gate"
    things = [tasks.Thing() for _ in range(4)]
    references = [weakref.ref(thing) for thing in things]
    futures = [
        lone.submit(tasks.wait_for, str(gate), things[0]),
        lone.submit(tasks.echo, things[1]),
        lone.submit(lambda _: None, things[2]),
        lone.submit(tasks.echo_all, keyword=things[3]),
    ]
    things.clear()
    gc.disable()
    try:
        eventually(lambda: not any(reference() for reference in references))
    finally:
        gc.enable()
    assert not any(future.done() for future in futures)
    gate.touch()
    assert isinstance(futures[0].result(), tasks.Thing)


def test_promise_19_an_argument_that_was_refused_is_let_go(lone: RushExecutor) -> None:
    """Promise 19: the error of an argument that cannot be pickled does not hold it."""
    thing = tasks.Unpicklable(ValueError)
    reference = weakref.ref(thing)
    future = lone.submit(tasks.echo, thing)
    assert future.exception() is not None
    del thing
    gc.disable()
    try:
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("chunksize", "buffersize"), [(1, None), (1, 2), (3, None), (2, 4)])
def test_promise_19_map_lets_results_go(
    lone: RushExecutor, chunksize: int, buffersize: int | None, eventually: Eventually
) -> None:
    """Promise 19: when the iterator has passed a result, nobody holds it; but for a thread that is about to return."""
    results = lone.map(tasks.make_thing, range(7), chunksize=chunksize, buffersize=buffersize)
    gc.disable()
    try:
        for _ in range(7):
            reference = weakref.ref(next(results))
            eventually(lambda reference=reference: reference() is None)
    finally:
        gc.enable()


def test_promise_19_a_future_that_is_let_go_takes_its_result_along(lone: RushExecutor, eventually: Eventually) -> None:
    """Promise 19: the executor holds neither Futures that are resolved nor their results."""
    future = lone.submit(tasks.make_thing, 0)
    reference, result = weakref.ref(future), weakref.ref(future.result())
    del future
    gc.disable()
    try:
        eventually(lambda: reference() is None and result() is None)
    finally:
        gc.enable()


def test_promise_19_the_worker_lets_go(lone: RushExecutor) -> None:
    """Promise 19: a task's arguments, result and exception are gone from the worker when the next task runs."""
    lone.submit(tasks.take_thing, "argument", tasks.Thing()).result()
    lone.submit(tasks.give_thing, "result").result()
    with pytest.raises(ValueError, match="failure"):
        lone.submit(tasks.fail_with_thing, "failure", tasks.Thing()).result()
    list(lone.map(tasks.give_thing, ["chunk 1", "chunk 2"], chunksize=2))
    for name in ("argument", "result", "failure", "chunk 1", "chunk 2"):
        assert lone.submit(tasks.is_gone, name).result(), name


# ------------------------------------------------------------------------------------------ 21: nothing is the same


def test_promise_21_every_call_is_made(executor: RushExecutor) -> None:
    """Promise 21: the same function with the same arguments is called as often as it is submitted."""
    import os

    futures = [executor.submit(os.urandom, 8) for _ in range(300)]
    values = [future.result() for future in futures]
    values += executor.map(os.urandom, [8] * 300)
    values += executor.map(os.urandom, [8] * 300, chunksize=50)
    values += [executor.submit(lambda: os.urandom(8)).result() for _ in range(20)]
    assert len(set(values)) == 920


def test_promise_21_in_the_order_of_one_worker(lone: RushExecutor) -> None:
    """Promise 21: of equal calls none is left out and none is made twice."""
    futures = [lone.submit(tasks.count_up) for _ in range(500)]
    assert [future.result() for future in futures] == list(range(1, 501))
    concurrent.futures.wait(futures)
