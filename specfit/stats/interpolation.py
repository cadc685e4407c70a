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

__all__ = ["DIFFERENCES", "FACTORS", "Variations", "code0", "code1", "code4", "code4_slopes", "code4_weights", "code4p"]

import functools
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


def code4_slopes(alpha: Tensor, order: int) -> Tensor:
    """Computes the weights of `code4_weights` and their derivatives in alpha; they carry no gradients.

    Args:
        alpha: Positions inside the polynomial, any shape.
        order: Derivatives up to this one.

    Returns:
        Shape `(*alpha.shape, order + 1, 7)`.
    """
    powers = torch.arange(7, dtype=torch.float64)
    rows = []
    for k in range(order + 1):
        # The k-th derivative of alpha^p is p (p - 1) ... (p - k + 1) alpha^(p - k).
        falling = torch.stack([powers - i for i in range(k)]).prod(0) if k else torch.ones_like(powers)
        rows.append(falling * alpha.detach()[..., None] ** (powers - k).clamp(min=0))
    return torch.stack(rows, -2) @ _code4_by_power()


@functools.cache
def _code4_by_power() -> Tensor:
    """Writes the weights of `code4_weights` as polynomials: coefficients by power of alpha, shape `(7, 7)`."""
    points = torch.linspace(-1, 1, 7, dtype=torch.float64)
    of_terms = torch.stack(code4_weights(points), -1)  # (7 points, 7 terms)
    by_power: Tensor = torch.linalg.solve(torch.vander(points, increasing=True), of_terms)
    return by_power


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


class Variations:
    """Factors of many variations with their derivatives, for up and down ratios that stay the same.

    Args:
        code: `"code4"` or `"code1"`.
        up: Ratios at +1, shape `(n, 1)`.
        down: Ratios at -1, shape `(n, 1)`.
    """

    def __init__(self, code: str, up: Tensor, down: Tensor) -> None:
        self._log_up, self._log_down = up.log(), down.log()
        terms = [r * log**k for r, log in ((up, self._log_up), (down, self._log_down)) for k in range(3)]
        # The polynomial of code4 by powers of alpha: its weights of 1, u, u ln u, ... are polynomials of known powers.
        all_terms = torch.stack([torch.ones_like(up), *terms])  # (7 terms, n, 1)
        self._coefficients = torch.einsum("pt,tnm->pnm", _code4_by_power(), all_terms)
        self._reach = 1.0 if code == "code4" else 0.0

    def derivatives(self, alpha: Tensor, order: int) -> list[Tensor]:
        """Computes factors and derivatives up to an order for `alpha` of shape `(n, m)`; differentiable."""
        inside = alpha.abs() <= self._reach if self._reach else torch.zeros_like(alpha, dtype=torch.bool)
        parts = self._polynomial(alpha, order) if self._reach else [alpha] * (order + 1)
        if bool(inside.all()):
            return parts
        log = torch.where(alpha >= 0, self._log_up, -self._log_down)
        factor = torch.exp(torch.where(inside, 0.0, alpha) * log)
        return [torch.where(inside, part, factor * log**k) for k, part in enumerate(parts)]

    def _polynomial(self, alpha: Tensor, order: int) -> list[Tensor]:
        """Horner's rule for a polynomial and its derivatives."""
        found = []
        coefficients = self._coefficients
        for _ in range(order + 1):
            total = coefficients[-1].expand_as(alpha)
            for coefficient in reversed(coefficients[:-1]):
                total = torch.addcmul(coefficient, total, alpha)
            found.append(total)
            degree = torch.arange(1, len(coefficients), dtype=torch.float64)[:, None, None]
            coefficients = coefficients[1:] * degree
        return found


FACTORS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType({"code1": code1, "code4": code4})
"""Interpolations of factors by their names."""
DIFFERENCES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"code0": code0, "code4p": code4p})
"""Interpolations of differences by their names."""
