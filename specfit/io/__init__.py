"""The door between files or histogram objects and `Spectrum`.

What to use when:

- `read`: anything that holds a spectrum becomes a `Spectrum`: a file, a histogram object, arrays.
- `parse_edges`: bin edges from a text such as `0:300:60`, a file or an array.
- `write`: a `Spectrum` becomes a file, by the ending of its name.
- `to_hist` and `like`: a `Spectrum` becomes a `hist.Hist`, or the kind of object that the user came with.

=================  ===========================================  ======================  =========
ending             holds                                        edges                   a batch
=================  ===========================================  ======================  =========
`.npy`             counts                                       must be given           yes
`.npz`             arrays `counts`, `edges`, `variances`,       inside (may be given)   yes
                   `gaps`
`.csv`             `low_edge,high_edge,content[,variance]`      inside                  no
`file.root:path`   one TH1                                      inside                  no
=================  ===========================================  ======================  =========

A `.csv` or `.npz` file may have gaps, bins in which nothing was measured; a histogram cannot. Contents are events per
bin. Under- and overflow bins are left out. Nothing is ever unpickled. A file is written under a
temporary name and then renamed, so that a reader never meets half of one.
"""

from __future__ import annotations

__all__ = ["MissingEdgesError", "like", "parse_edges", "read", "to_hist", "write"]

from specfit.io.histograms import to_hist
from specfit.io.reading import MissingEdgesError, parse_edges, read
from specfit.io.writing import like, write
