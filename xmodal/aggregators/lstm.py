"""Last state of an LSTM that reads the set in its order."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xmodal.aggregators.reading import last_states
from xmodal.aggregators.sequences import between
from xmodal.errors import ConfigError


class LSTMAggregator(nn.Module):
    """Last hidden state of an LSTM over ``<bos>, x[b,0], …, x[b,n-1], <eos>`` at the true length n + 2.

    ``<bos>`` and ``<eos>`` are learned vectors of width D, so that an empty set has a state too. The
    bidirectional LSTM joins the last states of both readings, forward first: ``output_dim = 2 · hidden_size``.
    Source of the network: Hochreiter and Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997.

    Args:
        feature_dim: D, width of the vectors.
        hidden_size: width of the state of one direction.
        num_layers: stacked LSTM layers.
        bidirectional: read the set backwards as well.

    Raises:
        ConfigError: a size below 1.
    """

    def __init__(
        self, feature_dim: int, hidden_size: int = 512, num_layers: int = 1, bidirectional: bool = False
    ) -> None:
        super().__init__()
        sizes = {"hidden_size": hidden_size, "num_layers": num_layers}
        faults = [f"{name} must be at least 1, found {size}" for name, size in sizes.items() if size < 1]
        if faults:
            raise ConfigError(faults)
        self.output_dim = hidden_size * (2 if bidirectional else 1)
        self.bos = nn.Parameter(torch.randn(feature_dim) * 0.1)
        self.eos = nn.Parameter(torch.randn(feature_dim) * 0.1)
        self.lstm = nn.LSTM(feature_dim, hidden_size, num_layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B H"]:
        sequence, lengths = between(self.bos, self.eos, x, mask)
        last = last_states(self.lstm, sequence, lengths)
        return torch.cat((last[-2], last[-1]), dim=1) if self.lstm.bidirectional else last[-1]
