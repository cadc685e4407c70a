"""Errors of yields learned from simulation. Oracles: analytic bends, pulls of spectra that nothing learned from."""

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.testing import assert_allclose

import specfit
from specfit import checkpoint
from specfit.net import CalibratedNet, LearnedBasisNet
from specfit.net.error_scale import N_OF_YIELD, YieldScale
from specfit.net.posterior import posterior_mode
from specfit.search import gaussian_hypotheses
from specfit.search.scanning import fitted, make_chain
from specfit.search.toys.chunks import digest
from specfit.signal.extraction import extract
from specfit.signal.yield_error import yield_features
from specfit.training.calibrate_yields import _learn, calibrate_yields

N_BINS, PLACE, WIDTH = 40, 20.5, 2.0
SLOPES_AND_BENDS = slice(0, 3)


def features_of(background, *, edges=None, variance=1e4, masked=()):
    edges = torch.arange(N_BINS + 1).double() if edges is None else edges
    template = np.diff(scipy.stats.norm.cdf(np.arange(N_BINS + 1), PLACE, WIDTH))
    weight = np.ones(N_BINS)
    weight[list(masked)] = 0.0
    return yield_features(
        torch.as_tensor(template)[None],
        torch.as_tensor(background)[None],
        edges=edges,
        weight=torch.as_tensor(weight)[None],
        rate=torch.as_tensor(background)[None],
        variance=torch.tensor([variance]).double(),
    )[0].numpy()


def test_falls_and_bends_are_those_of_the_background_over_the_width_of_the_signal():
    distance = np.arange(N_BINS) + 0.5 - PLACE
    slope, curvature = -0.1, 0.003
    found = features_of(np.exp(9 + slope * distance - curvature * distance**2))
    at = 1.5 * np.sqrt(WIDTH**2 + 1 / 12)  # a bin adds its own width
    bend = curvature * at**2
    assert_allclose(found[SLOPES_AND_BENDS], [slope * at + bend, slope * at - bend, -2 * bend], rtol=0.02)


def test_features_know_no_units_and_take_density_not_content():
    background = 1e4 * np.exp(-np.arange(N_BINS) / 9)
    edges = torch.logspace(1, 2, N_BINS + 1).double()
    assert_allclose(features_of(background, edges=edges), features_of(background, edges=7 * edges), rtol=1e-6)
    # A flat density is flat on any bins.
    flat = features_of(1e3 * edges.diff().numpy(), edges=edges)
    assert_allclose(flat[SLOPES_AND_BENDS], 0.0, atol=1e-6)
    assert features_of(background).shape == (N_OF_YIELD,)


def test_masked_bins_tell_nothing_of_a_signal():
    background, masked = np.full(N_BINS, 1e3), range(18, 23)
    seen, partly = features_of(background), features_of(background, masked=masked)
    changed = np.flatnonzero(seen != partly)
    # More events compete for each that is left, and less of the error is the background's.
    assert len(changed) == 2
    assert partly[11] > seen[11]
    assert partly[12] < seen[12]


class Overconfident(CalibratedNet):
    """The shipped net with waves on its mean and a basis that knows little of them."""

    def __init__(self, net):
        super().__init__(net.n_bins, n_features=3, arguments={})
        self.net = net

    def fitted(self, counts, *, edges=None, mask=None, exposure=None):
        model, _ = self.net.fitted(counts, edges=edges, mask=mask, exposure=exposure)
        waves = 0.04 * torch.sin(torch.arange(counts.shape[1]) * (2 * torch.pi / 8))
        model = model._replace(log_mean=model.log_mean + waves, basis=model.basis / 10)
        return model, posterior_mode(model.log_mean, model.basis, counts.double(), weight=model.weight)

    def forward(self, counts, *, edges=None, mask=None):
        return self.fitted(counts, edges=edges, mask=mask)[1].exp()

    stages = None


def pulls_of(net, generator, seed, size=200):
    batch = generator.sample(size, rng=torch.Generator().manual_seed(seed))
    signals = gaussian_hypotheses(batch.edges, width=0.1, mass=[600.0, 700.0, 820.0, 1000.0])
    spectrum = torch.arange(size).repeat_interleave(4)
    columns = signals.templates.repeat(size, 1)[:, None]
    mask, counts = torch.zeros_like(batch.counts).bool(), batch.counts.double()
    with torch.no_grad():
        rows = extract(net, counts, columns, spectrum=spectrum, edges=batch.edges, mask=mask)
    described = torch.as_tensor(scipy.stats.chi2.sf(2 * rows.fit.nll, counts.shape[1]) > 1e-6)  # others are flagged
    return (rows.fit.yields[:, 0] / rows.error)[described], rows


def test_a_net_that_believes_too_little_learns_how_wide_its_yields_are():
    fitter = specfit.SpectrumFitter.from_checkpoint()
    net, generator = Overconfident(fitter.net), specfit.SpectrumGenerator(fitter.edges, n_backgrounds=5)
    before, _ = pulls_of(net, generator, 77)
    found = calibrate_yields(net, generator, size=3000, seed=1)
    after, rows = pulls_of(net, generator, 77)
    assert before.square().mean().sqrt() > 1.3
    assert found.yield_width_before > found.yield_width
    assert 0.8 < found.yield_width < 1.1
    assert 0.8 < after.square().mean().sqrt() < 1.1
    assert found.yield_beyond_3 < 0.008
    assert not any(parameter.requires_grad for parameter in net.yield_scale.parameters())
    # Significances shrink with the errors, large ones more.
    of_fit = (2 * (rows.without.nll - rows.fit.nll)).clamp(min=0).sqrt()
    small = of_fit < 0.5
    assert small.sum() > 100
    assert_allclose((rows.local_z.abs() * rows.weakening)[small], of_fit[small], rtol=0.02, atol=1e-9)
    assert (rows.local_z.abs() <= of_fit / rows.weakening + 1e-9).all()


def test_no_error_gets_smaller_and_an_untrained_scale_changes_nothing():
    features = torch.randn(500, N_OF_YIELD, generator=torch.Generator().manual_seed(1))
    scale = YieldScale()
    assert torch.equal(scale(features), torch.ones(500, dtype=torch.float64))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in scale.parameters():
            torch.nn.init.normal_(parameter)
    assert scale(features).min() == 1.0
    assert scale(features).max() > 1.5


def test_narrow_pulls_do_not_hide_wide_ones():
    rng = torch.Generator().manual_seed(4)
    features = torch.randn(20_000, N_OF_YIELD, generator=rng)
    needs_more = features[:, 3] > 0.8
    pulls = torch.randn(20_000, generator=rng) * torch.where(needs_more, 2.0, 0.4)
    scale = YieldScale()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        scale.load_state_dict(YieldScale().state_dict())
    _learn(scale, features, pulls, rng=rng)
    factor = scale(features)
    assert factor[features[:, 3] > 1.0].median() == pytest.approx(2.0, rel=0.15)
    assert (factor[features[:, 3] < 0.6] < 1.3).double().mean() > 0.95


@pytest.mark.parametrize("known", [[], [(1300.0, 65.0)]])
def test_a_signal_does_not_widen_the_error_that_it_is_judged_by(known):
    edges = torch.linspace(500, 2000, 51).double()
    background = 2e4 * torch.softmax(-torch.arange(50).double() / 8, -1)
    fitter = specfit.SpectrumFitter.from_checkpoint("any_binning")
    _, fit = fitted(background, edges, checkpoint=fitter, mask=None)
    chain = make_chain(fitter, fit, width=0.04, mass=[1000.0], known=known)
    template = chain.hypotheses.templates[0]
    error = (template.square() / background).sum().rsqrt()
    peaks = 500 * chain.known.sum(0)
    factor = []
    for strength in (0.0, 10.0):
        expected = (background + peaks + strength * error * template).expand(60, -1)
        rows = chain.rows(torch.poisson(expected, generator=torch.Generator().manual_seed(2)))
        factor.append(fitter.net.yield_scale(rows.features).median())
    assert factor[1] < 1.1 * factor[0]


def test_a_checkpoint_from_before_there_were_some_parts_of_the_calibration_is_read(tmp_path):
    net = LearnedBasisNet(8, n_basis=(3, 2), width=5, hidden=8, depth=1)
    path = checkpoint.save(
        checkpoint.Checkpoint(net, specfit.io.parse_edges("250:3000:8:log"), {}), tmp_path / "old.safetensors"
    )
    header, weights = specfit.io.tensors.read_tensors(path)
    old = {name: tensor for name, tensor in weights.items() if not name.startswith(("yield_scale.", "offset"))}
    assert len(old) < len(weights) - 1
    first = "error_scale.log_factor.0.weight"
    old[first] = torch.cat([old[first][:, :3], old[first][:, 4:]], 1)  # without the share of a function
    specfit.io.tensors.write_tensors(path, header, old)
    assert digest(checkpoint.load(path).net.state_dict()) == digest(checkpoint.load(path).net.state_dict())
    loaded = checkpoint.load(path).net
    assert torch.equal(loaded.yield_scale(torch.ones(1, N_OF_YIELD)), torch.ones(1, dtype=torch.float64))
    assert torch.equal(loaded.offset, torch.zeros(8))
    kept = loaded.error_scale.state_dict()["log_factor.0.weight"]
    assert torch.equal(kept[:, [0, 1, 2, 4, 5, 6, 7]], old[first])
    assert not kept[:, 3].any()
