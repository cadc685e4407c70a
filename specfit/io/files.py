"""Files: where one lies, whether it is what its ending says, and how a new one replaces it in one step."""

from __future__ import annotations

__all__ = ["Place", "check_readable", "finite_or_none", "locate", "replacing", "write_json"]

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from specfit.errors import InputError

# How a file of each kind begins. Text has no such mark.
FIRST_BYTES = {".npy": b"\x93NUMPY", ".npz": b"PK", ".root": b"root"}
FIRST_BYTE_OF_PICKLE = b"\x80"


class Place(NamedTuple):
    """A file and, for ROOT files, the path of an object inside it (empty otherwise)."""

    file: Path
    inside: str = ""

    @property
    def ending(self) -> str:
        """Ending of the file name with its dot, in small letters."""
        return self.file.suffix.lower()


def locate(path: str | os.PathLike[str]) -> Place:
    """Splits `file.root:path` into its two parts; any other path names a file.

    Raises:
        InputError: The path is an address on another machine.
    """
    text = os.fspath(path)
    if re.match(r"[a-z]{2,}:/", text):
        raise InputError("only local files can be read; copy it here first, for example with xrdcp or curl")
    found = re.fullmatch(r"(.+?\.root):(.*)", text, flags=re.IGNORECASE | re.DOTALL)
    return Place(Path(found[1]), found[2].strip("/")) if found else Place(Path(text))


def check_readable(file: Path) -> None:
    """Refuses what cannot be read under this name, with one clear reason.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
        PermissionError: It may not be read.
        InputError: It is empty, holds pickled data, or is another kind of file than its ending says.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file}: there is no such file")
    if file.is_dir():
        raise IsADirectoryError(f"{file}: this is a folder; name a file in it")
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
    except PermissionError:
        raise PermissionError(f"{file}: this file may not be read (look at its permissions)") from None
    if not head:
        raise InputError("the file is empty (0 bytes)")
    _check_first_bytes(head, file.suffix.lower())


def _check_first_bytes(head: bytes, ending: str) -> None:
    found = next((kind for kind, mark in FIRST_BYTES.items() if head.startswith(mark)), None)
    if found not in (None, ending):
        raise InputError(f"by its content this is a {found} file; rename it so that it ends in {found}")
    if found is None and head.startswith(FIRST_BYTE_OF_PICKLE):
        raise InputError(
            "the file holds pickled data, which are refused because they can run code; "
            "save plain numbers with numpy.save(path, numpy.asarray(counts, dtype=float))"
        )
    if found is None and ending in FIRST_BYTES:
        raise InputError(f"this is not a {ending} file (it begins with {head!r})")


@contextmanager
def replacing(file: Path, *, keep_content: bool = False) -> Iterator[Path]:
    """Yields a temporary file beside `file` that takes its name when all went well and vanishes when not.

    Args:
        file: What to write; a link is followed.
        keep_content: Start from a copy of `file` where it exists, otherwise from an empty file.

    Raises:
        FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError: `file` cannot be written there.
        OSError: Writing failed, for example on a full disk.
    """
    target = file.resolve()
    _check_folder(file, target)
    temporary = target.with_name(f".specfit-{secrets.token_hex(8)}.tmp")
    try:
        temporary.open("xb").close()
        if target.exists():
            if keep_content:
                shutil.copyfile(target, temporary)
            shutil.copymode(target, temporary)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        # The user does not know the temporary name: the same error about the name that was asked for.
        raise type(error)(f"{file}: cannot be written ({error.strerror or error})") from None
    finally:
        # A folder that may not be written gives no error here: the first one says it all.
        if temporary.exists():
            temporary.unlink()


def write_json(file: str | Path, content: Any) -> Path:
    """Writes plain data to a file that is easy to read, whole or not at all; returns its path.

    Raises:
        OSError: As `replacing`.
        ValueError: A number is not finite; `finite_or_none` is for data that may hold such.
    """
    with replacing(Path(file)) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return Path(file)


def finite_or_none(content: Any) -> Any:
    """Returns plain data with None for every number that is not finite: JSON has neither NaN nor infinity."""
    if isinstance(content, Mapping):
        return {name: finite_or_none(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_or_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _check_folder(file: Path, target: Path) -> None:
    if target.is_dir():
        raise IsADirectoryError(f"{file}: this is a folder; add a file name")
    if not target.parent.exists():
        raise FileNotFoundError(f"{file}: the folder {file.parent} does not exist; create it first")
    if not target.parent.is_dir():
        raise NotADirectoryError(f"{file}: {file.parent} is not a folder")
