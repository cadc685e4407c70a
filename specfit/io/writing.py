"""A `Spectrum` becomes a file, or the kind of object that the user came with."""

from __future__ import annotations

__all__ = ["like", "write"]

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from specfit.errors import InputError
from specfit.io.files import Place, locate, replacing
from specfit.io.histograms import is_histogram, refill
from specfit.io.numpy_files import write_npy, write_npz
from specfit.io.reading import is_row_of_arrays
from specfit.io.root_files import write_root
from specfit.io.text_files import write_csv
from specfit.spectrum import Spectrum

WRITERS: dict[str, Callable[[Spectrum, Place], None]] = {
    ".npy": write_npy,
    ".npz": write_npz,
    ".csv": write_csv,
    ".root": write_root,
}
HOLDS_A_BATCH = (".npy", ".npz")


def write(spectrum: Spectrum, path: str | os.PathLike[str]) -> Path:
    """Writes a spectrum by the ending of `path`; what `read` makes of the file is the same spectrum.

    A `.npy` file holds the counts only; a `.csv` file leaves out the rows of gaps, and `read` fills them anew. A file
    of the same name is replaced in one step; a ROOT file keeps everything else that it holds.

    Args:
        spectrum: What to write; a batch only to `.npy` or `.npz`.
        path: A name that ends in `.npy`, `.npz` or `.csv`, or `file.root:path`.

    Returns:
        The path, as `read` takes it.

    Raises:
        InputError: The ending is not known, or the format cannot hold this spectrum.
        OSError: The file cannot be written: no such folder, no permission, no space.
    """
    try:
        place = locate(path)
        if place.ending not in WRITERS:
            raise InputError(f"the ending {place.ending!r} is not known; {', '.join(WRITERS)} can be written")
        if spectrum.is_batch and place.ending not in HOLDS_A_BATCH:
            raise InputError(
                f"a {place.ending} file holds one spectrum, a batch of {len(spectrum.counts)} came; "
                f"write {' or '.join(HOLDS_A_BATCH)}, or one of them at a time"
            )
        with replacing(place.file, keep_content=place.ending == ".root") as temporary:
            WRITERS[place.ending](spectrum, place._replace(file=temporary))
    except InputError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from None
    return Path(path)


def like(source: Any, spectrum: Spectrum) -> Any:
    """Returns `spectrum` as the kind of object that `source` is.

    An array or a list gives a numpy array of counts, a tensor a tensor; a tuple `(counts, edges)` a tuple of the same
    length; a hist or boost-histogram object one with the same axis, and variances where `spectrum` has them; another
    histogram a `hist.Hist`; a path or a Spectrum gives the Spectrum.

    Args:
        source: What `read` took.
        spectrum: What to return, on the same bins.

    Example:
        >>> like([40, 30], Spectrum([36, 34], edges=[0, 1, 2]))
        array([36., 34.])
    """
    if isinstance(source, Spectrum | str | os.PathLike):
        return spectrum
    if is_histogram(source):
        return refill(source, spectrum)
    if is_row_of_arrays(source):
        variances = spectrum.counts if spectrum.variances is None else spectrum.variances
        parts = (spectrum.counts, spectrum.edges, variances)
        return tuple(_array_like(old, new) for old, new in zip(source, parts, strict=False))
    return _array_like(source, spectrum.counts)


def _array_like(source: Any, values: Tensor) -> Any:
    return values.to(source.device) if isinstance(source, Tensor) else values.detach().cpu().numpy()
