"""The rows, what is asked of them, and how they are printed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.workloads import Figures

__all__ = ["ROWS", "Bar", "Rounds", "Row", "ratios", "render", "verdicts"]

# For each pool the figures of each of its rounds.
Rounds = Mapping[str, Sequence[Figures]]


@dataclass(frozen=True)
class Bar:
    """What is asked for.

    Attributes:
        value: Of the ratio to another pool, or of RushExecutor's own figure.
        against: That other pool; empty for none.
        goal: What is hoped for beyond it.
    """

    value: float
    against: str = ""
    goal: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: Its name.
        figure: Key in the figures.
        form: How a figure is printed.
        is_more_better: Else less is.
        bars: What is asked of RushExecutor.
    """

    what: str
    figure: str
    form: str = "{:,.0f}"
    is_more_better: bool = True
    bars: tuple[Bar, ...] = ()


def _less(what: str, figure: str, form: str = "{:,.0f}", bars: tuple[Bar, ...] = ()) -> Row:
    return Row(what, figure, form, is_more_better=False, bars=bars)


ROWS: tuple[Row, ...] = (
    Row("no-op, submit: tasks/s", "noop_per_s", bars=(Bar(3.5, "ppe", 4.0), Bar(0.6, "floor"))),
    _less("  CPU per task, us", "noop_cpu_us", "{:,.1f}", (Bar(0.4, "ppe", 0.3),)),
    _less("  of that the client", "noop_client_us", "{:,.1f}"),
    _less("  of that workers and agents", "noop_workers_us", "{:,.1f}"),
    _less("  of that the server", "noop_server_us", "{:,.1f}"),
    _less("  one submit() in the burst, us", "noop_submit_us", "{:,.1f}"),
    Row("no-op lambda, submit: tasks/s", "lambda_per_s"),
    Row("no-op, map, chunksize 1: items/s", "map_1_per_s", bars=(Bar(3.5, "ppe"),)),
    Row("no-op, map, chunksize 100: items/s", "map_100_per_s", bars=(Bar(0.8, "ppe"),)),
    _less("submit().result(), p50, us", "trip_p50_us", bars=(Bar(1.2, "ppe", 0.9),)),
    _less("submit().result(), p99, us", "trip_p99_us", bars=(Bar(1.5, "ppe"),)),
    _less("  CPU of one, us", "trip_cpu_us"),
    _less("  of that the client", "trip_client_us"),
    _less("  of that workers and agents", "trip_workers_us"),
    _less("  of that the server", "trip_server_us"),
    Row("1 ms sleeping: share of the ideal", "sleep_efficiency", "{:.0%}", bars=(Bar(0.90),)),
    Row("1 ms computing: share of the ideal", "spin_efficiency", "{:.0%}", bars=(Bar(0.93),)),
    Row("no-op, 8 threads submit: tasks/s", "threads_per_s"),
    Row("1 MB array in and out: MB/s", "mb_array_mb_per_s", bars=(Bar(2.0, "ppe", 3.0),)),
    Row("1 MB bytes in and out: MB/s", "mb_bytes_mb_per_s"),
    Row("100 MB array in and out: MB/s", "large_mb_per_s", bars=(Bar(10.0, "ppe"),)),
    Row("100 MB bytes in and out: MB/s", "large_bytes_mb_per_s"),
    _less("2,000 tasks of a 5 MB closure, s", "closure_s", "{:.3f}", (Bar(0.1),)),
    _less("constructor to first result, s", "start_s", "{:.3f}", (Bar(0.25, goal=0.15),)),
    Row("1,000 queued: tasks/s", "queued_1000_per_s"),
    Row("10,000 queued: tasks/s", "queued_10000_per_s"),
    Row("100,000 queued: tasks/s", "queued_100000_per_s"),
    Row("  deepest against least deep", "queued_ratio", "{:.2f}", bars=(Bar(0.9),)),
    _less("client bytes per pending task", "client_bytes"),
    _less("server bytes per queued task", "server_bytes", bars=(Bar(300),)),
    _less("growth of a worker, 100,000 tasks, MB", "worker_growth_mb", "{:+.1f}", (Bar(2.0),)),
    _less("growth of the server, 100,000 tasks, MB", "server_growth_mb", "{:+.2f}", (Bar(2.0),)),
    *(
        Row(f"10 ms sleeping, {n} worker{'s'[: n > 1]}: share of the ideal", f"workers_{n}_efficiency", "{:.0%}")
        for n in (1, 2, 4, 8, 16, 32, 64)
    ),
    _less("idle, % of a core", "idle_percent", "{:.2f}", (Bar(0.5),)),
    _less("idle with 64 workers, % of a core", "many_idle_percent", "{:.2f}"),
    _less("submit().result() with 64 workers, p50, us", "many_idle_p50_us"),
)


@dataclass(frozen=True)
class Spread:
    """Values of one figure, one for each round."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        """Their median."""
        return statistics.median(self.values)

    def text(self, form: str) -> str:
        """Their median, and the smallest and the largest in brackets."""
        if not self.values:
            return ""
        ends = f" ({form.format(min(self.values))} - {form.format(max(self.values))})" if len(self.values) > 1 else ""
        return form.format(self.median) + ends


def spread(rounds: Rounds, pool: str, row: Row) -> Spread:
    """A pool's values of a row."""
    return Spread([figures[row.figure] for figures in rounds.get(pool, ()) if row.figure in figures])


def ratios(rounds: Rounds, row: Row, against: str) -> Spread:
    """RushExecutor's figure over that of another pool, round by round: what disturbs one round disturbs both."""
    both = [
        (ours[row.figure], theirs[row.figure])
        for ours, theirs in zip(rounds.get("rush", ()), rounds.get(against, ()), strict=False)
        if row.figure in ours and row.figure in theirs
    ]
    return Spread([a / b for a, b in both if b > 0])


@dataclass(frozen=True)
class Verdict:
    """Whether a bar is reached."""

    row: Row
    bar: Bar
    spread: Spread

    @property
    def is_reached(self) -> bool:
        """Whether it is."""
        return self._is_over(self.bar.value)

    @property
    def text(self) -> str:
        """In words."""
        sign = ">=" if self.row.is_more_better else "<="
        other = f" x {self.bar.against}" if self.bar.against else ""
        form = "{:.2f}" if self.bar.against else self.row.form
        asked = f"{sign} {form.format(self.bar.value)}{other}"
        if not self.is_reached:
            return f"{asked}: MISSED"
        if self.bar.goal is None:
            return f"{asked}: ok"
        goal = form.format(self.bar.goal)
        return f"{asked}: ok, and the goal of {goal}" if self._is_over(self.bar.goal) else f"{asked}: ok; goal {goal}"

    def _is_over(self, value: float) -> bool:
        median = self.spread.median
        return median >= value if self.row.is_more_better else median <= value


def verdicts(rounds: Rounds) -> list[Verdict]:
    """All that can be told from these rounds."""
    found = []
    for row in ROWS:
        for bar in row.bars:
            values = ratios(rounds, row, bar.against) if bar.against else spread(rounds, "rush", row)
            if values.values:
                found.append(Verdict(row, bar, values))
    return found


def render(rounds: Rounds) -> str:
    """Both tables: RushExecutor against the two that the bars are about, and everybody's medians."""
    return "\n\n".join([_columns(_first_table(rounds)), _columns(_second_table(rounds))])


def _first_table(rounds: Rounds) -> list[list[str]]:
    lines = [["what", "rush", "ppe", "floor", "rush / ppe", "asked for"]]
    told = verdicts(rounds)
    for row in _measured(rounds):
        words = [verdict.text for verdict in told if verdict.row is row]
        cells = [spread(rounds, pool, row).text(row.form) for pool in ("rush", "ppe", "floor")]
        lines.append([row.what, *cells, ratios(rounds, row, "ppe").text("{:.2f}"), "; ".join(words)])
    return lines


def _second_table(rounds: Rounds) -> list[list[str]]:
    pools = list(rounds)
    lines = [["medians", *pools]]
    for row in _measured(rounds):
        values = {pool: spread(rounds, pool, row) for pool in pools}
        medians = {pool: value.median for pool, value in values.items() if value.values}
        # Who is best; the floor is no pool.
        best = {pool: value for pool, value in medians.items() if pool != "floor"}
        winner = (max if row.is_more_better else min)(best, key=best.__getitem__) if len(best) > 1 else ""
        cells = [
            (row.form.format(medians[pool]) + ("*" if pool == winner else "") if pool in medians else "")
            for pool in pools
        ]
        lines.append([row.what, *cells])
    return lines


def _measured(rounds: Rounds) -> list[Row]:
    return [row for row in ROWS if any(spread(rounds, pool, row).values for pool in rounds)]


def _columns(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
