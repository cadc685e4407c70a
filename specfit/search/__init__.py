r"""Search for a resonance: background by the net and signal by a column, fitted together, and what that is worth.

What to use when:

- `scan`: one spectrum, every mass: local significance, yield with its interval, upper limit, global p-value.
- `scan_many`: very many spectra on the same edges, ranked.
- `inject`: signals of known size into pseudo-data: is what comes out what went in?
- `validate`: the acceptance sheet of a background model, with thresholds and sources.
- `gaussian_hypotheses`, `template_hypotheses`: what is looked for.
- `run_pseudo_experiments`, `global_p_value`: any job on very many pseudo-experiments, stored, continued, on Dask.

Conventions: a yield counts events of the signal; a deficit is negative; local p-values are one-sided; a global p-value
is that of the largest local significance anywhere. Everything is float64.
"""

from __future__ import annotations

__all__ = [
    "Criterion",
    "GlobalPValue",
    "InjectionResult",
    "KnownPeak",
    "ManyScans",
    "PseudoExperiments",
    "ScanResult",
    "SignalHypotheses",
    "ToyStudy",
    "ValidationSheet",
    "gaussian_hypotheses",
    "global_p_value",
    "inject",
    "run_pseudo_experiments",
    "scan",
    "scan_many",
    "template_hypotheses",
    "validate",
]

from specfit.search.criteria import Criterion, ToyStudy
from specfit.search.injection import inject
from specfit.search.injection_result import InjectionResult
from specfit.search.many import ManyScans, scan_many
from specfit.search.pseudo_experiments import PseudoExperiments, run_pseudo_experiments
from specfit.search.result import KnownPeak, ScanResult
from specfit.search.scanning import scan
from specfit.search.sheet import ValidationSheet
from specfit.search.toys.p_values import GlobalPValue, global_p_value
from specfit.search.validation import validate
from specfit.signal.hypotheses import SignalHypotheses, gaussian_hypotheses, template_hypotheses
