"""The command line: one command a verb; each imports its rooms only when it runs, so that help is instant.

Exit codes: 0 done (a background that cannot be used is a result: it says `converged no`); 1 a likelihood fit or the
search of one spectrum that did not converge, a sheet that was not passed, or a fault of specfit (with its traceback);
2 the caller's mistake (one line); 130 stopped by Ctrl-C.
"""

from __future__ import annotations

__all__ = ["app", "main"]

import gc
import logging
import sys
from typing import Annotated

import typer

from specfit import __version__
from specfit.cli.categorizing import categorize
from specfit.cli.fitting import fit, with_joined_words
from specfit.cli.learning import generate, train
from specfit.cli.options import BESIDE_THE_OUTPUT
from specfit.cli.predicting import predict
from specfit.cli.searching import scan
from specfit.cli.terminal import one_line
from specfit.cli.validating import validate
from specfit.errors import InputError

STOPPED = 130  # what typer makes of Ctrl-C
# Hydra's words pass through.
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="specfit",
    help="The smooth background under a counting spectrum, with its uncertainty.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Runs the command line; the console script `specfit`."""
    try:
        app(with_joined_words(_with_default_picture(sys.argv[1:])), standalone_mode=True)
    except (InputError, OSError) as error:
        _say(f"specfit: error: {one_line(error)}")
        sys.exit(2)
    except SystemExit as end:
        if end.code == STOPPED:
            _say("specfit: stopped; nothing is half-written, the same command starts again or continues")
        raise
    finally:
        gc.freeze()  # the process ends: half a second would go into collecting what torch holds


@app.callback(invoke_without_command=True)
def _global_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what happens on the way.")] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.setLevel(level)  # Dask's loggers have levels of their own, which the root's does not hold back
    if version:
        print(__version__)
        raise typer.Exit


app.command()(predict)
app.command(context_settings=OVERRIDES)(train)
app.command()(generate)
app.command()(scan)
app.command()(fit)
app.command(context_settings=OVERRIDES)(categorize)
app.command()(validate)


def _with_default_picture(arguments: list[str]) -> list[str]:
    """Gives a bare `--plot` its value, which the parser cannot leave out."""
    given = list(arguments)
    for i, argument in enumerate(arguments):
        is_bare = i + 1 == len(arguments) or arguments[i + 1].startswith("-")
        if argument == "--plot" and is_bare:
            given[i] = f"--plot={BESIDE_THE_OUTPUT}"
    return given


def _say(text: str) -> None:
    print(text, file=sys.stderr)
