"""FitResult: where a likelihood has its maximum, how well that is known, and whether to believe it."""

from __future__ import annotations

__all__ = ["FitResult"]

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specfit import plots
from specfit.errors import InputError
from specfit.io.files import finite_or_none, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class FitResult:
    r"""The maximum of a likelihood.

    Args:
        parameter_names: Names, the parameters of interest first.
        n_poi: How many are of interest.
        values: Best values, shape `(p,)`.
        covariance: Inverse of the exact Hessian of :math:`-\ln L`, shape `(p, p)`; zero for fixed parameters, infinite
            variance for what the data do not determine.
        nll: :math:`-\ln L` there.
        edm: Estimated distance of `nll` to its minimum before the last step.
        converged: Whether the minimum was found.
        message: What happened and, if it did not work out, which knob to turn.
        fixed: Which parameters did not move, shape `(p,)`.
        at_limit: Which ended at a limit, shape `(p,)`.
        n_steps: Steps, or calls of Minuit.
        method: `"newton"`, `"newton-cg"` or `"minuit"`.
    """

    parameter_names: tuple[str, ...]
    n_poi: int
    values: Tensor
    covariance: Tensor = field(repr=False)
    nll: float
    edm: float
    converged: bool
    message: str
    fixed: Tensor = field(repr=False)
    at_limit: Tensor = field(repr=False)
    n_steps: int
    method: str

    @property
    def uncertainties(self) -> Tensor:
        """Standard deviations, shape `(p,)`."""
        return self.covariance.diagonal().sqrt()

    @property
    def correlation(self) -> Tensor:
        """Correlation matrix, shape `(p, p)`; zero beside the diagonal for fixed parameters."""
        sigma = self.uncertainties
        known = (sigma > 0) & sigma.isfinite()
        safe = torch.where(known, sigma, 1.0)
        both = known[:, None] & known
        matrix = torch.where(both, self.covariance / (safe[:, None] * safe), 0.0)
        return matrix.fill_diagonal_(1.0)

    def value(self, name: str) -> float:
        """Best value of a parameter.

        Raises:
            InputError: There is no such parameter.
        """
        return float(self.values[self._index(name)])

    def uncertainty(self, name: str) -> float:
        """Standard deviation of a parameter.

        Raises:
            InputError: There is no such parameter.
        """
        return float(self.uncertainties[self._index(name)])

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, None for what is infinite; not the covariance matrix of more than 200 parameters."""
        rows = zip(
            self.parameter_names,
            self.values.tolist(),
            self.uncertainties.tolist(),
            self.fixed.tolist(),
            self.at_limit.tolist(),
            strict=True,
        )
        summary = {
            "converged": self.converged,
            "message": self.message,
            "nll": self.nll,
            "edm": self.edm,
            "method": self.method,
            "n_steps": self.n_steps,
            "n_poi": self.n_poi,
            "parameters": {
                name: {"value": v, "uncertainty": u, "fixed": f, "at_limit": limit} for name, v, u, f, limit in rows
            },
        }
        if len(self.values) <= LARGEST_MATRIX:
            summary["covariance"] = self.covariance.tolist()
        plain: dict[str, Any] = finite_or_none(summary)
        return plain

    def plot(self) -> Figure:
        """Draws the correlation matrix."""
        return plots.draw_correlation(self)

    def save(self, path: str | Path) -> Path:
        """Writes `to_dict` as JSON."""
        return write_json(path, self.to_dict())

    def __str__(self) -> str:
        """Writes the result as a table, one parameter a line."""
        width = max((len(name) for name in self.parameter_names), default=0)
        notes = [
            "fixed" if f else "at a limit" if limit else "" for f, limit in zip(self.fixed, self.at_limit, strict=True)
        ]
        lines = [
            f"{name:{width}}  {value:12.6g} +- {sigma:<10.4g} {note}".rstrip()
            for name, value, sigma, note in zip(
                self.parameter_names, self.values.tolist(), self.uncertainties.tolist(), notes, strict=True
            )
        ]
        head = f"-ln L {self.nll:.6g}, EDM {self.edm:.2g}, {self.method}: {self.message}"
        return "\n".join([head, *lines])

    def _index(self, name: str) -> int:
        if name not in self.parameter_names:
            raise InputError(f"parameter {name!r} does not exist; there are {', '.join(self.parameter_names[:10])}")
        return self.parameter_names.index(name)


LARGEST_MATRIX = 200
