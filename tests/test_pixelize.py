"""Pixelize against the hat function written down in numpy, and PixelLinear against nn.Linear on the image."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from specfit.errors import InputError
from specfit.net import FlattenHistogramAndNormalize, PixelLinear

GRIDS = ["linear", "log", "sqrt"]
EVERY_IMAGE = [(grid, n_sigma) for grid in GRIDS for n_sigma in (0, 2)]
# Where a histogram has no event there is nothing but finiteness to ask for.
EMPTY = torch.tensor([[0.0, 3.0, 0.0, 1e9], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1e-9, 0.0, 0.0, 0.0]])


def hat_image(counts, *, width, n_sigma, grid, low, high, floor=0.5):
    """The talk's definition, pixel by pixel: every node takes max(0, 1 - distance / step)."""
    counts = np.asarray(counts, dtype=float)
    total = counts.sum(-1, keepdims=True)
    nodes, step = np.linspace(low, high, width, retstep=True)
    images = []
    for j in range(-n_sigma, n_sigma + 1):
        x = np.maximum(counts + j * np.sqrt(counts), 0)
        if grid == "log":
            value = np.log(np.maximum(x, floor) / total)
        else:
            value = x / total if grid == "linear" else np.sqrt(x / total)
        images.append(np.maximum(0, 1 - np.abs(np.clip(value, low, high)[..., None] - nodes) / step))
    return np.stack(images, 1)


@pytest.fixture
def spectra(rng):
    """Seven spectra of twelve bins over nine orders of magnitude, some bins empty; float64."""
    rates = 10 ** (9 * torch.rand(7, 12, generator=rng, dtype=torch.float64))
    counts = torch.poisson(rates, generator=rng)
    counts[:3, ::4] = 0
    return counts


@pytest.mark.parametrize(("grid", "n_sigma"), EVERY_IMAGE)
@pytest.mark.parametrize("width", [2, 17, 101])
def test_image_is_the_hat_function(spectra, grid, n_sigma, width):
    image = FlattenHistogramAndNormalize(width=width, n_sigma=n_sigma, grid=grid)(spectra)
    low, high = {"linear": (0, 1), "log": (-16, 0), "sqrt": (0, 1)}[grid]
    expected = hat_image(spectra, width=width, n_sigma=n_sigma, grid=grid, low=low, high=high)
    assert image.shape == (7, 2 * n_sigma + 1, 12, width)
    # An empty bin counts as 1e-24 events in the error, and as a share of 1e-24 on the root grid.
    np.testing.assert_allclose(image.numpy(), expected, rtol=0, atol=1e-7 if n_sigma else 1e-9)


def test_linear_image_by_hand():
    image = FlattenHistogramAndNormalize(width=11)(torch.tensor([[25.0, 75.0, 0.0, 100.0]]).double())
    expected = torch.zeros(1, 1, 4, 11).double()
    expected[0, 0, 0, 1:3] = torch.tensor([0.75, 0.25]).double()  # 25 / 200 = 0.125
    expected[0, 0, 1, 3:5] = torch.tensor([0.25, 0.75]).double()  # 0.375
    expected[0, 0, 2, 0] = 1
    expected[0, 0, 3, 5] = 1
    assert_close(image, expected)


def test_the_talk_has_101_pixels_with_a_step_of_one_per_cent():
    image = FlattenHistogramAndNormalize()(torch.tensor([[15.0, 84.5, 0.5]]))[0, 0]
    assert image.shape == (3, 101)
    assert_close(image @ torch.linspace(0, 1, 101), torch.tensor([0.15, 0.845, 0.005]))
    assert image[1, 84].item() == pytest.approx(0.5, abs=1e-5)
    assert image[2, 0].item() == pytest.approx(0.5, abs=1e-5)  # below 1 %: a linear input


def test_log_grid_by_hand():
    # Nodes at -16, -12, -8, -4, 0; an empty bin counts as `floor` events.
    share = torch.tensor([[1.0, np.exp(-2.0), np.exp(-5.0), 0.0]]).double()
    total = share.sum().item()
    image = FlattenHistogramAndNormalize(width=5, grid="log", floor=total * np.exp(-12.0))(share * 1.0)
    positions = (image[0, 0] * torch.arange(5.0)).sum(-1).double()
    assert_close(
        positions, torch.tensor([4.0, 3.5, 2.75, 1.0]).double() - torch.tensor([1, 1, 1, 0]) * np.log(total) / 4
    )


def test_images_of_the_statistical_error_by_hand():
    # x + j sqrt(x) for j = -2 ... 2 of 4 and 96 events in 100, on a linear grid of step 0.1
    image = FlattenHistogramAndNormalize(width=11, n_sigma=2)(torch.tensor([[4.0, 96.0]]).double())
    positions = (image[0] * torch.arange(11).double()).sum(-1)
    root = 96**0.5
    expected = [
        [0.0, (96 + j * root) / 10] if j == -2 else [(4 + 2 * j) / 10, (96 + j * root) / 10] for j in range(-2, 3)
    ]
    assert_close(positions, torch.tensor(expected).double().clamp(max=10))


@pytest.mark.parametrize(("grid", "n_sigma"), EVERY_IMAGE)
def test_rows_sum_to_one_and_two_pixels_are_active(spectra, grid, n_sigma):
    for counts in (spectra, spectra.float(), EMPTY):
        image = FlattenHistogramAndNormalize(n_sigma=n_sigma, grid=grid)(counts)
        assert image.dtype == counts.dtype
        assert_close(image.sum(-1), torch.ones(image.shape[:-1], dtype=counts.dtype))
        assert (image >= 0).all()
        assert ((image > 0).sum(-1) <= 2).all()


def test_contents_beyond_the_limits_light_the_end_nodes():
    image = FlattenHistogramAndNormalize(width=3, limits=(0.2, 0.4))(torch.tensor([[10.0, 60.0, 30.0]]).double())
    assert_close(image[0, 0], torch.eye(3).double()[[0, 2, 1]], rtol=0, atol=1e-12)
    image = FlattenHistogramAndNormalize(width=4, grid="log", limits=(-3.0, -1.0))(
        torch.tensor([[1.0, 999.0]]).double()
    )
    assert_close(image[0, 0], torch.eye(4).double()[[0, 3]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", ["linear", "sqrt"])
def test_image_does_not_know_the_number_of_events(spectra, grid):
    pixelize = FlattenHistogramAndNormalize(grid=grid)
    assert_close(pixelize(1e-3 * spectra), pixelize(spectra))


def test_log_image_does_not_know_the_number_of_events_above_the_floor(spectra):
    pixelize, full = FlattenHistogramAndNormalize(grid="log"), spectra.clamp(min=1.0)
    assert_close(pixelize(7 * full), pixelize(full))


@pytest.mark.parametrize(("grid", "n_sigma"), EVERY_IMAGE)
def test_permuted_bins_are_permuted_rows(spectra, grid, n_sigma, rng):
    pixelize, order = FlattenHistogramAndNormalize(n_sigma=n_sigma, grid=grid), torch.randperm(12, generator=rng)
    assert_close(pixelize(spectra[:, order]), pixelize(spectra)[:, :, order])


@pytest.mark.parametrize(("grid", "n_sigma"), EVERY_IMAGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_bins_have_finite_images_and_gradients(grid, n_sigma, dtype, rng):
    counts = EMPTY.to(dtype, copy=True).requires_grad_()
    image = FlattenHistogramAndNormalize(n_sigma=n_sigma, grid=grid)(counts)
    assert image.isfinite().all()
    (image * torch.rand(image.shape, generator=rng)).sum().backward()
    assert counts.grad.isfinite().all()


@pytest.mark.parametrize(("grid", "n_sigma"), EVERY_IMAGE)
def test_gradient_of_the_image(grid, n_sigma):
    counts = torch.tensor([[5.3, 1.7, 120.9, 33.1], [2.2, 9.9, 4.1, 1.3]]).double().requires_grad_()
    assert gradcheck(FlattenHistogramAndNormalize(width=6, n_sigma=n_sigma, grid=grid), counts)


@pytest.mark.parametrize(("grid", "n_sigma"), EVERY_IMAGE)
def test_pixel_linear_is_a_linear_layer_on_the_image(spectra, grid, n_sigma):
    torch.manual_seed(5)
    pixelize = FlattenHistogramAndNormalize(width=23, n_sigma=n_sigma, grid=grid)
    ours = PixelLinear(pixelize, 12, 9).double()
    theirs = nn.Linear((2 * n_sigma + 1) * 12 * 23, 9).double()
    nn.init.normal_(ours.bias)
    theirs.weight.data, theirs.bias.data = ours.weight.data.T.clone(), ours.bias.data.clone()

    counts, same_counts = (spectra.clamp(min=0.3).clone().requires_grad_() for _ in range(2))
    answer, expected = ours(counts), theirs(pixelize(same_counts).flatten(1))
    assert_close(answer, expected)
    for output in (answer, expected):
        (output * torch.linspace(-1, 2, 9).double()).square().sum().backward()
    assert_close(ours.weight.grad, theirs.weight.grad.T)
    assert_close(ours.bias.grad, theirs.bias.grad)
    assert_close(counts.grad, same_counts.grad)


def test_pixel_linear_can_start_smooth_along_the_grid_and_as_large_as_a_linear_layer():
    """Against the variance of independent weights of spread 1 / sqrt(2 n_bins): two pixels of each bin are active."""
    torch.manual_seed(5)
    layer = PixelLinear(FlattenHistogramAndNormalize(width=101, grid="log"), 50, 300)
    layer.start_smooth()
    weight = layer.weight.detach().unflatten(0, (50, 101))
    assert weight.diff(dim=1).square().mean() < 0.02 * weight.square().mean()
    assert weight.square().mean().item() == pytest.approx(1 / 50, rel=0.05)


def test_pixel_linear_has_no_state_but_weight_and_bias():
    layer = PixelLinear(FlattenHistogramAndNormalize(width=5), 3, 2)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {"weight": (15, 2), "bias": (2,)}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"width": 1}, "width must be at least 2 .* 1 and 0 came"),
        ({"n_sigma": -1}, "n_sigma at least 0, 101 and -1 came"),
        ({"grid": "cubic"}, "grid: one of linear, log, sqrt is expected, 'cubic' came"),
        ({"limits": (0.5, 0.5)}, r"limits: \(low, high\) with low < high is expected, \(0.5, 0.5\) came"),
        ({"floor": 0.0}, "floor: a number of events above 0 is expected, 0.0 came"),
    ],
)
def test_refuses_arguments(arguments, match):
    with pytest.raises(InputError, match=match):
        FlattenHistogramAndNormalize(**arguments)
