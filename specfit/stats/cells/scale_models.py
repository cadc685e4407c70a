"""Models that scale whole processes: signal strengths and mixtures.

What to use when: `Mu` for a signal strength common to all bins; `Mixture` where two templates share one yield, such as
two hypotheses of the same particle.
"""

from __future__ import annotations

__all__ = ["Mixture", "Mu"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.stats.cells.channels import Channel, split_names
from specfit.stats.cells.models import BoundModel, Factor, ParamModel, Term
from specfit.stats.cells.parameters import Parameter


class Mu(ParamModel):
    """One signal strength for each process, in every channel that has it: the yield is multiplied by mu.

    Names: `mu_{process}`. Start: 1. The number is mu itself, of either sign unless `positive`.

    Args:
        processes: Names, as a list or separated by commas; None takes the signals of the channels.
        positive: Whether mu is kept at 0 or above.
        start: Where it starts.
    """

    def __init__(
        self, processes: str | Sequence[str] | None = None, *, positive: bool = False, start: float = 1.0
    ) -> None:
        self.processes = None if processes is None else split_names(processes)
        self.positive, self.start = positive, start

    def bind(self, channels: Sequence[Channel]) -> BoundModel:
        """Looks up the processes."""
        names = self.processes
        if names is None:
            names = list(dict.fromkeys(signal for channel in channels for signal in channel.signals))
            if not names:
                raise InputError("Mu: no channel says which processes are signals; name them, Mu(['signal'])")
        low = 0.0 if self.positive else -math.inf
        parameters = tuple(Parameter(f"mu_{name}", self.start, low=low) for name in names)
        terms = [term for i, name in enumerate(names) for term in _everywhere(channels, name, i, _itself)]
        return BoundModel(parameters, tuple(terms))


class Mixture(ParamModel):
    """Pairs of processes that share one yield: the primary counts x times, its complement (1 - x) times.

    Names: `{primary}_{complement}_mixing`, paired in the order given. x stays between 0 and 1.

    Args:
        primaries: Names, as a list or separated by commas.
        complements: As many names.
        start: Where each x starts.
    """

    def __init__(self, primaries: str | Sequence[str], complements: str | Sequence[str], *, start: float = 0.5) -> None:
        self.pairs = list(zip(*_pairs(split_names(primaries), split_names(complements)), strict=True))
        self.start = start

    def bind(self, channels: Sequence[Channel]) -> BoundModel:
        """Looks up the processes."""
        parameters, terms = [], []
        for i, (primary, complement) in enumerate(self.pairs):
            parameters.append(Parameter(f"{primary}_{complement}_mixing", self.start, low=0.0, high=1.0))
            terms += _everywhere(channels, primary, i, _itself)
            terms += _everywhere(channels, complement, i, _rest)
        return BoundModel(tuple(parameters), tuple(terms))


def _pairs(primaries: list[str], complements: list[str]) -> tuple[list[str], list[str]]:
    if len(primaries) != len(complements) or not primaries:
        raise InputError(f"Mixture: as many complements as primaries, {len(complements)} and {len(primaries)} came")
    names = [*primaries, *complements]
    if len(set(names)) != len(names):
        raise InputError(f"Mixture: {max(names, key=names.count)!r} is named twice; a process mixes with one other")
    return primaries, complements


def _everywhere(channels: Sequence[Channel], process: str, parameter: int, factor: Factor) -> list[Term]:
    """Applies one parameter to a process wherever it occurs."""
    found = [channel for channel in channels if process in channel.templates]
    if not found:
        known = dict.fromkeys(name for channel in channels for name in channel.templates)
        raise InputError(f"no channel has a process {process!r}; there are {', '.join(known)}")
    return [Term(c.name, process, torch.full((c.n_bins, 1), parameter), factor) for c in found]


def _itself(values: Tensor) -> Tensor:
    return values[..., 0]


def _rest(values: Tensor) -> Tensor:
    return 1 - values[..., 0]
