"""An owner of Futures, for tests of what holds them."""

from __future__ import annotations

from rush_executor._client.future import RushFuture


class Owner:
    """Of Futures that nobody asks anything."""

    def cancel(self, future: RushFuture) -> bool:
        return False

    def kill(self, future: RushFuture) -> bool:
        return False

    def is_running(self, future: RushFuture) -> bool:
        return False

    def expect_callbacks(self) -> None: ...

    def run_callbacks(self, future: RushFuture) -> None: ...
