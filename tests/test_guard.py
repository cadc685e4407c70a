"""The guard lets good fits pass and names each kind of bad one."""

import pytest
import torch

from specfit.guard import judge
from specfit.net import Prediction

TRUTH = 1000 * torch.exp(-torch.arange(30, dtype=torch.float64) / 10)


def verdict(*, background=TRUTH, counts=TRUTH, novelty=0.0, masked=(), left_out=()):
    mask, out = torch.zeros(1, 30, dtype=torch.bool), torch.zeros(1, 30, dtype=torch.bool)
    mask[0, list(masked)], out[0, list(left_out)] = True, True
    prediction = Prediction(
        background[None], torch.zeros(1, 30, 1).double(), torch.tensor([4.0]), torch.tensor([novelty]).double()
    )
    return judge(counts[None], prediction, mask=mask | out, left_out=out)


def test_a_good_fit_passes_in_silence():
    assert verdict(counts=torch.poisson(TRUTH, generator=torch.Generator().manual_seed(1))) == (True, [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"background": TRUTH * torch.nan}, "no finite positive background"),
        ({"background": TRUTH * 0}, "no finite positive background"),
        ({"counts": TRUTH + 300 * (torch.arange(30) % 2)}, "disagree with the data beyond chance"),
        ({"masked": range(10, 21)}, "more than a third of the bins"),
        ({"novelty": 1.5}, "unlike anything that the net was trained on"),
    ],
)
def test_each_bad_fit_is_named_with_what_to_do(changes, reason):
    converged, reasons = verdict(**changes)
    assert not converged.any()
    assert any(reason in text and text.startswith("1 of 1 fits") for text in reasons)
    assert any(hint in reasons[0] for hint in ("mask", "train"))


def test_what_the_caller_left_out_is_not_held_against_the_fit():
    assert verdict(left_out=range(10, 24)).converged.all()
    assert verdict(counts=TRUTH + 1e5 * (torch.arange(30) == 4), left_out=[4]).converged.all()
