r"""ABCD: a background in a signal region D from its counts in three control regions.

If two selections are independent for the background, :math:`D = A \, C / B`, where B fails both. What to use when:

- `ABCD`: a free yield in every bin of A, B and C; nothing is assumed of their shape.
- `ABCD(..., extended=True)`: five control regions; :math:`D = C A_x B^2 / (B_x A^2)` also takes up a correlation of the
  two selections that continues from the outer regions :math:`A_x, B_x`.
- `SmoothABCD`: few events in the control regions: each is its template times the exponential of a Chebyshev series
  along one axis, with coefficients of their own in every bin of the other axes.

Conventions: a region is a channel, or one bin of some of its axes, written `muons:iso=0,mt=1`. The bins that remain
must agree between regions. In A, B and C the parameters multiply the templates; in D the formula gives *events*, unless
`corrected`: then the template keeps its own departure from :math:`AC/B`, as simulated. All parameters are nuisances.

Sources: S. Choi, H. Oh, arXiv:1906.10831, for both formulae; the models of rabbit (github.com/WMass/rabbit).
"""

from __future__ import annotations

__all__ = ["ABCD", "Region", "SmoothABCD"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.stats.cells.channels import Axis, Channel, find_channel
from specfit.stats.cells.models import BoundModel, Factor, ParamModel, Term
from specfit.stats.cells.parameters import Meaning, Parameter

POWERS: Mapping[bool, Mapping[str, int]] = {
    False: {"A": 1, "B": -1, "C": 1},
    True: {"A": -2, "B": 2, "C": 1, "Ax": 1, "Bx": -1},
}
"""Power of each control region in the formula for D, by whether it is the extended one."""


@dataclass(frozen=True)
class Region:
    """A channel, or a slice of it.

    Args:
        channel: Name of the channel.
        at: Which bin of some of its axes.
    """

    channel: str
    at: Mapping[str, int]

    @classmethod
    def of(cls, text: str | Region) -> Region:
        """Reads `"muons"` or `"muons:iso=0,mt=1"`.

        Raises:
            InputError: It is not of this form.
        """
        if isinstance(text, Region):
            return text
        channel, _, rest = text.partition(":")
        at: dict[str, int] = {}
        for part in filter(None, rest.split(",")):
            axis, _, number = part.partition("=")
            if not number.isdecimal():
                raise InputError(f"region {text!r}: 'channel' or 'channel:axis=bin,...' is expected")
            at[axis] = int(number)
        return cls(channel, at)

    def find(self, channels: Sequence[Channel]) -> tuple[Channel, Tensor]:
        """Returns the channel and the flattened bins of it, shape `(n_bins,)`.

        Raises:
            InputError: Channel, axis or bin do not exist.
        """
        channel = find_channel(channels, self.channel)
        inside = torch.ones(channel.n_bins, dtype=torch.bool)
        for axis, bin_ in self.at.items():
            size = len(channel.axis(axis))
            if bin_ >= size:
                raise InputError(f"region {self}: axis {axis!r} has {size} bins, bin {bin_} came (counted from 0)")
            inside &= channel.positions(axis) == bin_
        return channel, inside.nonzero()[:, 0]

    def axes(self, channel: Channel) -> list[Axis]:
        """Returns the axes that remain."""
        return [axis for axis in channel.axes if axis.name not in self.at]

    def __str__(self) -> str:
        bins = ",".join(f"{axis}={bin_}" for axis, bin_ in self.at.items())
        return f"{self.channel}:{bins}" if bins else self.channel


class _Regions(ParamModel):
    """What both models share: looking up the regions and how D follows."""

    def __init__(
        self,
        process: str,
        regions: Mapping[str, str | Region],
        *,
        extended: bool = False,
        corrected: bool = False,
        label: str = "",
    ) -> None:
        self.process, self.extended, self.corrected, self.label = process, extended, corrected, label
        self.powers = POWERS[extended]
        wanted = [*self.powers, "D"]
        if sorted(regions) != sorted(wanted):
            raise InputError(f"regions: {', '.join(wanted)} are expected, {', '.join(regions) or 'none'} came")
        self.regions = {name: Region.of(regions[name]) for name in wanted}

    def _found(self, channels: Sequence[Channel]) -> dict[str, tuple[Channel, Tensor]]:
        found = {name: region.find(channels) for name, region in self.regions.items()}
        remaining = {name: region.axes(found[name][0]) for name, region in self.regions.items()}
        for name, axes in remaining.items():
            if len(axes) != len(remaining["D"]) or not all(map(Axis.matches, axes, remaining["D"])):
                described = " x ".join(f"{axis.name} ({len(axis)} bins)" for axis in axes) or "one bin"
                raise InputError(f"region {name} ({self.regions[name]}): {described} differs from the bins of region D")
        for channel, _ in found.values():
            channel.processes([self.process])
        return found

    def _closure(self, found: Mapping[str, tuple[Channel, Tensor]]) -> Tensor:
        """Returns what multiplies the template of D at neutral parameters, shape `(n_bins,)`."""
        nominal = {name: channel.templates[self.process].values[bins] for name, (channel, bins) in found.items()}
        empty = [name for name, values in nominal.items() if not (values > 0).all()]
        if self.corrected:
            return torch.ones_like(nominal["D"])
        if empty:
            raise InputError(
                f"region {empty[0]}: the template of {self.process!r} has empty bins, to which no factor can give "
                "events; fill them with any positive number (in control regions only the product with it counts)"
            )
        predicted = torch.ones_like(nominal["D"])
        for name, power in self.powers.items():
            predicted = predicted * nominal[name] ** power
        return predicted / nominal["D"]

    def _terms(
        self,
        found: Mapping[str, tuple[Channel, Tensor]],
        tables: Mapping[str, Tensor],
        factor: Factor,
    ) -> tuple[Term, ...]:
        """Makes the terms; `factor` maps the parameters of one region to what multiplies its template."""
        terms = []
        for name in self.powers:
            channel, bins = found[name]
            terms.append(Term(channel.name, self.process, tables[name], factor, bins))
        channel, bins = found["D"]
        together = torch.cat([tables[name] for name in self.powers], -1)
        product = _Product(factor, list(self.powers.values()), self._closure(found))
        return (*terms, Term(channel.name, self.process, together, product, bins))

    def _name(self, *words: str) -> str:
        return "_".join(filter(None, (self.label, *words)))


class ABCD(_Regions):
    r"""A free yield in every bin of the control regions; the signal region follows.

    Names: `A_{process}_{axis}{i}_{axis}{j}` for every bin, then B, C (then Ax, Bx). A parameter is a raw
    number whose square multiplies the template: no yield is negative, and an empty bin of A or C has a minimum at 0.
    Start: a factor 1.

    Args:
        process: The background.
        regions: Region by letter, A, B, C and D (and Ax, Bx if extended), as `Region` or text `channel:axis=bin,...`.
        extended: Whether five control regions are used.
        corrected: Whether the template of D keeps its departure from the formula.
        label: Put before every name.
    """

    def bind(self, channels: Sequence[Channel]) -> BoundModel:
        """Looks up regions and process."""
        found = self._found(channels)
        channel, bins = found["D"]
        _, cells = _cells_of(self.regions["D"].axes(channel))
        n = len(bins)
        tables = {name: i * n + torch.arange(n)[:, None] for i, name in enumerate(self.powers)}
        parameters = tuple(
            Parameter(self._name(name, self.process, cell), 1.0, is_poi=False, meaning=Meaning.SQUARE)
            for name in self.powers
            for cell in cells
        )
        return BoundModel(parameters, self._terms(found, tables, _square))


class SmoothABCD(_Regions):
    r"""The logarithm of each control region's factor is a Chebyshev series along one axis; the signal region follows.

    :math:`\ln f(x) = \sum_{k=0}^{n} a_k T_k(2x - 1)` with x from 0 at the first bin centre to 1 at the last. Names:
    `A{k}_{process}_{cell}` with the cell over the other axes; for each region all cells of k = 0, then of k = 1 and so
    on. Start: 0, a factor 1.

    Args:
        process: The background.
        regions: Region by letter, as for `ABCD`.
        axis: Axis along which the factor is smooth.
        order: Highest order n.
        extended: Whether five control regions are used.
        corrected: Whether the template of D keeps its departure from the formula.
        label: Put before every name.
    """

    def __init__(
        self,
        process: str,
        regions: Mapping[str, str | Region],
        axis: str,
        *,
        order: int = 1,
        extended: bool = False,
        corrected: bool = False,
        label: str = "",
    ) -> None:
        super().__init__(process, regions, extended=extended, corrected=corrected, label=label)
        if isinstance(order, bool | float) or order < 0:
            raise InputError(f"order: a whole number from 0 upwards is expected, {order!r} came")
        self.axis, self.order = axis, order

    def bind(self, channels: Sequence[Channel]) -> BoundModel:
        """Looks up regions, process and axis."""
        found = self._found(channels)
        channel, bins = found["D"]
        axes = self.regions["D"].axes(channel)
        if self.axis not in [axis.name for axis in axes]:
            raise InputError(f"axis: {self.axis!r} is none of the axes that the regions keep")
        cell, cells = _cells_of(axes, without=self.axis)
        x = channel.axis(self.axis).unit_centers[channel.positions(self.axis)[bins]]
        series = _Chebyshev(_chebyshev(2 * x - 1, self.order))
        n, k = len(cells), torch.arange(self.order + 1)
        tables = {name: (i * len(k) + k) * n + cell[:, None] for i, name in enumerate(self.powers)}
        parameters = tuple(
            Parameter(self._name(f"{name}{order}", self.process, cell_name), is_poi=False)
            for name in self.powers
            for order in range(self.order + 1)
            for cell_name in cells
        )
        return BoundModel(parameters, self._terms(found, tables, series))


class _Product:
    """The formula for D: powers of the factors of the control regions, times a constant."""

    def __init__(self, factor: Factor, powers: list[int], constant: Tensor) -> None:
        self.factor, self.powers, self.constant = factor, powers, constant

    def __call__(self, values: Tensor) -> Tensor:
        product = self.constant
        for power, part in zip(self.powers, values.chunk(len(self.powers), -1), strict=True):  # (*, n_bins, k) each
            product = product * self.factor(part) ** power
        return product


class _Chebyshev:
    def __init__(self, basis: Tensor) -> None:
        self.basis = basis  # (n_bins, order + 1)

    def __call__(self, values: Tensor) -> Tensor:
        return (values * self.basis).sum(-1).exp()


def _square(values: Tensor) -> Tensor:
    return values[..., 0].square()


def _chebyshev(x: Tensor, order: int) -> Tensor:
    """Returns Chebyshev polynomials of the first kind, shape `(n_bins, order + 1)`."""
    angle = x.clamp(-1.0, 1.0).acos()
    return torch.stack([(k * angle).cos() for k in range(order + 1)], -1)


def _cells_of(axes: Sequence[Axis], *, without: str = "") -> tuple[Tensor, list[str]]:
    """Numbers the cells of the axes that remain, all but one of them."""
    channel = Channel("region", tuple(axes), {})
    return channel.cells([axis.name for axis in axes if axis.name != without])
