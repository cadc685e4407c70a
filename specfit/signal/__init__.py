"""Signals on a background: what is looked for, fitted beside the background, and what the looking costs.

What to use when:

- `gaussian_hypotheses`, `template_hypotheses`, `binwise_hypotheses`: what is looked for.
- `score_test`: the significance of every hypothesis from one fit of the background alone; microseconds each.
- `extract`: background and signal fitted together by a net that does not see the signal; `fit_jointly` is one such fit.
- `specfit.signal.look_elsewhere`: the p-value of the largest significance of many.

The refit masks what these find; `specfit.search` makes limits and pseudo-experiments of them.
"""

__all__ = [
    "JointFit",
    "Rows",
    "SignalHypotheses",
    "binwise_hypotheses",
    "extract",
    "fit_jointly",
    "gaussian_hypotheses",
    "score_test",
    "template_hypotheses",
]

from specfit.signal.extraction import extract
from specfit.signal.hypotheses import (
    SignalHypotheses,
    binwise_hypotheses,
    gaussian_hypotheses,
    template_hypotheses,
)
from specfit.signal.joint_fit import JointFit, fit_jointly
from specfit.signal.rows import Rows
from specfit.signal.score import score_test
