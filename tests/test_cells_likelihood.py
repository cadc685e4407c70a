"""The likelihood of cells: derivatives against finite differences, Barlow-Beeston against a search, pyhf-like sums."""

import functools

import cells
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from numpy.testing import assert_allclose

from specfit.errors import InputError
from specfit.stats import AutomaticDerivatives, asimov
from specfit.stats.cells import (
    ABCD,
    Additive,
    AxisBernstein,
    AxisExp,
    AxisNorm,
    CellLikelihood,
    Channel,
    Composite,
    LogNormal,
    Mu,
    Shape,
    SmoothABCD,
)
from specfit.stats.cells.arrow import ArrowMatrix
from specfit.stats.cells.bins import Bins
from specfit.stats.cells.structure import Structure
from specfit.stats.cells.systematics import asymmetry

SHAPE = (2, 7, 3)
NAMES = ("pt", "mass", "eta")


histogram = functools.partial(cells.histogram, names=NAMES)


def everything(*, weighted=True, empty=True, seed=1):
    """Every kind of model and systematic on two channels, with empty bins and a masked channel."""
    random = np.random.default_rng(seed)
    signal, background, other = random.uniform(1, 10, SHAPE), random.uniform(5, 20, SHAPE), random.uniform(0, 4, SHAPE)
    counts = random.poisson(signal + background + other).astype(float)
    if empty:
        counts[0, :, 0] = 0
        other[1, :2] = 0
    templates = {
        "signal": histogram(signal),
        "background": histogram(background, 0.3 * background if weighted else None),
        "other": histogram(other, 0.5 * other if weighted else None),
    }
    main = Channel.of("main", templates, data=histogram(counts), signals=["signal"])
    yields = random.uniform(3, 9, (4, 3))
    control = Channel.of(
        "control",
        {"background": histogram(yields, names=("region", "mass"))},
        data=histogram(random.poisson(yields).astype(float), names=("region", "mass")),
    )
    hidden = Channel.of("hidden", templates, data=histogram(counts), masked=True)
    regions = {letter: f"control:region={i}" for i, letter in enumerate("ABCD")}
    model = Composite(
        Mu(),
        AxisNorm("main", "signal", "eta,pt"),
        AxisExp("main", "background", "mass", "eta,pt", slope_axes="eta"),
        AxisBernstein("main", "other", "mass", "pt", degree=2, form="fractions"),
        ABCD("background", regions),
        SmoothABCD("background", regions, "mass", label="more"),
        priors={"slope_*": (0.1, 2.0), "more_*": (0.0, 1.0)},
    )
    systematics = [
        LogNormal("lumi", 1.05),
        LogNormal("asymmetric", (1.1, 0.95), "background"),
        LogNormal("lumi", (1.02, 0.97), "background"),  # the same nuisance twice on one process
        LogNormal("free", 1.2, "other", channels=["main"], constrained=False),
        LogNormal("local", 1.2, "signal", channels=["main"], cells="eta"),
        Shape("up", "main", "background", background * random.uniform(0.8, 1.2, SHAPE)),
        Shape(
            "both",
            "main",
            "background",
            histogram(background * random.uniform(0.8, 1.2, SHAPE)),
            down=histogram(background * random.uniform(0.8, 1.2, SHAPE)),
            symmetrize=None,
        ),
        Additive("added", "main", "other", other * random.uniform(0.9, 1.3, SHAPE)),
        Additive("added", "main", "signal", signal * random.uniform(0.9, 1.3, SHAPE)),
    ]
    return CellLikelihood([hidden, main, control], model, systematics)


def point(likelihood, seed=3, width=0.25):
    noise = torch.from_numpy(np.random.default_rng(seed).normal(0, width, likelihood.n_parameters))
    return likelihood.initial_values + noise


def differences(function, x, step=1e-3):
    """Central differences of fourth order, all in one batch; rows are the entries of x."""
    shifts = step * torch.eye(len(x), dtype=torch.float64)
    values = [function(x + k * shifts) for k in (-2, -1, 1, 2)]
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


@pytest.mark.parametrize(("weighted", "seed"), [(True, 3), (False, 4)])
def test_gradient_and_hessian_are_finite_differences(weighted, seed):
    likelihood = everything(weighted=weighted)
    x = point(likelihood, seed)
    gradient, hessian = likelihood.expand(x)
    assert_allclose(gradient, differences(likelihood.nll, x), rtol=1e-6, atol=1e-6)
    assert_allclose(hessian.to_dense(), differences(likelihood.gradient, x), rtol=1e-6, atol=1e-6)


def test_structured_derivatives_are_those_of_autograd():
    likelihood = everything()
    x, automatic = point(likelihood), AutomaticDerivatives(likelihood.nll)
    vector = point(likelihood, 9)
    assert_allclose(likelihood.expand(x).gradient, automatic.gradient(x), rtol=1e-10, atol=1e-10)
    assert_allclose(likelihood.hessian(x), automatic.hessian(x), rtol=1e-10, atol=1e-10)
    assert_allclose(likelihood.hvp(x, vector), automatic.hvp(x, vector), rtol=1e-10, atol=1e-9)


def test_a_batch_is_its_rows(rng):
    likelihood = everything(empty=False)
    x = torch.stack([point(likelihood, seed, 0.1) for seed in range(3)])
    toys = likelihood.with_data(likelihood.sample(x, rng=rng))
    assert toys.nll(x).shape == (3,)
    for i in range(3):
        one = likelihood.with_data(toys.data[i])
        assert_allclose(toys.nll(x)[i], one.nll(x[i]), rtol=1e-12)
        assert_allclose(toys.gradient(x)[i], one.gradient(x[i]), rtol=1e-9, atol=1e-9)
        assert_allclose(toys.hessian(x)[i], one.hessian(x[i]), rtol=1e-9, atol=1e-9)


def test_nll_is_the_sum_of_poisson_and_constraint_terms():
    likelihood = everything(weighted=False)
    x = point(likelihood)
    nu, n = likelihood.counts(x).numpy(), likelihood.data[: len(likelihood.counts(x))].numpy()
    poisson = scipy.stats.poisson.logpmf(n, n) - scipy.stats.poisson.logpmf(n, nu)
    expected = poisson.sum()
    for parameter, value in zip(likelihood.parameters, x.tolist(), strict=True):
        if parameter.prior is not None:
            expected += ((value - parameter.prior.mean) / parameter.prior.sigma) ** 2 / 2
    assert float(likelihood.nll(x)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("y0", [0.0, 3.0])
@pytest.mark.parametrize(("n", "b0"), [(0.0, 1.0), (12.0, 1.0), (30.0, 0.7)])
def test_barlow_beeston_is_the_lowest_over_its_factor(n, b0, y0):
    y, k = 11.0, 6.0

    def nll(beta):
        nu = beta * y + y0
        data = nu - n + (n * np.log(n / nu) if n else 0.0)
        return data + k * (beta - b0) - k * b0 * np.log(beta / b0)

    found = scipy.optimize.minimize_scalar(nll, bounds=(1e-3, 10), method="bounded", options={"xatol": 1e-10})
    tensors = [torch.tensor([value], dtype=torch.float64) for value in (y, y0, n, b0)]
    bins = Bins(torch.tensor([k], dtype=torch.float64))
    assert bins.factor(*tensors).item() == pytest.approx(found.x, rel=1e-6)
    assert bins.nll(*tensors).item() == pytest.approx(found.fun, rel=1e-9)


def test_barlow_beeston_lite_without_exact_events_is_its_closed_form():
    y, n, k = torch.tensor([4.0, 9.0, 2.0]).double(), torch.tensor([6.0, 0.0, 2.0]).double(), torch.tensor(5.0).double()
    bins = Bins(k.expand(3))
    assert_allclose(bins.factor(y, torch.zeros(3).double(), n, torch.ones(3).double()), (n + k) / (y + k), rtol=1e-14)


def test_statistics_of_the_simulation_widen_the_uncertainty():
    template, counts = np.full(4, 100.0), np.full(4, 110.0)

    def curvature(effective):
        h = histogram(template, None if effective is None else template**2 / effective, names=("x",))
        channel = Channel.of("c", {"s": h}, data=histogram(counts, names=("x",)), signals=["s"])
        likelihood = CellLikelihood([channel])
        at = torch.tensor([1.1], dtype=torch.float64)
        return likelihood.hessian(at).item()

    # mu = n / t with relative variance 1/n + 1/k in each of 4 bins.
    for k in (1e9, 400.0, 50.0):
        assert curvature(k) == pytest.approx(4 / (1.1**2 * (1 / 110 + 1 / k)), rel=0.02 if k < 100 else 1e-3)
    assert curvature(None) == pytest.approx(curvature(1e12), rel=1e-6)


def test_bins_below_the_least_effective_number_have_no_factor():
    values = np.array([10.0, 10.0])
    channel = Channel.of("c", {"s": histogram(values, np.array([1.0, 50.0]), names=("x",))})
    assert CellLikelihood([channel], Mu("s")).bins.effective.tolist() == [100.0, 2.0]
    assert CellLikelihood([channel], Mu("s"), least_effective=5.0).bins.effective.tolist() == [100.0, 0.0]
    assert CellLikelihood([channel], Mu("s"), barlow_beeston=False).bins.effective.tolist() == [0.0, 0.0]


def shifted(systematic, theta, nominal):
    channel = Channel.of("c", {"s": histogram(nominal, names=("x",))})
    likelihood = CellLikelihood([channel], None, [systematic])
    at = torch.zeros(likelihood.n_parameters, dtype=torch.float64)
    at[: len(np.atleast_1d(theta))] = torch.tensor(theta, dtype=torch.float64)
    return likelihood.counts(at).numpy()


NOMINAL, UP, DOWN = np.array([10.0, 20.0, 0.0, 5.0]), np.array([12.0, 19.0, 1.0, 0.0]), np.array([9.0, 20.5, 0.0, 6.0])


def test_shapes_meet_their_histograms():
    exact = np.array([12.0, 19.0, 0.0, 5e-3])  # empty stays empty; a variation to nothing counts as a thousandth
    for theta in (1.0, -1.0):
        expected = exact if theta > 0 else np.array([9.0, 20.5, 0.0, 6.0])
        got = shifted(Shape("s", "c", "s", UP, down=DOWN, symmetrize=None), theta, NOMINAL)
        assert_allclose(got, expected, rtol=1e-12)
    assert_allclose(shifted(Shape("s", "c", "s", UP), 1.0, NOMINAL), exact, rtol=1e-12)
    mirrored = np.divide(NOMINAL**2, exact, out=np.zeros(4), where=exact > 0)
    assert_allclose(shifted(Shape("s", "c", "s", UP), -1.0, NOMINAL), mirrored, rtol=1e-12)
    assert_allclose(shifted(Additive("s", "c", "s", UP), 0.5, NOMINAL), NOMINAL + 0.5 * (UP - NOMINAL), rtol=1e-12)


def test_each_way_to_symmetrize():
    up, down = np.log(12 / 10), -np.log(9 / 10)
    first = lambda **options: np.log(shifted(Shape("s", "c", "s", UP, down=DOWN, **options), 1.0, NOMINAL)[0] / 10)  # noqa: E731
    assert first(symmetrize="average") == pytest.approx((up + down) / 2)
    assert first(symmetrize="conservative") == pytest.approx(max(up, down))
    assert first(symmetrize="average", scale=2.0) == pytest.approx(up + down)
    for symmetrize, scale in (("linear", 1.0), ("quadratic", np.sqrt(3))):
        systematic = Shape("s", "c", "s", UP, down=DOWN, symmetrize=symmetrize)
        got = np.log(shifted(systematic, [0.0, 1.0], NOMINAL)[0] / 10)
        assert got == pytest.approx(scale * (up - down) / 2)


def test_the_asymmetric_switch_is_smooth_and_its_derivatives_exact():
    theta = torch.linspace(-1.3, 1.3, 53, dtype=torch.float64, requires_grad=True)
    value, slope, curvature = asymmetry(theta)
    (first,) = torch.autograd.grad(value.sum(), theta, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), theta)
    assert_allclose(slope.detach(), first.detach(), atol=1e-13)
    assert_allclose(curvature.detach(), second, atol=1e-12)
    near = torch.tensor([0.5 - 1e-9, 0.5 + 1e-9, -0.5 + 1e-9, -0.5 - 1e-9], dtype=torch.float64)
    for part in asymmetry(near):
        assert_allclose(part[::2], part[1::2], atol=1e-6)
    assert_allclose(asymmetry(torch.tensor([2.0, -2.0]).double())[0], [2.0, 2.0])


def test_parameters_come_in_order_with_free_systematics_first():
    likelihood = everything()
    names = likelihood.parameter_names
    assert names.index("free") < names.index("lumi") < names.index("added") < names.index("local_eta0")
    assert likelihood.n_poi == names.index("A_background_mass0")
    assert set(likelihood.events(likelihood.initial_values)) == {"main", "control", "hidden"}
    assert len(likelihood.counts(likelihood.initial_values)) == 42 + 12  # the masked channel is predicted only


def test_asimov_data_have_their_minimum_where_they_were_made():
    likelihood = everything(weighted=True)
    made = asimov(likelihood, point(likelihood, width=0.1))
    assert float(made.nll(point(likelihood, width=0.1))) == pytest.approx(0.0, abs=1e-12)
    assert made.gradient(point(likelihood, width=0.1)).abs().max() < 1e-9


def test_toys_have_the_mean_and_spread_of_their_model(rng):
    likelihood = everything()
    x = point(likelihood, width=0.1)
    toys = likelihood.sample(x.expand(4000, -1), rng=rng)
    mean = likelihood.expected(x)
    spread = toys.std(0)
    assert ((toys.mean(0) - mean) / (spread / 4000**0.5).clamp(min=1e-9)).abs().max() < 4.5
    n = len(likelihood.counts(x))
    assert_allclose(spread[:n], mean[:n].sqrt(), rtol=0.06)


def test_mistakes_are_named():
    h = histogram(np.ones(3), names=("x",))
    channel = Channel.of("c", {"s": h})
    for systematic, words in (
        (lambda: LogNormal("k", -1.0), "factor above 0"),
        (lambda: LogNormal("k", 1.1, "t"), "no channel has a process 't'"),
        (lambda: LogNormal("k", 1.1, channels=["d"]), "no channel 'd'"),
        (lambda: Shape("k", "c", "s", np.ones(4)), r"bins of shape \(3,\)"),
        (lambda: Shape("k", "c", "s", np.ones(3), symmetrize="odd"), "symmetrize is one of"),
        (lambda: Additive("k", "c", "s", np.ones(3), down=np.ones(3), symmetrize=None), "choose how to symmetrize"),
        (lambda: Additive("k", "c", "s", np.ones(3), cells="x"), "cannot be split"),
    ):
        with pytest.raises(InputError, match=words):
            CellLikelihood([channel], None, [systematic()])
    with pytest.raises(InputError, match="other constraints"):
        CellLikelihood([channel], None, [LogNormal("k", 1.1), LogNormal("k", 1.1, constrained=False)])
    with pytest.raises(InputError, match="rename one"):
        CellLikelihood([channel], Mu("s"), [LogNormal("mu_s", 1.1)])
    with pytest.raises(InputError, match="numbers or 3 counts"):
        CellLikelihood([channel], Mu("s")).with_data(torch.ones(5))
    with pytest.raises(InputError, match="not masked"):
        CellLikelihood([Channel.of("c", {"s": h}, masked=True)], Mu("s"))


def random_arrow(seed, n_border):
    random = np.random.default_rng(seed)
    groups = [[0, 5], [2], [3, 7, 9], [4, 10], [8]]
    border = [1, 6][:n_border]
    members = [*groups, *([[1], [6]][n_border:])]
    width = max(map(len, members))
    table = torch.tensor([[*group, *border, *[11] * (width - len(group))] for group in members])
    structure = Structure(11, [table], torch.tensor(border, dtype=torch.long))
    root = np.zeros((11, 40))
    for group in members:
        root[np.ix_(group + border, random.choice(40, 8, replace=False))] += random.normal(
            size=(len(group + border), 8)
        )
    dense = torch.from_numpy(root @ root.T) + torch.eye(11)
    mask = torch.zeros(11, 11, dtype=torch.bool)
    for group in members:
        rows = torch.tensor(group + border)
        mask[rows[:, None], rows] = True
    return structure, table, dense * mask + 20 * torch.eye(11)


@pytest.mark.parametrize("n_border", [0, 1, 2])
def test_arrow_algebra_is_dense_algebra(n_border):
    structure, table, dense = random_arrow(5, n_border)
    assert sorted(structure.border.tolist()) == [1, 6][:n_border]
    # Every pair of columns of a bin lands in its place: fill with the entry itself, divided by how often it comes.
    store = torch.zeros(structure.n_entries, dtype=torch.float64)
    padded = torch.nn.functional.pad(dense, (0, 1, 0, 1))
    pairs = padded[table[:, :, None], table[:, None, :]].reshape(-1)
    times = torch.zeros_like(store).index_add_(0, structure.targets[0], torch.ones_like(pairs))
    store.index_add_(0, structure.targets[0], pairs)
    matrix = ArrowMatrix.from_store(structure, store / times.clamp(min=1))
    vector = torch.arange(11.0).double() - 3
    assert_allclose(matrix.to_dense(), dense, rtol=1e-14)
    assert_allclose(matrix.matvec(vector), dense @ vector, rtol=1e-12)
    assert_allclose(matrix.diagonal(), dense.diagonal(), rtol=1e-14)
    factor, inverse = matrix.factorize(), torch.linalg.inv(dense)
    assert not factor.lifted.any()
    assert_allclose(factor.solve(vector), inverse @ vector, rtol=1e-10)
    assert_allclose(factor.inverse_diagonal(), inverse.diagonal(), rtol=1e-12)
    assert_allclose(factor.inverse(), inverse, rtol=1e-10, atol=1e-14)
    columns = torch.tensor([6, 0, 9])
    assert_allclose(factor.inverse_columns(columns), inverse[:, columns], rtol=1e-10, atol=1e-14)
