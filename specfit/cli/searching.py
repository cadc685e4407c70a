"""`specfit scan`: a signal looked for at every mass, in one spectrum or in every row of a file."""

from __future__ import annotations

__all__ = ["scan"]

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from specfit.cli.terminal import gaps, numbers, progress_bar
from specfit.errors import InputError

ROWS_SHOWN = 10


def scan(
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
        str, typer.Option(metavar="SHARE[,SHARE]", help="Standard deviation of the signal as a share of the mass.")
    ] = "0.05",
    resolution: Annotated[
        float | None, typer.Option(help="The same for every mass, in the unit of the edges, instead of a share.")
    ] = None,
    mass: Annotated[
        str | None, typer.Option(metavar="LO:HI:N", help="Masses to try; else steps of half a width.")
    ] = None,
    known: Annotated[
        list[str] | None,
        typer.Option(metavar="MASS:SIGMA", help="A peak that is fitted beside every hypothesis; may be repeated."),
    ] = None,
    mask: Annotated[
        list[str] | None, typer.Option(metavar="LO:HI", help="Leave out the bins of this window; may be repeated.")
    ] = None,
    toys: Annotated[int, typer.Option(help="Pseudo-experiments of the whole chain for the global p-value.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Decides the pseudo-experiments.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes for them.", min=1)] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to use instead.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Folder that keeps what is done; the same command goes on there.")
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence level of the limits.")] = 0.95,
    out: Annotated[
        str | None, typer.Option(help="Where the table goes, `.csv` or `.json`; else beside FILE as NAME_scan.csv.")
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="[PATH]", help="Draw the best window, local p-values and limits; else beside the table."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
) -> None:
    """Look for a signal at every mass; background and signal are fitted together.

    A file of several spectra (a 2-d array) is searched row by row and ranked, with the pictures of the ten best if
    `--plot` is given.

    Example: `specfit scan hist.npy --edges 250:3000:50:log --width 0.02,0.05 --toys 1000 --plot`
    """
    from specfit import io
    from specfit.inference import SpectrumFitter

    options: dict[str, Any] = {
        "width": numbers("width", width, ",", None) if resolution is None else _constant(resolution),
        "mass": None if mass is None else _grid(mass),
        "known": [tuple(numbers("known", text, ":", 2)) for text in known or []],
        "mask": [numbers("mask", text, ":", 2) for text in mask or []],
        "seed": seed,
        "store": store,
        "checkpoint": SpectrumFitter.from_checkpoint(checkpoint),
    }
    limits = None if edges is None else io.parse_edges(edges)
    target = Path(out or _beside(spectrum))
    if _is_batch(spectrum):
        if toys or scheduler or workers > 1:
            raise InputError("--toys: a file of many spectra gets its global p-values from correlations; leave it out")
        _scan_many(spectrum, limits, options, target, plot, as_json=as_json)
        return
    from specfit.search import scan as scan_one

    options |= {"n_toys": toys, "workers": workers, "scheduler": scheduler, "level": level, "progress": True}
    result = scan_one(spectrum, limits, **options)
    written = {"table": str(result.save(target))}
    if plot is not None:
        written["picture"] = _save(result, target if plot == _beside_the_output() else Path(plot))
    if as_json:
        print(json.dumps({"input": spectrum, **written, "scan": result.summary()}, indent=2))
    else:
        _print_table(_rows(result.summary()), written)
    if not result.converged:
        raise typer.Exit(1)


def _scan_many(
    source: str, edges: Any, options: dict[str, Any], target: Path, plot: str | None, *, as_json: bool
) -> None:
    """Searches every row of a file."""
    import numpy as np

    from specfit.search import scan as scan_one
    from specfit.search import scan_many

    with progress_bar("spectra", 1) as update:
        found = scan_many(source, edges, progress=update, **options)
    written = {"table": str(found.save(target))}
    if plot is not None:
        folder = target.with_suffix("") if plot == _beside_the_output() else Path(plot)
        folder.mkdir(parents=True, exist_ok=True)
        rows = np.load(source, mmap_mode="r", allow_pickle=False)
        for rank, index in enumerate(found.ranking[:ROWS_SHOWN], 1):
            one = scan_one(np.asarray(rows[index]), edges, **{**options, "store": None})
            _save(one, folder / f"{rank:02d}_spectrum_{index}.png")
        written["pictures"] = str(folder)
    summary = found.summary()
    if as_json:
        print(json.dumps({"input": source, **written, "scan": summary}, indent=2))
        return
    top = summary.pop("top")
    above = ", ".join(f"{n} above {level} sigma" for level, n in summary.pop("above").items())
    _print_table({name.replace("_", " "): f"{value:.6g}" for name, value in summary.items()} | {"local": above}, {})
    _print_ranking(top)
    for name, path in written.items():
        print(f"{name} written to {path}")


def _rows(summary: dict[str, Any]) -> dict[str, str]:
    s = summary
    rows = {
        "events": f"{s['events']:.6g} in {s['bins']} bins" + gaps(s["gaps"]),
        "largest excess": f"at {s['mass']:.5g} (width {s['width']:.3g}), one of {s['hypotheses']} hypotheses",
        "signal": f"{s['signal_events']:.5g} +{s['error_high']:.3g} -{s['error_low']:.3g} events",
        "local": f"{s['local_z']:.2f} sigma, p = {s['local_p']:.3g}",
        "global": f"{s['global_z']:.2f} sigma, p = {s['global_p']:.3g}, trial factor {s['trial_factor']:.3g}",
        "global p by": ", ".join(f"{name} {p:.3g}" for name, p in s["global_p_by"].items()),
        "upper limit": f"{s['limit']:.5g} events at {100 * s['level']:g} % CLs, {s['expected_limit']:.5g} expected",
    }
    for peak in s["known_peaks"]:
        rows[f"peak at {peak['mass']:g}"] = f"{peak['events']:.5g} +- {peak['error']:.3g} events"
    if not s["converged"]:
        rows["not converged"] = s["message"]
    return rows


def _print_table(rows: dict[str, str], written: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for row in rows.items():
        table.add_row(*row)
    Console(highlight=False, soft_wrap=True).print(table)
    for name, path in written.items():
        print(f"{name} written to {path}")


def _print_ranking(top: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = ("spectrum", "events", "mass", "yields", "error", "local_z", "global_p", "p_value", "converged")
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in top:
        table.add_row(*(f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names))
    Console(highlight=False, soft_wrap=True).print(table)


def _save(result: Any, path: Path) -> str:
    from specfit import plots

    return str(plots.save(result.plot(), path.with_suffix(".png") if path.suffix in (".csv", ".json") else path))


def _beside(source: str) -> str:
    path = Path(source.partition(".root:")[0])
    return str(path.with_name(f"{path.stem}_scan.csv"))


def _beside_the_output() -> str:
    from specfit.cli.predicting import BESIDE_THE_OUTPUT

    return BESIDE_THE_OUTPUT


def _is_batch(source: str) -> bool:
    """Tells whether a file holds several spectra; whoever reads it says what is wrong with it."""
    import numpy as np

    path = Path(source)
    if path.suffix.lower() != ".npy" or not path.is_file():
        return False
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False).shape) == 2
    except (ValueError, OSError, EOFError):
        return False


def _grid(text: str) -> Any:
    import torch

    low, high, n = numbers("mass", text, ":", 3)
    if n < 1 or n != int(n) or low > high:
        raise InputError(f"--mass: LO:HI:N with LO < HI and a whole number N is expected, {text!r} came")
    return torch.linspace(low, high, int(n), dtype=torch.float64)


def _constant(width: float) -> Any:
    if width <= 0:
        raise InputError(f"--resolution: a positive width is expected, {width:g} came")
    return lambda mass: 0 * mass + width
