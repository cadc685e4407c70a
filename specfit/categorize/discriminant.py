"""The report of bins of one discriminant."""

from __future__ import annotations

__all__ = ["DiscriminantReport"]

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from specfit import plots
from specfit.categories import Bins, Evaluation, SigmoidBins
from specfit.categorize.study import Pages, Report, Result, Study, draw_bias, draw_stacks
from specfit.errors import InputError

logger = logging.getLogger(__name__)

TOY_BINS = 50
# More events than this outside the range of the bins are a mistake, fewer are said, very few are nothing.
MOST_OUTSIDE, FEW_OUTSIDE = 0.5, 0.01


@dataclass(frozen=True)
class DiscriminantReport(Report):
    """Stacked distributions with equidistant and optimised bins, the course of each optimisation, a comparison.

    Args:
        equidistant: Numbers of equal bins to compare with.
        signal_scale: What signals are multiplied by where they are drawn.
        x_label: Name of the discriminant.
    """

    equidistant: Sequence[int] = (2, 5, 10, 20)
    signal_scale: float = 100.0
    x_label: str = "Discriminant"

    def check(self, study: Study, bins: Sequence[Bins]) -> None:
        """Raises an `InputError` unless there is one discriminant, inside the range of sigmoid bins."""
        if study.events.n_features != 1 or not all(isinstance(one, SigmoidBins) for one in bins):
            raise InputError("report: this one draws sigmoid bins of one discriminant; choose another report")
        x = study.events.features[:, 0]
        for low, high in {(one.low[0], one.high[0]) for one in bins if isinstance(one, SigmoidBins)}:
            outside = ((x < low) | (x > high)).double().mean().item()
            said = f"{outside:.1%} of the events lie outside {low:g} to {high:g}, in the outermost bins"
            if outside > MOST_OUTSIDE:
                raise InputError(f"bins: {said}; they go from {x.min():g} to {x.max():g}: set bins.low and bins.high")
            if outside > FEW_OUTSIDE:
                logger.warning("%s; bins.low and bins.high set the range", said)

    def draw(self, study: Study, pages: Pages) -> dict[str, Any]:
        """Writes every picture; returns the significances of equidistant bins and of all optimised ones."""
        bins: list[Any] = [result.bins for result in study.results]
        self.check(study, bins)
        low, high = (bins[0].low[0], bins[0].high[0]) if bins else (0.0, 1.0)
        self._stack(study, pages, np.linspace(low, high, TOY_BINS + 1), "toy_data")
        fixed: dict[int, Evaluation] = {}
        for n in self.equidistant:
            equal = SigmoidBins(n, low=low, high=high)
            fixed[n] = study.on_all(equal)
            self._stack(study, pages, _edges(equal), f"NN_output_distribution_fixed_{n}bins")
        found = {}
        for result in study.results:
            found[result.n] = study.on_all(result.bins)
            name = f"NN_output_distribution_optimized_{result.n}bins"
            self._stack(study, pages, _edges(result.bins), name, equally_wide=True)
            _draw_course(result, pages)
            _draw_yields(found[result.n], result.n, pages)
        series = {"equidistant": _points(fixed), "optimised": _points(found)}
        tested = {result.n: result.test for result in study.results if result.test is not None}
        if tested:
            series["optimised, test events"] = _points(tested)
        with pages.page("significanceComparison") as ax:
            plots.draw_significance_comparison(series, ax)
        return {name: {n: {"significance": z, "error": e} for n, (z, e) in p.items()} for name, p in series.items()}

    def _stack(self, study: Study, pages: Pages, edges: np.ndarray, name: str, *, equally_wide: bool = False) -> None:
        x = study.events.features[:, 0]
        names, scales = {name: False, f"{name}_log": True}, [self.signal_scale] * len(study.signals)
        x_label = f"{self.x_label}, every bin equally wide" if equally_wide else self.x_label
        options: dict[str, Any] = {"scales": scales, "x_label": x_label, "equally_wide": equally_wide}
        draw_stacks(study, pages, names, values=x, edges=edges, **options)


def _draw_course(result: Result, pages: Pages) -> None:
    history, n = result.history, result.n
    for log in (False, True):
        draw_bias(result, pages, f"bias_history_{n}bins{'_log' if log else ''}", log=log)
    lines = {
        f"history_loss_{n}bins": (history.loss.numpy(), "Negative significance"),
        f"history_penalty_yield_{n}bins": (history.low_background.numpy(), "Low-background penalty"),
        f"history_penalty_unc_{n}bins": (history.high_uncertainty.numpy(), "High-uncertainty penalty"),
        f"history_boundaries_{n}bins": (_boundary_tracks(result), "Boundary position"),
    }
    for name, (values, label) in lines.items():
        with pages.page(name) as ax:
            plots.draw_history(values, ax, y_label=label)


def _draw_yields(reached: Evaluation, n: int, pages: Pages) -> None:
    for log in (False, True):
        with pages.page(f"yield_vs_uncertainty_{n}bins_sorted{'_log' if log else ''}") as ax:
            plots.draw_yield_and_uncertainty(
                reached.yields.background.numpy(), reached.uncertainty.numpy(), ax, log=log
            )


def _boundary_tracks(result: Result) -> np.ndarray:
    """Returns the boundaries in every epoch, shape `(n_epochs, n - 1)`."""
    bins = type(result.bins)(**result.bins.arguments)
    tracks = []
    for epoch in range(len(result.history.loss)):
        result.history.restore(bins, epoch)
        tracks.append(_edges(bins)[1:-1])
    return np.stack(tracks)


@torch.no_grad()
def _edges(bins: Any) -> np.ndarray:
    edges: np.ndarray = np.concatenate((bins.low, bins.boundaries().numpy(), bins.high))
    return edges


def _points(evaluations: dict[int, Evaluation]) -> dict[int, tuple[float, float]]:
    return {n: (reached.combined, reached.combined_error) for n, reached in evaluations.items()}
