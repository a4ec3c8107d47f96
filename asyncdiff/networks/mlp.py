"""Feed-forward network of a transformer block."""

from jaxtyping import Float
from torch import Tensor, nn

Tokens = Float[Tensor, "b n dim"]


class MLP(nn.Module):
    """Two-layer network of every token, with the tanh approximation of GELU as in DiT.

    Args:
        dim: number of features of a token.
        hidden: number of hidden features.
        dropout: dropout probability after each layer.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tokens) -> Tokens:
        """Return the new features of every token."""
        return self.dropout(self.fc2(self.dropout(self.act(self.fc1(x)))))
