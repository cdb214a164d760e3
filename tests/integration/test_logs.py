"""The workers' logs on real servers: capped, complete, each record once, and never in the way of a task."""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from rush_executor._config import LogSettings
from rush_executor._ledger import logs as logs_module
from rush_executor._ledger.connection import NetworkGone
from rush_executor._ledger.logs import LogCursor, LogReader, LogWriter
from rush_executor._ledger.server import EmbeddedServer
from rush_executor._protocol.logs import LogLine, LogRecord
from rush_executor._view.logs import follow_log, print_log, read_log
from rush_executor._worker import log_buffer, output
from rush_executor._worker.logs import WorkerLog, start_logging
from tests.integration.proxy import Proxy
from tests.integration.rig import EPOCH, Rig

Eventually = Callable[..., object]
logger = logging.getLogger("mylib.model")


def lines(*texts: object, at: float | None = None, level: int = logging.INFO, name: str = "mylib") -> list[LogLine]:
    at_us = int((time.time() if at is None else at) * 1e6)
    return [(at_us, level, name, str(text), "t1", "log", "") for text in texts]


def messages(records: Sequence[LogRecord]) -> list[str]:
    return [record.message for record in records]


class LogRig:
    """A network with workers that log.

    Attributes:
        rig: The network.
        reader: Reads its logs.
    """

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        rig.client()
        self.reader = LogReader(rig.channel(), rig.keys)
        self.ids: list[str] = []
        self._writers: list[LogWriter] = []
        self._logs: list[WorkerLog] = []

    def writer(self, worker_id: str = "w1", *, url: str = "", cap: int = 10_000, is_open: bool = True) -> LogWriter:
        writer = LogWriter.connect(url or self.rig.url, self.rig.keys, worker_id, EPOCH, cap=cap)
        if is_open:
            writer.open()
        self.ids = list(dict.fromkeys([*self.ids, worker_id]))
        self._writers.append(writer)
        return writer

    def start(self, worker_id: str = "w1", *, url: str = "", task: str = "t1", **settings: object) -> WorkerLog:
        """Has this process log as a worker."""
        full = {"levels": {"mylib": logging.DEBUG}, "is_output_captured": False, **settings}
        log = start_logging(
            LogSettings(**full),  # type: ignore[arg-type]
            self.writer(worker_id, url=url, is_open=False),
            lambda: task,
        )
        self._logs.append(log)
        log.open()
        return log

    def read(self) -> list[str]:
        """Everything, as messages."""
        return messages(self.reader.read(self.ids, LogCursor()))

    def leave(self) -> None:
        for log in self._logs:
            log.close()
        for writer in self._writers:
            writer.close()
        for worker in self.ids:
            self.rig.redis.delete(self.rig.keys.log(worker))


@pytest.fixture
def logs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[LogRig]:
    """On the shared server, which is there, however late it answers."""
    for name in ("_TIMEOUT_S", "_GRACE_S"):
        monkeypatch.setattr(logs_module, name, 30.0)
    monkeypatch.setattr(WorkerLog.close, "__defaults__", (30.0,))
    logs = LogRig(rig)
    yield logs
    logs.leave()


@pytest.fixture
def own_logs(own_server: EmbeddedServer) -> Iterator[LogRig]:
    """On a server that the test may maltreat."""
    with Rig(own_server.url) as rig:
        logs = LogRig(rig)
        yield logs
        logs.leave()


# -------------------------------------------------------------------------------------------------- writer and reader


def test_there_and_back(logs: LogRig) -> None:
    """Posted or answered: what went in comes out, in order, of all workers together by time."""
    one, two = logs.writer("w1"), logs.writer("w2")
    assert one.post(lines("a", at=1.0))
    two.append(lines("b", at=2.0))
    assert one.post(lines("c", "d", at=3.0))
    assert two.post(lines("e", at=2.5))
    one.append()
    two.append()
    records = logs.reader.read(["w1", "w2"], LogCursor())
    assert messages(records) == ["a", "b", "e", "c", "d"]
    assert [record.worker_id for record in records] == ["w1", "w2", "w2", "w1", "w1"]
    assert records[0][2:] == (logging.INFO, "mylib", "a", "t1", "log", "")
    assert logs.reader.read(["w3"], LogCursor()) == logs.reader.read([], LogCursor()) == []


def test_times_are_those_of_the_server(logs: LogRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose clock is an hour late logs at the same time as others."""
    now = time.time
    monkeypatch.setattr(logs_module.time, "time", lambda: now() - 3600)
    writer = logs.writer()
    writer.append(lines("a"))
    monkeypatch.undo()
    [record] = logs.reader.read(["w1"], LogCursor())
    assert abs(record.time - logs.reader.now()) < 5


def test_a_cursor(logs: LogRig) -> None:
    """Each record is read once; a cursor that was saved goes on where it was."""
    writer = logs.writer()
    cursor = LogCursor()
    writer.append(lines("a", "b"))
    assert messages(logs.reader.read(["w1"], cursor)) == ["a", "b"]
    assert logs.reader.read(["w1"], cursor) == []
    writer.append(lines("c"))
    again = pickle.loads(pickle.dumps(cursor))
    assert messages(logs.reader.read(["w1"], cursor)) == ["c"]
    assert messages(logs.reader.read(["w1"], again)) == ["c"]
    logs.reader.skip(["w1", "w2"], fresh := LogCursor())
    logs.reader.skip([], fresh)
    writer.append(lines("d"))
    assert messages(logs.reader.read(["w1", "w2"], fresh)) == ["d"]


def test_many_pages(logs: LogRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long log is read to its end, but not for ever."""
    monkeypatch.setattr(logs_module, "_PAGE", 4)
    for worker in ("w1", "w2"):
        writer = logs.writer(worker)
        for i in range(21):
            writer.post(lines(f"{worker} {i}"))
        writer.append()
    records = logs.read()
    assert len(records) == 42
    assert [text for text in records if text.startswith("w2")] == [f"w2 {i}" for i in range(21)]


def test_a_large_batch(logs: LogRig) -> None:
    """It stands in several entries, none of which is larger than a reader should have to take."""
    writer = logs.writer()
    writer.append(lines(*["x" * 8000] * 200))
    entries = logs.rig.redis.xrange(logs.rig.keys.log("w1"))
    assert 5 < len(entries) < 12  # type: ignore[arg-type]
    assert len(logs.read()) == 200


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_cap(logs: LogRig, size: int) -> None:
    """About so many records are kept, the newest, however they were sent; also of a worker that was started again."""
    for start in (0, 5000):
        writer = logs.writer(cap=500)
        # The server's clock is this machine's: not to be taken from how long the first trip took.
        writer._offset_s = writer._doubt_s = 0.0
        for i in range(start, start + 5000, size):
            # Trimming goes by the server's clock: not all in one of its milliseconds, as no worker would.
            time.sleep(0.0002)
            writer.post(lines(*range(i, min(i + size, start + 5000))))
        writer.append()
        kept = [int(text) for text in logs.read()]
        assert kept == list(range(kept[0], start + 5000))
        # The server cuts off whole nodes of a stream, and may have taken late what is under way unanswered: so many
        # batches, or so many bytes, which is less where they are large.
        n_late = min((logs_module._POSTED_BATCHES + 20) * size, 2000)
        assert 500 - size <= len(kept) < 500 + 100 * max(1, size // 10) + n_late


def test_the_cap_where_the_first_trip_was_slow(logs: LogRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is not well known what time it is at the server: more is kept, and not less."""
    writer = logs.writer(cap=500, is_open=False)
    call = writer._channel.call

    def call_late(*commands: bytes) -> object:
        time.sleep(0.3)
        return call(*commands)

    with monkeypatch.context() as patch:
        patch.setattr(writer._channel, "can_mute", lambda: True)
        patch.setattr(writer._channel, "call", call_late)
        writer.open()
    for i in range(0, 1000, 10):
        time.sleep(0.0002)
        writer.post(lines(*range(i, i + 10)))
    writer.append()
    assert len(logs.read()) >= 490


def test_a_log_that_was_deleted(logs: LogRig) -> None:
    """It stays deleted, and the writer is told."""
    writer = logs.writer()
    logs.rig.redis.delete(logs.rig.keys.log("w1"))
    writer.post(lines("a"))
    with pytest.raises(NetworkGone):
        writer.append(lines("b"))
    assert not logs.rig.redis.exists(logs.rig.keys.log("w1"))


def test_another_network_of_this_name(logs: LogRig) -> None:
    """A worker of an earlier one begins no log that nobody would delete."""
    writer = logs.writer(is_open=False)
    logs.rig.redis.hset(logs.rig.keys.network, "epoch", "another")
    with pytest.raises(NetworkGone):
        writer.open()
    assert not logs.rig.redis.exists(logs.rig.keys.log("w1"))


def test_entries_of_others(logs: LogRig) -> None:
    """What no writer of ours has written does not keep anybody from reading the rest."""
    writer = logs.writer()
    logs.rig.redis.xadd(logs.rig.keys.log("w1"), {"x": "y", b"\xff": b"\xff\x00", "z": "[0,[[]]]"})
    writer.append(lines("a"))
    assert logs.read() == ["a"]


# --------------------------------------------------------------------------------------------- what the network loses


def test_a_lost_answer(rig: Rig, logs: LogRig) -> None:
    """The batch was written, and is written again: it is read once, also by who has read it in between."""
    with Proxy(rig.url) as proxy:
        writer = logs.writer(url=proxy.url)
        cursor = LogCursor()
        for i in range(5):
            writer.post(lines(f"posted {i}"))
            proxy.lose_reply()
            writer.append(lines(f"answered {i}"))
            assert messages(logs.reader.read(["w1"], cursor)) == [f"posted {i}", f"answered {i}"]
        assert len(logs.read()) == 10
        assert logs.rig.redis.xlen(rig.keys.log("w1")) > 11
        writer.close()


@pytest.mark.parametrize("is_tcp", [False, True], ids=["unix", "tcp"])
def test_a_connection_that_is_closed(rig: Rig, logs: LogRig, is_tcp: bool) -> None:
    """What was posted on it is sent again once it is seen that nobody has it."""
    with Proxy(rig.url, is_tcp=is_tcp) as proxy:
        writer = logs.writer(url=proxy.url)
        for i in range(20):
            writer.post(lines(f"{i} a"))
            proxy.go_away()
            writer.post(lines(f"{i} b"))
            proxy.come_back()
            writer.post(lines(f"{i} c"))
            writer.append(lines(f"{i} d") if i % 2 else [])
        expected = [f"{i} {letter}" for i in range(20) for letter in ("abcd" if i % 2 else "abc")]
        assert sorted(logs.read()) == sorted(expected)
        writer.close()


def test_what_a_full_server_does_not_take(own_logs: LogRig) -> None:
    """Posted, it is lost without a word: so it is looked for, and sent again."""
    writer = own_logs.writer()
    own_logs.rig.redis.config_set("maxmemory", 1)
    writer.post(lines("a"))
    writer.post(lines("b"))
    time.sleep(0.1)
    own_logs.rig.redis.config_set("maxmemory", 0)
    writer.append()
    assert own_logs.read() == ["a", "b"]


def test_a_server_that_stalls(own_server: EmbeddedServer, own_logs: LogRig, eventually: Eventually) -> None:
    """A task waits for it once, and not for long; what does not fit is dropped, and the log says so, once."""
    own_logs.start(buffer_size=10)
    logger.error("before")
    eventually(lambda: own_logs.read() == ["before"])
    os.kill(own_server.pid, signal.SIGSTOP)
    longest = 0.0
    try:
        for i in range(20_000):
            started_at = time.monotonic()
            logger.error("%d %s", i, "x" * 100)
            longest = max(longest, time.monotonic() - started_at)
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    assert longest < 6.0
    eventually(lambda: "19999" in own_logs.read()[-1].split())
    kept = own_logs.read()
    assert sum("were dropped" in text for text in kept) == 1
    assert 1000 < len(kept) < 15_000
    logger.error("after")
    eventually(lambda: own_logs.read()[-1] == "after")


def test_a_server_that_is_away(own_logs: LogRig, eventually: Eventually) -> None:
    """The same for one that refuses; nothing is lost that fits into the buffer, the first that failed included."""
    with Proxy(own_logs.rig.url) as proxy:
        log = own_logs.start(url=proxy.url)
        logger.info("before")
        eventually(lambda: own_logs.read() == ["before"])
        proxy.go_away()
        for i in range(500):
            logger.error(i)
        time.sleep(1.2)
        logger.error("still away")
        proxy.come_back()
        eventually(lambda: own_logs.read() == ["before", *map(str, range(500)), "still away"])
        log.close()


def test_nobody_there_at_the_end(own_logs: LogRig) -> None:
    """A worker that ends does not wait for a server that is away for longer than it was told."""
    with Proxy(own_logs.rig.url) as proxy:
        log = own_logs.start(url=proxy.url)
        logger.info("goes nowhere")
        proxy.swallow()
        started_at = time.monotonic()
        log.close(0.5)
        assert time.monotonic() - started_at < 6


# ------------------------------------------------------------------------------------------------------- a worker logs


def test_a_worker(logs: LogRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its loggers and prints to the reader, with exceptions and bytes that are no text."""
    # Those of pytest raise for arguments that do not fit.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log = logs.start(is_output_captured=True)
    message = b"caf\xe9 100%".decode(errors="surrogateescape")
    logger.debug(message)
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("failed: %s", 1)
    print("printed")
    logger.warning("%d", "many")
    log.close()
    debug, failed, printed, unfit = logs.reader.read(["w1"], LogCursor())
    assert debug[2:] == (logging.DEBUG, "mylib.model", message, "t1", "log", "")
    assert (failed.message, failed.exception.splitlines()[-1]) == ("failed: 1", "ValueError: no")
    assert (printed.stream, printed.message) == ("stdout", "printed")
    assert "do not fit" in unfit.message
    logger.error("after the end")
    assert len(logs.read()) == 4


def test_a_worker_that_ends(logs: LogRig) -> None:
    """A process that calls `close` has told everything, also if `os._exit` is next."""
    pid = os.fork()
    if pid == 0:
        try:
            log = logs.start()
            for i in range(150):
                logger.info(i)
            log.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    logs.ids = ["w1"]
    assert logs.read() == [str(i) for i in range(150)]


def test_children_of_a_task(logs: LogRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they log and print is there, though they end at any moment; what their parent has logged is there once."""
    # Half a line is to wait for its other half, however long the children take.
    monkeypatch.setattr(output, "_PARTIAL_S", 60.0)
    log = logs.start(is_output_captured=True)
    logger.info("parent before")
    logger.info("parent, in the buffer")
    print("parent: ", end="")
    pids = []
    for n in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                for i in range(50):
                    logger.info("child %d: %d", n, i)
                print("child", n)
                grandchild = os.fork()
                if grandchild == 0:
                    logger.info("grandchild")
                    os._exit(0)
                os.waitpid(grandchild, 0)
            finally:
                os._exit(0)
        pids.append(pid)
    for i in range(200):
        logger.info("parent %d", i)
    for pid in pids:
        os.waitpid(pid, 0)
    print("printed")
    logger.info("parent after")
    log.close()
    expected = ["parent before", "parent, in the buffer", "parent: printed", "parent after", *["grandchild"] * 3]
    expected += [f"parent {i}" for i in range(200)]
    expected += [f"child {n}: {i}" for n in range(3) for i in range(50)] + [f"child {n}" for n in range(3)]
    assert sorted(logs.read()) == sorted(expected)


def test_threads_with_a_real_server(logs: LogRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record arrives once, though all of them send, from the first moment on, faster than the server takes it."""
    # On a busy machine the server may stall for longer than anybody waits for it before records are dropped.
    monkeypatch.setattr(log_buffer, "_BRIM_S", 60.0)
    log = logs.start(buffer_size=5)

    def work(name: str) -> None:
        for i in range(1000):
            logger.info("%s %d", name, i)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    log.close()
    found = logs.read()
    assert sorted(found) == sorted(f"{name} {i}" for name in "abcd" for i in range(1000))


def test_our_own_loggers(logs: LogRig) -> None:
    """At the lowest level, sending a record does not make another one."""
    log = logs.start(levels={"": 1}, buffer_size=1)
    for i in range(50):
        logger.info(i)
    time.sleep(1.5)
    log.close()
    assert [text for text in logs.read() if text.isdigit()] == [str(i) for i in range(50)]
    assert len(logs.read()) < 60


# ------------------------------------------------------------------------------------------------------------- views


def test_read_log(logs: LogRig) -> None:
    """By age, level, logger and stream."""
    writer, now = logs.writer(), time.time()
    writer.append(lines("old", at=now - 100))
    writer.append(lines("debug", level=10, name="mylib.deep"))
    writer.append(lines("other", level=20, name="other"))
    writer.append([(int(now * 1e6), 30, "rush_executor.worker.stderr", "printed", "", "stderr", "")])
    ids = ["w1"]
    assert messages(read_log(logs.reader, ids)) == ["old", "printed", "debug", "other"]
    assert messages(read_log(logs.reader, ids, time_difference=50)) == ["printed", "debug", "other"]
    assert read_log(logs.reader, ids, time_difference=0) == []
    assert messages(read_log(logs.reader, ids, levels="info")) == ["old", "printed", "other"]
    assert messages(read_log(logs.reader, ids, levels={"mylib": 10, "": "WARNING"})) == ["old", "printed", "debug"]
    assert messages(read_log(logs.reader, ids, streams=["stderr"])) == ["printed"]
    with pytest.raises(ValueError, match="'errors'"):
        read_log(logs.reader, ids, streams=["errors"])


def test_print_log(logs: LogRig, caplog: pytest.LogCaptureFixture) -> None:
    """This process's loggers and levels decide; each record once, with its time, worker and task."""
    writer, cursor = logs.writer(), LogCursor()
    writer.append([(1_234_567_800, 20, "mylib", "100% \udcff", "t7", "log", "Traceback\nValueError: no")])
    writer.append(lines("quiet", level=10))
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(worker_id)s %(task)s %(message)s")
    formatter.converter = time.gmtime
    with caplog.at_level(logging.INFO, "mylib"):
        assert print_log(logs.reader, ["w1"], cursor) == 1
        assert print_log(logs.reader, ["w1"], cursor) == 0
        writer.append(lines("loud", level=40))
        assert print_log(logs.reader, ["w1"], cursor, levels="CRITICAL") == 0
        writer.append(lines("louder", level=50))
        assert print_log(logs.reader, ["w1"], cursor, levels="CRITICAL") == 1
    first, second = caplog.records
    text = formatter.format(first)
    assert re.search(r"00:20:34,[3-8]\d\d INFO mylib w1 t7 100% \\udcff\nTraceback\nValueError: no$", text)
    text.encode()
    assert second.getMessage() == "louder"


def test_follow_log(logs: LogRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is there as soon as it was written, not at the next look; what was there before is not."""
    monkeypatch.setattr(logs_module, "BLOCK_S", 7.0)
    writer = logs.writer()
    writer.append(lines("before"))
    followed = follow_log(logs.reader, ["w1", "w2"], timeout=30)
    other = logs.writer("w2")
    for i in range(3):
        timer = threading.Timer(0.2, writer.append, [lines(f"a{i}")])
        timer.start()
        started_at = time.monotonic()
        assert next(followed).message == f"a{i}"
        assert time.monotonic() - started_at < 6
        # The record is there a moment before its writer has been told.
        timer.join()
    other.append(lines("b"))
    assert next(followed).worker_id == "w2"
    followed.close()  # type: ignore[attr-defined]


def test_follow_log_from_a_cursor_until_a_timeout(logs: LogRig) -> None:
    """Ends by itself, at the time that was said."""
    logs.writer().append(lines("a", "b"))
    started_at = time.monotonic()
    assert messages(list(follow_log(logs.reader, ["w1"], cursor=LogCursor(), timeout=0.3, streams=["log"]))) == [
        "a",
        "b",
    ]
    assert 0.25 < time.monotonic() - started_at < 3
    assert messages(list(follow_log(logs.reader, ["w1"], cursor=LogCursor(), timeout=0))) == ["a", "b"]


def test_follow_log_of_workers_to_come(logs: LogRig) -> None:
    """Who is there is asked again and again; all that a new one has said is new."""
    followed = follow_log(logs.reader, lambda: logs.ids, timeout=30)

    def come() -> None:
        logs.writer("w1").append(lines("here"))

    timer = threading.Timer(0.3, come)
    timer.start()
    assert next(followed).message == "here"
    timer.join()
