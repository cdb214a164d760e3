"""What an agent asks of the ledger: join, give signs of life, put right what a lost one held.

`Reaper` finds agents without a heartbeat and does it for them, and deletes what clients have left whose lease is over;
clients and agents both run one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from rush_executor._config import DEFAULT_MAX_RETRIES
from rush_executor._ledger.client import KILL_MS, CancelReply, cancel_command, kill_command, retire_client
from rush_executor._ledger.connection import IDLE_BLOCK_S, REPLY_TIMEOUT_S, Channel
from rush_executor._ledger.scripts import evalsha, pack
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import BROKEN_TAG, LOST_TAG, Loss
from rush_executor._protocol.states import KILLED, LOST, QUEUED, RUNNING, TERMINATED

__all__ = ["CHARGE_ALL", "AgentLedger", "NetworkRecord", "Reaper", "break_network"]

# Guilty is everything that the worker held and had seen: nobody knows which task it was.
CHARGE_ALL: Final = "*"
# Where the server was away, so long after it is back everybody has noticed: the longest wait for a reply, or for a
# connection, and a pause.
_RECOVERY_S: Final = IDLE_BLOCK_S + REPLY_TIMEOUT_S + 2.0
_NO_SIGN_OF_LIFE: Final = "gave no sign of life any more, as its agent did not: its machine may be lost"


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """What an agent must know of its network.

    Attributes:
        epoch: Which creation of the network this is.
        creator: The client that created it.
        initializer: Sealed; empty when there is none.
        is_broken: Whether the initializer has failed somewhere.
        keeps: Whether the network keeps its tasks.
        is_durable: Whether it is an executor's, and keeps calls and their outcomes.
    """

    epoch: str
    creator: str
    initializer: bytes
    is_broken: bool
    keeps: bool = False
    is_durable: bool = False


class AgentLedger:
    """One agent's transitions.

    Args:
        channel: A connection of its own.
        keys: Of the network.
        agent_id: The agent.
        host: Host name of its machine.
    """

    def __init__(self, channel: Channel, keys: Keys, agent_id: str, host: str) -> None:
        self._channel = channel
        self._keys = keys
        self._agent_id = agent_id
        self._host = host

    def network(self) -> NetworkRecord | None:
        """The network as it is now; None while nobody has created it."""
        command = pack(("HMGET", self._keys.network, "epoch", "creator", "initializer", "broken", "kind", "durable"))
        epoch, creator, initializer, broken, kind, durable = self._channel.call(command)[0]
        if epoch is None:
            return None
        return NetworkRecord(
            epoch.decode(), creator.decode(), initializer, broken is not None, kind is not None, durable is not None
        )

    def beat(self, expire_ms: int) -> None:
        """Gives a sign of life.

        The key is set anew, not merely prolonged: if it vanished, the agent is seen again.
        """
        k = self._keys
        self._channel.call(
            pack(("SET", k.heartbeat(self._agent_id), new_id(), "PX", expire_ms)),
            pack(("SADD", k.agent_ids, self._agent_id)),
        )

    def announce_worker(self, worker_id: str) -> None:
        """Says that this worker is about to start: only then may it register.

        So a worker that is lost while it starts is off the list for good, even if what it sent arrives after its end.
        The agent is put on its list as well: it may have been taken for dead and off it.
        """
        k = self._keys
        self._channel.call(
            pack(("SADD", k.agent_workers(self._agent_id), worker_id)),
            pack(("SADD", k.agent_ids, self._agent_id)),
        )

    def drain(self, worker_ids: Iterable[str]) -> None:
        """Says that these workers were asked to end."""
        k = self._keys
        self._channel.call(evalsha("drain_workers", (k.worker_ids,), [k.worker(), *worker_ids]))

    def lose_worker(self, loss: Loss, guilty: str, tag: bytes = LOST_TAG, *, how: str = LOST) -> tuple[int, int]:
        """Puts right what a worker held that has ended.

        Args:
            loss: How it ended.
            guilty: The task that it was running, which is charged with an attempt; empty for none; `CHARGE_ALL`.
            tag: `TIMEOUT_TAG` or `KILLED_TAG` when the worker was killed to end the guilty task: it is not run again.
            how: What the worker is from now on, where the network keeps its tasks; `STARTING` for one that is started
                again at once.

        Returns:
            How many tasks were queued again, and how many failed.
        """
        return _lose_worker(self._channel, self._keys, self._agent_id, loss, guilty, tag=tag, how=how)

    def wanted_ends(self) -> list[str]:
        """Ids of tasks that somebody wants this agent to end, and what it is to do with workers: see `KILL`."""
        return [raw.decode() for raw in self._channel.call(pack(("SMEMBERS", self._keys.kills(self._agent_id))))[0]]

    def forget_ends(self, task_ids: Iterable[str]) -> None:
        """These need no end any more."""
        self._channel.call(pack(("SREM", self._keys.kills(self._agent_id), *task_ids)))

    def seek(self, task_ids: Sequence[str]) -> list[str]:
        """Asks for tasks that somebody wants to end and no worker here has begun; one that was given back is cancelled.

        Returns:
            Those that may still be begun. The agent of the worker that holds them is told, if it is another one.
        """
        k = self._keys
        looks = [pack(("HMGET", k.task(task_id), "state", "client")) for task_id in task_ids]
        wishes, *records = self._channel.call(pack(("SMEMBERS", k.kills(self._agent_id))), *looks)
        held, queued, cancels, kills = [], [], [], []
        for task_id, record in zip(task_ids, records, strict=True):
            state, client = ((field or b"").decode() for field in record)
            if task_id.encode() not in wishes:
                # It has ended with its worker. If it is there, somebody has queued it again.
                continue
            if state == RUNNING:
                # Also when this agent is told: so the wish is kept, for whoever buries it as well.
                kills.append(kill_command(k, task_id))
                held.append(task_id)
            elif state == QUEUED and client:
                queued.append(task_id)
                cancels.append(cancel_command(k, client, [task_id]))
            elif state == QUEUED:
                held.append(task_id)
        if cancels or kills:
            replies = self._channel.call(*cancels, *kills)
            # One that was claimed, or has become another client's, since the look is looked for once more.
            told = zip(queued, replies, strict=False)
            held += [task_id for task_id, reply in told if reply != [CancelReply.CANCELLED]]
        return held

    def break_network(self, epoch: str, text: str) -> None:
        """Says to all clients that no worker can start, and why."""
        break_network(self._channel, self._keys, epoch, text)

    def leave(self) -> None:
        """Takes the agent off the lists; its workers must be off already."""
        k = self._keys
        self._channel.call(
            pack(("SREM", k.agent_ids, self._agent_id)),
            pack(("DEL", k.heartbeat(self._agent_id), k.agent_workers(self._agent_id), k.kills(self._agent_id))),
        )

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


class Reaper:
    """Finds agents that give no sign of life, and puts right what their workers held; finds clients that are no more.

    An agent is taken for dead when its heartbeat is missing, and at a later look still is: after a stall of the server
    all keys have expired together, and every agent is about to set its own again. Some take longer for that than
    others, so who has been blind for a while, as the server was away, lets a while pass; and so does who has seen that
    the server answers, but lets nobody write.

    Args:
        channel: Shared with whoever calls.
        keys: Of the network.
        doubt_s: How long an agent is suspected at least.
        recovery_s: How long after having been blind nobody is taken for dead.
    """

    def __init__(self, channel: Channel, keys: Keys, *, doubt_s: float, recovery_s: float = _RECOVERY_S) -> None:
        self._channel = channel
        self._keys = keys
        self._doubt_s = doubt_s
        self._recovery_s = recovery_s
        # Since when, for each agent without a heartbeat.
        self._suspects: dict[str, float] = {}
        self._looked_at = time.monotonic()
        self._is_blind_until = 0.0
        # The agent of the caller's own that was on the list, and since when it has been off it.
        self._listed = ""
        self._unlisted_since: float | None = None

    def look(self) -> list[str]:
        """Reaps whom it has suspected for long enough and still misses; returns their agent ids.

        To be called more often than every second `doubt_s`.
        """
        k = self._keys
        # The last: nobody's inbox.
        keys = (k.agent_ids, k.client_ids, k.inbox())
        is_writable, agents, clients = self._channel.call(evalsha("find_lost", keys, [k.heartbeat(), k.client()]))[0]
        # After the answer, which may have taken long.
        now = time.monotonic()
        if now - self._looked_at > 3 * self._doubt_s or not is_writable:
            self._is_blind_until = now + self._recovery_s
        self._looked_at = now
        if not is_writable:
            self._suspects.clear()
            return []
        for raw in clients:
            # Its lease was its TTL. The last one takes the network with it.
            retire_client(self._channel, k, raw.decode())
        suspects = {raw.decode(): self._suspects.get(raw.decode()) for raw in agents}
        is_sure = now >= self._is_blind_until
        dead = [
            agent
            for agent, since in sorted(suspects.items())
            if is_sure and since is not None and now - since >= self._doubt_s
        ]
        self._suspects = {
            agent: now if since is None else since for agent, since in suspects.items() if agent not in dead
        }
        return [agent_id for agent_id in dead if self._reap(agent_id, _NO_SIGN_OF_LIFE)]

    @property
    def has_suspects(self) -> bool:
        """Whether some agent is suspected since the last look."""
        return bool(self._suspects)

    @property
    def patience_s(self) -> float:
        """How long to wait until the next look while somebody is suspected: the doubt is not to last much longer."""
        return self._doubt_s / 4

    def n_workers(self) -> int:
        """How many workers have joined the network."""
        return int(self._channel.call(pack(("SCARD", self._keys.worker_ids)))[0])

    def misses(self, agent_id: str) -> bool:
        """Whether an agent is off the list of those that live, after having been on it, and does not come back.

        Somebody has taken it for dead, and its process, if that is there, does not run. To be called after each look,
        always for the same agent or its successor.
        """
        if self._channel.call(pack(("SISMEMBER", self._keys.agent_ids, agent_id)))[0]:
            self._listed, self._unlisted_since = agent_id, None
        elif self._listed == agent_id and self._looked_at >= self._is_blind_until:
            self._unlisted_since = self._unlisted_since or self._looked_at
            # One that runs is back with its next sign of life.
            return self._looked_at - self._unlisted_since >= 4 * self._doubt_s
        return False

    def bury(self, agent_id: str) -> None:
        """Reaps an agent whose process is known to have ended, whatever its heartbeat says."""
        self._channel.call(pack(("DEL", self._keys.heartbeat(agent_id))))
        self._reap(agent_id, "ended with its agent, whose process was killed")

    def _reap(self, agent_id: str, reason: str) -> bool:
        k = self._keys
        for raw in self._channel.call(pack(("SMEMBERS", k.agent_workers(agent_id))))[0]:
            worker_id = raw.decode()
            host, pid = self._channel.call(pack(("HMGET", k.worker(worker_id), "host", "pid")))[0]
            loss = Loss(worker_id, (host or b"").decode(), int(pid or 0), None, reason)
            requeued, _ = _lose_worker(self._channel, k, agent_id, loss, CHARGE_ALL, is_reaper=True)
            if requeued < 0:
                return False
        command = evalsha(
            "forget_agent",
            (k.agent_ids, k.heartbeat(agent_id), k.agent_workers(agent_id), k.kills(agent_id)),
            [agent_id],
        )
        return bool(self._channel.call(command)[0])


def break_network(channel: Channel, keys: Keys, epoch: str, text: str) -> None:
    """Says to all clients of a network that no worker of it can start.

    Args:
        channel: Where to.
        keys: Of the network.
        epoch: Which creation of it: a newer one is left alone.
        text: What went wrong, for people.
    """
    k = keys
    outcome = BROKEN_TAG + text.encode(errors="replace")
    args: list[str | bytes | float] = [epoch, outcome, k.client(), k.inbox()]
    channel.call(evalsha("break_network", (k.network, k.client_ids), args))


def _lose_worker(
    channel: Channel,
    keys: Keys,
    agent_id: str,
    loss: Loss,
    guilty: str,
    *,
    tag: bytes = LOST_TAG,
    how: str = LOST,
    is_reaper: bool = False,
) -> tuple[int, int]:
    k, worker_id = keys, loss.worker_id
    ended = {TERMINATED: k.terminated_worker_ids, KILLED: k.killed_worker_ids, LOST: k.lost_worker_ids}
    # Where it is put, if it is put anywhere.
    ended_ids = ended.get(how, k.lost_worker_ids)
    command = evalsha(
        "lose_worker",
        (
            k.running_tasks(worker_id),
            k.worker(worker_id),
            k.worker_ids,
            k.agent_workers(agent_id),
            k.queued_tasks,
            k.idle_workers,
            k.heartbeat(agent_id),
            k.network,
            k.failed_tasks,
            k.ends,
            k.worker_queue(worker_id),
            k.worker_bell(worker_id),
            ended_ids,
            k.client_ids,
            k.kills(agent_id),
        ),
        [
            worker_id,
            guilty,
            "1" if is_reaper else "0",
            loss.to_bytes(),
            k.task(),
            k.client(),
            k.inbox(),
            k.blob(),
            tag,
            how,
            loss.ending,
            k.functions(),
            k.running_tasks(),
            k.worker(),
            k.kills(),
            k.worker_bell(),
            KILL_MS,
            DEFAULT_MAX_RETRIES,
        ],
    )
    requeued, failed, is_nobodys = channel.call(command)[0]
    if is_nobodys:
        # The worker's task was its last client: nobody else takes the network along. Sent again, it is found again.
        retire_client(channel, k, worker_id)
    return requeued, failed
