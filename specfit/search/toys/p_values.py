r"""How often pseudo-experiments reach what was observed, and how well that is known.

Of n pseudo-experiments, k are at least as extreme as the data. The p-value given is :math:`(k + 1) / (n + 1)`: if the
data come from what the pseudo-experiments were drawn from, :math:`P(p \le \alpha) \le \alpha` for every
:math:`\alpha`, with the fluctuation of the pseudo-experiments in it, and it is never 0, which no finite number of them
could show (Davison and Hinkley, "Bootstrap Methods and their Application" (1997), section 4.2; Phipson and Smyth,
arXiv:1603.05766). Beside it stands the Clopper-Pearson interval of the tail probability itself, whose estimate is
:math:`k / n` (Biometrika 26 (1934) 404): it covers at least as often as it says.
"""

from __future__ import annotations

__all__ = ["GlobalPValue", "global_p_value"]

from dataclasses import dataclass
from typing import Any

import scipy.special

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError
from specfit.significance import normal_deviate


@dataclass(frozen=True)
class GlobalPValue:
    """A p-value from pseudo-experiments.

    Args:
        p_value: :math:`(k + 1) / (n + 1)`.
        n_as_extreme: Pseudo-experiments k that are at least as extreme as what was observed.
        n: All of them.
        low: Lower end of the Clopper-Pearson interval of the tail probability; 0 for k = 0.
        high: Its upper end; 1 for k = n.
        upper_limit: One-sided Clopper-Pearson limit, :math:`1 - (1 - CL)^{1/n}` for k = 0.
        confidence_level: Of interval and limit.
    """

    p_value: float
    n_as_extreme: int
    n: int
    low: float
    high: float
    upper_limit: float
    confidence_level: float

    @property
    def significance(self) -> float:
        r"""The p-value in standard deviations, :math:`\Phi^{-1}(1 - p)`; at most what n can show."""
        return normal_deviate(self.p_value)

    @property
    def significance_range(self) -> tuple[float, float]:
        """The interval in standard deviations, lower end first; infinite where the interval reaches 0 or 1."""
        return normal_deviate(self.high), normal_deviate(self.low)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        """Writes the p-value, or its limit where no pseudo-experiment is as extreme."""
        level = f"{100 * self.confidence_level:g} %"
        if self.n_as_extreme == 0:
            reach = normal_deviate(self.upper_limit)
            return f"p < {self.upper_limit:.2g} at {level} (Z > {reach:.2f}; none of {self.n} pseudo-experiments)"
        return (
            f"p = {self.p_value:.3g}, {self.low:.2g} to {self.high:.2g} at {level} "
            f"(Z = {self.significance:.2f}; {self.n_as_extreme} of {self.n} pseudo-experiments)"
        )


def global_p_value(observed: float, drawn: ArrayLike, *, confidence_level: float = 0.95) -> GlobalPValue:
    """Compares what was observed with pseudo-experiments; larger is more extreme, and an equal one counts.

    Args:
        observed: The statistic of the data, such as the largest local significance of a scan.
        drawn: The same of pseudo-experiments, shape `(n,)`.
        confidence_level: Of interval and limit.

    Raises:
        InputError: `drawn` is empty or not one-dimensional, a number is NaN, or the level is not between 0 and 1.

    Example:
        >>> print(global_p_value(2.5, [0.3, 1.2, 2.7, 1.9]))
        p = 0.4, 0.0063 to 0.81 at 95 % (Z = 0.25; 1 of 4 pseudo-experiments)
        >>> print(global_p_value(4.1, [k / 250 for k in range(1000)]))
        p < 0.003 at 95 % (Z > 2.75; none of 1000 pseudo-experiments)
    """
    reference, values = as_float64(observed, "observed"), as_float64(drawn, "drawn")
    if values.ndim != 1 or len(values) == 0:
        raise InputError(f"drawn: one number a pseudo-experiment is expected, shape {tuple(values.shape)} came")
    if reference.ndim != 0 or reference.isnan():
        raise InputError(f"observed: one number is expected, {observed} came")
    if not 0 < confidence_level < 1:
        raise InputError(f"confidence_level: a number between 0 and 1 is expected, {confidence_level} came")
    if n_failed := int(values.isnan().sum()):
        raise InputError(
            f"drawn: {n_failed} of {len(values)} are NaN, which no comparison would count; "
            "make them infinite (taken as more extreme than anything, the safe side) or repeat those fits"
        )
    n, k = len(values), int((values >= reference).sum())
    return GlobalPValue(
        p_value=(k + 1) / (n + 1),
        n_as_extreme=k,
        n=n,
        low=_limit(k - 1, n, (1 + confidence_level) / 2),
        high=_limit(k, n, (1 - confidence_level) / 2),
        upper_limit=_limit(k, n, 1 - confidence_level),
        confidence_level=confidence_level,
    )


def _limit(k: int, n: int, probability: float) -> float:
    """Returns the tail probability for which at most k of n come with this probability (0 below k = 0, 1 at n)."""
    if k < 0:
        return 0.0
    return 1.0 if k == n else float(scipy.special.betaincinv(k + 1, n - k, 1 - probability))
