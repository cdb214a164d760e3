"""What a client asks of the ledger: open a network, push, cancel, ask for a state, receive outcomes, leave.

`Uplink` changes the ledger, `Downlink` reads the inbox. They are two connections, because the second one is blocked in
its bell most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from rush_executor._ledger.blobs import delete_command, read_blob, write_blob
from rush_executor._ledger.connection import BLOCK_S, Channel
from rush_executor._ledger.scripts import evalsha, pack
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import NewTask

__all__ = ["CancelReply", "Downlink", "OpenedNetwork", "Uplink", "retire_client"]

# Outcomes read at once: 500 of the largest that stay in the record are 128 MB.
_INBOX_BATCH: Final = 500
_RETIRE_BATCH: Final = 2000


@dataclass(frozen=True, slots=True)
class OpenedNetwork:
    """The network that a client has joined.

    Attributes:
        epoch: Which creation of the network this is.
        creator: The client that created it.
        broken: Outcome that says why it is broken; empty when it is not.
    """

    epoch: str
    creator: str
    broken: bytes


class CancelReply(IntEnum):
    """What became of the wish to cancel a task."""

    # It has ended: its outcome is, or was, in the inbox.
    GONE = -1
    RUNNING = 0
    CANCELLED = 1
    # Claimed along with others. If it was not started, it is queued again in some milliseconds.
    HELD = 2


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
        self._epoch = ""
        k = keys
        self._push_keys = (k.network, k.client(client_id), k.queued_tasks, k.bell, k.worker_ids)
        self._cancel_keys = (k.queued_tasks, k.client(client_id), k.inbox(client_id), k.client_bell(client_id))

    def open_network(self, epoch: str, initializer: bytes) -> OpenedNetwork:
        """Joins the network, or creates it with this epoch and initializer."""
        k = self._keys
        command = evalsha(
            "open_network",
            (k.network, k.client_ids, k.client(self._client_id), k.queued_tasks),
            [
                self._client_id,
                epoch,
                self._lease_ms,
                initializer,
                k.client(),
                k.inbox(),
                k.client_bell(),
                k.functions(),
                k.task(),
                k.blob(),
            ],
        )
        [found, creator, broken] = self._channel.call(command)[0]
        self._epoch = found.decode()
        return OpenedNetwork(self._epoch, creator.decode(), broken)

    def push(self, batch: int, tasks: Sequence[NewTask], functions: Sequence[tuple[str, bytes]] = ()) -> None:
        """Queues tasks, in their order.

        Args:
            batch: Number of the batch: 1, 2, 3, ...; one that the server has taken before changes nothing.
            tasks: At most 500, so that no other client of the server waits long.
            functions: Digest and sealed body of functions that the server does not have yet.
        """
        args: list[str | bytes | int] = [self._epoch, self._client_id, batch, self._keys.task(), self._keys.blob()]
        for task in tasks:
            options = task.options
            if task.blob_id:
                write_blob(self._channel, self._keys, task.blob_id, task.payload)
                args += (task.task_id, b"", options.priority, options.max_retries, task.blob_id)
            else:
                args += (task.task_id, task.payload, options.priority, options.max_retries, "")
        commands = [evalsha("push_tasks", self._push_keys, args)]
        if functions:
            key = self._keys.functions(self._client_id)
            commands = [pack(("HSET", key, digest, body)) for digest, body in functions] + [
                pack(("PEXPIRE", key, self._lease_ms)),
                *commands,
            ]
        self._channel.call(*commands)

    def forget_functions(self, digests: Sequence[str]) -> None:
        """Deletes functions that no task of this client needs any more."""
        self._channel.call(pack(("HDEL", self._keys.functions(self._client_id), *digests)))

    def cancel(self, task_ids: Sequence[str]) -> list[CancelReply]:
        """Takes back tasks that no worker has claimed."""
        args: list[str | bytes | int] = [self._keys.task(), self._keys.blob(), *task_ids]
        replies = self._channel.call(evalsha("cancel_tasks", self._cancel_keys, args))[0]
        return [CancelReply(reply) for reply in replies]

    def state(self, task_id: str) -> str:
        """State of a task: ``queued``, ``running``, or empty when it has ended."""
        raw: bytes | None = self._channel.call(pack(("HGET", self._keys.task(task_id), "state")))[0]
        return raw.decode() if raw else ""

    def n_workers(self) -> int:
        """How many workers have joined."""
        return int(self._channel.call(pack(("SCARD", self._keys.worker_ids)))[0])

    def ring(self) -> None:
        """Wakes this client's `Downlink`."""
        bell = self._cancel_keys[-1]
        self._channel.call(pack(("RPUSH", bell, "1")), pack(("PEXPIRE", bell, self._lease_ms)))

    def retire(self) -> None:
        """Leaves the network; the last client takes it along."""
        retire_client(self._channel, self._keys, self._client_id)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


class Downlink:
    """A client's inbox.

    Each wait is one round trip: the blocking read of the bell, and behind it in the same packet the reading of the
    inbox, which the server runs as soon as the bell rings or the wait is over. So a result needs no second trip, a
    token that got lost costs at most `BLOCK_S`, and an inbox is read once a second whatever happens.
    """

    def __init__(self, channel: Channel, keys: Keys, client_id: str) -> None:
        self._channel = channel
        self._keys = keys
        k = keys
        self._trim_keys = (k.client(client_id), k.inbox(client_id), k.client_bell(client_id), k.functions(client_id))
        self._wait = pack(("BLPOP", k.client_bell(client_id), str(BLOCK_S)))
        self._read = pack(("LRANGE", k.inbox(client_id), "0", str(2 * _INBOX_BATCH - 1)))

    def receive(self, n_resolved: int, *, done_blobs: Sequence[str] = (), wait: bool = True) -> list[bytes]:
        """Trims what was resolved, waits for the bell, and reads what is there.

        Args:
            n_resolved: Outcomes of this client that were read since it joined: those are trimmed.
            done_blobs: Blobs of outcomes that were resolved: those are deleted.
            wait: False to look only.

        Returns:
            Task id, outcome, task id, outcome, ...; possibly nothing. The same again if `n_resolved` is not raised.
        """
        commands = [delete_command(self._keys, blob_id) for blob_id in done_blobs]
        if wait:
            commands.append(self._wait)
        commands.append(evalsha("trim_inbox", self._trim_keys, [n_resolved]))
        commands.append(self._read)
        outcomes: list[bytes] = self._channel.call(*commands)[-1]
        return outcomes

    def read_blob(self, blob_id: str) -> bytes:
        """Reads an outcome that was too large for the inbox."""
        return read_blob(self._channel, self._keys, blob_id)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


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
            k.client_bell(client_id),
            k.functions(client_id),
            k.queued_tasks,
            k.bell,
        ),
        [client_id, k.task(), k.blob(), _RETIRE_BATCH, k.client(), k.inbox(), k.client_bell(), k.functions()],
    )
    while channel.call(command)[0] > 0:
        pass
