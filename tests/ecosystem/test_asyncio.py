"""asyncio: tasks are awaited, gathered and cancelled, and killed where that is asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rush_executor import RushExecutor, TaskKilledError
from tests.acceptance.tasks import tell_and_wait_for, wait_for

Eventually = Callable[..., Any]
DEADLINE_S = 60


@pytest.fixture
def lone(server_url: str) -> Iterator[RushExecutor]:
    """An executor with one worker."""
    with RushExecutor(1, url=server_url) as executor:
        yield executor


class OwnError(Exception):
    pass


def fail(x: int) -> None:
    raise OwnError(x)


def test_run_in_executor_and_gather(executor: RushExecutor) -> None:
    """Results come in their order; as those of `submit`, by way of `wrap_future`."""

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, pow, 2, n) for n in range(50)]
        futures = [asyncio.wrap_future(executor.submit(pow, 3, n)) for n in range(50)]
        return [*await asyncio.gather(*calls), *await asyncio.gather(*futures)]

    assert asyncio.run(main()) == [2**n for n in range(50)] + [3**n for n in range(50)]


def test_as_the_loops_own_executor(executor: RushExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """It runs while the event loop does other things."""
    told, gate = tmp_path / "told", tmp_path / "gate"

    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(executor, tell_and_wait_for, str(told), str(gate), "done")
        await asyncio.to_thread(eventually, told.exists)
        gate.touch()
        return [await call, await loop.run_in_executor(executor, sum, [1, 2, 3])]

    assert asyncio.run(main()) == ["done", 6]


def test_what_a_task_raises(executor: RushExecutor) -> None:
    """It is raised by `await`; a task group ends its other tasks with it."""

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        found: list[Any] = await asyncio.gather(
            loop.run_in_executor(executor, fail, 3), loop.run_in_executor(executor, abs, -3), return_exceptions=True
        )

        async def call(*args: Any) -> Any:
            return await loop.run_in_executor(executor, *args)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(call(fail, 5))
                group.create_task(call(abs, -3))
        except* OwnError as caught:
            found += caught.exceptions
        return found

    failed, value, grouped = asyncio.run(main())
    assert (type(failed), failed.args, value) == (OwnError, (3,), 3)
    assert (type(grouped), grouped.args) == (OwnError, (5,))


def test_a_cancelled_task_that_waits(lone: RushExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """It is taken out of the queue, and never run; the one that runs goes on."""
    told, gate, mark = tmp_path / "told", tmp_path / "gate", tmp_path / "mark"

    async def main() -> str:
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(lone, tell_and_wait_for, str(told), str(gate), "done")
        await asyncio.to_thread(eventually, told.exists)
        waiting = loop.run_in_executor(lone, mark.touch)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert waiting.cancelled()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(running), 0.05)
        gate.touch()
        return await running

    assert asyncio.run(main()) == "done"
    assert lone.submit(abs, -1).result(DEADLINE_S) == 1
    assert not mark.exists()


@pytest.mark.parametrize("way", ["cancel", "wait_for", "timeout"])
def test_a_cancelled_task_that_runs(lone: RushExecutor, tmp_path: Path, eventually: Eventually, way: str) -> None:
    """With `kill_on_cancel` it is ended, at once; its worker is free again."""
    told, never = tmp_path / "told", tmp_path / "never"
    view = lone.options(kill_on_cancel=True)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        future = view.submit(tell_and_wait_for, str(told), str(never))
        if way == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await asyncio.wrap_future(future)
        elif way == "wait_for":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(future), 0.5)
        else:
            awaited = asyncio.wrap_future(future)
            await asyncio.to_thread(eventually, told.exists)
            awaited.cancel()
            with pytest.raises(asyncio.CancelledError):
                await awaited
        assert await loop.run_in_executor(lone, abs, -1) == 1
        assert future.cancelled() or isinstance(future.exception(DEADLINE_S), TaskKilledError)

    asyncio.run(main())


def test_cancel_is_false_for_what_was_killed(lone: RushExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """It has run. Without the option it is left alone."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    future = lone.options(kill_on_cancel=True).submit(tell_and_wait_for, str(told), str(gate))
    waiting = lone.options(kill_on_cancel=True).submit(wait_for, str(gate))
    eventually(told.exists)
    assert waiting.cancel() is True
    assert future.cancel() is False
    assert isinstance(future.exception(DEADLINE_S), TaskKilledError)
    assert future.cancel() is False
    other = lone.submit(tell_and_wait_for, f"{told}2", str(gate), "done")
    eventually(Path(f"{told}2").exists)
    assert other.cancel() is False
    gate.touch()
    assert other.result(DEADLINE_S) == "done"
