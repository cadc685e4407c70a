"""The parts of a run of pseudo-experiments, which `specfit.search.pseudo_experiments` puts together.

- `chunks`: what a job is, how a run is cut into chunks and how one chunk is drawn.
- `store`: finished chunks in a folder.
- `workers`: chunks on several processes or machines, by Dask.
- `p_values`: how often pseudo-experiments reach what was observed.
"""

from __future__ import annotations

__all__ = ["GlobalPValue", "Job", "digest", "global_p_value"]

from specfit.search.toys.chunks import Job, digest
from specfit.search.toys.p_values import GlobalPValue, global_p_value
