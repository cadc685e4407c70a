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

__all__ = ["LearnedBasisNet", "posterior_mode", "precision_cholesky"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specfit.net.base import BackgroundNet, Prediction
from specfit.net.dense import Trunk
from specfit.net.pixelize import FlattenHistogramAndNormalize

# A Newton step moves no log rate by more than this, and no log rate leaves the range of exp.
LARGEST_STEP, LOG_RATES = 2.0, (-30.0, 30.0)
# Steps to the mode when a spectrum is fitted; training uses fewer, because the next batch is new anyway.
STEPS_AT_INFERENCE = 3
GATE_FEATURES = 64


class LearnedBasisNet(BackgroundNet):
    """Pixelize, small dense net, mean and basis, posterior mode; once for each stage.

    Args:
        n_bins: Number of bins.
        n_basis: Number of directions of each stage.
        width: Pixels a row.
        hidden: Features of the dense net.
        depth: Residual blocks of each stage.
        newton_steps: Newton steps of each stage while training.
    """

    def __init__(
        self,
        n_bins: int,
        *,
        n_basis: Sequence[int] = (14, 10),
        width: int = 101,
        hidden: int = 192,
        depth: int = 2,
        newton_steps: int = 2,
    ) -> None:
        arguments = {"n_bins": n_bins, "n_basis": list(n_basis), "width": width, "hidden": hidden, "depth": depth}
        super().__init__(n_bins, keeps_total=False, arguments=arguments | {"newton_steps": newton_steps})
        self.newton_steps = newton_steps
        # The first stage reads counts, the later ones smooth rates, whose tails mean something below one event.
        self.parts = nn.ModuleList(
            _Stage(n_bins, k, Trunk(n_bins, _pixelize(width, floor=0.5 if i == 0 else 1e-3), hidden, depth), hidden)
            for i, k in enumerate(n_basis)
        )

    def stages(self, counts: Tensor) -> list[Tensor]:
        """Computes the background after each stage."""
        return [log_rate.exp().float() for log_rate in self._run(counts, self.newton_steps)[0]]

    def predict(self, counts: Tensor, *, mask: Tensor | None = None) -> Prediction:
        """Computes the background and its covariance in closed form; masked bins weigh exactly nothing."""
        log_rates, basis, weight = self._run(counts, STEPS_AT_INFERENCE, mask)
        rate = log_rates[-1].exp()
        cholesky = precision_cholesky(basis, weight * rate)
        half = torch.linalg.solve_triangular(cholesky, basis.mT, upper=False).mT  # (m, n_bins, k)
        n_parameters = (half.square().sum(-1) * weight * rate).sum(-1)
        return Prediction(rate, half * rate[..., None], n_parameters)

    def _run(
        self, counts: Tensor, newton_steps: int, mask: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Returns the log rates of each stage, and the basis and the weights of the last one; float64."""
        data = counts.double()
        total = counts.sum(-1, keepdim=True).clamp(min=1.0)
        log_rates = [(total / self.n_bins).log().double().expand(-1, self.n_bins)]
        seen, weight = counts, torch.ones_like(data)
        for part in self.parts:
            mean, basis, weight = part(seen, (counts - seen) / seen.clamp(min=1.0).sqrt())
            if mask is not None:
                weight = weight.masked_fill(mask, 0.0)
            log_mean = log_rates[-1] + mean
            log_rates.append(posterior_mode(log_mean, basis, data, weight=weight, steps=newton_steps))
            seen = log_rates[-1].exp().float()
        return log_rates[1:], basis, weight


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

    def forward(self, seen: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(m, n_bins)` twice to mean `(m, n_bins)`, basis `(m, n_bins, n_basis)`, weight `(m, n_bins)`; float64.

        The mean and the basis see only what is smooth; the noise of the residuals reaches the weights alone.
        """
        features = self.trunk(seen)
        basis = (
            self.basis(features).unflatten(-1, (self.n_bins, self.n_basis)) * self.log_scale(features).exp()[:, None]
        )
        weight = torch.sigmoid(self.belief(torch.cat([features, torch.asinh(residual)], -1)))
        return self.mean(features).double(), basis.double(), weight.double()


def posterior_mode(log_mean: Tensor, basis: Tensor, counts: Tensor, *, weight: Tensor, steps: int) -> Tensor:
    """Finds the most probable log rate for a basis on it, by damped Newton steps in its coefficients c.

    Args:
        log_mean: Log of the expected events for c = 0, shape `(m, n_bins)`, float64.
        basis: Directions on the log rate, shape `(m, n_bins, k)`, float64; c has a unit normal prior.
        counts: Observed events, shape `(m, n_bins)`, float64.
        weight: How far each bin is believed, shape `(m, n_bins)`, from 0 (left out exactly) to 1.
        steps: Number of Newton steps.

    Returns:
        Log of the expected events at the mode, shape `(m, n_bins)`.
    """
    log_rate = log_mean.clamp(*LOG_RATES)
    c = basis.new_zeros(basis.shape[0], basis.shape[2], 1)
    for _ in range(steps):
        rate = log_rate.exp()
        gradient = basis.mT @ (weight * (counts - rate))[..., None] - c
        step = torch.cholesky_solve(gradient, precision_cholesky(basis, weight * rate))
        moved = basis @ step  # (m, n_bins, 1)
        damping = (LARGEST_STEP / moved.abs().amax(1, keepdim=True).clamp(min=1e-6)).clamp(max=1.0)
        c = c + damping * step
        log_rate = (log_mean + (basis @ c)[..., 0]).clamp(*LOG_RATES)
    return log_rate


def precision_cholesky(basis: Tensor, information: Tensor) -> Tensor:
    """Factorises the precision of the coefficients, B^T diag(information) B + 1: lower triangular, `(m, k, k)`."""
    precision = (basis * information[..., None]).mT @ basis
    # The unit prior makes it positive definite; the relative term keeps it so to rounding at 1e10 events a bin.
    jitter = 1 + 1e-13 * precision.diagonal(dim1=-2, dim2=-1).amax(-1)
    lower: Tensor = torch.linalg.cholesky(precision + torch.diag_embed(jitter[:, None].expand(-1, precision.shape[-1])))
    return lower


def _pixelize(width: int, *, floor: float) -> FlattenHistogramAndNormalize:
    return FlattenHistogramAndNormalize(width=width, grid="log", floor=floor)
