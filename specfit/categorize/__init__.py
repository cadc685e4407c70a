"""Categorising from the command line: a configuration becomes a run folder with categories, tables and pictures.

What to use when:

- `categorize`: optimise as a configuration says, for several numbers of categories; `main`: the same behind Hydra.
- `analyse`: draw a run again from its checkpoints, without training.
- `DiscriminantReport`, `BumpHuntReport`: the pictures of a run with one discriminant, or with scores and a mass.

A run folder holds `config.yaml`, `results.json`, `checkpoints/` and pictures.
"""

from __future__ import annotations

__all__ = ["BumpHuntReport", "DiscriminantReport", "Result", "Study", "analyse", "categorize", "main", "window_around"]

from specfit.categorize.bump_hunt import BumpHuntReport, window_around
from specfit.categorize.discriminant import DiscriminantReport
from specfit.categorize.run import analyse, categorize, main
from specfit.categorize.study import Result, Study
