"""Fits, profiles, tests of a signal, impacts and toys of any likelihood: against Minuit, closed forms and toys."""

import dataclasses
import json
import math

import iminuit
import numpy as np
import pytest
import scipy.stats
import torch
import workspaces
from numpy.testing import assert_allclose

from specfit.errors import InputError
from specfit.stats import (
    Blinded,
    Likelihood,
    StatisticalModel,
    asimov,
    cls,
    contour,
    discovery,
    fit,
    fit_many,
    goodness_of_fit,
    impacts,
    minos,
    pulls,
    scan,
    toys,
    upper_limit,
)


class Line(Likelihood):
    """A Gaussian measurement of a straight line, of which everything is known in closed form."""

    x = torch.linspace(0, 1, 12, dtype=torch.float64)

    def __init__(self, data, **options):
        super().__init__(["a", "b"], n_poi=1, initial_values=[0.0, 0.0], data=data, **options)

    def expected(self, values):
        return values[..., :1] + values[..., 1:] * self.x

    def nll(self, values):
        return ((self.expected(values) - self.data) ** 2).sum(-1) / 2

    def sample(self, values, *, rng):
        mean = self.expected(values)
        return mean + torch.randn(mean.shape, generator=rng, dtype=torch.float64)

    def with_data(self, data):
        return Line(data)


class Many(Likelihood):
    """Poisson counts of many cells with a norm each and one common factor: a Hessian of arrow form."""

    def __init__(self, counts):
        self.n = counts.shape[-1]
        names = ["mu", *(f"norm_{i}" for i in range(self.n))]
        start = [0.5, *([1.0] * self.n)]
        bounds = [[-1.0, 5.0], *([[0.01, 50.0]] * self.n)]
        super().__init__(names, n_poi=1, initial_values=start, data=counts, bounds=bounds)

    def expected(self, values):
        return torch.cat([10 * values[..., 1:] + values[..., :1] * torch.arange(1, self.n + 1).double().sqrt()], -1)

    def nll(self, values):
        mean = self.expected(values)
        prior = (values[..., 1:] - 1).square().sum(-1) / (2 * 0.1**2)
        return (mean - self.data * mean.log()).sum(-1) + prior

    def sample(self, values, *, rng):
        return torch.poisson(self.expected(values), generator=rng)

    def with_data(self, data):
        return Many(data)


@pytest.fixture
def model():
    return StatisticalModel(workspaces.control_regions())


@pytest.fixture
def seed():
    return torch.Generator().manual_seed(11)


def minuit(model):
    """Minuit on the same function, without our gradient."""
    m = iminuit.Minuit(
        lambda x: float(model.nll(torch.from_numpy(np.array(x)))),
        model.initial_values.numpy(),
        name=model.parameter_names,
    )
    m.errordef, m.strategy, m.tol = 0.5, 2, 1e-4
    for name, (low, high) in zip(model.parameter_names, model.bounds.tolist(), strict=True):
        m.limits[name] = (low, high)
    return m.migrad()


def test_a_line_is_fitted_as_its_normal_equations_say(seed):
    truth = torch.tensor([1.0, -2.0], dtype=torch.float64)
    line = Line(Line(torch.zeros(12)).sample(truth, rng=seed))
    design = torch.stack([torch.ones(12).double(), Line.x], -1)
    covariance = torch.linalg.inv(design.T @ design)
    for method in ("newton", "newton-cg", "minuit", "auto"):
        found = fit(line, method=method)
        assert found.converged
        assert_allclose(found.values, covariance @ design.T @ line.data, rtol=1e-8)
        assert_allclose(found.covariance, covariance, rtol=1e-10)
    assert found.correlation[0, 1].item() == pytest.approx(
        (covariance[0, 1] / covariance.diagonal().prod().sqrt()).item()
    )


@pytest.mark.parametrize("method", ["newton", "newton-cg", "minuit"])
def test_every_method_ends_where_minuit_does(model, method):
    found, theirs = fit(model, method=method), minuit(model)
    assert found.converged
    assert found.edm < 1e-10
    assert found.nll <= theirs.fval + 1e-9
    assert_allclose(found.values, list(theirs.values), atol=3e-4)
    assert_allclose(found.uncertainties, list(theirs.errors), rtol=2e-2)  # theirs are curved by the limits


def test_fixed_parameters_stay_and_count_for_nothing(model):
    found = fit(model, fixed={"jes": 0.5, "mu": 30.0})
    assert (found.value("jes"), found.value("mu")) == (0.5, 30.0)
    assert found.uncertainty("jes") == 0
    assert found.fixed.tolist()[:5] == [True, False, False, False, True]
    assert fit(model, fixed={"jes": found.value("jes")}).nll >= fit(model).nll


def test_thousands_of_parameters_by_hessian_vector_products(seed):
    size = 600
    empty = Many(torch.zeros(size, dtype=torch.float64))
    truth = torch.cat([torch.tensor([0.7]), torch.ones(size)]).double()
    found = fit(Many(empty.sample(truth, rng=seed)))
    assert found.method == "newton-cg"
    assert found.converged
    assert abs(found.value("mu") - 0.7) < 4 * found.uncertainty("mu")
    slope = found.values.new_tensor(np.sqrt(np.arange(1, size + 1)))
    # The norms can be eliminated one by one: the information on mu is that of an arrow matrix.
    mean = 10 * found.values[1:] + found.value("mu") * slope
    counts = Many(empty.sample(truth, rng=torch.Generator().manual_seed(11))).data
    weight = counts / mean**2
    information = (weight * slope**2).sum() - ((weight * 10 * slope) ** 2 / (weight * 100 + 100)).sum()
    assert_allclose(found.uncertainty("mu"), information**-0.5, rtol=1e-8)


def test_an_open_direction_is_named():
    document = workspaces.hepdata_like()
    document["channels"][0]["samples"][0]["modifiers"].append(workspaces.normfactor("efficiency"))
    document["observations"][0]["data"] = [62.0, 66.0]
    found = fit(StatisticalModel(document))
    assert "open: " in found.message
    assert "mu" in found.message
    assert "efficiency" in found.message
    assert math.isinf(found.uncertainty("efficiency"))
    assert math.isfinite(found.uncertainty("uncorr_bkguncrt[0]"))


def test_a_parameter_that_does_nothing_is_named():
    document = workspaces.hepdata_like()
    idle = workspaces.sample("nothing", [0.0, 0.0], workspaces.normfactor("idle"))
    document["channels"][0]["samples"].append(idle)
    found = fit(StatisticalModel(document))
    assert found.converged
    assert "a direction open: idle" in found.message


def test_limits_are_obeyed_and_said():
    found = fit(StatisticalModel(workspaces.hepdata_like()))
    assert found.value("mu") == 0
    assert "at a limit: mu" in found.message


def test_the_result_is_frozen_and_goes_to_text_and_json(model, tmp_path):
    found = fit(model)
    assert "mu_top" in str(found)
    stored = json.loads(found.save(tmp_path / "fit.json").read_text())
    assert stored["parameters"]["mu"]["value"] == found.value("mu")
    assert_allclose(stored["covariance"], found.covariance)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.nll = 0
    with pytest.raises(InputError, match="parameter 'nu' does not exist"):
        found.value("nu")


def test_many_fits_are_the_single_ones(model, seed):
    many = toys(model, 12, rng=seed)
    found = fit_many(many, start=model.initial_values)
    assert found.converged.all()
    for i in (0, 5, 11):
        alone = fit(model.with_data(many.data[i]))
        assert_allclose(found.values[i], alone.values, atol=2e-5)
        assert_allclose(found.nll[i], alone.nll, atol=1e-9)


def test_toys_scatter_as_the_covariance_says(model, seed):
    truth = model.initial_values
    found = fit_many(toys(model, 1000, values=truth, rng=seed), start=truth)
    width = fit(asimov(model)).uncertainties
    pull = (found.values - truth) / width
    unconstrained = pull[:, :3]
    assert_allclose(unconstrained.mean(0), 0.0, atol=0.12)
    assert_allclose(unconstrained.std(0), 1.0, atol=0.08)


def test_a_scan_is_the_parabola_of_a_line_and_the_profile_of_minuit(model, seed):
    line = Line(torch.linspace(0, 2, 12, dtype=torch.float64))
    found, curve = fit(line), scan(line, "b", size=9)
    assert_allclose(
        curve.curve, ((curve.points - found.value("b")) / found.uncertainty("b")) ** 2, rtol=1e-8, atol=1e-9
    )
    assert curve.statistical is None
    theirs, ours = minuit(model), scan(model, "mu", points=[0.5, 1.0, 2.0])
    for x, y in zip(ours.points.tolist(), ours.curve.tolist(), strict=True):
        theirs.fixed["mu"], theirs.values["mu"] = True, x
        assert_allclose(y, 2 * (theirs.migrad().fval - fit(model).nll), atol=1e-5)
    assert (ours.statistical >= ours.curve - 1e-9).all()
    assert "mu" in str(ours)


def test_minos_is_that_of_minuit(model):
    theirs = minuit(model)
    theirs.minos("mu", "jes")
    for interval in minos(model, ["mu", "jes"]):
        reference = theirs.merrors[interval.parameter]
        assert interval.converged
        assert_allclose([interval.lower, interval.upper], [reference.lower, reference.upper], rtol=2e-3)


def test_minos_stops_at_limits():
    interval = minos(StatisticalModel(workspaces.hepdata_like()))[0]
    assert interval.lower == -math.inf
    assert 0 < interval.upper < 2


def test_a_contour_of_a_line_is_its_ellipse():
    line = Line(torch.linspace(0, 2, 12, dtype=torch.float64))
    found, surface = fit(line), contour(line, ["a", "b"], size=7)
    away = torch.cartesian_prod(surface.first, surface.second) - found.values
    exact = (away @ torch.linalg.inv(found.covariance) * away).sum(-1).reshape(7, 7)
    assert_allclose(surface.surface, exact, rtol=1e-9, atol=1e-9)
    assert surface.height(0.683) == pytest.approx(2.298, abs=0.001)


def test_toys_agree_with_asymptotics_where_events_are_many(seed):
    model = StatisticalModel(workspaces.correlated_shape())
    by_formula, by_toys = cls(model, 1.0), cls(model, 1.0, n_toys=1000, rng=seed)
    assert_allclose(by_toys.cls, by_formula.cls, atol=0.04)
    assert_allclose(by_toys.expected[2], by_formula.expected[2], atol=0.04)
    limit = upper_limit(model, n_toys=150, rng=seed)
    assert_allclose(limit.observed, upper_limit(model).observed, rtol=0.2)
    assert limit.method == "toys"


def test_discovery_by_toys_agrees_with_the_formula(seed):
    model = StatisticalModel(workspaces.correlated_shape())
    by_toys = discovery(model, n_toys=3000, rng=seed)
    assert_allclose(by_toys.p_value, discovery(model).p_value, atol=0.03)


def test_impacts_are_those_of_refits_and_of_the_covariance(model):
    best = fit(model)
    found = impacts(model, best=best)
    assert found.converged
    one = next(i for i in found.impacts if i.parameter == "jes")
    refit = fit(model, fixed={"jes": best.value("jes") + best.uncertainty("jes")})
    assert_allclose(one.up, refit.value("mu") - best.value("mu"), rtol=1e-5)
    before = fit(model, fixed={"jes": best.value("jes") - 1})
    assert_allclose(one.down_before, before.value("mu") - best.value("mu"), rtol=1e-5)
    linear = next(i for i in impacts(model, best=best, refit=False).impacts if i.parameter == "jes")
    assert_allclose(linear.up, best.covariance[0, 4] / best.uncertainties[4], rtol=1e-12)
    assert_allclose(linear.up, (one.up - one.down) / 2, rtol=0.1)
    assert [i.size for i in found.impacts] == sorted((i.size for i in found.impacts), reverse=True)
    assert "jes" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_pulls_count_from_the_centre_of_the_constraint(model):
    best = fit(model)
    by_name = {pull.parameter: pull for pull in pulls(model, best)}
    assert_allclose(by_name["lumi"].pull, (best.value("lumi") - 1) / 0.017, rtol=1e-9)
    assert_allclose(by_name["jes"].width, best.uncertainty("jes"), rtol=1e-12)
    assert "mu_top" not in by_name


def test_goodness_of_fit_is_chi_square_and_that_of_its_toys(model, seed):
    by_formula = goodness_of_fit(model)
    assert by_formula.ndf == 6 - 3
    assert_allclose(by_formula.p_value, scipy.stats.chi2.sf(2 * fit(model).nll, 3), rtol=1e-9)
    by_toys = goodness_of_fit(model, n_toys=1000, rng=seed)
    assert abs(by_toys.p_value - by_formula.p_value) < 0.06


def test_blinding_hides_the_value_and_nothing_else(model):
    blind = Blinded(model, {"mu": 3.0}, phrase="search of 2031")
    hidden, seen = fit(blind), fit(model)
    again = fit(Blinded(model, {"mu": 3.0}, phrase="search of 2031"))
    assert abs(hidden.value("mu") - seen.value("mu")) > 1e-3
    assert_allclose(again.values, hidden.values, rtol=1e-12)
    assert_allclose(hidden.values[1:], seen.values[1:], atol=1e-6)
    assert_allclose(hidden.covariance, seen.covariance, rtol=1e-6, atol=1e-12)
    assert_allclose(hidden.nll, seen.nll, atol=1e-9)
    assert fit(Blinded(model, {"mu": 3.0}, phrase="another")).value("mu") != hidden.value("mu")


def test_asimov_data_have_no_deviance(model):
    at = torch.tensor([2.0, 0.9, 1.1, 1.01, 0.5, 1.02, 0.97, 1.01], dtype=torch.float64)
    data = asimov(model, at)
    assert data.nll(at).item() == pytest.approx(0, abs=1e-12)
    assert_allclose(fit(data).values, at, atol=1e-6)


MISTAKES = {
    "method": (lambda m: fit(m, method="simplex"), "method: one of auto, newton"),
    "name": (lambda m: fit(m, fixed={"mu_to": 1.0}), "'mu_to' does not exist; did you mean mu_top"),
    "batch": (lambda m: fit(toys(m, 3, rng=torch.Generator())), "it holds 3 toys"),
    "rng": (lambda m: toys(m, 3), "rng: toys need a source of randomness"),
    "size": (lambda m: toys(m, 0, rng=torch.Generator()), "size: a number from 1 upwards"),
    "level": (lambda m: upper_limit(m, level=95), "level: a number between 0 and 1"),
    "numbers": (lambda m: fit_many(m, fixed={"mu": torch.ones(2), "jes": torch.ones(3)}), "they mean 2, 3 fits"),
    "pair": (lambda m: contour(m, ["mu", "mu"]), "two different names are expected"),
    "phrase": (lambda m: Blinded(m, {"mu": 1.0}, phrase=""), "phrase: give a phrase"),
    "scale": (lambda m: Blinded(m, {"mu": 0.0}, phrase="x"), "scales: mu needs a number above 0"),
    "data": (lambda m: m.with_data(torch.ones(3)), r"data: shape \(11,\) or \(m, 11\) is expected"),
    "channel": (lambda m: m.expected_in("VR", m.initial_values), "channel 'VR' is not one of SR"),
    "start": (lambda m: fit(m, start=torch.ones(2)), r"start: shape \(8,\) is expected"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_mistakes_are_said(model, mistake):
    call, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message):
        call(model)
