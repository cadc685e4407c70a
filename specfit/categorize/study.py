"""A study: the events, what is looked for, and what was found for each number of categories."""

from __future__ import annotations

__all__ = ["Pages", "Report", "Result", "Study", "draw_bias", "draw_stacks"]

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from specfit import plots
from specfit.categories import Bins, Evaluation, Events, History, MassWindow, Objective, Sample, evaluate
from specfit.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (7.5, 5.5)


@dataclass(frozen=True, eq=False)
class Result:
    """What was found for one number of categories.

    Args:
        n: Number of categories.
        bins: The best categories.
        history: Course of the start that found them.
        train: What they reach on the events of the optimisation.
        test: The same on events that it never saw; None where there are none.
        exact: Significance of the exact optimum on the events of the optimisation within the limits of the objective;
            None where it was not asked for.
        seconds: Wall time of one epoch, the median.
        starts: What each start reached.
        message: Empty, or why the limits are not kept.
    """

    n: int
    bins: Bins
    history: History
    train: Evaluation
    test: Evaluation | None
    exact: float | None
    seconds: float
    starts: tuple[float, ...]
    message: str

    def summary(self) -> dict[str, Any]:
        """Returns the figures as plain data."""
        return {
            "n_categories": self.n,
            "train": self.train.summary(),
            "test": None if self.test is None else self.test.summary(),
            "exact": self.exact,
            "seconds_per_epoch": self.seconds,
            "starts": list(self.starts),
            "message": self.message,
        }


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that a report draws.

    Args:
        events: All events, those of the test too.
        signals: Processes that are looked for.
        objective: What was optimised.
        window: Window in the mass; None without one.
        results: One for each number of categories.
    """

    events: Events
    signals: tuple[str, ...]
    objective: Objective
    window: MassWindow | None
    results: tuple[Result, ...]

    @property
    def backgrounds(self) -> list[str]:
        """All processes that are not looked for."""
        return [name for name in self.events.processes if name not in self.signals]

    def on_all(self, bins: Bins) -> Evaluation:
        """Evaluates categories on all events, those in the mass window where there is one, nothing estimated."""
        events = self.events
        if self.window is not None:
            events = events.where(events.in_window(self.window.low, self.window.high))
        return evaluate(bins, Sample.of(events, signals=self.signals), self.objective)

    def histogram(self, process: str, values: torch.Tensor, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fills one process: contents and their variances, both of shape `(n_bins,)`.

        Args:
            process: Which one.
            values: Of all events, shape `(n,)`.
            edges: Bin edges, shape `(n_bins + 1,)`.
        """
        chosen = self.events.of_process([process])
        x, w = values[chosen].numpy(), self.events.weights[chosen].numpy()
        return np.histogram(x, edges, weights=w)[0], np.histogram(x, edges, weights=w**2)[0]


class Report(ABC):
    """Draws a study."""

    @abstractmethod
    def check(self, study: Study, bins: Sequence[Bins]) -> None:
        """Raises an `InputError` where a study with such categories cannot be drawn: before it is made."""

    @abstractmethod
    def draw(self, study: Study, pages: Pages) -> dict[str, Any]:
        """Writes every picture; returns figures of its own, such as baselines, as plain data."""


class Pages:
    """Pictures in a folder, all in one format.

    Args:
        folder: Where; is made.
        ending: Format, "pdf", "png" or "svg".

    Raises:
        InputError: There is no such format.
    """

    def __init__(self, folder: Path, ending: str) -> None:
        if f".{ending}" not in plots.ENDINGS:
            raise InputError(f"format: one of {', '.join(plots.ENDINGS)} is expected, {ending!r} came")
        self.folder, self.ending = folder, ending
        self.written: list[Path] = []

    @contextmanager
    def page(self, name: str, *, size: tuple[float, float] = SIZE, ending: str | None = None) -> Iterator[Axes]:
        """Yields axes that are written as `name` when all is drawn."""
        from matplotlib.figure import Figure

        # Margins by hand: a layout engine takes longer than all else in a picture.
        figure = Figure(figsize=size)
        yield figure.add_axes((0.13, 0.12, 0.74, 0.82))
        path = self.folder / f"{name}.{ending or self.ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.append(plots.save(figure, path))


def draw_bias(result: Result, pages: Pages, name: str, *, log: bool) -> None:
    """Writes how soft yields depart from hard ones in the course of an optimisation.

    Args:
        result: What was found.
        pages: Where the picture goes.
        name: Its name.
        log: Whether the bias is drawn on a logarithmic axis.
    """
    history = result.history
    # A recorded epoch after the last one looks at the final state, which has the sharpness of the last epoch.
    epochs = history.recorded.clamp(max=len(history.loss) - 1)
    with pages.page(name) as ax:
        plots.draw_bias_history(
            history.recorded.numpy(),
            history.bias.numpy(),
            ax,
            sharpness=history.sharpness[epochs].numpy(),
            name=result.bins.SHARPNESS,
            log=log,
        )


def draw_stacks(
    study: Study,
    pages: Pages,
    names: Mapping[str, bool],
    *,
    values: torch.Tensor,
    edges: np.ndarray,
    scales: Sequence[float],
    x_label: str,
    equally_wide: bool = False,
) -> None:
    """Writes the backgrounds on top of each other, with their error, and the signals beside them.

    Args:
        study: Whose events are drawn.
        pages: Where the pictures go.
        names: Their names, and whether each has a logarithmic axis.
        values: What is filled, of all events, shape `(n,)`.
        edges: Bin edges, shape `(n_bins + 1,)`.
        scales: What each signal is multiplied by.
        x_label: Name of the values.
        equally_wide: Bins are drawn equally wide, whatever their edges.
    """
    filled = {process: study.histogram(process, values, edges) for process in study.events.processes}
    errors = np.sqrt(sum(filled[process][1] for process in study.backgrounds))
    signals = {f"{p.capitalize()} x {s:g}": s * filled[p][0] for p, s in zip(study.signals, scales, strict=False)}
    stack = {process.capitalize(): filled[process][0] for process in study.backgrounds}
    for name, log in names.items():
        with pages.page(name) as ax:
            options: dict[str, Any] = {"log": log, "equally_wide": equally_wide, "x_label": x_label}
            plots.draw_stack(edges, stack, ax, errors=errors, signals=signals, **options)
