"""The file of a snapshot: what was written is read, and anything else is refused."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rush_executor._network import snapshot_file
from rush_executor._network.snapshot_file import SnapshotFile, write_snapshot
from rush_executor._protocol.snapshots import BLOB, END, HEAD, ORDER, TASKS, Section
from rush_executor.errors import RushError, SnapshotError

SECTIONS = [
    Section(HEAD, [b'{"network": "n"}']),
    Section(BLOB, [b"id", b"0", b"x" * 1000]),
    Section(TASKS, [b"t", b"2", b"state", b"queued"]),
    Section(ORDER, []),
    Section(END, [b"{}"]),
]

several = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def read(path: Path) -> list[Section]:
    with SnapshotFile(path) as file:
        return list(file.sections())


def refused(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    with pytest.raises(SnapshotError) as caught:
        read(path)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "network.rush"


@pytest.fixture
def raw(path: Path) -> bytes:
    assert write_snapshot(path, SECTIONS) == path.stat().st_size
    return path.read_bytes()


@several
@given(sections=st.lists(st.tuples(st.sampled_from([BLOB, TASKS]), st.lists(st.binary(max_size=300))), max_size=5))
def test_what_was_written_is_read(path: Path, sections: list[tuple[bytes, list[bytes]]]) -> None:
    """Any byte strings, twice from one open file."""
    written = [SECTIONS[0], *(Section(*section) for section in sections), SECTIONS[-1]]
    write_snapshot(path, written)
    assert read(path) == written
    with SnapshotFile(path) as file:
        assert list(file.sections()) == list(file.sections())


@pytest.mark.parametrize(
    "part", [bytes(300_000), os.urandom(300_000), b"", os.urandom(10)], ids=["zeros", "noise", "empty", "short"]
)
def test_what_does_not_shrink_is_stored(path: Path, part: bytes) -> None:
    """And what does is packed."""
    write_snapshot(path, [SECTIONS[0], Section(BLOB, [b"id", b"0", part]), SECTIONS[-1]])
    assert read(path)[1].parts[2] == part
    assert path.stat().st_size < (300_400 if any(part) else 3_000)


def test_every_flipped_bit_is_seen(path: Path, raw: bytes) -> None:
    """Wherever it is."""
    for at in range(len(raw)):
        for bit in (0, 5, 7):
            damaged = bytearray(raw)
            damaged[at] ^= 1 << bit
            refused(path, bytes(damaged))


def test_every_cut_is_seen(path: Path, raw: bytes) -> None:
    """Also one between two sections, and one that leaves nothing."""
    for length in range(len(raw)):
        refused(path, raw[:length])


@several
@given(data=st.data())
def test_any_damage_is_seen(path: Path, raw: bytes, data: st.DataObject) -> None:
    """Bytes put in, left out, doubled or put elsewhere."""
    first, middle, last = sorted(data.draw(st.tuples(*[st.integers(0, len(raw))] * 3)))
    a, b = raw[first:middle], raw[middle:last]
    more = data.draw(st.binary(max_size=20))
    damaged = raw[:first] + data.draw(st.sampled_from([a, b + a, a + a + b, more + a + b, a + more])) + raw[last:]
    if damaged != raw:
        refused(path, damaged)


def test_what_stands_behind_the_end_is_seen(path: Path, raw: bytes) -> None:
    """Two files, one behind the other, are none."""
    assert "behind its end" in refused(path, raw + b"\n")
    assert "behind its end" in refused(path, raw + raw)


def test_other_files(path: Path, raw: bytes) -> None:
    """It is said what they are."""
    assert "is no snapshot" in refused(path, b"REDIS0011\xfa")
    assert "is no snapshot" in refused(path, b"")
    assert "cut off" in refused(path, raw[:-1])
    for n in range(2):
        refused(path, raw.replace(b"\r\n", b"\n", n + 1))
    with pytest.raises(FileNotFoundError):
        SnapshotFile(path.with_name("nothing"))


def test_a_newer_format_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version that can read it."""
    monkeypatch.setattr(snapshot_file, "FORMAT", 2)
    monkeypatch.setattr(snapshot_file, "_own_version", lambda: "9.8.7")
    write_snapshot(path, SECTIONS)
    monkeypatch.undo()
    with pytest.raises(SnapshotError, match=r"is of format 2, .* reads format 1: .*wrote it \(9\.8\.7\)"):
        SnapshotFile(path)


def test_the_errors_are_ours(path: Path, raw: bytes) -> None:
    """An `except RushError`, or `except ValueError`, catches them."""
    assert issubclass(SnapshotError, RushError)
    assert issubclass(SnapshotError, ValueError)


def test_a_length_that_was_made_up_takes_no_memory(path: Path, raw: bytes) -> None:
    """Not even if its checksum is right: no more is read than there is, and no more unpacked than was said."""
    start = raw.index(HEAD + b"\x01") if HEAD + b"\x01" in raw else raw.index(HEAD + b"\x00")
    head = HEAD + b"\x00" + struct.pack("<QQ", 1 << 60, 1 << 60)
    import zlib

    assert "cut off" in refused(path, raw[:start] + head + struct.pack("<I", zlib.crc32(head)) + raw[start + 22 :])
    body = zlib.compress(bytes(100_000_000))
    head = HEAD + b"\x01" + struct.pack("<QQ", len(body), 100)
    head += struct.pack("<I", zlib.crc32(head))
    digest = blake2b(raw[start - 16 : start], digest_size=16)
    digest.update(head + body)
    tracemalloc.start()
    assert "damaged" in refused(path, raw[:start] + head + body + digest.digest())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_crash_leaves_the_old_file(path: Path, raw: bytes) -> None:
    """Whatever happens while the new one is made; nothing else is left beside it."""

    def sections() -> Iterator[Section]:
        yield SECTIONS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_snapshot(path, sections())
    assert path.read_bytes() == raw
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_places_that_are_none(tmp_path: Path, path: Path) -> None:
    """Are told before anything is read from a server."""

    def sections() -> Iterator[Section]:
        pytest.fail("was asked")
        yield SECTIONS[0]

    with pytest.raises(FileExistsError, match="is no file"):
        write_snapshot(tmp_path, sections())
    with pytest.raises(FileNotFoundError) as info:
        write_snapshot(tmp_path / "no" / "folder", sections())
    assert info.value.filename == str(tmp_path / "no" / "folder")


def test_a_link_stays_one(tmp_path: Path, path: Path, raw: bytes) -> None:
    """What it points to is replaced; who may read the file, the umask says."""
    link = tmp_path / "latest"
    link.symlink_to(path)
    old = os.umask(0o027)
    try:
        write_snapshot(link, SECTIONS[:1] + SECTIONS[-1:])
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert len(read(path)) == 2
    assert path.stat().st_mode & 0o777 == 0o640


def test_memory_is_that_of_one_section(path: Path) -> None:
    """However many there are, writing and reading."""
    n, size = 100, 1_000_000

    def sections() -> Iterator[Section]:
        yield SECTIONS[0]
        for i in range(n):
            yield Section(BLOB, [b"id", b"%d" % i, os.urandom(size)])
        yield SECTIONS[-1]

    tracemalloc.start()
    write_snapshot(path, sections())
    with SnapshotFile(path) as file:
        assert sum(1 for _ in file.sections()) == n + 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * size
