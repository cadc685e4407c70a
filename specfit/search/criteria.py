r"""What is asked of a background model, with thresholds and sources.

Thresholds are those of the experiments. A bias is compared with its threshold as it is; widths and coverages of a
hundred pseudo-experiments scatter by as much as they may be wrong, so these fail only beyond two statistical errors
above the tolerance, and the strengths of one signal, which share their backgrounds, are judged together.

Sources: ATLAS, ATL-PHYS-PUB-2020-028 (spurious signal, injection); the practice of ATLAS's dijet searches, such as
arXiv:1703.09127 (p-values of fit and of the largest excess, 0.5 standard errors, the template within three).
"""

from __future__ import annotations

__all__ = ["Criterion", "ToyStudy", "criteria_of_data", "criteria_of_toys"]

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import scipy.stats
import torch
from torch import Tensor

from specfit.background_fit import BackgroundFit
from specfit.search.alternatives import LEAST_P
from specfit.search.injection_result import InjectionResult

MOST_BIAS, STRICTER_BIAS = 0.5, 0.2
LARGEST_SHIFT = 3.0
SLOPE_TOLERANCE, WIDTH_TOLERANCE = 0.05, 0.1
# Of normal pulls whose width is 1 - 0.1 or 1 + 0.1, 73.3 % and 63.7 % lie within 1.
COVERAGE, COVERAGE_TOLERANCE = 0.6827, 0.05
STATISTICAL_ERRORS = 2.0
LEAST_GLOBAL_P = 0.05

ATLAS_DIJET = "practice of ATLAS dijet searches"
SPURIOUS = "ATL-PHYS-PUB-2020-028; practice of ATLAS dijet searches"
STRICT = "older rule of ATLAS's diphoton searches"
OWN = "specfit"
FOLLOWS = "too large: bins of few events, or a background that follows the data more than its parameters count"


class Criterion(NamedTuple):
    """One line of the sheet."""

    name: str
    """What is asked."""
    truth: str
    """The background that pseudo-data were drawn from, or `"data"`."""
    value: float
    """What came out, at its worst; NaN where there is none."""
    threshold: str
    """What it must be."""
    source: str
    """Who asks for it."""
    passed: bool | None
    """Whether it is; None for what is told and not asked."""
    comment: str
    """Where it is worst, and what it means."""


@dataclass(frozen=True, eq=False)
class ToyStudy:
    """What pseudo-experiments of one background showed; contents are in the unit of the spectrum.

    Args:
        name: Which background.
        truth: Its expected contents, shape `(n_bins,)`.
        injection: Signals injected into it.
        p_values: Of the fits of the background alone, shape `(n,)`.
        global_p: Of the largest excess of each, shape `(n,)`.
        mean_background: Fitted to it, on average, shape `(n_bins,)`.
        weights: Content that one event stands for in each bin, shape `(n_bins,)`.
        mask: True for bins that are left out, shape `(n_bins,)`.
    """

    name: str
    truth: Tensor
    injection: InjectionResult
    p_values: Tensor = field(repr=False)
    global_p: Tensor = field(repr=False)
    mean_background: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)

    @property
    def background_shift(self) -> Tensor:
        """Mean fitted background less its truth, in statistical errors of the data; NaN where bins are left out."""
        # A bin of less than one expected event counts with the error of one.
        error = (self.truth * self.weights).clamp(min=self.weights**2).sqrt()
        return ((self.mean_background - self.truth) / error).masked_fill(self.mask, torch.nan)


def criteria_of_data(
    fit: BackgroundFit, largest_z: float, global_p: float, study: ToyStudy, alternative: str
) -> list[Criterion]:
    """Judges the data themselves.

    Args:
        fit: Of the data.
        largest_z: Their largest local significance.
        global_p: Its global p-value.
        study: Pseudo-experiments of the fitted background.
        alternative: Which other function describes the data; empty if none does.
    """
    p, converged = fit.p_value.item(), bool(fit.converged)
    as_bad = float((study.p_values <= p).double().mean())
    comment = f"deviance {fit.deviance.item():.1f} on {fit.ndf.item():.1f} degrees of freedom; "
    comment += f"{100 * as_bad:.0f} % of the pseudo-experiments fit no better"
    if fit.mask.any():
        comment += f"; {int(fit.mask.sum())} bins left out"
    comment += "" if converged else f"; not converged: {fit.message}"
    excess = f"largest local excess {largest_z:.2f} sigma; an excess is no failure of the background model"
    found = bool(alternative)
    other = alternative if found else "no function of three other families describes the data, so that the sheet "
    other += "" if found else "rests on the net's own background alone"
    return [
        Criterion(
            "Background-only fit of the data",
            "data",
            p,
            f"p > {LEAST_P:g}",
            ATLAS_DIJET,
            p > LEAST_P and converged,
            comment,
        ),
        Criterion("Global p-value of the data", "data", global_p, f"p > {LEAST_GLOBAL_P:g}", ATLAS_DIJET, None, excess),
        Criterion(
            "Another family describes the data",
            "data",
            math.nan,
            f"p > {LEAST_P:g}",
            OWN,
            None,
            other,
        ),
    ]


def criteria_of_toys(study: ToyStudy) -> list[Criterion]:
    """Judges the pseudo-experiments of one background."""
    return [
        _uniform("p-values of fits to pseudo-data", study.name, study.p_values, too_large=FOLLOWS),
        _stable(study),
        *_spurious(study),
        _injection(study),
        _linear(study),
        _pull_width(study),
        _coverage(study),
        _cost(study),
        _uniform("Global p-values of pseudo-data", study.name, study.global_p),
    ]


def _uniform(name: str, truth: str, p_values: Tensor, *, too_large: str = "") -> Criterion:
    p = float(scipy.stats.kstest(p_values.numpy(), "uniform").pvalue)
    below = [f"{100 * float((p_values < level).double().mean()):.0f} % below {level:g}" for level in (0.05, 0.5)]
    threshold = f"Kolmogorov-Smirnov p > {LEAST_P:g}"
    comment = f"uniform if right; {', '.join(below)}"
    if p <= LEAST_P and too_large and p_values.median() > 0.5:
        comment += f"; {too_large}"
    return Criterion(name, truth, p, threshold, OWN, p > LEAST_P, comment)


def _stable(study: ToyStudy) -> Criterion:
    shift = study.background_shift
    worst = int(shift.masked_fill(study.mask, 0.0).abs().argmax())
    low, high = study.injection.edges[worst : worst + 2].tolist()
    return Criterion(
        "Mean fitted background against its truth",
        study.name,
        shift[worst].item(),
        f"within {LARGEST_SHIFT:g} statistical errors of the data in every bin",
        ATLAS_DIJET,
        bool(shift[worst].abs() < LARGEST_SHIFT),
        f"largest in {low:g} to {high:g}; root mean square {float(shift[~study.mask].square().mean().sqrt()):.2f}",
    )


def _spurious(study: ToyStudy) -> list[Criterion]:
    result = study.injection
    none = result.strength == 0
    at, value, error = _worst(result.bias[:, none], result.bias_error[:, none])
    comment = f"{_place(result, at[0])}; ± {error:.2f}"
    name, size = "Spurious signal", abs(value)
    strict = "met" if size < STRICTER_BIAS else "not met"
    return [
        Criterion(
            name,
            study.name,
            value,
            f"within {MOST_BIAS:g} standard errors of the fit",
            SPURIOUS,
            size < MOST_BIAS,
            comment,
        ),
        Criterion(
            name + ", stricter",
            study.name,
            value,
            f"within {STRICTER_BIAS:g} standard errors of the fit",
            STRICT,
            None,
            f"{strict}; {comment}",
        ),
    ]


def _injection(study: ToyStudy) -> Criterion:
    result = study.injection
    some = result.strength > 0
    at, value, error = _worst(result.bias[:, some], result.bias_error[:, some])
    strength = result.strength[some][at[1]].item()
    return Criterion(
        "Bias of injected signals",
        study.name,
        value,
        f"within {MOST_BIAS:g} standard errors of the fit",
        SPURIOUS,
        abs(value) < MOST_BIAS,
        f"{_place(result, at[0])}, {strength:g} sigma injected; ± {error:.2f}",
    )


def _linear(study: ToyStudy) -> Criterion:
    result = study.injection
    away, error = result.slope - 1, result.slope_error
    allowed = (STATISTICAL_ERRORS * error).clamp(min=SLOPE_TOLERANCE)
    worst = int((away.abs() / allowed).argmax())
    return Criterion(
        "Slope of fitted against injected yields",
        study.name,
        result.slope[worst].item(),
        f"1 within {SLOPE_TOLERANCE:g} or {STATISTICAL_ERRORS:g} statistical errors",
        OWN,
        bool((away.abs() < allowed).all()),
        f"{_place(result, worst)}; ± {error[worst]:.3f}, intercept {result.intercept[worst]:+.2f} sigma0",
    )


def _pull_width(study: ToyStudy) -> Criterion:
    result = study.injection
    width = result.pull_width.square().mean(-1).sqrt()
    error = 1 / math.sqrt(2 * (result.n_toys - 1))
    return _within("Width of pulls", study, width, 1.0, WIDTH_TOLERANCE, error)


def _coverage(study: ToyStudy) -> Criterion:
    coverage = study.injection.coverage.mean(-1)
    error = math.sqrt(COVERAGE * (1 - COVERAGE) / study.injection.n_toys)
    return _within("Coverage of one standard error", study, coverage, COVERAGE, COVERAGE_TOLERANCE, error)


def _cost(study: ToyStudy) -> Criterion:
    result = study.injection
    ratio = (result.fit_error / result.sigma0[:, None])[:, int(result.strength.argmin())]
    worst = int(ratio.argmax())
    return Criterion(
        "Error of a yield over that with the background known",
        study.name,
        ratio[worst].item(),
        "as near to 1 as can be",
        OWN,
        None,
        f"{_place(result, worst)}; what not knowing the background costs a search",
    )


def _within(name: str, study: ToyStudy, values: Tensor, expected: float, tolerance: float, error: float) -> Criterion:
    """Asks for values near an expected one, beyond what their statistical error explains."""
    worst = int((values - expected).abs().argmax())
    allowed = tolerance + STATISTICAL_ERRORS * error
    return Criterion(
        name,
        study.name,
        values[worst].item(),
        f"{expected:.3g} within {tolerance:g} and {STATISTICAL_ERRORS:g} statistical errors",
        OWN,
        bool((values - expected).abs().max() < allowed),
        f"{_place(study.injection, worst)}, all strengths together; ± {error:.2f}",
    )


def _worst(bias: Tensor, error: Tensor) -> tuple[tuple[int, int], float, float]:
    """Finds the largest bias of shape `(h, k)`: where, how large, with which error."""
    i, j = divmod(int(bias.abs().nan_to_num(torch.inf).argmax()), bias.shape[-1])
    return (i, j), bias[i, j].item(), error[i, j].item()


def _place(result: InjectionResult, i: int) -> str:
    return f"largest at {result.mass[i]:.5g}, width {result.width[i]:.3g}"
