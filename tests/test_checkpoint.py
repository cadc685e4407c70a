"""Nets on disk: nothing is lost on the way, nothing is unpickled, and whatever is wrong is one clear line."""

import errno
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from specfit import checkpoint
from specfit.checkpoint import Checkpoint, load, save
from specfit.errors import InputError
from specfit.net import NETS, TalkNet

N_BINS = 6
EDGES = torch.from_numpy(np.geomspace(1 / 3, 1e7, N_BINS + 1))
CARD = {"command": "specfit train name=öl", "seed": 1, "figures": {"rms": 0.1 + 0.2}, "commit": None, "list": [1, 2.5]}
SMALL = {
    "talk": {"width": 5, "grid": "sqrt"},
    "dense": {"width": 5, "hidden": 8, "depth": 1},
    "learned_basis": {"n_basis": (3, 2), "width": 5, "hidden": 8, "depth": 1},
    "any_binning": {"n_basis": 3, "features": 8, "layers": 1},
}
COUNTS = torch.tensor([[900.0, 500, 300, 0, 30, 1], [5, 4, 8, 1, 0, 2]])


def build(name):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        net = NETS[name](**({} if name == "any_binning" else {"n_bins": N_BINS}), **SMALL[name])
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return net


@pytest.fixture
def saved(tmp_path):
    return save(Checkpoint(build("talk"), EDGES, CARD), tmp_path / "net.safetensors")


def write_header(path, **changes):
    """A checkpoint whose header differs from a good one; a change to None takes the entry out."""
    net = build("talk")
    header = {"format": 1, "net": {"name": "talk", "arguments": net.arguments}, "edges": EDGES.tolist(), "card": {}}
    header = {name: value for name, value in (header | changes).items() if value is not None}
    path.write_bytes(safetensors.torch.save(net.state_dict(), metadata={"specfit": json.dumps(header)}))
    return path


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_round_trip_keeps_every_bit(name, tmp_path):
    net = build(name).train()
    edges = None if net.n_bins is None else EDGES
    path = save(Checkpoint(net, edges, CARD), str(tmp_path / "net.safetensors"))
    assert net.training  # saving leaves the net as it is
    loaded = load(str(path))
    assert type(loaded.net) is type(net)
    assert not loaded.net.training
    assert loaded.net.arguments == net.arguments
    assert loaded.edges is None if edges is None else torch.equal(loaded.edges, EDGES)
    assert loaded.card == CARD
    assert torch.equal(loaded.net(COUNTS), net(COUNTS))
    for part, expected in zip(loaded.net.predict(COUNTS), net.predict(COUNTS), strict=True):
        assert torch.equal(part, expected)


def test_reading_changes_no_random_numbers(saved):
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_card_lies_beside_it_to_read_without_any_tool(saved):
    text = saved.with_suffix(".json").read_text()
    assert json.loads(text) == CARD
    assert len(text.splitlines()) > len(CARD)
    assert {path.name for path in saved.parent.iterdir()} == {"net.safetensors", "net.json"}


def test_weights_are_readable_by_safetensors_itself(saved):
    weights = safetensors.torch.load_file(saved)
    expected = build("talk").state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_card_is_of_the_header_not_of_the_file_beside_it(saved):
    saved.with_suffix(".json").unlink()
    assert load(saved).card == CARD


def test_folder_of_a_run(tmp_path):
    save(Checkpoint(build("dense"), EDGES, CARD), tmp_path / "checkpoint.safetensors")
    assert load(tmp_path).card == CARD


def test_shipped_default():
    shipped = load()
    assert len(shipped.edges) == shipped.net.n_bins + 1
    counts = 1e5 * torch.softmax(-torch.arange(float(shipped.net.n_bins)) / 8, 0)[None]
    with torch.no_grad():
        assert shipped.net(counts).isfinite().all()
    assert shipped.card == json.loads((checkpoint.folder("checkpoints") / "reference.json").read_text())


def test_half_precision_rounds_the_matrices_and_nothing_else(tmp_path):
    net = build("dense")
    whole = save(Checkpoint(net, EDGES, CARD), tmp_path / "whole.safetensors")
    half = save(Checkpoint(net, EDGES, CARD), tmp_path / "half.safetensors", half=True)
    assert half.stat().st_size < 0.75 * whole.stat().st_size
    loaded = load(half)
    assert loaded.card == CARD
    assert torch.equal(loaded.edges, EDGES)
    for name, value in loaded.net.state_dict().items():
        assert value.dtype == torch.float32
        trained = net.state_dict()[name].numpy()
        np.testing.assert_array_equal(value.numpy(), trained.astype(np.float16) if trained.ndim > 1 else trained)


def test_half_precision_refuses_a_weight_beyond_its_range(tmp_path):
    net = build("talk")
    net.out.weight.data[2, 0] = -7e4
    with pytest.raises(InputError, match=r"half: out.weight holds 70000, float16 ends at 65504"):
        save(Checkpoint(net, EDGES, CARD), tmp_path / "net.safetensors", half=True)
    assert list(tmp_path.iterdir()) == []


# --- writing that fails ---------------------------------------------------------------------------------------------


class DiskFullError(OSError):
    """Raised by the file system of a test."""


@pytest.mark.parametrize("error", [DiskFullError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failing_write_leaves_the_older_files(saved, monkeypatch, error):
    before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}
    write_bytes = Path.write_bytes

    def fail_in_the_middle(self, data):
        write_bytes(self, data[: len(data) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", fail_in_the_middle)
    with pytest.raises(type(error)):
        save(Checkpoint(build("dense"), EDGES, {"seed": 2}), saved)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in saved.parent.iterdir()} == before
    assert load(saved).card == CARD


def test_files_are_renamed_into_place(saved, tmp_path):
    # A reader that has the older file open keeps the whole of it.
    before = {}
    for path in (saved, saved.with_suffix(".json")):
        older = tmp_path / f"older-{path.name}"
        older.hardlink_to(path)
        before[older] = path.read_bytes()
    save(Checkpoint(build("dense"), EDGES, {"seed": 2}), saved)
    assert all(older.read_bytes() == content for older, content in before.items())


def test_unusable_target_leaves_no_temporary_file(tmp_path):
    (tmp_path / "net.safetensors").mkdir()
    with pytest.raises(OSError, match=r"net\.safetensors"):
        save(Checkpoint(build("talk"), EDGES, CARD), tmp_path / "net.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_missing_folder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save(Checkpoint(build("talk"), EDGES, CARD), tmp_path / "nowhere" / "net.safetensors")


def test_a_newer_checkpoint_replaces_both_files(saved):
    save(Checkpoint(build("dense"), EDGES, {"seed": 2}), saved)
    assert load(saved).card == json.loads(saved.with_suffix(".json").read_text()) == {"seed": 2}


@pytest.mark.parametrize("name", ["net.pt", "net", "net.safetensors.txt"])
def test_refuses_other_endings(name, tmp_path):
    with pytest.raises(InputError, match=rf"path: a checkpoint ends in .safetensors, {name} came"):
        save(Checkpoint(build("talk"), EDGES, CARD), tmp_path / name)


def test_refuses_a_net_that_could_not_be_rebuilt(tmp_path):
    class OwnNet(TalkNet):
        """A user's net, unknown to NETS."""

    with pytest.raises(
        InputError, match=r"net: OwnNet is not one of talk, dense, learned_basis, any_binning; add it to"
    ):
        save(Checkpoint(OwnNet(N_BINS, width=5), EDGES, CARD), tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_card_that_is_not_plain_data(saved):
    with pytest.raises(InputError, match=r"card: plain data that JSON can hold is expected .*Tensor"):
        save(Checkpoint(build("talk"), EDGES, {"edges": EDGES}), saved)
    assert load(saved).card == CARD


def test_a_figure_that_is_nan_does_not_cost_the_net(tmp_path):
    card = {"figures": {"rms": float("nan"), "bias": 0.5}}
    path = save(Checkpoint(build("talk"), EDGES, card), tmp_path / "net.safetensors")
    assert load(path).card == {"figures": {"rms": None, "bias": 0.5}}
    assert json.loads(path.with_suffix(".json").read_text()) == load(path).card


# --- files that are no checkpoint -----------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    for path in (tmp_path / "net.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"checkpoint: .*safetensors does not exist; `specfit train` makes"):
            load(path)


def test_a_stopped_training_is_not_called_missing(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "last.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name} holds a stopped training; the same `specfit"):
        load(tmp_path)


def test_truncated_file(saved):
    whole = saved.read_bytes()
    header_length = int.from_bytes(whole[:8], "little")
    lengths = {0, 1, 7, 8, 9, 8 + header_length - 1, 8 + header_length, len(whole) - 1}
    lengths |= {len(whole) * i // 23 for i in range(23)}
    for length in sorted(lengths):
        saved.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"checkpoint: .*net.safetensors is damaged or not a .safetensors file"):
            load(saved)


def test_flipped_bytes_of_the_header_are_no_other_error(saved):
    whole = bytearray(saved.read_bytes())
    header_length, messages = int.from_bytes(whole[:8], "little"), []
    for at in range(0, 8 + header_length, 29):
        damaged = whole.copy()
        damaged[at] ^= 0x05
        saved.write_bytes(bytes(damaged))
        try:
            load(saved)  # may work: a flip in the card only changes the card
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 5
    assert all(message.startswith("checkpoint: ") and "\n" not in message for message in messages)


class Bomb:
    """What unpickling would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickle_is_not_unpickled(tmp_path):
    path, trace = tmp_path / "net.safetensors", tmp_path / "exploded"
    path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(InputError, match=r"is damaged or not a .safetensors file"):
        load(path)
    torch.save({"weights": torch.ones(3), "bomb": Bomb(trace)}, path)
    with pytest.raises(InputError, match=r"is damaged or not a .safetensors file"):
        load(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()  # the bomb does work


@pytest.mark.parametrize("content", [b"just some text\n", b"{}", bytes(1000), b"\xff" * 1000])
def test_other_files(tmp_path, content):
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged or not a .safetensors file"):
        load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_weights_of_another_program(tmp_path, metadata):
    path = tmp_path / "net.safetensors"
    path.write_bytes(safetensors.torch.save({"layer.weight": torch.ones(2, 2)}, metadata=metadata))
    with pytest.raises(InputError, match="holds weights, but not of specfit"):
        load(path)


@pytest.mark.parametrize("entry", ["not json", "[1, 2]", "7", "null", '"text"'])
def test_header_entry_that_is_no_description(tmp_path, entry):
    path = tmp_path / "net.safetensors"
    path.write_bytes(safetensors.torch.save(build("talk").state_dict(), metadata={"specfit": entry}))
    with pytest.raises(InputError, match=r"checkpoint: .* has a damaged specfit entry in its header"):
        load(path)


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_other_format(tmp_path, number):
    with pytest.raises(InputError, match=rf"has format {number}, this specfit reads 1; update specfit or train again"):
        load(write_header(tmp_path / "net.safetensors", format=number))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"net": {"name": "transformer", "arguments": {}}}, "does not describe a net .*transformer"),
        ({"net": {"name": "talk", "arguments": {"n_bins": 6, "color": 1}}}, "does not describe a net .*color"),
        ({"net": {"name": "talk", "arguments": {"n_bins": 7, "width": 5}}}, "does not describe a net .*state_dict"),
        ({"net": {"name": "dense", "arguments": {"n_bins": 6}}}, "does not describe a net .*state_dict"),
        ({"net": {"name": "talk", "arguments": {"n_bins": 6, "width": 1}}}, "does not describe a net .*width must be"),
        ({"net": {"name": "talk", "arguments": 5}}, "does not describe a net"),
        ({"net": "talk"}, "does not describe a net"),
        ({"net": None}, "does not describe a net .*'net'"),
        ({"edges": None}, "does not describe a net .*'edges'"),
        ({"card": None}, "does not describe a net .*'card'"),
        ({"edges": ["low", "high"]}, "does not describe a net"),
        ({"edges": [1.0, [2.0, 3.0]]}, "does not describe a net"),
        ({"card": "a text"}, "does not describe a net"),
        ({"edges": [1.0, 2.0, 3.0]}, r"holds a net of 6 bins, but edges: 3"),
    ],
)
def test_header_that_fits_no_net(tmp_path, change, match):
    with pytest.raises(InputError, match=match) as caught:
        load(write_header(tmp_path / "net.safetensors", **change))
    assert "\n" not in str(caught.value)
