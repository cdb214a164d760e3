"""Progress of real tasks, on a terminal and elsewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from rush_executor import RushExecutor
from tests.acceptance.programs import Terminal, run_program

PROGRAM = """
import sys
import threading
import time

import rush_executor
from rush_executor._executor import progress

# A bar is waited for.
progress._SETTLE_S = 30
wish = {"auto": True, "always": "always"}[sys.argv[1]]


def work(x):
    time.sleep(0.02)
    if x == 7:
        raise ValueError(x)
    return x


with rush_executor.RushExecutor(2) as executor:
    view = executor.options(progress=wish)
    print("one", sum(view.options(timeout=50).map(abs, range(-20, 0), chunksize=3)))
    print("two", sum(view.map(abs, range(-20, 0), buffersize=5)))
    futures = [executor.submit(work, x) for x in range(20)]
    done = rush_executor.progress(futures, label="work", always=wish == "always")
    print("three", sum(future.exception() is None for future in done))
    futures = [view.submit(work, x) for x in range(15)]
    with view.as_pool() as pool:
        values = pool.map(abs, [-1, -2])
    failed = [future for future in futures if future.exception()]
    # Nobody has said that these were all: that shows a moment later.
    while any(thread.name == "rush-progress" for thread in threading.enumerate()):
        time.sleep(0.01)
    print("four", values, len(failed))
"""
ANSWERS = ["one 210", "two 210", "three 19", "four [1, 2] 1"]


@pytest.mark.parametrize(
    ("missing", "mark"),
    [
        pytest.param((), r"work: 100%\|.*\| 20/20 \[00:0\d<00:00, .*task/s, failed=1\]", id="tqdm"),
        pytest.param(("tqdm",), r"work ━+ 20/20 [\d.]+/s, 1 failed", id="rich"),
        pytest.param(("tqdm", "rich"), r"work: \|#{30}\| 100% 20 of 20 done, 1 failed, [\d.]+/s", id="neither"),
    ],
)
def test_a_bar_on_a_terminal(tmp_path: Path, missing: tuple[str, ...], mark: str) -> None:
    """By whatever is installed; failures are counted; what the program prints stands on lines of its own."""
    if "tqdm" not in missing:
        pytest.importorskip("tqdm")
    for name in missing:
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    code, text = Terminal([sys.executable, str(program), "auto"], directory=tmp_path).finish()
    assert code == 0, text
    # Without what moves the cursor and colours.
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text).replace("\r", "\n")
    assert re.search(mark, text), text
    assert re.search("20/20" if len(missing) < 2 else "20 of 20", text)
    assert [line.strip() for line in text.splitlines() if re.match(r"one|two|three|four", line)] == ANSWERS


def test_no_terminal(tmp_path: Path) -> None:
    """Nothing is shown; what is insisted on is shown in lines, the last of each with everything."""
    out, err = run_program(PROGRAM, "auto", directory=tmp_path)
    assert (out.splitlines(), err) == (ANSWERS, "")
    out, err = run_program(PROGRAM, "always", directory=tmp_path)
    assert out.splitlines() == ANSWERS
    assert re.search(r"^work: 100% 20 of 20 done, 1 failed, [\d.]+/s, 0:0\d$", err, re.MULTILINE)
    assert len(re.findall(r"^tasks: 100% \d+ of \d+ done", err, re.MULTILINE)) >= 2


def test_what_makes_no_sense(executor: RushExecutor) -> None:
    """It says what does; off is off, also in a view of one that is on."""
    with pytest.raises(ValueError, match='progress must be True, False or "always"'):
        executor.options(progress="sometimes")  # type: ignore[arg-type]
    view = executor.options(progress=True)
    assert view._progress is not None
    assert view.options(priority=1)._progress is view._progress
    assert view.options(progress=False)._progress is None
