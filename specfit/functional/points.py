"""Where the density of a bin is taken and with which weight: all that tells one option of `centres` from the other."""

from __future__ import annotations

__all__ = ["plan_nodes", "points_of_mean_density"]

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from specfit.shapes import ErfExp

# Bins are integrated to this share of themselves, or to this share of the whole spectrum if that is larger.
RELATIVE_ERROR, ERROR_OF_TOTAL = 1e-6, 1e-9
NODES = (2, 3, 4, 6, 8, 12, 16, 24, 48)
# Steps into which a bin is divided where a point of given density is looked for.
STEPS = 64


def plan_nodes(edges: Tensor, ranges: Mapping[str, Sequence[float]]) -> int:
    """Chooses the number of quadrature nodes a bin: enough at every corner of the ranges."""
    corners = torch.tensor(list(itertools.product(*ranges.values())), dtype=torch.float64).T
    share = _shares(corners, edges, NODES[0])
    for n, more in itertools.pairwise(NODES):
        finer = _shares(corners, edges, more)
        if ((share - finer).abs() <= (RELATIVE_ERROR * finer).clamp(min=ERROR_OF_TOTAL)).all():
            return n
        share = finer
    return NODES[-1]


def points_of_mean_density(parameters: Tensor, edges: Tensor, near: Tensor, *, nodes_per_bin: int) -> Tensor:
    """Finds the point of each bin where the density equals its mean over the bin, shape `(n_bins,)`.

    Where a bin has several such points, around a maximum, it is the one nearest to `near`.

    Args:
        parameters: Yield, rho, alpha, mu, sigma of each component, shape `(n_components, 5)`.
        edges: Bin edges, shape `(n_bins + 1,)`.
        near: A point in each bin, shape `(n_bins,)`; also the answer where no point is found.
        nodes_per_bin: Quadrature nodes for the mean.
    """
    yields, rho, alpha, mu, sigma = parameters.T
    shape = ErfExp(rho, alpha, mu, sigma, nodes_per_bin=nodes_per_bin)
    log_bins = shape.log_bins(edges)
    log_norm = yields.log() - torch.logsumexp(log_bins, -1)  # (n_components,)
    log_mean = torch.logsumexp(log_norm[:, None] + log_bins, 0) - edges.diff().log()  # (n_bins,)

    x = edges[:-1, None] + edges.diff()[:, None] * torch.linspace(0, 1, STEPS + 1, dtype=edges.dtype)
    log_density = shape.log_density(x.flatten()).view(-1, *x.shape)
    height = torch.logsumexp(log_norm[:, None, None] + log_density, 0) - log_mean[:, None]  # (n_bins, STEPS + 1)
    left, right = height[:, :-1], height[:, 1:]
    crosses = (left > 0) != (right > 0)
    way = torch.where(crosses, left / torch.where(crosses, left - right, 1.0), 0.0)
    candidates = x[:, :-1] + way * x.diff()
    distance = (candidates - near[:, None]).abs().masked_fill(~crosses, torch.inf)
    best = distance.argmin(-1, keepdim=True)
    return torch.where(crosses.any(-1), candidates.gather(-1, best)[:, 0], near)


def _shares(corners: Tensor, edges: Tensor, nodes_per_bin: int) -> Tensor:
    rho, alpha, mu, sigma = corners
    return torch.softmax(ErfExp(rho, alpha, mu, sigma, nodes_per_bin=nodes_per_bin).log_bins(edges), -1)
