"""The talk's refit for a whole batch against its loop for one spectrum, written in numpy from the slides."""

import math

import numpy as np
import pytest
import torch

from specfit.fitter import TALK_THRESHOLD, refit_talk
from specfit.net import TalkNet

SMOOTHING = np.exp(-0.5 * (np.subtract.outer(np.arange(30), np.arange(30)) / 4) ** 2)


def smooth(counts):
    """Stands for a net: every bin becomes a weighted mean of its neighbours; each row for itself, by numpy."""
    rows = [SMOOTHING @ row / SMOOTHING.sum(-1) for row in counts.numpy()]
    return torch.from_numpy(np.array(rows).reshape(counts.shape))


def significance(n, b):
    """Significance of n events where b are expected, without uncertainty (ATL-PHYS-PUB-2020-025)."""
    return math.copysign(math.sqrt(2 * max((n * math.log(n / b) if n else 0.0) - (n - b), 0)), n - b)


def refit_one(predict, counts, threshold):
    """The slides: list the bin of largest significance, replace the listed ones by the background, ask again."""
    data, listed, n_again = counts.copy(), [], 0
    background = predict(data)
    while len(listed) < len(counts):
        free = [i for i in range(len(counts)) if i not in listed]
        values = [significance(counts[i], background[i]) for i in free]
        if max(values) <= threshold:
            break
        listed.append(free[values.index(max(values))])
        data = counts.copy()
        data[listed] = background[listed]
        background = predict(data)
        n_again += 1
    return data, sorted(listed), n_again


def predict_one(counts):
    return smooth(torch.from_numpy(counts)[None])[0].numpy()


@pytest.fixture
def spectra(rng):
    """Forty falling spectra, a third with a peak, some with empty bins; float64."""
    x = torch.arange(30, dtype=torch.float64)
    rates = 10 ** (1 + 3 * torch.rand(40, 1, generator=rng).double()) * torch.exp(-x / 9)
    rates[::3] += 3 * rates[::3, 12:13] * torch.exp(-0.5 * ((x - 12) / 1.5) ** 2)
    return torch.poisson(rates, generator=rng)


@pytest.mark.parametrize("threshold", [0.5, TALK_THRESHOLD, 2.0, 3.0])
def test_batch_is_the_loop_of_each_spectrum(spectra, threshold):
    refit = refit_talk(smooth, spectra, threshold=threshold)
    for i, counts in enumerate(spectra.numpy()):
        data, listed, n_again = refit_one(predict_one, counts, threshold)
        assert refit.mask[i].nonzero().flatten().tolist() == listed
        assert refit.iterations[i] == n_again
        np.testing.assert_array_equal(refit.counts[i].numpy(), data)
    assert 0 < refit.mask.sum() < refit.mask.numel()
    assert len(refit.iterations.unique()) > 3  # spectra end in different rounds


def test_the_threshold_of_the_talk_is_one(spectra):
    default, one = refit_talk(smooth, spectra), refit_talk(smooth, spectra, threshold=1.0)
    assert torch.equal(default.mask, one.mask)
    assert "more than 1 standard deviations" in default.message


def test_every_iteration_masks_one_bin(spectra):
    refit = refit_talk(smooth, spectra)
    assert torch.equal(refit.mask.sum(-1), refit.iterations)
    assert torch.equal(refit.counts[~refit.mask], spectra[~refit.mask])
    assert (refit.counts[refit.mask] != spectra[refit.mask]).all()


def test_no_unmasked_bin_is_left_above_the_threshold(spectra):
    refit = refit_talk(smooth, spectra, threshold=1.5)
    background = smooth(refit.counts)
    for n, b, hidden in zip(spectra.numpy(), background.numpy(), refit.mask.numpy(), strict=True):
        assert max(significance(*pair) for pair in zip(n[~hidden], b[~hidden], strict=True)) <= 1.5


def test_a_perfect_fit_is_left_alone(spectra):
    refit = refit_talk(lambda counts: counts, spectra)
    assert not refit.mask.any()
    assert not refit.iterations.any()
    assert torch.equal(refit.counts, spectra)


def test_a_deficit_is_never_masked():
    counts = torch.full((1, 30), 100.0).double()
    counts[0, 7], counts[0, 20] = 10.0, 190.0
    refit = refit_talk(lambda data: torch.full_like(data, 100.0), counts)
    assert refit.mask.nonzero().tolist() == [[0, 20]]


def test_net_is_asked_about_replaced_data_only_for_rows_that_go_on():
    asked = []

    def flat(counts):
        asked.append(counts.clone())
        return torch.full_like(counts, 100.0)

    counts = torch.full((3, 5), 100.0).double()
    counts[1, 2], counts[2, 0], counts[2, 4] = 150.0, 130.0, 200.0
    refit = refit_talk(flat, counts)
    assert [len(rows) for rows in asked] == [3, 2, 1]
    assert torch.equal(asked[0], counts)
    assert asked[1].tolist() == [[100] * 5, [130, 100, 100, 100, 100]]
    assert asked[2].tolist() == [[100] * 5]
    assert refit.iterations.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "background",
    [0.0, 1e-300, 1.0, math.nan, math.inf],
    ids=["nothing", "next to nothing", "too little", "nan", "infinite"],
)
def test_always_ends_whatever_the_net_says(spectra, background):
    rounds = 0

    def adversary(counts):
        nonlocal rounds
        rounds += 1
        return torch.full_like(counts, background)

    refit = refit_talk(adversary, spectra, threshold=-1e9)
    assert rounds <= 31
    assert refit.iterations.max() <= 30
    assert torch.equal(refit.mask.sum(-1), refit.iterations)


def test_a_net_that_never_settles_ends_with_every_bin_masked(rng):
    counts = torch.full((4, 30), 50.0).double()

    def falls_away(data):
        return data.min(-1, keepdim=True).values.expand_as(data) / 2

    refit = refit_talk(falls_away, counts)
    assert refit.mask.all()
    assert (refit.iterations == 30).all()


def test_nothing_of_the_caller_is_written(spectra):
    kept = spectra.clone()
    answer = torch.full((1, 30), 40.0).double()

    def keeps_its_answer(counts):
        return answer.expand_as(counts)  # many rows, one memory

    refit_talk(keeps_its_answer, spectra)
    assert torch.equal(spectra, kept)
    assert torch.equal(answer, torch.full((1, 30), 40.0).double())


def test_a_net_of_float32(rng):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = TalkNet(12, width=11)
    counts = torch.poisson(torch.linspace(400, 50, 12).expand(6, 12), generator=rng)
    with torch.no_grad():
        together = refit_talk(net, counts)
        alone = [refit_talk(net, row[None]) for row in counts]
    assert together.counts.dtype == torch.float32
    assert torch.equal(together.mask, torch.cat([one.mask for one in alone]))
    assert together.mask.any()


def test_no_spectrum_no_refit():
    refit = refit_talk(smooth, torch.zeros(0, 30).double())
    assert refit.counts.shape == refit.mask.shape == (0, 30)
    assert refit.iterations.shape == (0,)
