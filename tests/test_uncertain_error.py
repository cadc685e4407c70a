"""The significance of a yield whose error is uncertain, against SciPy's distributions and brute force."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from numpy.testing import assert_allclose

from specfit.signal.uncertain_error import DEGREES_OF_FREEDOM, LARGEST_FACTOR, significance


def z_of(x, widening):
    return significance(torch.tensor([x], dtype=torch.float64), torch.tensor([widening], dtype=torch.float64)).item()


def exact(x, widening):
    """The normal deviate of a unit normal error plus a bias of Student's distribution."""
    scale = np.sqrt(widening**2 - 1)
    bias = scipy.stats.t(DEGREES_OF_FREEDOM, scale=scale)
    p = scipy.integrate.quad(
        lambda b: scipy.stats.norm.sf(x - b) * bias.pdf(b), -50 * scale, x + 50, points=[0.0, x], limit=500
    )[0]
    return scipy.stats.norm.isf(p + bias.sf(x + 50))


@pytest.mark.parametrize("widening", [1.1, 1.3, 1.7, 2.5, 5.0])
def test_it_is_the_deviate_of_a_normal_error_and_a_bias_of_students_distribution(widening):
    tested = [x for x in (1.0, 2.0, 4.0, 8.0, 20.0) if x < LARGEST_FACTOR * np.sqrt(widening**2 - 1)]
    for x in tested:  # its tail goes on for ever, ours to biases of three times their error
        assert z_of(x, widening) == pytest.approx(exact(x, widening), rel=0.07)
    assert tested


@pytest.mark.parametrize("widening", [1.05, 1.4, 3.0])
def test_it_is_the_least_over_all_biases_and_factors_on_their_variance(widening):
    nu, tau = DEGREES_OF_FREEDOM, widening**2 - 1
    b, f = np.linspace(0, 1, 4001)[:, None], np.geomspace(1, LARGEST_FACTOR, 801)
    for x in (0.5, 3.0, 7.0, 30.0):
        least = ((x - x * b) ** 2 + (x * b) ** 2 / (f * tau) + nu * (np.log(f) - 1 + 1 / f)).min()
        assert z_of(x, widening) ** 2 == pytest.approx(least, rel=2e-3)
    # Where no factor ends it, that is the deviate of Student's distribution.
    far = 2.5 * widening
    student = ((far - far * b) ** 2 + nu * np.log1p((far * b) ** 2 / (nu * tau))).min()
    assert z_of(far, widening) ** 2 == pytest.approx(student, rel=2e-3)


@pytest.mark.parametrize("widening", [1.05, 1.2, 2.0])
def test_a_large_signal_grows_as_if_its_bias_were_three_times_as_wide(widening):
    slope = (z_of(1000.0, widening) - z_of(900.0, widening)) / 100
    assert slope == pytest.approx((1 + LARGEST_FACTOR * (widening**2 - 1)) ** -0.5, rel=1e-3)


@pytest.mark.parametrize("x", [3.0, 6.0, 14.0, 40.0])
def test_it_falls_without_a_jump_from_where_nothing_misleads(x):
    widening = torch.linspace(1.0, 1.2, 4001, dtype=torch.float64)
    z = significance(torch.full_like(widening, x), widening)
    assert z[0].item() == pytest.approx(x, rel=1e-6)
    assert (z.diff() <= 1e-9).all()
    assert z.diff().abs().max() < 0.02 * x
    assert (z <= x / widening + 1e-9).all()


def test_a_certain_error_changes_nothing_and_a_small_significance_is_divided():
    x = torch.linspace(0, 40, 81, dtype=torch.float64)
    assert_allclose(significance(x, torch.ones_like(x)), x, rtol=1e-6)
    wide = torch.full_like(x, 1.5)
    z = significance(x, wide)
    assert_allclose(z[x < 0.6], (x / wide)[x < 0.6], rtol=0.02)
    assert (z <= x / wide + 1e-9).all()
    assert (z.diff() > 0).all()
