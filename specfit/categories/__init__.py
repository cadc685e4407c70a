from specfit.categories.base import Bins
from specfit.categories.evaluation import Evaluation, evaluate
from specfit.categories.events import Events
from specfit.categories.mass import MassWindow
from specfit.categories.mixture import GaussianMixtureBins
from specfit.categories.objective import Objective, geometric_mean
from specfit.categories.optimize import Optimized, optimize
from specfit.categories.optimum import Optimum, optimal_boundaries
from specfit.categories.sample import Sample, Yields
from specfit.categories.schedules import Schedule
from specfit.categories.sigmoid import SigmoidBins
from specfit.categories.toys import toy_1d, toy_diphoton, toy_three_class
