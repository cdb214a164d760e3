"""Large payloads in a folder that machines share: on the server is the path, and nothing else."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rush_executor._ledger.blobs import LARGE_PAYLOAD, read_blob, write_blob
from rush_executor._ledger.folder import Folder
from rush_executor._ledger.snapshots import NetworkRestorer, check_sections, read_sections
from rush_executor._ledger.tasks import KeptTask, TaskLedger
from rush_executor._ledger.worker import Outcome, WorkerLedger
from rush_executor.errors import PayloadError, RushError
from tests.integration.rig import Rig

LARGE = bytes(range(256)) * (LARGE_PAYLOAD // 256)


@pytest.fixture
def ledger(rig: Rig, tmp_path: Path) -> Iterator[TaskLedger]:
    ledger = TaskLedger(rig.channel(), rig.keys, large_objects=str(tmp_path))
    ledger.found()
    yield ledger
    ledger.reset()
    assert list(tmp_path.iterdir()) == []


def join(rig: Rig, ledger: TaskLedger) -> WorkerLedger:
    rig.agent().ledger.announce_worker("w1")
    worker = WorkerLedger(rig.channel(), rig.keys, "w1", ledger.found(), keeps=True)
    worker.folder = ledger.folder
    worker.register(rig.agent().id, "host", 4711)
    return worker


def files(folder: Path) -> dict[str, int]:
    """Names and sizes, but for the network's part of the path."""
    return {path.name: path.stat().st_size for path in folder.glob("*/*")}


def test_inputs_results_and_loops(rig: Rig, ledger: TaskLedger, tmp_path: Path) -> None:
    """Are in files; the server has their paths; whoever reads needs to know nothing of the folder."""
    worker = join(rig, ledger)
    ledger.create("queued", [KeptTask("a", LARGE), KeptTask("small", b"xs")])
    ledger.create("finished", [KeptTask("b", LARGE, outcome=LARGE + b"ys")])
    ledger.write_start("s", LARGE + b"loop")
    claims = worker.exchange([], limit=2, wait=False).claims
    assert worker.finish([Outcome(claims[0], False, LARGE + b"result")]) == []
    assert sorted(files(tmp_path).values()) == [len(LARGE) + n for n in (0, 0, 2, 4, 6)]
    blobs = {key: value for key, value in rig.dump().items() if key.startswith("blob:")}
    assert {Path(value["file"]).name for value in blobs.values()} == {key.removeprefix("blob:") for key in blobs}
    assert {len(value) for value in blobs.values()} == {1}
    assert {rig.ttl_ms(rig.keys.prefix + key) for key in blobs} == {-1}
    stranger = TaskLedger(rig.channel(), rig.keys)
    assert stranger.payload("a") == LARGE
    assert stranger.read_start("s") == LARGE + b"loop"
    assert read_blob(rig.channel(), rig.keys, rig.dump()["task:a"]["outcome"][1:]) == LARGE + b"result"


def test_who_joins_is_told(rig: Rig, ledger: TaskLedger, tmp_path: Path) -> None:
    """And writes there, too; another folder is refused, as nobody would delete what is in the first."""
    other = TaskLedger(rig.channel(), rig.keys)
    other.found()
    other.create("queued", [KeptTask("a", LARGE)])
    assert len(files(tmp_path)) == 1
    with pytest.raises(RushError, match=f"keeps its large objects in {str(tmp_path)!r}, not in '/elsewhere'"):
        TaskLedger(rig.channel(), rig.keys, large_objects="/elsewhere").found()
    TaskLedger(rig.channel(), rig.keys, large_objects=str(tmp_path)).found()


def test_tasks_take_their_files_along(rig: Rig, ledger: TaskLedger, tmp_path: Path) -> None:
    """When they are cleared; what workers are to run stays."""
    worker = join(rig, ledger)
    ledger.write_start("s", LARGE)
    [start] = files(tmp_path)
    ledger.create("queued", [KeptTask("a", LARGE), KeptTask("b", LARGE)])
    ledger.create("finished", [KeptTask("c", LARGE, outcome=LARGE)])
    assert len(worker.exchange([], limit=1, wait=False).claims) == 1
    assert len(files(tmp_path)) == 5
    ledger.clear()
    assert list(files(tmp_path)) == [start]


def test_a_file_that_cannot_be_written(
    rig: Rig, ledger: TaskLedger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Goes to the server, and that is told; nothing is left half written."""
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        # The superuser may write everywhere, but not below what is no folder.
        tmp_path.chmod(0o700)
        ledger.folder = Folder(__file__, rig.keys.network_id)
    with caplog.at_level(logging.WARNING):
        ledger.create("queued", [KeptTask("a", LARGE)])
    tmp_path.chmod(0o700)
    assert "cannot be kept in" in caplog.text
    assert files(tmp_path) == {}
    assert ledger.payload("a") == LARGE


def test_a_file_that_cannot_be_read(rig: Rig, ledger: TaskLedger, tmp_path: Path) -> None:
    """It is said what must be where."""
    ledger.create("queued", [KeptTask("a", LARGE)])
    next(tmp_path.glob("*/*")).unlink()
    with pytest.raises(PayloadError, match=r"No such file .* must be there under the same path on every machine"):
        ledger.payload("a")


def test_a_name_that_is_none_for_a_file(rig: Rig, tmp_path: Path) -> None:
    """Networks are apart from each other, whatever they are called, and each deletes its own."""
    folders = [Folder(str(tmp_path), name) for name in ("../../x", "a/b", "a")]
    for number, folder in enumerate(folders):
        write_blob(rig.channel(), rig.keys, f"blob{number}", LARGE, folder=folder)
        assert read_blob(rig.channel(), rig.keys, f"blob{number}") == LARGE
        rig.redis.delete(rig.keys.blob(f"blob{number}"))
    assert len(files(tmp_path)) == len(list(tmp_path.iterdir())) == 3
    for number, folder in enumerate(folders, 1):
        folder.delete_all()
        assert len(list(tmp_path.iterdir())) == 3 - number


def test_a_snapshot_is_whole(rig: Rig, ledger: TaskLedger, tmp_path: Path) -> None:
    """It has what is in the files, not their paths: it can be restored where the folder is not."""
    ledger.create("finished", [KeptTask("a", LARGE, outcome=LARGE + b"ys")])
    sections = list(read_sections(rig.channel(), rig.keys))
    ledger.reset()
    assert list(tmp_path.iterdir()) == []
    head = check_sections(sections, rig.keys.network_id)
    NetworkRestorer(rig.channel(), rig.keys, head).restore(sections)
    assert ledger.payload("a") == LARGE
    assert "file" not in {field for key, value in rig.dump().items() if key.startswith("blob") for field in value}
