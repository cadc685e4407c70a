"""Events: what categories are made of, as flat float64 tensors."""

from __future__ import annotations

__all__ = ["Events"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError


@dataclass(frozen=True, eq=False)
class Events:
    """Simulated events of several processes.

    Args:
        features: What is cut on, shape `(n, n_features)`, or `(n,)` for one discriminant.
        weights: Expected events that each event stands for, of either sign, shape `(n,)`.
        process: Which of `processes` each event belongs to, shape `(n,)`.
        processes: Their names.
        mass: Mass of each event, shape `(n,)`, where a search looks at it.

    Raises:
        InputError: Shapes do not fit together, a value is not finite, or an event names no process.

    Example:
        >>> Events.of({"signal": ([0.9, 0.8], 0.5), "background": ([0.1, 0.4, 0.2], 2.0)}).totals
        {'signal': 1.0, 'background': 6.0}
    """

    features: Tensor
    weights: Tensor
    process: Tensor
    processes: tuple[str, ...]
    mass: Tensor | None = None

    def __post_init__(self) -> None:
        if self.features.ndim == 1:
            object.__setattr__(self, "features", self.features[:, None])
        if self.features.ndim != 2 or self.features.shape[1] == 0:
            raise InputError(f"features: shape (n, n_features) is expected, {tuple(self.features.shape)} came")
        for name in ("weights", "process", "mass"):
            value = getattr(self, name)
            if value is not None and value.shape != (len(self.features),):
                raise InputError(f"{name}: {len(self.features)} values are expected, {tuple(value.shape)} came")
        for name in ("features", "weights", "mass"):
            _check_finite(getattr(self, name), name)
        if len(self) and not 0 <= int(self.process.min()) <= int(self.process.max()) < len(self.processes):
            raise InputError(f"process: numbers from 0 to {len(self.processes) - 1} are expected")

    @classmethod
    def of(cls, tables: Mapping[str, Sequence[ArrayLike]]) -> Events:
        """Joins tables of several processes.

        Args:
            tables: For each process `(features, weights)` or `(features, weights, mass)`; weights may be one number.

        Raises:
            InputError: A table is not made of numbers, or they differ in their number of features.
        """
        parts = {name: _columns(name, table) for name, table in tables.items()}
        widths = {name: part[0].shape[1] for name, part in parts.items()}
        if not parts or len(set(widths.values())) != 1:
            raise InputError(f"features: the same number of them for each process is expected, {widths} came")
        masses = [part[2] for part in parts.values()]
        if any(mass is None for mass in masses) and not all(mass is None for mass in masses):
            raise InputError("mass: some processes have it and some have not; give it to all or to none")
        return cls(
            features=torch.cat([part[0] for part in parts.values()]),
            weights=torch.cat([part[1] for part in parts.values()]),
            process=torch.repeat_interleave(torch.tensor([len(part[1]) for part in parts.values()])),
            processes=tuple(parts),
            mass=torch.cat([mass for mass in masses if mass is not None]) if masses[0] is not None else None,
        )

    def __len__(self) -> int:
        return len(self.features)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.features.shape[1]

    @property
    def totals(self) -> dict[str, float]:
        """Expected events of each process."""
        sums = torch.zeros(len(self.processes), dtype=torch.float64, device=self.weights.device)
        sums.index_add_(0, self.process, self.weights)
        return dict(zip(self.processes, sums.tolist(), strict=True))

    def where(self, chosen: Tensor) -> Events:
        """Returns the events that a mask, or a row of indices, chooses."""
        mass = None if self.mass is None else self.mass[chosen]
        return replace(
            self,
            features=self.features[chosen],
            weights=self.weights[chosen],
            process=self.process[chosen],
            mass=mass,
        )

    def of_process(self, names: Iterable[str]) -> Tensor:
        """Tells which events belong to one of these processes, shape `(n,)`.

        Raises:
            InputError: There is no such process.
        """
        wanted = list(names)
        unknown = [name for name in wanted if name not in self.processes]
        if unknown:
            raise InputError(f"process {unknown[0]!r} is not among the events; there are {', '.join(self.processes)}")
        table = torch.zeros(len(self.processes), dtype=torch.bool, device=self.process.device)
        table[[self.processes.index(name) for name in wanted]] = True
        return table[self.process]

    def in_window(self, low: float, high: float) -> Tensor:
        """Tells which events have a mass from `low` to `high`, both included, shape `(n,)`.

        Raises:
            InputError: The events have no mass.
        """
        if self.mass is None:
            raise InputError("mass: these events have none; give it as the third column")
        return (self.mass >= low) & (self.mass <= high)

    def split(self, fraction: float, *, rng: torch.Generator) -> tuple[Events, Events]:
        """Divides the events at random in two samples; each keeps the expected totals of every process.

        Args:
            fraction: Share of each process that goes to the second sample, above 0 and below 1.
            rng: Source of randomness, on the CPU.
        """
        if not 0 < fraction < 1:
            raise InputError(f"fraction: a number above 0 and below 1 is expected, {fraction:g} came")
        is_second = (torch.rand(len(self), generator=rng) < fraction).to(self.weights.device)
        wanted = self.totals
        return self.where(~is_second)._scaled_to(wanted), self.where(is_second)._scaled_to(wanted)

    def to(self, device: str | torch.device) -> Events:
        """Returns the events on a device."""
        mass = None if self.mass is None else self.mass.to(device)
        return replace(
            self,
            features=self.features.to(device),
            weights=self.weights.to(device),
            process=self.process.to(device),
            mass=mass,
        )

    def _scaled_to(self, wanted: Mapping[str, float]) -> Events:
        have = self.totals
        for name in self.processes:
            if wanted[name] and not have[name]:
                raise InputError(f"fraction: of {name} no event is left in one sample; give it more events")
        factors = [wanted[name] / have[name] if have[name] else 1.0 for name in self.processes]
        return replace(self, weights=self.weights * self.weights.new_tensor(factors)[self.process])


def _columns(name: str, table: Sequence[ArrayLike]) -> tuple[Tensor, Tensor, Tensor | None]:
    if len(table) not in (2, 3):
        raise InputError(f"{name}: (features, weights) or (features, weights, mass) is expected, {len(table)} came")
    features = as_float64(table[0], f"{name} features")
    features = features[:, None] if features.ndim == 1 else features
    if features.ndim != 2:
        raise InputError(f"{name} features: shape (n, n_features) is expected, {tuple(features.shape)} came")
    weights = as_float64(table[1], f"{name} weights")
    mass = as_float64(table[2], f"{name} mass") if len(table) == 3 else None
    return features, weights.expand(len(features)) if weights.ndim == 0 else weights, mass


def _check_finite(value: Tensor | None, name: str) -> None:
    if value is None:
        return
    bad = int((~value.isfinite()).sum())
    if bad:
        raise InputError(f"{name}: {bad} of {value.numel()} values are not finite; leave those events out")
