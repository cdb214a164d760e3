"""What the acceptance tests run in workers: imported there by name, so nothing heavy is imported here."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# State of a worker process: what one task leaves for the next.
kept: dict[str, Any] = {}

# A task that waits for its test gives up after this long, so that a failing test leaves no worker behind.
_PATIENCE_S = 60.0


def echo(value: Any) -> Any:
    return value


def echo_all(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def square(x: int) -> int:
    return x * x


def pid(*_: Any) -> int:
    return os.getpid()


def wait_for(path: str, value: Any = None) -> Any:
    """Returns when there is such a file."""
    give_up_at = time.monotonic() + _PATIENCE_S
    while not Path(path).exists():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"nobody made {path}")
        time.sleep(0.002)
    return value


def tell_and_wait_for(told: str, path: str, value: Any = None) -> Any:
    """Makes a file, then waits for another."""
    Path(told).touch()
    return wait_for(path, value)


def wait_if(path: str) -> bool:
    """Waits for a file if it is told one: a function whose calls may be short or long."""
    if path:
        wait_for(path)
    return bool(path)


def meet(directory: str, n: int, me: str) -> int:
    """Returns this process when `n` tasks run at the same time."""
    Path(directory, me).touch()
    give_up_at = time.monotonic() + _PATIENCE_S
    while len(list(Path(directory).iterdir())) < n:
        if time.monotonic() > give_up_at:
            raise AssertionError("the others did not come")
        time.sleep(0.002)
    return os.getpid()


def note(path: str, text: str) -> str:
    """Appends a line to a file, in one piece."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)
    return text


# ------------------------------------------------------------------------------------------------------------ ends


def fail(error: BaseException) -> NoReturn:
    raise error


def fail_if(x: int, bad: int) -> int:
    if x == bad:
        raise ValueError(f"{x} is bad")
    return x


def die(signum: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), signum)
    # SIGKILL comes at once, others when the interpreter gets to them.
    time.sleep(_PATIENCE_S)


def exit_now(code: int) -> NoReturn:
    os._exit(code)


def segfault() -> None:
    import ctypes

    # In a core file there is nothing to see.
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def note_and_die(path: str, signum: int = signal.SIGKILL) -> None:
    note(path, str(os.getpid()))
    die(signum)


def die_once(path: str) -> str:
    """Kills its worker the first time."""
    note(path, str(os.getpid()))
    if len(Path(path).read_text().split()) == 1:
        die()
    return "survived"


def leave_behind(how: str) -> int:
    """Has the worker's process no handler of the worker for SIGTERM; returns the process."""
    if how == "handler":
        signal.signal(signal.SIGTERM, lambda *_: None)
    elif how == "ignored":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        import asyncio

        async def listen() -> None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)

        asyncio.run(listen())
    return os.getpid()


def leave_behind_and_wait_for(how: str, told: str, path: str) -> str:
    """Does so, and goes on."""
    leave_behind(how)
    return str(tell_and_wait_for(told, path, "done"))


def start_sleeper(path: str, end: Callable[[], object]) -> None:
    """Starts a process and notes its number; then ends as it is told."""
    import subprocess

    sleeper = subprocess.Popen(["sleep", "600"])
    note(path, str(sleeper.pid))
    end()


# -------------------------------------------------------------------------------------------------------- payloads


class Homebody:
    """Can be pickled, but unpickles only in the process that made it.

    Args:
        error: What unpickling elsewhere raises.
    """

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return stay_home, (os.getpid(), self.error)


def stay_home(home: int, error: type[BaseException]) -> object:
    if os.getpid() != home:
        raise error("far from home")
    return "at home"


def make_homebody(error: type[BaseException]) -> Homebody:
    return Homebody(error)


class Fragile:
    """Fails in its `__setstate__`, but not in the process that made it."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if os.getpid() != state["home"]:
            raise LookupError("the fragile state broke")


class Unpicklable:
    """Cannot be pickled.

    Args:
        error: What pickling raises.
    """

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("is not to be pickled")


def make_unpicklable(error: type[BaseException]) -> Unpicklable:
    return Unpicklable(error)


class HomebodyError(Exception):
    """An exception that cannot be rebuilt in another process."""

    def __init__(self, message: str, error: type[BaseException]) -> None:
        super().__init__(message)
        self.error = error

    def __reduce__(self) -> Any:
        return stay_home, (os.getpid(), self.error)


def fail_as_homebody(error: type[BaseException]) -> NoReturn:
    raise HomebodyError("lost my way", error)


class NeedyError(Exception):
    """An exception whose `__init__` asks for arguments that are not its `args`."""

    def __init__(self, code: int, *, place: str) -> None:
        super().__init__(f"error {code} at {place}")
        self.code = code
        self.place = place


def fail_needy() -> NoReturn:
    raise NeedyError(42, place="home")


class LockedError(Exception):
    """An exception that cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


def fail_locked() -> NoReturn:
    raise LockedError("the lock is mine")


def fail_because_locked() -> NoReturn:
    try:
        fail_locked()
    except LockedError as error:
        raise ValueError("because of a lock") from error


class MuteError(Exception):
    """An exception that cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no comment")

    __repr__ = __str__

    def __reduce__(self) -> Any:
        raise SystemExit("not me")


def fail_mute() -> NoReturn:
    raise MuteError


# ---------------------------------------------------------------------------------------------------------- memory


class Thing:
    """Something to which there are weak references."""


def take_thing(name: str, thing: Thing) -> None:
    kept[name] = weakref.ref(thing)


def give_thing(name: str) -> Thing:
    thing = Thing()
    kept[name] = weakref.ref(thing)
    return thing


def fail_with_thing(name: str, thing: Thing) -> NoReturn:
    kept[name] = weakref.ref(thing)
    raise ValueError(name)


def is_gone(name: str) -> bool:
    return kept[name]() is None


def make_thing(_: int) -> Thing:
    return Thing()


def start_counting(n: int) -> None:
    kept["n"] = kept.get("n", 0) + n


def count_up() -> int:
    kept["n"] = kept.get("n", 0) + 1
    count: int = kept["n"]
    return count
