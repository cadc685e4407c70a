r"""Statistics: models of data, and what follows from them.

What to use when:

- `Workspace`, `StatisticalModel`: channels, samples and modifiers in JSON, pyhf's or those of neural simulation-based
  inference, binned and unbinned side by side; `background_sample` brings a learned background into a channel.
- `CellLikelihood` and the rest of `specfit.stats.cells`: n-dimensional histograms with parameters of their own in every
  cell, thousands of them; `AxisNorm`, `AxisExp`, `AxisBernstein`, multiplied by `Composite`.
- `Likelihood`: the interface; a model of your own needs four methods.
- `fit`: the maximum with the exact covariance. `fit_many`: toys or points of a curve, all advancing together.
- `scan`, `contour`, `minos`: profiles. `upper_limit`, `cls`, `discovery`: tests of a signal. `impacts`, `pulls`: what
  the nuisances do. `goodness_of_fit`: whether to believe it. `toys`, `asimov`: other data of the same model. `Blinded`:
  the same without seeing the answer.

Conventions: float64 throughout; `nll` is :math:`-\ln L` with :math:`\alpha^2/2` for a unit constraint; results are
frozen values with a text form and `to_dict`. Every function takes any `Likelihood`.
"""

from __future__ import annotations

__all__ = [
    "AutomaticDerivatives",
    "AxisBernstein",
    "AxisExp",
    "AxisNorm",
    "Blinded",
    "CellFit",
    "CellLikelihood",
    "Channel",
    "ChannelYields",
    "Composite",
    "Contour",
    "Derivatives",
    "Discovery",
    "FitResult",
    "GoodnessOfFit",
    "Impact",
    "Impacts",
    "Interval",
    "Likelihood",
    "ManyFits",
    "PValues",
    "Pull",
    "Scan",
    "StatisticalModel",
    "UpperLimit",
    "Workspace",
    "asimov",
    "background_sample",
    "channel_yields",
    "cls",
    "contour",
    "discovery",
    "fit",
    "fit_cells",
    "fit_many",
    "goodness_of_fit",
    "impacts",
    "minos",
    "pulls",
    "scan",
    "toys",
    "upper_limit",
]

from specfit.stats.blinding import Blinded
from specfit.stats.bridge import background_sample
from specfit.stats.cells import (
    AxisBernstein,
    AxisExp,
    AxisNorm,
    CellFit,
    CellLikelihood,
    Channel,
    Composite,
    fit_cells,
)
from specfit.stats.fit_result import FitResult
from specfit.stats.fitting import ManyFits, fit, fit_many
from specfit.stats.goodness import GoodnessOfFit, goodness_of_fit, toys
from specfit.stats.impacts import Impact, Impacts, Pull, impacts, pulls
from specfit.stats.likelihood import AutomaticDerivatives, Derivatives, Likelihood, asimov
from specfit.stats.limits import Discovery, PValues, UpperLimit, cls, discovery, upper_limit
from specfit.stats.model import StatisticalModel
from specfit.stats.profile import Contour, Interval, Scan, contour, minos, scan
from specfit.stats.workspace import Workspace
from specfit.stats.yields import ChannelYields, channel_yields
