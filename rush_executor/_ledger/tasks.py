"""Networks that keep their tasks, the writing side: found one, make tasks, retry them, say what workers run, reset.

What a worker does with the tasks that it has claimed is in `worker.py`, as for every network.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

from rush_executor._ledger.blobs import LARGE_PAYLOAD, blob_commands, read_blob, write_blob
from rush_executor._ledger.connection import Channel, WrongKind
from rush_executor._ledger.folder import Folder
from rush_executor._ledger.scripts import evalsha, pack
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import FAILED_BLOB_TAG, FAILED_TAG, FINISHED_BLOB_TAG, FINISHED_TAG, REMOVED_TAG
from rush_executor._protocol.states import FAILED, FINISHED
from rush_executor.errors import RushError

_T = TypeVar("_T")

__all__ = ["KeptTask", "TaskLedger", "being_restored"]

# Tasks that one script makes: nobody else on the server waits long, and a Lua stack holds their fields.
_BATCH: Final = 500
_LATEST: Final = "latest"
# How long the wish to stop a worker waits for an agent that is away.
_STOP_MS: Final = 60_000
# How long a worker may take to learn that its task was cleared: a day, as a client's lease.
_CLEARED_MS: Final = 86_400_000


class KeptTask(NamedTuple):
    """A task that is to be made.

    Attributes:
        task_id: Its id, made by whoever makes the task.
        payload: Sealed inputs.
        extra: Sealed, what is to be known beside them; empty for nothing.
        outcome: Sealed result or failure; empty where the task has not ended.
        max_retries: How many times it is run again when its worker is lost.
        timeout_s: How long one attempt may take; None for any time.
        priority: Higher runs earlier.
        worker_id: The worker that is to run it; empty for any.
    """

    task_id: str
    payload: bytes
    extra: bytes = b""
    outcome: bytes = b""
    max_retries: int = 0
    timeout_s: float | None = None
    priority: int = 0
    worker_id: str = ""


# What most tasks have beside an id and inputs: nothing.
_USUAL: Final = KeptTask("", b"")[2:]


class TaskLedger:
    """Transitions that anybody may ask for, in a network that keeps its tasks.

    Args:
        channel: A connection; whoever shares it between threads brings a lock.
        keys: Of the network.
        large_objects: Folder in which the network is to keep what is too large for its records; empty for none.

    Attributes:
        folder: The one in which it does, once that is known.
    """

    def __init__(self, channel: Channel, keys: Keys, *, large_objects: str = "") -> None:
        self._channel = channel
        self._keys = k = keys
        self._create_keys: tuple[str, ...] = (k.network, k.all_tasks, k.queued_tasks, k.idle_workers, k.worker_ids)
        self._create_keys += (k.finished_tasks, k.failed_tasks, k.ends)
        self._create_prefixes = (k.task(), k.blob(), k.worker_queue(), k.worker_bell(), k.running_tasks())
        self._epoch = ""
        self._large_objects = large_objects
        self.folder: Folder | None = None

    def found(self) -> str:
        """Joins the network, or creates it; returns its epoch.

        Raises:
            WrongKind: There is one of this name that does not keep its tasks.
            RushError: It is being restored from a snapshot, or has another folder.
        """
        args: list[str | bytes | float] = [new_id(), self._large_objects]
        epoch, kind, raw = self._channel.call(evalsha("found_network", (self._keys.network,), args))[0]
        if kind == b"restoring":
            raise being_restored(self._keys)
        if kind != b"tasks":
            raise WrongKind("the network does not keep its tasks")
        root = os.fsdecode(raw)
        if self._large_objects and root != self._large_objects:
            raise RushError(
                f"network {self._keys.network_id!r} keeps its large objects in {root!r}, not in "
                f"{self._large_objects!r}: leave out large_objects_path"
            )
        self.folder = Folder(root, self._keys.network_id) if root else None
        self._epoch = epoch.decode()
        return self._epoch

    def create(self, state: str, tasks: Iterable[KeptTask], worker_id: str = "", *, wait: bool = True) -> None:
        """Makes tasks, in this state and order.

        Args:
            state: ``queued``, ``running``, ``finished`` or ``failed``.
            tasks: May be made while they are sent.
            worker_id: The worker that runs them, or has run them; empty for none.
            wait: False to return before the server has answered. Only for a single batch that something shows later to
                have arrived.

        Raises:
            NetworkGone: The network is not the one that was joined.
            WorkerGone: Running tasks for a worker that has been taken for lost.
        """
        commands = (command for batch in _batches(tasks, _BATCH) for command in self._create(state, batch, worker_id))
        if wait:
            self._channel.call_each(commands)
        else:
            for command in commands:
                self._channel.post(command)

    def _create(self, state: str, tasks: Sequence[KeptTask], worker_id: str) -> Iterator[bytes]:
        k = self._keys
        args: list[str | bytes | float] = [self._epoch, state, worker_id, *self._create_prefixes]
        has_ended = state in (FINISHED, FAILED)
        for task in tasks:
            if not has_ended and task[2:] == _USUAL and len(task.payload) < LARGE_PAYLOAD:
                args += (task.task_id, task.payload, "")
                continue
            payload = task.payload
            fields: list[str | bytes | float] = []
            blobs = ""
            if len(payload) >= LARGE_PAYLOAD:
                # A payload that lies elsewhere leaves an empty one here, and its name.
                blob_id = new_id()
                yield from itertools.chain.from_iterable(blob_commands(k, blob_id, payload, folder=self.folder))
                payload = b""
                blobs = f"{blob_id},"
                fields += ("blob", blob_id)
            if task.extra:
                fields += ("extra", task.extra)
            if task.max_retries:
                fields += ("max_retries", task.max_retries)
            if task.timeout_s is not None:
                fields += ("timeout", task.timeout_s)
            if has_ended:
                tag, blob_tag = (FAILED_TAG, FAILED_BLOB_TAG) if state == FAILED else (FINISHED_TAG, FINISHED_BLOB_TAG)
                if len(task.outcome) >= LARGE_PAYLOAD:
                    blob_id = new_id()
                    yield from itertools.chain.from_iterable(
                        blob_commands(k, blob_id, task.outcome, folder=self.folder)
                    )
                    blobs += f"{blob_id},"
                    fields += ("outcome", blob_tag + blob_id.encode())
                else:
                    fields += ("outcome", tag + task.outcome)
            args += (task.task_id, payload, f"{len(fields)} {task.priority} {blobs} {task.worker_id}", *fields)
        keys = (*self._create_keys, k.running_tasks(worker_id))
        yield evalsha("create_tasks", keys, args)

    def retry(self, payloads: Sequence[tuple[str, bytes]], *, ignore_max_retries: bool) -> list[str]:
        """Queues failed tasks again; returns the ids of those that were.

        Args:
            payloads: Id and new payload, which is empty for the old one.
            ignore_max_retries: Also those that have no retry left.
        """
        k = self._keys
        keys = (k.queued_tasks, k.idle_workers, k.failed_tasks)
        queued: list[bytes] = []
        name = new_id()
        for batch in _batches(payloads, _BATCH):
            args: list[str | bytes | float] = [name, "1" if ignore_max_retries else "0", k.task(), k.blob()]
            args.append(k.worker_bell())
            for task_id, payload in batch:
                if len(payload) < LARGE_PAYLOAD:
                    args += (task_id, payload, "")
                else:
                    blob_id = new_id()
                    write_blob(self._channel, self._keys, blob_id, payload, folder=self.folder)
                    args += (task_id, b"", blob_id)
            queued += self._channel.call(evalsha("retry_tasks", keys, args))[0]
        return [raw.decode() for raw in queued]

    def remove(self, text: str, task_ids: Sequence[str] | None = None) -> list[str]:
        """Takes queued tasks out of the queue, as failed ones; returns the ids of those that were in it.

        Args:
            text: Why they have failed, for people.
            task_ids: Which; None for all.
        """
        k = self._keys
        removed: list[bytes] = []
        outcome = REMOVED_TAG + text.encode()
        queues = [("", k.queued_tasks)]
        queues += [(raw.decode(), k.worker_queue(raw.decode())) for raw in self._smembers(k.worker_ids)]
        for worker_id, queue in queues:
            n_queued, ids = self._channel.call(
                pack(("ZCARD", queue)), pack(("ZRANGE", queue, "0", "-1" if task_ids is None else "0"))
            )
            if not n_queued:
                continue
            # One that is not in this queue is passed over.
            for batch in _batches(ids if task_ids is None else [task.encode() for task in task_ids], _BATCH):
                args: list[str | bytes | float] = [k.task(), outcome, k.worker_queue()]
                for raw in batch:
                    args += (raw, worker_id)
                removed += self._channel.call(evalsha("remove_tasks", (k.queued_tasks, k.failed_tasks, k.ends), args))[
                    0
                ]
        return [raw.decode() for raw in removed]

    def payload(self, task_id: str) -> bytes:
        """Sealed inputs of a task; empty where there is no such task."""
        payload, blob = self._channel.call(pack(("HMGET", self._keys.task(task_id), "payload", "blob")))[0]
        return read_blob(self._channel, self._keys, blob.decode()) if blob else payload or b""

    def set_terminate_on_idle(self, *, wanted: bool) -> None:
        """Says that workers are to leave when they find the queue empty, or that they are not."""
        verb = (
            ("HSET", self._keys.network, "on_idle", "terminate") if wanted else ("HDEL", self._keys.network, "on_idle")
        )
        self._channel.call(pack(verb))
        if wanted:
            # Those that wait have found it empty.
            self._wake_all()

    def is_terminated_on_idle(self) -> bool:
        """Whether workers are to leave now: they were asked to, once the queue is empty, and it is."""
        k = self._keys
        on_idle, n_queued = self._channel.call(pack(("HGET", k.network, "on_idle")), pack(("ZCARD", k.queued_tasks)))
        return on_idle is not None and not n_queued

    def write_start(self, start_id: str, body: bytes) -> None:
        """Says what workers are to run; those that name no start run the latest.

        Args:
            start_id: Its name.
            body: Sealed; any size.
        """
        key = self._keys.start_args
        value: str | bytes = b"=" + body
        if len(body) >= LARGE_PAYLOAD:
            blob_id = new_id()
            write_blob(self._channel, self._keys, blob_id, body, folder=self.folder)
            self._channel.call(pack(("PERSIST", self._keys.blob(blob_id))))
            value = f"b{blob_id}"
        self._channel.call(pack(("HSET", key, start_id, value, _LATEST, start_id)))

    def read_start(self, start_id: str = "") -> bytes | None:
        """What workers are to run; None while nobody has said it.

        Args:
            start_id: Its name; empty for the latest.
        """
        if not start_id:
            latest: bytes | None = self._channel.call(pack(("HGET", self._keys.start_args, _LATEST)))[0]
            if latest is None:
                return None
            start_id = latest.decode()
        value: bytes | None = self._channel.call(pack(("HGET", self._keys.start_args, start_id)))[0]
        if value is None:
            return None
        if value[:1] == b"=":
            return value[1:]
        return read_blob(self._channel, self._keys, value[1:].decode())

    def stop_worker(self, worker_id: str, agent_id: str, how: str) -> None:
        """Asks that a worker end.

        Args:
            worker_id: The worker; it may be still to come.
            agent_id: Its agent, which is told. It may be still to come, too.
            how: `TERMINATE`: when it has finished its task; `KILL`: now; `RESTART`: when it has finished its task, and
                another one is to take its place.
        """
        kills, wish = self._keys.kills(agent_id), f"{how}:{worker_id}"
        self._channel.call(
            pack(("SADD", kills, wish)), pack(("PEXPIRE", kills, _STOP_MS)), pack(("PUBLISH", kills, wish))
        )

    def forget_workers(self, worker_ids: Iterable[str]) -> None:
        """Takes workers that have ended off the lists: they are about to be started again."""
        k = self._keys
        ended = (k.terminated_worker_ids, k.killed_worker_ids, k.lost_worker_ids)
        for worker_id in worker_ids:
            self._channel.call(*(pack(("SREM", key, worker_id)) for key in ended), pack(("DEL", k.worker(worker_id))))

    def reset(self) -> None:
        """Deletes every key of the network, and no other."""
        pattern = "".join(f"\\{c}" if c in "*?[]^\\" else c for c in self._keys.prefix) + "*"
        root: bytes | None = self._channel.call(pack(("HGET", self._keys.network, "large_objects")))[0]
        # The record first: whoever comes meanwhile meets no network, and not half of one.
        self._channel.call(pack(("UNLINK", self._keys.network)))
        self._wake_all()
        cursor = b"0"
        while True:
            cursor, found = self._channel.call(pack(("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)))[0]
            if found:
                self._channel.call(pack(("UNLINK", *found)))
            if cursor == b"0":
                break
        if root:
            Folder(os.fsdecode(root), self._keys.network_id).delete_all()

    def _wake_all(self) -> None:
        """Has all workers that wait look at once."""
        k = self._keys
        waiting: list[bytes] = self._channel.call(pack(("ZRANGE", k.idle_workers, 0, -1)))[0]
        if waiting:
            self._channel.call(*(pack(("RPUSH", k.worker_bell(raw.decode()), "1")) for raw in waiting))

    def clear(self) -> None:
        """Deletes all tasks, and nothing else; they are gone at once, their records a little later."""
        k, name = self._keys, new_id()
        keys = (
            k.network,
            k.all_tasks,
            k.cleared_tasks,
            k.queued_tasks,
            k.finished_tasks,
            k.failed_tasks,
            k.ends,
            k.worker_ids,
        )
        prefixes = (k.task(), k.blob(), k.worker_queue(), k.running_tasks(), k.worker_bell())
        args: list[str | bytes | float] = [name, *prefixes, _CLEARED_MS]
        while not self._deleting(evalsha("clear_tasks", keys, args)):
            self._delete_cleared()
        self._delete_cleared()

    def _delete_cleared(self) -> None:
        k = self._keys
        while self._deleting(evalsha("delete_tasks", (k.cleared_tasks,), [k.task(), k.blob(), _BATCH])):
            pass

    def _deleting(self, command: bytes) -> int:
        """Calls a script that answers with a number, and the blobs that it has deleted: their files go as well."""
        number, *blobs = self._channel.call(command)[0]
        if self.folder is not None:
            self.folder.delete(raw.decode() for raw in blobs)
        return int(number)

    def _smembers(self, key: str) -> list[bytes]:
        members: list[bytes] = self._channel.call(pack(("SMEMBERS", key)))[0]
        return members


def being_restored(keys: Keys) -> RushError:
    """What those are told who come while a network is restored."""
    return RushError(
        f"network {keys.network_id!r} is being restored from a snapshot: wait until that is done. If it was broken "
        "off, reset() the network and restore it again"
    )


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
