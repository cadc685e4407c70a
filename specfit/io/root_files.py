"""One TH1 in a ROOT file, through uproot.

A histogram whose fSumw2 differs from its contents carries variances. Writing into an existing file keeps everything
in it: as in ROOT, a histogram of the same name becomes an older cycle (`name;1`), and reading by name finds the newest.
After an update every other object is compared with what it was, so that a file that uproot cannot extend is refused
rather than damaged.
"""

from __future__ import annotations

__all__ = ["read_root", "read_root_edges", "write_root"]

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from specfit.arrays import ArrayLike
from specfit.errors import InputError
from specfit.io.files import Place
from specfit.io.histograms import from_histogram, is_histogram, to_hist
from specfit.io.raw import RawSpectrum
from specfit.spectrum import Spectrum

# A message names at most this many histograms of a file.
MOST_LISTED = 20


def read_root(place: Place) -> RawSpectrum:
    """Reads a TH1; under- and overflow are left out.

    Raises:
        InputError: There is no such histogram (the message lists what is there), it is not one-dimensional, or the
            file is damaged.
    """
    with _open(place.file) as file:
        return from_histogram(_find(file, place.inside))


def read_root_edges(place: Place) -> ArrayLike | None:
    """Reads the bin edges of a TH1."""
    return read_root(place).edges


def write_root(spectrum: Spectrum, place: Place) -> None:
    """Writes a TH1D, into the file if it has content already, with fSumw2 where there are variances.

    Raises:
        InputError: The path inside is missing, taken by something else than a TH1, the file cannot be extended, or the
            spectrum has gaps with nothing in them.
    """
    import uproot

    if not place.inside or ";" in place.inside:
        raise InputError("name the histogram, without a cycle: file.root:name or file.root:folder/name")
    histogram = to_hist(spectrum)
    if place.file.stat().st_size == 0:
        with uproot.recreate(place.file) as file:
            file[place.inside] = histogram
        return
    before = _inventory(place.file)
    _check_free(before.classes, place.inside)
    try:
        with uproot.update(place.file) as file:
            file[place.inside] = histogram
    except OSError:
        raise
    except Exception as error:  # uproot raises many kinds for a file that it cannot extend
        raise InputError(f"uproot cannot add to this file ({_first_line(error)}); write to a new one") from None
    _check_kept(before, _inventory(place.file))


class Inventory(NamedTuple):
    """What a ROOT file holds: class and checksum of the record of each object, and the classes it describes."""

    classes: dict[str, str]
    records: dict[str, tuple[int, int, int]]
    streamers: set[str]


def _inventory(path: Path) -> Inventory:
    with _open(path) as file, path.open("rb") as stream:
        classes = dict(file.classnames(cycle=True))
        records = {}
        # The record of a folder changes when something is added to it; all others must stay where and as they are.
        for name in (name for name, kind in classes.items() if not _is_folder(kind)):
            key = file.key(name)
            stream.seek(key.fSeekKey)
            records[name] = (key.fSeekKey, key.fNbytes, zlib.crc32(stream.read(key.fNbytes)))
        return Inventory(classes, records, set(file.file.streamers))


def _check_free(classes: dict[str, str], inside: str) -> None:
    kinds = {name.rpartition(";")[0]: kind for name, kind in classes.items()}
    parts = inside.split("/")
    for depth in range(1, len(parts)):
        parent = "/".join(parts[:depth])
        if not _is_folder(kinds.get(parent, "TDirectory")):
            raise InputError(f"{parent} in the file is a {kinds[parent]}, not a folder; choose another name")
    if not kinds.get(inside, "TH1").startswith("TH1"):
        raise InputError(f"{inside} in the file is a {kinds[inside]}; choose another name")


def _check_kept(before: Inventory, after: Inventory) -> None:
    lost = [name for name, kind in before.classes.items() if after.classes.get(name) != kind]
    lost += [name for name, record in before.records.items() if after.records.get(name) != record]
    lost += sorted(before.streamers - after.streamers)
    if lost:
        raise InputError(
            f"uproot cannot add to this file without losing {lost[0]}; nothing was changed, write to a new file"
        )


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    import uproot

    try:
        with uproot.open({path: None}) as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # decoding a damaged file can fail in any way
        raise InputError(
            f"uproot cannot read this ({_first_line(error)}); the file may be damaged or truncated"
        ) from None


def _find(file: Any, inside: str) -> Any:
    import uproot

    if not inside:
        raise InputError(f"say which histogram: file.root:name; {_there(file)}")
    try:
        found = file[inside]
    except uproot.KeyInFileError:
        raise InputError(f"nothing has that name in the file; {_there(file)}") from None
    if not is_histogram(found):
        raise InputError(f"{inside} is a {getattr(found, 'classname', 'folder')}, not a histogram; {_there(file)}")
    return found


def _there(file: Any) -> str:
    names = [name for name, kind in file.classnames(cycle=False).items() if kind.startswith("TH1")]
    if not names:
        return "there is no one-dimensional histogram in it"
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f"there are {', '.join(names[:MOST_LISTED])}{more}"


def _is_folder(kind: str) -> bool:
    return kind.startswith("TDirectory")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
