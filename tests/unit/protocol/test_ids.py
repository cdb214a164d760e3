"""Ids: of different things never the same, and a task's tells its client."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from rush_executor._protocol.ids import client_of, new_id, task_id
from rush_executor._protocol.slots import SLOT_SIZE


def test_new_ids() -> None:
    """13 lower-case letters and digits, new every time."""
    ids = {new_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(re.fullmatch("[a-z2-7]{13}", name) for name in ids)


@given(st.integers(min_value=1))
def test_a_task_tells_its_client(number: int) -> None:
    """`client_of` is the inverse of `task_id`."""
    client = new_id()
    assert client_of(task_id(client, number)) == client


def test_tasks_of_two_clients_never_meet() -> None:
    """Ids have one length, so no client's id begins with another's."""
    one, two = new_id(), new_id()
    assert task_id(one, 1) != task_id(two, 1)
    assert task_id(one, 11) != task_id(one, 1)


def test_a_task_id_fits_into_a_slot() -> None:
    """Even the last of 2^63 tasks."""
    assert len(task_id(new_id(), 2**63)) < min(256, SLOT_SIZE - 8)
