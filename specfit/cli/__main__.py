"""`python -m specfit.cli`."""

from specfit.cli import main

main()
