"""How far a lot of tasks is: what is counted, and what is shown of it. Futures without an executor."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import pytest

from rush_executor import progress
from rush_executor._executor import progress as module
from rush_executor._executor.mapping import n_submitted_later
from rush_executor._executor.progress import Progress, _Run, _State, _TextBar
from rush_executor._payload import ChunkResult


class Recorder:
    """A bar that only remembers."""

    def __init__(self) -> None:
        self.states: list[_State] = []
        self.is_closed = False

    def show(self, state: _State) -> None:
        assert not self.is_closed
        self.states.append(state)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """The bars that were made."""
    made: list[Recorder] = []

    def make(_label: str) -> Recorder:
        made.append(Recorder())
        return made[-1]

    monkeypatch.setattr(module, "_make_bar", make)
    return made


def ended(value: object = None, error: BaseException | None = None) -> Future[Any]:
    future: Future[Any] = Future()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
    return future


def cancelled() -> Future[Any]:
    future: Future[Any] = Future()
    future.cancel()
    future.set_running_or_notify_cancel()
    return future


def last(bar: Recorder) -> tuple[int, int, int | None]:
    assert bar.is_closed
    state = bar.states[-1]
    return state.n_done, state.n_failed, state.n_all


def test_what_is_counted(bars: list[Recorder]) -> None:
    """Failures are done; what was cancelled is not to be waited for."""
    futures = [ended(), ended(error=ValueError()), cancelled(), ended(error=SystemExit())]
    assert progress(futures, always=True) == futures
    assert last(bars[0]) == (3, 2, 3)


def test_it_waits(bars: list[Recorder]) -> None:
    """Until all are done, and no longer than it is told."""
    futures: list[Future[Any]] = [Future() for _ in range(5)]
    futures[0].set_result(1)
    with pytest.raises(TimeoutError, match=r"4 \(of 5\) futures unfinished"):
        progress(futures, always=True, timeout=0.01)
    assert last(bars[0]) == (1, 0, 5)

    def finish() -> None:
        for future in futures[1:]:
            future.set_result(2)

    thread = threading.Thread(target=finish)
    thread.start()
    assert [future.result(0) for future in progress(iter(futures), always=True)] == [1, 2, 2, 2, 2]
    thread.join()
    assert last(bars[1]) == (5, 0, 5)


def test_nobody_looks(bars: list[Recorder]) -> None:
    """Where stderr is no terminal there is no bar, unless somebody insists; of nothing there is none either."""
    assert progress([ended()]) != progress([]) == progress([], always=True) == []
    watched = Progress(True)
    watched.watch(ended(), 1)
    assert list(watched.around(iter([1, 2]), 0)) == [1, 2]
    assert bars == []


def test_a_map(bars: list[Recorder]) -> None:
    """A chunk counts as the calls that it holds, one that failed as one failure; with the last result the bar ends."""
    watched = Progress("always")
    watched.watch(ended(ChunkResult([1, 2, 3], None)), 3)
    watched.watch(ended(ChunkResult([1], KeyError())), 3)
    assert list(watched.around(iter("ab"), 0)) == ["a", "b"]
    assert last(bars[0]) == (6, 1, 6)


@pytest.mark.parametrize("n_more", [4, None])
def test_a_map_that_submits_later(bars: list[Recorder], n_more: int | None) -> None:
    """The bar knows of what is to come, where that can be known."""
    watched = Progress("always")
    first: Future[Any] = Future()
    watched.watch(first, 1)
    results = watched.around((watched.watch(ended(), 1) for _ in range(4)), n_more)
    next(results)
    run = watched._run
    assert run is not None
    assert run._state().n_all == (5 if n_more else None)
    first.set_result(None)
    assert len(list(results)) == 3
    assert last(bars[0]) == (5, 0, 5)


def test_another_bar_for_what_comes_later(bars: list[Recorder]) -> None:
    """One for all that is under way together."""
    watched = Progress("always")
    for n in (2, 3):
        for _ in range(n):
            watched.watch(ended(), 1)
        run = watched._run
        assert run is not None
        run.settle()
    assert [last(bar) for bar in bars] == [(2, 0, 2), (3, 0, 3)]


def test_a_bar_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal is gone: that is no reason to stop."""

    class Broken:
        def show(self, state: _State) -> None:
            raise OSError("gone")

        def close(self) -> None:
            raise OSError("gone")

    monkeypatch.setattr(module, "_make_bar", lambda _: Broken())
    run = _Run("")
    run.watch(ended())
    run.close()
    assert not run._thread.is_alive()


STATES = [
    (_State(0, 0, 0, 0.0), "tasks: 0 done, 0.0/s, 0:00"),
    (_State(0, 0, 50, 1.0), "tasks: 0% 0 of 50 done, 0.0/s, 0:01"),
    (_State(20, 3, 50, 10.0), "tasks: 40% 20 of 50 done, 3 failed, 2.0/s, 0:15 left"),
    (_State(10, 0, 20000, 10.0), "tasks: 0% 10 of 20000 done, 1.0/s, 5:33:10 left"),
    (_State(50, 0, 50, 100.0), "tasks: 100% 50 of 50 done, 0.5/s, 1:40"),
    (_State(7, 1, None, 3.5), "tasks: 7 done, 1 failed, 2.0/s, 0:04"),
]


@pytest.mark.parametrize(("state", "text"), STATES)
def test_lines(state: _State, text: str) -> None:
    """How many, how many failed, how fast, how long it will take or has taken; the last line is always there."""
    file = io.StringIO()
    bar = _TextBar("", file, is_over_written=False)
    bar.show(state)
    bar.close()
    assert file.getvalue() == text + "\n"


def test_a_line_that_is_written_over() -> None:
    """A shorter one leaves nothing of a longer one behind it."""
    file = io.StringIO()
    bar = _TextBar("fits", file, is_over_written=True)
    for state in (_State(20, 3, 50, 10.0), _State(50, 3, 50, 10.0)):
        bar.show(state)
    bar.close()
    _, first, second = file.getvalue().split("\r")
    assert first == f"fits: |{'#' * 12}{' ' * 18}| 40% 20 of 50 done, 3 failed, 2.0/s, 0:15 left"
    assert second.rstrip() == f"fits: |{'#' * 30}| 100% 50 of 50 done, 3 failed, 5.0/s, 0:10"
    assert len(second.rstrip("\n")) == len(first)
    assert second.endswith("\n")


def endless() -> Iterable[int]:
    return itertools.count()


@pytest.mark.parametrize(
    ("iterables", "chunksize", "buffersize", "n"),
    [
        (([1] * 9,), 1, None, 0),
        ((endless(),), 1, None, 0),
        (([1] * 9,), 1, 4, 5),
        (([1] * 9, "abc"), 1, 2, 1),
        (([1] * 9,), 3, 4, 6),
        (([1] * 9,), 9, 4, 5),
        (([1] * 9,), 1, 50, 0),
        ((endless(), [1, 2]), 1, 1, None),
        ((), 1, 1, None),
    ],
)
def test_what_a_map_submits_later(
    iterables: tuple[Iterable[Any], ...], chunksize: int, buffersize: int | None, n: int | None
) -> None:
    """As many as it has not submitted at once, where the input tells."""
    assert n_submitted_later(iterables, chunksize, buffersize) == n
