"""What a seed does: it sets the generators that code reaches without being handed one."""

from __future__ import annotations

import contextlib
import importlib.util
import random
from collections.abc import Iterator

__all__ = ["with_rng_state"]


@contextlib.contextmanager
def with_rng_state(seed: int | None) -> Iterator[None]:
    """Sets `random`, and NumPy's global generator where NumPy is installed, for the length of a block.

    Afterwards both are as they were.

    Args:
        seed: Any integer >= 0; None to do nothing.
    """
    if seed is None:
        yield
        return
    before = random.getstate()
    random.seed(seed)
    if importlib.util.find_spec("numpy") is None:
        try:
            yield
        finally:
            random.setstate(before)
        return
    import numpy as np  # noqa: PLC0415 - only where seeds are used

    before_numpy = np.random.get_state()  # noqa: NPY002 - the global generator is what is to be set
    np.random.seed(np.random.SeedSequence(seed).generate_state(8))  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)  # noqa: NPY002
