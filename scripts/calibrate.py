"""Calibrates the errors of a trained net again, on spectra sampled as in its training, and writes it back.

A training ends with these steps; this is for a checkpoint from before them, or for more spectra. The weights of the net
stay as they are; its errors, the mean pulls that are taken off its backgrounds, its sense of novelty and the errors of
signals fitted beside them are learned anew, with --yields only the last. The checkpoint is replaced in one step, in the
precision that it has, and its card says what was done. Figures of a shipped net are of its old calibration then: unless
it was --yields they are taken out of the card, and scripts/ship.py measures them again. Without --seed it is that
of the training.

    python scripts/calibrate.py runs/reference
    python scripts/calibrate.py checkpoints/reference.safetensors --size 20000
    python scripts/calibrate.py checkpoints/reference.safetensors --size 20000 --yields
"""

from __future__ import annotations

__all__ = ["main"]

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from common import argument_parser, positive, print_table, start, write_json
from hydra.utils import instantiate

import specfit
from specfit import checkpoint as checkpoints
from specfit.generator import SpectrumGenerator, WideGenerator
from specfit.net import CalibratedNet
from specfit.training.calibrate import calibrate
from specfit.training.calibrate_yields import calibrate_yields

SIZE = 20_000
# A card may come from a stranger: it names only what makes spectra.
MAKES_SPECTRA = {
    "specfit.SignalPrior",
    "specfit.SpectrumGenerator",
    "specfit.generator.WideGenerator",
    "specfit.io.parse_edges",
}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the script; returns the figures of the calibration."""
    parser = argument_parser(__doc__)
    parser.set_defaults(seed=None)  # of the training: the same calibration that it ended with
    parser.add_argument("checkpoint", help="checkpoint file, folder of a finished run, or name of a shipped net")
    parser.add_argument("--size", type=positive, default=SIZE, help="spectra to learn from (default: %(default)s)")
    parser.add_argument("--yields", action="store_true", help="only the errors of the yields of signals")
    options = parser.parse_args(arguments)
    path = checkpoints.find(options.checkpoint)
    loaded, half = checkpoints.load(path), checkpoints.is_half(path)
    options.seed = loaded.card.get("seed", 1) if options.seed is None else options.seed
    generator, net = _generator(loaded.card, path.name), loaded.net
    if not isinstance(net, CalibratedNet):
        raise specfit.InputError(f"{path}: a {type(net).__name__} has no errors that can be calibrated")
    figures: dict[str, float] = {}
    if not options.yields:
        figures |= calibrate(net, generator, size=options.size, seed=options.seed)._asdict()
    figures |= calibrate_yields(net, generator, size=-(-options.size // 2), seed=options.seed)._asdict()
    command = ["scripts/calibrate.py", options.checkpoint, "--size", str(options.size), "--seed", str(options.seed)]
    card = _with_calibration(loaded.card, shlex.join(command), figures, only_yields=options.yields)
    checkpoints.save(dataclasses.replace(loaded, card=card), path, half=half)
    print_table(f"Pulls, {path}", [figures])
    write_json(options.json, options, figures)
    return figures


def _generator(card: dict[str, Any], name: str) -> SpectrumGenerator | WideGenerator:
    """Makes the generator of the training that a card tells of."""
    try:
        config = card["config"]["data"]["generator"]
    except (KeyError, TypeError):
        raise specfit.InputError(
            f"{name}: its card has no config.data.generator, so nothing says what it was trained on"
        ) from None
    foreign = _targets(config) - MAKES_SPECTRA
    if foreign:
        raise specfit.InputError(f"{name}: its card names {', '.join(sorted(foreign))}, which does not make spectra")
    made = instantiate(config)
    if not isinstance(made, SpectrumGenerator | WideGenerator):
        raise specfit.InputError(f"{name}: config.data.generator of its card makes a {type(made).__name__}")
    return made


def _targets(config: Any) -> set[str]:
    """Lists all that a configuration would call."""
    if isinstance(config, dict):
        own = {str(config["_target_"])} if "_target_" in config else set()
        return own.union(*(_targets(value) for value in config.values()))
    return set().union(*(_targets(value) for value in config)) if isinstance(config, list) else set()


def _with_calibration(
    card: dict[str, Any], command: str, figures: dict[str, float], *, only_yields: bool
) -> dict[str, Any]:
    pulls = {f"pull/{name}": round(value, 6) for name, value in figures.items()}
    changed = card | {"figures": card.get("figures", {}) | pulls}
    if only_yields:
        return changed | {"calibrated_yields": command + " --yields"}
    if "shipped" in card:
        changed["shipped"] = {name: value for name, value in card["shipped"].items() if name != "figures"}
    return changed | {"calibrated": command}


if __name__ == "__main__":
    start(main)
