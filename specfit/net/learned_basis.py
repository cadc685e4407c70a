r"""LearnedBasisNet: the net says which shapes are plausible, the data say how much of each.

For a spectrum :math:`d` the net writes a mean log shape :math:`m` and a basis :math:`B` of a few directions; the
background is

.. math:: \ln \lambda = m + B c, \qquad c \sim \mathcal{N}(0, 1),

with :math:`c` at the posterior mode of the Poisson likelihood, found by a few damped Newton steps:
:math:`(B^T W B + 1)\,\Delta c = B^T (d - \lambda) - c`, :math:`W = \mathrm{diag}(\lambda)`. It is a Gaussian process on
the log rate whose mean and low-rank kernel are made for this spectrum, so the covariance of the fit comes in closed
form, :math:`\mathrm{Cov}(\ln\lambda) = B (B^T W B + 1)^{-1} B^T`.

A second stage reads the smooth answer of the first and places its basis precisely. From the residuals of the data it
also writes a weight :math:`g \in (0, 1)` for each bin (:math:`W = \mathrm{diag}(g \lambda)`, the data enter as
:math:`g (d - \lambda)`): how far a bin is believed, so that a bump does not pull the background. Both stages are
trained end to end through the Newton steps. The normal equations are float64: in float32 the 1 beside a million events
a bin is lost.
"""

from __future__ import annotations

__all__ = ["LearnedBasisNet"]

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from specfit.net.base import LocalModel
from specfit.net.dense import Trunk
from specfit.net.error_scale import CalibratedNet
from specfit.net.pixelize import FlattenHistogramAndNormalize
from specfit.net.posterior import LARGEST_LOG_SCALE, MOST_STEPS_OF_TRAINING, SETTLED_TO_READ, posterior_mode

GATE_FEATURES = 64
# Of what simulated backgrounds differ by, what the first stage leaves to the later ones, before any training.
LEFT_TO_LATER_STAGES = 0.1
# Events that are added to a bin for its logarithm.
FEWEST_EVENTS = 0.3
# The same, for where the search for the first mode begins.
NEAR_COUNTS = 0.5


class LearnedBasisNet(CalibratedNet):
    """Pixelize, small dense net, mean and basis, posterior mode; once for each stage.

    Args:
        n_bins: Number of bins.
        n_basis: Number of directions of each stage.
        width: Pixels a row.
        hidden: Features of the dense net.
        depth: Residual blocks of each stage.
    """

    def __init__(
        self,
        n_bins: int,
        *,
        n_basis: Sequence[int] = (14, 10),
        width: int = 101,
        hidden: int = 192,
        depth: int = 2,
    ) -> None:
        arguments = {"n_bins": n_bins, "n_basis": list(n_basis), "width": width, "hidden": hidden, "depth": depth}
        super().__init__(n_bins, n_features=hidden, arguments=arguments)
        # The first stage reads counts, the later ones smooth rates, whose tails mean something below one event.
        self.parts = nn.ModuleList(
            _Stage(n_bins, k, Trunk(n_bins, _pixelize(width, floor=0.5 if i == 0 else 1e-3), hidden, depth), hidden)
            for i, k in enumerate(n_basis)
        )

    @torch.no_grad()
    def prepare(self, backgrounds: Tensor) -> None:
        """Starts from the principal components of simulated backgrounds and smooth pixels, before any training.

        The first stage then knows the average shape and how others differ from it, the later ones the same on a smaller
        scale. What counts is what data can tell: bins weigh as the root of the events in them.

        Args:
            backgrounds: Expected events, shape `(m, n_bins)`, thousands of them.
        """
        rate = backgrounds.double()
        shape = (rate + FEWEST_EVENTS).log() - rate.mean(1, keepdim=True).log()
        weight = (rate.mean(0) + FEWEST_EVENTS).sqrt()
        mean = shape.mean(0)
        _, size, directions = torch.linalg.svd((shape - mean) * weight / math.sqrt(len(shape)), full_matrices=False)
        components = directions.T * size / weight[:, None]  # (n_bins, n_bins), each as large as its spread
        for i, part in enumerate(cast("list[_Stage]", list(self.parts))):
            part.trunk.pixels.start_smooth()
            known = components[:, : part.n_basis] * (LEFT_TO_LATER_STAGES if i else 1.0)
            part.basis.bias.view(part.n_bins, part.n_basis)[:, : known.shape[1]] = known
        cast(_Stage, self.parts[0]).mean.bias.copy_(mean)

    def stages(self, counts: Tensor, *, edges: Tensor | None = None, mask: Tensor | None = None) -> list[Tensor]:  # noqa: ARG002
        """Computes the background after each stage."""
        return [log_rate.exp().float() for log_rate in self._run(counts, mask)[0]]

    def fitted(
        self,
        counts: Tensor,
        *,
        edges: Tensor | None = None,  # noqa: ARG002
        mask: Tensor | None = None,
        exposure: Tensor | None = None,
    ) -> tuple[LocalModel, Tensor]:
        """Computes what the last stage holds for plausible and the log rate at its mode."""
        log_rates, model = self._run(counts, mask, exposure)
        return model, log_rates[-1]

    def _run(
        self, counts: Tensor, mask: Tensor | None, exposure: Tensor | None = None
    ) -> tuple[list[Tensor], LocalModel]:
        """Returns the log rates of each stage, and the local model of the last."""
        data, counts = counts.double(), counts.float()
        # The picture is that of the shape; a residual is one of the events that there are.
        seen = counts if exposure is None else (data / exposure).float()
        total = seen.sum(-1, keepdim=True).clamp(min=1.0)
        log_rates, models = [(total / data.shape[1]).log().double().expand_as(data)], []
        if exposure is not None:
            log_rates[0] = log_rates[0] + exposure.log()
        near, most_steps = (data + NEAR_COUNTS).log(), MOST_STEPS_OF_TRAINING if self.training else None
        residual = torch.zeros_like(counts)
        for part in self.parts:
            is_last = part is self.parts[-1]
            mean, basis, weight, features = part(seen, residual)
            if mask is not None:
                weight = weight.masked_fill(mask, 0.0)
            own = log_rates[-1] + mean, basis, weight, features
            models.append(LocalModel(*own, own_share=torch.ones_like(data[:, 0])))
            settled = None if is_last else SETTLED_TO_READ
            near = posterior_mode(
                *models[-1][:2], data, weight=weight, settled=settled, near=near.detach(), most_steps=most_steps
            )
            log_rates.append(near)
            if not is_last:
                rate = log_rates[-1].exp().float()
                seen = rate if exposure is None else rate / exposure.float()
                residual = torch.asinh((counts - rate) / rate.clamp(min=1.0).sqrt())
        return log_rates[1:], models[-1]


class _Stage(nn.Module):
    """Counts or rates to a correction of the mean log rate, a basis around it, and how far each bin is believed."""

    def __init__(self, n_bins: int, n_basis: int, trunk: Trunk, hidden: int) -> None:
        super().__init__()
        self.n_bins, self.n_basis, self.trunk = n_bins, n_basis, trunk
        self.mean, self.basis, self.log_scale = (nn.Linear(hidden, n) for n in (n_bins, n_bins * n_basis, n_basis))
        first, last = nn.Linear(hidden + n_bins, GATE_FEATURES), nn.Linear(GATE_FEATURES, n_bins)
        self.belief = nn.Sequential(first, nn.GELU(), last)
        for layer in (self.mean, self.log_scale, last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(last.bias, 4.0)  # starts by believing every bin: sigmoid(4) = 0.98
        nn.init.normal_(self.basis.weight, std=0.02 / math.sqrt(hidden))
        # Starts as slow cosines with falling amplitude: smooth shapes, the smoothest the most likely.
        x = torch.linspace(0, math.pi, n_bins)
        cosines = torch.stack([torch.cos(k * x) / math.sqrt(1 + k) for k in range(n_basis)], -1)  # (n_bins, n_basis)
        self.basis.bias.data.copy_(cosines.flatten())

    def forward(self, seen: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps `(m, n_bins)` twice to mean, basis, weight (float64) and features; `residual` is the asinh of the pulls.

        Their shapes are `(m, n_bins)`, `(m, n_bins, n_basis)`, `(m, n_bins)` and `(m, hidden)`.
        The mean and the basis see only what is smooth; the noise of the residuals reaches the weights alone.
        """
        features = self.trunk(seen)
        basis = (
            self.basis(features).unflatten(-1, (self.n_bins, self.n_basis))
            * self.log_scale(features).clamp(max=LARGEST_LOG_SCALE).exp()[:, None]
        )
        weight = torch.sigmoid(self.belief(torch.cat([features, residual], -1)))
        return self.mean(features).double(), basis.double(), weight.double(), features


def _pixelize(width: int, *, floor: float) -> FlattenHistogramAndNormalize:
    return FlattenHistogramAndNormalize(width=width, grid="log", floor=floor)
