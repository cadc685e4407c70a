from . import categories as categories
from . import io as io
from . import net as net
from . import search as search
from . import stats as stats
from .background_fit import BackgroundFit as BackgroundFit
from .errors import InputError as InputError
from .functional import functional_fit as functional_fit
from .functional import functional_fit_many as functional_fit_many
from .generator import Batch as Batch
from .generator import SignalPrior as SignalPrior
from .generator import SpectrumGenerator as SpectrumGenerator
from .inference import SpectrumFitter as SpectrumFitter
from .inference import smooth_background as smooth_background
from .io import read as read
from .significance import asimov_significance as asimov_significance
from .significance import bin_significance as bin_significance
from .spectrum import Spectrum as Spectrum

__version__: str
