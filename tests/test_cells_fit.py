"""Fits of cells against Minuit, dense algebra, simulated truth with pulls; starved cells; files; the command."""

import functools
import json
import sys

import cells
import numpy as np
import pytest
import torch
import yaml
from iminuit import Minuit
from numpy.testing import assert_allclose

from specfit import cli
from specfit.errors import InputError
from specfit.stats import AutomaticDerivatives, asimov
from specfit.stats.cells import (
    ABCD,
    AxisBernstein,
    AxisExp,
    AxisNorm,
    CellLikelihood,
    Channel,
    Composite,
    LogNormal,
    Mixture,
    Mu,
    Shape,
    fit_cells,
    read_cells,
    write_histograms,
)
from specfit.stats.fitting import fit
from specfit.stats.profile import scan

N_MASS = 30
X = np.arange(N_MASS) / (N_MASS - 1)
PEAK = np.exp(-0.5 * ((X - 0.5) / 0.08) ** 2) / np.exp(-0.5 * ((X - 0.5) / 0.08) ** 2).sum()


histogram = functools.partial(cells.histogram, names=("eta", "pt", "mass"))


def simulated(n_eta=3, n_pt=2, *, events=400.0, seed=5, background=20.0):
    """A channel with a peak on an exponential in every cell, and its truth."""
    random = np.random.default_rng(seed)
    cells = (n_eta, n_pt, 1)
    truth = {"norm": random.uniform(0.6, 1.5, cells), "lnAmpl": random.normal(0, 0.3, cells)}
    truth["slope"] = random.normal(-1, 0.4, (n_eta, 1, 1))
    signal, flat = np.broadcast_to(events * PEAK, (n_eta, n_pt, N_MASS)), np.full((n_eta, n_pt, N_MASS), background)
    mean = signal * truth["norm"] + flat * np.exp(truth["lnAmpl"] + truth["slope"] * X)
    counts = random.poisson(mean).astype(float)
    templates = {"signal": histogram(signal), "background": histogram(flat)}
    return Channel.of("z", templates, data=histogram(counts), signals=["signal"]), truth, counts


def with_shapes(slope_axes=None, **options):
    exponential = AxisExp("z", "background", "mass", "pt,eta", slope_axes=slope_axes, **options)
    return Composite(AxisNorm("z", "signal", "eta,pt"), exponential)


def pull(found, name, truth):
    value, sigma = found[name]
    return (value - truth) / sigma


def one_cell(n, *, bernstein):
    """-ln L of one cell, written out."""

    def nll(raw, a, b):
        form = np.log1p(np.exp(a)) * (1 - X) + np.log1p(np.exp(b)) * X if bernstein else np.exp(a + b * X)
        nu = 400.0 * PEAK * raw**2 + 20.0 * form
        return (nu - n * np.log(nu)).sum() + (n * np.log(np.maximum(n, 1)) - n).sum()

    return nll


@pytest.mark.parametrize("bernstein", [False, True])
def test_each_cell_is_the_fit_that_minuit_makes_of_it_alone(bernstein):
    channel, _, counts = simulated()
    shape = AxisBernstein("z", "background", "mass", "pt,eta") if bernstein else None
    model = Composite(AxisNorm("z", "signal", "eta,pt"), shape) if bernstein else with_shapes()
    found = fit_cells(CellLikelihood([channel], model))
    assert found.converged
    assert found.iterations < 15
    names = ("c0", "c1") if bernstein else ("lnAmpl", "slope")
    total = 0.0
    for eta, pt in np.ndindex(3, 2):
        minuit = Minuit(one_cell(counts[eta, pt], bernstein=bernstein), raw=1.0, a=0.1, b=-0.1)
        minuit.errordef, minuit.strategy, minuit.tol = Minuit.LIKELIHOOD, 2, 1e-6
        minuit.migrad()
        minuit.hesse()
        cell = [f"norm_signal_eta{eta}_pt{pt}", *(f"{name}_background_pt{pt}_eta{eta}" for name in names)]
        which = [found.likelihood.index(name) for name in cell]
        assert_allclose(found.values[which], minuit.values, atol=2e-3 * found.uncertainties[which].min())
        assert_allclose(found.covariance(cell), np.array(minuit.covariance), rtol=5e-3, atol=1e-7)
        total += minuit.fval
    assert found.nll == pytest.approx(total, abs=1e-5)


def test_the_generic_fit_and_dense_algebra_agree():
    channel, _, _ = simulated()
    systematics = [
        LogNormal("lumi", 1.03, "signal"),
        Shape("scale", "z", "signal", np.roll(channel.templates["signal"].values, 1)),
    ]
    likelihood = CellLikelihood([channel], with_shapes("eta"), systematics, priors={"slope_*": (-1.0, 1.0)})
    assert likelihood.structure.n_border == 2
    found, generic = fit_cells(likelihood), fit(likelihood)
    assert found.converged
    assert AutomaticDerivatives(likelihood.nll).gradient(found.values).abs().max() < 1e-7
    assert_allclose(found.values, generic.values, atol=1e-6)
    assert found.nll == pytest.approx(generic.nll, abs=1e-9)
    inverse = torch.linalg.inv(AutomaticDerivatives(likelihood.nll).hessian(found.values))
    assert_allclose(found.covariance(), inverse, rtol=1e-8, atol=1e-12)
    assert_allclose(found.uncertainties, inverse.diagonal().sqrt(), rtol=1e-9)
    names = ["slope_background_eta1", "lumi"]
    which = [likelihood.index(name) for name in names]
    assert_allclose(found.covariance(names), inverse[which][:, which], rtol=1e-8, atol=1e-12)


def test_a_result_goes_on_to_the_generic_inference():
    channel, _, _ = simulated(2, 1, background=60.0)
    model = Composite(Mu(), AxisExp("z", "background", "mass", "pt,eta"))
    likelihood = CellLikelihood([channel], model, [LogNormal("lumi", 1.03, "signal")])
    found, generic = fit_cells(likelihood).to_fit_result(), fit(likelihood)
    assert_allclose(found.covariance, generic.covariance, rtol=1e-6, atol=1e-10)
    assert found.value("mu_signal") == pytest.approx(generic.value("mu_signal"), rel=1e-7)
    assert not found.fixed.any()
    sigma = found.uncertainty("mu_signal")
    moved = fit_cells(likelihood, fixed={"mu_signal": found.value("mu_signal") + sigma})
    assert moved.nll - found.nll == pytest.approx(0.5, rel=0.1)
    assert moved.to_fit_result().fixed.tolist() == [name == "mu_signal" for name in found.parameter_names]
    curve = scan(likelihood, "mu_signal", points=[found.value("mu_signal") + sigma], statistical=False).curve
    assert curve.item() == pytest.approx(2 * (moved.nll - found.nll), rel=1e-6)


def test_a_strength_shared_by_all_cells_is_in_the_border():
    channel, _, _ = simulated(12, 2, background=60.0)
    model = Composite(Mu(), AxisExp("z", "background", "mass", "pt,eta"))
    likelihood = CellLikelihood([channel], model)
    assert likelihood.structure.border.tolist() == [likelihood.index("mu_signal")]
    assert likelihood.structure.groups == [(24, 2)]
    found = fit_cells(likelihood)
    inverse = torch.linalg.inv(AutomaticDerivatives(likelihood.nll).hessian(found.values))
    assert_allclose(found.uncertainties, inverse.diagonal().sqrt(), rtol=1e-9)
    assert found.nll == pytest.approx(fit(likelihood).nll, abs=1e-8)


@pytest.mark.parametrize("slope_axes", [None, "eta"])
def test_the_truth_is_recovered_within_errors(slope_axes):
    channel, truth, _ = simulated(20, 6, events=500.0, background=40.0)
    found = fit_cells(CellLikelihood([channel], with_shapes(slope_axes)))
    pulls = {"norm": [], "slope": []}
    for eta, pt in np.ndindex(20, 6):
        pulls["norm"].append(pull(found, f"norm_signal_eta{eta}_pt{pt}", truth["norm"][eta, pt, 0]))
        group = f"eta{eta}" if slope_axes else f"pt{pt}_eta{eta}"
        pulls["slope"].append(pull(found, f"slope_background_{group}", truth["slope"][eta, 0, 0]))
    for values in pulls.values():
        n = len(set(values))
        assert abs(np.mean(values)) < 4 / n**0.5
        assert np.std(values) == pytest.approx(1.0, abs=4 / (2 * n) ** 0.5)


@pytest.mark.parametrize("form", ["exponential", "coefficients", "fractions"])
def test_pulls_of_a_thousand_toys_are_standard_normal(form):
    # Toys as one more axis of cells: one fit of 4000 independent cells.
    random, n_toys, n_cells = np.random.default_rng(77), 1000, 4
    norm = np.array([0.8, 1.0, 1.2, 1.5])[:, None]
    signal, flat = np.broadcast_to(600 * PEAK, (n_cells, N_MASS)), np.full((n_cells, N_MASS), 60.0)
    truth = np.exp(0.2 - 0.8 * X) if form == "exponential" else 1.3 * (1 - X) + 0.7 * X
    counts = random.poisson(np.broadcast_to(signal * norm + flat * truth, (n_toys, n_cells, N_MASS))).astype(float)
    names = ("toy", "cell", "mass")
    templates = {
        process: histogram(np.broadcast_to(values, counts.shape), names=names)
        for process, values in (("signal", signal), ("background", flat))
    }
    channel = Channel.of("z", templates, data=histogram(counts, names=names))
    shape = (
        AxisExp("z", "background", "mass", "cell,toy")
        if form == "exponential"
        else AxisBernstein("z", "background", "mass", "cell,toy", form=form)
    )
    found = fit_cells(CellLikelihood([channel], Composite(AxisNorm("z", "signal", "toy,cell"), shape)))
    assert found.converged
    start = 0
    physical = {"exponential": (0.2, -0.8), "coefficients": (1.3, 0.7), "fractions": (0.0, np.log(1.3 / 0.7))}[form]
    raw = [np.log(np.expm1(value)) for value in physical] if form == "coefficients" else physical
    for true in (np.tile(np.sqrt(norm[:, 0]), n_toys), *raw):
        values, sigma = (part[start : start + n_toys * n_cells].numpy() for part in (found.values, found.uncertainties))
        pulls = (values - true) / sigma
        assert abs(pulls.mean()) < 0.05
        assert pulls.std() == pytest.approx(1.0, abs=0.05)
        start += n_toys * n_cells


def starved():
    """The simulated channel with one cell empty."""
    channel, _, counts = simulated(events=900.0)
    counts[1, 0] = 0.0
    templates = {name: histogram(t.values.numpy().reshape(channel.shape)) for name, t in channel.templates.items()}
    return Channel.of("z", templates, data=histogram(counts)), counts


def test_an_empty_cell_is_named_and_leaves_the_others_alone():
    channel, _ = starved()
    found = fit_cells(CellLikelihood([channel], with_shapes()))
    whole = fit_cells(CellLikelihood([simulated(events=900.0)[0]], with_shapes()))
    assert {name for name in found.undetermined if "norm" not in name} <= {
        "lnAmpl_background_pt0_eta1",
        "slope_background_pt0_eta1",
    }
    assert found.undetermined
    assert "give them a prior, share slopes" in found.message
    for name in found.parameter_names:
        if not name.endswith(("pt0_eta1", "eta1_pt0")):
            assert found[name] == pytest.approx(whole[name], rel=1e-7)
    assert found["norm_signal_eta1_pt0"][0] < 1e-6


def test_fractions_leave_only_the_shape_of_an_empty_cell_open_where_coefficients_leave_all():
    counts = np.zeros((1, 1, N_MASS))
    flat = {"background": histogram(np.full((1, 1, N_MASS), 5.0))}
    likelihoods = {
        form: CellLikelihood(
            [Channel.of("z", flat, data=histogram(counts))],
            AxisBernstein("z", "all", "mass", "pt,eta", form=form),
            priors={"lnAmpl_*": (0.0, 1.0)} if form == "fractions" else {},
        )
        for form in ("coefficients", "fractions")
    }
    assert fit_cells(likelihoods["fractions"]).undetermined == ("frac_background_pt0_eta0",)
    assert len(fit_cells(likelihoods["coefficients"]).undetermined) == 2


@pytest.mark.parametrize("remedy", ["prior", "fixed"])
def test_a_prior_or_a_fixed_value_determines_an_empty_cell(remedy):
    channel, _ = starved()
    likelihood = CellLikelihood(
        [channel],
        with_shapes(),
        priors={"lnAmpl_*": (0.0, 2.0), "slope_*": (-1.0, 1.0)} if remedy == "prior" else {},
    )
    fixed = () if remedy == "prior" else ["lnAmpl_background_pt0_eta1", "slope_background_pt0_eta1"]
    found = fit_cells(likelihood, fixed=fixed)
    assert found.converged
    assert found.undetermined == ()
    if remedy == "fixed":
        assert found.uncertainties[found.likelihood.index("slope_background_pt0_eta1")] == 0
    else:
        assert found.uncertainties[found.likelihood.index("slope_background_pt0_eta1")] < 1.01


def test_a_flat_direction_is_named():
    channel, _, _ = simulated()
    found = fit_cells(CellLikelihood([channel], Composite(Mu(), with_shapes())))
    assert "mu_signal" in found.message or "norm_signal" in found.message


def test_limits_and_fixed_values_are_obeyed():
    counts = np.zeros((1, 1, N_MASS)) + 10 * (1 - X)
    templates = {"falling": histogram(20 * (1 - X)[None, None]), "rising": histogram(20 * X[None, None])}
    channel = Channel.of("z", templates, data=histogram(counts * 2))
    found = fit_cells(CellLikelihood([channel], Mixture("falling", "rising")))
    assert found["falling_rising_mixing"] == (1.0, 0.0)
    assert found.converged
    channel, _, _ = simulated()
    likelihood = CellLikelihood([channel], with_shapes())
    found = fit_cells(likelihood, fixed={"slope_*": -0.5})
    which = [name.startswith("slope") for name in likelihood.parameter_names]
    assert (found.values[which] == -0.5).all()
    assert (found.uncertainties[which] == 0).all()
    assert found.nll > fit_cells(likelihood).nll


def test_abcd_predicts_the_signal_region_with_its_error():
    a, b, c = 400.0, 1600.0, 900.0
    values = np.array([[a], [b], [c], [10.0]])
    channel = Channel.of(
        "c",
        {"qcd": histogram(np.ones((4, 1)), names=("region", "mass"))},
        data=histogram(values, names=("region", "mass")),
    )
    signal = Channel.of(
        "s",
        {
            "qcd": histogram(np.ones((1, 1)), names=("region", "mass")),
            "new": histogram(np.full((1, 1), 10.0), names=("region", "mass")),
        },
        data=histogram(np.full((1, 1), 250.0), names=("region", "mass")),
        signals=["new"],
    )
    regions = {"A": "c:region=0", "B": "c:region=1", "C": "c:region=2", "D": "s:region=0"}
    found = fit_cells(CellLikelihood([channel, signal], Composite(Mu(), ABCD("qcd", regions)), start={"?_qcd*": 500.0}))
    predicted = a * c / b
    error = predicted * (1 / a + 1 / b + 1 / c) ** 0.5
    # The fourth bin of the control channel has a template of its own and no parameter: a constant.
    assert found["mu_new"][0] == pytest.approx((250 - predicted) / 10, rel=1e-6)
    assert found["mu_new"][1] == pytest.approx((250 + error**2) ** 0.5 / 10, rel=1e-6)


def test_toys_of_a_coupled_model_have_standard_pulls(rng):
    channel, _, _ = simulated(2, 2, events=800.0, background=60.0)
    likelihood = CellLikelihood([channel], with_shapes("eta"), [LogNormal("lumi", 1.05, "signal")])
    truth = likelihood.initial_values
    pulls = []
    for data in likelihood.sample(truth.expand(40, -1), rng=rng):
        found = fit_cells(likelihood.with_data(data))
        assert found.converged
        pulls.append((found.values - truth) / found.uncertainties)
    pulls = torch.stack(pulls)
    assert pulls.mean().abs() < 0.15
    assert pulls.std().item() == pytest.approx(1.0, abs=0.12)


def test_a_batch_is_refused():
    channel, _, _ = simulated()
    likelihood = CellLikelihood([channel], with_shapes())
    with pytest.raises(InputError, match="one set of data"):
        fit_cells(likelihood.with_data(likelihood.data.expand(2, -1)))
    with pytest.raises(InputError, match="start: 18 numbers"):
        fit_cells(likelihood, start=[1.0])


@pytest.fixture
def folder(tmp_path):
    channel, _, counts = simulated()
    named = {name: histogram(t.values.numpy().reshape(channel.shape)) for name, t in channel.templates.items()}
    write_histograms(tmp_path / "h.json", {**named, "data": histogram(counts), "up": named["signal"] * 1.02})
    content = {
        "channels": {
            "z": {
                "data": "h.json:data",
                "processes": {"signal": "h.json:signal", "background": "h.json:background"},
                "signals": ["signal"],
            }
        },
        "param_models": [
            "AxisNorm z signal eta,pt",
            {
                "name": "AxisExp",
                "channel": "z",
                "processes": "background",
                "shape_axis": "mass",
                "cell_axes": ["pt", "eta"],
                "slope_axes": ["eta"],
            },
        ],
        "systematics": [
            {"type": "LogNormal", "name": "lumi", "size": 1.02, "processes": "signal"},
            {"type": "Shape", "name": "scale", "channel": "z", "process": "signal", "up": "h.json:up"},
        ],
        "priors": {"slope_*": [0, 5]},
    }
    (tmp_path / "z.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_a_file_is_the_same_likelihood(folder):
    channel, _, _ = simulated()
    systematics = [
        LogNormal("lumi", 1.02, "signal"),
        Shape("scale", "z", "signal", channel.templates["signal"].values * 1.02),
    ]
    built = CellLikelihood([channel], with_shapes("eta"), systematics, priors={"slope_*": (0, 5)})
    read = read_cells(folder / "z.yaml")
    assert read.parameter_names == built.parameter_names
    at = built.initial_values + 0.1
    assert float(read.nll(at)) == pytest.approx(float(built.nll(at)), rel=1e-12)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line; returns its exit code and what it printed."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["specfit", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    return command


def test_the_command_takes_repeated_models_in_the_grammar_of_the_seed(folder, run):
    words = ["--param-model", "AxisNormModel", "z", "signal", "pt,eta", "--param-model", "AxisExpModel", "z"]
    words += ["background", "mass", "eta,pt", "eta", "--prior=slope_*=-1,2", "--out", folder / "fit.json", "--json"]
    code, out, said = run("fit", folder / "z.yaml", *words)
    assert code == 0, said
    printed = json.loads(out)
    assert printed == json.loads((folder / "fit.json").read_text())
    assert printed["converged"]
    model = Composite(AxisNorm("z", "signal", "pt,eta"), AxisExp("z", "background", "mass", "eta,pt", slope_axes="eta"))
    expected = fit_cells(read_cells(folder / "z.yaml", model=model, priors={"slope_*": (-1.0, 2.0)}))
    assert list(printed["parameters"]) == list(expected.parameter_names)
    got = printed["parameters"]["norm_signal_pt1_eta2"]
    assert (got["physical_value"], got["physical_uncertainty"]) == pytest.approx(expected["norm_signal_pt1_eta2"])


def test_the_command_can_fit_what_it_expects(folder, run):
    words = ["--param-model", "AxisExp", "z", "background", "mass", "pt,eta", "--expect", "lnAmpl_*=1.7", "--asimov"]
    code, out, said = run("fit", folder / "z.yaml", *words)
    assert code == 0, said
    assert out.count("exp: 1.7 +-") == 6


def test_a_mistake_on_the_command_line_is_one_line(folder, run):
    for words, message in (
        (["--param-model", "AxisNorm", "z", "signal", "phi"], "no axis 'phi'"),
        (["--param-model", "AxisNorm", "z"], "usage: AxisNorm channel processes axes"),
        (["--param-model"], "a name is expected first"),
        (["--prior", "slope_*"], "NAME=NUMBER,NUMBER is expected"),
    ):
        code, _, said = run("fit", folder / "z.yaml", *words)
        assert code == 2
        assert message in said
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chanels": {}}, "'chanels' is not known"),
        ({"channels": None}, "channels: a mapping is expected"),
        ({"systematics": [{"type": "Gauss"}]}, r"systematics\[0\].type: one of LogNormal"),
        ({"systematics": [{"type": "LogNormal", "name": "k"}]}, r"systematics\[0\]: .*size"),
        ({"param_models": ["os.system ls"]}, "on the command line only"),
        ({"channels": {"z": {"processes": {"s": "h.json:nothing"}}}}, "no histogram 'nothing'; it holds signal"),
        ({"channels": {"z": {"processes": {"s": 7}}}}, "'file.json:name' or"),
    ],
)
def test_a_mistake_in_a_file_is_named(folder, change, words):
    content = yaml.safe_load((folder / "z.yaml").read_text()) | change
    (folder / "z.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=words):
        read_cells(folder / "z.yaml")


def test_root_histograms_get_their_axes_by_position(tmp_path):
    uproot = pytest.importorskip("uproot")
    with uproot.recreate(tmp_path / "h.root") as file:
        file["s"] = histogram(np.ones((2, 3)), names=("a", "b"))
    content = {"channels": {"z": {"axes": ["eta", "mass"], "processes": {"s": "h.root:s"}}}}
    (tmp_path / "z.yaml").write_text(yaml.safe_dump(content | {"param_models": ["AxisNorm z s eta"]}))
    assert read_cells(tmp_path / "z.yaml").parameter_names == ("norm_s_eta0", "norm_s_eta1")


def test_asimov_data_give_back_the_start():
    channel, _, _ = simulated()
    likelihood = CellLikelihood([channel], with_shapes("eta"), start={"norm_*": 1.4})
    found = fit_cells(asimov(likelihood))
    assert_allclose(found.physical_values[: likelihood.n_poi], [1.4] * 6 + [1.0] * 6 + [0.0] * 3, atol=1e-9)
