"""ScanResult: what a scan found, as a value: table, JSON, text, picture."""

from __future__ import annotations

__all__ = ["KnownPeak", "ScanResult"]

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from specfit import plots
from specfit.io.files import finite_or_none, write_json
from specfit.search.tables import checked_ending, write_csv
from specfit.significance import normal_deviate, upper_tail
from specfit.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("mass", "width", "yields", "error", "error_low", "error_high", "local_z", "local_p", "limit")
ENDINGS = (".csv", ".json")


class KnownPeak(NamedTuple):
    """A peak that was fitted beside every hypothesis, as it comes out at the best of them."""

    mass: float
    width: float
    events: float
    """Fitted yield."""
    error: float
    """Its standard error."""
    local_z: float
    """Its significance, with everything else fitted."""


@dataclass(frozen=True, eq=False)
class ScanResult:
    """What a scan found.

    Args:
        spectrum: What was searched.
        mass: Of each hypothesis, in the unit of the edges, shape `(h,)`.
        width: Standard deviation of each, shape `(h,)`.
        yields: Fitted events (content, if weighted) of each signal, shape `(h,)`.
        error: Standard error with the background's in it, shape `(h,)`.
        error_low: Distance to the lower end of the interval of one standard deviation (MINOS), shape `(h,)`.
        error_high: To the upper end.
        local_z: Signed local significance, shape `(h,)`.
        limit: Upper limit on the yield (CLs), shape `(h,)`.
        expected_limits: Without signal, at -2, -1, 0, 1, 2 standard deviations, shape `(h, 5)`.
        level: Confidence level of the limits.
        global_p: Probability that a background shows a local significance as large anywhere.
        global_p_by: The same by each method: `"correlation"` of the hypotheses, and with pseudo-experiments
            `"gross_vitells"` and `"toys"`.
        global_p_interval: 68 % interval of the one that counts pseudo-experiments, or None.
        n_toys: Pseudo-experiments with the whole chain.
        background: Expected background events per bin at the best hypothesis, shape `(n_bins,)`.
        signal: Events per bin of its signal, shape `(n_bins,)`.
        known: Peaks that were fitted beside it.
        mask: True for bins that were left out, gaps included, shape `(n_bins,)`.
        converged: Whether the background could be fitted; see `message`.
        message: How, and what to do if not.
    """

    spectrum: Spectrum
    mass: Tensor
    width: Tensor
    yields: Tensor
    error: Tensor
    error_low: Tensor
    error_high: Tensor
    local_z: Tensor
    limit: Tensor
    expected_limits: Tensor
    level: float
    global_p: float
    global_p_by: dict[str, float]
    global_p_interval: tuple[float, float] | None
    n_toys: int
    background: Tensor
    signal: Tensor
    known: tuple[KnownPeak, ...]
    mask: Tensor
    converged: bool
    message: str

    @property
    def best(self) -> int:
        """Index of the hypothesis with the largest local significance."""
        return int(self.local_z.argmax())

    @property
    def local_p(self) -> Tensor:
        """One-sided local p-values, shape `(h,)`."""
        return upper_tail(self.local_z)

    @property
    def global_z(self) -> float:
        """The global p-value as a one-sided significance."""
        return normal_deviate(self.global_p)

    @property
    def trial_factor(self) -> float:
        """Global over local p-value."""
        return self.global_p / max(float(self.local_p[self.best]), 5e-324)

    def table(self) -> dict[str, list[float]]:
        """Returns one column for each quantity, one entry for each hypothesis."""
        columns = {name: getattr(self, name).tolist() for name in COLUMNS}
        bands = ("minus2", "minus1", "median", "plus1", "plus2")
        return columns | {f"expected_{b}": self.expected_limits[:, i].tolist() for i, b in enumerate(bands)}

    def summary(self) -> dict[str, Any]:
        """Returns what counts, as plain data; what is infinite is None."""
        i = self.best
        return {
            "events": self.spectrum.counts[~self.mask].sum().item(),
            "bins": int((~self.mask).sum()),
            "gaps": self.spectrum.gap_intervals,
            "hypotheses": len(self.mass),
            "mass": self.mass[i].item(),
            "width": self.width[i].item(),
            "signal_events": self.yields[i].item(),
            "error_low": self.error_low[i].item(),
            "error_high": self.error_high[i].item(),
            "local_z": self.local_z[i].item(),
            "local_p": self.local_p[i].item(),
            "global_p": self.global_p,
            "global_z": finite_or_none(self.global_z),
            "global_p_by": self.global_p_by,
            "global_p_interval": self.global_p_interval,
            "trial_factor": finite_or_none(self.trial_factor),
            "pseudo_experiments": self.n_toys,
            "limit": self.limit[i].item(),
            "expected_limit": self.expected_limits[i, 2].item(),
            "level": self.level,
            "known_peaks": [peak._asdict() for peak in self.known],
            "converged": self.converged,
            "message": self.message,
        }

    def save(self, path: str | Path) -> Path:
        """Writes the table to `.csv`, or table and summary to `.json`, by the ending of `path`.

        Raises:
            InputError: Another ending.
        """
        target = checked_ending(path, ENDINGS)
        if target.suffix == ".json":
            return write_json(target, finite_or_none({"summary": self.summary(), "hypotheses": self.table()}))
        return write_csv(target, self.table())

    def plot(self, *, x_label: str = "x") -> Figure:
        """Draws the best window, the local p-values and the limits."""
        return plots.draw_search(self, x_label=x_label)

    def __str__(self) -> str:
        """Writes the result in two lines."""
        i = self.best
        return (
            f"largest excess at {self.mass[i]:.5g}, width {self.width[i]:.3g}: {self.yields[i]:.5g} "
            f"+{self.error_high[i]:.3g} -{self.error_low[i]:.3g} events, {self.local_z[i]:.2f} sigma\n"
            f"global p-value {self.global_p:.3g} ({len(self.mass)} hypotheses, trial factor {self.trial_factor:.3g})"
        )
