r"""The parameters of a workspace: which there are, in which order, where they start and what constrains them.

Order: parameters of interest, then free ones, then constrained ones, each in the order in which the channels first name
them. A modifier with a value for each bin has one parameter a bin, `name[0]`, `name[1]`, ...; where its uncertainty is
zero the parameter is fixed. Defaults are those of pyhf: factors start at 1 within [0, 10], factors of bins within
[1e-10, 10], variations at 0 within [-5, 5].
"""

from __future__ import annotations

__all__ = ["ParameterGroup", "collect_parameters"]

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from specfit.errors import InputError
from specfit.stats.schema import Channel, Config, Document, Parameter, Sample

Constraint = Literal["free", "normal", "poisson"]
Pair = tuple[float, float]
FACTOR, BIN_FACTOR, VARIATION, FREE = (0.0, 10.0), (1e-10, 10.0), (-5.0, 5.0), (-math.inf, math.inf)


@dataclass(frozen=True)
class ParameterGroup:
    """One named parameter, or the parameters of a modifier that has one for each bin.

    Args:
        name: As the modifiers call it.
        constraint: `normal`: a Gaussian measurement of it; `poisson`: a count with mean tau times it.
        inits: Where each starts.
        bounds: Limits of each.
        fixed: Whether each stays where it starts.
        centres: Observed auxiliary measurements; empty where free.
        scales: Standard deviations, or tau of Poisson constraints; empty where free.
        is_scalar: Whether it is one parameter without an index.
        channel_offsets: Of parameters of bins, where the bins of each channel begin.
    """

    name: str
    constraint: Constraint
    inits: tuple[float, ...]
    bounds: tuple[Pair, ...]
    fixed: tuple[bool, ...]
    centres: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    is_scalar: bool = True
    channel_offsets: dict[str, int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the single parameters."""
        return [self.name] if self.is_scalar else [f"{self.name}[{i}]" for i in range(len(self.inits))]


def collect_parameters(document: Document, config: Config) -> list[ParameterGroup]:
    """Finds all parameters of a measurement, in order.

    Raises:
        InputError: One name stands for two different kinds of parameters, settings do not fit, or the parameter of
            interest does not exist.
    """
    groups: dict[str, ParameterGroup] = {}
    owners: dict[str, str] = {}
    settings = {parameter.name: parameter for parameter in config.parameters}
    for where, channel, sample, modifier in modifiers_of(document, config):
        group = _group(where, document, channel, sample, modifier, settings.get(modifier.name))
        if group.name not in groups:
            groups[group.name] = group
        elif modifier.type == "shapesys":
            raise InputError(f"workspace: {where}: the name {group.name!r} is taken, {owners[group.name]}; rename one")
        elif dataclasses.replace(group, channel_offsets={}) != dataclasses.replace(
            groups[group.name], channel_offsets={}
        ):
            raise InputError(f"workspace: {where}: {group.name!r} is another kind of parameter {owners[group.name]}")
        owners.setdefault(group.name, f"at {where}")
    return _ordered([_configured(g, settings.get(g.name)) for g in groups.values()], config)


def modifiers_of(document: Document, config: Config) -> Iterator[tuple[str, Channel, Sample, Any]]:
    """Yields every modifier that is a parameter of the measurement, with the path where it stands."""
    listed = {parameter.name for parameter in config.parameters} | set(_pois(config))
    for c, channel in enumerate(document.channels):
        for s, sample in enumerate(channel.samples):
            for m, modifier in enumerate(sample.modifiers):
                where = f"channels[{c}].samples[{s}].modifiers[{m}]"
                if not document.lists_parameters or modifier.name in listed:
                    yield where, channel, sample, modifier
                elif modifier.type == "vandermonde":
                    raise InputError(
                        f"workspace: {where}: {modifier.name!r} is not among the parameters of the measurement, and a "
                        "polynomial has no nominal value; add it, with fixed: true if it should not move"
                    )


def _pois(config: Config) -> list[str]:
    pois = [config.poi] if isinstance(config.poi, str) else config.poi
    return [poi for poi in pois if poi]


def _ordered(groups: list[ParameterGroup], config: Config) -> list[ParameterGroup]:
    by_name = {group.name: group for group in groups}
    for poi in _pois(config):
        if poi not in by_name:
            raise InputError(
                f"workspace: the parameter of interest {poi!r} belongs to no modifier; there are {', '.join(by_name)}"
            )
    pois = [by_name.pop(poi) for poi in _pois(config)]
    free = [group for group in by_name.values() if group.constraint == "free"]
    return [*pois, *free, *(group for group in by_name.values() if group.constraint != "free")]


def _group(
    where: str, document: Document, channel: Channel, sample: Sample, modifier: Any, setting: Parameter | None
) -> ParameterGroup:
    name, n = modifier.name, len(sample.data)
    match modifier.type:
        case "normfactor":
            return ParameterGroup(name, "free", (1.0,), (FACTOR,), (False,))
        case "vandermonde":
            return ParameterGroup(name, "free", (1.0,), (FREE,), (False,))
        case "shapefactor":
            return ParameterGroup(
                name, "free", (1.0,) * n, (FACTOR,) * n, (False,) * n, is_scalar=False, channel_offsets={}
            )
        case "lumi":
            return _lumi(where, name, setting)
        case "shapesys":
            return _shapesys(where, name, sample, modifier.data)
        case "staterror":
            return _staterror(document, name)
        case "basis":
            k = len(modifier.data.directions[0])
            return ParameterGroup(
                name, "normal", (0.0,) * k, (FREE,) * k, (False,) * k, (0.0,) * k, (1.0,) * k, is_scalar=False
            )
        case _:
            return ParameterGroup(name, "normal", (0.0,), (VARIATION,), (False,), (0.0,), (1.0,))


def _lumi(where: str, name: str, setting: Parameter | None) -> ParameterGroup:
    if setting is None or setting.auxdata is None or setting.sigmas is None:
        raise InputError(f"workspace: {where}: the measurement has to give auxdata and sigmas of {name!r}")
    value = setting.auxdata[0]
    return ParameterGroup(name, "normal", (value,), ((0.0, 10 * value),), (False,), (value,), tuple(setting.sigmas))


def _shapesys(where: str, name: str, sample: Sample, uncertainties: list[float]) -> ParameterGroup:
    n = len(sample.data)
    if len(uncertainties) != n:
        raise InputError(f"workspace: {where}.data: {n} numbers are expected, as the sample has, {len(uncertainties)}")
    valid = [content > 0 and sigma > 0 for content, sigma in zip(sample.data, uncertainties, strict=True)]
    tau = tuple(
        (content / sigma) ** 2 if ok else 1.0
        for content, sigma, ok in zip(sample.data, uncertainties, valid, strict=True)
    )
    fixed = tuple(not ok for ok in valid)
    return ParameterGroup(name, "poisson", (1.0,) * n, (BIN_FACTOR,) * n, fixed, tau, tau, is_scalar=False)


def _staterror(document: Document, name: str) -> ParameterGroup:
    """Adds the uncertainties of all samples of a channel in quadrature, relative to the sum of their contents."""
    sigmas: list[float] = []
    offsets: dict[str, int] = {}
    for c, channel in enumerate(document.channels):
        parts = [
            (sample.data, modifier.data)
            for sample in channel.samples
            for modifier in sample.modifiers
            if modifier.type == "staterror" and modifier.name == name
        ]
        if not parts:
            continue
        if any(len(data) != len(uncertainty) for data, uncertainty in parts):
            raise InputError(f"workspace: channels[{c}]: {name!r} has another number of bins than its sample")
        offsets[channel.name] = len(sigmas)
        for contents, uncertainties in zip(
            zip(*(p[0] for p in parts), strict=True), zip(*(p[1] for p in parts), strict=True), strict=True
        ):
            total = sum(contents)
            sigmas.append(math.sqrt(sum((u / total) ** 2 for u in uncertainties)) if total > 0 else 0.0)
    n = len(sigmas)
    fixed = tuple(sigma == 0 for sigma in sigmas)
    return ParameterGroup(
        name,
        "normal",
        (1.0,) * n,
        (BIN_FACTOR,) * n,
        fixed,
        (1.0,) * n,
        tuple(sigma or 1.0 for sigma in sigmas),
        is_scalar=False,
        channel_offsets=offsets,
    )


def _configured(group: ParameterGroup, setting: Parameter | None) -> ParameterGroup:
    """Puts what the measurement says in the place of the defaults."""
    if setting is None:
        return group
    n = len(group.inits)
    wanted = {
        "inits": setting.inits,
        "bounds": setting.bounds,
        "centres": setting.auxdata,
        "scales": setting.sigmas if group.constraint == "normal" else setting.factors,
        "fixed": None if setting.fixed is None else [setting.fixed] * n,
    }
    changes: dict[str, Any] = {name: tuple(value) for name, value in wanted.items() if value is not None}
    for name, value in changes.items():
        if group.constraint == "free" and name in ("centres", "scales"):
            raise InputError(f"workspace: parameter {group.name!r} has no constraint, so it takes no auxdata or sigmas")
        if len(value) != n:
            raise InputError(f"workspace: parameter {group.name!r}: {n} {name} are expected, {len(value)} came")
    configured = dataclasses.replace(group, **changes)
    for init, (low, high) in zip(configured.inits, configured.bounds, strict=True):
        if not low <= init <= high:
            raise InputError(f"workspace: parameter {group.name!r} starts at {init:g}, outside [{low:g}, {high:g}]")
    return configured


def flat(groups: list[ParameterGroup], attribute: str) -> list[Any]:
    """Joins an attribute of all groups into one list."""
    return list(itertools.chain.from_iterable(getattr(group, attribute) for group in groups))
