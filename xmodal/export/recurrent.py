"""GRU and LSTM as the operators that ONNX has for them, which take the lengths of padded sequences."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}  # ONNX: update, reset, new; input, output, forget, cell
_OPSET = 14  # since which the operators are as they are used here


class OnnxRecurrent(nn.Module):
    """The operators of a recurrent network: padded sequences and their lengths → states of every step, last states.

    Takes the place of a `torch.nn.GRU` or `LSTM` under `xmodal.aggregators.reading`. In torch its outputs are zeros.

    Args:
        network: batch first, without projected states (``proj_size``).
    """

    def __init__(self, network: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        assert network.batch_first
        assert network.proj_size == 0
        self.kind = "GRU" if isinstance(network, nn.GRU) else "LSTM"
        self.input_size = network.input_size
        self.hidden_size = network.hidden_size
        self.num_layers = network.num_layers
        self.bidirectional = network.bidirectional
        ends = ("", "_reverse") if network.bidirectional else ("",)
        for layer in range(network.num_layers):
            for name in ("w_ih", "w_hh", "b_ih", "b_hh") if network.bias else ("w_ih", "w_hh"):
                long = f"{'weight' if name[0] == 'w' else 'bias'}{name[1:]}_l{layer}"
                found = [self._in_order(getattr(network, f"{long}{end}").detach()) for end in ends]
                self.register_parameter(f"{name}{layer}", nn.Parameter(torch.stack(found), requires_grad=False))
        self.has_bias = network.bias

    def forward(
        self, sequence: Float[Tensor, "B M D"], lengths: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B M S"], Float[Tensor, "K B H"]]:
        steps, last = sequence.transpose(0, 1), []
        for layer in range(self.num_layers):
            steps, final = self._layer(layer, steps, lengths.to(torch.int32))
            last.append(final)
        return steps.transpose(0, 1), torch.cat(last)

    def _layer(self, layer: int, steps: Tensor, lengths: Tensor) -> Sequence[Tensor]:
        """States (M, B, directions · H), those of both directions side by side, and last states (directions, B, H)."""
        weights, recurrence = (getattr(self, f"{name}{layer}") for name in ("w_ih", "w_hh"))
        bias = None
        if self.has_bias:
            bias = torch.cat([getattr(self, f"{name}{layer}") for name in ("b_ih", "b_hh")], dim=1)
        count, (length, batch) = len(weights), steps.shape[:2]
        states, last = torch.onnx.ops.symbolic_multi_out(
            self.kind,
            (steps, weights, recurrence, bias, lengths),
            self._settings(),
            dtypes=(steps.dtype, steps.dtype),
            shapes=((length, count, batch, self.hidden_size), (count, batch, self.hidden_size)),
            version=_OPSET,
        )
        return states.transpose(1, 2).flatten(2), last

    def _settings(self) -> dict[str, Any]:
        settings = {
            "hidden_size": self.hidden_size,
            "direction": "bidirectional" if self.bidirectional else "forward",
        }
        # torch's GRU multiplies by the reset gate behind the linear layer
        return settings | ({"linear_before_reset": 1} if self.kind == "GRU" else {})

    def _in_order(self, parameter: Tensor) -> Tensor:
        """Rows of the gates in ONNX's order."""
        gates = parameter.chunk(len(_GATES[self.kind]))
        return torch.cat([gates[place] for place in _GATES[self.kind]])
