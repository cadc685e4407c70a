"""What fits of functions need to know of a binning, whatever the data: points, weights, and where searches start."""

from __future__ import annotations

__all__ = ["Plan", "Points", "plan_of"]

import functools
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.shapes import quadrature

# Gauss-Legendre nodes of a bin.
NODES = 3
# Where the dijet function ends, over the last edge.
END_OF_DIJET = 1.3
# Where the search for a turn-on starts: position over the range in the logarithm, width over the position; and powers
# of the fall.
TURN_ONS = (-0.3, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55), (0.02, 0.05, 0.12)
POWERS = (0.3, 0.7, 1.1, 1.6, 2.5)
# Below so many standard deviations a turn-on is not followed.
LOWEST = -30.0


class Points(NamedTuple):
    """Quadrature points, counted over the last edge; r is 1 if all spectra have the same edges."""

    x: Tensor
    """Shape `(r, NODES, n_bins)`."""
    log_x: Tensor
    """Same shape."""
    log_weights: Tensor
    """Of the points, same shape."""
    log_widths: Tensor
    """Of the bins, shape `(r, n_bins)`."""

    @property
    def middle(self) -> Tensor:
        """Middles of the bins, shape `(r, n_bins)`."""
        return self.x[:, NODES // 2]

    @property
    def log_middle(self) -> Tensor:
        """Their logarithms, same shape."""
        return self.log_x[:, NODES // 2]

    def of(self, rows: Tensor) -> Points:
        """Takes some spectra."""
        return self if len(self.x) == 1 else Points(*(t[rows] for t in self))


class Plan(NamedTuple):
    """All that is prepared."""

    points: Points
    falls: Tensor
    """What the parameters of every fall multiply at the points, orthonormal, shape `(r, f, 4, NODES n_bins)`."""
    starts: Tensor
    """Position and log of the width of turn-ons, shape `(r, n, 2)`."""
    rises: Tensor
    """Their logs in the middles of the bins, shape `(r, n, n_bins)`."""
    powers: Tensor
    """Middles to the powers `POWERS`, shape `(r, p, n_bins)`."""
    products: Tensor
    """Of each with each, shape `(r, n p, n_bins)`."""


def plan_of(edges: Tensor, rows: Tensor) -> Plan:
    """Prepares fits of some of the spectra with edges `(m, n_bins + 1)`, the first at least 0."""
    if len(edges) == 1 or edges.stride(0) == 0:  # the same for all
        return _of_one_binning(tuple(edges[0].tolist()), edges.device)
    return _planned(edges[rows])


@functools.lru_cache(maxsize=8)  # a fit of one spectrum would spend a third of its time on it
@torch.inference_mode(mode=False)  # what is kept is for everybody
def _of_one_binning(edges: tuple[float, ...], device: torch.device) -> Plan:
    return _planned(torch.tensor([edges], dtype=torch.float64, device=device))


def _planned(edges: Tensor) -> Plan:
    x, log_weights = (t.mT.contiguous() for t in quadrature(edges / edges[:, -1:], NODES))
    middle = x[:, NODES // 2]
    turn_ons = edges.new_tensor(list(itertools.product(*TURN_ONS)))  # (n, 2)
    position = (middle[:, :1].log() * (1 - turn_ons[:, 0])).exp()  # (r, n)
    width = turn_ons[:, 1] * position
    rises = torch.special.log_ndtr(((middle[:, None] - position[..., None]) / width[..., None]).clamp(LOWEST))
    powers = edges.new_tensor(POWERS)
    of_middle = (powers[:, None] * middle[:, None].log()).exp()
    products = (rises[:, :, None] * of_middle[:, None]).flatten(1, 2)
    points, starts = Points(x, x.log(), log_weights, log_weights.logsumexp(1)), torch.stack([position, width.log()], -1)
    return Plan(points, _falls(x), starts, rises, of_middle, products)


def _falls(x: Tensor) -> Tensor:
    u = x.flatten(1)
    log_u, one = u.log(), torch.ones_like(u)
    dijet = torch.log1p(-u / END_OF_DIJET)
    kinds = ((u, u**2, u**3), (log_u, log_u**2, log_u**3), (log_u, u, u**2), (dijet, log_u, log_u**2))
    terms = torch.stack([torch.stack([one, *kind], 1) for kind in kinds], 1)  # (r, f, 4, NODES n_bins)
    # The terms of a function are almost the same curve.
    orthonormal: Tensor = torch.linalg.qr(terms.mT)[0].mT * u.shape[1] ** 0.5
    return orthonormal.contiguous()
