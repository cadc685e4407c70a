"""Sampled spectra on disk: a folder of plain `.npy` arrays that numpy can memory-map, and a card of what they are.

`counts.npy`, `background.npy` and `signal.npy` have shape `(size, n_bins)`, float32, in events per bin; `edges.npy` has
`(n_bins + 1,)`, float64. Spectra are drawn in chunks, each from a seed of its own, into a folder beside the wanted one
that is renamed when it is complete: a stopped run goes on where it was, with the same spectra as an undisturbed one.
"""

from __future__ import annotations

__all__ = ["CHUNK", "write_dataset"]

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from specfit.errors import InputError
from specfit.generator import SpectrumGenerator
from specfit.io.files import write_json
from specfit.randomness import independent_rng

CHUNK = 8192
"""Spectra that are drawn from one seed."""
# What is stored of a batch.
CONTENTS = ("counts", "background", "signal")


def write_dataset(
    generator: SpectrumGenerator,
    folder: str | Path,
    *,
    size: int,
    seed: int,
    card: dict[str, Any],
    progress: Callable[[int], None] = lambda _: None,
) -> Path:
    """Draws spectra into a folder.

    Args:
        generator: What is sampled.
        folder: Where the arrays go; must not exist.
        size: Number of spectra.
        seed: Decides every spectrum; 0 or more.
        card: What the spectra are, as plain data; a stopped run is continued only with an equal card.
        progress: Called with the number of spectra that are on disk.

    Raises:
        InputError: The folder exists, a stopped run there is another one, `size` is not positive or `seed` negative.
    """
    folder = Path(folder)
    if size < 1:
        raise InputError(f"size: at least 1 spectrum is expected, {size} came")
    if seed < 0:
        raise InputError(f"seed: a number from 0 upwards is expected, {seed} came")
    if folder.exists():
        raise InputError(f"folder: {folder} exists already; choose another name or delete it")
    partial = folder.with_name(folder.name + ".partial")
    whole_card = {"size": size, "seed": seed, "edges": generator.edges.tolist()} | card
    done = _start_or_continue(partial, generator, size, whole_card)
    arrays = {name: open_memmap(partial / f"{name}.npy", mode="r+") for name in CONTENTS}
    progress(done)
    while done < size:
        batch = generator.sample(min(CHUNK, size - done), rng=independent_rng((seed, done // CHUNK)))
        for name, array in arrays.items():
            array[done : done + len(batch.counts)] = getattr(batch, name).numpy()
            array.flush()
        done += len(batch.counts)
        write_json(partial / "progress.json", {"done": done})
        progress(done)
    (partial / "progress.json").unlink()
    partial.rename(folder)
    return folder


def _start_or_continue(partial: Path, generator: SpectrumGenerator, size: int, card: dict[str, Any]) -> int:
    """Returns how many spectra are on disk already, after making the arrays for a new run."""
    if (partial / "progress.json").exists():
        before = json.loads((partial / "card.json").read_text())
        if before != json.loads(json.dumps(card)):
            raise InputError(f"folder: {partial} holds a stopped run with other settings; repeat those or delete it")
        return int(json.loads((partial / "progress.json").read_text())["done"])
    partial.mkdir(parents=True, exist_ok=True)
    np.save(partial / "edges.npy", generator.edges.numpy())
    for name in CONTENTS:
        open_memmap(partial / f"{name}.npy", mode="w+", dtype=np.float32, shape=(size, generator.n_bins)).flush()
    write_json(partial / "card.json", card)
    write_json(partial / "progress.json", {"done": 0})
    return 0
