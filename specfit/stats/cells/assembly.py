"""Assembly: channels, a model and systematics become parameters and samples."""

from __future__ import annotations

__all__ = ["Assembly", "CompiledChannel", "assemble"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.stats.cells.channels import Channel
from specfit.stats.cells.models import BoundModel, Composite, ParamModel, Term
from specfit.stats.cells.parameters import Parameter, Prior, with_priors, with_start
from specfit.stats.cells.samples import FactorPlace, Sample
from specfit.stats.cells.systematics import Systematic, Variation, asymmetry, by_nuisance


@dataclass(frozen=True, eq=False)
class CompiledChannel:
    """A channel and the samples of its processes.

    Args:
        channel: The channel.
        samples: One sample a process.
    """

    channel: Channel
    samples: tuple[Sample, ...]

    @property
    def table(self) -> Tensor:
        """Parameters that enter each bin through any process, shape `(n_bins, k)`."""
        return torch.cat([sample.table for sample in self.samples], -1)

    def events(self, values: Tensor) -> Tensor:
        """Computes the expected events of all processes, shape `(*, n_bins)`."""
        return torch.stack([sample.events(values) for sample in self.samples]).sum(0)

    @property
    def effective(self) -> Tensor:
        """Effective number of simulated events in each bin, 0 where unknown or none, shape `(n_bins,)`."""
        known = [(s.nominal, s.variances) for s in self.samples if s.variances is not None]
        if not known:
            return torch.zeros(self.channel.n_bins, dtype=torch.float64)
        events, variances = (torch.stack(list(part)).sum(0) for part in zip(*known, strict=True))
        usable = (variances > 0) & (events > 0)
        return torch.where(usable, events**2 / torch.where(usable, variances, 1.0), 0.0)


@dataclass(frozen=True, eq=False)
class Assembly:
    """Everything that a likelihood needs.

    Args:
        parameters: All parameters: those of interest, nuisances of models, free and then constrained systematics.
        channels: The channels, fitted ones first.
        dense: Systematics that move whole templates, as positions in the parameter vector.
    """

    parameters: tuple[Parameter, ...]
    channels: tuple[CompiledChannel, ...]
    dense: Tensor

    @property
    def fitted(self) -> tuple[CompiledChannel, ...]:
        """The channels that are not masked."""
        return tuple(one for one in self.channels if not one.channel.masked)


def assemble(
    channels: Sequence[Channel],
    model: ParamModel | None,
    systematics: Sequence[Systematic],
    *,
    priors: Mapping[str, Prior | tuple[float, float]],
    start: Mapping[str, float],
) -> Assembly:
    """Binds everything to the channels and gives every parameter its place.

    Raises:
        InputError: Names that repeat or do not exist.
    """
    _check_names(channels)
    bound = BoundModel((), ()) if model is None else Composite(model).bind(channels)
    variations = [variation for systematic in systematics for variation in systematic.bind(channels)]
    whole = [variation for variation in variations if not variation.cells]
    split = [variation for variation in variations if variation.cells]
    local, terms = _in_cells(split, channels)
    nuisances = [*_nuisances(whole), *local]
    nuisances.sort(key=lambda parameter: parameter.prior is not None)  # stable: free ones first
    parameters = (*bound.parameters, *nuisances)
    names = [parameter.name for parameter in parameters]
    repeated = [name for name in {p.name for p in nuisances} if names.count(name) > 1]
    if repeated:
        raise InputError(f"{repeated[0]!r} is the name of a parameter of the model and of a systematic; rename one")
    parameters = with_start(with_priors(parameters, priors), start)
    place = {name: i for i, name in enumerate(names)}
    renumbered = [Term(t.channel, t.process, t.parameters, t.factor, t.bins) for t in bound.terms]
    for term, own in terms:
        where = torch.tensor([place[name] for name in own])
        renumbered.append(Term(term.channel, term.process, where[term.parameters], term.factor, term.bins))
    ordered = sorted(channels, key=lambda channel: channel.masked)
    starts = torch.tensor([parameter.start for parameter in parameters], dtype=torch.float64)
    compiled = tuple(_compile(channel, renumbered, whole, place=place, starts=starts) for channel in ordered)
    dense = torch.tensor([place[p.name] for p in _nuisances(whole)], dtype=torch.long)
    return Assembly(tuple(parameters), compiled, dense)


def _compile(
    channel: Channel, terms: Sequence[Term], whole: Sequence[Variation], *, place: Mapping[str, int], starts: Tensor
) -> CompiledChannel:
    samples = []
    for process, template in channel.templates.items():
        here = [term for term in terms if (term.channel, term.process) == (channel.name, process)]
        table, factors = _table(here, channel.n_bins, len(place))
        own = [v for v in whole if (v.channel, v.process) == (channel.name, process)]
        multiplied = [v for v in own if not v.additive]
        added = [v for v in own if v.additive]
        asymmetric = None
        if any(v.asymmetric is not None for v in multiplied):
            zeros = torch.zeros(channel.n_bins, dtype=torch.float64)
            asymmetric = _columns([zeros if v.asymmetric is None else v.asymmetric for v in multiplied], channel)
        sample = Sample(
            process=process,
            nominal=template.values,
            variances=template.variances,
            table=table,
            factors=factors,
            theta=torch.tensor([place[v.name] for v in multiplied], dtype=torch.long),
            log_shift=_columns([v.shift for v in multiplied], channel),
            log_asymmetric=asymmetric,
            theta_added=torch.tensor([place[v.name] for v in added], dtype=torch.long),
            added=_columns([v.shift for v in added], channel),
        )
        if added:  # rides on the factor that the models start from
            at_start = sample.factor(sample.gather(starts))
            sample = Sample(**{**vars(sample), "added": sample.added * at_start[:, None]})
        samples.append(sample)
    return CompiledChannel(channel, tuple(samples))


def _table(terms: Sequence[Term], n_bins: int, none: int) -> tuple[Tensor, tuple[FactorPlace, ...]]:
    """Puts the parameters of all terms side by side; `none` stands for no parameter."""
    columns, factors, first = [torch.full((n_bins, 0), none)], [], 0
    for term in terms:
        own = torch.full((n_bins, term.parameters.shape[-1]), none)
        own[slice(None) if term.bins is None else term.bins] = term.parameters
        columns.append(own)
        factors.append(FactorPlace(term.factor, slice(first, first + own.shape[-1]), term.bins))
        first += own.shape[-1]
    return torch.cat(columns, -1), tuple(factors)


def _columns(columns: Sequence[Tensor], channel: Channel) -> Tensor:
    empty = torch.zeros(channel.n_bins, 0, dtype=torch.float64)
    return torch.stack(list(columns), -1) if columns else empty


def _nuisances(variations: Sequence[Variation]) -> list[Parameter]:
    unit = Prior(0.0, 1.0)
    return [
        Parameter(name, 0.0, is_poi=False, prior=unit if constrained else None)
        for name, constrained in by_nuisance(variations).items()
    ]


def _in_cells(
    variations: Sequence[Variation], channels: Sequence[Channel]
) -> tuple[list[Parameter], list[tuple[Term, list[str]]]]:
    """Makes one nuisance a cell of each variation, and the terms by which they multiply."""
    parameters: dict[str, Parameter] = {}
    terms = []
    constrained = by_nuisance(variations)
    for variation in variations:
        if variation.additive:
            raise InputError(f"{variation.name}: an additive variation cannot be split into cells; take Shape")
        channel = next(c for c in channels if c.name == variation.channel)
        cell, cells = channel.cells(variation.cells)
        names = [f"{variation.name}_{name}" for name in cells]
        prior = Prior(0.0, 1.0) if constrained[variation.name] else None
        for name in names:
            parameters[name] = Parameter(name, 0.0, is_poi=False, prior=prior)
        factor = _LocalFactor(variation.shift, variation.asymmetric)
        terms.append((Term(channel.name, variation.process, cell[:, None], factor), names))
    return list(parameters.values()), terms


class _LocalFactor:
    """exp(theta K + theta a(theta) H) with a nuisance of its own in each cell."""

    def __init__(self, shift: Tensor, asymmetric: Tensor | None) -> None:
        self.shift, self.asymmetric = shift, asymmetric

    def __call__(self, values: Tensor) -> Tensor:
        theta = values[..., 0]
        log_factor = theta * self.shift
        if self.asymmetric is not None:
            log_factor = log_factor + asymmetry(theta)[0] * self.asymmetric
        return log_factor.exp()


def _check_names(channels: Sequence[Channel]) -> None:
    names = [channel.name for channel in channels]
    if not names or all(channel.masked for channel in channels):
        raise InputError("channels: at least one channel that is not masked is expected")
    if len(set(names)) != len(names):
        raise InputError(f"channels: two are called {max(names, key=names.count)!r}; give each a name of its own")
