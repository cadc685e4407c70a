"""What categories are worth: hard yields, significances with their statistical uncertainty, what softness distorts."""

from __future__ import annotations

__all__ = ["Evaluation", "bias_of", "evaluate", "mean_bias"]

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specfit.categories.base import Bins
from specfit.categories.objective import FEWEST, Objective, relative_uncertainty
from specfit.categories.sample import Sample, Yields

# Categories with less background than this are left out of the mean bias: a single event would decide it.
BIAS_ABOVE = 5.0


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What categories hold and reach when every event belongs to exactly one.

    Args:
        signals: Names of the signals.
        yields: What each category holds.
        significances: Of each signal, shape `(n_signals,)`.
        errors: Statistical uncertainty of the significances, from the finite number of simulated events.
        by_category: Of each signal in each category, shape `(n_signals, n_categories)`.
        combined: All signals in one number, as the objective combines them.
        combined_error: Its statistical uncertainty.
        uncertainty: Relative statistical uncertainty of the background, shape `(n_categories,)`.
        bias: (hard - soft) / hard of the background, shape `(n_categories,)`.
        feasible: Every category respects both limits of the objective.
    """

    signals: tuple[str, ...]
    yields: Yields
    significances: Tensor
    errors: Tensor
    by_category: Tensor
    combined: float
    combined_error: float
    uncertainty: Tensor
    bias: Tensor
    feasible: bool

    @property
    def mean_bias(self) -> float:
        """Mean absolute bias of the categories with a background of at least 5; 0 where there is none."""
        return mean_bias(self.bias, self.yields)

    def summary(self) -> dict[str, Any]:
        """Returns the figures as plain data."""
        return {
            "significance": dict(zip(self.signals, self.significances.tolist(), strict=True)),
            "significance_error": dict(zip(self.signals, self.errors.tolist(), strict=True)),
            "combined": self.combined,
            "combined_error": self.combined_error,
            "mean_bias": self.mean_bias,
            "feasible": self.feasible,
            "categories": [
                {
                    "signal": dict(zip(self.signals, self.yields.signal[:, k].tolist(), strict=True)),
                    "background": self.yields.background[k].item(),
                    "relative_uncertainty": self.uncertainty[k].item(),
                    "bias": self.bias[k].item(),
                }
                for k in range(len(self.uncertainty))
            ],
        }


def evaluate(bins: Bins, sample: Sample, objective: Objective, *, factors: Tensor | None = None) -> Evaluation:
    """Evaluates categories on a sample.

    Args:
        bins: The categories.
        sample: The events.
        objective: What is to be reached.
        factors: What the scaled background of each category is multiplied by, shape `(n_categories,)`.
    """
    with torch.no_grad():
        hard = sample.yields(bins.hard_totals(sample), factors)
        soft = sample.yields(bins.soft_totals(sample), factors)
        signal_variance = bins.hard_totals(sample.squares)[: len(sample.signals)]
    leaves = Yields(*(part.clone().requires_grad_() for part in hard))
    z = objective.significances(leaves)
    combined = objective.combine(z)
    errors = torch.stack([_error(value, leaves, hard, signal_variance) for value in (*z, combined)])
    return Evaluation(
        signals=sample.signals,
        yields=hard,
        significances=z.detach(),
        errors=errors[:-1],
        by_category=objective.by_category(hard),
        combined=combined.item(),
        combined_error=errors[-1].item(),
        uncertainty=relative_uncertainty(hard),
        bias=bias_of(hard, soft),
        feasible=bool(objective.are_feasible(hard).all()),
    )


def bias_of(hard: Yields, soft: Yields) -> Tensor:
    """Computes (hard - soft) / hard of the background, shape `(n_categories,)`."""
    return (hard.background - soft.background) / hard.background.abs().clamp(min=FEWEST)


def mean_bias(bias: Tensor, hard: Yields) -> float:
    """Averages the absolute bias over the categories with a background of at least 5; 0 where there is none."""
    counted = bias[hard.background >= BIAS_ABOVE]
    return counted.abs().mean().item() if len(counted) else 0.0


def _error(value: Tensor, leaves: Yields, hard: Yields, signal_variance: Tensor) -> Tensor:
    """Propagates the variances of all yields to first order."""
    by_signal, by_background = torch.autograd.grad(value, (leaves.signal, leaves.background), retain_graph=True)
    variance = (by_signal.square() * signal_variance).sum() + (by_background.square() * hard.variance).sum()
    return variance.sqrt()
