"""FittedSpectra: six validation spectra with their fits, as a picture in TensorBoard."""

from __future__ import annotations

__all__ = ["FittedSpectra"]

import io
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
        fitter = SpectrumFitter(pl_module.net, None if pl_module.net.n_bins is None else edges[0])
        picture = _pixels([fitter.fit(n, e, refit=None) for n, e in zip(counts, edges, strict=False)], truths)
        for logger in loggers:
            logger.experiment.add_image("fits", picture, trainer.global_step, dataformats="HWC")


def _pixels(fits: list[BackgroundFit], truths: Tensor) -> np.ndarray:
    """Renders the examples, shape `(height, width, 3)`, uint8."""
    file = io.BytesIO()
    draw_examples(fits, truths=list(truths)).savefig(file, format="png", dpi=80)
    return np.asarray(Image.open(file).convert("RGB"))
