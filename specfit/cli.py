"""The command line: one command a verb; each imports its rooms only when it runs, so that help is instant.

Exit codes: 0 done; 1 a fault of specfit (with its traceback); 2 the caller's mistake (one line); 130 stopped by Ctrl-C.
"""

from __future__ import annotations

__all__ = ["app", "main"]

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from specfit import __version__
from specfit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

STOPPED = 130  # what typer makes of Ctrl-C
BESIDE_THE_OUTPUT = "beside the output"
ROWS_SHOWN = 10

app = typer.Typer(
    name="specfit",
    help="The smooth background under a counting spectrum, with its uncertainty.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Runs the command line; the console script `specfit`."""
    try:
        app(_with_joined_words(_with_default_picture(sys.argv[1:])), standalone_mode=True)
    except (InputError, OSError) as error:
        _say(f"specfit: error: {_one_line(error)}")
        sys.exit(2)
    except SystemExit as end:
        if end.code == STOPPED:
            _say("specfit: stopped; nothing is half-written, the same command starts again or continues")
        raise


@app.callback(invoke_without_command=True)
def _global_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what happens on the way.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def predict(
    spectrum: Annotated[
        str, typer.Argument(metavar="FILE", help="Counts: `.npy`, `.npz`, `.csv` or `file.root:path`.")
    ],
    edges: Annotated[
        str | None,
        typer.Option(help="Bin edges where the file has none: `lo:hi:n`, `lo:hi:n:log` or a file.", metavar="EDGES"),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A checkpoint or the folder of a training run; else the shipped net.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Where the background goes; else beside FILE as NAME_background.")
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="[PATH]", help="Draw data, background and pulls; without PATH beside the output."),
    ] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(metavar="LO:HI", help="Leave out the bins of this window (to blind it, say); may be repeated."),
    ] = None,
    refit: Annotated[
        str, typer.Option(metavar="RULE", help="What masks a signal before the last fit: `windows` or `talk`.")
    ] = "windows",
    no_refit: Annotated[bool, typer.Option("--no-refit", help="Fit the data as they are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
) -> None:
    """Fit the background of a spectrum (or of every row of a 2-d array).

    Writes the background as the same kind of file and prints a short table.

    Example: `specfit predict hist.npy --edges 250:3000:50:log --plot`
    """
    from specfit import io
    from specfit.inference import EdgesMismatchError, SpectrumFitter
    from specfit.streaming import is_large

    target = out or _beside(spectrum)
    if Path(target).resolve() == Path(spectrum).resolve():
        raise InputError(f"--out: {target} is the input itself; choose another name")
    fitter = SpectrumFitter.from_checkpoint(checkpoint)
    rule = None if no_refit else cast(Any, refit)
    windows = [_numbers("mask", text, ":", 2) for text in mask or []]
    limits = None if edges is None else io.parse_edges(edges)
    if is_large(spectrum):
        if plot is not None:
            raise InputError("--plot: one picture shows one spectrum; this file holds thousands")
        _predict_many(fitter, spectrum, target, as_json=as_json, edges=limits, mask=windows, refit=rule)
        return
    try:
        fit = fitter.fit(spectrum, limits, mask=windows, refit=rule)
    except EdgesMismatchError as error:  # its advice can name the file
        raise InputError(str(error).replace("edges=FILE", f"edges={edges or spectrum}")) from None
    written = {"background": str(fit.save(target))}
    if plot is not None:
        written["picture"] = _save_picture(fit, target, plot)
    if as_json:
        print(json.dumps({"input": spectrum, **written, "fits": fit.summary()}, indent=2))
    else:
        _print_table(fit.summary(), written)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides; `--multirun` sweeps, `--cfg job` shows all."),
    ] = None,
) -> None:
    """Train a net and write a checkpoint; the same command continues a stopped run.

    Example: `specfit train experiment=quick name=mine edges=700:2000:130 data.generator.unit=1.8`
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from specfit.training.train import main as train_main

    try:
        train_main([*(overrides or []), *context.args])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error)) from error


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    size: Annotated[int, typer.Option(help="Number of spectra.")] = 100_000,
    edges: Annotated[str, typer.Option(help="`lo:hi:n`, `lo:hi:n:log` or a file.")] = "250:3000:50:log",
    n_backgrounds: Annotated[str, typer.Option(help="Number of components, or `low:high`.")] = "5",
    total: Annotated[str, typer.Option(help="Events a spectrum, `low:high`.")] = "2e4:1.8e5",
    rho: Annotated[str, typer.Option(help="Power of the fall, `low:high`.")] = "0.5:1.5",
    alpha: Annotated[str, typer.Option(help="Scale of the fall, `low:high`.")] = "25:200",
    mu: Annotated[str, typer.Option(help="Position of the turn-on, `low:high`.")] = "325:375",
    sigma: Annotated[str, typer.Option(help="Width of the turn-on, `low:high`.")] = "10:30",
    signal: Annotated[
        str | None, typer.Option(metavar="MASS,WIDTH,EVENTS", help="Inject a Gaussian signal into every spectrum.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides every spectrum.")] = 1,
) -> None:
    """Sample spectra into a folder of `.npy` files: counts, background, signal, edges.

    Example: `specfit generate toys --size 100000 --n-backgrounds 1:7 --signal 1000,100,500`
    """
    from specfit import io
    from specfit.dataset import write_dataset
    from specfit.generator import SignalPrior, SpectrumGenerator

    options = {"n_backgrounds": n_backgrounds, "total": total, "rho": rho, "alpha": alpha, "mu": mu, "sigma": sigma}
    ranges: dict[str, Any] = {name: _range(name, text) for name, text in options.items()}
    ranges["n_backgrounds"] = [int(n) for n in ranges["n_backgrounds"]]
    if signal is not None:
        mass, width, events = _numbers("signal", signal, ",", 3)
        if mass <= 0:
            raise InputError(f"--signal: the mass must be positive, {mass:g} came")
        relative = width / mass
        ranges["signal"] = SignalPrior(mass=(mass, mass), relative_width=(relative, relative), events=(events, events))
    generator = SpectrumGenerator(io.parse_edges(edges), **ranges)
    with _progress_bar("sampling", size) as progress:
        card = options | {"signal": signal}
        write_dataset(generator, folder, size=size, seed=seed, card=card, progress=progress)
    print(f"{size} spectra of {generator.n_bins} bins in {folder}/ (counts, background, signal, edges, card.json)")


@app.command()
def fit(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A workspace in JSON (pyhf's too), or cells of histograms in YAML."
        ),
    ],
    measurement: Annotated[str | None, typer.Option(help="JSON: which measurement; else the first.")] = None,
    scan: Annotated[str | None, typer.Option(metavar="PARAMETER", help="JSON: profile this parameter.")] = None,
    limit: Annotated[bool, typer.Option("--limit", help="JSON: upper limit (CLs) and significance.")] = False,
    impacts: Annotated[bool, typer.Option("--impacts", help="JSON: what each nuisance does to the signal.")] = False,
    plot: Annotated[
        str | None,
        typer.Option(metavar="[PATH]", help="JSON: draw the scan, else the impacts, else the correlations."),
    ] = None,
    param_model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME WORD...", help="YAML: a parametric model; repeat it, they multiply. After FILE."),
    ] = None,
    prior: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=MEAN,SIGMA", help="YAML: constrain parameters; repeatable.")
    ] = None,
    expect: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=VALUE", help="YAML: start at a physical value; repeatable.")
    ] = None,
    asimov: Annotated[bool, typer.Option("--asimov", help="YAML: fit what the start expects, not the data.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write all results to this JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of tables.")] = False,
) -> None:
    """Fit a statistical model to its observations.

    A workspace may be profiled, limited and taken apart into impacts; cells of histograms give the exact uncertainties
    of thousands of parameters. Models on the command line take the place of those in the YAML file.

    Example: `specfit fit workspace.json --scan mu --limit --plot`

    Example: `specfit fit z.yaml --param-model AxisNorm mu sig pt,eta --param-model AxisExp mu bkg mass pt,eta eta`
    """
    of_json = {"--measurement": measurement, "--scan": scan, "--limit": limit, "--impacts": impacts, "--plot": plot}
    of_yaml = {"--param-model": param_model, "--prior": prior, "--expect": expect, "--asimov": asimov}
    is_yaml = model.suffix.lower() in (".yaml", ".yml")
    foreign = [name for name, value in (of_json if is_yaml else of_yaml).items() if value]
    if foreign:
        other = "a workspace in JSON" if is_yaml else "cells of histograms in YAML"
        raise InputError(f"{', '.join(foreign)}: for {other}; {model.name} came")
    if is_yaml:
        from specfit.stats.cells.command import fit_file

        found = fit_file(model, param_models=param_model or [], priors=prior or [], expect=expect or [], asimov=asimov)
        content, text, converged = found.summary(), str(found), found.converged
        if out is not None:
            found.save(out)
    else:
        from specfit.io.files import replacing
        from specfit.stats.command import fit_workspace

        picture = model.with_suffix(".png") if plot == BESIDE_THE_OUTPUT else plot
        content, text = fit_workspace(
            model, measurement=measurement, scanned=scan, limit=limit, with_impacts=impacts, picture=picture
        )
        converged = bool(content["fit"]["converged"])
        if out is not None:
            with replacing(out) as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=2) if as_json else text)
    if not converged:
        raise typer.Exit(1)


def _with_joined_words(arguments: list[str]) -> list[str]:
    """Makes one value of the words after each `--param-model`, which the parser cannot count."""
    if "--param-model" not in arguments:
        return arguments
    from specfit.stats.cells.grammar import join_words

    return join_words(arguments)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def categorize(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="experiment=NAME [KEY=VALUE]... | analyse RUN", help="Hydra overrides, or a run."),
    ] = None,
) -> None:
    """Choose bins or categories that maximise a significance, or draw such a run again.

    Example: `specfit categorize experiment=sigmoid_1d n_categories=[5,10] name=mine`, then
    `specfit categorize analyse runs/mine`
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
            with _changing_bar() as progress:
                folders = categorize_main(words, progress=progress)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error)) from error
    for folder in folders:
        _print_categories(folder)


def _with_default_picture(arguments: list[str]) -> list[str]:
    """Gives a bare `--plot` its value, which the parser cannot leave out."""
    given = list(arguments)
    for i, argument in enumerate(arguments):
        is_bare = i + 1 == len(arguments) or arguments[i + 1].startswith("-")
        if argument == "--plot" and is_bare:
            given[i] = f"--plot={BESIDE_THE_OUTPUT}"
    return given


def _beside(source: str) -> str:
    """Names the output after the input: `hist.npy` to `hist_background.npy`, inside a ROOT file likewise."""
    file, separator, inside = source.partition(".root:")
    if separator:
        return f"{file}_background.root:{inside}"
    path = Path(source)
    return str(path.with_name(f"{path.stem}_background{path.suffix}"))


def _predict_many(fitter: Any, source: str, target: str, *, as_json: bool, **options: Any) -> None:
    """Fits a file of very many spectra piece by piece."""
    from specfit.streaming import fit_file

    with _progress_bar("spectra", 1) as update:
        done = fit_file(fitter, source, target, progress=update, **options)
    p_value, excess = done.fits["p_value"], done.fits["largest_excess"]
    best = excess.argsort()[::-1][:ROWS_SHOWN]
    summary = {
        "spectra": len(done.fits),
        "not_converged": int((~done.fits["converged"]).sum()),
        "p_value_below_0.01": float((p_value < 0.01).mean()),
        "median_p_value": float(sorted(p_value)[len(p_value) // 2]),
        "with_masked_bins": int((done.fits["masked_bins"] > 0).sum()),
        "largest_excesses": [{"spectrum": int(i), "sigma": float(excess[i])} for i in best],
    }
    written = {"background": str(done.background), "table": str(done.table)}
    if as_json:
        print(json.dumps({"input": source, **written, "summary": summary}, indent=2))
        return
    largest = cast(list[dict[str, float]], summary.pop("largest_excesses"))
    rows = summary | {"largest excesses": ", ".join(f"{x['sigma']:+.2f} (row {x['spectrum']})" for x in largest)}
    for name, value in rows.items():
        print(f"{name.replace('_', ' '):20} {value}")
    for name, path in written.items():
        print(f"{name} written to {path}")


def _save_picture(fit: Any, target: str, plot: str) -> str:
    from specfit import plots

    beside = str(Path(target.split(".root:")[0]).with_suffix(".png"))
    first_six = [fit[i] for i in range(min(6, len(fit.background)))] if fit.spectrum.is_batch else []
    figure = plots.draw_examples(first_six) if first_six else fit.plot()
    return str(plots.save(figure, beside if plot == BESIDE_THE_OUTPUT else plot))


def _print_table(summary: list[dict[str, Any]], written: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    if len(summary) == 1:
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in _rows(summary[0]).items():
            table.add_row(name, value)
    else:
        table = Table(box=None, pad_edge=False)
        for name in ("spectrum", *_rows(summary[0])):
            table.add_column(name, overflow="fold")
        for i, one in enumerate(summary[:ROWS_SHOWN]):
            table.add_row(str(i), *_rows(one).values())
    console.print(table)
    if len(summary) > ROWS_SHOWN:
        console.print(f"... and {len(summary) - ROWS_SHOWN} more spectra; --json prints them all")
    for name, path in written.items():
        console.print(f"{name} written to {path}")


def _print_categories(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    results = json.loads((folder / "results.json").read_text())["results"]
    table = Table(box=None, pad_edge=False)
    for name in ("categories", "signal", "Z train", "Z test", "least background", "bias", "ms per epoch", "note"):
        table.add_column(name)
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
                f"{min(category['background'] for category in train['categories']):.2f}",
                f"{train['mean_bias']:.1e}",
                f"{1e3 * one['seconds_per_epoch']:.1f}",
                one["message"] or (f"best within limits {one['exact']:.4f}" if one["exact"] else ""),
            )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"pictures, checkpoints and results.json in {folder}/")


def _rows(one: dict[str, Any]) -> dict[str, str]:
    low, high = one["largest_excess_low"], one["largest_excess_high"]
    masked = one["masked_bins"]
    rows = {
        "events": f"{one['events']:.6g}" + (" (weighted)" if one["weighted"] else ""),
        "bins": str(one["bins"]),
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


@contextlib.contextmanager
def _progress_bar(label: str, total: int) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done, size=total: bar.update(task, completed=done, total=size)


@contextlib.contextmanager
def _changing_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yields what moves a bar whose label and length may change."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("events", total=None)
        yield lambda label, done, total: bar.update(task, description=label, completed=done, total=total)


def _range(name: str, text: str) -> list[float]:
    numbers = _numbers(name, text, ":", None)
    if len(numbers) not in (1, 2):
        raise InputError(f"--{name.replace('_', '-')}: a number or low:high is expected, {text!r} came")
    return [numbers[0], numbers[-1]]


def _numbers(name: str, text: str, separator: str, n: int | None) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(separator)]
    except ValueError:
        numbers = []
    if not numbers or (n is not None and len(numbers) != n):
        expected = f"{n} numbers separated by {separator!r}" if n else f"numbers separated by {separator!r}"
        raise InputError(f"--{name.replace('_', '-')}: {expected} are expected, {text!r} came")
    return numbers


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
