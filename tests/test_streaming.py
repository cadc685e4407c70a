"""Files of very many spectra: the same answers as at once, whatever stopped the run in between."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from specfit import InputError, SpectrumFitter, streaming
from specfit.inference import EdgesMismatchError
from specfit.net import LearnedBasisNet

EDGES = torch.logspace(2.4, 3.48, 13)


@pytest.fixture(scope="module")
def fitter():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SpectrumFitter(LearnedBasisNet(12, n_basis=(4, 3), hidden=16), EDGES)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "LARGE", 20)
    monkeypatch.setattr(streaming, "CHUNK", 16)
    rates = 1e4 * np.exp(-np.arange(12) / 3) * np.linspace(0.1, 3, 70)[:, None]
    np.save(tmp_path / "many.npy", np.random.default_rng(1).poisson(rates))
    return str(tmp_path / "many.npy")


def test_only_large_files_are_streamed(source, tmp_path):
    assert streaming.is_large(source)
    np.save(tmp_path / "few.npy", np.ones((20, 12)))
    np.save(tmp_path / "one.npy", np.ones(5000))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY nonsense")
    assert not any(streaming.is_large(str(tmp_path / name)) for name in ("few.npy", "one.npy", "broken.npy", "no.npy"))


def test_gives_what_a_fit_of_all_gives(fitter, source, tmp_path):
    calls = []
    result = streaming.fit_file(fitter, source, str(tmp_path / "out.npy"), progress=lambda *call: calls.append(call))
    fit = fitter.fit(np.load(source))
    # The net is float32, and its sums depend on how many spectra come at once; masked bins extrapolate that.
    np.testing.assert_allclose(np.load(result.background), fit.background, rtol=1e-4)
    np.testing.assert_allclose(result.fits["deviance"], fit.deviance, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.fits["largest_excess"], fit.significance.max(-1).values, rtol=1e-4, atol=1e-4)
    assert (result.fits["masked_bins"] == fit.mask.sum(-1).numpy()).all()
    assert calls == [(0, 70), (16, 70), (32, 70), (48, 70), (64, 70), (70, 70)]
    assert {path.name for path in tmp_path.iterdir()} == {"many.npy", "out.npy", "out_fits.npy"}


class StopHereError(Exception):
    pass


def stop(done, size):
    if done == 32:
        raise StopHereError


@pytest.fixture
def target(fitter, source, tmp_path):
    """Where a run was stopped after 32 spectra."""
    with pytest.raises(StopHereError):
        streaming.fit_file(fitter, source, str(tmp_path / "out.npy"), progress=stop)
    assert not (tmp_path / "out.npy").exists()
    return str(tmp_path / "out.npy")


def test_a_stopped_run_goes_on_where_it_was(fitter, source, target, tmp_path):
    calls = []
    result = streaming.fit_file(
        fitter, source, target, progress=lambda done, size: calls.append(done), refit="signals", mask=[]
    )
    assert calls == [32, 48, 64, 70]
    whole = streaming.fit_file(fitter, source, str(tmp_path / "whole.npy"))
    assert (np.load(result.background) == np.load(whole.background)).all()
    assert (result.fits == whole.fits).all()


def test_a_run_that_was_killed_between_its_last_two_moves_ends_well(fitter, source, tmp_path):
    out, whole = tmp_path / "late.npy", streaming.fit_file(fitter, source, str(tmp_path / "whole.npy"))
    partial = tmp_path / "late.npy.partial"

    class Killed(BaseException):
        pass

    def kill(path, target):
        if path.name == "fits.npy":
            raise Killed
        return replace(path, target)

    replace = Path.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            streaming.fit_file(fitter, source, str(out))
    assert out.exists()
    assert partial.exists()
    result = streaming.fit_file(fitter, source, str(out))
    assert (np.load(out) == np.load(whole.background)).all()
    assert (result.fits == whole.fits).all()
    assert not partial.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"refit": None}, "refit"),
        ({"mask": [(400, 500)]}, "mask"),
        ({"edges": EDGES.double() * (1 + 1e-9)}, "edges"),
        ({"edges": EDGES, "refit": "talk"}, "edges, refit"),
    ],
)
def test_a_stopped_run_goes_on_only_as_it_began(fitter, source, target, changes, named):
    with pytest.raises(InputError, match=rf"out.npy.partial holds a stopped run with another {named}; give .* or del"):
        streaming.fit_file(fitter, source, target, **changes)
    assert len(streaming.fit_file(fitter, source, target).fits) == 70


def test_a_stopped_run_goes_on_only_with_its_own_net_and_data(fitter, source, target):
    other = SpectrumFitter(copy.deepcopy(fitter.net), EDGES)
    next(other.net.parameters()).data[0] += 1e-6
    with pytest.raises(InputError, match=r"out.npy.partial holds a stopped run with another net;"):
        streaming.fit_file(other, source, target)
    np.save(source, np.load(source)[:-1])
    with pytest.raises(InputError, match=r"with another content of the input;"):
        streaming.fit_file(fitter, source, target)


def test_names_the_row_that_is_no_spectrum(fitter, source, tmp_path, monkeypatch):
    counts = np.load(source).astype(float)
    counts[40, 3] = np.nan
    np.save(source, counts)
    with pytest.raises(InputError, match=r"counts: nan at row 40, bin 3; .* \(rows are counted from 0\)"):
        streaming.fit_file(fitter, source, str(tmp_path / "out.npy"))
    assert [path.name for path in tmp_path.iterdir()] == ["many.npy"]  # other counts are another run
    counts[40, 3], counts[69] = 1.0, 0.0
    np.save(source, counts)
    monkeypatch.setattr(streaming, "_fit_rows", lambda *_: pytest.fail("fitted before the file was looked through"))
    with pytest.raises(InputError, match=r"every bin is zero in row 69;"):
        streaming.fit_file(fitter, source, str(tmp_path / "out.npy"))
    with pytest.raises(InputError, match=r"are written to a .npy file, out.csv came"):
        streaming.fit_file(fitter, source, str(tmp_path / "out.csv"))


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ([1e16] * 12, {}, r"counts: 1e\+16 at row 50, bin 0 came"),
        ([9.0] + [0.0] * 11, {"mask": [(251.0, 260.0)]}, r"mask: .* of row 50, or all of the content"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_the_first_fit(fitter, source, tmp_path, row, options, message):
    counts = np.load(source).astype(float)
    counts[50] = row
    np.save(source, counts)
    with pytest.raises(InputError, match=message):
        streaming.fit_file(fitter, source, str(tmp_path / "out.npy"), progress=pytest.fail, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["many.npy"]


def test_wrong_edges_are_no_fault_of_a_row(fitter, source, tmp_path):
    with pytest.raises(EdgesMismatchError, match=r"^edges: this checkpoint fits 12 bins .* edges=FILE"):
        streaming.fit_file(fitter, source, str(tmp_path / "out.npy"), edges=2 * EDGES)
    assert [path.name for path in tmp_path.iterdir()] == ["many.npy"]
