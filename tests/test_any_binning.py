"""The net for any binning has no unit and sees nothing that is masked; its calibration learns what it should."""

import pytest
import torch

from specfit import Spectrum, SpectrumFitter
from specfit.generator import WideGenerator
from specfit.net import AnyBinningNet, LocalModel
from specfit.net.error_scale import ErrorScale, Novelty
from specfit.net.smooth import _bridged, smooth_estimate, with_generic_basis
from specfit.significance import poisson_deviance
from specfit.training.calibrate import _bins, _width, calibrate


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = AnyBinningNet(n_basis=6, features=16, layers=1)
        for parameter in net.parameters():
            parameter.data += 0.03 * torch.randn_like(parameter)
    return net.eval()


@pytest.fixture(scope="module")
def batch():
    return WideGenerator(n_bins=(40, 40), total=(1e3, 1e7)).sample(32, rng=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_edges_have_no_unit(net, batch):
    one, other = (net.predict(batch.counts, edges=scale * batch.edges).background for scale in (1.0, 1234.5))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_edges_matter(net, batch):
    linear = torch.linspace(1, 5, 41).double()
    geometric = torch.logspace(0, 1, 41).double()
    one, other = (net.predict(batch.counts, edges=edges).background for edges in (linear, geometric))
    assert ((one - other).abs() > 1e-3 * one).any(-1).all()


@torch.no_grad()
@pytest.mark.parametrize("edges", [torch.arange(41.0), torch.linspace(-3, 3, 41), torch.linspace(1e-9, 1e4, 41)])
def test_ranges_from_zero_or_below_are_fitted(net, batch, edges):
    prediction = net.predict(batch.counts, edges=edges)
    assert prediction.background.isfinite().all()
    assert prediction.factor.isfinite().all()


@torch.no_grad()
def test_masked_bins_weigh_exactly_nothing(net, batch):
    mask = torch.zeros_like(batch.counts, dtype=torch.bool)
    mask[:, 12:17] = True
    other = batch.counts.clone()
    other[:, 12:17] = torch.tensor([0.0, 1e9, 3.0, 7e4, 1.0]).double()
    first, second = (net.predict(counts, edges=batch.edges, mask=mask) for counts in (batch.counts, other))
    for one, two in zip(first[:3], second[:3], strict=True):
        assert torch.equal(one, two)


@torch.no_grad()
def test_what_is_not_seen_is_less_certain(net, batch):
    mask = torch.zeros_like(batch.counts, dtype=torch.bool)
    mask[:, 15:25] = True
    seen, blind = (net.predict(batch.counts, edges=batch.edges, mask=m) for m in (None, mask))
    relative = [(p.factor.square().sum(-1).sqrt() / p.background)[:, 18:22].mean(-1) for p in (seen, blind)]
    assert (relative[1] > relative[0]).double().mean() > 0.7


def test_fits_every_binning_and_says_what_it_assumed(net, batch):
    fitter = SpectrumFitter(net, None)
    counts = batch.counts[0]
    assert "equal width are assumed" in fitter.fit(counts, refit=None).message
    with_edges = fitter.fit(Spectrum(counts, batch.edges[0]), refit=None)
    assert "assumed" not in with_edges.message
    assert fitter.fit(counts[:17], batch.edges[0, :18], refit=None).background.shape == (17,)


def test_calibration_makes_pulls_as_wide_as_their_errors(batch):
    generator = WideGenerator(n_bins=(20, 20), total=(1e4, 1e5), families={"power_times_exponential": 1.0}, turn_on=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = AnyBinningNet(n_basis=4, features=16, layers=1)
    found = calibrate(net, generator, size=2048, seed=1)
    assert abs(found.width_before - 1) > 0.1  # an untrained net misses the truth by other than its error
    assert found.width == pytest.approx(1, abs=0.12)
    _, pulls = _bins(net, generator.without_signal().sample(512, rng=torch.Generator().manual_seed(77)))
    assert _width(pulls) == pytest.approx(1, abs=0.15)
    assert not any(parameter.requires_grad for parameter in net.error_scale.parameters())


def test_an_untrained_scale_changes_nothing(net, batch):
    prediction = net.predict(batch.counts, edges=batch.edges)
    scaled = ErrorScale()(prediction, torch.ones(len(batch.counts)), None)
    assert torch.equal(scaled.factor, prediction.factor)


def test_novelty_is_a_mahalanobis_distance_with_its_quantile_at_one():
    rng = torch.Generator().manual_seed(1)
    mixing = 0.3 * torch.randn(5, 5, generator=rng) + 2 * torch.eye(5)
    known = torch.randn(20_000, 5, generator=rng) @ mixing + 3
    novelty = Novelty(5)
    assert not novelty(known).any()  # untrained
    novelty.learn(known, quantile=0.99)
    distance = novelty(known)
    assert (distance > 1).double().mean().item() == pytest.approx(0.01, abs=1e-3)
    inverse = torch.linalg.inv(torch.cov(known.T.double()))
    centred = known.double() - known.double().mean(0)
    expected = ((centred @ inverse) * centred).sum(-1).sqrt()
    ratio = distance.double() / expected
    assert ratio.std() < 1e-3 * ratio.mean()
    assert novelty(known[:1] + 100) > 5


def test_bridges_by_straight_lines_and_holds_the_ends():
    values = torch.tensor([[9.0, 1.0, 9.0, 9.0, 4.0, 9.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]).double()
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0]]).bool()
    expected = torch.tensor([[1.0, 1.0, 2.0, 3.0, 4.0, 4.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]).double()
    torch.testing.assert_close(_bridged(values, mask), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("masked", [range(8), range(32, 40), range(15, 24)])
def test_a_window_that_is_left_out_does_not_run_away(masked, batch):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = AnyBinningNet(n_basis=6, features=16, layers=1)
    steep = 1e6 * torch.exp(-torch.arange(40) / 4.0)[None].double()
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[:, list(masked)] = True
    background = net.predict(steep.round(), mask=mask).background
    assert ((background / steep).log().abs() < 3).all()


@pytest.mark.parametrize(
    "name",
    [
        "atlas_dilepton_ee_13TeV_139fb_PLB796_68",
        "cms_dijet_13TeV_137fb_JHEP05_2020_033",
        "cms_fourjet_13TeV_138fb_JHEP07_2023_161",
        "cms_dimuon_1b_13TeV_138fb_JHEP10_2023_043",
        "cms_pfdijet_2016BtoH_36p4fb_10GeVbins_turnon_analysis_input",
        "cms_caloscouting_2015D_1p9fb_5GeVbins_turnon_analysis_input",
        "cms_mttbar_muo_t0B1_L1chi2lo_mtt_13TeV_2p6fb_B2G16015",
    ],
)
def test_the_shipped_net_fits_measured_spectra_that_it_never_saw(name, spectra_folder):
    fit = SpectrumFitter.from_checkpoint("any_binning").fit(spectra_folder / f"{name}.csv")
    assert bool(fit.converged)
    assert 0.01 < fit.p_value < 0.999
    assert fit.significance[[0, -1]].abs().max() < 4


def test_the_shipped_net_flags_a_spectrum_of_peaks(spectra_folder):
    fit = SpectrumFitter.from_checkpoint("any_binning").fit(
        spectra_folder / "cms_opendata_dimuon_2012_8TeV_0to120GeV.csv"
    )
    assert not bool(fit.converged)
    assert "disagree with the data beyond chance" in fit.message


def test_a_generic_basis_describes_what_the_learned_one_does_not():
    """At 1e8 events and more it brings the worst fits nearer to the truth, and costs the others nothing."""
    net = SpectrumFitter.from_checkpoint("any_binning").net
    batch = WideGenerator(n_bins=(40, 40), total=(1e8, 1e10), signal=0.0, masked=0.0).sample(
        512, rng=torch.Generator().manual_seed(1)
    )
    counts, truth = batch.counts.double(), batch.background.double()
    with torch.no_grad():
        without = net.stages(counts, edges=batch.edges)[-1]
        model, log_rate, *_ = net.described(counts, edges=batch.edges)
    error, before = (
        ((b - truth) / truth.clamp(min=1).sqrt()).square().mean(1).sqrt() for b in (log_rate.exp(), without)
    )
    assert error.quantile(0.9) < 0.7 * before.quantile(0.9)
    assert error.median() < 1.1 * before.median()
    asked = (model.basis[..., net.n_basis :] != 0).any((1, 2))
    assert 0.02 < asked.double().mean() < 0.5
    assert (model.weight == 1).all(1).double().mean() > 0.8  # every bin is believed where the data agree


def test_spectra_of_the_prior_need_no_generic_basis():
    net = SpectrumFitter.from_checkpoint("any_binning").net
    batch = WideGenerator(n_bins=(40, 40), total=(1e2, 1e5), signal=0.0, masked=0.0).sample(
        128, rng=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        model = net.described(batch.counts.double(), edges=batch.edges).model
    assert (model.basis[..., net.n_basis :] != 0).any((1, 2)).double().mean() < 0.03


@pytest.mark.parametrize("steepness", [40.0, 120.0])
def test_a_turn_on_takes_few_polynomials_in_a_stretched_coordinate(steepness):
    """An Erf turn-on of any steepness, without any net: the first estimate stays within the noise of its parameters."""
    x = (torch.arange(60, dtype=torch.float64) + 0.5) / 60
    truth = 1e5 * (torch.special.log_ndtr(steepness * (x - 0.2)) - 6 * x).clamp(min=-25).exp()[None]
    counts = torch.poisson(truth.expand(20, -1), generator=torch.Generator().manual_seed(3))
    nothing = torch.zeros_like(counts, dtype=torch.bool)
    estimate = smooth_estimate(counts, torch.zeros_like(counts), nothing).exp()
    used = truth[0] > 0.5
    residual = ((estimate - truth) / truth.sqrt())[:, used]
    assert residual.square().mean().sqrt() < 0.8  # 24 parameters of 60 bins are 0.63


@pytest.mark.parametrize("distrusted", ["nearly all", "few"])
def test_a_net_that_distrusts_nearly_all_data_is_asked_for_wider_shapes(distrusted):
    """Waves thirty times as high as the net's basis expects: no bump that some bins could be blamed for."""
    x = (torch.arange(100).double() + 0.5) / 100
    wave = torch.sin(24 * torch.pi * x)
    truth = (14 - 2 * x + 0.01 * wave).exp()[None]
    data = torch.poisson(truth, generator=torch.Generator().manual_seed(1))
    believed = torch.full_like(data, 0.1) if distrusted == "nearly all" else torch.ones_like(data)
    believed[:, 40:45] = 0.1
    model = LocalModel((14 - 2 * x)[None], (0.0003 * wave)[None, :, None], believed, torch.zeros(1, 4), torch.ones(1))
    nothing = torch.zeros_like(data).bool()
    answer, log_rate, *_ = with_generic_basis(model, model.log_mean, data, torch.zeros_like(data), mask=nothing)
    deviance = poisson_deviance(data, log_rate.exp()).sum()
    if distrusted == "nearly all":
        assert (answer.weight == 1).all()
        assert deviance < 150
        assert ((log_rate.exp() - truth) / truth.sqrt()).abs().max() < 3
    else:  # those few are left to themselves
        assert torch.equal(answer.weight, believed)
        assert deviance > 300
