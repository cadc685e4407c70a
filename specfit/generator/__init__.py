"""Sampled spectra without end: the truth that nets are trained and judged on.

What to use when:

- `SpectrumGenerator`: the talk's Erf x exp mixtures on one binning; what a net for that binning is trained on.
- `WideGenerator`: every smooth shape that a search has met, on a new binning in every batch, from a hundred events to
  ten thousand million; what the net for any binning is trained on. `FAMILIES` are its shapes, `HELD_OUT` are shapes
  that it never shows, for the honest test.

Both answer with a `Batch`. One `torch.Generator` makes a stream reproducible; its device decides where the work is
done.
"""

__all__ = ["FAMILIES", "HELD_OUT", "Batch", "Components", "SignalPrior", "SpectrumGenerator", "WideGenerator"]

from specfit.generator.batch import Batch
from specfit.generator.families import FAMILIES, HELD_OUT
from specfit.generator.mixture import Components, SpectrumGenerator
from specfit.generator.signal import SignalPrior
from specfit.generator.wide import WideGenerator
