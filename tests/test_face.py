"""The public face: a new name is a decision, and nothing heavy comes with the import."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import specfit

NAMES = {
    "BackgroundFit",
    "Batch",
    "InputError",
    "SignalPrior",
    "Spectrum",
    "SpectrumFitter",
    "SpectrumGenerator",
    "__version__",
    "asimov_significance",
    "bin_significance",
    "categories",
    "functional_fit",
    "functional_fit_many",
    "io",
    "net",
    "read",
    "search",
    "smooth_background",
    "stats",
}


def test_public_names_are_pinned():
    assert set(specfit.__all__) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_there(name):
    assert getattr(specfit, name) is not None


def test_every_room_declares_its_names_and_says_what_it_is_for():
    folder = Path(specfit.__file__).parent
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path} has no docstring"
        declared = [
            node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        assert declared or path == folder / "__init__.py", f"{path} has no __all__"


def test_using_every_public_name_loads_torch_but_nothing_that_only_some_need():
    use_all = "for name in specfit.__all__: getattr(specfit, name)"
    program = f"import json, sys, specfit\n{use_all}\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(answer.stdout))
    assert "torch" in loaded
    assert not loaded & {"lightning", "hydra", "matplotlib", "uproot", "hist", "iminuit", "tensorboard"}


def test_the_command_line_knows_its_help_without_torch():
    program = "import json, sys, specfit.cli\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(json.loads(answer.stdout)) & {"torch", "numpy", "scipy", "matplotlib", "hydra", "lightning"}


def test_a_prediction_loads_nothing_beyond_torch_and_the_terminal(tmp_path):
    """Every one of these costs a tenth of a second or more, in each call of the command."""
    np.save(tmp_path / "hist.npy", 1e4 * np.exp(-np.arange(50) / 8))
    program = (
        "import json, sys, specfit.cli\n"
        "try: specfit.cli.main()\n"
        "finally: print('LOADED' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    command = [sys.executable, "-c", program, "predict", "hist.npy"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = set(json.loads(answer.stdout.partition("LOADED")[2]))
    assert (tmp_path / "hist_background.npy").exists()
    assert {"torch", "rich"} <= loaded
    assert not loaded & {
        "awkward", "boost_histogram", "dask", "distributed", "h5py", "hist", "hydra", "iminuit", "lightning",
        "matplotlib", "mplhep", "omegaconf", "pandas", "pyarrow", "scipy", "tensorboard", "uproot",
    }  # fmt: skip
