"""What `specfit fit` does with a workspace: fit it, and on request scan, set a limit, list impacts, draw."""

from __future__ import annotations

__all__ = ["fit_workspace"]

from pathlib import Path
from typing import Any

from specfit import plots
from specfit.stats.fit_result import FitResult
from specfit.stats.fitting import fit
from specfit.stats.goodness import goodness_of_fit
from specfit.stats.impacts import impacts
from specfit.stats.limits import discovery, upper_limit
from specfit.stats.model import StatisticalModel
from specfit.stats.profile import scan
from specfit.stats.workspace import Workspace


def fit_workspace(
    path: str | Path,
    *,
    measurement: str | None = None,
    scanned: str | None = None,
    limit: bool = False,
    with_impacts: bool = False,
    picture: str | Path | None = None,
) -> tuple[dict[str, Any], str]:
    """Fits a workspace.

    Args:
        path: JSON file.
        measurement: Which measurement; None takes the first.
        scanned: Parameter to profile.
        limit: Whether to set an upper limit and compute the significance of the first parameter of interest.
        with_impacts: Whether to compute the impacts of all nuisances on it.
        picture: File for the profile, else the impacts, else the correlations.

    Raises:
        InputError: A fault in the workspace or in the options.
        OSError: A file cannot be read or written.

    Returns:
        All results as plain data, and as text.
    """
    workspace = Workspace.read(path)
    model = StatisticalModel(workspace, measurement)
    best = fit(model)
    found: dict[str, Any] = {"fit": best}
    if not model.compiled.events and model.n_counts > int((~best.fixed & ~model.constrained).sum()):
        found["goodness_of_fit"] = goodness_of_fit(model, best=best)
    if scanned is not None:
        found["scan"] = scan(model, scanned, best=best)
    if limit:
        found |= {"limit": upper_limit(model), "discovery": discovery(model)}
    if with_impacts:
        found["impacts"] = impacts(model, best=best)
    content = {"workspace": str(path)} | {name: result.to_dict() for name, result in found.items()}
    text = "\n\n".join(str(result) for result in found.values())
    if workspace.without_observation:
        missing = ", ".join(workspace.without_observation)
        content["note"] = (
            f"these are no data: the workspace has no observation of {missing}, so what the model expects at its "
            "initial values was fitted"
        )
        text = f"{content['note']}\n\n{text}"
    if picture is not None:
        content["picture"] = str(plots.save(_draw(found, best), picture))
    return content, text


def _draw(found: dict[str, Any], best: FitResult) -> Any:
    if "scan" in found:
        return plots.draw_scan(found["scan"])
    return plots.draw_impacts(found["impacts"]) if "impacts" in found else plots.draw_correlation(best)
