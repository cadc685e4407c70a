"""Optimising categories: a gradient climbs the significance of soft yields while they harden."""

from __future__ import annotations

__all__ = ["Optimized", "evaluate_events", "optimize"]

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from specfit.arrays import usable_device
from specfit.categories.base import Bins
from specfit.categories.evaluation import Evaluation, bias_of, evaluate, mean_bias
from specfit.categories.events import Events
from specfit.categories.history import History
from specfit.categories.mass import MassWindow
from specfit.categories.objective import Objective
from specfit.categories.optimum import settle
from specfit.categories.sample import Sample, Yields
from specfit.categories.schedules import Schedule
from specfit.errors import InputError

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
RMSPROP: MakeOptimizer = partial(torch.optim.RMSprop, lr=0.1, alpha=0.9, eps=1e-7)
HARDENING = {
    "steepness": Schedule(50.0, 1e6, "exponential"),
    "temperature": Schedule(1.0, 0.02, "exponential"),
}
"""How each kind of categories hardens if the caller does not say."""


@dataclass(frozen=True, eq=False)
class Optimized:
    """The best of all starts.

    Args:
        bins: The categories.
        train: What they reach on the events that they were optimised with.
        test: The same on events that they have never seen; None without a test sample.
        in_window: With a mass window: what they reach on all events in it, nothing estimated.
        history: Course of the start that won.
        starts: Combined significance that each start reached.
        seconds: Wall time of one epoch, the median.
        converged: The categories respect the limits of a constrained objective.
        message: What to do if not.
    """

    bins: Bins
    train: Evaluation
    test: Evaluation | None
    in_window: Evaluation | None
    history: History
    starts: tuple[float, ...]
    seconds: float
    converged: bool
    message: str


def optimize(
    bins: Bins,
    events: Events,
    *,
    signals: Sequence[str],
    rng: torch.Generator,
    objective: Objective | None = None,
    epochs: int = 250,
    learning_rate: Schedule | None = None,
    hardening: Schedule | None = None,
    optimizer: MakeOptimizer = RMSPROP,
    restarts: int = 3,
    test_fraction: float = 0.25,
    batch_size: int | None = None,
    window: MassWindow | None = None,
    record_every: int = 10,
    device: str | torch.device = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Optimized:
    """Optimises categories and reports what they reach on events seen and unseen.

    With a constrained objective, the boundaries of one discriminant are moved in the end to the best places within the
    limits by hard yields (`exchange_boundaries`), and the bins are as good as hard.

    Args:
        bins: Where the first start begins; left as it is.
        events: Simulated events of all processes.
        signals: Processes that are looked for; each counts as background of the others.
        rng: Source of randomness, on the CPU: divides the events, draws the other starts and minibatches.
        objective: What is to be reached; None: the geometric mean of the significances, without penalties.
        epochs: Steps, or passes over the minibatches.
        learning_rate: Its course; None: cosine from 0.1 to 0.001.
        hardening: Course of the steepness or temperature; None: exponential, 50 to 1e6 or 1 to 0.02.
        optimizer: Makes the optimiser of the parameters.
        restarts: Starts in all; the best is kept. Every further one draws its parameters anew.
        test_fraction: Share of the events that is kept for the test; 0: none, and nothing tells a gain from a
            fluctuation.
        batch_size: Events a step; None: all, with exact sums where there are any.
        window: Count signals in this window, and estimate the background there from its whole mass range.
        record_every: Epochs after which hard yields are looked at. The best recorded state of the last half counts.
        device: Where to compute.
        progress: Is called with the number of epochs done, over all starts.

    Raises:
        InputError: A name is no process, a number is out of range, events lack the mass, or there is no such device.

    Example:
        >>> from specfit.categories import SigmoidBins, toy_1d
        >>> rng = torch.Generator().manual_seed(1)
        >>> best = optimize(SigmoidBins(3, rng=rng), toy_1d(5000, 20000), signals=["signal"], rng=rng, epochs=30)
        >>> best.test.significances.shape
        torch.Size([1])
    """
    if min(epochs, restarts, record_every, batch_size or 1) < 1:
        raise InputError("epochs, restarts, record_every, batch_size: 1 or more are expected")
    device = usable_device(device)
    goal = Objective() if objective is None else objective
    seen, unseen = (events, None) if test_fraction == 0 else events.split(test_fraction, rng=rng)
    task = _Task(
        sample=_arrange(seen, signals=signals, window=window, device=device),
        signals=signals,
        objective=goal,
        window=window,
        epochs=epochs,
        learning_rate=learning_rate or Schedule(0.1, 0.001, "cosine"),
        hardening=hardening or HARDENING[bins.SHARPNESS],
        optimizer=optimizer,
        batch_size=batch_size,
        record_every=record_every,
        rng=rng,
        device=device,
    )
    runs = _climb_from_all(bins, task, restarts, progress)
    return _judged(runs, task, everything=events, unseen=unseen)


def evaluate_events(
    bins: Bins,
    events: Events,
    *,
    signals: Sequence[str],
    objective: Objective | None = None,
    window: MassWindow | None = None,
) -> Evaluation:
    """Evaluates categories on events as an optimisation does, with the background in a mass window estimated.

    Args:
        bins: The categories.
        events: All processes.
        signals: Processes that are looked for.
        objective: What is to be reached.
        window: As in `optimize`.
    """
    sample = _arrange(events, signals=signals, window=window, device=events.weights.device)
    goal = Objective() if objective is None else objective
    return evaluate(bins, sample, goal, factors=_factors(bins, sample, window))


@dataclass(frozen=True)
class _Task:
    """What all starts share."""

    sample: Sample
    signals: Sequence[str]
    objective: Objective
    window: MassWindow | None
    epochs: int
    learning_rate: Schedule
    hardening: Schedule
    optimizer: MakeOptimizer
    batch_size: int | None
    record_every: int
    rng: torch.Generator
    device: torch.device

    def factors(self, bins: Bins) -> Tensor | None:
        return _factors(bins, self.sample, self.window)

    def evaluate(self, bins: Bins) -> Evaluation:
        return evaluate(bins, self.sample, self.objective, factors=self.factors(bins))


@dataclass(frozen=True)
class _Run:
    """One start."""

    bins: Bins
    reached: Evaluation
    history: History
    seconds: float


def _climb_from_all(bins: Bins, task: _Task, restarts: int, progress: Callable[[int], None] | None) -> list[_Run]:
    """Trains from every start, the first of them `bins` as they are."""
    runs = []
    first = parameters_to_vector(bins.parameters()).detach().to(task.device)
    for start in range(restarts):
        candidate = copy.deepcopy(bins).to(task.device)
        if start:
            candidate.reset(task.rng)
            if torch.equal(parameters_to_vector(candidate.parameters()), first):
                # Its source of randomness was seeded as that of `bins`: the same way twice teaches nothing.
                candidate.reset(task.rng)
        done = start * task.epochs
        runs.append(_climb(candidate, task, lambda epoch, done=done: progress(done + epoch) if progress else None))  # type: ignore[misc]
    return runs


def _judged(runs: list[_Run], task: _Task, *, everything: Events, unseen: Events | None) -> Optimized:
    """Takes the best start and looks at what it reaches on events that it has not seen, and on all in the window."""
    goal, window = task.objective, task.window
    best = max(runs, key=lambda run: (bool(goal.are_sound(run.reached.yields)), run.reached.combined))
    judge = partial(evaluate_events, best.bins, signals=task.signals, objective=goal, window=window)
    inside = None
    if window is not None:
        narrow = everything.where(everything.in_window(window.low, window.high)).to(task.device)
        inside = evaluate(best.bins, Sample.of(narrow, signals=task.signals), goal)
    converged = best.reached.feasible or not goal.constrained
    return Optimized(
        bins=best.bins,
        train=best.reached,
        test=None if unseen is None else judge(unseen.to(task.device)),
        in_window=inside,
        history=best.history,
        starts=tuple(run.reached.combined for run in runs),
        seconds=best.seconds,
        converged=converged,
        message="" if converged else _ADVICE.format(best.bins.n_categories),
    )


_ADVICE = "no start kept the limits of the objective with {} categories; take fewer, loosen the limits or add restarts"


def _climb(bins: Bins, task: _Task, progress: Callable[[int], None]) -> _Run:
    """Trains from one start."""
    optimizer = task.optimizer(bins.parameters())
    log = _Log(bins, task)
    factors = None
    for epoch in range(task.epochs):
        begin = time.perf_counter()
        bins.sharpen(task.hardening(epoch, task.epochs))
        for group in optimizer.param_groups:
            group["lr"] = task.learning_rate(epoch, task.epochs)
        if task.window is not None and epoch % task.window.interval == 0:
            factors = task.factors(bins)
        state = parameters_to_vector(bins.parameters()).detach()
        for batch in _batches(task):
            yields = batch.yields(bins.soft_totals(batch), factors)
            optimizer.zero_grad()
            torch.autograd.backward(task.objective.cost(yields))
            optimizer.step()
        log.add(epoch, state, yields, factors, seconds=time.perf_counter() - begin)
        progress(epoch + 1)
    log.consider(task.epochs)
    return log.run()


class _Log:
    """Collects the course of a start and keeps the best recorded state of its last half."""

    def __init__(self, bins: Bins, task: _Task) -> None:
        self.bins, self.task = bins, task
        self.states: list[Tensor] = []
        self.yields: list[Yields] = []
        self.factors: list[Tensor] = []
        self.seconds: list[float] = []
        self.recorded: list[tuple[int, float, float]] = []  # epoch, combined significance, mean bias
        self.best: tuple[tuple[bool, float], Bins] | None = None

    def add(self, epoch: int, state: Tensor, yields: Yields, factors: Tensor | None, *, seconds: float) -> None:
        self.states.append(state)
        self.yields.append(Yields(*(part.detach() for part in yields)))
        self.factors.append(torch.ones_like(yields.background.detach()) if factors is None else factors)
        self.seconds.append(seconds)
        if epoch % self.task.record_every == 0 or epoch == self.task.epochs - 1:
            self.consider(epoch)

    @torch.no_grad()
    def consider(self, epoch: int) -> None:
        bins, sample, goal = self.bins, self.task.sample, self.task.objective
        factors = self.task.factors(bins)
        hard = sample.yields(bins.hard_totals(sample), factors)
        soft = sample.yields(bins.soft_totals(sample), factors)
        combined = goal.combine(goal.significances(hard)).item()
        self.recorded.append((epoch, combined, mean_bias(bias_of(hard, soft), hard)))
        rank = (bool(goal.are_sound(hard)), combined)
        if 2 * epoch >= self.task.epochs and (self.best is None or rank >= self.best[0]):
            self.best = (rank, copy.deepcopy(bins))

    def run(self) -> _Run:
        task, n = self.task, self.task.epochs
        every = Yields(*(torch.stack(parts).cpu() for parts in zip(*self.yields, strict=True)))
        terms = task.objective.terms(every)
        double = torch.float64
        history = History(
            loss=terms.loss,
            low_background=terms.low_background,
            high_uncertainty=terms.high_uncertainty,
            background=every.background,
            factors=torch.stack(self.factors).cpu(),
            learning_rate=torch.tensor([task.learning_rate(i, n) for i in range(n)], dtype=double),
            sharpness=torch.tensor([task.hardening(i, n) for i in range(n)], dtype=double),
            parameters=torch.stack(self.states).cpu(),
            recorded=torch.tensor([epoch for epoch, _, _ in self.recorded]),
            hard=torch.tensor([combined for _, combined, _ in self.recorded], dtype=double),
            bias=torch.tensor([bias for _, _, bias in self.recorded], dtype=double),
        )
        bins = self.bins if self.best is None else self.best[1]
        # An earlier state is as good as the last one; its soft yields are those of the final sharpness.
        bins.sharpen(task.hardening(n - 1, n))
        if task.objective.constrained and task.window is None:
            settle(bins, task.sample, task.objective)
        return _Run(bins, task.evaluate(bins), history, sorted(self.seconds)[n // 2])


def _arrange(events: Events, *, signals: Sequence[str], window: MassWindow | None, device: torch.device) -> Sample:
    """Arranges events; with a mass window, signals and backgrounds that are not scaled count in it only."""
    scaled = None
    if window is not None:
        background = [name for name in events.processes if name not in signals]
        scaled = background if window.scaled is None else list(window.scaled)
        events = events.where(events.of_process(scaled) | events.in_window(window.low, window.high))
    return Sample.of(events.to(device), signals=signals, scaled=scaled)


def _factors(bins: Bins, sample: Sample, window: MassWindow | None) -> Tensor | None:
    """Estimates which share of each category's background lies in the window."""
    if window is None or sample.mass is None:
        return None
    part = sample.slices[len(sample.signals)]
    category = bins.assign(sample.features[part])
    return window.shares(sample.mass[part], sample.weights[part], category, bins.n_categories)


def _batches(task: _Task) -> Iterable[Sample]:
    if task.batch_size is None:
        return (task.sample,)
    steps = max(1, round(len(task.sample) / task.batch_size))
    size = task.batch_size
    return (task.sample.minibatch(size, rng=task.rng) for _ in range(steps))
