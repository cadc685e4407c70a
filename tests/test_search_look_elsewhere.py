"""The look-elsewhere effect. Oracles: empirical correlations, brute force with numpy's randomness, examples by hand."""

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.testing import assert_allclose

from specfit.search import gaussian_hypotheses
from specfit.signal.look_elsewhere import (
    global_p_value_of_maximum,
    gross_vitells,
    significance_vectors,
    tube_p_value,
    upcrossings,
)

EDGES = np.linspace(100.0, 200.0, 41)
CENTERS = (EDGES[1:] + EDGES[:-1]) / 2
RATE = 1e5 * np.exp(-(CENTERS - 100) / 25)
BASIS = 0.3 / (1 + np.arange(5)) * np.cos(np.pi * np.arange(5) * (CENTERS[:, None] - 100) / 100)
WIDTHS = {"one width": 0.03, "two widths": (0.02, 0.06)}


def vectors_of(width, masked=()):
    weight = np.ones(len(RATE))
    weight[list(masked)] = 0.0
    signals = gaussian_hypotheses(EDGES, width=width)
    parts = (torch.as_tensor(t)[None] for t in (RATE, BASIS))
    return significance_vectors(*parts, signals.templates, torch.as_tensor(weight)[None]), signals, weight


@pytest.mark.parametrize("masked", [(), (10, 11, 12)], ids=["all bins", "masked"])
def test_correlations_are_those_of_a_linear_fit_on_pseudo_data(masked):
    """Toys of the linear Gaussian model, coefficients from their prior, each hypothesis fitted by least squares."""
    vectors, signals, weight = vectors_of(0.03, masked)
    rng, n_toys = np.random.default_rng(3), 40_000
    c = rng.standard_normal((n_toys, BASIS.shape[1]))
    data = (c @ BASIS.T) * RATE + np.sqrt(RATE) * rng.standard_normal((n_toys, len(RATE)))
    z = []
    for template in signals.templates.numpy():
        design = np.concatenate([RATE[:, None] * BASIS, template[:, None]], 1)
        information = design.T @ (design * (weight / RATE)[:, None])
        information[:-1, :-1] += np.eye(BASIS.shape[1])
        covariance = np.linalg.inv(information)
        z.append((data * weight / RATE) @ design @ covariance[-1] / np.sqrt(covariance[-1, -1]))
    z = np.array(z)
    assert_allclose(z.std(1), 1, atol=0.02)
    assert_allclose(vectors[0] @ vectors[0].T, np.corrcoef(z), atol=5 / np.sqrt(n_toys))


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_global_p_value_is_that_of_brute_force(width):
    vectors = vectors_of(width)[0]
    rng, maxima = np.random.default_rng(11), []
    for _ in range(40):
        xi = rng.standard_normal((vectors.shape[-1], 25_000), dtype=np.float32)
        maxima.append((vectors[0].numpy().astype(np.float32) @ xi).max(0))
    maxima = np.concatenate(maxima)
    for p in (0.5, 0.1, 0.02, 5e-3, 1e-3, 1e-4):
        z = np.quantile(maxima, 1 - p)
        ours = float(
            global_p_value_of_maximum(torch.tensor([z]).double(), vectors, rng=torch.Generator().manual_seed(5))
        )
        # 20 000 samples down to one in a hundred: 7 % there; the formula beyond adds what it neglects.
        statistical = np.sqrt((1 - p) / p / 20_000) if p > 0.01 else 0.071
        assert ours == pytest.approx(p, rel=4 * statistical + (0.05 if p < 0.01 else 0)), p


def test_far_out_two_hypotheses_are_two_trials_and_one_is_one():
    z = torch.tensor([6.0], dtype=torch.float64)
    one = global_p_value_of_maximum(z, torch.eye(3)[None, :1].double(), rng=torch.Generator().manual_seed(1))
    assert float(one) == pytest.approx(scipy.stats.norm.sf(6), rel=0.25)
    same = torch.eye(3)[:1].expand(4, 3)[None].double()
    again = global_p_value_of_maximum(z, same, rng=torch.Generator().manual_seed(1))
    assert float(again) == pytest.approx(float(one), rel=1e-6)


def test_p_values_far_out_are_those_of_scipy():
    z = torch.tensor([3.0, 8.2, 9.0, 30.0]).double()
    assert_allclose(tube_p_value(z, torch.zeros(4).double()), scipy.stats.norm.sf(z), rtol=1e-10)


def test_several_spectra_at_once_are_each_alone():
    vectors, z = vectors_of(0.03)[0].expand(20, -1, -1), torch.linspace(-1, 5, 20).double()
    together = global_p_value_of_maximum(z, vectors, rng=torch.Generator().manual_seed(1), samples=2000)
    for i in (0, 7, 19):
        alone = global_p_value_of_maximum(z[i : i + 1], vectors[:1], rng=torch.Generator().manual_seed(1), samples=2000)
        assert float(alone) == pytest.approx(float(together[i]), rel=1e-9)
    assert (together.diff() <= 0).all()


def test_upcrossings_by_hand():
    z = torch.tensor([[-1.0, 1.0, 0.0, 2.0, 3.0, -2.0], [1.0, 1.0, 1.0, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0, 0.0, 0.6]])
    assert upcrossings(z, 0.5).tolist() == [2, 0, 1]
    expected = scipy.stats.norm.sf(3.0) + 1.0 * np.exp(-(9 - 0.25) / 2)
    assert gross_vitells(3.0, z, level=0.5) == pytest.approx(expected, rel=1e-12)
    assert gross_vitells(0.0, z, level=0.5) == 1


def test_upcrossings_and_the_length_of_the_path_agree():
    """Rice: a normal field rises through z as often as its path is long, L / (2 pi) exp(-z^2 / 2)."""
    vectors = vectors_of(0.05)[0]
    xi = np.random.default_rng(2).standard_normal((vectors.shape[-1], 40_000))
    local_z = torch.as_tensor(vectors[0].numpy() @ xi).T
    length = (vectors[0, 1:] * vectors[0, :-1]).sum(-1).arccos().sum()
    rate = float(length) / (2 * np.pi) * np.exp(-(0.5**2) / 2)
    # On a grid some pairs of crossings fall between two masses.
    assert float(upcrossings(local_z, 0.5).double().mean()) == pytest.approx(rate, rel=0.06)
    # A bound, on a continuous path: close where it is rarely crossed twice.
    for z, excess in ((2.5, 1.4), (3.5, 1.3)):
        field = global_p_value_of_maximum(torch.tensor([z]).double(), vectors, rng=torch.Generator().manual_seed(5))
        assert 0.95 < gross_vitells(z, local_z) / float(field) < excess
