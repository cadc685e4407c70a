"""Options that several commands take, each declared once, and what their words mean."""

from __future__ import annotations

__all__ = [
    "BESIDE_THE_OUTPUT",
    "AsJson",
    "Checkpoint",
    "Counts",
    "Edges",
    "Mask",
    "Scheduler",
    "Seed",
    "Store",
    "Workers",
    "edges_of",
    "windows_of",
]

from typing import Annotated, Any

import typer

from specfit.cli.terminal import numbers

BESIDE_THE_OUTPUT = "beside the output"
"""Stands for `--plot` without a path."""

Counts = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="Counts: `.npy`, `.npz`, `.csv` (rows may leave out an interval) or `file.root:path`."
    ),
]
Edges = Annotated[
    str | None,
    typer.Option(help="Bin edges where the file has none: `lo:hi:n`, `lo:hi:n:log` or a file.", metavar="EDGES"),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="A checkpoint, a run's folder, `reference` or `any_binning`; else the shipped net for these edges."
    ),
]
Mask = Annotated[
    list[str] | None,
    typer.Option(metavar="LO:HI", help="Leave out the bins of this window (to blind it, say); may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]

# Of pseudo-experiments.
Seed = Annotated[int, typer.Option(help="Decides the pseudo-experiments.")]
Workers = Annotated[int, typer.Option(help="Processes for them.", min=1)]
Scheduler = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, whose workers are used instead.")
]
Store = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Keep what is done in this folder; the same command goes on there.")
]


def edges_of(text: str | None) -> Any:
    """Reads `--edges`; None where it was not given."""
    from specfit import io

    return None if text is None else io.parse_edges(text)


def windows_of(texts: list[str] | None) -> list[list[float]]:
    """Reads every `--mask`."""
    return [numbers("mask", text, ":", 2) for text in texts or []]
