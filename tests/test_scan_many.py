"""A search of many spectra: what a store that is used again may hold, and what cannot be searched."""

import json

import numpy as np
import pytest
import torch

import specfit
from specfit import InputError
from specfit.search import many, scan_many

EDGES = specfit.io.parse_edges("250:3000:50:log")


@pytest.fixture
def counts():
    return np.random.default_rng(3).poisson(1e4 * np.exp(-np.arange(50) / 8), (2002, 50)).astype(float)


@pytest.fixture
def searched(monkeypatch):
    """Numbers of the pieces that were searched, instead of the time that it takes."""
    numbers = []

    def search(_, chain, rows, chunk):
        numbers.append(chunk.index)
        return {name: np.full(chunk.size, float(chunk.index)) for name in many.FOUND}

    monkeypatch.setattr(many._Searcher, "search", search)
    return numbers


@pytest.mark.parametrize("mapped", [False, True])
def test_a_store_knows_every_spectrum(mapped, counts, fitter, searched, tmp_path):
    def search():
        source = str(tmp_path / "many.npy") if mapped else counts
        return scan_many(source, EDGES, checkpoint=fitter, store=tmp_path / "store")

    np.save(tmp_path / "many.npy", counts)
    first, again = search(), search()
    assert searched == [0, 1, 2, 3]
    np.testing.assert_array_equal(first.table["local_z"], again.table["local_z"])
    counts[7] *= 5
    np.save(tmp_path / "many.npy", counts)
    with pytest.raises(InputError, match=r"store: .* another run \(data: "):
        search()


def test_a_store_holds_pieces_of_one_version(counts, fitter, searched, tmp_path):
    def search():
        return scan_many(counts, EDGES, checkpoint=fitter, store=tmp_path)

    search()
    card = json.loads((tmp_path / "card.json").read_text())
    card["software"]["specfit"] = "0.0.1"
    (tmp_path / "card.json").write_text(json.dumps(card))
    search()  # nothing is missing
    next(tmp_path.glob("000000512-*.npz")).unlink()
    searched.clear()
    with pytest.raises(InputError, match=r"made with other versions \(software.specfit: '0.0.1' there"):
        search()
    assert not searched


@pytest.mark.parametrize("gaps", [None, np.arange(50) == 20])
def test_a_mask_for_each_spectrum_is_refused(gaps, counts, fitter):
    spectra, masks = counts[:5], np.zeros((5, 50), dtype=bool)
    with pytest.raises(InputError, match=r"^mask: shape \(5, 50\) came, the same bins are left out of every spectrum"):
        scan_many(specfit.Spectrum(spectra, EDGES, gaps=gaps), checkpoint=fitter, mask=masks)
    with pytest.raises(InputError, match=r"^mask: shape \(5, 50\) came, the same bins are left out of every spectrum"):
        scan_many(spectra, EDGES, checkpoint=fitter, mask=torch.from_numpy(masks))
