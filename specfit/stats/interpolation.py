r"""How a systematic variation known at :math:`\alpha = -1, 0, +1` continues to every other :math:`\alpha`.

What to use when:

- `code4`: factors; a polynomial of sixth order inside :math:`|\alpha| < 1`, exponentials outside, two derivatives
  continuous. The default, also called strategy 5.
- `code4p`: differences; the same idea with a straight line outside. The default for shapes that are added.
- `code1`, `code0`: piecewise exponential and piecewise linear, with a kink at 0; what old workspaces were made with.

Conventions: `up` and `down` of a factor are ratios to nominal, above 0. Differences are linear in two functions of
:math:`\alpha`, so a channel adds all of them with two matrix products.

Sources: K. Cranmer et al., HistFactory, CERN-OPEN-2012-016, 4.1; L. Heinrich et al., pyhf, JOSS 6 (2021) 2823 (names).
"""

from __future__ import annotations

__all__ = ["DIFFERENCES", "FACTORS", "code0", "code1", "code4", "code4_weights", "code4p"]

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor


def code4(alpha: Tensor, up: Tensor, down: Tensor) -> Tensor:
    r"""Interpolates a factor: :math:`u^\alpha` above 1, :math:`d^{-\alpha}` below -1, a polynomial between.

    Args:
        alpha: Position, broadcasting with the ratios.
        up: Ratio :math:`u > 0` at +1.
        down: Ratio :math:`d > 0` at -1.

    Example:
        >>> up, down = torch.tensor([1.3, 0.85]).double()
        >>> code4(torch.tensor([0.5, -0.5]).double(), up, down)
        tensor([1.1353, 0.9165], dtype=torch.float64)
    """
    log_up, log_down = up.log(), down.log()
    inside = alpha.abs() <= 1
    one, *weights = code4_weights(torch.where(inside, alpha, 0.0))
    terms = (up, up * log_up, up * log_up**2, down, down * log_down, down * log_down**2)
    polynomial = one + sum(w * t for w, t in zip(weights, terms, strict=True))
    outside = torch.where(inside, 1.0, alpha)
    return torch.where(inside, polynomial, torch.exp(outside * torch.where(alpha > 0, log_up, -log_down)))


def code4_weights(alpha: Tensor) -> tuple[Tensor, ...]:
    r"""Computes the polynomial of `code4` as weights of 1, :math:`u, u\ln u, u\ln^2 u, d, d\ln d, d\ln^2 d`.

    The six conditions (value, slope and curvature at :math:`\pm 1`) make the polynomial linear in these, so at one
    :math:`\alpha` any number of variations is one matrix product.
    """
    a2 = alpha * alpha
    # Even and odd parts belong to sums and differences of up and down.
    even = (
        a2 * (24 - 24 * a2 + 8 * a2 * a2) / 16,
        -a2 * (9 - 14 * a2 + 5 * a2 * a2) / 16,
        a2 * (1 - 2 * a2 + a2 * a2) / 16,
    )
    odd = (
        alpha * (15 - 10 * a2 + 3 * a2 * a2) / 16,
        -alpha * (7 - 10 * a2 + 3 * a2 * a2) / 16,
        alpha * (1 - 2 * a2 + a2 * a2) / 16,
    )
    up = tuple(e + o for e, o in zip(even, odd, strict=True))
    down = tuple(e - o for e, o in zip(even, odd, strict=True))
    return (1 - 2 * even[0], *up, *down)


def code1(alpha: Tensor, up: Tensor, down: Tensor) -> Tensor:
    r"""Interpolates a factor: :math:`u^\alpha` from 0 upwards, :math:`d^{-\alpha}` below."""
    return torch.exp(alpha * torch.where(alpha >= 0, up.log(), -down.log()))


def code4p(alpha: Tensor) -> Tensor:
    r"""Computes c of the difference :math:`\alpha\,(d_+ + d_-)/2 + c(\alpha)\,(d_+ - d_-)/2`; smooth inside ±1."""
    a2 = alpha * alpha
    return torch.where(a2 <= 1, a2 * (15 + a2 * (3 * a2 - 10)) / 8, code0(alpha))


def code0(alpha: Tensor) -> Tensor:
    r"""Computes c of the difference :math:`\alpha\,(d_+ + d_-)/2 + c(\alpha)\,(d_+ - d_-)/2`, with a kink at 0."""
    return torch.where(alpha >= 0, alpha, -alpha)


FACTORS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType({"code1": code1, "code4": code4})
"""Interpolations of factors by their names."""
DIFFERENCES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"code0": code0, "code4p": code4p})
"""Interpolations of differences by their names."""
