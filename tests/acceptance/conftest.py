"""What the acceptance tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rush_executor import RushExecutor


@pytest.fixture
def lone(server_url: str) -> Iterator[RushExecutor]:
    """An executor with one worker: what a task leaves in its process, the next one finds."""
    with RushExecutor(1, url=server_url) as executor:
        yield executor
