"""Channels: n-dimensional histograms with named axes, their data and the template of each process.

Bins of a channel are flattened in C order of its own axes. A *cell* is one bin of some of those axes, whatever the
bin along the others; `Channel.cells` numbers cells in C order of the axes **as they are listed**, and tells for every
bin in which cell it lies, so that names and contents cannot drift apart.
"""

from __future__ import annotations

__all__ = ["Axis", "Channel", "Template", "find_channel", "split_names"]

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a channel.

    Args:
        name: Its name, unique in the channel.
        edges: Bin edges, shape `(n_bins + 1,)`; None for an axis of categories.
        labels: Names of the categories; empty for an axis of intervals.
    """

    name: str
    edges: Tensor | None = field(default=None, repr=False)
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels) if self.edges is None else len(self.edges) - 1

    @property
    def unit_centers(self) -> Tensor:
        """Bin centres moved and scaled so that the first is 0 and the last 1, shape `(n_bins,)`; 0 for one bin.

        Raises:
            InputError: The axis has categories, which have no centres.
        """
        if self.edges is None:
            raise InputError(f"axis {self.name!r} has categories, a shape needs an axis of intervals")
        centers = (self.edges[1:] + self.edges[:-1]) / 2
        span = centers[-1] - centers[0]
        return (centers - centers[0]) / torch.where(span > 0, span, 1.0)

    def matches(self, other: Axis) -> bool:
        """Tells whether both have the same name and bins."""
        if self.name != other.name or self.labels != other.labels or len(self) != len(other):
            return False
        return (
            self.edges is None or other.edges is None or torch.allclose(self.edges, other.edges, rtol=1e-9, atol=1e-12)
        )


@dataclass(frozen=True, eq=False)
class Template:
    """What a process is expected to contribute where every parameter sits at its neutral value.

    Args:
        values: Expected events, flattened, shape `(n_bins,)`.
        variances: Variances of the simulation, same shape; None for a template known without error.
    """

    values: Tensor
    variances: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Channel:
    """One region of the data: axes, observed counts and templates. `Channel.of` makes it from histogram objects.

    Args:
        name: Its name.
        axes: Its axes, in the order of the histograms.
        templates: Template of each process by name.
        data: Observed counts, flattened, shape `(n_bins,)`; None where only expectations are wanted.
        signals: Names of the processes that `Mu` scales if told nothing else.
        masked: Whether the channel is only predicted, not fitted.
    """

    name: str
    axes: tuple[Axis, ...]
    templates: Mapping[str, Template] = field(repr=False)
    data: Tensor | None = field(default=None, repr=False)
    signals: tuple[str, ...] = ()
    masked: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        processes: Mapping[str, Any],
        *,
        data: Any = None,
        signals: Sequence[str] = (),
        masked: bool = False,
    ) -> Channel:
        """Makes a channel from histogram objects with named axes (hist, boost-histogram, any UHI object).

        Flow bins are left out. A weighted storage gives the variances that Barlow-Beeston uses; counts are taken as
        known without error. Negative contents are set to 0, with a warning.

        Args:
            name: Name of the channel.
            processes: Expected histogram of each process, by name; all on the same axes.
            data: Observed counts on the same axes.
            signals: Which processes are signals.
            masked: Predict it, do not fit it.

        Raises:
            InputError: No process, unnamed or repeated axes, axes that differ, an unknown signal, counts below 0.

        Example:
            >>> import hist
            >>> h = hist.new.Reg(60, 2.9, 3.3, name="mass").Reg(2, -2, 2, name="charge").Double()
            >>> Channel.of("muons", {"signal": h}, signals=["signal"]).shape
            (60, 2)
        """
        if not processes:
            raise InputError(f"channel {name!r}: at least one process is expected, none came")
        unknown = [signal for signal in signals if signal not in processes]
        if unknown:
            raise InputError(f"channel {name!r}: signal {unknown[0]!r} is none of its processes ({_listed(processes)})")
        axes = _axes_of(next(iter(processes.values())), f"channel {name!r}")
        templates = {process: _template(h, axes, f"{name}/{process}") for process, h in processes.items()}
        counts = None if data is None else _contents(data, axes, f"{name}/data")[0]
        if counts is not None and (counts < 0).any():
            raise InputError(f"{name}/data: counts must not be negative, {counts.min().item():g} came")
        return cls(name, axes, templates, counts, tuple(signals), masked)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of bins along each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def n_bins(self) -> int:
        """Number of bins in all."""
        return int(np.prod(self.shape))

    def axis(self, name: str) -> Axis:
        """Returns an axis by name.

        Raises:
            InputError: There is no such axis.
        """
        for axis in self.axes:
            if axis.name == name:
                return axis
        names = ", ".join(axis.name for axis in self.axes)
        raise InputError(f"channel {self.name!r} has no axis {name!r}; its axes are {names}")

    def positions(self, axis: str) -> Tensor:
        """Returns where each flattened bin lies along an axis, shape `(n_bins,)`, whole numbers from 0."""
        which = self.axes.index(self.axis(axis))
        grid = torch.arange(self.shape[which]).reshape([-1 if k == which else 1 for k in range(len(self.axes))])
        return grid.expand(self.shape).reshape(-1)

    def cells(self, axes: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Numbers the cells over some axes, in C order of the axes as listed.

        Returns:
            The cell of each bin, shape `(n_bins,)`, and the name of each cell, such as `eta3_charge0`.

        Raises:
            InputError: An axis is unknown or named twice.
        """
        if len(set(axes)) != len(axes):
            raise InputError(f"cell axes: an axis is named twice in {', '.join(axes)}")
        cell, names = torch.zeros(self.n_bins, dtype=torch.long), [""]
        for axis in axes:
            size = len(self.axis(axis))
            cell = cell * size + self.positions(axis)
            names = [f"{name}_{axis}{i}".lstrip("_") for name in names for i in range(size)]
        return cell, names

    def processes(self, spec: str | Sequence[str]) -> list[str]:
        """Resolves `"all"`, a comma-separated text or a list to names of processes.

        Raises:
            InputError: A process is unknown or named twice.
        """
        names = list(self.templates) if spec == "all" else split_names(spec)
        for process in names:
            if process not in self.templates:
                raise InputError(f"channel {self.name!r} has no process {process!r}; it has {_listed(self.templates)}")
        if len(set(names)) != len(names) or not names:
            raise InputError(f"processes: each is named once, at least one in all; {spec!r} came")
        return names


def find_channel(channels: Sequence[Channel], name: str) -> Channel:
    """Returns a channel by name.

    Raises:
        InputError: There is no such channel.
    """
    for channel in channels:
        if channel.name == name:
            return channel
    raise InputError(f"there is no channel {name!r}; the channels are {', '.join(c.name for c in channels)}")


def split_names(spec: str | Sequence[str]) -> list[str]:
    """Splits `"pt,eta"` into names; a list is taken as it is."""
    return [part.strip() for part in spec.split(",") if part.strip()] if isinstance(spec, str) else list(spec)


def on_axes(source: Any, channel: Channel, where: str) -> Tensor:
    """Returns the contents of a histogram object, or an array of the channel's shape, flattened as the channel."""
    if hasattr(source, "axes"):
        return _contents(source, channel.axes, where)[0]
    return _of_shape(source, channel.shape, where)


def _of_shape(values: ArrayLike, shape: tuple[int, ...], where: str) -> Tensor:
    flat = as_float64(values, where)
    if flat.shape not in (shape, (int(np.prod(shape)),)):
        raise InputError(f"{where}: bins of shape {shape} are expected, {tuple(flat.shape)} came")
    return flat.reshape(-1)


def _axes_of(histogram: Any, where: str) -> tuple[Axis, ...]:
    if not hasattr(histogram, "axes") or not callable(getattr(histogram, "values", None)):
        raise InputError(f"{where}: a histogram object with named axes is expected, {type(histogram).__name__} came")
    axes = tuple(_axis(axis, where) for axis in histogram.axes)
    names = [axis.name for axis in axes]
    if len(set(names)) != len(names):
        raise InputError(f"{where}: two axes are called {max(names, key=names.count)!r}; give each a name of its own")
    return axes


def _axis(axis: Any, where: str) -> Axis:
    # boost-histogram has no name, hist an empty one; uhi files keep it in the metadata.
    name = getattr(axis, "name", "")
    if not name:
        raise InputError(f"{where}: an axis has no name; make it with name=..., models find axes by name")
    bins = [axis[i] for i in range(len(axis))]
    if any(isinstance(limits, str) for limits in bins):
        return Axis(name, labels=tuple(map(str, bins)))
    edges = np.asarray(axis.edges, dtype=np.float64) if hasattr(axis, "edges") else np.array([*bins, bins[-1] + 1])
    return Axis(name, torch.from_numpy(edges.copy()))


def _template(histogram: Any, axes: tuple[Axis, ...], where: str) -> Template:
    values, variances = _contents(histogram, axes, where)
    if (values < 0).any():
        log.warning("%s: %d bins below 0 are taken as empty", where, int((values < 0).sum()))
    # A negative bin has no place in a likelihood of counts, so its variance has none either.
    return Template(values.clamp(min=0.0), None if variances is None else variances.masked_fill(values < 0, 0.0))


def _contents(histogram: Any, axes: tuple[Axis, ...], where: str) -> tuple[Tensor, Tensor | None]:
    own = _axes_of(histogram, where)
    if len(own) != len(axes) or not all(map(Axis.matches, own, axes)):
        described = [" x ".join(f"{axis.name} ({len(axis)} bins)" for axis in these) for these in (own, axes)]
        raise InputError(f"{where}: axes {described[0]} came, {described[1]} with the same edges are expected")
    values = as_float64(np.asarray(histogram.values()), where).reshape(-1)
    if not values.isfinite().all():
        raise InputError(f"{where}: contents must be finite numbers")
    variances = _variances(histogram)
    return values, None if variances is None else as_float64(variances, where).reshape(-1)


def _variances(histogram: Any) -> Any:
    """Returns variances if the histogram keeps them; those that a plain count implies are not its own."""
    variances = histogram.variances() if hasattr(histogram, "variances") else None
    storage = getattr(histogram, "storage_type", None)
    if storage is not None:
        return np.asarray(variances) if storage.__name__ == "Weight" else None
    return None if variances is None or np.array_equal(variances, histogram.values()) else np.asarray(variances)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names)
