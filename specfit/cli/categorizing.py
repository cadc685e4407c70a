"""`specfit categorize`: bins and categories that maximise a significance."""

from __future__ import annotations

__all__ = ["categorize"]

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from specfit.cli.terminal import changing_bar, one_line
from specfit.errors import InputError


def categorize(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="experiment=NAME [KEY=VALUE]... | analyse RUN",
            help="Hydra overrides (`--cfg job` shows all keys), or the folder of a run.",
        ),
    ] = None,
) -> None:
    """Choose bins or categories that maximise a significance, or draw such a run again.

    Experiments: sigmoid_1d (bins of one discriminant), diphoton_bump_hunt (regions of two scores, for a bump in a
    mass).

    Example: `specfit categorize experiment=sigmoid_1d n_categories=[5,10] name=mine`, then
    `specfit categorize analyse runs/mine`

    Your own events: `events=file events.path=events.parquet events.features=score signals=higgs`
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from specfit.categorize import analyse
    from specfit.categorize import main as categorize_main

    words = [*(overrides or []), *context.args]
    try:
        if words[:1] == ["analyse"]:
            if len(words) != 2:
                raise InputError("analyse: one run folder is expected, as in `specfit categorize analyse runs/NAME`")
            folders = [analyse(words[1])]
        else:
            with changing_bar() as progress:
                folders = categorize_main(words, progress=progress)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line(error)) from error
    for folder in folders:
        _print_categories(folder)


def _print_categories(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    results = json.loads((folder / "results.json").read_text())["results"]
    table = Table(box=None, pad_edge=False)
    for name in ("n", "signal", "Z train", "Z test", "least B", "bias", "ms/epoch"):
        table.add_column(name, no_wrap=True, justify="left" if name == "signal" else "right")
    for one in results:
        train, test = one["train"], one["test"]
        for signal in train["significance"]:
            table.add_row(
                str(one["n_categories"]),
                signal,
                *(
                    "-"
                    if part is None
                    else f"{part['significance'][signal]:.4f} ± {part['significance_error'][signal]:.4f}"
                    for part in (train, test)
                ),
                # A sum of weights that cancel is printed as 0, not as -0.
                f"{round(min(category['background'] for category in train['categories']), 2) + 0.0:.2f}",
                f"{train['mean_bias']:.1e}",
                f"{1e3 * one['seconds_per_epoch']:.1f}",
            )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for one in results:
        for note in _notes(one):
            console.print(f"{one['n_categories']} categories: {note}")
    console.print(f"pictures, checkpoints and results.json in {folder}/")


def _notes(one: dict[str, Any]) -> Iterator[str]:
    """Says what a significance alone hides."""
    train = one["train"]
    if one["message"]:
        yield one["message"]
    elif not train["feasible"]:
        yield (
            "not within the limits of the objective (too little background in a category, or too uncertain); "
            "objective.constrained=true keeps them"
        )
    if one["exact"]:
        yield f"the best within the limits, by dynamic programming, is {one['exact']:.4f}"
