"""Runs one scenario: the way in for the command line and for pytest."""

from __future__ import annotations

import traceback

from tests.chaos.scenarios import Scenario
from tests.chaos.trial import Row, Trial

__all__ = ["run_scenario"]


def run_scenario(scenario: Scenario, size: int) -> Row:
    """Runs it; what went wrong is in the row's complaints, also an error of the scenario itself."""
    trial = Trial(scenario.name, scenario.failures)
    try:
        with trial:
            scenario.run(trial, size)
    except Exception:
        trial.row.complaints.append(traceback.format_exc())
    return trial.row
