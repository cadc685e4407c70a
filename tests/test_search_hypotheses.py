"""Signals that a search looks for. Oracles: scipy's normal distribution, numpy's moments."""

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.testing import assert_allclose

from specfit import InputError
from specfit.search import gaussian_hypotheses, template_hypotheses
from specfit.signal import SignalHypotheses

EDGES = {
    "linear": np.linspace(100.0, 200.0, 51),
    "logarithmic": np.geomspace(250.0, 3000.0, 51),
    "from zero": np.linspace(0.0, 10.0, 41),
    "through zero": np.linspace(-5.0, 5.0, 41),
    "growing": np.cumsum(np.concatenate([[900.0], np.linspace(20, 200, 30)])),
}
on_all_edges = pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)


@on_all_edges
@pytest.mark.parametrize("width", [0.003, 0.02, 0.05, 0.15])
def test_templates_are_differences_of_the_normal_distribution(edges, width):
    of_zero = edges[0] < 0  # a share of the mass means nothing there
    signals = gaussian_hypotheses(edges, width=(lambda m: torch.full_like(m, 10 * width)) if of_zero else width)
    at, sigma = signals.mass.numpy()[:, None], signals.width.numpy()[:, None]
    # The survival function on the far side, where the distribution function rounds to 1.
    shares = np.where(
        edges[:-1] < at,
        np.diff(scipy.stats.norm.cdf(edges, at, sigma), axis=1),
        -np.diff(scipy.stats.norm.sf(edges, at, sigma), axis=1),
    )
    assert_allclose(signals.templates, shares, rtol=1e-9, atol=1e-16)
    expected = np.abs(at) * width if edges[0] >= 0 else 10 * width
    assert_allclose(sigma, expected * np.ones_like(sigma), rtol=1e-12)
    assert (signals.templates.sum(1) <= 1 + 1e-12).all()


@on_all_edges
@pytest.mark.parametrize("width", [1e-4, 0.02, 0.05])
def test_the_grid_steps_by_half_a_width_or_half_a_bin(edges, width):
    def width_of(mass):
        return width * np.maximum(np.abs(mass), 1.0)

    signals = gaussian_hypotheses(edges, width=lambda mass: torch.from_numpy(width_of(mass.numpy())))
    mass, bins = signals.mass.numpy(), np.diff(edges)
    own_bin = bins[np.clip(np.searchsorted(edges, mass, side="right") - 1, 0, len(bins) - 1)]
    step = 0.5 * np.maximum(width_of(mass), own_bin)
    assert_allclose(np.diff(mass), step[:-1], rtol=1e-9)
    first = edges[0] + max(width_of(edges[1]), bins[1])
    assert mass[0] == pytest.approx(first, rel=1e-12)
    last_bin = bins[np.clip(np.searchsorted(edges, mass[-1] + step[-1], side="right") - 1, 0, len(bins) - 1)]
    inside = max(width_of(mass[-1]), own_bin[-1])
    assert mass[-1] + inside <= edges[-1] * (1 + 1e-9)
    after = mass[-1] + step[-1]
    assert after + max(width_of(after), last_bin) > edges[-1] * (1 - 1e-12)


def test_no_signal_lies_between_two_hypotheses():
    """A peak in the middle between two masses still keeps 98 % of its significance (known flat background)."""
    signals = gaussian_hypotheses(EDGES["linear"], width=0.05)
    between = (signals.mass[1:] + signals.mass[:-1]) / 2
    middle = gaussian_hypotheses(EDGES["linear"], mass=between, width=0.05).templates
    unit = signals.templates / signals.templates.norm(dim=1, keepdim=True)
    kept = (unit[:-1] * middle).sum(1) / middle.norm(dim=1)
    assert kept.min() > 0.98


def test_each_mass_is_tried_with_each_width():
    signals = gaussian_hypotheses(EDGES["linear"], width=(0.02, 0.1), mass=[120.0, 150.0])
    assert signals.mass.tolist() == [120, 150, 120, 150]
    assert_allclose(signals.width, [2.4, 3.0, 12.0, 15.0])
    assert len(signals) == 4
    assert signals.templates.shape == (4, 50)


def test_some_can_be_taken():
    signals = gaussian_hypotheses(EDGES["linear"], width=0.05)
    some = signals[signals.mass > 150]
    assert (some.mass > 150).all()
    assert len(some) == int((signals.mass > 150).sum()) == len(some.templates) == len(some.width)
    assert len(signals[:3]) == 3


def test_templates_of_ones_own_keep_what_is_lost_and_lose_their_size():
    edges = EDGES["linear"]
    shares = np.diff(scipy.stats.norm.cdf(edges, [[110.0], [199.0]], 3.0), axis=1)
    own = template_hypotheses(shares, edges)
    assert_allclose(own.templates, shares)  # of the second, more than a third lies outside
    events = template_hypotheses(500 * shares[:1], edges)
    assert_allclose(events.templates, shares[:1] / shares[0].sum())
    assert_allclose(own.mass, shares @ ((edges[1:] + edges[:-1]) / 2) / shares.sum(1))
    assert float(own.mass[0]) == pytest.approx(110, abs=0.05)
    assert float(own.width[0]) == pytest.approx(np.hypot(3, 2 / np.sqrt(12) * np.sqrt(2)), rel=0.05)
    named = template_hypotheses(shares, torch.as_tensor(edges), mass=[1.0, 2.0])
    assert named.mass.tolist() == [1, 2]
    assert template_hypotheses(shares[0], edges).templates.shape == (1, 50)


FLAT = np.ones(50) / 50


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda e: gaussian_hypotheses(e, width=0.0), "width: positive"),
        (lambda e: gaussian_hypotheses(e, width=[0.1, -0.1]), "width: positive"),
        (lambda e: gaussian_hypotheses(e, width=[]), "width: positive"),
        (lambda e: gaussian_hypotheses(e, width=float("nan")), "width: positive"),
        (lambda e: gaussian_hypotheses(e, width=float("inf")), "width: positive"),
        (lambda e: gaussian_hypotheses(e, width="wide"), "width: real numbers"),
        (lambda e: gaussian_hypotheses(e, width=lambda m: 0 * m), "width: 0 came"),
        (lambda e: gaussian_hypotheses(e, width=lambda m: m * float("nan")), "width: nan came"),
        (lambda e: gaussian_hypotheses(e, width=5.0), "width: .* leaves no mass"),
        (lambda e: gaussian_hypotheses(e, mass=[150.0, 250.0]), "mass: masses from 100 to 200 are expected, 250 came"),
        (lambda e: gaussian_hypotheses(e, mass=[float("nan")]), "mass: masses from 100 to 200 are expected, nan came"),
        (lambda e: gaussian_hypotheses(e, mass=[]), "mass: masses from 100 to 200 are expected, none came"),
        (lambda e: gaussian_hypotheses(e, mass="here"), "mass: real numbers"),
        (lambda e: template_hypotheses(np.ones(7), e), "templates: 7 bins came, the spectrum has 50"),
        (lambda e: template_hypotheses(-FLAT, e), "templates: finite shares"),
        (lambda e: template_hypotheses(0 * FLAT, e), "templates: finite shares"),
        (lambda e: template_hypotheses(np.nan * FLAT, e), "templates: finite shares"),
        (lambda e: template_hypotheses(FLAT, e, mass=[1.0, 2.0]), "mass: 2 came for 1 templates"),
    ],
)
def test_what_cannot_be_looked_for_is_said(call, text):
    with pytest.raises(InputError, match=text):
        call(EDGES["linear"])


def test_the_share_of_a_signal_that_is_seen_is_of_what_is_inside_the_range():
    signals = gaussian_hypotheses(EDGES["linear"], width=lambda m: torch.full_like(m, 3.0), mass=[100.0, 150.0, 180.0])
    seen = torch.arange(50) < 25  # below 150
    assert_allclose(signals.share_seen(seen), [1.0, 0.5, 0.0], atol=1e-9)
    nothing = SignalHypotheses(signals.mass, signals.width, torch.zeros(3, 50))
    assert nothing.share_seen(seen).tolist() == [0, 0, 0]
