"""The bridge from a fitted background, pictures of results, yields, and the command line."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import workspaces
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from specfit import plots
from specfit.background_fit import BackgroundFit
from specfit.cli import app
from specfit.errors import InputError
from specfit.inference import SpectrumFitter
from specfit.spectrum import Spectrum
from specfit.stats import (
    StatisticalModel,
    background_sample,
    channel_yields,
    contour,
    fit,
    fit_many,
    impacts,
    scan,
    toys,
)
from specfit.stats.cells import write_histograms
from specfit.stats.cells.grammar import join_words


def background_fit(n_bins=8, *, batch=False):
    edges = torch.linspace(0, 8, n_bins + 1).double()
    x = (edges[1:] + edges[:-1]) / 2
    background = 200 * torch.exp(-x / 3)
    factor = background[:, None] * torch.stack([0.05 + 0 * x, 0.02 * (x - 4)], -1)
    parts = (
        background,
        factor,
        torch.tensor(2.0),
        torch.zeros(n_bins, dtype=torch.bool),
        torch.tensor(0),
        torch.tensor(True),
    )
    counts = background.round()
    if batch:
        parts, counts = tuple(p[None] for p in parts), counts[None]
    names = ("background", "factor", "n_parameters", "mask", "iterations", "converged")
    return BackgroundFit(spectrum=Spectrum(counts, edges), message="", **dict(zip(names, parts, strict=True)))


def document_of(sample, counts, signal):
    mu = {"name": "mu", "type": "normfactor"}
    channel = {"name": "SR", "samples": [{"name": "signal", "data": signal, "modifiers": [mu]}, sample]}
    bounds = [{"name": "mu", "bounds": [[-50.0, 50.0]]}]
    return {
        "channels": [channel],
        "observations": [{"name": "SR", "data": counts}],
        "measurements": [{"name": "m", "config": {"poi": "mu", "parameters": bounds}}],
    }


@pytest.mark.parametrize("form", ["linear", "log"])
def test_a_background_enters_with_its_covariance(form):
    found = background_fit()
    sample = background_sample(found, form=form)
    model = StatisticalModel(document_of(sample, found.background.tolist(), [0.0] * 7 + [1e-9]))
    assert model.parameter_names == ("mu", "background[0]", "background[1]")
    _, jacobian = model.compiled.expectation.jacobian(model.initial_values[:, None])
    slopes = jacobian[:, 1:, 0]
    assert_allclose(slopes @ slopes.T, found.covariance, rtol=1e-10, atol=1e-10)
    assert_allclose(model.expected_in("SR", model.initial_values), found.background, rtol=1e-9)


def test_the_signal_in_a_window_carries_the_uncertainty_of_the_background():
    found = background_fit()
    window = slice(3, 5)
    sample = background_sample(found, bins=window, form="linear")
    counts = found.background[window] + torch.tensor([6.0, 4.0])
    signal = torch.tensor([0.6, 0.4], dtype=torch.float64)
    best = fit(StatisticalModel(document_of(sample, counts.tolist(), signal.tolist())))
    assert best.value("mu") == pytest.approx(10, abs=1e-6)
    # At a best fit that meets all counts the errors are those of linear algebra.
    total = torch.diag(counts) + found.covariance[window, window]
    exact = (signal @ torch.linalg.solve(total, signal)) ** -0.5
    assert best.uncertainty("mu") == pytest.approx(exact.item(), rel=1e-6)


def test_a_net_and_templates_stand_side_by_side():
    fitter = SpectrumFitter.from_checkpoint()
    edges = (
        torch.as_tensor(fitter.edges) if hasattr(fitter, "edges") else torch.logspace(np.log10(250), np.log10(3000), 51)
    )
    x = (edges[1:] + edges[:-1]).double() / 2
    truth = 8e3 * torch.exp(-x / 150) * torch.sigmoid((x - 340) / 15)
    found = fitter.fit(torch.poisson(truth, generator=torch.Generator().manual_seed(4)), edges.double())
    sample = background_sample(found, bins=slice(10, 20))
    signal = (50 * torch.exp(-0.5 * torch.linspace(-2, 2, 10) ** 2)).tolist()
    document = document_of(sample, found.spectrum.counts[10:20].tolist(), signal)
    template = {"name": "other", "data": [5.0] * 10, "modifiers": [workspaces.normsys("other", 1.3, 0.8)]}
    document["channels"][0]["samples"].append(template)
    model = StatisticalModel(document)
    assert fit(model).converged
    many = fit_many(toys(model, 50, rng=torch.Generator().manual_seed(5)))
    assert many.converged.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": background_fit(batch=True)}, "one fit of counts is expected"),
        ({"form": "square"}, "form: 'log' or 'linear'"),
        ({"bins": [True]}, "a mask of 8 bins is expected"),
    ],
)
def test_what_cannot_be_a_sample_is_said(options, message):
    found = options.pop("fit", background_fit())
    with pytest.raises(InputError, match=message):
        background_sample(found, **options)


def test_yields_have_the_uncertainty_of_toys():
    model = StatisticalModel(workspaces.control_regions())
    yields = channel_yields(model, "SR")
    assert_allclose(yields.observed, [52, 47, 18])
    truth = fit(model)
    # Of the mean of many refits, which scatter as the covariance says.
    found = fit_many(toys(model, 600, values=truth.values, rng=torch.Generator().manual_seed(2)), start=truth.values)
    scatter = model.expected_in("SR", found.values).std(0)
    assert_allclose(yields.after_uncertainty, scatter, rtol=0.12)
    assert (yields.before_uncertainty > 0).all()


def test_pictures_show_what_they_should(tmp_path):
    model = StatisticalModel(workspaces.control_regions())
    best = fit(model)
    curve = scan(model, size=9, best=best)
    figure = curve.plot()
    drawn = figure.axes[0].get_lines()
    assert_allclose(drawn[0].get_ydata(), curve.curve)
    assert_allclose(drawn[1].get_ydata(), curve.statistical)
    assert {1.0, 4.0, 9.0} <= {float(line.get_ydata()[0]) for line in drawn[2:]}
    both = plots.draw_scan([curve, curve], labels=["a", "b"])
    assert [t.get_text() for t in both.axes[0].get_legend().get_texts()][::2] == ["a", "b"]
    figures = {
        "scan": figure,
        "impacts": impacts(model, best=best).plot(),
        "correlation": best.plot(),
        "yields": channel_yields(model, "SR", best=best).plot(),
        "contour": contour(model, ["mu", "mu_top"], size=7, best=best).plot(),
    }
    for name, one in figures.items():
        assert plots.save(one, tmp_path / f"{name}.png").stat().st_size > 5000
    assert_allclose(figures["correlation"].axes[0].images[0].get_array(), best.correlation)
    (legend,) = figures["impacts"].legends  # covers no bar
    assert legend.get_window_extent().y0 >= figures["impacts"].axes[1].get_window_extent().y1
    assert figures["impacts"].axes[0].get_yticklabels()[-1].get_text() == impacts(model, best=best).impacts[0].parameter
    with pytest.raises(InputError, match="one for each of 1 scans"):
        plots.draw_scan(curve, labels=["a", "b"])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "workspace.json"
    path.write_text(json.dumps(workspaces.control_regions()))
    return path


def test_the_command_line_fits_a_workspace(file, tmp_path):
    out, picture = tmp_path / "fit.json", tmp_path / "scan.png"
    command = ["fit", str(file), "--scan", "mu", "--limit", "--impacts", "--plot", str(picture), "--out", str(out)]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    for part in ("mu_top", "95 % CLs", "sigma (p =", "on mu", "saturated", "2 dlnL"):
        assert part in answer.output
    stored = json.loads(out.read_text())
    assert stored["fit"]["parameters"]["mu"]["value"] == pytest.approx(
        fit(StatisticalModel(json.loads(file.read_text()))).value("mu")
    )
    assert {"fit", "scan", "limit", "discovery", "impacts", "goodness_of_fit", "picture"} <= set(stored)
    assert picture.stat().st_size > 5000


def test_the_command_line_prints_json(file):
    answer = CliRunner().invoke(app, ["fit", str(file), "--json", "--measurement", "measurement"])
    assert json.loads(answer.output)["fit"]["converged"]


def test_the_command_line_names_a_fault(file):
    answer = CliRunner().invoke(app, ["fit", str(file), "--measurement", "other"])
    assert isinstance(answer.exception, InputError)
    assert "measurement 'other' does not exist" in str(answer.exception)


def test_what_is_fitted_without_observations_is_no_data_and_that_is_said(file):
    document = json.loads(file.read_text())
    assert "no observation" not in CliRunner().invoke(app, ["fit", str(file)]).output
    names = ", ".join(one["name"] for one in document.pop("observations"))
    file.write_text(json.dumps(document))
    said = f"these are no data: the workspace has no observation of {names}"
    assert CliRunner().invoke(app, ["fit", str(file)]).output.startswith(said)
    assert json.loads(CliRunner().invoke(app, ["fit", str(file), "--json"]).output)["note"].startswith(said)


def test_a_signal_that_the_data_leave_open_has_no_limit(tmp_path):
    found = document_of({"name": "background", "data": [50.0, 60.0]}, [55, 68], [0.0, 0.0])
    path = tmp_path / "open.json"
    path.write_text(json.dumps(found))
    assert "the data leave a direction open: mu" in CliRunner().invoke(app, ["fit", str(path)]).output
    answer = CliRunner().invoke(app, ["fit", str(path), "--limit"])
    assert isinstance(answer.exception, InputError)
    assert "leave mu open and exclude no value, so there is no limit" in str(answer.exception)


def test_what_the_readme_shows_runs_as_written(tmp_path, monkeypatch):
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    shown = readme[readme.index("\n## Statistics") : readme.index("\n## Categories")]
    blocks = {kind: re.findall(rf"```{kind}\n(.*?)```", shown, re.DOTALL) for kind in ("python", "yaml", "sh")}
    monkeypatch.chdir(tmp_path)
    Path("workspace.json").write_text(json.dumps(workspaces.two_channels()))
    Path("z.yaml").write_text(blocks["yaml"][0])
    inference: dict = {}
    cells: dict = {}
    exec(blocks["python"][0].replace("1000", "20"), inference)
    assert inference["many"].converged.all()
    exec(blocks["python"][1], cells)
    write_histograms("histograms.json", {name: cells[name] for name in ("signal", "background", "data")})
    called = CliRunner().invoke(app, join_words(shlex.split(blocks["sh"][0].replace("\\\n", " "))[1:]))
    assert called.exit_code == 0, called.output
    written = json.loads(Path("fit.json").read_text())
    assert tuple(written["parameters"]) == cells["result"].parameter_names
