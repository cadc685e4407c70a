"""A sum of `ErfExp` components with hand-written derivatives.

A search evaluates some hundred points of every spectrum: here one costs a tenth of what it would through `ErfExp` and
autograd. It is the twin of `specfit.shapes.ErfExp` for any number of components, and tests hold the two together.
"""

from __future__ import annotations

__all__ = ["ErfExpOnBins", "ErfExpRanges", "ErfExpSum"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.functional.function import SMALLEST_SHARE, UNIFORM_PRECISION, Function, FunctionOnBins, spread_points
from specfit.functional.points import plan_nodes
from specfit.shapes import PLATEAU, log_turn_on, quadrature

# Of a range: the first steps are wild, and a turn-on once lost is lost for good.
LONGEST_STEP = 0.1


@dataclass(frozen=True)
class ErfExpRanges:
    """Limits of the parameters of every component, in the unit of the edges; equal ends fix a parameter.

    Args:
        rho: Power of the fall, positive.
        alpha: Scale of the fall, in the unit of x to the power rho, positive.
        mu: Position of the turn-on.
        sigma: Width of the turn-on, positive.

    Raises:
        InputError: A range is not an increasing pair or not positive.
    """

    rho: Sequence[float] = (0.5, 1.5)
    alpha: Sequence[float] = (25.0, 200.0)
    mu: Sequence[float] = (325.0, 375.0)
    sigma: Sequence[float] = (10.0, 30.0)

    def __post_init__(self) -> None:
        for name, pair in self.pairs().items():
            if len(pair) != 2 or not all(map(math.isfinite, pair)) or pair[0] > pair[1]:
                raise InputError(f"{name}: a range (low, high) with low <= high is expected, {tuple(pair)} came")
            if name != "mu" and pair[0] <= 0:
                raise InputError(f"{name}: a range above 0 is expected, {tuple(pair)} came")

    def pairs(self) -> dict[str, Sequence[float]]:
        """Returns the ranges by name, in the order of the arguments."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class ErfExpSum(Function):
    r"""N components :math:`\Phi((x - \mu)/\sigma) \, e^{-x^\rho / \alpha}`, each with a yield of its own.

    Args:
        n_components: Number of components N.
        ranges: Constraints of the parameters.
    """

    n_components: int = 1
    ranges: ErfExpRanges = field(default_factory=ErfExpRanges)

    def __post_init__(self) -> None:
        n = self.n_components
        if isinstance(n, bool | float) or n != int(n) or n < 1:
            raise InputError(f"n_components: a whole number from 1 upwards is expected, {n!r} came")

    def on(self, edges: Tensor) -> ErfExpOnBins:
        """Prepares the sum for bins, integrated over each by quadrature."""
        if edges[0] <= 0:
            raise InputError(f"edges: a power of x needs positive edges, the first is {edges[0]:g}")
        return self.at(*quadrature(edges, plan_nodes(edges, self.ranges.pairs())))

    def at(self, x: Tensor, log_weights: Tensor) -> ErfExpOnBins:
        """Prepares the sum for bins whose content is the density at given points times given weights.

        Args:
            x: Points, shape `(n_bins, n_points)`.
            log_weights: Logs of the weights, same shape.
        """
        return ErfExpOnBins(x, log_weights, self)


class ErfExpOnBins(FunctionOnBins):
    """The sum on bins.

    A position, shape `(m, 5 n_components)`, holds for each component its yield over the total of the counts, then rho,
    log alpha, mu and sigma as fractions of their ranges. So every entry is of order 1, and the valley in which rho and
    alpha trade against each other is straight.

    Args:
        x: Points at which the density is taken, shape `(n_bins, n_points)`.
        log_weights: Logs of their weights, same shape.
        function: What is summed.
    """

    def __init__(self, x: Tensor, log_weights: Tensor, function: ErfExpSum) -> None:
        self.n_components = n = function.n_components
        low, high = torch.zeros(n, 5).double(), torch.ones(n, 5).double()
        low[:, 0], high[:, 0] = SMALLEST_SHARE, torch.inf
        names = ["yield", *function.ranges.pairs()]
        super().__init__(
            [f"{name}_{k + 1}" for k in range(n) for name in names],
            low.flatten(),
            high.flatten(),
            longest_step=LONGEST_STEP,
        )
        limits = torch.tensor([tuple(map(float, pair)) for pair in function.ranges.pairs().values()]).double()
        self._widths = limits.diff()[:, 0]  # (4,)
        limits[1] = limits[1].log()
        self._low, self._span = limits[:, 0], limits.diff()[:, 0]
        # Points first: sums over the last axis but one run along memory.
        self._weights, self._log_x = log_weights.exp().T.contiguous(), x.log().T.contiguous()
        # Bins that a turn-on can reach.
        self._near = slice(int((x.amin(-1) < limits[2, 1] + PLATEAU * limits[3, 1]).sum()))
        self._x_near = x.T[:, self._near].contiguous()

    def parameters(self, position: Tensor) -> Tensor:
        """Returns yield over the total, rho, alpha, mu, sigma of each component."""
        return torch.cat([position.view(-1, self.n_components, 5)[..., :1], self._shapes(position)], -1).flatten(1)

    def slopes(self, position: Tensor) -> Tensor:
        """Returns diagonal matrices: no entry of a position enters two parameters."""
        return torch.diag_embed(self._scales(position).flatten(1))

    def constraint(self, position: Tensor) -> Tensor:
        """Returns the precision that the ranges add.

        A range counts as the variance range squared / 12; a share of several components as 1 / 12, while their sum, the
        total, is left to the data.
        """
        n = self.n_components
        widths = torch.where(self._widths > 0, self._widths, torch.inf)
        shapes = (self._scales(position)[..., 1:] / widths) ** 2
        shapes[..., self._widths == 0] = 1.0  # fixed: any finite number, its scale is 0
        precision = torch.diag_embed(torch.nn.functional.pad(shapes, (1, 0)).flatten(1))
        precision[:, ::5, ::5] = torch.eye(n).double() - 1 / n
        return UNIFORM_PRECISION * precision

    def starting_points(self, counts: Tensor, mask: Tensor, starts: int, *, rng: torch.Generator | None) -> Tensor:
        """Returns points well within the limits, with equal yields, the same for every spectrum."""
        del mask  # no spectrum is looked at
        unit = spread_points(starts * self.n_components, 4, rng=rng)
        share = torch.full((len(unit), 1), 1 / self.n_components).double()
        positions = torch.cat([share, 0.1 + 0.8 * unit], -1).view(1, starts, -1)
        return positions.expand(len(counts), -1, -1)

    def ordered(self, position: Tensor) -> Tensor:
        """Returns the components in the order of falling yield."""
        components = position.view(-1, self.n_components, 5)
        order = components[..., 0].argsort(-1, descending=True)
        return components.gather(1, order[..., None].expand_as(components)).flatten(1)

    def log_expected(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the logs from those of the components."""
        log_bins, slopes = self._components(self._shapes(position))
        log_shape = torch.log_softmax(log_bins, -1)  # (m, n_components, n_bins)
        slopes -= (log_shape.exp()[:, :, None] * slopes).sum(-1, keepdim=True)
        log_share = position[:, ::5, None].log()
        log_expected = torch.logsumexp(log_share + log_shape, 1)  # (m, n_bins)
        by_share = (log_shape - log_expected[:, None]).exp()
        slopes *= (by_share * position[:, ::5, None])[:, :, None]
        return log_expected, torch.cat([by_share[:, :, None], slopes], 2).flatten(1, 2)

    def _shapes(self, position: Tensor) -> Tensor:
        """Returns rho, alpha, mu, sigma, shape `(m, n_components, 4)`."""
        shapes = self._low + position.view(-1, self.n_components, 5)[..., 1:] * self._span
        shapes[..., 1] = shapes[..., 1].exp()
        return shapes

    def _scales(self, position: Tensor) -> Tensor:
        """Returns the derivative of each parameter in its entry of the position, shape `(m, n_components, 5)`."""
        scales = torch.ones(len(position), self.n_components, 5).double()
        scales[..., 1:] = self._span
        scales[..., 2] *= self._shapes(position)[..., 1]
        return scales

    def _components(self, shapes: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the log integral of each component over each bin and its slopes.

        Returns:
            Log integrals, shape `(m, n_components, n_bins)`, and their derivatives in the last four entries of a
            component's position, shape `(m, n_components, 4, n_bins)`.
        """
        rho, alpha, mu, sigma = shapes[..., None, None].unbind(2)  # (m, n_components, 1, 1) each
        fall = (rho * self._log_x - alpha.log()).exp_()  # (m, n_components, n_points, n_bins)
        z = ((self._x_near - mu) / sigma).clamp_(max=PLATEAU)
        log_rise, slope = log_turn_on(z)
        log_density = -fall
        log_density[..., self._near] += log_rise
        top = log_density.amax(2, keepdim=True)
        density = (log_density - top).exp_().mul_(self._weights)
        integral = density.sum(2)  # (m, n_components, n_bins)

        rising = density[..., self._near] * slope
        falling = density.mul_(fall)
        slopes = torch.zeros(*integral.shape[:2], 4, integral.shape[-1]).double()
        slopes[:, :, 0], slopes[:, :, 1] = -(falling * self._log_x).sum(2), falling.sum(2)
        slopes[:, :, 2, self._near] = -rising.sum(2) / sigma[..., 0]
        slopes[:, :, 3, self._near] = -rising.mul_(z).sum(2) / sigma[..., 0]
        slopes *= self._span[:, None] / integral[:, :, None]
        return integral.log() + top[:, :, 0], slopes
