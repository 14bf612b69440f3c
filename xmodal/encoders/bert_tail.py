"""A text encoder cut before its last blocks: what runs before the cut, and what can be trained behind it."""

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

_TOLERANCE = 1e-4  # of hidden states, which are of order 1
_PROBED = 3  # tokens of the longer of two sequences by which a cut is tried


class BertTail(nn.Module):
    """The last blocks of a text encoder and the pooling: hidden states (B, L, D) at the cut → sets.

    Args:
        blocks: none, one or more; each takes hidden states and an attention mask.
        config: the network's, which tells the kind of attention.
        pooling: as the encoder's.
        first_alone: where the pooling is ``cls``, the last block works out its first token only; the others' attention
            and feed-forward part would go nowhere. For blocks of BERT's make.
    """

    def __init__(self, blocks: Iterable[nn.Module], config: Any, pooling: str, first_alone: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.config = config
        self.pooling = pooling
        self.first_alone = first_alone and pooling == "cls" and len(self.blocks) > 0
        self.output_dim: int = config.hidden_size

    def forward(
        self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B M D"], Bool[Tensor, "B M"]]:
        attention = self._attention(x, mask)
        for block in self.blocks[:-1] if self.first_alone else self.blocks:
            found = block(x, attention)
            x = found[0] if isinstance(found, tuple) else found
        if not self.first_alone:
            return pool(x, mask, self.pooling)
        return _first_of_block(self.blocks[-1], x, mask, attention).unsqueeze(1), mask.any(dim=1, keepdim=True)

    def _attention(self, x: Tensor, mask: Tensor) -> Any:
        """None where nothing is padded, which is faster."""
        if not len(self.blocks):
            return None
        return create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=mask)


class BertFront(nn.Module):
    """A text encoder up to its cut: token ids and mask (B, L) → sets.

    Args:
        network: what runs before the cut; None: the sets are the token ids (B, L, 1).
        end: what makes sets of its hidden states; None: the sets are those.
    """

    def __init__(self, network: Any, end: nn.Module | None) -> None:
        super().__init__()
        self.network: Any = network
        self.end = end

    def forward(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B M D"], Bool[Tensor, "B M"]]:
        mask = attention_mask.bool()
        if self.network is None:
            return input_ids.float().unsqueeze(2), mask
        hidden = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return (hidden, mask) if self.end is None else self.end(hidden, mask)


class WholeBert(nn.Module):
    """The whole text encoder and the pooling: token ids (B, L, 1) as floating point → sets.

    Args:
        network: without layers that play no part in its hidden states.
        padding: token id of padding.
        pooling: as the encoder's.
    """

    def __init__(self, network: Any, padding: int, pooling: str) -> None:
        super().__init__()
        self.network: Any = network
        self.padding = padding
        self.pooling = pooling
        self.output_dim: int = network.config.hidden_size

    def forward(
        self, x: Float[Tensor, "B L 1"], mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B M D"], Bool[Tensor, "B M"]]:
        ids = x.squeeze(2).round().long().masked_fill(~mask, self.padding)
        hidden = self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return pool(hidden, mask, self.pooling)


def pool(
    hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"], pooling: str
) -> tuple[Float[Tensor, "B M D"], Bool[Tensor, "B M"]]:
    """Sets of the last hidden states: ``tokens`` all, ``mean`` their mean, ``cls`` the first token's."""
    if pooling == "tokens":
        return hidden, mask
    kept = mask.any(dim=1, keepdim=True)
    if pooling == "mean":
        total = hidden.masked_fill(~mask.unsqueeze(-1), 0.0).sum(dim=1, keepdim=True)
        return total / mask.sum(dim=1).clamp(min=1)[:, None, None], kept
    return _first(hidden, mask).unsqueeze(1), kept


def without_last(network: Any, count: int) -> Any:
    """The network without its last ``count`` blocks and its pooler; it shares all layers that it has."""
    front = _shallow(network)
    if getattr(front, "pooler", None) is not None:
        front.pooler = None
    if count:
        front.encoder = _shallow(network.encoder)
        front.encoder.layer = network.encoder.layer[:-count]
    return front


def blocks_of(network: Any) -> nn.ModuleList | None:
    """The blocks of a network built like BERT's; None where they are not in its usual place."""
    layers = getattr(getattr(network, "encoder", None), "layer", None)
    return layers if isinstance(layers, nn.ModuleList) else None


def is_faithful(front: Any, tail: nn.Module, network: Any, ids: Sequence[int], pooling: str) -> bool:
    """Whether front and tail together give what the network gives, tried on two sequences of which one is padded."""
    device = network.device
    tokens = torch.tensor([list(ids[:_PROBED]), [*ids[: _PROBED - 1], ids[0]]], device=device)
    mask = torch.tensor([[1] * _PROBED, [1] * (_PROBED - 1) + [0]], device=device)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    with torch.inference_mode():
        expected, kept = pool(network(**inputs).last_hidden_state, mask.bool(), pooling)
        try:
            found, _ = tail(_at_cut(front, inputs), mask.bool())
        except (TypeError, AttributeError, ValueError, RuntimeError, IndexError):
            return False  # blocks that want more than hidden states and a mask
    close = torch.isclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
    return bool(close[kept].all())


def _at_cut(front: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Hidden states at the cut; where there is no front, the token ids as a whole network takes them."""
    if front is None:
        return inputs["input_ids"].float().unsqueeze(2)
    return front(**inputs).last_hidden_state


def _first_of_block(block: Any, x: Tensor, mask: Tensor, attention: Tensor | None) -> Float[Tensor, "B D"]:
    """What a block makes of the first token: the same layers as in its ``forward``, over one token instead of L."""
    attended = _first(block.attention.self(x, attention_mask=attention)[0], mask)
    attended = block.attention.output(attended, _first(x, mask))
    return block.output(block.intermediate(attended), attended)


def _first(hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    place = mask.int().argmax(dim=1)  # not 0: some tokenizers pad on the left
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), place]


def _shallow(module: Any) -> Any:
    """A module of its own with the same layers."""
    shared = copy(module)
    shared._modules = dict(module._modules)
    return shared
