"""The textbook's Transformers in PyTorch, which ours are compared with."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-norm block over x[B, N, D]; `turn` is what rotary positions do to queries and keys [B, H, N, C]."""

    def __init__(self, width: int, heads: int, turn: Callable[[Tensor], Tensor] = lambda x: x):
        super().__init__()
        self.heads, self.turn = heads, turn
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(self.turn(q), self.turn(k), v).transpose(1, 2).flatten(2))

    def mlp(self, x):
        return self.fc2(F.gelu(self.fc1(x)))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ModulatedBlock(Block):
    """adaLN-Zero of a condition [B, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.modulation = zero(nn.Linear(width, 6 * width))

    def forward(self, x, condition):
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(self, condition)
        x = x + gate1 * self.attend(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """DiT (arXiv 2212.09748): patches [B, N, R] of a square grid, times [B] in [0, 1] and labels [B] -> [B, N, R].

    As ours, and other than the paper's, norms have weights of their own and GELU is exact. The last label stands for none.
    """

    def __init__(self, width: int, depth: int, heads: int, side: int, values: int, classes: int):
        super().__init__()
        self.embed = nn.Linear(values, width)
        row, column = (waves(x.flatten(), width // 2) for x in torch.meshgrid(*[torch.arange(side)] * 2, indexing='ij'))
        self.register_buffer('places', torch.cat([column, row], -1), persistent=False)
        self.level1, self.level2 = nn.Linear(256, width), nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(ModulatedBlock(width, heads) for _ in range(depth))
        self.norm, self.modulation = nn.LayerNorm(width, eps=1e-6), zero(nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, values)

    def forward(self, x, t, label):
        condition = self.level2(F.silu(self.level1(waves(1000 * t, 256)))) + self.label(label)
        x = self.embed(x) + self.places
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = modulation(self, condition)
        return self.head(self.norm(x) * (1 + scale) + shift)


def modulation(module: nn.Module, condition: Tensor) -> tuple[Tensor, ...]:
    """Vectors [B, 1, D] of a condition [B, D], by the linear layer `module.modulation`."""
    return module.modulation(F.silu(condition))[:, None].split(condition.shape[-1], -1)


def zero(layer: nn.Linear) -> nn.Linear:
    """The layer with all its weights 0."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def waves(x: Tensor, width: int) -> Tensor:
    """Sines of numbers [...] at width / 2 frequencies from 1 down to 1 / 10000, then cosines: [..., width]."""
    angle = x[..., None] * 10000.0 ** -(torch.arange(width // 2) / (width // 2))
    return torch.cat([angle.sin(), angle.cos()], -1)


def patches(images: Tensor, patch: int) -> Tensor:
    """[B, H, W, C] -> [B, N, patch * patch * C], row-major."""
    x = images.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).transpose(2, 3)
    return x.flatten(3).flatten(1, 2)


def noise_loss(model: nn.Module, clean: Tensor, noise: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """Mean squared error of the noise, under the cosine schedule."""
    angle = (torch.pi / 2 - 1e-3) * t[:, None, None]
    return F.mse_loss(model(angle.cos() * clean + angle.sin() * noise, t, label), noise)
