"""A data set on disk: what the files hold, and that no interruption changes a bit of them."""

import json

import numpy as np
import pytest
import scipy.stats
import torch

import specfit.dataset
from specfit.dataset import write_dataset
from specfit.errors import InputError
from specfit.generator import SignalPrior, SpectrumGenerator

CHUNK, SIZE = 16, 40  # two whole chunks and a half one
CARD = {"task": "test", "ranges": [1, 2.5], "note": None}
ARRAYS = ("counts", "background", "signal", "edges")


class StopHereError(Exception):
    """What a test raises out of the progress callback."""


@pytest.fixture(scope="module")
def generator():
    return SpectrumGenerator(
        np.linspace(250, 1500, 9), n_backgrounds=(1, 3), signal=SignalPrior(probability=0.5, events=(100.0, 200.0))
    )


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(specfit.dataset, "CHUNK", CHUNK)


@pytest.fixture
def write(generator):
    def write(folder, **changes):
        return write_dataset(
            changes.pop("generator", generator), folder, **{"size": SIZE, "seed": 5, "card": CARD} | changes
        )

    return write


def contents(folder):
    """Every file of a folder, as bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_at(limit):
    def progress(done):
        if done >= limit:
            raise StopHereError

    return progress


def test_folder_holds_plain_arrays_and_a_card(write, generator, tmp_path):
    folder = write(tmp_path / "new" / "spectra")
    assert folder == tmp_path / "new" / "spectra"
    assert {path.name for path in folder.iterdir()} == {*(f"{name}.npy" for name in ARRAYS), "card.json"}
    assert list(folder.parent.iterdir()) == [folder]  # nothing half-made is left
    counts, background, signal, edges = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS)
    for array in (counts, background, signal):
        assert array.shape == (SIZE, 8)
        assert array.dtype == np.float32
    np.testing.assert_array_equal(edges, generator.edges.numpy())
    assert edges.dtype == np.float64
    card = json.loads((folder / "card.json").read_text())
    assert card == {"size": SIZE, "seed": 5, "edges": np.linspace(250, 1500, 9).tolist()} | CARD


def test_spectra_are_those_of_the_generator(write, tmp_path):
    folder = write(tmp_path / "spectra", size=400)
    counts, background, signal = (np.load(folder / f"{name}.npy").astype(float) for name in ARRAYS[:3])
    totals = background.sum(-1)
    assert scipy.stats.kstest(totals, scipy.stats.uniform(2e4, 1.6e5).cdf).pvalue > 1e-3
    assert len(np.unique(totals)) == 400  # no chunk is another one again
    assert scipy.stats.binomtest(int((signal.sum(-1) > 0).sum()), 400, 0.5).pvalue > 1e-3
    expected = background + signal
    many = expected > 100
    pull = (counts[many] - expected[many]) / np.sqrt(expected[many])
    assert scipy.stats.kstest(pull, "norm").pvalue > 1e-3


def test_seed_decides_every_bit(write, tmp_path):
    first, again, other = (contents(write(tmp_path / name, seed=seed)) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert first == again
    for name in ("counts.npy", "background.npy", "signal.npy"):
        assert first[name] != other[name]


def test_larger_data_set_begins_with_the_smaller_one(write, tmp_path):
    small, large = write(tmp_path / "small", size=2 * CHUNK), write(tmp_path / "large", size=SIZE)
    for name in ARRAYS[:3]:
        np.testing.assert_array_equal(np.load(small / f"{name}.npy"), np.load(large / f"{name}.npy")[: 2 * CHUNK])


def test_no_global_state_is_touched(write, tmp_path):
    state = torch.manual_seed(3).get_state()
    write(tmp_path / "spectra")
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_tells_what_is_on_disk(write, tmp_path):
    seen = []
    write(tmp_path / "spectra", progress=seen.append)
    assert seen == [0, 16, 32, 40]


@pytest.mark.parametrize("limit", [0, 16, 32, 40])
def test_stopped_run_goes_on_bit_by_bit(write, tmp_path, limit):
    undisturbed, folder, seen = write(tmp_path / "undisturbed"), tmp_path / "stopped", []
    with pytest.raises(StopHereError):
        write(folder, progress=stop_at(limit))
    assert not folder.exists()
    write(folder, progress=seen.append)
    assert seen == [done for done in (0, 16, 32, 40) if done >= limit]
    assert contents(folder) == contents(undisturbed)
    assert {path.name for path in tmp_path.iterdir()} == {"stopped", "undisturbed"}


def test_stopped_again_and_again(write, tmp_path):
    folder = tmp_path / "stopped"
    for limit in (0, 16, 16, 32):
        with pytest.raises(StopHereError):
            write(folder, progress=stop_at(limit))
    write(folder)
    assert contents(folder) == contents(write(tmp_path / "undisturbed"))


def test_half_written_chunk_is_drawn_again(write, tmp_path):
    folder = tmp_path / "stopped"
    with pytest.raises(StopHereError):
        write(folder, progress=stop_at(16))
    for name in ARRAYS[:3]:  # as after a power cut in the middle of the second chunk
        array = np.load(tmp_path / "stopped.partial" / f"{name}.npy", mmap_mode="r+")
        array[20:] = -7
        array.flush()
    write(folder)
    assert contents(folder) == contents(write(tmp_path / "undisturbed"))


def test_run_stopped_before_its_first_spectrum_begins_anew(write, tmp_path):
    (tmp_path / "spectra.partial").mkdir()
    (tmp_path / "spectra.partial" / "counts.npy").write_bytes(b"half an array")
    assert contents(write(tmp_path / "spectra")) == contents(write(tmp_path / "undisturbed"))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 6},
        {"size": 41},
        {"card": CARD | {"task": "other"}},
        {"generator": SpectrumGenerator(np.linspace(250, 1400, 9))},
    ],
    ids=["seed", "size", "card", "edges"],
)
def test_refuses_to_go_on_with_other_settings(write, tmp_path, change):
    folder = tmp_path / "spectra"
    with pytest.raises(StopHereError):
        write(folder, progress=stop_at(16))
    before = contents(tmp_path / "spectra.partial")
    with pytest.raises(InputError, match=r"folder: .*spectra.partial holds a stopped run with other settings"):
        write(folder, **change)
    assert contents(tmp_path / "spectra.partial") == before


def test_card_may_hold_tuples(write, tmp_path):
    card = {"total": (2e4, 1.8e5)}  # which JSON gives back as lists
    with pytest.raises(StopHereError):
        write(tmp_path / "spectra", card=card, progress=stop_at(16))
    assert write(tmp_path / "spectra", card=card).is_dir()


def test_refuses_a_folder_that_exists(write, tmp_path):
    folder = write(tmp_path / "spectra")
    before = contents(folder)
    with pytest.raises(InputError, match=r"folder: .*spectra exists already; choose another name"):
        write(folder)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"size": 0}, "size: at least 1 spectrum is expected, 0 came"),
        ({"seed": -1}, "seed: a number from 0 upwards is expected, -1 came"),
    ],
)
def test_refuses_arguments(write, tmp_path, change, match):
    with pytest.raises(InputError, match=match):
        write(tmp_path / "spectra", **change)
    assert list(tmp_path.iterdir()) == []
