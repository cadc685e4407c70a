"""Unbinned channels: against formulas written out, against their own histogram, and by the coverage of toys."""

import events
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.autograd import gradcheck, gradgradcheck

from specfit.errors import InputError
from specfit.stats import StatisticalModel, Workspace, fit, fit_many, scan, toys, unbinned
from specfit.stats.event_chunks import CHUNK, EventTable, Variation
from specfit.stats.interpolation import code4
from specfit.stats.unbinned import EventTerm


def model_of(folder, **options):
    return StatisticalModel(Workspace(events.write_workspace(folder, **options), folder=folder))


def small_table(n=40, *, seed=1):
    random = np.random.default_rng(seed)
    ratios = [random.uniform(0.2, 2.0, n) for _ in range(3)]
    all_of = Variation((0, 1, 2), [random.uniform(0.8, 1.3, n) for _ in range(3)], [random.uniform(0.8, 1.3, n)] * 3)
    some = Variation((1,), [random.uniform(0.7, 1.4, n)], [random.uniform(0.7, 1.4, n)])
    return EventTable(ratios, [all_of, some]), torch.from_numpy(random.uniform(0.1, 2.0, n))


def written_out(phi, table, weights):
    """The sum over events by plain formulas of torch."""
    densities = [torch.from_numpy(r) for r in table.ratios]
    for variation, alpha in zip(table.variations, phi[3:], strict=True):
        for sample, up, down in zip(*variation, strict=True):
            densities[sample] = densities[sample] * code4(alpha, torch.from_numpy(up), torch.from_numpy(down))
    return -(weights * (phi[:3] @ torch.stack(densities)).log()).sum()


@pytest.mark.parametrize("alphas", [(0.3, -0.6), (1.7, 0.2), (-2.2, 1.5), (1.0, -1.0), (0.0, 0.0)])
def test_value_gradient_and_hessian_are_those_of_the_formula(alphas):
    table, weights = small_table()
    term = EventTerm(table, weights)
    phi = torch.tensor([50.0, 20.0, 80.0, *alphas], dtype=torch.float64)
    assert_allclose(term(phi[None])[0], written_out(phi, table, weights), rtol=1e-13)
    ours = torch.autograd.functional.hessian(lambda x: term(x[None])[0], phi)
    theirs = torch.autograd.functional.hessian(lambda x: written_out(x, table, weights), phi)
    assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12 * theirs.abs().max())
    slope = torch.autograd.functional.jacobian(lambda x: term(x[None])[0], phi)
    assert_allclose(
        slope, torch.autograd.functional.jacobian(lambda x: written_out(x, table, weights), phi), rtol=1e-11
    )


def test_autograd_goes_through_events_twice():
    table, weights = small_table()
    term = EventTerm(table, weights)
    phi = torch.tensor([[50.0, 20.0, 80.0, 0.4, -0.3]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(term, phi)
    assert gradgradcheck(term, phi)


def test_chunks_and_weights_of_zero_change_nothing():
    table, weights = small_table(3 * CHUNK + 7)
    phi = torch.tensor([50.0, 20.0, 80.0, 0.4, -0.3], dtype=torch.float64)
    assert_allclose(EventTerm(table, weights)(phi[None])[0], written_out(phi, table, weights), rtol=1e-12)
    few = weights * (torch.arange(len(weights)) % 5 == 0)
    assert_allclose(EventTerm(table, few)(phi[None])[0], written_out(phi, table, few), rtol=1e-12)


def test_many_points_in_one_pass_are_the_single_ones_on_any_number_of_threads():
    table, weights = small_table(2 * CHUNK + 5)
    phi = torch.tensor([50.0, 20.0, 80.0, 0.4, -0.3], dtype=torch.float64).repeat(5, 1)
    phi[1, 0], phi[2, 3], phi[3, 4] = 70.0, 1.8, -1.3  # a yield alone, and variations inside and outside
    phi[4] = phi[2]
    single = [EventTerm(table, weights) for _ in phi]
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            term = EventTerm(table, weights)
            found.append((term(phi), term.gradient(phi), term.hessian(phi), term(phi)))
    finally:
        torch.set_num_threads(before)
    value, gradient, hessian, again = found[0]
    assert_allclose(again, value, rtol=1e-13)  # from the pass that gave the Hessian
    for i, (term, row) in enumerate(zip(single, phi[:, None], strict=True)):
        assert_allclose(value[i], written_out(row[0], table, weights), rtol=1e-12)
        assert_allclose(gradient[i], term.gradient(row)[0], rtol=1e-12)
        assert_allclose(hessian[i], term.hessian(row)[0], rtol=1e-11, atol=1e-12 * hessian[i].abs().max())
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_minimiser_passes_over_the_events_once_a_step(tmp_path, monkeypatch):
    passes = []
    computed = unbinned.sum_over

    def counted(table, weights, points, piece):
        passes.append(len(points.yields))
        return computed(table, weights, points, piece)

    monkeypatch.setattr(unbinned, "sum_over", counted)
    model = model_of(tmp_path, per_sample=1000)
    best = fit(model, start=model.initial_values + 0.1)
    assert best.converged
    assert len(passes) <= best.n_steps + 3  # the start twice, each step, its end


def test_several_unbinned_channels_beside_binned_ones(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = events.write_workspace(tmp_path / "a", per_sample=300)
    second = events.write_workspace(tmp_path / "b", per_sample=200, seed=8)
    binned = events.write_workspace(tmp_path, n_bins=4)
    separate = [
        StatisticalModel(Workspace(first, folder=tmp_path / "a")),
        StatisticalModel(Workspace(second, folder=tmp_path / "b")),
        StatisticalModel(binned),
    ]
    for document, folder, name in ((first, "a", "one"), (second, "b", "two"), (binned, "", "three")):
        channel = document["channels"][0]
        channel["name"] = name
        if folder:
            channel["weights"] = f"{folder}/weights.npy"
            for sample in channel["samples"]:
                sample["ratios"] = f"{folder}/{sample['ratios']}"
                for modifier in sample["modifiers"][1:]:
                    for side in ("hi_ratio", "lo_ratio"):
                        modifier["data"][side] = f"{folder}/{modifier['data'][side]}"
    joined = StatisticalModel(
        Workspace(first | {"channels": [d["channels"][0] for d in (first, second, binned)]}, folder=tmp_path)
    )
    x = joined.initial_values + torch.tensor([0.2, -0.1, 0.05, 0.4, -0.7], dtype=torch.float64)
    constraint = (x[3:] ** 2).sum() / 2  # in each of the three, once in the joint model
    assert_allclose(joined.nll(x), sum(m.nll(x) for m in separate) - 2 * constraint, rtol=1e-11)
    assert joined.parameter_names == separate[0].parameter_names


def test_derivatives_are_those_of_finite_differences(tmp_path):
    model = model_of(tmp_path, per_sample=400)
    x = model.initial_values + torch.tensor([0.3, -0.2, 0.1, 0.5, -1.4], dtype=torch.float64)
    step = 1e-5 * torch.eye(5, dtype=torch.float64)
    gradient = (model.nll(x + step) - model.nll(x - step)) / 2e-5
    assert_allclose(model.gradient(x), gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max())
    hessian = (model.gradient(x + step) - model.gradient(x - step)) / 2e-5
    assert_allclose(model.hessian(x), hessian, rtol=1e-6, atol=1e-6 * hessian.abs().max())


def test_float32_files_differ_by_their_rounding(tmp_path):
    (tmp_path / "f").mkdir()
    exact, single = model_of(tmp_path, per_sample=400), model_of(tmp_path / "f", per_sample=400, dtype=np.float32)
    x = exact.initial_values + 0.3
    assert_allclose(single.nll(x), exact.nll(x), rtol=1e-4)


def test_asimov_data_give_back_what_made_them(tmp_path):
    model = model_of(tmp_path, per_sample=20_000)
    truth = torch.tensor([1.8, 0.7, 1.1, 0.4, -0.5], dtype=torch.float64)
    found = fit(model.with_data(model.expected(truth)))
    assert found.converged
    # A finite sample of events is not exactly its density.
    assert_allclose((found.values - truth) / found.uncertainties, 0.0, atol=0.25)


def test_an_unbinned_fit_beats_its_own_histogram_as_the_truth_predicts(tmp_path):
    unbinned = fit(model_of(tmp_path, per_sample=20_000))
    histogram = fit(StatisticalModel(events.write_workspace(tmp_path, n_bins=5)))
    fine = fit(StatisticalModel(events.write_workspace(tmp_path, n_bins=400)))
    assert unbinned.uncertainty("mu_signal") < 0.95 * histogram.uncertainty("mu_signal")
    # The limit of ever finer bins of the simulated densities is what the events know.
    assert_allclose(unbinned.uncertainty("mu_signal"), fine.uncertainty("mu_signal"), rtol=0.02)
    gain = histogram.uncertainty("mu_signal") / unbinned.uncertainty("mu_signal")
    assert_allclose(gain, histogram.uncertainty("mu_signal") / fine.uncertainty("mu_signal"), rtol=0.02)


@pytest.mark.slow
def test_two_hundred_toys_cover(tmp_path):
    model = model_of(tmp_path, per_sample=4000)
    many = toys(model, 200, rng=torch.Generator().manual_seed(3))
    found = fit_many(many, start=model.initial_values)
    assert found.converged.all()
    held = fit_many(many, fixed={"mu_signal": 1.0}, start=model.initial_values)
    inside = (2 * (held.nll - found.nll) < 1).double().mean().item()
    assert abs(inside - 0.683) < 3 * np.sqrt(0.683 * 0.317 / 200)


def test_a_scan_shows_what_systematics_cost(tmp_path):
    curve = scan(model_of(tmp_path, per_sample=1000), size=5, n_sigma=2)
    assert curve.converged
    assert (curve.statistical[[0, -1]] > curve.curve[[0, -1]]).all()
    assert_allclose(curve.curve[2], 0.0, atol=1e-6)


def broken(folder, how):
    document = events.write_workspace(folder, per_sample=20)
    sample = document["channels"][0]["samples"][0]
    if how == "missing":
        (folder / "signal.npy").unlink()
    elif how == "short":
        np.save(folder / "signal.npy", np.ones(7))
    elif how == "square":
        np.save(folder / "signal.npy", np.ones((60, 2)))
    elif how == "negative":
        np.save(folder / "signal_scale_hi.npy", -np.ones(60))
    elif how == "nameless":
        del sample["ratios"]
    elif how == "one side":
        del sample["modifiers"][1]["data"]["lo_ratio"]
    elif how == "pickle":
        np.save(folder / "signal.npy", np.array([{}] * 60), allow_pickle=True)
    return document


FAULTS = {
    "missing": (FileNotFoundError, "there is no such file"),
    "short": (InputError, "files of 7, 60 events"),
    "square": (InputError, "one row of numbers is expected"),
    "negative": (InputError, "finite numbers above 0 are expected"),
    "nameless": (InputError, "sample 'signal' names no file of ratios"),
    "one side": (InputError, "hi_ratio and lo_ratio come together"),
    "pickle": (InputError, "this is not an array of numbers"),
}


@pytest.mark.parametrize("how", sorted(FAULTS))
def test_faulty_files_are_named(tmp_path, how):
    error, message = FAULTS[how]
    with pytest.raises(error, match=message):
        StatisticalModel(Workspace(broken(tmp_path, how), folder=tmp_path))
