"""The loss against scipy's Kullback-Leibler divergence, which is t ln(t/p) - (t - p) bin by bin."""

import numpy as np
import pytest
import scipy.special
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from specfit.net import significance_loss

EMPTY_ROW = [0.0, 0.0, 0.0]


def expected_loss(predicted, truth, mask=None, *, normalize=True):
    """Mean of the divergence over all unmasked bins, the truth of each row normalised to its prediction."""
    used = np.ones(predicted.shape, dtype=bool) if mask is None else ~np.broadcast_to(mask, predicted.shape)
    terms = []
    for p, t, kept in zip(predicted, truth, used, strict=True):
        p, t = p[kept], t[kept]
        terms.append(scipy.special.kl_div(t * p.sum() / t.sum() if normalize else t, p))
    return np.concatenate(terms).mean()


@pytest.fixture
def truth(rng):
    """Five spectra of eight bins over seven orders of magnitude, some bins empty; float64."""
    rates = 10 ** (7 * torch.rand(5, 8, generator=rng, dtype=torch.float64) - 1)
    rates[0, [2, 3]], rates[4, :6] = 0, 0
    return rates


@pytest.fixture
def predicted(truth, rng):
    return (truth + 0.1) * torch.exp(0.3 * torch.randn(truth.shape, generator=rng, dtype=torch.float64))


@pytest.fixture
def mask():
    hidden = torch.zeros(5, 8, dtype=torch.bool)
    hidden[0, [1, 2, 5]], hidden[1, [0, 7]], hidden[3, 4] = True, True, True
    return hidden


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_is_the_mean_divergence(predicted, truth, normalize, tolerance):
    loss = significance_loss(predicted, truth, normalize=normalize)
    expected = expected_loss(predicted.numpy(), truth.numpy(), normalize=normalize)
    np.testing.assert_allclose(loss.item(), expected, **tolerance["relative"])


@pytest.mark.parametrize("normalize", [True, False])
def test_masked_bins_do_not_count(predicted, truth, mask, normalize, tolerance):
    loss = significance_loss(predicted, truth, mask=mask, normalize=normalize)
    expected = expected_loss(predicted.numpy(), truth.numpy(), mask.numpy(), normalize=normalize)
    np.testing.assert_allclose(loss.item(), expected, **tolerance["relative"])
    elsewhere = torch.where(mask, 1e6, predicted), torch.where(mask, 0.0, truth)
    assert torch.equal(significance_loss(*elsewhere, mask=mask, normalize=normalize), loss)


def test_one_mask_for_every_spectrum(predicted, truth):
    common = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0], dtype=torch.bool)
    assert_close(
        significance_loss(predicted, truth, mask=common),
        significance_loss(predicted, truth, mask=common.expand(5, 8)),
    )
    assert_close(
        significance_loss(predicted, truth, mask=common),
        significance_loss(predicted[:, ~common], truth[:, ~common]),
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_near_the_truth_it_is_half_the_mean_square(rng, normalize):
    truth = 10 ** (6 * torch.rand(4, 9, generator=rng, dtype=torch.float64))
    for size, accuracy in ((1e-2, 1e-2), (1e-4, 1e-4), (1e-6, 1e-6)):
        predicted = truth * (1 + size * torch.randn(4, 9, generator=rng, dtype=torch.float64))
        if normalize:  # a common factor costs nothing, so take it out of the difference too
            predicted = predicted * truth.sum(-1, keepdim=True) / predicted.sum(-1, keepdim=True)
        half_square = 0.5 * ((predicted - truth) / truth.sqrt()).square().mean()
        assert_close(significance_loss(predicted, truth, normalize=normalize), half_square, rtol=3 * accuracy, atol=0)


def test_truth_may_have_any_normalisation(predicted, truth):
    scales = torch.tensor([1e-4, 0.3, 1.0, 7.0, 1e6]).double()[:, None]
    assert_close(significance_loss(predicted, scales * truth), significance_loss(predicted, truth))
    assert significance_loss(predicted, 2 * predicted).item() == pytest.approx(0, abs=1e-12)
    assert significance_loss(predicted, 2 * predicted, normalize=False) > 1


def test_grows_with_the_number_of_events(predicted, truth):
    assert_close(significance_loss(50 * predicted, 50 * truth), 50 * significance_loss(predicted, truth))


def test_truth_has_the_least_loss(truth):
    predicted = (truth + 1e-3).clone().requires_grad_()
    loss = significance_loss(predicted, predicted.detach(), normalize=False)
    loss.backward()
    assert loss.item() == 0
    assert predicted.grad.abs().max() < 1e-12


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("with_mask", [False, True])
def test_gradient(predicted, truth, mask, normalize, with_mask):
    hidden = mask if with_mask else None
    predicted, truth = predicted.requires_grad_(), (truth + 0.01).requires_grad_()
    assert gradcheck(lambda p, t: significance_loss(p, t, mask=hidden, normalize=normalize), (predicted, truth))
    significance_loss(predicted, truth, mask=hidden, normalize=normalize).backward()
    if with_mask:
        assert not predicted.grad[mask].any()
        assert predicted.grad[~mask].all()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("predicted", "truth", "mask"),
    [
        ([0.0, 10.0, 5.0], [3.0, 10.0, 5.0], None),
        ([0.0, 10.0, 5.0], [0.0, 0.0, 5.0], None),
        ([1e-38, 1e9, 5.0], [1e9, 1e-38, 5.0], None),
        (EMPTY_ROW, [3.0, 10.0, 5.0], None),
        ([3.0, 10.0, 5.0], EMPTY_ROW, None),
        (EMPTY_ROW, EMPTY_ROW, None),
        ([3.0, 10.0, 5.0], [1.0, 2.0, 5.0], [True, True, True]),
        ([0.0, 10.0, 5.0], [3.0, 0.0, 5.0], [True, True, False]),
    ],
)
def test_value_and_gradient_are_finite_at_the_edges(predicted, truth, mask, dtype, normalize):
    p = torch.tensor([predicted], dtype=dtype, requires_grad=True)
    hidden = None if mask is None else torch.tensor([mask])
    loss = significance_loss(p, torch.tensor([truth], dtype=dtype), mask=hidden, normalize=normalize)
    loss.backward()
    assert loss.isfinite()
    assert loss >= 0
    assert p.grad.isfinite().all()


def test_full_mask_is_no_loss(predicted, truth):
    assert significance_loss(predicted, truth, mask=torch.ones(8, dtype=torch.bool)).item() == 0


def test_float32_spectra_of_many_events_lose_nothing():
    truth = torch.full((1, 50), 1e9)
    predicted = truth + 16 * torch.arange(-25, 25)  # 16 is well below one standard deviation of 31623
    loss = significance_loss(predicted, truth, normalize=False)
    assert loss.dtype == torch.float64
    expected = 0.5 * ((predicted.double() - truth.double()) ** 2 / truth.double()).mean()
    assert expected > 0
    assert_close(loss, expected, rtol=1e-5, atol=0)
