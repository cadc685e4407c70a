"""What every test shares: a seeded generator, a task, spectra, the --slow option, the one table of tolerances."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

import specfit

TOLERANCE = MappingProxyType(
    {
        # the same float64 arithmetic in another order
        "rounding": {"rtol": 1e-13, "atol": 1e-14},
        # a closed form against another implementation; both lose a few digits
        "closed_form": {"rtol": 1e-9, "atol": 1e-14},
        # the same where the value itself spans many orders of magnitude
        "relative": {"rtol": 1e-9, "atol": 0.0},
        # a special function of torch, whose series ends earlier than scipy's
        "torch_series": {"rtol": 1e-8, "atol": 1e-14},
        # an integral by our nodes against adaptive quadrature; also a logarithm of it
        "quadrature": {"rtol": 1e-9, "atol": 1e-9},
        # a number printed with four decimals
        "printed": {"rtol": 0.0, "atol": 5.1e-5},
        # a median or a spread of 1e5 pseudo-experiments
        "toys": {"rtol": 0.0, "atol": 0.02},
    }
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests marked slow (minutes)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(autouse=True)
def _default_dtype_is_left_alone() -> Iterator[None]:
    """What one test does to torch's global default would make others of the same process fail, far from the cause."""
    before = torch.get_default_dtype()
    yield
    after = torch.get_default_dtype()
    torch.set_default_dtype(before)
    assert after == before, f"torch's default dtype was {before} before this test and is {after} after it"


@pytest.fixture
def rng() -> torch.Generator:
    """A generator that starts anew, from the same seed, in every test."""
    return torch.Generator().manual_seed(20_250_704)


@pytest.fixture(scope="session")
def tolerance() -> Mapping[str, dict[str, float]]:
    """Keyword arguments `rtol` and `atol` of assert_close and assert_allclose, by what is compared."""
    return TOLERANCE


@pytest.fixture(scope="session")
def spectra_folder() -> Path:
    """The folder of published spectra, which lies beside the repository and does not ship with it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "spectra"
    if not folder.is_dir():
        pytest.skip("the published spectra (shared/data/spectra beside the repository) are absent")
    return folder


@pytest.fixture(scope="session")
def fitter() -> specfit.SpectrumFitter:
    """The shipped net of the reference task."""
    return specfit.SpectrumFitter.from_checkpoint("reference")


@pytest.fixture(scope="session")
def task(fitter: specfit.SpectrumFitter) -> tuple[torch.Tensor, torch.Tensor]:
    """A spectrum of the reference task and the background that it was drawn from, both `(50,)`."""
    generator = specfit.SpectrumGenerator(fitter.edges, n_backgrounds=5)
    batch = generator.sample(1, rng=torch.Generator().manual_seed(3))
    return batch.counts[0].double(), batch.background[0].double()
