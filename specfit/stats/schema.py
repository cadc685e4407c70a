"""The JSON form of a workspace: what every part of it may hold, checked by pydantic.

Two dialects share it. A pyhf workspace (schema 1.0.0) is read as it is. A channel that states its `type`, `binned` or
`unbinned`, makes the workspace one of neural simulation-based inference: yields with ratios `normplusshape`, morphing
`vandermonde`, density ratios of events in `.npy` files. Both kinds of modifier may stand side by side, and one is
ours: `basis`, the uncertainty of a learned background.

Every fault is one line that names its path, `channels[0].samples[1].modifiers[0].data.hi`.
"""

from __future__ import annotations

__all__ = [
    "BASIS",
    "Channel",
    "Document",
    "Measurement",
    "Modifier",
    "Observation",
    "Parameter",
    "Sample",
    "parse",
]

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from specfit.errors import InputError

BASIS = "basis"
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Numbers = Annotated[list[Finite], Field(min_length=1)]
Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NormFactor(_Part):
    """A free factor."""

    name: Name
    type: Literal["normfactor"]
    data: None = None


class ShapeFactor(_Part):
    """A free factor for each bin."""

    name: Name
    type: Literal["shapefactor"]
    data: None = None


class Lumi(_Part):
    """The luminosity: a factor with a Gaussian constraint that the measurement gives."""

    name: Name
    type: Literal["lumi"]
    data: None = None


class Vandermonde(_Part):
    """A factor that is a polynomial of the parameter, coefficients from the highest power down."""

    name: Name
    type: Literal["vandermonde"]
    data: None = None
    coeff: Numbers = [1.0, 0.0]


class Factors(_Part):
    """Factors at plus and minus one."""

    hi: Positive
    lo: Positive


class NormSys(_Part):
    """A factor with a unit Gaussian constraint."""

    name: Name
    type: Literal["normsys"]
    data: Factors


class Histograms(_Part):
    """Contents of every bin at plus and minus one."""

    hi_data: Numbers
    lo_data: Numbers


class HistoSys(_Part):
    """Contents that move, with a unit Gaussian constraint."""

    name: Name
    type: Literal["histosys"]
    data: Histograms


class ShapeSys(_Part):
    """A factor for each bin with a Poisson constraint; absolute uncertainties of the sample."""

    name: Name
    type: Literal["shapesys"]
    data: Annotated[list[NotNegative], Field(min_length=1)]


class StatError(_Part):
    """A factor for each bin, shared by the samples of the channel, with a Gaussian constraint."""

    name: Name
    type: Literal["staterror"]
    data: Annotated[list[NotNegative], Field(min_length=1)]


class Ratios(_Part):
    """Ratios to nominal at plus and minus one; of an unbinned channel that of the total yield, and files of events."""

    hi_data: Annotated[list[Positive], Field(min_length=1)]
    lo_data: Annotated[list[Positive], Field(min_length=1)]
    hi_ratio: str | None = None
    lo_ratio: str | None = None


class NormPlusShape(_Part):
    """Ratios for each bin or event with a unit Gaussian constraint."""

    name: Name
    type: Literal["normplusshape"]
    data: Ratios


class Directions(_Part):
    """Changes for a coefficient of one; `log`: of the logarithm of the contents, `linear`: of the contents."""

    directions: Annotated[list[Numbers], Field(min_length=1)]
    form: Literal["log", "linear"] = "log"


class Basis(_Part):
    """Coefficients with a unit Gaussian constraint each, along directions of shape (n_bins, n_coefficients)."""

    name: Name
    type: Literal["basis"]
    data: Directions


Modifier = Annotated[
    NormFactor | ShapeFactor | Lumi | Vandermonde | NormSys | HistoSys | ShapeSys | StatError | NormPlusShape | Basis,
    Field(discriminator="type"),
]
"""One way in which a parameter moves a sample."""


class Sample(_Part):
    """A process in a channel: events per bin, or the total of an unbinned channel and the density ratios of events."""

    name: Name
    data: Numbers
    modifiers: list[Modifier] = []
    ratios: str | None = None


class Channel(_Part):
    """A region with its samples."""

    name: Name
    type: Literal["binned", "unbinned"] | None = None
    samples: Annotated[list[Sample], Field(min_length=1)]
    weights: str | None = None


class Observation(_Part):
    """What was observed in the channel of this name."""

    name: Name
    data: Annotated[list[NotNegative], Field(min_length=1)] | None = None
    weights: str | None = None
    ratios: dict[str, str] | None = None


class Parameter(_Part):
    """What a measurement says about a parameter; what it leaves out has a default."""

    name: Name
    inits: Numbers | None = None
    bounds: list[tuple[float, float]] | None = None
    fixed: bool | None = None
    auxdata: Numbers | None = None
    sigmas: Annotated[list[Positive], Field(min_length=1)] | None = None
    factors: Annotated[list[Positive], Field(min_length=1)] | None = None


class Config(_Part):
    """Parameter of interest and settings of a measurement."""

    poi: str | list[str] = ""
    parameters: list[Parameter] = []
    errordef: str | None = None


class Measurement(_Part):
    """A choice of parameter of interest and of parameter settings."""

    name: Name
    config: Config
    errordef: str | None = None


class Document(_Part):
    """A whole workspace."""

    channels: Annotated[list[Channel], Field(min_length=1)]
    measurements: Annotated[list[Measurement], Field(min_length=1)]
    observations: list[Observation] = []
    version: Literal["1.0.0"] = "1.0.0"

    @property
    def lists_parameters(self) -> bool:
        """Whether a measurement lists all parameters: then a modifier that it leaves out is held at nominal."""
        return any(channel.type is not None for channel in self.channels)


def parse(content: Any) -> Document:
    """Checks the form of a workspace.

    Raises:
        InputError: The first fault with its path, and how many others there are.
    """
    try:
        return Document.model_validate(content)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        first = faults[0]
        text = f"{_path(first['loc'], content)}: {first['msg'][0].lower()}{first['msg'][1:]}"
        came = first.get("input")
        if isinstance(came, str | int | float | bool | None):
            text += f" ({came!r} came)"
        others = f"; {len(faults) - 1} more such fault{'s' if len(faults) > 2 else ''}" if len(faults) > 1 else ""
        raise InputError(f"workspace: {text}{others}") from None


def _path(location: Sequence[int | str], content: Any) -> str:
    """Writes `channels[0].samples[1]`, without the steps that pydantic takes inside a union."""
    path, at = "", content
    for i, step in enumerate(location):
        last = i + 1 == len(location)
        if isinstance(step, int):
            path += f"[{step}]"
        elif last or (isinstance(at, dict) and step in at):
            path += f".{step}" if path else step
        else:
            continue
        try:
            at = at[step]
        except (KeyError, IndexError, TypeError):
            at = None
    return path or "the whole"
