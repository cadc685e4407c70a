r"""From a checked workspace to tables: parameters, rows, constraints, events, data.

Nothing is computed here; `StatisticalModel` evaluates what this makes.
"""

from __future__ import annotations

__all__ = ["CompiledModel", "Constraints", "EventChannel", "compile_workspace"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.stats.event_chunks import EventTable
from specfit.stats.event_files import load_events
from specfit.stats.expectation import Expectation
from specfit.stats.interpolation import DIFFERENCES, FACTORS
from specfit.stats.parameters import ParameterGroup, collect_parameters, flat, modifiers_of
from specfit.stats.schema import Channel, Config
from specfit.stats.units import Rows
from specfit.stats.workspace import Workspace


@dataclass(frozen=True, eq=False)
class Constraints:
    """Auxiliary measurements: Gaussian ones of parameters, and counts whose mean is tau times a parameter."""

    normal: Tensor
    """Numbers of the parameters with a Gaussian constraint."""
    sigmas: Tensor
    poisson: Tensor
    """Numbers of the parameters with a Poisson constraint."""
    taus: Tensor
    observed: Tensor
    """Gaussian measurements, then counts."""


@dataclass(frozen=True, eq=False)
class EventChannel:
    """An unbinned channel: where its yields and variations are, and its events."""

    name: str
    outputs: slice
    """The yields of its samples among the outputs."""
    variations: tuple[int, ...]
    """Numbers of the parameters that move the density ratios."""
    table: EventTable
    weights: Tensor


@dataclass(frozen=True, eq=False)
class CompiledModel:
    """A measurement of a workspace as tables."""

    names: tuple[str, ...]
    n_poi: int
    n_unconstrained: int
    initial: Tensor
    bounds: Tensor
    expectation: Expectation
    channels: dict[str, slice]
    """The bins of each binned channel among the outputs, which begin with them."""
    n_bins: int
    events: tuple[EventChannel, ...]
    constraints: Constraints
    observed: Tensor | None
    """Counts of the binned channels; None where the workspace has no observation."""


def compile_workspace(workspace: Workspace, measurement: str | None, *, normsys: str, histosys: str) -> CompiledModel:
    """Makes the tables of a measurement.

    Raises:
        InputError: Parameters that do not fit together, an interpolation that does not exist, or missing event files.
    """
    _check_interpolations(normsys, histosys)
    document, config = workspace.document, workspace.measurement(measurement).config
    groups = collect_parameters(document, config)
    first = _first_numbers(groups)
    binned = [channel for channel in document.channels if channel.type != "unbinned"]
    unbinned = [channel for channel in document.channels if channel.type == "unbinned"]
    places = _places(binned, unbinned)
    rows = _rows(workspace, config, {g.name: g for g in groups}, first, places)
    n_bins = sum(len(channel.samples[0].data) for channel in binned)
    names = tuple(flat(groups, "names"))
    n_outputs = n_bins + sum(len(channel.samples) for channel in unbinned)
    n_poi = len([config.poi] if isinstance(config.poi, str) and config.poi else config.poi)
    starts = torch.tensor(flat(groups, "inits"), dtype=torch.float64)
    bounds = torch.tensor(flat(groups, "bounds"), dtype=torch.float64).reshape(-1, 2)
    fixed = torch.tensor(flat(groups, "fixed"), dtype=torch.bool)
    counts = {o.name: o.data for o in document.observations if o.data is not None}
    observed = [count for channel in binned for count in counts.get(channel.name, [])]
    return CompiledModel(
        names=names,
        n_poi=sum(len(group.inits) for group in groups[:n_poi]),
        n_unconstrained=sum(len(group.inits) for group in groups if group.constraint == "free"),
        initial=starts,
        bounds=torch.where(fixed[:, None], starts[:, None], bounds),
        expectation=Expectation(
            rows,
            n_outputs=n_outputs,
            n_parameters=len(names),
            factor=normsys,
            difference=DIFFERENCES[histosys],
        ),
        channels={c.name: slice(places[c.name], places[c.name] + len(c.samples[0].data)) for c in binned},
        n_bins=n_bins,
        events=tuple(_event_channel(workspace, channel, places, first) for channel in unbinned),
        constraints=_constraints(groups),
        observed=torch.tensor(observed, dtype=torch.float64) if document.observations or not binned else None,
    )


def _check_interpolations(normsys: str, histosys: str) -> None:
    for name, value, known in (("normsys", normsys, FACTORS), ("histosys", histosys, DIFFERENCES)):
        if value not in known:
            raise InputError(f"{name}: one of {', '.join(known)} is expected, {value!r} came")


def _first_numbers(groups: Sequence[ParameterGroup]) -> dict[str, int]:
    numbers, n = {}, 0
    for group in groups:
        numbers[group.name] = n
        n += len(group.inits)
    return numbers


def _places(binned: Sequence[Channel], unbinned: Sequence[Channel]) -> dict[str, int]:
    """Finds the first output of every channel: bins first, then the totals of unbinned samples."""
    places, n = {}, 0
    for channel in binned:
        places[channel.name] = n
        n += len(channel.samples[0].data)
    for channel in unbinned:
        places[channel.name] = n
        n += len(channel.samples)
    return places


def _rows(
    workspace: Workspace,
    config: Config,
    groups: dict[str, ParameterGroup],
    first: dict[str, int],
    places: dict[str, int],
) -> Rows:
    rows = Rows()
    starts: dict[tuple[str, str], int] = {}
    for channel in workspace.document.channels:
        for s, sample in enumerate(channel.samples):
            place = places[channel.name] + (s if channel.type == "unbinned" else 0)
            starts[channel.name, sample.name] = rows.add(sample.data, place)
    for where, channel, sample, modifier in modifiers_of(workspace.document, config):
        row, number = starts[channel.name, sample.name], first[modifier.name]
        number += groups[modifier.name].channel_offsets.get(channel.name, 0)
        if channel.type == "unbinned" and modifier.type in ("shapesys", "staterror", "shapefactor", "basis"):
            raise InputError(f"workspace: {where}: {modifier.type!r} moves bins, the channel is unbinned")
        _add_modifier(rows, row, number, modifier, sample.data)
    return rows


def _add_modifier(rows: Rows, row: int, number: int, modifier: Any, contents: Sequence[float]) -> None:
    for i, content in enumerate(contents):
        match modifier.type:
            case "normfactor" | "lumi":
                rows.multiply(row + i, number)
            case "shapefactor" | "shapesys" | "staterror":
                rows.multiply(row + i, number + i)
            case "vandermonde":
                rows.multiply_by_polynomial(row + i, number, modifier.coeff)
            case "normsys":
                rows.multiply_by_variation(row + i, number, modifier.data.hi, modifier.data.lo)
            case "normplusshape":
                rows.multiply_by_variation(row + i, number, modifier.data.hi_data[i], modifier.data.lo_data[i])
            case "histosys":
                up, down = modifier.data.hi_data[i] - content, content - modifier.data.lo_data[i]
                rows.add_difference(row + i, number, up, down)
            case "basis":
                for k, change in enumerate(modifier.data.directions[i]):
                    if modifier.data.form == "log":
                        rows.add_direction(row + i, number + k, change)
                    else:
                        rows.add_difference(row + i, number + k, change, change)


def _constraints(groups: Sequence[ParameterGroup]) -> Constraints:
    first = _first_numbers(groups)
    normal = [g for g in groups if g.constraint == "normal"]
    poisson = [g for g in groups if g.constraint == "poisson"]
    numbers = [
        torch.tensor([first[g.name] + i for g in kind for i in range(len(g.inits))], dtype=torch.int64)
        for kind in (normal, poisson)
    ]
    scales = [torch.tensor(flat(kind, "scales"), dtype=torch.float64) for kind in (normal, poisson)]
    observed = torch.tensor(flat([*normal, *poisson], "centres"), dtype=torch.float64)
    return Constraints(numbers[0], scales[0], numbers[1], scales[1], observed)


def _event_channel(
    workspace: Workspace, channel: Channel, places: dict[str, int], first: dict[str, int]
) -> EventChannel:
    observation = next((o for o in workspace.document.observations if o.name == channel.name), None)
    events = load_events(channel, observation, folder=workspace.folder, fitted=first)
    start = places[channel.name]
    return EventChannel(
        name=channel.name,
        outputs=slice(start, start + len(channel.samples)),
        variations=tuple(first[name] for name in events.variation_names),
        table=events.table,
        weights=events.weights,
    )
