"""What a search knows of each hypothesis of each spectrum: see `specfit.signal.extraction`."""

from __future__ import annotations

__all__ = ["Rows"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.net import LocalModel
from specfit.net.posterior import combined
from specfit.signal.joint_fit import JointFit
from specfit.signal.uncertain_error import significance
from specfit.weights import exposure_of


class Rows(NamedTuple):
    """Everything that is known of each row, a hypothesis of a spectrum."""

    data: Tensor
    """Events, shape `(r, n_bins)`."""
    columns: Tensor
    """Events for yields of 1, of the tested signal first, then of the known peaks, shape `(r, 1 + q, n_bins)`."""
    exposure: Tensor | None
    """How many events a bin holds for each one of a smooth background, shape `(r, n_bins)`; None for 1."""
    model: LocalModel
    """What the net holds for plausible without the signal."""
    fit: JointFit
    """Background and signals together."""
    without: JointFit
    """The same model without the tested signal."""
    widening: Tensor
    """By how much the error of the tested yield is wider than this local model knows, shape `(r,)`."""
    weakening: Tensor
    """By how many times wider it would have to be for the significance that is left, shape `(r,)`: more where other
    backgrounds explain a signal wholly, whatever its size."""
    imitation: Tensor
    """The part of that which is there because backgrounds far from what the net expects imitate it, shape `(r,)`."""
    misfit: Tensor
    """The part of both which is there because background and signals do not describe the data, shape `(r,)`."""
    features: Tensor
    """What the learned part of that depends on, for who teaches it, shape `(r, N_OF_YIELD)`."""

    @property
    def error(self) -> Tensor:
        """Standard error of the tested yield, shape `(r,)`."""
        return self.fit.covariance[:, 0, 0].sqrt() * self.widening

    @property
    def rate(self) -> Tensor:
        """Expected events of background and signals, deficits left out, shape `(r, n_bins)`."""
        return self.fit.background + combined(self.fit.yields.clamp(min=0.0), self.columns.mT)

    @property
    def local_z(self) -> Tensor:
        """Signed local significance, shape `(r,)`."""
        # What a likelihood ratio says is certain: it takes from the significance just its share.
        z = significance(self._root, self.weakening / self.imitation) / self.imitation
        return self.fit.yields[:, 0].sign() * z

    @property
    def pull(self) -> Tensor:
        """Signed local significance with a certain widening where the data are described, shape `(r,)`."""
        certain = self.fit.yields[:, 0].sign() * self._root / self.weakening
        return torch.where(self.misfit > 1, self.local_z, certain)

    @property
    def _root(self) -> Tensor:
        return (2 * (self.without.nll - self.fit.nll)).clamp(min=0.0).sqrt()

    def of(self, chosen: Tensor) -> Rows:
        """Takes some, by indices `(r,)`."""
        model = LocalModel(*(t[chosen] for t in self.model))
        fit, without = (JointFit(*(t[chosen] for t in one)) for one in (self.fit, self.without))
        data, columns, *others = (t[chosen] for t in (self.data, self.columns, *self._factors))
        return Rows(data, columns, exposure_of(self.exposure, chosen), model, fit, without, *others)

    def over_exposure(self, events: Tensor) -> Tensor:
        """Returns how many events `(r, n_bins)` would be in bins of exposure 1."""
        return events if self.exposure is None else events / self.exposure

    def write(self, which: Tensor, others: Rows) -> None:
        """Puts what was found for others in the place of some, by indices `(r,)`; data and columns are the same."""
        for kept, changed in zip(self._found, others._found, strict=True):
            kept[which] = changed

    @property
    def _found(self) -> tuple[Tensor, ...]:
        return *self.model, *self.fit, *self.without, *self._factors

    @property
    def _factors(self) -> tuple[Tensor, ...]:
        return self.widening, self.weakening, self.imitation, self.misfit, self.features
