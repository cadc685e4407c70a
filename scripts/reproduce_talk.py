"""Prints and draws the results of the talk "Fitting a spectrum using ML" (S. Calvet, 2021) with a specfit net.

In the order of the talk, each figure beside the talk's own where it gives one (its binning is unknown):

a. six example fits for N = 1, 5 and 7 components: examples_N*.png
b. RMS and bias of (fit - truth) / sqrt(truth), with the information limit of this binning: residuals.png, bias.png
c. whether fits follow the fluctuations of their data: correlations.png. "Does not depend", says the talk, by eye; an
   efficient estimator cannot do without: the slope of its residual on that of the data is RMS^2, the correlation RMS
d. injected signals of 0 to 3000 events at 1 TeV, 10 % wide: bias of the background in the window mass +- 2 widths,
   sum(fit - truth) / sqrt(sum(truth)), for each refit rule, over spectra with more than 10 background events there:
   signals.png. Without a signal the talk's rule pulls a pure background down.
e. one spectrum with 1000 and with 100 signal events, without refit, with the default and with the talk's: refits.png
f. the net beside a functional fit that is told N, on the same spectra

    python scripts/reproduce_talk.py
    python scripts/reproduce_talk.py --checkpoint runs/calvet2021 --out talk_calvet --size 1000 --functional 10
"""

from __future__ import annotations

__all__ = ["main"]

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import (
    TASKS,
    argument_parser,
    fit_functions,
    fitted_parts,
    limit_of,
    positive,
    print_table,
    relative_residuals,
    rms,
    rng_of,
    start,
    write_json,
)
from matplotlib.figure import Figure
from torch import Tensor

import specfit
from specfit import plots
from specfit.inference import REFITS, RefitRule
from specfit.information_limit import InformationLimit
from specfit.plots.look import GUIDE, OVERLAY, add_legend, dress
from specfit.search import gaussian_hypotheses
from specfit.search.chain import Chain

RMS_OF_TALK = {1: 0.42, 5: 0.47, 7: 0.49}
MASS, RELATIVE_WIDTH, HALF_WINDOW = 1000.0, 0.1, 2.0  # the window in widths of the signal
# A signal alone in an empty window would have an infinite bias in units of sqrt(background).
LEAST_BACKGROUND = 10.0
EVENTS = (0, 10, 30, 100, 300, 1000, 3000)
EVENTS_DRAWN = (1000, 100)
RULES: dict[str, RefitRule] = {"no refit": None} | {f"refit {rule}": rule for rule in REFITS}
RULES_DRAWN: dict[str, RefitRule] = {"no refit": None, "default refit": True, "refit talk": "talk"}
TOGETHER = "signal fitted beside"
SPECTRA_TOGETHER = 256
N_OF_SIGNALS, N_OF_FUNCTIONS = 5, (1, 5)
EXAMPLES, LIMIT_SIZE, SPECTRA_TO_CHOOSE_FROM = 6, 300, 63
X_LABEL = "Mass [GeV]"


class Sample(NamedTuple):
    """Fitted spectra with a known truth, all of shape `(size, n_bins)`."""

    counts: Tensor
    truth: Tensor
    background: Tensor
    mask: Tensor


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the script; returns all figures."""
    parser = argument_parser(__doc__, size=5000)
    parser.add_argument("--out", type=Path, default=Path("talk"), help="folder of pictures (default: %(default)s)")
    parser.add_argument("--functional", type=positive, default=40, help="functional fits (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    fitter = specfit.SpectrumFitter.from_checkpoint(options.checkpoint)
    how = {"size": options.size, "seed": options.seed}
    samples = {n: sample_fits(fitter, generator_of(fitter, n), **how) for n in TASKS}
    limits = {n: limit_of(generator_of(fitter, n), size=LIMIT_SIZE, seed=options.seed) for n in TASKS}
    for n, sample in samples.items():
        draw_examples(fitter, n, sample, options.out)
    results = {
        "residuals": judge_residuals(fitter.edges, samples, limits, options.out),
        "correlations": judge_correlations(samples, options.out),
        "signals": judge_signals(fitter, out=options.out, **how),
        "functional": judge_functions(fitter.edges, samples, limits, size=options.functional),
    }
    draw_refits(fitter, seed=options.seed, out=options.out)
    write_json(options.out / "talk.json", options, results)
    write_json(options.json, options, results)
    print(f"pictures and talk.json: {options.out}")
    return results


def generator_of(fitter: specfit.SpectrumFitter, n: int, *, events: float | None = None) -> specfit.SpectrumGenerator:
    """Makes the generator of N components, with the talk's signal where `events` is given."""
    mass, width = (MASS, MASS), (RELATIVE_WIDTH, RELATIVE_WIDTH)
    signal = None if events is None else specfit.SignalPrior(mass=mass, relative_width=width, events=(events, events))
    return specfit.SpectrumGenerator(fitter.edges, n_backgrounds=n, signal=signal)


def sample_fits(
    fitter: specfit.SpectrumFitter,
    generator: specfit.SpectrumGenerator,
    *,
    size: int,
    seed: int,
    refit: RefitRule = None,
) -> Sample:
    """Samples and fits; the same seed gives the same backgrounds under every signal."""
    parts = [
        (batch.counts.double(), batch.background.double(), fit.background, fit.mask)
        for batch, fit in fitted_parts(fitter, generator, size=size, seed=seed, refit=refit)
    ]
    return Sample(*(torch.cat(part) for part in zip(*parts, strict=True)))


def draw_examples(fitter: specfit.SpectrumFitter, n: int, sample: Sample, out: Path) -> None:
    """Draws the first six fits (a)."""
    fit = fitter.fit(sample.counts[:EXAMPLES], fitter.edges, refit=None)
    count = len(fit.background)
    figure = plots.draw_examples(
        [fit[i] for i in range(count)], truths=list(sample.truth[:count]), titles=[f"N = {n}"] * count
    )
    plots.save(figure, out / f"examples_N{n}.png")


def judge_residuals(
    edges: Tensor, samples: dict[int, Sample], limits: dict[int, InformationLimit], out: Path
) -> list[dict[str, Any]]:
    """Measures, prints and draws the residuals (b)."""
    rows = []
    pooled = Figure(figsize=(8, 6), layout="constrained")
    along = Figure(figsize=(18, 5), layout="constrained")
    axes, panels = pooled.add_subplot(), along.subplots(1, len(samples), sharey=True)
    for (n, sample), panel in zip(samples.items(), panels, strict=True):
        residual, used = relative_residuals(sample.background, sample.truth)
        n_used = used.sum(0)
        mean = (residual * used).sum(0) / n_used
        spread = ((residual.square() * used).sum(0) / n_used).sqrt()
        plots.draw_residuals(residual[used], axes, label=f"N = {n}")
        _draw_along(edges, mean, spread, limits[n], panel)
        panel.set_title(f"N = {n}", fontsize=14)
        panel.label_outer()
        rows.append(
            {
                "task": f"N={n}",
                "rms": residual[used].square().mean().sqrt().item(),
                "limit": limits[n].rms,
                "rms_over_limit": residual[used].square().mean().sqrt().item() / limits[n].rms,
                "rms_of_talk": RMS_OF_TALK[n],
                "bias": residual[used].mean().item(),
                "largest_bias": mean[n_used > 0].abs().max().item(),
            }
        )
    plots.save(pooled, out / "residuals.png")
    plots.save(along, out / "bias.png")
    print_table("(b) Residuals of fit and truth; the talk's numbers are for an unknown binning", rows)
    return rows


def _draw_along(edges: Tensor, mean: Tensor, spread: Tensor, limit: InformationLimit, ax: Any) -> None:
    """Draws bias and RMS of the bins that some truth reaches, with the limit of each."""
    last = int(mean.isfinite().nonzero().max()) + 1
    ax.stairs(limit.rms_per_bin, edges, baseline=None, color="black", linestyle=":", linewidth=1.5, label="Limit")
    plots.draw_bias(edges[: last + 1], mean[:last].nan_to_num(), spread[:last].nan_to_num(), ax, x_label=X_LABEL)


def judge_correlations(samples: dict[int, Sample], out: Path) -> list[dict[str, Any]]:
    """Measures, prints and draws how residuals depend on the fluctuation of the data (c).

    All residuals are in units of sqrt(truth), so that residual(data, fit) is exactly the difference of the other two.
    """
    rows = []
    figure = Figure(figsize=(18, 10), layout="constrained")
    panels = figure.subplots(2, len(samples))
    for i, (n, sample) in enumerate(samples.items()):
        fluctuation, used = relative_residuals(sample.counts, sample.truth)
        error, _ = relative_residuals(sample.background, sample.truth)
        x, y = fluctuation[used], error[used]
        size = y.square().mean().sqrt().item()
        # For an efficient estimator cov(error, fluctuation) = var(error), in these units RMS^2; var(fluctuation) = 1.
        expected = {"fit": (size**2, size), "data": (1 - size**2, max(1 - size**2, 0.0) ** 0.5)}
        for row, (kind, values) in enumerate({"data": x - y, "fit": y}.items()):
            name = "residual(data, fit)" if kind == "data" else "residual(fit, truth)"
            slope, correlation = expected[kind]
            labels = ("residual(data, truth)", name)
            plots.draw_residual_correlation(x, values, panels[row, i], slope=slope, labels=labels)
            panels[row, i].set_title(f"N = {n}", fontsize=14)
            rows.append(_correlation_row(n, name, x, values) | _expected(slope, correlation))
    plots.save(figure, out / "correlations.png")
    print_table("(c) Dependence on residual(data, truth), bin by bin", rows)
    return rows


def _correlation_row(n: int, name: str, x: Tensor, y: Tensor) -> dict[str, Any]:
    (xx, xy), (_, yy) = torch.cov(torch.stack([x, y])).tolist()
    return {"task": f"N={n}", "of": name, "slope": xy / xx, "correlation": xy / (xx * yy) ** 0.5}


def _expected(slope: float, correlation: float) -> dict[str, float]:
    return {"slope_if_efficient": slope, "correlation_if_efficient": correlation}


def judge_signals(fitter: specfit.SpectrumFitter, *, size: int, seed: int, out: Path) -> list[dict[str, Any]]:
    """Measures, prints and draws what signals do to the background under them (d)."""
    rows = []
    for events in EVENTS:
        generator = generator_of(fitter, N_OF_SIGNALS, events=events)
        for name, rule in RULES.items():
            sample = sample_fits(fitter, generator, size=size, seed=seed, refit=rule)
            rows.append({"events": events, "rule": name} | _window_figures(sample, fitter.edges, events))
        rows.append(
            {"events": events, "rule": TOGETHER} | _window_figures(_together(fitter, sample), fitter.edges, events)
        )
    print_table(
        f"(d) Background under a signal at {MASS:g} GeV, N = {N_OF_SIGNALS}, in units of sqrt(background)", rows
    )
    figure = Figure(figsize=(8, 6), layout="constrained")
    _draw_signals(rows, figure.add_subplot())
    plots.save(figure, out / "signals.png")
    return rows


def _together(fitter: specfit.SpectrumFitter, sample: Sample) -> Sample:
    """Fits the same spectra with the signal, of known mass and width, as a column beside the background."""
    n_bins = sample.counts.shape[1]
    signals = gaussian_hypotheses(fitter.edges, width=RELATIVE_WIDTH, mass=[MASS])
    nothing = sample.counts.new_zeros(0, n_bins), torch.zeros(n_bins, dtype=torch.bool)
    chain = Chain(fitter, fitter.edges, signals, *nothing)
    background = [chain.rows(counts).fit.background for counts in sample.counts.split(SPECTRA_TOGETHER)]
    return sample._replace(background=torch.cat(background), mask=torch.zeros_like(sample.mask))


def _window_figures(sample: Sample, edges: Tensor, events: float) -> dict[str, float]:
    """Measures the bias of the background in the window, over spectra with some background there."""
    truth, background = _in_window(sample.truth, edges), _in_window(sample.background, edges)
    some = truth > LEAST_BACKGROUND
    bias = (background - truth)[some] / truth[some].sqrt()
    return {
        "spectra": len(bias),
        "bias": bias.mean().item(),
        "bias_error": (bias.std() / len(bias) ** 0.5).item(),
        "bias_median": bias.median().item(),
        "signal_median": (events / truth[some].sqrt()).median().item(),
        "masked_bins": sample.mask[some].sum(-1).double().mean().item(),
    }


def _in_window(events: Tensor, edges: Tensor) -> Tensor:
    """Sums over the bins that lie within the window, shape `(m,)`."""
    half = HALF_WINDOW * RELATIVE_WIDTH * MASS
    return events[:, (edges[:-1] >= MASS - half) & (edges[1:] <= MASS + half)].sum(-1)


def _draw_signals(rows: list[dict[str, Any]], ax: Any) -> None:
    for name, color, marker in zip([*RULES, TOGETHER], OVERLAY, "osd^v", strict=False):
        own = [row for row in rows if row["rule"] == name]
        x = [row["events"] for row in own]
        y, error = [row["bias"] for row in own], [row["bias_error"] for row in own]
        ax.errorbar(x, y, yerr=error, color=color, marker=marker, capsize=3, label=name)
    ax.axhline(0, color=GUIDE, linewidth=0.8)
    ax.set_xscale("symlog", linthresh=10, linscale=0.5)
    ax.set_xlim(-2, 2 * EVENTS[-1])
    ax.set_xticks(EVENTS, [str(events) for events in EVENTS])
    ax.set_xticks([], minor=True)
    label = f"Signal events at {MASS:g} GeV, {100 * RELATIVE_WIDTH:.0f} % wide"
    dress(ax, x_label=label, y_label=r"Bias of the background / $\sqrt{\mathrm{background}}$")
    add_legend(ax)


def draw_refits(fitter: specfit.SpectrumFitter, *, seed: int, out: Path) -> None:
    """Draws one spectrum, of ordinary background, with a strong and with a weak signal, for three refit rules (e)."""
    fits, truths, titles = [], [], []
    for events in EVENTS_DRAWN:
        generator = generator_of(fitter, N_OF_SIGNALS, events=events)
        batch = generator.sample(SPECTRA_TO_CHOOSE_FROM, rng=rng_of(seed))
        chosen = int(_in_window(batch.background, fitter.edges).median(0).indices)
        for name, rule in RULES_DRAWN.items():
            fits.append(fitter.fit(batch.counts[chosen], fitter.edges, refit=rule))
            truths.append(batch.background[chosen])
            titles.append(f"{events} signal events, {name}")
    plots.save(plots.draw_examples(fits, truths=truths, titles=titles), out / "refits.png")


def judge_functions(
    edges: Tensor, samples: dict[int, Sample], limits: dict[int, InformationLimit], *, size: int
) -> list[dict[str, Any]]:
    """Measures and prints the net beside a functional fit on the same spectra (f)."""
    rows = []
    for n in N_OF_FUNCTIONS:
        few = Sample(*(part[:size] for part in samples[n]))
        functions = fit_functions(few.counts, edges, n_components=n)
        rows.append(
            {
                "task": f"N={n}",
                "spectra": len(few.counts),
                "rms_net": rms(few.background, few.truth),
                "rms_functional": rms(functions.fit.background, few.truth),
                "limit": limits[n].rms,
                "functional_ms": 1e3 * functions.seconds / len(few.counts),
                "functional_converged": functions.fit.converged.double().mean().item(),
            }
        )
    print_table("(f) Net and functional fit (told the form and N) on the same spectra", rows)
    return rows


if __name__ == "__main__":
    start(main)
