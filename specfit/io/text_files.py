"""Tables in text: `.csv` with one bin a line, and edges in `.csv` or `.txt`.

A header line names the columns: `low_edge`, `high_edge`, `content` and, if there is one, `variance` (or `uncertainty`
or `error`, which is squared); other columns are ignored. Without a header these three columns are expected alone.
Blank lines and lines that begin with `#` are skipped. Where rows leave out an interval, a vetoed region say, the
spectrum has a gap; writing leaves out the same rows.
"""

from __future__ import annotations

__all__ = ["read_csv", "read_text_edges", "write_csv"]

import csv
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from specfit.errors import InputError
from specfit.io.files import Place
from specfit.io.raw import RawSpectrum, join_table
from specfit.spectrum import Spectrum

BIN_COLUMNS = ("low_edge", "high_edge")
COLUMNS = (*BIN_COLUMNS, "content")
# Columns that give the variance and the power that makes it one, the first that is there counts.
VARIANCE_POWERS = {"variance": 1, "variances": 1, "uncertainty": 2, "error": 2}

Floats = npt.NDArray[np.float64]


class Table(NamedTuple):
    """Cells of a text file: the column names (None without a header line), the rows, and the line of each row."""

    header: list[str] | None
    rows: list[list[str]]
    lines: list[str]

    def column(self, index: int, name: str) -> Floats:
        """Returns the numbers of one column, shape `(n_rows,)`."""
        return np.array(
            [_number(row, index, f"{line}, {name}") for row, line in zip(self.rows, self.lines, strict=True)]
        )

    def columns(self, names: Sequence[str]) -> list[Floats]:
        """Returns the numbers of some columns, found by their names or, without a header, by their order."""
        found = list(names) if self.header is None else self.header
        missing = [name for name in names if name not in found]
        if missing:
            raise InputError(
                f"no column named {', '.join(missing)} (the columns are {', '.join(found)}); "
                f"the first line must be {','.join(names)}, separated by commas"
            )
        twice = [name for name in names if found.count(name) > 1]
        if twice:
            raise InputError(f"{found.count(twice[0])} columns are named {twice[0]}; rename all but one of them")
        return [self.column(found.index(name), name) for name in names]


def read_csv(place: Place) -> RawSpectrum:
    """Reads a table of bins.

    Raises:
        InputError: A column is missing or there twice, a cell is no number, or bins overlap, follow each other in no
            order, or leave out more than they hold; with the line.
    """
    table = _read_table(place)
    if table.header is None and len(table.rows[0]) != len(COLUMNS):
        raise InputError(
            f"{table.lines[0]}: {len(table.rows[0])} columns came without a header line; name them, with "
            f"{', '.join(COLUMNS)} among the names"
        )
    low, high, content = table.columns(COLUMNS)
    joined, variances = join_table(low, high, table.lines), _variances(table)
    return RawSpectrum(
        joined.spread(content),
        joined.edges,
        None if variances is None else joined.spread(variances),
        gaps=joined.gaps,
    )


def read_text_edges(place: Place) -> Floats:
    """Reads edges: one row or one column of numbers, or a table with the columns low_edge and high_edge.

    Gaps of a table become bins, as in `read_csv`.
    """
    table = _read_table(place)
    widest = max(map(len, table.rows))
    if widest == 1:
        return table.column(0, "edge")
    if len(table.rows) == 1:
        return np.array([_number(table.rows[0], i, table.lines[0]) for i in range(widest)])
    low, high = table.columns(BIN_COLUMNS)
    return join_table(low, high, table.lines).edges


def write_csv(spectrum: Spectrum, place: Place) -> None:
    """Writes a table of bins with every digit that float64 needs, without those in gaps."""
    columns = {
        "low_edge": spectrum.edges[:-1],
        "high_edge": spectrum.edges[1:],
        "content": spectrum.counts,
    }
    if spectrum.variances is not None:
        columns["variance"] = spectrum.variances
    with place.file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(column[spectrum.measured].tolist() for column in columns.values()), strict=True))


def _read_table(place: Place) -> Table:
    try:
        with place.file.open(encoding="utf-8-sig", newline="") as stream:
            # In a .txt file blanks separate as well as commas.
            text = stream if place.ending == ".csv" else (",".join(s.replace(",", " ").split()) for s in stream)
            reader = csv.reader(text, skipinitialspace=True)
            numbered = [(f"line {reader.line_num}", _trimmed(cells)) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"this is not a text file of comma-separated columns ({error})") from None
    filled = [(line, cells) for line, cells in numbered if cells and not cells[0].startswith("#")]
    header = [cell.lower() for cell in filled[0][1]] if filled and not _are_numbers(filled[0][1]) else None
    body = filled if header is None else filled[1:]
    if not body:
        raise InputError("the file has no line with numbers")
    table = Table(header, [cells for _, cells in body], [line for line, _ in body])
    _check_width(table)
    return table


def _check_width(table: Table) -> None:
    # A decimal comma would otherwise shift the columns in silence.
    expected = len(table.rows[0] if table.header is None else table.header)
    for row, line in zip(table.rows, table.lines, strict=True):
        if len(row) > expected:
            raise InputError(f"{line}: {len(row)} cells came, {expected} are expected (decimal points, no commas)")


def _trimmed(cells: list[str]) -> list[str]:
    kept = [cell.strip() for cell in cells]
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _are_numbers(cells: list[str]) -> bool:
    try:
        [float(cell) for cell in cells]
    except ValueError:
        return False
    return True


def _number(row: list[str], index: int, where: str) -> float:
    cell = row[index] if index < len(row) else ""
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{where}: a number is expected, {cell!r} came") from None


def _variances(table: Table) -> Floats | None:
    name = next((name for name in VARIANCE_POWERS if name in (table.header or ())), None)
    if name is None:
        return None
    (values,) = table.columns([name])
    bad = np.flatnonzero(~(values >= 0))
    if bad.size:
        raise InputError(f"{table.lines[bad[0]]}, {name}: must not be negative, {values[bad[0]]:g} came")
    return values ** VARIANCE_POWERS[name]
