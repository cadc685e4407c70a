"""FitterModule: the training step of any net, and the figures that judge it."""

from __future__ import annotations

__all__ = ["FitterModule"]

from collections.abc import Callable
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import SumMetric

from specfit.generator import Batch
from specfit.information_limit import USED_ABOVE
from specfit.net import BackgroundNet, significance_loss
from specfit.significance import poisson_deviance


class FitterModule(pl.LightningModule):
    """Trains a net with the significance loss on every stage.

    Logs `train/loss`, `val/loss`, `val/rms` and `val/bias` (pooled over bins and spectra, in units of the statistical
    error), and `val/rms_over_limit` where the limit is known.

    Args:
        net: What is trained.
        optimizer: Makes the optimizer from parameters.
        scheduler: Makes the learning-rate schedule from the optimizer and `total_steps`, or None.
        stage_weight: Weight of the loss of every stage but the last.
        clip: Largest norm of the gradient, or None. A step whose gradient is not finite is left out.
        robust: Where the loss of a spectrum stops to count by its size and begins to count by its logarithm, so that no
            spectrum of a wide prior outweighs the others; None: it always counts by its size.
        limit: RMS of an efficient estimator on the validation set, or None.
    """

    def __init__(
        self,
        net: BackgroundNet,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
        stage_weight: float = 0.3,
        clip: float | None = 1.0,
        robust: float | None = None,
        limit: float | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.stage_weight, self.clip, self.robust, self.limit = stage_weight, clip, robust, limit
        self.squares, self.sums, self.used = SumMetric(), SumMetric(), SumMetric()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's signature)
        """Computes the loss of one batch."""
        *early, last = (self._loss(stage, batch.background) for stage in self._stages(batch))
        self.log("train/loss", last, prog_bar=True)
        return last + self.stage_weight * sum(early)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """Accumulates the figures of one batch."""
        background = self._stages(batch)[-1]
        self.log("val/loss", self._loss(background, batch.background), sync_dist=True, batch_size=1)
        used = batch.background > USED_ABOVE
        residual = ((background - batch.background) / batch.background.sqrt())[used].double()
        self.squares.update(residual.square().sum())
        self.sums.update(residual.sum())
        self.used.update(used.sum())

    def on_validation_epoch_end(self) -> None:
        """Logs the pooled figures."""
        used = self.used.compute()
        rms = (self.squares.compute() / used).sqrt()
        self.log("val/rms", rms, prog_bar=True)
        self.log("val/bias", self.sums.compute() / used)
        if self.limit:
            self.log("val/rms_over_limit", rms / self.limit, prog_bar=True)
        for metric in (self.squares, self.sums, self.used):
            metric.reset()

    def _stages(self, batch: Batch) -> list[Tensor]:
        return self.net.stages(batch.counts, edges=batch.edges, mask=batch.mask)

    def _loss(self, background: Tensor, truth: Tensor) -> Tensor:
        if self.robust is not None:
            loss = poisson_deviance(truth.double(), background.double()).mean(-1) / 2  # (m,)
            return self.robust * torch.log1p(loss / self.robust).mean()
        return significance_loss(background, truth, normalize=self.net.keeps_total)

    def configure_optimizers(self) -> Any:
        """Makes the optimizer and, stepped with every batch, the schedule."""
        optimizer = self.make_optimizer(self.net.parameters())
        if self.make_scheduler is None:
            return optimizer
        # OneCycleLR divides by the steps of its phases, which a trial run of a few steps does not have.
        steps = max(int(self.trainer.estimated_stepping_batches), 100)
        scheduler = self.make_scheduler(optimizer, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clips the gradient; one that is not finite moves nothing."""
        parameters = [p for p in self.net.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in parameters])
        if not norm.isfinite():
            optimizer.zero_grad(set_to_none=True)
        elif self.clip is not None and norm > self.clip:  # most are not, and need not be written again
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
