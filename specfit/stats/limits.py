r"""Limits on a signal and the significance of one, from the profile likelihood ratio.

What to use when:

- `upper_limit`: the strength excluded at 95 % confidence by the CLs rule, observed and expected with its bands;
  asymptotic formulae by default, `n_toys` for few events (below about five in the region that matters).
- `cls`: the p-values of one strength.
- `discovery`: the significance of an excess over the model without signal.

Conventions: the statistic of a limit is :math:`\tilde q_\mu` (0 for :math:`\hat\mu > \mu`; :math:`\hat\mu < 0` counts
as 0), that of a discovery :math:`q_0`. Expectations come from Asimov data at :math:`\mu = 0` (for a discovery at 1)
with the other parameters fitted to the data. Toys draw the auxiliary measurements too.

Sources: G. Cowan, K. Cranmer, E. Gross, O. Vitells, arXiv:1007.1727, eqs. 12, 16, 59 to 66; A. L. Read, J. Phys. G 28
(2002) 2693 (CLs).
"""

from __future__ import annotations

__all__ = ["Discovery", "PValues", "UpperLimit", "asymptotic_p_values", "cls", "discovery", "upper_limit"]

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.stats.fit_result import FitResult
from specfit.stats.fitting import ManyFits, fit, fit_many
from specfit.stats.likelihood import Likelihood, asimov
from specfit.stats.profile import Profile, root_above

BANDS = (-2.0, -1.0, 0.0, 1.0, 2.0)
N_POINTS_OF_TOYS = 9
SMALLEST_ROOT = 1e-100  # keeps the division finite; far below any statistic that is not zero


class PValues(NamedTuple):
    """How compatible data are with a strength."""

    cls: float
    signal: float
    """Probability of data at least as far on the side of no signal, with signal (CLs+b)."""
    background: float
    """The same without signal (CLb)."""
    expected: tuple[float, ...]
    """CLs expected without signal: at -2, -1, 0, 1, 2 standard deviations."""


@dataclass(frozen=True)
class UpperLimit:
    """An upper limit.

    Args:
        parameter: The strength.
        observed: The limit.
        expected: Limits expected without signal at -2, -1, 0, 1 and 2 standard deviations.
        level: Confidence level.
        method: `"asymptotic"` or `"toys"`.
        converged: Whether every fit arrived.
    """

    parameter: str
    observed: float
    expected: tuple[float, ...]
    level: float
    method: str
    converged: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"expected": list(self.expected)}

    def __str__(self) -> str:
        """Writes the limit and its expectation."""
        low2, low, median, high, high2 = self.expected
        return (
            f"{self.parameter} < {self.observed:.5g} at {100 * self.level:g} % CLs ({self.method}); "
            f"expected {median:.5g} [{low:.5g}, {high:.5g}] (1 sigma) [{low2:.5g}, {high2:.5g}] (2 sigma)"
        )


@dataclass(frozen=True)
class Discovery:
    """The significance of an excess.

    Args:
        parameter: The strength.
        q0: Statistic, 0 for a deficit.
        significance: In standard deviations.
        p_value: Probability of an excess at least as large without signal.
        expected_significance: Median for a signal of strength 1.
        method: `"asymptotic"` or `"toys"`.
        converged: Whether every fit arrived.
    """

    parameter: str
    q0: float
    significance: float
    p_value: float
    expected_significance: float
    method: str
    converged: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        """Writes significance and p-value."""
        return (
            f"{self.parameter}: {self.significance:.3f} sigma (p = {self.p_value:.3g}, {self.method}); expected "
            f"{self.expected_significance:.3f} sigma at strength 1"
        )


def cls(
    likelihood: Likelihood,
    value: float,
    *,
    parameter: str | None = None,
    n_toys: int | None = None,
    rng: torch.Generator | None = None,
) -> PValues:
    """Computes the p-values of one strength.

    Args:
        likelihood: A model with one set of data.
        value: The strength.
        parameter: Its name; None takes the first parameter of interest.
        n_toys: Toys with and as many without signal; None takes the asymptotic formulae.
        rng: Draws the toys.

    Raises:
        InputError: There is no such parameter, or toys without `rng`.
    """
    test = _Test(likelihood, parameter)
    return test.p_values(value) if n_toys is None else test.p_values_of_toys(value, n_toys, _given(rng))


def upper_limit(
    likelihood: Likelihood,
    *,
    parameter: str | None = None,
    level: float = 0.95,
    n_toys: int | None = None,
    rng: torch.Generator | None = None,
) -> UpperLimit:
    """Finds the strength that the CLs rule excludes.

    Args:
        likelihood: A model with one set of data.
        parameter: Name of the strength; None takes the first parameter of interest.
        level: Confidence level.
        n_toys: Toys with and as many without signal at each of nine strengths; None takes the asymptotic formulae.
        rng: Draws the toys.

    Raises:
        InputError: There is no such parameter, a level outside (0, 1), toys without `rng`, or no limit.
    """
    if not 0 < level < 1:
        raise InputError(f"level: a number between 0 and 1 is expected, {level:g} came")
    test = _Test(likelihood, parameter)
    observed, expected = test.limits(1 - level)
    method = "asymptotic"
    if n_toys is not None:
        observed, expected = test.limits_of_toys(1 - level, expected, observed, n_toys, _given(rng))
        method = "toys"
    return UpperLimit(test.name, observed, expected, level, method, test.converged)


def discovery(
    likelihood: Likelihood,
    *,
    parameter: str | None = None,
    n_toys: int | None = None,
    rng: torch.Generator | None = None,
) -> Discovery:
    """Computes the significance of an excess.

    Args:
        likelihood: A model with one set of data.
        parameter: Name of the strength; None takes the first parameter of interest.
        n_toys: Toys without signal; None takes the asymptotic formula.
        rng: Draws the toys.

    Raises:
        InputError: There is no such parameter, or toys without `rng`.
    """
    best = fit(likelihood)
    name = likelihood.parameter_names[0] if parameter is None else parameter
    without = fit_many(likelihood, fixed={name: 0.0}, start=best.values)
    q0 = 2 * max(float(without.nll) - best.nll, 0.0) if best.value(name) > 0 else 0.0
    p, method = float(scipy.stats.norm.sf(math.sqrt(q0))), "asymptotic"
    if n_toys is not None:
        toys = likelihood.with_data(likelihood.sample(without.values.expand(n_toys, -1), rng=_given(rng)))
        p, method = _share_above(_q0(toys, name, start=without.values[0]), q0), "toys"
    with_signal = fit_many(likelihood, fixed={name: 1.0}, start=best.values)
    expected = _q0(asimov(likelihood, with_signal.values), name, start=with_signal.values[0])
    converged = best.converged and bool(without.converged.all())
    significance = float(scipy.stats.norm.isf(p)) if n_toys is not None else math.sqrt(q0)
    return Discovery(name, q0, significance, p, math.sqrt(float(expected)), method, converged)


def _q0(toys: Likelihood, name: str, *, start: Tensor) -> Tensor:
    free = fit_many(toys, start=start)
    without = fit_many(toys, fixed={name: 0.0}, start=start)
    return torch.where(free.values[:, toys.index(name)] > 0, 2 * (without.nll - free.nll).clamp(min=0), 0.0)


class _Test:
    """The test of strengths on one set of data and on its Asimov data, with the fits they share."""

    def __init__(self, likelihood: Likelihood, parameter: str | None) -> None:
        if parameter is None and likelihood.n_poi == 0:
            raise InputError("parameter: the model has no parameter of interest; name the strength")
        self.name = likelihood.parameter_names[0] if parameter is None else parameter
        self.likelihood, self.number = likelihood, likelihood.index(self.name)
        self.best = fit(likelihood)
        self.without = fit_many(likelihood, fixed={self.name: 0.0}, start=self.best.values)
        self.asimov = asimov(likelihood, self.without.values[0])
        # The Asimov data are what these parameters expect: no fit is needed to find them again.
        self._asimov_nll = float(self.asimov.nll(self.without.values[0]))
        self._profile = Profile(likelihood, self.best, self.name)
        self._of_asimov = Profile(self.asimov, _moved(self.best, self.without, self._asimov_nll), self.name)

    @property
    def converged(self) -> bool:
        """Whether all fits so far arrived."""
        ours = self._profile.converged and self._of_asimov.converged
        return ours and self.best.converged and bool(self.without.converged.all())

    def statistics(self, value: float) -> tuple[float, float]:
        """Roots of the statistic of the data and of the Asimov data."""
        best = self.best.value(self.name)
        if best > value:
            q = 0.0
        else:
            # Below zero the reference is the model without signal.
            offset = 2 * (float(self.without.nll) - self.best.nll) if best < 0 else 0.0
            q = max(self._profile(value) - offset, 0.0)
        return math.sqrt(q), math.sqrt(max(self._of_asimov(value), 0.0))

    def p_values(self, value: float) -> PValues:
        """Asymptotic p-values."""
        root_q, root_a = self.statistics(value)
        ours, signal, background = (float(p) for p in asymptotic_p_values(root_q, root_a))
        return PValues(ours, signal, background, tuple(_expected_cls(root_a, band) for band in BANDS))

    def limits(self, alpha: float) -> tuple[float, tuple[float, ...]]:
        """Asymptotic limits, observed and expected."""
        sigma = self.best.uncertainty(self.name)
        step = sigma if 0 < sigma < math.inf else 1.0
        # Without signal CLs is a function of the Asimov statistic alone, so its root has a closed form.
        heights = [float(scipy.stats.norm.isf(alpha * scipy.stats.norm.sf(-b))) + b for b in BANDS]
        expected = tuple(self._of_asimov.crossing(h * h, 2 * step, math.inf) for h in heights)
        low = max(self.best.value(self.name), 0.0)
        observed = root_above(lambda value: self._log_cls(value) - math.log(alpha), low, 2 * step)
        if math.isinf(observed):
            raise InputError(f"parameter: the data leave {self.name} open and exclude no value, so there is no limit")
        return observed, expected

    def _log_cls(self, value: float) -> float:
        return math.log(asymptotic_p_values(*self.statistics(value))[0])

    def p_values_of_toys(self, value: float, n_toys: int, rng: torch.Generator) -> PValues:
        """P-values from toys with and without signal."""
        held = fit_many(self.likelihood, fixed={self.name: value}, start=self.best.values)
        q = self.statistics(value)[0] ** 2
        with_signal = self._of_toys(value, held.values[0], n_toys, rng)
        without = self._of_toys(value, self.without.values[0], n_toys, rng)
        signal, background = _share_above(with_signal, q), _share_above(without, q)
        levels = scipy.stats.norm.cdf(np.array(BANDS))
        # The band at -2 is that of data which look least like signal: a large statistic.
        quantiles = torch.quantile(without, torch.from_numpy(1 - levels))
        expected = tuple(
            _share_above(with_signal, float(x)) / max(_share_above(without, float(x)), 1e-300) for x in quantiles
        )
        return PValues(signal / max(background, 1e-300), signal, background, expected)

    def limits_of_toys(
        self, alpha: float, expected: tuple[float, ...], observed: float, n_toys: int, rng: torch.Generator
    ) -> tuple[float, tuple[float, ...]]:
        """Limits from toys at strengths around the asymptotic ones, interpolated in the logarithm of CLs."""
        low, high = 0.5 * min(*expected, observed), 1.6 * max(*expected, observed)
        strengths = np.geomspace(low, high, N_POINTS_OF_TOYS)
        values = [self.p_values_of_toys(float(s), n_toys, rng) for s in strengths]
        curves = [[v.cls for v in values], *([v.expected[i] for v in values] for i in range(len(BANDS)))]
        found = [_crossing(strengths, np.array(curve), alpha) for curve in curves]
        return found[0], tuple(found[1:])

    def _of_toys(self, value: float, truth: Tensor, n_toys: int, rng: torch.Generator) -> Tensor:
        toys = self.likelihood.with_data(self.likelihood.sample(truth.expand(n_toys, -1), rng=rng))
        free = fit_many(toys, start=truth)
        held = fit_many(toys, fixed={self.name: value}, start=truth)
        best = free.values[:, self.number]
        reference = free.nll
        if bool((best < 0).any()):
            reference = torch.where(best < 0, fit_many(toys, fixed={self.name: 0.0}, start=truth).nll, free.nll)
        return torch.where(best > value, 0.0, 2 * (held.nll - reference).clamp(min=0))


def _moved(best: FitResult, without: ManyFits, nll: float) -> FitResult:
    """The best fit of the Asimov data, known without a fit."""
    return dataclasses.replace(best, values=without.values[0], nll=nll)


def asymptotic_p_values(root_q: Any, root_a: Any) -> tuple[Any, Any, Any]:
    """Computes CLs, CLs+b and CLb from statistics (arXiv:1007.1727, eqs. 65 and 66).

    Args:
        root_q: Square root of the statistic of the data, a number or an array.
        root_a: The same of the Asimov data. Where it is zero (no signal is asked about) CLs is one.
    """
    near = root_q <= root_a
    divisor = 2 * np.maximum(root_a, SMALLEST_ROOT)
    t = np.where(near, root_q - root_a, (np.square(root_q) - np.square(root_a)) / divisor)
    # The ratio from logarithms: far in the tail both probabilities are zero in double precision.
    signal, background = scipy.stats.norm.logsf(t + root_a), scipy.stats.norm.logsf(t)
    return np.exp(signal - background), np.exp(signal), np.exp(background)


def _expected_cls(root_a: float, band: float) -> float:
    return float(scipy.stats.norm.sf(root_a - band) / scipy.stats.norm.sf(-band))


def _share_above(statistics: Tensor, value: float) -> float:
    # Fits are exact to rounding only: a statistic equal to the value counts as above.
    return float((statistics >= value - 1e-9).double().mean())


def _crossing(strengths: np.ndarray, curve: np.ndarray, alpha: float) -> float:
    below = np.flatnonzero(curve < alpha)
    if not len(below) or below[0] == 0:
        return math.inf if not len(below) else float(strengths[0])
    i = below[0]
    logs = np.log(np.maximum(curve[i - 1 : i + 1], 1e-6))
    share = (logs[0] - math.log(alpha)) / (logs[0] - logs[1])
    return float(strengths[i - 1] + share * (strengths[i] - strengths[i - 1]))


def _given(rng: torch.Generator | None) -> torch.Generator:
    if rng is None:
        raise InputError("rng: toys need a source of randomness, such as torch.Generator().manual_seed(1)")
    return rng
