"""Runs that Hydra configures from the command line; a caller's mistake comes out as itself.

Hydra is loaded only by the rooms that use this one: training and categorising.
"""

from __future__ import annotations

__all__ = ["run_configured"]

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from specfit.errors import InputError
from specfit.resources import folder


def run_configured(task: Callable[[DictConfig], Any], overrides: Sequence[str], *, config: str, program: str) -> None:
    """Composes a configuration from `conf/` and overrides and runs a task on it; `--multirun` on each of several.

    Args:
        task: What is run; its answer is what a sweeper minimises.
        overrides: Hydra's command line, such as `["experiment=reference", "seed=2"]`.
        config: The configuration in `conf/`, such as `categorize/categorize`.
        program: The Python file that stands for the program: what is started again for every further process of a
            distributed run.

    Raises:
        InputError, OSError: As the task, even where Hydra would have told its own tale.
    """
    # Hydra's parser wants its flags before the keys; users write them in any order.
    is_key = [not word.startswith("-") and ("=" in word or word.startswith("~")) for word in overrides]
    keys, flags = (
        [word for word, key in zip(overrides, is_key, strict=True) if key is which] for which in (True, False)
    )
    sys.argv = [str(Path(program).resolve()), *flags, *keys]
    # Hydra then raises instead of printing, so that a caller's mistake can be told from a fault.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    mistakes: list[Exception] = []

    def run(cfg: DictConfig) -> Any:
        try:
            return task(cfg)
        except (InputError, OSError, InstantiationException) as error:
            is_wrapped = isinstance(error.__cause__, InputError | OSError)
            if isinstance(error, InstantiationException) and not is_wrapped:
                raise
            mistakes.append(cast(Exception, error.__cause__) if is_wrapped else error)
            return float("inf")

    path = folder("conf") / config
    hydra.main(version_base="1.3", config_path=str(path.parent), config_name=path.name)(run)()
    if mistakes:
        raise mistakes[0]
