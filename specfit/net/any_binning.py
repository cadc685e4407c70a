r"""AnyBinningNet: one net for every spectrum, whatever its bins, its range and its number of events.

Every bin is a token: where it lies, how wide it is, and what is estimated there so far. A small transformer, with the
same weights at every pass, reads the tokens and writes for each bin a correction of the mean log rate and a row of the
basis; a weight, how far the bin is believed, comes from its token and from the residuals around it. The posterior mode
of the coefficients is the estimate that the next pass reads. As in `LearnedBasisNet` the covariance comes in closed
form, and the mean and the basis see only what is smooth: a net that reads the counts themselves learns to copy them.

Nothing in it has a unit: positions are counted from the first to the last edge, linearly and in the logarithm, and
widths as shares of the range. The first estimate is a polynomial, fitted without any learning, in a coordinate that
is stretched where the spectrum bends; how smooth it is, the evidence of the spectrum decides. It carries the noise of
some twenty parameters. So the net is shown how the estimate bends in units of what the data can tell, and corrects it
in these units as well as in its own. Positions, residuals and rates are float64 until they become features; the
features are float32.
"""

from __future__ import annotations

__all__ = ["AnyBinningNet"]

import math

import torch
from torch import Tensor, nn

from specfit.net.base import LocalModel
from specfit.net.error_scale import CalibratedNet
from specfit.net.posterior import LARGEST_LOG_SCALE, LOG_RATES, mode_and_evidence, posterior_mode, precision_cholesky
from specfit.significance import poisson_deviance

# Polynomials of the first estimate, waves of each position feature, half widths of the windows of residuals.
SMOOTH_DIRECTIONS, WAVES, HALF_WIDTHS = 24, 8, (1, 3, 7)
# How smooth a spectrum may be: pairs a, p for polynomials of amplitude a / (1 + k / 2)^p; and that of a straight line.
SMOOTHNESS, OF_A_LINE = ((5.0, 1.5), (3.0, 2.5), (2.0, 4.0)), 10.0
# The coordinates of the first estimate, one after the other: the curvature of the log density, over the number of bins
# squared, from where on it is stretched, and which amplitudes are tried there. The first is the bin number.
COORDINATES = ((math.inf, ((2.0, 2.5),)), (10.0, SMOOTHNESS[:1]), (30.0, SMOOTHNESS[::2]), (300.0, SMOOTHNESS))
MOST_STRETCHED = 30.0
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

    def fitted(
        self,
        counts: Tensor,
        *,
        edges: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[LocalModel, Tensor]:
        """Computes what the last pass holds for plausible and the log rate at its mode."""
        log_rates, model = self._run(counts, edges, mask)
        return model, log_rates[-1]

    def _run(self, counts: Tensor, edges: Tensor | None, mask: Tensor | None) -> tuple[list[Tensor], LocalModel]:
        """Returns the log rates of each pass, and the local model of the last."""
        data = counts.double()
        edges = _edges_of(data, edges)
        mask = torch.zeros_like(data, dtype=torch.bool) if mask is None else mask
        log_widths = (edges.diff(dim=1) / (edges[:, -1:] - edges[:, :1])).log()
        fixed, log_total = _position_features(edges, log_widths), _log_total(data, mask)
        log_rates, models = [_smooth_estimate(data, log_widths, mask)], []
        for i in range(self.passes):
            seen = _estimate_features(data, log_rates[-1], log_widths, log_total, mask)
            bends = _bend_features(log_rates[-1], log_widths)
            residuals = _residual_features(data, log_rates[-1], mask)
            which = nn.functional.one_hot(torch.tensor(i), self.passes).expand(*data.shape, -1)
            tokens = self.trunk(self.embed(torch.cat([fixed, seen, bends, which.to(fixed)], -1)))
            features = tokens.mean(1)
            scale = self.log_scale(features).clamp(max=LARGEST_LOG_SCALE).exp()[:, None]  # (m, 1, n_basis)
            basis = (self.basis(tokens) * scale).double()
            weight = (
                torch.sigmoid(self.belief(torch.cat([tokens, residuals], -1))[..., 0]).double().masked_fill(mask, 0.0)
            )
            coarse, fine = self.mean(tokens).unbind(-1)
            log_mean = log_rates[-1] + coarse + fine * _smallest_visible(log_rates[-1])
            models.append(LocalModel(log_mean, basis, weight, features))
            log_rates.append(posterior_mode(log_mean, basis, data, weight=weight))
        return log_rates[1:], models[-1]


def _edges_of(data: Tensor, edges: Tensor | None) -> Tensor:
    """Returns edges of every spectrum, shape `(m, n_bins + 1)`; equal widths if none are given."""
    if edges is None:
        edges = torch.linspace(1, 2, data.shape[1] + 1)
    return edges.to(data).expand(len(data), -1)


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


def _estimate_features(data: Tensor, log_rate: Tensor, log_widths: Tensor, log_total: Tensor, mask: Tensor) -> Tensor:
    """Computes what an estimate of the rate looks like, shape `(m, n_bins, 8)`, float32."""
    log_density = log_rate - log_widths - log_total
    rise = log_density.diff(dim=1, prepend=log_density[:, :1]).clamp(-5, 5)
    fall = log_density.diff(dim=1, append=log_density[:, -1:]).clamp(-5, 5)
    # One number says how far the estimate is from the data as a whole.
    terms = poisson_deviance(data, log_rate.exp()).masked_fill(mask, 0.0)
    misfit = ((terms.sum(1, keepdim=True) / (~mask).sum(1, keepdim=True).clamp(min=1)) - 1).asinh()
    shapes = [log_rate / 10, log_density / 5, rise, fall, rise - fall, mask.to(data)]
    of_spectrum = [(log_total / 10).expand_as(data), (misfit / 3).expand_as(data)]
    return torch.stack(shapes + of_spectrum, -1).float()


def _bend_features(log_rate: Tensor, log_widths: Tensor) -> Tensor:
    """Computes how an estimate bends on several scales, in units of what the data can tell, `(m, n_bins, 6)`, float32.

    Second and fourth differences of the log density: what a smooth spectrum has few of and noise has many of.
    """
    n_bins = log_rate.shape[1]
    log_density, rate = log_rate - log_widths, log_rate.exp()
    bends = []
    for share in BENDS:
        step = max(1, round(share * n_bins))
        padded = nn.functional.pad(log_density[:, None], (2 * step, 2 * step), mode="replicate")[:, 0]
        far_left, left, middle, right, far_right = (padded[:, i * step : i * step + n_bins] for i in range(5))
        error = (step * rate + 1).rsqrt()
        second, fourth = left - 2 * middle + right, far_left - 4 * left + 6 * middle - 4 * right + far_right
        bends += [(second / error).asinh() / 3, (fourth / error).asinh() / 3]
    return torch.stack(bends, -1).float()


def _smallest_visible(log_rate: Tensor) -> Tensor:
    """Returns the change of the log rate that the data around a bin can tell, shape `(m, n_bins)`."""
    together = max(1.0, log_rate.shape[1] / SMOOTH_DIRECTIONS)
    return (together * log_rate.exp() + 1).rsqrt()


def _residual_features(data: Tensor, log_rate: Tensor, mask: Tensor) -> Tensor:
    """Computes how the data lie around an estimate, bin by bin and in windows, shape `(m, n_bins, N_RESIDUALS)`."""
    rate = log_rate.exp()
    data = torch.where(mask, rate, data)
    residual = 2 * ((data + 0.375).sqrt() - (rate + 0.375).sqrt())
    windows = [_window_pulls(data - rate, rate, half).asinh() / 3 for half in HALF_WIDTHS]
    return torch.stack([(residual / 5).tanh() * 2, residual.asinh() / 3, data.asinh() / 10, *windows], -1).float()


def _window_pulls(difference: Tensor, rate: Tensor, half: int) -> Tensor:
    """Computes the excess over its Poisson error in windows of 2 half + 1 bins around each bin, `(m, n_bins)`."""
    kernel = difference.new_ones(1, 1, 2 * half + 1)
    excess, expected = (nn.functional.conv1d(t[:, None], kernel, padding=half)[:, 0] for t in (difference, rate))
    return excess / expected.clamp(min=1.0).sqrt()


@torch.no_grad()
def _smooth_estimate(data: Tensor, log_widths: Tensor, mask: Tensor) -> Tensor:
    """Fits Chebyshev polynomials to the data, one coordinate after the other; log rates `(m, n_bins)`.

    How fast their amplitudes fall with the order, that is how smooth a spectrum is, its own evidence decides. An
    exponential fall is one of them exactly, and whatever is smooth converges fast; a turn-on does so in a coordinate
    that is stretched there, made from the estimate before. Where bins are masked a straight line between their
    neighbours keeps the polynomials from running away, with an error of one e-fold.
    """
    kernel = data.new_ones(1, 1, 5)
    widths, used = log_widths.exp(), (~mask).to(data)
    events, width = (nn.functional.conv1d((t * used)[:, None], kernel, padding=2)[:, 0] for t in (data, widths))
    log_density = _bridged(((events + 0.5) / width.clamp(min=1e-12)).log(), mask)
    # More events are more certain, but not so much that the tail is left to itself.
    certain = torch.where(mask, 1.0, (events + 1).sqrt())
    mean = (certain * log_density).sum(1, keepdim=True) / certain.sum(1, keepdim=True)
    expected = (log_density + log_widths).exp()
    believed, filled = torch.where(mask, 1 / (1 + expected), 1.0), torch.where(mask, expected, data)
    estimate, best = log_density + log_widths, torch.full_like(data[:, 0], -torch.inf)
    for curvature, smoothness in COORDINATES:
        before = estimate - log_widths - mean
        shapes = _chebyshev(_stretched(before, curvature))
        basis = torch.stack([shapes * _amplitudes(shapes.shape[2], *one).to(shapes) for one in smoothness], 1)
        m, n, *_ = basis.shape  # all ways to be smooth are rows of one fit
        repeated = [t.repeat_interleave(n, 0) for t in (before, certain, mean + log_widths, filled, believed)]
        mode, evidence = _smooth_fit(basis.flatten(0, 1), *repeated)
        found, which = evidence.nan_to_num(-torch.inf).view(m, n).max(1)
        mode = mode.view(m, n, -1)[torch.arange(m, device=data.device), which]
        estimate, best = torch.where((found > best)[:, None], mode, estimate), torch.maximum(best, found)
    return estimate.clamp(*LOG_RATES)


def _smooth_fit(
    basis: Tensor, guess: Tensor, certain: Tensor, log_mean: Tensor, counts: Tensor, believed: Tensor
) -> tuple[Tensor, Tensor]:
    """Fits a basis to counts from a guess of what it adds to the mean; the mode and its evidence."""
    # Least squares on the logs are near enough to start from.
    right = basis.mT @ (certain * guess)[..., None]
    start = torch.cholesky_solve(right, precision_cholesky(basis, certain))[..., 0]
    return mode_and_evidence(log_mean, basis, counts, weight=believed, start=start)


def _amplitudes(n: int, amplitude: float, power: float) -> Tensor:
    k = torch.arange(n, dtype=torch.float64)
    return torch.where(k < 2, OF_A_LINE, amplitude / (1 + k / 2).pow(power))


def _stretched(log_density: Tensor, curvature: float) -> Tensor:
    """Computes a coordinate from 0 to 1, the bin number stretched where a log density bends, shape `(m, n_bins)`."""
    n_bins = log_density.shape[1]
    bend = nn.functional.pad(log_density[:, None].diff(n=2), (1, 1), mode="replicate").abs() * n_bins**2
    length = (1 + bend / curvature).sqrt()
    smooth = log_density.new_tensor([[[0.25, 0.5, 0.25]]])
    for _ in range(3):
        length = nn.functional.conv1d(nn.functional.pad(length, (1, 1), mode="replicate"), smooth)
    length = length[:, 0].clamp(max=MOST_STRETCHED)
    end = length.cumsum(1)
    return (end - length / 2) / end[:, -1:]


def _chebyshev(position: Tensor) -> Tensor:
    """Evaluates the first Chebyshev polynomials at positions from 0 to 1, shape `(m, n_bins, k)`."""
    n_bins = position.shape[1]
    k = torch.arange(min(SMOOTH_DIRECTIONS, max(3, n_bins // 2)), device=position.device).to(position)
    return torch.cos(k * torch.arccos(1 - 2 * position)[..., None])


def _bridged(values: Tensor, mask: Tensor) -> Tensor:
    """Replaces masked values by a straight line between the next ones that are not, `(m, n_bins)`."""
    n_bins = values.shape[1]
    index = torch.arange(n_bins, device=values.device).expand_as(values)
    before = torch.where(mask, -1, index).cummax(1).values
    after = torch.where(mask, n_bins, index).flip(1).cummin(1).values.flip(1)
    low = torch.where(before < 0, after, before).clamp(0, n_bins - 1)
    high = torch.where(after >= n_bins, before, after).clamp(0, n_bins - 1)
    share = (index - low).to(values) / (high - low).clamp(min=1)
    return torch.lerp(values.gather(1, low), values.gather(1, high), share)
