"""A transformer of few tokens, without what PyTorch's does around its arithmetic.

`torch.nn.TransformerEncoder` asks dozens of questions before every layer. With fifty tokens that takes longer than the
layer; with very many, its fused kernel is slower than the plain operations on what fits a cache.
"""

from __future__ import annotations

__all__ = ["encode"]

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

# Tokens that are read together.
AT_A_TIME = 3200


def encode(encoder: nn.TransformerEncoder, tokens: Tensor) -> Tensor:
    """Computes what `encoder(tokens)` is.

    Args:
        encoder: Of layers that normalise first, with gelu and without dropout, and a last normalisation.
        tokens: Shape `(m, n, features)`; each of the m sets for itself.
    """
    together = max(1, AT_A_TIME // tokens.shape[1])
    return torch.cat([_encoded(encoder, some) for some in torch.split(tokens, together)])


def _encoded(encoder: nn.TransformerEncoder, x: Tensor) -> Tensor:
    m, n, features = x.shape
    for layer in encoder.layers:
        attention: nn.MultiheadAttention = layer.self_attn
        heads = m, n, 3, attention.num_heads, attention.head_dim
        normal = layer_norm(x, (features,), layer.norm1.weight, layer.norm1.bias, layer.norm1.eps)
        projected = linear(normal, attention.in_proj_weight, attention.in_proj_bias).view(heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)  # each (m, heads, n, head_dim)
        found = scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(m, n, features)
        x = x + linear(found, attention.out_proj.weight, attention.out_proj.bias)
        normal = layer_norm(x, (features,), layer.norm2.weight, layer.norm2.bias, layer.norm2.eps)
        hidden = gelu(linear(normal, layer.linear1.weight, layer.linear1.bias))
        x = x + linear(hidden, layer.linear2.weight, layer.linear2.bias)
    last = cast(nn.LayerNorm, encoder.norm)
    return layer_norm(x, (features,), last.weight, last.bias, last.eps)
