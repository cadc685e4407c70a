"""A net's fit of spectra, and again without what a refit rule masks."""

from __future__ import annotations

__all__ = ["SPECTRA_AT_A_TIME", "fit_by_rule", "joined"]

from collections.abc import Sequence

import torch
from torch import Tensor

from specfit.fitter.base import Refit
from specfit.fitter.signals import refit_signals
from specfit.fitter.talk import refit_talk
from specfit.fitter.windows import refit_windows
from specfit.net import BackgroundNet, CalibratedNet, LocalModel, Prediction
from specfit.weights import exposure_of, split_exposure

SPECTRA_AT_A_TIME = 512
"""Spectra that the net sees together: enough to keep a processor busy, few enough for its cache."""


def fit_by_rule(
    net: BackgroundNet,
    counts: Tensor,
    edges: Tensor,
    rule: str | None,
    *,
    mask: Tensor,
    exposure: Tensor | None = None,
) -> tuple[Prediction, Refit]:
    """Fits spectra, finds what a rule masks, and fits those again in which that is something.

    Args:
        net: That fits.
        counts: Events, shape `(m, n_bins)`; a guess of the background where masked.
        edges: Bin edges, shape `(n_bins + 1,)`.
        rule: `"signals"` (with a `CalibratedNet`), `"windows"`, `"talk"`, or None for no refit.
        mask: True for bins that are left out, shape `(m, n_bins)`.
        exposure: As for `BackgroundNet.predict`.
    """
    split = [torch.split(t, SPECTRA_AT_A_TIME) for t in (counts, mask)]
    parts = list(zip(*split, split_exposure(exposure, SPECTRA_AT_A_TIME, len(counts)), strict=True))
    if rule == "signals" and isinstance(net, CalibratedNet):
        fitted = [net.fitted(some, edges=edges, mask=out, exposure=e) for some, out, e in parts]
        calibrated = [net.calibrated(*one, out) for one, (_, out, _) in zip(fitted, parts, strict=True)]
        first = LocalModel(*joined([model for model, _ in fitted])), torch.cat([rate for _, rate in fitted])
        prediction = Prediction(*joined(calibrated))
        refit = refit_signals(net, counts, edges, first=first, mask=mask, exposure=exposure)
    else:
        predicted = [net.predict(some, edges=edges, mask=out, exposure=e) for some, out, e in parts]
        prediction = Prediction(*joined(predicted))
        refit = _by_bins(net, counts, edges, rule, prediction, mask=mask, exposure=exposure)
    changed = refit.iterations > 0
    if changed.any():
        # The talk's rule asks the net about replaced data; only the rules that mask leave them out.
        out = (mask if rule == "talk" else refit.mask)[changed]
        of_changed = exposure_of(exposure, changed)
        again = net.predict(refit.counts[changed], edges=edges, mask=out, exposure=of_changed)
        for whole, part in zip(prediction, again, strict=True):
            whole[changed] = part
    return prediction, refit


def joined(parts: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Joins what several pieces gave, field by field."""
    return [torch.cat(field) for field in zip(*parts, strict=True)]


def _by_bins(
    net: BackgroundNet,
    counts: Tensor,
    edges: Tensor,
    rule: str | None,
    first: Prediction,
    *,
    mask: Tensor,
    exposure: Tensor | None,
) -> Refit:
    """Follows a rule that looks at data and background alone."""
    if rule is None:
        return Refit(counts, mask, torch.zeros(len(counts), dtype=torch.int64), "no refit")
    if exposure is not None and len(counts) > 1:
        # These rules ask about some of the spectra, without saying which: each on its own.
        each = [
            _by_bins(
                net,
                counts[row],
                edges,
                rule,
                Prediction(*(t[row] for t in first)),
                mask=mask[row],
                exposure=exposure[row],
            )
            for row in torch.split(torch.arange(len(counts)), 1)
        ]
        data, masks, iterations = joined([(refit.counts, refit.mask, refit.iterations) for refit in each])
        return Refit(data, masks, iterations, each[0].message)
    if rule == "talk":
        return refit_talk(lambda data: _background(net, data, edges, exposure), counts, mask=mask)
    return refit_windows(
        lambda data, out: net.predict(data, edges=edges, mask=out, exposure=exposure), counts, first, mask=mask
    )


def _background(net: BackgroundNet, data: Tensor, edges: Tensor, exposure: Tensor | None) -> Tensor:
    """Returns what a net answers without its error, which takes longer."""
    if exposure is not None and isinstance(net, CalibratedNet):
        return net.fitted(data, edges=edges, exposure=exposure)[1].exp()
    background: Tensor = net(data if exposure is None else data / exposure, edges=edges)
    return background if exposure is None else background * exposure
