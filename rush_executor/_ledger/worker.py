"""What a worker asks of the ledger: claim, finish, release, and the bytes of functions and blobs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from rush_executor._config import DEFAULT_MAX_RETRIES
from rush_executor._ledger.blobs import LARGE_PAYLOAD, read_blob, write_blob
from rush_executor._ledger.connection import BLOCK_S, Channel, WorkerGone
from rush_executor._ledger.folder import Folder
from rush_executor._ledger.scripts import evalsha, pack
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import (
    FAILED_BLOB_TAG,
    FAILED_TAG,
    FINISHED_BLOB_TAG,
    FINISHED_TAG,
    Claim,
    TaskOptions,
)

__all__ = ["Claimed", "Outcome", "WorkerLedger"]

# A rank is the number of the submission, less the priority times this: push_tasks.lua.
_SUBMISSIONS: Final = 1 << 40


class Outcome(NamedTuple):
    """How a task ended in this worker.

    Attributes:
        claim: The task, and which attempt at it.
        is_failure: Whether `body` is a failure.
        body: Sealed result or failure.
        more: What is to be known beside it, sealed; only where the network keeps its tasks.
    """

    claim: Claim
    is_failure: bool
    body: bytes
    more: bytes = b""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a claim.

    Attributes:
        claims: What this worker holds now.
        n_queued: How many tasks were left in the queue.
        refused: Ids of outcomes that were handed in along with the claim and came too late.
    """

    claims: list[Claim]
    n_queued: int
    refused: list[str]


class WorkerLedger:
    """One worker's transitions.

    Args:
        channel: A connection of its own.
        keys: Of the network.
        worker_id: The worker.
        epoch: Which creation of the network it was started for.
        keeps: Whether the network keeps its tasks.
        is_durable: Whether it keeps calls and their outcomes.
    """

    def __init__(
        self, channel: Channel, keys: Keys, worker_id: str, epoch: str, *, keeps: bool = False, is_durable: bool = False
    ) -> None:
        self._channel = channel
        self._keys = keys
        self._worker_id = worker_id
        k = keys
        self._running_key = k.running_tasks(worker_id)
        self._claim_keys: tuple[str, ...] = (k.network, k.queued_tasks, self._running_key, k.worker_ids)
        self._claim_args = [epoch, worker_id]
        self._claim_prefixes = [k.task(), k.client(), k.blob()]
        self._keep_keys = (self._running_key, k.finished_tasks, k.failed_tasks, k.ends)
        self._finish_args = [worker_id, k.task(), k.client(), k.inbox(), k.blob()]
        # Where a network that keeps its tasks puts what is too large for the server.
        self.folder: Folder | None = None
        self._keeps = keeps
        self._keeps_outcomes = keeps or is_durable
        self._bells: tuple[str, ...] = (k.bell,)
        if keeps:
            self._claim_keys += (k.worker_queue(worker_id),)
            self._bells = (k.worker_bell(worker_id), k.bell)
        self._wait = self._wait_for(BLOCK_S)
        # Packed, by how many are claimed: it is the same each time for a worker that holds nothing.
        self._claims: dict[int, bytes] = {}
        self._can_mute = False
        # Blobs of outcomes that were sent off and not answered, by task and attempt. Handed in again, an outcome brings
        # the same blob: a new one would be refused with it, and nobody would delete it.
        self._written: dict[tuple[str, int], str] = {}
        # What was handed in and is not answered; and of what is handed in now, what may have arrived before.
        self._unanswered: Sequence[Outcome] = ()
        self._doubtful: set[str] = set()
        self._n_breaks = 0

    def register(self, agent_id: str, host: str, pid: int) -> None:
        """Joins the network: from now on this worker may claim.

        Raises:
            WorkerGone: Its agent has not announced it, or has been taken for dead since.
        """
        k = self._keys
        keys: tuple[str, ...] = (k.worker(self._worker_id), k.worker_ids, k.agent_workers(agent_id))
        if self._keeps:
            keys += (k.terminated_worker_ids, k.killed_worker_ids, k.lost_worker_ids)
        self._can_mute = self._channel.can_mute()
        self._channel.call(evalsha("register_worker", keys, [self._worker_id, agent_id, host, pid]))

    def exchange(
        self, outcomes: Sequence[Outcome], *, limit: int, wait: bool, wait_s: float = BLOCK_S, known: Iterable[str] = ()
    ) -> Claimed:
        """Hands in outcomes and claims, in one round trip.

        Args:
            outcomes: Of tasks that this worker has run.
            limit: How many tasks to claim at most.
            wait: Whether to wait for the bell first. The claim stands behind the bell in the same
                packet, and the server runs it when the bell rings: waking up costs no second trip.
            wait_s: For how long, at most `BLOCK_S`.
            known: Tasks that this worker holds; others that it holds by the ledger are given to it again.
        """
        commands = ([self._wait] if wait_s == BLOCK_S else [self._wait_for(wait_s)]) if wait else []
        muted = self._add_claim(commands, outcomes, limit, known)
        self._hand_in(outcomes)
        return self._claimed(outcomes, lambda: self._channel.call(*commands, muted=muted))

    def ask(self, outcomes: Sequence[Outcome], *, limit: int, known: Iterable[str]) -> None:
        """Hands in outcomes and claims, as `exchange`, but does not wait for the answer."""
        commands: list[bytes] = []
        muted = self._add_claim(commands, outcomes, limit, known)
        self._hand_in(outcomes)
        self._channel.ask(*commands, muted=muted)

    def answer(self, outcomes: Sequence[Outcome]) -> Claimed:
        """What was asked for last; to be called before anything else of this ledger.

        Args:
            outcomes: Those that were handed in with it.
        """
        return self._claimed(outcomes, self._channel.answer)

    def _add_claim(self, commands: list[bytes], outcomes: Sequence[Outcome], limit: int, known: Iterable[str]) -> bytes:
        """Adds what claims, and what hands in where that needs an answer; returns it where it needs none."""
        held = tuple(known)
        claim = None if held else self._claims.get(limit)
        if claim is None:
            args: list[str | bytes | float] = [*self._claim_args, limit, *self._claim_prefixes, *held]
            claim = evalsha("claim_tasks", self._claim_keys, args)
            if not held:
                self._claims[limit] = claim
        commands.append(claim)
        finish = self._finish(outcomes) if outcomes else b""
        if not finish or self._can_mute:
            return finish
        commands.insert(0, finish)
        return b""

    def _claimed(self, outcomes: Sequence[Outcome], read: Callable[[], Sequence[Any]]) -> Claimed:
        try:
            replies = read()
        except WorkerGone:
            # Now it is known: what is refused has come too late.
            self._answered(())
            raise
        reply = replies[-1]
        fields = iter(reply)
        next(fields)
        claims = [
            Claim(task_id.decode(), int(attempt), payload, blob_id.decode(), *_limits(limits))
            for task_id, attempt, payload, blob_id, limits in zip(fields, fields, fields, fields, fields, strict=True)
        ]
        if outcomes and self._can_mute:
            claims, refused = self._settle(outcomes, claims)
            self._answered(())
        else:
            refused = self._answered(replies[0] if outcomes else ())
        return Claimed(claims, reply[0], refused)

    def _settle(self, outcomes: Sequence[Outcome], claims: list[Claim]) -> tuple[list[Claim], list[str]]:
        """What became of outcomes that were handed in without an answer.

        A worker that was taken for lost has met WORKERGONE at the claim behind them. Otherwise a task that they did not
        end is given to this worker once more: then they did not arrive, and are handed in again, with an answer.
        """
        given = {claim.task_id: claim.attempt for claim in claims}
        missing = [outcome for outcome in outcomes if given.get(outcome.claim.task_id) == outcome.claim.attempt]
        if not missing:
            return claims, []
        ended = {outcome.claim.task_id for outcome in missing}
        self._unanswered = ()
        return [claim for claim in claims if claim.task_id not in ended], self.finish(missing)

    def finish(self, outcomes: Sequence[Outcome]) -> list[str]:
        """Hands in outcomes; returns the ids of those that came too late."""
        command = self._finish(outcomes)
        self._hand_in(outcomes)
        return self._answered(self._channel.call(command)[0])

    def _hand_in(self, outcomes: Sequence[Outcome]) -> None:
        """Outcomes are about to be sent."""
        if self._unanswered:
            self._doubtful.update(outcome.claim.task_id for outcome in self._unanswered)
        self._unanswered, self._n_breaks = outcomes, self._channel.n_breaks

    def _answered(self, refused: Iterable[bytes]) -> list[str]:
        """Outcomes were answered; returns the ids of those that came too late, of the ids of those that were refused.

        What is not kept is refused as well when it comes for the second time: then nobody knows, and a worker that was
        taken for lost learns it at its next claim.
        """
        doubtful, self._doubtful, self._unanswered = self._doubtful, set(), ()
        self._written.clear()
        ids = [raw.decode() for raw in refused]
        if ids and not self._keeps_outcomes:
            has_sent_twice = self._channel.n_breaks != self._n_breaks
            return [] if has_sent_twice else [task_id for task_id in ids if task_id not in doubtful]
        return ids

    def release(self, claims: Sequence[Claim]) -> int:
        """Gives back what was claimed and not started; returns how many went back."""
        k = self._keys
        args: list[str | bytes | float] = [self._worker_id, k.task(), k.client(), k.blob()]
        for claim in claims:
            args += (claim.task_id, claim.attempt)
        keys = (self._running_key, k.queued_tasks, k.bell, k.worker_ids, k.network)
        return int(self._channel.call(evalsha("release_tasks", keys, args))[0])

    def function(self, client_id: str, digest: str) -> bytes:
        """Sealed body of a function.

        Raises:
            KeyError: The server does not have it.
        """
        body: bytes | None = self._channel.call(pack(("HGET", self._keys.functions(client_id), digest)))[0]
        if body is None:
            raise KeyError(digest)
        return body

    def options(self, task_id: str) -> TaskOptions:
        """Priority and `max_retries` of a task that this worker runs; of one that is gone, those that are usual."""
        rank, max_retries = self._channel.call(pack(("HMGET", self._keys.task(task_id), "rank", "max_retries")))[0]
        priority = -math.floor(float(rank or 0) / _SUBMISSIONS)
        return TaskOptions(int(max_retries or DEFAULT_MAX_RETRIES), priority)

    def has_client(self, client_id: str) -> bool:
        """Whether a client is there."""
        return bool(self._channel.call(pack(("EXISTS", self._keys.client(client_id))))[0])

    def read_blob(self, blob_id: str) -> bytes:
        """Reads a call that was too large for its record."""
        return read_blob(self._channel, self._keys, blob_id)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def _wait_for(self, seconds: float) -> bytes:
        # Not 0, which would be for ever.
        return pack(("BLPOP", *self._bells, f"{max(seconds, 0.001):.3f}"))

    def _finish(self, outcomes: Sequence[Outcome]) -> bytes:
        args: list[str | bytes | float] = [*self._finish_args]
        if not self._keeps_outcomes:
            for outcome in outcomes:
                claim = outcome.claim
                # Texts: `pack` has less to do when all are.
                args += (claim.task_id, str(claim.attempt), self._tagged(outcome))
            return evalsha("finish_tasks", (self._running_key, self._keys.network), args)
        for outcome in outcomes:
            claim = outcome.claim
            # Attempt 0: the one that runs.
            args += (claim.task_id, claim.attempt or "", self._tagged(outcome), outcome.more)
        return evalsha("keep_outcomes", self._keep_keys, args)

    def _tagged(self, outcome: Outcome) -> bytes:
        """What is written for an outcome: its body, or the name of the blob that holds it."""
        claim, body = outcome.claim, outcome.body
        if len(body) < LARGE_PAYLOAD:
            return (FAILED_TAG if outcome.is_failure else FINISHED_TAG) + body
        blob_id = self._written.get((claim.task_id, claim.attempt))
        if blob_id is None:
            blob_id = new_id()
            write_blob(self._channel, self._keys, blob_id, body, folder=self.folder)
            self._written[claim.task_id, claim.attempt] = blob_id
        return (FAILED_BLOB_TAG if outcome.is_failure else FINISHED_BLOB_TAG) + blob_id.encode()


@functools.lru_cache(maxsize=100)
def _limits(limits: bytes) -> tuple[bool, float]:
    """Whether a task is to be run once at most, and its time limit: the same few for all tasks."""
    max_retries, _, timeout = limits.partition(b" ")
    return max_retries == b"0", float(timeout or 0)
