"""specfit: the smooth background under a counting spectrum, with its uncertainty.

The public names load what they need when they are first used; `__init__.pyi` lists them.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
