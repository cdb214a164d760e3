"""Records: what client and worker say to each other beside payloads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._protocol import records
from rush_executor._protocol.records import Claim, Loss, NewTask, TaskOptions

TAGS = {name: value for name, value in vars(records).items() if name.endswith("_TAG")}


def test_tags_are_told_apart() -> None:
    """Each tag is one byte, and no two are the same."""
    assert all(isinstance(tag, bytes) and len(tag) == 1 for tag in TAGS.values())
    assert len(set(TAGS.values())) == len(TAGS) >= 7
    assert TAGS.keys() <= set(records.__all__)


@given(
    st.builds(
        Loss,
        worker_id=st.text(),
        host=st.text(),
        pid=st.integers(),
        exitcode=st.none() | st.integers(-64, 255),
        reason=st.text(),
    )
)
def test_a_loss_travels(loss: Loss) -> None:
    """What the agent says is what the client reads, whatever its host is called; and it is one line of plain text."""
    raw = loss.to_bytes()
    assert Loss.from_bytes(raw) == loss
    raw.decode("ascii")
    assert b"\n" not in raw


def test_no_blob_unless_told() -> None:
    """A payload of usual size has none."""
    assert NewTask("c-1", b"x", TaskOptions(2, 0)).blob_id == ""
    assert Claim("c-1", 1, b"x").blob_id == ""


@pytest.mark.parametrize("record", [NewTask("c-1", b"", TaskOptions(2, 0)), Claim("c-1", 1, b"")])
def test_records_do_not_change(record: object) -> None:
    """They cross threads."""
    with pytest.raises(AttributeError):
        record.task_id = "c-2"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("exitcode", "stderr", "ending"),
    [
        (1, "Traceback ...\n  in f\nValueError: no\n\n", "ended: ValueError: no"),
        (1, "", "ended"),
        (1, "x" * 10_000, "ended: " + "x" * 500),
        (-11, "a warning", "ended"),
        (None, "a warning", "ended"),
        (0, "a warning", "ended"),
    ],
)
def test_how_a_worker_ended(exitcode: int | None, stderr: str, ending: str) -> None:
    """With the exception, where an interpreter has failed; what else was written last says nothing of the end."""
    assert Loss("w", "host", 1, exitcode, "ended", stderr=stderr).ending == ending
