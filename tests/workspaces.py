"""Workspaces in the style of published ones, from one bin to twenty channels; between them they hold every modifier."""

import numpy as np


def measurement(poi="mu", parameters=()):
    return {"name": "measurement", "config": {"poi": poi, "parameters": list(parameters)}}


def document(channels, observations, **options):
    return {
        "channels": channels,
        "observations": [{"name": c["name"], "data": list(n)} for c, n in zip(channels, observations, strict=True)],
        "measurements": [measurement(**options)],
        "version": "1.0.0",
    }


def normfactor(name="mu"):
    return {"name": name, "type": "normfactor", "data": None}


def normsys(name, hi, lo):
    return {"name": name, "type": "normsys", "data": {"hi": hi, "lo": lo}}


def histosys(name, hi, lo):
    return {"name": name, "type": "histosys", "data": {"hi_data": list(hi), "lo_data": list(lo)}}


def sample(name, data, *modifiers):
    return {"name": name, "data": [float(x) for x in data], "modifiers": list(modifiers)}


def hepdata_like():
    """Two bins, background with uncorrelated uncertainties: the first example of pyhf."""
    uncertainty = {"name": "uncorr_bkguncrt", "type": "shapesys", "data": [3.0, 7.0]}
    channel = {
        "name": "singlechannel",
        "samples": [sample("signal", [12, 11], normfactor()), sample("background", [50, 52], uncertainty)],
    }
    return document([channel], [[51, 48]])


def correlated_shape():
    """One channel with a shape systematic, the second example of pyhf."""
    channel = {
        "name": "singlechannel",
        "samples": [
            sample("signal", [12, 11], normfactor()),
            sample("background", [50, 52], histosys("correlated_bkg", [45, 57], [55, 47])),
        ],
    }
    return document([channel], [[51, 60]])


def one_bin_counting():
    """A single counting experiment with two-sided normalisation uncertainties."""
    channel = {
        "name": "SR",
        "samples": [
            sample("signal", [5.6], normfactor(), normsys("theory", 1.12, 0.91)),
            sample("fakes", [3.2], normsys("fakes", 1.5, 0.6), normsys("scale", 0.97, 1.04)),
            sample("prompt", [7.9], normsys("scale", 1.06, 0.95)),
        ],
    }
    return document([channel], [[13]])


def control_regions():
    """Signal region, two control regions with free normalisations, luminosity, statistical uncertainties."""
    lumi = {"name": "lumi", "type": "lumi", "data": None}
    channels = [
        {
            "name": "SR",
            "samples": [
                sample("signal", [4.0, 9.0, 6.0], normfactor(), lumi, normsys("jes", 1.05, 0.96)),
                sample(
                    "top",
                    [30.0, 22.0, 8.0],
                    normfactor("mu_top"),
                    histosys("jes", [33.0, 23.0, 8.6], [27.5, 21.1, 7.3]),
                    {"name": "staterror_SR", "type": "staterror", "data": [1.5, 1.2, 0.7]},
                ),
                sample(
                    "wjets",
                    [12.0, 10.0, 5.0],
                    normfactor("mu_w"),
                    normsys("jes", 1.08, 0.9),
                    {"name": "staterror_SR", "type": "staterror", "data": [1.0, 0.9, 0.6]},
                ),
                sample("other", [3.0, 2.0, 1.0], lumi),
            ],
        },
        {
            "name": "CR_top",
            "samples": [
                sample("top", [410.0], normfactor("mu_top"), normsys("jes", 1.02, 0.985)),
                sample("wjets", [60.0], normfactor("mu_w"), normsys("jes", 1.03, 0.96)),
                sample("other", [12.0], lumi),
            ],
        },
        {
            "name": "CR_w",
            "samples": [
                sample("top", [45.0, 30.0], normfactor("mu_top")),
                sample("wjets", [300.0, 180.0], normfactor("mu_w"), histosys("jes", [310.0, 188.0], [293.0, 171.0])),
                sample("other", [20.0, 15.0], lumi),
            ],
        },
    ]
    parameters = [
        {"name": "lumi", "inits": [1.0], "bounds": [[0.5, 1.5]], "auxdata": [1.0], "sigmas": [0.017]},
        {"name": "mu", "inits": [1.0], "bounds": [[-5.0, 20.0]]},
        {"name": "mu_top", "inits": [1.0], "bounds": [[0.1, 5.0]]},
    ]
    return document(channels, [[52, 47, 18], [497], [371, 230]], parameters=parameters)


def data_driven():
    """A background whose bins float, tied to a control region by shapefactor; empty bins and masked uncertainties."""
    shape = {"name": "bkg_shape", "type": "shapefactor", "data": None}
    channels = [
        {
            "name": "SR",
            "samples": [
                sample("signal", [3.0, 8.0, 2.0, 0.5], normfactor()),
                sample("qcd", [10.0, 20.0, 15.0, 5.0], shape, normsys("transfer", 1.1, 0.92)),
                sample(
                    "small",
                    [1.0, 0.0, 2.0, 0.3],
                    {"name": "small_stat", "type": "shapesys", "data": [0.4, 0.0, 0.7, 0.2]},
                ),
            ],
        },
        {"name": "CR", "samples": [sample("qcd", [100.0, 200.0, 150.0, 50.0], shape)]},
    ]
    return document(channels, [[16, 31, 15, 0], [95, 211, 158, 41]])


def many_channels(n_channels=20, *, seed=7):
    """Twenty channels of one to six bins, four processes, shared and local systematics of all kinds."""
    random = np.random.default_rng(seed)
    channels, observations = [], []
    for c in range(n_channels):
        n_bins = int(random.integers(1, 7))
        samples = []
        for s, (name, scale) in enumerate((("signal", 6.0), ("ttbar", 60.0), ("zjets", 35.0), ("diboson", 8.0))):
            data = scale * random.uniform(0.5, 1.5, n_bins)
            modifiers = [normsys(f"norm_{name}", *(1 + random.uniform(0.02, 0.2) * np.array([1, -0.9])))]
            if name == "signal":
                modifiers.append(normfactor())
            if name == "ttbar":
                modifiers.append(normfactor("mu_ttbar"))
            up, down = data * random.uniform(1.0, 1.15, n_bins), data * random.uniform(0.87, 1.01, n_bins)
            modifiers.append(histosys(f"shape_{(c + s) % 5}", up, down))
            modifiers.append({"name": "lumi", "type": "lumi", "data": None})
            if name != "signal":
                error = (data * random.uniform(0.01, 0.06, n_bins)).tolist()
                modifiers.append({"name": f"staterror_{c}", "type": "staterror", "data": error})
            if name == "diboson" and c % 3 == 0:
                error = (data * random.uniform(0.1, 0.3, n_bins)).tolist()
                modifiers.append({"name": f"fluctuation_{c}", "type": "shapesys", "data": error})
            samples.append(sample(name, data, *modifiers))
        channels.append({"name": f"region_{c:02d}", "samples": samples})
        observations.append(random.poisson(sum(np.array(s["data"]) for s in samples)).tolist())
    lumi = {"name": "lumi", "inits": [1.0], "bounds": [[0.5, 1.5]], "auxdata": [1.0], "sigmas": [0.02]}
    return document(channels, observations, parameters=[lumi])


def two_channels(n_bins=50, n_nuisances=10, *, seed=3):
    """Two channels and ten nuisances on signal and two backgrounds: what the toys are timed on."""
    random = np.random.default_rng(seed)
    x = (np.arange(n_bins) + 0.5) / n_bins
    channels, observations = [], []
    for c in range(2):
        shapes = {
            "signal": 15 * np.exp(-0.5 * ((x - 0.5) / 0.08) ** 2),
            "smooth": 120 * np.exp(-2 * x) + 5,
            "flat": np.full(n_bins, 12.0),
        }
        samples = []
        for name, data in shapes.items():
            modifiers = [normfactor()] if name == "signal" else []
            for k in range(n_nuisances):
                if k % 2 == 0:
                    size = random.uniform(0.01, 0.06)
                    modifiers.append(normsys(f"norm_{k}", 1 + size, 1 - 0.9 * size))
                elif name != "signal":
                    tilt = random.uniform(0.02, 0.08) * (x - 0.5)
                    modifiers.append(histosys(f"shape_{k}", data * (1 + tilt), data * (1 - tilt)))
            samples.append(sample(name, data, *modifiers))
        channels.append({"name": f"channel_{c}", "samples": samples})
        observations.append(random.poisson(sum(np.array(s["data"]) for s in samples)).tolist())
    return document(channels, observations)


ALL = {
    "uncorrelated": hepdata_like,
    "correlated": correlated_shape,
    "counting": one_bin_counting,
    "control regions": control_regions,
    "data driven": data_driven,
    "twenty channels": many_channels,
    "two channels": two_channels,
}
