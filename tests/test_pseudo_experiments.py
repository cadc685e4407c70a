"""Pseudo-experiments at scale: one answer whoever draws it and whatever stops it. Oracles: undisturbed runs, scipy."""

import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.testing import assert_allclose

from specfit import InputError
from specfit.randomness import independent_rng
from specfit.search import global_p_value, run_pseudo_experiments
from specfit.search.pseudo_experiments import digest
from specfit.search.toys import store as stores
from specfit.search.toys import workers as dask_workers
from specfit.search.toys.chunks import Chunk

TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Toys:
    """Poisson counts and a matrix product, whose last digits depend on the number of threads."""

    rate: float = 20.0
    pause: float = 0.0
    hold: str = ""
    """A store: from its third chunk on nothing more is drawn."""
    fatal: str = ""
    """A file whose presence ends the process, once, in the middle of a chunk."""
    wrong_at: int = -1

    def __call__(self, size, rng):
        time.sleep(self.pause)
        while self.hold and len(list(Path(self.hold).glob("*.npz"))) >= 3:
            time.sleep(0.05)
        counts = torch.poisson(torch.full((size, 40), self.rate, dtype=torch.float64), generator=rng)
        if self.fatal and Path(self.fatal).exists():
            Path(self.fatal).unlink()
            os._exit(1)
        if counts[0, 0] == self.wrong_at:
            raise ZeroDivisionError("no width")
        noise = torch.randn(3000, 40, generator=rng, dtype=torch.float64)
        return {
            "largest": counts.amax(1),
            "product": counts @ (noise.T @ noise),
            "threads": torch.full((size,), torch.get_num_threads()),
            "file": counts[:, 0] > self.rate,  # a name that numpy.savez takes for its own
        }

    def identity(self):
        return {"job": "toys", "rate": self.rate, "digest": digest(torch.tensor(self.rate))}


class Recorder(Toys):
    """Remembers the sizes that were asked for."""

    def __init__(self, **options):
        super().__init__(**options)
        object.__setattr__(self, "sizes", [])

    def __call__(self, size, rng):
        self.sizes.append(size)
        return super().__call__(size, rng)


def assert_same(one, other):
    assert one.values.keys() == other.values.keys()
    for name, value in one.values.items():
        assert value.dtype == other.values[name].dtype
        assert torch.equal(value, other.values[name]), name


@pytest.fixture(scope="module")
def undisturbed():
    return run_pseudo_experiments(Toys(), 25, seed=3, chunk_size=4)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_chunk_is_drawn_from_its_own_seed(undisturbed):
    assert (undisturbed.n, undisturbed.seed, undisturbed.chunk_size, undisturbed.n_from_store) == (25, 3, 4, 0)
    assert undisturbed.identity == Toys().identity()
    assert {name: tuple(value.shape) for name, value in undisturbed.values.items()} == {
        "largest": (25,),
        "product": (25, 40),
        "threads": (25,),
        "file": (25,),
    }
    for index, rows in enumerate(torch.arange(25).split(4)):
        expected = Toys()(len(rows), independent_rng((3, index)))["largest"]
        assert torch.equal(undisturbed.values["largest"][rows], expected)
    other = run_pseudo_experiments(Toys(), 25, seed=4, chunk_size=4)
    assert not torch.equal(other.values["product"], undisturbed.values["product"])


def test_the_distribution_is_that_of_the_job():
    largest = run_pseudo_experiments(Toys(), 4000, seed=0, chunk_size=1000).values["largest"]
    counts = np.arange(20, 60)
    expected = scipy.stats.poisson(20).cdf(counts) ** 40
    seen = (largest[:, None] <= torch.as_tensor(counts)).double().mean(0)
    # The Kolmogorov distance that 4000 pseudo-experiments exceed once in 1e5 runs.
    assert np.abs(seen.numpy() - expected).max() < scipy.stats.kstwo(4000).isf(1e-5)


def test_the_number_of_threads_changes_nothing_and_stays(undisturbed, threads):
    torch.set_num_threads(2)
    assert_same(run_pseudo_experiments(Toys(), 25, seed=3, chunk_size=4), undisturbed)
    assert (undisturbed.values["threads"] == 1).all()
    assert torch.get_num_threads() == 2


def test_two_processes_draw_the_same(undisturbed, tmp_path):
    calls, environment = [], dict(os.environ)
    drawn = run_pseudo_experiments(
        Toys(), 25, seed=3, chunk_size=4, workers=2, store=tmp_path, progress=lambda *call: calls.append(call)
    )
    assert_same(drawn, undisturbed)
    assert len(list(tmp_path.glob("*.npz"))) == 7
    assert calls[0] == (0, 25)
    assert calls[-1] == (25, 25)
    assert len(calls) == 8
    assert dict(os.environ) == environment


@pytest.mark.slow
def test_a_worker_may_die(undisturbed, tmp_path):
    (tmp_path / "fatal").touch()
    drawn = run_pseudo_experiments(Toys(fatal=str(tmp_path / "fatal")), 25, seed=3, chunk_size=4, workers=2)
    assert_same(drawn, undisturbed)
    assert not (tmp_path / "fatal").exists()


@pytest.fixture(scope="module")
def scheduler():
    from distributed import LocalCluster

    # Threads of this process: starts at once, and puts two threads into one worker.
    before = torch.get_num_threads()
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address
    torch.set_num_threads(before)


def test_a_given_scheduler_draws_the_same(scheduler, undisturbed, monkeypatch):
    monkeypatch.setattr(dask_workers, "IN_FLIGHT_AT_LEAST", 3)
    drawn = run_pseudo_experiments(Toys(), 25, seed=3, chunk_size=4, scheduler=scheduler)
    assert_same(drawn, undisturbed)


@pytest.mark.parametrize("remote", [False, True])
def test_an_error_of_the_job_comes_as_itself_and_says_where(remote, request, tmp_path, undisturbed):
    options = {"scheduler": request.getfixturevalue("scheduler")} if remote else {}
    sixth = torch.poisson(torch.full((4, 40), 20.0, dtype=torch.float64), generator=independent_rng((3, 5)))
    with pytest.raises(ZeroDivisionError, match="no width") as caught:
        run_pseudo_experiments(
            Toys(wrong_at=int(sixth[0, 0])), 25, seed=3, chunk_size=4, store=tmp_path / "toys", **options
        )
    (note,) = caught.value.__notes__
    assert "repeats them" in note
    # What was done stays, and a job that is mended goes on.
    assert_same(run_pseudo_experiments(Toys(), 25, seed=3, chunk_size=4, store=tmp_path / "toys"), undisturbed)


def test_workers_that_cannot_do_it_say_why(scheduler):
    job = Toys()
    object.__setattr__(job, "pause", (i for i in range(3)))
    with pytest.raises(InputError, match=r"job: cannot be sent to another process .* make it picklable"):
        run_pseudo_experiments(job, 8, seed=1, chunk_size=4, scheduler=scheduler)
    with pytest.raises(InputError, match=r"a worker has .*, {'specfit': '0.0.1'} is needed; install the same there"):
        dask_workers._draw_as_worker(Toys(), Chunk(0, 0, 4), 3, {"specfit": "0.0.1"})


def test_a_scheduler_that_is_not_there_is_the_callers_mistake():
    from dask import config

    with (
        config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(InputError, match=r"scheduler: no Dask scheduler answers at tcp://127.0.0.1:1 .*dask scheduler"),
    ):
        run_pseudo_experiments(Toys(), 8, seed=1, chunk_size=4, scheduler="tcp://127.0.0.1:1")


def test_the_store_gives_back_what_was_drawn(tmp_path, undisturbed):
    options = {"seed": 3, "chunk_size": 4, "store": tmp_path / "deep" / "toys"}
    assert_same(run_pseudo_experiments(Toys(), 25, **options), undisturbed)
    again = Recorder()
    drawn = run_pseudo_experiments(again, 25, **options)
    assert_same(drawn, undisturbed)
    assert drawn.n_from_store == 25
    assert again.sizes == []
    files = sorted((tmp_path / "deep" / "toys").glob("*.npz"))
    assert files[1].name == "000000004-000000008.npz"
    with np.load(files[1]) as plain:  # by anyone, with plain numpy
        assert (plain["largest"] == undisturbed.values["largest"][4:8].numpy()).all()
    card = json.loads((tmp_path / "deep" / "toys" / "card.json").read_text())
    assert card["job"] == Toys().identity()
    assert card["software"]["torch"] == torch.__version__


def test_more_and_fewer_are_what_an_undisturbed_run_gives(tmp_path, undisturbed):
    options = {"seed": 3, "chunk_size": 4, "store": tmp_path / "toys"}
    for n, sizes in ((10, [4, 4, 2]), (25, [4, 4, 4, 4, 1]), (11, [3]), (24, []), (25, [])):
        job = Recorder()
        drawn = run_pseudo_experiments(job, n, **options)
        assert_same(drawn, run_pseudo_experiments(Toys(), n, seed=3, chunk_size=4))
        assert job.sizes == sizes
    assert_same(drawn, undisturbed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-30],
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"descr", b"DESCR"),
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
        lambda content: b"nonsense" * 50,
    ],
)
def test_a_damaged_chunk_is_drawn_again(damage, tmp_path, undisturbed, caplog):
    options = {"seed": 3, "chunk_size": 4, "store": tmp_path}
    run_pseudo_experiments(Toys(), 25, **options)
    file = tmp_path / "000000008-000000012.npz"
    content = file.read_bytes()
    file.write_bytes(damage(content))
    job = Recorder()
    with caplog.at_level(logging.WARNING):
        assert_same(run_pseudo_experiments(job, 25, **options), undisturbed)
    assert job.sizes == [4]
    assert "000000008-000000012.npz is damaged" in caplog.text
    assert file.read_bytes() == content


def test_any_changed_byte_of_the_numbers_is_seen(tmp_path):
    options = {"seed": 3, "chunk_size": 4, "store": tmp_path}
    expected = run_pseudo_experiments(Toys(), 4, **options)
    file = tmp_path / "000000000-000000004.npz"
    content = file.read_bytes()
    for at in np.random.default_rng(1).integers(0, len(content), 150):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        assert_same(run_pseudo_experiments(Toys(), 4, **options), expected)


def test_a_chunk_of_another_size_under_this_name_is_drawn_again(tmp_path, undisturbed):
    options = {"seed": 3, "chunk_size": 4, "store": tmp_path}
    run_pseudo_experiments(Toys(), 25, **options)
    (tmp_path / "000000024-000000025.npz").replace(tmp_path / "000000000-000000004.npz")
    assert_same(run_pseudo_experiments(Toys(), 25, **options), undisturbed)


@pytest.mark.parametrize(
    ("job", "changed", "message"),
    [
        (Toys(), {"seed": 4}, r"holds another run \(seed: 3 there, 4 asked for\); give what it was made with, or "),
        (Toys(), {"chunk_size": 5}, r"chunk_size: 4 there, 5 asked for"),
        (Toys(rate=21.0), {}, r"\(job.digest: not the same; job.rate: 20.0 there, 21.0 asked for"),
    ],
)
def test_the_store_of_another_run_is_refused(job, changed, message, tmp_path):
    options = {"seed": 3, "chunk_size": 4, "store": tmp_path}
    run_pseudo_experiments(Toys(), 5, **options)
    with pytest.raises(InputError, match=message):
        run_pseudo_experiments(job, 5, **options | changed)


def test_other_versions_may_read_but_not_add(tmp_path):
    options = {"seed": 3, "chunk_size": 4, "store": tmp_path}
    run_pseudo_experiments(Toys(), 8, **options)
    card = json.loads((tmp_path / "card.json").read_text())
    card["software"]["specfit"] = "0.0.1"
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert run_pseudo_experiments(Toys(), 8, **options).n_from_store == 8
    with pytest.raises(InputError, match=r"made with other versions \(software.specfit: '0.0.1' there"):
        run_pseudo_experiments(Toys(), 9, **options)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    options = {"seed": 3, "chunk_size": 4}
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds other things \(no card.json\)"):
        run_pseudo_experiments(Toys(), 5, **options, store=tmp_path)
    with pytest.raises(InputError, match="is a file; name a folder"):
        run_pseudo_experiments(Toys(), 5, **options, store=tmp_path / "thesis.tex")
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(InputError, match=r"card.json is damaged"):
        run_pseudo_experiments(Toys(), 5, **options, store=tmp_path)


def test_what_a_kill_before_the_card_leaves_is_still_an_empty_store(tmp_path):
    (tmp_path / ".specfit-0123.tmp").touch()
    run_pseudo_experiments(Toys(), 5, seed=3, chunk_size=4, store=tmp_path)
    assert stores.open_store(tmp_path, json.loads((tmp_path / "card.json").read_text())).other_software == ""


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_pseudo_experiments import Toys
from specfit.search import run_pseudo_experiments
if __name__ == "__main__":
    job = Toys(pause={pause}, hold={hold!r})
    run_pseudo_experiments(job, 25, seed=3, chunk_size=4, store={store!r}, workers={workers})
"""


def stop_in_the_middle(folder, how, *, workers=1, pause=0.0):
    """Starts a run in a process group of its own, stops all of it after three chunks, returns its last words."""
    script = folder / "run.py"
    store = str(folder / "toys")
    # Workers may be through with all chunks before three are stored: they pause instead.
    hold = store if workers == 1 else ""
    script.write_text(SCRIPT.format(tests=str(TESTS), store=store, workers=workers, pause=pause, hold=hold))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=TESTS.parent,
        # What a shell starts in the background inherits that Ctrl-C is ignored.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while len(list((folder / "toys").glob("*.npz"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]  # noqa: PT018
        time.sleep(0.02)
    if how is signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, how)
    return process.communicate(timeout=60)[1]


def resume(folder):
    there = {path.name for path in (folder / "toys").glob("*.npz")}
    job = Recorder()
    drawn = run_pseudo_experiments(job, 25, seed=3, chunk_size=4, store=folder / "toys")
    assert 3 <= len(there) < 7
    assert len(job.sizes) == 7 - len(there)
    assert drawn.n_from_store == 25 - sum(job.sizes)
    return drawn


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, undisturbed):
    stop_in_the_middle(tmp_path, signal.SIGKILL)
    assert_same(resume(tmp_path), undisturbed)


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path, undisturbed):
    words = stop_in_the_middle(tmp_path, signal.SIGINT)
    drawn = resume(tmp_path)
    assert f"KeyboardInterrupt: stopped after {drawn.n_from_store} of 25 pseudo-experiments, which are in" in words
    assert "the same call goes on from there" in words
    assert_same(drawn, undisturbed)


@pytest.mark.slow
def test_a_script_without_its_main_guard_is_told_so(tmp_path):
    text = SCRIPT.format(tests=str(TESTS), store=str(tmp_path / "toys"), workers=2, pause=0, hold="")
    (tmp_path / "run.py").write_text(text.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    message = r'InputError: workers: the 2 processes did not start .* below `if __name__ == "__main__":`'
    assert re.search(message, done.stderr)
    assert not list((tmp_path / "toys").glob("*.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopping_many_processes_leaves_none_behind(how, tmp_path, undisturbed):
    words = stop_in_the_middle(tmp_path, how, workers=2, pause=1.5)
    if how is signal.SIGINT:
        assert words.count("Traceback") == 1, words
        assert "KeyboardInterrupt: stopped after" in words
    for _ in range(100):
        left = subprocess.run(["pgrep", "-f", str(tmp_path / "run.py")], capture_output=True, text=True).stdout
        if not left:
            break
        time.sleep(0.1)
    assert not left
    assert_same(resume(tmp_path), undisturbed)


def test_what_only_many_workers_need_is_not_loaded():
    program = "import json, sys, specfit.search\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(json.loads(answer.stdout)) & {"dask", "distributed", "rich", "tornado", "cryptography"}


def test_ctrl_c_without_a_store_says_so():
    def press(done, n):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"stopped after 8 of 25 .*; none are kept, give a store=FOLDER"):
        run_pseudo_experiments(Toys(), 25, seed=3, chunk_size=4, progress=press)


def test_the_bar_is_silent_where_no_one_looks(capfd):
    run_pseudo_experiments(Toys(), 25, seed=3, chunk_size=4, progress=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n: a whole number from 1 upwards is expected, 0 came"),
        ({"n": 1e4}, "n: a whole number from 1 upwards is expected, 10000.0 came"),
        ({"seed": -1}, "seed: a whole number from 0 upwards is expected, -1 came"),
        ({"chunk_size": 0}, "chunk_size: a whole number from 1"),
        ({"workers": 0}, "workers: a whole number from 1"),
        ({"workers": 2, "scheduler": "tcp://node:1"}, "workers: 2 came beside scheduler='tcp://node:1'"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(wrong, message):
    options = {"n": 4, "seed": 1} | wrong
    with pytest.raises(InputError, match=message):
        run_pseudo_experiments(Toys(), options.pop("n"), **options)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "job: a dictionary of tensors is expected, {} came"),
        (torch.ones(4), "job: a dictionary of tensors is expected"),
        ({"q": [1.0] * 4}, "job: tensors by name are expected, list came under 'q'"),
        ({"q": torch.ones(3)}, r"job: q must have 4 rows, one a pseudo-experiment; shape \(3,\) came"),
        ({"q": torch.tensor(1.0)}, r"shape \(\) came"),
    ],
)
def test_a_job_that_answers_something_else_is_refused(answer, message):
    class Wrong:
        def __call__(self, size, rng):
            return answer

        def identity(self):
            return {}

    with pytest.raises(InputError, match=message):
        run_pseudo_experiments(Wrong(), 4, seed=1)


def test_a_job_must_not_change_its_answers_in_kind_and_say_what_it_is(tmp_path):
    class Fickle:
        def __call__(self, size, rng):
            return {"q": torch.ones(size, 2 if rng.initial_seed() % 2 else 3)}

        def identity(self):
            return {"weights": torch.ones(2)}

    with pytest.raises(InputError, match=r"\{'q': 'float32\[\d\]'\} came for pseudo-experiments"):
        run_pseudo_experiments(Fickle(), 40, seed=1, chunk_size=1)
    with pytest.raises(InputError, match=r"identity\(\) must give plain data .*digest\(\)"):
        run_pseudo_experiments(Fickle(), 4, seed=1, store=tmp_path / "toys")


def test_a_digest_tells_apart_what_differs():
    values = [
        1, 1.0, True, "1", b"1", None, [1], [[1]], [1, 1], (), {}, {"a": 1}, {"b": 1}, {"a": 1, "b": None},
        np.ones(2), np.ones((2, 1)), np.ones(2, dtype=np.float32), np.zeros(2), [1.0, 1.0], ["a", "b"], ["ab"],
    ]  # fmt: skip
    digests = [digest(value) for value in values]
    assert len(set(digests)) == len(values)
    assert digest(torch.ones(2).double()) == digest(np.ones(2))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    net = torch.nn.Linear(2, 1)
    assert digest(net.state_dict()) == digest({name: value.clone() for name, value in net.state_dict().items()})
    for unknown in (object(), np.array([object()]), {"net": net}):
        with pytest.raises(InputError, match="digest: tensors, arrays and plain data are expected"):
            digest(unknown)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 1000), (1, 10), (7, 100), (3, 100_000), (9, 10), (10, 10)])
@pytest.mark.parametrize("level", [0.6827, 0.95])
def test_the_interval_is_clopper_pearson(k, n, level, tolerance):
    drawn = torch.cat([torch.full((k,), 2.0), torch.full((n - k,), 0.5)])
    p = global_p_value(2.0, drawn, confidence_level=level)
    exact = scipy.stats.binomtest(k, n).proportion_ci(level, method="exact")
    limit = scipy.stats.binomtest(k, n, alternative="less").proportion_ci(level, method="exact").high
    assert_allclose([p.low, p.high, p.upper_limit], [*exact, limit], **tolerance["quadrature"])  # scipy finds a root
    # What defines the ends: as many or more, and as few or fewer, come with half of what is left of the level.
    tails = [scipy.stats.binom(n, p.low).sf(k - 1) if k else 0.0, scipy.stats.binom(n, p.high).cdf(k) if k < n else 0.0]
    expected = [(1 - level) / 2 if k else 0.0, (1 - level) / 2 if k < n else 0.0]
    assert_allclose(tails, expected, **tolerance["closed_form"])
    assert (p.p_value, p.n_as_extreme, p.n) == ((k + 1) / (n + 1), k, n)
    z = scipy.stats.norm.isf([p.p_value, p.high, p.low])
    assert_allclose([p.significance, *p.significance_range], z, **tolerance["closed_form"])


def test_the_p_value_is_never_too_small_too_often():
    # If the data are one more pseudo-experiment, P(p <= alpha) is at most alpha, and alpha itself where n + 1 allows.
    numbers = np.random.default_rng(5).normal(size=(20_000, 20))
    p = np.array([global_p_value(row[0], row[1:]).p_value for row in numbers])
    for alpha in (0.05, 0.12, 0.5):
        expected = np.floor(alpha * 20) / 20
        within = scipy.stats.binom(20_000, expected)
        assert within.ppf(1e-5) <= (p <= alpha).sum() <= within.isf(1e-5)


def test_the_p_value_reads_well():
    assert str(global_p_value(9.0, torch.zeros(1000))) == (
        "p < 0.003 at 95 % (Z > 2.75; none of 1000 pseudo-experiments)"
    )
    assert str(global_p_value(0.98, torch.linspace(0, 1, 1001))) == (
        "p = 0.022, 0.013 to 0.032 at 95 % (Z = 2.01; 21 of 1001 pseudo-experiments)"
    )
    assert global_p_value(9.0, torch.zeros(9)).to_dict()["p_value"] == 0.1


@pytest.mark.parametrize(
    ("observed", "drawn", "options", "message"),
    [
        (1.0, [], {}, "drawn: one number a pseudo-experiment"),
        (1.0, [[1.0]], {}, "drawn: one number a pseudo-experiment"),
        (float("nan"), [1.0], {}, "observed: one number is expected, nan came"),
        ([1.0], [1.0], {}, "observed: one number is expected"),
        (1.0, [1.0, float("nan")], {}, "drawn: 1 of 2 are NaN"),
        (1.0, [1.0], {"confidence_level": 95}, "confidence_level: a number between 0 and 1 is expected, 95 came"),
    ],
)
def test_a_p_value_of_nothing_is_refused(observed, drawn, options, message):
    with pytest.raises(InputError, match=message):
        global_p_value(observed, drawn, **options)
