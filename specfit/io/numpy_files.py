"""`.npy` (counts) and `.npz` (arrays named counts, edges, variances, gaps), never unpickled."""

from __future__ import annotations

__all__ = ["read_npy", "read_npy_edges", "read_npz", "read_npz_edges", "write_npy", "write_npz"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from specfit.errors import InputError
from specfit.io.files import Place
from specfit.io.raw import RawSpectrum
from specfit.spectrum import Spectrum


def read_npy(place: Place) -> RawSpectrum:
    """Reads the counts of a `.npy` file; edges it has none."""
    return RawSpectrum(_load_npy(place), edges_missing="a .npy file has no edges")


def read_npy_edges(place: Place) -> npt.NDArray[Any]:
    """Reads a `.npy` file of edges."""
    return _load_npy(place)


def read_npz(place: Place) -> RawSpectrum:
    """Reads the arrays `counts`, `edges`, `variances` and `gaps` of a `.npz` file; only `counts` must be there."""
    arrays = _load_npz(place, "counts", "edges", "variances", "gaps")
    counts = _required(arrays, "counts")
    missing = f"the .npz file has no array named edges (it holds {_listed(arrays)})"
    variances, gaps = arrays.get("variances"), arrays.get("gaps")
    return RawSpectrum(counts, arrays.get("edges"), variances, edges_missing=missing, gaps=gaps)


def read_npz_edges(place: Place) -> npt.NDArray[Any]:
    """Reads the array `edges` of a `.npz` file."""
    return _required(_load_npz(place, "edges"), "edges")


def write_npy(spectrum: Spectrum, place: Place) -> None:
    """Writes the counts, shape `(n_bins,)` or `(n_spectra, n_bins)`."""
    with place.file.open("wb") as stream:
        np.save(stream, _array(spectrum.counts), allow_pickle=False)


def write_npz(spectrum: Spectrum, place: Place) -> None:
    """Writes counts, edges and, where there are any, variances and gaps."""
    arrays = {"counts": _array(spectrum.counts), "edges": _array(spectrum.edges)}
    if spectrum.variances is not None:
        arrays["variances"] = _array(spectrum.variances)
    if spectrum.gaps is not None:
        arrays["gaps"] = _array(spectrum.gaps)
    with place.file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _load_npy(place: Place) -> npt.NDArray[Any]:
    with _damage_as_input_error():
        # Mapped, not read: a header that claims too many numbers is then refused before memory is asked for.
        array: npt.NDArray[Any] = np.load(place.file, mmap_mode="r", allow_pickle=False)
        return array


def _load_npz(place: Place, *wanted: str) -> dict[str, npt.NDArray[Any] | None]:
    """Loads the wanted arrays; the names of the others come along without their numbers."""
    with (
        _damage_as_input_error(),
        place.file.open("rb") as stream,
        np.load(stream, allow_pickle=False) as archive,
    ):
        return {name: archive[name] if name in wanted else None for name in archive.files}


def _required(arrays: dict[str, npt.NDArray[Any] | None], name: str) -> npt.NDArray[Any]:
    array = arrays.get(name)
    if array is None:
        raise InputError(
            f"no array named {name} (the file holds {_listed(arrays)}); "
            "save it with numpy.savez(path, counts=..., edges=...)"
        )
    return array


def _listed(arrays: dict[str, Any]) -> str:
    return ", ".join(arrays) or "no array"


@contextmanager
def _damage_as_input_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged header or archive can fail in any way
        if "object" in str(error).lower():  # numpy's words for an array that only pickle could load
            raise InputError(
                "the file holds Python objects, which are refused because unpickling can run code; "
                "save plain numbers with numpy.asarray(counts, dtype=float)"
            ) from None
        raise InputError(f"numpy cannot read this ({error}); the file may be damaged or truncated") from None


def _array(tensor: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return array
