"""Our encoder is PyTorch's: the same answers and the same gradients, however many tokens come."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from specfit.net.transformer import AT_A_TIME, encode


@pytest.fixture(params=[(1, 64), (4, 32)], ids=["a head", "four heads"])
def encoder(request):
    torch.manual_seed(3)
    heads, features = request.param
    layer = nn.TransformerEncoderLayer(
        features, heads, 3 * features, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(features), enable_nested_tensor=False).double()
    for parameter in encoder.parameters():  # biases and norms too, and no two layers alike
        nn.init.normal_(parameter, std=0.3)
    return encoder


@pytest.mark.parametrize("shape", [(1, 50), (7, 9), (2 * AT_A_TIME // 250 + 1, 250), (2, AT_A_TIME + 1)])
def test_it_answers_what_pytorchs_does(encoder, shape, rng):
    tokens = torch.randn(*shape, encoder.norm.normalized_shape[0], dtype=torch.float64, generator=rng)
    for mode in (encoder.train(), encoder.eval()):
        with torch.no_grad():
            assert_close(encode(encoder, tokens), mode(tokens), rtol=1e-9, atol=1e-9)


def test_its_gradients_are_pytorchs(encoder, rng):
    tokens = torch.randn(3, 20, encoder.norm.normalized_shape[0], dtype=torch.float64, generator=rng)
    direction = torch.randn(tokens.shape, dtype=torch.float64, generator=rng)
    gradients = []
    for answer in (encode, lambda net, x: net(x)):
        one = tokens.clone().requires_grad_()
        encoder.train().zero_grad()
        (answer(encoder, one) * direction).sum().backward()
        gradients.append([one.grad, *(parameter.grad.clone() for parameter in encoder.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
