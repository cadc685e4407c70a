"""The acceptance sheet: right verdicts at the right criterion, and a page that says so. Oracles: scipy, html.parser."""

import dataclasses
import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.testing import assert_allclose

from specfit import InputError, Spectrum, cli, plots
from specfit.search import Criterion, InjectionResult, ToyStudy, ValidationSheet, validate
from specfit.search.criteria import criteria_of_toys
from specfit.search.excess import largest_excess
from specfit.search.scanning import fitted, make_chain
from specfit.search.sheet_page import page
from specfit.search.validation import BackgroundToys

MASSES = [700.0, 1300.0]
EDGES = torch.linspace(100.0, 200.0, 11).double()
UNIFORM = (torch.arange(100).double() + 0.5) / 100
OF_TOYS = {
    "p-values of fits to pseudo-data",
    "Mean fitted background against its truth",
    "Spurious signal",
    "Bias of injected signals",
    "Slope of fitted against injected yields",
    "Width of pulls",
    "Coverage of one standard error",
    "Global p-values of pseudo-data",
}


@pytest.fixture(scope="module")
def sheet(fitter, task):
    return validate(task[0], checkpoint=fitter, truth=task[1], mass=MASSES, n_toys=30)


def a_study(*, bias=0.0, slope=1.0, width=1.0, p_values=UNIFORM, global_p=UNIFORM, shift=0.0):
    """What pseudo-experiments of a model with these faults would show, exactly; everything else is as it should be."""
    normal = torch.special.ndtri(UNIFORM)
    normal = normal / normal.std()
    sigma0, strength = torch.full((2,), 10.0).double(), torch.tensor([0.0, 2.0, 5.0, 10.0]).double()
    error = torch.full((100, 2, 4), 20.0).double()
    injected = sigma0[:, None] * strength
    yields = slope * injected + error * (bias + width * normal[:, None, None])
    truth = torch.full((10,), 400.0).double()
    mass = torch.tensor([120.0, 160.0]).double()
    injection = InjectionResult(EDGES, truth, mass, 0.05 * mass, strength, sigma0, yields, error)
    nothing = torch.zeros(10, dtype=torch.bool)
    return ToyStudy(
        "made up", truth, injection, p_values, global_p, truth + shift * 20, torch.ones(10).double(), nothing
    )


def failed(study):
    lines = criteria_of_toys(study)
    return {line.name for line in lines if line.passed is False}


def test_a_model_without_fault_passes_every_criterion():
    lines = criteria_of_toys(a_study())
    assert {line.name for line in lines if line.passed is not None} == OF_TOYS
    assert failed(a_study()) == set()


@pytest.mark.parametrize(
    ("fault", "criteria"),
    [
        ({"bias": 0.45}, set()),
        ({"bias": -0.55}, {"Spurious signal", "Bias of injected signals"}),
        ({"slope": 0.94}, {"Slope of fitted against injected yields"}),
        ({"slope": 0.96}, set()),
        ({"width": 1.5}, {"Width of pulls", "Coverage of one standard error"}),
        ({"width": 1.2}, set()),
        ({"width": 0.7}, {"Width of pulls", "Coverage of one standard error"}),
        ({"shift": 3.1}, {"Mean fitted background against its truth"}),
        ({"shift": -2.9}, set()),
        ({"p_values": UNIFORM**2}, {"p-values of fits to pseudo-data"}),
        ({"global_p": UNIFORM**2}, {"Global p-values of pseudo-data"}),
    ],
)
def test_every_fault_fails_at_its_own_criterion(fault, criteria):
    assert failed(a_study(**fault)) == criteria


def test_the_stricter_rule_is_told_but_not_asked():
    lines = {line.name: line for line in criteria_of_toys(a_study(bias=0.3))}
    strict = lines["Spurious signal, stricter"]
    assert strict.passed is None
    assert strict.comment.startswith("not met")
    assert_allclose([strict.value, lines["Spurious signal"].value], 0.3, atol=1e-9)


def test_values_are_those_of_scipy():
    study = a_study(p_values=UNIFORM**1.2)
    lines = {line.name: line for line in criteria_of_toys(study)}
    expected = scipy.stats.kstest((UNIFORM**1.2).numpy(), "uniform").pvalue
    assert_allclose(lines["p-values of fits to pseudo-data"].value, expected)
    assert_allclose(lines["Error of a yield over that with the background known"].value, 2.0)


def test_bins_that_are_left_out_and_the_unit_of_weighted_contents(rng):
    study = dataclasses.replace(a_study(), mean_background=torch.full((10,), 400.0).double())
    study.mean_background[3] += 100
    line = criteria_of_toys(study)[1]
    assert (line.value, line.passed) == (5.0, False)
    assert line.comment.startswith("largest in 130 to 140")
    weighted = dataclasses.replace(study, weights=torch.where(torch.arange(10) == 3, 4.0, 1.0).double())
    assert criteria_of_toys(weighted)[1].value == pytest.approx(2.5)
    masked = dataclasses.replace(study, mask=torch.arange(10) == 3)
    assert criteria_of_toys(masked)[1].value == 0
    drawn = plots.draw_background_shift([study, weighted, masked]).axes[0].patches
    assert [steps.get_data().values[3] for steps in drawn] == pytest.approx([5.0, 2.5, np.nan], nan_ok=True)
    assert all((np.delete(steps.get_data().values, 3) == 0).all() for steps in drawn)


def test_signals_come_back_from_the_shipped_net_on_its_own_task_away_from_the_turn_on(sheet):
    """One spectrum of the reference task, at two masses on its fall, with its true background and with another form."""
    assert [study.name for study in sheet.studies] == ["given background", "Erf x exp with 2 components"]
    verdicts = {(line.name, line.truth): line.passed for line in sheet.criteria}
    for study in sheet.studies:
        for name in OF_TOYS - {"Global p-values of pseudo-data", "p-values of fits to pseudo-data"}:
            assert verdicts[name, study.name], (name, study.name, str(sheet))
    assert verdicts["Background-only fit of the data", "data"]
    assert sheet.passed == (not sheet.failed)
    assert sheet.n_toys == 30


def test_a_background_with_a_bump_is_a_spurious_signal(fitter, task):
    """The net takes a narrow bump for a signal, as it should; where it belongs to the background, the sheet says so."""
    counts, truth = task
    centers = (fitter.edges[1:] + fitter.edges[:-1]) / 2
    bump = 0.3 * truth * torch.exp(-(((centers - 1300) / 65) ** 2) / 2)
    bad = validate(counts, checkpoint=fitter, truth=truth + bump, mass=MASSES, n_toys=10)
    wrong = {line.name for line in bad.failed if line.truth == "given background"}
    assert {"Spurious signal", "Bias of injected signals"} <= wrong
    assert not bad.passed
    worst = next(line for line in bad.failed if line.name == "Spurious signal")
    assert worst.value > 3
    assert "at 1300" in worst.comment
    assert bad.criteria[0].passed


def test_data_that_no_smooth_background_describes_fail_at_the_first_line(fitter, task):
    waves = (task[0] * (1 + 0.5 * torch.sin(torch.arange(50) * 1.3))).round()
    bad = validate(waves, checkpoint=fitter, mass=[700.0], width=0.15, n_toys=10)
    first = bad.criteria[0]
    assert (first.name, first.passed) == ("Background-only fit of the data", False)
    assert "not converged" in first.comment
    other = bad.criteria[2]
    assert other.passed is None
    assert "no function" in other.comment
    assert len(bad.studies) == 1
    assert bad.to_dict()["criteria"][2]["value"] is None


def test_pseudo_data_are_fitted_and_searched_as_data_are(fitter, task):
    _, fit = fitted(task[0], None, checkpoint=fitter, mask=[(2500, 3000)])
    chain = make_chain(fitter, fit, width=0.05, left_out=[(2500, 3000)])
    toys = BackgroundToys(chain, task[1])
    found = toys(3, torch.Generator().manual_seed(8))
    counts = torch.poisson(task[1].expand(3, -1), generator=torch.Generator().manual_seed(8))
    again = fitter.fit(counts, mask=[(2500, 3000)])
    assert torch.equal(found["p_value"], again.p_value)
    assert torch.equal(found["background"], again.background)
    # The net answers in float32, and how that rounds depends on what else it is asked.
    assert_allclose(found["local_z"], chain(counts).local_z.amax(1), rtol=1e-6)
    one = largest_excess(chain, counts[1:2])
    assert_allclose(found["global_p"][1], one.global_p[0], rtol=1e-6)
    assert toys.identity() != BackgroundToys(chain, task[1] * 2).identity()


def test_plain_data_and_the_sheet_say_the_same(sheet):
    plain = json.loads(json.dumps(sheet.to_dict(), allow_nan=False))
    assert plain["passed"] == sheet.passed
    assert [line["name"] for line in plain["criteria"]] == [line.name for line in sheet.criteria]
    assert_allclose(plain["studies"][0]["injection"]["bias"], sheet.studies[0].injection.bias.flatten())
    assert str(sheet).startswith("passed" if sheet.passed else "not passed")


class Reader(HTMLParser):
    """Reads a page: its text, the sources of its pictures, and whether every tag is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.images, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_else_and_holds_every_criterion(sheet, tmp_path):
    document = sheet.save(tmp_path / "out", title="<b>jets & more</b>")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"fit", "spurious_signal", "linearity", "pulls", "p_values", "background"}
    assert names == {"validation.html", "validation.json", *(f"{name}.png" for name in pictures)}
    reader = Reader()
    reader.feed(document.read_text(encoding="utf-8"))
    assert reader.open == []
    text = " ".join(reader.text)
    for line in sheet.criteria:
        for words in (line.name, line.truth, line.threshold, line.source, line.comment):
            assert words in text
    assert "<b>jets & more</b>" in text
    assert "script" not in reader.tags
    assert "link" not in reader.tags
    assert len(reader.images) == 6
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in reader.images)
    assert reader.tags.index("table") < reader.tags.index("img")
    content = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert content["criteria"] == sheet.to_dict()["criteria"]
    with pytest.raises(FileNotFoundError):
        sheet.save(tmp_path / "no" / "out")


def test_pass_and_fail_are_words_not_colours_alone(sheet):
    lines = [Criterion("one", "t", 1.0, "x", "s", value, "") for value in (True, False, None)]
    text = page(dataclasses.replace(sheet, criteria=tuple(lines)).to_dict(), {})
    for word in ("✓ pass", "✗ FAIL", "told", "✗ Not passed: 1 of 2"):
        assert word in text
    assert "✓ Passed: 1 of 1" in page(dataclasses.replace(sheet, criteria=(lines[0],)).to_dict(), {})


def test_a_store_keeps_the_pseudo_experiments(fitter, task, tmp_path):
    options = {"checkpoint": fitter, "mass": [700.0], "width": 0.15, "n_toys": 10, "store": tmp_path / "store"}
    seen = []
    validate(task[0], progress=lambda done, n: seen.append(done), **options)
    assert 0 in seen
    again = []
    validate(task[0], progress=lambda done, n: again.append(done), **options)
    assert set(again) == {10}


def test_weighted_contents(fitter, task):
    counts = task[0]
    weighted = Spectrum(counts * 0.1, fitter.edges, variances=counts * 0.01)
    options = {"checkpoint": fitter, "mass": [700.0], "width": 0.15, "n_toys": 10}
    plain, scaled = validate(counts, **options), validate(weighted, **options)
    values = [[line.value for line in one.criteria if not np.isnan(line.value)] for one in (plain, scaled)]
    assert_allclose(values[1], values[0], rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"n_toys": 5}, "n_toys: at least 10"), ({"truth": [1.0]}, "truth: expected events"), ({"mass": [1.0]}, "mass:")],
)
def test_a_mistake_gives_one_clear_error(fitter, task, options, words):
    with pytest.raises(InputError, match=words):
        validate(task[0], checkpoint=fitter, **options)


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["specfit", "validate", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


def test_the_command_writes_the_sheet_and_exits_with_its_verdict(monkeypatch, capsys, tmp_path, task):
    monkeypatch.setattr(ValidationSheet, "figures", lambda sheet, **_: {})  # seconds
    np.save(tmp_path / "hist.npy", task[0].numpy())
    given = (tmp_path / "hist.npy", "--mass", "700,1300", "--width", 0.15, "--toys", 10, "--json")
    code, out, _ = run(monkeypatch, capsys, *given)
    plain = json.loads(out)
    assert code == (0 if plain["passed"] else 1)
    assert (tmp_path / "hist_validation" / "validation.html").exists()
    bad = (task[0] * (1 + 0.5 * torch.sin(torch.arange(50) * 1.3))).round()
    np.save(tmp_path / "bad.npy", bad.numpy())
    given = (tmp_path / "bad.npy", "--mass", 700, "--width", 0.15, "--toys", 10, "--out", tmp_path / "o")
    code, out, _ = run(monkeypatch, capsys, *given)
    assert code == 1
    assert "FAIL  Background-only fit of the data" in out
    assert "not passed" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.npy"], "missing.npy"),
        (["hist.npy", "--width", "wide"], "--width: numbers separated by ','"),
        (["hist.npy", "--toys", "3"], "n_toys: at least 10"),
        (["hist.npy", "--mass", "1"], "mass: masses from 250"),
        (["hist.npy", "--edges", "0:1:7"], "edges"),
        (["hist.npy", "--mask", "5"], "--mask"),
        (["hist.npy", "--out", "hist.npy"], "--out: hist.npy is a file; name a folder"),
        (["hist.npy", "--out", "no/such"], "--out: the folder no does not exist"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(monkeypatch, capsys, tmp_path, task, arguments, words):
    monkeypatch.chdir(tmp_path)
    np.save("hist.npy", task[0].numpy())
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert words in err


def test_the_help_has_an_example():
    answer = subprocess.run(
        [sys.executable, "-m", "specfit.cli", "validate", "--help"], capture_output=True, text=True, check=True
    )
    assert "Example" in answer.stdout
