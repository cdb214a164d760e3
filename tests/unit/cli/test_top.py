"""What `top` and `status` show of a network, from pictures that were made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rush_executor._cli.output import Line, plain_lines
from rush_executor._cli.status import count_blocks
from rush_executor._cli.top import frame_blocks
from rush_executor._view.lookout import Meter, Picture
from tests.unit.view.pictures import EMPTY, worker


def frame(picture: Picture, meter: Meter | None = None, height: int | None = None) -> list[str]:
    meter = meter or Meter(4)
    blocks = frame_blocks(
        picture, meter, server="redis://s", server_text="Valkey 9", rate=meter.note(picture), height=height
    )
    return list(plain_lines(blocks, None))


def test_a_frame() -> None:
    """Which network, how many tasks in which state, who runs what, and for how long."""
    picture = replace(
        EMPTY,
        n_queued=1234,
        n_running=1,
        n_ended=5,
        n_failed=2,
        workers=[worker("w1", what="train", since=1_799_999_988.0), worker("w2")],
    )
    lines = frame(picture)
    assert lines[0] == "network demo (an executor's) on redis://s"
    assert lines[1].endswith("  Valkey 9")
    assert lines[2:] == [
        "tasks    1,234 queued, 1 running, 5 ended",
        "failed   2",
        "workers  2 on 1 host: 1 idle, 1 running",
        "clients  1",
        "",
        "worker  host  pid  state    claimed  runs   attempt   for  task",
        "w1      host    7  running        1  train        2  12 s  t-w1",
        "w2      host    7  idle",
    ]


def test_many_workers() -> None:
    """As many lines as there is room for, and how many workers are left out."""
    picture = replace(EMPTY, workers=[worker(f"w{i}", what="f", since=1.0) for i in range(100)])
    lines = frame(picture, height=20)
    assert len(lines) == 20
    assert lines[-1] == "and 89 more workers"
    assert frame(picture, height=3)[-1] == "and 99 more workers"
    assert len(frame(picture)) > 100


def test_the_rate_is_drawn() -> None:
    """From one picture to the next: as high as the highest."""
    meter = Meter(3)
    for second, ended in enumerate((0, 10, 30, 30, 35)):
        lines = frame(replace(EMPTY, looked_at=1000.0 + second, n_ended=ended), meter)
    assert lines[2] == "tasks    0 queued, 0 running, 35 ended, 5.0 per second"
    assert lines[6] == "rate     █▁▃  at most 20 per second"


def test_the_meter() -> None:
    """Knows nothing of one picture; begins anew with another network; is not led astray by clocks and retries."""
    meter = Meter(10)
    assert meter.note(EMPTY) is None
    assert meter.note(replace(EMPTY, looked_at=EMPTY.looked_at + 2, n_ended=7)) == pytest.approx(3.5)
    # A failed task was queued again.
    assert meter.note(replace(EMPTY, looked_at=EMPTY.looked_at + 3, n_ended=6)) == 0
    assert meter.note(replace(EMPTY, looked_at=EMPTY.looked_at, n_ended=9)) is None
    assert meter.rates == [3.5, 0.0]
    assert meter.note(replace(EMPTY, epoch="another", n_ended=9)) is None
    assert meter.rates == []


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (replace(EMPTY, is_broken=True), "no worker can start"),
        (replace(EMPTY, is_restoring=True), "being restored"),
        (replace(EMPTY, n_queued=1), "no worker is there"),
        (replace(EMPTY, kind="tasks", n_workers_ended={"terminated": 0, "killed": 2, "lost": 1}), "2 killed, 1 lost"),
    ],
)
def test_what_is_said_besides(picture: Picture, text: str) -> None:
    """What keeps tasks from being run is told."""
    assert any(text in block.text for block in count_blocks(picture, None) if isinstance(block, Line))
    assert not any(text in block.text for block in count_blocks(EMPTY, None) if isinstance(block, Line))
