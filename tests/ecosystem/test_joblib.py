"""The joblib backend "rush": what joblib's own tests do not ask, and what is better here than in loky's.

joblib's tests are run by `test_joblib_suite.py`, scikit-learn by `test_sklearn.py`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import psutil
import pytest
from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from scipy import sparse

import rush_executor.joblib
from rush_executor import PayloadError, WorkerLostError
from rush_executor.joblib import RushBackend
from rush_executor.joblib._pools import POOLS
from rush_executor.testing import keys_left, temporary_server
from tests.acceptance.programs import REPOSITORY, alive, environment, finish, read_line, start_program, whole_family
from tests.acceptance.tasks import meet
from tests.ecosystem import joblib_tasks as tasks

Eventually = Callable[..., Any]


@pytest.fixture(autouse=True)
def _executors_end() -> Iterator[None]:
    """What is kept for the next call ends with the test."""
    yield
    rush_executor.joblib.shutdown()


def on_rush(n_jobs: int = 2, **arguments: Any) -> Any:
    return Parallel(n_jobs=n_jobs, backend="rush", **arguments)


def workers() -> set[int]:
    """The two workers of a call: its tasks wait for each other."""
    with tempfile.TemporaryDirectory() as directory:
        return set(on_rush(batch_size=1)(delayed(meet)(directory, 2, name) for name in "ab"))


# -------------------------------------------------------------------------------------------------- calls and pools


def test_the_executor_is_kept_for_the_next_call() -> None:
    """Many calls, one start: of all threads, with and without a context, as long as the arguments are the same."""
    first = workers()
    assert len(first) == 2
    for _ in range(5):
        assert workers() <= first
    with parallel_config(backend="rush", n_jobs=2):
        assert set(Parallel()(delayed(tasks.worker)(i) for i in range(4))) <= first
    found: list[set[int]] = []
    thread = threading.Thread(target=lambda: found.append(workers()))
    thread.start()
    thread.join()
    assert found[0] <= first


def test_other_arguments_have_another_executor() -> None:
    """The number of workers, the threads in each, an initializer; also an argument that cannot be compared."""
    one = workers()
    arguments: list[dict[str, Any]] = [
        {"n_jobs": 3},
        {"inner_max_num_threads": 2},
        {"initializer": np.sum, "initargs": (np.zeros(2),)},
        {"initializer": np.sum, "initargs": (np.zeros(2),)},
    ]
    seen = set(one)
    for more in arguments:
        with parallel_config(backend="rush", **{"n_jobs": 2, **more}):
            now = set(Parallel(batch_size=1)(delayed(tasks.worker_of_two)(i) for i in range(4)))
        assert not now & seen
        seen |= now


def test_few_executors_are_kept(eventually: Eventually) -> None:
    """A program that varies an argument does not fill the machine with workers: the oldest idle ones end."""
    for n in range(5):
        with parallel_config(backend="rush", n_jobs=2, max_retries=n):
            Parallel()(delayed(tasks.square)(i) for i in range(4))
    assert len(POOLS._open) == 2
    eventually(lambda: len([p for p in psutil.Process().children() if "rush-agent" in p.cmdline()]) == 2)


def test_an_idle_executor_is_closed_and_the_next_call_starts_another(eventually: Eventually) -> None:
    """`idle_worker_timeout`, also inside of a `with Parallel`, which does not notice."""
    me = psutil.Process()
    before = set(me.children(recursive=True))
    with on_rush(idle_worker_timeout=0.3) as parallel:
        first = set(parallel(delayed(tasks.worker)(i) for i in range(4)))
        eventually(lambda: not set(me.children(recursive=True)) - before)
        assert not set(parallel(delayed(tasks.worker)(i) for i in range(4))) & first


def test_a_long_task_is_not_idleness(tmp_path: Path) -> None:
    """The clock of `idle_worker_timeout` stands while anything is under way."""
    call = on_rush(idle_worker_timeout=0.2, return_as="generator")
    results = call(delayed(tasks.wait_for)(tmp_path / "gate", i) for i in range(2))
    time.sleep(0.6)  # what would be wrong is that something happens meanwhile
    (tmp_path / "gate").touch()
    assert list(results) == [0, 1]


def test_a_broken_executor_is_replaced(eventually: Eventually) -> None:
    """The server is gone for good: the next call starts anew."""
    me = psutil.Process()
    before = set(me.children())
    with parallel_config(backend="rush", n_jobs=2, reconnect_timeout=0.1):
        first = set(Parallel()(delayed(tasks.worker)(i) for i in range(4)))
        [pool] = POOLS._open
        [server] = [p for p in set(me.children()) - before if "valkey" in p.name() or "redis" in p.name()]
        server.kill()
        eventually(lambda: pool.executor._broken)
        assert not set(Parallel()(delayed(tasks.worker)(i) for i in range(4))) & first


def test_n_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As joblib has it; `max_workers` is what negative numbers count from, and then all is the default."""
    monkeypatch.setattr("rush_executor.joblib._backend.cpu_count", lambda: 4)
    assert [RushBackend().effective_n_jobs(n) for n in (1, 3, -1, -2, -9, None)] == [1, 3, 4, 3, 1, 1]
    assert [RushBackend(max_workers=8).effective_n_jobs(n) for n in (3, -1, -2, None)] == [3, 8, 7, 8]
    with pytest.raises(ValueError, match="n_jobs == 0"):
        RushBackend().effective_n_jobs(0)
    with parallel_config(backend="rush", n_jobs=3):
        assert effective_n_jobs(-1) == 4
        assert Parallel().n_jobs == 3
    assert POOLS._open == []


def test_one_job_starts_nothing() -> None:
    """The tasks are run by joblib itself."""
    assert on_rush(1)(delayed(tasks.worker)(i) for i in range(2)) == [os.getpid()] * 2
    assert POOLS._open == []


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"nosuch": 1}, TypeError, "nosuch"),
        ({"url": "redis://localhost:1"}, rush_executor.ServerError, "no server answers"),
        ({"max_retries": -1}, ValueError, "max_retries"),
    ],
)
def test_a_wrong_argument_is_told_at_once(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    """In the words of `RushExecutor`."""
    with pytest.raises(error, match=match):
        on_rush(**arguments)(delayed(tasks.square)(i) for i in range(2))


def test_no_secret_in_a_repr() -> None:
    """What keeps the arguments does not show them."""
    with parallel_config(backend="rush", n_jobs=2, secret="hush-hush"):  # noqa: S106 - of this test
        Parallel()(delayed(tasks.square)(i) for i in range(2))
    assert "hush" not in repr(POOLS._open[0].settings)


def test_threads_of_numerical_libraries() -> None:
    """`inner_max_num_threads`, else an even share of the CPUs."""
    share = str(max(1, joblib.cpu_count() // 2))
    assert (
        on_rush()([delayed(tasks.environment)("OMP_NUM_THREADS")] * 2) == [os.environ.get("OMP_NUM_THREADS", share)] * 2
    )
    with parallel_config(backend="rush", n_jobs=2, inner_max_num_threads=5):
        assert Parallel()([delayed(tasks.environment)("OMP_NUM_THREADS")] * 2) == ["5", "5"]


def test_threads_share_an_executor() -> None:
    """Calls of several threads at once: each gets its own results, and no more workers are started."""
    found: dict[int, list[int]] = {}

    def call(n: int) -> None:
        found[n] = on_rush()(delayed(tasks.square)(100 * n + i) for i in range(50))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {n: [(100 * n + i) ** 2 for i in range(50)] for n in range(4)}
    assert len(POOLS._open) == 1


def test_short_tasks_travel_in_batches() -> None:
    """That is joblib's auto-batching, which sees how short they are."""
    with on_rush() as parallel:
        assert parallel(delayed(tasks.square)(i) for i in range(3000)) == [i * i for i in range(3000)]
        assert parallel.n_dispatched_batches < 1000


# ------------------------------------------------------------------------------------------------------- failures


def test_the_users_traceback() -> None:
    """The type that the task raised, and the line that raised it, though joblib cuts tracebacks off."""
    with pytest.raises(ValueError, match="no 3") as raised:
        on_rush()(delayed(tasks.fail)(i) for i in (3, 3))
    text = "".join(traceback.format_exception(raised.value))
    assert 'raise ValueError(f"no {x}")' in text
    assert "in fail" in text


def test_an_argument_that_cannot_be_pickled_ends_the_call() -> None:
    """Also one that comes later, when joblib submits from another thread: the call does not wait for ever."""
    with pytest.raises(pickle.PicklingError, match=r"argument 1 of run_batch\(\) cannot be pickled.*lock") as raised:
        on_rush()(delayed(tasks.square)(i if i < 20 else threading.Lock()) for i in range(30))
    assert isinstance(raised.value, PayloadError)


def test_an_executor_that_cannot_be_started_again_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it had been closed meanwhile, and joblib submits from another thread."""

    def no_executor(*_: object) -> None:
        raise rush_executor.ServerError("gone")

    n_taken, take = 0, POOLS.take

    def take_some(*arguments: Any) -> Any:
        nonlocal n_taken
        n_taken += 1
        return take(*arguments) if n_taken < 8 else no_executor()

    monkeypatch.setattr(POOLS, "take", take_some)
    with pytest.raises(rush_executor.ServerError, match="gone"):
        on_rush(batch_size=1)(delayed(tasks.square)(i) for i in range(30))


def test_a_lost_worker_loses_no_result(tmp_path: Path) -> None:
    """Its batch is run again, where loky breaks as a whole."""
    assert on_rush()(delayed(tasks.die_once)(tmp_path / "mark", i) for i in range(20)) == list(range(20))


def test_a_task_that_kills_every_worker(tmp_path: Path) -> None:
    """`max_retries` says how often it may; the next call finds workers."""
    with pytest.raises(WorkerLostError, match="exited with code 7"), parallel_config(backend="rush", max_retries=0):
        Parallel(n_jobs=2)(delayed(os._exit)(7) for _ in range(2))
    assert len(workers()) == 2


# --------------------------------------------------------------------------------------------------------- aborts


def test_a_failure_stops_what_runs_and_what_is_queued(tmp_path: Path, eventually: Eventually) -> None:
    """When `Parallel` raises, no task of the call runs any more, and none that was queued ever does."""
    calls = [delayed(tasks.touch_and_sleep)(tmp_path, "first"), delayed(tasks.fail_when_there_are)(tmp_path, 2)]
    calls += [delayed(tasks.touch_and_sleep)(tmp_path, i) for i in range(50)]
    began_at = time.monotonic()
    with pytest.raises(ValueError, match="enough"):
        on_rush(batch_size=1, pre_dispatch="all")(calls)
    begun = sorted(file.name for file in tmp_path.iterdir())
    assert len(workers()) == 2
    assert time.monotonic() - began_at < 30, "both workers are free again at once"
    assert sorted(file.name for file in tmp_path.iterdir()) == begun
    # The first one, the one that failed, and at most what took its worker's place for a moment.
    assert len(begun) <= 3
    eventually(lambda: not POOLS._open[0].n_taken)


def test_a_timeout_stops_the_task(tmp_path: Path) -> None:
    """`Parallel(timeout=...)` raises, and the task is ended with its worker."""
    [before] = [workers()]
    with pytest.raises(multiprocessing.TimeoutError):
        on_rush(timeout=0.2)(delayed(tasks.touch_and_sleep)(tmp_path, i) for i in range(2))
    assert not workers() & before


def test_a_generator_that_is_let_go_of_stops_its_tasks_and_no_others(tmp_path: Path) -> None:
    """Two calls share the workers; the end of one is not the end of the other."""
    others = on_rush(batch_size=1, return_as="generator")(
        delayed(tasks.wait_for)(tmp_path / "gate", i) for i in range(3)
    )
    mine = on_rush(batch_size=1, return_as="generator")(delayed(tasks.touch_and_sleep)(tmp_path, i) for i in range(50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib's, about results that nobody fetched
        del mine
        gc.collect()
    (tmp_path / "gate").touch()
    assert list(others) == [0, 1, 2]
    assert not set(map(str, range(50))) & {file.name for file in tmp_path.iterdir()}


def test_generators_of_one_context() -> None:
    """Both calls are given the same backend object; the end of the first does not stop the second."""
    with parallel_config(backend="rush", n_jobs=2):
        first = Parallel(return_as="generator", batch_size=1)(delayed(tasks.square)(i) for i in range(5))
        second = Parallel(return_as="generator", batch_size=1)(delayed(tasks.square)(i) for i in range(100))
        assert list(first) == [i * i for i in range(5)]
        assert list(second) == [i * i for i in range(100)]


def test_a_context_after_an_abort(tmp_path: Path) -> None:
    """`with Parallel` goes on after a call that has failed."""
    with on_rush(batch_size=1) as parallel:
        for _ in range(2):
            with pytest.raises(ValueError, match="no 1"):
                parallel([delayed(tasks.touch_and_sleep)(tmp_path, 1), delayed(tasks.fail)(1)])
            assert parallel(delayed(tasks.square)(i) for i in range(10)) == [i * i for i in range(10)]


# --------------------------------------------------------------------------------------------------------- nesting


def test_calls_inside_of_calls_that_name_this_backend() -> None:
    """Each worker has executors of its own then; nothing waits for itself, and all of it ends."""
    found = on_rush()(delayed(tasks.nested)(1) for _ in range(2))
    assert [len(pids) for pids in found] == [2, 2]
    assert os.getpid() not in found[0]


def test_a_forked_child_has_executors_of_its_own() -> None:
    """The parent's are the parent's, which goes on."""
    before = workers()
    with multiprocessing.get_context("fork").Pool(1) as children:
        theirs = children.apply(workers)
    assert len(theirs) == 2
    assert not theirs & before
    assert workers() <= before


# ---------------------------------------------------------------------------------------------------------- arrays

LARGE = np.ones((200, 1000))


def test_a_large_array_is_sent_once(tmp_path: Path) -> None:
    """All tasks of all workers map the same file, which is gone after the call."""
    found = on_rush(temp_folder=tmp_path, batch_size=1)(delayed(tasks.file_of)(LARGE) for _ in range(10))
    assert {(kind, total) for kind, _, total in found} == {("memmap", 200_000.0)}
    [name] = {name for _, name, _ in found}
    assert name is not None
    assert Path(name).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frame", [pd.DataFrame(LARGE), sparse.csr_matrix(LARGE)], ids=["DataFrame", "sparse"])
def test_a_large_frame_is_sent_once(frame: Any) -> None:
    """Whatever object the array is in."""
    names = set(on_rush(batch_size=1)(delayed(tasks.file_of_values)(frame) for _ in range(6)))
    assert len(names) == 1
    assert None not in names


def test_a_result_is_an_array_of_its_own() -> None:
    """It is not bound to a file that is gone."""
    [back] = on_rush()(delayed(tasks.give_back)(LARGE) for _ in range(1))
    assert type(back) is np.ndarray
    back[0, 0] = 7
    assert np.array_equal(back[1:], LARGE[1:])


def test_the_bound_for_large_arrays() -> None:
    """`max_nbytes`, 1 MiB by default, None for none; `mmap_mode=None` says the same."""
    small = np.ones(1000)

    def kinds(array: Any, **arguments: Any) -> set[str]:
        return {kind for kind, _, _ in on_rush(**arguments)(delayed(tasks.file_of)(array) for _ in range(2))}

    assert kinds(small) == {"ndarray"}
    assert kinds(small, max_nbytes="1K") == {"memmap"}
    assert kinds(LARGE, max_nbytes=None) == {"ndarray"}
    assert kinds(LARGE, mmap_mode=None) == {"ndarray"}


def test_a_changed_array_is_sent_anew() -> None:
    """Between two calls, also of one context."""
    array = LARGE.copy()
    with on_rush() as parallel:
        assert parallel([delayed(tasks.file_of)(array)] * 2)[0][2] == 200_000
    array[:] = 2
    assert on_rush()([delayed(tasks.file_of)(array)] * 2)[0][2] == 400_000


def test_nothing_is_left_in_memory_after_an_abort(tmp_path: Path, eventually: Eventually) -> None:
    """Files go also when the tasks that mapped them were killed."""
    calls = [delayed(tasks.give_back)(LARGE), delayed(tasks.fail)(LARGE)] * 5
    with pytest.raises(ValueError, match="no "):
        on_rush(temp_folder=tmp_path, batch_size=1)(calls)
    eventually(lambda: not list(tmp_path.iterdir()))


# ------------------------------------------------------------------------------------------------ workers elsewhere


@pytest.fixture
def elsewhere() -> Iterator[Callable[[int], dict[str, Any]]]:
    """Starts workers as on another machine; returns the arguments with which a call finds them alone."""
    programs: list[subprocess.Popen[bytes]] = []
    with temporary_server() as url:

        def start(n: int) -> dict[str, Any]:
            command = [sys.executable, "-m", "rush_executor", "worker", "--url", url, "--network", "farm"]
            programs.append(subprocess.Popen([*command, "--workers", str(n)], cwd=REPOSITORY, env=environment()))
            return {"url": url, "network_id": "farm", "max_workers": 0}

        yield start
        rush_executor.joblib.shutdown()
        for program in programs:
            program.send_signal(signal.SIGTERM)
            assert program.wait(60) == 0
        assert keys_left(url) == []


def test_workers_elsewhere(elsewhere: Callable[[int], dict[str, Any]], eventually: Eventually) -> None:
    """Tasks run there alone, `n_jobs=-1` counts them, and arrays travel with the tasks: a file would not be there."""
    arguments = elsewhere(3)
    with parallel_config(backend="rush", n_jobs=-1, **arguments):
        eventually(lambda: effective_n_jobs(-1) == 3)
        [agent] = set(Parallel()(delayed(tasks.parent_worker)(i) for i in range(12)))
        assert agent in {child.pid for child in psutil.Process().children()}
        found = Parallel()(delayed(tasks.file_of)(LARGE) for _ in range(3))
    assert {(kind, name) for kind, name, _ in found} == {("ndarray", None)}


def test_one_worker_elsewhere(elsewhere: Callable[[int], dict[str, Any]]) -> None:
    """Also a single one: its tasks are not run here, as joblib would if it were told that there is one."""
    with parallel_config(backend="rush", **elsewhere(1)):
        [there] = set(Parallel()(delayed(tasks.worker)(i) for i in range(5)))
    assert there != os.getpid()


def test_a_server_of_ones_own(server_url: str) -> None:
    """With `url` alone, the workers are here; the server keeps nothing."""
    with parallel_config(backend="rush", n_jobs=2, url=server_url):
        assert Parallel()(delayed(tasks.square)(i) for i in range(10)) == [i * i for i in range(10)]
        assert Parallel()([delayed(tasks.file_of)(LARGE)] * 2)[0][0] == "memmap"
    rush_executor.joblib.shutdown()


# -------------------------------------------------------------------------------------------------------- programs


def test_a_program_ends_without_a_word(tmp_path: Path) -> None:
    """The executors end with the interpreter; functions of `__main__` and lambdas travel."""
    text = """
    import rush_executor.joblib
    from joblib import Parallel, delayed

    def twice(x):
        return 2 * x

    print(Parallel(n_jobs=2, backend="rush")(delayed(twice)(x) for x in range(3)))
    print(Parallel(n_jobs=2, backend="rush")(delayed(lambda x: x + 1)(x) for x in range(3)))
    """
    program = start_program(text, directory=tmp_path)
    assert finish(program) == ("[0, 2, 4]\n[1, 2, 3]\n", "")


def test_a_program_that_leaves_a_generator_ends(tmp_path: Path) -> None:
    """Its tasks under way are finished, as everything that was submitted; joblib alone has something to say."""
    text = """
    import time
    import rush_executor.joblib
    from joblib import Parallel, delayed

    results = Parallel(n_jobs=2, backend="rush", return_as="generator")(delayed(time.sleep)(0.1) for _ in range(1000))
    next(results)
    """
    _, err = finish(start_program(text, directory=tmp_path))
    assert "Traceback" not in err


def test_ctrl_c(tmp_path: Path) -> None:
    """One traceback, no process left."""
    text = """
    import sys, time
    import rush_executor.joblib
    from joblib import Parallel, delayed
    from pathlib import Path

    def sleep(n):
        Path(sys.argv[1], str(n)).touch()
        time.sleep(600)

    print("ready", flush=True)
    Parallel(n_jobs=2, backend="rush")(delayed(sleep)(n) for n in range(100))
    """
    program = start_program(text, str(tmp_path), directory=tmp_path)
    read_line(program, "ready")
    processes = whole_family(program.pid, 5)
    end_at = time.monotonic() + 60
    while not (tmp_path / "1").exists():
        assert time.monotonic() < end_at
        time.sleep(0.01)
    os.kill(program.pid, signal.SIGINT)
    _, err = finish(program, code=-signal.SIGINT)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert alive(processes) == []
