"""Simulated densities for unbinned channels: three processes in one observable, two systematics that move them."""

import numpy as np

YIELDS = {"signal": 60.0, "peaking": 90.0, "smooth": 400.0}
CENTRES = {"signal": 0.5, "peaking": 0.35, "smooth": None}


def density(sample, x, scale=0.0, width=0.0):
    """Density on (0, 1); `scale` moves the peaks, `width` widens them and tilts the smooth process."""
    if sample == "smooth":
        slope = 1.5 + 0.05 * width
        return slope * np.exp(-slope * x) / (1 - np.exp(-slope))
    centre, sigma = CENTRES[sample] + 0.004 * scale, 0.06 * (1 + 0.02 * width)
    from scipy.special import ndtr

    inside = ndtr((1 - centre) / sigma) - ndtr(-centre / sigma)
    return np.exp(-0.5 * ((x - centre) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi) * inside)


def draw(sample, size, random):
    """Draws events by rejection."""
    x = np.linspace(0, 1, 2001)
    top = density(sample, x).max() * 1.01
    found = []
    while sum(map(len, found)) < size:
        trial = random.random(4 * size)
        found.append(trial[random.random(len(trial)) * top < density(sample, trial)])
    return np.concatenate(found)[:size]


def reference(x):
    """The density under all ratios: the mean of the three."""
    return sum(density(s, x) for s in YIELDS) / 3


def write_workspace(folder, *, per_sample=4000, seed=5, dtype=np.float64, systematics=("scale", "width"), n_bins=None):
    """Writes the files of a simulated channel and returns the document; `n_bins` makes a histogram of it instead."""
    random = np.random.default_rng(seed)
    parts = {s: draw(s, per_sample, random) for s in YIELDS}
    x = np.concatenate(list(parts.values()))
    weights = np.concatenate([np.full(per_sample, YIELDS[s] / per_sample) for s in YIELDS])
    samples = []
    for sample, total in YIELDS.items():
        modifiers = [{"name": f"mu_{sample}" if sample != "smooth" else "mu_b", "type": "normfactor", "data": None}]
        for name in systematics:
            moved = {
                side: density(sample, x, **{name: a}) / density(sample, x) for side, a in (("hi", 1.0), ("lo", -1.0))
            }
            if n_bins is None:
                data = {"hi_data": [1.02 if name == "scale" else 1.0], "lo_data": [0.985 if name == "scale" else 1.0]}
                for side, ratio in moved.items():
                    file = f"{sample}_{name}_{side}.npy"
                    np.save(folder / file, ratio.astype(dtype))
                    data[f"{side}_ratio"] = file
            else:
                fine = np.linspace(0, 1, 200 * n_bins + 1)
                centres = (fine[1:] + fine[:-1]) / 2
                total_of = [density(sample, centres, **{name: a}).reshape(n_bins, -1).sum(1) for a in (0.0, 1.0, -1.0)]
                norm = (1.02, 0.985) if name == "scale" else (1.0, 1.0)
                data = {"hi_data": (norm[0] * total_of[1] / total_of[0]).tolist()}
                data["lo_data"] = (norm[1] * total_of[2] / total_of[0]).tolist()
            modifiers.append({"name": name, "type": "normplusshape", "data": data})
        if n_bins is None:
            np.save(folder / f"{sample}.npy", (density(sample, x) / reference(x)).astype(dtype))
            samples.append({"name": sample, "data": [total], "ratios": f"{sample}.npy", "modifiers": modifiers})
        else:
            fine = np.linspace(0, 1, 200 * n_bins + 1)
            shape = density(sample, (fine[1:] + fine[:-1]) / 2).reshape(n_bins, -1).mean(1) / n_bins
            samples.append({"name": sample, "data": (total * shape).tolist(), "modifiers": modifiers})
    parameters = [{"name": n, "inits": [1.0], "bounds": [[-5.0, 20.0]]} for n in ("mu_signal", "mu_peaking", "mu_b")]
    parameters += [{"name": name, "inits": [0.0]} for name in systematics]
    channel = {"name": "SR", "type": "binned" if n_bins else "unbinned", "samples": samples}
    if n_bins is None:
        np.save(folder / "weights.npy", weights.astype(dtype))
        channel["weights"] = "weights.npy"
    return {
        "channels": [channel],
        "measurements": [{"name": "m", "config": {"poi": "mu_signal", "parameters": parameters}}],
        "version": "1.0.0",
    }
