"""`specfit validate`: the acceptance sheet of the background model for one spectrum."""

from __future__ import annotations

__all__ = ["validate"]

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specfit.cli.options import Checkpoint, Counts, Edges, Mask, Scheduler, Seed, Store, Workers, edges_of, windows_of
from specfit.cli.terminal import beside, numbers, print_json
from specfit.errors import InputError

if TYPE_CHECKING:
    from specfit.search import ValidationSheet

VERDICTS = {True: "pass", False: "FAIL", None: "told"}

Widths = Annotated[str, typer.Option(metavar="W,...", help="Widths of the signals, as shares of their mass.")]
Masses = Annotated[
    str | None, typer.Option(metavar="M,...", help="Masses of the injected signals; else five through the range.")
]
Toys = Annotated[int, typer.Option(help="Pseudo-experiments for each background and each signal on it.")]
Out = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Where the sheet goes; else beside FILE as NAME_validation.")
]
SheetAsJson = Annotated[bool, typer.Option("--json", help="Print the sheet as JSON instead of a table.")]


def validate(
    spectrum: Counts,
    edges: Edges = None,
    checkpoint: Checkpoint = None,
    width: Widths = "0.05",
    mass: Masses = None,
    mask: Mask = None,
    toys: Toys = 100,
    seed: Seed = 1,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    store: Store = None,
    out: Out = None,
    as_json: SheetAsJson = False,
) -> None:
    """Test whether the background model may be used for a search in this spectrum.

    Fits pseudo-data of the fitted background and of another function, without and with injected signals; writes
    `validation.html`, `validation.json` and pictures. Exit code 0: every criterion met; 1: not.

    Example: `specfit validate hist.npy --edges 250:3000:50:log --width 0.03,0.05 --toys 100`
    """
    from specfit import search

    folder = _folder(out or beside(spectrum, "_validation"))
    sheet = search.validate(
        spectrum,
        edges_of(edges),
        checkpoint=checkpoint,
        width=numbers("width", width, ",", None),
        mass=None if mass is None else numbers("mass", mass, ",", None),
        mask=windows_of(mask),
        n_toys=toys,
        seed=seed,
        workers=workers,
        scheduler=scheduler,
        store=store,
        progress=True,
    )
    written = sheet.save(folder, title=Path(spectrum).name)
    if as_json:
        print_json({"input": spectrum, "sheet": str(written), **sheet.to_dict()})
    else:
        _print_table(sheet, written)
    if not sheet.passed:
        raise typer.Exit(1)


def _folder(out: str | Path) -> Path:
    """Refuses what the sheet could not be written into, before hours of pseudo-experiments."""
    folder = Path(out)
    there = folder if folder.exists() else folder.parent
    if not there.exists():
        raise InputError(f"--out: the folder {there} does not exist; create it first")
    if not there.is_dir():
        raise InputError(f"--out: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"--out: {there} may not be written; choose another folder")
    return folder


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
