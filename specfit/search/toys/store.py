"""Finished chunks in a folder: one `.npz` each, named after the pseudo-experiments in it, and a card of what they are.

A chunk is written under a temporary name and renamed, so a stop at any moment loses only what is being drawn. Every
array carries a checksum (CRC-32, of the zip format); a file that does not pass counts as absent. Nothing is unpickled.
Files are of plain numpy: `numpy.load(file)[name]`.
"""

from __future__ import annotations

__all__ = ["ChunkStore", "open_store"]

import io
import json
import logging
import re
import reprlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specfit.errors import InputError
from specfit.io.files import replacing
from specfit.search.toys.chunks import Arrays, Chunk

logger = logging.getLogger(__name__)

# What may differ as long as nothing has to be drawn.
SOFTWARE = "software"


@dataclass(frozen=True)
class ChunkStore:
    """A folder of chunks.

    Args:
        folder: Where it is.
        other_software: How the versions that it was made with differ from those here; empty if they do not.
    """

    folder: Path
    other_software: str = ""

    def read(self, chunk: Chunk) -> Arrays | None:
        """Returns a chunk, or None if it is not there or damaged."""
        file = self._file(chunk)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            if not arrays or any(len(array) != chunk.size for array in arrays.values()):
                raise ValueError(f"not {chunk.size} pseudo-experiments")
        except Exception as error:  # a damaged archive can fail in any way
            logger.warning("%s is damaged (%s); its pseudo-experiments are drawn again", file, error)
            return None
        return arrays

    def write(self, chunk: Chunk, arrays: Arrays) -> None:
        """Stores a chunk in one step."""
        with replacing(self._file(chunk)) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            # Not numpy.savez, which takes the names `file` and `allow_pickle` for its own arguments.
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, array, allow_pickle=False)

    def has(self, chunk: Chunk) -> bool:
        """Tells whether there is a file for a chunk."""
        return self._file(chunk).exists()

    def check_can_grow(self) -> None:
        """Refuses to add to what other versions have made.

        Raises:
            InputError: The store was made with another version of specfit or torch.
        """
        if self.other_software:
            raise InputError(
                f"store: {self.folder} was made with other versions ({self.other_software}), which may give other "
                "results; go on with those versions, or choose another folder"
            )

    def _file(self, chunk: Chunk) -> Path:
        return self.folder / f"{chunk.first:09d}-{chunk.end:09d}.npz"


def open_store(folder: str | Path, card: dict[str, Any]) -> ChunkStore:
    """Opens a store, or starts one where nothing is.

    Args:
        folder: Where it is.
        card: What the pseudo-experiments are, as plain data; under `SOFTWARE` the versions.

    Raises:
        InputError: The folder holds something else or another run; says what differs.
    """
    folder, file = Path(folder), Path(folder) / "card.json"
    card = _plain(card)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"store: {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(f"store: {folder} holds other things (no card.json); choose an empty or a new folder")
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(card, indent=2) + "\n")
    there = _read_card(file)
    other_run = [text for key, text in _differences(there, card) if not key.startswith(SOFTWARE)]
    if other_run:
        raise InputError(
            f"store: {folder} holds another run ({'; '.join(other_run[:3])}); give what it was made with, or choose "
            "another folder"
        )
    return ChunkStore(folder, "; ".join(text for _, text in _differences(there, card)))


def _plain(card: dict[str, Any]) -> dict[str, Any]:
    """Returns the card as it comes back from a file."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(card))
    except (TypeError, ValueError) as error:
        raise InputError(f"job: identity() must give plain data ({error}); digest() makes a text of a tensor") from None
    return plain


def _read_card(file: Path) -> dict[str, Any]:
    try:
        card = json.loads(file.read_text())
    except ValueError:  # also of a text that is not UTF-8
        card = None
    if not isinstance(card, dict):
        raise InputError(f"store: {file} is damaged; choose another folder, or delete this one")
    return card


def _differences(there: Any, here: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields name and description of every entry that is not the same."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(name), here.get(name), f"{key}.{name}" if key else name)
    elif json.dumps(there) != json.dumps(here):  # as text, in which a NaN equals itself
        if _is_digest(there) and _is_digest(here):  # nothing that anyone could repeat
            yield key, f"{key}: not the same"
        else:
            yield key, f"{key}: {reprlib.repr(there)} there, {reprlib.repr(here)} asked for"


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
