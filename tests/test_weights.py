"""Weighted contents: weights of bins, and fits and searches that take each bin for the events behind it.

Oracles: iminuit's binned likelihood of weighted data (Bohm and Zech, written by others), and simulation whose truth is
known. The simulation has weights like sums of samples that were made slice by slice in mass.
"""

import math

import numpy as np
import pytest
import torch
from iminuit import Minuit
from iminuit.cost import ExtendedBinnedNLL
from torch.testing import assert_close

import specfit
from specfit import Spectrum
from specfit.functional import ExpPolynomial, functional_fit, functional_fit_many
from specfit.net.dense import DenseNet
from specfit.search import inject, scan
from specfit.weights import describe_weights, event_weights

EDGES = torch.logspace(math.log10(250), math.log10(3000), 51).double()
X = (EDGES[1:] + EDGES[:-1]) / 2
# In steps of a hundred: 4e4 to 1e4 events a bin of weight 1, then 6e5 to 1e3 of weight 0.01.
WEIGHT = torch.where(torch.arange(50) < 25, 1.0, 0.01).double()
TRUTH = 1e6 * torch.exp(-X / 250) * EDGES.diff() / (torch.exp(-X / 250) * EDGES.diff()).sum()
N_TOYS = 150
# A signal where events weigh little, as a share of its events in each bin.
MASS, WIDTH = 1500.0, 50.0
PEAK = torch.distributions.Normal(MASS, WIDTH).cdf(EDGES).diff()


@pytest.fixture(scope="module")
def any_binning():
    return specfit.SpectrumFitter.from_checkpoint("any_binning")


def simulated(size, rng, *, signal=0.0, weight=WEIGHT):
    expected = (TRUTH + signal) / weight
    contents = torch.poisson(expected.expand(size, -1), generator=rng) * weight
    return Spectrum(contents, EDGES, variances=contents * weight)


def known_error(share):
    return (share.square() / (TRUTH * WEIGHT)).sum().rsqrt()


def one(signal, rng):
    spectra = simulated(1, rng, signal=signal)
    return Spectrum(spectra.counts[0], EDGES, variances=spectra.variances[0])


# Weights of bins


def test_the_weight_of_a_bin_is_its_variance_over_its_content():
    weights = event_weights(Spectrum([40, 600, 90], range(4), variances=[80, 60, 9]))
    assert_close(weights.of_bins, torch.tensor([2, 0.1, 0.1]).double())
    assert_close(weights.unit, torch.tensor([149 / 730]).double())
    assert_close(weights.exposure * weights.of_bins, weights.unit.expand(3))


def test_a_bin_of_few_events_takes_the_weight_of_its_neighbourhood():
    contents = torch.tensor([0, 0, 50, 60, 3, 0, 0.7, 70, 80, 0]).double()
    weight = torch.tensor([2.0] * 5 + [0.1] * 5).double()
    found = event_weights(Spectrum(contents, range(11), variances=contents * weight)).of_bins
    assert_close(found[:4], weight[:4])
    assert_close(found[7:], weight[7:])
    assert ((found > 0.09) & (found < 2.1)).all()


def test_equal_weights_but_for_rounding_are_one(rng):
    counts = torch.poisson(TRUTH, generator=rng)
    contents, variances = (0.3 * counts).float(), (0.09 * counts).float()  # as ROOT keeps them
    weights = event_weights(Spectrum(contents, EDGES, variances=variances))
    assert weights.exposure is None
    assert (weights.of_bins == weights.unit).all()
    assert event_weights(Spectrum(counts, EDGES, variances=counts)).of_bins.eq(1).all()


def test_each_spectrum_has_its_own_and_what_is_left_out_tells_nothing(rng):
    contents = torch.poisson(TRUTH.expand(3, -1), generator=rng) * WEIGHT
    variances = contents * WEIGHT
    variances[1] = 4 * contents[1]
    out = torch.zeros(3, 50, dtype=torch.bool)
    out[2, 20:30] = True
    together = event_weights(Spectrum(contents, EDGES, variances=variances), out)
    for i in range(3):
        spectrum = Spectrum(contents[i], EDGES, variances=variances[i])
        assert torch.equal(together.of_bins[i], event_weights(spectrum, out[i]).of_bins)
    assert (together.exposure[1] == 1).all()
    contents[2, 20:30], variances[2, 20:30] = 1e9, 1e20
    again = event_weights(Spectrum(contents, EDGES, variances=variances), out)
    assert torch.equal(again.of_bins, together.of_bins)


def test_bins_with_content_and_no_variance_take_the_weight_of_others():
    weights = event_weights(Spectrum([40, 50, 60], range(4), variances=[80, 0, 120]))
    assert_close(weights.of_bins, torch.full((3,), 2.0).double(), rtol=0.5, atol=0)
    assert event_weights(Spectrum([40, 50], range(3), variances=[0, 0])).of_bins.tolist() == [1, 1]


def test_what_differs_is_said(rng):
    spectra = simulated(3, rng)
    (said,) = describe_weights(spectra)
    assert said.endswith("an event stands for 0.01 to 1 in different bins of 3 of 3 spectra")
    assert describe_weights(Spectrum(spectra.counts[0], EDGES, variances=3 * spectra.counts[0])) == [
        "weighted contents, fitted as scaled Poisson counts"
    ]
    assert describe_weights(Spectrum([1, 2], range(3))) == []


# Functions


def test_functions_are_those_of_iminuits_likelihood_of_weighted_data(rng):
    spectrum = simulated(2, rng)
    u = ((EDGES - EDGES[0]) / (EDGES[-1] - EDGES[0])).numpy()

    def integral(_, n, a1):
        return n * (np.exp(a1 * u) - 1) / (np.exp(a1) - 1)

    many = functional_fit_many(spectrum, function=ExpPolynomial(1))
    for i in range(2):
        data = torch.stack([spectrum.counts[i], spectrum.variances[i]], -1).numpy()
        minuit = Minuit(ExtendedBinnedNLL(data, EDGES.numpy(), integral), n=1e6, a1=-11.0)
        minuit.tol = 1e-6
        minuit.migrad()
        minuit.hesse()
        one = functional_fit(
            Spectrum(spectrum.counts[i], EDGES, variances=spectrum.variances[i]), function=ExpPolynomial(1)
        )
        for found in (one, many[i]):
            assert found.parameters["a1"] == pytest.approx(minuit.values["a1"], abs=1e-4 * minuit.errors["a1"] + 1e-9)
            # Ours from the expected curvature, theirs from the observed one.
            assert found.errors["a1"] == pytest.approx(minuit.errors["a1"], rel=0.01)
            assert float(found.fit.deviance) == pytest.approx(minuit.fval, rel=1e-6)
            assert found.fit.n_parameters == pytest.approx(2, abs=0.01)
            assert "an event stands for 0.01 to 1" in found.fit.message


# Nets


# Slices that hold 3e4 events in their first bin, however few the truth has there.
SLICED = (TRUTH[::10] / 3e4).repeat_interleave(10)


@pytest.mark.parametrize("weight", [WEIGHT, SLICED], ids=["two slices", "five slices"])
def test_errors_of_a_net_hold_whatever_the_weights(weight, any_binning, rng):
    spectra = simulated(N_TOYS, rng, weight=weight)
    fit = any_binning.fit(spectra)
    assert fit.converged.double().mean() > 0.97
    pull = (fit.background - TRUTH) / fit.uncertainty
    assert pull.std() == pytest.approx(1, abs=0.15)
    assert pull.mean().abs() < 0.15
    # In units of the true error of a bin the fit is as good as that of counts: some six of fifty parameters.
    assert ((fit.background - TRUTH) / (TRUTH * weight).sqrt()).square().mean().sqrt() < 0.4
    assert (fit.p_value < 0.05).double().mean() < 0.12


def test_a_net_for_one_binning_takes_weights_into_its_likelihood(rng):
    fitter = specfit.SpectrumFitter.from_checkpoint("reference")
    fit = fitter.fit(simulated(N_TOYS, rng), refit=None)
    pull = (fit.background - TRUTH) / fit.uncertainty
    assert pull.std() == pytest.approx(1, abs=0.2)
    assert ((fit.background - TRUTH) / (TRUTH * WEIGHT).sqrt()).square().mean().sqrt() < 0.65
    assert fit.p_value.median() > 0.2


def test_a_batch_is_its_spectra_one_at_a_time(any_binning, rng):
    contents = torch.poisson(TRUTH.expand(4, -1) / WEIGHT, generator=rng) * WEIGHT
    variances = contents * WEIGHT
    contents[2] += 20 * known_error(PEAK) * PEAK  # so that something is refitted
    variances[3] = 2 * contents[3]
    together = any_binning.fit(Spectrum(contents, EDGES, variances=variances))
    assert together.mask[2].any()
    for i in range(4):
        alone = any_binning.fit(Spectrum(contents[i], EDGES, variances=variances[i]))
        assert_close(together.background[i], alone.background, rtol=1e-6, atol=0)
        assert_close(together.uncertainty[i], alone.uncertainty, rtol=1e-4, atol=0)
        assert torch.equal(together.mask[i], alone.mask)


@pytest.mark.parametrize("rule", ["windows", "talk"])
def test_rules_that_look_at_bins_take_each_spectrum_with_its_weights(rule, any_binning, rng):
    spectra = simulated(3, rng)
    variances = spectra.variances.clone()
    variances[1] = 2 * spectra.counts[1]
    together = any_binning.fit(Spectrum(spectra.counts, EDGES, variances=variances), refit=rule)
    for i in range(3):
        alone = any_binning.fit(Spectrum(spectra.counts[i], EDGES, variances=variances[i]), refit=rule)
        assert_close(together.background[i], alone.background, rtol=1e-6, atol=0)
        assert torch.equal(together.mask[i], alone.mask)


def test_a_dense_net_propagates_the_errors_of_weighted_contents():
    torch.manual_seed(1)
    net = DenseNet(12, width=11, hidden=8, depth=1)
    fitter = specfit.SpectrumFitter(net, torch.arange(13).double())
    counts, weight = 40.0 * torch.arange(20, 8, -1).double().square(), torch.linspace(0.5, 4, 12).double()
    fit = fitter.fit(Spectrum(counts, range(13), variances=counts * weight), refit=None)
    # The net sees events of average weight; theirs are the derivatives.
    jacobian, net, even = [], net.double(), counts * counts.sum() / (counts * weight).sum()
    for i in range(12):
        step = 1e-3 * (torch.arange(12) == i)
        up, down = net((even + step)[None]), net((even - step)[None])
        jacobian.append(((up - down) / 2e-3)[0].detach())
    jacobian = torch.stack(jacobian, -1)
    expected = jacobian @ torch.diag(fit.background * weight) @ jacobian.T
    assert_close(fit.covariance, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))


def test_what_is_blinded_is_not_looked_at_whatever_it_weighs(any_binning, rng):
    spectrum = one(0.0, rng)
    contents, variances = spectrum.counts.clone(), spectrum.variances.clone()
    window = [(800, 1100)]
    before = any_binning.fit(Spectrum(contents, EDGES, variances=variances), mask=window)
    hidden = (EDGES[1:] > 800) & (EDGES[:-1] < 1100)
    contents[hidden], variances[hidden] = 7e5, 9e7
    after = any_binning.fit(Spectrum(contents, EDGES, variances=variances), mask=window)
    assert torch.equal(before.background, after.background)
    assert torch.equal(before.deviance, after.deviance)
    assert before.summary() == after.summary()
    # And what is there is found again, across the step of the weights or not.
    truth, within = TRUTH[hidden].sum(), before.factor[hidden].sum(0).square().sum().sqrt()
    assert abs(before.background[hidden].sum() - truth) < 4 * within


# Searches


def test_a_signal_is_found_with_the_size_that_it_has(any_binning, rng):
    events = 10 * known_error(PEAK)
    found = scan(one(events * PEAK, rng), checkpoint=any_binning, width=lambda m: 0 * m + WIDTH)
    best, at = found.best, int((found.mass - MASS).abs().argmin())
    assert abs(found.mass[best] - MASS) < WIDTH
    assert abs(found.yields[at] - events) < 3 * found.error[at]
    assert found.error[at] < 2 * known_error(PEAK)
    assert found.local_z[best] > 4
    assert found.global_p < 0.001
    assert found.signal.sum() == pytest.approx(float(found.yields[best]), rel=0.02)
    # MINOS and Gaussian errors agree where there are very many events, and limits lie above the yield.
    assert_close(found.error_high[at], found.error[at], rtol=0.1, atol=0)
    assert found.limit[at] > found.yields[at]


def test_injected_signals_come_out_on_either_side_of_a_step_of_weights(any_binning, rng):
    result = inject(
        one(0.0, rng), checkpoint=any_binning, truth=TRUTH, mass=[500.0, 1500.0], strength=(0, 5), n_toys=80
    )
    assert result.bias.abs().max() < 0.5
    assert result.pull_width.sub(1).abs().max() < 0.3
    # The error with the background known, by hand.
    for mass, sigma0 in zip(result.mass, result.sigma0, strict=True):
        share = torch.distributions.Normal(mass, 0.05 * mass).cdf(EDGES).diff()
        assert_close(sigma0, known_error(share), rtol=0.02, atol=0)
