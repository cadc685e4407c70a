"""`specfit validate`: the acceptance sheet of the background model for one spectrum."""

from __future__ import annotations

__all__ = ["validate"]

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specfit.cli.terminal import numbers

if TYPE_CHECKING:
    from specfit.search import ValidationSheet

VERDICTS = {True: "pass", False: "FAIL", None: "told"}


def validate(
    spectrum: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Counts: `.npy`, `.npz`, `.csv` (rows may leave out an interval) or `file.root:path`.",
        ),
    ],
    edges: Annotated[
        str | None,
        typer.Option(help="Bin edges where the file has none: `lo:hi:n`, `lo:hi:n:log` or a file.", metavar="EDGES"),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="A checkpoint, a run's folder, or `any_binning`; else the shipped net."),
    ] = None,
    width: Annotated[
        str, typer.Option(metavar="W,...", help="Widths of the signals, as shares of their mass.")
    ] = "0.05",
    mass: Annotated[
        str | None, typer.Option(metavar="M,...", help="Masses of the injected signals; else five through the range.")
    ] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(metavar="LO:HI", help="Leave out the bins of this window; may be repeated."),
    ] = None,
    toys: Annotated[int, typer.Option(help="Pseudo-experiments for each background and each signal on it.")] = 100,
    seed: Annotated[int, typer.Option(help="Decides the pseudo-experiments.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes for them.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, whose workers are used instead.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Keep the pseudo-experiments; the same command goes on there.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the sheet goes; else beside FILE as NAME_validation.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sheet as JSON instead of a table.")] = False,
) -> None:
    """Test whether the background model may be used for a search in this spectrum.

    Fits pseudo-data of the fitted background and of another function, without and with injected signals; writes
    `validation.html`, `validation.json` and pictures. Exit code 0: every criterion met; 1: not.

    Example: `specfit validate hist.npy --edges 250:3000:50:log --width 0.03,0.05 --toys 100`
    """
    from specfit import io, search

    sheet = search.validate(
        spectrum,
        None if edges is None else io.parse_edges(edges),
        checkpoint=checkpoint,
        width=numbers("width", width, ",", None),
        mass=None if mass is None else numbers("mass", mass, ",", None),
        mask=[numbers("mask", text, ":", 2) for text in mask or []],
        n_toys=toys,
        seed=seed,
        workers=workers,
        scheduler=scheduler,
        store=store,
        progress=True,
    )
    written = sheet.save(out or _beside(spectrum), title=Path(spectrum).name)
    if as_json:
        print(json.dumps({"input": spectrum, "sheet": str(written), **sheet.to_dict()}, indent=2))
    else:
        _print_table(sheet, written)
    if not sheet.passed:
        raise typer.Exit(1)


def _beside(source: str) -> Path:
    """Names the folder after the input: `hist.npy` to `hist_validation`."""
    path = Path(source.partition(".root:")[0])
    return path.with_name(f"{path.stem}_validation")


def _print_table(sheet: ValidationSheet, written: Path) -> None:
    for truth in dict.fromkeys(one.truth for one in sheet.criteria):
        print(truth)
        for one in (one for one in sheet.criteria if one.truth == truth):
            has_value = math.isfinite(one.value)
            value, said = (f"{one.value:.3g}", one.threshold) if has_value else ("", one.comment)
            print(f"  {VERDICTS[one.passed]}  {one.name:52}  {value:>9}  {said}")
    asked = [one for one in sheet.criteria if one.passed is not None]
    verdict = "passed" if sheet.passed else "not passed"
    print(f"{verdict}: {len(asked) - len(sheet.failed)} of {len(asked)} criteria met; sheet: {written}")
