r"""Cells: fits of n-dimensional histograms in which every cell has parameters of its own.

A measurement in bins of momentum, pseudorapidity and charge, each with its mass spectrum, is one likelihood with
thousands of parameters that hardly touch each other. What to use when:

- `Channel.of`: histograms with named axes become a channel: data, and the template of each process.
- `AxisNorm`, `AxisExp`, `AxisBernstein`: a norm, an exponential, a Bernstein polynomial in every cell.
- `Mu`, `Mixture`: signal strengths and mixtures of whole processes. `ABCD`, `SmoothABCD`: a background from control
  regions.
- `Composite`: the product of models; parameters of interest first.
- `LogNormal`, `Shape`, `Additive`: systematics.
- `CellLikelihood`: all of it as a likelihood that `specfit.stats` fits, scans and throws toys of.
- `read_cells`, `parse_models`: the same from a YAML file and from the words of the command line.
- `fit_cells`: best fit and exact uncertainties of thousands of parameters in seconds.

Conventions: templates are multiplied by factors that start at 1. Raw parameters are free numbers; `Meaning` says what
they mean physically (a norm is the square of its raw number). Negative log likelihoods are :math:`-\ln L`.

Sources: the behaviour of rabbit (github.com/WMass/rabbit); the sources of each formula stand in its module.
"""

from __future__ import annotations

__all__ = [
    "ABCD",
    "Additive",
    "Axis",
    "AxisBernstein",
    "AxisExp",
    "AxisNorm",
    "BoundModel",
    "CellFit",
    "CellLikelihood",
    "Channel",
    "Composite",
    "LogNormal",
    "Meaning",
    "Mixture",
    "Mu",
    "ParamModel",
    "Parameter",
    "Prior",
    "Region",
    "Shape",
    "SmoothABCD",
    "Systematic",
    "Template",
    "Term",
    "fit_cells",
    "parse_models",
    "read_cells",
    "write_histograms",
]

from specfit.stats.cells.abcd import ABCD, Region, SmoothABCD
from specfit.stats.cells.axis_models import AxisBernstein, AxisExp, AxisNorm
from specfit.stats.cells.channels import Axis, Channel, Template
from specfit.stats.cells.files import read_cells, write_histograms
from specfit.stats.cells.fitting import CellFit, fit_cells
from specfit.stats.cells.grammar import parse_models
from specfit.stats.cells.likelihood import CellLikelihood
from specfit.stats.cells.models import BoundModel, Composite, ParamModel, Term
from specfit.stats.cells.parameters import Meaning, Parameter, Prior
from specfit.stats.cells.scale_models import Mixture, Mu
from specfit.stats.cells.systematics import Additive, LogNormal, Shape, Systematic
