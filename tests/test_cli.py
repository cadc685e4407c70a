"""The command line, run as a user runs it: right answers, one line for a mistake, nothing lost."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import uproot

import specfit
from specfit import cli
from specfit.cli.terminal import beside

EDGES = np.geomspace(250, 3000, 51)


@pytest.fixture(scope="module")
def counts():
    x = np.sqrt(EDGES[1:] * EDGES[:-1])
    return np.round(1e5 * np.exp(-x / 120) / (1 + np.exp(-(x - 350) / 15)))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command line in this process, in an empty folder; answers exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["specfit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


def assert_one_clear_line(answer, *words):
    code, out, err = answer
    assert code == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("specfit: error: ")
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    "verb", [[], ["predict"], ["train"], ["generate"], ["scan"], ["validate"], ["fit"], ["categorize"]]
)
def test_every_help_has_an_example(run, verb):
    code, out, _ = run(*verb, "--help")
    assert code == 0
    assert "Usage" in out
    assert not verb or "Example" in out


def test_version(run):
    assert run("--version")[:2] == (0, specfit.__version__ + "\n")


def test_predict_prints_a_table_and_writes_the_background(run, counts):
    np.save("hist.npy", counts)
    code, out, _ = run("predict", "hist.npy", "--edges", "250:3000:50:log")
    assert code == 0
    for row in ("events", "bins", "deviance / ndf", "p-value", "largest excess", "masked bins"):
        assert row in out
    written = np.load("hist_background.npy")
    expected = specfit.smooth_background(counts, EDGES)
    np.testing.assert_allclose(written, expected, rtol=1e-6)
    assert f"{counts.sum():.6g}" in out


def test_predict_takes_the_edges_of_the_checkpoint_and_many_spectra(run, counts):
    many = np.stack([counts, 2 * counts, counts // 2])
    np.save("many.npy", many)
    code, out, _ = run("predict", "many.npy", "--no-refit", "--json")
    assert code == 0
    answer = json.loads(out)
    assert [fit["events"] for fit in answer["fits"]] == many.sum(1).tolist()
    assert all(fit["masked_bins"] == [] for fit in answer["fits"])
    assert np.load(answer["background"]).shape == many.shape
    code, out, _ = run("predict", "many.npy")
    assert code == 0
    assert "spectrum" in out


def test_a_few_spectra_have_a_line_each_and_one_note(run, counts):
    np.save("few.npy", np.stack([counts, 2 * counts, counts]))
    code, out, _ = run("predict", "few.npy", "--no-refit")
    header, *lines = out.splitlines()
    assert code == 0
    assert " ".join(header.split()) == "spectrum events background dev / ndf p sigma at masked converged"
    assert [line.split()[:2] for line in lines[:3]] == [
        [str(i), f"{n * counts.sum():g}"] for i, n in enumerate((1, 2, 1))
    ]
    assert max(map(len, lines)) <= 80
    assert out.count("note") == 1


def test_options_that_contradict_each_other_are_refused(run, counts):
    np.save("hist.npy", counts)
    assert_one_clear_line(run("predict", "hist.npy", "--no-refit", "--refit", "windows"), "--no-refit: it contradicts")
    assert_one_clear_line(run("scan", "hist.npy", "--width", "0.05", "--resolution", "50"), "give one of them")
    for option in (("--scheduler", "tcp://node:1"), ("--workers", "2"), ("--store", "kept")):
        assert_one_clear_line(run("scan", "hist.npy", *option), f"{option[0]}: for pseudo-experiments", "--toys")


def test_a_scan_that_finds_a_deficit_alone_has_no_global_significance(run, counts):
    counts = counts.copy()
    counts[(EDGES[1:] > 400) & (EDGES[:-1] < 441)] *= 0.8
    np.save("hist.npy", counts)
    code, out, _ = run("scan", "hist.npy", "--mass", "420:420:1", "--out", "scan.json")
    assert code == 0
    assert "- sigma, p = 1," in out
    out = run("scan", "hist.npy", "--mass", "420:420:1", "--out", "scan.json", "--json")[1]
    for summary in (json.loads(out)["scan"], json.loads(Path("scan.json").read_text())["summary"]):
        assert (summary["global_p"], summary["global_z"]) == (1.0, None)


def test_a_file_of_very_many_spectra_is_streamed(run, counts, monkeypatch):
    monkeypatch.setattr("specfit.streaming.LARGE", 3)
    np.save("many.npy", np.stack([counts, 2 * counts, counts // 2, counts]))
    code, out, _ = run("predict", "many.npy", "--no-refit")
    assert code == 0
    assert "spectra              4" in out
    assert np.load("many_background.npy").shape == (4, 50)
    assert np.load("many_background_fits.npy")["events"][1] == 2 * counts.sum()
    advice = "specfit train experiment=quick name=mine edges=0:10:50 "
    total = f"data.generator.total=[{float(f'{(counts // 2).sum() / 2:.2g}'):g},"  # of the data
    assert_one_clear_line(run("predict", "many.npy", "--edges", "0:10:50", "--checkpoint", "reference"), advice, total)
    assert_one_clear_line(run("predict", "many.npy", "--plot"), "--plot")
    assert not list(Path().glob("*.partial"))


def test_the_same_kind_of_file_comes_out(run, counts):
    specfit.io.write(specfit.Spectrum(counts, EDGES), "a.csv")
    specfit.io.write(specfit.Spectrum(counts, EDGES), "a.npz")
    with uproot.recreate("a.root") as file:
        file["dir/mass"] = counts, EDGES
    assert run("predict", "a.csv")[0] == 0
    assert run("predict", "a.npz", "--out", "b.npz")[0] == 0
    assert run("predict", "a.root:dir/mass")[0] == 0
    Path("a_background.root").unlink()
    assert run("predict", "a.root:dir;1/mass;1")[0] == 0  # as uproot's keys() print it
    Path("a.root").rename("b.ROOT")
    before = Path("b.ROOT").read_bytes()
    assert run("predict", "b.ROOT:dir/mass", "--plot")[0] == 0
    assert Path("b.ROOT").read_bytes() == before  # nothing is ever written into the input
    assert Path("b_background.png").exists()
    expected = specfit.smooth_background(counts, EDGES)
    np.testing.assert_allclose(specfit.read("b_background.ROOT:dir/mass").counts, expected, rtol=1e-6)
    np.testing.assert_allclose(specfit.read("a_background.csv").counts, expected, rtol=1e-6)
    np.testing.assert_allclose(specfit.read("b.npz").counts, expected, rtol=1e-6)
    with uproot.open("a_background.root") as file:
        np.testing.assert_allclose(file["dir/mass"].values(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("option", "picture"), [(["--plot"], "hist_background.png"), (["--plot", "fit.pdf"], "fit.pdf")]
)
def test_the_picture_lies_where_it_was_asked_for(run, counts, option, picture):
    np.save("hist.npy", counts)
    code, out, _ = run("predict", "hist.npy", *option)
    assert code == 0
    assert Path(picture).stat().st_size > 5000
    assert picture in out


def test_every_histogram_of_a_file_has_a_table_of_its_own():
    assert beside("dir/a.ROOT:b/mass", "_scan.csv") == Path("dir/a_mass_scan.csv")
    assert beside("dir/a.ROOT:b/mass;2", "_scan.csv") == Path("dir/a_mass_scan.csv")
    assert beside("dir/a.csv", "_scan.csv") == Path("dir/a_scan.csv")


@pytest.mark.parametrize("mass", ["400:2500:inf", "400:nan:5", "-inf:2500:5"])
def test_numbers_that_are_not_finite_are_one_line(run, counts, mass):
    np.save("hist.npy", counts)
    assert_one_clear_line(run("scan", "hist.npy", f"--mass={mass}"), "--mass", "finite", mass)


def test_missing_and_damaged_inputs_are_one_line(run, counts):
    assert_one_clear_line(run("predict", "nothing.npy"), "nothing.npy")
    np.save("short.npy", counts[:49])
    assert_one_clear_line(run("predict", "short.npy", "--checkpoint", "reference"), "49", "50")
    np.save("hist.npy", counts)
    assert_one_clear_line(run("predict", "hist.npy", "--edges", "0:10:7"), "50", "7")
    assert_one_clear_line(run("predict", "hist.npy", "--edges", "10:0:50"), "edges")
    np.save("cube.npy", counts.reshape(2, 5, 5))
    assert_one_clear_line(run("predict", "cube.npy"), "(2, 5, 5)")
    for name, value in {"nan": np.nan, "inf": np.inf, "negative": -1.0}.items():
        np.save(f"{name}.npy", np.where(np.arange(50) == 4, value, counts))
        assert_one_clear_line(run("predict", f"{name}.npy"), "bin 4")
    np.save("zero.npy", 0 * counts)
    assert_one_clear_line(run("predict", "zero.npy"), "zero")
    np.save("one.npy", counts[:1])
    assert_one_clear_line(run("predict", "one.npy", "--edges", "0:1:1"))
    np.save("strings.npy", counts.astype(str))
    assert_one_clear_line(run("predict", "strings.npy"), "strings.npy")
    np.save("objects.npy", counts.astype(object), allow_pickle=True)
    assert_one_clear_line(run("predict", "objects.npy"), "unpickling")
    Path("empty.npy").touch()
    assert_one_clear_line(run("predict", "empty.npy"), "empty.npy")
    Path("empty.yaml").touch()
    assert_one_clear_line(run("fit", "empty.yaml"), "empty.yaml: the file is empty")
    Path("text.npy").write_text("hello")
    assert_one_clear_line(run("predict", "text.npy"), "text.npy")
    Path("hist.xyz").write_text("hello")
    assert_one_clear_line(run("predict", "hist.xyz"), ".npy")
    Path("bad.csv").write_text("low_edge,high_edge,content\n1,2,3\n2,1.5,4\n")
    assert_one_clear_line(run("predict", "bad.csv"), "bad.csv")


@pytest.mark.parametrize("verb", ["predict", "scan", "validate"])
def test_an_empty_name_and_a_folder_are_one_line(run, verb):
    assert_one_clear_line(run(verb, ""), "a file is expected, an empty name came")
    for folder in (".", "/"):
        assert_one_clear_line(run(verb, folder), f"{folder}: this is a folder; name a file in it")


def test_a_root_path_that_is_not_there_lists_what_is(run, counts):
    with uproot.recreate("a.root") as file:
        file["mass"] = counts, EDGES
    assert_one_clear_line(run("predict", "a.root:mess"), "mess", "mass")


def test_unusable_checkpoints_and_outputs_are_one_line(run, counts):
    np.save("hist.npy", counts)
    Path("foreign.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert_one_clear_line(run("predict", "hist.npy", "--checkpoint", "foreign.safetensors"), "foreign.safetensors")
    assert_one_clear_line(run("predict", "hist.npy", "--checkpoint", "nothing"), "nothing")
    assert_one_clear_line(run("predict", "hist.npy", "--out", "no/such/folder/b.npy"), "no/such/folder")
    assert_one_clear_line(run("predict", "hist.npy", "--out", "hist.npy"), "input")
    assert_one_clear_line(run("predict", "hist.npy", "--plot", "picture.xyz"), ".png")
    np.testing.assert_array_equal(np.load("hist.npy"), counts)
    assert not list(Path().rglob("*.tmp"))


def test_an_unknown_option_is_the_callers_mistake(run):
    assert run("predict", "a.npy", "--nonsense")[0] == 2
    assert run("nonsense")[0] == 2


def test_generate_writes_what_it_says(run):
    code, out, _ = run("generate", "toys", "--size", 200, "--n-backgrounds", "1:3", "--signal", "1000,100,500")
    assert code == 0
    assert "200 spectra of 50 bins" in out
    assert np.load("toys/counts.npy", mmap_mode="r").shape == (200, 50)
    np.testing.assert_allclose(np.load("toys/edges.npy"), EDGES)
    np.testing.assert_allclose(np.load("toys/signal.npy").sum(1), 500, rtol=1e-3)
    assert json.loads(Path("toys/card.json").read_text())["signal"] == "1000,100,500"
    assert_one_clear_line(run("generate", "toys"), "toys", "exists")
    assert_one_clear_line(run("generate", "more", "--rho", "2:1"), "rho")
    assert_one_clear_line(run("generate", "more", "--rho", "x"), "--rho")
    assert_one_clear_line(run("generate", "more", "--signal", "1,2"), "--signal")
    assert_one_clear_line(run("generate", "more", "--size", "0"), "size")


def test_ctrl_c_is_said_in_one_line(run, monkeypatch, counts):
    np.save("hist.npy", counts)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("specfit.inference.SpectrumFitter.from_checkpoint", interrupt)
    code, _, err = run("predict", "hist.npy")
    assert code == 130
    assert "stopped" in err
    assert not Path("hist_background.npy").exists()


def test_every_published_spectrum_is_answered_or_refused_clearly(run, spectra_folder):
    for path in sorted(spectra_folder.glob("*.csv")):
        code, out, err = run("predict", path, "--out", "out.csv")
        assert code in (0, 2), err
        if code == 2:
            assert_one_clear_line((code, out, err), "specfit train")


def test_the_installed_command_answers():
    command = Path(sys.executable).with_name("specfit")
    answer = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout == specfit.__version__ + "\n"
