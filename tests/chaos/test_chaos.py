"""The short form of every scenario that has one; the long form is `make chaos`."""

from __future__ import annotations

import pytest

from tests.chaos.run import run_scenario
from tests.chaos.scenarios import SCENARIOS, Scenario


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.short is not None], ids=lambda scenario: scenario.name)
def test_scenario(scenario: Scenario) -> None:
    """Nothing is lost, nothing runs twice without a reason, no Future hangs or is resolved twice."""
    assert scenario.short is not None
    row = run_scenario(scenario, scenario.short)
    assert not row.complaints, row
