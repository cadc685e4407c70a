"""Functions of few parameters beside the any-binning net."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

from specfit.functional import ErfExpRanges, ErfExpSum, ExpPolynomial, functional_fit_many
from specfit.generator import SpectrumGenerator, WideGenerator
from specfit.inference import SpectrumFitter
from specfit.net.forms import choice, falls, turn_on
from specfit.net.forms.choice import LEAST_SHARE_OF_ERROR, with_functional_form
from specfit.net.forms.plan import END_OF_DIJET, plan_of
from specfit.net.forms.task import Task
from specfit.signal import gaussian_hypotheses
from specfit.signal.extraction import extract
from specfit.significance import poisson_deviance

EDGES = torch.logspace(np.log10(250), np.log10(3000), 51, dtype=torch.float64)


@pytest.fixture(scope="module")
def net():
    return SpectrumFitter.from_checkpoint("any_binning").net


def wide_backgrounds(family, size, *, total, turn_on=0.0, n_bins=40):
    """Backgrounds of one family on one geometric binning, with their expectation."""
    edges = torch.logspace(0, np.log10(6), n_bins + 1, dtype=torch.float64)
    generator = WideGenerator(total=total, families={family: 1.0}, turn_on=turn_on)
    rng = torch.Generator().manual_seed(3)
    truth = generator.sample_background(edges.expand(size, -1), rng=rng)
    return edges, truth, torch.poisson(truth, generator=rng)


def fitted(net, counts, edges):
    with torch.inference_mode():
        described = net.described(counts, edges=edges)
        each = edges.expand(len(counts), -1)
        answer = with_functional_form(described, net.n_basis, counts, each, mask=torch.zeros_like(counts).bool())
    return described, *answer


def asked(fit, log_rate, counts, edges):
    """What a function answers about spectra that a net has described."""
    task = Task(log_rate, counts, torch.ones_like(counts), torch.full_like(counts[:, 0], 60.0))
    return fit(plan_of(edges[None], torch.arange(len(counts))), task)


def rms(log_rate, truth):
    used = truth > 0.5
    return float((((log_rate.exp() - truth).square() / truth)[used]).mean().sqrt())


def deviance_of(counts, log_rate):
    return poisson_deviance(counts, log_rate.exp()).sum(-1)


def test_a_turn_on_is_fitted_as_well_as_by_many_starts(net):
    """Against `functional_fit_many`, which iminuit checks, with wide limits."""
    batch = SpectrumGenerator(EDGES, n_backgrounds=1).sample(96, rng=torch.Generator().manual_seed(5))
    counts = batch.counts.double()
    with torch.inference_mode():
        log_rate = net.described(counts, edges=EDGES).log_rate
        fit = asked(turn_on.fit_turn_on, log_rate, counts, EDGES)
    ranges = ErfExpRanges(rho=(0.2, 2.5), alpha=(2.0, 2000.0), mu=(150.0, 450.0), sigma=(3.0, 90.0))
    best = functional_fit_many(counts, EDGES, function=ErfExpSum(1, ranges)).fit
    excess = fit.deviance - poisson_deviance(counts, best.background).sum(-1)
    assert fit.deviance.isfinite().all()
    assert excess.median() < 0.1
    assert excess.quantile(0.9) < 1.0


def test_a_turn_on_does_not_depend_on_how_well_the_net_knew(net):
    """From answers that waves of two standard errors spoil the same function is found."""
    batch = SpectrumGenerator(EDGES, n_backgrounds=1, total=(3e4, 1e5)).sample(96, rng=torch.Generator().manual_seed(6))
    counts = batch.counts.double()
    with torch.inference_mode():
        described = net.described(counts, edges=EDGES)
        wave = torch.cos(torch.linspace(0, 3 * torch.pi, 50).double())
        spoiled = described.log_rate + wave * (described.log_rate.exp() + 1).rsqrt() * 2
        one, other = (asked(turn_on.fit_turn_on, log_rate, counts, EDGES) for log_rate in (described.log_rate, spoiled))
    net_too = described.description.n_parameters > 4.5  # others have a fall alone
    assert deviance_of(counts, spoiled).median() > deviance_of(counts, described.log_rate).median() + 30
    difference = (other.deviance - one.deviance)[net_too]
    assert difference.isfinite().double().mean() > 0.97
    assert difference.abs().nan_to_num(0.0).quantile(0.9) < 0.5


def test_the_derivatives_of_a_turn_on_are_those_of_its_rate():
    """All five, against differences of the rate."""
    shape = torch.tensor([[0.9, 0.12, -4.6], [1.6, 0.13, -4.2], [0.4, 0.10, -5.0]]).double()
    points = plan_of(EDGES[None], torch.arange(1)).points
    center, weight = torch.full((3, 1), -2.0).double(), torch.ones(3, 50).double()
    truth = turn_on._curves(points.middle, points.log_middle - center, shape)
    slope = torch.tensor([[6.0], [9.0], [4.0]]).double()
    target = 9.0 + truth.rise + slope * truth.fall
    search = turn_on._Search(points, target, weight, weight / 50, center, torch.zeros(3).double())

    def log_rate(step, number):
        """At a shape that is moved, norm and slope where the target says."""
        moved = shape.clone()
        target = search.target
        if number == 0:
            target = target + step
        elif number == 1:
            target = target + step * truth.fall
        else:
            moved[:, number - 2] += step
            curves = turn_on._curves(points.middle, points.log_middle - center, moved)
            target = 9.0 + curves.rise + slope * curves.fall
        return turn_on._on_bins(search._replace(target=target), moved).log_rate

    bins, step = turn_on._on_bins(search, shape), 1e-5
    for number, width in enumerate(turn_on.WIDTHS):
        difference = (log_rate(step, number) - log_rate(-step, number)) / (2 * step)
        used = bins.log_rate > -25  # below, rates are held
        torch.testing.assert_close((bins.basis[..., number] / width)[used], difference[used], rtol=1e-4, atol=1e-6)


def test_falls_are_at_the_minimum_of_their_likelihood(net, monkeypatch):
    """The cubic in x against `functional_fit_many`, the others against SciPy."""
    monkeypatch.setattr(falls, "NEEDED", 0.0)
    edges, _, counts = wide_backgrounds("power_times_exponential", 24, total=(2e4, 2e5))
    with torch.inference_mode():
        log_rate = net.described(counts, edges=edges).log_rate
        cubic, log_cubic, ua2, dijet = asked(falls.fit_falls, log_rate, counts, edges)
    best = functional_fit_many(counts, edges, function=ExpPolynomial(3)).fit
    excess = cubic.deviance - poisson_deviance(counts, best.background).sum(-1)
    assert (excess.abs() < 0.05 + 0.01 * cubic.deviance)[cubic.deviance < 100].all()

    fine = torch.stack([edges[:-1] + edges.diff() * (i + 0.5) / 20 for i in range(20)])  # (20, n_bins)
    u, n = (fine / edges[-1]).numpy(), counts[0].numpy()
    one, log_u = np.ones_like(u), np.log(u)
    of_functions = {
        "cubic in ln x": (log_cubic, [one, log_u, log_u**2, log_u**3]),
        "UA2": (ua2, [one, log_u, u, u**2]),
        "dijet": (dijet, [one, np.log1p(-u / END_OF_DIJET), log_u, log_u**2]),
    }
    for fit, terms in of_functions.values():
        assert float(fit.deviance[0]) == pytest.approx(lowest_deviance(terms, n, edges), abs=0.1)


def lowest_deviance(terms, counts, edges):
    """That of an exponential of terms on fine points, `(points, n_bins)` each, by SciPy."""
    columns, widths = np.stack(terms), edges.diff().numpy()
    flat = columns.reshape(len(terms), -1).T
    orthonormal = (np.linalg.qr(flat)[0] * len(flat) ** 0.5).T.reshape(columns.shape)

    def deviance(p):
        density = np.exp(np.clip(np.tensordot(p, orthonormal, 1), -50, 50)).mean(0) * widths
        of_filled = counts * np.log(np.clip(counts, 1, None) / density)
        return 2 * (density - counts + np.where(counts > 0, of_filled, 0.0)).sum()

    middle = orthonormal.mean(1).T
    guess = np.linalg.lstsq(middle, np.log((counts + 0.5) / widths), rcond=None)[0]
    return optimize.minimize(deviance, guess, method="BFGS").fun


def test_parameters_that_the_data_do_not_ask_for_are_left_out(net):
    """Of a power law: a line in ln x is left, as good as SciPy's, and no function loses what it needs."""
    edges = torch.logspace(0, 0.5, 31, dtype=torch.float64)
    truth = 1e5 * (edges[:-1] ** -4 - edges[1:] ** -4)
    counts = torch.poisson(truth.expand(40, -1), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        log_rate = net.described(counts, edges=edges).log_rate
        cubic, log_cubic, _, _ = asked(falls.fit_falls, log_rate, counts, edges)
    n_left = (log_cubic.basis != 0).any(1).sum(-1)
    assert (n_left == 2).double().mean() > 0.8  # two parameters within two standard errors of zero
    assert ((cubic.basis != 0).any(1).sum(-1) > 2).all()
    fine = torch.stack([edges[:-1] + edges.diff() * (i + 0.5) / 20 for i in range(20)])
    log_u = np.log((fine / edges[-1]).numpy())
    for row in (n_left == 2).nonzero()[:5, 0].tolist():
        lowest = lowest_deviance([np.ones_like(log_u), log_u], counts[row].numpy(), edges)
        assert float(log_cubic.deviance[row]) == pytest.approx(lowest, abs=0.1)


def test_falls_of_few_events_settle(net, monkeypatch):
    """A power law over a decade: steps that are not damped run away, and two are too few."""
    edges = torch.logspace(0, 1, 101, dtype=torch.float64)
    x = (edges[1:] * edges[:-1]).sqrt()
    truth = 1000 * (x**-7 * edges.diff()) / (x**-7 * edges.diff()).sum()
    counts = torch.poisson(truth.expand(60, -1), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        log_rate = net.described(counts, edges=edges).log_rate

    def deviances():
        return torch.stack([one.deviance for one in asked(falls.fit_falls, log_rate, counts, edges)])

    found = deviances()
    monkeypatch.setattr(falls, "MOST_STEPS", 300)
    monkeypatch.setattr(falls, "SETTLED", 1e-4)
    settled = deviances()
    assert (found - settled).abs().quantile(0.98) < 1.0  # a sixth of a parameter
    truth_itself = poisson_deviance(counts, truth).sum(-1)
    assert (settled[1] < truth_itself + 0.5).all()  # a power law is a line in ln x


def test_spectra_of_one_component_come_nearer_to_the_truth(net, monkeypatch):
    batch = SpectrumGenerator(EDGES, n_backgrounds=1).sample(300, rng=torch.Generator().manual_seed(7))
    described, model, log_rate = fitted(net, batch.counts.double(), EDGES)
    truth = batch.background.double()
    gain = rms(log_rate, truth) / rms(described.log_rate, truth)
    assert gain < 0.9
    monkeypatch.setattr(choice, "TRUST_IN_TURN_ON", 0.0)
    assert gain < 0.96 * rms(fitted(net, batch.counts.double(), EDGES)[2], truth) / rms(described.log_rate, truth)
    assert (log_rate != described.log_rate).any(1).double().mean() > 0.8
    assert torch.equal(model.weight, described.model.weight)


def test_errors_are_as_wide_beside_a_turn_on_as_beside_none(net):
    """The calibration knows where a function stands: pulls of single components were 0.85 wide without that."""
    batch = SpectrumGenerator(EDGES, n_backgrounds=1).sample(400, rng=torch.Generator().manual_seed(10))
    prediction = net.predict(batch.counts, edges=EDGES)
    truth = batch.background.double()
    pull = ((prediction.background - truth) / prediction.factor.square().sum(-1).sqrt())[truth > 0.5]
    assert pull.clamp(-6, 6).square().mean().sqrt() == pytest.approx(1, abs=0.1)


def test_spectra_of_many_components_are_left_to_the_net(net):
    batch = SpectrumGenerator(EDGES, n_backgrounds=5).sample(100, rng=torch.Generator().manual_seed(8))
    described, _, log_rate = fitted(net, batch.counts.double(), EDGES)
    assert (log_rate != described.log_rate).any(1).double().mean() < 0.05


@pytest.mark.parametrize(
    ("family", "turn_on", "gain"),
    [("dijet", 0.0, 0.95), ("five_parameter_dijet", 0.0, 0.97), ("bernstein", 0.0, 1.02), ("moyal", 1.0, 1.02)],
)
def test_no_family_is_worse_with_functions_that_are_not_its_own(net, family, turn_on, gain):
    """The errors hold too: a function that is not the truth never stands without the net's own directions."""
    edges, truth, counts = wide_backgrounds(family, 200, total=(1e5, 3e6), turn_on=turn_on)
    described, model, log_rate = fitted(net, counts, edges)
    assert rms(log_rate, truth) < gain * rms(described.log_rate, truth)
    chosen = (log_rate != described.log_rate).any(1)
    prediction = net.calibrated(model, log_rate, None)
    pull = (prediction.background - truth) / prediction.factor.square().sum(-1).sqrt()
    width = pull[chosen][truth[chosen] > 0.5].clamp(-6, 6).square().mean().sqrt()
    assert width < 1.3
    kept, own = (m.basis[chosen, :, : net.n_basis].abs().amax((1, 2)) for m in (model, described.model))
    assert (kept >= 0.999 * LEAST_SHARE_OF_ERROR * own).all()
    assert chosen.any()


@pytest.mark.parametrize("kind", ["falls", "turn-ons"])
def test_an_answer_does_not_depend_on_others_nor_on_the_unit(net, kind):
    if kind == "falls":
        edges, _, counts = wide_backgrounds("dijet", 12, total=(1e5, 1e6))
    else:
        batch = SpectrumGenerator(EDGES, n_backgrounds=1).sample(24, rng=torch.Generator().manual_seed(9))
        edges, counts = EDGES, batch.counts.double()
    described, _, log_rate = fitted(net, counts, edges)
    assert (log_rate != described.log_rate).any(1).double().mean() > 0.7
    with torch.inference_mode():
        together = net.predict(counts, edges=edges)
        alone = torch.cat([net.predict(one[None], edges=edges).background for one in counts])
        each = net.predict(counts, edges=edges.repeat(len(counts), 1))
        in_mev = net.predict(counts, edges=1000 * edges)
    for other in (alone, each.background, in_mev.background):
        away = (other - together.background) / together.background.clamp(min=1.0).sqrt()
        assert away.abs().max() < 0.02


def test_masked_bins_weigh_nothing(net):
    edges, _, counts = wide_backgrounds("dijet", 6, total=(1e5, 1e6))
    mask = torch.zeros_like(counts).bool()
    mask[:, 10:14] = True
    changed = torch.where(mask, 3 * counts + 100, counts)
    with torch.inference_mode():
        one, other = (
            with_functional_form(described, net.n_basis, data, edges.expand(len(data), -1), mask=mask)[1]
            for data in (counts, changed)
            for described in [net.described(counts, edges=edges, mask=mask)]
        )
    torch.testing.assert_close(one, other)
    with torch.inference_mode():
        assert (one != net.described(counts, edges=edges, mask=mask).log_rate).any(1).double().mean() > 0.5


@pytest.mark.parametrize("case", ["below zero", "few bins", "a bump"])
def test_where_no_function_can_be_asked_the_net_stands(net, case):
    edges, _, counts = wide_backgrounds("dijet", 8, total=(1e5, 1e6), n_bins=8 if case == "few bins" else 40)
    if case == "below zero":
        edges = edges - 3.0
    if case == "a bump":
        counts[:, 18:21] *= 2
    described, model, log_rate = fitted(net, counts, edges)
    assert torch.equal(log_rate, described.log_rate)
    assert all(map(torch.equal, model, described.model))


def test_a_search_beside_a_steep_turn_on_settles(net):
    """One of ten thousand: directions of a turn-on, steep in empty bins, must not lift one of them above the data."""
    edges = torch.logspace(np.log10(250), np.log10(3000), 61, dtype=torch.float64)
    batch = SpectrumGenerator(edges, n_backgrounds=(1, 7)).sample(10_000, rng=torch.Generator().manual_seed(40))
    counts = batch.counts[7493:7494].double()
    templates = gaussian_hypotheses(edges, width=0.05, mass=[297.5926]).templates
    with torch.inference_mode():
        rows = extract(
            net,
            counts,
            templates[None],
            spectrum=torch.zeros(1, dtype=torch.int64),
            edges=edges,
            mask=torch.zeros_like(counts).bool(),
        )
    assert float(rows.without.nll) < 50
    assert float(rows.local_z.abs()) < 4
