"""Training: every file of conf/ builds what it names; a run can be killed, continued and shared among processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file

from specfit import checkpoint
from specfit.errors import InputError
from specfit.generator import SpectrumGenerator
from specfit.net import NETS, BackgroundNet
from specfit.resources import folder
from specfit.training import SpectrumDataModule, train
from specfit.training.train import _make_net

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
        assert hasattr(callback, "on_fit_start")


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


def test_a_run_learns_writes_a_checkpoint_and_refuses_to_be_overwritten(tmp_path):
    trained = train(compose(tmp_path, "callbacks.pictures.every_n_epochs=1"))
    loaded = checkpoint.load(tmp_path)
    assert trained.checkpoint == tmp_path / "checkpoint.safetensors"
    assert loaded.net.n_bins == 8
    assert loaded.card["seed"] == 1
    assert loaded.card["figures"]["val/loss"] == pytest.approx(trained.figures["val/loss"], rel=1e-4)
    assert loaded.card["figures"]["spectra"] == 3 * 3 * 16
    assert loaded.card["config"]["data"]["batch_size"] == 16
    with pytest.raises(InputError, match="finished run"):
        train(compose(tmp_path))


def test_tensorboard_holds_the_figures_and_the_picture(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(compose(tmp_path, "callbacks.pictures.every_n_epochs=1"))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "val/loss", "val/rms", "val/rms_over_limit", "val/bias", "lr-Adam"} <= scalars
    rms, over_limit = events.Scalars("val/rms")[0].value, events.Scalars("val/rms_over_limit")[0].value
    limit = checkpoint.load(tmp_path).card["figures"]["limit"]
    assert rms / limit == pytest.approx(over_limit, rel=1e-5)
    assert events.Images("fits")[0].width > 100


def test_an_unfinished_run_with_another_configuration_is_refused(tmp_path):
    cfg = compose(tmp_path)
    train(cfg)
    (tmp_path / "checkpoint.safetensors").unlink()
    with pytest.raises(InputError, match="another data, net, seed"):
        train(compose(tmp_path, "seed=2", "net=dense"))


def test_killed_runs_continue_to_the_weights_of_an_undisturbed_one(tmp_path):
    train(compose(tmp_path / "undisturbed", "trainer.max_epochs=6", "net=dense"))
    arguments = command(tmp_path / "killed", "trainer.max_epochs=6", "net=dense", "data.batches_per_epoch=3")
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "state" / "last.ckpt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "checkpoint.safetensors").exists()
    subprocess.run(arguments, check=True, capture_output=True, timeout=300)
    assert_equal_weights(weights(tmp_path / "undisturbed"), weights(tmp_path / "killed"))


def test_two_processes_train_one_net(tmp_path):
    distributed = ["trainer.devices=2", "trainer.strategy=ddp", "net=dense", "data.batches_per_epoch=4"]
    answer = subprocess.run(
        command(tmp_path / "two", *distributed), capture_output=True, text=True, timeout=300, check=False
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    card = checkpoint.load(tmp_path / "two").card
    # Two processes share the 4 batches of an epoch: 2 steps each, for 3 epochs.
    assert card["figures"]["spectra"] == 3 * 2 * 16 * 2


def test_multirun_sweeps(tmp_path):
    arguments = [*command(tmp_path, "net=talk,dense", "trainer.max_epochs=1"), "--multirun"]
    arguments.append(f"hydra.sweep.dir={tmp_path}/sweep")
    subprocess.run(arguments, check=True, capture_output=True, timeout=300)
    names = [type(checkpoint.load(tmp_path / "sweep" / str(i)).net).__name__ for i in (0, 1)]
    assert names == ["TalkNet", "DenseNet"]


def test_bad_edges_in_a_configuration_are_the_callers_mistake(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-m", "specfit.cli", "train", *SMALL, f"hydra.run.dir={tmp_path}", "name=t", "edges=5:1:3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert answer.stderr.strip().splitlines()[-1].startswith("specfit: error:")


def test_an_unknown_experiment_lists_those_that_are(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-m", "specfit.cli", "train", "experiment=nonsense"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert answer.returncode == 2
    assert "reference" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
