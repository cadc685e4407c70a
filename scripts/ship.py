"""Makes the net of a training run the shipped one: weights in half precision, its figures in the card.

Evaluates the trained net and the stored one on the same spectra (see evaluate.py), so that one sees what half precision
costs, and writes the stored one and its card: checkpoints/reference.safetensors and .json.

    python scripts/ship.py runs/reference
    python scripts/ship.py runs/mine --out mine.safetensors --size 5000
"""

from __future__ import annotations

__all__ = ["main"]

import dataclasses
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import argument_parser, positive, print_table, start, write_json
from evaluate import LIMIT_SIZE, evaluate_all

import specfit
from specfit import checkpoint as checkpoints
from specfit.checkpoint import Checkpoint
from specfit.resources import folder

SIZE = 20_000


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the script; returns the figures of the trained and of the stored net."""
    parser = argument_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished training run, or its checkpoint")
    parser.add_argument("--out", type=Path, help="what to write (default: the shipped checkpoint)")
    parser.add_argument("--size", type=positive, default=SIZE, help="spectra of each kind (default: %(default)s)")
    parser.add_argument("--limit-size", type=positive, default=LIMIT_SIZE, help="truths for the information limit")
    options = parser.parse_args(arguments)
    out = options.out or folder("checkpoints") / checkpoints.DEFAULT
    trained = checkpoints.load(options.run)
    stored = _stored_in_half(trained)
    how = {"size": options.size, "limit_size": options.limit_size, "seed": options.seed}
    full, half = (evaluate_all(_fitter(checkpoint), **how) for checkpoint in (trained, stored))
    shipped = {
        "command": shlex.join(["scripts/ship.py", str(options.run), "--size", str(options.size)]),
        "weights": "float16",
        **how,
        "figures": {task: {name: round(value, 5) for name, value in row.items()} for task, row in half.items()},
    }
    checkpoints.save(dataclasses.replace(stored, card=trained.card | {"shipped": shipped}), out, half=True)
    _print(full, half, out)
    figures = {"full": full, "half": half}
    write_json(options.json, options, figures)
    return figures


def _fitter(checkpoint: Checkpoint) -> specfit.SpectrumFitter:
    return specfit.SpectrumFitter(checkpoint.net, checkpoint.edges)


def _stored_in_half(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint as it comes back from a file in half precision."""
    with tempfile.TemporaryDirectory() as temporary:
        return checkpoints.load(checkpoints.save(checkpoint, Path(temporary) / "half.safetensors", half=True))


def _print(full: dict[str, dict[str, float]], half: dict[str, dict[str, float]], out: Path) -> None:
    print_table("The stored net", [{"task": task, **row} for task, row in half.items()])
    rows = [
        {
            "task": task,
            "RMS / limit, full": f"{full[task]['rms_over_limit']:.5f}",
            "half": f"{half[task]['rms_over_limit']:.5f}",
            "half - full": f"{half[task]['rms_over_limit'] - full[task]['rms_over_limit']:+.5f}",
        }
        for task in half
    ]
    print_table("What half precision costs", rows)
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    start(main)
