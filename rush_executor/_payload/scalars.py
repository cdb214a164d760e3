"""Which values plain pickle writes exactly as cloudpickle would.

Knows types only. Exact builtin scalars, and one level of small containers of them, hold nothing that cloudpickle treats
in its own way (functions, classes, objects of `__main__`), so its set-up (about 2 us) can be saved. Anything else, or
anything large, goes the general way. Called by `Encoder` and `Decoder` before they pickle.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["is_plain", "is_plain_row"]

_FIXED: Final = frozenset((int, float, bool, complex, type(None)))
_TEXTS: Final = frozenset((str, bytes))
_NAMES: Final = frozenset((str,))
_SEQUENCES: Final = frozenset((tuple, list))
# Longer ones would be copied once more than in the general way.
_LONGEST_TEXT: Final = 4096
# A look at one item costs 30 ns: so many cost as much as cloudpickle's set-up, which then is the better way.
_MOST_ITEMS: Final = 32


def is_plain(items: tuple[Any, ...]) -> bool:
    """Tells whether every item is an exact builtin scalar or a small tuple, list or dict of such."""
    n_items = len(items)
    if n_items > _MOST_ITEMS:
        return False
    for item in items:
        kind = type(item)
        if kind in _FIXED:
            continue
        if kind in _TEXTS:
            if len(item) > _LONGEST_TEXT:
                return False
            continue
        if kind in _SEQUENCES:
            parts = item
        elif kind is dict:
            parts = (*item, *item.values()) if len(item) <= _MOST_ITEMS else item
        else:
            return False
        n_items += len(parts)
        if n_items > _MOST_ITEMS or not _are_scalars(parts):
            return False
    return True


def is_plain_row(row: Any) -> bool:
    """As `is_plain` of this one item: of a dict with names and numbers alone, as most rows are, it is told faster."""
    if type(row) is dict and _NAMES.issuperset(map(type, row)) and _FIXED.issuperset(map(type, row.values())):
        return True
    return is_plain((row,))


def _are_scalars(parts: Any) -> bool:
    for part in parts:
        kind = type(part)
        if kind not in _FIXED and (kind not in _TEXTS or len(part) > _LONGEST_TEXT):
            return False
    return True
