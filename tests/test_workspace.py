"""Workspaces against pyhf 0.7.6: likelihood, yields, best fit, uncertainties, p-values and limits."""

import copy
import json
import logging

import numpy as np
import pyhf
import pytest
import scipy.stats
import torch
import workspaces
from numpy.testing import assert_allclose
from scipy.optimize import brentq
from torch.autograd import gradcheck, gradgradcheck

from specfit.errors import InputError
from specfit.significance import poisson_deviance
from specfit.stats import StatisticalModel, Workspace, cls, discovery, fit, upper_limit
from specfit.stats.interpolation import code0, code1, code4, code4_slopes, code4_weights, code4p
from specfit.stats.poisson import poisson_nll, poisson_normalisation

# What pyhf and its validator warn of is theirs.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*RefResolver:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:pyhf"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pyhf"),
]
AS_COMMAND_LINE = {"normsys": {"interpcode": "code4"}, "histosys": {"interpcode": "code4p"}}
AS_LIBRARY = {"normsys": {"interpcode": "code1"}, "histosys": {"interpcode": "code0"}}
AGREES = {"rtol": 1e-7, "atol": 0.0}
NAMES = sorted(workspaces.ALL)
# A limit of more than a few parameters takes pyhf half a minute.
SLOW = ("control regions", "data driven", "twenty channels", "two channels")
SMALL = [name for name in NAMES if name not in SLOW] + [
    pytest.param(name, marks=pytest.mark.slow) for name in ("control regions", "data driven")
]
LARGE = ["two channels", pytest.param("twenty channels", marks=pytest.mark.slow)]


@pytest.fixture
def peer():
    """pyhf with exact gradients and the tightest tolerance that its minimiser takes."""
    logging.getLogger("pyhf").setLevel(logging.ERROR)
    before = torch.get_default_dtype()
    pyhf.set_backend("pytorch", pyhf.optimize.scipy_optimizer(tolerance=1e-15, maxiter=100_000), precision="64b")
    yield pyhf
    pyhf.set_backend("numpy")
    torch.set_default_dtype(before)  # pyhf makes float64 the default of torch and leaves it so


def both(name, settings=AS_COMMAND_LINE, **options):
    document = workspaces.ALL[name]()
    theirs = pyhf.Workspace(document).model(modifier_settings=settings)
    data = torch.tensor(pyhf.Workspace(document).data(theirs), dtype=torch.float64)
    ours = StatisticalModel(document, **options)
    return ours, theirs, data, [ours.parameter_names.index(n) for n in theirs.config.par_names]


def points(model, *, n=10, seed=1):
    """Random parameters at which no bin is impossible."""
    random = torch.Generator().manual_seed(seed)
    low, high = model.bounds.unbind(-1)
    x = model.initial_values + 0.4 * torch.randn(n, model.n_parameters, generator=random, dtype=torch.float64)
    x = torch.where(low < high, x.clamp(low + 0.02, high), model.initial_values)
    return x[model.nll(x).isfinite()]


def test_code4_at_the_published_points():
    up, down = torch.tensor([1.3, 0.85], dtype=torch.float64)
    at = torch.tensor([0.5, -0.5], dtype=torch.float64)
    assert_allclose(code4(at, up, down), [1.135312, 0.916514], rtol=0, atol=5e-7)


@pytest.mark.parametrize(("up", "down"), [(1.3, 0.85), (0.7, 1.6), (1.2, 1.2), (1.0, 1.0)])
def test_code4_continues_value_slope_and_curvature_at_one(up, down):
    u, d = torch.tensor([up, down], dtype=torch.float64)
    for end in (1.0, -1.0):
        sides = []
        for at in (end - 1e-9, end + 1e-9):
            alpha = torch.tensor(at, dtype=torch.float64, requires_grad=True)
            value = code4(alpha, u, d)
            (slope,) = torch.autograd.grad(value, alpha, create_graph=True)
            (curvature,) = torch.autograd.grad(slope, alpha)
            sides.append([value.item(), slope.item(), curvature.item()])
        assert_allclose(sides[0], sides[1], rtol=0, atol=1e-7)
        exact = torch.exp(torch.tensor(abs(end)) * (u if end > 0 else d).log())
        assert_allclose(sides[1][0], exact, rtol=1e-8)


def test_interpolations_are_those_of_pyhf():
    alpha = np.linspace(-3, 3, 121)
    sets = np.array([[[[0.85, 70.0], [1.0, 100.0], [1.3, 110.0]]]])
    ratios, at = torch.from_numpy(sets[0, 0]), torch.from_numpy(alpha)[:, None]
    up, down = ratios[2] / ratios[1], ratios[0] / ratios[1]
    for ours, theirs in ((code4, pyhf.interpolators.code4), (code1, pyhf.interpolators.code1)):
        assert_allclose(ours(at, up, down), theirs(sets)(alpha[None])[0, 0], rtol=1e-13)
    mean, gap = (ratios[2] - ratios[0]) / 2, (ratios[2] + ratios[0]) / 2 - ratios[1]
    for ours, theirs in ((code4p, pyhf.interpolators.code4p), (code0, pyhf.interpolators.code0)):
        assert_allclose(at * mean + ours(at) * gap, theirs(sets)(alpha[None])[0, 0], rtol=1e-13, atol=1e-12)


def test_slopes_of_the_weights_of_code4_are_those_of_autograd():
    alpha = torch.linspace(-1, 1, 9, dtype=torch.float64)
    rows = [torch.stack(code4_weights(leaf := alpha.clone().requires_grad_()), -1)]
    for _ in range(2):
        columns = [torch.autograd.grad(c.sum(), leaf, create_graph=True)[0] for c in rows[-1].unbind(-1)]
        rows.append(torch.stack(columns, -1))
    assert_allclose(code4_slopes(alpha, 2), torch.stack(rows, -2).detach(), rtol=1e-12, atol=1e-13)


def test_the_weights_of_code4_are_its_polynomial():
    u, d = torch.tensor([1.3, 0.85], dtype=torch.float64)
    alpha = torch.linspace(-1, 1, 21, dtype=torch.float64)
    terms = (u / u, u, u * u.log(), u * u.log() ** 2, d, d * d.log(), d * d.log() ** 2)
    polynomial = sum(w * t for w, t in zip(code4_weights(alpha), terms, strict=True))
    assert_allclose(polynomial, code4(alpha, u, d), rtol=1e-14)


def test_the_poisson_term_is_half_the_deviance_and_infinite_where_impossible():
    n = torch.tensor([0.0, 0.0, 3.0, 3.0, 1e6, 0.3], dtype=torch.float64)
    mean = torch.tensor([0.0, 2.0, 3.0, 0.1, 1.001e6, 1.2], dtype=torch.float64)
    assert_allclose(poisson_nll(n, mean), poisson_deviance(n, mean) / 2, rtol=1e-12, atol=1e-14)
    assert torch.isinf(poisson_nll(torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1.0]))).all()
    total = poisson_nll(n, mean) + poisson_normalisation(n)
    reference = -scipy.stats.poisson.logpmf(n[:5], mean[:5])
    assert_allclose(total[:5], reference, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", ["command line", "library"])
def test_the_likelihood_is_that_of_pyhf(name, settings):
    options = {} if settings == "command line" else {"normsys": "code1", "histosys": "code0"}
    ours, theirs, data, order = both(name, AS_COMMAND_LINE if settings == "command line" else AS_LIBRARY, **options)
    for x in points(ours):
        reference = -theirs.logpdf(x[order].tolist(), data.tolist())[0]
        assert_allclose(ours.nll_with_normalisation(x), reference, rtol=1e-11)
        expected = theirs.expected_actualdata(x[order].tolist())
        places = [i for c in theirs.config.channels for i in range(*ours.compiled.channels[c].indices(10_000))]
        assert_allclose(ours.expected(x)[places], expected, rtol=1e-11)
        channel = theirs.config.channels[0]
        assert_allclose(ours.expected_in(channel, x), ours.expected(x)[ours.compiled.channels[channel]], rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_best_fit_and_uncertainties_are_those_of_pyhf(name, peer):
    ours, theirs, data, order = both(name)
    found = fit(ours)
    values, twice = peer.infer.mle.fit(data, theirs, return_fitted_val=True)
    assert found.converged
    assert_allclose(2 * ours.nll_with_normalisation(found.values), float(twice), **AGREES)
    sigma = found.uncertainties[order]
    assert_allclose((values.detach() - found.values[order]) / sigma.clamp(min=1e-9), 0.0, atol=3e-6)
    # Their value is as good as their minimiser; at ours their exact Hessian gives their uncertainty.
    hessian = torch.autograd.functional.hessian(lambda x: -theirs.logpdf(x, data)[0], found.values[order])
    free = ~found.fixed[order]
    assert_allclose(
        torch.linalg.inv(hessian[free][:, free]),
        found.covariance[order][:, order][free][:, free],
        rtol=1e-7,
        atol=1e-12,
    )
    gradient = torch.autograd.functional.jacobian(lambda x: theirs.logpdf(x, data)[0], found.values[order])
    inside = free & ~found.at_limit[order]
    assert_allclose(gradient[inside] * sigma[inside], 0.0, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_p_values_limits_and_significance_are_those_of_pyhf(name, peer):
    ours, theirs, data, _ = both(name)
    limit = upper_limit(ours)
    values = cls(ours, 0.8 * limit.observed)
    observed, expected = peer.infer.hypotest(0.8 * limit.observed, data, theirs, return_expected_set=True)
    assert_allclose(values.cls, float(observed), **AGREES)
    assert_allclose(values.expected, [float(e) for e in expected], **AGREES)

    def excess(mu):
        return float(peer.infer.hypotest(mu, data, theirs)) - 0.05

    assert_allclose(limit.observed, brentq(excess, 0.97 * limit.observed, 1.03 * limit.observed, xtol=1e-10), **AGREES)
    assert_allclose(
        peer.infer.hypotest(limit.expected[3], data, theirs, return_expected_set=True)[1][3], 0.05, **AGREES
    )
    assert_allclose(discovery(ours).p_value, float(peer.infer.hypotest(0.0, data, theirs, test_stat="q0")), **AGREES)


@pytest.mark.parametrize("name", LARGE)
def test_cls_of_large_workspaces_is_that_of_pyhf(name, peer):
    ours, theirs, data, _ = both(name)
    mu = fit(ours).value("mu") + fit(ours).uncertainty("mu")
    observed, expected = peer.infer.hypotest(mu, data, theirs, return_expected_set=True)
    assert_allclose(cls(ours, mu).cls, float(observed), **AGREES)
    assert_allclose(cls(ours, mu).expected, [float(e) for e in expected], **AGREES)


def with_our_modifiers():
    """Every kind of modifier that pyhf does not know, beside those it does."""
    document = workspaces.control_regions()
    channels = document["channels"]
    log, linear = [[0.1, 0.2], [0.05, -0.1], [0.3, 0.02]], [[10.0, 2.0], [5.0, -10.0]]
    channels[0]["samples"][1]["modifiers"].append({"name": "net", "type": "basis", "data": {"directions": log}})
    channels[2]["samples"][1]["modifiers"].append(
        {"name": "net_w", "type": "basis", "data": {"directions": linear, "form": "linear"}}
    )
    channels[0]["samples"][0]["modifiers"].append({"name": "kappa", "type": "vandermonde", "coeff": [0.3, -1.0, 0.7]})
    ratios = {"hi_data": [1.1, 1.05, 0.9], "lo_data": [0.93, 0.97, 1.2]}
    channels[0]["samples"][3]["modifiers"].append({"name": "jes", "type": "normplusshape", "data": ratios})
    return document


DERIVATIVES = {**workspaces.ALL, "ours": with_our_modifiers}


@pytest.mark.parametrize("name", sorted(DERIVATIVES))
def test_closed_forms_of_gradient_and_hessian_are_those_of_autograd(name):
    model = StatisticalModel(DERIVATIVES[name]())
    x = points(model, n=3)
    automatic = model.derivatives._automatic
    scale = automatic.gradient(x).abs().max().item()
    assert_allclose(model.gradient(x), automatic.gradient(x), rtol=1e-10, atol=1e-12 * scale)
    assert_allclose(model.hessian(x), automatic.hessian(x), rtol=1e-9, atol=1e-12 * automatic.hessian(x).abs().max())
    vector = torch.ones_like(x)
    assert_allclose(model.hvp(x, vector), (model.hessian(x) @ vector[..., None])[..., 0], rtol=1e-8, atol=1e-9 * scale)


@pytest.mark.parametrize("name", ["data driven", "control regions", "ours"])
def test_derivatives_are_those_of_finite_differences(name):
    model = StatisticalModel(DERIVATIVES[name]())
    x = points(model, n=2)
    step = 1e-6
    for at in x:
        moved = at + step * torch.eye(model.n_parameters, dtype=torch.float64)
        back = at - step * torch.eye(model.n_parameters, dtype=torch.float64)
        gradient = (model.nll(moved) - model.nll(back)) / (2 * step)
        scale = gradient.abs().max().item()
        assert_allclose(model.gradient(at), gradient, rtol=1e-6, atol=1e-6 * scale)
        hessian = (model.gradient(moved) - model.gradient(back)) / (2 * step)
        assert_allclose(model.hessian(at), hessian, rtol=1e-6, atol=1e-6 * hessian.abs().max().item())


def test_autograd_goes_through_the_likelihood_twice():
    model = StatisticalModel(workspaces.one_bin_counting())
    x = points(model, n=2).requires_grad_()
    assert gradcheck(model.nll, x)
    assert gradgradcheck(model.nll, x)


def test_parameters_are_ordered_by_role_and_first_appearance():
    model = StatisticalModel(workspaces.control_regions())
    assert model.parameter_names[:5] == ("mu", "mu_top", "mu_w", "lumi", "jes")
    assert model.parameter_names[5:] == ("staterror_SR[0]", "staterror_SR[1]", "staterror_SR[2]")
    assert (model.n_poi, model.n_unconstrained) == (1, 3)
    assert model.constrained.tolist() == [False] * 3 + [True] * 5


def test_twice_the_nll_has_the_same_errors():
    model = StatisticalModel(workspaces.correlated_shape())
    x, centre = torch.tensor([[0.4, 1.0], [0.4, 0.0]], dtype=torch.float64)
    without = model.nll(x) - model.nll(centre)
    counts = poisson_nll(model.counts[:, 0], model.expected(x)[:2]).sum()
    nominal = poisson_nll(model.counts[:, 0], model.expected(centre)[:2]).sum()
    assert_allclose(without - (counts - nominal), 0.5, rtol=1e-12)
    assert_allclose(model.twice_nll(x), 2 * model.nll(x), rtol=1e-15)


def test_observations_belong_to_channels_by_name():
    document = workspaces.control_regions()
    shuffled = copy.deepcopy(document)
    shuffled["observations"].reverse()
    a, b = StatisticalModel(document), StatisticalModel(shuffled)
    assert a.nll(a.initial_values).item() == b.nll(b.initial_values).item()


def test_without_observations_the_data_are_what_the_model_expects():
    document = workspaces.control_regions()
    document["observations"] = []
    model = StatisticalModel(document)
    assert model.nll(model.initial_values).item() == 0.0
    assert_allclose(fit(model).values, model.initial_values, atol=1e-9)


def test_a_workspace_of_inference_holds_what_the_measurement_leaves_out():
    document = workspaces.correlated_shape()
    document["channels"][0]["type"] = "binned"
    document["measurements"][0]["config"]["parameters"] = [{"name": "mu", "inits": [1.0]}]
    assert StatisticalModel(document).parameter_names == ("mu",)


@pytest.mark.parametrize("name", NAMES)
def test_writing_and_reading_changes_nothing(name, tmp_path):
    document = workspaces.ALL[name]()
    workspace = Workspace(document)
    read = Workspace.read(workspace.write(tmp_path / "workspace.json"))
    assert read.document == workspace.document
    theirs = pyhf.Workspace(json.loads(workspace.write(tmp_path / "pyhf.json", dialect="pyhf").read_text()))
    model = theirs.model(modifier_settings=AS_COMMAND_LINE)
    start = model.config.suggested_init()
    reference = pyhf.Workspace(document).model(modifier_settings=AS_COMMAND_LINE)
    assert_allclose(model.expected_data(start), reference.expected_data(start), rtol=1e-15)


def test_an_infinite_bound_is_not_written_as_what_is_no_json(tmp_path):
    document = workspaces.correlated_shape()
    document["measurements"][0]["config"]["parameters"] = [{"name": "mu", "bounds": [[0.0, np.inf]]}]
    with pytest.raises(InputError, match="workspace: a number, such as a bound, is infinite"):
        Workspace(document).write(tmp_path / "w.json")
    assert not list(tmp_path.iterdir())


def test_pyhf_is_not_given_what_it_does_not_know(tmp_path):
    with pytest.raises(
        InputError, match=r"channels\[0\].samples\[0\].modifiers\[3\]: pyhf does not know 'vandermonde'"
    ):
        Workspace(with_our_modifiers()).write(tmp_path / "w.json", dialect="pyhf")
    assert not list(tmp_path.iterdir())


def change(path, value):
    """Returns a document with one entry changed."""
    document = workspaces.control_regions()
    at = document
    for step in path[:-1]:
        at = at[step]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return document


FIRST = ("channels", 0, "samples", 0)
FAULTS = {
    "form": (("channels", 0, "samples"), [], r"channels\[0\].samples: list should have at least 1 item"),
    "factor": (
        (*FIRST, "modifiers", 2, "data", "hi"),
        -1.0,
        r"channels\[0\].samples\[0\].modifiers\[2\].data.hi: .*-1.0 came",
    ),
    "missing": ((*FIRST, "modifiers", 2, "data", "lo"), None, r"modifiers\[2\].data.lo: field required"),
    "text": ((*FIRST, "data", 1), "many", r"channels\[0\].samples\[0\].data\[1\]: .*'many' came"),
    "kind": ((*FIRST, "modifiers", 0, "type"), "factor", r"modifiers\[0\]: .*'factor'"),
    "extra": ((*FIRST, "colour"), "red", r"samples\[0\].colour: extra inputs"),
    "bins": ((*FIRST, "data"), [1.0], r"channels\[0\].samples\[1\].data: 1 number expected as in channel 'SR', 3 came"),
    "shape": (
        ("channels", 0, "samples", 1, "modifiers", 1, "data", "hi_data"),
        [1.0, 2.0],
        r"channels\[0\].samples\[1\].modifiers\[1\].data.hi_data: 3 numbers expected as in channel 'SR', 2 came",
    ),
    "observation": (("observations", 0, "name"), "SB", r"observations\[0\].name: there is no channel 'SB'"),
    "counts": (("observations", 1, "data"), [1.0, 2.0], r"observations\[1\].data: 1 number expected"),
    "negative": (("observations", 1, "data", 0), -3.0, r"observations\[1\].data\[0\]: .*-3.0 came"),
    "none": (("observations", 1), None, r"observations: CR_top has none"),
    "poi": (("measurements", 0, "config", "poi"), "nu", r"the parameter of interest 'nu' belongs to no modifier"),
    "lumi": (("measurements", 0, "config", "parameters"), [], r"auxdata and sigmas of 'lumi'"),
    "twice": (("channels", 1, "name"), "SR", r"channels\[1\].name: 'SR' came twice"),
    "reuse": ((*FIRST, "modifiers", 2, "name"), "mu_w", r"'mu_w' is another kind of parameter"),
    "start": (
        ("measurements", 0, "config", "parameters", 1, "inits"),
        [90.0],
        r"parameter 'mu' starts at 90, outside \[-5, 20\]",
    ),
    "number": (
        ("measurements", 0, "config", "parameters", 1, "inits"),
        [1.0, 2.0],
        r"'mu': 1 inits are expected, 2 came",
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_is_named_with_its_path(fault):
    path, value, message = FAULTS[fault]
    with pytest.raises(InputError, match=message):
        StatisticalModel(change(path, value))


def test_what_is_not_a_workspace_is_refused(tmp_path):
    file = tmp_path / "w.json"
    file.write_text("{")
    with pytest.raises(InputError, match="this is not JSON"):
        Workspace.read(file)
    file.write_text("{}")
    with pytest.raises(InputError, match=r"w.json: workspace: channels: field required.*1 more such fault"):
        Workspace.read(file)
    with pytest.raises(InputError, match="measurement 'x' does not exist; there are measurement"):
        StatisticalModel(workspaces.hepdata_like(), "x")
    with pytest.raises(InputError, match="normsys: one of code1, code4 is expected"):
        StatisticalModel(workspaces.hepdata_like(), normsys="code7")
