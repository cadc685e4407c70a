"""`specfit fit`: workspaces and cells of histograms."""

from __future__ import annotations

__all__ = ["fit", "with_joined_words"]

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from specfit.cli.options import BESIDE_THE_OUTPUT
from specfit.cli.terminal import print_json
from specfit.errors import InputError


def fit(
    model: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A workspace in JSON (pyhf's too), or cells of histograms in YAML."),
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
    _refuse(of_json if is_yaml else of_yaml, "a workspace in JSON" if is_yaml else "cells of histograms in YAML", model)
    fitted = _fit_cells(model, of_yaml) if is_yaml else _fit_workspace(model, of_json)
    if out is not None:
        from specfit.io.files import finite_or_none, write_json

        write_json(out, finite_or_none(fitted.content))
    if as_json:
        print_json(fitted.content)
    else:
        print(fitted.text)
    if not fitted.converged:
        raise typer.Exit(1)


class _Fitted(NamedTuple):
    """Results as plain data and as text."""

    content: dict[str, Any]
    text: str
    converged: bool


def _refuse(options: dict[str, Any], meant_for: str, file: Path) -> None:
    """Refuses options of the other kind of file."""
    given = [name for name, value in options.items() if value]
    if given:
        raise InputError(f"{', '.join(given)}: for {meant_for}; {file.name} came")


def _fit_cells(file: Path, options: dict[str, Any]) -> _Fitted:
    from specfit.stats.cells.command import fit_file

    found = fit_file(
        file,
        param_models=options["--param-model"] or [],
        priors=options["--prior"] or [],
        expect=options["--expect"] or [],
        asimov=options["--asimov"],
    )
    return _Fitted(found.summary(), str(found), found.converged)


def _fit_workspace(file: Path, options: dict[str, Any]) -> _Fitted:
    from specfit.stats.command import fit_workspace

    content, text = fit_workspace(
        file,
        measurement=options["--measurement"],
        scanned=options["--scan"],
        limit=options["--limit"],
        with_impacts=options["--impacts"],
        picture=file.with_suffix(".png") if options["--plot"] == BESIDE_THE_OUTPUT else options["--plot"],
    )
    return _Fitted(content, text, bool(content["fit"]["converged"]))


def with_joined_words(arguments: list[str]) -> list[str]:
    """Makes one value of the words after each `--param-model`, which the parser cannot count."""
    if "--param-model" not in arguments:
        return arguments
    from specfit.stats.cells.grammar import join_words

    return join_words(arguments)
