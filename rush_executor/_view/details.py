"""One task in full, as text: what `rush-executor tasks show` prints.

Never makes the exception of a failed task: its text was written down in the worker, and the user's modules need not be
here. Inputs and results are unpickled, where the network keeps them; what cannot be is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rush_executor._ledger.views import NetworkReader, Record
from rush_executor._payload.rows import EXTRA, XS, YS, RowCodec
from rush_executor._protocol.records import FAILED_BLOB_TAG, FAILED_TAG, FINISHED_BLOB_TAG, FINISHED_TAG
from rush_executor._view.cells import condition_text
from rush_executor._view.conditions import condition_of
from rush_executor.errors import PayloadError

__all__ = ["TaskDetails", "read_details"]


@dataclass(slots=True)
class TaskDetails:
    """What a task carries, beside what every list of tasks says.

    Attributes:
        xs, ys, extra: Inputs, results and what was stored with them, by name; of a network that keeps its tasks.
        failure: Why it has failed, in a line; empty unless it has.
        traceback: Traceback of the exception that it has raised, as text.
        problems: What cannot be read here, and why.
    """

    xs: dict[str, Any] = field(default_factory=dict)
    ys: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    traceback: str = ""
    problems: list[str] = field(default_factory=list)


def read_details(reader: NetworkReader, codec: RowCodec, task_id: str) -> TaskDetails:
    """Reads a task; of one that is not there (any more) nothing is told."""
    details = TaskDetails()
    for record in reader.read([task_id]):
        _read_rows(reader, codec, record, details)
        _read_outcome(reader, codec, record, details)
    return details


def _read_rows(reader: NetworkReader, codec: RowCodec, record: Record, details: TaskDetails) -> None:
    if record.is_call:
        # An executor's: its arguments are for the worker.
        return

    def inputs() -> None:
        payload = reader.read_blob(record.blob_id) if record.blob_id else record.payload
        content = codec.decode(XS, record.task_id, payload) if payload else {}
        details.xs = content[0] if isinstance(content, tuple) else content

    def extra() -> None:
        for body in (record.extra, record.more):
            if body:
                details.extra |= codec.decode(EXTRA, record.task_id, body)

    for action in (inputs, extra):
        _try(action, details)


def _read_outcome(reader: NetworkReader, codec: RowCodec, record: Record, details: TaskDetails) -> None:
    def outcome() -> None:
        tag, body = record.outcome[:1], record.outcome[1:]
        if tag in (FINISHED_TAG, FINISHED_BLOB_TAG):
            raw = reader.read_blob(body.decode()) if tag == FINISHED_BLOB_TAG else body
            if not record.is_call:
                details.ys = codec.decode(YS, record.task_id, raw)
                return
            details.ys, error = codec.decode_result(record.task_id, raw)
            if error is not None:
                details.failure = condition_text(error)
        elif tag in (FAILED_TAG, FAILED_BLOB_TAG):
            raw = reader.read_blob(body.decode()) if tag == FAILED_BLOB_TAG else body
            details.failure, details.traceback = codec.describe_failure(record.task_id, raw)
        else:
            details.failure = condition_text(condition_of(codec, record.task_id, tag, body))

    if record.outcome:
        _try(outcome, details)


def _try(action: Callable[[], None], details: TaskDetails) -> None:
    try:
        action()
    except PayloadError as error:
        details.problems.append(str(error))
    except KeyError as error:
        details.problems.append(f"the server has lost a part of it: blob {error}")
