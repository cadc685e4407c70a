"""InjectionResult: what came out of injected signals, as a value: table, files, picture."""

from __future__ import annotations

__all__ = ["InjectionResult"]

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from specfit import plots
from specfit.io.files import finite_or_none, write_json
from specfit.search.tables import checked_ending, write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".csv", ".json")


@dataclass(frozen=True, eq=False)
class InjectionResult:
    r"""Yields fitted to pseudo-data with injected signals.

    h counts masses and widths, k strengths. All events are in the unit of the spectrum's contents. Statistical errors
    are those of the number of pseudo-experiments.

    Args:
        edges: Bin edges, shape `(n_bins + 1,)`.
        truth: Expected background of the pseudo-data, shape `(n_bins,)`.
        mass: Of each signal, shape `(h,)`.
        width: Its standard deviation, shape `(h,)`.
        strength: Injected yields in units of `sigma0`, shape `(k,)`.
        sigma0: Error of a yield on a background known without error, events, shape `(h,)`.
        yields: Fitted events in each pseudo-experiment, shape `(n, h, k)`.
        error: Their standard errors, shape `(n, h, k)`.
    """

    edges: Tensor
    truth: Tensor
    mass: Tensor
    width: Tensor
    strength: Tensor
    sigma0: Tensor
    yields: Tensor = field(repr=False)
    error: Tensor = field(repr=False)

    @property
    def n_toys(self) -> int:
        """Number of pseudo-experiments."""
        return len(self.yields)

    @property
    def injected(self) -> Tensor:
        """Injected events, shape `(h, k)`."""
        return self.sigma0[:, None] * self.strength

    @property
    def mean(self) -> Tensor:
        """Mean fitted events, shape `(h, k)`."""
        return self.yields.mean(0)

    @property
    def fit_error(self) -> Tensor:
        """Mean standard error of a fitted yield, events, shape `(h, k)`."""
        return self.error.mean(0)

    @property
    def bias(self) -> Tensor:
        """Mean of fitted less injected events, in standard errors of the fit, shape `(h, k)`."""
        return (self.mean - self.injected) / self.fit_error

    @property
    def bias_error(self) -> Tensor:
        """Statistical error of `bias`, shape `(h, k)`."""
        return self.yields.std(0) / math.sqrt(self.n_toys) / self.fit_error

    @property
    def bias_in_sigma0(self) -> Tensor:
        """The same bias in units of `sigma0`, shape `(h, k)`."""
        return (self.mean - self.injected) / self.sigma0[:, None]

    @property
    def bias_in_sigma0_error(self) -> Tensor:
        """Statistical error of `bias_in_sigma0`, shape `(h, k)`."""
        return self.yields.std(0) / math.sqrt(self.n_toys) / self.sigma0[:, None]

    @property
    def pulls(self) -> Tensor:
        """Fitted less injected events over the standard error, shape `(n, h, k)`."""
        return (self.yields - self.injected) / self.error

    @property
    def pull_mean(self) -> Tensor:
        """Mean of the pulls, shape `(h, k)`."""
        return self.pulls.mean(0)

    @property
    def pull_width(self) -> Tensor:
        """Standard deviation of the pulls, 1 where the errors are right, shape `(h, k)`."""
        return self.pulls.std(0)

    @property
    def coverage(self) -> Tensor:
        """How often the injected yield lies within one standard error, shape `(h, k)`; 0.683 is expected."""
        return (self.pulls.abs() <= 1).double().mean(0)

    @property
    def slope(self) -> Tensor:
        """Slope of fitted against injected events, shape `(h,)`; NaN for a single strength."""
        return self._lines()[0].mean(0)

    @property
    def slope_error(self) -> Tensor:
        """Statistical error of `slope`, shape `(h,)`."""
        return self._lines()[0].std(0) / math.sqrt(self.n_toys)

    @property
    def intercept(self) -> Tensor:
        """Fitted events at no injected ones, by the straight line, in units of `sigma0`, shape `(h,)`."""
        return self._lines()[1].mean(0) / self.sigma0

    @property
    def intercept_error(self) -> Tensor:
        """Statistical error of `intercept`, shape `(h,)`."""
        return self._lines()[1].std(0) / math.sqrt(self.n_toys) / self.sigma0

    def table(self) -> dict[str, list[float]]:
        """Returns one column for each quantity, one entry for each mass, width and strength."""
        shape = self.injected.shape
        of_signal = ("mass", "width", "sigma0", "slope", "slope_error", "intercept", "intercept_error")
        spread = {name: getattr(self, name)[:, None].expand(shape) for name in of_signal}
        spread["strength"] = self.strength.expand(shape)
        own = ("injected", "mean", "fit_error", "bias", "bias_error", "bias_in_sigma0", "bias_in_sigma0_error")
        spread |= {name: getattr(self, name) for name in (*own, "pull_mean", "pull_width", "coverage")}
        first = ("mass", "width", "strength")
        order = [*first, *(name for name in spread if name not in first)]
        return {name: spread[name].flatten().tolist() for name in order}

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the single pseudo-experiments, as plain data; what does not exist is None."""
        points = finite_or_none(self.table())
        return {"pseudo_experiments": self.n_toys, "truth": self.truth.tolist(), "points": points}

    def save(self, path: str | Path) -> Path:
        """Writes the table to `.csv`, or everything to `.json`, by the ending of `path`.

        Raises:
            InputError: Another ending.
        """
        target = checked_ending(path, ENDINGS)
        return write_json(target, self.to_dict()) if target.suffix == ".json" else write_csv(target, self.table())

    def plot(self, *, x_label: str = "x") -> Figure:
        """Draws bias against mass, fitted against injected yields and the pulls."""
        return plots.draw_injection(self, x_label=x_label)

    def __str__(self) -> str:
        """Writes the result in one line a signal."""
        lines = []
        for i, mass in enumerate(self.mass.tolist()):
            bias = ", ".join(f"{b:+.2f}" for b in self.bias[i].tolist())
            lines.append(
                f"{mass:.5g}, width {self.width[i]:.3g}: bias {bias} standard errors at "
                f"{', '.join(f'{s:g}' for s in self.strength.tolist())} sigma0; slope {self.slope[i]:.3f} "
                f"+- {self.slope_error[i]:.3f}; pull width {self.pull_width[i].mean():.2f}"
            )
        return "\n".join(lines)

    def _lines(self) -> tuple[Tensor, Tensor]:
        """Returns slope and intercept of the straight line through each pseudo-experiment, both `(n, h)`."""
        x = self.injected
        away = x - x.mean(-1, keepdim=True)
        slope = (away * self.yields).sum(-1) / away.square().sum(-1)
        return slope, self.yields.mean(-1) - slope * x.mean(-1)
