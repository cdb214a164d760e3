"""How many tasks a worker claims at once.

Every claim is a round trip (about 0.1 ms), so short tasks are claimed by the handful; a task of unknown or long run
time is claimed alone, so that nothing waits behind it and the next one in the queue can still be cancelled or taken by
another worker. What decides are run times measured in this worker: the mean of the last batch says how much to claim,
and a function known to be long, or not known, is not started while anything waits behind it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BATCH_S", "Pace"]

# Work claimed at once, in seconds: a result is handed in with its batch, and must be visible after about 5 ms.
BATCH_S: Final = 0.004
_LARGEST_BATCH: Final = 256
_MOST_FUNCTIONS: Final = 1000
# Weight of the newest run time in the estimate.
_FRESH: Final = 0.3


class Pace:
    """Run times by function, and the size of the next claim."""

    def __init__(self) -> None:
        self._estimates: dict[bytes, float] = {}
        self._limit = 1
        # Since the last claim, or, before a task has been run since then, up to that claim.
        self._mean_s = BATCH_S
        self._total_s = 0.0
        self._n_run = 0
        self._suspect = b""

    @property
    def limit(self) -> int:
        """How many tasks to claim next."""
        return min(self._limit, self._fitting)

    def is_short(self, function_key: bytes) -> bool:
        """Whether tasks of this function are known to fit into a batch."""
        return self._estimates.get(function_key, BATCH_S) < BATCH_S

    def ran(self, function_key: bytes, seconds: float) -> None:
        """A task of this function took so long."""
        estimates = self._estimates
        old = estimates.get(function_key)
        if old is None:
            if len(estimates) >= _MOST_FUNCTIONS:
                # Closures made anew for every task: none of them comes back.
                estimates.clear()
            new = seconds
        elif seconds >= BATCH_S > old and self._suspect != function_key:
            # One long task among short ones: most often the machine gave this process no time. Believing it would
            # have the next tasks claimed one by one. The courier looks after what waits; the next one decides.
            self._suspect = function_key
            return
        elif seconds >= BATCH_S:
            new = seconds
        else:
            self._suspect = b""
            new = old + _FRESH * (seconds - old)
        estimates[function_key] = new
        self._total_s += seconds
        self._n_run += 1
        self._mean_s = self._total_s / self._n_run

    def claimed(self) -> None:
        """A claim was made: the next one may be twice as large, if the tasks go on being short."""
        self._limit = min(2 * self.limit, self._fitting)
        self._total_s, self._n_run = 0.0, 0

    @property
    def _fitting(self) -> int:
        """How many tasks like those of the last batch make a batch.

        Their mean, because on a busy machine single tasks seem long: the process was not given the processor.
        """
        fitting = int(BATCH_S / self._mean_s) if self._mean_s > 0 else _LARGEST_BATCH
        return max(1, min(fitting, _LARGEST_BATCH))
