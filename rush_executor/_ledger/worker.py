"""What a worker asks of the ledger: claim, finish, release, and the bytes of functions and blobs."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from rush_executor._config import DEFAULT_MAX_RETRIES
from rush_executor._ledger.blobs import LARGE_PAYLOAD, read_blob, write_blob
from rush_executor._ledger.connection import BLOCK_S, IDLE_BLOCK_S, Channel, NetworkGone, Refused, WorkerGone
from rush_executor._ledger.folder import Folder
from rush_executor._ledger.scripts import ScriptCall, evalsha, pack
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
from rush_executor.errors import NetworkLostError

__all__ = ["Claimed", "Outcome", "WorkerLedger"]

# A rank is the number of the submission, less the priority times this: push_tasks.lua.
_SUBMISSIONS: Final = 1 << 40
# For how long the ledger counts on a worker that waits at its bell: a second more than it waits, then it looks and says
# so again.
_COUNTED_S: Final = str(IDLE_BLOCK_S + 1)


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
        # As far as a token of the bell tells it.
        self._epoch = epoch[:8].encode()
        k = keys
        self._running_key = k.running_tasks(worker_id)
        self._bell = k.worker_bell(worker_id)
        own_queue = (k.worker_queue(worker_id),) if keeps else ()
        claim_keys = (k.network, k.queued_tasks, self._running_key, k.worker_ids, k.idle_workers, self._bell)
        self._claim_call = ScriptCall(
            "claim_tasks", claim_keys + own_queue, (epoch, worker_id, k.task(), k.client(), k.blob())
        )
        finish = "finish_tasks"
        finish_keys: tuple[str, ...] = (self._running_key, k.network)
        rest_keys: tuple[str, ...] = (k.worker_ids, k.idle_workers, self._bell, k.queued_tasks, *own_queue)
        if keeps or is_durable:
            finish = "keep_outcomes"
            finish_keys = (self._running_key, k.finished_tasks, k.failed_tasks, k.ends)
            rest_keys = (k.network, *rest_keys)
        finish_args = (worker_id, epoch, k.task(), k.client(), k.inbox(), k.blob())
        # With and without a wait behind it.
        self._finish_and_rest = ScriptCall(finish, finish_keys + rest_keys, finish_args)
        self._finish_only = ScriptCall(finish, finish_keys, finish_args)
        # Where a network that keeps its tasks puts what is too large for the server.
        self.folder: Folder | None = None
        self._keeps = keeps
        self._keeps_outcomes = keeps or is_durable
        self._wait = self._wait_for(BLOCK_S)
        # Whether by the ledger this worker waits.
        self._is_idle = False
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
        self,
        outcomes: Sequence[Outcome],
        *,
        limit: int,
        wait: bool,
        wait_s: float = IDLE_BLOCK_S,
        rests: bool = False,
        known: Iterable[str] = (),
        when_over: Callable[[], object] = bool,
    ) -> Claimed:
        """Hands in outcomes and claims.

        Args:
            outcomes: Of tasks that this worker has run.
            limit: How many tasks to claim at most.
            wait: Whether to wait for a task. Outcomes that are handed in with that are of all that the worker holds.
            wait_s: For how long, at most `IDLE_BLOCK_S`; behind outcomes at most `BLOCK_S`.
            rests: Whether this worker waits next if it gets nothing now: until then tasks may be handed to it.
            known: Tasks that this worker holds; others that it holds by the ledger are given to it again.
            when_over: Called when there is nothing more to wait for: up to then it may be broken off.
        """
        if not wait:
            self._hand_in(outcomes)
            return self._exchange(outcomes, limit, known, rests=rests)
        try:
            return self._wait_and_claim(outcomes, limit, known, wait_s=wait_s, rests=rests, when_over=when_over)
        except (NetworkGone, WorkerGone, NetworkLostError, Refused):
            raise
        except BaseException:
            # Broken off: nobody is to count on this worker, and what it was given meanwhile goes to another.
            self._withdraw([*known, *(outcome.claim.task_id for outcome in outcomes)])
            raise

    def _wait_and_claim(
        self,
        outcomes: Sequence[Outcome],
        limit: int,
        known: Iterable[str],
        *,
        wait_s: float,
        rests: bool,
        when_over: Callable[[], object],
    ) -> Claimed:
        self._hand_in(outcomes)
        if outcomes:
            bell = self._wait if wait_s >= BLOCK_S else self._wait_for(wait_s)
            return self._claimed(
                outcomes,
                lambda: self._wait_at_bell(outcomes, bell, limit, rests=rests),
                rests=rests,
                when_over=when_over,
            )
        if not self._is_idle:
            claimed = self._exchange((), limit, known, rests=True)
            if claimed.claims or claimed.n_queued:
                # Up to here what was given is withdrawn if this is broken off.
                when_over()
                return claimed
        # The claim stands behind the bell in the same packet, so that what no bell tells costs one trip, too.
        bell, claim = self._wait_for(wait_s), self._claim(limit, known, rests=rests)
        return self._claimed((), lambda: self._channel.call(bell, claim), rests=rests, when_over=when_over)

    def ask(self, outcomes: Sequence[Outcome], *, limit: int, known: Iterable[str]) -> None:
        """Hands in outcomes and claims, as `exchange`, but does not wait for the answer."""
        commands, muted = self._commands(outcomes, self._claim(limit, known, rests=False))
        self._hand_in(outcomes)
        self._channel.ask(*commands, muted=muted)

    def answer(self, outcomes: Sequence[Outcome]) -> Claimed:
        """What was asked for last; to be called before anything else of this ledger.

        Args:
            outcomes: Those that were handed in with it.
        """
        return self._claimed(outcomes, self._channel.answer, rests=False)

    def _exchange(self, outcomes: Sequence[Outcome], limit: int, known: Iterable[str], *, rests: bool) -> Claimed:
        commands, muted = self._commands(outcomes, self._claim(limit, known, rests=rests))
        return self._claimed(outcomes, lambda: self._channel.call(*commands, muted=muted), rests=rests)

    def _commands(self, outcomes: Sequence[Outcome], command: bytes) -> tuple[list[bytes], bytes]:
        """What hands in outcomes, and a command behind it; and what is to be muted, if that is possible."""
        if not outcomes:
            return [command], b""
        finish = self._finish(outcomes)
        return ([command], finish) if self._can_mute else ([finish, command], b"")

    def _claim(self, limit: int, known: Iterable[str], *, rests: bool) -> bytes:
        return self._claim_call([str(limit), _COUNTED_S if rests else "", *known])

    def _wait_at_bell(self, outcomes: Sequence[Outcome], bell: bytes, limit: int, *, rests: bool) -> list[Any]:
        """Hands in outcomes, and waits at the bell. Where no task lies there, claims.

        Returns:
            What the outcomes were answered with, and then what a claim is.
        """
        finish = self._finish(outcomes, limit)
        refused: Sequence[bytes] = ()
        if self._can_mute:
            [rung] = self._channel.call(bell, muted=finish)
        else:
            refused, rung = self._channel.call(finish, bell)
        reply = self._opened(rung[1]) if rung else None
        return [refused, reply or self._channel.call(self._claim(limit, (), rests=rests))[0]]

    def _opened(self, token: bytes) -> list[Any] | None:
        """What a claim would have answered, of what lay in the bell (`token` in prelude.lua); None for "look".

        A token of another network of this name is for another worker of this name.
        """
        at = token.find(b"\n") + 1
        epoch, _, n_queued = token[:at].partition(b"\t")
        if epoch != self._epoch:
            return None
        reply: list[Any] = [int(n_queued)]
        while at < len(token):
            start = token.index(b"\n", at) + 1
            task_id, attempt, blob_id, limits, length = token[at:start].split(b"\t")
            at = start + int(length)
            reply += (task_id, attempt, token[start:at], blob_id, limits)
        return reply

    def _claimed(
        self,
        outcomes: Sequence[Outcome],
        read: Callable[[], Sequence[Any]],
        *,
        rests: bool,
        when_over: Callable[[], object] = bool,
    ) -> Claimed:
        # In case that this is broken off: then it is not known.
        self._is_idle = False
        try:
            replies = read()
            # Not broken off from here on: who is does not know what has become of the outcomes, but this ledger would.
            when_over()
        except WorkerGone:
            # Now it is known: what is refused has come too late.
            self._answered(())
            raise
        reply = replies[-1]
        self._is_idle = rests and len(reply) == 1 and not reply[0]
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
        args: list[str | bytes | float] = [self._worker_id, k.task(), k.client(), k.blob(), k.worker_bell()]
        for claim in claims:
            args += (claim.task_id, claim.attempt)
        keys = (self._running_key, k.queued_tasks, k.idle_workers, k.network)
        return int(self._channel.call(evalsha("release_tasks", keys, args))[0])

    def _withdraw(self, known: Iterable[str]) -> None:
        k = self._keys
        keys = (self._running_key, k.queued_tasks, k.idle_workers, k.network, self._bell)
        args: list[str | bytes | float] = [self._worker_id, k.task(), k.client(), k.blob(), k.worker_bell(), *known]
        command = evalsha("withdraw_worker", keys, args)
        if self._can_mute:
            self._channel.post(command)
        else:
            with contextlib.suppress(NetworkLostError, Refused):
                self._channel.call(command)

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
        return pack(("BLPOP", self._bell, f"{max(seconds, 0.001):.3f}"))

    def _finish(self, outcomes: Sequence[Outcome], limit: int = 0) -> bytes:
        """Packs what hands in outcomes; if the worker waits behind that, for how many tasks at most."""
        args: list[str | bytes | float] = [str(limit), _COUNTED_S] if limit else ["", ""]
        for outcome in outcomes:
            claim = outcome.claim
            if self._keeps_outcomes:
                # Attempt 0: the one that runs.
                args += (claim.task_id, str(claim.attempt or ""), self._tagged(outcome), outcome.more)
            else:
                # Texts: `pack` has less to do when all are.
                args += (claim.task_id, str(claim.attempt), self._tagged(outcome))
        return self._finish_and_rest(args) if limit else self._finish_only(args)

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
