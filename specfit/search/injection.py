r"""inject: signals of known size into pseudo-data of a known background: is what comes out what went in?

Pseudo-data are Poisson counts of :math:`t + S s`, with t the expected background and s a signal's template, and the
whole chain of a search runs on each. Injected yields are in units of

.. math:: \sigma_0 = \Big( \sum_i s_i^2 / t_i \Big)^{-1/2},

the error that a yield would have on a background known without error. All strengths of a pseudo-experiment share the
events of its background, so that the slope of fitted against injected yields is known better than any yield.

What to use when: `inject` for one background; `specfit.search.validate` for the verdict of a whole acceptance sheet;
`injection_chain`, `inject_into` where a fit is there already.

Source: ATLAS, ATL-PHYS-PUB-2020-028 (signal injection and spurious signal as tests of a background model).
"""

from __future__ import annotations

__all__ = ["STRENGTHS", "Injected", "inject", "inject_into", "injection_chain"]

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specfit.arrays import ArrayLike, as_float64
from specfit.background_fit import BackgroundFit
from specfit.errors import InputError
from specfit.inference import SpectrumFitter
from specfit.masks import left_out_bins
from specfit.search.chain import Chain
from specfit.search.injection_result import InjectionResult
from specfit.search.known import LEAST_SEEN
from specfit.search.pseudo_experiments import Report, Running
from specfit.search.scanning import fitted, make_chain
from specfit.search.toys.chunks import digest
from specfit.signal.hypotheses import Width, gaussian_hypotheses

STRENGTHS = (0.0, 2.0, 5.0, 10.0)
"""Injected yields, in units of the error with the background known."""

# Masses that are tried where none are given, and the part of the bins that they are spread over.
N_MASSES, FROM, TO = 5, 0.1, 0.9
# Their background counts at least so many events under the peak: with fewer, no error is that of a normal distribution.
LEAST_BACKGROUND = 10.0
CANDIDATES = 161
# Pseudo-experiments that are drawn from one seed: a second or two of work.
CHUNK = 20
# Expected events of an empty background, under which a signal has no error.
TINY = 1e-12


def inject(
    spectrum: Any,
    edges: ArrayLike | None = None,
    *,
    checkpoint: str | Path | SpectrumFitter | None = None,
    mass: ArrayLike | None = None,
    width: Width = 0.05,
    strength: Sequence[float] = STRENGTHS,
    n_toys: int = 200,
    truth: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    seed: int = 1,
    workers: int = 1,
    scheduler: str | None = None,
    store: str | Path | None = None,
    progress: bool | Report = False,
) -> InjectionResult:
    """Injects signals into pseudo-data at a spectrum's own number of events and fits them.

    Args:
        spectrum: What `SpectrumFitter.fit` takes, one spectrum.
        edges: Bin edges for bare counts.
        checkpoint: A checkpoint, a run's folder, a `SpectrumFitter`, or None for the shipped net.
        mass: Masses of the signals; None takes five, evenly over the bins from the tenth to the ninetieth percentile,
            as far as the background holds 10 events under the peak.
        width: Standard deviation of the signals: a share of the mass, several, or a function of the mass.
        strength: Injected yields, in units of the error with the background known, not negative.
        n_toys: Pseudo-experiments for each mass, width and strength.
        truth: Expected background, in the unit of the contents, shape `(n_bins,)`; None takes the fitted one.
        mask: Bins to leave out, see `SpectrumFitter.fit`.
        seed: Decides the pseudo-experiments.
        workers: Processes for them; `scheduler`, `store` and `progress`: see `run_pseudo_experiments`.
        scheduler: Address of a Dask scheduler.
        store: Folder that keeps them.
        progress: Whether to draw a bar, or a function that is called with what is done.

    Raises:
        InputError: What came is not one spectrum, or an argument cannot be used.

    Example:
        >>> import numpy as np
        >>> counts = np.round(1e5 * np.exp(-np.arange(50) / 8))
        >>> result = inject(counts, mass=[500.0], strength=(0, 5), n_toys=20)
        >>> result.bias.shape, bool((result.bias.abs() < 1).all())
        (torch.Size([1, 2]), True)
    """
    fitter, fit = fitted(spectrum, edges, checkpoint=checkpoint, mask=mask)
    background = expected_background(fit, truth)
    chain = injection_chain(fitter, fit, background, mass=mass, width=width, mask=mask)
    running = Running(seed=seed, workers=workers, scheduler=scheduler, store=store, progress=progress)
    unit = float(fit.weights.unit)
    return inject_into(chain, background, unit=unit, strength=strength, n_toys=n_toys, running=running)


def expected_background(fit: BackgroundFit, truth: ArrayLike | None) -> Tensor:
    """Returns the expected events that pseudo-data are drawn from, shape `(n_bins,)`.

    Args:
        fit: Of the spectrum.
        truth: Given ones, in the unit of the contents, or None for the fitted ones.

    Raises:
        InputError: What was given cannot be an expectation.
    """
    expected = fit.background if truth is None else as_float64(truth, "truth")
    if expected.shape != fit.background.shape:
        raise InputError(
            f"truth: expected events of {fit.spectrum.n_bins} bins are expected, shape {tuple(expected.shape)} came"
        )
    if not expected.isfinite().all() or (expected < 0).any() or expected.sum() <= 0:
        raise InputError("truth: finite expected events, not negative and not all 0, are expected")
    return expected / fit.weights.of_bins


def injection_chain(
    fitter: SpectrumFitter,
    fit: BackgroundFit,
    background: Tensor,
    *,
    mass: ArrayLike | None = None,
    width: Width = 0.05,
    mask: ArrayLike | None = None,
) -> Chain:
    """Makes the chain that fits the signals which are to be injected.

    Args:
        fitter: The net.
        fit: Its fit of the spectrum.
        background: Expected events, shape `(n_bins,)`.
        mass: As for `inject`, like the others.
        width: Of the signals.
        mask: Bins to leave out.

    Raises:
        InputError: A mass that the mask covers.
    """
    edges = fit.spectrum.edges
    seen = ~left_out_bins(fit.spectrum, mask)[0]
    if mass is None:
        masses = _spread_masses(edges, background, seen, width, fit.weights.exposure)
    else:
        masses = as_float64(mass, "mass").flatten()
    signals = gaussian_hypotheses(edges, width=width, mass=masses)
    hidden = signals.share_seen(seen) <= LEAST_SEEN
    if hidden.any():
        what = "the mask covers" if fit.spectrum.gaps is None else "mask and gaps cover"
        raise InputError(f"mass: {what} the signal at {signals.mass[hidden][0]:g}; leave it out of mass")
    return make_chain(fitter, fit, hypotheses=signals, left_out=mask)


def inject_into(
    chain: Chain,
    background: Tensor,
    *,
    unit: float = 1.0,
    strength: Sequence[float] = STRENGTHS,
    n_toys: int = 200,
    running: Running | None = None,
) -> InjectionResult:
    """Injects the signals of a chain into a background (see `inject`).

    Args:
        chain: From `injection_chain`.
        background: Expected events, shape `(n_bins,)`.
        unit: Content that one event stands for, on average.
        strength: As for `inject`.
        n_toys: Pseudo-experiments for each signal and strength.
        running: How they are run.
    """
    strengths = as_float64(strength, "strength").flatten()
    if len(strengths) == 0 or not strengths.isfinite().all() or (strengths < 0).any():
        raise InputError(f"strength: finite numbers from 0 upwards are expected, {strengths.tolist()} came")
    if n_toys < 2:
        raise InputError(f"n_toys: at least 2 are expected, {n_toys} came; a spread needs two, a test a hundred")
    sigma0 = known_background_error(chain.exposed(chain.hypotheses.templates), background, ~chain.mask)
    job = Injected(chain, background, strengths * sigma0[:, None])
    drawn = (running or Running()).values(job, n_toys, chunk_size=CHUNK)
    return InjectionResult(
        edges=chain.edges,
        truth=contents(chain, background, unit),
        mass=chain.hypotheses.mass,
        width=chain.hypotheses.width,
        strength=strengths,
        sigma0=sigma0 * unit,
        yields=drawn["yields"] * unit,
        error=drawn["error"] * unit,
    )


def contents(chain: Chain, events: Tensor, unit: float) -> Tensor:
    """Returns what events `(*, n_bins)` make of a spectrum whose events stand for `unit` on average."""
    return events * unit if chain.exposure is None else events * (unit / chain.exposure)


def known_background_error(templates: Tensor, background: Tensor, seen: Tensor) -> Tensor:
    """Computes the error of yields on a known background.

    Args:
        templates: Events of each signal in each bin for a yield of 1, shape `(h, n_bins)`.
        background: Expected events, shape `(n_bins,)`.
        seen: False for bins that are left out, shape `(n_bins,)`.

    Returns:
        Events, shape `(h,)`.
    """
    information = templates.square() / background.clamp(min=TINY) * seen
    return information.sum(-1).rsqrt()


@dataclass(frozen=True, eq=False)
class Injected:
    """Pseudo-experiments with signals of every strength, each fitted at its own mass and width.

    Args:
        chain: The search, whose hypotheses are injected one at a time.
        background: Expected events, shape `(n_bins,)`.
        injected: Events of each hypothesis at each strength, shape `(h, k)`.
    """

    chain: Chain
    background: Tensor
    injected: Tensor

    def __call__(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Draws and fits; yields and their errors, shape `(size, h, k)`."""
        background = torch.poisson(self.background.expand(size, -1), generator=rng)
        signals, parts = self.chain.hypotheses, []
        for i, injected in enumerate(self.injected):
            expected = injected[:, None] * self.chain.exposed(signals.templates[i])  # (k, n_bins)
            signal = torch.poisson(expected.expand(size, -1, -1), generator=rng)
            counts = (background[:, None] + signal).flatten(0, 1)
            parts.append(dataclasses.replace(self.chain, hypotheses=signals[i : i + 1])(counts))
        return {
            name: torch.stack([getattr(part, name).view(size, -1) for part in parts], 1) for name in ("yields", "error")
        }

    def identity(self) -> dict[str, Any]:
        """Tells one job from another."""
        return {
            "job": "injected signals",
            **self.chain.identity(),
            "background": digest(self.background),
            "injected": digest(self.injected),
        }


def _spread_masses(edges: Tensor, background: Tensor, seen: Tensor, width: Width, exposure: Tensor | None) -> Tensor:
    """Spreads masses over the bins, as far as there is a background to test a signal on."""
    place = torch.linspace(FROM, TO, CANDIDATES, dtype=edges.dtype)
    candidates = edges.quantile(place)
    signals = gaussian_hypotheses(edges, width=width, mass=candidates)
    templates = signals.templates if exposure is None else signals.templates * exposure
    of_event = templates.sum(-1) / signals.templates.sum(-1).clamp(min=TINY)  # that a yield of 1 makes there
    events = (of_event * known_background_error(templates, background, seen)).square()
    usable = (events >= LEAST_BACKGROUND) & (signals.share_seen(seen) > LEAST_SEEN)
    usable = usable.view(-1, CANDIDATES).all(0)
    if not usable.any():
        raise InputError(
            f"mass: nowhere does the background hold {LEAST_BACKGROUND:g} events under a peak; name the masses to try"
        )
    kept = candidates[usable]
    chosen = torch.linspace(0, len(kept) - 1, min(N_MASSES, len(kept))).round().long()
    return kept[chosen]
