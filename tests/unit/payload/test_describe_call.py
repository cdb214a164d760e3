"""What a call calls, read off the beginning of its payload by those who only look."""

from __future__ import annotations

import functools
import math

import pytest

from rush_executor._payload import Encoder
from rush_executor._payload.function import describe_call
from tests.unit.payload import support

SECRET = b"secret"


def describe(fn: object, *, secret: bytes | None = None, is_chunk: bool = False, n_bytes: int = 2048) -> str:
    encoder = Encoder("net", secret)
    function = encoder.encode_function(fn)  # type: ignore[arg-type]
    args = ([(1,), (2,)],) if is_chunk else (1,)
    return describe_call(encoder.encode_call("t-1", function, args, {}, is_chunk=is_chunk)[:n_bytes])


@pytest.mark.parametrize("secret", [None, SECRET])
def test_names(secret: bytes | None) -> None:
    """By reference with its module, by value the bare name; a seal stands in nobody's way, for it hides nothing."""

    def local() -> None: ...

    assert describe(math.factorial, secret=secret) == "math.factorial"
    assert describe(support.add, secret=secret) == "tests.unit.payload.support.add"
    assert describe(pow, secret=secret) == "pow"
    assert describe(lambda x: x, secret=secret) == "test_names.<locals>.<lambda>"
    assert describe(local, secret=secret) == "test_names.<locals>.local"
    assert describe(functools.partial(pow, 2), secret=secret) == "partial(pow)"
    assert describe(math.factorial, secret=secret, is_chunk=True) == "math.factorial (chunk)"


def test_a_long_name_is_cut() -> None:
    """It travels with every call; where it was defined is left out first."""

    def f() -> None: ...

    f.__qualname__ = f"{'outer' * 9}.<locals>.f"
    assert describe(f) == "f"
    f.__qualname__ = "ä" * 21
    assert describe(f) == "ä" * 20
    f.__qualname__ = "a" + "ä" * 21
    assert describe(f) == "a" + "ä" * 19


def test_what_does_not_tell() -> None:
    """Nothing, and bytes that are no call, name nothing; half a call at most half a name."""
    assert describe_call(b"") == ""
    assert describe_call(b"\x00") == ""
    assert describe_call(b"\x00\x00\x05hello") == ""
    assert describe(math.factorial, n_bytes=10) == "math.f"
