"""`python -m tests.chaos [--short] [--only NAME ...] [--repeat N]`: runs the scenarios and prints a table.

The exit code is 1 when a task was lost or ran twice without a reason, a Future hung or was resolved twice, or anything
else happened that the scenario does not allow. The figures with a bar are printed and do not decide.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.chaos.run import run_scenario
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.trial import Row

_COUNTS = ("submitted", "resolved", "failed", "again", "twice", "lost", "hung", "res.twice")
_TIMES = ("recovery", "slowest", "took")


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--short", action="store_true", help="the sizes of the normal tests")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="times to run each")
    args = parser.parse_args()
    began_at = time.monotonic()
    print(f"{'scenario':<22}", *(f"{column:>9}" for column in _COUNTS + _TIMES), flush=True)
    is_good = True
    for scenario in SCENARIOS:
        size = scenario.short if args.short else scenario.long
        if size is None or (args.only and scenario.name not in args.only):
            continue
        for _ in range(args.repeat):
            row = run_scenario(scenario, size)
            _print_row(row)
            is_good = is_good and not row.complaints
    print(f"\n{time.monotonic() - began_at:.0f} s; {'as it should be' if is_good else 'FAILED'}")
    return 0 if is_good else 1


def _print_row(row: Row) -> None:
    figures = (row.submitted, row.resolved, row.failed, row.again, row.twice, row.lost, row.hung, row.resolved_twice)
    times = ("-" if t is None else f"{t:.2f} s" for t in (row.recovery_s, row.slowest_s or None, row.took_s))
    print(f"{row.name:<22}", *(f"{n:>9,}" for n in figures), *(f"{t:>9}" for t in times))
    for note in row.notes:
        print(f"    {note}")
    for complaint in row.complaints:
        print(f"    FAILED: {complaint}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
