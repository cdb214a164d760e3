"""How far a lot of tasks is: a bar on a terminal or in a notebook, lines elsewhere if somebody insists.

    submit, map (a view with progress)  --->  Progress.watch  --->  Run: counts  <---  done-callbacks of the Futures
    progress(futures)                   ------------------------->      |
                                                          thread rush-progress: draws  --->  tqdm, rich, or text

Only a view that was asked for it has a `Progress`; for everybody else there is nothing to pay. Counting is all that
happens where tasks are submitted and resolved. A thread of its own draws, some times a second, and ends with the bar:
a terminal that was stopped holds up nobody but it. The bar is made by the thread that submits, since a notebook shows
what the cell that made it shows.

tqdm is preferred to rich: it is the one that most people have, and it has widgets for notebooks.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import functools
import importlib
import os
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Final, Literal, NamedTuple, Protocol, TextIO

from rush_executor._payload import ChunkResult

__all__ = ["Progress", "ProgressWish", "progress"]

ProgressWish = bool | Literal["always"]

_DRAW_S: Final = 0.1
# All is done, and nothing new was submitted for so long: it was all.
_QUIET_S: Final = 0.25
# How long who has seen the last result waits for the bar to show it.
_SETTLE_S: Final = 0.5
_SETTLE_POLL_S: Final = 0.005
# Where nothing can be written over: a line every so often.
_LINE_S: Final = 5.0
_WIDTH: Final = 30
_ASSUMED_SIZE: Final = (80, 24)


def progress(
    futures: Iterable[Future[Any]], *, label: str = "", always: bool = False, timeout: float | None = None
) -> list[Future[Any]]:
    """Waits for Futures, and shows how far they are: how many are done and failed, how fast, how long it will take.

    On a terminal and in a notebook there is a bar, of tqdm if that is installed, else of rich, else of characters.

    Args:
        futures: Of whichever executor.
        label: What stands before the bar.
        always: Show it where stderr is no terminal as well: a line every few seconds.
        timeout: Seconds to wait at most; None for as long as it takes.

    Returns:
        The Futures, in their order; all are done, well or badly.

    Raises:
        TimeoutError: Some are not done by then; they go on.
    """
    given = list(futures)
    run: _Run | None = None
    if given and _is_shown("always" if always else True):
        run = _Run(label)
        run.expect(len(given))
        for future in given:
            run.watch(future)
    try:
        _, not_done = concurrent.futures.wait(given, timeout)
        if run is not None and not not_done:
            # The last of them may not have been counted yet.
            run.settle()
    finally:
        if run is not None:
            run.close()
    if not_done:
        raise TimeoutError(f"{len(not_done)} (of {len(given)}) futures unfinished")
    return given


class Progress:
    """Shows what is submitted through a view, in one bar for all that is under way at the same time.

    Args:
        wish: True for terminals and notebooks, "always" for everywhere.
    """

    def __init__(self, wish: ProgressWish) -> None:
        self._wish = wish
        self._lock = threading.Lock()
        self._run: _Run | None = None

    def watch(self, future: Future[Any], n: int) -> None:
        """A task was submitted: one call, or `n` of them."""
        run = self._current()
        if run is not None:
            run.watch(future, n)

    def around(self, results: Iterator[Any], n_more: int | None) -> Iterator[Any]:
        """Passes on the results of a `map`; with the last of them the bar is at its end.

        Args:
            results: Of the `map`, which has submitted what it submits at once.
            n_more: How many calls it will submit later; None if nobody knows.
        """
        run = self._run
        if run is None:
            # There is nothing to be shown, or nobody to look at it.
            yield from results
            return
        run.expect(n_more)
        try:
            yield from results
        finally:
            run.expect_nothing()
            run.settle()

    def _current(self) -> _Run | None:
        if not _is_shown(self._wish):
            return None
        with self._lock:
            if self._run is None or not self._run.is_open_a_while():
                self._run = _Run("")
            return self._run


class _State(NamedTuple):
    """What a bar shows.

    Attributes:
        n_done: Calls that have ended.
        n_failed: Those of them that have raised something.
        n_all: How many there are; None if nobody knows.
        seconds: Since the bar was made.
    """

    n_done: int
    n_failed: int
    n_all: int | None
    seconds: float

    @property
    def rate(self) -> float:
        return self.n_done / max(self.seconds, 1e-9)


class _Bar(Protocol):
    def show(self, state: _State) -> None: ...
    def close(self) -> None: ...


class _Run:
    """One bar, from the first task to the last.

    Args:
        label: What stands before it.
    """

    def __init__(self, label: str) -> None:
        # Of C code, and held for lines that call nothing: Ctrl-C cannot leave it locked.
        self._lock = threading.Lock()
        self._n_all = self._n_done = self._n_failed = 0
        # Calls that are to be submitted still; None if nobody knows how many.
        self._n_expected: int | None = 0
        self._began_at = self._watched_at = time.monotonic()
        self._is_settling = self._is_closing = self._is_closed = False
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._bar = _make_bar(label)
        self._thread = threading.Thread(target=self._draw, name="rush-progress", daemon=True)
        self._thread.start()
        # A bar of rich has hidden the cursor.
        atexit.register(self.close)

    def is_open_a_while(self) -> bool:
        """Whether it takes more; if so, it does not end by itself in the next moment."""
        with self._lock:
            if not self._is_closed:
                self._watched_at = time.monotonic()
            return not self._is_closed

    def expect(self, n: int | None) -> None:
        """So many more calls will be submitted."""
        with self._lock:
            self._n_expected = None if n is None or self._n_expected is None else self._n_expected + n

    def expect_nothing(self) -> None:
        """No more are to be submitted."""
        with self._lock:
            self._n_expected = 0

    def watch(self, future: Future[Any], n: int = 1) -> None:
        """A task was submitted."""
        with self._lock:
            self._n_all += n
            if self._n_expected:
                self._n_expected = max(0, self._n_expected - n)
            self._watched_at = time.monotonic()
        future.add_done_callback(functools.partial(self._count, n))

    def settle(self) -> None:
        """If all is done, the bar is at its end when this returns."""
        self._is_settling = True
        self._wakeups.put(None)
        self._thread.join(_SETTLE_S)
        self._is_settling = False

    def close(self) -> None:
        """The bar ends now, as it is."""
        self._is_closing = True
        self.settle()

    def _count(self, n: int, future: Future[Any]) -> None:
        is_cancelled, has_failed = future.cancelled(), _has_failed(future)
        with self._lock:
            if is_cancelled:
                # Nobody is to wait for it.
                self._n_all -= n
            else:
                self._n_done += n
                self._n_failed += has_failed

    def _draw(self) -> None:
        is_over = False
        while not is_over:
            with contextlib.suppress(queue.Empty):
                self._wakeups.get(timeout=_SETTLE_POLL_S if self._is_settling else _DRAW_S)
            with self._lock:
                state = self._state()
                is_quiet = self._is_settling or time.monotonic() - self._watched_at > _QUIET_S
                is_over = self._is_closing or (is_quiet and state.n_done == state.n_all)
                self._is_closed = is_over
            # A terminal that is gone, a notebook that is restarted: what is shown is not worth an error.
            with contextlib.suppress(Exception):
                self._bar.show(state)
        with contextlib.suppress(Exception):
            self._bar.close()
        atexit.unregister(self.close)

    def _state(self) -> _State:
        expected = self._n_expected
        n_all = None if expected is None else self._n_all + expected
        return _State(self._n_done, self._n_failed, n_all, time.monotonic() - self._began_at)


class _TqdmBar:
    def __init__(self, label: str, kind: Any) -> None:
        # A terminal that does not say how large it is would be shown nothing.
        size = {"dynamic_ncols": True} if _has_size() else {"ncols": _ASSUMED_SIZE[0], "nrows": _ASSUMED_SIZE[1]}
        self._bar = kind(total=0, desc=label or None, unit="task", file=sys.stderr, **size)

    def show(self, state: _State) -> None:
        bar = self._bar
        if bar.total != state.n_all:
            # A widget takes another total by `reset` alone, which would begin anew.
            start_t = bar.start_t
            bar.reset(total=state.n_all)
            bar.start_t = start_t
            bar.total = state.n_all
        bar.n = state.n_done
        if state.n_failed:
            bar.set_postfix(failed=state.n_failed, refresh=False)
        bar.refresh()

    def close(self) -> None:
        self._bar.close()


class _RichBar:
    def __init__(self, label: str, rich: Any) -> None:
        console = importlib.import_module("rich.console").Console(stderr=True)
        self._bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[note]}"),
            rich.TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
        )
        self._task = self._bar.add_task(label or "tasks", total=None, note="")
        self._bar.start()

    def show(self, state: _State) -> None:
        note = f"{state.rate:.1f}/s" + (f", [red]{state.n_failed} failed[/]" if state.n_failed else "")
        self._bar.update(self._task, total=state.n_all, completed=state.n_done, note=note)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.stop()


class _TextBar:
    """Characters.

    Args:
        label: What stands before them.
        file: Where to.
        is_over_written: Whether one line is written over and over; else there is a line every few seconds.
    """

    def __init__(self, label: str, file: TextIO, *, is_over_written: bool) -> None:
        self._label = label or "tasks"
        self._file = file
        self._is_over_written = is_over_written
        self._longest = 0
        self._shown_at = time.monotonic()
        self._last = ""

    def show(self, state: _State) -> None:
        self._last = self._text(state)
        if self._is_over_written:
            self._write("\r" + self._last.ljust(self._longest))
            self._longest = max(self._longest, len(self._last))
        elif time.monotonic() - self._shown_at > _LINE_S:
            self._write(self._last + "\n")
            self._shown_at = time.monotonic()

    def close(self) -> None:
        self._write("\n" if self._is_over_written else self._last + "\n")

    def _text(self, state: _State) -> str:
        parts = [f"{state.n_done} done"]
        bar = ""
        if state.n_all:
            share = state.n_done / state.n_all
            bar = f" |{'#' * int(share * _WIDTH):<{_WIDTH}}| {share:.0%}" if self._is_over_written else f" {share:.0%}"
            parts = [f"{state.n_done} of {state.n_all} done"]
        if state.n_failed:
            parts.append(f"{state.n_failed} failed")
        parts.append(f"{state.rate:.1f}/s")
        if state.n_all and 0 < state.n_done < state.n_all:
            parts.append(f"{_clock((state.n_all - state.n_done) / state.rate)} left")
        else:
            parts.append(_clock(state.seconds))
        return f"{self._label}:{bar} {', '.join(parts)}"

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _has_failed(future: Future[Any]) -> bool:
    if future.cancelled():
        return False
    if future.exception() is not None:
        return True
    result = future.result()
    return isinstance(result, ChunkResult) and result.failure is not None


def _is_shown(wish: ProgressWish) -> bool:
    return wish == "always" or (bool(wish) and (_is_terminal() or _is_notebook()))


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        # None under pythonw, or closed.
        return False


def _has_size() -> bool:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        # A notebook, whose widgets know their own.
        return True


def _is_notebook() -> bool:
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _make_bar(label: str) -> _Bar:
    is_notebook = _is_notebook()
    if not is_notebook and not _is_terminal():
        return _TextBar(label, sys.stderr, is_over_written=False)
    if (tqdm := _module("tqdm")) is not None:
        if is_notebook and _module("ipywidgets") is not None:
            tqdm = _module("tqdm.notebook") or tqdm
        return _TqdmBar(label, tqdm.tqdm)
    if (rich := _module("rich.progress")) is not None:
        return _RichBar(label, rich)
    return _TextBar(label, sys.stderr, is_over_written=True)


def _module(name: str) -> Any:
    """A module that may be installed; None if it is not."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
