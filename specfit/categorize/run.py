"""`categorize(cfg)`: a whole run on one screen. `analyse(folder)`: its pictures again. `main`: Hydra's command line."""

from __future__ import annotations

__all__ = ["analyse", "categorize", "main"]

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from specfit.categories import (
    Events,
    Objective,
    evaluate_events,
    load_bins,
    load_history,
    optimal_boundaries,
    save_bins,
    save_history,
)
from specfit.categorize.study import Pages, Report, Result, Study
from specfit.errors import InputError
from specfit.io.files import replacing, write_json
from specfit.overrides import run_configured
from specfit.randomness import independent_rng

RESULTS, CONFIG = "results.json", "config.yaml"
Progress = Callable[[str, int, int], None]
"""What is being done, how much of it, of how much."""


def categorize(cfg: DictConfig, *, progress: Progress | None = None) -> Path:
    """Optimises as a configuration says and writes a run folder; returns it.

    Args:
        cfg: Composed from `conf/categorize/categorize.yaml`; `cfg.run_dir` is the folder.
        progress: Is called as the epochs go by.

    Raises:
        InputError: The folder holds a finished run, or the configuration cannot be used.
    """
    run_dir = Path(cfg.run_dir)
    if (run_dir / RESULTS).exists():
        raise InputError(f"run_dir: {run_dir} holds a finished run; choose another with name=NAME or delete it")
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    with replacing(run_dir / CONFIG) as temporary:
        temporary.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    events, objective, window = (instantiate(cfg[key]) for key in ("events", "objective", "window"))
    climb = instantiate(cfg.optimize)
    results = []
    for n in cfg.n_categories:
        start, rng = independent_rng((cfg.seed, n, 0)), independent_rng((cfg.seed, n, 1))
        optimized = climb(
            instantiate(cfg.bins)(n, rng=start),
            events,
            signals=list(cfg.signals),
            rng=rng,
            objective=objective,
            window=window,
            test_fraction=cfg.test_fraction,
            progress=_bar(progress, f"{n} categories", climb.keywords["epochs"] * climb.keywords["restarts"]),
        )
        save_bins(optimized.bins, run_dir / "checkpoints" / f"{n}_bins.safetensors")
        save_history(optimized.history, run_dir / "checkpoints" / f"{n}_history.safetensors")
        results.append(
            Result(
                n=n,
                bins=optimized.bins.cpu(),
                history=optimized.history,
                train=optimized.train,
                test=optimized.test,
                exact=_exact(_divided(events, n, cfg)[0], n, cfg, objective),
                seconds=optimized.seconds,
                starts=optimized.starts,
                message=optimized.message,
            )
        )
    return _report(run_dir, cfg, Study(events, tuple(cfg.signals), objective, window, tuple(results)))


def analyse(run_dir: str | Path) -> Path:
    """Draws all pictures and tables of a run again, from its checkpoints and events; returns the folder.

    Raises:
        FileNotFoundError: The folder lacks its configuration, results or a checkpoint.
    """
    run_dir = Path(run_dir)
    for name in (CONFIG, RESULTS):
        if not (run_dir / name).is_file():
            raise FileNotFoundError(f"{run_dir / name}: there is no such file; `specfit categorize` writes it")
    cfg = cast(DictConfig, OmegaConf.load(run_dir / CONFIG))
    try:
        before = {one["n_categories"]: one for one in json.loads((run_dir / RESULTS).read_text())["results"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run_dir / RESULTS}: damaged ({error})") from None
    events, objective, window = (instantiate(cfg[key]) for key in ("events", "objective", "window"))
    judge = partial(evaluate_events, signals=list(cfg.signals), objective=objective, window=window)
    results = []
    for n, one in before.items():
        bins = load_bins(run_dir / "checkpoints" / f"{n}_bins.safetensors")
        seen, unseen = _divided(events, n, cfg)
        results.append(
            Result(
                n=n,
                bins=bins,
                history=load_history(run_dir / "checkpoints" / f"{n}_history.safetensors"),
                train=judge(bins, seen),
                test=None if unseen is None else judge(bins, unseen),
                exact=one["exact"],
                seconds=one["seconds_per_epoch"],
                starts=tuple(one["starts"]),
                message=one["message"],
            )
        )
    return _report(run_dir, cfg, Study(events, tuple(cfg.signals), objective, window, tuple(results)))


def main(overrides: Sequence[str], *, progress: Progress | None = None) -> list[Path]:
    """Composes the configuration from `conf/categorize` and overrides, and optimises; `--multirun` sweeps.

    Args:
        overrides: Hydra's command line, such as `["experiment=sigmoid_1d", "seed=2"]`.
        progress: Is called as the epochs go by.

    Returns:
        The run folders.
    """
    folders: list[Path] = []
    run_configured(
        lambda cfg: folders.append(categorize(cfg, progress=progress)),
        overrides,
        config="categorize/categorize",
        program=__file__,
    )
    return folders


def _report(run_dir: Path, cfg: DictConfig, study: Study) -> Path:
    report: Report = instantiate(cfg.report)
    comparison = report.draw(study, Pages(run_dir, cfg.format))
    results = [result.summary() for result in study.results]
    write_json(run_dir / RESULTS, {"results": results, "comparison": comparison})
    return run_dir


def _divided(events: Events, n: int, cfg: DictConfig) -> tuple[Events, Events | None]:
    """Divides the events as the optimisation did: it is the first thing that its source of randomness is used for."""
    if not cfg.test_fraction:
        return events, None
    return events.split(cfg.test_fraction, rng=independent_rng((cfg.seed, n, 1)))


def _exact(events: Events, n: int, cfg: DictConfig, objective: Objective) -> float | None:
    if not cfg.exact:
        return None
    (signal,) = cfg.signals
    # Without limits the best bins are those that happen to hold no background.
    limited = replace(objective, constrained=True)
    return optimal_boundaries(
        events, n, signal=signal, objective=limited, candidates=max(cfg.exact, n + 1)
    ).significance


def _bar(progress: Progress | None, label: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else partial(_advance, progress, label, total)


def _advance(progress: Progress, label: str, total: int, done: int) -> None:
    progress(label, done, total)
