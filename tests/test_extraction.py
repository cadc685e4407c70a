"""Signals taken out of spectra: those that a background may be mistaken for."""

import pytest
import torch

import specfit
from specfit.generator import WideGenerator
from specfit.io import parse_edges
from specfit.net import LocalModel
from specfit.search import gaussian_hypotheses
from specfit.search.injection import known_background_error
from specfit.signal import extraction

EDGES = parse_edges("1100:8000:50:log")


@pytest.fixture(scope="module")
def backgrounds():
    """Dijet functions of random parameters that hold enough events in the last bins."""
    n = len(EDGES) - 1
    wide = WideGenerator(n_bins=(n, n), families={"dijet": 1.0}, total=(1e5, 1e7), turn_on=0.0)
    drawn = wide.sample_background(EDGES.expand(240, -1), rng=torch.Generator().manual_seed(1))
    return drawn[drawn[:, -10:].sum(1) > 100]


def extracted(fitter, edges, counts, *, mass, width):
    """Fits one signal beside each background."""
    template = gaussian_hypotheses(edges, width=width, mass=[mass]).templates
    with torch.inference_mode():
        return extraction.extract(
            fitter.net,
            counts,
            template.expand(len(counts), 1, -1),
            spectrum=torch.arange(len(counts)),
            edges=edges,
            mask=torch.zeros_like(counts, dtype=torch.bool),
        )


def bias(backgrounds, *, mass, strength, width=0.1):
    """Injects yields in units of their error on a known background; returns what is missing over the mean error."""
    fitter = specfit.SpectrumFitter.from_checkpoint("any_binning")
    template = gaussian_hypotheses(EDGES, width=width, mass=[mass]).templates
    sigma0 = known_background_error(template, backgrounds, torch.ones(len(EDGES) - 1, dtype=torch.bool))
    expected = backgrounds + (strength * sigma0)[:, None] * template
    counts = torch.poisson(expected, generator=torch.Generator().manual_seed(2))
    rows = extracted(fitter, EDGES, counts, mass=mass, width=width)
    return float((rows.fit.yields[:, 0] / sigma0 - strength).mean() / (rows.error / sigma0).mean())


def test_a_wide_signal_in_the_last_bins_is_not_taken_for_background(backgrounds, monkeypatch):
    assert len(backgrounds) > 50
    signal = {"mass": 7310.0, "strength": 10.0}
    with_its_window_masked = bias(backgrounds, **signal)
    monkeypatch.setattr(extraction, "CONFUSABLE", 1.0)
    assert with_its_window_masked > -0.2
    assert bias(backgrounds, **signal) < with_its_window_masked - 0.05


def test_an_answer_that_misses_the_data_is_not_taken(monkeypatch):
    """In a turn-on nothing beside a masked window holds the background: signals where there are none."""
    fitter = specfit.SpectrumFitter.from_checkpoint()
    mixtures = specfit.SpectrumGenerator(fitter.edges, n_backgrounds=5)
    counts = mixtures.sample(400, rng=torch.Generator().manual_seed(1)).counts.double()
    signal = {"mass": 320.0, "width": 0.05}
    largest = extracted(fitter, fitter.edges, counts, **signal).local_z.abs().max()
    monkeypatch.setattr(extraction, "AS_WELL", torch.inf)
    assert largest < 2
    assert extracted(fitter, fitter.edges, counts, **signal).local_z.abs().max() > 3


class OneAnswer:
    """A net that holds the same for plausible whatever it sees: a fall that may have a broad bump of a few percent."""

    def __init__(self, bump):
        self.log_mean, self.basis = 7 - 4 * torch.linspace(0, 1, 50, dtype=torch.float64), bump[:, None]

    def local_model(self, counts, *, edges, mask, exposure=None):
        m = len(counts)
        weight, features = (~mask).double(), counts.new_zeros(m, 1)
        return LocalModel(self.log_mean.expand(m, -1), self.basis.expand(m, -1, -1), weight, features, torch.ones(m))

    def yield_scale(self, features):
        return torch.ones(len(features), dtype=torch.float64)


@pytest.mark.parametrize("is_background", [True, False])
def test_a_background_that_goes_further_than_expected_is_no_discovery(is_background, monkeypatch):
    edges = torch.linspace(100, 600, 51, dtype=torch.float64)
    centers = (edges[1:] + edges[:-1]) / 2
    template = gaussian_hypotheses(edges, width=0.1, mass=[300.0]).templates
    net = OneAnswer(0.04 * torch.exp(-0.5 * ((centers - 300) / 40) ** 2))
    background = (net.log_mean + (8.0 if is_background else 0.0) * net.basis[:, 0]).exp()
    narrow = gaussian_hypotheses(edges, width=0.03, mass=[300.0]).templates
    counts = (background + (0.0 if is_background else 450.0) * narrow[0])[None]
    of_row = {"spectrum": torch.tensor([0]), "edges": edges, "mask": torch.zeros_like(counts, dtype=torch.bool)}

    def local_z():
        return float(extraction.extract(net, counts, (template if is_background else narrow)[None], **of_row).local_z)

    with_wider = local_z()
    monkeypatch.setattr(extraction, "WIDER", ())
    without = local_z()
    assert without > 4
    if is_background:
        assert with_wider < 0.5 * without
    else:
        assert 0.8 * without < with_wider <= without
