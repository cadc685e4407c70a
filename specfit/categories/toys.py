r"""Toy data: the three examples of arXiv:2601.07756 (GATO), event by event the same for a seed on every machine.

Events are drawn in three dimensions around the means below, all with the covariance :math:`1 + 0.2 (i \ne j)`, and each
coordinate is multiplied by :math:`\mathcal N(1, \text{noise})`. The scores are likelihood ratios of the noiseless
densities, so they are the best that a perfect classifier could do.

- `toy_1d`: one discriminant :math:`D = L / (1 + L)`, :math:`L = p_S / p_B`.
- `toy_three_class`: the scores :math:`(p_1, p_2, p_B)` divided by their sum.
- `toy_diphoton`: the same with a mass: two resonances at 125 GeV on five falling continua.

The streams are numpy's, because a toy that is to be compared with published numbers must draw the same events. numpy's
own `multivariate_normal` does not: the covariance has a double eigenvalue, and which of its eigenvectors are taken is
the choice of the linear algebra library. The choice below is the one behind the published figures of seed 42.
"""

from __future__ import annotations

__all__ = ["BACKGROUNDS", "MASS_RANGE", "toy_1d", "toy_diphoton", "toy_three_class"]

from collections.abc import Sequence

import numpy as np

from specfit.categories.events import Events
from specfit.errors import InputError

MEANS = {
    "signal1": (1.5, -1.0, -1.0),
    "signal2": (-1.0, 1.5, -1.0),
    "bkg1": (-0.5, -0.5, 1.0),
    "bkg2": (0.5, -0.5, 0.8),
    "bkg3": (0.5, 0.5, -0.6),
    "bkg4": (-0.5, 1.0, -0.4),
    "bkg5": (-0.5, 0.5, -0.2),
}
COVARIANCE = np.full((3, 3), 0.2) + 0.8 * np.eye(3)
EIGENVALUES = np.array([1.4, 0.8, 0.8])
EIGENVECTORS = np.array([[-1, -1, -1], [0, -1, 1], [2, -1, -1]]) / np.sqrt([[3], [2], [6]])
CROSS_SECTIONS = {"signal1": 0.5, "signal2": 0.1, "bkg1": 100.0, "bkg2": 80.0, "bkg3": 50.0, "bkg4": 20.0, "bkg5": 10.0}
BACKGROUNDS = tuple(name for name in MEANS if name.startswith("bkg"))
"""Names of the five backgrounds, the same in all toys."""
MASS, MASS_RANGE = 125.0, (100.0, 180.0)
# Keeps a ratio of densities finite where all of them vanish.
NO_DENSITY = 1e-12


def toy_1d(
    n_signal: int = 100_000,
    n_background: int = 300_000,
    *,
    luminosity: float = 100.0,
    noise: float = 0.3,
    seed: int = 42,
) -> Events:
    """Draws one signal, `signal`, and five backgrounds in one discriminant from 0 to 1.

    At luminosity 100 there are 50 events of signal expected on 26 000 of background.

    Args:
        n_signal: Simulated events of the signal.
        n_background: Simulated events of all backgrounds, shared in proportion to their cross sections.
        luminosity: Expected events per unit of cross section.
        noise: Spread of the factor on each coordinate.
        seed: Decides every event.
    """
    counts = {"signal1": n_signal, **_background_counts(n_background)}
    points = _points(counts, noise=noise, seed=seed)
    tables = {}
    for name, x in points.items():
        ratio = _density("signal1", x) / (_background_density(x) + NO_DENSITY)
        tables[name] = (ratio / (1 + ratio), _weight(name, counts, luminosity))
    return Events.of({"signal" if name == "signal1" else name: table for name, table in tables.items()})


def toy_three_class(
    n_signal: int = 100_000,
    n_background: int = 500_000,
    *,
    luminosity: float = 100.0,
    noise: float = 0.3,
    seed: int = 42,
) -> Events:
    """Draws two signals, `signal1` and `signal2`, and five backgrounds with the three scores of a perfect classifier.

    Args:
        n_signal: Simulated events of each signal.
        n_background: Simulated events of all backgrounds.
        luminosity: Expected events per unit of cross section.
        noise: Spread of the factor on each coordinate.
        seed: Decides every event.
    """
    counts = {"signal1": n_signal, "signal2": n_signal, **_background_counts(n_background)}
    points = _points(counts, noise=noise, seed=seed)
    return Events.of({name: (_scores(x), _weight(name, counts, luminosity)) for name, x in points.items()})


def toy_diphoton(
    n_signal: int = 100_000,
    n_background: int = 1_000_000,
    *,
    mass_resolution: float = 1.5,
    slopes: Sequence[float] = (0.05, 0.04, 0.035, 0.03, 0.025),
    noise: float = 0.2,
    seed: int = 7,
) -> Events:
    """Draws the three-class toy with a mass; the features are the scores of the two signals.

    Args:
        n_signal: Simulated events of each signal.
        n_background: Simulated events of all backgrounds.
        mass_resolution: Width of both resonances, GeV.
        slopes: Of the exponential continua, per GeV, one for each background; 0 is flat.
        noise: Spread of the factor on each coordinate.
        seed: Decides every event.

    Raises:
        InputError: Not one slope for each background came.
    """
    if len(slopes) != len(BACKGROUNDS):
        raise InputError(f"slopes: {len(BACKGROUNDS)} are expected, one a background, {len(slopes)} came")
    scores = toy_three_class(n_signal, n_background, noise=noise, seed=seed)
    rng = np.random.default_rng(seed)
    masses = []
    for i, name in enumerate(scores.processes):
        n = int((scores.process == i).sum())
        masses.append(
            np.clip(rng.normal(MASS, mass_resolution, n), *MASS_RANGE)
            if name not in BACKGROUNDS
            else _falling(rng.random(n), slopes[BACKGROUNDS.index(name)])
        )
    tables = {}
    for i, name in enumerate(scores.processes):
        of_this = scores.process == i
        tables[name] = (scores.features[of_this, :2], scores.weights[of_this], masses[i])
    return Events.of(tables)


def _points(counts: dict[str, int], *, noise: float, seed: int) -> dict[str, np.ndarray]:
    if seed < 0 or min(counts.values()) < 1:
        raise InputError(f"toy: a seed from 0 upwards and an event of each process are expected, {seed}, {counts} came")
    legacy = np.random.RandomState(seed)  # the stream of the published toy
    turned = np.sqrt(EIGENVALUES)[:, None] * EIGENVECTORS
    points = {
        name: MEANS[name] + np.random.default_rng(seed + i).standard_normal((n, 3)) @ turned
        for i, (name, n) in enumerate(counts.items())
    }
    return {name: x * legacy.normal(1.0, noise, x.shape) for name, x in points.items()}


def _background_counts(n: int) -> dict[str, int]:
    total = sum(CROSS_SECTIONS[name] for name in BACKGROUNDS)
    counts = {name: int(n * CROSS_SECTIONS[name] / total) for name in BACKGROUNDS}
    counts[BACKGROUNDS[-1]] += n - sum(counts.values())
    return counts


def _weight(name: str, counts: dict[str, int], luminosity: float) -> float:
    return CROSS_SECTIONS[name] * luminosity / counts[name]


def _density(name: str, x: np.ndarray) -> np.ndarray:
    shift = x - np.array(MEANS[name])
    exponent = -0.5 * np.einsum("ni,ij,nj->n", shift, np.linalg.inv(COVARIANCE), shift, optimize=True)
    density: np.ndarray = np.exp(exponent) / np.sqrt((2 * np.pi) ** 3 * np.linalg.det(COVARIANCE))
    return density


def _background_density(x: np.ndarray) -> np.ndarray:
    total = sum(CROSS_SECTIONS[name] for name in BACKGROUNDS)
    density = np.zeros(len(x))
    for name in BACKGROUNDS:
        density += CROSS_SECTIONS[name] / total * _density(name, x)
    return density


def _scores(x: np.ndarray) -> np.ndarray:
    densities = np.stack([_density("signal1", x), _density("signal2", x), _background_density(x)], 1)
    scores: np.ndarray = densities / (densities.sum(1, keepdims=True) + NO_DENSITY)
    return scores


def _falling(u: np.ndarray, slope: float) -> np.ndarray:
    """Inverts the cumulative distribution of an exponential on the mass range."""
    low, high = MASS_RANGE
    if slope == 0:
        return low + u * (high - low)
    mass: np.ndarray = low - np.log1p(u * np.expm1(-slope * (high - low))) / slope
    return mass
