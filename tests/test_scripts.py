"""The scripts run, at sizes that prove nothing but that, and write what they promise."""

import importlib
import json
from pathlib import Path

import pytest
import torch

import specfit
from specfit import checkpoint

# torch.func.jvp, behind the information limit, imports what torch itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
COUNTED = ("est.", "exp.", "win.", "pub.")


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name, as Python does when it is run."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def json_of(tmp_path):
    """Reads what a script wrote under `--json`."""
    path = tmp_path / "figures.json"

    def read():
        return json.loads(path.read_text())

    read.option = ["--json", str(path)]
    return read


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run of a small untrained net on the reference edges."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    net = specfit.net.LearnedBasisNet(50, n_basis=(4, 3), width=11, hidden=8, depth=1)
    edges = specfit.io.parse_edges("250:3000:50:log")
    checkpoint.save(checkpoint.Checkpoint(net, edges, {"seed": 3}), folder / checkpoint.IN_A_RUN)
    return folder


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_shows_how_it_is_run(path, script, capsys):
    module = script(path.stem)
    if path.stem in ("common", "peer_processes"):
        return
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    assert f"python scripts/{path.name}" in capsys.readouterr().out


def test_evaluate_counts_what_a_perfect_and_a_shifted_fit_would_give(script):
    """The oracle: residuals of known size, one bin of which must not count."""
    evaluate = script("evaluate")
    truth = torch.tensor([[100.0, 400.0, 0.1], [25.0, 4.0, 0.4]]).double()
    shift = torch.tensor([[1.0, -2.0, 9.0], [3.0, 0.0, 9.0]]).double()  # in statistical errors
    residual, used = evaluate.relative_residuals(truth + shift * truth.sqrt(), truth)
    figures = evaluate._figures(evaluate._sums(residual, residual, used))
    assert figures["rms"] == pytest.approx((14 / 4) ** 0.5)
    assert figures["bias"] == pytest.approx(0.5)
    assert figures["largest_bias"] == pytest.approx(2.0)
    sums = evaluate._sums(residual, residual, used)
    assert evaluate._largest_bias(sums[1], sums[0], regions=2) == pytest.approx(0.5)  # of (1 - 2 + 3 + 0) / 4
    assert figures["pull_width"] == pytest.approx((14 / 4 - 0.25) ** 0.5)
    assert figures["coverage_68"] == pytest.approx(1 / 4)
    assert figures["coverage_95"] == pytest.approx(1 / 2)
    assert figures["beyond_5"] == 0


def test_evaluate_writes_its_figures(script, json_of, run_folder, capsys):
    evaluate = script("evaluate")
    figures = evaluate.main(
        ["--checkpoint", str(run_folder), "--size", "64", "--limit-size", "8", "--seed", "5", *json_of.option]
    )
    written = json_of()
    assert written["results"] == figures
    assert written["options"]["seed"] == 5
    assert set(figures) == {"N=1", "N=5", "N=7"}
    for row in figures.values():
        assert row["rms_over_limit"] == pytest.approx(row["rms"] / row["limit"])
        assert 0 <= row["coverage_68"] <= row["coverage_95"] <= 1 - row["beyond_5"]
        assert row["rms"] >= abs(row["bias"])
        assert row["largest_bias"] >= row["region_bias"] >= abs(row["bias"])
    assert "rms_over_limit" in capsys.readouterr().out


def test_evaluate_does_not_depend_on_how_many_spectra_are_held_at_a_time(script, run_folder, monkeypatch):
    common, evaluate = script("common"), script("evaluate")
    fitter = specfit.SpectrumFitter.from_checkpoint(run_folder)
    counts = specfit.SpectrumGenerator(fitter.edges).sample(10, rng=common.rng_of(2))

    class Stored:
        edges = fitter.edges

        def __init__(self):
            self.next = 0

        def sample(self, size, *, rng):
            self.next += size
            rows = slice(self.next - size, self.next)
            return counts._replace(**{name: getattr(counts, name)[rows] for name in ("counts", "background", "signal")})

    whole = evaluate.evaluate(fitter, Stored(), size=10, seed=1)
    monkeypatch.setattr(common, "SPECTRA_IN_MEMORY", 4)
    assert evaluate.evaluate(fitter, Stored(), size=10, seed=1) == pytest.approx(whole, rel=1e-6)


def test_evaluate_judges_a_net_of_any_binning_on_the_reference_edges(script):
    figures = script("evaluate").main(["--checkpoint", "any_binning", "--size", "64", "--limit-size", "16"])
    assert figures.keys() == {"N=1", "N=5", "N=7"}
    assert all(1.0 < row["rms_over_limit"] < 2.0 for row in figures.values())


def test_ship_stores_half_precision_and_says_what_it_costs(script, json_of, run_folder, tmp_path, capsys):
    out = tmp_path / "shipped.safetensors"
    sizes = ["--size", "32", "--limit-size", "8"]
    figures = script("ship").main([str(run_folder), "--out", str(out), *sizes, *json_of.option])
    stored, trained = checkpoint.load(out), checkpoint.load(run_folder)
    for name, tensor in trained.net.state_dict().items():
        assert stored.net.state_dict()[name].dtype == tensor.dtype
        expected = tensor.half().float() if tensor.ndim > 1 else tensor
        torch.testing.assert_close(stored.net.state_dict()[name], expected, rtol=0, atol=0)
    assert out.stat().st_size < 0.7 * (run_folder / checkpoint.IN_A_RUN).stat().st_size
    assert stored.card["seed"] == 3
    assert stored.card["shipped"]["figures"]["N=5"]["rms"] == pytest.approx(figures["half"]["N=5"]["rms"], abs=1e-5)
    assert stored.card["shipped"]["command"].startswith("scripts/ship.py")
    assert json.loads(out.with_suffix(".json").read_text()) == stored.card
    assert figures["half"]["N=5"]["rms"] == pytest.approx(figures["full"]["N=5"]["rms"], rel=0.02)
    assert json_of()["results"] == figures
    assert "half - full" in capsys.readouterr().out


def trained_on(generator, net, path, *, half=False, **more):
    """A checkpoint whose card tells of a training, as `specfit train` writes it."""
    edges = specfit.io.parse_edges("250:3000:8:log") if net.n_bins else None
    card = {"config": {"data": {"generator": generator}}, "figures": {"val/rms": 0.5}, **more}
    return checkpoint.save(checkpoint.Checkpoint(net, edges, card), path, half=half)


@pytest.fixture
def small_net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return specfit.net.LearnedBasisNet(8, n_basis=(3, 2), width=5, hidden=8, depth=1)


@pytest.fixture
def quick_calibration(monkeypatch):
    for room in ("calibrate", "calibrate_yields"):
        monkeypatch.setattr(f"specfit.training.{room}.STEPS", 60)


MIXTURE = {
    "_target_": "specfit.SpectrumGenerator",
    "edges": {"_target_": "specfit.io.parse_edges", "_args_": ["250:3000:8:log"]},
    "n_backgrounds": [1, 7],
}


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.usefixtures("quick_calibration")
def test_calibrate_changes_the_errors_and_nothing_else(script, json_of, small_net, tmp_path, half):
    shipped = {"weights": "float16", "figures": {"N=1": {}}}
    path = trained_on(MIXTURE, small_net, tmp_path / "net.safetensors", half=half, shipped=shipped)
    before = checkpoint.load(path)
    figures = script("calibrate").main([str(path), "--size", "256", *json_of.option])
    after, scaled = checkpoint.load(path), 0
    assert checkpoint.is_half(path) is half
    for name, tensor in before.net.state_dict().items():
        same = torch.equal(after.net.state_dict()[name], tensor)
        assert same or name.startswith(("error_scale.", "yield_scale.", "novelty.", "offset"))
        scaled += not same
    assert scaled > 5
    assert after.card["config"] == before.card["config"]
    assert after.card["calibrated"] == f"scripts/calibrate.py {path} --size 256 --seed {before.card.get('seed', 1)}"
    assert after.card["figures"]["val/rms"] == 0.5
    assert after.card["figures"]["pull/width"] == pytest.approx(figures["width"], abs=1e-6)
    assert after.card["shipped"] == {"weights": "float16"}  # its figures were those of the old errors
    assert json.loads(path.with_suffix(".json").read_text()) == after.card
    assert json_of()["results"] == figures


@pytest.mark.usefixtures("quick_calibration")
def test_calibrate_gives_the_same_whoever_drew_before(script, small_net, tmp_path):
    paths = [trained_on(MIXTURE, small_net, tmp_path / f"{i}.safetensors") for i in range(2)]
    for i, path in enumerate(paths):
        torch.manual_seed(i)
        script("calibrate").main([str(path), "--size", "256"])
    one, other = (checkpoint.load(path).net.state_dict() for path in paths)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("generator", "kind", "message"),
    [
        (
            {"_target_": "os.system", "_args_": ["true"]},
            "learned_basis",
            "names os.system, which does not make spectra",
        ),
        (MIXTURE | {"signal": [{"_target_": "os.abort"}]}, "learned_basis", "names os.abort"),
        (MIXTURE["edges"], "learned_basis", "makes a Tensor"),
        (None, "learned_basis", "its card has no config.data.generator"),
        (MIXTURE, "talk", "a TalkNet has no errors that can be calibrated"),
    ],
)
def test_calibrate_refuses_what_it_cannot_use(script, small_net, tmp_path, generator, kind, message):
    net = small_net if kind == "learned_basis" else specfit.net.TalkNet(8, width=5)
    path = trained_on(generator, net, tmp_path / "net.safetensors")
    if generator is None:
        checkpoint.save(checkpoint.Checkpoint(net, checkpoint.load(path).edges, {}), path)
    before = path.read_bytes()
    with pytest.raises(specfit.InputError, match=message):
        script("calibrate").main([str(path), "--size", "16"])
    assert path.read_bytes() == before


def test_bench_throughput_times_many_spectra_and_one(script, json_of):
    script("bench_throughput").main(["--size", "64", *json_of.option])
    many, single = (json_of()["results"][name] for name in ("rows", "single"))
    assert [row["fit"] for row in many] == [row["fit"] for row in single] == ["no refit", "refit"]
    assert all(row["a_second"] > 0 for row in many)
    assert all(row["median ms"] > 1e3 / row_of_many["a_second"] for row, row_of_many in zip(single, many, strict=True))


def test_half_precision_refuses_weights_that_do_not_fit(run_folder, tmp_path):
    loaded = checkpoint.load(run_folder)
    next(loaded.net.parameters()).data[0] = 1e5
    with pytest.raises(specfit.InputError, match=r"half: .* holds 100000, float16 ends at 65504"):
        checkpoint.save(loaded, tmp_path / "half.safetensors", half=True)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_path_is_one_line(script, monkeypatch, capsys):
    common, evaluate = script("common"), script("evaluate")
    with pytest.raises(SystemExit) as stop:
        common.start(lambda: evaluate.main(["--checkpoint", "nowhere"]))
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_bench_forms_sees_what_functions_bring_to_every_family(script, json_of):
    rows = script("bench_forms").main(["--size", "48", "--total", "1e6", "3e7", *json_of.option])
    assert json_of()["results"]["rows"] == rows
    by_family = {row["family"]: row for row in rows}
    assert by_family["dijet"]["near"] > 0.5
    assert by_family["dijet"]["ratio"] < 1.0
    assert max(row["ratio"] for row in rows) < 1.05


def test_bench_generator_samples_the_same_distribution_plainly(script, json_of):
    bench = script("bench_generator")
    threads = torch.get_num_threads()
    rows = bench.main(["--batch-size", "64", "--repeat", "1", *json_of.option])
    assert torch.get_num_threads() == threads
    assert json_of()["results"]["rows"] == rows
    for row in rows:
        assert row["ratio"] == pytest.approx(row["generator_per_second"] / row["plain_per_second"])
    edges, n = specfit.io.parse_edges("250:3000:50:log"), 1500
    rng = torch.Generator().manual_seed(4)
    _, plain = bench.sample_plainly(edges, n, (1, 7), rng=rng)
    product = specfit.SpectrumGenerator(edges, n_backgrounds=(1, 7)).sample(n, rng=rng).background
    a, b = (x / x.sum(-1, keepdim=True) for x in (plain, product))
    error = ((a.var(0) + b.var(0)) / n).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all()


def test_bench_pixelize_compares_equal_layers(script, json_of):
    rows = script("bench_pixelize").main(["--batch-size", "8", "--repeat", "1", *json_of.option])
    assert json_of()["results"]["rows"] == rows
    for row in rows:
        assert row["output_diff"] < 1e-5
        assert row["gradient_diff"] < 1e-6


@pytest.mark.slow
def test_bench_fit_puts_net_and_function_side_by_side(script, json_of, run_folder):
    arguments = ["--checkpoint", str(run_folder), "--size", "8", "--functional", "2"]
    rows = script("bench_fit").main([*arguments, *json_of.option])
    assert len(json_of()["results"]["rows"]) == len(rows)
    assert {row["task"] for row in rows} == {"N=1", "N=5"}
    functional = [row for row in rows if row["method"].startswith("functional")]
    assert [row["times_faster"] for row in functional[::2]] == [1, 1]
    # The true form beats an untrained net, and both ways to fit it agree.
    assert all(row["rms"] < 1.5 for row in functional)
    assert functional[1]["rms"] == pytest.approx(functional[0]["rms"], rel=1e-2)
    missing = [row for row in rows if row["method"].endswith("not installed")]
    assert all(row["rms"] is None for row in missing)


def test_a_peer_that_is_not_installed_is_named(script, monkeypatch):
    peers, bench = script("peer_processes"), script("bench_fit")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    counts = torch.ones(2, 4)
    batch = specfit.Batch(counts, counts, 0 * counts, torch.arange(1.0, 6.0))
    measured = list(bench._processes(batch))
    assert [one.method for one in measured] == ["Gaussian process, george", "Gaussian process, celerite2"]
    row = bench._row(1, measured[0], batch, limit=0.4, slowest=1.0)
    assert row["method"] == "Gaussian process, george: not installed"
    assert row["rms"] is None


@pytest.mark.parametrize("name", ["george", "celerite2"])
def test_gaussian_processes_find_a_smooth_curve(script, name):
    pytest.importorskip(name)
    edges = torch.logspace(2, 3, 41, dtype=torch.float64)
    truth = 3e4 * torch.softmax(-3 * (edges[1:] / 500) ** 0.8, 0)
    counts = torch.poisson(truth.expand(4, -1), generator=torch.Generator().manual_seed(1))
    fit = script("peer_processes").fit_with_processes(name, counts, edges)
    residual = (fit.background - truth) / truth.sqrt()
    assert residual.square().mean().sqrt() < 0.7
    assert 0.3 < fit.deviance.sum() / fit.ndf.sum() < 2
    assert ((fit.background - truth).abs() < 3 * fit.uncertainty).double().mean() > 0.9


@pytest.mark.slow
def test_reproduce_talk_draws_and_measures_everything(script, run_folder, tmp_path):
    out = tmp_path / "talk"
    results = script("reproduce_talk").main(
        ["--checkpoint", str(run_folder), "--out", str(out), "--size", "32", "--functional", "1"]
    )
    written = json.loads((out / "talk.json").read_text())["results"]
    assert set(written) == {"residuals", "correlations", "signals", "functional"} == set(results)
    assert [row["rms_of_talk"] for row in written["residuals"]] == [0.42, 0.47, 0.49]
    pictures = {"bias", "correlations", "refits", "residuals", "signals"} | {f"examples_N{n}" for n in (1, 5, 7)}
    assert {path.stem for path in out.glob("*.png")} == pictures
    # residual(data, fit) is residual(data, truth) less residual(fit, truth), so their slopes add up to 1.
    data, fit = written["correlations"][:2]
    assert data["slope"] + fit["slope"] == pytest.approx(1.0)
    unfitted = [row for row in written["signals"] if row["rule"] == "no refit"]
    assert [row["masked_bins"] for row in unfitted] == [0] * len(unfitted)


def test_bench_cells_recovers_what_it_simulated(script, json_of, monkeypatch):
    bench = script("bench_cells")
    monkeypatch.setattr(bench, "CELLS", (4, 3, 2))
    bench.main(["--minuit", "2", "--toys", "5", "--dense", *json_of.option])
    written = json_of()["results"]
    assert written["large"][0]["parameters"] == 3 * 24 + 60
    assert written["large"][0]["converged"]
    assert written["dense"][0]["largest_difference"] < 1e-9
    assert all(abs(row["mean"]) < 1 for row in written["pulls"])
    beside = {row["method"]: row for row in written["cells_alone"]}
    assert beside["Minuit, scaled"]["pull_off"] < 0.1
    assert written["toys"][-2]["parameter"] == "all"


def test_bench_categories_measures_both_toys_without_a_peer(script, json_of):
    arguments = ["--small", "40", "--restarts", "1", "--numbers", "3", *json_of.option]
    tables = script("bench_categories").main(arguments)
    assert set(tables) == {"equal bins", "1-d toy", "diphoton toy"}
    (one,) = tables["1-d toy"]
    assert 0.5 < one["/ exact"] <= 1.001
    assert one["peer ms"] is None
    assert [row["way"] for row in tables["diphoton toy"]] == ["specfit", "T = 1", "rate 0.2", "window"]
    assert all(0 < row[f"Z{i} {name}"] < 20 for row in tables["diphoton toy"] for i in (1, 2) for name in COUNTED)
    assert json_of()["results"]["1-d toy"] == [one]


def test_bench_pseudo_experiments_times_every_way(script, json_of):
    threads = torch.get_num_threads()
    sizes = ["--chunks", "3", "--chunk-size", "2", "--workers", "1"]
    rows = script("bench_pseudo_experiments").main([*sizes, *json_of.option])
    assert torch.get_num_threads() == threads
    assert [row["way"] for row in rows] == ["plain loop", "in memory", "stored", "read again"]
    assert json_of()["results"]["rows"] == rows
    assert all(row["ratio"] == pytest.approx(row["ms_per_chunk"] / rows[0]["ms_per_chunk"]) for row in rows)


# pyhf checks its workspaces with what jsonschema calls deprecated.
@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy.ndarrays:UserWarning")
def test_bench_stats_fits_the_toys_of_pyhf_and_many_events(script, json_of):
    rows = script("bench_stats").main(
        ["--toys", "16", "--peer-toys", "1", "--events", "900", "--points", "3", *json_of.option]
    )
    written = json_of()["results"]
    assert written["toys"] + written["unbinned"] == rows
    assert [row["who"].split()[0] for row in written["toys"]] == ["specfit,", *["pyhf"] * (len(written["toys"]) - 1)]
    assert all(row["largest difference"] < 1e-2 for row in written["toys"])  # pyhf's minimisers stop earlier
    assert len(written["unbinned"]) == 4
    assert all(row["processor s"] > 0 for row in written["unbinned"])


def test_bench_search_puts_pybumphunter_beside_specfit(script, json_of, monkeypatch):
    pytest.importorskip("pyBumpHunter")
    bench = script("bench_search")
    monkeypatch.setattr(bench, "PEER_TOYS", 4)
    tables = bench.main(["--size", "3", "--toys", "6", *json_of.option])
    assert json_of()["results"] == tables
    for row in tables["exact"]:
        assert row["relative"] < 1e-6
        assert row["same window"] == 1
    ways = [row["background and toys"] for row in tables["background_error"]]
    assert len(ways) == 2 * len(set(ways)) == 12
    assert all(0 <= row["mean p"] <= 1 for row in tables["background_error"])
    assert tables["time"][0]["times pyBumpHunter"] == 1


def test_bench_search_names_the_peer_that_is_missing(script, monkeypatch):
    bench = script("bench_search")
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(specfit.InputError, match="pip install pyBumpHunter"):
        bench.main([])


def test_evaluate_search_ranks_every_spectrum_among_its_toys(script, run_folder):
    evaluate = script("evaluate_search")
    fitter = specfit.SpectrumFitter.from_checkpoint(run_folder)
    generator = specfit.SpectrumGenerator(fitter.edges, n_backgrounds=1)
    rows = evaluate.global_p_values(fitter, generator, size=4, n_toys=3, seed=1, name="N=1")
    assert [row["global p by"] for row in rows] == ["correlation", "3 toys each"]
    assert all(row["spectra"] == 4 and 0 < row["mean p"] < 1 and 0 <= row["KS p"] <= 1 for row in rows)


def test_evaluate_search_asks_a_net_of_any_binning_about_dijets_too(script):
    evaluate = script("evaluate_search")
    fitter = specfit.SpectrumFitter.from_checkpoint("any_binning")
    sizes = {"size": 3, "seed": 1, "name": "dijet"}
    rows = evaluate.background_only(fitter, evaluate.DijetLike(), **sizes)
    assert [row["mass"] for row in rows] == [round(1100 + 6900 * share / 10) for share in range(1, 10)]
    assert all(row["task"] == "dijet" and row["width"] > 0 for row in rows if row["spectra"] > 1)


def test_near_bayes_is_the_posterior_mean_of_a_family_with_one_parameter(script):
    """The oracle: the mean over the whole prior, weighted by the likelihood."""
    rng = torch.Generator().manual_seed(2)
    u = torch.linspace(0, 1, 12).double()

    def draw(size):
        return torch.softmax(-(2 + 4 * torch.rand(size, 1, generator=rng).double()) * u, -1)

    shapes, truth = draw(20_000), 3000 * draw(6)
    counts = torch.poisson(truth, generator=rng)
    ours = script("near_bayes").near_bayes(counts, shapes, neighbours=1500)
    weights = torch.softmax(counts @ shapes.log().T, -1)
    exact = (weights @ shapes) * counts.sum(-1, keepdim=True)
    assert ((ours - exact).abs() / truth.sqrt()).max() < 0.1


def test_near_bayes_writes_its_figures(script, json_of, run_folder):
    sizes = ["--size", "4", "--shapes", "3000", "--neighbours", "200", "--only", "reference, 50 bins, N=1"]
    (row,) = script("near_bayes").main(["--checkpoint", str(run_folder), *sizes, *json_of.option])
    assert json_of()["results"]["rows"] == [row]
    assert row["net / near_bayes"] == pytest.approx(row["net"] / row["near_bayes"])
    assert 0 < row["near_bayes"] < 5
    with pytest.raises(specfit.InputError, match="no task has 'nothing'"):
        script("near_bayes").main(["--only", "nothing"])
