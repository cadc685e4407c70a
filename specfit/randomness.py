"""Independent sources of randomness from one seed: the same spectra whoever draws them, in whatever order."""

from __future__ import annotations

__all__ = ["independent_rng"]

from collections.abc import Sequence

import numpy as np
import torch

from specfit.errors import InputError


def independent_rng(key: Sequence[int], device: str = "cpu") -> torch.Generator:
    """Makes a source of randomness of its own for each key, such as (seed, chunk), of whole numbers from 0 upwards."""
    if min(key) < 0:
        raise InputError(f"seed: whole numbers from 0 upwards are expected, {min(key)} came")
    state = np.random.SeedSequence(tuple(key)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) & (2**63 - 1))
