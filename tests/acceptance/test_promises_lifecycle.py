"""Promises about beginning and end: exit, fork, Ctrl-C, death (8-10, 17, 22 of docs/explanation/promises.md)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rush_executor import RushExecutor, TaskTimeoutError, current_executor
from tests.acceptance import tasks
from tests.acceptance.programs import (
    DEADLINE_S,
    REPOSITORY,
    Terminal,
    alive,
    environment,
    family,
    finish,
    guarded,
    is_server,
    read_line,
    run_program,
    start_program,
    whole_family,
)

Eventually = Callable[..., Any]

# What is promised for the time after a client's sudden death.
GONE_WITHIN_S = 2.0


@pytest.fixture
def server_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where private servers put their directories; a short path, as a socket's must be. Nothing may be left there."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)
        assert list(Path(name).iterdir()) == []


# ------------------------------------------------------------------------------------- 8: what was submitted ends

_EXITS = {
    "no shutdown": ("", 0),
    "shutdown(wait=False)": ("executor.shutdown(wait=False)", 0),
    "forgotten": ("del executor, futures", 0),
    "sys.exit": ("import sys; sys.exit(3)", 3),
    "in a thread": (
        "import threading; t = threading.Thread(target=executor.shutdown, kwargs=dict(wait=False)); t.start()",
        0,
    ),
}


@pytest.mark.parametrize("how", _EXITS)
def test_promise_8_the_interpreter_exits_when_all_is_done(tmp_path: Path, server_root: Path, how: str) -> None:
    """Promise 8: all 40 tasks run, callbacks too; stderr stays empty; no process and no directory is left."""
    last_line, code = _EXITS[how]
    program = start_program(
        f"""
        import os, sys, time
        from rush_executor import RushExecutor

        def note(x):
            time.sleep(0.01)
            with open({str(tmp_path / "notes")!r}, "a") as file:
                file.write(f"{{x}}\\n")
            return x

        executor = RushExecutor(2)
        futures = [executor.submit(note, x) for x in range(40)]
        futures[-1].add_done_callback(lambda future: print("called with", future.result(), flush=True))
        futures[0].result()
        print("ready", flush=True)
        sys.stdin.read()
        {last_line}
        """,
        directory=tmp_path,
        stdin=subprocess.PIPE,
    )
    read_line(program, "ready")
    processes = whole_family(program.pid, 5)  # agent, two workers, server and its watcher
    with guarded(processes):
        out, err = finish(program, code=code)
        assert err == ""
        assert out.splitlines() == ["called with 39"]
        assert sorted(map(int, (tmp_path / "notes").read_text().split())) == list(range(40))
        assert alive(processes) == []


def test_promise_8_an_error_of_the_program_is_told_and_nothing_else(tmp_path: Path, server_root: Path) -> None:
    """Promise 8: a program that ends with an exception shows that one alone, after its tasks were finished."""
    _, err = run_program(
        f"""
        from pathlib import Path
        from rush_executor import RushExecutor
        executor = RushExecutor(2)
        for x in range(10):
            executor.submit(Path({str(tmp_path)!r}, f"note {{x}}").touch)
        raise LookupError("mine")
        """,
        directory=tmp_path,
        code=1,
    )
    assert err.startswith("Traceback")
    assert err.endswith("LookupError: mine\n")
    assert err.count("Traceback") == 1
    assert len(list(tmp_path.glob("note *"))) == 10


def test_promise_8_submit_afterwards_is_refused(server_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """Promise 8: a later `submit` or `map` raises at once, while what was submitted still runs."""
    gate = tmp_path / "gate"
    executor = RushExecutor(1, url=server_url)
    view = executor.options(priority=1)
    future = executor.submit(tasks.wait_for, str(gate), "done")
    waiting = executor.submit(tasks.square, 3)
    executor.shutdown(wait=False)
    for refused in (executor, view):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            refused.submit(tasks.square, 2)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            refused.map(tasks.square, range(3))
    assert not future.done()
    gate.touch()
    assert future.result(DEADLINE_S) == "done"
    assert waiting.result(DEADLINE_S) == 9
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)


def test_promise_8_submit_during_the_exit_is_refused(tmp_path: Path, server_root: Path) -> None:
    """Promise 8: what is submitted when the interpreter is on its way out is refused in the usual words."""
    out, err = run_program(
        """
        import threading, time
        from rush_executor import RushExecutor
        executor = RushExecutor(1)
        future = executor.submit(time.sleep, 0.2)
        def again(_):
            try:
                # The exit may not have begun yet.
                while True:
                    executor.submit(pow, 2, 2)
                    time.sleep(0.01)
            except RuntimeError as error:
                print(error)
            try:
                RushExecutor(1)
            except RuntimeError as error:
                print("new:", error)
        future.add_done_callback(again)
        """,
        directory=tmp_path,
    )
    assert err == ""
    assert out.splitlines()[0] == "cannot schedule new futures after interpreter shutdown"


def test_promise_8_nothing_is_left_after_shutdown(server_root: Path, eventually: Eventually) -> None:
    """Promise 8: no process, no directory, no thread, no open file; ten times over."""
    me = psutil.Process()

    def use() -> list[psutil.Process]:
        with RushExecutor(2) as executor:
            assert list(executor.map(lambda x: x + 1, range(100))) == list(range(1, 101))
            executor.submit(tasks.square, 2).add_done_callback(lambda _: None)
            (directory,) = server_root.iterdir()
            assert directory.stat().st_mode & 0o777 == 0o700
            started = eventually(lambda: len(new := set(me.children(recursive=True)) - before) == 5 and list(new))
        assert list(server_root.iterdir()) == []
        return started

    before = set(me.children(recursive=True))
    # The first one may import what stays.
    use()
    n_threads, n_files = threading.active_count(), me.num_fds()
    for _ in range(3):
        started = use()
        assert alive(started) == []
    assert threading.active_count() == n_threads
    assert me.num_fds() == n_files


def test_promise_8_a_forgotten_executor_ends(server_root: Path, eventually: Eventually, tmp_path: Path) -> None:
    """Promise 8: an executor that nobody refers to any more finishes what it has, and ends without a `shutdown`."""
    me = psutil.Process()
    before = me.children(recursive=True)
    gate = tmp_path / "gate"
    executor = RushExecutor(1)
    future = executor.submit(tasks.wait_for, str(gate), "done")
    started = [p for p in me.children(recursive=True) if p not in before]
    assert started
    del executor
    gate.touch()
    assert future.result(DEADLINE_S) == "done"
    eventually(lambda: not alive(started))
    eventually(lambda: list(server_root.iterdir()) == [])


# ------------------------------------------------------------------------------------------- 9: a client that died

_DEATHS: dict[str, Callable[[subprocess.Popen[str]], None]] = {
    "SIGKILL": lambda program: program.kill(),
    "SIGTERM": lambda program: program.terminate(),
    "os._exit": lambda program: program.send_signal(signal.SIGUSR1),
}

_CLIENT = """
    import os, signal, sys, threading, time
    from pathlib import Path
    from rush_executor import RushExecutor

    def stubborn(told):
        # Holds the GIL and cares for no signal that can be cared for.
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        Path(told).touch()
        sum(range(10**11))

    def sleepy(told):
        Path(told).touch()
        time.sleep(600)

    executor = RushExecutor(3)
    told = [sys.argv[1] + "/told 1", sys.argv[1] + "/told 2"]
    futures = [executor.submit(stubborn, told[0]), executor.submit(sleepy, told[1])]
    futures += [executor.submit(sleepy, sys.argv[1] + "/later") for _ in range(5)]
    while not all(map(os.path.exists, told)):
        time.sleep(0.01)
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(9))
    print("ready", flush=True)
    time.sleep(600)
    """


@pytest.mark.parametrize("how", _DEATHS)
def test_promise_9_nothing_outlives_its_client(tmp_path: Path, server_root: Path, how: str) -> None:
    """Promise 9: two seconds after the client's death no worker, agent, server or directory is there."""
    program = start_program(_CLIENT, str(tmp_path), directory=tmp_path)
    read_line(program, "ready")
    processes = whole_family(program.pid, 6)
    assert len(list(server_root.iterdir())) == 1
    with guarded(processes):
        _DEATHS[how](program)
        died_at = time.monotonic()
        program.wait()
        while alive(processes) or list(server_root.iterdir()):
            assert time.monotonic() - died_at < GONE_WITHIN_S, (alive(processes), list(server_root.iterdir()))
            time.sleep(0.01)
        _, err = program.communicate()
        assert err == ""


def test_promise_9_on_a_shared_server_nothing_is_left_either(tmp_path: Path, server_url: str) -> None:
    """Promise 9: of a client that died, workers and keys go; the server's other users are not its business."""
    with RushExecutor(1, url=server_url) as bystander:
        text = _CLIENT.replace("RushExecutor(3)", f"RushExecutor(3, url={server_url!r})")
        program = start_program(text, str(tmp_path), directory=tmp_path)
        read_line(program, "ready")
        processes = whole_family(program.pid, 4)
        with guarded(processes):
            program.kill()
            died_at = time.monotonic()
            program.communicate()
            while alive(processes):
                assert time.monotonic() - died_at < GONE_WITHIN_S, alive(processes)
                time.sleep(0.01)
        assert bystander.submit(tasks.square, 3).result() == 9
    # That no key is left is looked at by the fixture.


def test_promise_9_a_child_of_the_client_that_lives_on_does_not_keep_them(tmp_path: Path, server_root: Path) -> None:
    """Promise 9: a process that the client forked inherits the pipes by which its death is told, and is no client."""
    program = start_program(
        """
        import os, sys, time
        from rush_executor import RushExecutor
        executor = RushExecutor(1)
        executor.submit(pow, 2, 2).result()
        child = os.fork()
        if child == 0:
            time.sleep(600)
        print("ready", child, flush=True)
        time.sleep(600)
        """,
        directory=tmp_path,
        flags=["-W", "ignore"],
    )
    child = psutil.Process(int(read_line(program, "ready")))
    processes = [p for p in whole_family(program.pid, 5) if p != child]
    with guarded([*processes, child]):
        program.kill()
        died_at = time.monotonic()
        while alive(processes) or list(server_root.iterdir()):
            assert time.monotonic() - died_at < GONE_WITHIN_S, (alive(processes), list(server_root.iterdir()))
            time.sleep(0.01)
        assert alive([child])
    program.communicate()


_UNWATCHED = {
    "no shell": "server_module._SHELL = '/nowhere/sh'",
    "watcher killed": """
_watch = server_module._watch
def watch(directory):
    watcher = _watch(directory)
    watcher.process.kill()
    return watcher
server_module._watch = watch
""",
}


@pytest.mark.parametrize("how", _UNWATCHED)
def test_promise_9_a_server_that_nobody_watches(tmp_path: Path, how: str) -> None:
    """Promise 9: the agent ends it, where there is one."""
    program = start_program(
        f"import time\nfrom rush_executor._ledger import server as server_module\n{_UNWATCHED[how]}\n"
        "from rush_executor import RushExecutor\nexecutor = RushExecutor(1)\nexecutor.submit(pow, 2, 2).result()\n"
        "print('ready', flush=True)\ntime.sleep(600)",
        directory=tmp_path,
    )
    read_line(program, "ready")
    processes = family(program.pid)
    assert [process for process in processes if is_server(process)]
    with guarded(processes):
        program.kill()
        died_at = time.monotonic()
        while alive(processes):
            assert time.monotonic() - died_at < GONE_WITHIN_S, alive(processes)
            time.sleep(0.01)
    program.communicate()


def test_promise_9_a_killed_agent_takes_its_workers_along(
    server_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    """Promise 9: workers do not outlive their agent; the executor starts another one, which does their tasks again."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    with RushExecutor(2, url=server_url) as executor:
        future = executor.submit(tasks.tell_and_wait_for, str(told), str(gate), "done")
        waiting = [executor.submit(tasks.echo, x) for x in range(10)]
        eventually(told.exists)
        (agent,) = [p for p in psutil.Process().children() if "rush-agent" in p.cmdline()]
        processes = [agent, *whole_family(agent.pid, 2)]
        told.unlink()
        agent.kill()
        died_at = time.monotonic()
        while alive(processes):
            assert time.monotonic() - died_at < GONE_WITHIN_S, alive(processes)
            time.sleep(0.01)
        eventually(told.exists)
        gate.touch()
        assert future.result(DEADLINE_S) == "done"
        assert [f.result(DEADLINE_S) for f in waiting] == list(range(10))


# ------------------------------------------------------------------------------------------------------ 10: forks


def test_promise_10_a_fork_inherits_no_executor(tmp_path: Path, server_root: Path) -> None:
    """Promise 10: in the child every use raises, its own executor works, and the parent's is untouched."""
    out, err = run_program(
        """
        import concurrent.futures, os, sys
        from rush_executor import RushExecutor
        from tests.acceptance import tasks

        def attempt(what, *args, **kwargs):
            try:
                print(what.__name__, what(*args, **kwargs), flush=True)
            except RuntimeError as error:
                print(what.__name__, "raises:", error, flush=True)

        executor = RushExecutor(2)
        view = executor.options(priority=2)
        executor.submit(pow, 2, 2).result()
        pending = executor.submit(tasks.wait_for, sys.argv[1])
        child = os.fork()
        if child == 0:
            attempt(executor.submit, pow, 2, 3)
            attempt(view.submit, pow, 2, 3)
            attempt(executor.map, pow, [2], [3])
            attempt(pending.result, 10)
            attempt(pending.cancel)
            attempt(pending.running)
            attempt(executor.shutdown)
            with RushExecutor(1) as own:
                print("own", own.submit(pow, 2, 10).result(), flush=True)
            sys.exit(7)
        _, status = os.waitpid(child, 0)
        open(sys.argv[1], "w").close()
        print("child", os.waitstatus_to_exitcode(status))
        print("pending", pending.result(60))
        print("parent", executor.submit(pow, 2, 11).result())
        """,
        str(tmp_path / "gate"),
        directory=tmp_path,
        flags=["-W", "ignore"],
    )
    assert err == ""
    lines = out.splitlines()
    said = r"raises: this executor belongs to process \d+, and this is a fork of it: make a RushExecutor of your own.*"
    for line, name in zip(lines, ["submit", "submit", "map", "result"], strict=False):
        assert re.fullmatch(f"{name} {said}", line), line
    assert lines[4:] == [
        "cancel False",
        "running False",
        "shutdown None",
        "own 1024",
        "child 7",
        "pending None",
        "parent 2048",
    ]


def test_promise_10_from_another_thread_in_the_middle_of_work(tmp_path: Path, server_root: Path) -> None:
    """Promise 10: a fork while other threads submit, and while the executor's own threads hold locks, does not hang."""
    out, err = run_program(
        """
        import os, sys, threading, time
        from rush_executor import RushExecutor

        executor = RushExecutor(2)
        is_over = False
        n = [0]
        def submit():
            while not is_over:
                n[0] += sum(1 for _ in executor.map(pow, range(50), range(50)))
        thread = threading.Thread(target=submit)
        thread.start()
        codes = []
        for _ in range(30):
            child = os.fork()
            if child == 0:
                try:
                    executor.submit(pow, 2, 2)
                except RuntimeError:
                    sys.exit(5)
                sys.exit(6)
            codes.append(child)
            time.sleep(0.005)
        codes = {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in codes}
        is_over = True
        thread.join()
        print(codes, n[0] % 50, executor.submit(pow, 2, 11).result())
        """,
        directory=tmp_path,
        flags=["-W", "ignore"],
    )
    assert err == ""
    assert out == "{5} 0 2048\n"


def test_promise_10_multiprocessing_that_forks(tmp_path: Path, server_root: Path) -> None:
    """Promise 10: a pool of the standard library, forked beside an executor, works and ends, as does the executor."""
    out, err = run_program(
        """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from rush_executor import RushExecutor

        executor = RushExecutor(2)
        executor.submit(pow, 2, 2).result()
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            print(list(pool.map(abs, range(5))), list(executor.map(abs, range(5))))
        print(executor.submit(pow, 2, 10).result())
        """,
        directory=tmp_path,
        flags=["-W", "ignore"],
    )
    assert err == ""
    assert out == "[0, 1, 2, 3, 4] [0, 1, 2, 3, 4]\n1024\n"


# -------------------------------------------------------------------------------------- 17: what a worker is like


def test_promise_17_environment_directory_and_path_of_the_start(tmp_path: Path, server_root: Path) -> None:
    """Promise 17: the client's as they were when the executor was made; later changes are not the workers'."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "found_there.py").write_text("value = 42")
    (tmp_path / "later").mkdir()
    out, err = run_program(
        """
        import os, sys
        from rush_executor import RushExecutor

        os.chdir("elsewhere")
        os.environ["MY_VARIABLE"] = "mine"
        sys.path.append(os.getcwd())
        sys.argv.append("argument")
        executor = RushExecutor(1)
        path = list(sys.path)
        executor.submit(pow, 2, 2).result()
        os.chdir("../later")
        os.environ["MY_VARIABLE"] = "changed"

        def look():
            import found_there
            return os.getcwd(), os.environ["MY_VARIABLE"], list(sys.path), sys.argv, found_there.value

        directory, variable, worker_path, argv, value = executor.submit(look).result()
        print(os.path.basename(directory), variable, worker_path == path, argv == sys.argv, value)
        """,
        directory=tmp_path,
    )
    assert err == ""
    assert out == "elsewhere mine True True 42\n"


def test_promise_17_stdin_is_closed_stdout_and_stderr_are_drained(tmp_path: Path, server_root: Path) -> None:
    """Promise 17: who reads stdin finds its end; megabytes that tasks print come out, and before the result."""
    out, err = run_program(
        """
        import os, subprocess, sys
        from rush_executor import RushExecutor

        def read():
            return sys.stdin.read(), sys.stdin.readline(), os.read(0, 10)

        def ask():
            try:
                return input()
            except EOFError:
                return "EOF"

        def say(n):
            for i in range(n):
                print("out", i, "x" * 100)
                print("err", i, "x" * 100, file=sys.stderr)

        def unfinished():
            sys.stdout.write("unfinished")

        with RushExecutor(1) as executor:
            print(executor.submit(read).result(), executor.submit(ask).result(), flush=True)
            executor.submit(say, 10000).result()
            executor.submit(unfinished).result()
            os.write(1, b"|\\n")
            executor.submit(subprocess.run, ["echo", "from a child"]).result()
        """,
        directory=tmp_path,
        stdin=subprocess.PIPE,
    )
    lines = out.splitlines()
    assert lines[0] == "('', '', b'') EOF"
    assert lines[1:10001] == [f"out {i} {'x' * 100}" for i in range(10000)]
    assert lines[10001:] == ["unfinished|", "from a child"]
    assert err.splitlines() == [f"err {i} {'x' * 100}" for i in range(10000)]


def test_promise_17_a_task_runs_in_the_main_thread(executor: RushExecutor) -> None:
    """Promise 17: so a task may set signal handlers and alarms, and asyncio may run in it."""

    def look() -> tuple[bool, int]:
        import asyncio

        seen = []
        before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        while not seen:
            time.sleep(0.001)
        signal.signal(signal.SIGALRM, before)

        async def main() -> int:
            await asyncio.sleep(0)
            return 7

        return threading.current_thread() is threading.main_thread(), asyncio.run(main())

    assert executor.submit(look).result(DEADLINE_S) == (True, 7)


@pytest.mark.parametrize("n", [3, 1000, 1_000_000])
def test_promise_17_arrays_can_be_written_to(executor: RushExecutor, n: int) -> None:
    """Promise 17: in a task and in the client, small or large, and the sender's own array stays as it was."""
    import numpy as np

    def add_one(array: Any, view: Any) -> Any:
        array += 1
        view[0] = -1.0
        return array, view, bytearray(b"abc")

    array = np.zeros(n)
    result, view, raw = executor.submit(add_one, array, array[::2]).result()
    assert array.sum() == 0
    assert result.sum() == n
    assert view[0] == -1.0
    result += 1
    view += 1
    raw[0] = 0
    assert result.sum() == 2 * n


def test_promise_17_random_generators_differ(server_url: str, tmp_path: Path) -> None:
    """Promise 17: no two workers draw the same numbers from `random` or NumPy, replaced workers neither."""

    def draw(directory: str, n: int, me: str) -> tuple[int, float, float, int]:
        import random
        import uuid

        import numpy as np

        drawn = random.random(), np.random.random(), uuid.uuid4().int  # noqa: NPY002 - the global one is meant
        return tasks.meet(directory, n, me), *drawn

    drawn = []
    with RushExecutor(3, url=server_url, max_tasks_per_child=1) as executor:
        for turn in range(3):
            directory = tmp_path / str(turn)
            directory.mkdir()
            drawn += [executor.submit(draw, str(directory), 3, str(i)) for i in range(3)]
            drawn[-1].result()
        results = [future.result() for future in drawn]
    for column in zip(*results, strict=True):
        assert len(set(column)) == 9


def test_promise_17_numpy_is_imported_before_the_fork_as_well(server_url: str, tmp_path: Path) -> None:
    """Promise 17: also where an initializer, or the module of the function, has imported NumPy first."""
    with RushExecutor(2, url=server_url, initializer=_import_numpy) as executor:
        futures = [executor.submit(_draw, str(tmp_path), 2, str(i)) for i in range(2)]
        (pid, *one), (other_pid, *other) = (future.result() for future in futures)
    assert pid != other_pid
    assert set(one).isdisjoint(other)


def _import_numpy() -> None:
    import numpy  # noqa: F401, ICN001 - for its side effect


def _draw(directory: str, n: int, me: str) -> tuple[int, float, float]:
    import random

    import numpy as np

    drawn = random.random(), np.random.random()  # noqa: NPY002 - the global one is meant
    return tasks.meet(directory, n, me), *drawn


def test_promise_17_a_task_may_start_processes(server_url: str) -> None:
    """Promise 17: subprocess, multiprocessing, a pool and an executor in a task; none of their processes is left."""

    def start() -> list[Any]:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        seen: list[Any] = [
            subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, check=True).stdout
        ]
        context = multiprocessing.get_context("fork")
        process = context.Process(target=os._exit, args=(3,))
        process.start()
        process.join()
        seen.append(process.exitcode)
        with context.Pool(2) as pool:
            seen.append(pool.map(abs, [-1, -2]))
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            seen.append(list(pool.map(abs, [-3, -4])))
        with RushExecutor(1) as inner:
            seen.append(inner.submit(abs, -5).result())
        return seen

    with RushExecutor(1, url=server_url) as executor:
        worker = executor.submit(tasks.pid).result()
        assert executor.submit(start).result(DEADLINE_S) == [b"42\n", 3, [1, 2], [3, 4], 5]
        assert executor.submit(tasks.pid).result() == worker


def test_promise_17_a_child_that_a_task_forks_is_no_worker(lone: RushExecutor) -> None:
    """Promise 17: a child that leaves the task, by a return or an exception, ends there and hands in nothing."""

    def fork(end: Callable[[], object]) -> tuple[int, int]:
        child = os.fork()
        if child == 0:
            end()
            return 0, 0
        return os.getpid(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def fail() -> None:
        sys.stderr = None
        raise ValueError

    worker = lone.submit(tasks.pid).result()
    for end, code in ((lambda: None, 0), (lambda: sys.exit(3), 3), (lambda: sys.exit("bye"), 1), (fail, 1)):
        assert lone.submit(fork, end).result(DEADLINE_S) == (worker, code)
    assert list(lone.map(tasks.square, range(100))) == [x * x for x in range(100)]
    assert lone.submit(tasks.pid).result(DEADLINE_S) == worker


@pytest.mark.parametrize("how", ["handler", "ignored"])
def test_promise_17_a_worker_whose_task_hears_no_sigterm_leaves(lone: RushExecutor, how: str) -> None:
    """Promise 17: a task may set signal handlers, and leave them behind; the executor ends all the same."""
    worker = lone.submit(tasks.leave_behind, how).result(DEADLINE_S)
    assert lone.submit(tasks.pid).result(DEADLINE_S) == worker
    _shut_down(lone)


@pytest.mark.parametrize("how", ["handler", "ignored"])
def test_promise_17_a_task_that_hears_no_sigterm_is_finished(
    lone: RushExecutor, tmp_path: Path, eventually: Eventually, how: str
) -> None:
    """Promise 17: a task whose handlers are its own is not hurt by the end of the executor, which comes after it."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    view = lone.options(max_retries=0)
    future = view.submit(tasks.leave_behind_and_wait_for, how, str(told), str(gate))
    eventually(told.exists)
    lone.shutdown(wait=False)
    gate.touch()
    assert future.result(DEADLINE_S) == "done"
    _shut_down(lone)


def _shut_down(executor: RushExecutor) -> None:
    """Within a deadline: a worker that stays would have the test wait for ever."""
    end = threading.Thread(target=executor.shutdown)
    end.start()
    end.join(20.0)
    has_ended = not end.is_alive()
    executor.kill_workers()
    end.join()
    assert has_ended


def test_promise_17_a_task_that_closes_what_is_not_its_own(lone: RushExecutor) -> None:
    """Promise 17: as a library that makes itself a daemon does; later tasks of that worker are run as ever."""
    worker = lone.submit(tasks.pid).result(DEADLINE_S)
    for _ in range(2):
        lone.submit(os.closerange, 3, 256).result(DEADLINE_S)
        assert lone.options(timeout=0.9, max_retries=0).submit(tasks.pid).result(DEADLINE_S) == worker
    assert lone.submit(_nested).result(DEADLINE_S) == 9
    assert lone.submit(len, bytes(3_000_000)).result(DEADLINE_S) == 3_000_000
    with pytest.raises(TaskTimeoutError):
        lone.options(timeout=0.3).submit(time.sleep, 600).result(DEADLINE_S)


def _nested() -> int:
    return current_executor().submit(tasks.square, 3).result()


# ----------------------------------------------------------------------------------------------------- 22: Ctrl-C

_INTERRUPTED = """
    import sys, time
    from pathlib import Path
    from rush_executor import RushExecutor

    def wait(directory):
        Path(directory, "told").touch()
        while not Path(directory, "gate").exists():
            time.sleep(0.01)
        return "waited"
    """


@pytest.fixture
def terminal(tmp_path: Path, server_root: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts a program on a terminal of its own; whatever it leaves is killed."""
    started: list[Terminal] = []

    def start(text: str, *flags: str) -> Terminal:
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(_INTERRUPTED) + textwrap.dedent(text))
        started.append(Terminal([sys.executable, *flags, str(path), str(tmp_path)], directory=tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def _press_ctrl_c_when_running(one: Terminal, tmp_path: Path, eventually: Eventually) -> list[psutil.Process]:
    eventually((tmp_path / "told").exists)
    # The task runs; where the client is by then, in `result` or about to call it, must not matter.
    processes = whole_family(one.pid, 5)
    one.press_ctrl_c()
    return processes


def test_promise_22_ctrl_c_at_the_prompt(terminal: Any, tmp_path: Path, eventually: Eventually) -> None:
    """Promise 22: typed at a prompt, `result()` is interrupted, the prompt is back, the executor and the task go on."""
    one = terminal("executor = RushExecutor(2)\n", "-i", "-q")
    one.read_until(">>> ")
    one.type("future = executor.submit(wait, sys.argv[1])\n")
    one.read_until(">>> ")
    one.type("future.result()\n")
    one.read_until("future.result()")
    processes = _press_ctrl_c_when_running(one, tmp_path, eventually)
    one.read_until("KeyboardInterrupt")
    one.read_until(">>> ")
    one.type("executor.submit(pow, 2, 10).result()\n")
    one.read_until("1024")
    one.type("future.running(), future.done()\n")
    one.read_until("(True, False)")
    one.read_until(">>> ")
    (tmp_path / "gate").touch()
    one.type("future.result()\n")
    one.read_until("'waited'")
    one.type("exit()\n")
    code, text = one.finish()
    assert code == 0
    assert text.count("Traceback") == 1
    assert alive(processes) == []


def test_promise_22_ctrl_c_that_is_caught(terminal: Any, tmp_path: Path, eventually: Eventually) -> None:
    """Promise 22: a program that catches KeyboardInterrupt goes on with the same executor, and loses no task."""
    one = terminal(
        """
        executor = RushExecutor(2)
        future = executor.submit(wait, sys.argv[1])
        try:
            print("trying", flush=True)
            future.result()
        except KeyboardInterrupt:
            print("caught")
        print(executor.submit(pow, 2, 10).result())
        Path(sys.argv[1], "gate").touch()
        print(future.result())
        """
    )
    one.read_until("trying")
    processes = _press_ctrl_c_when_running(one, tmp_path, eventually)
    code, text = one.finish()
    assert code == 0
    assert text.replace("^C", "").split() == ["trying", "caught", "1024", "waited"]
    assert alive(processes) == []


@pytest.mark.parametrize("block", ["with", "bare", "map", "wait", "leaving"])
def test_promise_22_ctrl_c_that_is_not_caught(
    terminal: Any, tmp_path: Path, eventually: Eventually, block: str
) -> None:
    """Promise 22: the program ends at once, with its own traceback alone, and takes workers and server along."""
    end = {
        "with": "with RushExecutor(2) as executor:\n    executor.submit(wait, sys.argv[1]).result()",
        "bare": "executor = RushExecutor(2)\nexecutor.submit(wait, sys.argv[1]).result()",
        "leaving": "with RushExecutor(2) as executor:\n    executor.submit(wait, sys.argv[1])",
        "map": "executor = RushExecutor(2)\nlist(executor.map(wait, [sys.argv[1]] * 9))",
        "wait": (
            "import concurrent.futures\nexecutor = RushExecutor(2)\n"
            "concurrent.futures.wait([executor.submit(wait, sys.argv[1])])"
        ),
    }[block]
    one = terminal(end)
    processes = _press_ctrl_c_when_running(one, tmp_path, eventually)
    began_at = time.monotonic()
    code, text = one.finish()
    assert time.monotonic() - began_at < DEADLINE_S / 2
    assert code == -signal.SIGINT
    assert text.count("Traceback") == 1
    assert text.rstrip().endswith("KeyboardInterrupt")
    assert "worker" not in text
    assert alive(processes) == []
    assert not (tmp_path / "gate").exists()


@pytest.mark.parametrize("end", ["", "executor.shutdown(wait=False)", "del executor"])
def test_promise_22_ctrl_c_at_the_exit(terminal: Any, tmp_path: Path, eventually: Eventually, end: str) -> None:
    """Promise 22: a program that has reached its end, and waits for its tasks, ends without a word."""
    one = terminal(
        f"""
        from rush_executor._client.session import Session
        join = Session.join
        Session.join = lambda session: print("waits", flush=True) or join(session)
        executor = RushExecutor(2)
        executor.submit(wait, sys.argv[1])
        {end}
        """
    )
    one.read_until("waits\n")
    processes = _press_ctrl_c_when_running(one, tmp_path, eventually)
    # Then it waits for its workers' end.
    assert one.finish() == (0, "waits\n^Cwaits\n")
    assert alive(processes) == []


def test_promise_22_ctrl_c_while_everything_is_busy(terminal: Any, tmp_path: Path, eventually: Eventually) -> None:
    """Promise 22: in the middle of a stream of short tasks, again and again, no result is lost or mixed up."""
    one = terminal(
        """
        executor = RushExecutor(2)
        Path(sys.argv[1], "told").touch()
        for n in range(20):
            try:
                print("turn", n, flush=True)
                while True:
                    futures = [executor.submit(pow, x, 2) for x in range(100)]
                    assert [f.result() for f in futures] == [x * x for x in range(100)]
                    assert list(executor.map(abs, range(100))) == list(range(100))
            except KeyboardInterrupt:
                pass
        print(executor.submit(pow, 2, 10).result())
        """
    )
    processes = []
    for n in range(20):
        one.read_until(f"turn {n}\n")
        processes = processes or whole_family(one.pid, 5)
        one.press_ctrl_c()
    code, text = one.finish()
    assert code == 0
    assert "Traceback" not in text
    assert text.rstrip().endswith("1024")
    assert alive(processes) == []


def test_promise_22_ctrl_c_while_wait_locks_its_futures(eventually: Eventually) -> None:
    """Promise 22: `concurrent.futures.wait`, broken off in the midst of that, leaves them locked: the end comes."""
    executor = RushExecutor(1)
    futures = [executor.submit(time.sleep, seconds) for seconds in (0.5, 60)]
    for future in futures:
        future._condition.acquire()
    pending = executor._session._pending
    # Then the listener has an outcome, and no way to tell it.
    eventually(lambda: futures[0].task_id not in pending)
    executor.__exit__(KeyboardInterrupt, None, None)
    assert futures[0].result() is None
    assert futures[1].cancelled()


def test_promise_22_ctrl_c_during_the_start(tmp_path: Path, server_root: Path) -> None:
    """Promise 22: SIGINT at any moment of the constructor leaves no process and no directory."""
    text = """
        import os, signal, sys, threading, time
        from rush_executor import RushExecutor
        from rush_executor._executor import executor as _  # imported before the clock starts
        delay = float(sys.argv[1])
        main = threading.main_thread().ident
        def interrupt():
            time.sleep(delay)
            signal.pthread_kill(main, signal.SIGINT)
        try:
            threading.Thread(target=interrupt, daemon=True).start()
            with RushExecutor(2) as executor:
                executor.submit(pow, 2, 2).result()
                time.sleep(60)
        except KeyboardInterrupt:
            print("caught")
        """
    programs = [
        start_program(text, str(delay_ms / 1000), directory=_directory(tmp_path, delay_ms))
        for delay_ms in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144)
    ]
    for program in programs:
        out, err = finish(program)
        assert (out, err) == ("caught\n", "")
    left = [p for p in psutil.process_iter(["cmdline"]) if str(server_root) in " ".join(p.info["cmdline"] or ())]
    assert left == []
    assert str(REPOSITORY) in environment()["PYTHONPATH"]


def _directory(parent: Path, name: int) -> Path:
    path = parent / str(name)
    path.mkdir()
    return path


# ----------------------------------------------------------------------------------------- 11: an agent that was killed


def test_promise_11_who_leaves_puts_right_what_its_dead_agent_held(
    server_url: str, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client's task does not wait for the heartbeat's end, and no key is left."""
    with RushExecutor(0, url=server_url, network_id="shared") as other:
        leaving = RushExecutor(1, url=server_url, network_id="shared", heartbeat_expire=300)
        [agent] = [child for child in psutil.Process().children() if "rush-agent" in child.cmdline()]
        future = other.submit(tasks.tell_and_wait_for, str(tmp_path / "told"), str(tmp_path / "never"))
        eventually((tmp_path / "told").exists)
        # It is not replaced before.
        monkeypatch.setattr(leaving._session._keeper, "check", lambda: None)
        agent.kill()
        leaving.shutdown()
        eventually(lambda: not future.running())
        assert future.cancel()
