"""SpectrumFitter and smooth_background: a trained net on a user's spectrum.

`SpectrumFitter.from_checkpoint()` loads once and fits many; `smooth_background` is the one call that answers in the
kind of object it was given. Both take one spectrum or a batch on the same edges.
"""

from __future__ import annotations

__all__ = ["REFITS", "EdgesMismatchError", "Reading", "SpectrumFitter", "refit_rule", "smooth_background"]

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from specfit import checkpoint as checkpoints
from specfit import io
from specfit.arrays import ArrayLike, as_float64, usable_device
from specfit.background_fit import BackgroundFit
from specfit.errors import InputError
from specfit.fitter import SPECTRA_AT_A_TIME, Refit, fit_by_rule, joined
from specfit.guard import Verdict, judge
from specfit.masks import bridged, describe_gaps, left_out_bins
from specfit.net import BackgroundNet, CalibratedNet, Prediction
from specfit.parallel import on_all_cores
from specfit.spectrum import Spectrum, check_events
from specfit.weights import describe_weights, event_weights, split_exposure

RefitRule = Literal["signals", "windows", "talk"] | bool | None
REFITS = ("signals", "windows", "talk")
"""Rules that `refit` can name; True takes the first that the net can follow."""

# A thread takes several pieces that the net sees together, so that the few spectra with a signal are refitted together:
# of very many spectra an eighth, but no more bins.
FEWEST_TOGETHER, BINS_TOGETHER, PIECES = 2048, 400_000, 8


class EdgesMismatchError(InputError):
    """The spectrum has other edges than the checkpoint was trained for."""


class Reading(NamedTuple):
    """What came, and what fits it."""

    fitter: SpectrumFitter
    """That was asked, or the one of any binning in its place."""
    spectrum: Spectrum
    notes: list[str]
    """What has to be said about both."""


class SpectrumFitter:
    """Fits the background of spectra with a trained net.

    Args:
        net: A trained net.
        edges: Bin edges, shape `(n_bins + 1,)`; None for a net of any binning.
        device: Where the net runs.
        any_binning: Whether the shipped net of any binning fits the spectra with other edges.

    Example:
        >>> fitter = SpectrumFitter.from_checkpoint()
        >>> fit = fitter.fit(1e5 * torch.exp(-torch.arange(50) / 8.0), refit=None)
        >>> fit.background.shape, fit.covariance.shape
        (torch.Size([50]), torch.Size([50, 50]))
    """

    def __init__(
        self,
        net: BackgroundNet,
        edges: ArrayLike | None,
        *,
        device: str | torch.device = "cpu",
        any_binning: bool = False,
    ) -> None:
        self.device = usable_device(device)
        self.net = net.to(self.device).eval()
        self.edges = None if edges is None else as_float64(edges, "edges")
        n_bins = None if self.edges is None else len(self.edges) - 1
        if n_bins != net.n_bins:
            raise InputError(f"edges: the net has {net.n_bins or 'any number of'} bins, {n_bins or 'no'} bins came")
        self._takes_any, self._of_any_binning = any_binning, cast("SpectrumFitter | None", None)

    @classmethod
    def from_checkpoint(cls, path: str | Path | None = None, *, device: str = "cpu") -> SpectrumFitter:
        """Loads a checkpoint: a file, the folder of a run, or None for what is shipped.

        What is shipped fits any spectrum: the net of the reference task those with its edges, that of any binning the
        others.
        """
        loaded = checkpoints.load(path)
        return cls(loaded.net, loaded.edges, device=device, any_binning=path is None)

    def read(self, spectrum: Any, edges: ArrayLike | None = None) -> Reading:
        """Reads what `fit` would (arguments as there), and says what fits it.

        Raises:
            EdgesMismatchError: The edges are not those of the checkpoint, and it was named.
        """
        note = []
        try:
            read = io.read(spectrum, edges)
        except io.MissingEdgesError as error:
            own, n = self.edges, error.n_bins
            if own is not None and len(own) == n + 1:
                note.append(f"no edges came: those of the net are assumed, {n} bins from {own[0]:g} to {own[-1]:g}")
            elif own is None or self._takes_any:
                own = torch.arange(n + 1)
                note.append(f"no edges came: {n} bins of equal width are assumed, counted from 0")
            read = io.read(spectrum, default_edges=own)
        if self._has_edges_of(read):
            return Reading(self, read, note)
        if not self._takes_any:
            raise EdgesMismatchError(self._mismatch(read))
        if self._of_any_binning is None:
            path = checkpoints.shipped(checkpoints.ANY_BINNING)
            self._of_any_binning = type(self).from_checkpoint(path, device=str(self.device))
        return Reading(self._of_any_binning, read, [*note, "fitted by the net of any binning"])

    def fit(
        self,
        spectrum: Any,
        edges: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        refit: RefitRule = True,
    ) -> BackgroundFit:
        """Fits one spectrum or a batch.

        Args:
            spectrum: A Spectrum, counts of shape `(n_bins,)` or `(m, n_bins)`, or anything that `specfit.read` takes.
                Its gaps are left out like what `mask` names.
            edges: Bin edges for bare counts. Left out, they are the checkpoint's own if the length fits; a net of any
                binning assumes bins of equal width. The message says which.
            mask: Bins to leave out (a blinded window, say): windows `[(low, high), ...]` in the unit of the edges, of
                which every bin that overlaps is left out, or true for each such bin, shape `(n_bins,)` or
                `(m, n_bins)`. The background there is interpolated, with the error of that.
            refit: `"signals"` masks windows where a signal beside the background is significant with the looking
                counted, `"windows"` where bins are far above the background alone, `"talk"` bin by bin down to one
                standard deviation (see `specfit.fitter`); True takes the first that the net can follow, None or False
                fits the data as they are.

        Raises:
            EdgesMismatchError: The edges are not those of the checkpoint; says how to train for them.
        """
        rule = refit_rule(refit, self.net)
        chosen, read, note = self.read(spectrum, edges)
        if chosen is not self:
            fit = chosen.fit(read, mask=mask, refit=refit)
            return replace(fit, message="; ".join([fit.message, *note]))
        counts, left_out = read.counts.view(-1, read.n_bins), left_out_bins(read, mask)
        out = left_out if read.is_batch else left_out[0]
        weights = event_weights(read, out)
        # Plain counts are events already: nothing is scaled, and nothing back.
        scale = None if weights.are_one else weights.of_bins.view_as(counts)
        events = counts if scale is None else counts / scale
        check_events(events.masked_fill(left_out, 0.0))
        exposure = None if weights.exposure is None else weights.exposure.view_as(counts)
        together = _spectra_together(events, rule)
        split = [torch.split(t, together) for t in (events, left_out)]
        pieces = zip(*split, split_exposure(exposure, together, len(events)), strict=True)
        parts = on_all_cores(lambda piece: self._fit_some(piece[0], piece[1], piece[2], read.edges, rule), pieces)
        prediction = Prediction(*joined([part.prediction for part in parts]))
        verdict = Verdict(*joined([part.verdict for part in parts]))
        refits = [part.refit for part in parts]
        masks, iterations = (torch.cat([getattr(r, name) for r in refits]) for name in ("mask", "iterations"))
        note += describe_weights(read, out)
        if read.variances is None and (counts != counts.round()).any():
            note.append("contents are no whole numbers and came without variances: taken for numbers of events")
        note += describe_gaps(read)
        take = slice(None) if read.is_batch else 0
        return BackgroundFit(
            spectrum=read,
            background=(prediction.background if scale is None else prediction.background * scale)[take],
            factor=(prediction.factor if scale is None else prediction.factor * scale[..., None])[take],
            n_parameters=prediction.n_parameters[take],
            mask=masks[take],
            iterations=iterations[take],
            converged=verdict.converged[take],
            message="; ".join([refits[0].message, *_describe(refits), *note, *verdict.reasons]),
            left_out=left_out[take] if left_out.any() else None,
        )

    def fill(self, counts: Tensor, left_out: Tensor, edges: Tensor, exposure: Tensor | None = None) -> Tensor:
        """Puts a guess of the background into bins that are left out, so that nothing sees what is there.

        Args:
            counts: Events, shape `(m, n_bins)`.
            left_out: True for such bins, same shape.
            edges: Bin edges, shape `(n_bins + 1,)`.
            exposure: As for `BackgroundNet.predict`.
        """
        if not left_out.any():
            return counts
        # Bridged first by a straight line, then by the net's own answer.
        if exposure is None:
            counts = bridged(counts, left_out, edges)
        else:
            counts = torch.where(left_out, bridged(counts / exposure, left_out, edges) * exposure, counts)
        guess = self.net.predict(counts, edges=edges, mask=left_out, exposure=exposure).background
        return torch.where(left_out, guess, counts)

    @torch.inference_mode()  # a tenth faster than without gradients alone
    def _fit_some(
        self, events: Tensor, left_out: Tensor, exposure: Tensor | None, edges: Tensor, rule: str | None
    ) -> _Fitted:
        """Fits some spectra on one thread."""
        counts, edges, left_out = (t.to(self.device) for t in (events, edges, left_out))
        of_bins = None if exposure is None else exposure.to(self.device)
        counts = self.fill(counts, left_out, edges, of_bins)
        prediction, refit = fit_by_rule(self.net, counts, edges, rule, mask=left_out, exposure=of_bins)
        prediction = _on_cpu(prediction)
        refit = refit._replace(mask=refit.mask.cpu(), iterations=refit.iterations.cpu())
        # A net for one binning knows what it was made for; one for any binning takes a peak for one more smooth shape.
        own = edges.cpu() if self.edges is None else None
        masks = {"mask": refit.mask, "left_out": left_out.cpu()}
        return _Fitted(prediction, refit, judge(events, prediction, exposure=exposure, edges=own, **masks))

    def _has_edges_of(self, spectrum: Spectrum) -> bool:
        own, edges = self.edges, spectrum.edges
        if own is None:
            return True
        tolerance = 1e-9 * float(own.abs().max())
        return len(edges) == len(own) and torch.allclose(edges, own, rtol=1e-6, atol=tolerance)

    def _mismatch(self, spectrum: Spectrum) -> str:
        """Says how to come by a net for the edges of a spectrum."""
        own, edges = cast(Tensor, self.edges), spectrum.edges
        low, high = (float(f"{v:.2g}") for v in (spectrum.total.min() / 2, spectrum.total.max() * 2))
        return (
            f"edges: this checkpoint fits {len(own) - 1} bins from {own[0]:g} to {own[-1]:g}, "
            f"the spectrum has {len(edges) - 1} bins from {edges[0]:g} to {edges[-1]:g}; use the shipped net for any "
            f"edges (`--checkpoint {Path(checkpoints.ANY_BINNING).stem}`), or train a net for these with "
            f"`specfit train experiment=quick name=mine edges=FILE data.generator.unit={_turn_on_unit(spectrum):.2g} "
            f"'data.generator.total=[{low:g},{high:g}]'` and use it with `--checkpoint runs/mine`"
        )


class _Fitted(NamedTuple):
    """What is known of some spectra."""

    prediction: Prediction
    refit: Refit
    verdict: Verdict


def smooth_background(
    spectrum: Any,
    edges: ArrayLike | None = None,
    *,
    checkpoint: str | Path | None = None,
    mask: ArrayLike | None = None,
    refit: RefitRule = True,
) -> Any:
    """Returns the smooth background under a spectrum, as the same kind of object.

    Args:
        spectrum: An array of counts (one spectrum or a batch), a `hist` or boost histogram or any other UHI object, a
            Spectrum, or a tuple (counts, edges). Gaps of a Spectrum, or of a `.csv` file, are interpolated.
        edges: Bin edges for bare counts; see `SpectrumFitter.fit` for what happens without.
        checkpoint: A checkpoint file or the folder of a run; what is shipped if None.
        mask: Bins to leave out, see `SpectrumFitter.fit`.
        refit: See `SpectrumFitter.fit`.

    Example:
        >>> import numpy as np
        >>> counts = np.round(1e5 * np.exp(-np.arange(50) / 8))
        >>> smooth_background(counts).shape
        (50,)
    """
    fit = SpectrumFitter.from_checkpoint(checkpoint).fit(spectrum, edges, mask=mask, refit=refit)
    return io.like(spectrum, fit.to_spectrum())


def _turn_on_unit(spectrum: Spectrum) -> float:
    """Guesses the generator's unit, in which a spectrum's density is largest near 400: just above the turn-on."""
    density = spectrum.counts.view(-1, spectrum.n_bins).sum(0) / spectrum.widths
    return float(spectrum.centers[density.argmax()].abs().clamp(min=1e-6)) / 400


def _describe(refits: list[Refit]) -> list[str]:
    """Says what was masked for which signals; of many spectra only how many there were."""
    found, size = [one for refit in refits for one in refit.found], sum(len(refit.mask) for refit in refits)
    if size > 1:
        n_spectra = sum(len({one.row for one in refit.found}) for refit in refits)
        return [f"masked {n_spectra} of {size} spectra"] if n_spectra else []
    return [
        f"masked around {one.mass:.4g}: {one.local_z:.1f} sigma of a signal {one.width:.2g} wide beside the background "
        f"(p = {one.p_value:.1g} anywhere)"
        for one in found
    ]


def _spectra_together(events: Tensor, rule: str | None) -> int:
    """Returns how many spectra a thread takes at a time."""
    if rule is None:
        return SPECTRA_AT_A_TIME
    m, n_bins = events.shape
    return max(FEWEST_TOGETHER, min(BINS_TOGETHER // n_bins, math.ceil(m / PIECES)))


def _on_cpu(prediction: Prediction) -> Prediction:
    return Prediction(*(part.cpu() for part in prediction))


def refit_rule(refit: RefitRule, net: BackgroundNet) -> str | None:
    """Returns the rule that `refit` stands for with this net, None for none.

    Raises:
        InputError: There is no such rule, or the net cannot follow it.
    """
    if refit is None or refit is False:
        return None
    if refit is True:
        return "signals" if isinstance(net, CalibratedNet) else "windows"
    if refit not in REFITS:
        raise InputError(f"refit: one of {', '.join(map(repr, REFITS))}, True or None is expected, {refit!r} came")
    if refit == "signals" and not isinstance(net, CalibratedNet):
        raise InputError(
            f"refit: {type(net).__name__} does not say what is plausible, which a signal is tested beside; take "
            "refit='windows', or a net=learned_basis or net=any_binning"
        )
    return refit
