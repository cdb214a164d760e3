"""`as_pool`: what takes a `multiprocessing.Pool` takes an executor, and gets the same answers.

The reference is `multiprocessing.pool.ThreadPool`, the same code as that of `multiprocessing.Pool` on threads.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest

from rush_executor import RushExecutor, TaskKilledError, TaskTimeoutError
from tests.acceptance import tasks

Eventually = Callable[..., Any]
Pool = Any
DEADLINE_S = 60


@pytest.fixture
def thread_pool() -> Iterator[ThreadPool]:
    with ThreadPool(2) as pool:
        yield pool


def reciprocal(x: int) -> float:
    return 1 / x


def reply(x: int) -> Any:
    """A failure in the middle of many."""
    if x == 5:
        raise KeyError(x)
    return x


def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.005)
    return path


def drained(results: Any) -> list[Any]:
    """What an iterator gives, failures among it."""
    values: list[Any] = []
    while True:
        try:
            values.append(next(results))
        except StopIteration:
            return values
        except KeyError as error:
            values.append(repr(error))


def raised(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return repr(error)
    raise AssertionError("nothing was raised")


ANSWERS: dict[str, Callable[[Pool], Any]] = {
    "map": lambda pool: pool.map(abs, range(-50, 50)),
    "map of nothing": lambda pool: pool.map(abs, []),
    "map of an iterator": lambda pool: pool.map(abs, iter([-1, -2])),
    "map in chunks": lambda pool: pool.map(abs, range(-50, 50), 7),
    "map, one chunk": lambda pool: pool.map(abs, [-1, -2, -3], 100),
    "starmap": lambda pool: pool.starmap(pow, [(2, 3), (3, 2), [4, 2]]),
    "starmap in chunks": lambda pool: pool.starmap(pow, [(n, 2) for n in range(9)], 2),
    "imap": lambda pool: list(pool.imap(abs, range(-9, 0))),
    "imap in chunks": lambda pool: list(pool.imap(abs, range(-9, 0), 4)),
    "imap with a failure": lambda pool: drained(pool.imap(reply, range(9))),
    "imap of nothing": lambda pool: list(pool.imap(abs, [])),
    "imap_unordered": lambda pool: sorted(pool.imap_unordered(abs, range(-9, 0))),
    "imap_unordered in chunks": lambda pool: sorted(pool.imap_unordered(abs, range(-9, 0), 4)),
    "imap_unordered with a failure": lambda pool: sorted(map(str, drained(pool.imap_unordered(reply, range(9))))),
    "apply": lambda pool: pool.apply(divmod, (17, 5)),
    "apply with keywords": lambda pool: pool.apply(sorted, ([3, 1, 2],), {"reverse": True}),
    "apply_async": lambda pool: pool.apply_async(divmod, (17, 5)).get(DEADLINE_S),
    "map_async": lambda pool: pool.map_async(abs, range(-9, 0)).get(DEADLINE_S),
    "starmap_async": lambda pool: pool.starmap_async(pow, [(2, 3), (3, 2)]).get(DEADLINE_S),
    "map, failing": lambda pool: raised(lambda: pool.map(reply, range(20))),
    "starmap, failing": lambda pool: raised(lambda: pool.starmap(reciprocal, [(1,), (0,)])),
    "apply, failing": lambda pool: raised(lambda: pool.apply(reciprocal, (0,))),
    "imap without chunks": lambda pool: raised(lambda: pool.imap(abs, [], 0)),
    "not iterable": lambda pool: raised(lambda: pool.map(abs, 5)),
    "not ready": lambda pool: raised(pool.apply_async(time.sleep, (2,)).successful)[:10],
    "successful": lambda pool: successful(pool.map_async(abs, [1])),
    "not successful": lambda pool: successful(pool.map_async(reply, range(9), 3)),
    "join too early": lambda pool: raised(pool.join),
}


def successful(result: Any) -> tuple[bool, bool]:
    result.wait(DEADLINE_S)
    return result.ready(), result.successful()


@pytest.fixture(scope="module")
def lasting_executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RushExecutor]:
    """For all answers. It has a private server, as other tests must find no key of it on theirs."""
    directory = str(tmp_path_factory.mktemp("meeting"))
    with RushExecutor(2) as executor:
        # Both workers are there when the first test looks which processes it finds.
        meeting = [executor.submit(tasks.meet, directory, 2, me) for me in "ab"]
        assert meeting[0].result(DEADLINE_S) != meeting[1].result(DEADLINE_S)
        yield executor


@pytest.mark.parametrize("ask", ANSWERS.values(), ids=ANSWERS)
def test_the_same_answers(ask: Callable[[Pool], Any], lasting_executor: RushExecutor, thread_pool: ThreadPool) -> None:
    """Results, their order, and what is raised are those of `multiprocessing.Pool`."""
    assert ask(lasting_executor.as_pool()) == ask(thread_pool)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_callbacks(executor: RushExecutor, eventually: Eventually, chunksize: int) -> None:
    """One call, with everything; or with what was raised."""
    pool = executor.as_pool()
    told: list[Any] = []
    pool.map_async(abs, range(-4, 0), chunksize, callback=told.append, error_callback=told.append)
    eventually(lambda: told == [[4, 3, 2, 1]])
    pool.starmap_async(reciprocal, [(1,), (0,)], chunksize, told.append, told.append)
    eventually(lambda: len(told) == 2)
    assert isinstance(told[1], ZeroDivisionError)
    pool.apply_async(math.sqrt, (16,), None, told.append)
    eventually(lambda: told[2:] == [4.0])


def test_a_result_that_takes_long(executor: RushExecutor, tmp_path: Path) -> None:
    """`get` and `next` give up waiting, with the error that people catch, and can be asked again."""
    pool = executor.as_pool()
    mark = tmp_path / "go"
    result = pool.apply_async(wait_for, (str(mark),))
    late = [pool.imap(wait_for, [str(mark)]), pool.imap_unordered(wait_for, [str(mark)])]
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.05)
    for results in late:
        with pytest.raises(multiprocessing.TimeoutError):
            results.next(timeout=0.05)
    assert not result.ready()
    mark.touch()
    assert result.get(DEADLINE_S) == str(mark)
    assert [results.next(timeout=DEADLINE_S) for results in late] == [str(mark)] * 2


def test_the_order_in_which_they_come(executor: RushExecutor, tmp_path: Path) -> None:
    """`imap_unordered` does not hold back what is there behind what is not."""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    Path(second).touch()
    results = executor.as_pool().imap_unordered(wait_for, [first, second])
    assert next(results) == second
    Path(first).touch()
    assert next(results) == first


def test_its_end_is_not_the_executors(executor: RushExecutor) -> None:
    """Leaving the block ends what runs and what waits, as with `multiprocessing.Pool`, and nothing of anybody else."""
    other = executor.submit(time.sleep, 0.5)
    with executor.as_pool() as pool:
        running = pool.map_async(time.sleep, [600] * 4, 1)
    pool.join()
    with pytest.raises((TaskKilledError, CancelledError)):
        running.get(DEADLINE_S)
    for submit in (pool.apply_async, pool.map_async):
        with pytest.raises(ValueError, match="Pool not running"):
            submit(abs, [1])
    with pytest.raises(ValueError, match="Pool not running"), pool:
        pass
    assert other.result(DEADLINE_S) is None
    assert executor.submit(abs, -1).result(DEADLINE_S) == 1


def test_close_and_join(executor: RushExecutor) -> None:
    """What was submitted is finished."""
    pool = executor.as_pool()
    results = [pool.apply_async(time.sleep, (0.05,)) for _ in range(6)]
    pool.close()
    pool.join()
    assert all(result.ready() and result.successful() for result in results)


def test_what_is_read_off_it(executor: RushExecutor) -> None:
    """Its size, by either name; options of the executor that it was made from."""
    limited = executor.options(timeout=0.3).as_pool()
    assert limited.size == limited._processes == 2
    assert repr(limited).endswith(".as_pool()")
    with pytest.raises(TaskTimeoutError):
        limited.apply(time.sleep, (600,))
