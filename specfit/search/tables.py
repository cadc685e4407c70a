"""Results as tables on disk: which endings a result knows, and columns as comma-separated values."""

from __future__ import annotations

__all__ = ["checked_ending", "write_csv"]

from collections.abc import Mapping, Sequence
from pathlib import Path

from specfit.errors import InputError
from specfit.io.files import replacing


def checked_ending(path: str | Path, endings: Sequence[str]) -> Path:
    """Returns the path of a table that is to be written.

    Raises:
        InputError: It ends in none of two or more `endings`.
    """
    target = Path(path)
    if target.suffix not in endings:
        expected = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise InputError(f"{target}: a name ending in {expected} is expected")
    return target


def write_csv(target: Path, columns: Mapping[str, Sequence[float]]) -> Path:
    """Writes columns with their names, ten digits of each number, whole or not at all.

    Args:
        target: The file.
        columns: Numbers by name, as many in each.
    """
    rows = (",".join(f"{x:.10g}" for x in row) for row in zip(*columns.values(), strict=True))
    with replacing(target) as temporary:
        temporary.write_text("\n".join([",".join(columns), *rows]) + "\n")
    return target
