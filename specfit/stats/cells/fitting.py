"""The fit of cells: best fit and exact uncertainties of thousands of parameters."""

from __future__ import annotations

__all__ = ["CellFit", "fit_cells"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError
from specfit.io.files import finite_or_none, write_json
from specfit.stats.cells.likelihood import CellLikelihood
from specfit.stats.cells.newton import Minimum, minimize
from specfit.stats.cells.parameters import Meaning, match
from specfit.stats.fit_result import FitResult

# A raw parameter known no better than this is not determined by the data.
UNDETERMINED = 1e3
NAMES_SHOWN = 5
ROWS_SHOWN = 40


@dataclass(frozen=True, eq=False)
class CellFit:
    """A fitted likelihood of cells.

    Args:
        likelihood: What was fitted.
        values: Best raw values, shape `(p,)`.
        uncertainties: Standard deviations from the exact Hessian, same shape; 0 for a fixed parameter.
        nll: -ln L at the best fit; twice it is the saturated goodness of fit, less the terms of constraints.
        edm: Estimated distance to the minimum in units of -ln L.
        iterations: Number of Hessians computed.
        converged: Whether the answer can be used.
        undetermined: Parameters on which the data say nothing; their values and uncertainties mean nothing.
        message: What happened and, if it did not work out, which knob to turn.
        minimum: The expansion and factorised Hessian at the best fit.
    """

    likelihood: CellLikelihood
    values: Tensor = field(repr=False)
    uncertainties: Tensor = field(repr=False)
    nll: float
    edm: float
    iterations: int
    converged: bool
    undetermined: tuple[str, ...]
    message: str
    minimum: Minimum = field(repr=False)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Name of each parameter."""
        return self.likelihood.parameter_names

    @property
    def physical_values(self) -> Tensor:
        """What the raw values mean: norms, amplitudes, coefficients, shape `(p,)`."""
        return self._by_meaning("physical")

    @property
    def physical_uncertainties(self) -> Tensor:
        """Uncertainties of `physical_values`, to first order, shape `(p,)`."""
        return self._by_meaning("slope").abs() * self.uncertainties

    def covariance(self, names: str | Sequence[str] | None = None) -> Tensor:
        """Returns the covariance of raw values, shape `(n, n)`.

        Args:
            names: Which parameters, by name or pattern; None for all, which takes memory with the square of p.
        """
        m = self.minimum
        if names is None:
            return m.scale[:, None] * m.factor.inverse() * m.scale
        patterns = [names] if isinstance(names, str) else names
        which = torch.tensor([i for pattern in patterns for i in match(pattern, self.parameter_names)])
        columns = m.factor.inverse_columns(which)  # (p, n)
        return m.scale[which, None] * columns[which] * m.scale[which]

    def to_fit_result(self) -> FitResult:
        """Returns what `specfit.stats.fit` returns, with the covariance of all parameters as a full matrix."""
        low, high = self.likelihood.bounds.unbind(-1)
        fixed = (self.minimum.scale == 0) & (self.values > low) & (self.values < high) | (low == high)
        covariance = self.covariance()
        unknown = [self.likelihood.index(name) for name in self.undetermined]
        covariance[unknown, unknown] = torch.inf
        return FitResult(
            parameter_names=self.parameter_names,
            n_poi=self.likelihood.n_poi,
            values=self.values,
            covariance=covariance,
            nll=self.nll,
            edm=self.edm,
            converged=self.converged,
            message=self.message,
            fixed=fixed,
            at_limit=~fixed & ((self.values <= low) | (self.values >= high)),
            n_steps=self.iterations,
            method="newton",
        )

    def __getitem__(self, name: str) -> tuple[float, float]:
        """Returns the physical value and uncertainty of one parameter."""
        i = self.likelihood.index(name)
        return self.physical_values[i].item(), self.physical_uncertainties[i].item()

    def summary(self) -> dict[str, Any]:
        """Returns the result as plain numbers."""
        columns = (self.values, self.uncertainties, self.physical_values, self.physical_uncertainties)
        keys = ("value", "uncertainty", "physical_value", "physical_uncertainty")
        rows = zip(self.parameter_names, *(column.tolist() for column in columns), strict=True)
        return {
            "nll": self.nll,
            "edm": self.edm,
            "iterations": self.iterations,
            "converged": self.converged,
            "message": self.message,
            "undetermined": list(self.undetermined),
            "parameters": {name: dict(zip(keys, numbers, strict=True)) for name, *numbers in rows},
        }

    def save(self, path: str | Path) -> Path:
        """Writes `summary` as JSON; a file of the same name is replaced in one step."""
        return write_json(path, finite_or_none(self.summary()))

    def __str__(self) -> str:
        """Writes a table of raw and physical values; of the first parameters only where there are many."""
        columns = (self.values, self.uncertainties, self.physical_values, self.physical_uncertainties)
        rows = list(zip(self.likelihood.parameters, *(column.tolist() for column in columns), strict=True))
        width = max(len(parameter.name) for parameter in self.likelihood.parameters)
        lines = []
        for parameter, raw, sigma, physical, error in rows[:ROWS_SHOWN]:
            line = f"{parameter.name:{width}}  {raw:12.6g} +- {sigma:<10.4g}"
            if parameter.meaning is not Meaning.ITSELF:
                line += f" {parameter.meaning.value}: {physical:.6g} +- {error:.4g}"
            lines.append(line.rstrip())
        if len(rows) > ROWS_SHOWN:
            lines.append(f"... and {len(rows) - ROWS_SHOWN} more parameters; the JSON form has them all")
        return "\n".join([f"-ln L {self.nll:.6g}: {self.message}", *lines])

    def _by_meaning(self, method: str) -> Tensor:
        """Applies a method of `Meaning` to the values, once for each meaning."""
        meanings = [parameter.meaning for parameter in self.likelihood.parameters]
        answer = torch.empty_like(self.values)
        for meaning in set(meanings):
            which = torch.tensor([one is meaning for one in meanings])
            answer[which] = getattr(meaning, method)(self.values[which])
        return answer


def fit_cells(
    likelihood: CellLikelihood,
    *,
    start: ArrayLike | None = None,
    fixed: Mapping[str, float] | Sequence[str] = (),
    tolerance: float = 1e-6,
    max_iterations: int = 200,
) -> CellFit:
    """Fits a likelihood of cells, by Newton's method with the exact Hessian in its blocks.

    Args:
        likelihood: What to fit.
        start: Raw values to begin with, shape `(p,)`; None takes those of the likelihood.
        fixed: Parameters that stay where they start, by name or pattern; a mapping gives their raw values.
        tolerance: Estimated distance to the minimum, in units of -ln L, below which one last step is taken.
        max_iterations: Most Hessians.

    Raises:
        InputError: A name or shape does not fit.

    Example:
        >>> import hist
        >>> from specfit.stats.cells import AxisNorm, Channel
        >>> template = hist.new.Reg(3, 0, 3, name="mass").Reg(2, 0, 2, name="eta").Double()
        >>> template[...] = [[10.0, 20.0]] * 3
        >>> data = template.copy()
        >>> data[...] = [[12.0, 15.0]] * 3
        >>> channel = Channel.of("muons", {"signal": template}, data=data)
        >>> fit = fit_cells(CellLikelihood([channel], AxisNorm("muons", "signal", "eta")))
        >>> [round(number, 4) for number in fit["norm_signal_eta0"]]  # 36 events on 30 expected, 1.2 +- 6 / 30
        [1.2, 0.2]
    """
    if likelihood.data.ndim != 1:
        raise InputError(f"likelihood: one set of data is expected, {len(likelihood.data)} came; fit them one by one")
    values = likelihood.initial_values.clone() if start is None else as_float64(start, "start").clone()
    if values.shape != likelihood.initial_values.shape:
        raise InputError(f"start: {likelihood.n_parameters} numbers are expected, shape {tuple(values.shape)} came")
    still = _fixed(likelihood, values, fixed)
    found = minimize(likelihood, values, still, tolerance=tolerance, max_iterations=max_iterations)
    variances = found.scale.square() * found.factor.inverse_diagonal()
    undetermined = _undetermined(likelihood, found, variances)
    return CellFit(
        likelihood=likelihood,
        values=found.values,
        uncertainties=variances.sqrt(),
        nll=float(likelihood.nll(found.values)),
        edm=abs(found.edm),
        iterations=found.iterations,
        converged=not found.problem,
        undetermined=undetermined,
        message=_message(found, undetermined),
        minimum=found,
    )


def _fixed(likelihood: CellLikelihood, values: Tensor, fixed: Mapping[str, float] | Sequence[str]) -> Tensor:
    """Returns which parameters are fixed, and puts them where they are to stay."""
    still = likelihood.bounds[:, 0] == likelihood.bounds[:, 1]
    patterns = [fixed] if isinstance(fixed, str) else list(fixed)
    for pattern in patterns:
        which = match(pattern, likelihood.parameter_names)
        still[which] = True
        if isinstance(fixed, Mapping):
            values[which] = fixed[pattern]
    return still


def _undetermined(likelihood: CellLikelihood, found: Minimum, variances: Tensor) -> tuple[str, ...]:
    """Names parameters of huge uncertainty and those that dominate a direction without curvature."""
    names = set((variances.sqrt() > UNDETERMINED).nonzero()[:, 0].tolist())
    structure, matrix = likelihood.structure, found.factor.matrix
    first = place = 0
    for block, (n, m) in zip(matrix.blocks, structure.groups, strict=True):
        members = structure.local[place : place + n * m].reshape(n, m)
        for i in found.factor.lifted[first : first + n].nonzero()[:, 0].tolist():
            _, vectors = torch.linalg.eigh(block[i])
            names.add(int(members[i, vectors[:, 0].abs().argmax()]))
        first, place = first + n, place + n * m
    if found.factor.lifted[-1]:
        schur = found.factor.matrix.corner - found.factor.matrix.strip.T @ found.factor.w
        names.add(int(structure.border[torch.linalg.eigh(schur)[1][:, 0].abs().argmax()]))
    return tuple(likelihood.parameter_names[i] for i in sorted(names))


def _message(found: Minimum, undetermined: Sequence[str]) -> str:
    text = found.problem or f"converged after {found.iterations} Hessians, {abs(found.edm):.2g} above the minimum"
    if undetermined:
        more = f" and {len(undetermined) - NAMES_SHOWN} more" if len(undetermined) > NAMES_SHOWN else ""
        named = ", ".join(undetermined[:NAMES_SHOWN]) + more
        text += f"; not determined by the data: {named} (give them a prior, share slopes over more cells, or fix them)"
    return text
