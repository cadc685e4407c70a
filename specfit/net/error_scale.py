r"""What simulation teaches about a net after its training: how far its errors are off, and what it has never seen.

`ErrorScale` multiplies the error of each bin by a factor that depends on how many events there are, how much the data
decided and whether a function stands in the place of the net's mean; not on how well the fit describes them, or a
signal would widen the very error that it is judged by. The posterior of a learned basis knows what the data leave open;
it does not know by how much the net's mean and basis miss the truth, and that is what the factor adds. All correlations
stay as they are. `YieldScale` does the same for the yield of a signal fitted beside the background
(`specfit.signal.yield_error` says what it depends on). `Novelty` measures how far the net's own features of a spectrum
lie from those of simulated ones. From the background of a net for one binning the mean pull of each bin is taken off,
some hundredths of an error, so that no bin is biased on average.

All are learned after the training (`specfit.training.calibrate`, `calibrate_yields`), and are part of the net's
weights. Untrained they change nothing.
"""

from __future__ import annotations

__all__ = ["N_OF_YIELD", "CalibratedNet", "ErrorScale", "Novelty", "YieldScale"]

import math
from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from specfit.net.base import BackgroundNet, LocalModel, Prediction
from specfit.net.posterior import gaussian_prediction

N_OF_SPECTRUM, N_OF_BIN, HIDDEN = 4, 4, 24
N_OF_YIELD = 14
"""Features that the factor on the error of a yield depends on."""
# The log of the factor on the error of a yield; it is never below 0: no error is made smaller than its fit says.
LARGEST_LOG_FACTOR = 3.0


class ErrorScale(nn.Module):
    """A factor on the error of each bin."""

    def __init__(self) -> None:
        super().__init__()
        last = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.log_factor = nn.Sequential(nn.Linear(N_OF_SPECTRUM + N_OF_BIN, HIDDEN), nn.GELU(), last)
        self.requires_grad_(False)  # the training of the net does not touch it

    def forward(self, prediction: Prediction, own_share: Tensor, mask: Tensor | None) -> Prediction:
        """Scales the error of a prediction by a local model with this share of its own, `(m,)`."""
        first, last = cast(nn.Linear, self.log_factor[0]), self.log_factor[2]
        of_spectrum, of_bin = self.features(prediction, own_share, mask)
        n = of_spectrum.shape[-1]
        # The first layer on both kinds of features, without repeating those of the spectrum in every bin.
        hidden = nn.functional.linear(of_bin, first.weight[:, n:])  # (m, n_bins, HIDDEN)
        hidden += nn.functional.linear(of_spectrum, first.weight[:, :n], first.bias)[:, None]
        factor = last(nn.functional.gelu(hidden)).clamp(-4.0, 4.0).exp()
        return prediction._replace(factor=prediction.factor * factor.to(prediction.factor))

    @staticmethod
    def features(prediction: Prediction, own_share: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Computes what the factor depends on: of each spectrum, `(m, 4)`, and each bin, `(m, n_bins, 4)`, float32."""
        rate = prediction.background
        used = torch.ones_like(rate) if mask is None else (~mask).to(rate)
        # The share of a bin's Poisson variance that is left in the fit: 1 where the data alone decide.
        leverage = prediction.factor.square().sum(-1) / rate.clamp(min=1e-9)
        position = (torch.arange(rate.shape[1], device=rate.device).to(rate) + 0.5) / rate.shape[1]
        sizes = [(1 + rate.sum(-1)).log() / 10, prediction.n_parameters / 10, used.sum(-1).log() / 5]
        middle = (4 * position * (1 - position)).expand_as(rate)
        of_bin = [(1 + rate).log() / 5, (leverage + 1e-4).log() / 3, middle, 1 - used]
        return torch.stack([*sizes, 1 - own_share], -1).float(), torch.stack(of_bin, -1).float()


class YieldScale(nn.Module):
    """A factor on the error of the yield of a signal."""

    def __init__(self) -> None:
        super().__init__()
        last = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.log_factor = nn.Sequential(
            nn.Linear(N_OF_YIELD, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), last
        )
        self.requires_grad_(False)  # the training of the net does not touch it

    def forward(self, features: Tensor) -> Tensor:
        """Maps features `(r, N_OF_YIELD)`, float32, to factors `(r,)`, float64."""
        log_factor: Tensor = self.log_factor(features)[:, 0]
        return log_factor.double().clamp(0.0, LARGEST_LOG_FACTOR).exp()


class Novelty(nn.Module):
    """Distance of a spectrum's features from those of simulated spectra; 1 is what hardly any of them exceeds.

    Args:
        n_features: Number of features.
    """

    mean: Tensor
    whiten: Tensor
    unit: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("whiten", torch.zeros(n_features, n_features))
        self.register_buffer("unit", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """Maps features `(m, n_features)` to distances `(m,)`."""
        distance: Tensor = torch.linalg.vector_norm((features - self.mean) @ self.whiten, dim=-1)
        return distance / (math.sqrt(len(self.mean)) * self.unit)

    @torch.no_grad()
    def learn(self, features: Tensor, *, quantile: float) -> None:
        """Takes simulated features `(m, n_features)` as what is known; `quantile` of them lie below a distance of 1."""
        values = features.double()
        self.mean.copy_(values.mean(0))
        covariance = torch.cov(values.T)
        # Directions that hardly vary say nothing reliable: they are not made larger than a thousandth of the widest.
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        self.whiten.copy_(vectors * eigenvalues.clamp(min=1e-3 * eigenvalues.amax()).rsqrt())
        self.unit.fill_(1.0)
        self.unit.copy_(torch.quantile(self(features), quantile))


class CalibratedNet(BackgroundNet):
    """A net that simulation taught how far its errors are off and what it has never seen.

    Args:
        n_bins: Number of bins, or None for any.
        n_features: Size of the features of a local model.
        arguments: The constructor's arguments as plain data.
    """

    def __init__(self, n_bins: int | None, *, n_features: int, arguments: dict[str, Any]) -> None:
        super().__init__(n_bins, keeps_total=False, arguments=arguments)
        self.error_scale, self.yield_scale, self.novelty = ErrorScale(), YieldScale(), Novelty(n_features)
        self.register_buffer("offset", None if n_bins is None else torch.zeros(n_bins))
        self.offset: Tensor | None
        """Mean pull of each bin, shape `(n_bins,)`; None for any binning."""
        self.register_load_state_dict_pre_hook(_from_before)  # type: ignore[no-untyped-call]

    @abstractmethod
    def fitted(
        self,
        counts: Tensor,
        *,
        edges: Tensor | None = None,
        mask: Tensor | None = None,
        exposure: Tensor | None = None,
    ) -> tuple[LocalModel, Tensor]:
        """Computes what the last stage holds for plausible and the estimated log rate; arguments as for `predict`."""

    def predict(
        self,
        counts: Tensor,
        *,
        edges: Tensor | None = None,
        mask: Tensor | None = None,
        exposure: Tensor | None = None,
    ) -> Prediction:
        """Computes the background and its covariance in closed form; masked bins weigh exactly nothing."""
        return self.calibrated(*self.fitted(counts, edges=edges, mask=mask, exposure=exposure), mask)

    def local_model(
        self,
        counts: Tensor,
        *,
        edges: Tensor | None = None,
        mask: Tensor | None = None,
        exposure: Tensor | None = None,
    ) -> LocalModel:
        """Computes what the last stage holds for plausible; arguments as for `predict`."""
        return self.fitted(counts, edges=edges, mask=mask, exposure=exposure)[0]

    def calibrated(self, model: LocalModel, log_rate: Tensor, mask: Tensor | None) -> Prediction:
        """Computes the prediction at an estimate near the mode of a local model, calibrated, with its novelty."""
        raw = gaussian_prediction(log_rate, model.basis, model.weight)
        scaled: Prediction = self.error_scale(raw, model.own_share, mask)
        if self.offset is not None:
            relative_error = scaled.factor.square().sum(-1).sqrt() / scaled.background
            scaled = scaled._replace(background=scaled.background * (-self.offset * relative_error).exp())
        return scaled._replace(novelty=self.novelty(model.features).double())


def _from_before(net: CalibratedNet, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Lets weights be read from before there were a scale of yields, an offset and a share: they change nothing."""
    first = f"{prefix}error_scale.log_factor.0.weight"
    if first in weights and weights[first].shape[1] == N_OF_SPECTRUM + N_OF_BIN - 1:
        of_spectrum, of_bin = weights[first].tensor_split((N_OF_SPECTRUM - 1,), 1)
        weights[first] = torch.cat([of_spectrum, torch.zeros_like(of_bin[:, :1]), of_bin], 1)
    for name, tensor in net.state_dict(prefix=prefix).items():
        if name.startswith((f"{prefix}yield_scale.", f"{prefix}offset")):
            weights.setdefault(name, torch.zeros_like(tensor))
