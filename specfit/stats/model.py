r"""StatisticalModel: the likelihood of a workspace, binned and unbinned channels together.

.. math:: -\ln L = \sum_b [\nu_b - n_b \ln \nu_b] + \sum_u \Big[\sum_c T_{uc} - \sum_i w_{ui} \ln r_{ui}\Big]
    + \sum_k \tfrac12 \Big(\frac{a_k - \theta_k}{\sigma_k}\Big)^2 + \sum_l [\tau_l \theta_l - a_l \ln \tau_l \theta_l]

with constants such that data which the model meets exactly give 0 (for unbinned channels: at the initial values). Bins
b are those of all binned channels, u counts unbinned channels; the sums on the second line are the constraints with
their auxiliary measurements a.

Conventions: `nll` is :math:`-\ln L` with :math:`\alpha^2/2`; `twice_nll` is :math:`-2\ln L` with :math:`\alpha^2`, for
whatever the document says in `errordef`, and errors come out the same from both. Interpolations are `code4` for factors
and `code4p` for differences, as pyhf's command line takes them; `pyhf.Workspace.model()` without settings takes `code1`
and `code0`. `data` holds the counts of the binned channels in the order of the document, the weights of the events of
the unbinned ones, the Gaussian and then the Poisson auxiliary measurements.

Expected weights of an event are its own, scaled by :math:`r_i(\theta) / r_i(\theta_0)` with the initial values: those
of a simulated sample are then what the model expects, and toys repeat its events, each a Poisson number of times.

Source: K. Cranmer et al., HistFactory, CERN-OPEN-2012-016; ATLAS, arXiv:2412.01600 (unbinned channels).
"""

from __future__ import annotations

__all__ = ["StatisticalModel"]

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.stats.compilation import CompiledModel, EventChannel, compile_workspace
from specfit.stats.likelihood import AutomaticDerivatives, Derivatives, Likelihood
from specfit.stats.poisson import poisson_nll, poisson_normalisation
from specfit.stats.unbinned import EventTerm
from specfit.stats.workspace import Workspace


class StatisticalModel(Likelihood):
    """The likelihood of one measurement of a workspace.

    Args:
        workspace: A Workspace, or the document of one.
        measurement: Name of the measurement; None takes the first.
        normsys: Interpolation of factors, `"code4"` or `"code1"`; events always take `"code4"`.
        histosys: Interpolation of differences, `"code4p"` or `"code0"`.

    Raises:
        InputError: A fault of the workspace, with its path.

    Example:
        >>> model = StatisticalModel({
        ...     "channels": [{"name": "SR", "samples": [
        ...         {"name": "signal", "data": [5.0], "modifiers": [{"name": "mu", "type": "normfactor"}]},
        ...         {"name": "background", "data": [50.0], "modifiers": []}]}],
        ...     "observations": [{"name": "SR", "data": [55.0]}],
        ...     "measurements": [{"name": "search", "config": {"poi": "mu"}}]})
        >>> model.parameter_names, model.nll(torch.tensor([1.0]).double()).item()
        (('mu',), 0.0)
    """

    def __init__(
        self,
        workspace: Workspace | Mapping[str, Any],
        measurement: str | None = None,
        *,
        normsys: str = "code4",
        histosys: str = "code4p",
    ) -> None:
        read = workspace if isinstance(workspace, Workspace) else Workspace(workspace)
        self.compiled = compile_workspace(read, measurement, normsys=normsys, histosys=histosys)
        self.n_unconstrained = self.compiled.n_unconstrained
        super().__init__(
            self.compiled.names,
            n_poi=self.compiled.n_poi,
            initial_values=self.compiled.initial,
            bounds=self.compiled.bounds,
            data=self._observed(),
            derivatives=_WorkspaceDerivatives(self),
            priors=_priors(self.compiled),
            n_counts=self.compiled.n_bins,
        )

    def nll(self, values: Tensor) -> Tensor:
        r"""Computes :math:`-\ln L` for values of shape `(*, p)`; shape `(*,)`."""
        flat = values.reshape(-1, self.n_parameters)
        at = flat.T  # (p, m)
        outputs = self.compiled.expectation.outputs(at)
        total = poisson_nll(self.counts, outputs[: self.compiled.n_bins]).sum(0) + self._constraint(at)
        for channel, term, offset in zip(self.compiled.events, self.event_terms, self._offsets, strict=True):
            yields = outputs[channel.outputs]
            total = total + yields.sum(0) + term(_phi(channel, yields, at).T) + offset
        return total.reshape(values.shape[:-1])

    def nll_with_normalisation(self, values: Tensor) -> Tensor:
        """Computes `nll` with every constant of the probabilities of counts and auxiliary measurements.

        Half of what pyhf calls `twice_nll`. Events keep the constants of `nll`.
        """
        sigmas = self.compiled.constraints.sigmas
        gaussian = sigmas.log().sum() + 0.5 * math.log(2 * math.pi) * len(sigmas)
        counts = poisson_normalisation(self.counts).sum(0) + poisson_normalisation(self.count_measurements).sum(0)
        return self.nll(values) + (counts + gaussian).reshape(self.data.shape[:-1])

    def expected(self, values: Tensor) -> Tensor:
        """Computes the mean of `data` for values of shape `(*, p)`; shape `(*, n_data)`."""
        flat = values.reshape(-1, self.n_parameters)
        at = flat.T
        outputs = self.compiled.expectation.outputs(at)
        parts = [outputs[: self.compiled.n_bins]]
        for channel, reference in zip(self.compiled.events, self._reference_ratios, strict=True):
            phi = _phi(channel, outputs[channel.outputs], at)
            term = EventTerm(channel.table, channel.weights[:0].new_zeros(channel.table.n_events))
            ratios = torch.stack([term.ratio(column) for column in phi.detach().T], -1)
            parts.append(channel.weights[:, None] * ratios / reference[:, None])
        constraints = self.compiled.constraints
        parts += [at[constraints.normal], constraints.taus[:, None] * at[constraints.poisson]]
        return torch.cat(parts).T.reshape(*values.shape[:-1], -1)

    def expected_in(self, channel: str, values: Tensor) -> Tensor:
        """Computes the expected counts of a binned channel, shape `(*, n_bins)`.

        Raises:
            InputError: There is no such binned channel.
        """
        if channel not in self.compiled.channels:
            raise InputError(f"channel {channel!r} is not one of {', '.join(self.compiled.channels)}")
        flat = values.reshape(-1, self.n_parameters)
        bins = self.compiled.expectation.outputs(flat.T)[self.compiled.channels[channel]]
        return bins.T.reshape(*values.shape[:-1], -1)

    def sample(self, values: Tensor, *, rng: torch.Generator) -> Tensor:
        """Draws one toy of `data`, auxiliary measurements included, for each row of values `(*, p)`."""
        mean = self.expected(values).detach()
        n_counts = mean.shape[-1] - len(self.compiled.constraints.observed)
        n_normal = len(self.compiled.constraints.normal)
        counts = torch.poisson(mean[..., :n_counts].clamp(min=0), generator=rng)
        gaussian = mean[..., n_counts : n_counts + n_normal]
        noise = torch.randn(gaussian.shape, generator=rng, dtype=torch.float64) * self.compiled.constraints.sigmas
        auxiliary = torch.poisson(mean[..., n_counts + n_normal :], generator=rng)
        return torch.cat([counts, gaussian + noise, auxiliary], -1)

    def with_data(self, data: Tensor) -> StatisticalModel:
        """Returns the same model with other observations, of the form of `data`.

        Raises:
            InputError: Another number of observations than the model has.
        """
        if data.shape[-1] != self.data.shape[-1] or data.ndim not in (1, 2):
            n = self.data.shape[-1]
            raise InputError(f"data: shape ({n},) or (m, {n}) is expected, {tuple(data.shape)} came")
        other = copy.copy(self)
        other.data = data.double()
        other.derivatives = _WorkspaceDerivatives(other)
        for cached in ("event_terms", "_offsets"):
            other.__dict__.pop(cached, None)
        return other

    def _observed(self) -> Tensor:
        compiled = self.compiled
        counts, weights = compiled.observed, [channel.weights for channel in compiled.events]
        if counts is None:  # no observation: what the model expects
            counts = compiled.expectation.outputs(compiled.initial[:, None])[: compiled.n_bins, 0]
        return torch.cat([counts, *weights, compiled.constraints.observed])

    def _constraint(self, at: Tensor) -> Tensor:
        constraints = self.compiled.constraints
        pulls = (at[constraints.normal] - self.normal_measurements) / constraints.sigmas[:, None]
        expected = constraints.taus[:, None] * at[constraints.poisson]
        return pulls.square().sum(0) / 2 + poisson_nll(self.count_measurements, expected).sum(0)

    @property
    def _columns(self) -> Tensor:
        """Data with the batch last, shape `(n_data, 1)` or `(n_data, m)`."""
        return self.data.reshape(-1, self.data.shape[-1]).T

    @property
    def counts(self) -> Tensor:
        """Counts of the bins, the batch last: shape `(n_bins, 1)`, or `(n_bins, m)` for toys."""
        return self._columns[: self.compiled.n_bins]

    @property
    def normal_measurements(self) -> Tensor:
        """Gaussian auxiliary measurements, the batch last."""
        first = self.data.shape[-1] - len(self.compiled.constraints.observed)
        return self._columns[first : first + len(self.compiled.constraints.normal)]

    @property
    def count_measurements(self) -> Tensor:
        """Poisson auxiliary measurements, the batch last."""
        return self._columns[self.data.shape[-1] - len(self.compiled.constraints.poisson) :]

    @functools.cached_property
    def event_terms(self) -> list[EventTerm]:
        """The events of each unbinned channel, with their weights."""
        return [
            EventTerm(channel.table, weights)
            for channel, weights in zip(self.compiled.events, self._event_weights(), strict=True)
        ]

    @functools.cached_property
    def _offsets(self) -> list[Tensor]:
        """Constants that make unbinned channels 0 at the initial values with the weights expected there."""
        return [
            (weights * reference.log()).sum(-1) - weights.sum(-1)
            for weights, reference in zip(self._event_weights(), self._reference_ratios, strict=True)
        ]

    @functools.cached_property
    def _reference_ratios(self) -> list[Tensor]:
        at = self.compiled.initial[:, None]
        outputs = self.compiled.expectation.outputs(at)
        terms = [EventTerm(c.table, torch.zeros(c.table.n_events).double()) for c in self.compiled.events]
        return [
            term.ratio(_phi(channel, outputs[channel.outputs], at)[:, 0])
            for channel, term in zip(self.compiled.events, terms, strict=True)
        ]

    def _event_weights(self) -> list[Tensor]:
        first, weights = self.compiled.n_bins, []
        for channel in self.compiled.events:
            weights.append(self.data[..., first : first + channel.table.n_events])
            first += channel.table.n_events
        return weights


def _priors(compiled: CompiledModel) -> Tensor:
    """Centres and widths of the constraints; a count with mean tau times theta knows theta to one over root tau."""
    priors = torch.tensor([0.0, torch.inf], dtype=torch.float64).repeat(len(compiled.names), 1)
    constraints = compiled.constraints
    centres = torch.cat([torch.ones_like(constraints.sigmas), constraints.taus])
    numbers = torch.cat([constraints.normal, constraints.poisson])
    priors[numbers, 0] = constraints.observed / centres
    priors[numbers, 1] = torch.cat([constraints.sigmas, constraints.taus**-0.5])
    return priors


def _phi(channel: EventChannel, yields: Tensor, at: Tensor) -> Tensor:
    """Yields and variations of an unbinned channel, shape `(n_samples + n_variations, m)`."""
    return torch.cat([yields, at[list(channel.variations)]])


class _WorkspaceDerivatives(Derivatives):
    """Derivatives in closed form."""

    def __init__(self, model: StatisticalModel) -> None:
        self._model = model
        self._automatic = AutomaticDerivatives(model.nll)

    def gradient(self, values: Tensor) -> Tensor:
        """First derivatives, shape `(*, p)`."""
        return self._closed_form(values, "none")[0]

    def hessian(self, values: Tensor) -> Tensor:
        """Second derivatives, shape `(*, p, p)`."""
        return self._closed_form(values, "exact")[1]

    def hvp(self, values: Tensor, vector: Tensor) -> Tensor:
        """Hessian times `vector`, both of shape `(*, p)`."""
        return self._automatic.hvp(values, vector)

    def curvature(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and Fisher information, which is never negative; with events, the Hessian itself."""
        return self._closed_form(values, "exact" if self._model.compiled.events else "fisher")

    def preconditioner(self, values: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Inverse of the Fisher information; None where it cannot be inverted, and with events."""
        if self._model.compiled.events:
            return None
        _, matrix = self._closed_form(values, "fisher")
        lower, info = torch.linalg.cholesky_ex(matrix)
        return None if info else lambda vector: torch.cholesky_solve(vector[:, None], lower)[:, 0]

    def _closed_form(self, values: Tensor, second: Literal["none", "fisher", "exact"]) -> tuple[Tensor, Tensor]:
        """Computes gradient and second derivatives; where nobody asks for these, the gradient again."""
        expectation, exact = self._model.compiled.expectation, second == "exact"
        at = values.detach().reshape(-1, self._model.n_parameters).T
        outputs, jacobian = expectation.jacobian(at)  # (o, m), (o, p, m)
        gradient, curvature = self._of_constraints(at, exact=exact)
        terms = [self._of_counts(outputs, jacobian, exact=exact), *self._of_events(at, jacobian, exact=exact)]
        for term in terms:
            gradient += (term.slope[:, None] @ term.jacobian)[:, 0]
        if second == "none":
            return gradient.reshape(values.shape), gradient.reshape(values.shape)
        matrix = torch.diag_embed(curvature) + sum(term.jacobian.mT @ term.curved() for term in terms)
        if exact:
            in_outputs = torch.cat([term.slope[:, : term.n_outputs] for term in terms], 1).T
            matrix += expectation.weighted_hessian(at, in_outputs).permute(2, 0, 1)
        return gradient.reshape(values.shape), matrix.reshape(*values.shape[:-1], *matrix.shape[1:])

    def _of_constraints(self, at: Tensor, *, exact: bool) -> tuple[Tensor, Tensor]:
        """First and second derivatives of the constraints, both `(m, p)`."""
        model, constraints = self._model, self._model.compiled.constraints
        gradient, diagonal = (at.new_zeros(at.shape[1], at.shape[0]) for _ in range(2))
        pulls = (at[constraints.normal] - model.normal_measurements) / constraints.sigmas[:, None] ** 2
        means = constraints.taus[:, None] * at[constraints.poisson]
        slope, weight = _poisson_slopes(model.count_measurements, means, exact=exact)
        gradient[:, constraints.normal] += pulls.T
        gradient[:, constraints.poisson] += (slope * constraints.taus[:, None]).T
        diagonal[:, constraints.normal] = constraints.sigmas**-2
        diagonal[:, constraints.poisson] += (weight * constraints.taus[:, None] ** 2).T
        return gradient, diagonal

    def _of_counts(self, outputs: Tensor, jacobian: Tensor, *, exact: bool) -> _Term:
        n = self._model.compiled.n_bins
        slope, weight = _poisson_slopes(self._model.counts, outputs[:n], exact=exact)
        by_toy = jacobian[:n].permute(2, 0, 1).contiguous()  # (m, b, p)
        return _Term(by_toy, slope.T, weight.T, n)

    def _of_events(self, at: Tensor, jacobian: Tensor, *, exact: bool) -> Iterator[_Term]:
        outputs = self._model.compiled.expectation.outputs(at)  # the very numbers that `nll` knows the events at
        for channel, term in zip(self._model.compiled.events, self._model.event_terms, strict=True):
            phi = _phi(channel, outputs[channel.outputs], at).T
            in_yields = jacobian[channel.outputs].permute(2, 0, 1)  # (m, n_samples, p)
            moved = torch.eye(len(at), dtype=torch.float64)[list(channel.variations)]
            by_toy = torch.cat([in_yields, moved.expand(len(in_yields), -1, -1)], 1)  # (m, k, p)
            second = term.hessian(phi) if exact else by_toy[:, :0]  # nobody asks for these then
            slope = term.gradient(phi).clone()
            slope[:, : in_yields.shape[1]] += 1  # the total is the sum of the yields
            yield _Term(by_toy, slope, second, in_yields.shape[1])


class _Term(NamedTuple):
    """Derivatives of a part of the likelihood in n numbers that depend on the parameters, at m points."""

    jacobian: Tensor
    """Of these numbers, shape `(m, n, p)`."""
    slope: Tensor
    """Of the part in them, shape `(m, n)`."""
    second: Tensor
    """Second derivatives of the part in them, shape `(m, n, n)`, or `(m, n)` where each number has its own term."""
    n_outputs: int
    """How many of them, from the first, are outputs of the expectation."""

    def curved(self) -> Tensor:
        """Second derivatives times the jacobian, shape `(m, n, p)`."""
        return self.second @ self.jacobian if self.second.ndim == 3 else self.jacobian * self.second[..., None]


def _poisson_slopes(observed: Tensor, expected: Tensor, *, exact: bool) -> tuple[Tensor, Tensor]:
    """First and second derivative of a Poisson term in its mean (or the Fisher information); 1, 0 where impossible."""
    possible = expected > 0
    mean = torch.where(possible, expected, 1.0)
    second = observed / mean**2 if exact else 1 / mean
    return torch.where(possible, 1 - observed / mean, 1.0), torch.where(possible, second, 0.0)
