"""Categories: bins of a discriminant, or regions in several dimensions, that make a search most sensitive.

What to use when:

- `optimize(bins, events, signals=...)`: move categories until the significance stops growing, by gradient.
  `SigmoidBins` for cuts on one variable or a grid of cuts on several; `GaussianMixtureBins` for regions in any number
  of dimensions.
- `optimal_boundaries`: the exact best bins of one discriminant, for one signal; slower, and an oracle for the above.
- `Objective`: what is to be reached, how little background or simulation a category may hold, what is uncertain.
- `MassWindow`: the significance is that of a resonance in a window of a mass which the categories do not see.
- `evaluate_events`: what any categories reach on any events.
- `read_events` and `Events.of`: events from Parquet, ROOT, `.npz` or arrays; `toy_1d`, `toy_three_class`,
  `toy_diphoton`: published toys.
- `save_bins` and `load_bins`: categories as plain data.

Conventions: a significance is the median (Asimov) discovery significance of all categories together; weights are
expected events, of either sign; a value on a boundary lies right of it. Everything is float64 except the memberships of
`GaussianMixtureBins` within an optimisation. A part of the events is kept from the optimisation by default: what bins
gain from fluctuations they lose on the others.

Sources: arXiv:2601.07756 (GATO: differentiable categorisation, the toys); arXiv:1007.1727, eq. 97 (significance).
"""

from __future__ import annotations

__all__ = [
    "Bins",
    "Evaluation",
    "Events",
    "GaussianMixtureBins",
    "History",
    "InfeasibleError",
    "MassWindow",
    "Objective",
    "Optimized",
    "Optimum",
    "Sample",
    "Schedule",
    "SigmoidBins",
    "Yields",
    "evaluate",
    "evaluate_events",
    "geometric_mean",
    "load_bins",
    "load_history",
    "optimal_boundaries",
    "optimize",
    "read_events",
    "save_bins",
    "save_history",
    "toy_1d",
    "toy_diphoton",
    "toy_three_class",
]

from specfit.categories.base import Bins
from specfit.categories.evaluation import Evaluation, evaluate
from specfit.categories.events import Events
from specfit.categories.history import History
from specfit.categories.mass import MassWindow
from specfit.categories.mixture import GaussianMixtureBins
from specfit.categories.objective import Objective, geometric_mean
from specfit.categories.optimize import Optimized, evaluate_events, optimize
from specfit.categories.optimum import InfeasibleError, Optimum, optimal_boundaries
from specfit.categories.reading import read_events
from specfit.categories.sample import Sample, Yields
from specfit.categories.saving import load_bins, load_history, save_bins, save_history
from specfit.categories.schedules import Schedule
from specfit.categories.sigmoid import SigmoidBins
from specfit.categories.toys import toy_1d, toy_diphoton, toy_three_class
