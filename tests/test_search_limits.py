"""Intervals and upper limits of a search. Oracles: Minuit's MINOS, pyhf's asymptotic CLs, closed Gaussian formulas."""

import functools
import logging
from types import SimpleNamespace

import numpy as np
import pyhf
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from iminuit import Minuit
from numpy.testing import assert_allclose
from workspaces import document, normfactor, normsys, sample

from specfit.net import LocalModel
from specfit.search.limits import _root, interval, upper_limits
from specfit.signal.joint_fit import fit_jointly
from specfit.signal.rows import Rows

CENTERS = (np.arange(20) + 0.5) / 20
PEAK = np.diff(scipy.stats.norm.cdf(np.arange(21) / 20, 0.5, 0.06))
OTHER = np.diff(scipy.stats.norm.cdf(np.arange(21) / 20, 0.8, 0.04))
COSINES = 0.3 / (1 + np.arange(4)) * np.cos(np.pi * np.arange(4) * CENTERS[:, None])


def rows_of(counts, background, templates, *, basis=None, masked=(), widening=1.0):
    """What the chain would know of one hypothesis, the local model being exactly this."""
    counts, background = np.atleast_1d(counts).astype(float), np.atleast_1d(background).astype(float)
    basis = np.zeros((len(counts), 1)) if basis is None else basis
    data, mean, basis, columns = (
        torch.as_tensor(t)[None] for t in (counts, np.log(background), basis, np.atleast_2d(templates))
    )
    weight = torch.ones_like(data)
    weight[:, list(masked)] = 0.0
    without = fit_jointly(data, mean, basis, columns[:, 1:], weight=weight)
    fit = fit_jointly(data, mean, basis, columns, weight=weight)
    model = LocalModel(mean, basis, weight, torch.zeros(1, 1), torch.ones(1))
    widening, imitation, misfit = torch.full((3, 1), widening, dtype=torch.float64)
    return Rows(
        data, columns, None, model, fit, without, widening, widening, imitation / widening, misfit, data[:, :0]
    ), weight


def minos_of(counts, background, templates, basis, masked=()):
    used = np.ones(len(counts), dtype=bool)
    used[list(masked)] = False
    k = basis.shape[1]

    def nll(x):
        rate = (background * np.exp(basis @ x[:k]) + x[k:] @ templates)[used]
        d = counts[used]
        if (rate <= 0).any():
            return 1e10
        return (rate - d - scipy.special.xlogy(d, rate / np.maximum(d, 1e-300))).sum() + x[:k] @ x[:k] / 2

    minuit = Minuit(nll, np.zeros(k + len(templates)))
    minuit.errordef, minuit.strategy, minuit.tol = Minuit.LIKELIHOOD, 2, 1e-3
    minuit.errors = np.concatenate([np.full(k, 0.1), np.full(len(templates), 0.3 * np.sqrt(counts.sum()))])
    minuit.migrad()
    minuit.minos(f"x{k}")
    return minuit.values[k], -minuit.merrors[f"x{k}"].lower, minuit.merrors[f"x{k}"].upper


CASES = {
    "many events": {"events": 3e3, "signal": 200.0},
    "some events": {"events": 40.0, "signal": 15.0},
    "few events": {"events": 4.0, "signal": 5.0, "seed": 3},
    "no signal": {"events": 100.0, "signal": 0.0},
    "deficit": {"events": 400.0, "signal": -200.0},
    "two peaks": {"events": 400.0, "signal": 100.0, "other": 150.0},
    "masked": {"events": 400.0, "signal": 100.0, "masked": (0, 8, 14)},
}


def make(*, events, signal, other=None, masked=(), seed=1):
    background = events * np.exp(-2 * CENTERS)
    rng = np.random.default_rng(seed)
    mean = background * np.exp(COSINES @ rng.standard_normal(4)) + signal * PEAK + (other or 0.0) * OTHER
    templates = np.stack([PEAK] if other is None else [PEAK, OTHER])
    return SimpleNamespace(
        counts=rng.poisson(mean).astype(float), background=background, templates=templates, masked=masked
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_interval_is_that_of_minos(case):
    p = make(**case)
    rows, weight = rows_of(p.counts, p.background, p.templates, basis=COSINES, masked=p.masked)
    low, high = interval(rows, weight)
    value, down, up = minos_of(p.counts, p.background, p.templates, COSINES, p.masked)
    assert float(rows.fit.yields[0, 0]) == pytest.approx(value, abs=0.01 * up)
    assert float(high) == pytest.approx(up, rel=0.01)
    assert float(low) == pytest.approx(down, rel=0.01)


@pytest.mark.parametrize(("expected", "share"), [(1e-6, 1.0), (0.02, 1.0), (0.02, 0.5)])
def test_without_events_no_limit_excludes_more_than_the_exact_one(expected, share):
    """By pseudo-experiments: a signal at the limit leaves no event in 5 % of them, whatever the background."""
    rows, weight = rows_of([0.0, 0.0], [expected, expected], [share, 0.0], masked=())
    limits = upper_limits(rows, weight, level=0.95)
    n_signal = np.random.default_rng(1).poisson(float(limits.observed[0]) * share, 200_000)
    assert (n_signal == 0).mean() < 0.0515  # as many as look like no signal at all
    assert float(limits.observed[0]) == pytest.approx(-np.log(0.05) / share, rel=0.05)
    assert (limits.expected >= -np.log(0.05) / share - 1e-9).all()


def test_the_interval_widens_with_the_error():
    p = make(events=1e5, signal=900.0)
    plain, wide = (
        interval(*rows_of(p.counts, p.background, p.templates, basis=COSINES, widening=w)) for w in (1.0, 1.3)
    )
    for one, other in zip(plain, wide, strict=True):
        assert float(other / one) == pytest.approx(1.3, rel=0.01)


def test_an_interval_does_not_pass_the_wall_of_an_empty_bin():
    """One bin, nothing seen: the yield cannot be less than minus the background; above, ln L falls by 1/2 at +1/2."""
    rows, weight = rows_of([0.0], [3.0], [1.0])
    low, high = interval(rows, weight)
    assert float(rows.fit.yields[0, 0]) == pytest.approx(-3, abs=0.01)
    assert float(low) == pytest.approx(0, abs=0.01)
    assert float(high) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("pull", [-1.5, 0.0, 0.8, 3.0])
def test_with_many_events_the_limits_are_those_of_a_normal_measurement(level, pull):
    """CCGV eq. 60-65 with CLs: mu_up = mu + sigma Phi^-1(1 - alpha Phi(mu / sigma))."""
    background, alpha = 1e8, 1 - level
    sigma = background**0.5
    rows, weight = rows_of([background + pull * sigma], [background], [1.0])
    limits = upper_limits(rows, weight, level=level)
    norm = scipy.stats.norm
    # For a deficit q-tilde is (mu^2 - 2 mu mu-hat) / sigma^2; in terms of sqrt(q) the rule is the same function.
    if pull >= 0:
        expected = pull + norm.isf(alpha * norm.cdf(pull))
        assert float(limits.observed) / sigma == pytest.approx(expected, rel=2e-3)
    bands = [b + norm.isf(alpha * norm.cdf(b)) for b in (-2, -1, 0, 1, 2)]
    assert_allclose(limits.expected[0] / sigma, bands, rtol=2e-3)


@pytest.fixture
def peer():
    """Pyhf on numpy; for its minimiser see below."""
    logging.getLogger("pyhf").setLevel(logging.ERROR)
    yield pyhf
    pyhf.set_backend("numpy")


def limits_of_pyhf(peer, counts, background, signal, basis, *, level):
    """Every bin a channel, every direction a normsys whose interpolation is exactly exponential (code 1)."""
    channels = []
    for i in range(len(counts)):
        systematics = [normsys(f"c{j}", float(np.exp(b)), float(np.exp(-b))) for j, b in enumerate(basis[i]) if b]
        samples = [sample("signal", [signal[i]], normfactor()), sample("background", [background[i]], *systematics)]
        channels.append({"name": f"bin{i}", "samples": samples})
    # Minuit, slow and exact, where there is more than the yield: scipy's SLSQP stops early beside a steep prior.
    minuit, scipys = pyhf.optimize.minuit_optimizer(tolerance=0.01, strategy=0), pyhf.optimize.scipy_optimizer()
    peer.set_backend("numpy", minuit if basis.any() else scipys)
    bounds = {"name": "mu", "bounds": [[0.0, 100.0]], "inits": [1.0]}
    workspace = peer.Workspace(document(channels, [[n] for n in counts], parameters=[bounds]))
    model = workspace.model(modifier_settings={"normsys": {"interpcode": "code1"}})
    data = workspace.data(model)

    @functools.cache
    def cls(value):
        observed, expected = peer.infer.hypotest(value, data, model, test_stat="qtilde", return_expected_set=True)
        return [float(observed), *(float(e) for e in expected)]

    roots = [scipy.optimize.brentq(lambda v, i=i: cls(v)[i] - (1 - level), 0.1, 8.0, rtol=1e-3) for i in range(6)]
    return roots[0], roots[1:]


NONE = np.zeros((3, 1))
MODELS = {
    "one bin": ([14.0], [9.5], [6.0], NONE[:1]),
    "one bin, deficit": ([5.0], [9.5], [4.0], NONE[:1]),
    "one bin, few events": ([1.0], [1.7], [2.0], NONE[:1]),
    "three bins": ([30.0, 31.0, 12.0], [28.0, 20.0, 14.0], [2.0, 7.0, 2.5], NONE),
    "three bins, deficit": ([30.0, 12.0, 12.0], [28.0, 20.0, 14.0], [2.0, 6.0, 2.5], NONE),
    "one direction": ([30.0, 31.0, 12.0], [28.0, 20.0, 14.0], [2.0, 9.0, 2.5], np.array([[0.1], [0.15], [0.3]])),
    "far from the mean": ([80.0, 75.0, 60.0], [58.0, 40.0, 34.0], [4.0, 18.0, 5.5], np.array([[0.2], [0.3], [0.35]])),
    "deficit on a direction": (
        [30.0, 14.0, 15.0],
        [28.0, 20.0, 14.0],
        [2.0, 9.0, 2.5],
        np.array([[0.1], [0.15], [0.3]]),
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning:pyhf", "ignore::DeprecationWarning:pyhf")
@pytest.mark.filterwarnings("ignore:Hesse called with all parameters fixed")
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            model, id=name, marks=[pytest.mark.slow] if "a direction" in name or name == "one direction" else []
        )
        for name, model in MODELS.items()
    ],
)
def test_limits_are_those_of_pyhf(model, peer):
    counts, background, signal, basis = model
    observed, expected = limits_of_pyhf(peer, counts, background, signal, basis, level=0.95)
    ours = upper_limits(*rows_of(counts, background, signal, basis=basis), level=0.95)
    # Of few events the asymptotic formula excludes what leaves no event more often than that.
    possible = -np.log(0.05) / np.atleast_2d(signal)[0].sum()
    assert float(ours.observed) == pytest.approx(max(observed, possible), rel=5e-3)
    assert_allclose(ours.expected[0], np.maximum(expected, possible), rtol=5e-3)


@pytest.mark.parametrize("side", [-1, 1])
def test_an_end_is_found_however_far_it_is(side):
    distance = torch.tensor([1e-3, 0.3, 1.0, 7.0, 4e3, 1e5, 3e11], dtype=torch.float64)
    begin = torch.arange(7).double()
    found = _root(lambda value: side * (value - begin) - distance, begin, side * torch.ones_like(begin))
    assert_allclose(side * (found - begin), distance, rtol=1e-4, atol=1e-4)
    nowhere = _root(lambda value: -torch.ones_like(value), begin, side * torch.ones_like(begin))
    assert (nowhere == side * torch.inf).all()
