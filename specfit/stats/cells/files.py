"""Fits of cells from files: a YAML file that says channels, models and systematics, and histograms beside it.

.. code-block:: yaml

    channels:
      muons:
        data: histograms.json:data
        processes:
          signal: histograms.json:signal
          background: histograms.json:background
        signals: [signal]
    param_models:
      - AxisNorm muons signal pt,eta,charge
      - {name: AxisExp, channel: muons, processes: background, shape_axis: mass, cell_axes: [pt, eta, charge],
         slope_axes: [eta]}
    systematics:
      - {type: LogNormal, name: lumi, size: 1.02, processes: signal}
      - {type: Shape, name: scale, channel: muons, process: signal, up: histograms.json:up, down: histograms.json:down}
    priors: {"slope_*": [0, 5]}

A histogram is `file.json:name` (what `uhi.io.json` writes: one histogram, or an object of several by name) or
`file.root:path`. Paths are relative to the YAML file. A channel may say `axes: [mass, pt]`, names by position for
histograms that have none, and `masked: true`. Optional keys beside: `start`, `barlow_beeston`, `least_effective`.
"""

from __future__ import annotations

__all__ = ["read_cells", "write_histograms"]

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from specfit.errors import InputError
from specfit.io.files import check_readable, locate, replacing
from specfit.stats.cells.channels import Channel
from specfit.stats.cells.grammar import parse_models
from specfit.stats.cells.likelihood import CellLikelihood
from specfit.stats.cells.models import Composite
from specfit.stats.cells.systematics import Additive, LogNormal, Shape, Systematic

KEYS = ("channels", "param_models", "systematics", "priors", "start", "barlow_beeston", "least_effective")
CHANNEL_KEYS = ("data", "processes", "signals", "masked", "axes")
SYSTEMATICS: Mapping[str, type[LogNormal | Shape | Additive]] = {
    "LogNormal": LogNormal,
    "Shape": Shape,
    "Additive": Additive,
}


def read_cells(
    path: str | Path,
    *,
    model: Composite | None = None,
    priors: Mapping[str, tuple[float, float]] | None = None,
    start: Mapping[str, float] | None = None,
) -> CellLikelihood:
    """Reads a likelihood of cells.

    Args:
        path: The YAML file.
        model: Takes the place of the models in the file.
        priors: Priors beside those of the file, as (mean, sigma) by name or pattern.
        start: Physical starts beside those of the file.

    Raises:
        InputError: A key is unknown or missing, a histogram does not fit, or a model does not exist.
        OSError: A file cannot be read.
    """
    file = Path(path)
    _check_readable(file)
    content = _mapping(_yaml(file), str(file), KEYS)
    folder = file.parent
    channels = [
        _channel(str(name), _mapping(one, f"channels.{name}", CHANNEL_KEYS), folder)
        for name, one in _mapping(content.get("channels"), "channels").items()
    ]
    systematics = [_systematic(i, one, folder) for i, one in enumerate(content.get("systematics") or [])]
    models = content.get("param_models") or []
    found = model if model is not None or not models else parse_models(models)
    file_priors = {name: tuple(pair) for name, pair in (content.get("priors") or {}).items()}
    return CellLikelihood(
        channels,
        found,
        systematics,
        priors={**file_priors, **(priors or {})},
        start={**(content.get("start") or {}), **(start or {})},
        barlow_beeston=bool(content.get("barlow_beeston", True)),
        least_effective=float(content.get("least_effective", 0.0)),
    )


def write_histograms(path: str | Path, histograms: Mapping[str, Any]) -> Path:
    """Writes hist or boost-histogram objects by name into one `.json` file that `read_cells` takes.

    Args:
        path: The file; it is replaced in one step.
        histograms: Histograms by name.
    """
    import uhi.io.json

    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(dict(histograms), default=uhi.io.json.default))
    return Path(path)


def _channel(name: str, content: Mapping[str, Any], folder: Path) -> Channel:
    axes = content.get("axes")
    processes = _mapping(content.get("processes"), f"channels.{name}.processes")
    data = content.get("data")
    return Channel.of(
        name,
        {str(process): _histogram(place, folder, axes) for process, place in processes.items()},
        data=None if data is None else _histogram(data, folder, axes),
        signals=content.get("signals") or (),
        masked=bool(content.get("masked", False)),
    )


def _systematic(i: int, content: Any, folder: Path) -> Systematic:
    arguments = dict(_mapping(content, f"systematics[{i}]"))
    kind = arguments.pop("type", None)
    if kind not in SYSTEMATICS:
        raise InputError(f"systematics[{i}].type: one of {', '.join(SYSTEMATICS)} is expected, {kind!r} came")
    for key in ("up", "down"):
        if isinstance(arguments.get(key), str):
            arguments[key] = _values(_histogram(arguments[key], folder, None))
    try:
        return SYSTEMATICS[kind](**arguments)
    except TypeError as error:
        raise InputError(f"systematics[{i}]: {error}") from None


def _histogram(place: Any, folder: Path, axes: Sequence[str] | None) -> Any:
    if not isinstance(place, str):
        raise InputError(f"histogram: 'file.json:name' or 'file.root:path' is expected, {place!r} came")
    found = _from_root(place, folder) if ".root" in place.lower() else _from_json(place, folder)
    return found if axes is None else _renamed(found, axes, place)


def _from_root(place: str, folder: Path) -> Any:
    import uproot

    file, inside = locate(place)
    _check_readable(folder / file)
    with uproot.open(folder / file) as content:
        try:
            return content[inside].to_hist()
        except (uproot.KeyInFileError, AttributeError):
            raise InputError(f"{place}: there is no histogram of this name") from None


def _from_json(place: str, folder: Path) -> Any:
    import hist
    import uhi.io.json

    name, _, inside = place.partition(":")
    _check_readable(folder / name)
    try:
        content = json.loads((folder / name).read_text(), object_hook=uhi.io.json.object_hook)
    except ValueError as error:
        raise InputError(f"{name}: this is not JSON ({error})") from None
    if isinstance(content, dict) and "uhi_schema" not in content:
        if inside not in content:
            raise InputError(f"{name}: there is no histogram {inside!r}; it holds {', '.join(content)}")
        content = content[inside]
    return hist.Hist(content)


def _renamed(histogram: Any, names: Sequence[str], place: str) -> Any:
    """Returns what `Channel.of` asks of a histogram, under other names of the axes."""
    if len(names) != len(histogram.axes):
        raise InputError(f"{place}: {len(names)} axes are named, the histogram has {len(histogram.axes)}")
    axes = [_NamedAxis(axis, name) for axis, name in zip(histogram.axes, names, strict=True)]
    return SimpleNamespace(
        axes=axes, values=histogram.values, variances=histogram.variances, storage_type=histogram.storage_type
    )


class _NamedAxis:
    """An axis under another name."""

    def __init__(self, axis: Any, name: str) -> None:
        self.name, self._axis = name, axis
        self.edges = axis.edges

    def __len__(self) -> int:
        return len(self._axis)

    def __getitem__(self, i: int) -> Any:
        return self._axis[i]


def _values(histogram: Any) -> Any:
    return histogram.values()


def _check_readable(file: Path) -> None:
    try:
        check_readable(file)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: this is not YAML ({' '.join(str(error).split())})") from None


def _mapping(content: Any, where: str, keys: Sequence[str] | None = None) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: a mapping is expected, {type(content).__name__} came")
    unknown = [key for key in content if keys is not None and key not in keys]
    if unknown:
        raise InputError(f"{where}: {unknown[0]!r} is not known; the keys are {', '.join(keys or ())}")
    return dict(content)
