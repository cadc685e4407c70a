"""A net on disk as plain data: weights, constructor arguments, binning, provenance.

One `.safetensors` file holds everything; its header carries, as JSON, the name of the net, its arguments, the bin edges
and the card. The card (command, configuration, seed, commit, versions, figures) also lies beside it as `.json`, to read
without any tool. Nothing is ever unpickled, so a checkpoint from a stranger can be opened. Both files are written to a
temporary name and renamed.
"""

from __future__ import annotations

__all__ = ["ANY_BINNING", "DEFAULT", "Checkpoint", "find", "is_half", "load", "save", "shipped"]

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.io.files import finite_or_none, write_json
from specfit.io.tensors import read_tensors, write_tensors
from specfit.net import NETS, BackgroundNet
from specfit.resources import folder

FORMAT = 1
DEFAULT = "reference.safetensors"
"""The shipped checkpoint that is used when none is named."""
ANY_BINNING = "any_binning.safetensors"
"""The shipped checkpoint for all spectra whose edges are not those of the default."""
IN_A_RUN = "checkpoint.safetensors"
LAST_STATE = Path("state", "last.ckpt")  # of a training, in the folder of the run


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained net and what is needed to use and to judge it.

    Args:
        net: The net, in evaluation mode.
        edges: Bin edges that it was trained for, shape `(n_bins + 1,)`, float64; None for a net of any binning.
        card: Provenance as plain data: command, config, seed, commit, versions, figures.
    """

    net: BackgroundNet
    edges: Tensor | None
    card: dict[str, Any] = field(repr=False)


def save(checkpoint: Checkpoint, path: str | Path, *, half: bool = False) -> Path:
    """Writes a checkpoint and, beside it, its card; returns the path of the checkpoint.

    Args:
        checkpoint: What to write.
        path: Ends in `.safetensors`.
        half: Store matrices as float16, three digits, in half the space; vectors, which are small and which all answers
            share, as they are. The net computes as before: `load` makes float32 of them again.

    Raises:
        InputError: The path ends otherwise, the card is not plain data, or a weight is too large for float16.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"path: a checkpoint ends in .safetensors, {path.name} came")
    net = checkpoint.net
    header = {
        "format": FORMAT,
        "net": {"name": _name_of(net), "arguments": net.arguments},
        "edges": None if checkpoint.edges is None else checkpoint.edges.tolist(),
        "card": finite_or_none(checkpoint.card),  # a figure that is NaN must not cost the net
    }
    weights = net.state_dict()
    if half:
        weights = {name: _to_half(name, tensor) for name, tensor in weights.items()}
    try:
        entry = json.dumps(header)
    except (TypeError, ValueError) as error:
        raise InputError(f"card: plain data that JSON can hold is expected ({error})") from None
    write_tensors(path, entry, weights)
    write_json(path.with_suffix(".json"), header["card"])
    return path


def load(path: str | Path | None = None) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        path: A `.safetensors` file, the folder of a training run, or the name of a shipped checkpoint without its
            ending. None takes the shipped default.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file is damaged or no specfit checkpoint.
    """
    path = find(path)
    header, weights = _read(path)
    try:
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, and written over
            net = NETS[header["net"]["name"]](**header["net"]["arguments"])
        net.load_state_dict(weights)
        edges = None if header["edges"] is None else torch.tensor(header["edges"], dtype=torch.float64)
        card = dict(header["card"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"checkpoint: {path} does not describe a net that this specfit knows ({reason})") from None
    n_edges = None if net.n_bins is None else net.n_bins + 1
    if n_edges != (None if edges is None else len(edges)):
        shape = "none" if edges is None else f"{len(edges)}"
        raise InputError(f"checkpoint: {path} holds a net of {net.n_bins or 'any number of'} bins, but edges: {shape}")
    return Checkpoint(net.eval(), edges, card)


def find(path: str | Path | None = None) -> Path:
    """Returns the file that `load` would read.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = shipped(DEFAULT) if path is None else Path(path)
    if path.is_dir():
        path = path / IN_A_RUN
    of_that_name = shipped(f"{path}.safetensors")
    if not path.exists() and path.name == str(path) and of_that_name.is_file():
        path = of_that_name
    if not path.is_file() and path.name == IN_A_RUN and (path.parent / LAST_STATE).exists():
        raise FileNotFoundError(
            f"checkpoint: {path.parent} holds a stopped training; the same `specfit train` command continues it"
        )
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} does not exist; `specfit train` makes one")
    return path


def shipped(name: str) -> Path:
    """Returns where a shipped checkpoint lies, `DEFAULT` or `ANY_BINNING`."""
    return folder("checkpoints") / name


def is_half(path: str | Path | None = None) -> bool:
    """Tells whether the file of a checkpoint, named as for `load`, stores its weights as float16.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file is damaged or no specfit checkpoint.
    """
    return any(tensor.dtype == torch.float16 for tensor in _read(find(path))[1].values())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        entry, weights = read_tensors(path)
    except InputError as error:
        raise InputError(
            f"checkpoint: {path} is damaged or not a .safetensors file ({error}); "
            "name the checkpoint.safetensors of a run or leave the option out for the shipped net"
        ) from None
    if entry is None:
        raise InputError(f"checkpoint: {path} holds weights, but not of specfit (its header has no specfit entry)")
    try:
        header: dict[str, Any] = dict(json.loads(entry))
    except (TypeError, ValueError) as error:
        raise InputError(f"checkpoint: {path} has a damaged specfit entry in its header ({error})") from None
    if header.get("format") != FORMAT:
        raise InputError(
            f"checkpoint: {path} has format {header.get('format')}, this specfit reads {FORMAT}; "
            "update specfit or train again"
        )
    return header, weights


def _name_of(net: BackgroundNet) -> str:
    for name, kind in NETS.items():
        if type(net) is kind:
            return name
    raise InputError(f"net: {type(net).__name__} is not one of {', '.join(NETS)}; add it to specfit.net.NETS")


def _to_half(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or tensor.ndim < 2:
        return tensor
    rounded = tensor.half()
    if not rounded.isfinite().all():
        largest = tensor.abs().max().item()
        raise InputError(f"half: {name} holds {largest:g}, float16 ends at 65504; save this net without half=True")
    return rounded
