"""The table of keys in `Keys` is what a server holds: type, fields, and what has a TTL."""

from __future__ import annotations

from collections.abc import Callable

from rush_executor._ledger.blobs import LARGE_PAYLOAD
from tests.integration.rig import Rig
from tests.key_table import key_rows

ROWS = key_rows()


def check(rig: Rig, seen: set[str], fields: dict[str, set[str]]) -> None:
    """Every key that is there now has its row, and is as the row says."""
    prefix = rig.keys.prefix
    for raw in rig.redis.scan_iter(match="*"):
        key = raw.decode()
        assert key.startswith(prefix), f"{key} is of no network"
        name, _, of = key.removeprefix(prefix).partition(":")
        row = ROWS[name]
        assert bool(of) == bool(row.of), key
        assert rig.redis.type(key).decode() == row.type, key
        if row.type == "hash" and name not in ("functions", "blob"):
            fields.setdefault(name, set()).update(field.decode() for field in rig.redis.hkeys(key))
        if name in ("client", "inbox", "functions", "heartbeat", "kills"):
            assert row.has_ttl
            assert rig.ttl_ms(key) > 0, f"{key} may lie there for ever"
        seen.add(name)


def test_a_server_holds_what_the_table_says(rig: Rig) -> None:
    """Through all that can happen to a task: no key, type or field that the table does not tell, and none missing."""
    client, worker, agent = rig.client(), rig.worker(), rig.agent()
    seen: set[str] = set()
    fields: dict[str, set[str]] = {}
    large = b"x" * LARGE_PAYLOAD
    ids: list[str] = []
    steps: list[Callable[[], object]] = [
        lambda: agent.ledger.beat(60_000),
        lambda: client.send(client.tasks(3, max_retries=1, timeout_s=9.5), [("digest", b"body")]),
        lambda: ids.extend(client.send(client.tasks(1, payload=large, blob_id="b1"))),
        lambda: worker.finish(worker.claim(2)[:1], large),
        lambda: worker.ledger.release(worker.claim()),
        lambda: client.uplink.kill(worker.claim(1)[0].task_id),
        lambda: agent.lose(worker, guilty=worker.claim()[0].task_id),
        lambda: client.uplink.cancel(ids),
        client.uplink.ring,
        lambda: agent.ledger.break_network("epoch-1", "text"),
        lambda: client.downlink.receive(wait=False),
    ]
    for step in steps:
        step()
        check(rig, seen, fields)
    assert seen == ROWS.keys(), "the story leaves out a key, or the table has one too many"
    for name, found in fields.items():
        assert found == ROWS[name].fields, f"fields of {name}"
    for _, outcome in client.drain():
        if outcome[:1] == b"f":
            client.downlink.receive(client.position, done_blobs=[outcome[1:].decode()], wait=False)
    assert not [key for key in rig.dump() if key.startswith("blob")]
