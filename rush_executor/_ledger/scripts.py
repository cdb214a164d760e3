"""The Lua scripts, one per transition, and how they are called.

A call goes out as EVALSHA; a server that does not know the script (restarted, SCRIPT FLUSH) says NOSCRIPT and has done
nothing, so the channel loads all scripts and sends that call again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import hiredis

__all__ = ["SCRIPT_TEXTS", "ScriptCall", "evalsha", "load_commands", "pack"]

_FOLDER = Path(__file__).with_name("lua")
# A function of the prelude, with what is said about it.
_SHARED = re.compile(r"^-- \w+: [^\n]*\n(?:--[^\n]*\n)*local function (\w+)\(.*?^end\n", re.MULTILINE | re.DOTALL)


def _read_scripts() -> dict[str, str]:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.lua"))}
    # A script gets those functions that it calls: the server makes them anew each time that it runs the script, and all
    # of them together took it 3 us. Found without `re`, which took every process 27 ms more to start.
    shared = [(match[1], match[0]) for match in _SHARED.finditer(texts.pop("prelude"))]
    # From below: one may call those above it.
    shared.reverse()
    return {name: _with_shared(text, shared) for name, text in texts.items()}


def _with_shared(text: str, shared: list[tuple[str, str]]) -> str:
    for name, function in shared:
        if f"{name}(" in text:
            text = function + text
    return text


SCRIPT_TEXTS: Final = _read_scripts()
_pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
# Written out where it is used, this union would be made anew for every part of a command.
_NUMBERS: Final = (int, float)
_TEXTS: Final = frozenset((str, bytes))
_SHAS: Final = {
    # Redis names a script by its SHA-1; this is an address, not a seal.
    name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    for name, text in SCRIPT_TEXTS.items()
}


def pack(command: tuple[str | bytes | memoryview | float, ...]) -> bytes:
    """Bytes of one command, ready for the wire. hiredis packs in C; redis-py's own packer costs twice as much.

    Numbers become text here. hiredis (3.5) leaves that to Python, which runs signal handlers on the way, and when one
    of them raises (KeyboardInterrupt in a client, the end of a waiting worker) it goes on without a string: a crash.
    """
    # Told in C: most commands are all text.
    if not _TEXTS.issuperset(map(type, command)):
        command = tuple([str(part) if isinstance(part, _NUMBERS) else part for part in command])
    return _pack(command)


def evalsha(name: str, keys: tuple[str, ...], args: list[str | bytes | float]) -> bytes:
    """Packs the call of a script.

    Args:
        name: File name of the script without ``.lua``.
        keys: Its KEYS.
        args: Its ARGV.
    """
    return pack(("EVALSHA", _SHAS[name], str(len(keys)), *keys, *args))


class ScriptCall:
    """Calls of a script that begin alike: KEYS and the first of ARGV, most bytes of a small one, are packed once.

    Args:
        name: File name of the script without ``.lua``.
        keys: Its KEYS.
        args: The first of its ARGV.
    """

    def __init__(self, name: str, keys: tuple[str, ...], args: Sequence[str]) -> None:
        parts = ("EVALSHA", _SHAS[name], str(len(keys)), *keys, *args)
        self._n = len(parts)
        self._head = _without_length(_pack(parts))

    def __call__(self, args: Sequence[str | bytes | float]) -> bytes:
        """Packs a call with these behind the first of ARGV."""
        return b"*%d\r\n%b%b" % (self._n + len(args), self._head, _without_length(pack(tuple(args))))


def _without_length(command: bytes) -> bytes:
    """A packed command without its first line, which says how many parts there are."""
    return command[command.index(b"\n") + 1 :]


def load_commands() -> list[bytes]:
    """Packs what teaches a server all scripts."""
    return [pack(("SCRIPT", "LOAD", text)) for text in SCRIPT_TEXTS.values()]
