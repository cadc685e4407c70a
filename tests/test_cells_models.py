"""Parametric models in cells: names and bins in every order of axes, factors against their formulae, clear errors."""

import functools
import itertools
import math

import cells
import hist
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import comb, expit, softmax

from specfit.errors import InputError
from specfit.stats.cells import (
    ABCD,
    AxisBernstein,
    AxisExp,
    AxisNorm,
    CellLikelihood,
    Channel,
    Composite,
    Meaning,
    Mixture,
    Mu,
    Prior,
    SmoothABCD,
    parse_models,
)

SHAPE = {"eta": 3, "mass": 5, "pt": 2, "charge": 2}


histogram = functools.partial(cells.histogram, names=tuple(SHAPE), ends=(1.0, 2.0))


@pytest.fixture
def channel():
    random = np.random.default_rng(4)
    shape = tuple(SHAPE.values())
    templates = {name: histogram(random.uniform(1, 9, shape)) for name in ("signal", "background", "other")}
    return Channel.of("muons", templates, signals=["signal"])


def factors(channel, model, values):
    """Events over template for each process, by the likelihood."""
    likelihood = CellLikelihood([channel], model)
    v = likelihood.initial_values.clone()
    for name, value in values.items():
        v[likelihood.index(name)] = value
    events = likelihood.events(v)[channel.name]
    return {name: (events[name].reshape(-1) / channel.templates[name].values).reshape(channel.shape) for name in events}


@pytest.mark.parametrize("axes", list(itertools.permutations(["eta", "pt", "charge"])))
def test_the_name_of_a_norm_says_its_bins_in_every_order_of_axes(channel, axes):
    likelihood = CellLikelihood([channel], AxisNorm("muons", "signal", axes))
    for bins in itertools.product(*(range(SHAPE[axis]) for axis in axes)):
        name = "norm_signal_" + "_".join(f"{axis}{i}" for axis, i in zip(axes, bins, strict=True))
        got = factors(channel, AxisNorm("muons", "signal", axes), {name: 3.0})
        at = dict(zip(axes, bins, strict=True))
        where = tuple(at.get(axis, slice(None)) for axis in SHAPE)
        expected = np.ones(tuple(SHAPE.values()))
        expected[where] = 9.0
        assert_allclose(got["signal"], expected, rtol=1e-14)
        assert (got["background"] == 1).all()
    # C order of the axes as listed: the last runs fastest.
    last = axes[-1]
    assert likelihood.parameter_names[1].endswith(f"{last}1")
    assert likelihood.n_poi == likelihood.n_parameters == 12


@pytest.mark.parametrize(
    ("cells", "slopes"), [("pt,eta", None), ("eta,charge,pt", "pt"), ("eta,pt", "pt,eta"), ("pt", "")]
)
def test_an_exponential_falls_along_its_axis_with_the_slope_of_its_group(channel, cells, slopes):
    random = np.random.default_rng(9)
    model = AxisExp("muons", "background", "mass", cells, slope_axes=slopes)
    likelihood = CellLikelihood([channel], model)
    v = torch.from_numpy(random.normal(0, 1, likelihood.n_parameters))
    by_name = dict(zip(likelihood.parameter_names, v.tolist(), strict=True))
    got = factors(channel, model, by_name)["background"]
    slope_axes = (cells if slopes is None else slopes).split(",") if slopes != "" else []
    for index in np.ndindex(*SHAPE.values()):
        at = dict(zip(SHAPE, index, strict=True))
        cell = "_".join(f"{axis}{at[axis]}" for axis in cells.split(","))
        group = "_".join(f"{axis}{at[axis]}" for axis in slope_axes)
        slope = by_name["_".join(filter(None, ("slope_background", group)))]
        # Five bins: the first centre is 0, the last 1.
        assert got[index] == pytest.approx(math.exp(by_name[f"lnAmpl_background_{cell}"] + slope * at["mass"] / 4))
    amplitudes = [name for name in likelihood.parameter_names if name.startswith("lnAmpl")]
    assert list(likelihood.parameter_names[: len(amplitudes)]) == amplitudes


@pytest.mark.parametrize("degree", [1, 2, 5])
@pytest.mark.parametrize("form", ["coefficients", "fractions"])
def test_a_bernstein_polynomial_is_its_formula(channel, degree, form):
    model = AxisBernstein("muons", "background", "mass", "pt", degree=degree, form=form)
    likelihood = CellLikelihood([channel], model)
    assert_allclose(factors(channel, model, {})["background"], 1.0, rtol=1e-14)
    assert likelihood.n_parameters == 2 * (degree + 1)
    v = np.random.default_rng(2).normal(0, 1, (degree + 1, 2))
    got = factors(channel, model, dict(zip(likelihood.parameter_names, v.reshape(-1), strict=True)))["background"]
    x = np.arange(5) / 4
    basis = [comb(degree, k) * x**k * (1 - x) ** (degree - k) for k in range(degree + 1)]
    for pt in range(2):
        if form == "coefficients":
            expected = sum(np.log1p(np.exp(v[k, pt])) * basis[k] for k in range(degree + 1))
        else:
            weights = softmax([*v[1:, pt], 0.0])
            expected = (degree + 1) * np.exp(v[0, pt]) * sum(w * b for w, b in zip(weights, basis, strict=True))
        assert_allclose(got[:, :, pt], np.broadcast_to(expected[None, :, None], (3, 5, 2)), rtol=1e-12)


def test_the_first_degree_is_the_form_of_the_seed(channel):
    model = AxisBernstein("muons", "background", "mass", "pt", form="fractions")
    assert CellLikelihood([channel], model).parameter_names == (
        "lnAmpl_background_pt0",
        "lnAmpl_background_pt1",
        "frac_background_pt0",
        "frac_background_pt1",
    )
    got = factors(channel, model, {"lnAmpl_background_pt0": 0.3, "frac_background_pt0": 0.8})["background"]
    x = np.arange(5) / 4
    assert_allclose(got[0, :, 0, 0], 2 * np.exp(0.3) * (expit(0.8) * (1 - x) + expit(-0.8) * x), rtol=1e-14)


def test_an_axis_of_one_bin_has_no_slope():
    channel = Channel.of("a", {"b": histogram(np.ones((1, 2)), names=("mass", "eta"))})
    got = factors(channel, AxisExp("a", "b", "mass", "eta"), {"slope_b_eta0": 7.0})["b"]
    assert_allclose(got, 1.0)


def test_every_process_has_parameters_of_its_own(channel):
    names = CellLikelihood([channel], AxisNorm("muons", "all", "charge")).parameter_names
    assert names == tuple(f"norm_{p}_charge{i}" for p in ("signal", "background", "other") for i in range(2))


def test_a_composite_multiplies_and_puts_parameters_of_interest_first(channel):
    region = {letter: f"muons:charge={i % 2},pt={i // 2}" for i, letter in enumerate("ABCD")}
    model = Composite(
        ABCD("other", region), AxisNorm("muons", "signal", "eta"), Composite(Mu(), Mixture("signal", "background"))
    )
    likelihood = CellLikelihood([channel], model)
    names = likelihood.parameter_names
    assert names[: likelihood.n_poi] == (
        *(f"norm_signal_eta{i}" for i in range(3)),
        "mu_signal",
        "signal_background_mixing",
    )
    assert all(name[0] in "ABC" for name in names[likelihood.n_poi :])
    got = factors(channel, model, {"norm_signal_eta1": 2.0, "mu_signal": 5.0, "signal_background_mixing": 0.2})
    assert_allclose(got["signal"][1], 4.0 * 5.0 * 0.2)
    assert_allclose(got["signal"][0], 5.0 * 0.2)
    assert_allclose(got["background"], 0.8)


def test_a_mixture_pairs_in_the_order_given(channel):
    model = Mixture("signal", "background")
    assert CellLikelihood([channel], model).parameter_names == ("signal_background_mixing",)
    both = Mixture("other,background", ["signal", "muon"])
    assert both.pairs == [("other", "signal"), ("background", "muon")]


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
def test_abcd_is_its_formula(extended, corrected):
    random = np.random.default_rng(11)
    values = random.uniform(1, 9, (6, 4))
    channel = Channel.of("c", {"qcd": histogram(values, names=("region", "mass"))})
    letters = ["A", "B", "C", *(["Ax", "Bx"] if extended else []), "D"]
    regions = {letter: f"c:region={i}" for i, letter in enumerate(letters)}
    model = ABCD("qcd", regions, extended=extended, corrected=corrected)
    likelihood = CellLikelihood([channel], model)
    v = torch.from_numpy(random.uniform(0.5, 2, likelihood.n_parameters))
    got = likelihood.events(v)["c"]["qcd"].numpy()
    f = dict(zip(letters[:-1], v.reshape(-1, 4).numpy() ** 2, strict=True))
    n = dict(zip(letters, values, strict=False))
    for letter in letters[:-1]:
        assert_allclose(got[letters.index(letter)], n[letter] * f[letter], rtol=1e-12)

    def formula(y):
        if extended:
            return y["C"] * y["Ax"] * y["B"] ** 2 / (y["Bx"] * y["A"] ** 2)
        return y["A"] * y["C"] / y["B"]

    expected = n["D"] * formula(f) if corrected else formula({key: n[key] * f[key] for key in f})
    assert_allclose(got[letters.index("D")], expected, rtol=1e-12)
    assert likelihood.parameter_names[0] == "A_qcd_mass0"
    assert likelihood.n_poi == 0


def test_smooth_abcd_is_a_chebyshev_series_in_each_control_region():
    random = np.random.default_rng(12)
    values = random.uniform(1, 9, (4, 5, 2))
    channel = Channel.of("c", {"qcd": histogram(values, names=("region", "mass", "eta"))})
    regions = {letter: f"c:region={i}" for i, letter in enumerate("ABCD")}
    model = SmoothABCD("qcd", regions, "mass", order=2)
    likelihood = CellLikelihood([channel], model)
    assert likelihood.parameter_names[:3] == ("A0_qcd_eta0", "A0_qcd_eta1", "A1_qcd_eta0")
    v = random.normal(0, 0.3, (3, 3, 2))  # region, order, eta
    got = likelihood.events(torch.from_numpy(v.reshape(-1)))["c"]["qcd"].numpy()
    x = 2 * np.arange(5) / 4 - 1
    yields = {}
    for i, letter in enumerate("ABC"):
        log_factor = np.stack([np.polynomial.chebyshev.chebval(x, v[i, :, eta]) for eta in range(2)], -1)
        yields[letter] = values[i] * np.exp(log_factor)
        assert_allclose(got[i], yields[letter], rtol=1e-12)
    assert_allclose(got[3], yields["A"] * yields["C"] / yields["B"], rtol=1e-12)


def test_meanings_go_back_and_forth():
    for meaning in Meaning:
        for physical in (1e-9, 0.3, 1.0, 40.0, 800.0):
            raw = torch.tensor(meaning.raw(physical), dtype=torch.float64)
            assert meaning.physical(raw).item() == pytest.approx(physical, rel=1e-12)
            leaf = raw.clone().requires_grad_()
            (slope,) = torch.autograd.grad(meaning.physical(leaf), leaf)
            assert meaning.slope(raw).item() == pytest.approx(slope.item(), rel=1e-12)


def test_starts_are_physical_and_priors_raw(channel):
    model = Composite(AxisNorm("muons", "signal", "eta"), AxisExp("muons", "background", "mass", "eta"))
    likelihood = CellLikelihood(
        [channel], model, start={"norm_*": 4.0, "lnAmpl_background_eta1": math.e}, priors={"slope_*": (0.5, 2.0)}
    )
    start = dict(zip(likelihood.parameter_names, likelihood.initial_values.tolist(), strict=True))
    assert start["norm_signal_eta2"] == pytest.approx(2.0)
    assert start["lnAmpl_background_eta1"] == pytest.approx(1.0)
    shifted = likelihood.initial_values.clone()
    shifted[likelihood.index("slope_background_eta0")] = 4.5  # two standard deviations
    pulled = CellLikelihood([channel], model, start={"norm_*": 4.0, "lnAmpl_background_eta1": math.e})
    difference = likelihood.nll(shifted) - pulled.with_data(likelihood.data[: channel.n_bins]).nll(shifted)
    rest = 2 * 0.25**2 / 2
    assert float(difference) == pytest.approx(2**2 / 2 + rest)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AxisNorm("electrons", "signal", "eta"), "no channel 'electrons'.*muons"),
        (lambda: AxisNorm("muons", "ttbar", "eta"), "no process 'ttbar'.*signal, background, other"),
        (lambda: AxisNorm("muons", "signal", "eta,phi"), "no axis 'phi'.*eta, mass, pt, charge"),
        (lambda: AxisNorm("muons", "signal", "eta,eta"), "named twice"),
        (lambda: AxisNorm("muons", "signal,signal", "eta"), "named once"),
        (lambda: AxisExp("muons", "all", "mass", "eta,mass"), "'mass' is also among the cell axes"),
        (lambda: AxisBernstein("muons", "all", "mass", "eta,mass"), "'mass' is also among the cell axes"),
        (lambda: AxisExp("muons", "all", "mass", "eta", slope_axes="pt"), "'pt' is none of the cell axes .eta"),
        (lambda: AxisExp("muons", "all", "energy", "eta"), "no axis 'energy'"),
        (lambda: AxisBernstein("muons", "all", "mass", "eta", degree=0), "degree: a whole number"),
        (lambda: AxisBernstein("muons", "all", "mass", "eta", form="sum"), "form: one of"),
        (lambda: Mu("ttbar"), "no channel has a process 'ttbar'"),
        (lambda: Mixture("signal", "signal"), "named twice"),
        (lambda: Mixture("signal", "background,other"), "as many complements"),
        (lambda: Composite(AxisNorm("muons", "all", "eta"), AxisNorm("muons", "signal", "eta")), "two models have"),
        (lambda: Composite(), "at least one model"),
        (lambda: ABCD("signal", {"A": "muons"}), "A, B, C, D are expected"),
        (lambda: ABCD("signal", dict.fromkeys("ABCD", "muons:eta")), "channel:axis=bin"),
        (lambda: ABCD("signal", dict.fromkeys("ABCD", "muons:eta=7")), "axis 'eta' has 3 bins, bin 7"),
        (lambda: ABCD("signal", {**dict.fromkeys("ABC", "muons"), "D": "muons:eta=1"}), "differs from the bins of"),
        (lambda: SmoothABCD("signal", dict.fromkeys("ABCD", "muons:eta=1"), "eta"), "none of the axes"),
        (lambda: parse_models(["AxisNrm muons signal eta"]), "'AxisNrm' is none of AxisNorm, AxisExp"),
        (lambda: parse_models(["AxisNorm muons"]), "missing .*usage: AxisNorm channel processes axes"),
        (lambda: parse_models(["AxisNorm muons signal eta pt mass"]), "at most 3 words"),
        (lambda: parse_models(["AxisExp muons signal mass eta degree=2"]), "unexpected keyword"),
        (lambda: parse_models(["os.system ls"]), "on the command line only"),
        (lambda: parse_models([["os.system", "ls"]], trusted=True) or None, "subclass of"),
        (lambda: parse_models([["nowhere.Model"]], trusted=True), "cannot be imported"),
        (lambda: Prior(0.0, 0.0), "width above 0"),
    ],
)
def test_a_mistake_is_named(channel, make, words):
    with pytest.raises(InputError, match=words):
        CellLikelihood([channel], make())


def test_a_start_or_prior_that_fits_nothing_is_named(channel):
    model = AxisNorm("muons", "signal", "eta")
    with pytest.raises(InputError, match="no parameter is called 'norm_background"):
        CellLikelihood([channel], model, start={"norm_background_*": 2.0})
    with pytest.raises(InputError, match=r"start \(--expect\) .*=-1: a .* cannot be -1"):
        CellLikelihood([channel], model, start={"norm_*": -1.0})
    with pytest.raises(InputError, match="no parameter is called 'slope_"):
        Composite(model, priors={"slope_*": (0.0, 1.0)}).bind([channel])


def test_channels_check_their_histograms(channel, caplog):
    h = histogram(np.ones((2, 3)), names=("mass", "eta"))
    other = histogram(np.ones((3, 2)), names=("eta", "mass"))
    with pytest.raises(InputError, match=r"axes eta \(3 bins\) x mass \(2 bins\) came, mass"):
        Channel.of("a", {"s": h, "b": other})
    with pytest.raises(InputError, match="an axis has no name"):
        Channel.of("a", {"s": hist.Hist(hist.axis.Regular(2, 0, 1))})
    with pytest.raises(InputError, match="histogram object"):
        Channel.of("a", {"s": np.ones(3)})
    with pytest.raises(InputError, match="signal 'x' is none"):
        Channel.of("a", {"s": h}, signals=["x"])
    with pytest.raises(InputError, match="counts must not be negative"):
        Channel.of("a", {"s": h}, data=h * -1)
    with pytest.raises(InputError, match="two are called 'muons'"):
        CellLikelihood([channel, channel])
    assert (Channel.of("a", {"s": h * -1}).templates["s"].values == 0).all()
    assert "6 bins below 0" in caplog.text
    labels = hist.Hist(hist.axis.StrCategory(["a", "b"], name="kind"), hist.axis.Regular(2, 0, 1, name="eta"))
    labels[...] = np.ones((2, 2))
    of_kinds = Channel.of("c", {"s": labels})
    with pytest.raises(InputError, match="categories"):
        CellLikelihood([of_kinds], AxisExp("c", "s", "kind", "eta"))


def test_only_a_weighted_storage_brings_variances():
    values = np.array([4.0, 9.0])
    plain, weighted = histogram(values, names=("x",)), histogram(values, values, names=("x",))
    templates = Channel.of("c", {"plain": plain, "weighted": weighted}).templates
    assert templates["plain"].variances is None
    assert templates["weighted"].variances.tolist() == [4.0, 9.0]  # unweighted simulation: k is the count itself


def test_the_grammar_of_the_seed(channel):
    model = parse_models(
        [
            ["AxisNormModel", "muons", "signal", "pt,eta,charge"],
            "AxisExpModel muons background mass pt,eta,charge eta",
            {
                "name": "AxisBernstein",
                "channel": "muons",
                "processes": ["other"],
                "shape_axis": "mass",
                "cell_axes": "pt",
            },
            "AxisBernstein muons background mass pt degree=3 form=fractions label=more",
            "Mu",
        ]
    )
    names = CellLikelihood([channel], model).parameter_names
    assert names[0] == "norm_signal_pt0_eta0_charge0"
    assert sum(name.startswith("slope_background") for name in names) == 3
    assert "c1_other_pt1" in names
    assert "more_frac3_background_pt0" in names
    assert names[-1] == "mu_signal"
    regions = "A=muons:pt=0,charge=0 B=muons:pt=0,charge=1 C=muons:pt=1,charge=0 D=muons:pt=1,charge=1"
    for text in (f"ABCD other {regions} corrected=true", f"SmoothABCD other mass {regions} order=2"):
        assert CellLikelihood([channel], parse_models([text])).n_poi == 0
