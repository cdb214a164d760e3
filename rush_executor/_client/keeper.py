"""Whoever keeps the workers that belong to a client, as the client sees it: it does not know how that is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["NoWorkers", "WorkerKeeper"]


class NoWorkers(Exception):
    """A keeper cannot get workers to run, and has given up; the message says why."""


class WorkerKeeper(Protocol):
    """Whoever keeps workers for a session."""

    @property
    def agent_id(self) -> str:
        """The agent that is in charge of the workers; empty where there is none of one's own."""

    def has_workers(self) -> bool:
        """Whether there are any to be kept: however long they take to start, they come, or `check` says why not."""

    def check(self) -> str | None:
        """Looks after the workers; called once or twice a second.

        Returns:
            Id of an agent that has died since the last look, if one has, and been replaced.

        Raises:
            NoWorkers: It cannot be replaced. Raised once.
            NetworkLostError: It has waited for the server for too long, though the client may reach it: there may be no
                room for what workers write, or no place for another connection.
        """

    def end_agent(self) -> None:
        """Kills an agent that stands still: `check` finds it dead and replaces it."""

    def stop(self, *, now: bool, is_in_vain: Callable[[], bool]) -> str | None:
        """Ends the workers: after what they run, or now.

        Args:
            now: Whether to end what they run.
            is_in_vain: Asked now and then while it waits: whether nothing is to be waited for any more.

        Returns:
            Id of the agent, if it has died in another way: nobody has put right what its workers held.
        """

    def check_server(self) -> None:
        """Does nothing while what the ledger itself lives on may be there; from any thread.

        Raises:
            ServerError: It was private, and has ended.
        """

    def close(self) -> None:
        """Ends what the ledger itself lived on, if it was private. Nothing is sent any more."""

    def disown(self) -> None:
        """In a forked child: lets go of what is the parent's."""
