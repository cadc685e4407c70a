"""Gaussian processes as a physicist would use them for a smooth background, with two public libraries, if installed.

Counts are taken as y = 2 sqrt(n + 3/8), whose statistical error is 1 for any expectation (Anscombe), as a function of
the logarithm of the bin centre. The process has a constant mean, and its hyperparameters (mean, amplitude, length) are
fitted to each spectrum by the largest marginal likelihood. The smallest length is two bins.

- george 0.4 (Foreman-Mackey, Ambikasaran et al., arXiv:1403.6015): squared-exponential kernel, exact gradient.
- celerite2 0.3 (Foreman-Mackey, arXiv:1703.09710): critically damped oscillator, numerical gradient, linear in bins.

They are no dependency: `pip install george celerite2`.
"""

from __future__ import annotations

__all__ = ["PROCESSES", "fit_with_processes"]

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from specfit.background_fit import BackgroundFit
from specfit.spectrum import Spectrum

ANSCOMBE = 3 / 8
Process = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Takes positions and y, both `(n_bins,)`; returns the mean and the covariance of the smooth curve there."""


def fit_with_processes(name: str, counts: Tensor, edges: Tensor) -> BackgroundFit | None:
    """Fits each spectrum, shape `(m, n_bins)`; None if the library is not installed."""
    if importlib.util.find_spec(name) is None:
        return None
    x = ((edges[1:] + edges[:-1]) / 2).log().numpy()
    parts = [_fit(PROCESSES[name], x, row) for row in counts.double().numpy()]
    background, factor, n_parameters = (torch.from_numpy(np.stack(part)) for part in zip(*parts, strict=True))
    m = len(counts)
    return BackgroundFit(
        spectrum=Spectrum(counts, edges),
        background=background,
        factor=factor,
        n_parameters=n_parameters,
        mask=torch.zeros(counts.shape, dtype=torch.bool),
        iterations=torch.zeros(m, dtype=torch.int64),
        converged=torch.ones(m, dtype=torch.bool),
        message=name,
    )


def _fit(process: Process, x: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float64]:
    mean, covariance = process(x, 2 * np.sqrt(counts + ANSCOMBE))
    values, vectors = np.linalg.eigh(covariance)
    # The expectation of y is 2 sqrt(rate + 3/8) up to terms that fall with the rate; no rate is below 0.
    root = np.maximum(mean, 2 * np.sqrt(ANSCOMBE + 1e-3)) / 2
    factor = root[:, None] * vectors * np.sqrt(values.clip(min=0))
    return root**2 - ANSCOMBE, factor, np.trace(covariance)  # the trace over errors of 1 counts parameters


def _with_george(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import george
    from george import kernels

    kernel = np.var(y) * kernels.ExpSquaredKernel(0.3**2)
    shortest = (2 * np.diff(x).max()) ** 2
    process = george.GP(kernel, mean=y.mean(), fit_mean=True)
    process.compute(x, np.ones_like(x))
    bounds = [(None, None), (-5.0, 25.0), (np.log(shortest), 6.0)]

    def nll(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        process.set_parameter_vector(parameters)
        value = process.log_likelihood(y, quiet=True)
        gradient = process.grad_log_likelihood(y, quiet=True)
        return (-value, -gradient) if np.isfinite(value) else (1e25, np.zeros_like(gradient))

    best = minimize(nll, process.get_parameter_vector(), jac=True, method="L-BFGS-B", bounds=bounds)
    process.set_parameter_vector(best.x)
    mean, covariance = process.predict(y, x, return_cov=True)
    return mean, covariance


def _with_celerite2(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import celerite2

    def process(parameters: np.ndarray) -> celerite2.GaussianProcess:
        mean, log_sigma, log_rho = parameters
        term = celerite2.terms.SHOTerm(sigma=np.exp(log_sigma), rho=np.exp(log_rho), Q=np.sqrt(0.5))
        built = celerite2.GaussianProcess(term, mean=mean)
        built.compute(x, yerr=np.ones_like(x))
        return built

    def nll(parameters: np.ndarray) -> float:
        try:
            return -process(parameters).log_likelihood(y)
        except celerite2.driver.LinAlgError:
            return 1e25

    bounds = [(None, None), (-2.0, 12.0), (np.log(2 * np.diff(x).max()), 5.0)]
    start = np.array([y.mean(), np.log(y.std()), np.log(2.0)])
    best = minimize(nll, start, method="L-BFGS-B", bounds=bounds)
    mean, covariance = process(best.x).predict(y, return_cov=True)
    return mean, covariance


PROCESSES: dict[str, Process] = {"george": _with_george, "celerite2": _with_celerite2}
