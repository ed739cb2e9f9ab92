"""What all targets have in common: they turn an image into what is to be predicted of its patches, and never learn while they do."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel, BaseModule
from torch import Tensor, nn

from ...checkpoints import StateDict, load_state, load_strictly
from ...utils.errors import CheckpointError, ConfigError
from ...utils.precision import DTYPES, no_autocast
from ..encoders.layers import pick
from .cross_entropy import token_cross_entropy


class Target(BaseModule):
    """What a method predicts (arXiv 2202.03026, section 3, "target"): numbers to regress, or in :class:`Tokenizer` ids of tokens.

    A subclass says two things: :meth:`embed`, what it sees of every patch, and :meth:`assign`, what it makes of that. So targets are
    computed for the patches alone that are predicted.

    A target reads a view of its own, normalised as `(pixels - mean) / std` with pixels in [0, 255]; one patch covers `downsample` pixels
    of it. Targets are computed without gradient and outside autocast.

    Attributes:
        num_outputs: Numbers predicted for each patch; for tokens the size of the vocabulary.
        downsample: Pixels of the view under one patch, (rows, columns).
        in_channels: Channels of the view, or None where any number will do.
        mean, std: How the view is normalised: a number for all channels, or one for each.
        reads_encoder_view: The view is made of the encoder's view by :meth:`view_of`, so that images need no second view.
        dtype: What the target computes in, a name out of `DTYPES`; None for what suits the device.
    """

    num_outputs: int
    downsample: tuple[int, int]
    in_channels: int | None = None
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 255.0
    reads_encoder_view = False
    dtype: str | None = None
    frozen = False

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w), normalised -> what is known of each patch, (B, N, K) in raster order."""
        raise NotImplementedError

    def assign(self, vectors: Tensor) -> Tensor:
        """What :meth:`embed` gave for some patches, (B, n, K) -> their targets (B, n, num_outputs), or ids int64 (B, n)."""
        raise NotImplementedError

    def decode(self, targets: Tensor, reference: Tensor | None = None) -> Tensor:
        """Draw targets as an image, for people to look at.

        Args:
            targets: What :meth:`tokenize` gives, or predictions of it.
            reference: The view (B, C, h, w) that the targets describe. Targets that leave something out (such as the brightness of a
                patch) take it from there; others do not look at it.

        Returns:
            Images (B, C, h, w) in the value range of the view.
        """
        raise ConfigError(f'{type(self).__name__} cannot draw images from its targets')

    def tokenize(self, images: Tensor) -> Tensor:
        """Targets of all patches of images (B, C, h, w), normalised: (B, N, num_outputs), or ids int64 (B, rows, columns)."""
        self.token_grid(images.shape[-2:])
        with torch.no_grad(), no_autocast(images.device):
            return self.assign(self.embed(images))

    def targets(self, images: Tensor, index: Tensor) -> Tensor:
        """Targets of some patches.

        Args:
            images: (B, C, h, w), normalised.
            index: int64 (B, n), raster indices of the patches.

        Returns:
            (B, n, num_outputs), or ids int64 (B, n).
        """
        self.token_grid(images.shape[-2:])
        with torch.no_grad(), no_autocast(images.device):
            return self.assign(pick(self.embed(images), index))

    @staticmethod
    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of predictions and targets (B, n, num_outputs), in float32 under mixed precision."""
        prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        return F.mse_loss(prediction, target.to(prediction.dtype))

    @staticmethod
    def metrics(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What else to log of predictions and targets; no name has `loss` in it."""
        return {}

    @staticmethod
    def known_dtype(name: str | None) -> str | None:
        """Check the name of a precision.

        Raises:
            ConfigError: It is none of `DTYPES`.
        """
        if name not in (None, *DTYPES):
            raise ConfigError(f'dtype={name!r} of a target is none of {", ".join(map(repr, DTYPES))}, nor None')
        return name

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        """What the target computes in on a device: its `dtype`, or what a GPU is fast in, and float32 elsewhere."""
        if self.dtype is not None:
            return DTYPES[self.dtype]
        if device.type != 'cuda':
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16

    # ------------------------------------------------------------ checks

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The grid of patches (rows, columns) of a view of (h, w) pixels.

        Raises:
            ConfigError: The patches do not tile the view.
        """
        (height, width), (rows, columns) = size, self.downsample
        if height % rows or width % columns or not height * width:
            raise ConfigError(f'{type(self).__name__} needs views that are multiples of {rows}x{columns} pixels, got {height}x{width}')
        return height // rows, width // columns

    def check_view(self, size: tuple[int, int], patch_grid: tuple[int, int]):
        """Make sure that a view of (h, w) pixels has one cell for each patch of the encoder's grid (rows, columns).

        Raises:
            ConfigError: It has not. The message says which size the view needs.
        """
        if self.token_grid(size) != tuple(patch_grid):
            needed = tuple(patches * pixels for patches, pixels in zip(patch_grid, self.downsample, strict=True))
            raise ConfigError(
                f'A view of {tuple(size)} pixels has {self.token_grid(size)} patches of {type(self).__name__}, but the encoder has '
                f'{tuple(patch_grid)} patches: set the size of the second view to {needed}'
            )

    def view_of(self, images: Tensor, grid: tuple[int, int], preprocessor: nn.Module) -> Tensor:
        """The view of a target that reads the encoder's: images (B, C, H, W), the encoder's grid, and what normalised them."""
        raise NotImplementedError

    def check_channels(self, channels: int):
        """Make sure that a view has the channels that this target reads.

        Raises:
            ConfigError: It has not.
        """
        if self.in_channels not in (None, channels):
            raise ConfigError(
                f'{type(self).__name__} reads {self.in_channels} channels, but its view has {channels}: load images with '
                f'mmcae.LoadImage(channels={self.in_channels}), or choose targets of {channels} channels'
            )

    def check_preprocessor(self, preprocessor: nn.Module):
        """Make sure that a data preprocessor normalises the second view as this target was made to see it.

        Raises:
            ConfigError: It does not. Targets would be wrong without any other sign of it.
        """
        if self.reads_encoder_view:
            if getattr(preprocessor, 'mean', None) is None or getattr(preprocessor, 'std', None) is None:
                raise ConfigError(f'{type(self).__name__} normalises the images anew: data_preprocessor needs mean and std')
            return
        for name, wanted in (('second_mean', self.mean), ('second_std', self.std)):
            given = getattr(preprocessor, name, None)
            if given is None:
                continue
            values = torch.as_tensor(wanted, dtype=torch.float32, device=given.device).flatten()
            if given.numel() not in (1, values.numel()) and values.numel() > 1 or (given.flatten() - values).abs().max() > 0.01:
                wish = f'{wanted:g} everywhere' if values.numel() == 1 else list(wanted)
                shown = ', '.join(f'{value:g}' for value in given.flatten().tolist())
                raise ConfigError(f'data_preprocessor.{name}=[{shown}], but {type(self).__name__} was made for {wish}')

    def freeze(self):
        """Stop learning for good: no gradients, and eval mode whatever :meth:`train` is told."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        """Training mode, unless frozen."""
        return super().train(mode and not self.frozen)


class Tokenizer(Target):
    """A target of discrete tokens: :meth:`assign` gives ids, which are predicted by cross-entropy.

    Attributes:
        vocab_size: Number of ids.
    """

    vocab_size: int

    @property
    def num_outputs(self) -> int:
        """One score for each id."""
        return self.vocab_size

    def tokenize(self, images: Tensor) -> Tensor:
        """Ids int64 (B, rows, columns) of images (B, C, h, w), normalised."""
        return super().tokenize(images).unflatten(1, self.token_grid(images.shape[-2:]))

    @staticmethod
    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of scores (B, n, V) and ids (B, n), in float32 under mixed precision."""
        return token_cross_entropy(prediction.flatten(0, 1), target.flatten())

    @staticmethod
    def metrics(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """`mlm_acc`, the share in [0, 1] of patches whose highest score is that of their id."""
        return dict(mlm_acc=(prediction.detach().argmax(-1) == target).float().mean())


class TrainableTokenizer(Tokenizer, BaseModel):
    """A tokenizer that is a model of its own until it is trained: `mmcae train tokenizer/...`, then `checkpoint=` it.

    With a checkpoint it is frozen. Sizes that a config does not give are those of the checkpoint.

    Args:
        sizes: Arguments that tensors have in their shapes; None for those the config leaves open.
        defaults: What the open ones are where there is no checkpoint.
        checkpoint: Path of a trained tokenizer, or None to train it.
        data_preprocessor: Normalises the images it is trained on. Left out, it is as targets are computed: `(pixels - mean) / std`.

    Raises:
        CheckpointError: No such file, another kind of tokenizer in it, or other sizes than the config gives.
    """

    def __init__(self, sizes: dict, defaults: dict, checkpoint: str | Path | None, data_preprocessor: dict | None):
        preprocessor = data_preprocessor or dict(type='mmengine.ImgDataPreprocessor', mean=[self.mean], std=[self.std])
        super().__init__(data_preprocessor=preprocessor)
        state = None
        if checkpoint is not None:
            remedy = 'Train one first with mmcae train and a config such as tokenizer/dvae_folder.'
            state = read_tokenizer(checkpoint, remedy)
            defaults = self.sizes_in_checkpoint(state, checkpoint)
            for name, value in sizes.items():
                if value is not None and value != defaults[name]:
                    raise CheckpointError(f'{checkpoint} has {name}={defaults[name]}, but the config says {value}: leave it out')
        self.build(**{name: defaults[name] if value is None else value for name, value in sizes.items()})
        if state is not None:
            load_strictly(self, state, str(checkpoint))
            self.freeze()

    def build(self, **sizes):
        """Make the parts, given all sizes."""
        raise NotImplementedError

    @staticmethod
    def sizes_in(state: StateDict) -> dict:
        """The sizes behind a state dict; a KeyError or IndexError where it is of another kind."""
        raise NotImplementedError

    def training_loss(self, images: Tensor) -> dict[str, Tensor]:
        """Loss terms (names with `loss`) and metrics for images (B, C, h, w), normalised."""
        raise NotImplementedError

    def check_sample(self, inputs: Tensor, data_sample=None):
        """Make sure that one image (C, h, w) out of the data pipeline fits; see :class:`mmcae.engine.checks.sample.SampleCheck`.

        Raises:
            ConfigError: Its channels or size do not fit.
        """
        self.check_channels(len(inputs))
        self.token_grid(inputs.shape[-2:])

    def sizes_in_checkpoint(self, state: StateDict, checkpoint: str | Path) -> dict:
        try:
            return self.sizes_in(state)
        except (KeyError, IndexError) as error:
            keys = ', '.join(list(state)[:3])
            raise CheckpointError(f'{checkpoint} holds no {type(self).__name__}: its keys begin with {keys}') from error

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'):
        """mmengine's entry: mode 'loss' gives :meth:`training_loss`, mode 'tensor' gives :meth:`tokenize`."""
        if mode == 'loss':
            return self.training_loss(inputs)
        if mode == 'tensor':
            return self.tokenize(inputs)
        raise ValueError(f"{type(self).__name__} has the modes 'loss' and 'tensor', not {mode!r}")


def read_tokenizer(path: str | Path, remedy: str) -> StateDict:
    """The state dict in a tokenizer's file.

    Raises:
        CheckpointError: There is none, with `remedy` in the message; or it holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'There is no tokenizer {path} (looked for {path.absolute()}). {remedy}')
    return load_state(path)
