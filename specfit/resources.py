"""Where the files beside the code lie: `conf/` (training runs) and `checkpoints/` (shipped nets).

In a checkout they stand at the top of the repository; a wheel carries them inside the package.
"""

from __future__ import annotations

__all__ = ["folder"]

from pathlib import Path
from typing import Literal


def folder(name: Literal["conf", "checkpoints"]) -> Path:
    """Returns the absolute path of a folder that ships with specfit.

    Raises:
        FileNotFoundError: the installation lacks it (neither a wheel nor a checkout).
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{name}/ is neither in {package} nor beside it: reinstall specfit")
