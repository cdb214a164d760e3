"""The directory of a process goes when the process goes, however it ends; and nobody else's does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rush_executor._shared.directory import SharedDirectory, remove_directory, sweep_directories


def make(root: Path, owner_id: str = "a1") -> SharedDirectory:
    directory = SharedDirectory.make(owner_id, str(root))
    assert directory is not None
    return directory


def killed_owner(root: Path) -> Path:
    """The directory of a process that was killed."""
    program = (
        "import sys; from rush_executor._shared.directory import SharedDirectory\n"
        f"made = SharedDirectory.make('dead', {str(root)!r}); made.write('in', 't-1', [(0, b'x')], 1)\n"
        "print(flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    owner.stdout.readline()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    path = root / "rush-executor-dead"
    assert path.is_dir()
    return path


def test_it_is_private(tmp_path: Path) -> None:
    """Nobody else may look into it."""
    directory = make(tmp_path)
    path = Path(directory.path)
    assert path.stat().st_mode & 0o777 == 0o700
    place = directory.write("in", "t-1", [(0, b"x")], 1)
    assert (path / place).stat().st_mode & 0o777 == 0o600
    directory.remove()


def test_it_is_removed(tmp_path: Path) -> None:
    """With all that is in it; and again, and when somebody else has done so before."""
    directory = make(tmp_path)
    for number in range(10):
        directory.write("in", f"t-{number}", [(0, b"x")], 1)
    owned = directory.own(directory.write("in", "t-0", [(0, b"x")], 1))
    directory.remove()
    directory.remove()
    remove_directory("a1", str(tmp_path))
    del owned
    assert list(tmp_path.iterdir()) == []


def test_whoever_comes_next_removes_what_the_dead_have_left(tmp_path: Path) -> None:
    """Where neither the owner nor its agent could."""
    dead = killed_owner(tmp_path)
    directory = make(tmp_path)
    assert not dead.exists()
    assert Path(directory.path).exists()
    directory.remove()


def test_the_living_keep_theirs(tmp_path: Path) -> None:
    """However often others look."""
    directories = [make(tmp_path, owner_id) for owner_id in ("a1", "b2", "c3")]
    sweep_directories(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 3
    for directory in directories:
        assert directory.write("in", "t-1", [(0, b"x")], 1)
        directory.remove()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """Other names, and files of such a name."""
    others = [tmp_path / name for name in ("rush", "rush-executor", "rush-executor-", "rush-executor-a.b", "x")]
    for path in others:
        path.mkdir()
    (tmp_path / "rush-executor-file").write_bytes(b"")
    sweep_directories(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 6


def test_a_half_removed_one_goes_in_the_end(tmp_path: Path) -> None:
    """Its remover was killed in the middle of it."""
    (tmp_path / "rush-executor-a1.gone-0f" / "in").mkdir(parents=True)
    sweep_directories(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_fork_does_not_keep_it(tmp_path: Path) -> None:
    """A child lets go of the lock that it has inherited, and frees nothing: the files are the parent's."""
    directory = make(tmp_path)
    owned = directory.own(directory.write("in", "t-1", [(0, b"x")], 1))
    pid = os.fork()
    if not pid:
        directory.disown()
        del owned
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(list(Path(directory.path, "in").iterdir())) == 1
    sweep_directories(str(tmp_path))
    assert Path(directory.path).exists()
    del owned
    directory.remove()


def test_making_and_sweeping_at_once(tmp_path: Path) -> None:
    """A directory that is not locked yet looks like one that was left: then it is made again."""
    failures: list[BaseException] = []
    end = threading.Event()

    def sweep() -> None:
        while not end.is_set():
            sweep_directories(str(tmp_path))

    def live(name: str) -> None:
        try:
            for number in range(100):
                directory = make(tmp_path, f"{name}{number}")
                assert directory.write("in", "t-1", [(0, b"x")], 1)
                directory.remove()
        except BaseException as error:
            failures.append(error)

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    owners = [threading.Thread(target=live, args=(name,)) for name in "ab"]
    for thread in (*sweepers, *owners):
        thread.start()
    for thread in owners:
        thread.join(60)
    end.set()
    for thread in sweepers:
        thread.join(60)
    assert failures == []
    sweep_directories(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_results_that_nobody_will_ask_for(tmp_path: Path) -> None:
    """Of workers that were killed before they could tell, or that came too late."""
    directory = make(tmp_path)
    for stem in ("t-1", "t-2", "t-2", "t-3"):
        directory.write("out", stem, [(0, b"x")], 1)
    directory.sweep({"t-2"}.__contains__)
    assert [path.stem for path in Path(directory.path, "out").iterdir()] == ["t-2", "t-2"]
    directory.remove()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_system_that_may_not_be_written(tmp_path: Path) -> None:
    """Then there are no files, and no error."""
    tmp_path.chmod(0o500)
    assert SharedDirectory.make("a1", str(tmp_path)) is None
    tmp_path.chmod(0o700)


def test_a_system_without_shared_memory(tmp_path: Path) -> None:
    """On macOS there is no such directory."""
    assert SharedDirectory.make("a1", str(tmp_path / "shm")) is None


def test_several_hold_one(tmp_path: Path) -> None:
    """It goes when the last of them has gone."""
    first, second = (SharedDirectory.join("a1", str(tmp_path)) for _ in range(2))
    first.disown()
    sweep_directories(str(tmp_path))
    assert Path(second.path).exists()
    second.disown()
    sweep_directories(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
