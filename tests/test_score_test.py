"""The score of every hypothesis, against likelihood ratios that scipy maximises and against pseudo-experiments."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from specfit.net import LocalModel
from specfit.net.posterior import posterior_mode
from specfit.signal import binwise_hypotheses, score_test
from specfit.signal.hypotheses import SignalHypotheses
from specfit.signal.look_elsewhere import tube_p_value
from specfit.signal.score import path_length

EDGES = torch.linspace(100.0, 200.0, 25, dtype=torch.float64)
X = torch.linspace(-1, 1, 24, dtype=torch.float64)
SHAPE = torch.stack([torch.ones(24, dtype=torch.float64), X, X**2], -1) * torch.tensor([0.3, 0.2, 0.1])


def local_model(size, *, events, belief=1.0):
    """A falling spectrum that may bend in three directions."""
    log_mean = (np.log(events) - 1.5 * X).expand(size, -1)
    weight = torch.full((size, 24), belief, dtype=torch.float64)
    return LocalModel(log_mean, SHAPE.expand(size, -1, -1), weight, torch.zeros(size, 1), torch.ones(size))


def scores(counts, model, *, weight=None, hypotheses=None):
    weight = torch.ones_like(counts) if weight is None else weight
    log_rate = posterior_mode(model.log_mean, model.basis, counts, weight=model.weight, settled=1e-9)
    hypotheses = binwise_hypotheses(EDGES) if hypotheses is None else hypotheses
    return score_test(counts, log_rate, model, hypotheses, weight=weight), hypotheses, log_rate


def fluctuated(model, *, seed=1):
    """Truths from the prior of the model, and Poisson data of them."""
    rng = torch.Generator().manual_seed(seed)
    c = torch.randn(len(model.log_mean), 3, 1, generator=rng, dtype=torch.float64)
    return torch.poisson((model.log_mean + (model.basis @ c)[..., 0]).exp(), generator=rng)


def likelihood_ratio(counts, model, template):
    """Signed root of q0, minimised by scipy from scratch."""

    def nll(p):
        rate = np.exp(model.log_mean[0].numpy() + SHAPE.numpy() @ p[1:])
        pull = 1 - counts / (rate + p[0] * template)
        value = np.sum(rate + p[0] * template - counts * np.log(rate + p[0] * template)) + 0.5 * np.sum(p[1:] ** 2)
        return value, np.r_[pull @ template, (pull * rate) @ SHAPE.numpy() + p[1:]]

    def without(c):
        value, gradient = nll(np.r_[0.0, c])
        return value, gradient[1:]

    held = scipy.optimize.minimize(without, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-6})
    free = scipy.optimize.minimize(nll, np.r_[0.0, held.x], jac=True, method="BFGS", options={"gtol": 1e-6})
    return np.sign(free.x[0]) * np.sqrt(max(2 * (held.fun - free.fun), 0.0))


@pytest.mark.parametrize("belief", [1.0, 0.7])
def test_the_score_is_the_root_of_the_likelihood_ratio_at_many_events(belief):
    model = local_model(1, events=2e4, belief=belief)
    counts = fluctuated(model)
    z, hypotheses, _ = scores(counts, model)
    for h in range(0, len(hypotheses), 17):
        expected = likelihood_ratio(counts[0].numpy(), model, hypotheses.templates[h].numpy())
        assert z[0, h].item() == pytest.approx(expected, abs=0.03)


def test_at_few_events_an_excess_is_worth_what_the_likelihood_says():
    """Where 0.1 events are expected the bare score of 3 would be 9 sigma; that of a counting experiment is 3.9."""
    model = local_model(1, events=1.0)
    model = model._replace(log_mean=torch.full_like(model.log_mean, np.log(0.1)), basis=1e-3 * model.basis)
    counts = torch.zeros(1, 24, dtype=torch.float64)
    counts[0, 11] = 3
    one_bin = torch.zeros(1, 24, dtype=torch.float64)
    one_bin[0, 11] = 1
    middle, width = torch.tensor([148.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    z, _, _ = scores(counts, model, hypotheses=SignalHypotheses(middle, width, one_bin))
    assert z.item() == pytest.approx(np.sqrt(2 * (3 * np.log(30) - 2.9)), rel=1e-3)


def test_significances_of_pure_backgrounds_are_normal_and_the_largest_has_the_p_value_of_its_path():
    model = local_model(4000, events=1e4)
    z, hypotheses, log_rate = scores(fluctuated(model), model)
    assert z.mean(0).abs().max() < 5 / np.sqrt(4000)
    assert (z.std(0) - 1).abs().max() < 5 / np.sqrt(2 * 4000)
    paths = 1 + int((hypotheses.mass.diff() <= 0).sum())
    length = path_length(log_rate, model, hypotheses, weight=torch.ones_like(log_rate))
    p = tube_p_value(z.amax(1), length, paths=paths)
    # It is a bound: signals of different widths at one place look alike, and count apart.
    for level in (0.1, 0.03, 0.01):
        share = (p < level).double().mean().item()
        assert 0.1 * level < share < level + 3 * np.sqrt(level / 4000)


def test_one_path_of_a_circle_has_the_p_value_of_its_length():
    """Z = cos(t) x + sin(t) y over a whole turn is the length of (x, y): P(max > z) = exp(-z^2/2) exactly."""
    z = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    found = tube_p_value(z, torch.full((3,), 2 * np.pi, dtype=torch.float64), paths=0)
    np.testing.assert_allclose(found.numpy(), scipy.stats.rayleigh.sf(z.numpy()), rtol=1e-12)


def test_masked_bins_say_nothing():
    model = local_model(1, events=1e3)
    counts, weight = fluctuated(model), torch.ones(1, 24, dtype=torch.float64)
    weight[0, 8:12] = 0
    model = model._replace(weight=weight)
    spoiled = counts.clone()
    spoiled[0, 8:12] = 1e5
    first, hypotheses, _ = scores(counts, model, weight=weight)
    second, _, _ = scores(spoiled, model, weight=weight)
    torch.testing.assert_close(first, second)
    inside = hypotheses.templates[:, 8:12].sum(-1) > 0.6
    assert inside.any()
    assert (first[0, inside] == 0).all()


def test_the_score_is_that_of_the_mode_wherever_the_estimate_is():
    """An estimate that may bend less than what it is tested with: the score takes the step that is missing."""
    model = local_model(40, events=2000.0)
    counts = fluctuated(model, seed=5)
    few = model._replace(basis=model.basis * torch.tensor([1.0, 0.5, 0.2]))
    z, hypotheses, _ = scores(counts, model)
    estimate = posterior_mode(few.log_mean, few.basis, counts, weight=few.weight, settled=1e-9)
    moved = score_test(counts, estimate, model, hypotheses, weight=torch.ones_like(counts))
    assert (moved - z).abs().max() < 0.2
