"""Named tensors and one entry of text in a `.safetensors` file. Nothing is unpickled; written whole or not at all."""

from __future__ import annotations

__all__ = ["read_tensors", "write_tensors"]

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from specfit.errors import InputError
from specfit.io.files import replacing

ENTRY = "specfit"
"""Name of the entry in the header of the file."""


def read_tensors(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    """Reads the entry, None if there is none, and all tensors.

    Raises:
        InputError: What is wrong with the file, without its name: whoever asked knows what it was to be.
    """
    try:
        with safe_open(path, framework="pt") as file:
            entry = (file.metadata() or {}).get(ENTRY)
            return entry, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(str(error)) from None


def write_tensors(path: Path, entry: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors of any device, without their gradients.

    Raises:
        OSError: As `specfit.io.files.replacing`.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(plain, metadata={ENTRY: entry}))
