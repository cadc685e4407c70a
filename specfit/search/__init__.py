"""Search for a resonance. Pseudo-experiments at scale are in `pseudo_experiments`."""

from __future__ import annotations

__all__ = ["GlobalPValue", "PseudoExperiments", "global_p_value", "run_pseudo_experiments"]

from specfit.search.pseudo_experiments import PseudoExperiments, run_pseudo_experiments
from specfit.search.toys import GlobalPValue, global_p_value
