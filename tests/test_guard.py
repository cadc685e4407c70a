"""The guard lets good fits pass and names each kind of bad one."""

import re

import pytest
import torch

from specfit import Spectrum, SpectrumFitter
from specfit.generator import WideGenerator
from specfit.guard import judge
from specfit.lone_peak import has_lone_peak
from specfit.net import Prediction

TRUTH = 1000 * torch.exp(-torch.arange(30, dtype=torch.float64) / 10)


def verdict(*, background=TRUTH, counts=TRUTH, novelty=0.0, masked=(), left_out=()):
    mask, out = torch.zeros(1, 30, dtype=torch.bool), torch.zeros(1, 30, dtype=torch.bool)
    mask[0, list(masked)], out[0, list(left_out)] = True, True
    prediction = Prediction(
        background[None], torch.zeros(1, 30, 1).double(), torch.tensor([4.0]), torch.tensor([novelty]).double()
    )
    return judge(counts[None], prediction, mask=mask | out, left_out=out)


def test_a_good_fit_passes_in_silence():
    passed = verdict(counts=torch.poisson(TRUTH, generator=torch.Generator().manual_seed(1)))
    assert passed.converged.all()
    assert passed.reasons == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"background": TRUTH * torch.nan}, "no finite positive background"),
        ({"background": TRUTH * 0}, "no finite positive background"),
        ({"counts": TRUTH + 300 * (torch.arange(30) % 2)}, "disagree with the data beyond chance"),
        ({"masked": range(10, 21)}, "more than a third of the bins"),
        ({"novelty": 1.5}, "unlike anything that the net was trained on"),
    ],
)
def test_each_bad_fit_is_named_with_what_to_do(changes, reason):
    failed = verdict(**changes)
    assert not failed.converged.any()
    assert any(reason in text and text.startswith("1 of 1 fits") for text in failed.reasons)
    assert any(hint in failed.reasons[0] for hint in ("mask", "train"))


def test_what_the_caller_left_out_is_not_held_against_the_fit():
    assert verdict(left_out=range(10, 24)).converged.all()
    assert verdict(counts=TRUTH + 1e5 * (torch.arange(30) == 4), left_out=[4]).converged.all()


WINDOWS = ["Zee", "Zmumu", "psi2S", "Upsilon1S"]
SMOOTH = [
    "atlas_d",
    "cms_caloscouting_2015D",
    "cms_dijet",
    "cms_dimuon_1b",
    "cms_fourjet",
    "cms_mttbar",
    "cms_pfdijet",
    "cms_opendata_antiiso",
]


@pytest.fixture(scope="module")
def any_binning():
    return SpectrumFitter.from_checkpoint("any_binning")


@pytest.mark.parametrize("name", WINDOWS)
def test_a_resonance_that_fills_its_window_is_flagged(name, any_binning, spectra_folder):
    (file,) = spectra_folder.glob(f"cms_opendata_{name}_Run2011A*.csv")
    fit = any_binning.fit(file)
    assert not bool(fit.converged)
    assert "follow a single peak" in fit.message
    assert "--mask" in fit.message


@pytest.mark.parametrize(("name", "mass"), [("rho_omega", 0.7827), ("phi", 1.0195)])
def test_a_narrow_resonance_is_masked_and_said(name, mass, any_binning, spectra_folder):
    (file,) = spectra_folder.glob(f"cms_opendata_{name}_Run2011A*.csv")
    fit = any_binning.fit(file)
    (peak,) = ((fit.spectrum.edges[:-1] < mass) & (fit.spectrum.edges[1:] >= mass)).nonzero()[:, 0]
    assert bool(fit.mask[peak])
    assert any(abs(float(around) - mass) < 0.01 for around in re.findall(r"masked around ([\d.]+):", fit.message))
    assert fit.significance[peak] > 5


@pytest.mark.parametrize("name", SMOOTH)
def test_a_published_background_is_not_taken_for_a_peak(name, any_binning, spectra_folder):
    files = sorted(spectra_folder.glob(f"{name}*.csv"))
    assert files
    assert all("follow a single peak" not in any_binning.fit(file, refit=None).message for file in files)


LINE = torch.exp(-torch.arange(60, dtype=torch.float64) / 40)
PEAK = torch.exp(-(((torch.arange(60, dtype=torch.float64) - 30) / 5) ** 2) / 2)
EDGES = torch.linspace(60, 120, 61, dtype=torch.float64)


def is_peak(expected, *, edges=EDGES, masked=(), seed=1):
    mask = torch.zeros(1, len(expected), dtype=torch.bool)
    mask[0, list(masked)] = True
    counts = torch.poisson(expected, generator=torch.Generator().manual_seed(seed))
    return bool(has_lone_peak(counts[None], expected[None], edges, mask=mask))


def test_a_peak_on_a_line_is_told_from_shapes_without_sidebands():
    i = torch.arange(60, dtype=torch.float64)
    assert is_peak(300 * LINE + 600 * PEAK)
    assert is_peak(300 * LINE + 600 * PEAK, masked=range(4, 9))
    assert is_peak((300 * LINE + 600 * PEAK), edges=EDGES - 100)
    assert not is_peak(300 * LINE)
    assert not is_peak(300 * LINE + 60 * PEAK)  # too low to rule out a background that bends
    assert not is_peak(1e4 * torch.special.ndtr((i - 15) / 4) * torch.exp(-i / 12))
    assert not is_peak(600 * PEAK + 1e-9)
    assert not is_peak(300 * LINE + 600 * PEAK, masked=range(17, 44))


@pytest.mark.parametrize("n_bins", [4, 11, 12, 13, 300])
def test_any_number_of_bins_and_empty_spectra_are_judged(n_bins):
    i = torch.arange(n_bins, dtype=torch.float64)
    peak = torch.exp(-(((i - n_bins / 2) / (n_bins / 12)) ** 2) / 2) + 0.1
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float64) ** 2
    is_peak(peak * 1e6, edges=edges)
    no_counts = torch.zeros(1, n_bins).double()
    assert not has_lone_peak(no_counts, peak[None], edges, mask=no_counts.bool()).any()


def test_a_weighted_window_is_flagged_like_a_plain_one(any_binning):
    counts = torch.poisson(300 * LINE + 900 * PEAK, generator=torch.Generator().manual_seed(2))
    weighted = Spectrum(counts * 0.1, EDGES, variances=counts * 0.01)
    assert not any_binning.fit(Spectrum(counts, EDGES)).converged
    assert not any_binning.fit(weighted).converged


def test_hardly_any_smooth_background_is_taken_for_a_peak(any_binning):
    generator, rng = WideGenerator(signal=0.0, masked=0.0), torch.Generator().manual_seed(5)
    edges = generator.sample_edges(1, 50, rng=rng)
    counts = torch.poisson(generator.sample_background(edges.expand(500, -1), rng=rng), generator=rng)
    fit = any_binning.fit(counts, edges[0], refit=None)
    assert has_lone_peak(counts, fit.background.clamp(min=1e-9), edges[0], mask=fit.mask).sum() <= 5
