"""`specfit predict`: the background of one spectrum, of a batch, of a file of very many."""

from __future__ import annotations

__all__ = ["predict"]

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from specfit.cli.options import BESIDE_THE_OUTPUT, AsJson, Checkpoint, Counts, Edges, Mask, edges_of, windows_of
from specfit.cli.terminal import gaps, named_by, print_json, print_rows, print_written, progress_bar
from specfit.errors import InputError

ROWS_SHOWN = 10


def predict(
    spectrum: Counts,
    edges: Edges = None,
    checkpoint: Checkpoint = None,
    out: Annotated[
        str | None, typer.Option(help="Where the background goes; else beside FILE as NAME_background.")
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="[PATH]", help="Draw data, background and pulls; without PATH beside the output."),
    ] = None,
    mask: Mask = None,
    refit: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="What masks a signal before the last fit: `signals`, `windows` or `talk`; else the first that the net "
            "can follow.",
        ),
    ] = None,
    no_refit: Annotated[bool, typer.Option("--no-refit", help="Fit the data as they are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit the background of a spectrum (or of every row of a 2-d array).

    Writes the background as the same kind of file and prints a short table.

    Example: `specfit predict hist.npy --edges 250:3000:50:log --plot`
    """
    from specfit.inference import EdgesMismatchError, SpectrumFitter
    from specfit.streaming import is_large

    if refit is not None and no_refit:
        raise InputError(f"--no-refit: it contradicts --refit {refit}; give one of them")
    target = _target(spectrum, out)
    fitter = SpectrumFitter.from_checkpoint(checkpoint)
    options = {"edges": edges_of(edges), "mask": windows_of(mask), "refit": None if no_refit else refit or True}
    answer = _predict_many if is_large(spectrum) else _predict_few
    try:
        answer(fitter, spectrum, target, options, plot=plot, as_json=as_json)
    except EdgesMismatchError as error:  # its advice can name the file
        raise InputError(str(error).replace("edges=FILE", f"edges={edges or spectrum}")) from None


def _target(source: str, out: str | None) -> str:
    target = out or _beside(source)
    if Path(target).resolve() == Path(source).resolve():
        raise InputError(f"--out: {target} is the input itself; choose another name")
    return target


def _predict_few(
    fitter: Any, source: str, target: str, options: dict[str, Any], *, plot: str | None, as_json: bool
) -> None:
    """Fits what is held in memory at once."""
    fit = fitter.fit(source, **options)
    written = {"background": str(fit.save(target))}
    if plot is not None:
        written["picture"] = _save_picture(fit, target, plot)
    if as_json:
        print_json({"input": source, **written, "fits": fit.summary()})
    else:
        _print_table(fit.summary(), written)


def _predict_many(
    fitter: Any, source: str, target: str, options: dict[str, Any], *, plot: str | None, as_json: bool
) -> None:
    """Fits a file of very many spectra piece by piece."""
    import numpy as np

    from specfit.streaming import fit_file

    if plot is not None:
        raise InputError("--plot: one picture shows one spectrum; this file holds thousands")
    with progress_bar("spectra", 1) as update:
        done = fit_file(fitter, source, target, progress=update, **options)
    p_value, excess = done.fits["p_value"], done.fits["largest_excess"]
    best = excess.argsort()[::-1][:ROWS_SHOWN]
    summary = {
        "spectra": len(done.fits),
        "not_converged": int((~done.fits["converged"]).sum()),
        "p_value_below_0.01": float((p_value < 0.01).mean()),
        "median_p_value": float(np.partition(p_value, len(p_value) // 2)[len(p_value) // 2]),
        "with_masked_bins": int((done.fits["masked_bins"] > 0).sum()),
        "largest_excesses": [{"spectrum": int(i), "sigma": float(excess[i])} for i in best],
    }
    written = {"background": str(done.background), "table": str(done.table)}
    if as_json:
        print_json({"input": source, **written, "summary": summary})
        return
    largest = cast(list[dict[str, float]], summary.pop("largest_excesses"))
    rows = summary | {"largest excesses": ", ".join(f"{x['sigma']:+.2f} (row {x['spectrum']})" for x in largest)}
    for name, value in rows.items():
        print(f"{name.replace('_', ' '):20} {value}")
    print_written(written)


def _beside(source: str) -> str:
    """Names the output after the input: `hist.npy` to `hist_background.npy`, inside a ROOT file likewise."""
    file, inside = named_by(source)
    output = file.with_name(f"{file.stem}_background{file.suffix}")
    return f"{output}:{inside}" if inside else str(output)


def _save_picture(fit: Any, target: str, plot: str) -> str:
    from specfit import plots
    from specfit.io.files import locate

    beside = str(locate(target).file.with_suffix(".png"))
    first_six = [fit[i] for i in range(min(6, len(fit.background)))] if fit.spectrum.is_batch else []
    figure = plots.draw_examples(first_six) if first_six else fit.plot()
    return str(plots.save(figure, beside if plot == BESIDE_THE_OUTPUT else plot))


def _print_table(summary: list[dict[str, Any]], written: dict[str, str]) -> None:
    if len(summary) == 1:
        print_rows(_rows(summary[0]))
    else:
        _print_one_line_each(summary)
    print_written(written)


def _print_one_line_each(summary: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    names = "spectrum", "events", "background", "dev / ndf", "p", "sigma", "at", "masked", "converged"
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for i, one in enumerate(summary[:ROWS_SHOWN]):
        table.add_row(
            str(i),
            f"{one['events']:.6g}",
            f"{one['background_total']:.6g}",
            f"{one['deviance']:.1f} / {one['ndf']:.1f}",
            f"{one['p_value']:.2g}",
            f"{one['largest_excess']:+.1f}",
            f"{(one['largest_excess_low'] + one['largest_excess_high']) / 2:.4g}",
            str(len(one["masked_bins"])),
            "yes" if one["converged"] else "no",
        )
    Console(highlight=False, soft_wrap=True).print(table)
    if len(summary) > ROWS_SHOWN:
        print(f"... and {len(summary) - ROWS_SHOWN} more spectra; --json prints them all")
    first = summary[0]
    kind = ", weighted" if first["weighted"] else ""
    print_rows({"bins": f"{first['bins']}{gaps(first['gaps'])}{kind}", "note": first["message"]})


def _rows(one: dict[str, Any]) -> dict[str, str]:
    low, high = one["largest_excess_low"], one["largest_excess_high"]
    masked = one["masked_bins"]
    rows = {
        "events": f"{one['events']:.6g}" + (" (weighted)" if one["weighted"] else ""),
        "bins": f"{one['bins']}{gaps(one['gaps'])}",
        "background": f"{one['background_total']:.6g} ± {one['background_total_uncertainty']:.3g}"
        + f", median bin ± {100 * one['median_relative_uncertainty']:.2g} %",
        "deviance / ndf": f"{one['deviance']:.1f} / {one['ndf']:.1f}",
        "p-value": f"{one['p_value']:.3g}",
        "largest excess": f"{one['largest_excess']:+.2f} sigma in {low:g} to {high:g}",
        "masked bins": f"{len(masked)}" + (f": {', '.join(map(str, masked))}" if masked else ""),
        "note": one["message"],
    }
    if not one["converged"]:
        rows["converged"] = "no"
    return rows
