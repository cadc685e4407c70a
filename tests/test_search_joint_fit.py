"""Background and signal fitted together. Oracles: scipy's and Minuit's minimum of the likelihood written in numpy."""

import numpy as np
import pytest
import scipy.optimize
import torch
from iminuit import Minuit
from numpy.testing import assert_allclose

from specfit.signal.joint_fit import fit_jointly

N_BINS = 24
CENTERS = (np.arange(N_BINS) + 0.5) / N_BINS


def peaks(*positions, width=0.05):
    shapes = np.exp(-0.5 * ((CENTERS - np.array(positions)[:, None]) / width) ** 2)
    return shapes / shapes.sum(1, keepdims=True)


class Problem:
    """The likelihood, its slope and curvature in (c, S), for one spectrum."""

    def __init__(self, *, events, n_basis, positions=(0.5,), yields=(0.0,), masked=(), fluctuate=True, seed=1):
        rng = np.random.default_rng(seed)
        self.log_mean = np.log(events) - 3 * CENTERS
        k = np.arange(n_basis)
        self.basis = 0.4 / (1 + k) * np.cos(np.pi * k * CENTERS[:, None])
        self.templates = peaks(*positions) if positions else np.zeros((0, N_BINS))
        self.weight = np.ones(N_BINS)
        self.weight[list(masked)] = 0.0
        truth = np.exp(self.log_mean + self.basis @ rng.standard_normal(n_basis) * 0.5)
        truth += np.array(yields)[: len(positions)] @ self.templates
        self.counts = rng.poisson(truth.clip(0)).astype(float) if fluctuate else truth
        self.n_basis, self.q = n_basis, len(self.templates)

    def rates(self, x):
        background = np.exp(self.log_mean + self.basis @ x[: self.n_basis])
        return background, background + x[self.n_basis :] @ self.templates

    def nll(self, x):
        _, rate = self.rates(x)
        if (rate[self.weight > 0] <= 0).any():
            return np.inf
        d = np.maximum(self.counts, 1e-300)
        terms = np.where(self.counts > 0, rate - d - d * np.log(np.maximum(rate, 1e-300) / d), rate)
        return (self.weight * terms).sum() + x[: self.n_basis] @ x[: self.n_basis] / 2

    def slope(self, x):
        background, rate = self.rates(x)
        rate = rate.clip(1e-9)  # proposals of scipy beyond the wall, which nll refuses
        jacobian = np.concatenate([background[:, None] * self.basis, self.templates.T], 1)
        prior = np.concatenate([x[: self.n_basis], np.zeros(self.q)])
        return jacobian.T @ (self.weight * (1 - self.counts / rate)) + prior

    def curvature(self, x, *, expected=False):
        """The second derivatives, or what they are on average over the data."""
        background, rate = self.rates(x)
        rate = rate.clip(1e-9)  # proposals of scipy beyond the wall, which nll refuses
        jacobian = np.concatenate([background[:, None] * self.basis, self.templates.T], 1)
        ratio = 1 / rate if expected else self.counts / rate**2
        matrix = jacobian.T @ (jacobian * (self.weight * ratio)[:, None])
        matrix += np.diag(np.concatenate([np.ones(self.n_basis), np.zeros(self.q)]))
        if not expected:
            of_c = self.basis.T @ (self.basis * (self.weight * background * (1 - self.counts / rate))[:, None])
            matrix[: self.n_basis, : self.n_basis] += of_c
        return matrix

    def minimum(self):
        """Newton with trust regions, by scipy; the yields in units of their errors."""
        start = np.zeros(self.n_basis + self.q)
        unit = np.sqrt(np.diag(np.linalg.inv(self.curvature(start, expected=True))))
        found = scipy.optimize.minimize(
            lambda y: self.nll(y * unit),
            start,
            jac=lambda y: self.slope(y * unit) * unit,
            hess=lambda y: self.curvature(y * unit) * np.outer(unit, unit),
            method="trust-exact",
            options={"gtol": 1e-7, "maxiter": 500},
        )
        return found.x * unit

    def fit(self, **changed):
        parts = {"counts": self.counts, "log_mean": self.log_mean, "basis": self.basis, "templates": self.templates}
        parts |= {"weight": self.weight} | changed
        tensors = {name: torch.as_tensor(value)[None] for name, value in parts.items()}
        counts, log_mean, basis, templates = (tensors.pop(n) for n in ("counts", "log_mean", "basis", "templates"))
        return fit_jointly(counts, log_mean, basis, templates, **tensors)


PROBLEMS = {
    "one signal": Problem(events=2e3, n_basis=6, yields=(150.0,)),
    "no basis": Problem(events=2e3, n_basis=0, yields=(150.0,)),
    "one direction": Problem(events=500, n_basis=1, yields=(30.0,)),
    "many directions": Problem(events=5e3, n_basis=14, yields=(300.0,), seed=3),
    "two signals": Problem(events=2e3, n_basis=6, positions=(0.35, 0.6), yields=(200.0, 90.0)),
    "two overlapping signals": Problem(events=2e3, n_basis=5, positions=(0.45, 0.55), yields=(200.0, 90.0)),
    "masked": Problem(events=2e3, n_basis=6, yields=(150.0,), masked=(0, 1, 11, 17)),
    "few events": Problem(events=3.0, n_basis=4, yields=(4.0,), seed=5),
    "very few events": Problem(events=1.5, n_basis=3, yields=(8.0,), seed=7),
    "1e8 events a bin": Problem(events=1e8, n_basis=8, yields=(1e5,)),
    "deficit": Problem(events=2e3, n_basis=6, yields=(-600.0,), seed=2),
    "large signal": Problem(events=100.0, n_basis=6, yields=(2e4,)),
}
named = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@named
def test_the_minimum_is_that_of_scipy(problem):
    x = problem.minimum()
    error = np.sqrt(np.diag(np.linalg.inv(problem.curvature(x, expected=True))))
    fit = problem.fit()
    ours = np.concatenate([fit.coefficients[0], fit.yields[0]])
    assert_allclose((ours - x) / error, 0, atol=2e-3)
    assert_allclose(fit.background[0], problem.rates(x)[0], rtol=1e-3)
    # Differences of the likelihood are what is used: against that of c = 0, S = 0.
    start = np.zeros_like(x)
    nothing = problem.fit(templates=problem.templates[:0], log_mean=problem.log_mean, basis=problem.basis * 0)
    assert float(nothing.nll - fit.nll) == pytest.approx(problem.nll(start) - problem.nll(x), abs=1e-5, rel=1e-8)


@named
def test_the_covariance_is_the_inverse_of_the_expected_information(problem):
    x = problem.minimum()
    x[problem.n_basis :] = x[problem.n_basis :].clip(0)
    inverse = np.linalg.inv(problem.curvature(x, expected=True))
    ours = problem.fit().covariance[0]
    assert_allclose(ours, inverse[problem.n_basis :, problem.n_basis :], rtol=5e-3)


@pytest.mark.parametrize("name", ["one signal", "two signals", "masked", "one direction"])
def test_minuit_agrees_on_yields_and_errors(name):
    problem = PROBLEMS[name]
    minuit = Minuit(problem.nll, np.zeros(problem.n_basis + problem.q), grad=problem.slope)
    minuit.errordef, minuit.strategy, minuit.tol = Minuit.LIKELIHOOD, 2, 1e-3
    minuit.migrad()
    minuit.hesse()
    assert minuit.valid
    k, fit = problem.n_basis, problem.fit()
    errors = np.array(minuit.errors)[k:]
    assert_allclose(fit.yields[0], np.array(minuit.values)[k:], atol=5e-3 * errors.min())
    # Minuit takes the observed information, which differs from the expected one by the fluctuations of the data.
    assert_allclose(fit.covariance[0].diagonal().sqrt(), errors, rtol=0.04)
    assert_allclose(fit.covariance[0], np.array(minuit.covariance)[k:, k:], rtol=0.1, atol=0.02 * errors.min() ** 2)


def test_with_the_expected_data_minuits_errors_are_ours():
    problem = Problem(events=2e3, n_basis=6, positions=(0.35, 0.6), yields=(200.0, 90.0), fluctuate=False)
    problem.log_mean = np.log(problem.counts - np.array([200.0, 90.0]) @ problem.templates)  # the mode is c = 0
    minuit = Minuit(problem.nll, np.concatenate([np.zeros(6), [180.0, 100.0]]), grad=problem.slope)
    minuit.errordef, minuit.strategy = Minuit.LIKELIHOOD, 2
    minuit.migrad()
    minuit.hesse()
    fit = problem.fit()
    assert_allclose(fit.yields[0], [200, 90], rtol=1e-6)
    assert_allclose(fit.covariance[0], np.array(minuit.covariance)[6:, 6:], rtol=2e-3)


@pytest.mark.parametrize("unit", [1e-3, 1e3, 1e6])
@pytest.mark.parametrize("name", ["one signal", "few events", "1e8 events a bin", "deficit"])
def test_the_unit_of_a_template_changes_nothing_but_the_yield(name, unit):
    problem = PROBLEMS[name]
    plain, scaled = problem.fit(), problem.fit(templates=problem.templates * unit)
    error = plain.covariance[0, 0, 0].sqrt()
    assert_allclose((scaled.yields * unit - plain.yields) / error, 0, atol=1e-4)
    assert_allclose(scaled.covariance * unit**2, plain.covariance, rtol=1e-4)
    assert_allclose(scaled.background, plain.background, rtol=1e-5)
    assert_allclose(scaled.nll, plain.nll, rtol=1e-12, atol=1e-6)


@pytest.mark.parametrize("masked", [(10, 11, 12), (0, 1, 2), range(9, 14)])
@pytest.mark.parametrize("yields", [0.0, 900.0, -900.0])
def test_masked_bins_weigh_exactly_nothing(masked, yields):
    """Whatever stands in a masked bin: data, mean, basis, template."""
    problem = Problem(events=2e3, n_basis=5, yields=(yields,), masked=masked, seed=4)
    plain, out = problem.fit(), list(masked)
    data, mean, basis, templates = (
        t.copy() for t in (problem.counts, problem.log_mean, problem.basis, problem.templates)
    )
    data[out] = 1e7
    assert_allclose(problem.fit(counts=data).yields, plain.yields, rtol=0, atol=0)
    # A mean far below the data, so that a deficit would take these bins below zero long before the others.
    mean[out], basis[out], templates[:, out] = -8.0, 3.0, 0.4
    other = problem.fit(counts=data, log_mean=mean, basis=basis, templates=templates)
    error = plain.covariance[0, 0, 0].sqrt()
    assert_allclose((other.yields - plain.yields) / error, 0, atol=1e-3)
    assert_allclose(other.covariance, plain.covariance, rtol=1e-3)
    assert_allclose(other.nll, plain.nll, rtol=1e-9, atol=1e-5)
    assert_allclose(plain.yields[0], problem.minimum()[5:], atol=2e-3 * float(error))


def test_a_deficit_ends_where_a_bin_would_expect_less_than_nothing():
    """The oracle: scipy's minimum with the wall as a bound on a one-parameter problem."""
    problem = Problem(events=50.0, n_basis=0, yields=(0.0,))
    problem.counts = np.exp(problem.log_mean).round()
    problem.counts[8:16] = 0.0
    wall = -(np.exp(problem.log_mean) / problem.templates[0]).min()
    found = scipy.optimize.minimize_scalar(
        lambda s: problem.nll(np.array([s])), bounds=(wall, 0.0), method="bounded", options={"xatol": 1e-9}
    )
    fit = problem.fit()
    assert float(fit.yields[0, 0]) >= wall
    assert float(fit.yields[0, 0]) == pytest.approx(found.x, abs=1e-2 * abs(wall))
    assert fit.covariance[0, 0, 0] > 0


def test_without_a_signal_it_is_the_posterior_mode_of_the_basis():
    problem = Problem(events=300.0, n_basis=6, positions=())
    x, fit = problem.minimum(), problem.fit()
    assert fit.yields.shape == (1, 0)
    assert fit.covariance.shape == (1, 0, 0)
    assert_allclose(fit.coefficients[0], x, atol=1e-3)
    assert_allclose(fit.background[0], problem.rates(x)[0], rtol=1e-3)


def test_a_fixed_signal_is_one_that_is_not_fitted():
    problem = PROBLEMS["one signal"]
    fit = problem.fit()
    held = problem.fit(templates=problem.templates[:0], fixed=fit.yields[0].numpy() @ problem.templates)
    assert_allclose(held.background, fit.background, rtol=1e-4)
    assert_allclose(held.nll, fit.nll, rtol=1e-9)


def test_a_start_changes_nothing_but_the_way():
    for problem in PROBLEMS.values():
        plain = problem.fit()
        tensors = [
            torch.as_tensor(t)[None] for t in (problem.counts, problem.log_mean, problem.basis, problem.templates)
        ]
        again = fit_jointly(*tensors, weight=torch.as_tensor(problem.weight)[None], start=plain)
        error = plain.covariance[0].diagonal().sqrt()
        assert_allclose((again.yields - plain.yields)[0] / error, 0, atol=2e-3)


def test_rows_of_a_batch_do_not_feel_each_other():
    chosen = [
        Problem(events=e, n_basis=5, yields=(y,), seed=s) for e, y, s in ((1e6, 3e3, 1), (2.0, 0.0, 2), (50, -60, 3))
    ]
    parts = [[torch.as_tensor(getattr(p, n)) for p in chosen] for n in ("counts", "log_mean", "basis", "templates")]
    together = fit_jointly(*(torch.stack(t) for t in parts))
    for i, problem in enumerate(chosen):
        alone = problem.fit()
        assert_allclose(together.yields[i], alone.yields[0], rtol=1e-9)
        assert_allclose(together.nll[i], alone.nll[0], rtol=1e-12)


@pytest.mark.parametrize("size", [0.01, 0.3, 5.0])
def test_a_likelihood_ratio_survives_very_many_events(size):
    """1e9 events a bin without fluctuation: the ratio is the square of the signal's size to one part in 1e4."""
    problem = Problem(events=1e9, n_basis=5, fluctuate=False)
    problem.log_mean = np.log(problem.counts)  # the mode is c = 0
    error = float(problem.fit().covariance[0, 0, 0].sqrt())
    problem.counts = problem.counts + size * error * problem.templates[0]
    ratio = problem.fit(templates=problem.templates[:0]).nll - problem.fit().nll
    assert float((2 * ratio).sqrt()) == pytest.approx(size, rel=1e-3)


def test_what_chance_makes_is_fitted_as_well():
    """Two hundred low spectra with signals of both signs: none may be left beside its minimum."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        events, size = 10 ** rng.uniform(0, 3), rng.uniform(-2, 6)
        problem = Problem(events=events, n_basis=4, yields=(size * np.sqrt(events),), seed=seed)
        x, fit = problem.minimum(), problem.fit()
        ours = np.concatenate([fit.coefficients[0], fit.yields[0]])
        assert problem.nll(ours) <= problem.nll(x) + 1e-3, (seed, problem.nll(ours) - problem.nll(x))


def test_last_directions_that_are_zero_change_nothing():
    """Of three spectra in a batch two have a narrower basis, one of them none at all; each is fitted as if alone."""
    chosen = [Problem(events=2e3, n_basis=n, yields=(150.0,), seed=n) for n in (6, 2, 0)]
    wide = [np.pad(p.basis, ((0, 0), (0, 6 - p.n_basis))) for p in chosen]
    parts = [np.stack([getattr(p, name) for p in chosen]) for name in ("counts", "log_mean", "templates")]
    counts, log_mean, templates = (torch.as_tensor(part) for part in parts)
    together = fit_jointly(counts, log_mean, torch.as_tensor(np.stack(wide)), templates)
    for i, problem in enumerate(chosen):
        alone = problem.fit()
        assert_allclose(together.coefficients[i, : problem.n_basis], alone.coefficients[0], rtol=1e-9)
        assert not together.coefficients[i, problem.n_basis :].any()
        for name in ("background", "yields", "covariance", "nll"):
            assert_allclose(getattr(together, name)[i], getattr(alone, name)[0], rtol=1e-9)


def test_bins_that_expect_nothing_do_not_hold_a_yield():
    """Far below a turn-on are e^-30 events and a millionth of a signal: neither a wall nor information."""
    x = torch.arange(30, dtype=torch.float64)
    log_mean = torch.where(x < 5, -30.0 + 2 * x, 7.0 - 0.02 * x)[None]
    basis = torch.stack([torch.ones(30).double(), (x - 15) / 15], -1)[None]
    template = torch.exp(-0.5 * ((x - 12) / 1.6) ** 2)[None, None]
    template = template / template.sum()
    background = log_mean.exp()
    for true_yield in (400.0, 0.0, -400.0):
        data = (background + true_yield * template[:, 0]).round().clamp(min=0.0)
        fit = fit_jointly(data, log_mean, basis, template)
        whole, seen = torch.ones_like(data), (x >= 5).double()[None]
        without_empty = fit_jointly(data, log_mean, basis, template, weight=whole * seen)
        assert float(fit.yields) == pytest.approx(true_yield, abs=5.0)
        assert float(fit.yields) == pytest.approx(float(without_empty.yields), abs=1.0)
        assert float(fit.covariance) == pytest.approx(float(without_empty.covariance), rel=0.01)
