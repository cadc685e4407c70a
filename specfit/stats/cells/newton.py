r"""Newton's method on a likelihood of cells: every step solves with the arrow-shaped Hessian.

Each block carries a damping of its own (K. Levenberg, Quart. Appl. Math. 2 (1944) 164), so that a stubborn cell does
not slow the others down; where no parameter is shared, each cell accepts or refuses its own step, and thousands of
independent fits advance together. Negative curvature is turned up, steps are limited, and the end is a plain Newton
step, so that the minimum is exact to rounding.
"""

from __future__ import annotations

__all__ = ["Minimum", "minimize"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.stats.cells.arrow import ArrowFactor, ArrowMatrix
from specfit.stats.cells.derivatives import Expansion
from specfit.stats.cells.likelihood import CellLikelihood
from specfit.stats.cells.parameters import Meaning

# One step changes no raw parameter by more than this, or by its own size if that is more.
LONGEST_STEP = 2.0
# Shares of a step that are tried before the damping is raised.
SHARES = (1.0, 0.25, 0.0625)
# Damping, in units of the scaled diagonal: where it starts when it is needed, and where it ends.
FIRST_DAMPING, LARGEST_DAMPING = 1e-3, 1e12
# A rise of the likelihood by this share of it is rounding.
ROUNDING = 1e-12
# So many cells are first fitted alone, with what they share held.
MANY_CELLS = 16
# Cells alone are fitted to this distance to the minimum a parameter before all is fitted together.
ROUGH = 1e-4
# So often a point with a flat direction may look like the minimum before it is taken for one.
PATIENCE = 3
# An expectation of this share of the largest is at its lower end.
NEAR_ZERO = 1e-6
# Curvatures below this have no scale of their own.
TINY_CURVATURE = 1e-14


class Minimum(NamedTuple):
    """Where the search ended."""

    values: Tensor
    """Shape `(p,)`."""
    expansion: Expansion
    """The likelihood there."""
    factor: ArrowFactor
    """Factorised Hessian of the free parameters, scaled by `scale`."""
    scale: Tensor
    """Shape `(p,)`; 0 for a parameter that is fixed or at a limit."""
    edm: float
    """Estimated distance to the minimum, in units of -ln L."""
    iterations: int
    """Number of Hessians."""
    problem: str
    """What went wrong; empty if nothing."""


def minimize(
    likelihood: CellLikelihood, start: Tensor, fixed: Tensor, *, tolerance: float, max_iterations: int
) -> Minimum:
    """Minimises -ln L.

    Args:
        likelihood: What to minimise.
        start: Where to begin, shape `(p,)`.
        fixed: Which parameters stay where they are, shape `(p,)`.
        tolerance: Estimated distance to the minimum at which only one more step is taken.
        max_iterations: Most Hessians.
    """
    in_border = torch.zeros_like(fixed)
    in_border[likelihood.structure.border] = True
    cells = _Search(likelihood, fixed | in_border)
    # What many cells share would else chase cells that are far off.
    if not cells.fixed.all() and in_border.any() and likelihood.structure.n_blocks >= MANY_CELLS:
        rough = cells.run(start, tolerance=ROUGH * cells.n_free, max_iterations=max_iterations)
        found = _Search(likelihood, fixed).run(rough.values, tolerance=tolerance, max_iterations=max_iterations)
        return found._replace(iterations=rough.iterations + found.iterations)
    return _Search(likelihood, fixed).run(start, tolerance=tolerance, max_iterations=max_iterations)


class _Search:
    """What stays the same during a search, and the damping that adapts."""

    def __init__(self, likelihood: CellLikelihood, fixed: Tensor) -> None:
        self.likelihood, self.fixed = likelihood, fixed
        self.low, self.high = likelihood.bounds.unbind(-1)
        structure = likelihood.structure
        self.damping = torch.zeros(structure.n_blocks + 1, dtype=torch.float64)
        # Bins and constraints are booked on their block; the last entry takes those of the border.
        of_bins = torch.cat([structure.block_of_bins(table) for table in structure.tables])
        of_parameters = structure.block[:-1]
        last = torch.tensor(structure.n_blocks)
        self.block_of_bins = torch.where(of_bins < 0, last, of_bins)
        self.block_of_parameters = torch.where(of_parameters < 0, last, of_parameters)
        # Whether cells can be fitted apart from each other.
        self.is_apart = bool(fixed[structure.border].all())
        self.even = torch.tensor([p.meaning is Meaning.SQUARE and p.prior is None for p in likelihood.parameters])

    @property
    def n_free(self) -> int:
        """Number of parameters that may move."""
        return int((~self.fixed).sum())

    def run(self, start: Tensor, *, tolerance: float, max_iterations: int) -> Minimum:
        """Searches from a point."""
        values, last, edm = start.clone(), False, torch.tensor(torch.inf)
        problem = f"stopped after {max_iterations} iterations; raise max_iterations or add priors"
        iterations = near = 0
        while iterations < max_iterations:
            iterations += 1
            expansion = self.likelihood.expand(values, dense=not self.is_apart)
            scale = self.scale(values, expansion)
            step, edm, lifted = self.direction(expansion, scale)
            if last or not edm.isfinite():
                problem = "" if last else "the likelihood is not finite there; start elsewhere"
                break
            moved = self.descend(values, expansion, scale, step)
            near = near + 1 if float(edm) < tolerance else 0
            last = near > 0 and (not lifted or near == PATIENCE)
            if moved is None:
                problem = "" if float(edm) < 1e3 * tolerance else self.why_stuck(values)
                break
            values = moved
        factor = self.scaled(expansion, scale).factorize()
        return Minimum(values, expansion, factor, scale, float(edm), iterations, problem)

    def scale(self, values: Tensor, expansion: Expansion) -> Tensor:
        """Returns what makes the diagonal of the Hessian 1, and 0 for parameters that cannot move."""
        at_low = (values <= self.low) & (expansion.gradient > 0)
        at_high = (values >= self.high) & (expansion.gradient < 0)
        diagonal = expansion.hessian.diagonal().abs().clamp(min=TINY_CURVATURE)
        return torch.where(self.fixed | at_low | at_high, 0.0, diagonal.rsqrt())

    def scaled(self, expansion: Expansion, scale: Tensor) -> ArrowMatrix:
        """Returns the scaled Hessian, with 1 on the diagonal of parameters that cannot move."""
        return expansion.hessian.scaled(scale).add_diagonal((scale == 0).double())

    def direction(self, expansion: Expansion, scale: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Returns the damped Newton step, the distance to the minimum, and whether a curvature was not positive."""
        factor = self.scaled(expansion, scale).factorize(self.damping)
        gradient = scale * expansion.gradient
        step = -factor.solve(gradient)
        return scale * step, -(gradient @ step) / 2, bool(factor.lifted.any())

    def descend(self, values: Tensor, expansion: Expansion, scale: Tensor, step: Tensor) -> Tensor | None:
        """Goes down one step, raising the damping until it does; None if no step does."""
        before = self._booked(values)
        slack = ROUNDING * (1 + float(before.abs().sum()))
        while True:
            step = self._limited(step, values)
            for share in SHARES:
                trial = self._within(values + share * step)
                rise = self._booked(trial) - before
                rise = torch.where(rise.isnan(), torch.inf, rise)
                if self.is_apart:
                    return self._each_cell(values, trial, refused=rise > ROUNDING * (1 + before.abs()))
                if float(rise.sum()) <= slack:
                    self._relax(torch.zeros_like(rise, dtype=torch.bool))  # a cell may rise while the sum falls
                    return trial
            self._stiffen(rise > 0)
            if (self.damping > LARGEST_DAMPING).any():
                return None
            step, _, _ = self.direction(expansion, scale)

    def _each_cell(self, values: Tensor, trial: Tensor, *, refused: Tensor) -> Tensor | None:
        """Lets every cell accept or refuse its own step; None if none can move any more."""
        self._relax(refused)
        if (self.damping[refused] > LARGEST_DAMPING).any():
            return None
        return torch.where(refused[self.block_of_parameters], values, trial)

    def why_stuck(self, values: Tensor) -> str:
        """Says why no step goes down."""
        expected = self.likelihood.counts(values)
        if float(expected.min()) < NEAR_ZERO * float(expected.max()):
            return (
                f"stopped where the expectation of bin {int(expected.argmin())} would become negative; keep strengths "
                "positive, or take Shape instead of Additive"
            )
        return "no step lowers -ln L; start elsewhere or add priors"

    def _booked(self, values: Tensor) -> Tensor:
        """Returns -ln L split into blocks, shape `(n_blocks + 1,)`."""
        likelihood = self.likelihood
        pull = likelihood.precision * (values - likelihood.observed.centers).square() / 2
        books = torch.zeros(len(self.damping), dtype=torch.float64)
        books.index_add_(0, self.block_of_bins, likelihood.nll_of_bins(values))
        return books.index_add_(0, self.block_of_parameters, pull)

    def _relax(self, bad: Tensor) -> None:
        """After a step: raises the damping of blocks that got worse and lowers that of the others."""
        raised = (10 * self.damping).clamp(min=FIRST_DAMPING)
        lowered = self.damping / 100
        self.damping = torch.where(bad, raised, torch.where(lowered < FIRST_DAMPING, 0.0, lowered))

    def _stiffen(self, bad: Tensor) -> None:
        """After no step: raises the damping of blocks that got worse and of the border, which takes part in all."""
        raised = (10 * self.damping).clamp(min=FIRST_DAMPING)
        self.damping = torch.where(bad, raised, self.damping)
        self.damping[-1] = raised[-1]

    def _limited(self, step: Tensor, values: Tensor) -> Tensor:
        """Shortens the step of each block, keeping its direction, until no parameter goes too far."""
        limit = values.abs().clamp(min=LONGEST_STEP)
        excess = torch.ones(len(self.damping), dtype=torch.float64)
        excess.scatter_reduce_(0, self.block_of_parameters, step.abs() / limit, "amax")
        return step / excess[self.block_of_parameters]

    def _within(self, values: Tensor) -> Tensor:
        """Keeps within limits; of two raw numbers with the same square the positive one is taken."""
        inside = torch.maximum(torch.minimum(values, self.high), self.low)
        return torch.where(self.even & ~self.fixed, inside.abs(), inside)
