"""The payloads of what tasks return.

Knows results and chunks of results. Must not know calls. `Decoder` hands on to here what is not a plain value.
"""

from __future__ import annotations

from typing import Any

from rush_executor._payload.content import Shelter
from rush_executor._payload.culprit import RESULT_ADVICE, Suspect, cannot_pickle
from rush_executor._payload.envelope import Envelope
from rush_executor._payload.failure import pack_failure
from rush_executor._payload.wire import CHUNK
from rush_executor.errors import PayloadError

__all__ = ["wrap_chunk", "wrap_result"]


def wrap_result(
    envelope: Envelope, task_id: str, value: Any, *, shelter: Shelter | None = None, compresses: bool = False
) -> bytes:
    """Makes the payload of any result.

    Args:
        envelope: Wraps it.
        task_id: The task.
        value: The result.
        shelter: Keeps it if it is large.
        compresses: Whether to compress it otherwise, if that is worth it.

    Raises:
        PayloadError: It cannot be pickled.
    """
    try:
        return envelope.wrap_object("finished", task_id, 0, value, shelter=shelter, compresses=compresses)
    except BaseException as error:  # noqa: BLE001 - a reducer of the task's may raise anything, even SystemExit
        what = "the result of the task"
        failure = cannot_pickle([Suspect(what, "result", value)], what, error, advice=RESULT_ADVICE)
    # A frame that the error holds would hold the result.
    del value
    raise failure


def wrap_chunk(
    envelope: Envelope,
    task_id: str,
    values: list[Any],
    packed: bytes | None,
    *,
    shelter: Shelter | None = None,
    compresses: bool = False,
) -> bytes:
    """Makes the payload of a chunk of results; never raises.

    A value that cannot be pickled ends the chunk, as if its call had raised.

    Args:
        envelope: Wraps it.
        task_id: The task.
        values: Results of the calls before the first that failed.
        packed: How that one failed, from `pack_failure`; None if none failed.
        shelter: Keeps it if it is large.
        compresses: Whether to compress it otherwise, if that is worth it.
    """
    try:
        return envelope.wrap_object(
            "finished", task_id, CHUNK, (values, packed), shelter=shelter, compresses=compresses
        )
    except BaseException as error:  # noqa: BLE001 - as above
        good, failure = _split(envelope, values, error)
    try:
        return envelope.wrap_object(
            "finished", task_id, CHUNK, (good, pack_failure(failure)), shelter=shelter, compresses=compresses
        )
    except BaseException as error:  # noqa: BLE001 - a reducer that works every other time
        failure = cannot_pickle([], "the results of the chunk", error, advice=RESULT_ADVICE)
        return envelope.wrap_object("finished", task_id, CHUNK, ([], pack_failure(failure)))


def _split(envelope: Envelope, values: list[Any], error: BaseException) -> tuple[list[Any], PayloadError]:
    """Returns the values before the first that cannot be pickled, and the error that names that one."""
    for n, value in enumerate(values):
        try:
            envelope.wrap_object("finished", "", 0, value)
        except BaseException as own_error:  # noqa: BLE001 - as above
            label = f"the result of call {n + 1} of the chunk"
            suspect = Suspect(label, "result", value)
            return values[:n], cannot_pickle([suspect], label, own_error, advice=RESULT_ADVICE)
    return [], cannot_pickle([], "the results of the chunk", error, advice=RESULT_ADVICE)
