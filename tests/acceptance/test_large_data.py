"""Large data goes through shared memory where it can, and whatever dies, nothing of it is left."""

from __future__ import annotations

import fcntl
import functools
import gc
import operator
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import redis

from rush_executor import (
    NetworkLostError,
    PayloadError,
    RushExecutor,
    TaskKilledError,
    WorkerLostError,
    current_executor,
)
from rush_executor._protocol.keys import Keys
from rush_executor._shared import directory as directory_module
from rush_executor._shared.files import ROOT
from rush_executor.testing import keys_left, temporary_server
from tests.acceptance import tasks
from tests.acceptance.programs import (
    DEADLINE_S,
    REPOSITORY,
    alive,
    environment,
    family,
    finish,
    is_server,
    read_line,
    start_program,
)

pytestmark = pytest.mark.skipif(not Path(ROOT).is_dir(), reason="no shared memory in the form of a file system")

Eventually = Callable[..., Any]
MB = 1 << 20
GONE_WITHIN_S = 10.0


def ones(n: int) -> Any:
    return np.ones(n, dtype=np.uint8)


def total(*arrays: Any) -> int:
    return sum(int(array.sum()) for array in arrays)


def spoil(array: Any) -> int:
    """Says what was in it, and writes over it."""
    before = int(array[0])
    array[:] = 7
    return before


def total_then_wait(told: str, gate: str, array: Any) -> int:
    tasks.tell_and_wait_for(told, gate)
    return total(array)


def directory(executor: RushExecutor) -> Path:
    return Path(ROOT, f"rush-executor-{executor._session.client_id}")


def files(executor: RushExecutor, *folders: str) -> list[str]:
    """What is in use; not what waits to be written again."""
    found = [path for folder in folders or ("in", "out", "held") for path in (directory(executor) / folder).iterdir()]
    return sorted(str(path.relative_to(directory(executor))) for path in found)


def sent_bytes(url: str) -> int:
    """What a server was sent so far."""
    with redis.Redis.from_url(url) as client:
        info: Any = client.info("stats")
    return int(info["total_net_input_bytes"])


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No directory that this test's executors have made outlives them."""
    made: list[Path] = []
    make = directory_module.SharedDirectory.make

    def noted(owner_id: str, root: str = ROOT) -> Any:
        made.append(Path(root, f"rush-executor-{owner_id}"))
        return make(owner_id, root)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory_module.SharedDirectory, "make", noted)
        yield
    gc.collect()
    assert [path for path in made if path.exists()] == []


@pytest.fixture
def tcp_url() -> Iterator[str]:
    """A server that might be anywhere."""
    from tests.integration.proxy import Proxy

    with temporary_server() as url, Proxy(url, is_tcp=True) as proxy:
        yield proxy.url


# ------------------------------------------------------------------------------------------------------ what travels


def test_large_data_does_not_pass_through_the_server(executor: RushExecutor, server_url: str) -> None:
    """Arguments, results, functions and scattered objects."""
    data = os.urandom(2 * MB)
    before = sent_bytes(server_url)
    assert executor.submit(operator.add, data, b"x").result() == data + b"x"
    assert executor.submit(ones, 2 * MB).result().sum() == 2 * MB
    assert executor.submit(lambda: data[5]).result() == data[5]
    assert executor.submit(len, executor.scatter(data)).result() == 2 * MB
    assert [len(part) for part in executor.map(lambda n: data[:n], [MB, MB + 1], chunksize=2)] == [MB, MB + 1]
    assert sent_bytes(server_url) - before < 100_000


def test_arrays_may_be_written_to(executor: RushExecutor) -> None:
    """By a task, also by its second attempt or by many tasks with the same reference; and by the client."""
    array = ones(8 * MB)
    assert [executor.submit(spoil, array).result() for _ in range(3)] == [1, 1, 1]
    reference = executor.scatter(array)
    assert list(executor.map(spoil, [reference] * 6)) == [1] * 6
    results = [executor.submit(ones, 8 * MB).result() for _ in range(3)]
    results[0][:] = 5
    assert [int(result.max()) for result in results] == [5, 1, 1]
    assert executor.submit(total, *results).result() == 7 * 8 * MB


def test_nothing_is_kept_that_nobody_needs(executor: RushExecutor, eventually: Eventually) -> None:
    """The file of an argument goes with its task, that of a result with its array; and idle files after a while."""
    result = executor.submit(operator.add, ones(8 * MB), 1).result()
    assert files(executor) == files(executor, "held")
    assert len(files(executor)) == 1
    view = result[:10]
    del result
    gc.collect()
    assert len(files(executor)) == 1
    del view
    gc.collect()
    # Also the listener may have had it in its hands.
    eventually(lambda: not files(executor))
    eventually(lambda: not files(executor, "idle"))


def test_memory_is_used_again(executor: RushExecutor) -> None:
    """A loop of large tasks needs no more of it than two or three at a time."""
    for number in range(10):
        result = executor.submit(operator.add, ones(8 * MB), number).result()
        assert int(result.min()) == int(result.max()) == number + 1
        assert len(files(executor, "in", "out", "held", "idle")) <= 4


def test_more_results_than_descriptors(executor: RushExecutor) -> None:
    """A client that keeps them all gets copies of the further ones, and none is mixed up with another."""
    results = list(executor.map(functools.partial(np.full, 300_000), range(400)))
    assert [int(result[-1]) for result in results] == list(range(400))
    assert len(psutil.Process().open_files()) < 350


def test_a_task_that_keeps_its_argument(lone: RushExecutor) -> None:
    """In a global, say: it stays what it was, though its task has ended and its file is not the client's any more."""

    def keep(array: Any) -> None:
        tasks.kept["array"] = array

    def look() -> tuple[int, int]:
        return int(tasks.kept["array"].min()), int(tasks.kept["array"].max())

    lone.submit(keep, ones(8 * MB)).result()
    for number in range(4):
        lone.submit(total, np.full(8 * MB, number, dtype=np.uint8)).result()
    assert lone.submit(look).result() == (1, 1)


def test_a_fork_of_the_client_keeps_what_it_has_inherited(executor: RushExecutor) -> None:
    """An array on shared memory is the child's own from then on; what the child frees is nobody's loss."""
    result = executor.submit(ones, 8 * MB).result()
    pid = os.fork()
    if not pid:
        result[:] = 3
        ok = int(result.min()) == 3
        del result
        gc.collect()
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert int(result.max()) == 1
    assert len(files(executor, "held")) == 1
    for number in range(3):
        executor.submit(operator.add, ones(8 * MB), number).result()
    assert int(result.max()) == 1


def test_a_secret_covers_large_data(server_url: str) -> None:
    """Sealed as everything else: a file that was altered is not unpickled."""
    with RushExecutor(1, url=server_url, secret=b"correct horse") as executor:
        assert executor.submit(total, ones(8 * MB)).result() == 8 * MB
        reference = executor.scatter(ones(8 * MB))
        assert executor.submit(total, reference).result() == 8 * MB
        [path] = (directory(executor) / "in").iterdir()
        with path.open("r+b") as file:
            file.seek(5 * MB)
            file.write(b"x")
        with pytest.raises(PayloadError, match="sealed"):
            executor.submit(total, reference).result()


def test_tasks_of_tasks(executor: RushExecutor) -> None:
    """They hand large data on in the same way, and nothing is left of it when they end."""

    def parent(array: Any) -> tuple[int, str]:
        nested = current_executor()
        child = nested.submit(operator.add, array, 1)
        reference = nested.scatter(array)
        assert list(nested.map(spoil, [reference] * 3)) == [1] * 3
        return int(child.result().sum()), nested._session.client_id

    result, client_id = executor.submit(parent, ones(8 * MB)).result()
    assert result == 2 * 8 * MB
    assert not Path(ROOT, f"rush-executor-{client_id}").exists()


# -------------------------------------------------------------------------------------------------------- references


def test_a_reference_anywhere_in_an_argument(executor: RushExecutor) -> None:
    """The function gets the object in its place."""
    reference = executor.scatter({"a": ones(MB), "b": [1, 2]})
    assert executor.submit(operator.itemgetter("b"), reference).result() == [1, 2]
    found = executor.submit(tasks.echo_all, [reference], key={"inside": (reference,)}).result()
    assert found[0][0][0]["b"] == found[1]["key"]["inside"][0]["b"] == [1, 2]
    assert executor.submit(lambda: total(reference["a"])).result() == MB  # type: ignore[index]
    assert executor.options(priority=1).scatter(5).result() == 5
    assert reference.result()["b"] == [1, 2]


def test_a_scattered_object_is_kept_as_long_as_it_is_needed(
    executor: RushExecutor, server_url: str, eventually: Eventually, tmp_path: Path
) -> None:
    """By the program, or by a task that waits or runs; then file and key go."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    reference = executor.scatter(ones(8 * MB))
    waiting = [executor.submit(total_then_wait, str(told), str(gate), reference) for _ in range(4)]
    eventually(told.exists)
    del reference
    gc.collect()
    time.sleep(1.2)
    assert len(files(executor)) == 1
    gate.touch()
    assert [future.result() for future in waiting] == [8 * MB] * 4
    eventually(lambda: not files(executor))
    functions = Keys(executor.network_id).functions(executor._session.client_id)
    with redis.Redis.from_url(server_url) as client:
        eventually(lambda: client.hlen(functions) == 0)


def test_a_reference_of_another_executor(executor: RushExecutor, server_url: str) -> None:
    """It is refused with a text that says so, and the task's Future tells it."""
    with RushExecutor(1, url=server_url) as other:
        reference = other.scatter([1, 2])
        with pytest.raises(PayloadError, match="executor that has scattered it"):
            executor.submit(len, reference).result()
        assert other.submit(len, reference).result() == 2
    with pytest.raises(RuntimeError, match="after shutdown"):
        other.scatter([1])


# --------------------------------------------------------------------------------------------------------- what dies


def test_a_worker_dies_before_it_can_tell(lone: RushExecutor, eventually: Eventually, tmp_path: Path) -> None:
    """Its result is written, and nobody has heard of it: the task is run again, and that file goes."""
    mark, gate = tmp_path / "mark", tmp_path / "gate"

    def die_when_telling(array: Any) -> Any:
        if mark.exists():
            return tasks.wait_for(str(gate), array + 1)
        from rush_executor._ledger.worker import WorkerLedger

        mark.touch()
        WorkerLedger._finish = lambda _ledger, _outcomes: tasks.die()  # type: ignore[assignment,func-returns-value]
        return array + 2

    future = lone.submit(die_when_telling, ones(8 * MB))
    eventually(lambda: any((directory(lone) / name).stat().st_size > 8 * MB for name in files(lone, "out")))
    gate.touch()
    assert int(future.result(DEADLINE_S).max()) == 2
    eventually(lambda: not files(lone, "in", "out"))


def test_a_task_that_kills_its_workers(executor: RushExecutor, eventually: Eventually) -> None:
    """Three attempts find the argument, and it goes with the last."""
    future = executor.submit(lambda array: tasks.die(), ones(8 * MB))
    with pytest.raises(WorkerLostError):
        future.result(DEADLINE_S)
    eventually(lambda: not files(executor))
    assert executor.submit(total, ones(8 * MB)).result() == 8 * MB


def test_a_task_that_is_killed(executor: RushExecutor, eventually: Eventually, tmp_path: Path) -> None:
    """Or that exceeds its time limit."""
    future = executor.submit(total_then_wait, str(tmp_path / "told"), str(tmp_path / "never"), ones(8 * MB))
    eventually((tmp_path / "told").exists)
    assert future.kill()
    with pytest.raises(TaskKilledError):
        future.result(DEADLINE_S)
    eventually(lambda: not files(executor))


def test_tasks_that_are_cancelled(lone: RushExecutor, eventually: Eventually, tmp_path: Path) -> None:
    """Their arguments go at once."""
    blocker = lone.submit(tasks.tell_and_wait_for, str(tmp_path / "told"), str(tmp_path / "gate"))
    eventually((tmp_path / "told").exists)
    futures = [lone.submit(total, ones(MB)) for _ in range(5)]
    assert len(files(lone)) == 5
    assert all(future.cancel() for future in futures)
    assert files(lone) == []
    (tmp_path / "gate").touch()
    blocker.result(DEADLINE_S)


def test_a_failure_that_is_retried(executor: RushExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """The argument is there for all attempts."""
    marks = tmp_path / "marks"

    def fail_twice(array: Any) -> int:
        tasks.note(str(marks), "x")
        if len(marks.read_text().split()) < 3:
            raise OSError("not yet")
        return total(array)

    future = executor.options(retry_on=OSError).submit(fail_twice, ones(8 * MB))
    assert future.result(DEADLINE_S) == 8 * MB
    eventually(lambda: not files(executor))


def test_a_server_that_loses_its_data(eventually: Eventually, tmp_path: Path) -> None:
    """What was pushed is pushed again: arguments, functions and scattered objects are still in their files."""
    offset = ones(MB)
    with temporary_server() as url, RushExecutor(2, url=url) as executor:
        gate = str(tmp_path / "gate")
        reference = executor.scatter(ones(8 * MB))
        futures = [
            executor.submit(lambda n, a, b: total(a, b, offset) + len(str(tasks.wait_for(gate, n))), 1, ones(MB), b)
            for b in [reference] * 6
        ]
        with redis.Redis.from_url(url) as client:
            eventually(lambda: client.zcard(Keys(executor.network_id).queued_tasks) == 4)
            client.flushall()
        Path(gate).touch()
        assert [future.result(DEADLINE_S) for future in futures] == [10 * MB + 1] * 6
        eventually(lambda: len(files(executor, "in")) <= 2)


def test_an_agent_is_killed(server_url: str, eventually: Eventually, tmp_path: Path) -> None:
    """The workers of the next one find the arguments, and what the first have left is removed."""
    with RushExecutor(2, url=server_url) as executor:
        told, gate = tmp_path / "told", tmp_path / "gate"
        futures = [executor.submit(total_then_wait, str(told), str(gate), ones(8 * MB)) for _ in range(3)]
        eventually(told.exists)
        (agent,) = [p for p in psutil.Process().children() if "rush-agent" in p.cmdline()]
        agent.kill()
        gate.touch()
        assert [future.result(DEADLINE_S) for future in futures] == [8 * MB] * 3
        eventually(lambda: not files(executor))


CLIENT = """
import os, sys, time
from pathlib import Path
import numpy as np
from rush_executor import RushExecutor, current_executor

def ones(n):
    return np.ones(n, dtype=np.uint8)

def wait(array, told):
    nested = current_executor()
    reference = nested.scatter(array)
    child = nested.submit(sum, [1, 2])
    child.result()
    Path(told, nested._session.client_id).touch()
    time.sleep(600)

executor = RushExecutor(2, **eval(sys.argv[1]))
kept = executor.submit(ones, 8 << 20).result()
reference = executor.scatter(kept)
waiting = [executor.submit(wait, reference, sys.argv[2]) for _ in range(2)]
queued = [executor.submit(len, ones(1 << 20)) for _ in range(20)]
while len(os.listdir(sys.argv[2])) < 2:
    time.sleep(0.01)
print("ready", executor._session.client_id, *os.listdir(sys.argv[2]), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("arguments", ["{}", "{'url': URL}"])
def test_the_client_is_killed(arguments: str, server_url: str, tmp_path: Path) -> None:
    """Its agent removes its directory, and those of the tasks that had files of their own."""
    told = tmp_path / "told"
    told.mkdir()
    program = start_program(CLIENT, arguments.replace("URL", repr(server_url)), str(told), directory=tmp_path)
    directories = [Path(ROOT, f"rush-executor-{owner}") for owner in read_line(program, "ready").split()]
    assert [path.is_dir() for path in directories] == [True] * 3
    processes = family(program.pid)
    program.kill()
    died_at = time.monotonic()
    while left := [path for path in directories if path.exists()]:
        assert time.monotonic() - died_at < GONE_WITHIN_S, left
        time.sleep(0.01)
    while alive(processes):
        assert time.monotonic() - died_at < GONE_WITHIN_S, alive(processes)
        time.sleep(0.01)
    program.communicate()


def test_client_and_agent_are_killed(tmp_path: Path, eventually: Eventually) -> None:
    """Nobody was left to be told: whoever starts next removes what is left."""
    told = tmp_path / "told"
    told.mkdir()
    program = start_program(CLIENT, "{}", str(told), directory=tmp_path)
    owners = read_line(program, "ready").split()
    directories = [Path(ROOT, f"rush-executor-{owner}") for owner in owners]
    processes = family(program.pid)
    # Programs that other tests start at this moment would be the ones that start next. They leave alone what is locked.
    locks = [os.open(path, os.O_RDONLY) for path in directories]
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_SH)
    # None of them may see the end of another.
    for process in (psutil.Process(program.pid), *processes):
        process.suspend()
    for process in (psutil.Process(program.pid), *processes):
        process.kill()
    program.communicate()
    for process in processes:
        process.wait(DEADLINE_S)
    assert all(path.exists() for path in directories)
    for lock in locks:
        os.close(lock)
    with RushExecutor(1):
        # Another test's program may have been first, and not be through.
        eventually(lambda: not any(path.exists() for path in directories))


def test_the_server_is_killed(eventually: Eventually, tmp_path: Path) -> None:
    """What waits raises, its memory goes; and what is there stays readable."""
    me = psutil.Process()
    before = set(me.children())
    with RushExecutor(2, reconnect_timeout=0.5) as executor:
        [server] = [process for process in set(me.children()) - before if is_server(process)]
        result = executor.submit(ones, 8 * MB).result()
        reference = executor.scatter(result)
        told, gate = str(tmp_path / "told"), str(tmp_path / "never")
        futures = [executor.submit(total_then_wait, told, gate, reference) for _ in range(4)]
        futures += [executor.submit(total, ones(MB)) for _ in range(4)]
        eventually(Path(told).exists)
        server.kill()
        for future in futures:
            with pytest.raises(NetworkLostError):
                future.result(DEADLINE_S)
        eventually(lambda: not directory(executor).exists())
    assert result.sum() == 8 * MB


def test_a_forked_child_of_a_killed_client(tmp_path: Path, eventually: Eventually) -> None:
    """It holds nothing of what its parent had locked."""
    program = start_program(
        """
        import os, time
        import numpy as np
        from rush_executor import RushExecutor
        executor = RushExecutor(1)
        kept = executor.submit(np.ones, 1 << 20).result()
        child = os.fork()
        if not child:
            time.sleep(600)
        print("ready", child, executor._session.client_id, flush=True)
        time.sleep(600)
        """,
        directory=tmp_path,
    )
    child, owner = read_line(program, "ready").split()
    path = Path(ROOT, f"rush-executor-{owner}")
    processes = [process for process in family(program.pid) if process.pid != int(child)]
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        for process in (psutil.Process(program.pid), *processes):
            process.suspend()
        for process in (psutil.Process(program.pid), *processes):
            process.kill()
        program.wait()
        for process in processes:
            process.wait(DEADLINE_S)
        assert path.exists()
        os.close(lock)
        directory_module.sweep_directories()
        eventually(lambda: not path.exists())
    finally:
        psutil.Process(int(child)).kill()
    program.communicate()


def test_a_program_that_just_ends(tmp_path: Path) -> None:
    """With results in its hands and no shutdown: nothing on stderr, and nothing left."""
    program = start_program(
        """
        import numpy as np
        from rush_executor import RushExecutor
        executor = RushExecutor(1)
        kept = executor.submit(np.ones, 4 << 20).result()
        reference = executor.scatter(kept)
        other = executor.submit(len, reference)
        print("ready", executor._session.client_id, flush=True)
        """,
        directory=tmp_path,
    )
    owner = read_line(program, "ready")
    assert finish(program) == ("", "")
    assert not Path(ROOT, f"rush-executor-{owner}").exists()


def test_a_result_outlives_its_executor(server_url: str) -> None:
    """The memory is the array's."""
    with RushExecutor(1, url=server_url) as executor:
        result = executor.submit(ones, 8 * MB).result()
        reference = executor.scatter(result)
    assert int(result.sum()) == 8 * MB
    result[:] = 2
    assert int(result.sum()) == 16 * MB
    del reference, result
    gc.collect()


def test_results_that_come_too_late(executor: RushExecutor, eventually: Eventually, tmp_path: Path) -> None:
    """Of a task that its client does not wait for any more."""
    future = executor.submit(total_then_wait, str(tmp_path / "told"), str(tmp_path / "gate"), ones(MB))
    eventually((tmp_path / "told").exists)
    from rush_executor._shared.files import SharedFiles

    # As a worker that was taken for lost would write it.
    late = SharedFiles(executor._session.client_id)
    assert late.write("out", f"{executor._session.client_id}-999", [(0, b"x")], 1)
    early = late.write("out", future.task_id, [(0, b"x")], 1)
    eventually(lambda: files(executor, "out") == [early])
    (tmp_path / "gate").touch()
    assert future.result(DEADLINE_S) == MB
    eventually(lambda: not files(executor, "out"))


# ------------------------------------------------------------------------------------------- where there is no memory


def test_without_shared_memory(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: everything works, through the server."""
    monkeypatch.setattr(directory_module.SharedDirectory, "make", lambda _owner, _root=ROOT: None)
    data = os.urandom(3 * MB)
    with RushExecutor(2, url=server_url) as executor:
        before = sent_bytes(server_url)
        assert executor.submit(operator.add, data, b"x").result() == data + b"x"
        assert executor.submit(lambda: len(data)).result() == 3 * MB
        reference = executor.scatter(data)
        assert [executor.submit(len, reference).result() for _ in range(3)] == [3 * MB] * 3
        assert reference.result() == data
        assert sent_bytes(server_url) - before > 12 * MB
        assert not directory(executor).exists()


def test_without_room(executor: RushExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: what does not fit goes through the server."""
    monkeypatch.setattr("rush_executor._shared.files.room_in", lambda _path: 3 * MB)
    assert executor.submit(total, ones(MB), ones(MB)).result() == 2 * MB
    assert files(executor) == []
    reference = executor.scatter(ones(2 * MB))
    assert executor.submit(total, reference).result() == 2 * MB
    assert files(executor) == []


IN_16_MB = """
import os
import numpy as np
from rush_executor import RushExecutor

def ones(n):
    return np.ones(n, dtype=np.uint8)

with RushExecutor(2) as executor:
    results = list(executor.map(ones, [1 << 20] * 20))
    futures = [executor.submit(np.add, ones(n << 20), n) for n in (1, 5, 20) * 2]
    assert [future.result().max() for future in futures] == [2, 6, 21] * 2
    reference = executor.scatter(ones(20 << 20))
    assert list(executor.map(len, [reference] * 4)) == [20 << 20] * 4
    assert list(executor.map(lambda n: len(results[n]), range(20))) == [1 << 20] * 20
    assert sum(int(result.sum()) for result in results) == 20 << 20
    del reference, results, futures
print("left", os.listdir("/dev/shm"))
"""


@pytest.fixture
def own_memory() -> list[str]:
    """Begins the command of a program that has a small /dev/shm of its own, as in a container."""
    command = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        # A program on a busy machine, which may be refused.
        subprocess.run([*command, "true"], check=True, capture_output=True, timeout=DEADLINE_S)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no namespace of mounts to be had")
    return command


def test_a_container_with_little_memory(own_memory: list[str], tmp_path: Path) -> None:
    """A result is a result, however little fits: nothing is lost, and no process ends with SIGBUS."""
    program = tmp_path / "program.py"
    program.write_text(IN_16_MB)
    ended = subprocess.run(
        [*own_memory, sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=environment(),
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "left []\n", "")


# ------------------------------------------------------------------------------------------------- workers elsewhere


def test_a_worker_in_another_container(own_memory: list[str], server_url: str, eventually: Eventually) -> None:
    """It has the server's socket and not the client's memory; then one comes that has both."""
    with RushExecutor(0, url=server_url, network_id="containers") as executor:
        command = [sys.executable, "-m", "rush_executor", "worker", "--url", server_url, "--workers", "1"]
        command += ["--network", executor.network_id]
        future = executor.submit(operator.add, ones(8 * MB), 1)
        elsewhere = subprocess.Popen([*own_memory, *command], env=environment(), cwd=REPOSITORY)
        try:
            assert int(future.result(DEADLINE_S).sum()) == 16 * MB
            reference = executor.scatter(ones(2 * MB))
            assert executor.submit(total, reference, ones(MB)).result(DEADLINE_S) == 3 * MB
        finally:
            elsewhere.terminate()
            elsewhere.wait(DEADLINE_S)
        eventually(lambda: not files(executor, "in", "out", "held"))
        here = subprocess.Popen(command, env=environment(), cwd=REPOSITORY)
        try:
            result = executor.submit(ones, 8 * MB).result(DEADLINE_S)
            assert len(files(executor, "held")) == 1
            assert executor.submit(total, reference, result).result(DEADLINE_S) == 10 * MB
        finally:
            here.terminate()
            here.wait(DEADLINE_S)


def test_two_clients_of_one_network(server_url: str, eventually: Eventually) -> None:
    """Each gets its own results, from the workers of either, and frees its own memory alone."""
    with (
        RushExecutor(1, url=server_url) as one,
        RushExecutor(1, url=server_url, network_id=one.network_id) as other,
    ):
        pairs = [(one.submit(np.full, MB, n), other.submit(np.full, MB, -n)) for n in range(12)]
        results = [(int(a.result().min()), int(b.result().max())) for a, b in pairs]
        assert results == [(n, -n) for n in range(12)]
        kept = one.submit(ones, 8 * MB).result()
        del pairs
        gc.collect()
        eventually(lambda: (len(files(one)), len(files(other))) == (1, 0))
        assert other.submit(total, kept).result() == 8 * MB
    assert kept.sum() == 8 * MB


def hide_shared_memory() -> None:
    """Has a worker see of its clients' shared memory what one in another container does."""
    from rush_executor._shared.files import ARGUMENTS, SharedFiles

    open_locked = SharedFiles.open_locked

    def nothing_there(self: SharedFiles, place: str, size: int) -> tuple[int, int]:
        if place.startswith(ARGUMENTS):
            raise FileNotFoundError(place)
        return open_locked(self, place, size)

    SharedFiles.open_locked = nothing_there  # type: ignore[method-assign]
    SharedFiles.keep_result = lambda *_: ""  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize("secret", [None, b"correct horse"])
def test_workers_in_another_container(server_url: str, secret: bytes | None, eventually: Eventually) -> None:
    """They have the server's socket and not the client's memory: what they do not find goes through the server."""
    with RushExecutor(2, url=server_url, secret=secret, initializer=hide_shared_memory) as executor:
        once = executor.options(max_retries=0)
        offset, inner, reference = ones(MB), executor.scatter(ones(MB)), executor.scatter({"a": ones(20 * MB)})
        futures = [
            once.submit(total, ones(MB), ones(MB)),
            once.submit(lambda: total(offset)),
            once.submit(lambda found: total(found["a"], offset), reference),
            once.submit(lambda: total(inner)),
            once.submit(functools.partial(total, offset), ones(MB)),
        ]
        results = list(executor.map(functools.partial(np.add, offset), [ones(MB)] * 6, chunksize=2))
        assert [future.result(DEADLINE_S) for future in futures] == [n * MB for n in (2, 1, 21, 1, 2)]
        assert [int(result.sum()) for result in results] == [2 * MB] * 6
        assert {future.attempts for future in futures} == {1}
        assert reference.result()["a"].sum() == 20 * MB
        before = sent_bytes(server_url)
        assert once.submit(lambda found, more: total(found["a"], more, offset), reference, ones(MB)).result() == 22 * MB
        assert sent_bytes(server_url) - before > MB
        assert executor._session._pending._kept_bytes == 0
        # Those of functions stay a while.
        needless = (f"in/{executor._session.client_id}", f"in/{reference.ident}", "out", "held")
        del futures, results, reference
        gc.collect()
        eventually(lambda: not [name for name in files(executor) if name.startswith(needless)])


def test_a_failure_is_retried_as_often_as_before(server_url: str, tmp_path: Path) -> None:
    """Being sent through the server takes none of a task's attempts."""
    marks = tmp_path / "marks"

    def fail(array: Any) -> None:
        tasks.note(str(marks), "x")
        raise OSError(str(total(array)))

    with RushExecutor(1, url=server_url, initializer=hide_shared_memory) as executor:
        future = executor.options(retry_on=OSError, max_retries=2).submit(fail, ones(MB))
        with pytest.raises(OSError, match=str(MB)):
            future.result(DEADLINE_S)
        assert (len(marks.read_text().split()), future.attempts) == (3, 3)


def test_workers_that_may_be_elsewhere(tcp_url: str) -> None:
    """Arguments go through the server; a result need not, where its worker finds the client on its machine."""
    with RushExecutor(2, url=tcp_url) as executor:
        assert executor.submit(total, ones(MB)).result() == MB
        assert executor.submit(spoil, ones(8 * MB)).result() == 1
        before = sent_bytes(tcp_url)
        result = executor.submit(ones, 8 * MB).result()
        assert (int(result.sum()), sent_bytes(tcp_url) - before < MB) == (8 * MB, True)


def test_each_machine_fetches_once(tcp_url: str, eventually: Eventually) -> None:
    """A scattered object, and a large function, for all its workers; and nothing is left when the agent leaves."""
    data = os.urandom(20 * MB)

    def out() -> int:
        with redis.Redis.from_url(tcp_url) as client:
            info: Any = client.info("stats")
        return int(info["total_net_output_bytes"])

    with RushExecutor(3, url=tcp_url) as executor:
        agent_id = executor._session._keeper._settings.agent_id  # type: ignore[attr-defined]
        reference = executor.scatter(data)
        before = out()
        assert set(executor.map(len, [reference] * 30)) == {20 * MB}
        assert set(executor.map(lambda _: len(data), range(30))) == {20 * MB}
        assert 40 * MB <= out() - before < 45 * MB
        assert len(list(Path(ROOT, f"rush-executor-{agent_id}", "far").glob("*.2"))) == 2
        assert reference.result() == data
        functions = Keys(executor.network_id).functions(executor._session.client_id)
        with redis.Redis.from_url(tcp_url) as client:
            assert client.hlen(functions) == 6
            del reference
            eventually(lambda: client.hlen(functions) == 3)
    assert not Path(ROOT, f"rush-executor-{agent_id}").exists()
    assert keys_left(tcp_url) == []


def test_a_server_elsewhere_that_loses_its_data(tcp_url: str, eventually: Eventually, tmp_path: Path) -> None:
    """Scattered objects are sent again, in all their chunks."""
    data = os.urandom(20 * MB)
    gate = str(tmp_path / "gate")
    with RushExecutor(2, url=tcp_url) as executor:
        reference = executor.scatter(data)
        futures = [executor.submit(lambda x: tasks.wait_for(gate, len(x)), reference) for _ in range(5)]
        with redis.Redis.from_url(tcp_url) as client:
            eventually(lambda: client.zcard(Keys(executor.network_id).queued_tasks) == 3)
            client.flushall()
        Path(gate).touch()
        assert [future.result(DEADLINE_S) for future in futures] == [20 * MB] * 5


def test_a_durable_network_keeps_large_data_at_the_server(tmp_path: Path) -> None:
    """It is to outlive the client, and so the client's memory."""
    with temporary_server() as url:
        with RushExecutor(1, url=url, network_id="long", durable=True) as executor:
            assert executor.submit(operator.add, ones(MB), 1).result().sum() == 2 * MB
            assert files(executor) == []
        with RushExecutor(1, url=url, network_id="long") as executor:
            assert executor.submit(operator.add, ones(MB), 1).result().sum() == 2 * MB
            reference = executor.scatter(ones(2 * MB))
            assert executor.submit(total, reference).result() == 2 * MB
            assert files(executor) == []


def test_many_threads(server_url: str) -> None:
    """They write, recycle and free at once; nothing is mixed up."""
    failures: list[BaseException] = []
    with RushExecutor(2, url=server_url) as executor:

        def work(number: int) -> None:
            try:
                for n in range(15):
                    value = 10 * number + n % 10
                    array = np.full(300_000 + 1000 * n, value, dtype=np.uint8)
                    result = executor.submit(operator.add, array, 1).result(DEADLINE_S)
                    assert (int(result.min()), int(result.max())) == (value + 1, value + 1)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert files(executor, "in", "out") == []
