"""ValidationSheet: the acceptance sheet of a background model, as a value: verdict, plain data, a folder to read."""

from __future__ import annotations

__all__ = ["ValidationSheet"]

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specfit import plots
from specfit.background_fit import BackgroundFit
from specfit.io.files import finite_or_none, replacing, write_json
from specfit.search.criteria import Criterion, ToyStudy
from specfit.search.sheet_page import page
from specfit.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ValidationSheet:
    """What a background model was asked, and how it did.

    Args:
        spectrum: The data.
        fit: Their background.
        criteria: The lines of the sheet.
        studies: Pseudo-experiments, one entry for each background that they were drawn from: the fitted (or given)
            one, and a function of another family if one describes the data.
        global_p: Global p-value of the largest excess of the data.
    """

    spectrum: Spectrum
    fit: BackgroundFit = field(repr=False)
    criteria: tuple[Criterion, ...]
    studies: tuple[ToyStudy, ...] = field(repr=False)
    global_p: float

    @property
    def passed(self) -> bool:
        """Whether no criterion failed."""
        return all(one.passed is not False for one in self.criteria)

    @property
    def failed(self) -> tuple[Criterion, ...]:
        """Criteria that were not met."""
        return tuple(one for one in self.criteria if one.passed is False)

    @property
    def n_toys(self) -> int:
        """Pseudo-experiments for each background, and for each signal on it."""
        return len(self.studies[0].p_values)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the pseudo-experiments with signals one by one, as plain data."""
        return {
            "passed": self.passed,
            "spectrum": {
                "events": self.fit.events.item(),
                "bins": int(self.fit.shown.sum()),
                "gaps": self.spectrum.gap_intervals,
                "low": self.spectrum.edges[0].item(),
                "high": self.spectrum.edges[-1].item(),
                "weighted": self.fit.is_weighted,
            },
            "pseudo_experiments": self.n_toys,
            "p_value": self.fit.p_value.item(),
            "global_p": self.global_p,
            "criteria": [finite_or_none(one._asdict()) for one in self.criteria],
            "studies": [
                {
                    "name": study.name,
                    "truth": study.truth.tolist(),
                    "mean_background": study.mean_background.tolist(),
                    "p_values": study.p_values.tolist(),
                    "global_p": study.global_p.tolist(),
                    "injection": study.injection.to_dict()["points"],
                }
                for study in self.studies
            ],
        }

    def figures(self, *, x_label: str = "x") -> dict[str, Figure]:
        """Draws the pictures of the sheet, by name.

        Args:
            x_label: Name of the mass axis.
        """
        return {
            "fit": plots.draw_fit(self.fit, x_label=x_label),
            "spurious_signal": plots.draw_spurious_signal(self.studies, x_label=x_label),
            "linearity": plots.draw_linearity(self.studies),
            "pulls": plots.draw_pulls(self.studies),
            "p_values": plots.draw_p_values(self.studies, data=(self.fit.p_value.item(), self.global_p)),
            "background": plots.draw_background_shift(self.studies, x_label=x_label),
        }

    def save(self, folder: str | Path, *, title: str = "", x_label: str = "x") -> Path:
        """Writes `validation.json`, the pictures as PNG, and all of it as one page, `validation.html`.

        Args:
            folder: Where; made if it does not exist, not its parents.
            title: What was validated, for the head of the page.
            x_label: Name of the mass axis.

        Returns:
            The page.

        Raises:
            OSError: The folder cannot be written.
        """
        target = Path(folder)
        target.mkdir(exist_ok=True)
        pictures = {}
        for name, figure in self.figures(x_label=x_label).items():
            pictures[name] = plots.save(figure, target / f"{name}.png").read_bytes()
        write_json(target / "validation.json", finite_or_none({"title": title, **self.to_dict()}))
        document = target / "validation.html"
        with replacing(document) as temporary:
            temporary.write_text(page(self.to_dict(), pictures, title=title), encoding="utf-8")
        return document

    def __str__(self) -> str:
        """Writes the verdict in one line."""
        asked = [one for one in self.criteria if one.passed is not None]
        failed = "".join(f"; {one.name} ({one.truth}): {one.value:.3g}" for one in self.failed)
        return f"{'passed' if self.passed else 'not passed'}: {len(asked) - len(self.failed)} of {len(asked)}{failed}"
