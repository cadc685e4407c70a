"""The default refit with a fitter whose answer is known: the false alarms it promises, the peaks it finds, its end."""

import pytest
import torch

from specfit.fitter import FALSE_ALARM, refit_windows
from specfit.net import Prediction
from specfit.significance import bin_significance

TRUTH = 2000 * torch.exp(-torch.arange(50, dtype=torch.float64) / 12) + 5


def prediction(background, error=0.0):
    factor = (error * background)[..., None]
    return Prediction(background, factor, *torch.zeros(2, len(background)))


def knows_the_truth(counts, mask):
    return prediction(TRUTH.expand(len(counts), -1).clone())


def follows_the_data(counts, mask):
    """Half truth, half data: a signal pulls it, and masking helps."""
    return prediction((TRUTH + counts) / 2, error=0.01)


def toys(n, rng, signal=None):
    expected = TRUTH if signal is None else TRUTH + signal
    return torch.poisson(expected.expand(n, -1), generator=rng)


def peak(position, width, events):
    x = torch.arange(50, dtype=torch.float64)
    return events * torch.exp(-0.5 * ((x - position) / width) ** 2) / (width * (2 * torch.pi) ** 0.5)


def test_no_more_false_alarms_than_promised(rng):
    counts = toys(4000, rng)
    refit = refit_windows(knows_the_truth, counts, knows_the_truth(counts, None))
    alarms = refit.mask.any(-1).double().mean().item()
    assert 0 < alarms <= FALSE_ALARM * 1.3
    assert torch.equal(refit.counts[~refit.mask.any(-1)], counts[~refit.mask.any(-1)])


def test_the_uncertainty_of_the_background_counts(rng):
    counts = toys(500, rng, peak(20, 2, 450))

    def unsure(data, mask):
        return prediction(TRUTH.expand(len(data), -1).clone(), error=0.1)

    sure = refit_windows(knows_the_truth, counts, knows_the_truth(counts, None)).mask.any(-1).sum()
    not_sure = refit_windows(unsure, counts, unsure(counts, None)).mask.any(-1).sum()
    assert sure > 490
    assert not_sure < 50


@pytest.mark.parametrize(("position", "width"), [(20, 1.0), (20, 3.0), (2, 1.0), (48, 1.0)])
def test_a_strong_peak_is_masked_whole_and_nothing_else(rng, position, width):
    counts = toys(50, rng, peak(position, width, 20 * TRUTH[position].sqrt() * width))
    refit = refit_windows(knows_the_truth, counts, knows_the_truth(counts, None))
    bins = torch.arange(50)
    core = (bins - position).abs() <= width
    far = (bins - position).abs() > 8 * width + 3
    assert refit.mask[:, core].all()
    assert refit.mask[:, far].double().mean() < 0.01
    torch.testing.assert_close(refit.counts[refit.mask], TRUTH.expand(50, -1)[refit.mask])


def test_masking_takes_the_pull_of_a_signal_away(rng):
    counts = toys(200, rng, peak(20, 2, 1200))
    first = follows_the_data(counts, None)
    refit = refit_windows(follows_the_data, counts, first)
    after = follows_the_data(refit.counts, refit.mask).background
    core = slice(18, 23)
    before, now = ((b[:, core] - TRUTH[core]).sum(-1).mean().item() for b in (first.background, after))
    assert before > 100
    assert abs(now) < 0.15 * before


def test_a_batch_is_refitted_row_by_row(rng):
    counts = toys(20, rng, peak(25, 2, 500))
    batch = refit_windows(follows_the_data, counts, follows_the_data(counts, None))
    for i, row in enumerate(counts[:, None]):
        one = refit_windows(follows_the_data, row, follows_the_data(row, None))
        assert torch.equal(one.mask[0], batch.mask[i])
        assert one.iterations.item() == batch.iterations[i].item()
        torch.testing.assert_close(one.counts[0], batch.counts[i])


@pytest.mark.parametrize("factor", [0.0, 0.5, 3.0])
def test_it_ends_whatever_the_fitter_answers(rng, factor):
    counts = toys(10, rng)

    def contrary(data, mask):
        # Runs away from what it is asked, so that nothing ever settles.
        return prediction(data.flip(-1) * factor + torch.rand(data.shape, generator=rng) * 100)

    refit = refit_windows(contrary, counts, contrary(counts, None))
    assert (refit.mask.sum(-1) <= 25).all()
    assert refit.iterations.max() <= 30


def test_nothing_is_masked_below_the_threshold_that_counts_the_looking():
    counts = TRUTH.clone()[None]
    counts[0, 30] += 3.5 * TRUTH[30].sqrt()
    assert bin_significance(counts[0, 30], TRUTH[30]) > 3.2
    refit = refit_windows(knows_the_truth, counts, knows_the_truth(counts, None))
    assert not refit.mask.any()
    assert "1 % of pure backgrounds" in refit.message
