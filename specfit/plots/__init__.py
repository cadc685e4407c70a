r"""Plots: fits and residuals as pictures; everything that is drawn was computed elsewhere.

What to use when:

- `draw_fit`: one fit, data and background above, significance of each bin below; the picture for a paper or a talk.
- `draw_examples`: up to six fits side by side, small; for training logs.
- `draw_residuals`: how far fits lie from the truth, pooled over bins; several calls on one axes overlay.
- `draw_residual_correlation`: whether a fit follows the fluctuations of its data.
- `draw_bias`: mean and RMS of the residuals along the axis, against a limit.
- `draw_scan`, `draw_contour`, `draw_impacts`, `draw_correlation`, `draw_yields`: results of `specfit.stats`.
- `draw_search`, `draw_local_p`, `draw_limits`: what a search for a resonance found.
- `draw_injection`: injected signals of known size; `draw_spurious_signal`, `draw_linearity`, `draw_pulls`,
  `draw_p_values` and `draw_background_shift`: an acceptance sheet.
- `draw_stack`: processes of simulation on top of each other.
- `draw_history`, `draw_bias_history`, `draw_yield_and_uncertainty`, `draw_significance_comparison`, `draw_category_map`
  and `save_gif`: how categories were optimised, what they hold and where they lie.
- `save`: any of these to a file, whole or not at all.

Conventions: contents are drawn as events per bin, or per unit of x where bin widths differ by more than 20 %. Counts
carry the central 68 % interval of a Poisson mean, weighted contents the square root of their variance. Residuals are in
units of the statistical error, :math:`(b - t) / \sqrt{t}` for a fit b of the truth t. Only the object interface of
matplotlib is used: no pyplot, no window, no change of the global style. Colours are told apart with every kind of
colour vision.

Sources: F. Garwood, Biometrika 28 (1936) 437 (interval); M. Okabe, K. Ito, "Color Universal Design" (2002) (colours).
"""

from __future__ import annotations

__all__ = [
    "ENDINGS",
    "DrawableFit",
    "draw_background_shift",
    "draw_bias",
    "draw_bias_history",
    "draw_category_map",
    "draw_contour",
    "draw_correlation",
    "draw_examples",
    "draw_fit",
    "draw_history",
    "draw_impacts",
    "draw_injection",
    "draw_limits",
    "draw_linearity",
    "draw_local_p",
    "draw_p_values",
    "draw_pulls",
    "draw_residual_correlation",
    "draw_residuals",
    "draw_scan",
    "draw_search",
    "draw_significance_comparison",
    "draw_spurious_signal",
    "draw_stack",
    "draw_yield_and_uncertainty",
    "draw_yields",
    "save",
    "save_gif",
]

from specfit.plots.categories import (
    draw_bias_history,
    draw_category_map,
    draw_history,
    draw_significance_comparison,
    draw_yield_and_uncertainty,
    save_gif,
)
from specfit.plots.contents import DrawableFit
from specfit.plots.fits import draw_examples, draw_fit
from specfit.plots.residuals import draw_bias, draw_residual_correlation, draw_residuals
from specfit.plots.saving import ENDINGS, save
from specfit.plots.searches import draw_limits, draw_local_p, draw_search
from specfit.plots.stacks import draw_stack
from specfit.plots.statistics import draw_contour, draw_correlation, draw_impacts, draw_scan, draw_yields
from specfit.plots.validation import (
    draw_background_shift,
    draw_injection,
    draw_linearity,
    draw_p_values,
    draw_pulls,
    draw_spurious_signal,
)
