"""What `specfit fit` does with a YAML file of cells: reads it, puts in what the command line says, fits."""

from __future__ import annotations

__all__ = ["fit_file"]

from collections.abc import Sequence
from pathlib import Path

from specfit.stats.cells.files import read_cells
from specfit.stats.cells.fitting import CellFit, fit_cells
from specfit.stats.cells.grammar import parse_assignments, parse_models


def fit_file(
    path: str | Path,
    *,
    param_models: Sequence[str] = (),
    priors: Sequence[str] = (),
    expect: Sequence[str] = (),
    asimov: bool = False,
) -> CellFit:
    """Fits a likelihood of cells from a file.

    Args:
        path: The YAML file.
        param_models: Models as texts in the grammar; any take the place of those in the file.
        priors: Constraints as `pattern=mean,sigma`.
        expect: Physical starts as `pattern=value`.
        asimov: Whether to fit what the start expects instead of the data.

    Raises:
        InputError: A text or the file is not of its form.
        OSError: A file cannot be read.
    """
    models = parse_models(param_models, trusted=True) if param_models else None
    constraints = {name: (mean, sigma) for name, (mean, sigma) in parse_assignments("--prior", priors, 2).items()}
    start = {name: value for name, (value,) in parse_assignments("--expect", expect, 1).items()}
    likelihood = read_cells(path, model=models, priors=constraints, start=start)
    if asimov:
        likelihood = likelihood.with_data(likelihood.expected(likelihood.initial_values))
    return fit_cells(likelihood)
