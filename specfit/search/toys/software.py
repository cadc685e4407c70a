"""The versions that decide what is drawn."""

from __future__ import annotations

__all__ = ["software"]

import torch

from specfit import __version__


def software() -> dict[str, str]:
    """Returns the versions of what draws and calculates."""
    return {"specfit": __version__, "torch": str(torch.__version__)}
