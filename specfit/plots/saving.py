"""A picture to a file, whole or not at all."""

from __future__ import annotations

__all__ = ["ENDINGS", "save"]

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from specfit.errors import InputError
from specfit.io.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".pdf", ".svg")
DOTS_PER_INCH = 150


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure at 150 dots per inch and closes it where pyplot holds it open.

    An older file of this name stays as it was until the new one is complete. No folder is made.

    Args:
        figure: What to write; it can be written again, in another format.
        path: Where; the ending says the format: `.png`, `.pdf` or `.svg`.

    Returns:
        The path.

    Raises:
        InputError: Another ending.
        FileNotFoundError: The folder does not exist.
        OSError: The file cannot be written: a folder of this name, no permission, no space.
    """
    target = Path(path)
    ending = target.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"path: the name {target.name!r} ends in none of {', '.join(ENDINGS)}; use one of them")
    with replacing(target) as temporary:
        figure.savefig(temporary, format=ending[1:], dpi=DOTS_PER_INCH)
    # pyplot keeps the figures that it made alive until they are closed; without pyplot there is nothing to close.
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)
    return target
