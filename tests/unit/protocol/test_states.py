"""The state table: what the scripts may do, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rush_executor
from rush_executor._protocol.states import (
    CANCELLED,
    FAILED,
    FINISHED,
    QUEUED,
    RUNNING,
    TERMINAL_STATES,
    TRANSITIONS,
    Transition,
)

LUA = Path(rush_executor.__file__).parent / "_ledger" / "lua"
STATES = {QUEUED, RUNNING, FINISHED, FAILED, CANCELLED}


def code(script: str) -> str:
    """A script without its comments."""
    return re.sub(r"--[^\n]*", "", (LUA / f"{script}.lua").read_text(encoding="utf-8"))


def test_terminal_states_have_no_way_out() -> None:
    """A task has exactly one terminal state; one that the network keeps can be retried, if somebody asks for it."""
    assert {FINISHED, FAILED, CANCELLED} == TERMINAL_STATES
    assert [row.event for row in TRANSITIONS if row.source in TERMINAL_STATES] == ["retry, kept"]


def test_every_other_state_has_a_way_to_an_end() -> None:
    """No state in which a task could stay for ever."""
    ends = set(TERMINAL_STATES)
    while more := {row.source for row in TRANSITIONS if row.target in ends} - ends:
        ends |= more
    assert ends == STATES | {""}


def test_every_state_is_reached() -> None:
    """From nothing, which no row leads back to."""
    reached = {""}
    while more := {row.target for row in TRANSITIONS if row.source in reached} - reached:
        reached |= more
    assert reached == STATES | {""}
    assert "" not in {row.target for row in TRANSITIONS}


def test_rows_are_told_apart() -> None:
    """From one state, one event leads to one state."""
    assert len({(row.source, row.event) for row in TRANSITIONS}) == len(TRANSITIONS)


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: row.event)
def test_its_script_exists(row: Transition) -> None:
    """Each row is carried out by a script, whose head says so, and says what the loser sees."""
    head = (LUA / f"{row.script}.lua").read_text(encoding="utf-8").split("\nlocal")[0]
    for word in ("-- Purpose: ", "-- KEYS: ", "-- ARGV: ", "-- Returns: ", "Row: ", "Sent twice: "):
        assert word in head, f"{row.script}.lua: its head has no {word!r}"
    if row.source:
        assert "Loser: " in head
    row_line = next(line for line in head.splitlines() if "Row: " in line)
    for word in (row.source, row.event.split(",")[0].split()[-1], row.target):
        assert word in row_line, f"{row.script}.lua: {row_line!r} does not tell {word!r}"


@pytest.mark.parametrize("path", sorted(LUA.glob("*.lua")), ids=lambda path: path.stem)
def test_every_script_has_a_head(path: Path) -> None:
    """Purpose, KEYS, ARGV, returns, row and what a second sending does; those that are no transition say so."""
    head = "".join(line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("--"))
    if path.stem == "prelude":
        return
    for word in ("Purpose: ", "KEYS: ", "ARGV: ", "Returns: ", "Row: ", "Sent twice: "):
        assert word in head
    is_transition = path.stem in {row.script for row in TRANSITIONS}
    assert is_transition != ("Row: none" in head)


@pytest.mark.parametrize("script", sorted(path.stem for path in LUA.glob("*.lua")))
def test_scripts_write_no_state_that_their_rows_do_not_name(script: str) -> None:
    """What a script writes into `state` is the target of one of its rows.

    A state that has ended is written only where the network keeps its tasks.
    """
    # Some are read, not written: HMGET names the next field.
    written = set(re.findall(r"'state', '(\w+)'", code(script))) & STATES
    rows = [row for row in TRANSITIONS if row.script == script]
    if script == "prelude":
        assert written == {FAILED, RUNNING, QUEUED}, "of a task that the network keeps; by a claim; when put back"
    elif script in ("create_tasks", "keep_outcomes", "restore_tasks", "claim_tasks", "release_tasks"):
        # Into which one, the caller says, or the outcome; the last two have it from the prelude.
        assert not written
    else:
        assert written == {row.target for row in rows} - TERMINAL_STATES


def test_highest_arguments_are_used() -> None:
    """Each KEYS and ARGV that a head numbers is used, and none that it does not number."""
    for path in sorted(LUA.glob("*.lua")):
        head, _, _ = path.read_text(encoding="utf-8").partition("\n\n")
        comments = "\n".join(line for line in head.splitlines() if line.startswith("--"))
        told = re.search(r"KEYS: (.*?)\n-- [A-Z]", comments, re.DOTALL)
        if told is None:
            assert path.stem == "prelude"
            continue
        numbers = {int(n) for n in re.findall(r"(?:^|, |\n--\s+)(\d+) ", told.group(1))}
        used = {int(n) for n in re.findall(r"KEYS\[(\d+)\]", code(path.stem))}
        assert used <= numbers, path.stem
        if path.stem != "trim_inbox":
            assert used == numbers, path.stem
