"""SpectrumFitter and smooth_background: a trained net on a user's spectrum.

`SpectrumFitter.from_checkpoint()` loads once and fits many; `smooth_background` is the one call that answers in the
kind of object it was given. Both take one spectrum or a batch on the same edges.
"""

from __future__ import annotations

__all__ = ["REFITS", "EdgesMismatchError", "SpectrumFitter", "smooth_background"]

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from specfit import checkpoint as checkpoints
from specfit import io
from specfit.arrays import ArrayLike, as_float64
from specfit.background_fit import BackgroundFit
from specfit.errors import InputError
from specfit.fitter import Refit, refit_talk, refit_windows
from specfit.net import BackgroundNet, Prediction
from specfit.spectrum import Spectrum

RefitRule = Literal["windows", "talk"] | bool | None
REFITS = ("windows", "talk")
"""Rules that `refit` can name; True takes the first."""

# Spectra that are fitted at a time: large enough to keep the processor busy, small enough for its cache.
SPECTRA_AT_A_TIME = 1024


class EdgesMismatchError(InputError):
    """The spectrum has other edges than the checkpoint was trained for."""


class SpectrumFitter:
    """Fits the background of spectra with a trained net.

    Args:
        net: Trained for the edges.
        edges: Bin edges, shape `(n_bins + 1,)`.
        device: Where the net runs.

    Example:
        >>> fitter = SpectrumFitter.from_checkpoint()
        >>> fit = fitter.fit(1e5 * torch.exp(-torch.arange(50) / 8.0), refit=None)
        >>> fit.background.shape, fit.covariance.shape
        (torch.Size([50]), torch.Size([50, 50]))
    """

    def __init__(self, net: BackgroundNet, edges: ArrayLike, *, device: str | torch.device = "cpu") -> None:
        self.net = net.to(device).eval()
        self.edges = as_float64(edges, "edges")
        self.device = torch.device(device)
        if len(self.edges) != net.n_bins + 1:
            raise InputError(f"edges: the net has {net.n_bins} bins, {len(self.edges) - 1} came")

    @classmethod
    def from_checkpoint(cls, path: str | Path | None = None, *, device: str = "cpu") -> SpectrumFitter:
        """Loads a checkpoint: a file, the folder of a run, or None for the shipped default."""
        loaded = checkpoints.load(path)
        return cls(loaded.net, loaded.edges, device=device)

    def fit(self, spectrum: Any, edges: ArrayLike | None = None, *, refit: RefitRule = True) -> BackgroundFit:
        """Fits one spectrum or a batch.

        Args:
            spectrum: A Spectrum, counts of shape `(n_bins,)` or `(m, n_bins)`, or anything that `specfit.read` takes.
            edges: Bin edges for bare counts; the checkpoint's own if left out and the length fits.
            refit: `"windows"` masks what is significant with the looking counted, `"talk"` masks bin by bin down to
                one standard deviation (see `specfit.fitter`); True takes `"windows"`, None or False fits the data as
                they are.

        Raises:
            EdgesMismatchError: The edges are not those of the checkpoint; says how to train for them.
        """
        rule = _check_refit(refit)
        read = io.read(spectrum, edges, default_edges=self.edges)
        self._check_edges(read)
        counts = read.counts.view(-1, read.n_bins)
        scale = _events_scale(read)  # (m, 1): content units per event
        results = [self._fit_some(part, rule) for part in torch.split(counts / scale, SPECTRA_AT_A_TIME)]
        prediction = Prediction(*(torch.cat(parts) for parts in zip(*(p for p, _ in results), strict=True)))
        masks, iterations = (torch.cat([getattr(r, name) for _, r in results]) for name in ("mask", "iterations"))
        converged = prediction.background.isfinite().all(-1) & (prediction.background > 0).all(-1)
        take = slice(None) if read.is_batch else 0
        return BackgroundFit(
            spectrum=read,
            background=(prediction.background * scale)[take],
            factor=(prediction.factor * scale[..., None])[take],
            n_parameters=prediction.n_parameters[take],
            mask=masks[take],
            iterations=iterations[take],
            converged=converged[take],
            message=_message(results[0][1].message, read, converged),
        )

    @torch.no_grad()
    def _fit_some(self, counts: Tensor, rule: str | None) -> tuple[Prediction, Refit]:
        counts = counts.float().to(self.device)
        prediction = self.net.predict(counts)
        if rule is None:
            return _on_cpu(prediction), Refit(
                counts, torch.zeros_like(counts).bool().cpu(), torch.zeros(len(counts)).long(), "no refit"
            )
        if rule == "talk":
            refit = refit_talk(self.net, counts)
        else:
            refit = refit_windows(lambda data, mask: self.net.predict(data, mask=mask), counts, prediction)
        changed = refit.iterations > 0
        if changed.any():
            # The talk's rule asks the net about replaced data; only the rule that masks leaves them out.
            mask = None if rule == "talk" else refit.mask[changed]
            for whole, part in zip(prediction, self.net.predict(refit.counts[changed], mask=mask), strict=True):
                whole[changed] = part
        return _on_cpu(prediction), refit._replace(mask=refit.mask.cpu(), iterations=refit.iterations.cpu())

    def _check_edges(self, spectrum: Spectrum) -> None:
        own, edges = self.edges, spectrum.edges
        if len(edges) == len(own) and torch.allclose(edges, own, rtol=1e-6, atol=1e-9 * float(own.abs().max())):
            return
        low, high = (float(f"{v:.2g}") for v in (spectrum.total.min() / 2, spectrum.total.max() * 2))
        raise EdgesMismatchError(
            f"edges: this checkpoint fits {len(own) - 1} bins from {own[0]:g} to {own[-1]:g}, "
            f"the spectrum has {len(edges) - 1} bins from {edges[0]:g} to {edges[-1]:g}; train a net for them with "
            f"`specfit train experiment=quick name=mine edges=FILE data.generator.unit={_turn_on_unit(spectrum):.2g} "
            f"'data.generator.total=[{low:g},{high:g}]'`, then use it with `--checkpoint runs/mine`"
        )


def smooth_background(
    spectrum: Any,
    edges: ArrayLike | None = None,
    *,
    checkpoint: str | Path | None = None,
    refit: RefitRule = True,
) -> Any:
    """Returns the smooth background under a spectrum, as the same kind of object.

    Args:
        spectrum: An array of counts (one spectrum or a batch), a `hist` or boost histogram or any other UHI object, a
            Spectrum, or a tuple (counts, edges).
        edges: Bin edges for bare counts; the checkpoint's own if left out and the length fits.
        checkpoint: A checkpoint file or the folder of a run; the shipped default if None.
        refit: See `SpectrumFitter.fit`.

    Example:
        >>> import numpy as np
        >>> counts = np.round(1e5 * np.exp(-np.arange(50) / 8))
        >>> smooth_background(counts).shape
        (50,)
    """
    fit = SpectrumFitter.from_checkpoint(checkpoint).fit(spectrum, edges, refit=refit)
    return io.like(spectrum, fit.to_spectrum())


def _turn_on_unit(spectrum: Spectrum) -> float:
    """Guesses the generator's unit, in which a spectrum's density is largest near 400: just above the turn-on."""
    density = spectrum.counts.view(-1, spectrum.n_bins).sum(0) / spectrum.widths
    return float(spectrum.centers[density.argmax()].abs().clamp(min=1e-6)) / 400


def _on_cpu(prediction: Prediction) -> Prediction:
    return Prediction(*(part.cpu() for part in prediction))


def _check_refit(refit: RefitRule) -> str | None:
    if refit is None or refit is False:
        return None
    rule = REFITS[0] if refit is True else refit
    if rule not in REFITS:
        raise InputError(f"refit: one of {', '.join(map(repr, REFITS))}, True or None is expected, {refit!r} came")
    return rule


def _events_scale(spectrum: Spectrum) -> Tensor:
    """Computes content units per event of each spectrum, shape `(m, 1)`: 1 for counts."""
    counts = spectrum.counts.view(-1, spectrum.n_bins)
    if spectrum.variances is None:
        return torch.ones(len(counts), 1, dtype=torch.float64)
    scale = spectrum.variances.view_as(counts).sum(-1, keepdim=True) / counts.sum(-1, keepdim=True)
    return torch.where(scale > 0, scale, 1.0)


def _message(refit: str, spectrum: Spectrum, converged: Tensor) -> str:
    parts = [refit]
    if spectrum.is_weighted:
        parts.append("weighted contents, fitted as scaled Poisson counts")
    if not converged.all():
        parts.append(
            f"{int((~converged).sum())} of {len(converged)} fits gave no finite positive background: "
            "the spectrum is unlike those trained on; train for it (specfit train)"
        )
    return "; ".join(parts)
