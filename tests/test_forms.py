"""Functions of few parameters beside the any-binning net."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

from specfit.functional import ErfExpRanges, ErfExpSum, ExpPolynomial, functional_fit_many
from specfit.generator import SpectrumGenerator, WideGenerator
from specfit.inference import SpectrumFitter
from specfit.net.forms import falls, turn_on
from specfit.net.forms.choice import LEAST_SHARE_OF_ERROR, with_functional_form
from specfit.net.forms.plan import plan_of
from specfit.significance import poisson_deviance

EDGES = torch.logspace(np.log10(250), np.log10(3000), 51, dtype=torch.float64)


@pytest.fixture(scope="module")
def net():
    return SpectrumFitter.from_checkpoint("any_binning").net


def wide_backgrounds(family, size, *, total, turn_on=0.0, n_bins=40):
    """Backgrounds of one family on one geometric binning, with their expectation."""
    edges = torch.logspace(0, np.log10(6), n_bins + 1, dtype=torch.float64)
    edges[0] = 1.0
    ratio = (6.0, 6.001)
    generator = WideGenerator(
        n_bins=(n_bins, n_bins + 1), ratio=ratio, total=total, families={family: 1.0}, turn_on=turn_on
    )
    rng = torch.Generator().manual_seed(3)
    truth = generator.sample_background(edges.expand(size, -1), rng=rng)
    return edges, truth, torch.poisson(truth, generator=rng)


def fitted(net, counts, edges):
    with torch.inference_mode():
        described = net.described(counts, edges=edges)
        each = edges.expand(len(counts), -1)
        answer = with_functional_form(described, net.n_basis, counts, each, mask=torch.zeros_like(counts).bool())
    return described, *answer


def rms(log_rate, truth):
    used = truth > 0.5
    return float((((log_rate.exp() - truth).square() / truth)[used]).mean().sqrt())


def deviance_of(counts, log_rate):
    return poisson_deviance(counts, log_rate.exp()).sum(-1)


def test_a_turn_on_is_fitted_as_well_as_by_many_starts(net):
    """Against `functional_fit_many`, which iminuit checks, with wide limits."""
    batch = SpectrumGenerator(EDGES, n_backgrounds=1).sample(96, rng=torch.Generator().manual_seed(5))
    counts, seen = batch.counts.double(), torch.ones_like(batch.counts.double())
    with torch.inference_mode():
        log_rate = net.described(counts, edges=EDGES).log_rate
        plan = plan_of(EDGES.expand(len(counts), -1))
        fit = turn_on.fit_turn_on(plan, log_rate, counts, seen, allowed=torch.full_like(counts[:, 0], 60.0))
    ranges = ErfExpRanges(rho=(0.2, 2.5), alpha=(2.0, 2000.0), mu=(150.0, 450.0), sigma=(3.0, 90.0))
    best = functional_fit_many(counts, EDGES, function=ErfExpSum(1, ranges)).fit
    excess = fit.deviance - poisson_deviance(counts, best.background).sum(-1)
    assert fit.deviance.isfinite().all()
    assert excess.median() < 0.1
    assert excess.quantile(0.9) < 1.0


def test_the_derivatives_of_a_turn_on_are_those_of_its_rate(net):
    """By moving the data of a noiseless spectrum from one truth to a near one."""
    batch = SpectrumGenerator(EDGES, n_backgrounds=1).sample(8, rng=torch.Generator().manual_seed(6))
    truth = (100 * batch.background.double()).clamp(min=1e-9)
    plan, seen, allowed = plan_of(EDGES[None]), torch.ones_like(truth), torch.full_like(truth[:, 0], 60.0)
    fit = turn_on.fit_turn_on(plan, truth.log(), truth, seen, allowed=allowed)
    other = truth * (EDGES[1:] / EDGES[0]).pow(-0.01)  # a slightly steeper fall
    moved = turn_on.fit_turn_on(plan, other.log(), other, seen, allowed=allowed)
    used = truth > 10
    change = torch.where(used, moved.log_rate - fit.log_rate, 0.0)
    left = change - along_basis(fit.basis, change, truth * used)
    near = fit.deviance < 1.0
    assert near.sum() >= 6
    weight = truth * used
    assert ((weight * left.square()).sum(1) < 0.02 * (weight * change.square()).sum(1))[near].all()


def along_basis(basis, change, weight):
    """The part of a change that derivatives explain, by least squares."""
    root = weight.sqrt()[..., None]
    answer = torch.linalg.lstsq(root * basis, root * change[..., None], driver="gelsd").solution
    return (basis @ answer)[..., 0]


def test_falls_are_at_the_minimum_of_their_likelihood(net):
    """The cubic in x against `functional_fit_many`, UA2's function against SciPy."""
    edges, _, counts = wide_backgrounds("power_times_exponential", 24, total=(2e4, 2e5))
    with torch.inference_mode():
        log_rate = net.described(counts, edges=edges).log_rate
        plan = plan_of(edges.expand(len(counts), -1))
        cubic, _, ua2, _ = falls.fit_falls(
            plan, log_rate, counts, torch.ones_like(counts), allowed=torch.full_like(counts[:, 0], 60.0)
        )
    best = functional_fit_many(counts, edges, function=ExpPolynomial(3)).fit
    excess = cubic.deviance - poisson_deviance(counts, best.background).sum(-1)
    assert (excess.abs() < 0.05 + 0.01 * cubic.deviance)[cubic.deviance < 100].all()

    fine = torch.stack([edges[:-1] + edges.diff() * (i + 0.5) / 20 for i in range(20)])  # (20, n_bins)
    u, n = (fine / edges[-1]).numpy(), counts[0].numpy()
    terms = np.stack([np.ones_like(u), np.log(u), u, u**2])

    def deviance(p):
        density = np.exp(np.clip(np.tensordot(p, terms, 1), -50, 50)).mean(0) * edges.diff().numpy()
        return 2 * (density - n + np.where(n > 0, n * np.log(np.clip(n, 1, None) / density), 0.0)).sum()

    middle = terms.mean(1).T
    start = np.linalg.lstsq(middle, np.log((n + 0.5) / edges.diff().numpy()), rcond=None)[0]
    lowest = min(
        optimize.minimize(deviance, start, method=m, options={"maxiter": 20_000}).fun for m in ("BFGS", "Nelder-Mead")
    )
    assert float(ua2.deviance[0]) == pytest.approx(lowest, abs=0.1)


def test_spectra_of_one_component_come_nearer_to_the_truth(net):
    batch = SpectrumGenerator(EDGES, n_backgrounds=1).sample(300, rng=torch.Generator().manual_seed(7))
    described, model, log_rate = fitted(net, batch.counts.double(), EDGES)
    truth = batch.background.double()
    assert rms(log_rate, truth) < 0.9 * rms(described.log_rate, truth)
    assert (log_rate != described.log_rate).any(1).double().mean() > 0.8
    assert torch.equal(model.weight, described.model.weight)


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


def test_an_answer_does_not_depend_on_others_nor_on_the_unit(net):
    edges, _, counts = wide_backgrounds("dijet", 12, total=(1e5, 1e6), turn_on=0.5)
    with torch.inference_mode():
        together = net.predict(counts, edges=edges)
        alone = torch.cat([net.predict(one[None], edges=edges).background for one in counts])
        each = net.predict(counts, edges=edges.repeat(len(counts), 1))
        in_mev = net.predict(counts, edges=1000 * edges)
    for other in (alone, each.background, in_mev.background):
        torch.testing.assert_close(other, together.background, rtol=1e-3, atol=1e-6)


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
