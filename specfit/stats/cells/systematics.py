r"""Systematics: nuisance parameters that move templates, each with a unit Gaussian constraint unless it is free.

What to use when:

- `LogNormal`: a relative uncertainty of a yield, `1.05` for 5 %: :math:`e^{\theta \ln \kappa}`.
- `Shape`: varied histograms, up and down: :math:`\exp(\theta K + \theta \, a(\theta) \, H)` bin by bin; never negative.
- `Additive`: the same histograms taken linearly, :math:`\nu + \theta \, \Delta`: for differences that change sign.

A pair up/down gives :math:`k_+ = \ln(\text{up}/\text{nominal})` and :math:`k_- = -\ln(\text{down}/\text{nominal})`;
`symmetrize` says what becomes of them:

================  ===============================================================================================
`"average"`       K is their mean
`"conservative"`  K is the larger in size
`"linear"`        two nuisances: mean (`{name}SymAvg`) and half the difference (`{name}SymDiff`)
`"quadratic"`     the same with the difference scaled by the square root of 3
None              asymmetric: K is the mean, H half the difference; up for theta > 0, down below, joined smoothly
================  ===============================================================================================

where :math:`a(\theta) = t (t^2 (3 t^2 - 10) + 15) / 8` with :math:`t = 2 \theta`, held at -1 and 1 for
:math:`|\theta| > 1/2`: up and down are met exactly at 1 and -1.

Conventions: where the nominal is empty nothing varies; a variation to 0 or below counts as a factor 1e-3. Give `cells`
to make a nuisance independent in every cell. Source: the tensors of rabbit (github.com/WMass/rabbit).
"""

from __future__ import annotations

__all__ = ["SYMMETRIZE", "Additive", "LogNormal", "Shape", "Systematic", "Variation", "asymmetry"]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.stats.cells.channels import Channel, find_channel, on_axes, split_names

Symmetrize = Literal["average", "conservative", "linear", "quadratic"] | None

SYMMETRIZE = ("average", "conservative", "linear", "quadratic", None)
# A variation that leaves nothing of a bin.
SMALLEST_RATIO = 1e-3


@dataclass(frozen=True, eq=False)
class Variation:
    """What one nuisance does to one process in one channel.

    Args:
        name: Name of the nuisance.
        channel: Name of the channel.
        process: Name of the process.
        shift: K of the module's formula or, for an additive one, the difference in events, shape `(n_bins,)`.
        asymmetric: H of the formula, same shape; None where it is symmetric.
        additive: Whether `shift` is added to the expectation instead of its logarithm.
        constrained: Whether the nuisance has a unit Gaussian constraint.
        cells: Axes in whose cells it is independent; empty for one nuisance.
    """

    name: str
    channel: str
    process: str
    shift: Tensor
    asymmetric: Tensor | None = None
    additive: bool = False
    constrained: bool = True
    cells: tuple[str, ...] = ()


class Systematic(ABC):
    """A source of uncertainty, which may move several processes in several channels."""

    @abstractmethod
    def bind(self, channels: Sequence[Channel]) -> list[Variation]:
        """Looks up channels and processes.

        Raises:
            InputError: One of them does not exist, or a histogram does not fit.
        """


class LogNormal(Systematic):
    """A relative uncertainty of the yield of some processes.

    Args:
        name: Name of the nuisance.
        size: Factor at one standard deviation, 1.05 for 5 %; or a pair (up, down) such as (1.06, 0.95).
        processes: Names, a list or separated by commas; `"all"` for every process.
        channels: Names of the channels; None for all that have the process.
        constrained: False leaves it free.
        symmetrize: How a pair is treated; see the module.
        cells: Axes in whose cells the nuisance is independent.
    """

    def __init__(
        self,
        name: str,
        size: float | tuple[float, float],
        processes: str | Sequence[str] = "all",
        *,
        channels: Sequence[str] | None = None,
        constrained: bool = True,
        symmetrize: Symmetrize = None,
        cells: str | Sequence[str] = (),
    ) -> None:
        self.name, self.processes, self.channels, self.constrained = name, processes, channels, constrained
        self.symmetrize, self.cells = _checked(symmetrize, name), tuple(split_names(cells))
        factors: tuple[float, ...] = (size,) if isinstance(size, int | float) else tuple(size)
        if len(factors) not in (1, 2) or not all(0 < ratio < math.inf for ratio in factors):
            raise InputError(f"{name}: a factor above 0 or a pair (up, down) is expected, {size!r} came")
        self.log_up = math.log(factors[0])
        self.log_down = self.log_up if len(factors) == 1 else -math.log(factors[1])

    def bind(self, channels: Sequence[Channel]) -> list[Variation]:
        """Looks up channels and processes."""
        variations = []
        for channel, process in self._targets(channels):
            ones = torch.ones(channel.n_bins, dtype=torch.float64)
            up, down = ones * self.log_up, ones * self.log_down
            for name, shift, asymmetric in _split(self.name, up, down, self.symmetrize):
                variations.append(
                    Variation(
                        name,
                        channel.name,
                        process,
                        shift,
                        asymmetric,
                        constrained=self.constrained,
                        cells=self.cells,
                    )
                )
        return variations

    def _targets(self, channels: Sequence[Channel]) -> list[tuple[Channel, str]]:
        among = channels if self.channels is None else [find_channel(channels, name) for name in self.channels]
        wanted = None if self.processes == "all" else split_names(self.processes)
        found = [(c, p) for c in among for p in c.templates if wanted is None or p in wanted]
        missing = set(wanted or ()) - {process for _, process in found}
        if missing:
            raise InputError(f"{self.name}: no channel has a process {sorted(missing)[0]!r}")
        return found


class _Histograms(Systematic):
    """What `Shape` and `Additive` share.

    Args:
        name: Name of the nuisance.
        channel: Name of the channel.
        process: Name of the process.
        up: Histogram at one standard deviation up, on the channel's axes, or an array of its shape.
        down: The same downwards; None mirrors `up`.
        scale: Multiplies the variation.
        symmetrize: How a pair is treated; see the module.
        constrained: False leaves it free.
        cells: Axes in whose cells the nuisance is independent.
    """

    def __init__(
        self,
        name: str,
        channel: str,
        process: str,
        up: Any,
        *,
        down: Any = None,
        scale: float = 1.0,
        symmetrize: Symmetrize = "average",
        constrained: bool = True,
        cells: str | Sequence[str] = (),
    ) -> None:
        self.name, self.channel, self.process, self.up, self.down = name, channel, process, up, down
        self.scale, self.symmetrize, self.constrained = scale, _checked(symmetrize, name), constrained
        self.cells = tuple(split_names(cells))

    def _variations(
        self, channels: Sequence[Channel], shift_of: Callable[[Tensor, Tensor], Tensor], *, additive: bool
    ) -> list[Variation]:
        channel = find_channel(channels, self.channel)
        channel.processes([self.process])
        nominal = channel.templates[self.process].values
        up = shift_of(on_axes(self.up, channel, f"{self.name}/up"), nominal)
        down = up if self.down is None else -shift_of(on_axes(self.down, channel, f"{self.name}/down"), nominal)
        return [
            Variation(
                name,
                channel.name,
                self.process,
                shift * self.scale,
                None if asymmetric is None else asymmetric * self.scale,
                additive=additive,
                constrained=self.constrained,
                cells=self.cells,
            )
            for name, shift, asymmetric in _split(self.name, up, down, self.symmetrize)
        ]


class Shape(_Histograms):
    """Varied histograms whose logarithm is interpolated: positive for every value of the nuisance.

    Args:
        name: Name of the nuisance; the same name on several processes or channels is one nuisance.
        channel: Name of the channel.
        process: Name of the process.
        up: Histogram at one standard deviation up, on the channel's axes, or an array of its shape.
        down: The same downwards; None mirrors `up`.
        scale: Multiplies the variation.
        symmetrize: How a pair is treated; see the module. None keeps it asymmetric.
        constrained: False leaves it free.
        cells: Axes in whose cells the nuisance is independent.
    """

    def bind(self, channels: Sequence[Channel]) -> list[Variation]:
        """Looks up channel and process and compares the histograms with the template."""
        return self._variations(channels, _log_ratio, additive=False)


class Additive(_Histograms):
    """Varied histograms whose difference from the template is added, times the nuisance.

    The difference is multiplied by the factor that the parametric models give at their start. An asymmetric pair is not
    offered: the expectation is linear in the nuisance. Arguments as for `Shape`.
    """

    def bind(self, channels: Sequence[Channel]) -> list[Variation]:
        """Looks up channel and process and compares the histograms with the template."""
        if self.symmetrize is None and self.down is not None:
            raise InputError(f"{self.name}: an additive variation is linear; choose how to symmetrize up and down")
        return self._variations(channels, torch.sub, additive=True)


def asymmetry(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Computes :math:`\theta \, a(\theta)` and its first two derivatives, same shape each."""
    t = (2 * theta).clamp(-1.0, 1.0)
    a = t * (t**2 * (3 * t**2 - 10) + 15) / 8
    slope = 15 * (1 - t**2) ** 2 / 4  # da/dtheta; 0 from |theta| = 1/2
    curvature = -30 * t * (1 - t**2)
    return theta * a, a + theta * slope, 2 * slope + theta * curvature


def _split(name: str, up: Tensor, down: Tensor, symmetrize: Symmetrize) -> list[tuple[str, Tensor, Tensor | None]]:
    """Returns name, K and H of each nuisance that a pair k+, k- makes."""
    mean, half = (up + down) / 2, (up - down) / 2
    if symmetrize == "average":
        return [(name, mean, None)]
    if symmetrize == "conservative":
        return [(name, torch.where(up.abs() > down.abs(), up, down), None)]
    if symmetrize is None:
        return [(name, mean, half if bool((half != 0).any()) else None)]
    scale = math.sqrt(3) if symmetrize == "quadratic" else 1.0
    return [(f"{name}SymAvg", mean, None), (f"{name}SymDiff", half * scale, None)]


def _log_ratio(varied: Tensor, nominal: Tensor) -> Tensor:
    filled = nominal > 0
    ratio = torch.where(filled, varied / torch.where(filled, nominal, 1.0), 1.0)
    return torch.where(ratio > 0, ratio.clamp(min=torch.finfo(torch.float64).tiny), SMALLEST_RATIO).log()


def _checked(symmetrize: Symmetrize, name: str) -> Symmetrize:
    if symmetrize not in SYMMETRIZE:
        raise InputError(f"{name}: symmetrize is one of {', '.join(map(repr, SYMMETRIZE))}, {symmetrize!r} came")
    return symmetrize


def by_nuisance(variations: Sequence[Variation]) -> Mapping[str, bool]:
    """Returns the nuisances that need a parameter, in order of first appearance, and whether each is constrained.

    Raises:
        InputError: The same name is constrained here and free there, or split into other cells.
    """
    found: dict[str, Variation] = {}
    for variation in variations:
        first = found.setdefault(variation.name, variation)
        if (first.constrained, first.cells) != (variation.constrained, variation.cells):
            raise InputError(f"nuisance {variation.name!r} occurs twice, with other constraints or cells")
    return {name: variation.constrained for name, variation in found.items()}
