"""A small decoder-only transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


class DecoderBlock(nn.Module):
    """Causal self-attention and a two-layer perceptron, each behind a layer norm and beside an identity.

    Args:
        width: Features per position, a multiple of ``heads``.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gelu = nn.GELU(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to (B, T, width)."""
        x = x + self.projection(self._attend(self.qkv(self.norm1(x))))
        added: Tensor = self.contract(self.gelu(self.expand(self.norm2(x))))
        return x + added

    def _attend(self, qkv: Tensor) -> Tensor:
        batch, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        q, k, v = qkv.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if q.device.type == "cpu":  # its kernel for bfloat16 takes eight times as long backwards
            with torch.autocast("cpu", enabled=False):
                mixed = scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
        else:
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).reshape(batch, length, width)


class GPT(nn.Module):
    """A decoder-only transformer: pre-norm blocks, learned positions, input and output embeddings tied.

    Weights are drawn as in GPT-2: N(0, 0.02), those that end a residual branch divided by sqrt(2 * depth).

    Args:
        vocabulary: Number of symbols.
        context: Largest number of positions.
        width: Features per position, a multiple of ``heads``.
        depth: Number of blocks.
        heads: Attention heads per block.

    Raises:
        ValueError: If an argument is not an integer of at least 1, or ``width`` is not a multiple of ``heads``.

    Example:
        >>> model = GPT(vocabulary=66, context=16, width=32, depth=2, heads=4)
        >>> tuple(model(torch.zeros(3, 16, dtype=torch.long)).shape)
        (3, 16, 66)
        >>> sum(p.numel() for p in model.parameters())
        28096

    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners.
    """

    def __init__(self, vocabulary: int, context: int, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "context": context, "width": width, "depth": depth, "heads": heads}
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                hint = "; a data set of text gives it: dataset=text" if name in ("vocabulary", "context") else ""
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}{hint}")
        if width % heads:
            raise ValueError(f"width must be a multiple of heads ({heads}), got {width}")
        self.context = context
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(DecoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                ends_branch = name.endswith(("projection.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if ends_branch else 0.02)
            elif "norm" not in name:
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map symbols (B, T) to logits (B, T, vocabulary) of the symbol that follows each.

        Raises:
            ValueError: If T is larger than ``context``.
        """
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"expected at most {self.context} positions, got {length}")
        x = self.tokens(tokens) + self.positions.weight[:length]
        return linear(self.norm(self.blocks(x)), self.tokens.weight)
