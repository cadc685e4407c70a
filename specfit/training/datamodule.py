"""SpectrumDataModule: batches of sampled spectra, each a pure function of the seed, the epoch and its number.

Nothing is stored and nothing has to be remembered: a resumed run, a run on two processes and an undisturbed run see the
same spectra. `fresh=True` makes new spectra in every epoch, without end; `fresh=False` keeps one set of models and
draws it again, batch by batch in a new order, as a stored training sample would.
"""

from __future__ import annotations

__all__ = ["SpectrumDataModule"]

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from specfit.errors import InputError
from specfit.generator import Batch, SpectrumGenerator, WideGenerator
from specfit.randomness import independent_rng

TRAINING, VALIDATION, ORDER = 0, 1, 2


class SpectrumDataModule(pl.LightningDataModule):
    """Training batches from a generator, and a fixed validation set of pure backgrounds.

    Args:
        generator: What is sampled; its signal is left out of the validation set.
        batch_size: Spectra a batch.
        batches_per_epoch: Batches between two validations, over all processes.
        validation_size: Spectra of the validation set, rounded up to whole batches.
        fresh: New spectra in every epoch, or the same `batches_per_epoch * batch_size` again.
        seed: Decides every spectrum.
        device: Where spectra are sampled, such as `"cpu"` or `"cuda"`.
        num_workers: Processes that sample ahead; 0 samples in the training process.
    """

    def __init__(
        self,
        generator: SpectrumGenerator | WideGenerator,
        *,
        batch_size: int = 128,
        batches_per_epoch: int = 500,
        validation_size: int = 4096,
        fresh: bool = True,
        seed: int = 1,
        device: str = "cpu",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if min(batch_size, batches_per_epoch, validation_size) < 1:
            raise InputError("batch_size, batches_per_epoch and validation_size must be at least 1")
        self.generator = generator
        self.batch_size, self.batches_per_epoch, self.fresh, self.seed = batch_size, batches_per_epoch, fresh, seed
        self.validation_batches = -(-validation_size // batch_size)
        self.device, self.num_workers = device, num_workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """Makes the loader of training batches for this process."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self._loader(
            _SampledBatches(self.generator, self.batch_size, (self.seed, TRAINING), self.device),
            _BatchNumbers(self.batches_per_epoch, fresh=self.fresh, seed=self.seed, rank=rank, world=world),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Makes the loader of the fixed validation set; with several processes each sees its share."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        numbers = list(range(rank, self.validation_batches, world))
        dataset = _SampledBatches(
            self.generator.without_signal(), self.batch_size, (self.seed, VALIDATION), self.device
        )
        return self._loader(dataset, numbers)

    def _loader(self, dataset: _SampledBatches, sampler: Any) -> DataLoader[Batch]:
        # batch_size=None: the data set already answers with whole batches.
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class _SampledBatches(Dataset[Batch]):
    """Batch number k, sampled when it is asked for."""

    def __init__(
        self, generator: SpectrumGenerator | WideGenerator, batch_size: int, seed: tuple[int, ...], device: str
    ) -> None:
        self.generator, self.batch_size, self.seed, self.device = generator, batch_size, seed, device

    def __getitem__(self, number: int) -> Batch:
        return self.generator.sample(self.batch_size, rng=independent_rng((*self.seed, number), self.device))


class _BatchNumbers(Sampler[int]):
    """The numbers of one epoch's batches for one process; Lightning calls `set_epoch`."""

    def __init__(self, n: int, *, fresh: bool, seed: int, rank: int, world: int) -> None:
        self.n, self.fresh, self.seed, self.rank, self.world = n, fresh, seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.world

    def __iter__(self) -> Iterator[int]:
        if self.fresh:
            numbers = torch.arange(self.epoch * self.n, (self.epoch + 1) * self.n)
        else:
            numbers = torch.randperm(self.n, generator=independent_rng((self.seed, ORDER, self.epoch), "cpu"))
        yield from numbers[self.rank :: self.world][: len(self)].tolist()
