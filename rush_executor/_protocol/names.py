"""Names of values: what may be called what, so that every value of a task has a column of its own.

A task's inputs (`xs`), results (`ys`) and extra values, and what the ledger keeps of it, are shown as the columns of
one table. Whoever writes values checks their names here before they are stored: afterwards nobody can be told.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["GROUPS", "RESERVED", "check_inputs", "check_names"]

# The parts of a task that hold named values, and what one value of each is called in a message.
GROUPS: Final[dict[str, str]] = {"xs": "an input", "ys": "a result", "extra": "an extra value"}

# Columns that every table of tasks has. The names of the groups stand for all columns of the group.
RESERVED: Final[frozenset[str]] = frozenset(
    {"key", "state", "worker_id", "condition", "pushed_at", "started_at", "ended_at", "attempts", *GROUPS}
)


def check_names(xs: Mapping[str, Any], ys: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Checks the names of a task's values; ``{}`` for what is not there.

    Costs about half a microsecond for names that were seen before, as those of nearly all tasks were.

    Raises:
        TypeError: A name is no str, or one of the arguments no mapping.
        ValueError: Two values have the same name, a name is one that every table of tasks has something else by, or
            it cannot be written as UTF-8.
    """
    try:
        names = tuple(xs.keys()), tuple(ys.keys()), tuple(extra.keys())
    except AttributeError:
        group, values = next((g, v) for g, v in zip(GROUPS, (xs, ys, extra), strict=True) if not hasattr(v, "keys"))
        raise TypeError(f"{group} must be a mapping of names to values, not a {type(values).__name__}") from None
    _check(names)


def check_inputs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Checks the names of tasks that have inputs and nothing else; raises as `check_names`.

    Most have the same names: those are checked once.
    """
    usual = {tuple(row): row for row in rows if type(row) is dict}
    for row in itertools.chain(usual.values(), (row for row in rows if type(row) is not dict)):
        check_names(row, {}, {})


@functools.lru_cache(maxsize=1024)  # which remembers what passed: an error is raised anew each time
def _check(names: tuple[tuple[str, ...], ...]) -> None:
    homes: dict[str, str] = {}
    for group, members in zip(GROUPS, names, strict=True):
        for name in members:
            _check_name(name, group)
            if name in homes:
                raise ValueError(
                    f"{name!r} is {GROUPS[homes[name]]} (in {homes[name]}) and {GROUPS[group]} (in {group}) of the "
                    f"same task: they are columns of one table, so each needs a name of its own."
                )
        homes.update(dict.fromkeys(members, group))


def _check_name(name: object, group: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"Names in {group} must be str, not {type(name).__name__}: {name!r}")
    if name in RESERVED:
        raise ValueError(
            f"{GROUPS[group].capitalize()} cannot be called {name!r} (in {group}): every table of tasks has "
            f"something else by that name. Taken are {', '.join(sorted(RESERVED))}."
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} in {group} cannot be written as UTF-8, so it cannot name a column.") from None
