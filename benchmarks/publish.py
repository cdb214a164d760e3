"""Puts the figures of a run into the tables of the documentation.

    python -m benchmarks.publish FILE      FILE: what `python -m benchmarks --json FILE` has written

A table stands between two comments, `<!-- figures: NAME -->` and `<!-- /figures -->`; what is between them is written
here and nowhere else. `TABLES` says which rows and pools a table has.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.table import ROWS, ratios, spread

__all__ = ["TABLES", "Table", "publish"]

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
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        path.write_text(
            re.sub(
                r"(?s)(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)",
                lambda found: found[1] + (render(found[2], result) or _between(found)) + found[3],
                text,
            ),
            encoding="utf-8",
        )


def _between(found: re.Match[str]) -> str:
    return found[0][len(found[1]) : -len(found[3])]


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
    body = ["| " + " | ".join(cells) + " |" for cells in (head, *lines)]
    body.insert(1, "|---" * len(head) + "|")
    return "\n".join([told, "", *body, ""])


if __name__ == "__main__":
    publish(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
