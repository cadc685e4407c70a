"""Nets that map counts to the background under them, the layer that they read with, and the loss.

- `TalkNet` (`net=talk`): the talk's small dense net.
- `DenseNet` (`net=dense`): a dense net worth using.
- `LearnedBasisNet` (`net=learned_basis`): mean and basis from the net, coefficients from the data, covariance included.
- `AnyBinningNet` (`net=any_binning`): the same for every binning at once, one token a bin.
"""

__all__ = [
    "NETS",
    "AnyBinningNet",
    "BackgroundNet",
    "CalibratedNet",
    "DenseNet",
    "FlattenHistogramAndNormalize",
    "LearnedBasisNet",
    "LocalModel",
    "PixelLinear",
    "Prediction",
    "TalkNet",
    "significance_loss",
]

from specfit.net.any_binning import AnyBinningNet
from specfit.net.base import BackgroundNet, LocalModel, Prediction
from specfit.net.dense import DenseNet, TalkNet
from specfit.net.error_scale import CalibratedNet
from specfit.net.learned_basis import LearnedBasisNet
from specfit.net.loss import significance_loss
from specfit.net.pixelize import FlattenHistogramAndNormalize, PixelLinear

NETS: dict[str, type[BackgroundNet]] = {
    "talk": TalkNet,
    "dense": DenseNet,
    "learned_basis": LearnedBasisNet,
    "any_binning": AnyBinningNet,
}
"""The nets that a checkpoint can name."""
