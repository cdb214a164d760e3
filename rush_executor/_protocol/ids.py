"""Ids of networks, clients, agents, workers and tasks.

A task id begins with the id of its client, so that ids of many clients never meet and a log line tells whose task it
was. Eight bytes of randomness: with a million ids in one network the chance of a clash is below 1 in 10 million.
"""

from __future__ import annotations

import secrets

__all__ = ["client_of", "new_id", "task_id"]


def new_id() -> str:
    """A fresh id: 16 hexadecimal digits."""
    return secrets.token_hex(8)


def task_id(client_id: str, number: int) -> str:
    """The id of a client's n-th task."""
    return f"{client_id}-{number}"


def client_of(task_id: str) -> str:
    """The client that a task id begins with."""
    return task_id.partition("-")[0]
