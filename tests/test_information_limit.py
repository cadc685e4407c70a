"""The bound against finite differences of a mixture written in numpy, and against published numbers."""

import math

import numpy as np
import pytest
import scipy.special
import torch

from specfit.generator import SpectrumGenerator
from specfit.information_limit import information_limit

EDGES = np.geomspace(250, 3000, 51)
RANGES = {"rho": (0.5, 1.5), "alpha": (25.0, 200.0), "mu": (325.0, 375.0), "sigma": (10.0, 30.0)}
NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)


def component(edges, rho, alpha, mu, sigma):
    """Bins of one component, normalised to 1 over the range."""
    half = np.diff(edges)[:, None] / 2
    x = edges[:-1, None] + half * (1 + NODES)
    log_density = scipy.special.log_ndtr((x - mu) / sigma) - x**rho / alpha
    bins = (np.exp(log_density - log_density.max()) * half * WEIGHTS).sum(-1)
    return bins / bins.sum()


def mixture(edges, values, n):
    """Expected events from (rho, alpha, mu, sigma, fraction) of each component and the log of the total."""
    columns = values[:-1].reshape(n, 5)
    shares = columns[:, 4] / columns[:, 4].sum()
    return math.exp(values[-1]) * sum(s * component(edges, *c[:4]) for s, c in zip(shares, columns, strict=True))


def bound(edges, values, n, ranges):
    """Variance over truth of each bin (NaN where unused), by central differences in the raw parameters."""
    spans = np.append(np.tile([high - low for low, high in [*ranges.values(), (0, 1)]], n), 1.0)
    precision = np.append(12 / np.where(spans[:-1] > 0, spans[:-1], 1) ** 2, 1e-6)
    free = spans > 0  # a fixed parameter is known
    truth, columns = mixture(edges, values, n), []
    for i in np.flatnonzero(free):
        step = 1e-5 * spans[i] * np.eye(len(values))[i]
        columns.append((mixture(edges, values + step, n) - mixture(edges, values - step, n)) / (2 * step[i]))
    used = truth > 0.5
    scaled = np.array(columns).T[used] / np.sqrt(truth[used, None])
    covariance = np.linalg.inv(scaled.T @ scaled + np.diag(precision[free]))
    variance = np.full(len(truth), np.nan)
    variance[used] = np.diag(scaled @ covariance @ scaled.T)
    return variance


def expected_limit(edges, drawn, ranges):
    owner = drawn.owner.numpy()
    per_component = np.stack(
        [getattr(drawn, name).double().numpy() for name in ("rho", "alpha", "mu", "sigma", "fraction")], -1
    )
    variances = []
    for i, total in enumerate(drawn.total.double().numpy()):
        values = np.append(per_component[owner == i], math.log(total))
        variances.append(bound(edges, values, int((owner == i).sum()), ranges))
    return np.array(variances)


@pytest.mark.parametrize(
    ("edges", "n_backgrounds", "arguments"),
    [
        (EDGES, 1, {}),
        (EDGES, 3, {}),
        (EDGES, (1, 4), {"weights": (1, 0, 2, 1)}),
        (np.linspace(300, 1500, 25), 2, {"total": (50.0, 500.0)}),  # many bins below half an event
        (EDGES, 2, {"sigma": (20.0, 20.0), "rho": (0.8, 0.8)}),
        (np.linspace(250, 450, 41), 1, {"rho": (1.4, 1.5), "alpha": (25.0, 30.0), "total": (30.0, 40.0)}),
    ],
    ids=["one", "three", "one to four", "few events", "fixed parameters", "empty bins"],
)
def test_bound_agrees_with_finite_differences(edges, n_backgrounds, arguments):
    generator, size = SpectrumGenerator(edges, n_backgrounds=n_backgrounds, **arguments), 6
    limit = information_limit(generator, size=size, rng=torch.Generator().manual_seed(2))
    drawn = generator.sample_components(size, rng=torch.Generator().manual_seed(2))
    variance = expected_limit(edges, drawn, {name: arguments.get(name, pair) for name, pair in RANGES.items()})

    used = np.isfinite(variance)
    assert limit.rms == pytest.approx(math.sqrt(variance[used].mean()), rel=1e-4)
    assert limit.n_parameters == pytest.approx(np.where(used, variance, 0).sum(-1).mean(), rel=1e-4)
    seen = used.any(0)
    assert (limit.rms_per_bin.isfinite().numpy() == seen).all()
    per_bin = np.array([math.sqrt(column[used[:, i]].mean()) for i, column in enumerate(variance.T) if seen[i]])
    np.testing.assert_allclose(limit.rms_per_bin.numpy()[seen], per_bin, rtol=1e-3)


def test_a_bin_that_no_truth_reaches_is_nan():
    generator = SpectrumGenerator(EDGES, n_backgrounds=1, rho=(1.5, 1.5), alpha=(25.0, 25.0))
    limit = information_limit(generator, size=5, rng=torch.Generator().manual_seed(1))
    assert limit.rms_per_bin[-1].isnan()
    assert math.isfinite(limit.rms)


@pytest.mark.parametrize(("n", "rms", "n_parameters"), [(1, 0.376, 4.4), (5, 0.486, 11.5), (7, 0.510, 12.8)])
def test_reference_task(n, rms, n_parameters):
    generator = SpectrumGenerator(EDGES, n_backgrounds=n)
    limit = information_limit(generator, size=300, rng=torch.Generator().manual_seed(4))
    assert limit.rms == pytest.approx(rms, rel=0.03)
    assert limit.n_parameters == pytest.approx(n_parameters, rel=0.05)


def test_more_events_and_finer_bins_lower_the_limit():
    def limit(n_bins, total):
        generator = SpectrumGenerator(np.geomspace(250, 3000, n_bins + 1), n_backgrounds=5, total=(total, total))
        return information_limit(generator, size=15, rng=torch.Generator().manual_seed(4))

    few, many, fine = limit(20, 1e4), limit(20, 1e6), limit(80, 1e4)
    assert many.n_parameters > 1.2 * few.n_parameters  # more events tell more parameters
    assert fine.rms < 0.75 * few.rms  # the same parameters, spread over more bins


def test_one_seed_one_answer():
    generator = SpectrumGenerator(EDGES, n_backgrounds=(1, 3))
    first, again = (information_limit(generator, size=9, rng=torch.Generator().manual_seed(6)) for _ in range(2))
    assert (first.rms, first.n_parameters) == (again.rms, again.n_parameters)
