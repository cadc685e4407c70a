r"""Workspace: channels, samples, modifiers, measurements and observations as one JSON document.

`Workspace.read` takes pyhf workspaces as they are and those of neural simulation-based inference; `StatisticalModel`
makes the likelihood of one of its measurements. Files named in it, `.npy` arrays of events, are looked for beside it.
"""

from __future__ import annotations

__all__ = ["Workspace"]

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specfit.errors import InputError
from specfit.io.files import write_json
from specfit.stats.schema import Document, Measurement, parse

# What pyhf knows; a workspace with anything else cannot be written for it.
OF_PYHF = ("normfactor", "shapefactor", "lumi", "normsys", "histosys", "shapesys", "staterror")


class Workspace:
    """A checked workspace.

    Args:
        content: The document, as `json.load` gives it.
        folder: Where the files that it names are.

    Raises:
        InputError: A fault, with its path in the document.

    Example:
        >>> signal = {"name": "mu", "type": "normfactor", "data": None}
        >>> scale = {"name": "scale", "type": "normsys", "data": {"hi": 1.1, "lo": 0.9}}
        >>> workspace = Workspace({
        ...     "channels": [{"name": "SR", "samples": [
        ...         {"name": "signal", "data": [5.0, 10.0], "modifiers": [signal]},
        ...         {"name": "background", "data": [50.0, 60.0], "modifiers": [scale]}]}],
        ...     "observations": [{"name": "SR", "data": [55, 68]}],
        ...     "measurements": [{"name": "search", "config": {"poi": "mu", "parameters": []}}],
        ...     "version": "1.0.0"})
        >>> workspace
        Workspace(1 channel, 2 samples, measurements: search)
    """

    def __init__(self, content: Mapping[str, Any], *, folder: str | os.PathLike[str] = ".") -> None:
        self.document: Document = parse(content)
        self.folder = Path(folder)
        _check_consistency(self.document)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Workspace:
        """Reads a JSON file.

        Raises:
            InputError: Not JSON, or not a workspace.
            OSError: The file cannot be read.
        """
        file = Path(path)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: this is not JSON ({error})") from None
        try:
            return cls(content, folder=file.parent)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None

    def write(self, path: str | os.PathLike[str], *, dialect: str | None = None) -> Path:
        """Writes the document as JSON; what `read` makes of it is the same workspace.

        Args:
            path: Where.
            dialect: `"pyhf"` refuses what pyhf could not read; None writes everything.

        Raises:
            InputError: pyhf does not know a modifier or a channel type in it, or a number such as a bound
                is infinite.
        """
        content = self.to_pyhf() if dialect == "pyhf" else self.to_dict()
        try:
            return write_json(Path(path), content)
        except ValueError:
            message = "workspace: a number, such as a bound, is infinite, which JSON cannot hold; give a finite one"
            raise InputError(message) from None

    def to_dict(self) -> dict[str, Any]:
        """Returns the document as plain data, without what has its default."""
        content: dict[str, Any] = self.document.model_dump(exclude_unset=True)
        return content

    def to_pyhf(self) -> dict[str, Any]:
        """Returns the document in the form that pyhf reads.

        Raises:
            InputError: pyhf does not know a modifier or an unbinned channel in it, or an observation is missing.
        """
        content: dict[str, Any] = self.document.model_dump(exclude_none=True) | {"version": "1.0.0"}
        for c, channel in enumerate(content["channels"]):
            if channel.pop("type", "binned") == "unbinned":
                raise InputError(f"workspace: channels[{c}]: pyhf has no unbinned channels")
            for s, sample in enumerate(channel["samples"]):
                for m, modifier in enumerate(sample["modifiers"]):
                    if modifier["type"] not in OF_PYHF:
                        where = f"channels[{c}].samples[{s}].modifiers[{m}]"
                        raise InputError(f"workspace: {where}: pyhf does not know {modifier['type']!r}")
                    modifier.setdefault("data", None)
        if self.without_observation:
            raise InputError(f"workspace: pyhf needs an observation of {', '.join(sorted(self.without_observation))}")
        for measurement in content["measurements"]:
            measurement.pop("errordef", None)
            measurement["config"].pop("errordef", None)
        return content

    def measurement(self, name: str | None = None) -> Measurement:
        """Finds a measurement by its name; None takes the first.

        Raises:
            InputError: There is none of this name.
        """
        names = [measurement.name for measurement in self.document.measurements]
        if name is not None and name not in names:
            raise InputError(f"measurement {name!r} does not exist; there are {', '.join(names)}")
        return self.document.measurements[0 if name is None else names.index(name)]

    @property
    def without_observation(self) -> list[str]:
        """Names of binned channels in which nothing was observed; what the model expects stands for their data."""
        observed = {observation.name for observation in self.document.observations}
        return [c.name for c in self.document.channels if c.name not in observed and c.type != "unbinned"]

    def __repr__(self) -> str:
        channels, samples = self.document.channels, {s.name for c in self.document.channels for s in c.samples}
        names = ", ".join(measurement.name for measurement in self.document.measurements)
        return (
            f"Workspace({len(channels)} channel{'s' * (len(channels) != 1)}, {len(samples)} "
            f"sample{'s' * (len(samples) != 1)}, measurements: {names})"
        )


def _check_consistency(document: Document) -> None:
    """Checks what the form alone cannot: names, numbers of bins, observations."""
    _check_unique([channel.name for channel in document.channels], "channels")
    _check_unique([measurement.name for measurement in document.measurements], "measurements")
    _check_unique([observation.name for observation in document.observations], "observations")
    sizes = {}
    for c, channel in enumerate(document.channels):
        _check_unique([sample.name for sample in channel.samples], f"channels[{c}].samples")
        n_bins = 1 if channel.type == "unbinned" else len(channel.samples[0].data)
        sizes[channel.name] = n_bins
        for s, sample in enumerate(channel.samples):
            where = f"channels[{c}].samples[{s}]"
            _check_length(f"{where}.data", sample.data, n_bins, channel.name)
            for m, modifier in enumerate(sample.modifiers):
                _check_modifier(f"{where}.modifiers[{m}].data", modifier, n_bins, channel.name)
    _check_observations(document, sizes)


def _check_modifier(where: str, modifier: Any, n_bins: int, channel: str) -> None:
    match modifier.type:
        case "histosys" | "normplusshape":
            for part in ("hi_data", "lo_data"):
                _check_length(f"{where}.{part}", getattr(modifier.data, part), n_bins, channel)
        case "shapesys" | "staterror":
            _check_length(where, modifier.data, n_bins, channel)
        case "basis":
            _check_length(f"{where}.directions", modifier.data.directions, n_bins, channel)
            if len({len(row) for row in modifier.data.directions}) > 1:
                raise InputError(f"workspace: {where}.directions: every bin needs the same number of coefficients")


def _check_observations(document: Document, sizes: dict[str, int]) -> None:
    unbinned = {channel.name for channel in document.channels if channel.type == "unbinned"}
    for o, observation in enumerate(document.observations):
        where = f"observations[{o}]"
        if observation.name not in sizes:
            raise InputError(f"workspace: {where}.name: there is no channel {observation.name!r}")
        if observation.name not in unbinned:
            if observation.data is None:
                raise InputError(f"workspace: {where}: the channel is binned, data are expected")
            _check_length(f"{where}.data", observation.data, sizes[observation.name], observation.name)
    seen = {observation.name for observation in document.observations}
    missing = [c for c in document.channels if c.name not in seen and c.type != "unbinned"]
    if document.observations and missing:
        raise InputError(
            f"workspace: observations: {', '.join(c.name for c in missing)} has none; give all channels one, or no "
            "channel any, which takes what the model expects at its initial values"
        )


def _check_unique(names: list[str], where: str) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"workspace: {where}[{i}].name: {name!r} came twice; rename one of them")


def _check_length(where: str, numbers: list[Any], n_bins: int, channel: str) -> None:
    if len(numbers) != n_bins:
        raise InputError(
            f"workspace: {where}: {n_bins} number{'s' * (n_bins != 1)} expected as in channel {channel!r}, "
            f"{len(numbers)} came"
        )
