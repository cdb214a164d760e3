"""Arrays of joblib's calls go to files: once each, as they were, and no file stays longer than it is needed."""

from __future__ import annotations

import gc
import io
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from rush_executor._payload.pickler import CloudPickler
from rush_executor.joblib._arrays import ArrayFile, ArrayFolder

BASE = np.arange(24.0).reshape(4, 6)
ARRAYS = {
    "C": BASE,
    "Fortran": np.asfortranarray(BASE),
    "transposed": BASE.reshape(2, 3, 4).transpose(1, 0, 2),
    "strided": BASE[::2, 1::2],
    "reversed": BASE[::-1],
    "broadcast": np.broadcast_to(np.ones(3), (4, 3)),
    "of a number": np.array(5.0),
    "dates": np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
    "text": np.array(["a", "bcd"]),
    "structured": np.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "of another byte order": np.arange(3, dtype=">i4"),
    "booleans": np.array([True, False]),
}


@pytest.fixture
def folder(tmp_path: Path) -> ArrayFolder:
    """Makes its folder in `tmp_path`, for arrays of more than no bytes."""
    return ArrayFolder(str(tmp_path), least_bytes=0, mode="r")


def dump(folder: ArrayFolder, value: Any) -> tuple[bytes, list[ArrayFile]]:
    pickled = io.BytesIO()
    with folder.lent() as files:
        pickler = CloudPickler(pickled, None)
        pickler.references = None
        pickler.dump(value)
    return pickled.getvalue(), files


def files_in(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("array-*"))


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_mapped_as_it_was(folder: ArrayFolder, tmp_path: Path, name: str) -> None:
    """Type, shape, values and, where it lies in one piece, the order of its elements."""
    array = ARRAYS[name]
    back = pickle.loads(dump(folder, array)[0])
    assert type(back) is np.memmap
    assert Path(back.filename).is_relative_to(tmp_path)
    assert (back.dtype, back.dtype.byteorder, back.shape) == (array.dtype, array.dtype.byteorder, array.shape)
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "M")
    assert back.flags.f_contiguous or not array.flags.f_contiguous
    assert not back.flags.writeable


def test_an_array_is_written_once(folder: ArrayFolder, tmp_path: Path) -> None:
    """However many tasks it is an argument of, and however deep inside of one."""
    array = np.ones(10)
    names = {pickle.loads(dump(folder, value)[0]).filename for value in (array, array)}
    [nested] = pickle.loads(dump(folder, {"a": array})[0]).values()
    assert {nested.filename} == names
    assert len(files_in(tmp_path)) == 1


@pytest.mark.parametrize(
    "value", [pd.DataFrame(np.ones((50, 4))), sparse.eye(100, format="csr")], ids=["DataFrame", "sparse"]
)
def test_arrays_inside_of_other_objects(tmp_path: Path, value: Any) -> None:
    """What pandas and SciPy keep their data in is an array, too, and is written once."""
    folder = ArrayFolder(str(tmp_path), least_bytes=200, mode="r")
    pickled = [dump(folder, value)[0] for _ in range(2)]
    written = files_in(tmp_path)
    assert written
    assert all(len(text) < 3000 for text in pickled)
    back = pickle.loads(pickled[1])
    assert type(back) is type(value)
    assert (back != value).sum().sum() == 0
    assert files_in(tmp_path) == written


def test_small_arrays_and_objects_stay_in_the_pickle(tmp_path: Path) -> None:
    """Up to the bound, and what is no array of bytes."""
    folder = ArrayFolder(str(tmp_path), least_bytes=80, mode="r")
    value = [np.ones(10), np.array([None] * 100)]
    assert [type(array) for array in pickle.loads(dump(folder, value)[0])] == [np.ndarray] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_goes_with_its_array_and_its_tasks(folder: ArrayFolder, tmp_path: Path) -> None:
    """A stream of arrays, of which each is an argument of one task, never fills the disk."""
    array = np.ones(10)
    _, first = dump(folder, array)
    _, second = dump(folder, array)
    folder.give_back(first)
    del array
    gc.collect()
    folder.give_back([])
    assert len(files_in(tmp_path)) == 1  # the second task needs it
    folder.give_back(second)
    assert files_in(tmp_path) == []


def test_a_file_stays_while_its_array_may_be_sent_again(folder: ArrayFolder, tmp_path: Path) -> None:
    """Also when no task is under way at the moment."""
    array = np.ones(10)
    for _ in range(2):
        _, files = dump(folder, array)
        folder.give_back(files)
        assert files_in(tmp_path) == ["array-1"]


def test_another_array_in_the_place_of_one_that_is_gone(folder: ArrayFolder) -> None:
    """The id of an array that is gone may be the next one's."""
    for n in range(50):
        assert pickle.loads(dump(folder, np.full(10, n))[0]).tolist() == [n] * 10


def test_after_a_call_arrays_are_written_anew(folder: ArrayFolder, tmp_path: Path) -> None:
    """The user may change an array between two calls. The first call's file stays while a task needs it."""
    array = np.ones(10)
    pickled, files = dump(folder, array)
    folder.forget()
    array[:] = 2
    assert pickle.loads(dump(folder, array)[0]).tolist() == [2] * 10
    assert pickle.loads(pickled).tolist() == [1] * 10
    folder.give_back(files)
    assert files_in(tmp_path) == ["array-2"]


def test_nothing_is_left_of_a_call(folder: ArrayFolder, tmp_path: Path) -> None:
    """The folder goes when the call has ended and the last task has, whatever comes first; the next call makes one."""
    array = np.ones(10)
    for _ in range(2):
        _, files = dump(folder, array)
        assert len(list(tmp_path.iterdir())) == 1
        folder.give_back(files)
        folder.forget()
        assert list(tmp_path.iterdir()) == []
    _, files = dump(folder, array)
    folder.forget()
    folder.give_back(files)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_for_its_user_alone(folder: ArrayFolder, tmp_path: Path) -> None:
    """Data that others may not see must not lie where they can read it."""
    _ = dump(folder, np.ones(10))
    [made] = tmp_path.iterdir()
    assert made.stat().st_mode & 0o777 == 0o700


def test_an_array_too_large_for_the_disk_is_pickled(
    folder: ArrayFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is no reason to fail: it is only slower."""

    class Full:
        def tofile(self, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "ascontiguousarray", lambda _: Full())
    back = pickle.loads(dump(folder, np.ones(10))[0])
    assert type(back) is np.ndarray
    assert files_in(tmp_path) == []


@pytest.fixture
def mapped(tmp_path: Path) -> Callable[[str], Any]:
    """A file of the user's, mapped in a mode."""
    path = tmp_path / "file"
    path.write_bytes(b"head" + BASE.tobytes())

    def map_it(mode: str) -> Any:
        return np.memmap(path, BASE.dtype, mode, 4, BASE.shape)

    return map_it


@pytest.mark.parametrize("part", [slice(None), slice(1, 3), (2, slice(1, 4)), (slice(0, 4), slice(0, 6))])
def test_a_mapped_file_goes_by_its_name(tmp_path: Path, mapped: Callable[[str], Any], part: Any) -> None:
    """It is there already, whatever its size; also a view of it, in one piece."""
    folder = ArrayFolder(str(tmp_path), least_bytes=10**6, mode="r")
    array = np.asarray(mapped("r"))[part]
    back = pickle.loads(dump(folder, array)[0])
    assert back.filename == str(tmp_path / "file")
    assert np.array_equal(back, BASE[part])


def test_a_mapped_file_that_may_be_written_to(folder: ArrayFolder, mapped: Callable[[str], Any]) -> None:
    """What tasks write into it arrives in the file, as it does with joblib's own backends."""
    array = mapped("r+")
    pickle.loads(dump(folder, array)[0])[0, 0] = 100
    assert array[0, 0] == 100


def test_views_with_gaps_and_private_copies_go_to_new_files(
    folder: ArrayFolder, tmp_path: Path, mapped: Callable[[str], Any]
) -> None:
    """Their content is not what stands in the file, or not in one piece; nor is that of a file that was removed."""
    private = mapped("c")
    private[0, 0] = 100
    gaps = mapped("r")[:, ::2]
    removed = mapped("r")
    (tmp_path / "file").rename(tmp_path / "renamed")
    for array in (private, gaps, removed):
        back = pickle.loads(dump(folder, array)[0])
        assert Path(back.filename).name.startswith("array-")
        assert np.array_equal(back, array)


@pytest.mark.parametrize(("mode", "written"), [("r", "r"), ("r+", "r+"), ("w+", "r+"), ("c", "c")])
def test_how_workers_map(tmp_path: Path, mode: str, written: str) -> None:
    """As the user says; the mode that would empty the file does not."""
    folder = ArrayFolder(str(tmp_path), least_bytes=0, mode=mode)
    back = pickle.loads(dump(folder, BASE)[0])
    assert back.mode == written
    assert np.array_equal(back, BASE)


def test_the_folder_that_joblib_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`JOBLIB_TEMP_FOLDER` counts where no folder is given."""
    monkeypatch.setenv("JOBLIB_TEMP_FOLDER", str(tmp_path))
    folder = ArrayFolder(None, least_bytes=0, mode="r")
    back = pickle.loads(dump(folder, BASE)[0])
    assert Path(back.filename).is_relative_to(tmp_path)


# Makes a folder with a file, says where, and waits.
OWNER = """
import sys, time
import numpy as np
from rush_executor._payload.pickler import dump_parts
from rush_executor.joblib._arrays import ArrayFolder
folder, array = ArrayFolder(sys.argv[1], least_bytes=0, mode="r"), np.ones(10)
with folder.lent() as files:
    dump_parts(array)
print(files[0].path.parent, flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdout=subprocess.PIPE, text=True) as program:
        yield program
        program.kill()


def test_the_folder_of_a_killed_program_is_removed_by_the_next(
    owner: subprocess.Popen[str], folder: ArrayFolder, tmp_path: Path
) -> None:
    """One that lives keeps its own; of one that was killed nothing is left behind for long."""
    assert owner.stdout is not None
    theirs = Path(owner.stdout.readline().strip())
    array = np.ones(10)
    _, files = dump(folder, array)
    assert files_in(theirs) == ["array-1"]
    folder.give_back(files)
    folder.forget()
    owner.kill()
    owner.wait()
    _ = dump(folder, array)
    assert not theirs.exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_end_of_a_fork_leaves_the_parents_files(folder: ArrayFolder, tmp_path: Path) -> None:
    """A child that ends as a program does runs the same clean-up, and none of it is its own."""
    array = np.ones(10)
    _ = dump(folder, array)
    pid = os.fork()
    if not pid:
        folder._remove()  # type: ignore[misc] # what the interpreter's exit would call
        os._exit(0)
    os.waitpid(pid, 0)
    assert files_in(tmp_path) == ["array-1"]


def test_a_collection_in_the_middle(folder: ArrayFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage that is collected while a file is written may end a call, on this very thread: nothing waits for ever."""
    contiguous = np.ascontiguousarray

    def collect(array: Any) -> Any:
        folder.forget()
        folder.give_back([])
        return contiguous(array)

    monkeypatch.setattr(np, "ascontiguousarray", collect)
    signal.alarm(60)
    try:
        for _ in range(2):
            pickled, files = dump(folder, np.arange(3))
            assert pickle.loads(pickled).tolist() == [0, 1, 2]
            folder.give_back(files)
    finally:
        signal.alarm(0)
