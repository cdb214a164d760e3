"""A worker's slot: whenever the worker dies, its agent reads a whole id or none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._protocol.ids import new_id, task_id
from rush_executor._protocol.slots import SLOT_SIZE, Slot

TASK_IDS = st.builds(lambda number: task_id(new_id(), number), st.integers(1, 2**70)) | st.text(
    st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=255
)


class DyingBuffer(bytearray):
    """Shared memory whose writer may die between any two bytes.

    Attributes:
        states: What the agent would find, after each byte that was written.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.states: list[bytes] = []

    def __setitem__(self, where: Any, value: Any) -> None:
        if isinstance(where, slice):
            start, stop, _ = where.indices(len(self))
            assert stop - start == len(value), "a write that would change the size"
            for at, byte in zip(range(start, stop), value, strict=True):
                self[at] = byte
        else:
            super().__setitem__(where, value)
            self.states.append(bytes(self))


def read(state: bytes) -> str:
    """What the agent reads."""
    return Slot(bytearray(state)).current()


@given(st.lists(TASK_IDS, min_size=1, max_size=4), st.booleans())
def test_a_death_at_any_moment(task_ids: list[str], has_end: bool) -> None:
    """Between any two writes of any sequence of tasks: the old one, none, or the new one; never a mixture."""
    buffer = DyingBuffer(SLOT_SIZE)
    slot = Slot(buffer)
    before = ""
    for task in task_ids:
        buffer.states.clear()
        slot.begin(task)
        told = [read(state) for state in buffer.states]
        assert set(told) <= {before, "", task}
        assert told[-1] == task == slot.current()
        # Once the old one is cleared it does not come back, and the new one comes last.
        assert told == sorted(told, key=[before, "", task].index) or before == task
        before = task
        if has_end:
            buffer.states.clear()
            slot.end()
            assert {read(state) for state in buffer.states} == {""}
            before = ""


def test_an_empty_slot() -> None:
    """Fresh memory says that nothing runs and that the worker is not ready."""
    slot = Slot(bytearray(SLOT_SIZE))
    assert slot.current() == ""
    assert not slot.is_ready()
    slot.end()
    assert slot.current() == ""


def test_ready_and_running_are_two_things() -> None:
    """Being ready survives tasks; a task does not make ready."""
    buffer = bytearray(SLOT_SIZE)
    slot = Slot(buffer)
    slot.begin("x" * 255)
    assert not slot.is_ready()
    slot.set_ready()
    assert (slot.is_ready(), slot.current()) == (True, "x" * 255)
    slot.begin("y")
    slot.end()
    assert Slot(buffer).is_ready()


def test_waiting_is_a_third_thing() -> None:
    """It neither comes nor goes with a task, and changes nothing of what is said beside it."""
    slot = Slot(bytearray(SLOT_SIZE))
    slot.set_ready()
    slot.begin("x" * 255, 5.0, 2.0)
    assert not slot.is_waiting()
    slot.set_waiting(is_waiting=True)
    assert (slot.is_waiting(), slot.is_ready(), slot.current(), slot.limits()) == (True, True, "x" * 255, (5.0, 2.0))
    slot.begin("y")
    slot.end()
    assert slot.is_waiting()
    slot.set_waiting(is_waiting=False)
    assert not slot.is_waiting()


def test_leaving_is_a_fourth_thing() -> None:
    """It stays, whatever is begun and ended, and changes nothing of what is said beside it."""
    buffer = bytearray(SLOT_SIZE)
    slot = Slot(buffer)
    slot.begin("x" * 255, 5.0, 2.0)
    assert not slot.is_leaving()
    Slot(buffer).set_leaving()
    assert (slot.is_leaving(), slot.is_ready(), slot.is_waiting()) == (True, False, False)
    assert (slot.current(), slot.limits()) == ("x" * 255, (5.0, 2.0))
    slot.end()
    slot.set_ready()
    slot.set_waiting(is_waiting=False)
    slot.begin("y")
    assert slot.is_leaving()


@pytest.mark.parametrize("length", [1, 17, 255])
def test_two_views_of_one_memory(length: int) -> None:
    """What the worker writes the agent reads: they share bytes, not objects."""
    buffer = memoryview(bytearray(SLOT_SIZE))
    Slot(buffer).begin("a" * length)
    assert Slot(buffer).current() == "a" * length


def test_an_id_that_does_not_fit() -> None:
    """It must not be cut, nor run into what lies behind."""
    slot = Slot(bytearray(SLOT_SIZE))
    slot.begin("old")
    with pytest.raises(ValueError):
        slot.begin("x" * 256)
    assert slot.current() == ""


def test_another_limit() -> None:
    """It is the same task, under the new limit; none when it has ended."""
    slot = Slot(bytearray(SLOT_SIZE))
    slot.begin("task", 5.0, 2.0)
    slot.set_limit(3.0, 2.0)
    assert (slot.current(), slot.limits()) == ("task", (3.0, 2.0))
    slot.end()
    assert slot.limits() == (0.0, 0.0)
