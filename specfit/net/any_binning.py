r"""AnyBinningNet: one net for every spectrum, whatever its bins, its range and its number of events.

Every bin is a token: where it lies, how wide it is, and what is estimated there so far. A small transformer, with the
same weights at every pass, reads the tokens and writes for each bin a correction of the mean log rate and a row of the
basis; a weight, how far the bin is believed, comes from its token and from the residuals around it. The posterior mode
of the coefficients is the estimate that the next pass reads. As in `LearnedBasisNet` the covariance comes in closed
form, and the mean and the basis see only what is smooth: a net that reads the counts themselves learns to copy them.

Nothing in it has a unit: positions are counted from the first to the last edge, linearly and in the logarithm, and
widths as shares of the range. The exposure of a bin of weighted contents stands beside its width in all that is fitted
to the data; the net is shown events as if all bins had the same one, for a step of it is none of the background. The
first estimate is made without any learning (`specfit.net.smooth`) and carries the noise of some twenty parameters. So
the net is shown how the estimate bends in units of what the data can tell, and corrects it in these units as well as in
its own. Beside the learned basis of the last pass stands a generic one where the evidence of the spectrum asks for it,
and a function of few parameters where that describes the spectrum as well (`specfit.net.forms`). Positions, residuals
and rates are float64 until they become features; the features are float32.
"""

from __future__ import annotations

__all__ = ["AnyBinningNet"]

import functools
import math

import torch
from torch import Tensor, nn

from specfit.net.base import LocalModel
from specfit.net.error_scale import CalibratedNet
from specfit.net.forms import with_functional_form
from specfit.net.posterior import LARGEST_LOG_SCALE, SETTLED_TO_READ, posterior_mode
from specfit.net.smooth import SMOOTH_DIRECTIONS, Described, smooth_estimate, window_sums, with_generic_basis
from specfit.net.transformer import encode
from specfit.significance import deviance_terms

# Waves of each position feature, half widths of the windows of residuals.
WAVES, HALF_WIDTHS = 8, (1, 3, 7)
# Shares of the number of bins over which the bends of an estimate are shown to the net.
BENDS = (1 / 40, 1 / 20, 1 / 10)
# Ranges that span more than this factor are taken for ranges from 0.
LARGEST_RATIO = 40.0
N_FEATURES, N_RESIDUALS, BELIEF_FEATURES = 3 * 2 * WAVES + 5 + 8 + 2 * len(BENDS), 3 + len(HALF_WIDTHS), 32


class AnyBinningNet(CalibratedNet):
    """One token a bin, a small transformer, mean and basis, posterior mode; pass after pass.

    Args:
        n_basis: Number of directions.
        features: Size of a token.
        layers: Transformer layers of a pass.
        heads: Attention heads of a layer.
        passes: How often the tokens are read, each time with the last estimate.
    """

    def __init__(
        self, *, n_basis: int = 16, features: int = 64, layers: int = 3, heads: int = 2, passes: int = 2
    ) -> None:
        arguments = {"n_basis": n_basis, "features": features, "layers": layers, "heads": heads, "passes": passes}
        super().__init__(None, n_features=features, arguments=arguments)
        self.n_basis, self.passes = n_basis, passes
        self.embed = nn.Linear(N_FEATURES + passes, features)
        layer = nn.TransformerEncoderLayer(
            features, heads, 3 * features, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.trunk = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(features), enable_nested_tensor=False)
        self.mean, last = nn.Linear(features, 2), nn.Linear(BELIEF_FEATURES, 1)
        self.belief = nn.Sequential(nn.Linear(features + N_RESIDUALS, BELIEF_FEATURES), nn.GELU(), last)
        self.basis, self.log_scale = nn.Linear(features, n_basis), nn.Linear(features, n_basis)
        for head in (self.mean, last, self.log_scale):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        nn.init.constant_(last.bias, 4.0)  # starts by believing every bin: sigmoid(4) = 0.98
        nn.init.constant_(self.log_scale.bias, math.log(0.3))

    def stages(self, counts: Tensor, *, edges: Tensor | None = None, mask: Tensor | None = None) -> list[Tensor]:
        """Computes the background after each pass, float64."""
        return [log_rate.exp() for log_rate in self._run(counts, edges, mask)[0]]

    def forward(self, counts: Tensor, *, edges: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Computes the estimate, shape `(m, n_bins)`, float64, without gradients."""
        return self.fitted(counts, edges=edges, mask=mask)[1].exp()

    def fitted(
        self,
        counts: Tensor,
        *,
        edges: Tensor | None = None,
        mask: Tensor | None = None,
        exposure: Tensor | None = None,
    ) -> tuple[LocalModel, Tensor]:
        """Computes what is plausible, with a generic basis or a function where they are needed, and the estimate."""
        data = counts.double()
        described = self.described(data, edges=edges, mask=mask, exposure=exposure)
        edges, mask = _edges_of(data, edges), _mask_of(data, mask)
        return with_functional_form(described, self.n_basis, data, edges, mask=mask, exposure=exposure)

    def described(
        self,
        counts: Tensor,
        *,
        edges: Tensor | None = None,
        mask: Tensor | None = None,
        exposure: Tensor | None = None,
    ) -> Described:
        """Computes what the last pass and, where it is needed, a generic basis hold for plausible, and its mode."""
        # The answer is found again below, with every bin believed.
        log_rates, model = self._run(counts, edges, mask, exposure, settled=SETTLED_TO_READ)
        data = counts.double()
        log_sizes = _with_exposure(_edges_of(data, edges).diff(dim=1).log(), exposure)
        return with_generic_basis(model, log_rates[-1], data, log_sizes, mask=_mask_of(data, mask))

    def _run(
        self,
        counts: Tensor,
        edges: Tensor | None,
        mask: Tensor | None,
        exposure: Tensor | None = None,
        *,
        settled: float | None = None,
    ) -> tuple[list[Tensor], LocalModel]:
        """Returns the log rates of each pass, and the local model of the last."""
        data = counts.double()
        edges = _edges_of(data, edges)
        mask = _mask_of(data, mask)
        log_widths = (edges.diff(dim=1) / (edges[:, -1:] - edges[:, :1])).log()
        fixed, log_total = _position_features(edges, log_widths), _log_total(data, mask)
        # From the events of each bin to those that it would hold if all had the same exposure.
        tilt = None if exposure is None else exposure.log().mean(1, keepdim=True) - exposure.log()
        of_even = log_total if tilt is None else _log_total(data * tilt.exp(), mask)
        log_rates, models = [smooth_estimate(data, _with_exposure(log_widths, exposure), mask)], []
        for i in range(self.passes):
            shown = log_rates[-1] if tilt is None else log_rates[-1] + tilt
            log_density = shown - log_widths - of_even
            seen = _estimate_features(shown, log_density, log_total, _misfit(data, log_rates[-1], mask), mask)
            bends = _bend_features(shown, log_widths)
            residuals = _residual_features(data, log_rates[-1], mask)
            which = nn.functional.one_hot(torch.tensor(i), self.passes).expand(*data.shape, -1)
            tokens = encode(self.trunk, self.embed(torch.cat([fixed, seen, bends, which.to(fixed)], -1)))
            features = tokens.mean(1)
            scale = self.log_scale(features).clamp(max=LARGEST_LOG_SCALE).exp()[:, None]  # (m, 1, n_basis)
            basis = (self.basis(tokens) * scale).double()
            weight = (
                torch.sigmoid(self.belief(torch.cat([tokens, residuals], -1))[..., 0]).double().masked_fill(mask, 0.0)
            )
            coarse, fine = self.mean(tokens).unbind(-1)
            log_mean = log_rates[-1] + coarse + fine * _smallest_visible(shown)
            models.append(LocalModel(log_mean, basis, weight, features, torch.ones_like(data[:, 0])))
            log_rates.append(posterior_mode(log_mean, basis, data, weight=weight, settled=settled, near=log_rates[-1]))
        return log_rates[1:], models[-1]


def _edges_of(data: Tensor, edges: Tensor | None) -> Tensor:
    """Returns edges of every spectrum, shape `(m, n_bins + 1)`; equal widths if none are given."""
    if edges is None:
        edges = torch.linspace(1, 2, data.shape[1] + 1, dtype=torch.float64)
    return edges.to(data).expand(len(data), -1)


def _mask_of(data: Tensor, mask: Tensor | None) -> Tensor:
    return torch.zeros_like(data, dtype=torch.bool) if mask is None else mask


def _with_exposure(log_widths: Tensor, exposure: Tensor | None) -> Tensor:
    return log_widths if exposure is None else log_widths + exposure.log()


def _log_total(data: Tensor, mask: Tensor) -> Tensor:
    return data.masked_fill(mask, 0.0).sum(1, keepdim=True).clamp(min=1.0).log()


def _position_features(edges: Tensor, log_widths: Tensor) -> Tensor:
    """Computes what does not change from pass to pass, shape `(m, n_bins, 6 WAVES + 5)`, float32."""
    n_bins = log_widths.shape[1]
    centers = (edges[:, 1:] + edges[:, :-1]) / 2
    linear = (centers - edges[:, :1]) / (edges[:, -1:] - edges[:, :1])
    # A range that starts at 0 or below, or almost, is looked at linearly only.
    is_far_from_zero = centers[:, :1] > centers[:, -1:] / LARGEST_RATIO
    log_centers = torch.where(is_far_from_zero, centers, 1 + linear).log()
    span = (log_centers[:, -1:] - log_centers[:, :1]).clamp(min=1e-9)
    logarithmic = (log_centers - log_centers[:, :1]) / span
    index = ((torch.arange(n_bins, device=edges.device) + 0.5) / n_bins).to(linear).expand_as(linear)
    k = math.pi * torch.arange(1, WAVES + 1, device=edges.device)
    angles = torch.cat([p[..., None] * k for p in (linear, logarithmic, index)], -1)  # (m, n_bins, 3 WAVES)
    plain = [linear, logarithmic, (log_widths + math.log(n_bins)) / 2]
    of_spectrum = [span.expand_as(linear) / 3, torch.full_like(linear, math.log(n_bins) / 5)]
    return torch.cat([angles.cos(), angles.sin(), torch.stack(plain + of_spectrum, -1)], -1).float()


def _misfit(data: Tensor, log_rate: Tensor, mask: Tensor) -> Tensor:
    """Says in one number how far an estimate is from the data as a whole, shape `(m, 1)`."""
    terms = deviance_terms(data, log_rate.exp()).masked_fill(mask, 0.0)
    return ((terms.sum(1, keepdim=True) / (~mask).sum(1, keepdim=True).clamp(min=1)) - 1).asinh()


def _estimate_features(
    log_rate: Tensor, log_density: Tensor, log_total: Tensor, misfit: Tensor, mask: Tensor
) -> Tensor:
    """Computes what an estimate of the rate looks like, shape `(m, n_bins, 8)`, float32."""
    rise = log_density.diff(dim=1, prepend=log_density[:, :1]).clamp(-5, 5)
    fall = log_density.diff(dim=1, append=log_density[:, -1:]).clamp(-5, 5)
    shapes = [log_rate / 10, log_density / 5, rise, fall, rise - fall, mask.to(log_rate)]
    of_spectrum = [(log_total / 10).expand_as(log_rate), (misfit / 3).expand_as(log_rate)]
    return torch.stack(shapes + of_spectrum, -1).float()


def _bend_features(log_rate: Tensor, log_widths: Tensor) -> Tensor:
    """Computes how an estimate bends on several scales, in units of what the data can tell, `(m, n_bins, 6)`, float32.

    Second and fourth differences of the log density: what a smooth spectrum has few of and noise has many of.
    """
    steps, neighbours, differences = _bends_of(log_rate.shape[1], log_rate.device)
    around = (log_rate - log_widths)[:, neighbours]  # (m, n_bins, scales, 5)
    precision = (steps * log_rate.exp()[..., None] + 1.0).sqrt()
    return ((around @ differences * precision[..., None]).asinh() / 3.0).flatten(2).float()


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # what is kept is for everybody
def _bends_of(n_bins: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the steps of each scale, which five bins so far apart lie around a bin, and what makes differences."""
    steps = torch.tensor([max(1, round(share * n_bins)) for share in BENDS], device=device)
    bins = torch.arange(n_bins, device=device)[:, None, None]
    neighbours = (bins + steps[:, None] * torch.arange(-2, 3, device=device)).clamp(0, n_bins - 1)
    differences = torch.tensor([[0, 1, -2, 1, 0], [1, -4, 6, -4, 1]], dtype=torch.float64, device=device)
    return steps.double(), neighbours, differences.T


def _smallest_visible(log_rate: Tensor) -> Tensor:
    """Returns the change of the log rate that the data around a bin can tell, shape `(m, n_bins)`."""
    together = max(1.0, log_rate.shape[1] / SMOOTH_DIRECTIONS)
    return (together * log_rate.exp() + 1).rsqrt()


def _residual_features(data: Tensor, log_rate: Tensor, mask: Tensor) -> Tensor:
    """Computes how the data lie around an estimate, bin by bin and in windows, shape `(m, n_bins, N_RESIDUALS)`."""
    rate = log_rate.exp()
    data = torch.where(mask, rate, data)
    residual = 2 * ((data + 0.375).sqrt() - (rate + 0.375).sqrt())
    # The excess over its Poisson error in windows around each bin.
    excess, expected = window_sums(torch.stack([data - rate, rate]), HALF_WIDTHS)  # (m, windows, n_bins)
    windows = (excess / expected.clamp(min=1.0).sqrt()).asinh() / 3.0
    of_bin = torch.stack([(residual / 5.0).tanh() * 2.0, residual.asinh() / 3.0, data.asinh() / 10.0], -1)
    return torch.cat([of_bin, windows.mT], -1).float()
