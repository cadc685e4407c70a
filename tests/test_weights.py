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
from specfit.search import inject, scan, validate
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


def weighted(counts, weight):
    counts, weight = torch.as_tensor(counts).double(), torch.as_tensor(weight).double()
    return Spectrum(counts * weight, range(len(counts) + 1), variances=counts * weight**2)


def test_weights_step_where_they_do():
    counts = torch.tensor([40, 30, 25, 11, 600, 500, 380, 400, 350, 300, 20, 30, 10, 5])
    weight = torch.tensor([2.0] * 4 + [0.1] * 6 + [0.02] * 4).double()
    weights = event_weights(weighted(counts, weight))
    assert_close(weights.of_bins, weight, rtol=1e-12, atol=0)
    unit = (counts * weight**2).sum() / (counts * weight).sum()
    assert_close(weights.unit, unit[None])
    assert_close(weights.exposure, unit / weight, rtol=1e-12, atol=0)


def test_weights_that_fall_with_the_mass_are_a_line_of_their_logarithm(rng):
    weight = X**-5.0
    assert_close(
        event_weights(weighted(torch.poisson(TRUTH, generator=rng), weight)).of_bins, weight, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("empty", [[3], [6], [5, 6], [0, 1], [14, 15]])
def test_an_empty_bin_beside_a_step_is_empty_because_its_events_are_heavy(empty):
    counts = torch.tensor([90, 60, 40, 25, 12, 6, 3, 2, *range(20_000, 4000, -2000)]).double()
    weight = torch.where(torch.arange(16) < 8, 1.0, 1e-4).double()
    counts[empty] = 0
    assert_close(event_weights(weighted(counts, weight)).of_bins, weight, rtol=1e-12, atol=0)
    counts[7:9] = 0
    found = event_weights(weighted(counts, weight)).of_bins
    assert_close(found[7:9], torch.ones(2).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("heavy", [[20], [20, 21], [7, 20, 33, 48], [0], [49]])
def test_single_bins_of_other_weight_are_no_step(heavy):
    contents, variances = torch.full((50,), 10.0).double(), torch.full((50,), 0.1).double()
    contents[heavy] += 1
    variances[heavy] += 1
    weights = event_weights(Spectrum(contents, range(51), variances=variances))
    assert weights.exposure is None
    assert_close(weights.unit, variances.sum()[None] / contents.sum())


@pytest.mark.parametrize(
    ("top", "light", "heavy", "share"), [(30, 0.1, 1, 0.5), (30, 0.1, 5, 0.5), (30, 0.1, 5, 0.1), (1000, 0.1, 5, 0.1)]
)
def test_events_of_different_weight_in_one_bin_pull_no_fit(top, light, heavy, share, any_binning, rng):
    truth = (top * torch.exp(-torch.arange(50) / 15)).double().expand(N_TOYS, -1)
    parts = [
        (torch.poisson(part * truth / weight, generator=rng), weight)
        for part, weight in ((share, heavy), (1 - share, light))
    ]
    contents, variances = (sum(n * w**power for n, w in parts) for power in (1, 2))
    fit = any_binning.fit(Spectrum(contents, range(51), variances=variances), refit=None)
    total, error = fit.background.sum(-1), fit.factor.sum(-2).square().sum(-1).sqrt()
    assert ((total - truth.sum(-1)) / error).mean().abs() < 0.4
    # And the errors are those of the events, heavy and light together, in sums over many bins.
    assert ((total - truth.sum(-1)) / error).std() == pytest.approx(1, abs=0.3)


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


def test_bins_of_no_content_or_no_variance_tell_nothing():
    for contents, variances in (([40, 50, 60], [80, 0, 120]), ([40, 0, 60], [80, 300, 120])):
        weights = event_weights(Spectrum(contents, range(4), variances=variances))
        assert_close(weights.of_bins, torch.full((3,), 2.0).double(), rtol=1e-12, atol=0)
        assert_close(weights.unit, torch.full((1,), 2.0).double(), rtol=1e-12, atol=0)
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
    counts, weight = 40.0 * torch.arange(20, 8, -1).double().square(), torch.logspace(-0.3, 0.6, 12).double()
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


def test_the_sheet_of_a_validation_tells_nothing_of_what_is_blinded(any_binning, rng):
    spectrum, window = one(0.0, rng), [(800, 1100)]
    contents, variances = spectrum.counts.clone(), spectrum.variances.clone()
    hidden = (EDGES[1:] > 800) & (EDGES[:-1] < 1100)
    contents[hidden], variances[hidden] = 7e5, 9e7
    sheets = [
        validate(Spectrum(n, EDGES, variances=v), checkpoint=any_binning, mask=window, mass=[1500.0], n_toys=10)
        for n, v in ((spectrum.counts, spectrum.variances), (contents, variances))
    ]
    assert sheets[0].to_dict() == sheets[1].to_dict()
