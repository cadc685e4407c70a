"""Training: sampled spectra in, a checkpoint out; Lightning runs it, Hydra configures it, TensorBoard shows it.

`train(cfg)` in `train.py` is the whole story on one screen. A YAML key in `conf/` is an argument of one of the
constructors named here.
"""

__all__ = ["EpochLog", "FittedSpectra", "FitterModule", "SpectrumDataModule", "train"]

from specfit.training.callbacks import EpochLog, FittedSpectra
from specfit.training.datamodule import SpectrumDataModule
from specfit.training.module import FitterModule
from specfit.training.train import train
