"""How a call names its function: by an importable name, or by the digest of a stored pickle.

Knows the few bytes (the *spec*) that stand in every call's payload; written by `Encoder`, read by `Decoder`. Behind a
digest stands what the function is called, for people who look at tasks from outside (`describe_call`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from rush_executor._payload.reference import Reference
from rush_executor._payload.scattered import RushReference
from rush_executor._payload.wire import CHUNK, SEAL_SIZE, SEALED

__all__ = [
    "BY_DIGEST",
    "BY_REFERENCE",
    "DIGEST_SIZE",
    "EncodedFunction",
    "describe_call",
    "digest_of_spec",
    "end_of_spec",
    "read_reference",
    "spec_of_digest",
    "spec_of_reference",
]

BY_REFERENCE: Final = ord("R")
BY_DIGEST: Final = ord("D")

_LENGTH_SIZE: Final = 2
_LONGEST_NAME: Final = 4096
DIGEST_SIZE: Final = 16
# Bytes of the name behind a digest: it travels with every call.
_LONGEST_LABEL: Final = 40


class EncodedFunction(NamedTuple):
    """A function as its calls refer to it.

    Attributes:
        spec: What travels in every call's payload, its own length first.
        digest: Under which the body is to be stored; None for a function that goes by reference.
        body: What is to be stored there; None for a function that goes by reference.
        name: Qualified name, for messages.
        references: To what was scattered, and is part of it.
    """

    spec: bytes
    digest: str | None
    body: bytes | None
    name: str
    references: tuple[RushReference, ...] = ()

    def __repr__(self) -> str:
        return f"EncodedFunction({self.name!r}, digest={self.digest!r})"


def spec_of_reference(reference: Reference) -> bytes | None:
    """Returns the spec for a name; None if the name is too long for one."""
    name = f"{reference.module}:{'.'.join(reference.names)}".encode("utf-8", "surrogatepass")
    return _framed(b"R" + name) if len(name) <= _LONGEST_NAME else None


def spec_of_digest(digest: bytes, name: str) -> bytes:
    """Returns the spec for a stored function of this name."""
    if len(name) > _LONGEST_LABEL:
        name = name.rpartition("<locals>.")[2]
    return _framed(b"D" + digest + name.encode("utf-8", "replace")[:_LONGEST_LABEL])


def digest_of_spec(spec: bytes) -> str:
    """Returns the digest in the spec of a stored function, in hexadecimal."""
    return spec[1 : 1 + DIGEST_SIZE].hex()


def end_of_spec(payload: bytes, start: int) -> int:
    """Where the spec ends in a call's payload, given where it starts."""
    body = start + _LENGTH_SIZE
    return body + int.from_bytes(payload[start:body], "big")


def describe_call(head: bytes) -> str:
    """Returns what a call calls, for people: ``package.module.name``, or the bare name of a function sent by value.

    Neither verifies nor unpickles.

    Args:
        head: The beginning of the call's payload.

    Returns:
        Empty if that does not tell.
    """
    if not head:
        return ""
    start = 1 + SEAL_SIZE * bool(head[0] & SEALED)
    spec = head[start + _LENGTH_SIZE : end_of_spec(head, start)]
    if spec[:1] == b"R":
        name = spec[1:].decode("utf-8", "ignore").removeprefix("builtins:").replace(":", ".", 1)
    elif spec[:1] == b"D":
        # It may have been cut in the middle of a character.
        name = spec[1 + DIGEST_SIZE :].decode("utf-8", "ignore")
    else:
        return ""
    return f"{name} (chunk)" if name and head[0] & CHUNK else name


def read_reference(name: bytes) -> Reference:
    """Reads a name back.

    Raises:
        ValueError: These bytes are no name.
    """
    module, _, qualname = name.decode("utf-8", "surrogatepass").partition(":")
    if not module or not qualname:
        raise ValueError("the function's name is damaged")
    return Reference(module, tuple(qualname.split(".")))


def _framed(spec: bytes) -> bytes:
    return len(spec).to_bytes(_LENGTH_SIZE, "big") + spec
