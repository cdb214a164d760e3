"""How many tasks a worker claims at once: many short ones, and one of any other kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._worker import pace as pace_module
from rush_executor._worker.pace import BATCH_S, Pace

LARGEST = pace_module._LARGEST_BATCH
A, B = b"function-a", b"function-b"


def run(pace: Pace, key: bytes, seconds: float, n: int = 1) -> None:
    for _ in range(n):
        pace.ran(key, seconds)


def warm(seconds: float = 1e-6, n_claims: int = 20) -> Pace:
    """A pace that knows A for short."""
    pace = Pace()
    for _ in range(n_claims):
        run(pace, A, seconds)
        pace.claimed()
    return pace


def test_the_first_claim_is_for_one() -> None:
    """Nothing is known yet."""
    pace = Pace()
    assert pace.limit == 1
    pace.claimed()
    assert pace.limit == 1
    assert not pace.is_short(A)


def test_it_grows_by_doubling_while_tasks_are_short() -> None:
    """No more than twice as many as before: it takes some claims to believe."""
    pace, limits = Pace(), []
    for _ in range(12):
        run(pace, A, 1e-6)
        pace.claimed()
        limits.append(pace.limit)
    assert limits == [2, 4, 8, 16, 32, 64, 128, 256, 256, 256, 256, 256]
    assert pace.is_short(A)


@pytest.mark.parametrize(("seconds", "expected"), [(0.0004, 10), (0.001, 4), (0.0021, 1), (0.004, 1), (1.0, 1)])
def test_what_is_claimed_takes_no_longer_than_a_batch(seconds: float, expected: int) -> None:
    """So that a result is visible about 5 ms after its task, and nothing waits for longer."""
    assert warm(seconds).limit == pytest.approx(expected, abs=1)
    assert warm(seconds).limit * seconds <= max(BATCH_S, seconds)


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.just(0.0) | st.floats(1e-9, 10)), max_size=60))
def test_never_none_and_never_too_many(runs: list[tuple[bytes, float]]) -> None:
    """Whatever the run times, zero included."""
    pace = Pace()
    for key, seconds in runs:
        pace.ran(key, seconds)
        before = pace.limit
        pace.claimed()
        assert 1 <= pace.limit <= min(LARGEST, 2 * before)


def test_what_is_not_known_is_not_short() -> None:
    """A function that was never run is started with nothing behind it."""
    pace = warm()
    assert pace.is_short(A)
    assert not pace.is_short(B)


def test_a_function_that_gets_long_is_believed_at_the_second_time() -> None:
    """Claiming too much costs more than too little; but one long task among short ones is most often the machine's."""
    pace = warm()
    run(pace, A, 1.0)
    assert pace.is_short(A), "once"
    run(pace, A, 1.0)
    assert not pace.is_short(A), "twice"
    pace.claimed()
    assert pace.limit == 1


def test_one_long_task_in_a_while_changes_nothing() -> None:
    """A short one in between clears the suspicion."""
    pace = warm()
    for _ in range(10):
        run(pace, A, 1.0)
        run(pace, A, 1e-6, 5)
        pace.claimed()
    assert pace.is_short(A)
    assert pace.limit == LARGEST


def test_a_function_that_gets_short_is_believed_by_and_by() -> None:
    """One quick task does not make a long function a short one."""
    pace = Pace()
    run(pace, A, 1.0)
    run(pace, A, 0.0)
    assert not pace.is_short(A)
    run(pace, A, 0.0, 30)
    assert pace.is_short(A)


def test_functions_are_told_apart() -> None:
    """A long one beside a short one."""
    pace = warm()
    run(pace, B, 1.0)
    assert (pace.is_short(A), pace.is_short(B)) == (True, False)
    pace.claimed()
    assert pace.limit == 1, "the one that was run last says how much to claim"
    run(pace, A, 1e-6)
    pace.claimed()
    assert pace.limit == 2


def test_after_a_long_task_the_next_claim_is_for_one() -> None:
    """What is known when the claim is made counts, not what was known at the claim before."""
    pace = warm()
    assert pace.limit == LARGEST
    run(pace, B, 1.0)
    assert pace.limit == 1


def test_memory_is_bounded() -> None:
    """Closures made anew for every task: none of them comes back."""
    pace = Pace()
    for number in range(5000):
        pace.ran(b"%d" % number, 1e-6)
    assert len(pace._estimates) <= pace_module._MOST_FUNCTIONS
