"""Ids of networks, clients, agents, workers and tasks.

A task id begins with the id of its client, so that ids of many clients never meet and a log line tells whose task it
was. Eight bytes of randomness: with a million ids in one network the chance of a clash is below 1 in 10 million.
"""

from __future__ import annotations

import base64
import secrets

__all__ = ["client_of", "new_id", "task_id"]


def new_id() -> str:
    """A fresh id: 13 lower-case letters and digits.

    Short, as the names of all keys have some, of each task's too; of one case, as there are files of such names, and
    file systems that do not tell cases apart.
    """
    return base64.b32encode(secrets.token_bytes(8))[:13].decode().lower()


def task_id(client_id: str, number: int) -> str:
    """The id of a client's n-th task."""
    return f"{client_id}-{number}"


def client_of(task_id: str) -> str:
    """The client that a task id begins with."""
    return task_id.partition("-")[0]
