"""The likelihood of channels in cells: what `specfit.stats` fits, with Hessians that know their blocks."""

from __future__ import annotations

__all__ = ["CellLikelihood"]

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from specfit.arrays import as_float64
from specfit.errors import InputError
from specfit.stats.cells.assembly import Assembly, assemble
from specfit.stats.cells.bins import Bins
from specfit.stats.cells.channels import Channel
from specfit.stats.cells.derivatives import ArrowDerivatives, Expansion, Observed
from specfit.stats.cells.models import ParamModel
from specfit.stats.cells.parameters import Parameter, Prior
from specfit.stats.cells.scale_models import Mu
from specfit.stats.cells.structure import Structure
from specfit.stats.cells.systematics import Systematic
from specfit.stats.likelihood import Likelihood


class CellLikelihood(Likelihood):
    r"""Poisson likelihood of n-dimensional histograms under parametric models and systematics.

    `data` is one vector: counts of the fitted channels, bins in C order; then, where Barlow-Beeston applies, the
    measured factor of the simulation in each such bin (1); then the centres of all constraints. Expectations and toys
    take the factors of the simulation as 1 (they are profiled, not parameters).

    Args:
        channels: The channels. Those without data are given what the model expects at its start.
        model: How templates depend on parameters; None takes `Mu()`, one strength for each signal.
        systematics: Sources of uncertainty.
        priors: More constraints by name or pattern, as (mean, sigma) of the raw value.
        start: Physical values from which parameters start, by name or pattern.
        barlow_beeston: Whether templates with variances get one factor a bin.
        least_effective: Bins in which the templates count as fewer simulated events than this get no such factor.

    Raises:
        InputError: Something does not exist or does not fit.

    Example:
        >>> import hist
        >>> from specfit.stats.cells import AxisNorm
        >>> template = hist.new.Reg(3, 0, 3, name="mass").Reg(2, 0, 2, name="eta").Double()
        >>> template[...] = [[10.0, 20.0]] * 3
        >>> data = template.copy()
        >>> data[...] = [[12.0, 15.0]] * 3
        >>> channel = Channel.of("muons", {"signal": template}, data=data)
        >>> likelihood = CellLikelihood([channel], AxisNorm("muons", "signal", "eta"))
        >>> likelihood.parameter_names
        ('norm_signal_eta0', 'norm_signal_eta1')
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        model: ParamModel | None = None,
        systematics: Sequence[Systematic] = (),
        *,
        priors: Mapping[str, Prior | tuple[float, float]] | None = None,
        start: Mapping[str, float] | None = None,
        barlow_beeston: bool = True,
        least_effective: float = 0.0,
    ) -> None:
        wanted = Mu() if model is None and any(channel.signals for channel in channels) else model
        assembly = assemble(channels, wanted, systematics, priors=priors or {}, start=start or {})
        effective = torch.cat([one.effective for one in assembly.fitted])
        usable = (effective >= least_effective) & barlow_beeston
        bins = Bins(torch.where(usable, effective, 0.0))
        self._build(assembly, bins, structure=None, data=None)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters with their priors and meanings."""
        return self.assembly.parameters

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The channels, fitted ones first."""
        return tuple(one.channel for one in self.assembly.channels)

    def nll(self, values: Tensor) -> Tensor:
        r"""Computes :math:`-\ln L` for values of shape `(*, p)`; shape `(*,)`."""
        terms = self.bins.nll(*self._streams(values), self.observed.counts, self.observed.measured)
        pull = self.precision * (values - self.observed.centers).square()
        return terms + pull.sum(-1) / 2

    def nll_of_bins(self, values: Tensor) -> Tensor:
        """Computes the part of `nll` that each fitted bin contributes, shape `(*, n_bins)`."""
        return self.bins.each(*self._streams(values), self.observed.counts, self.observed.measured)

    def counts(self, values: Tensor, *, profiled: bool = False) -> Tensor:
        """Computes the expected events of the fitted bins, shape `(*, n_bins)`.

        Args:
            values: Parameters, shape `(*, p)`.
            profiled: Whether the factors of the simulation take the values that the data prefer, or 1.
        """
        y, y0 = self._streams(values)
        if not profiled:
            return y + y0
        return self.bins.factor(y, y0, self.observed.counts, self.observed.measured) * y + y0

    def events(self, values: Tensor) -> dict[str, dict[str, Tensor]]:
        """Computes the expected events of every process in every channel, masked ones too, `(*, *shape)` each."""
        return {
            one.channel.name: {
                sample.process: sample.events(values).reshape(*values.shape[:-1], *one.channel.shape)
                for sample in one.samples
            }
            for one in self.assembly.channels
        }

    def expected(self, values: Tensor) -> Tensor:
        """Computes the mean of `data` for values of shape `(*, p)`; shape `(*, n_data)`."""
        ones = torch.ones(*values.shape[:-1], int(self.bins.has_factor.sum()), dtype=torch.float64)
        return torch.cat([self.counts(values), ones, values[..., self.precision > 0]], -1)

    def sample(self, values: Tensor, *, rng: torch.Generator) -> Tensor:
        """Draws a toy for each row of values `(*, p)`: counts, factors of the simulation, centres of constraints."""
        values = values.detach()
        k = self.bins.effective[self.bins.has_factor].expand(*values.shape[:-1], -1)
        constrained = self.precision > 0
        noise = torch.randn(*values.shape[:-1], int(constrained.sum()), generator=rng, dtype=torch.float64)
        centers = values[..., constrained] + noise / self.precision[constrained].sqrt()
        counts = torch.poisson(self.counts(values).clamp(min=0.0), generator=rng)
        return torch.cat([counts, torch.poisson(k, generator=rng) / k, centers], -1)

    def with_data(self, data: Tensor) -> CellLikelihood:
        """Returns the same model with other observations, `(n_data,)`, `(m, n_data)`, or with counts alone.

        Counts alone, shape `(*, n_bins)`, leave the auxiliary measurements as they are.
        """
        given = as_float64(data, "data")
        n_bins = len(self.bins.effective)
        if given.shape[-1] == n_bins:
            rest = self.data[..., n_bins:].expand(*given.shape[:-1], -1)
            given = torch.cat([given, rest], -1)
        if given.shape[-1] != self.data.shape[-1]:
            raise InputError(f"data: {self.data.shape[-1]} numbers or {n_bins} counts are expected, {given.shape} came")
        other = object.__new__(CellLikelihood)
        other._build(self.assembly, self.bins, structure=self.structure, data=given)
        return other

    def expand(self, values: Tensor, *, dense: bool = True) -> Expansion:
        """Computes gradient and structured Hessian together at values `(p,)`.

        Args:
            values: Where.
            dense: False leaves out systematics that move whole templates, as if they were fixed: much cheaper.
        """
        return self._arrow.expand(values, dense=dense)

    def _build(self, assembly: Assembly, bins: Bins, *, structure: Structure | None, data: Tensor | None) -> None:
        parameters = assembly.parameters
        self.assembly, self.bins = assembly, bins
        self.precision = torch.tensor([0.0 if p.prior is None else p.prior.sigma**-2 for p in parameters]).double()
        if structure is None:
            tables = [one.table for one in assembly.fitted]
            structure = Structure(len(parameters), tables, assembly.dense)
        self.structure = structure
        start = torch.tensor([parameter.start for parameter in parameters], dtype=torch.float64)
        given = self._given(start) if data is None else data
        self.observed = self._parts(given)
        self._arrow = ArrowDerivatives(
            self.nll, assembly, structure, bins=bins, observed=self.observed, precision=self.precision
        )
        super().__init__(
            [parameter.name for parameter in parameters],
            n_poi=sum(parameter.is_poi for parameter in parameters),
            initial_values=start,
            bounds=torch.tensor([(p.low, p.high) for p in parameters], dtype=torch.float64).reshape(-1, 2),
            data=given,
            derivatives=self._arrow,
        )

    def _streams(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns events of templates with and without variances, `(*, n_bins)` each."""
        y, y0 = [], []
        for one in self.assembly.fitted:
            zero = torch.zeros(*values.shape[:-1], one.channel.n_bins, dtype=torch.float64)
            y.append(sum((s.events(values) for s in one.samples if s.variances is not None), zero))
            y0.append(sum((s.events(values) for s in one.samples if s.variances is None), zero))
        return torch.cat(y, -1), torch.cat(y0, -1)

    def _given(self, start: Tensor) -> Tensor:
        """Returns the data that came with the channels, or what is expected at the start."""
        expected = torch.cat([one.events(start) for one in self.assembly.fitted])
        parts = torch.split(expected, [one.channel.n_bins for one in self.assembly.fitted])
        counts = [
            part if one.channel.data is None else one.channel.data
            for one, part in zip(self.assembly.fitted, parts, strict=True)
        ]
        factors = torch.ones(int(self.bins.has_factor.sum()), dtype=torch.float64)
        centers = [parameter.prior.mean for parameter in self.parameters if parameter.prior is not None]
        return torch.cat([*counts, factors, torch.tensor(centers, dtype=torch.float64)])

    def _parts(self, data: Tensor) -> Observed:
        n_bins, has = len(self.bins.effective), self.bins.has_factor
        counts, factors, centers = torch.split(data, [n_bins, int(has.sum()), int((self.precision > 0).sum())], -1)
        measured = torch.ones_like(counts)
        measured[..., has] = factors
        everywhere = torch.zeros(*data.shape[:-1], len(self.precision), dtype=torch.float64)
        everywhere[..., self.precision > 0] = centers
        return Observed(counts, measured, everywhere)
