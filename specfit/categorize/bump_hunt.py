"""The report of categories of a resonance search: scores that make the categories, and a mass that shows the bump."""

from __future__ import annotations

__all__ = ["BumpHuntReport", "window_around"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specfit import plots
from specfit.categories import Bins, MassWindow, Sample, SigmoidBins, evaluate
from specfit.categorize.study import Pages, Report, Result, Study, draw_bias, draw_stacks
from specfit.errors import InputError

INCLUSIVE_BINS, CATEGORY_BINS = 60, 40
ARGMAX_FROM = 0.33  # lower end of the baseline's bins of a score, about what one of three classes needs to win


def window_around(center: float, half_width: float, **options: Any) -> MassWindow:
    """Makes a mass window around a resonance; `options` as for `MassWindow`."""
    return MassWindow(low=center - half_width, high=center + half_width, **options)


@dataclass(frozen=True)
class BumpHuntReport(Report):
    """Mass spectra in all and in each category, maps of the categories and their film, yields, a comparison.

    Args:
        argmax_bins: Numbers of equal bins, in each signal's score, of the baseline that it is compared with.
        inclusive_scales: What the signals are multiplied by in the spectrum of all events.
        category_scales: The same in the spectra of the categories.
        map_points: Points of a map in each direction.
    """

    argmax_bins: Sequence[int] = (2, 5, 10)
    inclusive_scales: Sequence[float] = (50.0, 250.0)
    category_scales: Sequence[float] = (2.0, 10.0)
    map_points: int = 300

    def check(self, study: Study, bins: Sequence[Bins]) -> None:
        """Raises an `InputError` unless there are a mass, a window in it and one score for each signal."""
        if study.window is None or study.events.mass is None or study.events.n_features != len(study.signals):
            raise InputError("report: this one needs a mass, a window in it and one score for each signal")
        if any(one.n_features != study.events.n_features for one in bins):
            raise InputError(f"bins: categories in {study.events.n_features} features are expected, as the events have")

    def draw(self, study: Study, pages: Pages) -> dict[str, Any]:
        """Writes every picture; returns significances of the baseline and of the categories, in the mass window."""
        self.check(study, [result.bins for result in study.results])
        everything = torch.ones(len(study.events), dtype=torch.bool)
        self._mass_spectrum(
            study, pages, everything, "inclusive_mass", scales=self.inclusive_scales, n_bins=INCLUSIVE_BINS
        )
        series: dict[str, dict[int, tuple[float, float]]] = {f"{name}, argmax": {} for name in study.signals}
        for n in self.argmax_bins:
            for i, name in enumerate(study.signals):
                series[f"{name}, argmax"][len(study.signals) * n + 1] = _argmax_significance(study, i, n)
        for name in study.signals:
            series[f"{name}, optimised"] = {}
        for result in study.results:
            reached = study.on_all(result.bins)
            for i, name in enumerate(study.signals):
                z, error = reached.significances[i].item(), reached.errors[i].item()
                series[f"{name}, optimised"][result.n] = (z, error)
            self._draw_result(study, result, pages)
        with pages.page("significance_comparison") as ax:
            plots.draw_significance_comparison(series, ax, x_label="Number of categories")
        return {name: {n: {"significance": z, "error": e} for n, (z, e) in p.items()} for name, p in series.items()}

    def _draw_result(self, study: Study, result: Result, pages: Pages) -> None:
        folder = f"{result.n}_categories"
        rank = _rank_by_significance(study, result.bins)
        category = rank[result.bins.assign(study.events.features)]
        for k in range(result.n):
            name = f"{folder}/mass_spectra/category_{k}_mass"
            self._mass_spectrum(study, pages, category == k, name, scales=self.category_scales, n_bins=CATEGORY_BINS)
        _draw_course(result, pages, study.window or MassWindow(), folder=folder, order=rank.argsort())
        if study.events.n_features == 2:
            self._draw_maps(study, result, pages, folder=folder, rank=rank)
        reached = study.on_all(result.bins)
        order = rank.argsort()
        for log in (False, True):
            with pages.page(f"{folder}/yield_unc_{result.n}{'_log' if log else ''}") as ax:
                plots.draw_yield_and_uncertainty(
                    reached.yields.background[order].numpy(), reached.uncertainty[order].numpy(), ax, log=log
                )

    def _mass_spectrum(
        self, study: Study, pages: Pages, chosen: Tensor, name: str, *, scales: Sequence[float], n_bins: int
    ) -> None:
        window = study.window or MassWindow()
        edges = np.linspace(window.range_low, window.range_high, n_bins + 1)
        mass = study.events.mass if study.events.mass is not None else study.events.weights
        # What is not chosen falls below the range.
        shown = torch.where(chosen, mass, window.range_low - 1)
        names = {f"{name}_linear": False, f"{name}_log": True}
        draw_stacks(study, pages, names, values=shown, edges=edges, scales=scales, x_label="Mass [GeV]")

    def _draw_maps(self, study: Study, result: Result, pages: Pages, *, folder: str, rank: Tensor) -> None:
        axis = np.linspace(0.0, 1.0, self.map_points)
        options: dict[str, Any] = {
            "n_categories": result.n,
            "labels": tuple(f"Score of {name}" for name in study.signals),
        }
        with pages.page(f"{folder}/bin_boundaries_{result.n}_bins", size=(6, 5.5)) as ax:
            plots.draw_category_map(axis, axis, _map(result.bins, axis, rank), ax, **options)
        bins, frames = type(result.bins)(**result.bins.arguments), []
        for epoch in result.history.recorded.tolist():
            if epoch >= len(result.history.loss):
                continue
            result.history.restore(bins, epoch)
            name = f"{folder}/boundary_frames/boundary_{epoch:04d}"
            with pages.page(name, size=(6, 5.5), ending="png") as ax:
                plots.draw_category_map(axis, axis, _map(bins, axis, rank), ax, title=f"Epoch {epoch}", **options)
            frames.append(pages.written[-1])
        pages.written.append(plots.save_gif(frames, pages.folder / folder / f"boundary_evolution_{result.n}.gif"))


def _draw_course(result: Result, pages: Pages, window: MassWindow, *, folder: str, order: Tensor) -> None:
    history, n = result.history, result.n
    label = f"Continuum background ({window.range_low:g} to {window.range_high:g} GeV)"
    # All of the continuum, not its share in the window.
    continuum = (history.background / history.factors)[:, order].numpy()
    names = [f"Cat. {i}" for i in range(n)]
    lines: dict[str, tuple[np.ndarray, str, dict[str, Any]]] = {
        f"loss_{n}": (history.loss.numpy(), "Negative geometric mean significance", {}),
        f"penalty_yield_{n}": (history.low_background.numpy(), "Low-background penalty", {}),
        f"penalty_unc_{n}": (history.high_uncertainty.numpy(), "High-uncertainty penalty", {}),
        f"continuum_background_{n}": (continuum, label, {"labels": names}),
        f"continuum_background_{n}_log": (continuum, label, {"labels": names, "log": True}),
    }
    for name, (values, y_label, options) in lines.items():
        with pages.page(f"{folder}/{name}") as ax:
            plots.draw_history(values, ax, y_label=y_label, **options)
    draw_bias(result, pages, f"{folder}/bias_history_{n}", log=True)


def _rank_by_significance(study: Study, bins: Bins) -> Tensor:
    """Returns the number that each category is drawn with: 0 for the least significant."""
    by_category: Tensor = torch.linalg.vector_norm(study.on_all(bins).by_category, dim=0)
    return by_category.argsort().argsort()


def _map(bins: Bins, axis: np.ndarray, rank: Tensor) -> np.ndarray:
    """Returns the category of every point of the triangle of scores that add up to at most 1, -1 elsewhere."""
    x, y = np.meshgrid(axis, axis)
    points = torch.from_numpy(np.stack([x.ravel(), y.ravel()], 1))
    category = rank[bins.assign(points)].numpy().reshape(x.shape)
    return np.where(x + y <= 1, category, -1)


def _argmax_significance(study: Study, signal: int, n: int) -> tuple[float, float]:
    """Computes what n equal bins of a signal's score reach, with its error, of events whose largest score that is."""
    events, window = study.events, study.window or MassWindow()
    wins = events.features.argmax(1) == signal
    chosen = events.where(wins & events.in_window(window.low, window.high))
    score = replace(chosen, features=chosen.features[:, signal])
    sample = Sample.of(score, signals=study.signals)
    reached = evaluate(SigmoidBins(n, low=ARGMAX_FROM, high=1.0), sample, study.objective)
    return reached.significances[signal].item(), reached.errors[signal].item()
