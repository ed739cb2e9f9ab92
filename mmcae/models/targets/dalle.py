"""The tokenizer that the paper uses: the discrete VAE of DALL-E (arXiv 2102.12092, section 2.1)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoints import StateDict, load_strictly
from ...checkpoints.modules import read_module
from ...registry import MODELS
from ...utils.errors import CheckpointError, ConfigError
from ...utils.precision import DTYPES, no_autocast
from .base import Tokenizer, read_tokenizer

VOCAB_SIZE = 8192
# DALL-E keeps pixels off the ends of their range: 0.8 x + 0.1 for x in [0, 1].
PIXEL_MARGIN = 0.1
PIXEL_SPAN = 1 - 2 * PIXEL_MARGIN
ENCODER_KERNELS = (3, 3, 3, 1)
DECODER_KERNELS = (1, 3, 3, 3)


class EncoderBlock(nn.Module):
    """A residual bottleneck of four convolutions: (B, inputs, h, w) -> (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, kernels: Sequence[int], gain: float):
        super().__init__()
        hidden = outputs // 4
        self.gain = gain
        self.id_path = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        widths = (inputs, hidden, hidden, hidden, outputs)
        convolutions = (nn.Conv2d(a, b, k, padding=k // 2) for a, b, k in zip(widths[:-1], widths[1:], kernels, strict=True))
        self.res_path = nn.ModuleDict({f'conv_{i}': convolution for i, convolution in enumerate(convolutions, 1)})

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for convolution in self.res_path.values():
            y = convolution(F.relu(y))
        return torch.add(self.id_path(x), y, alpha=self.gain)


def make_groups(inputs: int, widths: Sequence[int], blocks_per_group: int, kernels: Sequence[int], resample: nn.Module) -> nn.ModuleDict:
    """Groups of blocks, one for each width, with a change of resolution between them."""
    gain = 1 / (len(widths) * blocks_per_group) ** 2
    groups = nn.ModuleDict()
    for number, width in enumerate(widths, 1):
        group = nn.Sequential()
        for block in range(1, blocks_per_group + 1):
            group.add_module(f'block_{block}', EncoderBlock(inputs, width, kernels, gain))
            inputs = width
        if number < len(widths):
            group.add_module('resample', resample)
        groups[f'group_{number}'] = group
    return groups


class Encoder(nn.Module):
    """Images (B, 3, h, w) -> features (B, 8 * hidden, h / 8, w / 8); `output` makes logits of them."""

    def __init__(self, hidden: int = 256, blocks_per_group: int = 2, vocab_size: int = VOCAB_SIZE):
        super().__init__()
        widths = [hidden * 2**i for i in range(4)]
        self.blocks = nn.ModuleDict(
            dict(
                input=nn.Conv2d(3, hidden, 7, padding=3),
                **make_groups(hidden, widths, blocks_per_group, ENCODER_KERNELS, nn.MaxPool2d(2)),
            )
        )
        self.output = nn.Conv2d(widths[-1], vocab_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.blocks.values():
            x = part(x)
        return F.relu(x)


class Decoder(nn.Module):
    """Ids (B, rows, columns) -> parameters (B, 6, 8 rows, 8 columns) of the pixels' distribution: three means, three spreads."""

    def __init__(self, initial: int = 128, hidden: int = 256, blocks_per_group: int = 2, vocab_size: int = VOCAB_SIZE):
        super().__init__()
        widths = [hidden * 2**i for i in (3, 2, 1, 0)]
        # A convolution of one pixel over one-hot vectors: a table to look the ids up in.
        self.input = nn.Conv2d(vocab_size, initial, 1)
        upsample = nn.Upsample(scale_factor=2, mode='nearest')
        self.blocks = make_groups(initial, widths, blocks_per_group, DECODER_KERNELS, upsample)
        self.output = nn.Conv2d(hidden, 6, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.input.weight.flatten(1).T) + self.input.bias
        x = x.permute(0, 3, 1, 2)
        for group in self.blocks.values():
            x = group(x)
        return self.output(F.relu(x))


@MODELS.register_module()
class DALLETokenizer(Tokenizer):
    """DALL-E's encoder as the target of CAE: one of 8192 ids for every 8x8 pixels.

    Its view has `(pixels + 31.875) / 318.75`, the authors' 0.8 x + 0.1 of pixels x in [0, 1]; for 14x14 patches it is 112x112.

    Args:
        checkpoint: Local file with the encoder's weights: what `mmcae convert` makes of OpenAI's `encoder.pkl`, that
            file itself (read without running code from it), or mmpretrain's `dalle_encoder.pth`. Its tensors tell the sizes.
            None leaves the encoder random, in full size: for measuring speed.
        decoder_checkpoint: The same for `decoder.pkl`. Only :meth:`decode` needs it.
        dtype: What the convolutions compute in: 'float16', 'bfloat16' or 'float32'. By default as the authors do, float16 on a GPU and
            float32 elsewhere; bfloat16 is faster on CPUs that have it, and changes a few ids. Logits are always computed in float32.

    Raises:
        CheckpointError: No such file, or other weights in it.
    """

    downsample = (8, 8)
    in_channels = 3
    mean = -255 * PIXEL_MARGIN / PIXEL_SPAN
    std = 255 / PIXEL_SPAN

    def __init__(self, checkpoint: str | Path | None, decoder_checkpoint: str | Path | None = None, dtype: str | None = None):
        super().__init__()
        self.dtype = self.known_dtype(dtype)
        self.encoder = Encoder() if checkpoint is None else load_dalle(checkpoint)
        self.decoder = None if decoder_checkpoint is None else load_decoder(decoder_checkpoint)
        self.vocab_size = self.encoder.output.out_channels
        self.to(memory_format=torch.channels_last)
        self.freeze()

    def _apply(self, fn, recurse=True):
        """Behind `.to()`, `.cuda()`, `.half()` and the like: cast the weights once for the device, not in every call."""
        super()._apply(fn, recurse)
        self.encoder.blocks.to(self.compute_dtype(self.encoder.output.weight.device))
        self.encoder.output.float()
        if self.decoder is not None:
            self.decoder.float()
        return self

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        """What the convolutions compute in on a device: float16 on a GPU, as the authors do, unless `dtype` says otherwise."""
        return DTYPES[self.dtype or ('float16' if device.type == 'cuda' else 'float32')]

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, h, w) -> features (B, N, 2048)."""
        features = self.encoder(images.to(self.compute_dtype(images.device), memory_format=torch.channels_last))
        return features.flatten(2).transpose(1, 2)

    def assign(self, vectors: Tensor) -> Tensor:
        """Features (B, n, 2048) -> ids (B, n)."""
        return self.logits(vectors).argmax(dim=-1)

    def logits(self, vectors: Tensor) -> Tensor:
        """Features (B, n, 2048) -> float32 scores of all ids (B, n, V)."""
        output = self.encoder.output
        return F.linear(vectors.float(), output.weight.flatten(1), output.bias)

    @torch.no_grad()
    def decode(self, targets: Tensor, reference: Tensor | None = None) -> Tensor:
        """Ids (B, rows, columns) -> images (B, 3, h, w), normalised as the view is; needs `decoder_checkpoint`, and no reference."""
        if self.decoder is None:
            raise ConfigError(
                'DALLETokenizer needs decoder_checkpoint=PATH to draw images; '
                'mmcae convert decoder.pkl data/tokenizers/dalle_decoder.pth prepares it'
            )
        with no_autocast(targets.device):
            return self.decoder(targets)[:, :3].sigmoid()


def load_dalle(path: str | Path) -> Encoder:
    """DALL-E's encoder from a file of any of the kinds that :class:`DALLETokenizer` reads, in the sizes of its tensors."""
    state = read_dalle(path, 'encoder')
    vocab_size = len(state['blocks.output.conv.weight'])
    encoder = Encoder(len(state['blocks.input.weight']), count_blocks(state), vocab_size)
    load_strictly(encoder, {key.replace('blocks.output.conv.', 'output.'): value for key, value in state.items()}, str(path))
    return encoder


def load_decoder(path: str | Path) -> Decoder:
    """DALL-E's decoder, likewise."""
    state = read_dalle(path, 'decoder')
    initial, vocab_size = state['blocks.input.weight'].shape[:2]
    decoder = Decoder(initial, state['blocks.output.conv.weight'].shape[1], count_blocks(state), vocab_size)
    names = {'blocks.input.': 'input.', 'blocks.output.conv.': 'output.'}
    load_strictly(decoder, {re.sub('|'.join(names), lambda m: names[m[0]], key): value for key, value in state.items()}, str(path))
    return decoder


def count_blocks(state: Mapping) -> int:
    """Blocks per group."""
    return sum(key.startswith('blocks.group_1.') and key.endswith('res_path.conv_1.weight') for key in state)


def read_dalle(path: str | Path, part: str) -> StateDict:
    """The state dict of DALL-E's `encoder` or `decoder`, with torch's usual names of weights and without a prefix before `blocks.`.

    Raises:
        CheckpointError: No such file, with the command that prepares it; or weights of something else.
    """
    converter = f'mmcae convert {part}.pkl data/tokenizers/dalle_{part}.pth'
    remedy = f"Get OpenAI's {part}.pkl (https://cdn.openai.com/dall-e/{part}.pkl) and run: {converter}"
    if Path(path).suffix == '.pkl' and Path(path).is_file():
        state = read_module(path)
    else:
        state = read_tokenizer(path, remedy)
    # Checkpoints of mmpretrain's CAE hold the encoder among others, as target_generator.
    prefixes = [key.removesuffix('blocks.input.w') for key in state if key.endswith('blocks.input.w')]
    if len(prefixes) != 1:
        raise CheckpointError(f"{path} holds no weights of DALL-E's {part}: its keys begin with {', '.join(list(state)[:3])}. {remedy}")
    state = {key.removeprefix(prefixes[0]): value for key, value in state.items() if key.startswith(prefixes[0])}
    state = {re.sub(r'\.w$', '.weight', re.sub(r'\.b$', '.bias', key)): value for key, value in state.items()}
    kernel = state['blocks.input.weight'].shape[-1]
    if (kernel == 7) != (part == 'encoder'):
        raise CheckpointError(f"{path} holds the other half of DALL-E's tokenizer, not its {part}. {remedy}")
    return state
