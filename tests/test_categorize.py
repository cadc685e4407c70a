"""`specfit categorize`: every configuration builds what it names, a run writes all that it promises, and again."""

import json
import sys
from pathlib import Path

import hydra
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from PIL import Image

from specfit import cli, plots
from specfit.categories import Bins, Events, MassWindow, Objective, load_bins, toy_1d
from specfit.categorize import BumpHuntReport, DiscriminantReport, Study, analyse, categorize
from specfit.errors import InputError
from specfit.resources import folder

CONF = folder("conf") / "categorize"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SMALL = {
    "sigmoid_1d": [
        "events.n_signal=3000",
        "events.n_background=9000",
        "n_categories=[3]",
        "exact=60",
        "report.equidistant=[2]",
    ],
    "diphoton_bump_hunt": [
        "events.n_signal=2000",
        "events.n_background=8000",
        "n_categories=[2]",
        "report.map_points=30",
        "optimize.record_every=11",
    ],
}
SHORT = ["optimize.epochs=12", "optimize.restarts=1", "format=png", "name=test"]


def compose(run_dir, experiment, *overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("categorize", [f"experiment={experiment}", f"run_dir={run_dir}", "name=test", *overrides])


@pytest.fixture(scope="module", params=EXPERIMENTS)
def run(request, tmp_path_factory):
    """One small run of each experiment."""
    run_dir = tmp_path_factory.mktemp(request.param)
    cfg = compose(run_dir, request.param, *SMALL[request.param], *SHORT)
    steps = []
    assert categorize(cfg, progress=lambda *step: steps.append(step)) == run_dir
    assert steps[-1][1:] == (12, 12)
    return request.param, run_dir


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds_what_it_names(experiment, tmp_path):
    cfg = compose(tmp_path, experiment, *SMALL[experiment])
    assert isinstance(instantiate(cfg.events), Events)
    assert isinstance(instantiate(cfg.bins)(4, rng=torch.Generator()), Bins)
    assert isinstance(instantiate(cfg.objective), Objective)
    assert isinstance(instantiate(cfg.window), MassWindow | None)
    assert isinstance(instantiate(cfg.report), DiscriminantReport | BumpHuntReport)
    climb = instantiate(cfg.optimize)
    assert climb.keywords["epochs"] > 0
    assert climb.keywords["optimizer"]([torch.zeros(1, requires_grad=True)]).defaults["alpha"] == 0.9


def test_every_source_of_events_builds_what_it_names(tmp_path):
    for source in sorted(path.stem for path in (CONF / "events").glob("*.yaml")):
        given = ["events.path=a.npz", "events.features=[score]"] if source == "file" else []
        cfg = compose(tmp_path, "sigmoid_1d", f"events={source}", *given)
        np.savez(tmp_path / "a.npz", score=np.ones(2), weight=np.ones(2), process=np.array(["s", "b"]))
        small = {"path": tmp_path / "a.npz"} if given else {"n_signal": 50, "n_background": 100}
        assert isinstance(instantiate(cfg.events, **small), Events)


def test_the_published_arguments_are_the_defaults(tmp_path):
    one, two = compose(tmp_path, "sigmoid_1d"), compose(tmp_path, "diphoton_bump_hunt")
    assert (one.optimize.epochs, list(one.n_categories)) == (250, [3, 5, 10])
    assert (one.objective.least_background, one.objective.largest_uncertainty) == (5.0, 0.2)
    assert (one.events.n_background, one.events.seed) == (300_000, 42)
    assert (two.optimize.epochs, list(two.n_categories)) == (200, [3, 5])
    assert (two.objective.least_background, two.objective.largest_uncertainty) == (10.0, 0.1)
    assert (two.events.n_background, two.events.n_signal, two.events.seed) == (1_000_000, 100_000, 7)
    assert (two.window.interval, two.mass_sigma, two.optimize.learning_rate.initial) == (50, 1.5, 0.05)
    for cfg in (one, two):
        assert (cfg.objective.background_strength, cfg.objective.uncertainty_strength) == (0.0, 0.0)


def test_a_run_writes_every_picture(run):
    experiment, run_dir = run
    there = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    if experiment == "sigmoid_1d":
        stems = {"toy_data", "toy_data_log", "history_loss_3bins", "history_boundaries_3bins", "significanceComparison"}
        stems |= {"history_penalty_yield_3bins", "history_penalty_unc_3bins"}
        both = [
            "NN_output_distribution_fixed_2bins",
            "NN_output_distribution_optimized_3bins",
            "bias_history_3bins",
            "yield_vs_uncertainty_3bins_sorted",
        ]
        stems |= {f"{name}{log}" for name in both for log in ("", "_log")}
    else:
        stems = {"inclusive_mass_linear", "inclusive_mass_log", "significance_comparison"}
        inside = {"loss_2", "penalty_yield_2", "penalty_unc_2", "continuum_background_2", "continuum_background_2_log"}
        inside |= {"bias_history_2", "bin_boundaries_2_bins", "yield_unc_2", "yield_unc_2_log"}
        inside |= {f"mass_spectra/category_{k}_mass_{scale}" for k in range(2) for scale in ("linear", "log")}
        inside |= {f"boundary_frames/boundary_{epoch:04d}" for epoch in (0, 11)}
        stems |= {f"2_categories/{name}" for name in inside}
        with Image.open(run_dir / "2_categories/boundary_evolution_2.gif") as film:
            assert film.n_frames == 2
            assert film.info["duration"] == 500
            assert film.info["loop"] == 0
    for name in stems:
        assert f"{name}.png" in there
    n = 3 if experiment == "sigmoid_1d" else 2
    assert {"results.json", "config.yaml", f"checkpoints/{n}_bins.safetensors"} <= there


def test_analyse_gives_the_same_figures_and_pictures_without_training(run):
    _, run_dir = run
    before = json.loads((run_dir / "results.json").read_text())
    pictures = set(run_dir.rglob("*.png"))
    for path in pictures:
        path.unlink()
    analyse(run_dir)
    assert set(run_dir.rglob("*.png")) == pictures
    assert json.loads((run_dir / "results.json").read_text()) == before


def test_results_say_what_was_reached(run):
    experiment, run_dir = run
    (one,) = json.loads((run_dir / "results.json").read_text())["results"]
    assert len(one["train"]["categories"]) == one["n_categories"]
    assert set(one["test"]["significance"]) == ({"signal"} if experiment == "sigmoid_1d" else {"signal1", "signal2"})
    if experiment == "sigmoid_1d":
        assert one["exact"] >= 0.9 * one["train"]["combined"]


def test_a_finished_run_is_not_overwritten(run):
    experiment, run_dir = run
    with pytest.raises(InputError, match="holds a finished run"):
        categorize(compose(run_dir, experiment, *SMALL[experiment], *SHORT))


def stop_at(label):
    """Returns a progress that is stopped as a user does, when an optimisation with this label begins."""

    def progress(at, done, total):
        if at == label:
            raise KeyboardInterrupt

    return progress


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    def cfg(name, *more):
        words = [*SMALL["sigmoid_1d"], *SHORT, "n_categories=[2,3]", "report.equidistant=[]", "exact=0", *more]
        return compose(tmp_path / name, "sigmoid_1d", *words)

    categorize(cfg("whole"))
    with pytest.raises(KeyboardInterrupt):
        categorize(cfg("stopped"), progress=stop_at("3 categories"))
    assert not (tmp_path / "stopped/results.json").exists()
    with pytest.raises(InputError, match="a part of a run with another configuration"):
        categorize(cfg("stopped", "seed=2"))
    steps = []
    categorize(cfg("stopped"), progress=lambda *step: steps.append(step))
    assert {label for label, _, _ in steps} == {"3 categories"}
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "stopped"))
    assert one["comparison"] == two["comparison"]
    for result in (*one["results"], *two["results"]):
        assert result.pop("seconds_per_epoch") > 0
    assert one["results"] == two["results"]


@pytest.mark.parametrize(
    ("experiment", "words", "message"),
    [
        ("sigmoid_1d", ["signals=[signal,bkg1]"], "exact: the exact optimum is for one feature and one signal"),
        ("sigmoid_1d", ["n_categories=[3,1]"], "bins"),
        ("sigmoid_1d", ["signals=[signal,bkg1,bkg2,bkg3,bkg4,bkg5]", "exact=0"], "expected events of background"),
        ("sigmoid_1d", ["bins.low=2", "bins.high=3"], "100.0% of the events lie outside 2 to 3"),
        ("diphoton_bump_hunt", ["signals=[signal1]"], "one score for each signal"),
        ("diphoton_bump_hunt", ["bins.n_features=3"], "categories in 2 features are expected"),
    ],
)
def test_what_cannot_work_is_said_before_anything_takes_long(tmp_path, experiment, words, message):
    cfg = compose(tmp_path / "run", experiment, *SMALL[experiment], *SHORT, *words)
    with pytest.raises(InputError, match=message):
        categorize(cfg, progress=stop_at(None))
    assert not (tmp_path / "run").exists()


def test_limits_that_no_bins_can_keep_do_not_lose_the_run(command):
    small = [word for word in SMALL["sigmoid_1d"] if word.startswith("events")]
    words = ["experiment=sigmoid_1d", *small, *SHORT, "n_categories=[3]", "exact=60", "report.equidistant=[]"]
    code, out, _ = command(*words, "objective.least_background=20000")
    assert code == 0
    assert "3 categories: not within the limits of the objective" in out
    assert json.loads(Path("runs/test/results.json").read_text())["results"][0]["exact"] is None


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["specfit", "categorize", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


def test_users_events_come_from_a_file(command):
    toy = toy_1d(3000, 9000)
    table = {
        "score": toy.features[:, 0].numpy(),
        "weight": toy.weights.numpy(),
        "process": np.array(toy.processes)[toy.process.numpy()],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), "events.parquet")
    events = ["events=file", "events.path=events.parquet", "events.features=[score]"]
    arguments = ["experiment=sigmoid_1d", *events, *SHORT, "n_categories=3", "exact=0", "test_fraction=0"]
    arguments += ["report.equidistant=[]", "signals=signal"]  # one number and one name need no brackets
    code, out, err = command(*arguments)
    assert code == 0, err
    assert "Z train" in out
    assert "runs/test" in out
    assert load_bins("runs/test/checkpoints/3_bins.safetensors").n_categories == 3
    code, again, _ = command("analyse", "runs/test")
    assert code == 0
    assert again.splitlines()[:-1] == out.splitlines()[:-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyse", "nowhere"], "there is no such file"),
        (["analyse"], "one run folder is expected"),
        (["experiment=nothing"], "nothing"),
        ([], "experiment"),
        (["experiment=sigmoid_1d", "signals=[higgs]", "events.n_background=900"], "'higgs' is not among the events"),
        (["experiment=sigmoid_1d", "optimize.learning_rate.form=square"], "form"),
        (["experiment=sigmoid_1d", "optimize.epoch=3"], "epoch"),
        (["experiment=sigmoid_1d", "n_categories=[]"], "whole numbers are expected, as in n_categories=[3,5], [] came"),
        (["experiment=sigmoid_1d", "n_categories=few"], "n_categories: whole numbers"),
        (["experiment=sigmoid_1d", "format=jpx"], "format: one of .png, .pdf, .svg is expected, 'jpx' came"),
        (["experiment=sigmoid_1d", "optimize.device=abacus"], "device: 'abacus' cannot be used here"),
    ],
)
def test_mistakes_are_one_line(command, arguments, message):
    code, out, err = command(*arguments, *([] if "analyse" in arguments else ["exact=0"]))
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert message in err


def test_damaged_results_are_the_callers_mistake(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        analyse(tmp_path)


def test_bins_drawn_equally_wide_keep_their_contents_and_name_their_edges():
    ax = Figure().add_subplot()
    edges, heights = np.append(1 - 0.5 ** np.arange(20), 1.0), np.arange(1.0, 21.0)
    plots.draw_stack(edges, {"a": heights}, ax, equally_wide=True)
    (drawn,) = (patch.get_data() for patch in ax.patches)
    assert drawn.edges.tolist() == list(range(21))
    assert drawn.values.tolist() == heights.tolist()
    named = {tick: label.get_text() for tick, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)}
    assert named[0] == "0"
    assert named[2] == "0.75"
    assert len(named) == 11


def test_reports_refuse_what_they_cannot_draw(tmp_path):
    study = Study(toy_1d(100, 300), ("signal",), Objective(), None, ())
    with pytest.raises(InputError, match="needs a mass"):
        BumpHuntReport().draw(study, None)
    ax = Figure().add_subplot()
    with pytest.raises(InputError, match="2 bins are expected, 3 came"):
        plots.draw_stack(np.array([0.0, 1.0, 2.0]), {"a": np.ones(3)}, ax)
    with pytest.raises(InputError, match="no picture"):
        plots.save_gif([], Path(tmp_path) / "a.gif")
