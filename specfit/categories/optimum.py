r"""The best bins of one discriminant, by dynamic programming: an oracle for every other way, and a way of its own.

The squared significance of one signal adds up over bins, so the best division of everything below an edge into n bins
is the best division below some lower edge into n - 1 bins and one bin more (Bellman). Over G candidate edges that takes
:math:`G^2` significances and :math:`n G^2` additions. Candidates are midpoints between neighbouring events; if there
are more than can be afforded, a selection that is dense in signal, in background and towards both ends, and then all
midpoints around the solution, until it stays.

`exchange_boundaries` is the local counterpart for any objective: it moves one boundary after the other to the best of
all candidates between its neighbours. A gradient sees smooth yields and stops before a limit that the background
crosses in jumps; this does not.
"""

from __future__ import annotations

__all__ = ["InfeasibleError", "Optimum", "exchange_boundaries", "optimal_boundaries", "settle"]

from dataclasses import dataclass

import torch
from torch import Tensor

from specfit.categories.base import Bins
from specfit.categories.events import Events
from specfit.categories.objective import Objective
from specfit.categories.sample import Sample, Yields
from specfit.categories.sigmoid import SigmoidBins
from specfit.errors import InputError

REFINEMENTS = 6
ROUNDS = 20
# How much steeper bins become when their boundaries have found their place between two events.
SETTLED = 1e3
# Less gain than this is rounding.
LEAST_GAIN = 1e-9


class InfeasibleError(InputError):
    """No bins respect the constraints."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best bins.

    Args:
        boundaries: Inner boundaries in increasing order, shape `(n_bins - 1,)`.
        significance: What they reach on the events that they were chosen with.
        yields: What the bins hold.
        exact: All midpoints between events were candidates; otherwise no better boundaries near these exist.
    """

    boundaries: Tensor
    significance: float
    yields: Yields
    exact: bool


@torch.no_grad()
def optimal_boundaries(
    events: Events | Sample,
    n_bins: int,
    *,
    signal: str,
    objective: Objective | None = None,
    candidates: int = 2400,
) -> Optimum:
    """Finds the boundaries of the largest significance under the constraints of an objective.

    Args:
        events: One feature; every process but the signal is background.
        n_bins: Number of bins.
        signal: The process that is looked for.
        objective: Its limits are kept if it is `constrained`, and its significance counts; penalties do not. None: no
            constraint, which lets bins end in fluctuations.
        candidates: Edges that are compared at a time; 2400 take a second and 50 MB.

    Raises:
        InputError: More than one feature or signal.
        InfeasibleError: No bins respect the constraints; an InputError too.

    Example:
        >>> events = Events.of({"s": ([0.7, 0.8, 0.9], 1.0), "b": ([0.1, 0.3, 0.5, 0.75], 2.0)})
        >>> optimal_boundaries(events, 2, signal="s").boundaries
        tensor([0.7750], dtype=torch.float64)
    """
    sample = events if isinstance(events, Sample) else Sample.of(events, signals=[signal])
    if sample.features.shape[1] != 1 or sample.signals != (signal,):
        raise InputError("events: one feature and one signal are expected; the others count as background")
    if n_bins < 1 or candidates < n_bins + 1:
        raise InputError(f"n_bins: 1 or more and fewer than candidates are expected, {n_bins} came")
    goal = Objective() if objective is None else objective
    x = sample.cells.x
    middles = ((x[1:] + x[:-1]) / 2)[x.diff() > 0]
    exact = len(middles) <= candidates
    chosen = torch.arange(len(middles), device=x.device) if exact else _dense_selection(sample, middles, candidates)
    best = _search(sample, middles, chosen, n_bins, goal)
    for _ in range(0 if exact else REFINEMENTS):
        near = _around(best, len(middles), candidates // n_bins)
        again = _search(sample, middles, near, n_bins, goal)
        if torch.equal(again, best):
            break
        best = again
    yields = sample.yields(_between(sample, middles[best])[:, 0])
    return Optimum(middles[best], goal.significances(yields).item(), yields, exact)


@torch.no_grad()
def exchange_boundaries(
    boundaries: Tensor,
    sample: Sample,
    objective: Objective,
    *,
    low: float,
    high: float,
    candidates: int = 1200,
) -> Tensor:
    """Moves one boundary at a time to where the significance is largest within the limits, until none moves.

    Args:
        boundaries: Inner boundaries in increasing order, shape `(n_bins - 1,)`.
        sample: Events with one feature.
        objective: What is to be reached; both of its limits are kept.
        low: No boundary goes below or to this value.
        high: Nor above or to this one.
        candidates: Midpoints between events that are tried, beside the nearest ones.

    Returns:
        Boundaries at least as good; those that came if none within the limits are found.
    """
    x = sample.cells.x
    middles = ((x[1:] + x[:-1]) / 2)[x.diff() > 0]
    middles = middles[(middles > low) & (middles < high)]
    if len(middles) == 0:
        return boundaries
    wide = len(middles) > candidates
    tried = middles[_dense_selection(sample, middles, candidates)] if wide else middles
    best, worth = boundaries, _worth_of(boundaries[None], sample, objective)[0].item()
    for _ in range(ROUNDS):
        before = worth
        for i in range(len(boundaries)):
            place = torch.searchsorted(middles, best[i : i + 1]).clamp(max=len(middles) - 1)
            here = torch.cat((tried, middles[_around(place, len(middles), candidates // 4)]))
            ends = torch.cat((best.new_tensor([low]), best, best.new_tensor([high])))
            here = here[(here > ends[i]) & (here < ends[i + 2])]
            moved = best.repeat(len(here) + 1, 1)  # the last row stays as it is
            moved[:-1, i] = here
            worths = _worth_of(moved, sample, objective)
            if worths.max().item() > worth + LEAST_GAIN:
                best, worth = moved[worths.argmax()], worths.max().item()
        if not worth > before:
            break
    return best


@torch.no_grad()
def settle(bins: Bins, sample: Sample, objective: Objective) -> None:
    """Exchanges the boundaries of bins of one discriminant and makes these as good as hard; leaves all others alone."""
    if isinstance(bins, SigmoidBins) and bins.n_features == 1:
        low, high = bins.low[0], bins.high[0]
        bins.place(exchange_boundaries(bins.boundaries(), sample, objective, low=low, high=high))
        # They were chosen by hard yields, between neighbouring events: only hard bins are what was chosen.
        bins.sharpen(SETTLED * bins.sharpness.item())


def _worth_of(boundaries: Tensor, sample: Sample, goal: Objective) -> Tensor:
    """Computes the combined significance for boundaries of shape `(m, n_bins - 1)`; outside the limits -infinity."""
    totals = _between(sample, boundaries.flatten(), rows=len(boundaries))  # (n_columns, m, n + 1)
    signal, background, variance = sample.yields(totals)
    yields = Yields(signal.movedim(0, 1), background, variance)
    combined = goal.combine(goal.significances(yields))
    return torch.where(goal.are_feasible(yields).all(-1), combined, -torch.inf)


def _search(sample: Sample, middles: Tensor, chosen: Tensor, n_bins: int, goal: Objective) -> Tensor:
    """Returns which of the chosen midpoints are the best boundaries, by their index among all."""
    right = sample.cells.right_of(middles[chosen])
    total = sample.cells.tails[:, :1]
    above = torch.cat((total, right, torch.zeros_like(total)), 1)  # (n_columns, n_edges)
    worth = _worth(sample, above, goal)
    best, steps = worth[0], []
    for _ in range(n_bins - 1):
        best, step = (best[:, None] + worth).max(0)
        steps.append(step)
    if best[-1] == -torch.inf:
        raise InfeasibleError(
            f"n_bins: no {n_bins} bins respect the constraints (background of {goal.least_background:g} or more, "
            f"relative uncertainty up to {goal.largest_uncertainty:g}); take fewer bins or loosen them"
        )
    edge, path = above.shape[1] - 1, []
    for step in reversed(steps):
        edge = int(step[edge])
        path.append(edge - 1)
    return chosen[torch.tensor(path[::-1], dtype=torch.int64, device=chosen.device)]


def _worth(sample: Sample, above: Tensor, goal: Objective) -> Tensor:
    """Computes the squared significance of the bin from each edge to each later one, shape `(n_edges, n_edges)`."""
    n = above.shape[1]
    worth = above.new_full((n, n), -torch.inf)
    for i in range(n - 1):
        yields = sample.yields(above[:, i, None] - above[:, i + 1 :])
        worth[i, i + 1 :] = goal.by_category(yields)[0].square()
        if goal.constrained:
            worth[i, i + 1 :][~goal.are_feasible(yields)] = -torch.inf
    return worth


def _dense_selection(sample: Sample, middles: Tensor, n: int) -> Tensor:
    """Chooses midpoints: a third by signal, a third by background, a third in ranks growing from both ends."""
    totals = sample.yields(sample.cells.right_of(middles))
    parts = []
    for right in (totals.signal[0], totals.background):
        # Falls with x if all weights are positive; where it does not, the search is merely a little uneven.
        falling = -right
        levels = torch.linspace(falling[0].item(), falling[-1].item(), n // 3, dtype=right.dtype, device=right.device)
        parts.append(torch.searchsorted(falling.cummax(0).values, levels).clamp(max=len(middles) - 1))
    ranks = torch.logspace(0, 1, n // 6, base=float(len(middles)), dtype=right.dtype, device=right.device).long() - 1
    chosen: Tensor = torch.unique(torch.cat([*parts, ranks, len(middles) - 1 - ranks]))
    return chosen


def _around(best: Tensor, n: int, each: int) -> Tensor:
    """Returns all midpoints next to the best ones."""
    offset = torch.arange(-(each // 2), each // 2 + 1, device=best.device)
    near: Tensor = torch.unique((best[:, None] + offset).clamp(0, n - 1))
    return near


def _between(sample: Sample, boundaries: Tensor, *, rows: int = 1) -> Tensor:
    """Sums each column between the boundaries of each row; shape `(n_columns, rows, n_bins)`."""
    total = sample.cells.tails[:, :1, None].expand(-1, rows, 1)
    right = sample.cells.right_of(boundaries).reshape(len(total), rows, -1)
    return -torch.cat((total, right, torch.zeros_like(total)), 2).diff(dim=2)
