"""Fits of many spectra at once, against Minuit, the published deviances and each spectrum alone."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from specfit.errors import InputError
from specfit.functional import (
    DijetFunction,
    ErfExpRanges,
    ErfExpSum,
    ExpPolynomial,
    functional_fit,
    functional_fit_many,
)
from specfit.functional import many as many_module
from specfit.generator import SpectrumGenerator
from specfit.spectrum import Spectrum

REFERENCE_EDGES = torch.from_numpy(np.geomspace(250, 3000, 51))
DIJET_EDGES = torch.from_numpy(np.geomspace(1100, 8000, 41))
FALLS = {"erf_exp": (ErfExpSum(), REFERENCE_EDGES), "dijet": (DijetFunction(), DIJET_EDGES)}


def spectra(kind, size, rng):
    if kind == "erf_exp":
        return SpectrumGenerator(REFERENCE_EDGES, n_backgrounds=1).sample(size, rng=rng).counts.double()
    z = (DIJET_EDGES[1:] + DIJET_EDGES[:-1]) / 2 / 13_000
    p1, p2 = (6 + 6 * torch.rand(size, 1, generator=rng) for _ in range(2))
    shape = torch.softmax(p1 * torch.log1p(-z) - p2 * z.log() + DIJET_EDGES.diff().log(), -1)
    total = 10 ** (3 + 4 * torch.rand(size, 1, generator=rng).double())
    return torch.poisson(total * shape, generator=rng)


@pytest.mark.parametrize("kind", FALLS)
def test_minima_are_those_of_minuit(kind, rng):
    function, edges = FALLS[kind]
    counts = spectra(kind, 30, rng)
    fits = functional_fit_many(counts, edges, function=function)
    alone = [functional_fit(row, edges, function=function) for row in counts]
    assert fits.fit.converged.all()
    assert_close(2 * fits.nll, 2 * torch.tensor([one.nll for one in alone]).double(), rtol=0, atol=1e-2)
    background, sigma = (
        torch.stack([getattr(one.fit, name) for one in alone]) for name in ("background", "uncertainty")
    )
    # Beyond the data, where nothing is expected, both numbers are 0.
    some = background > 1e-3
    assert ((fits.fit.background - background).abs() / sigma)[some].max() < 0.05
    assert_close(fits.fit.uncertainty[some], sigma[some], rtol=0.02, atol=0.0)
    assert fits[3].parameters.keys() == alone[3].parameters.keys()
    for name, value in alone[3].parameters.items():
        assert fits[3].parameters[name] == pytest.approx(value, abs=0.1 * alone[3].errors[name])


def test_several_components_reach_what_minuit_reaches(rng):
    counts = SpectrumGenerator(REFERENCE_EDGES, n_backgrounds=3).sample(4, rng=rng).counts
    fits = functional_fit_many(counts, REFERENCE_EDGES, function=ErfExpSum(3))
    for row, nll in zip(counts, fits.nll.tolist(), strict=True):
        assert nll < functional_fit(row, REFERENCE_EDGES, function=ErfExpSum(3)).nll + 0.05
    assert (fits.parameters["yield_1"] >= fits.parameters["yield_2"]).all()


@pytest.mark.parametrize(
    ("name", "deviance"),
    [
        ("atlas_dijet_resonance_ystar0p6_13TeV_37fb_PRD96_052004.csv", 69.6),
        ("cms_dijet_13TeV_137fb_JHEP05_2020_033.csv", 41.3),
        ("cms_fourjet_13TeV_138fb_JHEP07_2023_161.csv", 64.1),
    ],
)
def test_measured_dijets_reach_the_known_deviance(spectra_folder, name, deviance):
    fits = functional_fit_many(spectra_folder / name, function=DijetFunction(13_000.0))
    assert fits.fit.deviance.item() == pytest.approx(deviance, abs=0.2)
    assert fits.fit.converged.all()


@pytest.mark.parametrize("kind", FALLS)
def test_masked_bins_weigh_nothing(kind, rng):
    function, edges = FALLS[kind]
    counts = spectra(kind, 6, rng)
    mask = torch.zeros(40 if kind == "dijet" else 50, dtype=torch.bool)
    mask[8:11] = True
    changed = counts.clone()
    changed[:, 8:11] *= 7
    fits, again = (functional_fit_many(c, edges, function=function, mask=mask) for c in (counts, changed))
    assert_close(again.fit.background, fits.fit.background, rtol=1e-5, atol=1e-6)
    assert_close(again.nll, fits.nll, rtol=1e-6, atol=1e-6)
    assert (fits.fit.mask == mask).all()
    whole = functional_fit_many(counts, edges, function=function)
    assert (fits.fit.uncertainty[:, 9] > whole.fit.uncertainty[:, 9]).all()
    # Nothing is seen of the masked bins, yet their background is that of the others within its error.
    pull = (fits.fit.background - whole.fit.background)[:, 9] / fits.fit.uncertainty[:, 9]
    assert pull.abs().max() < 4


def test_a_window_may_be_masked_by_its_limits(rng):
    counts = spectra("dijet", 2, rng)
    fits = functional_fit_many(counts, DIJET_EDGES, function=DijetFunction(), mask=[(2000, 2400)])
    assert fits.fit.mask.sum(-1).tolist() == [((DIJET_EDGES[:-1] < 2400) & (DIJET_EDGES[1:] > 2000)).sum()] * 2


def test_no_spectrum_depends_on_those_beside_it(rng, monkeypatch):
    counts = spectra("erf_exp", 12, rng)
    whole = functional_fit_many(counts, REFERENCE_EDGES)
    monkeypatch.setattr(many_module, "DESCENTS_AT_A_TIME", 15)
    parts = functional_fit_many(counts, REFERENCE_EDGES)
    assert_close(parts.nll, whole.nll, rtol=1e-9, atol=1e-9)
    one = functional_fit_many(counts[4], REFERENCE_EDGES)
    assert len(one) == 1
    assert_close(one.fit.background[0], whole.fit.background[4], rtol=1e-7, atol=1e-9)
    drawn = [functional_fit_many(counts, REFERENCE_EDGES, rng=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert_close(drawn[0].nll, drawn[1].nll, rtol=0, atol=0)


def test_weighted_contents_are_scaled_counts(rng):
    counts = spectra("dijet", 3, rng)
    plain = functional_fit_many(counts, DIJET_EDGES, function=DijetFunction())
    weighted = Spectrum(0.25 * counts, DIJET_EDGES, variances=0.25**2 * counts)
    fits = functional_fit_many(weighted, function=DijetFunction())
    assert_close(fits.fit.background, 0.25 * plain.fit.background, rtol=1e-6, atol=1e-9)
    assert_close(fits.parameters["yield"], 0.25 * plain.parameters["yield"], rtol=1e-6, atol=0.0)
    assert_close(fits.errors["yield"], 0.25 * plain.errors["yield"], rtol=1e-5, atol=0.0)
    assert_close(fits.errors["p1"], plain.errors["p1"], rtol=1e-4, atol=0.0)
    assert_close(fits.nll, plain.nll, rtol=1e-5, atol=1e-8)


def test_pulls_and_p_values_of_a_polynomial_are_as_they_should_be(rng):
    import scipy.stats

    edges = torch.linspace(0, 1, 31).double()
    u = (edges[1:] + edges[:-1]) / 2
    truth = 2e4 * torch.softmax(-3 * u + 1.5 * u**2, 0)
    fits = functional_fit_many(
        torch.poisson(truth.expand(1000, -1), generator=rng), edges, function=ExpPolynomial(3), starts=1
    )
    pulls = (fits.fit.background - truth) / fits.fit.uncertainty
    assert pulls.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.06)
    assert scipy.stats.kstest(fits.fit.p_value.numpy(), "uniform").pvalue > 0.01
    assert_close(fits.fit.n_parameters, torch.full_like(fits.nll, 4.0), rtol=0, atol=1e-6)


def test_what_sits_at_a_limit_is_said_and_what_does_not_converge(rng, monkeypatch):
    counts = spectra("erf_exp", 4, rng)
    fits = functional_fit_many(counts, REFERENCE_EDGES, function=ErfExpSum(ranges=ErfExpRanges(alpha=(1.0, 2.0))))
    assert fits.at_limit["alpha_1"].any()
    assert fits.fit.factor.isfinite().all()
    monkeypatch.setattr(many_module, "CLOSE", -1.0)
    failed = functional_fit_many(counts, REFERENCE_EDGES)
    assert not failed.fit.converged.any()
    assert failed.fit.message.startswith("Fisher scoring: 0 of 4 spectra converged; for the others give more starts")


def test_a_nearly_empty_spectrum_gives_finite_numbers():
    counts = torch.zeros(2, 40).double()
    counts[0, 0], counts[1, 20] = 3.0, 1.0
    fits = functional_fit_many(counts, DIJET_EDGES, function=DijetFunction())
    assert fits.fit.background.isfinite().all()
    assert fits.fit.factor.isfinite().all()


def test_unusable_input_is_refused():
    with pytest.raises(InputError, match="starts: a whole number"):
        functional_fit_many(np.ones((2, 4)), [1, 2, 3, 4, 5], starts=0)
    with pytest.raises(InputError, match="edges"):
        functional_fit_many(np.ones((2, 4)))
