"""Functions of few parameters that stand beside a net: see `specfit.net.forms.choice`."""

from __future__ import annotations

from specfit.net.forms.choice import with_functional_form

__all__ = ["with_functional_form"]
