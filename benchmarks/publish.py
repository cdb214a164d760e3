"""Puts the figures of a run into the tables of the documentation.

    python -m benchmarks.publish FILE      FILE: what `python -m benchmarks --json FILE` has written

A table stands between two comments, `<!-- figures: NAME -->` and `<!-- /figures -->`; what is between them is written
here and nowhere else. `TABLES` says which rows and pools a table has.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.table import ROWS, ratios, spread

__all__ = ["TABLES", "Table", "markdown", "publish", "replace"]

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = ("README.md", "docs/explanation/performance.md")
NAMES: Final = {
    "rush": "`RushExecutor`",
    "ppe": "`ProcessPoolExecutor`",
    "floor": "floor",
    "mpire": "MPIRE",
    "pebble": "Pebble",
    "dask": "Dask",
    "celery": "Celery",
    "rq": "RQ",
}


@dataclass(frozen=True)
class Table:
    """A table of the documentation.

    Attributes:
        figures: Its rows.
        pools: Its columns.
        has_ratio: Whether its last column is RushExecutor's ratio to the standard library.
    """

    figures: tuple[str, ...]
    pools: tuple[str, ...]
    has_ratio: bool = False


_EVERYBODY: Final = ("rush", "ppe", "loky", "joblib", "pebble", "mpire", "dask", "celery", "rq", "floor")

TABLES: Final[Mapping[str, Table]] = {
    "short": Table(
        (
            "noop_per_s",
            "noop_cpu_us",
            "trip_p50_us",
            "map_100_per_s",
            "sleep_efficiency",
            "large_mb_per_s",
            "start_s",
            "idle_percent",
        ),
        ("ppe", "rush"),
        has_ratio=True,
    ),
    "small": Table(
        (
            "noop_per_s",
            "noop_cpu_us",
            "lambda_per_s",
            "map_1_per_s",
            "map_100_per_s",
            "trip_p50_us",
            "trip_p99_us",
            "sleep_efficiency",
            "spin_efficiency",
            "threads_per_s",
        ),
        _EVERYBODY,
    ),
    "where": Table(
        (
            "noop_cpu_us",
            "noop_client_us",
            "noop_workers_us",
            "noop_server_us",
            "trip_cpu_us",
            "trip_client_us",
            "trip_workers_us",
            "trip_server_us",
        ),
        ("rush", "ppe", "floor"),
    ),
    "data": Table(("mb_array_mb_per_s", "mb_bytes_mb_per_s", "large_mb_per_s", "closure_s"), _EVERYBODY),
    "start": Table(("start_s", "idle_percent", "many_idle_percent"), _EVERYBODY),
    "queue": Table(
        (
            "queued_1000_per_s",
            "queued_10000_per_s",
            "queued_100000_per_s",
            "client_bytes",
            "server_bytes",
            "worker_growth_mb",
            "server_growth_mb",
        ),
        ("rush", "ppe", "loky", "pebble", "mpire"),
    ),
    "workers": Table(
        tuple(f"workers_{n}_efficiency" for n in (1, 2, 4, 8, 16, 32, 64)), ("rush", "ppe", "loky", "pebble", "mpire")
    ),
}


def publish(result: Mapping[str, Any]) -> None:
    """Writes the tables of all pages anew; a table of which nothing was measured stays as it is."""
    for name in TABLES:
        text = render(name, result)
        if text:
            replace(name, text)


def replace(name: str, text: str) -> None:
    """Puts a text where a table of this name stands."""
    for page in PAGES:
        path = ROOT / page
        before = path.read_text(encoding="utf-8")
        table = re.compile(rf"(?s)(<!-- figures: {name} -->\n).*?(<!-- /figures -->)")
        path.write_text(table.sub(lambda found: found[1] + text + found[2], before), encoding="utf-8")


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, the first line its head."""
    body = ["| " + " | ".join(cells) + " |" for cells in lines]
    body.insert(1, "|---" * len(lines[0]) + "|")
    return "\n".join(body)


def render(name: str, result: Mapping[str, Any]) -> str:
    """A table in Markdown, with a line above that says where it comes from; empty when nothing of it was measured."""
    table, rounds, machine = TABLES[name], result["rounds"], result["machine"]
    rows = [row for figure in table.figures for row in ROWS if row.figure == figure]
    pools = [pool for pool in table.pools if any(spread(rounds, pool, row).values for row in rows)]
    lines = []
    for row in rows:
        values = [spread(rounds, pool, row) for pool in pools]
        if any(value.values for value in values):
            cells = [row.form.format(value.median) if value.values else "" for value in values]
            ratio = [ratios(rounds, row, "ppe").text("{:.2f}")] if table.has_ratio else []
            lines.append([row.what.strip(), *cells, *ratio])
    if not lines:
        return ""
    head = ["what", *(NAMES.get(pool, pool) for pool in pools), *(["ratio (smallest - largest)"] * table.has_ratio)]
    told = (
        f"Medians of {len(rounds['rush'])} rounds in one run; {machine['cpus']} CPUs, {machine['workers']} workers, "
        f"Python {machine['python']}; other processes had {result['others']:.0%} of the CPUs."
    )
    return f"{told}\n\n{markdown([head, *lines])}\n"


if __name__ == "__main__":
    publish(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
