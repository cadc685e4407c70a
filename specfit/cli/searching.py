"""`specfit scan`: a signal looked for at every mass, in one spectrum or in every row of a file."""

from __future__ import annotations

__all__ = ["scan"]

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from specfit.cli.options import (
    BESIDE_THE_OUTPUT,
    AsJson,
    Checkpoint,
    Counts,
    Edges,
    Mask,
    Scheduler,
    Seed,
    Store,
    Workers,
    edges_of,
    windows_of,
)
from specfit.cli.terminal import beside, gaps, numbers, print_json, print_rows, print_written, progress_bar
from specfit.errors import InputError

ROWS_SHOWN = 10

Widths = Annotated[
    str | None,
    typer.Option(metavar="SHARE[,SHARE]", help="Standard deviation of the signal as a share of the mass; else 0.05."),
]
Resolution = Annotated[
    float | None, typer.Option(help="The same for every mass, in the unit of the edges, instead of a share.")
]
Masses = Annotated[str | None, typer.Option(metavar="LO:HI:N", help="Masses to try; else steps of half a width.")]
Known = Annotated[
    list[str] | None,
    typer.Option(metavar="MASS:SIGMA", help="A peak that is fitted beside every hypothesis; may be repeated."),
]
Toys = Annotated[int, typer.Option(help="Pseudo-experiments of the whole chain for the global p-value.", min=0)]
Level = Annotated[float, typer.Option(help="Confidence level of the limits.")]
Out = Annotated[
    str | None, typer.Option(help="Where the table goes, `.csv` or `.json`; else beside FILE as NAME_scan.csv.")
]
Plot = Annotated[
    str | None,
    typer.Option(metavar="[PATH]", help="Draw the best window, local p-values and limits; else beside the table."),
]


def scan(
    spectrum: Counts,
    edges: Edges = None,
    checkpoint: Checkpoint = None,
    width: Widths = None,
    resolution: Resolution = None,
    mass: Masses = None,
    known: Known = None,
    mask: Mask = None,
    toys: Toys = 0,
    seed: Seed = 1,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    store: Store = None,
    level: Level = 0.95,
    out: Out = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Look for a signal at every mass; background and signal are fitted together.

    A file of several spectra (a 2-d array) is searched row by row and ranked, with the pictures of the ten best if
    `--plot` is given.

    Example: `specfit scan hist.npy --edges 250:3000:50:log --width 0.02,0.05 --toys 1000 --plot`
    """
    from specfit.inference import SpectrumFitter

    options: dict[str, Any] = {
        "width": _width(width, resolution),
        "mass": None if mass is None else _grid(mass),
        "known": [tuple(numbers("known", text, ":", 2)) for text in known or []],
        "mask": windows_of(mask),
        "seed": seed,
        "store": store,
        "checkpoint": SpectrumFitter.from_checkpoint(checkpoint),
        "edges": edges_of(edges),
    }
    output = _Output(spectrum, Path(out) if out else beside(spectrum, "_scan.csv"), plot, as_json)
    if not _is_batch(spectrum):
        if not toys:
            _refuse_of_toys({"--workers": workers > 1, "--scheduler": scheduler, "--store": store})
        _scan_one(output, options | {"n_toys": toys, "workers": workers, "scheduler": scheduler, "level": level})
    elif toys or scheduler or workers > 1:
        raise InputError("--toys: a file of many spectra gets its global p-values from correlations; leave it out")
    else:
        _scan_many(output, options)


def _refuse_of_toys(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise InputError(f"{', '.join(given)}: for pseudo-experiments, and none are asked for; give --toys N too")


class _Output(NamedTuple):
    """What was asked for, whatever is found."""

    source: str
    table: Path
    plot: str | None
    as_json: bool

    def place_of_picture(self, default: Path) -> Path:
        """Returns where the picture goes, `default` if it was not said."""
        return default if self.plot is None or self.plot == BESIDE_THE_OUTPUT else Path(self.plot)

    def print_json(self, summary: dict[str, Any], written: dict[str, str]) -> None:
        print_json({"input": self.source, **written, "scan": summary})


def _scan_one(output: _Output, options: dict[str, Any]) -> None:
    """Searches one spectrum."""
    from specfit.search import scan as scan_one

    result = scan_one(output.source, **options, progress=True)
    written = {"table": str(result.save(output.table))}
    if output.plot is not None:
        written["picture"] = _save(result, output.place_of_picture(output.table))
    if output.as_json:
        output.print_json(result.summary(), written)
    else:
        print_rows(_rows(result.summary()))
        print_written(written)
    if not result.converged:
        raise typer.Exit(1)


def _scan_many(output: _Output, options: dict[str, Any]) -> None:
    """Searches every row of a file."""
    from specfit.search import scan_many

    with progress_bar("spectra", 1) as update:
        found = scan_many(output.source, progress=update, **options)
    written = {"table": str(found.save(output.table))}
    if output.plot is not None:
        folder = output.place_of_picture(output.table.with_suffix(""))
        _draw_best(output.source, [int(i) for i in found.ranking[:ROWS_SHOWN]], folder, options)
        written["pictures"] = str(folder)
    if output.as_json:
        output.print_json(found.summary(), written)
    else:
        _print_many(found.summary())
        print_written(written)


def _draw_best(source: str, ranking: list[int], folder: Path, options: dict[str, Any]) -> None:
    """Searches the best rows again, one by one, and draws each."""
    import numpy as np

    from specfit.search import scan as scan_one

    folder.mkdir(parents=True, exist_ok=True)
    rows = np.load(source, mmap_mode="r", allow_pickle=False)
    for rank, index in enumerate(ranking, 1):
        one = scan_one(np.asarray(rows[index]), **{**options, "store": None})
        _save(one, folder / f"{rank:02d}_spectrum_{index}.png")


def _print_many(summary: dict[str, Any]) -> None:
    top = summary.pop("top")
    above = ", ".join(f"{n} above {level} sigma" for level, n in summary.pop("above").items())
    print_rows({name.replace("_", " "): _or_dash(value, ".6g") for name, value in summary.items()} | {"local": above})
    _print_ranking(top)


def _rows(summary: dict[str, Any]) -> dict[str, str]:
    s = summary
    rows = {
        "events": f"{s['events']:.6g} in {s['bins']} bins" + gaps(s["gaps"]),
        "largest excess": f"at {s['mass']:.5g} (width {s['width']:.3g}), one of {s['hypotheses']} hypotheses",
        "signal": f"{s['signal_events']:.5g} +{s['error_high']:.3g} -{s['error_low']:.3g} events",
        "local": f"{s['local_z']:.2f} sigma, p = {s['local_p']:.3g}",
        "global": f"{_or_dash(s['global_z'], '.2f')} sigma, p = {s['global_p']:.3g}, "
        f"trial factor {_or_dash(s['trial_factor'], '.3g')}",
        "global p by": ", ".join(f"{name} {p:.3g}" for name, p in s["global_p_by"].items()),
        "upper limit": f"{s['limit']:.5g} events at {100 * s['level']:g} % CLs, {s['expected_limit']:.5g} expected",
    }
    for peak in s["known_peaks"]:
        rows[f"peak at {peak['mass']:g}"] = f"{peak['events']:.5g} +- {peak['error']:.3g} events"
    rows["note" if s["converged"] else "not converged"] = s["message"]
    return rows


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _print_ranking(top: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = ("spectrum", "events", "mass", "yields", "error", "local_z", "global_p", "p_value", "converged")
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    # p-values of two digits: a terminal of eighty columns shows all of them.
    digits = {name: 2 if name in ("global_p", "p_value") else 4 for name in names}
    for row in top:
        table.add_row(*(f"{row[n]:.{digits[n]}g}" if isinstance(row[n], float) else str(row[n]) for n in names))
    Console(highlight=False, soft_wrap=True).print(table)


def _save(result: Any, path: Path) -> str:
    from specfit import plots

    return str(plots.save(result.plot(), path.with_suffix(".png") if path.suffix in (".csv", ".json") else path))


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
        raise InputError(f"--mass: LO:HI:N with LO <= HI and a whole number N is expected, {text!r} came")
    return torch.linspace(low, high, int(n), dtype=torch.float64)


def _width(shares: str | None, resolution: float | None) -> Any:
    """Reads `--width` and `--resolution`, of which one may be given."""
    if resolution is None:
        return numbers("width", shares or "0.05", ",", None)
    if shares is not None:
        raise InputError(f"--resolution: it is the width at every mass, --width {shares} came too; give one of them")
    return _constant(resolution)


def _constant(width: float) -> Any:
    if width <= 0:
        raise InputError(f"--resolution: a positive width is expected, {width:g} came")
    return lambda mass: 0 * mass + width
