"""Categories on disk as plain data: one `.safetensors` file, its header the name and the arguments as JSON.

Nothing is unpickled, so a file from a stranger can be opened. It is written whole or not at all.
"""

from __future__ import annotations

__all__ = ["BINS", "load_bins", "load_history", "save_bins", "save_history"]

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from specfit.categories.base import Bins
from specfit.categories.history import History
from specfit.categories.mixture import GaussianMixtureBins
from specfit.categories.sigmoid import SigmoidBins
from specfit.errors import InputError
from specfit.io.tensors import read_tensors, write_tensors

BINS: dict[str, type[Bins]] = {"sigmoid": SigmoidBins, "gaussian_mixture": GaussianMixtureBins}
"""Every kind of categories by the name that files know it by; add your own here."""
FORMAT = 1


def save_bins(bins: Bins, path: str | Path) -> Path:
    """Writes categories; the path ends in `.safetensors`.

    Raises:
        InputError: Another ending, or a kind that `BINS` does not know.
    """
    name = next((name for name, kind in BINS.items() if type(bins) is kind), None)
    if name is None:
        raise InputError(f"bins: {type(bins).__name__} is not one of {', '.join(BINS)}; add it to BINS")
    return _write(path, bins.state_dict(), {"kind": "categories", "name": name, "arguments": bins.arguments})


def load_bins(path: str | Path) -> Bins:
    """Reads categories.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is damaged or holds something else.
    """
    header, weights = _read(path, "categories")
    try:
        bins = BINS[header["name"]](**header["arguments"])
        bins.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path}: these are no categories that this specfit knows ({reason})") from None
    return bins


def save_history(history: History, path: str | Path) -> Path:
    """Writes the course of a training; the path ends in `.safetensors`."""
    return _write(path, history.tensors(), {"kind": "history"})


def load_history(path: str | Path) -> History:
    """Reads the course of a training.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is damaged or holds something else.
    """
    _, tensors = _read(path, "history")
    try:
        return History(**tensors)
    except TypeError as error:
        raise InputError(f"{path}: this is no history of a training ({error})") from None


def _write(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"path: a name that ends in .safetensors is expected, {path.name} came")
    write_tensors(path, json.dumps({"format": FORMAT, **header}), tensors)
    return path


def _read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        entry, tensors = read_tensors(path)
        header = json.loads("null" if entry is None else entry)
    except ValueError as error:
        raise InputError(f"{path}: damaged or not a .safetensors file ({error})") from None
    if not isinstance(header, dict) or header.get("kind") != kind or header.get("format") != FORMAT:
        raise InputError(f"{path}: a specfit file of {kind}, format {FORMAT}, is expected, something else came")
    return header, tensors
