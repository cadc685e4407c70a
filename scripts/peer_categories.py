"""Times gato-hep and measures what it reaches; bench_categories.py runs it in an environment of its own.

TensorFlow and torch need not share one.

    python -m venv gato && gato/bin/pip install gato-hep==0.2.1
    gato/bin/python scripts/peer_categories.py sigmoid 250 3 5      # one line of JSON for each number of bins
    gato/bin/python scripts/peer_categories.py diphoton 200 3
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

WINDOW = (123.5, 126.5)
# The eigenvectors, times the roots of the eigenvalues, behind the published events; numpy's own depend on the machine.
TURNED = np.sqrt([[1.4], [0.8], [0.8]]) * np.array([[-1, -1, -1], [0, -1, 1], [2, -1, -1]]) / np.sqrt([[3], [2], [6]])
SLOPES = (0.05, 0.04, 0.035, 0.03, 0.025)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one example for some numbers of bins and prints a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", choices=["sigmoid", "diphoton"])
    parser.add_argument("epochs", type=int)
    parser.add_argument("numbers", type=int, nargs="+", help="numbers of bins or categories")
    options = parser.parse_args(arguments)
    import tensorflow as tf
    from gatohep import data_generation

    tf.config.threading.set_intra_op_parallelism_threads(1)
    data_generation._sample = _sample
    tf.config.threading.set_inter_op_parallelism_threads(1)
    run = {"sigmoid": run_sigmoid, "diphoton": run_diphoton}[options.example]
    for result in run(options.epochs, options.numbers):
        print(json.dumps(result), flush=True)


def run_sigmoid(epochs: int, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Trains on the 1-d toy with the settings of the example."""
    import tensorflow as tf
    from gatohep import data_generation, models, utils

    data = data_generation.generate_toy_data_1D(n_signal=100_000, n_bkg=300_000, seed=42)
    tensors = utils.df_dict_to_tensors(data)
    for n in numbers:
        tf.random.set_seed(0)
        variables = [{"name": "NN_output", "bins": n, "range": (0.0, 1.0)}]
        model = models.gato_sigmoid_model(variables_config=variables, global_steepness=50.0)
        optimizer = tf.keras.optimizers.RMSprop(0.1)
        rates = utils.LearningRateScheduler(optimizer, lr_initial=0.1, lr_final=0.001, total_epochs=epochs)
        steepness = utils.SteepnessScheduler(
            model, t_initial=50.0, t_final=10_000.0, total_epochs=epochs, mode="cosine"
        )
        z = partial(model.get_differentiable_significance, tensors, signal_labels=["signal"])
        step = _step(model, optimizer, lambda z=z: -z()["signal"])
        times = []
        for epoch in range(epochs):
            rates.update(epoch)
            steepness.update(epoch)
            times.append(_timed(step))
        edges = np.concatenate(([0.0], model.calculate_boundaries().numpy().astype(float), [1.0]))
        yields = {name: np.histogram(table.NN_output, edges, weights=table.weight)[0] for name, table in data.items()}
        signal = yields.pop("signal")
        z = _significance(signal, sum(yields.values()))
        yield {"n": n, "ms": 1e3 * float(np.median(times)), "z": [z], "least_background": min(sum(yields.values()))}


def run_diphoton(epochs: int, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Trains on the diphoton toy with the settings of the example."""
    import tensorflow as tf
    from gatohep import models, utils

    full = utils.generate_resonance_toy_data(
        n_signal1=100_000, n_signal2=100_000, n_bkg=1_000_000, mass_sigma=1.5, background_slopes=SLOPES
    )
    data = utils.slice_to_2d_features(full)
    tensors = utils.convert_mass_data_to_tensors(data)
    for name in ("signal1", "signal2"):
        inside = (tensors[name]["mass"] >= WINDOW[0]) & (tensors[name]["mass"] <= WINDOW[1])
        tensors[name]["weight"] = tensors[name]["weight"] * tf.cast(inside, tf.float32)
    for n in numbers:
        tf.random.set_seed(0)
        model = models.gato_gmm_model(n_cats=n, dim=2, temperature=1.0, mean_norm="softmax", cov_offdiag_damping=0.1)
        optimizer = tf.keras.optimizers.RMSprop(0.05)
        rates = utils.LearningRateScheduler(optimizer, lr_initial=0.05, lr_final=0.001, total_epochs=epochs)
        cooling = utils.TemperatureScheduler(model, t_initial=1.0, t_final=0.1, total_epochs=epochs, mode="cosine")
        factors = tf.Variable(np.ones(n, dtype=np.float32))
        z = partial(
            model.get_differentiable_significance,
            tensors,
            signal_labels=["signal1", "signal2"],
            background_reweight=factors,
        )
        step = _step(model, optimizer, lambda z=z: _minus_geometric_mean(z()))
        shares = partial(
            utils.compute_mass_reweight_factors,
            model,
            data,
            signal_labels=["signal1", "signal2"],
            mass_sig_low=WINDOW[0],
            mass_sig_high=WINDOW[1],
        )
        times = []
        for epoch in range(epochs):
            if epoch % 50 == 0:
                factors.assign(shares())
            times.append(_timed(step))
            rates.update(epoch)
            cooling.update(epoch)
        yield {"n": n, "ms": 1e3 * float(np.median(times)), **_reached(model, tensors, data, shares())}


def _sample(name: str, n: int, seed: int) -> np.ndarray:
    from gatohep import data_generation

    points: np.ndarray = data_generation.MEANS[name] + np.random.default_rng(seed).standard_normal((n, 3)) @ TURNED
    return points


def _minus_geometric_mean(z: dict[str, Any]) -> Any:
    return -((z["signal1"] * z["signal2"]) ** 0.5)


def _reached(model: Any, tensors: dict[str, Any], data: dict[str, Any], factors: np.ndarray) -> dict[str, Any]:
    """Computes what hard categories reach: with counts in the window, with what is expected there, as estimated."""
    n = len(factors)
    categories = model.get_bin_indices({name: {"NN_output": table["NN_output"]} for name, table in tensors.items()})
    counted, whole = {}, {}
    for name, table in data.items():
        category = categories[name].numpy()
        inside = (table.mass >= WINDOW[0]) & (table.mass <= WINDOW[1])
        counted[name] = np.bincount(category[inside], table.weight[inside], minlength=n)
        whole[name] = np.bincount(category, table.weight, minlength=n)
    signals = ("signal1", "signal2")
    shares = dict(zip([name for name in data if name not in signals], map(_share, SLOPES), strict=True))
    likely = {name: shares.get(name, math.erf(math.sqrt(0.5))) * sums for name, sums in whole.items()}
    estimated = {name: counted[name] if name in signals else factors * whole[name] for name in data}
    return {
        "z": _both(counted, _significance),
        "formula": _both(counted, _published_significance),
        "expected": _both(likely, _significance),
        "estimated": _both(estimated, _significance),
        "least_background": min(sum(sums for name, sums in counted.items() if name not in signals)),
    }


def _both(yields: dict[str, np.ndarray], formula: Callable[[np.ndarray, np.ndarray], float]) -> list[float]:
    everything = sum(yields.values())
    return [formula(yields[name], everything - yields[name]) for name in ("signal1", "signal2")]


def _share(slope: float) -> float:
    """Computes the share of an exponential from 100 to 180 GeV that lies in the window."""
    low, high, start, end = (math.exp(-slope * mass) for mass in (*WINDOW, 100.0, 180.0))
    return (low - high) / (start - end)


def _step(model: Any, optimizer: Any, loss_of: Callable[[], Any]) -> Callable[[], float]:
    import tensorflow as tf

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of()
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return lambda: float(step())


def _timed(step: Callable[[], float]) -> float:
    # Processor time: a busy machine slows the clock on the wall, and not both programs alike.
    begin = time.process_time()
    step()
    return time.process_time() - begin


def _significance(signal: np.ndarray, background: np.ndarray) -> float:
    b = np.maximum(background, 1e-9)
    return float(np.sqrt((2 * ((signal + b) * np.log1p(signal / b) - signal)).sum()))


def _published_significance(signal: np.ndarray, background: np.ndarray) -> float:
    """Computes it as gato-hep does, S / sqrt(B) where S < 0.1 B."""
    b = np.maximum(background, 1e-9)
    exact = 2 * ((signal + b) * np.log1p(signal / b) - signal)
    return float(np.sqrt(np.where(signal < 0.1 * b, signal**2 / b, exact).sum()))


if __name__ == "__main__":
    main()
