"""Refit: ask again with the discrepant bins taken out, so that a signal does not pull the background.

What to use when:

- `refit_signals`: the default. At every place and width a signal is tested beside the background; where one is more
  significant than 1 in 100 pure backgrounds would show anywhere, its window is masked. A net that read the signal into
  its background is found out too, because the test knows what the background can imitate.
- `refit_windows`: the same threshold on windows of bins above the fitted background; for nets that do not say what else
  is plausible (`net=talk`, `net=dense`).
- `refit_talk`: the loop of the talk, to the letter: one bin at a time, down to one standard deviation. It reduces the
  bias of strong signals, but on a pure background it masks upward fluctuations and pulls the background down.

`fit_by_rule` is the fit of a net with any of them. All work on many spectra at once, replace masked data by the
background, and always end.
"""

__all__ = [
    "FALSE_ALARM",
    "SPECTRA_AT_A_TIME",
    "TALK_THRESHOLD",
    "Found",
    "Refit",
    "fit_by_rule",
    "joined",
    "refit_signals",
    "refit_talk",
    "refit_windows",
]

from specfit.fitter.base import FALSE_ALARM, Found, Refit
from specfit.fitter.by_rule import SPECTRA_AT_A_TIME, fit_by_rule, joined
from specfit.fitter.signals import refit_signals
from specfit.fitter.talk import TALK_THRESHOLD, refit_talk
from specfit.fitter.windows import refit_windows
