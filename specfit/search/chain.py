r"""The chain of a search: spectra in, a yield with its error and a local significance for every hypothesis out.

Every hypothesis of every spectrum is a row for `specfit.signal.extraction`. Everything that a search does with
pseudo-experiments runs this chain on each.
"""

from __future__ import annotations

__all__ = ["Chain", "ChainResult"]

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.inference import SpectrumFitter
from specfit.net import CalibratedNet
from specfit.parallel import on_all_cores
from specfit.search.toys.chunks import digest
from specfit.signal.extraction import extract, extract_largest
from specfit.signal.hypotheses import SignalHypotheses
from specfit.signal.rows import Rows

# Bins of all spectra and hypotheses that are fitted together: many, or threads wait for each other.
BINS_AT_A_TIME = 250_000


class ChainResult(NamedTuple):
    """What a search sees in each spectrum at each hypothesis."""

    yields: Tensor
    """Fitted events of the tested signal, shape `(m, h)`; negative for a deficit."""
    error: Tensor
    """Standard error of the yield, the background's included, shape `(m, h)`."""
    local_z: Tensor
    """Signed local significance, shape `(m, h)`."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Background by a net and signal by a column, fitted together at every hypothesis.

    Args:
        fitter: Its net has a local model (`net=learned_basis` or `any_binning`).
        edges: Bin edges of the spectra, shape `(n_bins + 1,)`.
        hypotheses: What is looked for.
        known: Templates of peaks that are fitted beside every hypothesis, shape `(q, n_bins)`.
        mask: True for bins to leave out, shape `(n_bins,)`.
        exposure: How many events a bin holds for each one of a smooth background, shape `(n_bins,)`; None for 1.

    Raises:
        InputError: The net has no local model.
    """

    fitter: SpectrumFitter
    edges: Tensor
    hypotheses: SignalHypotheses
    known: Tensor
    mask: Tensor
    exposure: Tensor | None = None

    def __post_init__(self) -> None:
        _ = self._net

    def __call__(self, counts: Tensor) -> ChainResult:
        """Runs the chain on counts `(m, n_bins)`."""
        parts = on_all_cores(self._summary, torch.split(counts.double(), self.spectra_at_a_time))
        return ChainResult(*(torch.cat(t) for t in zip(*parts, strict=True)))

    @torch.no_grad()
    def rows(self, counts: Tensor) -> Rows:
        """Runs the chain on counts `(m, n_bins)` and keeps everything, `m h` rows, those of one spectrum together."""
        return extract(self._net, **self._problem(counts))

    @torch.no_grad()
    def largest_rows(self, counts: Tensor) -> tuple[Rows, Tensor]:
        """Keeps everything of the most significant hypothesis of each spectrum, and which it is, shape `(m,)`."""
        rows, which = extract_largest(self._net, **self._problem(counts))
        return rows, which % len(self.hypotheses)

    @property
    def spectra_at_a_time(self) -> int:
        """How many spectra a thread takes together."""
        return max(1, BINS_AT_A_TIME // self.hypotheses.templates.numel())

    def weight(self, like: Tensor) -> Tensor:
        """Returns 0 for bins that are left out and 1 for others, in the shape of `like`."""
        return (~self.mask).to(like).expand_as(like)

    def exposed(self, shares: Tensor) -> Tensor:
        """Returns the events that shares `(*, n_bins)` of a signal make for a yield of 1."""
        return shares if self.exposure is None else shares * self.exposure

    @property
    def _net(self) -> CalibratedNet:
        net = self.fitter.net
        if not isinstance(net, CalibratedNet):
            raise InputError(
                f"checkpoint: {type(net).__name__} gives a background without saying what else is plausible, which a "
                "signal is fitted beside; take a net=learned_basis or net=any_binning"
            )
        return net

    def identity(self) -> dict[str, Any]:
        """Tells one search from another, whatever it is run on."""
        return {
            "net": digest(self.fitter.net.state_dict()),
            "search": digest(
                [self.edges, self.exposed(self.hypotheses.templates), self.exposed(self.known), self.mask]
            ),
        }

    @torch.inference_mode()
    def _summary(self, counts: Tensor) -> ChainResult:
        rows = self.rows(counts)
        return ChainResult(*(t.view(len(counts), -1) for t in (rows.fit.yields[:, 0], rows.error, rows.local_z)))

    def _problem(self, counts: Tensor) -> dict[str, Any]:
        """Returns what is asked about counts `(m, n_bins)`, `m h` rows, those of one spectrum together."""
        m, h = len(counts), len(self.hypotheses)
        mask = self.mask.expand_as(counts)
        exposure = None if self.exposure is None else self.exposure.expand_as(counts)
        return {
            "counts": self.fitter.fill(counts, mask, self.edges, exposure),
            "columns": self._columns().repeat(m, 1, 1),
            "spectrum": torch.arange(m).repeat_interleave(h),
            "edges": self.edges,
            "mask": mask,
            "exposure": exposure,
        }

    def _columns(self) -> Tensor:
        """Returns the events of each hypothesis for yields of 1, the tested one first, `(h, 1 + q, n_bins)`."""
        tested = self.hypotheses.templates[:, None]
        return self.exposed(torch.cat([tested, self.known.expand(len(tested), -1, -1)], 1))
