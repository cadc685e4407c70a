"""`specfit train` and `specfit generate`: nets, and the spectra that they learn from."""

from __future__ import annotations

__all__ = ["generate", "train"]

from pathlib import Path
from typing import Annotated, Any

import typer

from specfit.cli.terminal import numbers, one_line, progress_bar, range_of
from specfit.errors import InputError


def train(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides; `--multirun` sweeps, `--cfg job` shows all."),
    ] = None,
) -> None:
    """Train a net and write a checkpoint; the same command continues a stopped run.

    Example: `specfit train experiment=quick name=mine edges=700:2000:130 data.generator.unit=1.8`
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from specfit.training.train import main as train_main

    try:
        train_main([*(overrides or []), *context.args])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line(error)) from error


def generate(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    size: Annotated[int, typer.Option(help="Number of spectra.")] = 100_000,
    edges: Annotated[str, typer.Option(help="`lo:hi:n`, `lo:hi:n:log` or a file.")] = "250:3000:50:log",
    n_backgrounds: Annotated[str, typer.Option(help="Number of components, or `low:high`.")] = "5",
    total: Annotated[str, typer.Option(help="Events a spectrum, `low:high`.")] = "2e4:1.8e5",
    rho: Annotated[str, typer.Option(help="Power of the fall, `low:high`.")] = "0.5:1.5",
    alpha: Annotated[str, typer.Option(help="Scale of the fall, `low:high`.")] = "25:200",
    mu: Annotated[str, typer.Option(help="Position of the turn-on, `low:high`.")] = "325:375",
    sigma: Annotated[str, typer.Option(help="Width of the turn-on, `low:high`.")] = "10:30",
    signal: Annotated[
        str | None, typer.Option(metavar="MASS,WIDTH,EVENTS", help="Inject a Gaussian signal into every spectrum.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides every spectrum.")] = 1,
) -> None:
    """Sample spectra into a folder of `.npy` files: counts, background, signal, edges.

    Example: `specfit generate toys --size 100000 --n-backgrounds 1:7 --signal 1000,100,500`
    """
    from specfit import io
    from specfit.dataset import write_dataset
    from specfit.generator import SignalPrior, SpectrumGenerator

    options = {"n_backgrounds": n_backgrounds, "total": total, "rho": rho, "alpha": alpha, "mu": mu, "sigma": sigma}
    ranges: dict[str, Any] = {name: range_of(name, text) for name, text in options.items()}
    ranges["n_backgrounds"] = [int(n) if n == int(n) else n for n in ranges["n_backgrounds"]]
    limits = io.parse_edges(edges)
    if signal is not None:
        mass, width, events = numbers("signal", signal, ",", 3)
        low, high = limits[0].item(), limits[-1].item()
        if not max(low, 0) < mass < high:
            raise InputError(f"--signal: a positive mass between {low:g} and {high:g} is expected, {mass:g} came")
        relative = width / mass
        ranges["signal"] = SignalPrior(mass=(mass, mass), relative_width=(relative, relative), events=(events, events))
    generator = SpectrumGenerator(limits, **ranges)
    with progress_bar("sampling", size) as progress:
        card = options | {"signal": signal}
        write_dataset(generator, folder, size=size, seed=seed, card=card, progress=progress)
    print(f"{size} spectra of {generator.n_bins} bins in {folder}/ (counts, background, signal, edges, card.json)")
