r"""Statistics: models of data, and what follows from them."""

from __future__ import annotations

__all__ = ["AutomaticDerivatives", "Derivatives", "Likelihood", "asimov"]

from specfit.stats.likelihood import AutomaticDerivatives, Derivatives, Likelihood, asimov
