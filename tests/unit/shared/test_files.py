"""Files in shared memory: complete or not there, never written while somebody reads, recycled, and bounded."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rush_executor._shared import directory as directory_module
from rush_executor._shared import files as files_module
from rush_executor._shared.directory import SharedDirectory
from rush_executor._shared.files import SharedFiles

OWNER = "a1b2"
LARGE = 8 << 20


@pytest.fixture
def own(tmp_path: Path) -> Iterator[SharedDirectory]:
    """A client's directory."""
    directory = SharedDirectory.make(OWNER, str(tmp_path))
    assert directory is not None
    yield directory
    directory.remove()


@pytest.fixture
def worker(own: SharedDirectory, tmp_path: Path) -> SharedFiles:
    """The same, as a worker sees it."""
    return SharedFiles(OWNER, str(tmp_path))


def names(directory: SharedFiles, folder: str) -> list[str]:
    return sorted(path.name for path in Path(directory.path, folder).iterdir())


def spare(directory: SharedFiles) -> int:
    """How many files wait to be written again."""
    return len(names(directory, "idle"))


def write(files: SharedFiles, content: bytes, *, folder: str = "out", stem: str = "t-1") -> str:
    return files.write(folder, stem, [(0, content)], len(content))


def read(files: SharedFiles, place: str, length: int, offset: int = 0) -> Any:
    file = files.open_place(place)
    [buffer] = file.buffers([(offset, length)])
    file.close()
    return buffer


def test_what_is_written_is_read(own: SharedDirectory, worker: SharedFiles) -> None:
    """In any number of pieces, by another process's object, small parts and large ones."""
    large = os.urandom(LARGE)
    pieces = [(0, b"head"), (100, memoryview(b"in the middle")), (65536, large)]
    place = own.write("in", "t-1", pieces, 65536 + LARGE)
    file = worker.open_place(place, 65536 + LARGE)
    small, middle, mapped = file.buffers([(0, 4), (100, 13), (65536, LARGE)])
    assert (bytes(small), bytes(middle)) == (b"head", b"in the middle")
    assert isinstance(mapped, mmap.mmap)
    assert mapped[:] == large
    assert file.stream().read(4) == b"head"
    file.close()
    assert mapped[-5:] == large[-5:], "what is mapped outlives the file object"


def test_writing_to_what_was_read_changes_nothing_elsewhere(own: SharedDirectory, worker: SharedFiles) -> None:
    """Whether it was mapped or copied: the next attempt at the task, or the next task, finds what was sent."""
    place = own.write("in", "t-1", [(0, bytes(LARGE))], LARGE)
    for length in (100, 100_000, LARGE):
        buffer = read(worker, place, length)
        np.frombuffer(buffer, dtype=np.uint8)[:] = 7
        assert bytes(read(worker, place, length)) == bytes(length)


def test_many_small_parts(own: SharedDirectory, worker: SharedFiles) -> None:
    """More than are read at once, in any order."""
    content = os.urandom(300_000)
    place = own.write("in", "t-1", [(0, content)], len(content))
    places = [(start, 1000) for start in range(0, 299_000, 1000)]
    file = worker.open_place(place)
    for some in (places, places[::-1]):
        found = file.buffers(some)
        assert [bytes(part) for part in found] == [content[start : start + length] for start, length in some]
    file.close()


@pytest.mark.parametrize("part", [(0, 101), (90, 11), (1 << 62, 5), (0, 1 << 40)])
def test_no_part_is_beyond_the_end(own: SharedDirectory, part: tuple[int, int]) -> None:
    """A mapping beyond it would end the process with SIGBUS when it is touched."""
    file = own.open_place(own.write("in", "t-1", [(0, bytes(100))], 100))
    with pytest.raises(ValueError, match="short"):
        file.buffers([part])
    file.close()


def test_a_file_that_is_too_short_is_none(own: SharedDirectory) -> None:
    """What should have been in it is said by who sends its name."""
    place = own.write("in", "t-1", [(0, bytes(100))], 100)
    with pytest.raises(FileNotFoundError):
        own.open_place(place, 101)


@pytest.mark.parametrize(
    "place", ["", "in", "in/", "in/..", "in/../out/t-1.0", "/etc/passwd", "idle/1.0", "in/t-1.0/x", "in/t\n.0"]
)
def test_names_lead_nowhere_else(own: SharedDirectory, place: str) -> None:
    """They come from the server."""
    (Path(own.path) / "idle" / "1.0").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        own.open_place(place)


@pytest.mark.parametrize("stem", ["../x", "a/b", "", ".", "a\0b"])
def test_no_file_is_written_elsewhere(worker: SharedFiles, stem: str) -> None:
    """Ids of tasks come from the server, too."""
    assert write(worker, b"x", stem=stem) == ""


@pytest.mark.parametrize("owner", ["", "..", "a/b", "../a", "a.b"])
def test_ids_that_are_no_names(owner: str) -> None:
    """And ids of clients."""
    with pytest.raises(ValueError, match="owns no files"):
        SharedFiles(owner)


def test_nobody_is_there(tmp_path: Path) -> None:
    """On another machine, or in another container: nothing is written, and somebody else's directory is not used."""
    stranger = SharedFiles("c3", str(tmp_path))
    assert write(stranger, b"x") == ""
    Path(stranger.path).mkdir(0o755)
    assert not stranger.is_there()
    assert write(stranger, b"x") == ""
    Path(stranger.path).rmdir()
    Path(stranger.path).symlink_to(tmp_path)
    assert not stranger.is_there()


def test_a_symbolic_link_is_not_followed(own: SharedDirectory, tmp_path: Path) -> None:
    """Neither when it is read."""
    (tmp_path / "secret").write_bytes(b"x")
    (Path(own.path) / "in" / "t-1.0").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError):
        own.open_place("in/t-1.0")


def test_a_result_is_kept_as_long_as_an_array_is_on_it(own: SharedDirectory, worker: SharedFiles) -> None:
    """And not longer: then its file is for whoever writes next."""
    place = write(worker, bytes(LARGE))
    array = np.frombuffer(read(own, place, LARGE), dtype=np.uint8)
    assert names(own, "out") == []
    assert len(names(own, "held")) == 1
    part = array[5:10]
    del array
    gc.collect()
    assert len(names(own, "held")) == 1
    del part
    gc.collect()
    assert names(own, "held") == []
    assert len(names(own, "idle")) == 1
    write(worker, bytes(LARGE))
    assert names(own, "idle") == []


def test_a_result_that_was_copied_is_free_at_once(own: SharedDirectory, worker: SharedFiles) -> None:
    """Its file may be written again while the copy lives."""
    place = write(worker, b"a" * 1000)
    copy = read(own, place, 1000)
    assert len(names(own, "idle")) == 1
    write(worker, b"b" * 1000)
    assert bytes(copy) == b"a" * 1000


def test_an_argument_goes_with_its_owner(own: SharedDirectory) -> None:
    """Exactly once, when nothing refers to it any more."""
    place = own.write("in", "t-1", [(0, bytes(1000))], 1000)
    owner = own.own(place)
    assert len(names(own, "in")) == 1
    del owner
    assert names(own, "in") == []
    assert spare(own) == 1


def test_what_is_read_is_not_written(own: SharedDirectory, worker: SharedFiles) -> None:
    """A task that has kept an argument finds it as it was, though the task has ended and others have come."""
    place = own.write("in", "t-1", [(0, b"a" * LARGE)], LARGE)
    kept = read(worker, place, LARGE)
    own.recycle(place)
    for stem in ("t-2", "t-3"):
        write(worker, b"b" * LARGE, stem=stem)
        own.write("in", stem, [(0, b"b" * LARGE)], LARGE)
    assert kept[:] == b"a" * LARGE
    assert spare(own) == 1
    del kept
    own.write("in", "t-4", [(0, b"b" * LARGE)], LARGE)
    assert spare(own) == 0


def test_what_another_process_reads_is_not_written(own: SharedDirectory, worker: SharedFiles) -> None:
    """The kernel keeps the account: also of a process that is killed."""
    place = worker.write("out", "t-1", [(0, b"a" * LARGE)], LARGE)
    program = (
        "import sys; from rush_executor._shared.files import SharedFiles\n"
        f"file = SharedFiles({OWNER!r}, {str(Path(own.path).parent)!r}).open_place({place!r})\n"
        f"[kept] = file.buffers([(0, {LARGE})]); file.close(); print(flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdin is not None
    assert reader.stdout is not None
    try:
        reader.stdout.readline()
        own.recycle(place)
        assert write(worker, b"b" * LARGE)
        assert len(names(own, "idle")) == 1
    finally:
        reader.kill()
        reader.communicate()
    assert write(worker, b"b" * LARGE)
    assert names(own, "idle") == []


def test_a_child_that_a_task_forks_reads_on(own: SharedDirectory, worker: SharedFiles) -> None:
    """It has inherited the mapping, and so the lock."""
    kept = read(worker, own.write("in", "t-1", [(0, b"a" * LARGE)], LARGE), LARGE)
    ask_r, ask_w = os.pipe()
    tell_r, tell_w = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(ask_r, 1)
        os.write(tell_w, kept[-1:])
        os._exit(0)
    del kept
    for name in names(own, "in"):
        own.recycle(f"in/{name}")
    assert write(worker, b"b" * LARGE)
    os.write(ask_w, b"x")
    assert os.read(tell_r, 1) == b"a"
    os.waitpid(pid, 0)
    for fd in (ask_r, ask_w, tell_r, tell_w):
        os.close(fd)


def test_a_child_that_is_forked_during_a_write(
    own: SharedDirectory, worker: SharedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread of the worker, say: it keeps the descriptor, and does not keep the client from reading."""
    own.recycle(write(worker, bytes(1000)))
    inherited: list[int] = []
    write_all = files_module.write_all

    def fork_and_write(fd: int, piece: bytes | memoryview, offset: int) -> None:
        inherited.append(os.dup(fd))
        write_all(fd, piece, offset)

    monkeypatch.setattr(files_module, "write_all", fork_and_write)
    place = write(worker, b"x" * 1000)
    assert spare(own) == 0
    try:
        assert bytes(read(own, place, 1000)) == b"x" * 1000
    finally:
        for fd in inherited:
            os.close(fd)


def test_a_late_reader_does_not_get_what_was_written_since(own: SharedDirectory, worker: SharedFiles) -> None:
    """A worker that was taken for lost, and comes for its argument when the task has ended elsewhere."""
    place = own.write("in", "t-1", [(0, b"a" * 1000)], 1000)
    own.recycle(place)
    assert write(worker, b"b" * 1000)
    with pytest.raises(FileNotFoundError):
        worker.open_place(place)


def test_only_files_that_fit_are_recycled(own: SharedDirectory, worker: SharedFiles) -> None:
    """One of 8 MB is not spent on 1 kB, and one of 1 kB does not help with 8 MB; for the client and for workers."""
    places = [own.write("in", "t-1", [(0, bytes(size))], size) for size in (LARGE, 1000)]
    places += [write(worker, bytes(size)) for size in (LARGE, 1000)]
    for place in places:
        own.recycle(place)
    assert spare(own) == 4
    write(worker, bytes(100_000))
    own.write("in", "t-3", [(0, bytes(100_000))], 100_000)
    assert spare(own) == 4
    for size in (1500, LARGE - 5):
        write(worker, bytes(size))
        own.write("in", "t-4", [(0, bytes(size))], size)
    assert spare(own) == 0


def test_files_are_written_again_by_whoever_writes_next(own: SharedDirectory, worker: SharedFiles) -> None:
    """Arguments and results alike, and none is written twice at once."""
    places = [own.write("in", f"t-{number}", [(0, bytes(1000))], 1000) for number in range(5)]
    places += [write(worker, bytes(1000)) for _ in range(5)]
    for place in places:
        own.recycle(place)
    assert spare(own) == 10
    written = [write(worker, b"%d" % n * 1000) for n in range(5)]
    written += [own.write("in", f"t-{n}", [(0, b"%d" % n * 1000)], 1000) for n in range(5, 10)]
    assert spare(own) == 0
    assert [bytes(read(worker, place, 1000))[:1] for place in written] == [b"%d" % n for n in range(10)]


def test_idle_files_go(own: SharedDirectory, worker: SharedFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, and at once those that would be too many or too much."""
    monkeypatch.setattr(directory_module, "_MOST_IDLE", 3)
    places = [own.write("in", f"t-{number}", [(0, bytes(1000))], 1000) for number in range(6)]
    for place in places:
        own.recycle(place)
    assert spare(own) == 3
    assert names(own, "in") == []
    own.trim()
    assert spare(own) == 3
    monkeypatch.setattr(directory_module, "_IDLE_S", -1.0)
    own.trim()
    assert spare(own) == 0
    monkeypatch.setattr(directory_module, "_MOST_IDLE_BYTES", 1500)
    for place in [write(worker, bytes(1000)) for _ in range(2)]:
        own.recycle(place)
    assert spare(own) == 1


def test_files_that_workers_have_taken_do_not_count(
    own: SharedDirectory, worker: SharedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that frees thousands in a second, which are all taken at once, goes on recycling."""
    monkeypatch.setattr(directory_module, "_MOST_IDLE", 3)
    for _ in range(20):
        own.recycle(write(worker, bytes(1000)))
        assert spare(own) == 1


def test_a_file_system_without_room(own: SharedDirectory, worker: SharedFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has 64 MB there: half of what is free is left to others; idle files go first."""
    own.recycle(write(worker, bytes(1000)))
    room = {True: 10_000.0, False: 30_000.0}
    monkeypatch.setattr(files_module, "room_in", lambda _path: room[spare(own) > 0])
    assert write(worker, bytes(16_000)) == ""
    assert spare(own) == 0
    own.recycle(own.write("in", "t-1", [(0, bytes(1000))], 1000))
    assert own.write("in", "t-1", [(0, bytes(16_000))], 16_000) == ""
    assert spare(own) == 0
    assert write(worker, bytes(14_000)) != ""
    assert len(names(own, "out")) == 1


def test_a_file_system_that_is_full_after_all(
    own: SharedDirectory, worker: SharedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else was quicker: nothing is left of the attempt, and nobody is killed."""
    real = os.pwrite
    n_written = 0

    def full(fd: int, piece: Any, offset: int) -> int:
        nonlocal n_written
        n_written += 1
        if n_written > 1:
            raise OSError(28, "No space left on device")
        return real(fd, piece, offset)

    monkeypatch.setattr(os, "pwrite", full)
    assert worker.write("out", "t-1", [(0, b"a"), (10, b"b")], 11) == ""
    assert names(own, "out") == []


def test_ctrl_c_in_the_middle_leaves_nothing(own: SharedDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The half of a file is nobody's."""

    def interrupted(fd: int, piece: Any, offset: int) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own.write("in", "t-1", [(0, b"a")], 1)
    assert names(own, "in") == []


def test_a_write_in_parts(own: SharedDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes 2 GB at once, and may take less."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, piece, offset: real(fd, bytes(piece)[:7], offset))
    content = os.urandom(100)
    place = own.write("in", "t-1", [(0, content)], 100)
    assert bytes(read(own, place, 100)) == content


def test_not_all_descriptors_are_spent(
    own: SharedDirectory, worker: SharedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mapping has one; a client that keeps thousands of results gets copies of the further ones."""
    monkeypatch.setattr(files_module, "_most_mapped", lambda: len(files_module._mapped) + 1)
    first = read(worker, own.write("in", "t-1", [(0, b"a" * LARGE)], LARGE), LARGE)
    monkeypatch.setattr(files_module, "_most_mapped", lambda: len(files_module._mapped))
    second = read(worker, own.write("in", "t-2", [(0, b"b" * LARGE)], LARGE), LARGE)
    assert (type(first).__mro__[1], type(second)) == (mmap.mmap, bytearray)
    assert (first[:1], second[:1]) == (b"a", b"b")


def test_a_mapping_that_the_kernel_refuses(
    own: SharedDirectory, worker: SharedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is a copy."""

    def refused(*_args: object, **_kwargs: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(files_module, "_Mapping", refused)
    place = own.write("in", "t-1", [(0, b"a" * LARGE)], LARGE)
    assert type(read(worker, place, LARGE)) is bytearray


def test_large_bytes_objects(own: SharedDirectory) -> None:
    """Read from the stream into memory for which large pages were asked: what arrives is what was sent."""
    size = files_module._LARGE + 12_345
    content = os.urandom(size)
    file = own.open_place(own.write("in", "t-1", [(0, b"abc"), (3, content)], size + 3))
    stream = file.stream()
    assert stream.read(3) == b"abc"
    target = bytearray(size)
    assert stream.readinto(target) == size
    assert target == content
    file.close()
