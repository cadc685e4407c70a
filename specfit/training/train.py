"""`train(cfg)`: the whole training on one screen. `main(overrides)`: the same behind Hydra's command line."""

from __future__ import annotations

__all__ = ["Trained", "main", "train"]

import inspect
import logging
import platform
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import hydra
import lightning
import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from specfit.checkpoint import IN_A_RUN, LAST_STATE, Checkpoint, load, save
from specfit.errors import InputError
from specfit.generator import SpectrumGenerator, WideGenerator
from specfit.information_limit import information_limit
from specfit.net import BackgroundNet, CalibratedNet, LearnedBasisNet
from specfit.overrides import run_configured
from specfit.resources import folder
from specfit.training.calibrate import calibrate
from specfit.training.calibrate_yields import calibrate_yields
from specfit.training.datamodule import SpectrumDataModule

log = logging.getLogger(__name__)

# Backgrounds that a learned basis starts from.
PREPARED_BY = 20_000


class Trained(NamedTuple):
    """What a training leaves behind."""

    checkpoint: Path
    """The written checkpoint."""
    figures: dict[str, float]
    """Its figures on the validation set."""


def train(cfg: DictConfig) -> Trained:
    """Trains the net that a configuration describes; the same call in the same folder continues where it stopped.

    Args:
        cfg: Composed from `conf/train.yaml`; `cfg.run_dir` is the folder of the run.

    Raises:
        InputError: The folder holds a finished run, or a run with another configuration.
    """
    _check_settings(cfg)
    run_dir = Path(cfg.run_dir)
    unfinished = _unfinished_state(run_dir, cfg)
    card = _card(cfg)  # now: the code on disk may be another one when the run ends
    pl.seed_everything(cfg.seed, workers=True, verbose=False)

    data = instantiate(cfg.data)
    net = _make_net(cfg, data)
    if cfg.start_from:
        net.load_state_dict(_weights_to_start_from(cfg.start_from, net))
    elif isinstance(net, LearnedBasisNet) and isinstance(data.generator, SpectrumGenerator):
        rng = torch.Generator().manual_seed(cfg.seed)
        net.prepare(data.generator.sample_background(PREPARED_BY, rng=rng))
    limit = _limit(data.generator, cfg)
    module = instantiate(cfg.module)(net, limit=limit)

    state = run_dir / "state"
    best = ModelCheckpoint(state, filename="best", monitor="val/loss", enable_version_counter=False)
    # Every epoch, better or not, and after the best: `save_last` would only copy what is saved as the best.
    last = ModelCheckpoint(state, filename="last", enable_version_counter=False)
    callbacks = [best, last, LearningRateMonitor("step"), *instantiate(cfg.callbacks).values()]
    logger = TensorBoardLogger(run_dir, name=None, version="tensorboard")
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=logger, default_root_dir=run_dir)

    with warnings.catch_warnings():
        # Sampling in the training process is a choice here, not an oversight.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning 2.6 with torch 2.13
        trainer.fit(module, data, ckpt_path=unfinished, weights_only=True)
        chosen = torch.load(best.best_model_path, weights_only=True, map_location="cpu")
        module.load_state_dict(chosen["state_dict"])
        (figures,) = trainer.validate(module, data, verbose=False)
    pulls = _calibrated(net, data.generator, cfg)

    figures |= {"spectra": float(trainer.global_step * data.batch_size * trainer.world_size)}
    figures |= {} if limit is None else {"limit": limit}
    figures |= {f"pull/{name}": value for name, value in pulls.items()}
    card["figures"] = {name: round(value, 6) for name, value in figures.items()}
    path = run_dir / IN_A_RUN
    if trainer.is_global_zero:
        save(Checkpoint(net, None if net.n_bins is None else data.generator.edges, card), path)
        log.info("checkpoint written: --checkpoint %s", run_dir)
    return Trained(path, figures)


def main(overrides: Sequence[str]) -> None:
    """Composes the configuration from `conf/` and overrides, and trains; `--multirun` sweeps.

    Args:
        overrides: Hydra's command line, such as `["experiment=reference", "seed=2"]`.

    Raises:
        InputError: Neither an experiment nor a name is in it, or as `train`.
    """
    _check_chosen(overrides)
    try:
        run_configured(lambda cfg: train(cfg).figures["val/loss"], overrides, config="train", program=__file__)
    except SystemExit as end:
        if end.code == 1:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None
        raise


def _check_chosen(overrides: Sequence[str]) -> None:
    """Refuses to begin hours of training that nobody described; with a flag it is for Hydra to say what is done."""
    keys = {word.lstrip("+").partition("=")[0] for word in overrides}
    if not keys & {"experiment", "name"} and not any(word.startswith("-") for word in overrides):
        there = ", ".join(sorted(path.stem for path in (folder("conf") / "experiment").glob("*.yaml")))
        raise InputError(f"experiment: one of {there} is expected, or name=NAME for settings of your own; none came")


def _check_settings(cfg: DictConfig) -> None:
    """Refuses numbers that would end a training only hours later."""
    settings = {"calibration_size": cfg.calibration_size, "limit_size": cfg.limit_size}
    settings |= {
        f"data.{name}": cfg.data.get(name, 1) for name in ("batch_size", "batches_per_epoch", "validation_size")
    }
    settings["trainer.max_epochs"] = 1 if cfg.trainer.max_epochs is None else cfg.trainer.max_epochs
    for name, value in settings.items():
        if not isinstance(value, int) or (value < 1 and (name, value) != ("trainer.max_epochs", -1)):
            raise InputError(f"{name}: a whole number of at least 1 is expected, {value!r} came")


def _unfinished_state(run_dir: Path, cfg: DictConfig) -> Path | None:
    """Returns the state to continue from, None for a new run, after writing down the configuration."""
    if (run_dir / IN_A_RUN).exists():
        raise InputError(f"run_dir: {run_dir} holds a finished run; choose another with name=NAME or delete it")
    wanted = cast(DictConfig, OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))
    written = run_dir / "config.yaml"
    if (run_dir / LAST_STATE).exists():
        before = cast(DictConfig, OmegaConf.load(written))
        differing = sorted(str(key) for key in wanted if key != "trainer" and wanted[key] != before.get(key))
        if differing:
            raise InputError(
                f"run_dir: {run_dir} holds an unfinished run with another {', '.join(differing)}; "
                "give the same configuration to continue it, or choose another folder with name=NAME"
            )
        return run_dir / LAST_STATE
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(wanted, written)
    return None


def _calibrated(net: BackgroundNet, generator: SpectrumGenerator | WideGenerator, cfg: DictConfig) -> dict[str, float]:
    """Calibrates a net that can be; the figures of its pulls."""
    if not isinstance(net, CalibratedNet):
        return {}
    rank_zero_only(log.info)("calibrating the errors on %d spectra", cfg.calibration_size)
    of_background = calibrate(net, generator, size=cfg.calibration_size, seed=cfg.seed)
    of_yields = calibrate_yields(net, generator, size=-(-cfg.calibration_size // 2), seed=cfg.seed)
    return of_background._asdict() | of_yields._asdict()


def _make_net(cfg: DictConfig, data: SpectrumDataModule) -> BackgroundNet:
    """Makes the net; one for a single binning is told how many bins it has."""
    is_for_one_binning = "n_bins" in inspect.signature(hydra.utils.get_class(cfg.net["_target_"])).parameters
    if not is_for_one_binning:
        return cast(BackgroundNet, instantiate(cfg.net))
    if not isinstance(data.generator, SpectrumGenerator):
        raise InputError(
            f"net: {cfg.net['_target_']} is for one binning, the generator samples many; choose net=any_binning"
        )
    return cast(BackgroundNet, instantiate(cfg.net, n_bins=data.generator.n_bins))


def _limit(generator: SpectrumGenerator | WideGenerator, cfg: DictConfig) -> float | None:
    """Computes the RMS of an efficient estimator, where it is known."""
    if not isinstance(generator, SpectrumGenerator):
        return None
    return information_limit(generator, size=cfg.limit_size, rng=torch.Generator().manual_seed(cfg.seed)).rms


def _weights_to_start_from(path: str, net: BackgroundNet) -> dict[str, torch.Tensor]:
    start = load(path).net
    if start.arguments != net.arguments:
        raise InputError(f"start_from: the net of {path} has {start.arguments}, this run wants {net.arguments}")
    return start.state_dict()


def _card(cfg: DictConfig) -> dict[str, Any]:
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    config.pop("run_dir")  # where it ran is nobody's business
    return {
        "command": " ".join(["specfit", "train", *overrides]),
        "seed": cfg.seed,
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
        "config": config,
    }


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1:])
