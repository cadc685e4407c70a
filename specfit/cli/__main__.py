"""`python -m specfit.cli`: the same as the console script `specfit`."""

from __future__ import annotations

__all__ = ["main"]

from specfit.cli import main

if __name__ == "__main__":
    main()
