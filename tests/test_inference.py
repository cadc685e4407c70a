"""SpectrumFitter and smooth_background with a small net whose answer is known."""

import boost_histogram as bh
import hist
import numpy as np
import pytest
import torch

import specfit
from specfit import checkpoint
from specfit.background_fit import draw_backgrounds
from specfit.errors import InputError
from specfit.guard import LEAST_P_VALUE
from specfit.inference import EdgesMismatchError, SpectrumFitter, smooth_background
from specfit.net import NETS, LearnedBasisNet, TalkNet
from specfit.search import scan_many
from specfit.signal import binwise_hypotheses

EDGES = np.geomspace(250, 3000, 13)


@pytest.fixture
def counts(rng):
    generator = specfit.SpectrumGenerator(EDGES, n_backgrounds=2)
    return generator.sample(5, rng=rng).counts.double().numpy()


@pytest.fixture
def fitter():
    torch.manual_seed(1)
    return SpectrumFitter(LearnedBasisNet(12, n_basis=(4, 3), hidden=16), EDGES)


@pytest.fixture
def saved(fitter, tmp_path):
    return checkpoint.save(checkpoint.Checkpoint(fitter.net, fitter.edges, {"seed": 1}), tmp_path / "net.safetensors")


@pytest.mark.parametrize("name", NETS)
def test_fit_of_a_batch_is_the_fit_of_each_row(name, counts):
    torch.manual_seed(1)
    is_free = name == "any_binning"
    fitter = SpectrumFitter(NETS[name](**({} if is_free else {"n_bins": 12})), None if is_free else EDGES)
    batch = fitter.fit(counts, EDGES, refit=None)
    for i, row in enumerate(counts):
        one = fitter.fit(row, EDGES, refit=None)
        torch.testing.assert_close(one.background, batch.background[i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.covariance, batch[i].covariance, rtol=1e-4, atol=1e-4)
        assert one.background.shape == (12,)
    assert batch.p_value.shape == (5,)


def test_result_fields_follow_their_definitions(fitter, counts):
    from scipy import stats

    fit = fitter.fit(counts[0], EDGES, refit=None)
    n, b = counts[0], fit.background.numpy()
    deviance = 2 * np.sum(np.where(n > 0, n * np.log(np.maximum(n, 1) / b), 0) - (n - b))
    assert fit.deviance.item() == pytest.approx(deviance, rel=1e-9)
    assert fit.ndf.item() == pytest.approx(12 - fit.n_parameters.item())
    assert fit.p_value.item() == pytest.approx(stats.chi2.sf(deviance, fit.ndf.item()), rel=1e-6)
    np.testing.assert_allclose(fit.uncertainty, np.sqrt(np.diag(fit.covariance)))
    total, error = fit.window(EDGES[2], EDGES[7])
    assert total.item() == pytest.approx(b[2:7].sum())
    assert error.item() == pytest.approx(np.sqrt(fit.covariance[2:7, 2:7].sum().item()))
    for low, high in ((EDGES[7], EDGES[2]), (EDGES[-1] + 1, EDGES[-1] + 2)):
        with pytest.raises(InputError, match=r"^window: no bin lies within"):
            fit.window(low, high)


def test_more_events_than_float64_tells_apart_are_refused(fitter, counts):
    with pytest.raises(InputError, match=r"^counts: 1e\+300 at .*bin 3 came; beyond 1e\+15 events"):
        fitter.fit(np.where(np.arange(12) == 3, 1e300, counts[0]), EDGES)


def test_fractions_of_events_without_variances_are_said(fitter, counts):
    assert "no whole numbers" in fitter.fit(counts[0] / 8, EDGES).message
    assert "no whole numbers" not in fitter.fit(counts[0], EDGES).message


def test_masked_bins_enter_neither_deviance_nor_degrees_of_freedom(fitter, counts):
    spoiled = counts[0].copy()
    spoiled[6] *= 20
    fit = fitter.fit(spoiled, EDGES, refit="talk")
    assert fit.mask[6]
    kept = ~fit.mask.numpy()
    n, b = spoiled[kept], fit.background.numpy()[kept]
    deviance = 2 * np.sum(np.where(n > 0, n * np.log(np.maximum(n, 1) / b), 0) - (n - b))
    assert fit.deviance.item() == pytest.approx(deviance, rel=1e-9)
    assert fit.ndf.item() == pytest.approx(max(kept.sum() - fit.n_parameters.item(), 1))
    assert fit.iterations.item() == fit.mask.sum().item()
    assert "refit" in fit.message


def test_true_takes_the_first_rule_that_the_net_can_follow_and_none_takes_no_rule(fitter, counts):
    by_default, signals = fitter.fit(counts, EDGES), fitter.fit(counts, EDGES, refit="signals")
    assert torch.equal(by_default.background, signals.background)
    assert not fitter.fit(counts, EDGES, refit=None).mask.any()
    assert not fitter.fit(counts, EDGES, refit=False).mask.any()
    with pytest.raises(InputError, match="refit: one of 'signals', 'windows', 'talk'"):
        fitter.fit(counts, EDGES, refit="nonsense")


def test_weighted_contents_are_scaled_counts_and_the_result_says_so(fitter, counts):
    plain = fitter.fit(counts[0], EDGES, refit=None)
    weighted = fitter.fit(specfit.Spectrum(3 * counts[0], EDGES, variances=9 * counts[0]), refit=None)
    torch.testing.assert_close(weighted.background, 3 * plain.background)
    torch.testing.assert_close(weighted.uncertainty, 3 * plain.uncertainty)
    torch.testing.assert_close(weighted.deviance, plain.deviance)
    torch.testing.assert_close(weighted.significance, plain.significance)
    assert "weighted" in weighted.message
    assert weighted.summary()[0]["weighted"]
    assert "weighted" not in plain.message


def test_weights_that_differ_from_bin_to_bin_are_named_and_judged_as_they_are(fitter, counts):
    weights = torch.where(torch.arange(12) < 6, 0.01, 1.0).double()
    contents = torch.as_tensor(counts[0]).double() * weights
    fit = fitter.fit(specfit.Spectrum(contents, EDGES, variances=contents * weights), refit=None)
    assert "an event stands for 0.01 to 1 in different bins" in fit.message
    assert bool(fit.converged) == bool(fit.p_value >= LEAST_P_VALUE)
    alike = fitter.fit(specfit.Spectrum(contents, EDGES, variances=0.3 * contents), refit=None)
    assert "in different bins" not in alike.message


def test_bare_counts_take_the_edges_of_the_checkpoint_if_the_length_fits(fitter, counts):
    assert torch.equal(fitter.fit(counts[0]).spectrum.edges, torch.from_numpy(EDGES))
    with pytest.raises(InputError, match="11"):
        fitter.fit(counts[0][:11])


def test_other_edges_are_refused_with_the_command_that_trains_for_them(fitter, counts):
    with pytest.raises(InputError, match=r"250 to 3000.*1 to 13.*`specfit train experiment=quick name=mine edges="):
        fitter.fit(counts[0], np.arange(1, 14))


def test_same_kind_out_as_in(saved, counts):
    row = counts[0]
    wanted = smooth_background(row, EDGES, checkpoint=saved)
    assert type(wanted) is np.ndarray
    assert smooth_background(counts, EDGES, checkpoint=saved).shape == counts.shape
    spectrum = smooth_background(specfit.Spectrum(row, EDGES), checkpoint=saved)
    assert type(spectrum) is specfit.Spectrum
    np.testing.assert_allclose(spectrum.counts, wanted)
    histogram = hist.Hist(hist.axis.Variable(EDGES, name="m", label="mass"))
    histogram.values()[:] = row
    answer = smooth_background(histogram, checkpoint=saved)
    assert type(answer) is hist.Hist
    assert answer.axes[0].name == "m"
    np.testing.assert_allclose(answer.values(), wanted)
    boost = bh.Histogram(bh.axis.Variable(EDGES))
    boost.view()[:] = row
    assert type(smooth_background(boost, checkpoint=saved)) is bh.Histogram
    tensor = smooth_background(torch.from_numpy(row), EDGES, checkpoint=saved)
    assert isinstance(tensor, torch.Tensor)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: np.where(np.arange(12) == 3, np.nan, c), "nan at bin 3"),
        (lambda c: np.where(np.arange(12) == 3, np.inf, c), "inf at bin 3"),
        (lambda c: -c, "negative"),
        (lambda c: 0 * c, "every bin is zero"),
        (lambda c: c[:1], "1"),
        (lambda c: c.astype(str), "real numbers are expected"),
        (lambda c: c.astype(object), "real numbers are expected"),
        (lambda c: c.reshape(1, 1, 12), "shape"),
        (lambda c: c[:0], "0"),
    ],
)
def test_bad_counts_are_one_clear_error(fitter, counts, spoil, words):
    with pytest.raises(InputError, match=words) as caught:
        fitter.fit(spoil(counts[0]), EDGES if len(spoil(counts[0])) == 12 else None)
    assert "\n" not in str(caught.value)


def test_a_net_must_have_the_bins_of_its_edges():
    with pytest.raises(InputError, match="12 bins, 5 bins came"):
        SpectrumFitter(TalkNet(12), np.arange(6))


def test_fit_saves_draws_and_becomes_a_histogram(fitter, counts, tmp_path):
    fit = fitter.fit(counts[0], EDGES)
    path = fit.save(tmp_path / "background.npz")
    with np.load(path) as file:
        np.testing.assert_allclose(file["counts"], fit.background)
        np.testing.assert_allclose(file["variances"], fit.uncertainty**2)
    histogram = fit.to_hist()
    np.testing.assert_allclose(histogram.values(), fit.background)
    np.testing.assert_allclose(histogram.variances(), fit.uncertainty**2)
    assert len(fit.plot().axes) >= 2
    assert len(fitter.fit(counts, EDGES).plot(2).axes) >= 2


def test_the_shipped_net_masks_a_hidden_signal_and_stays_certain():
    """What scripts/demo shows: the error must not grow with the signal that it is there to judge."""
    fitter = SpectrumFitter.from_checkpoint()
    signal = specfit.SignalPrior(mass=(1000, 1000), relative_width=(0.05, 0.05), events=(600, 600))
    generator = specfit.SpectrumGenerator(fitter.edges, n_backgrounds=5, total=(1e5, 1e5), signal=signal)
    batch = generator.sample(40, rng=torch.Generator().manual_seed(7))
    pure = torch.poisson(batch.background, generator=torch.Generator().manual_seed(8))
    near = int((fitter.edges < 1000).sum()) - 1
    with_signal, without = (fitter.fit(counts) for counts in (batch.counts, pure))
    assert with_signal.mask[:, near].double().mean() > 0.8
    assert (with_signal.significance[:, near] > 3).double().mean() > 0.8
    assert without.mask.any(-1).double().mean() < 0.1
    growth = with_signal.uncertainty.median(-1).values / without.uncertainty.median(-1).values
    assert growth.median() < 1.3


def test_draws_stay_positive_and_bounded_where_hardly_anything_is_known():
    background, factor = torch.tensor([1e4, 1e-9], dtype=torch.float64), torch.tensor([[50.0], [1e-3]]).double()
    drawn = draw_backgrounds(background, factor, 100_000, rng=torch.Generator().manual_seed(1))
    assert (drawn >= 0).all()
    assert drawn[:, 1].max() < 0.01
    assert drawn[:, 0].std() == pytest.approx(50, rel=0.01)
    assert drawn[:, 0].mean() == pytest.approx(1e4, abs=1)


def test_a_device_that_is_not_there_is_said():
    with pytest.raises(InputError, match=r"device: 'nowhere' cannot be used here .*; 'cpu' always can"):
        SpectrumFitter.from_checkpoint(device="nowhere")


def test_what_is_shipped_fits_any_spectrum_each_with_the_net_for_it():
    shipped, reference = SpectrumFitter.from_checkpoint(), SpectrumFitter.from_checkpoint("reference")
    of_any = SpectrumFitter.from_checkpoint("any_binning")
    counts = np.random.default_rng(3).poisson(1e4 * np.exp(-np.arange(50) / 9))
    edges = reference.edges
    assert torch.equal(shipped.fit(counts, edges).background, reference.fit(counts, edges).background)
    assert shipped.read(counts, edges).fitter is shipped
    other = np.linspace(5, 10, 51)
    fit = shipped.fit(counts, other)
    assert torch.equal(fit.background, of_any.fit(counts, other).background)
    assert "net of any binning" in fit.message
    assert type(shipped.read(counts, other).fitter.net) is type(of_any.net)
    assert shipped.read(counts, other).fitter is shipped.read(counts[:-1], other[:-1]).fitter  # loaded once
    # Whoever names a net gets that one or nothing.
    with pytest.raises(EdgesMismatchError, match="--checkpoint any_binning"):
        reference.fit(counts, other)


def test_assumed_edges_are_said():
    counts = np.random.default_rng(3).poisson(1e4 * np.exp(-np.arange(50) / 9))
    shipped = SpectrumFitter.from_checkpoint()
    assert "those of the net are assumed, 50 bins from 250 to 3000" in shipped.fit(counts).message
    shorter = shipped.fit(counts[:33])
    assert "33 bins of equal width are assumed" in shorter.message
    assert shorter.spectrum.edges.tolist() == list(range(34))
    assert "assumed" not in shipped.fit(counts, shipped.edges).message
    with pytest.raises(InputError, match="33 bins do not fit"):
        SpectrumFitter.from_checkpoint("reference").fit(counts[:33])


def test_what_is_shipped_is_not_taken_from_where_one_works(tmp_path, monkeypatch):
    (tmp_path / "any_binning").mkdir()
    monkeypatch.chdir(tmp_path)
    counts = np.random.default_rng(3).poisson(1e4 * np.exp(-np.arange(33) / 9))
    assert SpectrumFitter.from_checkpoint().fit(counts).background.shape == (33,)
    assert len(scan_many(counts[None].tolist())) == 1


def test_what_a_fit_keeps_or_answers_can_be_differentiated(fitter, counts):
    """A fit runs in inference mode; nothing that leaves it may be bound to that."""
    fit = fitter.fit(counts, EDGES)
    assert not any(value.is_inference() for value in vars(fit).values() if isinstance(value, torch.Tensor))
    assert not binwise_hypotheses(EDGES).templates.is_inference()
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    (fit.background * factor).sum().backward()
    assert factor.grad > 0


def test_what_the_caller_leaves_out_stays_blind(fitter, counts):
    seen = counts[0].astype(float)
    hidden = seen.copy()
    hidden[4:6] *= 10  # what no table and no picture may tell
    window = [(EDGES[4] + 1, EDGES[6] - 1)]
    fits = [fitter.fit(data, EDGES, mask=window) for data in (seen, hidden)]
    assert fits[0].summary() == fits[1].summary()
    assert fits[0].summary()[0]["bins"] == len(seen) - 2
    assert fits[0].summary()[0]["events"] == np.delete(seen, [4, 5]).sum()
    for fit in fits:
        assert (fit.significance[4:6] == 0).all()
        assert fit.background[4:6].min() > 0
    pictures = [fit.plot() for fit in fits]
    lines = [[line.get_ydata() for line in figure.axes[0].lines] for figure in pictures]
    for one, other in zip(*lines, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "Left out" in [text.get_text() for text in pictures[0].axes[0].get_legend().get_texts()]
