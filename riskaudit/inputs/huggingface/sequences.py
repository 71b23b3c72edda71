"""A language model as a function of its embedded sequence: the continuous input that is audited.

The input is e [B, T, E], the rows of the word embedding at the tokens of a text, before positions are added. **Padding
is a row of zeros**: positions that are exactly zero belong to no token, no other position attends to them, and they
come after all others (`real_positions` is the one place that decides it; texts with a token whose embedding is exactly
zero are refused when they are read). Attention is transformers' own eager code, in eval mode; masks are made here, so
that no path depends on values of the input.

Of a model that classifies by its last token, the last position that is real is taken.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

Attention: TypeAlias = Literal["causal", "bidirectional"]
# The number of no token, in [N, T] beyond a text's end.
PADDING = -1


def real_positions(embedded: Tensor) -> Tensor:
    """Which positions of embedded sequences [B, T, E] hold a token, [B, T] bool."""
    return (embedded != 0).any(-1)


def _mask(real: Tensor, attention: Attention, dtype: torch.dtype) -> Tensor:
    """What is added to attention's scores, [B, 1, T, T]: 0 where a position may look, else the dtype's least number."""
    length = real.shape[1]
    seen = real[:, None, None, :].expand(-1, 1, length, length)
    if attention == "causal":
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill(~seen, torch.finfo(dtype).min)


@final
class TextModel(nn.Module):
    """A model of transformers as a function of embedded sequences, or of the tokens themselves.

    Its parameters keep their own names. Of embedded sequences e [B, T, E] (floating-point) it computes what is
    differentiated; of numbers of tokens [B, T] (integers, `PADDING` beyond each text's end) the same from rows that it
    looks up, so that the word embedding has its gradient too: what a client computes.

    Args:
        network: the model.
        attention: which positions look at which.
        by_last_token: whether the outputs of the last token are the model's.
    """

    def __init__(self, network: nn.Module, attention: Attention, by_last_token: bool) -> None:
        super().__init__()
        # The same dictionaries: names as in the folder, with no layer of this module's in between.
        self._modules, self._parameters, self._buffers = network._modules, network._parameters, network._buffers
        object.__setattr__(self, "network", network)
        self.attention: Attention = attention
        self.by_last_token = by_last_token
        self.training = network.training

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, classes], or [B, vocabulary, T]."""
        if inputs.is_floating_point():
            return self._outputs(real_positions(inputs), inputs.dtype, inputs_embeds=inputs)
        weights: Any = self.word_embedding.weight
        return self._outputs(inputs != PADDING, weights.dtype, input_ids=inputs.clamp_min(0))

    def _outputs(self, real: Tensor, dtype: torch.dtype, **inputs: Tensor) -> Tensor:
        network: Any = self.__dict__["network"]
        mask = _mask(real, self.attention, dtype)
        if not self.by_last_token:
            outputs: Tensor = network(attention_mask=mask, **inputs).logits
            # Classes come second, as losses take them.
            return outputs.transpose(1, 2) if outputs.ndim == 3 else outputs
        hidden = network.base_model(attention_mask=mask, use_cache=False, **inputs)[0]
        places = torch.arange(real.shape[1], device=real.device)
        is_last = places == real.sum(1, keepdim=True) - 1
        scores: Tensor = network.score((hidden * is_last[..., None].to(hidden.dtype)).sum(1))
        return scores

    @property
    def word_embedding(self) -> nn.Module:
        """The layer that looks tokens up."""
        network: Any = self.__dict__["network"]
        layer: nn.Module = network.get_input_embeddings()
        return layer

    @property
    def is_tied(self) -> bool:
        """Whether the output layer's matrix is the word embedding."""
        network: Any = self.__dict__["network"]
        head = network.get_output_embeddings()
        return head is not None and head.weight is self.word_embedding.weight
