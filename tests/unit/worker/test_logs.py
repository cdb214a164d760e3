"""A worker's log up to the server: what a record becomes, when it is sent, and that no task ever suffers from it."""

from __future__ import annotations

import io
import logging
import logging.config
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from rush_executor._config import LogSettings
from rush_executor._ledger.connection import NetworkGone
from rush_executor._ledger.logs import LogWriter
from rush_executor._protocol.logs import LONGEST_TEXT, LogLine
from rush_executor._worker import log_buffer as log_buffer_module
from rush_executor._worker.log_buffer import LogBuffer
from rush_executor._worker.logs import NetworkLogHandler, WorkerLog
from rush_executor._worker.output import OutputTee
from rush_executor.errors import NetworkLostError

Eventually = Callable[..., Any]
QUIET = 1 << 60


class FakeWriter:
    """Stands for a `LogWriter` and its server."""

    def __init__(self) -> None:
        self.worker_id = "w1"
        self.is_open = False
        self.posted: list[list[LogLine]] = []
        self.answered: list[list[LogLine]] = []
        self.lines: list[LogLine] = []
        self.error: Exception | None = None
        self.is_cut = False
        self.is_answer_due = False
        self.while_sending: Callable[[], None] = lambda: None

    def open(self) -> None:
        self._send([], self.answered)
        self.is_open = True

    def post(self, lines: Sequence[LogLine]) -> bool:
        self._send(lines, self.posted)
        return not self.is_cut

    def append(self, lines: Sequence[LogLine] = ()) -> None:
        self._send(lines, self.answered)

    def leave_to_child(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _send(self, lines: Sequence[LogLine], kind: list[list[LogLine]]) -> None:
        self.while_sending()
        if lines:
            kind.append(list(lines))
            # As the real one, it keeps what fails.
            self.lines += lines
        if self.error is not None:
            raise self.error


class Logs:
    """A buffer, a handler on a logger of its own, and the server that they have."""

    def __init__(self, size: int = 100) -> None:
        self.writer = FakeWriter()
        self.buffer = LogBuffer(cast("LogWriter", self.writer), size=size)
        self.task = "task-1"
        self.handler = NetworkLogHandler(self.buffer, levels={}, current_task=lambda: self.task)
        self.logger = self.listen_to("mylib")

    def listen_to(self, name: str) -> logging.Logger:
        """A logger whose records go here and nowhere else."""
        # That of `getLogger` would be the next test's, too.
        logger = logging.Logger(name, logging.DEBUG)  # noqa: LOG001 - not known to `logging`
        logger.addHandler(self.handler)
        return logger

    def ready(self) -> Logs:
        """As after the first second."""
        self.buffer.tick()
        self.buffer._quiet_until = QUIET
        return self

    def sent(self) -> list[str]:
        """What the server has got."""
        return [line[3] for line in self.writer.lines]


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger; what the test does to it, and to logging as a whole, is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    known, order = logging._handlers.copy(), logging._handlerList[:]  # type: ignore[attr-defined]
    root.handlers = []
    yield root
    root.handlers, root.level = handlers, level
    logging._handlers.update(known)  # type: ignore[attr-defined]
    logging._handlerList[:] = order  # type: ignore[attr-defined]
    root.manager._clear_cache()  # type: ignore[attr-defined]
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False


# ---------------------------------------------------------------------------------------------- what a record becomes


def test_a_record() -> None:
    """Time, level, logger, text and task, as they were when it was logged."""
    logs = Logs().ready()
    things = [1]
    before = time.time()
    logs.logger.info("%d things: %s", 1, things)
    things.append(2)
    logs.task = "task-2"
    logs.logger.warning("done")
    logs.buffer.tick()
    [first, second] = logs.writer.lines
    assert first[1:] == (logging.INFO, "mylib", "1 things: [1]", "task-1", "log", "")
    assert before - 0.1 < first[0] / 1e6 < time.time() + 0.1
    assert second[1:] == (logging.WARNING, "mylib", "done", "task-2", "log", "")


class Hostile:
    """Cannot be written."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("message", "args", "said"),
    [
        ("%d apples", ("many",), r"%d apples \(its arguments do not fit: TypeError"),
        ("%s and %s", ("one",), r"%s and %s \(its arguments do not fit: TypeError"),
        ("nothing", ("one",), r"nothing \(its arguments do not fit: TypeError"),
        ("%(a)s", ({"b": 1},), r"%\(a\)s \(its arguments do not fit: KeyError"),
        ("%s", (Hostile(),), r"%s \(its arguments do not fit: RuntimeError: no text"),
        (Hostile(), (), "a message of type Hostile that cannot be written: RuntimeError"),
    ],
)
def test_arguments_that_do_not_fit(message: object, args: tuple[object, ...], said: str) -> None:
    """No error in the task, and no record that is missing without a word."""
    logs = Logs().ready()
    logs.logger.info(message, *args)
    logs.buffer.tick()
    [line] = logs.writer.lines
    assert re.match(rf"\(?{said}", line[3]), line[3]


def test_a_record_of_strange_parts() -> None:
    """What comes from elsewhere, as from a queue or a socket, need not be of the right types."""
    logs = Logs().ready()
    logs.logger.handle(logging.makeLogRecord({"msg": "a", "levelno": True, "name": None, "created": "12.5"}))
    logs.logger.handle(logging.makeLogRecord({"msg": "b", "levelno": 20, "created": None}))
    logs.logger.info("c")
    logs.buffer.tick()
    assert [line[:4] for line in logs.writer.lines] == [
        (12_500_000, 1, "None", "a"),
        (logs.writer.lines[1][0], 20, "mylib", "c"),
    ]


def test_a_huge_message() -> None:
    """It is shortened, and so is a huge traceback."""
    logs = Logs().ready()
    try:
        raise ValueError("y" * 1_000_000)
    except ValueError:
        logs.logger.exception("x" * 10_000_000)
    [line] = logs.writer.lines
    assert len(line[3]) <= LONGEST_TEXT
    assert "10000000 characters" in line[3]
    assert len(line[6]) <= LONGEST_TEXT
    assert line[6].startswith("Traceback")


def test_an_exception() -> None:
    """Its traceback goes along, with its cause; one that cannot be written is named."""

    class UnspeakableError(Exception):
        @property
        def __cause__(self) -> None:  # type: ignore[override]
            raise RuntimeError

    logs = Logs().ready()
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError:
        logs.logger.exception("it failed")
    try:
        raise UnspeakableError
    except UnspeakableError:
        logs.logger.exception("this too")
    logs.logger.error("nothing to show", exc_info=(None, None, None))
    logs.logger.error("stack", stack_info=True)
    first, second, third, fourth = [line[6] for line in logs.writer.lines]
    assert "KeyError: 'inner'" in first
    assert first.endswith("ValueError: outer")
    assert "UnspeakableError" in second
    assert third == ""
    assert "in test_an_exception" in fourth


def test_filters_of_the_handler() -> None:
    """They work as on any handler."""
    logs = Logs().ready()
    logs.handler.addFilter(lambda record: "secret" not in record.getMessage())
    logs.logger.info("a secret")
    logs.logger.info("a word")
    logs.buffer.tick()
    assert logs.sent() == ["a word"]


# ------------------------------------------------------------------------------------------------------- when it goes


def test_a_buffer_that_is_full() -> None:
    """Is sent by whoever fills it, in one go."""
    logs = Logs(size=3).ready()
    for i in range(7):
        logs.logger.info(i)
    assert [[line[3] for line in batch] for batch in logs.writer.posted] == [["0", "1", "2"], ["3", "4", "5"]]


def test_an_error() -> None:
    """Is sent at once: it may be the last that the worker says."""
    logs = Logs().ready()
    logs.logger.info("before")
    assert logs.sent() == []
    logs.logger.error("now")
    assert logs.sent() == ["before", "now"]


def test_the_first_after_a_quiet_time() -> None:
    """Is sent at once: behind it the GIL may be taken for minutes. The next ones wait."""
    logs = Logs().ready()
    logs.buffer._quiet_until = 0
    for text in "abc":
        logs.logger.info(text)
    assert logs.sent() == ["a"]


def test_the_timer(eventually: Eventually) -> None:
    """After a second what there is goes out."""
    logs = Logs()
    logs.logger.info("before it was opened")
    assert not logs.writer.is_open
    logs.buffer.open()
    eventually(lambda: logs.sent() == ["before it was opened"])
    logs.buffer._quiet_until = QUIET
    logs.logger.info("one")
    logs.logger.info("two")
    eventually(lambda: logs.sent()[1:] == ["one", "two"])
    assert logs.writer.posted == []
    logs.buffer.close(1.0)


def test_the_thread_ends(eventually: Eventually) -> None:
    """With `close`."""

    def is_there() -> bool:
        return any(thread.name == "rush-log" for thread in threading.enumerate())

    logs = Logs()
    logs.buffer.open()
    logs.buffer.close(1.0)
    eventually(lambda: not is_there())


def test_the_end() -> None:
    """What is in the buffer goes out, and nothing after it."""
    logs = Logs().ready()
    logs.buffer.open()
    logs.logger.info("last")
    logs.buffer.close(1.0)
    logs.logger.error("too late")
    assert logs.sent() == ["last"]


# ------------------------------------------------------------------------------------------------------ what may fail


def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever logs meets it once at most; then lines are kept up to a bound, and the log says how many were dropped."""
    monkeypatch.setattr(log_buffer_module, "_FEWEST_KEPT", 10)
    logs = Logs(size=2).ready()
    logs.writer.error = NetworkLostError("away")
    for i in range(2):
        logs.logger.info(i)
    assert len(logs.writer.posted) == 1
    for i in range(2, 25):
        logs.logger.error(i)
    assert len(logs.writer.posted) == 1
    logs.buffer.tick()
    logs.buffer.tick()
    assert logs.sent() == ["0", "1"]
    logs.writer.error = None
    logs.buffer.tick()
    [notice, *rest] = logs.sent()[2:]
    assert notice.startswith("13 older log records were dropped")
    assert rest == [str(i) for i in range(15, 25)]
    logs.logger.error("goes again")
    assert logs.sent()[-1] == "goes again"
    assert sum("dropped" in text for text in logs.sent()) == 1


def test_a_connection_that_broke() -> None:
    """What follows is left to the thread, which settles what was posted before it sends more."""
    logs = Logs(size=1).ready()
    logs.writer.is_cut = True
    logs.logger.info("posted")
    logs.logger.info("kept")
    assert logs.sent() == ["posted"]
    logs.buffer.tick()
    assert logs.writer.answered == [[(logs.writer.lines[-1])]]
    logs.writer.is_cut = False
    logs.logger.info("posted again")
    assert logs.sent() == ["posted", "kept", "posted again"]


@pytest.mark.parametrize("error", [NetworkGone("reset"), ZeroDivisionError("a bug of ours")], ids=["gone", "bug"])
def test_what_no_later_try_mends(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """No more is sent or kept; a task hears nothing of it."""
    logs = Logs(size=1).ready()
    logs.writer.error = error
    with caplog.at_level(logging.DEBUG, log_buffer_module.__name__):
        logs.logger.info("fails")
        logs.logger.info("goes nowhere")
        logs.buffer.tick()
    assert logs.sent() == ["fails"]
    assert not logs.buffer._lines
    [record] = caplog.records
    assert record.levelno == (logging.DEBUG if isinstance(error, NetworkGone) else logging.WARNING)


def test_what_our_own_code_says_while_it_sends() -> None:
    """Is no record: it would be the next to be sent, for ever. What others say meanwhile is one."""
    logs = Logs(size=2).ready()
    own = logs.listen_to("rush_executor.own_code")

    def speak() -> None:
        own.error("sending")
        logs.logger.error("a signal handler")

    logs.logger.info("a")
    logs.writer.while_sending = speak
    logs.logger.info("b")
    logs.writer.while_sending = lambda: None
    logs.buffer.tick()
    assert logs.sent() == ["a", "b", "a signal handler"]
    own.warning("a result came too late")
    logs.buffer.tick()
    assert logs.sent()[-1] == "a result came too late"


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals go to the main thread")
def test_a_signal_handler_that_logs() -> None:
    """In the middle of sending, of all places: no deadlock, nothing lost."""
    logs = Logs(size=1).ready()
    old = signal.signal(signal.SIGUSR1, lambda *_: logs.logger.error("signal"))
    try:
        logs.writer.while_sending = lambda: signal.raise_signal(signal.SIGUSR1)
        logs.logger.info("a")
        logs.writer.while_sending = lambda: None
    finally:
        signal.signal(signal.SIGUSR1, old)
    logs.buffer.tick()
    assert sorted(set(logs.sent())) == ["a", "signal"]


def test_threads() -> None:
    """Many at once: each record arrives once, those of one thread in their order."""
    logs = Logs(size=7).ready()
    logs.buffer.open()

    def work(name: str) -> None:
        for i in range(2000):
            logs.logger.info("%s %d", name, i)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logs.buffer.close(5.0)
    assert len(logs.sent()) == 8000
    for name in "abcd":
        assert [text for text in logs.sent() if text[0] == name] == [f"{name} {i}" for i in range(2000)]


def test_a_server_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread waits for the server, others wait once, and not for long."""
    monkeypatch.setattr(log_buffer_module, "_FEWEST_KEPT", 10)
    monkeypatch.setattr(log_buffer_module, "_BRIM_S", 0.05)
    logs = Logs(size=2).ready()
    stalls, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        stalls.set()
        assert go_on.wait(30)

    logs.writer.while_sending = stall
    logs.logger.info("a")
    sender = threading.Thread(target=logs.buffer.tick)
    sender.start()
    assert stalls.wait(30)
    started_at = time.monotonic()
    for i in range(10_000):
        logs.logger.info(i)
    assert time.monotonic() - started_at < 5
    assert len(logs.buffer._lines) <= 10
    go_on.set()
    sender.join()


# -------------------------------------------------------------------------------------------------- loggers and levels


def test_levels(root: logging.Logger) -> None:
    """They hold while the worker logs; then they are as before, but for what somebody else has changed since."""
    root.setLevel(logging.WARNING)
    one, two = logging.getLogger("levels.one"), logging.getLogger("levels.two")
    one.setLevel(logging.ERROR)
    logs = Logs()
    levels = {"": logging.INFO, "levels.one": logging.DEBUG, "levels.two": logging.DEBUG}
    handler = NetworkLogHandler(logs.buffer, levels=levels, current_task=str)
    handler.attach()
    one.debug("one")
    two.debug("two")
    logging.getLogger("levels.other").debug("unheard")
    logging.getLogger("levels.other").info("other")
    two.setLevel(logging.CRITICAL)
    handler.detach()
    assert (root.level, one.level, two.level) == (logging.WARNING, logging.ERROR, logging.CRITICAL)
    two.critical("after")
    logs.buffer.tick()
    assert logs.sent() == ["one", "two", "other"]
    for changed in (one, two):
        changed.setLevel(logging.NOTSET)


def test_a_logger_that_passes_nothing_up(root: logging.Logger) -> None:
    """If it is named it is heard, once."""
    proud = logging.getLogger("proud")
    proud.propagate = False
    logs = Logs()
    levels = {"proud.child": logging.DEBUG, "proud": logging.DEBUG}
    handler = NetworkLogHandler(logs.buffer, levels=levels, current_task=str)
    handler.attach()
    logging.getLogger("proud.child").debug("heard")
    handler.detach()
    assert not proud.handlers
    proud.propagate = True
    logs.buffer.tick()
    assert logs.sent() == ["heard"]


@pytest.mark.parametrize(
    "configure",
    [
        lambda: logging.basicConfig(force=True, level="INFO", stream=io.StringIO()),
        lambda: logging.config.dictConfig({"version": 1, "root": {"level": "INFO"}}),
    ],
    ids=["basicConfig", "dictConfig"],
)
def test_code_that_configures_logging(root: logging.Logger, configure: Callable[[], None]) -> None:
    """It closes every handler that it finds; the worker's log is there again a moment later."""
    logs = Logs().ready()
    # As after `open`, but for the thread: the test ticks.
    logs.buffer._is_open = True
    handler = NetworkLogHandler(logs.buffer, levels={"": logging.INFO}, current_task=str)
    handler.attach()
    root.info("before")
    configure()
    assert handler not in root.handlers
    assert logs.sent() == ["before"]
    logs.buffer.tick()
    root.info("after")
    handler.detach()
    logs.buffer.close(1.0)
    assert logs.sent() == ["before", "after"]


# ------------------------------------------------------------------------------------------------------------- output


class Lines:
    """Takes lines."""

    def __init__(self) -> None:
        self.task = "t1"
        self.taken: list[tuple[str, str]] = []
        self.n_partial = 0

    def take(self, at: float, task: str, stream: str, text: str) -> None:
        assert stream == "stdout"
        self.taken.append((task, text))

    def partial(self) -> None:
        self.n_partial += 1

    def tee(self, stream: Any, **options: Any) -> OutputTee:
        return OutputTee(stream, "stdout", self.take, lambda: self.task, when_partial=self.partial, **options)


def test_printed_lines() -> None:
    """Each line once, as it would be seen, with the task that began it; all of it goes where it went before."""
    lines, stream = Lines(), io.StringIO()
    tee = lines.tee(stream)
    print("a", 1, file=tee)
    print("b\n\nc", end="\r\n", file=tee)
    print("d", end="", file=tee)
    print("e", file=tee)
    tee.writelines(["f\n", "g\n"])
    print("10%\r20%\r30%", file=tee)
    print("begun", end="", file=tee)
    lines.task = "t2"
    print("by another", file=tee)
    assert stream.getvalue() == "a 1\nb\n\nc\r\nde\nf\ng\n10%\r20%\r30%\nbegunby another\n"
    texts = ["a 1", "b", "", "c", "de", "f", "g", "30%", "begun"]
    assert lines.taken == [*[("t1", text) for text in texts], ("t2", "by another")]


def test_a_line_without_an_end() -> None:
    """Somebody is told to look, and takes it once it is a second old, or at the end."""
    lines = Lines()
    tee = lines.tee(io.StringIO())
    tee.write("Continue? ")
    assert lines.n_partial == 1
    assert tee.take_partials(1000.0)
    assert lines.taken == []
    assert not tee.take_partials(0.0)
    assert lines.taken == [("t1", "Continue? ")]
    tee.write("yes")
    tee.end()
    assert lines.taken[1:] == [("t1", "yes")]
    tee.write("after the end\n")
    assert len(lines.taken) == 2


def test_an_endless_line() -> None:
    """It is not collected for ever."""
    lines = Lines()
    tee = lines.tee(io.StringIO())
    for _ in range(100):
        tee.write("." * 1000)
    tee.end()
    assert len(lines.taken) > 10
    assert all(len(text) <= LONGEST_TEXT for _, text in lines.taken)


def test_lines_of_threads() -> None:
    """`print` writes a line in two parts: those of two threads are not mixed."""
    lines = Lines()
    tee = lines.tee(io.StringIO())

    def work(name: str) -> None:
        for i in range(500):
            print(f"{name}{i}", file=tee)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(text for _, text in lines.taken) == sorted(f"{name}{i}" for name in "abc" for i in range(500))


def test_a_stream_as_any_other() -> None:
    """All that is not about writing is asked of the stream; its errors are the task's, those of the log are not."""
    lines = Lines()
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="replace")
    tee = lines.tee(stream)
    assert (tee.encoding, tee.errors, tee.isatty(), tee.buffer) == ("ascii", "replace", False, raw)
    with pytest.raises(io.UnsupportedOperation):
        tee.fileno()
    with pytest.raises(TypeError):
        tee.write(b"bytes")  # type: ignore[arg-type]
    assert tee.write("abc\n") == 4
    lines.take = None  # type: ignore[assignment]
    tee._take = lambda *_: 1 / 0  # type: ignore[assignment,return-value]
    assert tee.write("abc\n") == 4
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        tee.write("abc\n")


def test_stdout_and_stderr_are_put_back(capsys: pytest.CaptureFixture[str], root: logging.Logger) -> None:
    """Unless somebody has put something else there meanwhile."""
    writer = FakeWriter()
    out, err = sys.stdout, sys.stderr
    log = WorkerLog(cast("LogWriter", writer), LogSettings(), lambda: "t1")
    log.open()
    try:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        sys.stderr = other = io.StringIO()
    finally:
        log.close()
        assert sys.stdout is out
        assert sys.stderr is other
        sys.stderr = err
    assert [line[1:6] for line in writer.lines] == [
        (logging.INFO, "rush_executor.worker.stdout", "to stdout", "t1", "stdout"),
        (logging.WARNING, "rush_executor.worker.stderr", "to stderr", "t1", "stderr"),
    ]
    assert capsys.readouterr() == ("to stdout\n", "to stderr\n")


FILES = """
import os, sys
from unittest import mock
from rush_executor._config import LogSettings
from rush_executor._worker.logs import start_logging

settings = LogSettings(output_dir=sys.argv[1], is_output_captured=sys.argv[2] == "captured")
log = start_logging(settings, mock.Mock(worker_id="../w 1"), lambda: "t1")
print("printed \\ud800 ümläut".encode("utf-8", "backslashreplace").decode())
os.system("echo from a child")
os.write(1, b"from C code\\n")
print("an error", file=sys.stderr)
log.close()
print("after it")
print("after it", file=sys.stderr)
"""


@pytest.mark.parametrize("mode", ["captured", "not"])
def test_files(tmp_path: Path, mode: str) -> None:
    """All of stdout, in order, from C code and children too; what Python writes to stderr goes to both."""
    folder = tmp_path / "new" / "folder"
    ran = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", FILES, str(folder), mode],
        capture_output=True,
        check=True,
        encoding="utf-8",
        timeout=60,
    )
    [err, out] = sorted(folder.iterdir())
    assert (out.name, err.name) == ("..%2Fw%201.out", "..%2Fw%201.err")
    assert out.read_text("utf-8") == "printed \\ud800 ümläut\nfrom a child\nfrom C code\n"
    assert err.read_text("utf-8") == "an error\n"
    assert (ran.stdout, ran.stderr) == ("after it\n", "an error\nafter it\n")


def test_files_that_cannot_be_written(tmp_path: Path, root: logging.Logger) -> None:
    """The worker works, and its log says why there are none."""
    (tmp_path / "file").write_text("")
    writer = FakeWriter()
    log = WorkerLog(cast("LogWriter", writer), LogSettings(output_dir=str(tmp_path / "file")), str)
    log.open()
    print("printed")
    log.close()
    assert "goes into no files" in writer.lines[0][3]
    assert writer.lines[1][3] == "printed"
