"""The transformer parts that encoder, regressor and decoder are made of: attention, block, position table, initialisation.

Parameter names are BEiT's (and timm's), so that encoder weights travel between the libraries without renaming.
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from ...checkpoints.tables import bias_table_length
from ...utils.errors import ConfigError
from .attention import attend
from .relative_position import relative_position_bias
from .windows import window_attention

LAYER_NORM_EPS = 1e-6
INIT_STD = 0.02


def layer_scale(dim: int, init_value: float) -> nn.Parameter | None:
    """The per-channel factor of a residual branch, shape (dim,), or None where `init_value` is 0.

    A parameter as in the authors' checkpoints and timm's BEiT; timm's LayerScale is a module, whose names would be others.
    """
    return nn.Parameter(torch.full((dim,), float(init_value))) if init_value else None


def add_residual(x: Tensor, branch: Tensor, gamma: Tensor | None, drop_path: nn.Module) -> Tensor:
    """`x + drop_path(gamma * branch)`, all of shape (B, n, C)."""
    return x + drop_path(branch if gamma is None else gamma * branch)


def inner_width(dim: int, num_heads: int) -> int:
    """Width of all heads together, `dim // num_heads` each: at most `dim`.

    Raises:
        ConfigError: There is no head, or not a channel for each.
    """
    if not 0 < num_heads <= dim:
        raise ConfigError(f'num_heads={num_heads} must lie between 1 and the width of the tokens, {dim}')
    return dim // num_heads * num_heads


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection, biased queries and values, and unbiased keys (as in BEiT).

    Args:
        dim: Width C of the tokens.
        num_heads: Number of heads; each is `dim // num_heads` wide, so the inner width is smaller than `dim` where it does not divide.
        bias_grid: (h, w) of the patch grid for which to learn a relative position bias, or None for no bias.
        window: Height and width, in patches, of the windows to attend in, see :func:`.windows.window_attention`; `bias_grid` is that of a
            window then. None: attention between all tokens.
    """

    def __init__(self, dim: int, num_heads: int, bias_grid: tuple[int, int] | None = None, window: int | None = None):
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        inner = inner_width(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner))
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.register_buffer('k_bias', torch.zeros(inner), persistent=False)
        self.proj = nn.Linear(inner, dim)
        self.bias_grid = bias_grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(bias_table_length(bias_grid), num_heads)) if bias_grid else None

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, n, C) -> (B, n, C). `grid` is the patch grid behind the tokens; relative position bias and windows need it."""
        batch, length, _ = x.shape
        qkv_bias = torch.cat((self.q_bias, self.k_bias.to(self.q_bias.dtype), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, qkv_bias).reshape(batch, length, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = None
        if self.bias_grid:
            between = (self.window, self.window) if self.window else grid or self.bias_grid
            bias = relative_position_bias(self.relative_position_bias_table, self.bias_grid, between).to(q.dtype)
        if self.window:
            x = window_attention(q, k, v, grid, self.window, bias)
        else:
            x = attend(q, k, v, bias)
        return self.proj(x.transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    """A pre-norm transformer block: `x + g1 * attention(LN(x))`, then `x + g2 * mlp(LN(x))`.

    Args:
        dim: Width C of the tokens.
        num_heads: Number of attention heads.
        hidden: Width of the MLP's hidden layer; 4 C where not given.
        drop_path: Probability in [0, 1) of dropping a residual branch, per sample.
        init_value: Initial value of the layer scale g1, g2; 0 leaves it out.
        bias_grid, window: See :class:`SelfAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int | None = None,
        drop_path: float = 0.0,
        init_value: float = 0.0,
        bias_grid: tuple[int, int] | None = None,
        window: int | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(dim, num_heads, bias_grid, window)
        self.gamma_1 = layer_scale(dim, init_value)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden or 4 * dim)
        self.gamma_2 = layer_scale(dim, init_value)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        x = add_residual(x, self.attn(self.norm1(x), grid), self.gamma_1, self.drop_path)
        return add_residual(x, self.mlp(self.norm2(x)), self.gamma_2, self.drop_path)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates that rise linearly from 0 in the first block to `rate` in the last (stochastic depth)."""
    return torch.linspace(0, rate, depth, device='cpu').tolist()


def pick(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, C), or one table (1, N, C) for all, at positions `index` (B, n) -> (B, n, C)."""
    tokens = tokens.expand(index.shape[0], -1, -1)
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


@torch.no_grad()
def trunc_normal_(tensor: Tensor) -> Tensor:
    """N(0, 0.02) cut at +-0.02, in place: the authors' truncation, which leaves a standard deviation of about 0.0108."""
    return nn.init.trunc_normal_(tensor, std=INIT_STD, a=-INIT_STD, b=INIT_STD)


@torch.no_grad()
def init_stack(stack: nn.Module, style: str = 'xavier'):
    """Initialise encoder, regressor or decoder in place, as the authors' code does.

    Args:
        stack: The module; its transformer blocks are those in `stack.blocks`.
        style: 'xavier' (the paper's base model): every linear layer xavier-uniform, the fused qkv as one matrix. 'beit' (for large
            models): cut normal, and the layers that end block l's residual branches divided by sqrt(2 l).
    """
    if style not in ('xavier', 'beit'):
        raise ConfigError(f"weight_init must be 'xavier' or 'beit', got {style!r}")
    for name, parameter in stack.named_parameters():
        if name.endswith(('cls_token', 'mask_token')):
            trunc_normal_(parameter)
        elif name.endswith(('q_bias', 'v_bias', 'relative_position_bias_table')):
            parameter.zero_()
    for name, module in stack.named_modules():
        if isinstance(module, nn.LayerNorm) or (style == 'beit' and name == 'project.0'):
            module.reset_parameters()  # torch's own start
        elif isinstance(module, nn.Conv2d):
            trunc_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight) if style == 'xavier' else trunc_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if style == 'beit':
        for depth, block in enumerate(getattr(stack, 'blocks', ()), 1):
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.div_((2 * depth) ** 0.5)
