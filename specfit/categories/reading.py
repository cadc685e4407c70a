"""Events from files: one table in Parquet or ROOT, or arrays in `.npz`."""

from __future__ import annotations

__all__ = ["read_events"]

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from specfit.categories.events import Events
from specfit.errors import InputError
from specfit.io.files import Place, check_readable, locate


def read_events(
    path: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    features: str | Sequence[str],
    weight: str | None = "weight",
    process: str | None = "process",
    mass: str | None = None,
) -> Events:
    """Reads events of several processes.

    Args:
        path: One file (`.parquet`, `.npz`, `file.root:tree`) with a column that names the process of each event, or
            a file for each process, by its name.
        features: Columns that are cut on, or the name of the only one.
        weight: Column of weights, of either sign; None: every event counts one.
        process: Column of process names; not used with a file for each process.
        mass: Column of masses, where a search needs it.

    Raises:
        InputError: A column is missing or not numbers, or the ending is not known.
        FileNotFoundError: There is no such file.
    """
    features = [features] if isinstance(features, str) else features
    numbers = [name for name in (*features, weight, mass) if name is not None]
    if not features:
        raise InputError("features: name one column or more")
    if isinstance(path, Mapping):
        tables = {name: _read(file, numbers) for name, file in path.items()}
    else:
        if process is None:
            raise InputError("process: name the column of processes, or give one file for each process")
        table = _read(path, [*numbers, process])
        names = _names(table[process], path, process)
        tables = {
            str(name): {key: table[key][names == name] for key in numbers} for name in dict.fromkeys(names.tolist())
        }
    if not tables:
        raise InputError(f"{path}: there are no events in it")
    return Events.of({name: _columns(table, features, weight, mass) for name, table in tables.items()})


def _names(column: np.ndarray, path: str | os.PathLike[str], process: str) -> np.ndarray:
    """Returns the process of each event as text."""
    missing = sum(name is None for name in column.tolist())  # how a null of Parquet arrives
    if missing:
        raise InputError(f"{path}: {missing} of {len(column)} events have no {process!r}; name it or leave them out")
    return np.asarray(column).astype(str)


def _columns(table: Mapping[str, np.ndarray], features: Sequence[str], weight: str | None, mass: str | None) -> Any:
    columns = (np.stack([table[name] for name in features], 1), 1.0 if weight is None else table[weight])
    return columns if mass is None else (*columns, table[mass])


def _read(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    place = locate(path)
    if place.ending not in READERS:
        raise InputError(f"{path}: the ending {place.ending!r} is not known; {', '.join(READERS)} can be read")
    try:
        check_readable(place.file)
        return READERS[place.ending](place, names)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _read_parquet(place: Place, names: Sequence[str]) -> dict[str, np.ndarray]:
    import pyarrow
    import pyarrow.parquet

    try:
        there = pyarrow.parquet.read_schema(place.file).names
        _check_names(names, there)
        table = pyarrow.parquet.read_table(place.file, columns=list(names))
    except pyarrow.ArrowException as error:
        raise InputError(f"pyarrow cannot read this ({error})") from None
    return {name: table.column(name).to_numpy() for name in names}


def _read_root(place: Place, names: Sequence[str]) -> dict[str, np.ndarray]:
    import uproot

    if not place.inside:
        raise InputError("say which tree: file.root:tree")
    try:
        with uproot.open(place.file) as file:
            tree = file[place.inside]
            if not isinstance(tree, uproot.behaviors.TBranch.HasBranches | uproot.behaviors.RNTuple.HasFields):
                raise InputError(f"this is a {tree.classname}, a tree of events is expected")
            _check_names(names, tree.keys())
            arrays: dict[str, np.ndarray] = tree.arrays(list(names), library="np")
    except InputError:
        raise
    except Exception as error:  # a damaged file, or one without that tree, fails in many ways
        raise InputError(f"uproot cannot read this ({str(error).strip().splitlines()[0]})") from None
    return arrays


def _read_npz(place: Place, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(place.file, allow_pickle=False) as file:
            _check_names(names, file.files)
            return {name: file[name] for name in names}
    except (OSError, EOFError) as error:
        raise InputError(f"numpy cannot read this ({error})") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"an array holds objects, plain numbers are expected ({error})") from None


def _check_names(names: Sequence[str], there: Sequence[str]) -> None:
    missing = [name for name in names if name not in there]
    if missing:
        raise InputError(f"there is no column {missing[0]!r}; there are {', '.join(there)}")


READERS: dict[str, Callable[[Place, Sequence[str]], dict[str, np.ndarray]]] = {
    ".parquet": _read_parquet,
    ".root": _read_root,
    ".npz": _read_npz,
}
