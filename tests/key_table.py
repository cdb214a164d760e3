"""The table of keys in the docstring of `_protocol/keys.py`, read, to hold code and servers against it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rush_executor._protocol import keys as keys_module

__all__ = ["KeyRow", "key_rows"]


@dataclass(frozen=True)
class KeyRow:
    """One row of the table.

    Attributes:
        name: What stands before the first ``:``, e.g. ``task``.
        of: Whose key it is (``worker`` in ``running_tasks:<worker>``); empty for a key of the network.
        type: As the server's TYPE says.
        fields: The fields of a hash, where the table names them.
        deleter: Who deletes it.
        has_ttl: Whether the row says that it has a TTL.
    """

    name: str
    of: str
    type: str
    fields: frozenset[str]
    deleter: str
    has_ttl: bool


def key_rows() -> dict[str, KeyRow]:
    """The rows, by name."""
    rows: dict[str, KeyRow] = {}
    for line in (keys_module.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) != 4 or not cells[0].startswith("`"):
            continue
        key, kind, meaning, deleter = cells
        match = re.fullmatch(r"`(\w+)(?::<(\w+)>)?`", key)
        assert match, key
        name, of = match.groups()
        assert name not in rows
        has_ttl = "TTL" in meaning + deleter
        rows[name] = KeyRow(name, of or "", kind, frozenset(re.findall(r"`(\w+)`", meaning)), deleter, has_ttl)
    return rows
