"""calibrate: after a training, simulation teaches the net how far its errors are off and what it has never seen."""

from __future__ import annotations

__all__ = ["Calibration", "calibrate"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.generator import Batch, SpectrumGenerator, WideGenerator
from specfit.guard import LEAST_P_VALUE
from specfit.information_limit import USED_ABOVE
from specfit.net import Prediction
from specfit.net.error_scale import CalibratedNet, ErrorScale
from specfit.randomness import independent_rng
from specfit.significance import deviance_p_value, poisson_deviance
from specfit.training.scales import learn_log_factor, untrained

BATCH, STEPS, BINS_A_STEP = 256, 1500, 8192
# Share of a normal distribution that lies within so many standard deviations.
COVERAGE = ((0.6827, 1.0), (0.95, 1.96))
# The width that is reported leaves out what is larger: a net that misses some spectra by far misses them by any amount.
LARGEST_PULL = 6.0
SMALLEST_PULL = 1e-6
SIMULATED_QUANTILE = 0.999


class Calibration(NamedTuple):
    """Pulls of the background, (fit - truth) / error, over simulated spectra that it describes."""

    width_before: float
    """Root mean square, of pulls up to 6, before the calibration."""
    width: float
    """The same after it, on other spectra."""
    coverage_68: float
    """Share of bins whose truth lies within one error."""
    coverage_95: float
    """Share of bins whose truth lies within 1.96 errors."""


def calibrate(net: CalibratedNet, generator: SpectrumGenerator | WideGenerator, *, size: int, seed: int) -> Calibration:
    """Learns the net's error scale, the mean pull of its bins and its novelty from pure backgrounds.

    The factor on a bin's error is learned so that, whatever it depends on, 68.27 % of the pulls lie within one error
    and 95 % within 1.96; where their distribution is not normal it lies between what the two ask for. Spectra that a
    net does not describe are flagged, and are no measure.

    Args:
        net: A trained net; changed in place.
        generator: What it was trained on; signals are left out.
        size: Number of spectra to learn from; a quarter as many more judge the result.
        seed: Decides the spectra and the first weights of the scale.
    """
    net.eval()
    # What is emphasised is hard to learn, not likely.
    prior = generator.without_emphasis() if isinstance(generator, WideGenerator) else generator
    pure = prior.without_signal()
    batches = [pure.sample(BATCH, rng=independent_rng((seed, 0, i))) for i in range(-(-size // BATCH))]
    net.error_scale.load_state_dict(untrained(ErrorScale, seed=seed).state_dict())
    if net.offset is not None:
        net.offset.zero_()
    features, pulls = (torch.cat(parts) for parts in zip(*(_bins(net, batch) for batch in batches), strict=True))
    before = _width(pulls)
    sizes = {"steps": STEPS, "rows_a_step": BINS_A_STEP}
    learn_log_factor(net.error_scale, features, pulls, loss=_of_coverage, **sizes, rng=independent_rng((seed, 1)))
    if net.offset is not None:
        net.offset.copy_(_mean_pulls(net, batches))
    # Signals belong to what a spectrum may look like.
    shown = [generator.sample(BATCH, rng=independent_rng((seed, 2, i))) for i in range(len(batches))]
    net.novelty.learn(torch.cat([_features(net, batch) for batch in shown]), quantile=SIMULATED_QUANTILE)
    others = (pure.sample(BATCH, rng=independent_rng((seed, 3, i))) for i in range(-(-len(batches) // 4)))
    judged = torch.cat([_bins(net, batch)[1] for batch in others])
    inside = [(judged.abs() < z).double().mean().item() for z in (1.0, 1.96)]
    return Calibration(before, _width(judged), *inside)


@torch.no_grad()
def _bins(net: CalibratedNet, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns the features and the pulls of all used bins, shapes `(n, n_features)` and `(n,)`."""
    prediction, own_share, pulls, used = _pulls(net, batch)
    of_spectrum, of_bin = ErrorScale.features(prediction, own_share, batch.mask)
    features = torch.cat([of_spectrum[:, None].expand(*of_bin.shape[:2], -1), of_bin], -1)
    return features[used], pulls[used].float()


@torch.no_grad()
def _mean_pulls(net: CalibratedNet, batches: list[Batch]) -> Tensor:
    """Averages the pulls of each bin so that no bias is left in statistical errors, `(n_bins,)`; 0 for unused bins."""
    bias, unit = torch.zeros(2, batches[0].counts.shape[1], dtype=torch.float64)
    for batch in batches:
        prediction, _, pulls, used = _pulls(net, batch)
        error = prediction.factor.square().sum(-1).sqrt() / batch.background.sqrt()
        bias += torch.where(used, error * pulls.clamp(-LARGEST_PULL, LARGEST_PULL), 0.0).sum(0)
        unit += torch.where(used, error, 0.0).sum(0)
    mean: Tensor = bias / unit.clamp(min=SMALLEST_PULL)
    return mean


def _pulls(net: CalibratedNet, batch: Batch) -> tuple[Prediction, Tensor, Tensor, Tensor]:
    """Returns the prediction, the net's own share of it, `(m,)`, pulls and which bins are used, both `(m, n_bins)`."""
    model, log_rate = net.fitted(batch.counts, edges=batch.edges, mask=batch.mask)
    prediction = net.calibrated(model, log_rate, batch.mask)
    error = prediction.factor.square().sum(-1).sqrt()
    pulls = (prediction.background - batch.background) / error
    seen = torch.ones_like(pulls) if batch.mask is None else (~batch.mask).to(pulls)
    deviance = (poisson_deviance(batch.counts.double(), prediction.background) * seen).sum(-1)
    ndf = (seen.sum(-1) - prediction.n_parameters).clamp(min=1.0)
    described = deviance_p_value(deviance, ndf) >= LEAST_P_VALUE
    # Of a net that describes nothing yet everything counts.
    described |= ~described.any()
    return prediction, model.own_share, pulls, (batch.background > USED_ABOVE) & described[:, None]


def _width(pulls: Tensor) -> float:
    return pulls[pulls.abs() < LARGEST_PULL].square().mean().sqrt().item()


@torch.no_grad()
def _features(net: CalibratedNet, batch: Batch) -> Tensor:
    return net.local_model(batch.counts, edges=batch.edges, mask=batch.mask).features


def _of_coverage(log_factor: Tensor, pulls: Tensor) -> Tensor:
    """Computes a loss that is least at the quantiles of the size of pulls (R. Koenker, G. Bassett, 1978)."""
    log_size = pulls.abs().clamp(min=SMALLEST_PULL).log()
    loss = torch.zeros_like(log_size[0])
    for share, within in COVERAGE:
        beyond = log_size - math.log(within) - log_factor
        loss = loss + torch.maximum(share * beyond, (share - 1) * beyond).mean()
    return loss
