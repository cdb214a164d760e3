"""The key schema of a network: the only place that spells a key.

| key (after `rush:{network}:`) | type | meaning | who deletes it |
|---|---|---|---|
| `network` | hash | `kind` (tasks; none for an executor's), `durable` (an executor's that keeps its tasks), `epoch` (random, set once), `sequence` (tasks pushed so far), `creator`, `initializer`, `broken`, `failed` (how many tasks have, where nothing is left of them), `on_idle` (terminate: workers leave an empty queue), `cleared` (name of the last clearing of its tasks), `large_objects` (folder for blobs); while it is restored from a snapshot no epoch, but `restoring` (name of the restore), `restored` (batches so far) | last client; reset |
| `client_ids` | set | clients that have joined; a task that submits tasks is one | each client; stale ones: whoever opens the network, or looks for lost agents |
| `client:<client>` | hash | `pushed` (last batch taken), `lease` (ms); its TTL is the lease | client; where that is a task, with its worker |
| `inbox:<client>` | stream | outcomes that wait for the client; the fields of an entry are task ids, the values outcomes | client; has a TTL |
| `functions:<client>` | hash | functions sent by value: digest -> sealed pickle | client, and has a TTL; in a durable network: reset |
| `task:<task>` | hash | `state`, `client`, `payload`, `rank`, `max_retries` (not where it is the usual one), `losses`, `attempt`, `worker`, `batch` (how many its worker held when it was claimed), `started_at` (s), `timeout` (s), `blob`; in a network that keeps its tasks also `extra`, `outcome`, `more` (extra of the outcome), `pushed_at`, `ended_at` (s), `retry` (the last one's name) | finish, cancel; reset; of a task that was cleared while it ran: TTL |
| `queued_tasks` | zset | task ids by rank: priority first, then order of submission | claim; last client; reset |
| `worker_queue:<worker>` | zset | as `queued_tasks`: tasks for this worker alone | claim; its end; reset |
| `idle_workers` | zset | workers that wait at their bells, by the time until which that counts (s) | claim; push, release, retry and loss wake them; its end; reset |
| `worker_bell:<worker>` | list | where the worker waits: a token that says "look", or a task that was handed to it | the worker; its end; reset |
| `all_tasks` | list | ids of tasks that the network keeps, as they were created | reset |
| `cleared_tasks` | list | those whose records are being deleted | clearing; reset |
| `finished_tasks` | list | those that have finished, in this order | push, of a call that is retried; reset |
| `failed_tasks` | set | those that have failed | retry; reset |
| `ends` | stream | one entry, a new one whenever tasks that the network keeps have ended: a bell for all who wait | reset |
| `start_args` | hash | what workers are to run: id of the start -> sealed pickle, or the id of its blob; latest -> id | reset |
| `worker_ids` | set | workers that have joined | worker's agent; reset |
| `worker:<worker>` | hash | `agent`, `host`, `pid`, `state` (draining: asked to end), `client` (that its task is, or was the last to be, by submitting tasks), `joined_at`; in a network that keeps its tasks at the end also `state`, `ended_at`, `reason` | worker's agent; reset |
| `terminated_worker_ids` | set | workers that have left | its next start; reset |
| `killed_worker_ids` | set | workers that were stopped without waiting for their tasks | its next start; reset |
| `lost_worker_ids` | set | workers that have ended otherwise | its next start; reset |
| `running_tasks:<worker>` | set | what this worker has claimed | finish; worker's agent; reset |
| `log:<worker>` | stream | what this worker has logged; an entry is a batch: its number, and lines as JSON | reset |
| `agent_ids` | set | agents that have joined | the agent; whoever reaps it |
| `agent_workers:<agent>` | set | workers of this agent, from just before it forks them | the agent; whoever reaps it |
| `kills:<agent>` | set | running tasks that this agent is asked to end, and workers; also the channel on which it is told | the agent; whoever reaps it; has a TTL |
| `heartbeat:<agent>` | string | a token; its TTL is the agent's lease | TTL; the agent |
| `blob:<id>` | hash | a payload too large for one record, in chunks: `0`, `1`, ...; or `file`, its path | TTL until linked; then as its task, or the client that reads it; reset |

All keys of a network carry one hash tag, so that a network lives in one slot of a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Keys", "check_network_id", "network_of_key", "network_pattern"]

_LONGEST_NETWORK_ID = 200


def check_network_id(network_id: str) -> str:
    """Returns the id, or raises.

    Args:
        network_id: 1 to 200 printable characters without ``{``, ``}`` (they delimit the hash tag) and white space.

    Raises:
        TypeError: It is no string.
        ValueError: It cannot stand in a key.
    """
    if not isinstance(network_id, str):
        raise TypeError(f"network_id must be a string, not {type(network_id).__name__}")
    if not 1 <= len(network_id) <= _LONGEST_NETWORK_ID:
        raise ValueError(f"network_id must have 1 to {_LONGEST_NETWORK_ID} characters, this one has {len(network_id)}")
    bad = sorted({c for c in network_id if c in "{}" or c.isspace() or not c.isprintable()})
    if bad:
        raise ValueError(f"network_id {network_id!r} must not contain {', '.join(map(repr, bad))}: it is part of a key")
    return network_id


def network_pattern() -> str:
    """What SCAN is to match, to find the record of every network on a server."""
    return "rush:{*}:network"


def network_of_key(key: str) -> str:
    """The network that a key belongs to."""
    return key.partition("{")[2].partition("}")[0]


@dataclass(frozen=True)
class Keys:
    """The keys of one network.

    Attributes:
        network_id: The network.
        prefix: What every key of this network begins with.
    """

    network_id: str
    prefix: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", f"rush:{{{check_network_id(self.network_id)}}}:")

    @property
    def network(self) -> str:
        return f"{self.prefix}network"

    @property
    def queued_tasks(self) -> str:
        return f"{self.prefix}queued_tasks"

    @property
    def idle_workers(self) -> str:
        return f"{self.prefix}idle_workers"

    @property
    def worker_ids(self) -> str:
        return f"{self.prefix}worker_ids"

    @property
    def client_ids(self) -> str:
        return f"{self.prefix}client_ids"

    @property
    def agent_ids(self) -> str:
        return f"{self.prefix}agent_ids"

    @property
    def all_tasks(self) -> str:
        return f"{self.prefix}all_tasks"

    @property
    def cleared_tasks(self) -> str:
        return f"{self.prefix}cleared_tasks"

    @property
    def finished_tasks(self) -> str:
        return f"{self.prefix}finished_tasks"

    @property
    def failed_tasks(self) -> str:
        return f"{self.prefix}failed_tasks"

    @property
    def ends(self) -> str:
        return f"{self.prefix}ends"

    @property
    def start_args(self) -> str:
        return f"{self.prefix}start_args"

    @property
    def terminated_worker_ids(self) -> str:
        return f"{self.prefix}terminated_worker_ids"

    @property
    def killed_worker_ids(self) -> str:
        return f"{self.prefix}killed_worker_ids"

    @property
    def lost_worker_ids(self) -> str:
        return f"{self.prefix}lost_worker_ids"

    def worker_queue(self, worker_id: str = "") -> str:
        return f"{self.prefix}worker_queue:{worker_id}"

    def worker_bell(self, worker_id: str = "") -> str:
        return f"{self.prefix}worker_bell:{worker_id}"

    def task(self, task_id: str = "") -> str:
        """The record of a task; without an id the part that all such keys begin with."""
        return f"{self.prefix}task:{task_id}"

    def running_tasks(self, worker_id: str = "") -> str:
        return f"{self.prefix}running_tasks:{worker_id}"

    def worker(self, worker_id: str = "") -> str:
        return f"{self.prefix}worker:{worker_id}"

    def log(self, worker_id: str = "") -> str:
        return f"{self.prefix}log:{worker_id}"

    def agent_workers(self, agent_id: str = "") -> str:
        return f"{self.prefix}agent_workers:{agent_id}"

    def heartbeat(self, agent_id: str = "") -> str:
        return f"{self.prefix}heartbeat:{agent_id}"

    def kills(self, agent_id: str = "") -> str:
        return f"{self.prefix}kills:{agent_id}"

    def client(self, client_id: str = "") -> str:
        return f"{self.prefix}client:{client_id}"

    def inbox(self, client_id: str = "") -> str:
        return f"{self.prefix}inbox:{client_id}"

    def functions(self, client_id: str = "") -> str:
        return f"{self.prefix}functions:{client_id}"

    def blob(self, blob_id: str = "") -> str:
        return f"{self.prefix}blob:{blob_id}"
