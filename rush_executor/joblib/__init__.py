"""The joblib backend "rush": importing this module registers it.

import rush_executor.joblib
from joblib import Parallel, delayed, parallel_config

with parallel_config(backend="rush", n_jobs=2):
    print(Parallel()(delayed(abs)(x) for x in range(-3, 3)))
"""

from __future__ import annotations

from joblib import register_parallel_backend

from rush_executor.joblib._backend import RushBackend
from rush_executor.joblib._pools import POOLS

__all__ = ["RushBackend", "shutdown"]

register_parallel_backend("rush", RushBackend)


def shutdown() -> None:
    """Ends the workers that are kept for later calls, when what they run has ended, and waits for that.

    They end by themselves when they have had nothing to do for a while, or the interpreter exits; the next call starts
    others.
    """
    POOLS.close_all()
