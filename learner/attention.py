"""Attention over a pack, as an implementation that transformers' models call by name.

The pack's blocks partition its tokens; each block attends to its ancestors' keys and its own in one
`scaled_dot_product_attention`, so that no time goes into pairs of tokens that never see each other. The same code runs on
CPUs and GPUs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from headrace.learner.packing import Pack
from headrace.verifiers.errors import WrongValue

IMPLEMENTATION = "headrace_packed"


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens head_dim"],
    key: Float[Tensor, "1 key_heads tokens head_dim"],
    value: Float[Tensor, "1 key_heads tokens value_dim"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    pack: Pack | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Float[Tensor, "1 tokens heads value_dim"], None]:
    """Attention of each token to those that it sees in `pack`. Dropout is not applied: the policy has none.

    Raises:
        WrongValue: the architecture keeps the pack from its attention, or wants what this does not compute.
    """
    kind = type(module).__name__
    if pack is None:
        raise WrongValue(
            "model.base", f"{kind} does not pass keyword arguments on to its attention: cannot be trained here"
        )
    if softcap is not None or s_aux is not None:
        raise WrongValue("model.base", f"{kind} uses soft-capped attention or attention sinks: cannot be trained here")
    repeats = query.shape[1] // key.shape[1]
    lengths = [block.length for block in pack.blocks]
    # split, not slices: its gradient is one concatenation instead of a padded sum for each block
    queries, keys, values = query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2)
    windows = _window_masks(pack, lengths, sliding_window)
    outputs = []
    for index, block in enumerate(pack.blocks):
        seen = (*block.ancestors, index)
        mask = block.mask if windows is None else windows[index]
        outputs.append(
            nn.functional.scaled_dot_product_attention(
                queries[index],
                _repeat_heads(torch.cat([keys[i] for i in seen], 2), repeats),
                _repeat_heads(torch.cat([values[i] for i in seen], 2), repeats),
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def _repeat_heads(states: Tensor, repeats: int) -> Tensor:
    return states if repeats == 1 else states.repeat_interleave(repeats, dim=1)


def _window_masks(pack: Pack, lengths: list[int], window: int | None) -> list[Tensor] | None:
    """The blocks' masks narrowed to a sliding window; None where the window is wider than the pack's longest path."""
    if window is None or int(pack.positions.max()) < window:
        return None
    positions = pack.positions.split(lengths)
    masks = []
    for index, block in enumerate(pack.blocks):
        own = positions[index]
        seen = torch.cat([positions[i] for i in (*block.ancestors, index)])
        causal = own.new_ones(len(own), len(own), dtype=torch.bool).tril() if block.mask is None else block.mask
        masks.append(causal & (own[:, None] - seen[None] < window))
    return masks


AttentionInterface.register(IMPLEMENTATION, packed_attention)
