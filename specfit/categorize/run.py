"""`categorize(cfg)`: a whole run on one screen. `analyse(folder)`: its pictures again. `main`: Hydra's command line."""

from __future__ import annotations

__all__ = ["analyse", "categorize", "main"]

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from specfit.categories import (
    Events,
    InfeasibleError,
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
from specfit.io.files import finite_or_none, replacing, write_json
from specfit.overrides import run_configured
from specfit.randomness import independent_rng

RESULTS, CONFIG, CHECKPOINTS = "results.json", "config.yaml", "checkpoints"
Progress = Callable[[str, int, int], None]
"""What is being done, how much of it, of how much."""


def categorize(cfg: DictConfig, *, progress: Progress | None = None) -> Path:
    """Optimises as a configuration says and writes a run folder; returns it.

    Args:
        cfg: Composed from `conf/categorize/categorize.yaml`; `cfg.run_dir` is the folder.
        progress: Is called as the epochs go by.

    Numbers of categories that an interrupted run of the same configuration has finished are not optimised again.

    Raises:
        InputError: The folder holds a finished run, or part of another one, or the configuration cannot be used.
    """
    run_dir = Path(cfg.run_dir)
    _check_folder(run_dir, cfg)
    pages = Pages(run_dir, cfg.format)
    study, report = _prepared(cfg)
    (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    with replacing(run_dir / CONFIG) as temporary:
        temporary.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    results = []
    for n in _numbers(cfg):
        done = _summary_file(run_dir, n)
        if done.is_file():
            results.append(_restored(run_dir, json.loads(done.read_text()), cfg, study))
            continue
        results.append(_optimized(run_dir, n, cfg, study, progress))
        write_json(done, finite_or_none(results[-1].summary()))
    return _report(run_dir, pages, replace(study, results=tuple(results)), report)


def analyse(run_dir: str | Path) -> Path:
    """Draws all pictures and tables of a run again, from its checkpoints and events; returns the folder.

    Raises:
        FileNotFoundError: The folder lacks its configuration, results or a checkpoint.
        InputError: Its results or a checkpoint are damaged.
    """
    run_dir = Path(run_dir)
    for name in (CONFIG, RESULTS):
        if not (run_dir / name).is_file():
            raise FileNotFoundError(f"{run_dir / name}: there is no such file; `specfit categorize` writes it")
    cfg = cast(DictConfig, OmegaConf.load(run_dir / CONFIG))
    try:
        before = json.loads((run_dir / RESULTS).read_text())["results"]
        study, report = _prepared(cfg)
        pages = Pages(run_dir, cfg.format)
        results = [_restored(run_dir, one, cfg, study) for one in before]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{run_dir / RESULTS}: damaged ({error})") from None
    return _report(run_dir, pages, replace(study, results=tuple(results)), report)


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


def _check_folder(run_dir: Path, cfg: DictConfig) -> None:
    """Refuses a folder that this run would spoil."""
    if (run_dir / RESULTS).exists():
        raise InputError(f"run_dir: {run_dir} holds a finished run; choose another with name=NAME or delete it")
    before = run_dir / CONFIG
    is_begun = any(_summary_file(run_dir, n).is_file() for n in _numbers(cfg)) and before.is_file()
    if is_begun and before.read_text() != OmegaConf.to_yaml(cfg, resolve=True):
        raise InputError(
            f"run_dir: {run_dir} holds a part of a run with another configuration; continue that one with the same "
            "words, choose another folder with name=NAME, or delete it"
        )


def _numbers(cfg: DictConfig) -> list[int]:
    """Returns the numbers of categories, each once; `n_categories=3` means one of them."""
    given = cfg.n_categories
    numbers = [given] if isinstance(given, int) else list(given) if isinstance(given, Sequence) else []
    if not numbers or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise InputError(f"n_categories: whole numbers are expected, as in n_categories=[3,5], {given} came")
    return list(dict.fromkeys(numbers))


def _signals(cfg: DictConfig) -> tuple[str, ...]:
    """Returns the names of the signals; `signals=higgs` means one of them, and a name may be a number."""
    given = cfg.signals
    return tuple(map(str, given)) if isinstance(given, Sequence) and not isinstance(given, str) else (str(given),)


def _prepared(cfg: DictConfig) -> tuple[Study, Report]:
    """Reads the events and finds what cannot work before anything takes long."""
    events, objective, window = (instantiate(cfg[key]) for key in ("events", "objective", "window"))
    study = Study(events, _signals(cfg), objective, window, ())
    _check_totals(study)
    if cfg.exact and (events.n_features, len(study.signals)) != (1, 1):
        raise InputError("exact: the exact optimum is for one feature and one signal; leave it out with exact=0")
    report: Report = instantiate(cfg.report)
    report.check(study, [instantiate(cfg.bins)(n) for n in _numbers(cfg)])
    return study, report


def _check_totals(study: Study) -> None:
    """Refuses events of which nothing is expected: no cut makes them significant."""
    events = study.events
    events.of_process(study.signals)
    totals = {name: events.totals[name] for name in study.signals}
    totals["background"] = sum(events.totals[name] for name in study.backgrounds)
    for name, total in totals.items():
        if not total > 0:
            raise InputError(
                f"weights: more than 0 expected events of {name} are needed, the weights add up to {total:g}; "
                f"the processes are {', '.join(events.processes)}"
            )


def _optimized(run_dir: Path, n: int, cfg: DictConfig, study: Study, progress: Progress | None) -> Result:
    """Optimises one number of categories and writes its checkpoints."""
    start, rng = independent_rng((cfg.seed, n, 0)), independent_rng((cfg.seed, n, 1))
    climb = instantiate(cfg.optimize)
    found = climb(
        instantiate(cfg.bins)(n, rng=start),
        study.events,
        signals=list(study.signals),
        rng=rng,
        objective=study.objective,
        window=study.window,
        test_fraction=cfg.test_fraction,
        progress=_bar(progress, f"{n} categories", climb.keywords["epochs"] * climb.keywords["restarts"]),
    )
    save_bins(found.bins, run_dir / CHECKPOINTS / f"{n}_bins.safetensors")
    save_history(found.history, run_dir / CHECKPOINTS / f"{n}_history.safetensors")
    return Result(
        n=n,
        bins=found.bins.cpu(),
        history=found.history,
        train=found.train,
        test=found.test,
        exact=_exact(_divided(study.events, n, cfg)[0], n, cfg, study.objective),
        seconds=found.seconds,
        starts=found.starts,
        message=found.message,
    )


def _restored(run_dir: Path, one: dict[str, Any], cfg: DictConfig, study: Study) -> Result:
    """Evaluates again what was optimised before; `one` is its summary."""
    n = int(one["n_categories"])
    bins = load_bins(run_dir / CHECKPOINTS / f"{n}_bins.safetensors")
    seen, unseen = _divided(study.events, n, cfg)
    judge = partial(evaluate_events, bins, signals=study.signals, objective=study.objective, window=study.window)
    return Result(
        n=n,
        bins=bins,
        history=load_history(run_dir / CHECKPOINTS / f"{n}_history.safetensors"),
        train=judge(seen),
        test=None if unseen is None else judge(unseen),
        exact=one["exact"],
        seconds=one["seconds_per_epoch"],
        starts=tuple(one["starts"]),
        message=one["message"],
    )


def _summary_file(run_dir: Path, n: int) -> Path:
    """Returns what is written last for a number of categories: with it, that one is finished."""
    return run_dir / CHECKPOINTS / f"{n}_summary.json"


def _report(run_dir: Path, pages: Pages, study: Study, report: Report) -> Path:
    comparison = report.draw(study, pages)
    results = [result.summary() for result in study.results]
    write_json(run_dir / RESULTS, finite_or_none({"results": results, "comparison": comparison}))
    return run_dir


def _divided(events: Events, n: int, cfg: DictConfig) -> tuple[Events, Events | None]:
    """Divides the events as the optimisation did: it is the first thing that its source of randomness is used for."""
    if not cfg.test_fraction:
        return events, None
    return events.split(cfg.test_fraction, rng=independent_rng((cfg.seed, n, 1)))


def _exact(events: Events, n: int, cfg: DictConfig, objective: Objective) -> float | None:
    """Finds the largest significance within the limits of the objective; None where no bins keep them."""
    if not cfg.exact:
        return None
    (signal,) = _signals(cfg)
    # Without limits the best bins are those that happen to hold no background.
    limited = replace(objective, constrained=True)
    search = partial(optimal_boundaries, signal=signal, objective=limited, candidates=max(cfg.exact, n + 1))
    try:
        return search(events, n).significance
    except InfeasibleError:
        return None


def _bar(progress: Progress | None, label: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else partial(_advance, progress, label, total)


def _advance(progress: Progress, label: str, total: int, done: int) -> None:
    progress(label, done, total)
