r"""validate: the acceptance sheet of a background model on one spectrum, filled in by pseudo-experiments.

Pseudo-data are drawn at the spectrum's own number of events from two backgrounds: the fitted one, and a function of
another family fitted to the same data (`specfit.search.alternatives`), without which the test would be circular: a net
describes its own answers well. On each, the whole chain of a search runs on background alone, and on injected signals
(`specfit.search.inject`). `specfit.search.criteria` holds what is asked, with thresholds and sources.
"""

from __future__ import annotations

__all__ = ["BackgroundToys", "validate"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specfit.arrays import ArrayLike
from specfit.background_fit import BackgroundFit
from specfit.errors import InputError
from specfit.inference import SpectrumFitter
from specfit.search.alternatives import LEAST_P, best_alternative
from specfit.search.chain import Chain
from specfit.search.criteria import ToyStudy, criteria_of_data, criteria_of_toys
from specfit.search.excess import largest_excess
from specfit.search.injection import CHUNK, contents, expected_background, inject_into, injection_chain
from specfit.search.pseudo_experiments import Report, Running
from specfit.search.scanning import fitted, make_chain
from specfit.search.sheet import ValidationSheet
from specfit.search.toys.chunks import digest
from specfit.spectrum import Spectrum

FEWEST_TOYS = 10


def validate(
    spectrum: Any,
    edges: ArrayLike | None = None,
    *,
    checkpoint: str | Path | SpectrumFitter | None = None,
    mass: ArrayLike | None = None,
    width: float | Sequence[float] = 0.05,
    n_toys: int = 100,
    truth: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    seed: int = 1,
    workers: int = 1,
    scheduler: str | None = None,
    store: str | Path | None = None,
    progress: bool | Report = False,
) -> ValidationSheet:
    """Fills in the acceptance sheet of the background model for one spectrum.

    Args:
        spectrum: What `SpectrumFitter.fit` takes, one spectrum.
        edges: Bin edges for bare counts.
        checkpoint: A checkpoint, a run's folder, a `SpectrumFitter`, or None for the shipped net.
        mass: Masses of the injected signals; None chooses five, see `specfit.search.inject`.
        width: Standard deviation of the signals: a share of the mass, or several.
        n_toys: Pseudo-experiments for each background, and for each signal on it; 100 are usual.
        truth: Expected background, in the unit of the contents, shape `(n_bins,)`, from simulation, say; takes the
            place of the fitted one.
        mask: Bins to leave out, see `SpectrumFitter.fit`.
        seed: Decides the pseudo-experiments.
        workers: Processes for them; `scheduler`, `store` and `progress`: see `run_pseudo_experiments`.
        scheduler: Address of a Dask scheduler.
        store: Folder that keeps them.
        progress: Whether to draw a bar for each run, or a function that is called with what is done.

    Raises:
        InputError: What came is not one spectrum, or an argument cannot be used.

    Example:
        >>> import numpy as np
        >>> counts = np.round(1e5 * np.exp(-np.arange(50) / 8))
        >>> sheet = validate(counts, mass=[500.0], n_toys=10)
        >>> sheet.criteria[0].name, sheet.criteria[0].passed
        ('Background-only fit of the data', True)
    """
    if n_toys < FEWEST_TOYS:
        raise InputError(f"n_toys: at least {FEWEST_TOYS} are expected, {n_toys} came; 100 are usual")
    fitter, fit = fitted(spectrum, edges, checkpoint=checkpoint, mask=mask)
    unit = float(fit.weights.unit)
    scan = make_chain(fitter, fit, width=width, left_out=mask)
    backgrounds, alternative = _backgrounds(fit, truth, scan.mask)
    # One choice of signals, so that the backgrounds can be compared.
    signals = injection_chain(fitter, fit, next(iter(backgrounds.values())), mass=mass, width=width, mask=mask)
    running = Running(seed=seed, workers=workers, scheduler=scheduler, store=store, progress=progress)
    studies = [
        _study(name, background, scan, signals, unit=unit, n_toys=n_toys, running=running.inside(f"background_{i}"))
        for i, (name, background) in enumerate(backgrounds.items())
    ]
    largest = largest_excess(scan, (fit.spectrum.counts / fit.weights.of_bins)[None])
    global_p = float(largest.global_p)
    criteria = criteria_of_data(fit, float(largest.local_z), global_p, studies[0], alternative)
    for study in studies:
        criteria += criteria_of_toys(study)
    return ValidationSheet(
        spectrum=fit.spectrum, fit=fit, criteria=tuple(criteria), studies=tuple(studies), global_p=global_p
    )


@dataclass(frozen=True, eq=False)
class BackgroundToys:
    """Pseudo-experiments without signal: the background fitted as a user would, and searched as a user would.

    Args:
        chain: The search.
        background: Expected events, shape `(n_bins,)`.
    """

    chain: Chain
    background: Tensor

    def __call__(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Draws, fits and searches; p-values of fit and search `(size,)`, fitted backgrounds `(size, n_bins)`."""
        counts = torch.poisson(self.background.expand(size, -1), generator=rng)
        exposure = self.chain.exposure
        if exposure is None:
            spectra = Spectrum(counts, self.chain.edges)
        else:  # in events of average weight
            spectra = Spectrum(counts / exposure, self.chain.edges, variances=counts / exposure.square())
        fit = self.chain.fitter.fit(spectra, mask=self.chain.mask)
        found = largest_excess(self.chain, counts)
        return {
            "p_value": fit.p_value,
            "background": fit.background,
            "local_z": found.local_z,
            "global_p": found.global_p,
        }

    def identity(self) -> dict[str, Any]:
        """Tells one job from another."""
        return {
            "job": "background fitted and searched",
            **self.chain.identity(),
            "background": digest(self.background),
        }


def _study(
    name: str, background: Tensor, scan: Chain, signals: Chain, *, unit: float, n_toys: int, running: Running
) -> ToyStudy:
    """Runs both kinds of pseudo-experiments on one background."""
    toys = running.inside("alone").values(BackgroundToys(scan, background), n_toys, chunk_size=CHUNK)
    injected = inject_into(signals, background, unit=unit, n_toys=n_toys, running=running.inside("with_signals"))
    return ToyStudy(
        name=name,
        truth=contents(scan, background, unit),
        injection=injected,
        p_values=toys["p_value"],
        global_p=toys["global_p"],
        mean_background=toys["background"].mean(0) * unit,
        weights=contents(scan, torch.ones_like(background), unit),
        mask=scan.mask,
    )


def _backgrounds(fit: BackgroundFit, truth: ArrayLike | None, mask: Tensor) -> tuple[dict[str, Tensor], str]:
    """Returns the backgrounds to draw from, in events, and what the alternative is or why there is none."""
    own = "fitted background" if truth is None else "given background"
    backgrounds = {own: expected_background(fit, truth).clamp(min=0.0)}
    weights = fit.weights
    # What the fit took for signal belongs to no background.
    best = best_alternative(
        fit.spectrum.counts / weights.of_bins, fit.spectrum.edges, ~(mask | fit.mask), exposure=weights.exposure
    )
    if best.p_value > LEAST_P:
        backgrounds[best.name] = best.background
        return backgrounds, f"{best.name}, p = {best.p_value:.2g}"
    return backgrounds, ""
