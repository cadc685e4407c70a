"""What a training tells while it runs.

- `FittedSpectra`: six validation spectra with their fits, as a picture in TensorBoard.
- `EpochLog`: a line an epoch, for the run's log and for terminals that no bar can be drawn on.
"""

from __future__ import annotations

__all__ = ["EpochLog", "FittedSpectra"]

import io
import logging
import time
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from specfit.background_fit import BackgroundFit
from specfit.generator import Batch
from specfit.inference import SpectrumFitter
from specfit.plots import draw_examples
from specfit.training.module import FitterModule

EXAMPLES = 6
FIGURES = ("train/loss", "val/loss", "val/rms", "val/bias", "val/rms_over_limit")

log = logging.getLogger(__name__)


class EpochLog(pl.Callback):
    """Logs the figures of every epoch, how long it took, and how long the rest will take."""

    def __init__(self) -> None:
        self.began = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Looks at the clock."""
        self.began = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Logs a line, from the main process alone; validation is over by then."""
        if not trainer.is_global_zero:
            return
        took, done, size = time.monotonic() - self.began, trainer.current_epoch + 1, trainer.max_epochs
        known = {name: float(trainer.callback_metrics[name]) for name in FIGURES if name in trainer.callback_metrics}
        figures = ", ".join(f"{name} {value:.4g}" for name, value in known.items())
        rest = f", at most {took * (size - done) / 60:.3g} min left" if size and size > done else ""
        log.info("epoch %d%s: %s; %.3g s%s", done, f" of {size}" if size and size > 0 else "", figures, took, rest)


class FittedSpectra(pl.Callback):
    """Draws six fitted spectra after a validation.

    Args:
        every_n_epochs: Epochs between two pictures.
    """

    def __init__(self, *, every_n_epochs: int = 5) -> None:
        self.every_n_epochs = every_n_epochs

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the picture to every TensorBoard logger of the main process."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        is_due = trainer.current_epoch % self.every_n_epochs == 0 and not trainer.sanity_checking
        if not (loggers and is_due and trainer.is_global_zero and isinstance(pl_module, FitterModule)):
            return
        loader: DataLoader[Batch] = cast(Any, trainer.val_dataloaders)
        batch = next(iter(loader))
        counts, truths = (t[:EXAMPLES].cpu().double() for t in (batch.counts, batch.background))
        edges = batch.edges.cpu().double().expand(len(batch.counts), -1)
        # On the device of the training: a fitter takes its net along.
        fitter = SpectrumFitter(
            pl_module.net, None if pl_module.net.n_bins is None else edges[0], device=pl_module.device
        )
        picture = _pixels([fitter.fit(n, e, refit=None) for n, e in zip(counts, edges, strict=False)], truths)
        for logger in loggers:
            logger.experiment.add_image("fits", picture, trainer.global_step, dataformats="HWC")


def _pixels(fits: list[BackgroundFit], truths: Tensor) -> np.ndarray:
    """Renders the examples, shape `(height, width, 3)`, uint8."""
    file = io.BytesIO()
    draw_examples(fits, truths=list(truths)).savefig(file, format="png", dpi=80)
    return np.asarray(Image.open(file).convert("RGB"))
