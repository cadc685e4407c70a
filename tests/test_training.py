"""Training: every file of conf/ builds what it names; a run can be killed, continued and shared among processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
import lightning.pytorch as pl
import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file

from specfit import checkpoint, cli
from specfit.errors import InputError
from specfit.generator import SpectrumGenerator
from specfit.net import NETS, BackgroundNet
from specfit.resources import folder
from specfit.training import SpectrumDataModule, train
from specfit.training.train import _make_net, main

EXPERIMENTS = sorted(path.stem for path in (folder("conf") / "experiment").glob("*.yaml"))
SMALL = [
    "edges=250:3000:8:log",
    "limit_size=8",
    "calibration_size=256",
    "data.batch_size=16",
    "data.batches_per_epoch=3",
    "data.validation_size=32",
    "trainer.max_epochs=3",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "~callbacks.progress",
]
# Lightning and torch warn of their own future; nothing here can heed it.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
]


def compose(run_dir, *overrides):
    with hydra.initialize_config_dir(str(folder("conf")), version_base="1.3"):
        return hydra.compose("train", [*SMALL, f"run_dir={run_dir}", "name=test", *overrides])


def command(run_dir, *overrides):
    program = "import sys; from specfit.training.train import main; main(sys.argv[1:])"
    return [sys.executable, "-c", program, *SMALL, f"hydra.run.dir={run_dir}", "name=test", *overrides]


@pytest.mark.parametrize(
    "setting", ["calibration_size=-1", "limit_size=0", "data.batches_per_epoch=abc", "trainer.max_epochs=0"]
)
def test_a_number_that_would_end_a_training_late_is_refused_before_it(setting, tmp_path):
    name, value = setting.split("=")
    with pytest.raises(InputError, match=rf"^{name}: a whole number of at least 1 is expected, '?{value}'? came"):
        train(compose(tmp_path / "run", setting))
    assert not (tmp_path / "run").exists()


def weights(run_dir):
    return load_file(Path(run_dir) / "checkpoint.safetensors")


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds_what_it_names(experiment, tmp_path):
    with hydra.initialize_config_dir(str(folder("conf")), version_base="1.3"):
        cfg = hydra.compose("train", [f"experiment={experiment}", f"run_dir={tmp_path}", "name=test"])
    data = instantiate(cfg.data)
    net = _make_net(cfg, data)
    module = instantiate(cfg.module)(net, limit=None)
    optimizer = module.make_optimizer(net.parameters())
    assert isinstance(data, SpectrumDataModule)
    assert isinstance(net, BackgroundNet)
    if module.make_scheduler is not None:
        module.make_scheduler(optimizer, total_steps=100)
    assert instantiate(cfg.trainer, logger=False).max_epochs > 0
    for callback in instantiate(cfg.callbacks).values():
        assert isinstance(callback, pl.Callback)


@pytest.mark.parametrize("name", NETS)
def test_every_net_file_is_the_default_of_its_class(name, tmp_path):
    cfg = compose(tmp_path, f"net={name}")
    arguments = {} if name == "any_binning" else {"n_bins": 8}
    assert instantiate(cfg.net, **arguments).arguments == NETS[name](**arguments).arguments


def test_the_talks_recipe_is_to_the_letter(tmp_path):
    with hydra.initialize_config_dir(str(folder("conf")), version_base="1.3"):
        cfg = hydra.compose("train", ["experiment=calvet2021", f"run_dir={tmp_path}", "name=test"])
    assert cfg.data.batch_size * cfg.data.batches_per_epoch == 1_024_000
    assert cfg.data.batch_size == 128
    assert not cfg.data.fresh
    assert cfg.data.generator.n_backgrounds == 5
    assert cfg.net.width == 101
    assert cfg.net.grid == "linear"
    assert cfg.module.optimizer._target_ == "torch.optim.RMSprop"
    assert cfg.module.optimizer.lr == 1e-6
    stop = cfg.callbacks.early_stopping
    assert (stop.monitor, stop.min_delta, stop.patience) == ("val/loss", 0.0, 3)
    net = instantiate(cfg.net, n_bins=50)
    for layer in (net.hidden, net.out):
        assert layer.weight.detach().abs().max() <= 0.05
        assert layer.weight.detach().std().item() == pytest.approx(0.05 / 3**0.5, rel=0.05)  # uniform
        assert not layer.bias.any()


def test_batches_depend_on_seed_epoch_and_number_only():
    generator = SpectrumGenerator(torch.linspace(250, 3000, 9))

    def batches(epoch, **kwargs):
        data = SpectrumDataModule(generator, batch_size=4, batches_per_epoch=3, **kwargs)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [batch.counts for batch in loader]

    assert torch.equal(torch.cat(batches(2)), torch.cat(batches(2)))
    assert not torch.equal(torch.cat(batches(2)), torch.cat(batches(3)))
    assert not torch.equal(torch.cat(batches(2)), torch.cat(batches(2, seed=5)))
    first, second = (torch.cat(batches(e, fresh=False)).sort(0).values for e in (0, 1))
    assert torch.equal(first, second)  # the same models in another order


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small finished run and what it left behind."""
    run_dir = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        for room in ("calibrate", "calibrate_yields"):  # tests of the calibration itself take all steps
            patch.setattr(f"specfit.training.{room}.STEPS", 100)
        return run_dir, train(compose(run_dir, "callbacks.pictures.every_n_epochs=1"))


def test_a_run_learns_writes_a_checkpoint_and_refuses_to_be_overwritten(finished):
    run_dir, trained = finished
    loaded = checkpoint.load(run_dir)
    assert trained.checkpoint == run_dir / "checkpoint.safetensors"
    assert loaded.net.n_bins == 8
    assert loaded.card["seed"] == 1
    assert loaded.card["figures"]["val/loss"] == pytest.approx(trained.figures["val/loss"], rel=1e-4)
    assert loaded.card["figures"]["spectra"] == 3 * 3 * 16
    assert {"pull/width", "pull/coverage_68"} <= set(loaded.card["figures"])
    assert loaded.card["config"]["data"]["batch_size"] == 16
    with pytest.raises(InputError, match="finished run"):
        train(compose(run_dir))


def test_tensorboard_holds_the_figures_and_the_picture(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir, _ = finished
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "val/loss", "val/rms", "val/rms_over_limit", "val/bias", "lr-Adam"} <= scalars
    rms, over_limit = events.Scalars("val/rms")[0].value, events.Scalars("val/rms_over_limit")[0].value
    limit = checkpoint.load(run_dir).card["figures"]["limit"]
    assert rms / limit == pytest.approx(over_limit, rel=1e-5)
    assert events.Images("fits")[0].width > 100


def test_an_unfinished_run_with_another_configuration_is_refused(finished, tmp_path):
    unfinished = shutil.copytree(finished[0], tmp_path / "unfinished")
    (unfinished / "checkpoint.safetensors").unlink()
    with pytest.raises(InputError, match="another callbacks, data, net, run_dir, seed"):
        train(compose(unfinished, "seed=2", "net=dense"))


def test_killed_runs_continue_to_the_weights_of_an_undisturbed_one(tmp_path):
    # The net that ships: its first weights are prepared, its errors calibrated in the end.
    changes = ["trainer.max_epochs=6", "net=learned_basis", "~callbacks.pictures"]
    train(compose(tmp_path / "undisturbed", *changes))
    arguments = command(tmp_path / "killed", *changes)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "state" / "last.ckpt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "checkpoint.safetensors").exists()
    subprocess.run(arguments, check=True, capture_output=True, timeout=300)
    assert_equal_weights(weights(tmp_path / "undisturbed"), weights(tmp_path / "killed"))
    assert (tmp_path / "killed" / "train.log").read_text().count("calibrating the errors on 256 spectra") == 1


def test_an_epoch_that_gains_nothing_is_kept_to_continue_from(tmp_path):
    """Without a step the loss stays what it is: the first epoch is the best, the last one is where to go on."""
    train(compose(tmp_path / "run", "module.optimizer.lr=0", "module.scheduler=null"))
    states = {
        name: torch.load(tmp_path / "run" / "state" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")
    }
    assert (states["best"]["epoch"], states["last"]["epoch"]) == (0, 2)


def test_two_processes_train_one_net(tmp_path):
    distributed = [
        "trainer.devices=2",
        "trainer.strategy=ddp",
        "net=dense",
        "data.batches_per_epoch=4",
        "~callbacks.pictures",
    ]
    answer = subprocess.run(
        command(tmp_path / "two", *distributed), capture_output=True, text=True, timeout=300, check=False
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    card = checkpoint.load(tmp_path / "two").card
    # Two processes share the 4 batches of an epoch: 2 steps each, for 3 epochs.
    assert card["figures"]["spectra"] == 3 * 2 * 16 * 2


@pytest.fixture
def in_this_process(monkeypatch, tmp_path):
    """An empty folder to run commands in; arguments and environment as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["specfit"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


@pytest.mark.usefixtures("in_this_process")
def test_multirun_sweeps(tmp_path):
    short = ["trainer.max_epochs=1", "data.batches_per_epoch=1", "~callbacks.pictures", "name=test"]
    main(["--multirun", *SMALL, *short, "net=talk,dense", f"hydra.sweep.dir={tmp_path}/sweep"])
    names = [type(checkpoint.load(tmp_path / "sweep" / str(i)).net).__name__ for i in (0, 1)]
    assert names == ["TalkNet", "DenseNet"]
    log = (tmp_path / "sweep" / "0" / "train.log").read_text()
    assert "epoch 1 of 1: train/loss" in log
    assert all(name in log for name in ("val/loss", "val/rms_over_limit", " s\n"))


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*SMALL, "name=t", "edges=5:1:3"], "edges"),
        (["experiment=nonsense"], "reference"),
        ([], "experiment: one of calvet2021, default, dense, quick"),
        (["net=dense"], "or name=NAME"),
    ],
    ids=["bad edges", "unknown experiment", "nothing", "no name"],
)
def test_mistakes_in_a_configuration_are_one_line(monkeypatch, capsys, words, told):
    monkeypatch.setattr(sys, "argv", ["specfit", "train", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    error = capsys.readouterr().err.strip()
    assert end.value.code == 2
    assert error.startswith("specfit: error:")
    assert told in error
    assert len(error.splitlines()) == 1
    assert not Path("runs/None").exists()
