"""What the commands share: progress bars, numbers from words, short tables, one line for an error."""

from __future__ import annotations

__all__ = [
    "beside",
    "changing_bar",
    "gaps",
    "named_by",
    "numbers",
    "one_line",
    "print_json",
    "print_rows",
    "print_written",
    "progress_bar",
    "range_of",
]

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from specfit.errors import InputError
from specfit.progress import changing_bar, progress_bar


def range_of(name: str, text: str) -> list[float]:
    """Reads a number or `low:high`."""
    ends = numbers(name, text, ":", None)
    if len(ends) not in (1, 2):
        raise InputError(f"--{name.replace('_', '-')}: a number or low:high is expected, {text!r} came")
    return [ends[0], ends[-1]]


def numbers(name: str, text: str, separator: str, n: int | None) -> list[float]:
    """Reads numbers with something between them, as many as they are if `n` is None."""
    try:
        found = [float(part) for part in text.split(separator)]
    except ValueError:
        found = []
    if not all(map(math.isfinite, found)):
        raise InputError(f"--{name.replace('_', '-')}: finite numbers are expected, {text!r} came")
    if not found or (n is not None and len(found) != n):
        expected = f"{n} numbers separated by {separator!r}" if n else f"numbers separated by {separator!r}"
        raise InputError(f"--{name.replace('_', '-')}: {expected} are expected, {text!r} came")
    return found


def gaps(intervals: Sequence[tuple[float, float]]) -> str:
    """Says where a spectrum has gaps, to be put behind its number of bins; nothing without them."""
    said = ", ".join(f"{low:g} to {high:g}" for low, high in intervals)
    return f" and {len(intervals)} gap{'s' if len(intervals) > 1 else ''} ({said})" if said else ""


def one_line(error: Exception) -> str:
    """Returns what an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split())


def beside(source: str, ending: str) -> Path:
    """Names an output after its input: `hist.npy` and `_scan.csv` give `hist_scan.csv`.

    Of `file.root:dir/mass` it is `file_mass_scan.csv`: a file holds many histograms.
    """
    file, inside = named_by(source)
    name = f"{file.stem}_{PurePosixPath(inside).name}" if inside else file.stem
    return file.with_name(f"{name}{ending}")


def named_by(source: str) -> tuple[Path, str]:
    """Returns the file that an output is named after, and the histogram inside it without its cycle.

    Raises:
        InputError: The name is empty.
        IsADirectoryError: It is that of a folder.
    """
    from specfit.io.files import check_readable, locate

    if not source:
        raise InputError("FILE: a file is expected, an empty name came")
    file, inside = locate(source)
    if file.is_dir():
        check_readable(file)
    return file, re.sub(r";\d+", "", inside)


def print_json(content: dict[str, Any]) -> None:
    """Prints plain data as JSON, None for numbers that are not finite."""
    from specfit.io.files import finite_or_none

    print(json.dumps(finite_or_none(content), indent=2, allow_nan=False))


def print_rows(rows: Mapping[str, str]) -> None:
    """Prints names and values as a table of two columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for row in rows.items():
        table.add_row(*row)
    Console(highlight=False, soft_wrap=True).print(table)


def print_written(written: Mapping[str, str]) -> None:
    """Says which files were written."""
    for name, path in written.items():
        print(f"{name} written to {path}")
