r"""One component Erf x exp, :math:`\Phi((x - \mu)/\sigma)\, e^{-x^\rho/\alpha}`, fitted from what a net says.

The norm and the slope of the fall where most events are enter linearly and follow by themselves; power, position and
width are found by damped Gauss-Newton steps (variable projection: G. Golub, V. Pereyra, SIAM J. Numer. Anal. 10 (1973)
413). Counts are taken to second order and bins by their middles, with what their bending adds: around what the net says
first, then around the function itself, until that changes nothing.

Source: S. Calvet, "Fitting a spectrum using ML" (2021).
"""

from __future__ import annotations

__all__ = ["PARAMETERS", "fit_turn_on"]

from typing import NamedTuple

import torch
from torch import Tensor, nn

from specfit.net.forms.plan import LOWEST, NODES, POWERS, Plan, Points
from specfit.net.forms.task import Fitted, Task
from specfit.net.posterior import LOG_RATES
from specfit.shapes import PLATEAU, log_sinhc, log_turn_on
from specfit.significance import deviance_terms

PARAMETERS = 5
"""Norm, slope and power of the fall, position over the last edge and log of the width of the turn-on."""
# Their prior widths, and the longest steps of the last three.
WIDTHS, LONGEST_STEPS = (20.0, 20.0, 1.0, 0.5, 1.5), (0.7, 0.1, 0.7)
SMALLEST_POWER, LARGEST_POWER = 0.05, 8.0
# A turn-on that starts so far above the data, in the log of x, is one more fall.
ABOVE_CENTER = 0.1
# A search ends where a step promises less, and is given up where so many times its promise is not enough, or where it
# is farther than so many times what is of interest, half as far with every step. The second order exaggerates how far
# bins without events are, up to twice.
MOST_ROUNDS, MOST_STEPS, SETTLED, HOPELESS, FARTHEST, EXAGGERATED = 6, 15, 0.3, 10.0, 30000.0, 2.0
FIRST_DAMPING, CERTAIN_DAMPING, MOST_DAMPING, RELIEF, PENALTY = 1e-3, 1.0, 1e4, 0.2, 8.0
# No guess of a bend between neighbouring bins is larger.
LARGEST_BEND = 8.0
# No power grows larger than e to this.
LARGEST_EXPONENT = 50.0
TINY = 1e-12


class _Search(NamedTuple):
    """What the function is brought near to."""

    points: Points
    target: Tensor
    """Log densities, shape `(m, n_bins)`."""
    weight: Tensor
    """Inverse of their variance, same shape."""
    share: Tensor
    """Weight over its sum, same shape."""
    center: Tensor
    """Where most events are: log of x, shape `(m, 1)`."""
    worst: Tensor
    """Largest sum of squares that is of interest, shape `(m,)`."""

    def of(self, rows: Tensor) -> _Search:
        """Takes some spectra."""
        return _Search(self.points.of(rows), *(t[rows] for t in self[1:]))


class _Curves(NamedTuple):
    """The parts of the log density that are not linear in a parameter, with derivatives."""

    rise: Tensor
    by_position: Tensor
    by_log_width: Tensor
    fall: Tensor
    by_power: Tensor


class _Bins(NamedTuple):
    """The function, integrated over bins."""

    log_rate: Tensor
    basis: Tensor
    bending: Tensor
    """By how much the log of the mean density of a bin exceeds that of its middle, shape `(m, n_bins)`."""


def fit_turn_on(plan: Plan, task: Task) -> Fitted:
    """Fits the function; a spectrum that it cannot describe is given up."""
    around, rows = task.log_rate, torch.arange(len(task.data), device=task.data.device)
    bending = _bending(around - plan.points.log_widths)
    search = _expanded(plan.points, task, around, bending)
    shape = _start(plan, search)
    nothing = around.new_zeros(*around.shape, PARAMETERS)
    fitted = Fitted(around.clone(), nothing, torch.full_like(around[:, 0], torch.inf))
    for _ in range(MOST_ROUNDS):
        shape, found = _nearest(search, shape)
        if len(found) == 0:
            break
        rows, search, around, bending = rows[found], search.of(found), around[found], bending[found]
        bins = _on_bins(search, shape)
        deviance = (deviance_terms(task.data[rows], bins.log_rate.exp()) * task.seen[rows]).sum(1)
        for of_all, of_some in zip(fitted, (bins.log_rate, bins.basis, deviance.nan_to_num(torch.inf)), strict=True):
            of_all[rows] = of_some
        # What the second order leaves out goes with the cube of a distance.
        distance, bent = (bins.log_rate - around).abs(), bins.bending - bending
        left_out = (search.weight * (distance.square() * distance.clamp(max=1.0) + bent.square())).sum(1)
        moves = left_out > SETTLED  # what has settled stays, or an answer would depend on others
        if not moves.any():
            break
        rows, shape, around, bending = rows[moves], shape[moves], bins.log_rate[moves], bins.bending[moves]
        search = _expanded(plan.points.of(rows), Task(*(t[rows] for t in task)), around, bending)
    return fitted


def _expanded(points: Points, task: Task, around: Tensor, bending: Tensor) -> _Search:
    """Takes the counts to second order around log rates `(m, n_bins)`.

    Args:
        points: Of the bins.
        task: What is fitted.
        around: Log rates, shape `(m, n_bins)`.
        bending: Of a bin, same shape.
    """
    rate = around.exp()
    weight, pull = task.seen * rate, torch.where(task.seen > 0, task.data / rate - 1, 0.0)
    share = weight / weight.sum(1, keepdim=True)
    center = (share * points.log_middle).sum(1, keepdim=True)
    worst = (weight * pull.square()).sum(1) + task.allowed
    return _Search(points, around - points.log_widths + pull - bending, weight, share, center, worst)


def _bending(log_density: Tensor) -> Tensor:
    """Guesses the bending from neighbours: of an exponential of the same slope, and of a parabola."""
    fall = nn.functional.pad(log_density[:, 2:] - log_density[:, :-2], (1, 1), mode="replicate") / 2
    bend = nn.functional.pad(log_density.diff(n=2), (1, 1), mode="replicate")
    return log_sinhc(fall / 2) + bend.clamp(-LARGEST_BEND, LARGEST_BEND) / 24


def _start(plan: Plan, search: _Search) -> Tensor:
    """Finds which of many turn-ons and falls come nearest; power, position and log of the width, shape `(m, 3)`."""
    weight = search.share
    target = search.target - (weight * search.target).sum(1, keepdim=True)

    def mean(t: Tensor, curves: Tensor) -> Tensor:
        """Sums over the bins, shape `(m, n)`."""
        return t @ curves[0].T if len(curves) == 1 else (curves @ t[..., None])[..., 0]

    of_rise, of_fall = mean(weight, plan.rises), mean(weight, plan.powers)
    of_both = mean(weight, plan.products).view(len(weight), -1, len(POWERS))
    along = mean(weight * target, plan.powers)[:, None] - (of_both - of_rise[:, :, None] * of_fall[:, None])
    variance = (mean(weight, plan.powers.square()) - of_fall.square())[:, None].clamp(min=TINY)
    # What the norm alone leaves, up to a constant, less what the fall explains of it.
    left = mean(weight, plan.rises.square()) - of_rise.square() - 2 * mean(weight * target, plan.rises)
    distance = (left[:, :, None] - along.square() / variance).nan_to_num(torch.inf)
    too_high = plan.starts[..., 0].log() > search.center + ABOVE_CENTER  # (m, n)
    nearest = distance.masked_fill(too_high[:, :, None], torch.inf).flatten(1).argmin(1)
    each, power = torch.arange(len(nearest), device=nearest.device), target.new_tensor(POWERS)
    turn_on = plan.starts.expand(len(nearest), -1, -1)[each, nearest // len(POWERS)]
    return torch.cat([power[nearest % len(POWERS), None], turn_on], 1)


def _nearest(search: _Search, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Brings shapes `(m, 3)` as near as they come.

    Returns:
        Shapes `(r, 3)` of those that come near enough, and which they are.
    """
    widths, longest = shape.new_tensor(WIDTHS[2:]), shape.new_tensor(LONGEST_STEPS)
    rows, damping = torch.arange(len(shape), device=shape.device), torch.full_like(shape[:, 0], FIRST_DAMPING)
    products, ends = _products(search, shape), [(shape[:0], rows[:0])]
    for step_number in range(MOST_STEPS):
        distance, force, precision = products[:, 0, 0], products[:, 0, 1:], products[:, 1:, 1:].clone()
        # A power at its limit that would leave it stays there while the others move.
        pushed = torch.add(shape[:, 0], force[:, 0].sign(), alpha=TINY)
        stays = pushed != pushed.clamp(SMALLEST_POWER, LARGEST_POWER)
        if stays.any():
            force = force.clone()
            force[stays, 0], precision[stays, 0, 1:], precision[stays, 1:, 0] = 0.0, 0.0, 0.0
        diagonal = precision.diagonal(dim1=-2, dim2=-1)
        diagonal += 1.0 + damping[:, None] * diagonal
        step: Tensor = torch.linalg.solve_ex(precision, force)[0].nan_to_num(0.0, 0.0, 0.0)
        promise, certain = (force * step).sum(1), damping <= CERTAIN_DAMPING
        done = certain & (promise < SETTLED) | (step_number == MOST_STEPS - 1)
        stopped = done | certain & (distance - HOPELESS * promise > search.worst) | (damping > MOST_DAMPING)
        stopped |= distance > search.worst * FARTHEST / 2**step_number
        if stopped.any():
            good = done & (distance < EXAGGERATED * search.worst)
            ends.append((shape[good], rows[good]))
            going = ~stopped
            if not going.any():
                break
            search = search.of(going)
            rows, shape, damping, step, products = (t[going] for t in (rows, shape, damping, step, products))
        share = (longest / (step * widths).abs().clamp(min=TINY)).amin(1, keepdim=True).clamp(max=1.0)
        trial = shape + share * step * widths
        trial[:, 0].clamp_(SMALLEST_POWER, LARGEST_POWER)
        there = _products(search, trial)
        better = there[:, 0, 0] < products[:, 0, 0]
        damping = damping * torch.where(better, RELIEF, PENALTY)
        shape, products = trial.where(better[:, None], shape), there.where(better[:, None, None], products)
    shapes, numbers = (torch.cat(t) for t in zip(*ends, strict=True))
    order = numbers.argsort()
    return shapes[order], numbers[order]


def _products(search: _Search, shape: Tensor) -> Tensor:
    """Sums over bins, by weight, products of what is left of the target and of the derivatives of the curve.

    Of each is taken what norm and slope do not follow. First the target, then power, position and log of the width in
    units of their priors, shape `(m, 4, 4)`.
    """
    points, share = search.points, search.share
    curves = _curves(points.middle, points.log_middle - search.center, shape)
    fall = curves.fall - (share * curves.fall).sum(1, keepdim=True)
    size = (share * fall.square()).sum(1, keepdim=True).clamp(min=TINY).sqrt()
    linear = torch.stack([torch.ones_like(fall), fall / size], 1)  # orthonormal
    left = torch.stack([search.target - curves.rise, curves.by_power, curves.by_position, curves.by_log_width], 1)
    followed = (share[:, None] * left) @ linear.mT
    left = torch.baddbmm(left, followed, linear, alpha=-1)
    unit = left.new_tensor((1.0, *WIDTHS[2:])).repeat(len(left), 1)
    unit[:, 1] *= followed[:, 0, 1] / size[:, 0]  # the slope
    left = left * unit[..., None]
    return (search.weight[:, None] * left) @ left.mT


def _on_bins(search: _Search, shape: Tensor) -> _Bins:
    """Integrates over bins."""
    points, share = search.points, search.share
    curves = _curves(points.x, points.log_x - search.center[..., None], shape)  # (m, NODES, n_bins)
    rise, fall = (t[:, NODES // 2] for t in (curves.rise, curves.fall))
    # Norm and slope by least squares in the middles of the bins.
    middle = (share * fall).sum(1, keepdim=True)
    left, around = search.target - rise, share * (fall - middle)
    slope = (around * left).sum(1, keepdim=True) / (around * fall).sum(1, keepdim=True).clamp(min=TINY)
    norm = (share * left).sum(1, keepdim=True) - slope * middle
    values = curves.rise + slope[..., None] * curves.fall + points.log_weights
    log_bins = values.logsumexp(1)
    inside = (values - log_bins[:, None]).exp()
    columns = [curves.fall, slope[..., None] * curves.by_power, curves.by_position, curves.by_log_width]
    slopes = torch.stack([torch.ones_like(log_bins), *((inside * t).sum(1) for t in columns)], -1)
    bending = log_bins - points.log_widths - (rise + slope * fall)
    return _Bins((norm + log_bins).clamp(*LOG_RATES), slopes * slopes.new_tensor(WIDTHS), bending)


def _curves(x: Tensor, from_center: Tensor, shape: Tensor) -> _Curves:
    """Evaluates the parts at points over the last edge, shape `(m, *, n_bins)`.

    With l their log over the center, given beside them, the fall is slope (1 - e^(power l)) / power: whatever the
    power, it is 0 at the center and has that slope there.
    """
    power, position, log_width = shape.view(len(shape), 3, *[1] * (x.ndim - 1)).unbind(1)
    inverse = (-log_width).exp()
    z = ((x - position) * inverse).clamp(LOWEST, PLATEAU)
    rise, slope = log_turn_on(z)
    down, grown = -slope, (power * from_center).clamp(max=LARGEST_EXPONENT).exp()
    fall = (1.0 - grown) / power
    return _Curves(rise, down * inverse, down * z, fall, torch.addcmul(fall, grown, from_center) / -power)
