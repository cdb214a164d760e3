"""The commands that look at networks and change them, with real servers, workers and programs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from rush_executor import Rush, RushExecutor, TaskKilledError
from rush_executor._cli import main
from tests.acceptance.programs import DEADLINE_S, REPOSITORY, Terminal, environment

Eventually = Callable[..., Any]
# Who calls a command: words and options -> exit code, and what it has printed to standard output.
Cli = Callable[..., tuple[int, str]]


@pytest.fixture
def cli(server_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Calls the command in this process, on the shared server."""
    monkeypatch.setenv("RUSH_URL", server_url)
    monkeypatch.delenv("RUSH_NETWORK", raising=False)

    def call(words: str, *more: str) -> tuple[int, str]:
        capsys.readouterr()
        try:
            code = main([*words.split(), *more])
        except SystemExit as end:
            code = int(str(end.code))
        return code, capsys.readouterr().out

    return call


def ask(cli: Cli, words: str, *more: str, code: int = 0) -> Any:
    """What a command answers in JSON."""
    found, text = cli(words, *more, "--json")
    assert found == code, text
    return json.loads(text)


@pytest.fixture
def executor(server_url: str) -> Iterator[RushExecutor]:
    """An executor whose network has a name, with two workers."""
    with RushExecutor(2, url=server_url, network_id="calls") as executor:
        try:
            yield executor
        finally:
            # Tasks that sleep for long.
            executor.kill_workers()


@pytest.fixture
def rush(server_url: str) -> Iterator[Rush]:
    """A network that keeps its tasks, with two workers."""
    with Rush("kept", server_url) as rush:
        rush.start_local_workers(fun=work, n_workers=2)
        rush.wait_for_workers(2, timeout=DEADLINE_S)
        yield rush
        rush.reset()


@contextlib.contextmanager
def ended_at_once(executor: RushExecutor) -> Iterator[None]:
    """Nobody waits for tasks that sleep for long, whatever a test finds."""
    try:
        yield
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        executor.kill_workers()


def work(x: Any, name: str = "") -> dict[str, Any]:
    if x == "sleep":
        if name:
            Path(name).touch()
        time.sleep(600)
    if x == "print":
        print("hello\x1b[2J", name)
    return {"y": 2 * x if isinstance(x, int) else 1 / 0 if x == "fail" else x}


def sleep_long(seconds: float) -> None:
    time.sleep(seconds)


# Both kinds.


def test_an_executors_network(cli: Cli, executor: RushExecutor, eventually: Eventually) -> None:
    """Who runs what, which attempt, for how long; what waits; and how it can be cancelled or killed."""
    running = [executor.submit(sleep_long, 600), executor.submit(lambda: time.sleep(600))]
    eventually(lambda: all(future.running() for future in running))
    queued = [executor.submit(pow, 2, n) for n in range(3)]
    eventually(lambda: ask(cli, "status")["n_queued"] == 3)
    picture = ask(cli, "status --network calls")
    assert (picture["kind"], picture["n_running"], picture["n_clients"], len(picture["workers"])) == ("calls", 2, 1, 2)
    tasks = {worker["task"]["task_id"]: worker["task"] for worker in picture["workers"]}
    assert tasks.keys() == {future.task_id for future in running}
    assert tasks[running[0].task_id]["what"] == f"{__name__}.sleep_long"
    assert tasks[running[1].task_id]["what"] == "<lambda>"
    assert all(0 <= picture["looked_at"] - task["started_at"] < DEADLINE_S for task in tasks.values())

    # For people.
    assert "tasks    3 queued, 2 running" in cli("status")[1]
    listed = cli("tasks list --state queued --limit 2")[1]
    assert "and 1 more queued" in listed
    assert len([line for line in listed.splitlines() if "pow" in line]) == 2
    assert "sleep_long" in cli("workers list")[1]
    code, text = cli("tasks show", running[0].task_id)
    assert code == 0
    assert "attempts 1" in text
    assert f"process {picture['workers'][0]['pid']}" in text or f"process {picture['workers'][1]['pid']}" in text

    # Queued ones are cancelled, running ones are not, unless they are to be killed.
    first, second, third = (future.task_id for future in queued)
    assert ask(cli, "tasks cancel", first, running[0].task_id, code=1) == {
        first: "cancelled",
        running[0].task_id: "running",
    }
    with pytest.raises(CancelledError):
        queued[0].result(DEADLINE_S)
    assert ask(cli, "tasks cancel --all-queued") == {second: "cancelled", third: "cancelled"}
    assert ask(cli, "tasks cancel --kill", running[0].task_id) == {running[0].task_id: "killed"}
    with pytest.raises(TaskKilledError):
        running[0].result(DEADLINE_S)
    eventually(lambda: ask(cli, "status")["n_failed"] == 1)
    assert cli("tasks show", first)[0] == 3
    assert cli("tasks retry", first)[0] == 1
    # What has ended is its program's.
    assert [task["task_id"] for task in ask(cli, "tasks list")] == [running[1].task_id]
    assert "have ended, and are with their programs" in cli("tasks list")[1]
    assert cli("reset --network calls --yes")[0] == 1
    assert cli("logs")[0] == 1


def test_top(cli: Cli, executor: RushExecutor, eventually: Eventually) -> None:
    """One picture, with how many tasks have ended per second between two looks."""
    executor.submit(sleep_long, 600)
    eventually(lambda: ask(cli, "status")["n_running"] == 1)
    code, text = cli("top --once --interval 0.1")
    assert code == 0
    assert "0 queued, 1 running, 0 ended, 0 per second" in text
    assert "sleep_long" in text
    assert list(executor.map(abs, range(3))) == [0, 1, 2]
    frame = ask(cli, "top --once --interval 0.1")
    assert frame["n_ended"] == 3
    assert frame["rate"] == 0


@pytest.mark.parametrize("prelude", ["pass", "sys.modules['rich'] = None"], ids=["with rich", "without"])
def test_the_screen_of_top(cli: Cli, server_url: str, eventually: Eventually, prelude: str) -> None:
    """Workers, what each runs, throughput, queue, failures, as they are then; waits for a network, and ends with q."""
    text = f"import sys; {prelude}; from rush_executor._cli import main; sys.exit(main())"
    command = [sys.executable, "-c", text, "top", "--interval", "0.2"]
    top = Terminal(command, directory=REPOSITORY, screen=(24, 160), RUSH_URL=server_url)
    try:
        eventually(lambda: top.screen()[0] == f"waiting for a network on {server_url}")
        with RushExecutor(2, url=server_url, network_id="calls") as executor, ended_at_once(executor):
            failing = [executor.submit(int, text) for text in ("x", "y")]
            assert all(future.exception(DEADLINE_S) for future in failing)
            running = executor.submit(sleep_long, 600)
            brief = [executor.submit(time.sleep, 0.02) for _ in range(1000)]

            eventually(lambda: len(ask(cli, "workers list")) == 2)
            pids = {worker["worker_id"]: str(worker["pid"]) for worker in ask(cli, "workers list")}

            # What is seen may be half of one picture and half of the next, and between two tasks a worker is idle: so
            # again, until all of it is right.
            def is_right() -> bool:
                n_done = sum(future.done() for future in brief)
                lines = top.screen()
                numbers = re.fullmatch(
                    r"tasks    ([\d,]+) queued, (\d+) running, ([\d,]+) ended, ([\d.]+) per second", lines[2]
                )
                rows = [line.split() for line in lines if re.match("[a-z2-7]{13} ", line)]
                if numbers is None or [len(row) for row in rows] != [10, 10]:
                    return False
                n_queued, n_running, n_ended, rate = (float(text.replace(",", "")) for text in numbers.groups())
                return (
                    lines[0] == f"network calls (an executor's) on {server_url}"
                    and lines[3:6] == ["failed   2", "workers  2 on 1 host: 2 running", "clients  1"]
                    and n_queued + n_running + n_ended == len(failing) + 1 + len(brief)
                    # A picture is as old as the last look, and the server knows of an end before the program does.
                    and abs(n_ended - len(failing) - n_done) < 100
                    and 1 < rate < 100
                    and {row[0]: row[2] for row in rows} == pids
                    # Who has run the same task for longest comes first.
                    and [row[5] for row in rows] == [f"{__name__}.sleep_long", "time.sleep"]
                    and rows[0][-1] == running.task_id
                )

            eventually(is_right)
        eventually(lambda: top.screen()[0] == f"there is no network 'calls' on {server_url}: waiting for it")
        top.type("q")
        code, text = top.finish()
        assert code == 0
        assert text.endswith("\x1b[?1049l")
    finally:
        top.kill()


def test_a_network_that_keeps_its_tasks(cli: Cli, rush: Rush, tmp_path: Path) -> None:
    """Failures with their traceback, retries, snapshots, the end."""
    good, bad = rush.push_tasks([{"x": 3}, {"x": "fail", "name": "b\n"}])
    assert rush.wait_for_tasks([good, bad], timeout=DEADLINE_S)
    picture = ask(cli, "status")
    assert (picture["kind"], picture["n_ended"], picture["n_failed"], picture["n_clients"]) == ("tasks", 2, 1, 0)
    [failed] = ask(cli, "tasks list --state failed")
    assert (failed["task_id"], failed["what"]) == (bad, "x='fail', name='b\\n'")
    shown = ask(cli, "tasks show", bad)
    assert shown["xs"] == {"x": "fail", "name": "b\n"}
    assert shown["failure"] == "ZeroDivisionError: division by zero"
    assert "return {" in shown["traceback"]
    assert shown["problems"] == []
    assert ask(cli, "tasks show", good)["ys"] == {"y": 6}
    text = cli("tasks show", bad)[1]
    assert "ZeroDivisionError: division by zero" in text
    assert "in work" in text

    assert ask(cli, "tasks retry", bad, good, "nothing", code=1) == {bad: "queued", good: "finished", "nothing": ""}
    assert ask(cli, "tasks retry", "nothing", code=3) == {"nothing": ""}
    assert rush.wait_for_tasks([bad], timeout=DEADLINE_S)
    assert rush.fetch_tasks([bad])["attempts"] == [2]
    assert cli("tasks retry --all-failed")[1] == "1 task queued\n"
    assert rush.wait_for_tasks([bad], timeout=DEADLINE_S)

    file = str(tmp_path / "kept.rush")
    assert ask(cli, "snapshot", file)["n_failed"] == 1
    assert cli("restore", file)[0] == 1
    code, text = cli("reset --network kept --yes")
    assert (code, text.splitlines()[-1]) == (0, "deleted")
    assert cli("status --network kept")[0] == 3
    assert ask(cli, "restore", file)["n_tasks"] == 2
    assert ask(cli, "status")["n_ended"] == 2


def test_workers(cli: Cli, rush: Rush, eventually: Eventually, tmp_path: Path) -> None:
    """Restarted they come back, under the same id; stopped and killed they do not."""
    before = {worker["worker_id"]: worker["pid"] for worker in ask(cli, "workers list")}
    one, two = before
    assert ask(cli, "workers restart --wait 60", one[:10]) == {one: "ended"}
    eventually(lambda: len(ask(cli, "workers list")) == 2)
    after = {worker["worker_id"]: worker["pid"] for worker in ask(cli, "workers list")}
    assert after.keys() == before.keys()
    assert after[one] != before[one]
    assert after[two] == before[two]
    note = tmp_path / "begun"
    rush.push_priority_tasks([{"x": "sleep", "name": str(note)}], two)
    eventually(note.exists)
    # Asked twice, it still finishes its task.
    assert ask(cli, "workers stop --wait 0.2", two, code=1) == {two: "still there"}
    assert ask(cli, "workers stop --wait 0.2", two, code=1) == {two: "still there"}
    assert ask(cli, "workers kill --wait 60", two) == {two: "ended"}
    assert ask(cli, "workers stop --all --wait 60") == {one: "ended"}
    assert ask(cli, "workers stop", "nobody", code=3) == {"nobody": ""}
    ended = {worker["worker_id"]: worker for worker in ask(cli, "workers list --ended")}
    assert {worker: found["state"] for worker, found in ended.items()} == {one: "terminated", two: "killed"}
    assert ended[two]["reason"] == "was killed on request"
    assert cli("workers list")[1] == "no workers\n"


def test_an_executors_workers(cli: Cli, executor: RushExecutor, eventually: Eventually) -> None:
    """One that was restarted or killed is replaced or not; when none is left, the executor starts others."""
    eventually(lambda: len(ask(cli, "workers list")) == 2)
    one, two = (worker["worker_id"] for worker in ask(cli, "workers list"))
    assert ask(cli, "workers restart --wait 60", one) == {one: "ended"}
    eventually(lambda: len(ask(cli, "workers list")) == 2)
    assert ask(cli, "workers stop --wait 60", two) == {two: "ended"}
    assert executor.submit(pow, 2, 3).result(DEADLINE_S) == 8
    assert len(ask(cli, "workers list")) == 1
    assert set(ask(cli, "workers kill --all --wait 60").values()) == {"ended"}
    assert executor.submit(pow, 2, 4).result(DEADLINE_S) == 16


def test_logs(cli: Cli, rush: Rush, eventually: Eventually) -> None:
    """What workers have printed, with the task; control characters are shown as escapes."""
    [key] = rush.push_tasks([{"x": "print", "name": "you"}])
    assert rush.wait_for_tasks([key], timeout=DEADLINE_S)
    eventually(lambda: cli("logs")[1])
    [line] = cli("logs --stream stdout")[1].splitlines()
    assert line.endswith(f" {key}: hello\\x1b[2J you")
    [record] = [json.loads(text) for text in cli("logs --json")[1].splitlines()]
    assert (record["message"], record["task"], record["stream"]) == ("hello\x1b[2J you", key, "stdout")
    assert cli("logs --level ERROR")[1] == cli("logs --since 0")[1] == ""
    assert cli("logs nobody") == cli("logs --follow", rush.worker_ids[0], "nobody") == (3, "")


def test_following_logs(rush: Rush, server_url: str) -> None:
    """What is new comes by itself, until Ctrl-C, which is no failure."""
    command = [sys.executable, "-m", "rush_executor", "logs", "--follow", "--network", "kept", "--json"]
    env = environment(RUSH_URL=server_url)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=REPOSITORY) as follower:
        assert follower.stdout is not None
        for name in ("one", "two"):
            rush.push_tasks([{"x": "print", "name": name}])
            assert json.loads(follower.stdout.readline())["message"] == f"hello\x1b[2J {name}"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(DEADLINE_S) == 0


def test_a_reader_that_goes_away(rush: Rush, server_url: str) -> None:
    """As `head` does: the command ends without a traceback, and its exit code says so."""
    command = [sys.executable, "-m", "rush_executor", "top", "--json", "--interval", "0.1"]
    env = environment(RUSH_URL=server_url)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=env, cwd=REPOSITORY, **pipes) as top:  # type: ignore[call-overload]
        assert json.loads(top.stdout.readline())["network"] == "kept"
        top.stdout.close()
        assert top.wait(DEADLINE_S) == 141
        assert top.stderr.read() == ""


def test_several_networks(cli: Cli, executor: RushExecutor, rush: Rush) -> None:
    """`status` lists them; what is about one wants its name."""
    found = ask(cli, "status")
    assert [(picture["network"], picture["kind"]) for picture in found] == [("calls", "calls"), ("kept", "tasks")]
    lines = cli("status")[1].splitlines()
    assert lines[0].startswith("2 networks on ")
    assert [line.split()[0] for line in lines[1:]] == ["network", "calls", "kept"]
    assert cli("tasks list")[0] == cli("top --once")[0] == 2
    assert cli("tasks list --network kept")[0] == 0
    assert cli("tasks list --network none")[0] == 3


def test_an_empty_server(cli: Cli) -> None:
    """Has no network: that is an exit code of its own."""
    assert cli("status") == (0, f"no networks on {os.environ['RUSH_URL']}\n")
    assert cli("tasks list")[0] == cli("top --once")[0] == cli("workers list --network x")[0] == 3
    assert cli("snapshot x.rush --network x")[0] == 3
    # Of a checkup it is a finding.
    [check] = [check for check in ask(cli, "doctor --network x", code=1) if check["level"] == "fail"]
    assert check["name"] == "network"


def test_reset_asks(cli: Cli, rush: Rush, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes anything but a yes for a no."""
    [key] = rush.push_tasks([{"x": 1}])
    assert rush.wait_for_tasks([key], timeout=DEADLINE_S)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, code in (("", 1), ("n", 1), ("yes", 0)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert cli("reset --network kept")[0] == code
        assert bool(rush.tasks) == bool(code)


def test_doctor(cli: Cli, rush: Rush, server_url: str, eventually: Eventually) -> None:
    """A server of ours is in good health; the network on it, too."""
    checks = {check["name"]: check for check in ask(cli, "doctor")}
    assert {check["level"] for name, check in checks.items() if name not in ("persistence", "latency", "clock")} == {
        "ok"
    }
    # This network keeps its tasks, and the server keeps nothing on disk.
    assert checks["persistence"]["level"] == "warn"
    assert {"version", "notifications", "eviction", "memory", "network", "workers"} <= checks.keys()
    rush.stop_workers("kill")
    eventually(lambda: not rush.running_worker_ids)
    rush.push_tasks([{"x": 1}])
    assert cli("doctor")[0] == 1
    # What it says to do can be done as it stands.
    found = {check["name"]: check for check in ask(cli, "doctor --url", server_url, code=1)}
    assert found["workers"]["found"] == "none, and 1 task is queued"
    assert found["workers"]["advice"].endswith(f"rush-executor worker --url {server_url} --network kept")


def test_sealed_tasks(cli: Cli, server_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever has the secret sees what is in them; who has not is told so, and sees the rest."""
    with Rush("sealed", server_url, secret=b"s") as rush:
        [key] = rush.push_tasks([{"x": 3}])
        assert ask(cli, "tasks show", key)["xs"] == {}
        assert "is sealed, but there is no secret here" in cli("tasks show", key)[1]
        assert [task["what"] for task in ask(cli, "tasks list")] == [""]
        file = tmp_path / "secret"
        file.write_text("s\n")
        assert ask(cli, "tasks show --secret-file", str(file), key)["xs"] == {"x": 3}
        monkeypatch.setenv("RUSH_SECRET", "s")
        assert [task["what"] for task in ask(cli, "tasks list")] == ["x=3"]
        rush.reset()


def test_a_private_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """That of an executor without a URL is found by who looks, if it is the only one."""
    monkeypatch.delenv("RUSH_URL", raising=False)
    # Not those of other programs on this machine.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("rush_executor._ledger.server._SHORT_ROOT", str(tmp_path))
    assert main_code("status") == 2
    with RushExecutor(1) as executor:
        assert executor.submit(pow, 2, 3).result() == 8
        assert main_code("status") == 0
        assert f"network {executor.network_id} (an executor's)" in capsys.readouterr().out
        with RushExecutor(1):
            capsys.readouterr()
            assert main_code("status") == 2
            assert capsys.readouterr().err.count("--url unix://") == 2


def main_code(words: str) -> int:
    try:
        return main(words.split())
    except SystemExit as end:
        return int(str(end.code))
