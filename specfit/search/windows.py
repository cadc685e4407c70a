r"""The largest excess in windows of bins over a background that is taken as exact: BumpHunter's test statistic.

For every window of so many neighbouring bins, with n events where b are expected,

.. math:: t = \max_{\mathrm{windows},\, n > b} \left( -\ln P(N \ge n; b) \right),

with the exact Poisson tail :math:`P(N \ge n; b)`, the regularised incomplete gamma function P(n, b); 0 without any
excess. What t is worth is a question to pseudo-experiments (`specfit.search.global_p_value`).

What to use when:

- `scan_windows`: the background is known far better than the data are, from simulation, say; a first look that asks
  for no shape of the signal; comparison with other tools.
- `specfit.search.scan`: the background is fitted to the data. Its error is then as large as that of the data in a
  window, and a search that takes it as exact is blind or sees ghosts (`scripts/bench_search.py`).

Not every tail is computed: :math:`-\ln P` lies between half the deviance (Chernoff) and the logarithm of the
probability of n itself, so that most windows cannot be the largest.

Sources: G. Choudalakis, arXiv:1101.0390 (BumpHunter); NIST DLMF 8.9.1 (continued fraction of the far tail).
"""

from __future__ import annotations

__all__ = ["WindowScan", "scan_windows"]

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import scipy.special
import torch
from torch import Tensor

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError
from specfit.significance import poisson_deviance

# Spectra that are searched together.
AT_A_TIME = 1024
# Below this probability float64 ends, and a continued fraction of its logarithm goes on.
SMALLEST, LEVELS = 1e-280, 20


@dataclass(frozen=True, eq=False)
class WindowScan:
    """The window with the least probable excess of each spectrum.

    Args:
        statistic: t, shape `(*,)`; 0 where no window holds more than is expected.
        first: First bin of that window, shape `(*,)`.
        n_bins: How many bins it has, shape `(*,)`.
    """

    statistic: Tensor
    first: Tensor
    n_bins: Tensor


def scan_windows(
    counts: ArrayLike, background: ArrayLike, *, narrowest: int = 1, widest: int | None = None
) -> WindowScan:
    """Finds the least probable excess of all windows.

    Args:
        counts: Events, shape `(*, n_bins)`.
        background: Expected events, `(n_bins,)` or of each spectrum; a window without any says nothing.
        narrowest: Bins of the narrowest windows.
        widest: Bins of the widest; None takes half the spectrum.

    Raises:
        InputError: A number is negative or not finite, the shapes do not fit, or there is no window of that width.

    Example:
        >>> background = 1000 * torch.exp(-torch.arange(20) / 4.0)
        >>> counts = background.round()
        >>> counts[6:8] += 60
        >>> found = scan_windows(counts, background)
        >>> int(found.first), int(found.n_bins), round(float(found.statistic), 1)
        (6, 2, 19.2)
    """
    n, b = _events(counts, "counts"), _events(background, "background")
    n_bins = n.shape[-1] if n.ndim else 0
    if b.shape not in (n.shape, n.shape[-1:]) or n_bins == 0:
        raise InputError(
            f"background: shape {tuple(b.shape)} came for counts {tuple(n.shape)}; give (n_bins,) or one for each"
        )
    widths = _widths(narrowest, max(1, n_bins // 2) if widest is None else widest, n_bins)
    rows = zip(*(torch.split(t.expand_as(n).reshape(-1, n_bins), AT_A_TIME) for t in (n, b)), strict=True)
    found = [_scan(some, expected, widths) for some, expected in rows]
    statistic, first, width = (torch.cat(t).view(n.shape[:-1]) for t in zip(*found, strict=True))
    return WindowScan(statistic, first, width)


def _widths(narrowest: Any, widest: Any, n_bins: int) -> range:
    whole = isinstance(narrowest, Integral) and isinstance(widest, Integral)
    if not whole or not 1 <= narrowest <= widest <= n_bins:
        raise InputError(
            f"narrowest, widest: whole numbers with 1 <= narrowest <= widest <= {n_bins} are expected, "
            f"{narrowest!r} and {widest!r} came"
        )
    return range(int(narrowest), int(widest) + 1)


def _events(values: ArrayLike, name: str) -> Tensor:
    events = as_float64(values, name)
    if not events.isfinite().all() or (events < 0).any():
        raise InputError(f"{name}: finite numbers of events, not negative, are expected")
    return events


def _scan(counts: Tensor, background: Tensor, widths: range) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the window of each row of `(m, n_bins)`: statistic, first bin and width, each `(m,)`."""
    n_bins = counts.shape[1]
    first = torch.cat([torch.arange(n_bins - w + 1) for w in widths])
    width = torch.cat([torch.full((n_bins - w + 1,), w) for w in widths])
    n, b = (_sums(t, widths) for t in (counts, background))  # (m, windows)
    excess = (n > b) & (b > 0)
    at_least = torch.where(excess, poisson_deviance(n, b) / 2, 0.0)
    # Stirling: n! is smaller than its series with one term.
    at_most = at_least + (2 * math.pi * n).log() / 2 + 1 / (12 * n)
    candidate = excess & (at_most >= at_least.amax(1, keepdim=True))
    statistic = torch.zeros_like(n)
    statistic[candidate] = -_log_tail(n[candidate], b[candidate])
    largest, best = statistic.max(1)
    return largest, first[best], width[best]


def _sums(values: Tensor, widths: range) -> Tensor:
    """Sums all windows of `(m, n_bins)`, the narrowest first, `(m, windows)`.

    Each grows from the one a bin narrower: differences of cumulative sums would drown an empty end in rounding.
    """
    window, parts = values, [values]
    for width in range(2, widths[-1] + 1):
        window = window[:, :-1] + values[:, width - 1 :]
        parts.append(window)
    return torch.cat(parts[widths[0] - 1 :], 1)


def _log_tail(n: Tensor, b: Tensor) -> Tensor:
    """Computes the logarithm of the probability of n or more events where b < n are expected."""
    tail = torch.from_numpy(scipy.special.gammainc(n.numpy(), b.numpy()))
    return torch.where(tail > SMALLEST, tail.clamp(min=SMALLEST).log(), _far_log_tail(n, b))


def _far_log_tail(n: Tensor, b: Tensor) -> Tensor:
    """Computes the same beyond float64: the probability of n itself, times a continued fraction that ends quickly."""
    rest = n + 2 * LEVELS
    for j in reversed(range(LEVELS)):
        rest = n + 2 * j - (n + j) * b / (n + 2 * j + 1 + (j + 1) * b / rest)
    return torch.xlogy(n, b) - b - torch.lgamma(n + 1) + (n / rest).log()
