"""Tracebacks as plain data and back, with tblib.

Knows frames' files, names and lines; locals are never carried. Called by `exceptions` on both sides.

tblib's own reducer writes a traceback as a chain of objects, each inside the one before, so that a few hundred frames
exceed the recursion limit: a RecursionError, of all exceptions, could not be carried. Here it is a flat tuple.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

from tblib import Traceback

__all__ = ["Frames", "flatten", "unflatten"]

# File, function, line, module.
Frames = tuple[tuple[str, str, int, str], ...]

# Each frame costs the client about 10 us. The default recursion limit, 1000, stays below; of what is deeper, both ends
# are carried, and the traceback's text tells how often the middle repeats.
_MOST_FRAMES: Final = 2000


def flatten(traceback: TracebackType | None) -> Frames:
    """Returns what is needed to print the traceback."""
    frames = []
    entry = traceback
    while entry is not None:
        code = entry.tb_frame.f_code
        module = entry.tb_frame.f_globals.get("__name__")
        # tb_lineno is None for code without lines.
        line = entry.tb_lineno or 0
        frames.append((code.co_filename, code.co_name, line, module if type(module) is str else ""))
        entry = entry.tb_next
    if len(frames) > _MOST_FRAMES:
        half = _MOST_FRAMES // 2
        frames[half:-half] = []
    return tuple(frames)


def unflatten(frames: Frames) -> TracebackType | None:
    """Makes a real traceback, good for raising, printing and debuggers."""
    chain = None
    for frame in reversed(frames):
        link = Traceback.from_dict(_as_dict(*frame))
        link.tb_next = chain
        chain = link
    if chain is None:
        return None
    rebuilt: TracebackType | None = chain.as_traceback()
    return rebuilt


def _as_dict(filename: str, function: str, line: int, module: str) -> dict[str, Any]:
    return {
        "tb_frame": {
            "f_globals": {"__name__": module, "__file__": filename},
            "f_locals": {},
            "f_code": {"co_filename": filename, "co_name": function},
            "f_lineno": line,
        },
        "tb_lineno": line,
        "tb_next": None,
    }
