"""The wheel carries what the code looks for: configuration, the shipped checkpoint, type information."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("top", ["conf", "checkpoints"])
def test_the_wheel_carries_every_file_that_ships(names, top):
    ships = {f"specfit/{path.relative_to(ROOT)}" for path in (ROOT / top).rglob("*") if path.is_file()}
    assert ships
    assert ships <= names


def test_the_wheel_carries_the_face_and_its_types(names):
    assert {"specfit/__init__.py", "specfit/__init__.pyi", "specfit/py.typed", "specfit/cli/__init__.py"} <= names
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)
