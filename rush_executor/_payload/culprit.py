"""Says which value could not be pickled, where in the arguments it sits, and what to do about it.

Knows pickling and what values are made of (`parts`). Must not know payloads. Called by `Encoder` and `Decoder` when
pickling has failed, so it may take its time, but not for ever: the search tries a bounded number of parts, each by
pickling it alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pickle import PickleBuffer
from typing import Any, Final, NamedTuple

from rush_executor._payload.names import describe_error, drop_frames, type_name
from rush_executor._payload.parts import parts_of
from rush_executor._payload.pickler import CloudPickler
from rush_executor.errors import PayloadError

__all__ = ["RESULT_ADVICE", "Suspect", "cannot_pickle"]

_DEEPEST: Final = 8

_ADVICE: Final = "Leave it out, or create it inside the task."
# For what a task returns.
RESULT_ADVICE: Final = "Return what can be: a list in place of a generator, what a file holds in place of the file."


class Suspect(NamedTuple):
    """A value that may be to blame.

    Attributes:
        label: What it is to the user: ``argument 2 of train()``.
        path: How one would reach it: ``args[1]``.
        value: The value.
    """

    label: str
    path: str
    value: Any


def cannot_pickle(
    suspects: Iterable[Suspect],
    whole: str,
    error: BaseException,
    *,
    passes: tuple[type[BaseException], ...] = (),
    advice: str = _ADVICE,
) -> PayloadError:
    """Makes the error that names the culprit.

    Args:
        suspects: The parts of what could not be pickled.
        whole: What to call all of it, if each part can be pickled alone.
        error: What pickling raised.
        passes: Exceptions to let through, should pickling raise them during the search.
        advice: What to do, for people.

    Returns:
        The error, with `error` as its cause.
    """
    message = f"{whole} cannot be pickled: {describe_error(error)}."
    for label, path, value in suspects:
        own_error = _try(value, passes)
        if own_error is not None:
            message = _describe(label, path, value, own_error, passes)
            break
    failure = PayloadError(f"{message} {advice}")
    failure.__cause__ = error
    # Frames of the cause hold what was being pickled, and a Future holds its exception.
    drop_frames(error)
    return failure


def _describe(label: str, path: str, value: Any, error: BaseException, passes: tuple[type[BaseException], ...]) -> str:
    culprit, culprit_path, culprit_error = _narrow(value, path, error, passes)
    kind = type_name(type(culprit))
    reason = describe_error(culprit_error)
    if culprit is value:
        return f"{label} (a {kind}) cannot be pickled: {reason}."
    return f"{label} cannot be pickled: {culprit_path} is a {kind}: {reason}."


def _narrow(
    value: Any, path: str, error: BaseException, passes: tuple[type[BaseException], ...]
) -> tuple[Any, str, BaseException]:
    for _ in range(_DEEPEST):
        for suffix, part in parts_of(value):
            part_error = _try(part, passes)
            if part_error is not None:
                value, path, error = part, path + suffix, part_error
                break
        else:
            break
    return value, path, error


def _try(value: Any, passes: tuple[type[BaseException], ...]) -> BaseException | None:
    try:
        pickler = CloudPickler(_Nowhere(), _ignore)
        pickler.references = []
        pickler.dump(value)
    except passes:
        raise
    except BaseException as error:  # noqa: BLE001 - user code may raise anything
        # Only its text is of use, and its frames hold the value.
        drop_frames(error)
        return error.with_traceback(None)
    return None


class _Nowhere:
    """A file that keeps nothing."""

    __slots__ = ()

    def write(self, data: Any) -> None:
        """Takes what is written."""


def _ignore(buffer: PickleBuffer) -> None:
    """Takes a buffer."""
