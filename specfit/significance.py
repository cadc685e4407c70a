r"""Every significance of specfit, each formula once.

What to use when:

- `bin_significance(n, b, uncertainty=s)`: how far data lie from an expectation, in standard deviations, per bin.
  Give `uncertainty` whenever the background was itself fitted or measured: without it the number is too large.
- `binomial_significance`: the same question as an exact on/off frequentist test (Z_Bi); slower, not differentiable.
- `poisson_significance`: exact Poisson tail for a background known without error; the right one at few events.
- `asimov_significance(s, b)`: the median discovery significance expected for a signal `s` on a background `b`.
- `asimov_deviance(s, b)`: its square, which adds up over bins; a fast one for loops that climb its gradient.
- `poisson_deviance` and `deviance_p_value`: goodness of fit. A deviance is not a significance.

Conventions: :math:`n` observed, :math:`b` expected, :math:`s` absolute uncertainty of :math:`b`, all in events;
shapes broadcast; positive for an excess, negative for a deficit; float64. Values and gradients are finite for
:math:`n = 0`, :math:`s = 0` and tiny :math:`b`.

Sources: ATLAS, ATL-PHYS-PUB-2020-025 (formula with and without uncertainty, equal to Li and Ma 1983, eq. 17);
Cousins, Linnemann, Tucker, NIM A 595 (2008) 480 (Z_Bi); Cowan, Cranmer, Gross, Vitells, arXiv:1007.1727, eq. 97 and
the extension with uncertainty (Asimov); Baker and Cousins, NIM 221 (1984) 437 (deviance); Choudalakis and Casadei,
arXiv:1111.2062 (which Poisson tail is shown, and when none).
"""

from __future__ import annotations

__all__ = [
    "asimov_deviance",
    "asimov_significance",
    "bin_significance",
    "binomial_significance",
    "deviance_p_value",
    "deviance_terms",
    "normal_deviate",
    "poisson_deviance",
    "poisson_significance",
    "upper_tail",
]

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from specfit.arrays import same_kind
from specfit.errors import InputError

# Fewer expected events than this are taken as this many, so that every power of it that a gradient needs is an
# ordinary float64 number.
TINY = 1e-30
# Where a series takes over from its closed form: the neglected term is then below float64 resolution.
SERIES_BELOW = 1e-2
# Relative excess of a bin without events, so that its logarithm is finite.
LEAST_RELATIVE = -1 + 1e-16
# Smallest tail probability of float64: a significance saturates at 38.4.
SMALLEST_TAIL = 5e-324


@same_kind
def poisson_deviance(observed: Tensor, expected: Tensor) -> Tensor:
    r"""Computes :math:`2 [n \ln(n/b) - (n - b)]` per bin (Baker-Cousins), at least 0, equal to `2 b` for n = 0.

    Args:
        observed: Events :math:`n \ge 0`, shape `(*, n_bins)`.
        expected: Events :math:`b > 0`, broadcasting with `observed`.
    """
    _check_events(observed, expected)
    n, b = observed, expected.clamp(min=TINY)
    x = (n - b) / b
    near = x.abs() < 0.5
    x_near = torch.where(near, x, 0.0)
    n_far = torch.where(near, 2 * b, n)
    return 2 * torch.where(
        near,
        b * x_near**2 * _entropy_ratio(x_near),
        torch.special.xlogy(n_far, n_far.clamp(min=TINY) / b) - (n_far - b),
    )


def deviance_terms(observed: Tensor, expected: Tensor) -> Tensor:
    """Computes `poisson_deviance` as fits need it: unchecked, with few operations, to the rounding of their difference.

    Args:
        observed: Events, shape `(*, n_bins)`, float64.
        expected: Events, positive, broadcasting with `observed`.
    """
    excess = observed - expected
    # n ln(1 + x): nothing of the size of n cancels. Without events it is 0, whatever the logarithm.
    return 2.0 * (observed * (excess / expected).clamp(min=LEAST_RELATIVE).log1p() - excess)


@same_kind
def bin_significance(observed: Tensor, expected: Tensor, *, uncertainty: Tensor | None = None) -> Tensor:
    r"""Computes the signed significance of each bin.

    Without uncertainty, :math:`Z = \pm\sqrt{2 [n \ln(n/b) - (n - b)]}`; with :math:`s`,

    .. math::
        Z = \pm\sqrt{2 \left[ n \ln\frac{n (b + s^2)}{b^2 + n s^2}
            - \frac{b^2}{s^2} \ln\left(1 + \frac{s^2 (n - b)}{b (b + s^2)}\right) \right]},

    which tends to the first form for :math:`s \to 0`.

    Args:
        observed: Events :math:`n \ge 0`, shape `(*, n_bins)`.
        expected: Events :math:`b > 0`, broadcasting with `observed`.
        uncertainty: Absolute uncertainty :math:`s \ge 0` of `expected`, broadcasting with it.

    Example:
        >>> round(bin_significance(140, 100), 4), round(bin_significance(140, 100, uncertainty=10), 4)
        (3.7699, 2.588)
    """
    _check_events(observed, expected)
    b = expected.clamp(min=TINY)
    if uncertainty is None:
        return _significance(observed, b, torch.zeros_like(b), excess=observed - b)
    _check_not_negative(uncertainty, "uncertainty")
    return _significance(observed, b, uncertainty**2, excess=observed - b)


@same_kind
def asimov_significance(signal: Tensor, background: Tensor, *, uncertainty: Tensor | None = None) -> Tensor:
    r"""Computes the median significance with which a signal would be discovered.

    :math:`Z_A = \sqrt{2 [(s + b) \ln(1 + s/b) - s]}`: `bin_significance` at :math:`n = s + b`, so the uncertainty of
    the background enters in the same way. For small :math:`s/b` it is :math:`s / \sqrt{b}`.

    Args:
        signal: Expected signal events :math:`\ge 0`, shape `(*, n_bins)`.
        background: Expected background events :math:`> 0`, broadcasting with `signal`.
        uncertainty: Absolute uncertainty of `background`, broadcasting with it.

    Example:
        >>> round(asimov_significance(10.0, 100.0), 4)
        0.984
    """
    _check_not_negative(signal, "signal")
    _check_not_negative(background, "background")
    b = background.clamp(min=TINY)
    if uncertainty is None:
        return _significance(signal + b, b, torch.zeros_like(b), excess=signal)
    _check_not_negative(uncertainty, "uncertainty")
    return _significance(signal + b, b, uncertainty**2, excess=signal)


def asimov_deviance(signal: Tensor, background: Tensor) -> Tensor:
    r"""Computes the square of `asimov_significance`, :math:`2 [(s + b) \ln(1 + s/b) - s]`, for a known background.

    One operation with its gradient in closed form, :math:`2 \ln(1 + s/b)` and :math:`2 [\ln(1 + s/b) - s/b]`, which is
    finite everywhere, also at :math:`s = 0`, where the significance itself has a corner. Tensors only, first
    derivatives only.

    Args:
        signal: Expected signal events :math:`\ge 0`, float64, shape `(*, n_bins)`.
        background: Expected background events :math:`\ge 0`, float64, broadcasting with `signal`.

    Example:
        >>> asimov_deviance(torch.tensor(10.0).double(), torch.tensor(100.0).double()).sqrt()
        tensor(0.9840, dtype=torch.float64)
    """
    answer: Tensor = _AsimovDeviance.apply(*torch.broadcast_tensors(signal, background))  # type: ignore[no-untyped-call]
    return answer


class _AsimovDeviance(torch.autograd.Function):
    """A hundred small operations and their tape would cost ten times the arithmetic."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, background: Tensor) -> Tensor:
        b = background.clamp(min=TINY)
        r = signal / b
        log = torch.log1p(r)
        near = r < SERIES_BELOW / 10
        value = torch.where(
            near, signal * r * (1 - r / 3 * (1 - r / 2 * (1 - 0.6 * r))), 2 * ((signal + b) * log - signal)
        )
        by_background = torch.where(near, -(r**2) * (1 - r * (2 / 3 - r * (0.5 - 0.4 * r))), 2 * (log - r))
        ctx.save_for_backward(2 * log, by_background)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        by_signal, by_background = ctx.saved_tensors
        return gradient * by_signal, gradient * by_background


@same_kind
def poisson_significance(observed: Tensor, expected: Tensor) -> Tensor:
    r"""Computes the exact Poisson tail as a significance, for a background known without error.

    :math:`p = P(N \ge n; b)` for an excess and :math:`P(N \le n; b)` for a deficit; :math:`Z = \Phi^{-1}(1 - p)`, with
    a minus sign for a deficit, and 0 where p exceeds 1/2. Saturates at 38.4. Numbers for reading: it carries no
    gradient.

    Args:
        observed: Events :math:`n \ge 0`, shape `(*, n_bins)`.
        expected: Events :math:`b > 0`, broadcasting with `observed`.
    """
    import scipy.special  # a quarter of a second, which no fit needs

    _check_events(observed, expected)
    n, b = _to_numpy(observed), _to_numpy(expected.clamp(min=TINY))
    upper = scipy.special.gammainc(np.maximum(n, SMALLEST_TAIL), b)
    lower = scipy.special.gammaincc(n + 1, b)
    return _from_tails(np.where(n >= b, upper, lower), np.where(n >= b, 1.0, -1.0), observed)


@same_kind
def binomial_significance(observed: Tensor, expected: Tensor, *, uncertainty: Tensor) -> Tensor:
    r"""Computes :math:`Z_{Bi}`, the exact on/off test of an expectation measured with an uncertainty.

    With :math:`\tau = b / s^2`: :math:`p = I_{1/(1 + \tau)}(n, \tau b + 1)`, the probability of at least n events, and
    :math:`Z = \Phi^{-1}(1 - p)`. Saturates at 38.4, so n = 0, where p = 1, gives -38.4. Numbers for reading: it carries
    no gradient.

    Args:
        observed: Events :math:`n \ge 0`, shape `(*, n_bins)`.
        expected: Events :math:`b > 0`, broadcasting with `observed`.
        uncertainty: Absolute uncertainty :math:`s \ge 0` of `expected`. Where it is 0 the limit is used,
            :math:`p = P(N \ge n; b)` of a Poisson count.

    Example:
        >>> round(binomial_significance(140, 100, uncertainty=10), 4)
        2.5221
    """
    import scipy.special

    _check_events(observed, expected)
    _check_not_negative(uncertainty, "uncertainty")
    n, b, s = (
        np.maximum(_to_numpy(observed), SMALLEST_TAIL),
        _to_numpy(expected.clamp(min=TINY)),
        _to_numpy(uncertainty),
    )
    is_exact = s**2 < 1e-12 * b  # tau b then exceeds what the incomplete beta function resolves
    tau = b / np.where(is_exact, 1.0, s**2)
    a, c, x = n, tau * b + 1, 1 / (1 + tau)
    excess = np.where(is_exact, scipy.special.gammainc(n, b), scipy.special.betainc(a, c, x))
    deficit = np.where(is_exact, scipy.special.gammaincc(n, b), scipy.special.betaincc(a, c, x))
    is_excess = excess <= 0.5
    return _from_tails(np.where(is_excess, excess, deficit), np.where(is_excess, 1.0, -1.0), observed)


@same_kind
def deviance_p_value(deviance: Tensor, ndf: Tensor) -> Tensor:
    """Computes the probability of a deviance at least this large, taking it as chi-square distributed.

    Numbers for reading: it carries no gradient.

    Args:
        deviance: Sum of `poisson_deviance` over the bins, at least 0, shape `(*,)`.
        ndf: Degrees of freedom, bins less what the fit used; above 0, may be fractional. Shape `(*,)`.

    Example:
        >>> round(deviance_p_value(60.0, 50), 4)
        0.1572
    """
    _check_not_negative(deviance, "deviance")
    if (ndf <= 0).any():
        raise InputError(f"ndf: must be above 0, {ndf.min().item():g} came; a fit needs more bins than parameters")
    p: Tensor = torch.special.gammaincc(ndf.detach() / 2, deviance.detach() / 2)
    return p


def upper_tail(z: Tensor) -> Tensor:
    """Computes the one-sided p-value of significances `z` of any shape, however large."""
    p: Tensor = torch.special.log_ndtr(-z).exp()  # `ndtr` is 0 from 8.3 standard deviations on
    return p


def normal_deviate(p: float) -> float:
    r"""Returns the significance :math:`-\Phi^{-1}(p)` of a one-sided p-value; infinite for 0 and 1."""
    return -float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))


def _significance(n: Tensor, b: Tensor, variance: Tensor, *, excess: Tensor) -> Tensor:
    """Computes the ATLAS significance; `variance` is the squared uncertainty, `b` is positive.

    `excess` = n - b comes beside n: a signal far below b would be lost in n, a count far below b in the excess.

    With r = variance / b, A = (n - b) / b, d = (n - b) / (b + variance) and g(x) = [(1 + x) ln(1 + x) - x] / x^2,
    the published formula is Z = (n - b) / sqrt(b + variance) * sqrt(2 [(1 + r) g(A) - r g(r d)]): no cancellation
    near n = b, the sign for free, a finite gradient everywhere. Far from n = b the published form is the stable one.
    """
    near = (excess / b).abs() < 0.5
    # Each branch sees only arguments that are safe for it: a NaN in the unused branch would spoil the gradient.
    return torch.where(
        near,
        _significance_near(torch.where(near, excess, 0.0), b, variance),
        _significance_far(torch.where(near, 3 * b, n), b, variance, excess=torch.where(near, 2 * b, excess)),
    )


def _significance_near(excess: Tensor, b: Tensor, variance: Tensor) -> Tensor:
    r, relative = variance / b, excess / b
    g = _entropy_ratio(relative)
    # g(A) - g(r d) by difference, or by its Taylor series where r is so large that the arguments coincide.
    difference = g - _entropy_ratio(relative * r / (1 + r))
    log_ratio = (1 + relative * g) / (1 + relative)  # ln(1 + A) / A
    slope, curvature = log_ratio - 2 * g, 1 / (1 + relative) - 4 * log_ratio + 6 * g  # A g'(A), A^2 g''(A)
    series = (slope - curvature / (2 * (1 + r))) / (1 + r)
    bracket = g + r * torch.where(r < 2e4, difference, series)
    return excess / (b + variance).sqrt() * (2 * bracket).sqrt()


def _significance_far(n: Tensor, b: Tensor, variance: Tensor, *, excess: Tensor) -> Tensor:
    r, relative, n_over_b = variance / b, excess / b, n / b
    # At n = 0 the first logarithm is infinite but counts nothing.
    first = n_over_b * torch.log1p((relative / (1 + r * n_over_b)).clamp(min=-1 + 1e-16))
    # Second term: ln(1 + r d) / r in three forms, for r near 0, for small and for large r.
    d = relative / (1 + r)
    is_zero, is_large = r * d.abs().clamp(min=1.0) < 1e-9, r > 1
    is_small = ~is_zero & ~is_large
    r_small, r_large = torch.where(is_small, r, 0.5), torch.where(is_large, r, 2.0)
    small = torch.log1p(r_small * torch.where(is_small, d, 0.0)) / r_small
    large = (torch.log1p(r_large * n_over_b) - torch.log1p(r_large)) / r_large
    second = torch.where(is_zero, d * (1 - r * d / 2), torch.where(is_large, large, small))
    return (2 * b * (first - second)).clamp(min=TINY).sqrt() * excess.detach().sign()


def _entropy_ratio(x: Tensor) -> Tensor:
    """Computes [(1 + x) ln(1 + x) - x] / x^2 for abs(x) < 1, by its series where the terms cancel."""
    near = x.abs() < SERIES_BELOW
    x_near, x_far = torch.where(near, x, 0.0), torch.where(near, 0.5, x)
    series = torch.zeros_like(x)
    for k in reversed(range(8)):
        series = 1 / ((k + 1) * (k + 2)) - x_near * series
    return torch.where(near, series, ((1 + x_far) * torch.log1p(x_far) - x_far) / x_far**2)


def _from_tails(tail: np.ndarray, sign: np.ndarray, like: Tensor) -> Tensor:
    import scipy.special

    z = -scipy.special.ndtri(np.clip(tail, SMALLEST_TAIL, 0.5))
    return torch.as_tensor(sign * z, dtype=torch.float64, device=like.device)


def _check_events(observed: Tensor, expected: Tensor) -> None:
    _check_not_negative(observed, "observed")
    _check_not_negative(expected, "expected")


def _check_not_negative(value: Tensor, name: str) -> None:
    if (value < 0).any():
        raise InputError(f"{name}: must not be negative, {value.min().item():g} came")


def _to_numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
