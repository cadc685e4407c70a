r"""Functional fit: the classical way, a function of known form fitted by binned Poisson maximum likelihood.

It is the baseline and the oracle of the nets: it is told the true form, which a net has to learn. On spectra of another
form it is useless, so look at the p-value of the fit before its background.

What to use when:

- `functional_fit`: one spectrum, finished by Minuit.
- `functional_fit_many`: thousands of spectra on the same edges, all at once; the same minimum.
- `ErfExpSum`: the talk's form, N components
  :math:`\lambda_i = \sum_k y_k \, q_{ki}, \; q_{ki} \propto \int_i \Phi((x - \mu_k)/\sigma_k) \,
  e^{-x^{\rho_k} / \alpha_k} \, dx, \; \sum_i q_{ki} = 1`, with a yield :math:`y_k` each.
- `DijetFunction`, `ExpPolynomial`: what searches in falling spectra take; no turn-on.
- `centres="integrate"`: densities are integrated over bins. The default.
- `centres="iterate"`: the option of the talk, density at a "centre" of the bin times its width, with the centres
  recomputed from each result. Our centre is the point where the fitted density equals its mean over the bin (Lafferty
  and Wyatt); the mean of x would be wrong by as much as the middle. The two options agree where bins are fine.

Conventions: the ranges of `ErfExpSum` are constraints. They limit the search, and in the covariance each counts as a
measurement with the variance of a uniform distribution, range squared / 12, as do the shares of several components:
errors stay finite where the data determine nothing, and are those of the data where the data determine much. Weighted
contents are fitted as scaled Poisson counts, each bin with its weight (`specfit.weights`). Masked bins weigh nothing.

Why not Minuit alone: from any starting point it may halt in the curved valley of rho and alpha, or at a limit, where
its map of limited parameters has no slope, up to several units of log likelihood above the minimum, and call that
valid. So every start first descends by Fisher scoring within the limits: what would leave a range stops at its end, and
the rest adapts. `functional_fit` hands the lowest to Minuit; `functional_fit_many` checks that it is a minimum.

Sources: S. Calvet, "Fitting a spectrum using ML" (2021) for form, ranges and iteration; G. D. Lafferty, T. R. Wyatt,
NIM A 355 (1995) 541, for the centre; J. Nocedal, S. J. Wright, Numerical Optimization (2nd ed., 2006), 10.3 and 16.7,
for damping and projection; ATLAS, arXiv:1703.09127, eq. 1, for the dijet function.
"""

from __future__ import annotations

__all__ = [
    "DijetFunction",
    "ErfExpRanges",
    "ErfExpSum",
    "ExpPolynomial",
    "Function",
    "FunctionalFit",
    "FunctionalFits",
    "functional_fit",
    "functional_fit_many",
]

from specfit.functional.erf_exp import ErfExpRanges, ErfExpSum
from specfit.functional.fitting import functional_fit
from specfit.functional.function import Function
from specfit.functional.log_linear import DijetFunction, ExpPolynomial
from specfit.functional.many import functional_fit_many
from specfit.functional.result import FunctionalFit, FunctionalFits
