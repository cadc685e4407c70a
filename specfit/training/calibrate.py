"""calibrate: after a training, simulation teaches the net how far its errors are off and what it has never seen."""

from __future__ import annotations

__all__ = ["Calibration", "calibrate"]

from typing import NamedTuple, cast

import torch
from torch import Tensor

from specfit.generator import Batch, SpectrumGenerator, WideGenerator
from specfit.information_limit import USED_ABOVE
from specfit.net import BackgroundNet
from specfit.net.error_scale import CalibratedNet, ErrorScale
from specfit.randomness import independent_rng
from specfit.training.scales import learn_log_factor, untrained

BATCH, STEPS, BINS_A_STEP = 256, 1500, 8192
BINS_AT_A_TIME = 1_000_000
# Pulls are taken to follow Student's distribution with so many degrees of freedom: a net that misses some spectra by
# far is not calibrated on those. The widths that are reported leave out what is larger still.
DEGREES, LARGEST_PULL = 4.0, 6.0
ONE_SIGMA = 0.6827
SIMULATED_QUANTILE = 0.999


class Calibration(NamedTuple):
    """Pulls of the background, (fit - truth) / error, over simulated spectra."""

    width_before: float
    """Root mean square, of pulls up to 6, before the calibration."""
    width: float
    """The same after it, on other spectra."""
    coverage_68: float
    """Share of bins whose truth lies within one error."""
    coverage_95: float
    """Share of bins whose truth lies within 1.96 errors."""


def calibrate(net: CalibratedNet, generator: SpectrumGenerator | WideGenerator, *, size: int, seed: int) -> Calibration:
    """Learns the net's error scale and its novelty from pure backgrounds.

    The logarithm of the factor on a bin's error maximises the likelihood of the pulls; a common factor then makes
    68.27 % of them lie within one error.

    Args:
        net: A trained net; changed in place.
        generator: What it was trained on; signals are left out.
        size: Number of spectra to learn from; a quarter as many more judge the result.
        seed: Decides the spectra and the first weights of the scale.
    """
    net.eval()
    pure = generator.without_signal()
    batches = [pure.sample(BATCH, rng=independent_rng((seed, 0, i))) for i in range(-(-size // BATCH))]
    net.error_scale.load_state_dict(untrained(ErrorScale, seed=seed).state_dict())
    features, pulls = (torch.cat(parts) for parts in zip(*(_bins(net, batch) for batch in batches), strict=True))
    before = _width(pulls)
    _learn_scale(net.error_scale, features, pulls, rng=independent_rng((seed, 1)))
    # Signals belong to what a spectrum may look like.
    shown = [generator.sample(BATCH, rng=independent_rng((seed, 2, i))) for i in range(len(batches))]
    net.novelty.learn(torch.cat([_features(net, batch) for batch in shown]), quantile=SIMULATED_QUANTILE)
    others = (pure.sample(BATCH, rng=independent_rng((seed, 3, i))) for i in range(-(-len(batches) // 4)))
    judged = torch.cat([_bins(net, batch)[1] for batch in others])
    inside = [(judged.abs() < z).double().mean().item() for z in (1.0, 1.96)]
    return Calibration(before, _width(judged), *inside)


@torch.no_grad()
def _bins(net: BackgroundNet, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns the features and the pulls of all used bins, shapes `(n, n_features)` and `(n,)`."""
    prediction = net.predict(batch.counts, edges=batch.edges, mask=batch.mask)
    of_spectrum, of_bin = ErrorScale.features(prediction, batch.mask)
    features = torch.cat([of_spectrum[:, None].expand(*of_bin.shape[:2], -1), of_bin], -1)
    error = prediction.factor.square().sum(-1).sqrt()
    pulls = (prediction.background - batch.background) / error
    used = batch.background > USED_ABOVE
    return features[used], pulls[used].float()


def _width(pulls: Tensor) -> float:
    return pulls[pulls.abs() < LARGEST_PULL].square().mean().sqrt().item()


@torch.no_grad()
def _features(net: CalibratedNet, batch: Batch) -> Tensor:
    return net.local_model(batch.counts, edges=batch.edges, mask=batch.mask).features


def _learn_scale(scale: ErrorScale, features: Tensor, pulls: Tensor, *, rng: torch.Generator) -> None:
    sizes = {"steps": STEPS, "rows_a_step": BINS_A_STEP}
    learn_log_factor(scale, features, pulls, loss=_of_student, **sizes, rng=rng)
    with torch.no_grad():
        scaled = (pulls * (-scale.log_factor(features)[..., 0]).exp()).abs()
        within = torch.stack([part.quantile(ONE_SIGMA) for part in scaled.split(BINS_AT_A_TIME)]).mean()
        last = cast(torch.nn.Linear, scale.log_factor[-1])
        last.bias.add_(within.log())


def _of_student(log_factor: Tensor, pulls: Tensor) -> Tensor:
    scaled = pulls * (-log_factor).exp()
    return (log_factor + (DEGREES + 1) / 2 * torch.log1p(scaled.square() / DEGREES)).mean()
