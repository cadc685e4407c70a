"""Errors are scaled where background and signal together do not describe the data, and only there."""

import pytest
import scipy.stats
import torch

from specfit.net.base import LocalModel
from specfit.signal.joint_fit import fit_jointly
from specfit.signal.misfit import _rarely_exceeded, misfit

BINS = 50
X = torch.linspace(0, 1, BINS, dtype=torch.float64)
# A straight line on a known exponential, and a narrow signal.
MEAN = (200 * torch.exp(-2 * X)).log()
BASIS = torch.stack([torch.ones_like(X), X], -1)
SIGNAL = torch.exp(-((X - 0.4) ** 2) / (2 * 0.03**2))
SIGNAL = SIGNAL / SIGNAL.sum()


def factors(counts, weight=None):
    weight = torch.ones_like(counts) if weight is None else weight
    m = len(counts)
    mean, basis, templates = MEAN.expand(m, -1), BASIS.expand(m, -1, -1), SIGNAL.expand(m, 1, -1)
    fit = fit_jointly(counts, mean, basis, templates, weight=weight)
    return misfit(fit, LocalModel(mean, basis, weight, counts[:, :0], counts[:, 0]), weight), fit


@pytest.mark.parametrize("ndf", [3, 10, 45, 200])
def test_the_limit_is_the_chi_square_that_one_in_a_hundred_exceeds(ndf):
    limit = _rarely_exceeded(torch.tensor([float(ndf)], dtype=torch.float64)).item()
    assert limit == pytest.approx(scipy.stats.chi2.isf(0.01, ndf), rel=0.005)


def test_good_fits_with_and_without_a_signal_are_left_alone():
    rate = MEAN.exp() + torch.linspace(0, 400, 3000, dtype=torch.float64)[:, None] * SIGNAL
    found, _ = factors(torch.poisson(rate, generator=torch.Generator().manual_seed(1)))
    assert found.min() == 1.0
    share = (found > 1).double().mean()
    assert 0.003 < share < 0.02
    assert found.max() < 1.25


def test_a_second_peak_scales_the_error_as_far_as_the_deviance_says():
    other = torch.exp(-((X - 0.8) ** 2) / (2 * 0.03**2))
    counts = torch.poisson((MEAN.exp() + 60 * other)[None], generator=torch.Generator().manual_seed(2))
    found, fit = factors(counts)
    rate = fit.background + fit.yields * SIGNAL
    pearson = ((counts - rate) ** 2 / rate).sum()
    assert found.item() > 1.5
    assert found.item() ** 2 == pytest.approx(float(pearson) / scipy.stats.chi2.isf(0.01, BINS - 3), rel=0.15)
    hidden = torch.where((X > 0.65)[None], 0.0, torch.ones_like(counts))
    assert factors(counts, hidden)[0].item() == 1.0
