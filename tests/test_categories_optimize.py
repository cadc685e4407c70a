"""Optimising categories, and their way to and from files: what is promised is reached, what is wrong is said."""

import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import uproot
from numpy.testing import assert_allclose

from specfit.categories import (
    Events,
    GaussianMixtureBins,
    MassWindow,
    Objective,
    Sample,
    Schedule,
    SigmoidBins,
    evaluate_events,
    load_bins,
    load_history,
    optimal_boundaries,
    optimize,
    read_events,
    save_bins,
    save_history,
    toy_1d,
    toy_diphoton,
)
from specfit.categories.optimum import exchange_boundaries
from specfit.errors import InputError

LIMITS = Objective(least_background=5.0, largest_uncertainty=1.0, constrained=True)


@pytest.fixture(scope="module")
def toy():
    return toy_1d(20_000, 60_000)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow
def test_optimised_bins_of_the_full_toy_come_within_a_percent_of_the_exact_optimum():
    toy = toy_1d()
    sample = Sample.of(toy, signals=["signal"])
    for n in (3, 5, 10, 20):
        options = {"signals": ["signal"], "objective": LIMITS, "test_fraction": 0.0}
        found = optimize(SigmoidBins(n, rng=seeded()), toy, rng=seeded(), **options)
        best = optimal_boundaries(sample, n, signal="signal", objective=LIMITS, candidates=1200)
        assert found.converged
        assert 0.99 * best.significance < found.train.combined <= best.significance * 1.001
        assert found.train.mean_bias < 1e-3


def test_optimised_bins_come_close_to_the_exact_optimum(toy):
    found = optimize(
        SigmoidBins(3, rng=seeded()),
        toy,
        signals=["signal"],
        rng=seeded(),
        objective=LIMITS,
        restarts=2,
    )
    seen, _ = toy.split(0.25, rng=seeded())
    best = optimal_boundaries(seen, 3, signal="signal", objective=LIMITS, candidates=1200)
    assert found.converged
    assert 0.99 * best.significance < found.train.combined <= best.significance * 1.001
    assert found.train.mean_bias < 1e-3
    error = np.hypot(found.train.combined_error, found.test.combined_error)
    assert abs(found.train.combined - found.test.combined) < 3 * error
    assert found.train.combined == max(found.starts)


def test_the_course_of_a_training_is_kept(toy, tmp_path):
    steps = []
    found = optimize(
        SigmoidBins(3, rng=seeded()),
        toy,
        signals=["signal"],
        rng=seeded(),
        epochs=21,
        restarts=2,
        record_every=10,
        hardening=Schedule(50.0, 1e3),
        progress=steps.append,
    )
    history = found.history
    assert steps == list(range(1, 43))
    assert history.loss.shape == (21,)
    assert history.recorded.tolist() == [0, 10, 20, 21]
    assert history.sharpness[-1] == 1e3
    assert history.loss[-1] < history.loss[0] < 0
    # The loss of an epoch is that of the state kept for it.
    bins, sample = SigmoidBins(3), Sample.of(toy.split(0.25, rng=seeded())[0], signals=["signal"])
    history.restore(bins, 7)
    terms = Objective().terms(sample.yields(bins.soft_totals(sample)))
    assert_allclose(terms.loss.item(), history.loss[7].item(), rtol=1e-12)
    assert_allclose(terms.low_background.item(), history.low_background[7].item(), rtol=1e-9)
    save_history(history, tmp_path / "history.safetensors")
    for name, value in load_history(tmp_path / "history.safetensors").tensors().items():
        assert torch.equal(value, history.tensors()[name])


def test_no_single_boundary_can_be_moved_to_a_better_place(rng):
    x = torch.rand(60, generator=rng).double()
    events = Events.of({"s": (x[:20] ** 0.5, 0.2), "b": (x[20:], 1.0)})
    sample = Sample.of(events, signals=["s"])
    limits = Objective(least_background=3.0, largest_uncertainty=1.0, constrained=True)
    start = torch.tensor([0.3, 0.6]).double()
    best = optimal_boundaries(sample, 3, signal="s", objective=limits)
    found = exchange_boundaries(start, sample, limits, low=0.0, high=1.0)
    bins = SigmoidBins(3)

    def reached(boundaries):
        bins.place(boundaries)
        one = evaluate_events(bins, events, signals=["s"], objective=limits)
        return one.combined if one.feasible else -np.inf

    # The best one boundary at a time need not be the best of all, but here it nearly is.
    assert best.exact
    assert 0.95 * best.significance < reached(found) <= best.significance * (1 + 1e-9)
    x = events.features[:, 0].sort().values
    for place in (x[1:] + x[:-1]) / 2:
        for moved in (torch.stack((place, found[1])), torch.stack((found[0], place))):
            if 0 < moved[0] < moved[1] < 1:
                assert reached(moved) <= reached(found) + 1e-9
    impossible = Objective(least_background=100.0, constrained=True)
    assert torch.equal(exchange_boundaries(start, sample, impossible, low=0.0, high=1.0), start)
    assert torch.equal(exchange_boundaries(start, sample, limits, low=5.0, high=6.0), start)


def test_sources_seeded_alike_do_not_climb_the_same_way_twice(toy):
    options = {"signals": ["signal"], "restarts": 3, "epochs": 5, "test_fraction": 0.0}
    found = optimize(SigmoidBins(5, rng=seeded()), toy, rng=seeded(), **options)
    assert len(set(found.starts)) == 3


def test_a_category_without_background_cannot_be_the_best():
    # Above 0.9 no background was simulated.
    x = torch.linspace(0, 1, 400, dtype=torch.float64)
    events = Events.of({"s": (x**0.3, 0.05), "b": (0.9 * x, 1.0)})
    goal = Objective()
    sample = Sample.of(events, signals=["s"])
    reached = {}
    for edges in ([0.5, 0.8], [0.5, 0.95]):
        bins = SigmoidBins(3)
        bins.place(torch.tensor(edges).double())
        yields = sample.yields(bins.hard_totals(sample))
        reached[bool(goal.are_sound(yields))] = goal.significances(yields).item()
    assert reached[False] > 2 * reached[True]


def test_statistical_errors_are_those_of_other_toys(toy):
    bins = SigmoidBins(3)
    bins.place(torch.tensor([0.9, 0.98], dtype=torch.float64))
    error = evaluate_events(bins, toy, signals=["signal"]).combined_error
    others = [
        evaluate_events(bins, toy_1d(20_000, 60_000, seed=seed), signals=["signal"]).combined
        for seed in range(100, 112)
    ]
    assert 0.5 * error < np.std(others, ddof=1) < 1.7 * error


def test_a_constraint_that_cannot_be_kept_is_said(toy):
    found = optimize(
        SigmoidBins(3, rng=seeded()),
        toy,
        signals=["signal"],
        rng=seeded(),
        objective=Objective(least_background=1e5, constrained=True),
        epochs=10,
        restarts=1,
    )
    assert not found.converged
    assert "take fewer" in found.message


def test_penalties_keep_the_background_up(toy):
    def least(strength):
        objective = Objective(least_background=60.0, background_strength=strength)
        options = {"signals": ["signal"], "objective": objective, "restarts": 1}
        found = optimize(SigmoidBins(10, rng=seeded()), toy, rng=seeded(), **options)
        return found.train.yields.background.min().item()

    assert least(0.0) < 40
    assert least(1.0) > 59


def test_minibatches_reach_about_the_same(toy):
    options = {"signals": ["signal"], "objective": LIMITS, "restarts": 1, "test_fraction": 0.0}
    whole = optimize(SigmoidBins(3, rng=seeded()), toy, rng=seeded(), **options)
    parts = optimize(
        SigmoidBins(3, rng=seeded()), toy, rng=seeded(), epochs=25, batch_size=8000, record_every=5, **options
    )
    assert parts.test is None
    assert parts.train.combined > 0.97 * whole.train.combined


def test_minibatches_keep_the_expected_totals(toy):
    sample = Sample.of(toy, signals=["signal"], scaled=["bkg1"])
    totals = [sample.minibatch(20_000, rng=seeded(i)).table.sum(1) for i in range(5)]
    expected = sample.table.sum(1)
    for i in (0, 1, 3):  # weights; those squared are of a smaller sample
        assert_allclose(torch.stack(totals)[:, i].mean(), expected[i], rtol=0.01)


def test_categories_of_a_resonance_beat_argmax_and_annealing_acts():
    toy = toy_diphoton(8000, 60_000)
    options = {
        "signals": ["signal1", "signal2"],
        "window": MassWindow(interval=20),
        "epochs": 80,
        "learning_rate": Schedule(0.05, 0.001),
        "restarts": 2,
        "test_fraction": 0.0,
    }
    found, fixed = (
        optimize(GaussianMixtureBins(3, 2, rng=seeded(5)), toy, rng=seeded(5), hardening=hardening, **options)
        for hardening in (Schedule(1.0, 0.02, "exponential"), Schedule(1.0, 1.0))
    )
    assert found.train.significances[0] > 3.5
    assert found.train.significances[1] > 0.6
    # A state that softens away from its hard yields is not what annealing leaves behind.
    assert found.train.bias.abs().max() < 0.1 * fixed.train.bias.abs().max() + 1e-3
    assert found.in_window.yields.background.sum().item() == pytest.approx(1178, rel=0.05)
    # The window estimated from the whole range agrees with the events in it.
    difference = found.train.yields.background - found.in_window.yields.background
    spread = (found.train.yields.variance + found.in_window.yields.variance).sqrt()
    assert (difference.abs() < 4 * spread + 0.02 * found.in_window.yields.background).all()


def test_backgrounds_that_are_not_scaled_count_in_the_window_only():
    toy = toy_diphoton(2000, 20_000)
    window = MassWindow(scaled=("bkg1", "bkg2"))
    bins = GaussianMixtureBins(2, 2, rng=seeded())
    reached = evaluate_events(bins, toy, signals=["signal1"], window=window)
    inside = toy.where(toy.in_window(window.low, window.high)).totals
    expected = inside["bkg3"] + inside["bkg4"] + inside["bkg5"] + inside["signal2"]
    scaled = reached.yields.background.sum().item() - expected
    assert scaled == pytest.approx(inside["bkg1"] + inside["bkg2"], rel=0.05)


def test_with_nothing_scaled_an_optimisation_sees_the_events_in_the_window_only():
    toy, window = toy_diphoton(1000, 8000), MassWindow(scaled=())
    options = {"signals": ["signal1", "signal2"], "epochs": 10, "restarts": 1, "test_fraction": 0.0}
    found = optimize(GaussianMixtureBins(3, 2, rng=seeded()), toy, rng=seeded(), window=window, **options)
    inside = toy.where(toy.in_window(window.low, window.high))
    alone = optimize(GaussianMixtureBins(3, 2, rng=seeded()), inside, rng=seeded(), **options)
    assert found.train.combined == found.in_window.combined == pytest.approx(alone.train.combined, rel=1e-12)


def test_events_with_one_value_or_one_event_do_not_break_it():
    for tables in (
        {"s": ([0.5] * 20, 0.1), "b": ([0.5] * 30, 1.0)},
        {"s": ([0.7], 0.1), "b": ([0.2], 1.0)},
    ):
        found = optimize(
            SigmoidBins(3), Events.of(tables), signals=["s"], rng=seeded(), epochs=5, restarts=2, test_fraction=0.0
        )
        assert np.isfinite(found.train.combined)
        assert found.bins.boundaries().isfinite().all()


def test_mistakes_are_named(toy):
    options = {"signals": ["signal"], "rng": seeded()}
    with pytest.raises(InputError, match="'sgnal' is not among the events; there are signal, bkg1"):
        optimize(SigmoidBins(3), toy, **options | {"signals": ["sgnal"]})
    with pytest.raises(InputError, match="epochs"):
        optimize(SigmoidBins(3), toy, epochs=0, **options)
    with pytest.raises(InputError, match="shape \\(n, 2\\)"):
        optimize(GaussianMixtureBins(3, 2), toy, **options)
    with pytest.raises(InputError, match="mass: these events have none"):
        optimize(SigmoidBins(3), toy, window=MassWindow(), **options)
    with pytest.raises(InputError, match="signals"):
        Sample.of(toy, signals=[])
    with pytest.raises(InputError, match="fraction"):
        toy.split(1.5, rng=seeded())


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"s": ([0.1, np.nan], 1.0)}, "features: 1 of 2 values are not finite"),
        ({"s": ([0.1], [np.inf])}, "weights: 1 of 1"),
        ({"s": ([0.1, 0.2], [1.0])}, "weights: 2 values are expected"),
        ({"s": ([0.1], 1.0), "b": ([[0.1, 0.2]], 1.0)}, "same number of them"),
        ({"s": ([0.1], 1.0), "b": ([0.1], 1.0, [5.0])}, "some processes have it"),
        ({"s": ([0.1],)}, "is expected, 1 came"),
        ({"s": (["x"], 1.0)}, "real numbers are expected"),
        ({}, "same number of them"),
    ],
)
def test_bad_events_are_refused(tables, message):
    with pytest.raises(InputError, match=message):
        Events.of(tables)


# Files


@pytest.fixture
def table(rng):
    n = 30
    return {
        "process": np.array(["s"] * 10 + ["b"] * 20),
        "score": torch.rand(n, generator=rng).double().numpy(),
        "other": torch.rand(n, generator=rng).double().numpy(),
        "weight": torch.randn(n, generator=rng).double().numpy(),
        "mass": torch.rand(n, generator=rng).double().numpy(),
    }


def test_every_kind_of_file_holds_the_same_events(table, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", **table)
    numbers = {name: values for name, values in table.items() if name != "process"}
    split = {}
    for name in ("s", "b"):
        chosen = table["process"] == name
        split[name] = f"{tmp_path / name}.root:tree"
        with uproot.recreate(tmp_path / f"{name}.root") as file:
            file["tree"] = {key: values[chosen] for key, values in numbers.items()}
    options = {"features": ["score", "other"], "mass": "mass"}
    for path in (tmp_path / "a.parquet", tmp_path / "a.npz", split):
        events = read_events(path, **options)
        assert events.processes == ("s", "b")
        assert_allclose(events.features[:, 1], table["other"])
        assert_allclose(events.weights, table["weight"])
        assert_allclose(events.mass, table["mass"])
    assert read_events(tmp_path / "a.npz", features="score", weight=None).totals == {"s": 10.0, "b": 20.0}


def test_events_without_a_process_are_refused(table, tmp_path):
    table["process"] = [None, None, *table["process"][2:]]
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="2 of 30 events have no 'process'"):
        read_events(tmp_path / "a.parquet", features=["score"])


def test_bad_files_are_refused_in_words(table, tmp_path):
    np.savez(tmp_path / "a.npz", **table)
    with pytest.raises(InputError, match=r"there is no column 'scor'; there are process, score"):
        read_events(tmp_path / "a.npz", features=["scor"])
    with pytest.raises(InputError, match="one column or more"):
        read_events(tmp_path / "a.npz", features=[])
    with pytest.raises(InputError, match="one file for each process"):
        read_events(tmp_path / "a.npz", features=["score"], process=None)
    with pytest.raises(InputError, match="ending"):
        read_events(tmp_path / "a.txt", features=["score"])
    with pytest.raises(FileNotFoundError):
        read_events(tmp_path / "b.parquet", features=["score"])
    (tmp_path / "c.parquet").write_bytes(b"not a parquet file at all")
    with pytest.raises(InputError, match="pyarrow cannot read this"):
        read_events(tmp_path / "c.parquet", features=["score"])
    with uproot.recreate(tmp_path / "d.root") as file:
        file["tree"] = {"score": np.ones(3)}
        file["histogram"] = np.histogram([1.0, 2.0])
    with pytest.raises(InputError, match=r"file\.root:tree"):
        read_events(tmp_path / "d.root", features=["score"])
    with pytest.raises(InputError, match="uproot cannot read this"):
        read_events(f"{tmp_path / 'd.root'}:wood", features=["score"])
    with pytest.raises(InputError, match="this is a TH1D, a tree of events is expected"):
        read_events(f"{tmp_path / 'd.root'}:histogram", features=["score"])
    np.savez(tmp_path / "none.npz", **{name: values[:0] for name, values in table.items()})
    with pytest.raises(InputError, match="no events in it"):
        read_events(tmp_path / "none.npz", features=["score"])
    np.savez(tmp_path / "e.npz", process=np.array([{"a": 1}], dtype=object), score=np.ones(1), weight=np.ones(1))
    with pytest.raises(InputError, match="objects"):
        read_events(tmp_path / "e.npz", features=["score"])


@pytest.mark.parametrize(
    "bins",
    [
        SigmoidBins([3, 4], low=[0.0, -1.0], high=[2.0, 1.0], steepness=77.0, rng=seeded()),
        GaussianMixtureBins(3, 2, temperature=0.3, damping=0.2, rng=seeded()),
        GaussianMixtureBins(4, 1, region="box", low=-1.0, high=5.0, rng=seeded()),
    ],
    ids=["sigmoid", "simplex", "box"],
)
def test_categories_come_back_from_a_file(bins, tmp_path, rng):
    path = save_bins(bins, tmp_path / "bins.safetensors")
    again = load_bins(path)
    x = torch.rand(50, bins.n_features, generator=rng, dtype=torch.float64)
    assert type(again) is type(bins)
    assert again.arguments == bins.arguments
    assert torch.equal(again.memberships(x), bins.memberships(x))


def test_foreign_files_are_not_categories(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_bins(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="damaged"):
        load_bins(tmp_path / "bad.safetensors")
    save_bins(SigmoidBins(3), tmp_path / "bins.safetensors")
    with pytest.raises(InputError, match="of history"):
        load_history(tmp_path / "bins.safetensors")
    with pytest.raises(InputError, match="ends in"):
        save_bins(SigmoidBins(3), tmp_path / "bins.pt")
