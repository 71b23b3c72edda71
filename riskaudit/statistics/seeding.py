"""Seeds that depend on whole numbers and on nothing else: neither on batches, devices nor the order of the work."""

from __future__ import annotations

import numpy as np


def derived_seed(*words: int) -> int:
    """A seed below 2^63 from whole numbers of at least 0; other words give independent draws."""
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return int(state) & (2**63 - 1)
