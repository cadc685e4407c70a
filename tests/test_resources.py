"""Where conf/ and checkpoints/ are found: in a checkout, in a wheel, and not at all."""

from pathlib import Path

import pytest

from specfit import resources


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package in an empty place; `resources` believes to lie in it."""
    package = tmp_path / "site-packages" / "specfit"
    package.mkdir(parents=True)
    monkeypatch.setattr(resources, "__file__", str(package / "resources.py"))
    return package


@pytest.mark.parametrize("name", ["conf", "checkpoints"])
def test_a_checkout_has_them_at_its_top(name):
    folder = resources.folder(name)
    assert folder == Path(__file__).resolve().parents[1] / name
    assert folder.is_dir()


def test_a_wheel_has_them_inside_the_package_even_if_the_neighbour_has_that_name(package):
    inside, beside = package / "conf", package.parent / "conf"
    inside.mkdir()
    beside.mkdir()
    assert resources.folder("conf") == inside


def test_a_file_of_that_name_is_no_folder(package):
    (package / "conf").write_text("")
    (package.parent / "conf").mkdir()
    assert resources.folder("conf") == package.parent / "conf"


def test_an_installation_without_them_says_so(package):
    with pytest.raises(
        FileNotFoundError, match=r"checkpoints/ is neither in .*specfit nor beside it: reinstall specfit"
    ):
        resources.folder("checkpoints")
