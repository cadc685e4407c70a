r"""Models with parameters of their own in every cell: a norm, an exponential, a Bernstein polynomial.

What to use when:

- `AxisNorm`: a process of known shape whose yield is free in every cell, such as a signal.
- `AxisExp`: a background that rises or falls exponentially along the shape axis; slopes may be shared by many cells,
  which steadies them where a cell alone holds few events.
- `AxisBernstein`: a background of freer, never negative form; `form="fractions"` separates its size from its shape, so
  that an empty cell leaves the shape alone undetermined instead of everything.

Conventions: along the shape axis :math:`x` is the bin centre, moved and scaled so that the first centre is 0 and the
last 1. The factor multiplies the template: where parameters sit at their start it is 1. Other axes of the channel share
the cell's parameters. Names follow the axes in the order in which they are listed, `norm_signal_pt3_eta1`, and so does
the order of the parameters; each name says its bins, whatever the order of the channel's own axes.

Sources: the models of rabbit (github.com/WMass/rabbit, pull request 131).
"""

from __future__ import annotations

__all__ = ["AxisBernstein", "AxisExp", "AxisNorm"]

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.stats.cells.channels import Channel, find_channel, split_names
from specfit.stats.cells.models import BoundModel, Factor, ParamModel, Term
from specfit.stats.cells.parameters import Meaning, Parameter, Prior, with_priors, with_start

Names = str | Sequence[str]
Priors = Mapping[str, Prior | tuple[float, float]]

FORMS = ("coefficients", "fractions")


class _CellModel(ParamModel):
    """What the three models share: where they apply, priors and starts.

    Args:
        channel: Name of the channel; None for the only one.
        processes: `"all"`, names separated by commas, or a list; each has parameters of its own.
        priors: Constraints by name or pattern, as (mean, sigma) of the raw value.
        start: Physical values from which parameters start, by name or pattern.
        label: Put before every name, to tell apart two models of the same processes.
    """

    def __init__(
        self, channel: str, processes: Names, *, priors: Priors | None, start: Mapping[str, float] | None, label: str
    ) -> None:
        self.channel, self.process_spec, self.label = channel, processes, label
        self.priors, self.start = dict(priors or {}), dict(start or {})

    def _bound(
        self,
        channels: Sequence[Channel],
        parts: Callable[[Channel], list[_Part]],
        factor: Callable[[Channel], Factor],
    ) -> BoundModel:
        """Gives every process its parameters, part after part."""
        channel = find_channel(channels, self.channel)
        found = parts(channel)
        processes = channel.processes(self.process_spec)
        size = sum(len(part.names) for part in found)
        first = 0
        columns = []
        for part in found:
            columns.append(first + part.cell)
            first += len(part.names)
        table = torch.stack(columns, -1)  # (n_bins, k)
        computed = factor(channel)
        terms = [Term(channel.name, process, table + i * size, computed) for i, process in enumerate(processes)]
        parameters = [
            parameter for process in processes for part in found for parameter in part.of(process, self.label)
        ]
        return BoundModel(with_priors(with_start(parameters, self.start), self.priors), tuple(terms))


class _Part:
    """One parameter a cell."""

    def __init__(self, stem: str, cells: tuple[Tensor, list[str]], start: float, meaning: Meaning) -> None:
        self.stem, (self.cell, self.names) = stem, cells
        self.start, self.meaning = start, meaning

    def of(self, process: str, label: str) -> Iterable[Parameter]:
        for name in self.names:
            words = filter(None, (label, self.stem, process, name))
            yield Parameter("_".join(words), self.start, meaning=self.meaning)


class AxisNorm(_CellModel):
    r"""One norm for each process and cell, :math:`\text{raw}^2`, so that it is never negative.

    Names: `norm_{process}_{axis}{i}_{axis}{j}`. Start: norm 1.

    Args:
        channel: Name of the channel.
        processes: `"all"`, names separated by commas, or a list; each has parameters of its own.
        axes: Axes of the cells, in any order, as a list or separated by commas.
        priors: Constraints by name or pattern, as (mean, sigma) of the raw value.
        start: Norms from which parameters start, by name or pattern.
        label: Put before every name.
    """

    def __init__(
        self,
        channel: str,
        processes: Names,
        axes: Names,
        *,
        priors: Priors | None = None,
        start: Mapping[str, float] | None = None,
        label: str = "",
    ) -> None:
        super().__init__(channel, processes, priors=priors, start=start, label=label)
        self.axes = split_names(axes)

    def bind(self, channels: Sequence[Channel]) -> BoundModel:
        """Looks up channel, processes and axes."""
        return self._bound(
            channels,
            lambda channel: [_Part("norm", channel.cells(self.axes), 1.0, Meaning.SQUARE)],
            lambda _: _square,
        )


class AxisExp(_CellModel):
    r"""An exponential along one axis in each cell: :math:`\exp(A_\text{cell} + s_\text{group} \, x)`.

    Names: all `lnAmpl_{process}_{cell}`, then all `slope_{process}_{group}`. Start: 0, a factor 1.

    Args:
        channel: Name of the channel.
        processes: `"all"`, names separated by commas, or a list.
        shape_axis: Axis along which it falls.
        cell_axes: Axes of the cells.
        slope_axes: Some of the cell axes: cells that agree in them share one slope. None gives every cell its own.
        priors: Constraints by name or pattern, as (mean, sigma) of the raw value.
        start: Physical starts by name or pattern: an amplitude above 0, a slope.
        label: Put before every name.
    """

    def __init__(
        self,
        channel: str,
        processes: Names,
        shape_axis: str,
        cell_axes: Names,
        *,
        slope_axes: Names | None = None,
        priors: Priors | None = None,
        start: Mapping[str, float] | None = None,
        label: str = "",
    ) -> None:
        super().__init__(channel, processes, priors=priors, start=start, label=label)
        self.shape_axis, self.cell_axes = shape_axis, split_names(cell_axes)
        self.slope_axes = self.cell_axes if slope_axes is None else split_names(slope_axes)
        _check_shape_axis(self.shape_axis, self.cell_axes)
        extra = [axis for axis in self.slope_axes if axis not in self.cell_axes]
        if extra:
            raise InputError(
                f"slope_axes: {extra[0]!r} is none of the cell axes ({', '.join(self.cell_axes)}); "
                "slopes are shared over a coarser grouping of the cells"
            )

    def bind(self, channels: Sequence[Channel]) -> BoundModel:
        """Looks up channel, processes and axes."""

        def parts(channel: Channel) -> list[_Part]:
            return [
                _Part("lnAmpl", channel.cells(self.cell_axes), 0.0, Meaning.EXP),
                _Part("slope", channel.cells(self.slope_axes), 0.0, Meaning.ITSELF),
            ]

        return self._bound(channels, parts, lambda channel: _Exponential(_unit_x(channel, self.shape_axis)))


class AxisBernstein(_CellModel):
    r"""A Bernstein polynomial along one axis in each cell, never negative.

    With the basis :math:`b_k(x) = \binom{n}{k} x^k (1 - x)^{n - k}` and softplus
    :math:`\zeta(r) = \ln(1 + e^r)`:

    - `form="coefficients"`: :math:`\sum_k \zeta(c_k) \, b_k(x)`. Names: all `c0_{process}_{cell}`, then all `c1_...`.
    - `form="fractions"`: :math:`(n + 1) \, e^A \sum_k p_k \, b_k(x)` with :math:`p = \text{softmax}(f_1, ..., f_n, 0)`;
      for n = 1 the weights are sigmoid(f) and sigmoid(-f). Names: all `lnAmpl_...`, then `frac_...` (`frac1_...`,
      `frac2_...` and so on above degree 1).

    Start: a factor 1.

    Args:
        channel: Name of the channel.
        processes: `"all"`, names separated by commas, or a list.
        shape_axis: Axis along which it varies.
        cell_axes: Axes of the cells.
        degree: Degree n of the polynomial, from 1 upwards.
        form: `"coefficients"` or `"fractions"`.
        priors: Constraints by name or pattern, as (mean, sigma) of the raw value.
        start: Physical starts by name or pattern: coefficients or amplitudes above 0.
        label: Put before every name.
    """

    def __init__(
        self,
        channel: str,
        processes: Names,
        shape_axis: str,
        cell_axes: Names,
        *,
        degree: int = 1,
        form: Literal["coefficients", "fractions"] = "coefficients",
        priors: Priors | None = None,
        start: Mapping[str, float] | None = None,
        label: str = "",
    ) -> None:
        super().__init__(channel, processes, priors=priors, start=start, label=label)
        self.shape_axis, self.cell_axes, self.degree, self.form = shape_axis, split_names(cell_axes), degree, form
        _check_shape_axis(self.shape_axis, self.cell_axes)
        if isinstance(degree, bool | float) or degree != int(degree) or degree < 1:
            raise InputError(f"degree: a whole number from 1 upwards is expected, {degree!r} came")
        if form not in FORMS:
            raise InputError(f"form: one of {', '.join(FORMS)} is expected, {form!r} came")

    def bind(self, channels: Sequence[Channel]) -> BoundModel:
        """Looks up channel, processes and axes."""
        n = self.degree

        def parts(channel: Channel) -> list[_Part]:
            cells = channel.cells(self.cell_axes)
            if self.form == "coefficients":
                start = Meaning.SOFTPLUS.raw(1.0)
                return [_Part(f"c{k}", cells, start, Meaning.SOFTPLUS) for k in range(n + 1)]
            fractions = ["frac"] if n == 1 else [f"frac{k + 1}" for k in range(n)]
            amplitude = _Part("lnAmpl", cells, 0.0, Meaning.EXP)
            return [amplitude, *(_Part(stem, cells, 0.0, Meaning.ITSELF) for stem in fractions)]

        def factor(channel: Channel) -> Factor:
            basis = _bernstein(_unit_x(channel, self.shape_axis), n)
            return _Coefficients(basis) if self.form == "coefficients" else _Fractions(basis)

        return self._bound(channels, parts, factor)


class _Exponential:
    def __init__(self, x: Tensor) -> None:
        self.x = x  # (n_bins,)

    def __call__(self, values: Tensor) -> Tensor:
        return (values[..., 0] + values[..., 1] * self.x).exp()


class _Coefficients:
    def __init__(self, basis: Tensor) -> None:
        self.basis = basis  # (n_bins, n + 1)

    def __call__(self, values: Tensor) -> Tensor:
        return (torch.nn.functional.softplus(values) * self.basis).sum(-1)


class _Fractions:
    def __init__(self, basis: Tensor) -> None:
        self.basis = basis  # (n_bins, n + 1)

    def __call__(self, values: Tensor) -> Tensor:
        weights = torch.softmax(torch.nn.functional.pad(values[..., 1:], (0, 1)), -1)
        return self.basis.shape[-1] * values[..., 0].exp() * (weights * self.basis).sum(-1)


def _square(values: Tensor) -> Tensor:
    return values[..., 0].square()


def _bernstein(x: Tensor, degree: int) -> Tensor:
    """Returns the Bernstein basis, shape `(n_bins, degree + 1)`."""
    k = torch.arange(degree + 1)
    binomials = torch.tensor([math.comb(degree, i) for i in range(degree + 1)], dtype=torch.float64)
    return binomials * x[:, None] ** k * (1 - x[:, None]) ** (degree - k)


def _unit_x(channel: Channel, axis: str) -> Tensor:
    """Returns x of each flattened bin, shape `(n_bins,)`."""
    return channel.axis(axis).unit_centers[channel.positions(axis)]


def _check_shape_axis(shape_axis: str, cell_axes: Sequence[str]) -> None:
    if shape_axis in cell_axes:
        raise InputError(
            f"shape_axis: {shape_axis!r} is also among the cell axes; a cell would hold one bin of the shape"
        )
