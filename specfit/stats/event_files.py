"""The event files of an unbinned channel: found, mapped, checked."""

from __future__ import annotations

__all__ = ["Events", "load_events"]

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.io.files import check_readable
from specfit.stats.event_chunks import EventTable, Variation
from specfit.stats.schema import Channel, Observation

Array = npt.NDArray[Any]
PIECE = 1_000_000  # events checked at a time


class Events(NamedTuple):
    """Density ratios and weights of a channel, and the names of the variations in the table."""

    table: EventTable
    weights: Tensor
    variation_names: tuple[str, ...]


def load_events(channel: Channel, observation: Observation | None, *, folder: Path, fitted: Collection[str]) -> Events:
    """Maps the files of a channel into memory.

    What an observation names (ratios by sample, weights) comes before what the channel names. Without any weights every
    event counts one.

    Args:
        channel: An unbinned channel.
        observation: What was observed there, if anything.
        folder: Where relative names start.
        fitted: Names of the parameters; variations of others are left out.

    Raises:
        InputError: A file that is missing in the document, is no row of positive numbers, or has another length.
        OSError: A file that cannot be read.
    """
    seen = (observation.ratios if observation else None) or {}
    ratios = []
    for sample in channel.samples:
        name = seen.get(sample.name, sample.ratios)
        if name is None:
            raise InputError(f"workspace: channel {channel.name!r}: sample {sample.name!r} names no file of ratios")
        ratios.append(_map(folder / name, above_zero=False))
    n = len(ratios[0])
    variations = _variations(channel, folder, fitted)
    weights_name = (observation.weights if observation else None) or channel.weights
    weights = np.ones(n) if weights_name is None else np.array(_map(folder / weights_name, above_zero=False), float)
    arrays = [*ratios, *(a for v in variations.values() for a in (*v.up, *v.down)), weights]
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1:
        raise InputError(
            f"workspace: channel {channel.name!r}: files of {', '.join(map(str, sorted(lengths)))} events; all ratios "
            "and weights of a channel belong to the same events"
        )
    table = EventTable(ratios, list(variations.values()))
    return Events(table, torch.from_numpy(weights), tuple(variations))


def _variations(channel: Channel, folder: Path, fitted: Collection[str]) -> dict[str, Variation]:
    found: dict[str, tuple[list[int], list[Array], list[Array]]] = {}
    for s, sample in enumerate(channel.samples):
        for modifier in sample.modifiers:
            if modifier.type != "normplusshape" or modifier.name not in fitted:
                continue
            names = modifier.data.hi_ratio, modifier.data.lo_ratio
            if names[0] is None or names[1] is None:
                if any(names):
                    raise InputError(
                        f"workspace: channel {channel.name!r}, sample {sample.name!r}, {modifier.name!r}: hi_ratio and "
                        "lo_ratio come together"
                    )
                continue  # moves the total only
            samples, up, down = found.setdefault(modifier.name, ([], [], []))
            samples.append(s)
            up.append(_map(folder / names[0], above_zero=True))
            down.append(_map(folder / names[1], above_zero=True))
    return {name: Variation(*parts) for name, parts in found.items()}


def _map(file: Path, *, above_zero: bool) -> Array:
    try:
        check_readable(file)
        # A plain array over the mapped file: slices of a numpy.memmap are slow to make.
        array: Array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except ValueError as error:
        raise InputError(f"{file}: this is not an array of numbers ({error})") from None
    if array.ndim != 1 or array.dtype.kind not in "fiu" or not len(array):
        raise InputError(f"{file}: one row of numbers is expected, {array.dtype} of shape {array.shape} came")
    for start in range(0, len(array), PIECE):
        piece = array[start : start + PIECE]
        if not np.isfinite(piece).all() or piece.min() < 0 or (above_zero and piece.min() == 0):
            kind = "above 0" if above_zero else "not below 0"
            raise InputError(f"{file}: finite numbers {kind} are expected; look at events {start} to {start + PIECE}")
    return array
