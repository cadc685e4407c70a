"""What every net must obey, and each net against its formula written down in numpy or minimised by scipy."""

import json

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from specfit import checkpoint
from specfit.generator import SpectrumGenerator
from specfit.net import (
    NETS,
    AnyBinningNet,
    DenseNet,
    FlattenHistogramAndNormalize,
    LearnedBasisNet,
    TalkNet,
    significance_loss,
)
from specfit.net import posterior as posterior_module
from specfit.net.error_scale import ErrorScale
from specfit.net.posterior import posterior_mode, precision_cholesky
from specfit.randomness import independent_rng
from specfit.training.calibrate import _mean_pulls

N_BINS = 12
SMALL = {
    "talk": {"width": 21, "n_sigma": 1},
    "dense": {"width": 21, "hidden": 16, "depth": 2},
    "learned_basis": {"n_basis": (4, 3), "width": 21, "hidden": 16, "depth": 1},
    "any_binning": {"n_basis": 4, "features": 16, "layers": 1},
}
HOSTILE = {
    "empty bins": [0, 900, 0, 500, 400, 0, 200, 100, 0, 0, 10, 0],
    "one bin": [0, 0, 0, 0, 5000, 0, 0, 0, 0, 0, 0, 0],
    "one event": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    "nothing": [0] * 12,
    "1e9 a bin": [1e9] * 12,
    "1e9 in one bin": [0, 0, 0, 0, 0, 0, 0, 1e9, 0, 0, 0, 0],
    "ten orders": [10.0**k for k in range(10, -2, -1)],
}


def of_bins(name):
    return {} if name == "any_binning" else {"n_bins": N_BINS}


def build(name, *, seed=3, **arguments):
    """A small net with every parameter moved off its start, so that no zero hides a part of it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = NETS[name](**of_bins(name), **(SMALL[name] | arguments))
        for parameter in net.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return net


@pytest.fixture(params=NETS)
def net(request):
    return build(request.param)


@pytest.fixture
def spectra(rng):
    """Smooth falling spectra of different size with Poisson noise, float32."""
    slope, total = 0.1 + 0.3 * torch.rand(6, 1, generator=rng), 10 ** (2 + 5 * torch.rand(6, 1, generator=rng))
    rates = total * torch.softmax(-slope * torch.arange(N_BINS), -1)
    return torch.poisson(rates, generator=rng)


# --- every net ------------------------------------------------------------------------------------------------------


def test_a_small_one_of_every_net_is_tested():
    assert set(SMALL) == set(NETS)


def test_maps_counts_to_backgrounds_stage_by_stage(net, spectra):
    stages = net.stages(spectra)
    assert all(stage.shape == spectra.shape for stage in stages)
    assert all((stage > 0).all() for stage in stages)
    assert net(spectra).dtype.is_floating_point
    if not isinstance(net, AnyBinningNet):  # whose answer is the last stage with a generic basis beside it
        assert torch.equal(net(spectra), stages[-1])


def test_prediction_is_the_background_with_a_factor_of_its_covariance(net, spectra):
    prediction = net.predict(spectra)
    m, n, k = prediction.factor.shape
    assert prediction.background.shape == (m, n) == spectra.shape
    assert 1 <= k <= N_BINS
    assert prediction.n_parameters.shape == (m,)
    assert {part.dtype for part in prediction} == {torch.float64}
    assert_close(prediction.background, net(spectra).double(), rtol=1e-5, atol=0)
    assert (prediction.n_parameters >= 0).all()


@pytest.mark.parametrize("counts", HOSTILE.values(), ids=HOSTILE)
def test_answers_and_gradients_are_finite(net, counts):
    data = torch.tensor([counts], dtype=torch.float32)
    truth = torch.full_like(data, 10.0)
    for stage in net.stages(data):
        assert stage.isfinite().all()
        assert (stage >= 0).all()
        net.zero_grad()
        significance_loss(stage, truth, normalize=net.keeps_total).backward(retain_graph=True)
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert all(part.isfinite().all() for part in net.predict(data))


def test_every_parameter_is_trained(net, spectra):
    loss = sum(significance_loss(stage, spectra + 1, normalize=net.keeps_total) for stage in net.stages(spectra))
    loss.backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # The calibration comes after the training, and nothing else does.
    assert [name for name in unused if not name.startswith(("error_scale.", "yield_scale."))] == []


def test_rows_do_not_see_each_other(net, spectra):
    together = net(spectra)
    alone = torch.cat([net(row[None]) for row in spectra])
    assert_close(together, alone, rtol=1e-4, atol=0)
    other = spectra.clone()
    other[1:] = 1e8
    assert_close(net(other)[0], together[0], rtol=1e-4, atol=0)
    for part, single in zip(net.predict(spectra), net.predict(spectra[2:3]), strict=True):
        assert_close(part[2], single[0], rtol=1e-4, atol=1e-6)


def test_nets_that_say_so_keep_the_total(net, spectra):
    data = torch.cat([spectra, torch.tensor(list(HOSTILE.values()), dtype=torch.float32)])
    totals, fitted = data.double().sum(-1), net(data).double().sum(-1)
    if net.keeps_total:
        assert_close(fitted, totals, rtol=1e-6, atol=0)
    else:
        assert not torch.allclose(fitted, totals, rtol=1e-3, atol=0)


def test_training_and_evaluation_are_one(net, spectra):
    training = net.train()(spectra)
    assert torch.equal(net.eval()(spectra), training)


def test_prediction_leaves_no_trace(net, spectra):
    before = spectra.clone()
    first = net.predict(spectra)
    for switch in (torch.no_grad(), torch.inference_mode()):
        with switch:
            again = net.predict(spectra)
        assert not any(part.requires_grad for part in again)
        assert all(torch.equal(*parts) for parts in zip(first, again, strict=True))
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(spectra, before)
    assert not spectra.requires_grad


def test_a_mask_of_nothing_changes_nothing(net, spectra):
    free, masked = net.predict(spectra), net.predict(spectra, mask=torch.zeros_like(spectra, dtype=torch.bool))
    assert all(torch.equal(*parts) for parts in zip(free, masked, strict=True))


def test_arguments_are_plain_data_that_rebuild_the_net(net, spectra):
    again = type(net)(**json.loads(json.dumps(net.arguments)))
    again.load_state_dict(net.state_dict())
    assert again.arguments == net.arguments
    assert torch.equal(again(spectra), net(spectra))


# --- dense nets -----------------------------------------------------------------------------------------------------


def test_talk_net_starts_uniform_with_zero_biases():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = TalkNet(20)
    uniform = scipy.stats.uniform(-0.05, 0.1)
    for layer in (net.hidden, net.out):
        weights = layer.weight.detach().flatten().numpy()
        assert np.abs(weights).max() <= 0.05
        assert scipy.stats.kstest(weights, uniform.cdf).pvalue > 1e-3
        assert not layer.bias.any()
    assert net.arguments == {"n_bins": 20, "width": 101, "n_sigma": 0, "grid": "linear"}
    assert sum(p.numel() for p in net.parameters()) == 20 * 101 * 20 + 20 + 20 * 20 + 20


def test_talk_net_is_pixelize_dense_relu_dense_softmax_times_total(spectra):
    net = build("talk").double()
    image = FlattenHistogramAndNormalize(width=21, n_sigma=1)(spectra.double()).flatten(1).numpy()
    parameters = {name: value.numpy() for name, value in net.state_dict().items()}
    hidden = np.maximum(image @ parameters["hidden.weight"] + parameters["hidden.bias"], 0)
    shape = scipy.special.softmax(hidden @ parameters["out.weight"].T + parameters["out.bias"], -1)
    expected = shape * spectra.double().numpy().sum(-1, keepdims=True)
    np.testing.assert_allclose(net(spectra.double()).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["talk", "dense"])
def test_dense_nets_propagate_the_poisson_errors(name, spectra):
    net, counts = build(name).double(), (spectra + 0.37).double()  # off the nodes of the grids
    prediction = net.predict(counts)
    background = net(counts).detach().numpy()
    for i, row in enumerate(counts):
        step = 1e-5 * row
        moved = [net(row + sign * torch.diag(step)).detach().numpy() for sign in (1, -1)]
        jacobian = ((moved[0] - moved[1]) / (2 * step[:, None].numpy())).T  # d background / d counts
        covariance = jacobian @ np.diag(background[i]) @ jacobian.T
        factor = prediction.factor[i].detach().numpy()
        np.testing.assert_allclose(factor @ factor.T, covariance, rtol=1e-5, atol=1e-7 * np.abs(covariance).max())
        assert prediction.n_parameters[i].item() == pytest.approx(max(np.trace(jacobian), 0.0), rel=1e-5, abs=1e-7)


def test_dense_net_sees_the_total():
    net, shape = build("dense"), torch.linspace(5, 1, N_BINS)[None]
    small, large = net(1e2 * shape), net(1e6 * shape)
    assert not torch.allclose(large / 1e4, small, rtol=1e-3)


# --- the learned basis ----------------------------------------------------------------------------------------------


def penalised_likelihood(log_mean, basis, counts, weight):
    """Negative log posterior of the coefficients and its gradient, in numpy."""

    def value(c):
        log_rate = log_mean + basis @ c
        return np.sum(weight * (np.exp(log_rate) - counts * log_rate)) + 0.5 * c @ c

    def gradient(c):
        return basis.T @ (weight * (np.exp(log_mean + basis @ c) - counts)) + c

    return value, gradient


def minimise(value, gradient, k):
    found = scipy.optimize.minimize(value, np.zeros(k), jac=gradient, method="BFGS", options={"gtol": 1e-7})
    return scipy.optimize.root(gradient, found.x, tol=1e-13).x


def hessian_by_differences(gradient, c, step=1e-5):
    columns = [(gradient(c + step * e) - gradient(c - step * e)) / (2 * step) for e in np.eye(len(c))]
    return np.array(columns)


def problem(rng, *, m=5, n=12, k=3, rate=300.0):
    """Random problems: log mean, basis, Poisson counts some way off, weights; float64."""
    log_mean = np.log(rate) + torch.randn(m, n, generator=rng).double()
    x = torch.linspace(0, 3.14, n).double()
    basis = torch.stack([torch.cos(i * x) for i in range(k)], -1) + 0.1 * torch.randn(m, n, k, generator=rng).double()
    c = 0.5 * torch.randn(m, k, 1, generator=rng).double()
    counts = torch.poisson((log_mean + (basis @ c)[..., 0]).exp(), generator=rng)
    return log_mean, basis, counts, 0.05 + 0.9 * torch.rand(m, n, generator=rng).double()


def last_stage(net, counts, mask=None):
    """Log mean, basis and weights that the last stage wrote for one spectrum, taken at its door."""
    seen = {}

    def remember(_, inputs, outputs):
        seen["in"], seen["out"] = inputs, outputs

    handle = net.parts[-1].register_forward_hook(remember)
    prediction = net.predict(counts, mask=mask)
    handle.remove()
    rate, _ = seen["in"]
    mean, basis, weight, _ = seen["out"]
    numbers = (rate.double().log() + mean, basis, weight)
    return prediction, [part[0].detach().numpy() for part in numbers]


@pytest.fixture
def to_the_end(monkeypatch):
    """Newton steps until rounding ends them."""
    monkeypatch.setattr(posterior_module, "SETTLED", 0.0)
    monkeypatch.setattr(posterior_module, "MOST_STEPS", 60)


@pytest.mark.parametrize(("is_exact", "masked"), [(False, []), (True, []), (True, [3, 4, 8])])
def test_prediction_is_the_posterior_of_the_last_stage(is_exact, masked, spectra, request):
    if is_exact:
        request.getfixturevalue("to_the_end")
    net, mask = build("learned_basis"), torch.zeros(1, N_BINS, dtype=torch.bool)
    net.error_scale.load_state_dict(ErrorScale().state_dict())  # the bare posterior
    mask[:, masked] = True
    for counts in spectra:
        prediction, (log_mean, basis, weight) = last_stage(net, counts[None], mask)
        assert 0.5 < weight.min() < weight.max() < 1  # believed, but not blindly: the weights matter below
        weight = np.where(mask[0], 0.0, weight)
        value, gradient = penalised_likelihood(log_mean, basis, counts.double().numpy(), weight)
        c = minimise(value, gradient, basis.shape[1])
        rate = np.exp(log_mean + basis @ c)
        root_of_covariance = rate[:, None] * basis
        inverse = np.linalg.inv(hessian_by_differences(gradient, c))
        covariance = root_of_covariance @ inverse @ root_of_covariance.T
        factor = prediction.factor[0].detach().numpy()
        scale = np.sqrt(np.diag(covariance))
        # A settled mode is as near as matters: less than a hundredth of the uncertainty. Rates arrive as float32.
        accuracy = 1e-6 if is_exact else 5e-3
        error = (prediction.background[0].detach().numpy() - rate) / scale
        assert np.abs(error).max() < max(accuracy, 3e-7 * (rate / scale).max())
        np.testing.assert_allclose(factor @ factor.T, covariance, rtol=1e-3, atol=1e-5 * covariance.max())
        hat = basis @ inverse @ basis.T * (weight * rate)
        assert prediction.n_parameters.item() == pytest.approx(np.trace(hat), rel=1e-3)


def test_mode_is_the_minimum_of_the_penalised_likelihood(rng, to_the_end):
    log_mean, basis, counts, weight = problem(rng)
    log_rate = posterior_mode(log_mean, basis, counts, weight=weight)
    for i in range(len(counts)):
        numbers = [part[i].numpy() for part in (log_mean, basis, counts, weight)]
        c = minimise(*penalised_likelihood(*numbers), basis.shape[-1])
        np.testing.assert_allclose(log_rate[i].numpy(), numbers[0] + numbers[1] @ c, rtol=0, atol=1e-9)


def test_mode_is_found_from_far_away(rng, monkeypatch):
    # Fewer events than expected by e^9, and more by e^9: no step may overshoot.
    log_mean, basis, counts, weight = problem(rng)
    monkeypatch.setattr(posterior_module, "SETTLED", 0.0)
    for shift in (-9.0, 9.0):
        steps = []
        for n in range(30):
            monkeypatch.setattr(posterior_module, "MOST_STEPS", n)
            steps.append(posterior_mode(log_mean + shift, basis, counts, weight=weight))
        assert_close(steps[0], log_mean + shift)  # no step is the mean
        moves = torch.stack(steps).diff(dim=0).abs()
        assert moves.max() <= 2 + 1e-9
        assert moves[-1].max() < 1e-9
        i = 1
        numbers = [part[i].numpy() for part in (log_mean + shift, basis, counts, weight)]
        _, gradient = penalised_likelihood(*numbers)
        c = np.linalg.lstsq(numbers[1], steps[-1][i].numpy() - numbers[0], rcond=None)[0]
        assert np.abs(gradient(c)).max() < 1e-6 * counts[i].sum().item()


def test_a_spectrum_that_settles_late_moves_none_that_settled(rng):
    log_mean, basis, counts, weight = problem(rng)
    far = log_mean.clone()
    far[2] += 9.0
    near, mixed = (posterior_mode(start, basis, counts, weight=weight) for start in (log_mean, far))
    others = [0, 1, 3, 4]
    assert torch.equal(near[others], mixed[others])
    information = (weight[2] * mixed[2].exp()).sqrt()
    alone = posterior_mode(far[2:3], basis[2:3], counts[2:3], weight=weight[2:3])
    assert (((mixed[2] - alone[0]) * information).abs() < 1e-9).all()


def test_bins_with_weight_zero_are_left_out_exactly(rng):
    log_mean, basis, counts, weight = problem(rng)
    out = torch.tensor([2, 5, 6])
    weight[:, out] = 0
    other = counts.clone()
    other[:, out] = torch.tensor([0.0, 1e9, 7.0]).double()
    first, second = (posterior_mode(log_mean, basis, n, weight=weight) for n in (counts, other))
    assert torch.equal(first, second)
    kept = torch.ones(12, dtype=torch.bool)
    kept[out] = False
    cut = posterior_mode(log_mean[:, kept], basis[:, kept], counts[:, kept], weight=weight[:, kept])
    # The step limit looks at every bin; near the mode it does not act.
    assert_close(first[:, kept], cut, rtol=0, atol=1e-9)


def test_without_any_weight_the_mean_stays(rng):
    log_mean, basis, counts, weight = problem(rng)
    assert_close(posterior_mode(log_mean, basis, counts, weight=0 * weight), log_mean)


def test_gradient_is_that_of_the_mode(rng, to_the_end):
    log_mean, basis, counts, weight = problem(rng, m=2, n=5, k=2, rate=20.0)
    weight[0, [1, 4]] = 0
    weight[1, [0, 2]] = 0
    inputs = [part.detach().requires_grad_() for part in (log_mean, basis, weight)]
    assert gradcheck(lambda a, b, d: posterior_mode(a, b, counts, weight=d), inputs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("events", [1.0, 1e6, 1e10, 1e12])
def test_precision_stays_positive_definite(events, rng):
    n, k = 50, 14
    x = torch.linspace(0, 3.14, n).double()
    cosines = torch.stack([torch.cos(i * x) for i in range(k)], -1)
    same = cosines[:, :1].expand(n, k)  # directions that the data cannot tell apart: only the prior does
    nearly_same = same + 1e-9 * torch.randn(n, k, generator=rng).double()
    basis = torch.stack([cosines, same, nearly_same, torch.zeros(n, k).double()])
    lower = precision_cholesky(basis, torch.full((4, n), events, dtype=torch.float64))
    assert lower.isfinite().all()
    assert (lower.diagonal(dim1=-2, dim2=-1) >= 1 - 1e-12).all()
    precision = events * basis.mT @ basis + torch.eye(k).double()
    assert_close(lower @ lower.mT, precision, rtol=1e-12, atol=1e-12 * precision.max().item())


def test_learned_basis_believes_a_smooth_spectrum_at_the_start():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = LearnedBasisNet(N_BINS, n_basis=(6, 6), width=21, hidden=16, depth=1)
    counts = 1e6 * torch.exp(-torch.arange(N_BINS) / 6.0)[None]
    pull = (net.predict(counts).background - counts) / counts.sqrt()
    assert pull.square().mean().sqrt() < 30  # against a thousand for the flat spectrum that it starts from
    _, basis, weight, *_ = net.local_model(counts)
    assert_close(weight, torch.full_like(weight, torch.sigmoid(torch.tensor(4.0)).item()), rtol=1e-3, atol=0)
    cosines = torch.cos(torch.outer(torch.linspace(0, torch.pi, N_BINS), torch.arange(6.0)))
    assert_close(basis[0].float(), cosines / torch.arange(1.0, 7.0).sqrt(), rtol=0, atol=0.1)


def test_a_prepared_learned_basis_knows_the_spread_of_backgrounds():
    """Principal components of weighted logs are those of NumPy, and the first fits are several times nearer."""
    edges = torch.logspace(2.4, 3.4, 31, dtype=torch.float64)
    generator = SpectrumGenerator(edges, n_backgrounds=(1, 5), total=(2e4, 2e5))
    backgrounds = generator.sample_background(4000, rng=torch.Generator().manual_seed(1))
    truth = generator.sample_background(400, rng=torch.Generator().manual_seed(2))
    counts = torch.poisson(truth, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(4)
    net = LearnedBasisNet(30, n_basis=(10, 6), width=41, hidden=32, depth=1)
    rms = []
    for prepared in (False, True):
        if prepared:
            net.prepare(backgrounds)
        with torch.inference_mode():
            first, last = net.stages(counts)
        rms.append([((fit - truth) / (truth + 1).sqrt()).square().mean().sqrt() for fit in (first, last)])
    (first_before, last_before), (first, last) = rms
    assert first < first_before / 2
    assert last < last_before / 2
    shape = np.log(backgrounds.double().numpy() + 0.3) - np.log(backgrounds.double().mean(1, keepdim=True).numpy())
    weight = np.sqrt(backgrounds.double().mean(0).numpy() + 0.3)
    covariance = np.cov(((shape - shape.mean(0)) * weight).T, bias=True)
    basis = net.parts[0].basis.bias.detach().double().view(30, 10).numpy() * weight[:, None]
    largest = np.linalg.eigvalsh(covariance)[::-1][:10]
    np.testing.assert_allclose(np.diag(basis.T @ basis), largest, rtol=1e-3)
    np.testing.assert_allclose(np.diag(basis.T @ covariance @ basis), largest**2, rtol=1e-3)


def test_mean_pulls_that_are_taken_off_leave_no_bin_biased():
    """Of the shipped net, where truths are one per cent below what it learned."""
    loaded = checkpoint.load(None)
    net, generator = loaded.net, SpectrumGenerator(loaded.edges, n_backgrounds=5)
    batches = [generator.sample(500, rng=independent_rng((1, i))) for i in range(8)]
    seen, others = (
        [batch._replace(background=0.99 * batch.background) for batch in half] for half in (batches[:4], batches[4:])
    )

    def bias():
        """Of every bin, in statistical errors, on other spectra."""
        truth = torch.cat([batch.background for batch in others]).double()
        with torch.inference_mode():
            fit = torch.cat([net.predict(batch.counts).background for batch in others])
        used = truth > 0.5
        return torch.where(used, (fit - truth) / truth.sqrt(), 0.0).sum(0) / used.sum(0)

    with torch.no_grad():
        net.offset.zero_()
        before = bias().abs().mean()
        net.offset.copy_(_mean_pulls(net, seen))
    assert before > 0.2
    assert bias().abs().mean() < before / 8


def test_dense_net_is_deeper_where_asked():
    blocks = [len(DenseNet(4, width=5, hidden=4, depth=depth).trunk.blocks) for depth in (1, 3)]
    assert blocks == [1, 3]
