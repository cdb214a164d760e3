"""What a client asks of the ledger: open a network, push, cancel, ask for a state, receive outcomes, leave.

`Uplink` changes the ledger, `Downlink` reads the inbox. They are two connections, because the second one is blocked
in its wait most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from rush_executor._config import DEFAULT_MAX_RETRIES
from rush_executor._ledger.blobs import delete_command, read_blob, write_blob
from rush_executor._ledger.connection import BLOCK_S, Channel
from rush_executor._ledger.scripts import ScriptCall, evalsha, pack
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import ATTEMPTS_PER_PUSH, NewTask, StoredBody, chunk_name

__all__ = [
    "KILL_MS",
    "START",
    "CancelReply",
    "Downlink",
    "OpenedNetwork",
    "Received",
    "Uplink",
    "retire_client",
]

# Where an inbox begins.
START: Final = "0-0"
# Entries of the inbox read at once. One holds the outcomes of a batch, about 1 MB at most: `deliver` in prelude.lua.
_INBOX_BATCH: Final = 100
_BLOCK_MS: Final = int(BLOCK_S * 1000)
_RETIRE_BATCH: Final = 2000
# How long the wish to end a task waits for an agent that is away.
KILL_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class OpenedNetwork:
    """The network that a client has joined.

    Attributes:
        epoch: Which creation of the network this is.
        creator: The client that created it.
        broken: Outcome that says why it is broken; empty when it is not.
        initializer: Sealed; empty when there is none.
        is_durable: Whether it keeps tasks and outcomes when clients leave.
    """

    epoch: str
    creator: str
    broken: bytes
    initializer: bytes
    is_durable: bool = False


class CancelReply(IntEnum):
    """What became of the wish to cancel a task."""

    # It has ended: its outcome is, or was, in the inbox.
    GONE = -1
    RUNNING = 0
    CANCELLED = 1
    # Claimed along with others. If it was not started, it is queued again in some milliseconds.
    HELD = 2


def cancel_command(keys: Keys, client_id: str, task_ids: Sequence[str]) -> bytes:
    """Takes back tasks of a client that no worker has claimed; the reply is a `CancelReply` for each."""
    names = (keys.queued_tasks, keys.client(client_id), keys.inbox(client_id))
    return evalsha("cancel_tasks", names, [keys.task(), keys.blob(), client_id, *task_ids])


def kill_command(keys: Keys, task_id: str) -> bytes:
    """Asks that a running task be ended; the reply is 0 when it is not running."""
    return evalsha("kill_task", (keys.task(task_id),), [task_id, keys.worker(), keys.kills(), KILL_MS])


class Uplink:
    """A client's transitions. Whoever shares one between threads brings a lock: batches must go out in order.

    Args:
        channel: A connection of its own.
        keys: Of the network.
        client_id: The client.
        lease_ms: How long what is kept for the client outlives its last sign of life.
    """

    def __init__(self, channel: Channel, keys: Keys, client_id: str, *, lease_ms: int) -> None:
        self._channel = channel
        self._keys = keys
        self._client_id = client_id
        self._lease_ms = lease_ms
        self._can_mute = False
        self._push = self._pusher("", durable=False)
        self._is_durable = False

    def open_network(
        self, epoch: str, initializer: bytes, creator: str = "", *, durable: bool = False, worker_id: str = ""
    ) -> OpenedNetwork:
        """Joins the network, or creates it with this epoch and initializer.

        Args:
            epoch: Which creation of the network it is, if it is created.
            initializer: Sealed initializer, if it is created; empty for none.
            creator: Whose initializer that is; empty for this client's.
            durable: Whether it is to keep tasks and outcomes, if it is created.
            worker_id: The worker whose task the client is; then only the creation `epoch` is joined, and none made.

        Raises:
            NetworkGone, WorkerGone: For the client that a task is: the network is another one, the worker is off it.
            WrongKind: The network is Rush's.
        """
        k = self._keys
        command = evalsha(
            "open_network",
            (
                k.network,
                k.client_ids,
                k.client(self._client_id),
                k.queued_tasks,
                k.inbox(self._client_id),
                k.idle_workers,
                *([k.worker(worker_id)] if worker_id else []),
            ),
            [
                self._client_id,
                epoch,
                self._lease_ms,
                initializer,
                k.client(),
                k.inbox(),
                k.functions(),
                k.task(),
                k.blob(),
                creator or self._client_id,
                "1" if durable else "",
                epoch if worker_id else "",
                k.worker_bell(),
            ],
        )
        [found, founder, broken, found_initializer, is_durable] = self._channel.call(command)[0]
        self._is_durable = bool(is_durable)
        self._push = self._pusher(found.decode(), durable=self._is_durable)
        self._can_mute = self._channel.can_mute()
        return OpenedNetwork(found.decode(), founder.decode(), broken, found_initializer, self._is_durable)

    def push(
        self,
        batch: int,
        tasks: Sequence[NewTask],
        functions: Sequence[tuple[str, bytes]] = (),
        *,
        wait: bool = True,
    ) -> bool:
        """Queues tasks, in their order.

        Args:
            batch: Number of the batch: 1, 2, 3, ...; one that the server has taken before changes nothing.
            tasks: At most 500, so that no other client of the server waits long.
            functions: Digest and sealed body of functions, and of scattered objects, that the server does not have yet.
            wait: False to return as soon as the tasks are sent, where that can be done.

        Returns:
            True when the server has taken the tasks. False when nobody knows yet: an outcome will show that they have
            arrived, and pushing the same batch again, and waiting, makes sure.
        """
        keys = self._keys
        # Texts: `pack` has less to do when all are.
        args: list[str | bytes | float] = [str(batch)]
        for task in tasks:
            payload, (max_retries, priority, timeout_s, *_) = task.payload, task.options
            if task.blob_id:
                write_blob(self._channel, keys, task.blob_id, payload)
                payload = b""
            # What is usual is not written down: there may be very many tasks.
            most = "" if max_retries == DEFAULT_MAX_RETRIES else str(max_retries)
            args += (task.task_id, payload, str(priority), most, timeout_s or "", task.blob_id)
        commands = [self._push(args)]
        if functions:
            key = self._keys.functions(self._client_id)
            lease = [] if self._is_durable else [pack(("PEXPIRE", key, self._lease_ms))]
            for name, body in functions:
                for number, chunk in enumerate(body.chunks if isinstance(body, StoredBody) else ()):
                    self._channel.call(pack(("HSET", key, chunk_name(name, number), chunk)), *lease)
            commands = [*(pack(("HSET", key, digest, body)) for digest, body in functions), *lease, *commands]
        again = [task for task in tasks if task.retries]
        if again:
            commands = [self._fence(batch, again), *commands]
            commands += [pack(("PERSIST", self._keys.task(task.task_id))) for task in again]
        # One with a blob is answered: sending it again to ask would carry all of it.
        is_answered = wait or len(commands) > 1 or not self._can_mute or any(task.blob_id for task in tasks)
        if is_answered:
            self._channel.call(*commands)
        else:
            self._channel.post(commands[0])
        return is_answered

    def _pusher(self, epoch: str, *, durable: bool) -> ScriptCall:
        k = self._keys
        keys = (k.network, k.client(self._client_id), k.queued_tasks, k.idle_workers)
        kept = (k.all_tasks, k.failed_tasks, k.finished_tasks) if durable else ()
        args = (epoch, self._client_id, k.task(), k.blob(), k.worker_bell(), k.running_tasks())
        return ScriptCall("push_tasks", keys + kept, args)

    def _fence(self, batch: int, tasks: Sequence[NewTask]) -> bytes:
        args: list[str | bytes | float] = [batch, self._keys.task()]
        for task in tasks:
            args += (task.task_id, task.retries * ATTEMPTS_PER_PUSH)
        return evalsha("fence_tasks", (self._keys.client(self._client_id),), args)

    def forget_functions(self, digests: Sequence[str]) -> None:
        """Deletes functions that no task of this client needs any more."""
        self._channel.call(pack(("HDEL", self._keys.functions(self._client_id), *digests)))

    def cancel(self, task_ids: Sequence[str]) -> list[CancelReply]:
        """Takes back tasks that no worker has claimed."""
        replies = self._channel.call(cancel_command(self._keys, self._client_id, task_ids))[0]
        return [CancelReply(reply) for reply in replies]

    def attach(self, task_ids: Sequence[str]) -> list[bool]:
        """Has this client be told how tasks end that it, or another, has pushed before.

        Returns:
            False for each unknown one; then nothing was done.
        """
        k = self._keys
        keys = (k.client(self._client_id), k.inbox(self._client_id))
        args: list[str | bytes | float] = [self._client_id, k.task(), k.client(), k.inbox(), *task_ids]
        replies = self._channel.call(evalsha("attach_tasks", keys, args))[0]
        return [reply == 1 for reply in replies]

    def kill(self, task_id: str) -> bool:
        """Asks that a running task be ended; False when it is not running."""
        return bool(self._channel.call(kill_command(self._keys, task_id))[0])

    def state(self, task_id: str) -> str:
        """State of a task: ``queued``, ``running``, or empty when it has ended."""
        raw: bytes | None = self._channel.call(pack(("HGET", self._keys.task(task_id), "state")))[0]
        return raw.decode() if raw else ""

    def n_workers(self) -> int:
        """How many workers have joined."""
        return int(self._channel.call(pack(("SCARD", self._keys.worker_ids)))[0])

    def ring(self) -> None:
        """Wakes this client's `Downlink`."""
        self._channel.call(pack(("XADD", self._keys.inbox(self._client_id), "NOMKSTREAM", "*", "", "")))

    def retire(self) -> None:
        """Leaves the network; the last client takes it along."""
        retire_client(self._channel, self._keys, self._client_id)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


class Received(NamedTuple):
    """What a look into the inbox brought.

    Attributes:
        outcomes: Task id, outcome, task id, outcome, ...; possibly nothing.
        position: Up to where the inbox was read.
    """

    outcomes: list[bytes]
    position: str


class Downlink:
    """A client's inbox: a stream, read by range.

    Each look is one round trip, which the server answers as soon as there is something, or after `BLOCK_S`. Reading
    takes nothing away, so a reply that got lost is asked for again.

    Attributes:
        is_durable: Whether the network keeps outcomes: to be set when it was opened.
    """

    def __init__(self, channel: Channel, keys: Keys, client_id: str) -> None:
        self._channel = channel
        self._keys = keys
        k = keys
        self._inbox = k.inbox(client_id)
        self._trim_keys = (k.client(client_id), self._inbox, k.functions(client_id))
        self.is_durable = False

    def receive(
        self,
        position: str = START,
        *,
        trim: bool = True,
        n_taken: int = 0,
        done_blobs: Sequence[str] = (),
        wait: bool = True,
    ) -> Received:
        """Waits until the inbox holds something behind a position, and reads it.

        Args:
            position: Up to where the outcomes of this client were resolved: as in the last `Received`.
            trim: Whether to delete them, and renew the lease; to be done twice a second or so.
            n_taken: Number of the last batch of which the server is known to have taken it.
            done_blobs: Blobs of outcomes that were resolved: those are deleted.
            wait: False to look only.

        Raises:
            NetworkGone: When trimming: the server does not know this client any more, or not that batch.
        """
        commands = [] if self.is_durable else [delete_command(self._keys, blob_id) for blob_id in done_blobs]
        if trim:
            # Before the wait, and in one packet with it.
            commands.append(
                evalsha("trim_inbox", self._trim_keys, [_next(position), n_taken, 2 if self.is_durable else 3])
            )
        block = ("BLOCK", _BLOCK_MS) if wait else ()
        commands.append(pack(("XREAD", "COUNT", _INBOX_BATCH, *block, "STREAMS", self._inbox, position)))
        reply = self._channel.call(*commands)[-1]
        if reply is None:
            return Received([], position)
        entries = reply[0][1]
        outcomes = entries[0][1] if len(entries) == 1 else [part for _, fields in entries for part in fields]
        return Received(outcomes, entries[-1][0].decode())

    def read_blob(self, blob_id: str) -> bytes:
        """Reads an outcome that was too large for the inbox."""
        return read_blob(self._channel, self._keys, blob_id)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


def _next(position: str) -> str:
    """The smallest entry id behind a position."""
    ms, _, number = position.partition("-")
    return f"{ms}-{int(number) + 1}"


def retire_client(channel: Channel, keys: Keys, client_id: str) -> None:
    """Deletes what is kept for a client; with the last one of a network, the network."""
    k = keys
    command = evalsha(
        "retire_client",
        (
            k.network,
            k.client_ids,
            k.client(client_id),
            k.inbox(client_id),
            k.functions(client_id),
            k.queued_tasks,
            k.idle_workers,
        ),
        [client_id, k.task(), k.blob(), _RETIRE_BATCH, k.client(), k.inbox(), k.functions(), k.worker_bell()],
    )
    while channel.call(command)[0] > 0:
        pass
