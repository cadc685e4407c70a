"""Every shape, bin by bin, against adaptive quadrature, scipy's distributions and many digits."""

from dataclasses import FrozenInstanceError
from functools import partial
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.interpolate
import scipy.special
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from specfit.errors import InputError
from specfit.shapes import Bernstein, Dijet, ErfExp, Exponential, Gaussian, Shape, quadrature

EDGES = {
    "linear": np.linspace(300, 900, 13),
    "geometric": np.geomspace(250, 3000, 31),
    "irregular": np.array([250, 251, 290, 340, 345, 460, 600, 1000]),
}


def erf_exp(x, rho, alpha, mu, sigma):
    return scipy.special.log_ndtr((x - mu) / sigma) - x**rho / alpha


def dijet(x, p1, p2, p3):
    z = x / 13_000
    return p1 * np.log(1 - z) - (p2 + p3 * np.log(z)) * np.log(z)


def normal(x, mass, width):
    return -0.5 * ((x - mass) / width) ** 2 - np.log(width * np.sqrt(2 * np.pi))


# name: how it is built from its parameters, its log density written down anew, parameters of several examples (columns)
DENSITIES = {
    "erf_exp": (
        ErfExp,
        erf_exp,
        [[0.5, 0.9, 1.0, 1.2], [1.0, 25.0, 200.0, 60.0], [350.0, 325.0, 375.0, 200.0], [20.0, 30.0, 25.0, 80.0]],
    ),
    "dijet": (partial(Dijet, sqrt_s=13_000.0), dijet, [[10.0, 7.0, 0.0], [5.0, 4.0, 6.0], [0.2, 0.0, -0.3]]),
    "exponential": (Exponential, lambda x, slope: -slope * x, [[0.02, 1e-9, 0.0, -0.03]]),
    "gaussian": (Gaussian, normal, [[450.0, 1200.0, 0.0], [40.0, 300.0, 90.0]]),
}
SHAPES = [*DENSITIES, "bernstein"]


def tensor(values):
    return torch.as_tensor(values, dtype=torch.float64)


def build(name, parameters=None):
    """A shape from a list of parameters; by default the examples, one batch of them."""
    if name == "bernstein":
        return Bernstein(tensor([[3.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 1.0]]) if parameters is None else parameters[0])
    make, _, examples = DENSITIES[name]
    return make(*(tensor(examples) if parameters is None else parameters))


def log_quad(log_density, low, high):
    """The log of an integral by adaptive quadrature of the density relative to its largest value."""
    middle = (low + high) / 2
    top = max(log_density(low), log_density(middle), log_density(high))
    relative = lambda x: np.exp(log_density(x) - top)  # noqa: E731
    halves = [
        scipy.integrate.quad(relative, *ends, epsabs=0, epsrel=1e-11)[0] for ends in ((low, middle), (middle, high))
    ]
    return np.log(sum(halves)) + top


@pytest.mark.parametrize("binning", EDGES)
@pytest.mark.parametrize("name", DENSITIES)
def test_the_integral_over_each_bin_is_adaptive_quadrature(name, binning, tolerance):
    _, log_density, examples = DENSITIES[name]
    edges = EDGES[binning]
    expected = [
        [log_quad(lambda x, p=parameters: log_density(x, *p), *ends) for ends in pairwise(edges)]
        for parameters in zip(*examples, strict=True)
    ]
    assert_close(build(name).log_bins(tensor(edges)), tensor(expected), **tolerance["quadrature"])


@pytest.mark.parametrize("binning", EDGES)
@pytest.mark.parametrize("degree", range(6))
def test_a_bernstein_polynomial_is_scipys(degree, binning, tolerance):
    edges = EDGES[binning]
    coefficients = np.random.default_rng(degree).uniform(0, 3, (2, degree + 1))
    coefficients[0, :degree] = 0  # the last basis polynomial alone: tiny in the first bins
    polynomials = [scipy.interpolate.BPoly(row[:, None], [edges[0], edges[-1]]) for row in coefficients]
    expected = [[p.integrate(*ends) for ends in pairwise(edges)] for p in polynomials]
    # Not its logarithm: scipy takes differences of an antiderivative, which has no digits left in an almost empty bin.
    log_bins = Bernstein(tensor(coefficients)).log_bins(tensor(edges))
    assert_close(log_bins.exp(), tensor(expected), **tolerance["quadrature"])


@pytest.mark.parametrize("degree", range(6))
def test_the_bernstein_basis_adds_up_to_one(degree, tolerance):
    edges = tensor(EDGES["irregular"])
    ones = Bernstein(torch.ones(degree + 1, dtype=torch.float64))
    assert_close(ones.log_bins(edges), edges.diff().log(), **tolerance["rounding"])
    one_basis = Bernstein(torch.eye(degree + 1, dtype=torch.float64))
    share = (edges[-1] - edges[0]) / (degree + 1)  # of each basis polynomial, whatever its index
    total = one_basis.log_bins(edges).exp().sum(-1)
    assert_close(total, share.expand(degree + 1), **tolerance["rounding"])


def exact_erf_exp(low, high, *, rho, alpha, mu, sigma):
    """The log integral in 25 digits, in panels of at most 12 e-folds."""
    with mpmath.workdps(25):
        low, high = mpmath.mpf(float(low)), mpmath.mpf(float(high))
        panels = int((high**rho - low**rho) / alpha / 12) + 2
        relative = lambda x: mpmath.ncdf((x - mu) / sigma) * mpmath.exp((low**rho - x**rho) / alpha)  # noqa: E731
        return float(mpmath.log(mpmath.quad(relative, mpmath.linspace(low, high, panels))) - low**rho / alpha)


def test_the_steepest_corner_of_the_reference_ranges(tolerance):
    corner = {"rho": 1.5, "alpha": 25, "mu": 375, "sigma": 10}
    edges = tensor(np.geomspace(250, 3000, 51))
    parameters = [tensor(float(value)) for value in corner.values()]
    log_bins = ErfExp(*parameters).log_bins(edges)
    refined = ErfExp(*parameters, nodes_per_bin=64).log_bins(edges)
    assert log_bins.isfinite().all()
    assert log_bins[-1] < -6000
    # Bins that fall by 12, 20, 31, 37 and at the far end by 460 e-folds.
    exact = {k: exact_erf_exp(edges[k], edges[k + 1], **corner) for k in (0, 7, 13, 15, 49)}
    for k in (0, 7, 13, 15):
        assert log_bins[k].item() == pytest.approx(exact[k], abs=tolerance["quadrature"]["atol"])
    # The docstring's promise: a factor 2 low where it falls that steeply, and more nodes repair it.
    assert 0.4 < exact[49] - log_bins[49].item() < 0.8
    assert refined[49].item() == pytest.approx(exact[49], abs=1e-4)


def test_gaussian_tails_are_exact_in_log_space(tolerance):
    z = np.array([-300.0, -60, -38, -20, -9, -8.5, -3, -2.9999, -0.1, 0.0, 0.2, 1, 5, 9, 9.01, 37, 45, 280])
    expected = []
    with mpmath.workdps(60):
        for low, high in pairwise(z):
            # the difference of the smaller tails: of lower ones below the peak, of upper ones above it
            ends = (-low, -high) if low + high > 0 else (high, low)
            expected.append(float(mpmath.log(mpmath.ncdf(ends[0]) - mpmath.ncdf(ends[1]))))
    log_bins = Gaussian(tensor(91.0), tensor(2.5)).log_bins(tensor(91 + 2.5 * z))
    assert_close(log_bins, tensor(expected), **tolerance["quadrature"])
    mirrored = Gaussian(tensor(-91.0), tensor(2.5)).log_bins(tensor(-(91 + 2.5 * z))[..., range(17, -1, -1)])
    assert_close(mirrored.flip(-1), log_bins, **tolerance["rounding"])


def test_a_gaussian_is_normalised_over_the_axis(tolerance):
    total = Gaussian(tensor([0.0, 91.0]), tensor([0.1, 30.0])).log_bins(tensor([-1e6, 0.0, 91.0, 1e6])).logsumexp(-1)
    assert_close(total, torch.zeros(2, dtype=torch.float64), **tolerance["rounding"])


def test_an_exponential_without_slope_is_flat_and_its_gradient_is_the_centre(tolerance):
    slope, edges = tensor([0.0]).requires_grad_(), tensor(EDGES["irregular"])
    log_bins = Exponential(slope).log_bins(edges)
    assert_close(log_bins[0], edges.diff().log(), **tolerance["rounding"])
    (gradient,) = torch.autograd.grad(log_bins.sum(), slope)
    assert_close(gradient, -((edges[1:] + edges[:-1]) / 2).sum()[None], **tolerance["rounding"])


@pytest.mark.parametrize("drop", [1e-12, 1e-6, 0.0199, 0.0201, 3.0, 1e3, 1e5])
@pytest.mark.parametrize("sign", [-1, 1])
def test_an_exponential_rises_or_falls_by_any_number_of_e_folds(drop, sign, tolerance):
    with mpmath.workdps(60):
        slope = sign * mpmath.mpf(drop) / 50
        exact = mpmath.log((mpmath.exp(-slope * 100) - mpmath.exp(-slope * 150)) / slope)
        shape = Exponential(tensor(float(slope)))
    assert_close(shape.log_bins(tensor([100.0, 150.0])), tensor([float(exact)]), **tolerance["rounding"])


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_finite_differences(name):
    edges = tensor(EDGES["irregular"])
    if name == "bernstein":
        parameters = [tensor([[3.0, 0.01, 1.0, 2.0], [0.5, 0.1, 0.2, 1.0]])]
    else:
        parameters = [tensor(row) for row in DENSITIES[name][2]]
    leaves = [value.requires_grad_() for value in parameters]
    assert gradcheck(lambda *values: build(name, values).log_bins(edges), leaves, eps=1e-6, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_two_bins_merge_into_their_sum(name, tolerance):
    edges = tensor(np.geomspace(250, 3000, 61))
    fine, coarse = build(name).log_bins(edges), build(name).log_bins(edges[::2])
    # (*, 60) -> (*, 30)
    assert_close(fine.unflatten(-1, (30, 2)).logsumexp(-1), coarse, **tolerance["quadrature"])


@pytest.mark.parametrize("batch", [(), (3,), (2, 4)])
@pytest.mark.parametrize("name", SHAPES)
def test_a_batch_of_parameters_is_many_single_shapes(name, batch, tolerance):
    edges = tensor(EDGES["geometric"])
    single = tensor([[3.0, 0.0, 1.0, 2.0]]) if name == "bernstein" else tensor([row[0] for row in DENSITIES[name][2]])
    scale = 1 + torch.arange(int(np.prod(batch)), dtype=torch.float64).reshape(batch) / 50
    rows = [scale[..., None] * single[0]] if name == "bernstein" else [scale * value for value in single]
    log_bins = build(name, rows).log_bins(edges)
    assert log_bins.shape == (*batch, len(edges) - 1)
    assert log_bins.dtype == torch.float64
    for index in np.ndindex(batch):
        alone = build(name, [row[index] for row in rows]).log_bins(edges)
        assert_close(log_bins[index], alone, **tolerance["rounding"])


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_quadrature_is_exact_for_polynomials_up_to_twice_its_nodes(n, tolerance):
    edges = tensor([-2.0, -1.5, 0.3, 2.0])
    x, log_weights = quadrature(edges, n)
    assert x.shape == log_weights.shape == (3, n)
    for power in range(2 * n):
        antiderivative = edges ** (power + 1) / (power + 1)
        assert_close((x**power * log_weights.exp()).sum(-1), antiderivative.diff(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "edges", "message"),
    [
        ("dijet", [10_000.0, 12_000.0, 13_001.0], r"edges: this shape is defined from 0 to 13000, 10000 to 13001 came"),
        ("dijet", [-1.0, 1.0, 2.0], r"edges: this shape is defined from 0 to 13000, -1 to 2 came"),
        ("erf_exp", [-100.0, 0.0, 100.0], r"edges: this shape is defined from 0 to inf, -100 to 100 came"),
    ],
)
def test_edges_outside_the_domain_are_refused(name, edges, message):
    with pytest.raises(InputError, match=message):
        build(name).log_bins(tensor(edges))


@pytest.mark.parametrize("name", ["erf_exp", "dijet"])
def test_a_spectrum_may_begin_at_zero(name):
    assert build(name).log_bins(tensor([0.0, 100.0, 500.0])).isfinite().all()


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_a_frozen_value(name):
    shape = build(name)
    assert isinstance(shape, Shape)
    with pytest.raises(FrozenInstanceError):
        setattr(shape, next(iter(shape.__dataclass_fields__)), 1.0)
