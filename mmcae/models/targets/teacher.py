"""A frozen encoder as target: what it sees of the whole image at the place of each patch, and in the cls token."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MODELS
from ...utils.errors import ConfigError, DataError
from ...utils.precision import no_autocast
from .base import Target
from .frozen_encoders import build_teacher

LOSSES = ('cosine', 'mse')


@MODELS.register_module()
class Teacher(Target):
    """Features of a frozen encoder, to be regressed by cosine (CAE v2, arXiv 2211.09799) or by squared error (data2vec, arXiv 2202.03555).

    The teacher sees the whole image. Its view is made of the encoder's pixels: normalised anew, and resized where its patches have
    another size, so that its grid is the encoder's grid.

    Args:
        model: The teacher, see :func:`.frozen_encoders.build_teacher`: `dict(type='clip')` for CLIP, or
            `dict(type='timm', model_name=...)` with arguments of timm, or a backbone such as `dict(type='mmcae.CAEViT', arch='base')`.
            Leave it out for a checkpoint that describes its encoder.
        checkpoint: Local file of the weights; nothing is downloaded and nothing in it is run. None leaves the teacher random: for
            measuring speed.
        projected: Take what the teacher's head makes of each token: CLIP's joint space. False for the tokens themselves.
        layers: Average the features of so many last blocks, each after the final norm.
        loss: 'cosine', the mean of 1 - cosine; or 'mse', of features that are normalised to mean 0 and variance 1.
        dtype: What the teacher computes in: 'float16', 'bfloat16' or 'float32'. Defaults to what the device is fast in: bfloat16 or float16
            on a GPU, float32 elsewhere.
        mean, std: Of the pixels in [0, 255] as the teacher was trained. Default to those that are known of the model.

    Attributes:
        has_cls: The teacher has a cls token.

    Raises:
        CheckpointError: No such file, or not the weights of this model.
        ConfigError: The model is unknown, or has no features of patches.
        DataError: At the first batch, where a teacher by cosine gives zero vectors.
    """

    reads_encoder_view = True

    def __init__(
        self,
        model: dict | None = None,
        checkpoint: str | None = None,
        projected: bool = False,
        layers: int = 1,
        loss: str = 'cosine',
        dtype: str | None = None,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
    ):
        super().__init__()
        if loss not in LOSSES:
            raise ConfigError(f'Teacher: loss={loss!r} is none of {LOSSES}')
        if type(layers) is not int or layers < 1:
            raise ConfigError(f'Teacher: layers={layers!r} must be a whole number, at least 1: how many of the last blocks are averaged')
        self.model = build_teacher(model, checkpoint, projected, layers)
        self.loss_kind, self.dtype = loss, self.known_dtype(dtype)
        self.mean, self.std = (given if given is not None else own for given, own in ((mean, self.model.mean), (std, self.model.std)))
        self.downsample, self.in_channels = self.model.downsample, self.model.in_channels
        for name, values in (('mean', self.mean), ('std', self.std)):
            numbers = np.array(values).reshape(-1)
            if numbers.dtype.kind not in 'if' or len(numbers) not in (1, self.in_channels) or (name == 'std' and (numbers <= 0).any()):
                raise ConfigError(
                    f'Teacher: {name}={values!r} must be one number or {self.in_channels} (std above 0), of pixels in [0, 255]'
                )
            self.register_buffer(f'view_{name}', torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.has_cls = self.model.has_cls
        self.freeze()
        self.num_outputs = self.check_features()
        self.seen = False

    def check_features(self) -> int:
        """The width of the features, of which there is one for each patch.

        Raises:
            ConfigError: The model gives another number of them.
        """
        rows, columns = (max(pixels // under, 1) for pixels, under in zip(self.model.img_size, self.downsample, strict=True))
        size = (rows * self.downsample[0], columns * self.downsample[1])  # the views are whole patches too
        _, length, width = self.model(torch.zeros(1, self.in_channels, *size)).shape
        if length != rows * columns + self.has_cls:
            raise ConfigError(
                f'{self.model.name} gives {length - self.has_cls} features for the {rows}x{columns} patches of its images of '
                f'{size[0]}x{size[1]} pixels: choose a model with one for each'
            )
        return width

    def init_weights(self):
        """Nothing: the weights are those of the checkpoint, which the model's own initialisation would overwrite."""
        self._is_init = True

    def _apply(self, fn, recurse=True):
        """Behind `.to()`, `.cuda()` and the like: cast the weights once for the device, not in every call."""
        super()._apply(fn, recurse)
        self.model.to(self.compute_dtype(next(self.model.parameters()).device))
        return self

    # ------------------------------------------------------------ the view

    def view_of(self, images: Tensor, grid: tuple[int, int], preprocessor: nn.Module) -> Tensor:
        """The teacher's view of images in the encoder's view.

        Args:
            images: (B, C, H, W), normalised by the preprocessor.
            grid: Of the encoder's patches, (rows, columns).
            preprocessor: Has the `mean` and `std` by which the images are normalised.

        Returns:
            (B, C, rows * downsample, columns * downsample), normalised as the teacher was trained.
        """
        scale, shift = preprocessor.std / self.view_std, (preprocessor.mean - self.view_mean) / self.view_std
        view = (images * scale + shift).to(images.dtype)
        size = [cells * pixels for cells, pixels in zip(grid, self.downsample, strict=True)]
        if list(view.shape[-2:]) == size:
            return view
        return F.interpolate(view, size=size, mode='bicubic', antialias=True)

    # ------------------------------------------------------------ the features

    def tokens(self, view: Tensor) -> Tensor:
        """Features of the cls token, if there is one, and of all patches: view (B, C, h, w) -> (B, [1 +] N, num_outputs), float32."""
        with torch.no_grad(), no_autocast(view.device):
            features = self.model(view.to(next(self.model.parameters()).dtype))
            features = features if features.dtype is torch.float64 else features.float()
        if not self.seen and self.loss_kind == 'cosine':
            self.check_lengths(features)
        return features if self.loss_kind == 'cosine' else F.layer_norm(features, features.shape[-1:])

    def embed(self, images: Tensor) -> Tensor:
        """View (B, C, h, w) -> features of the patches (B, N, num_outputs)."""
        return self.tokens(images)[:, int(self.has_cls) :]

    def assign(self, vectors: Tensor) -> Tensor:
        """The features themselves."""
        return vectors

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Predictions and features (B, n, num_outputs) -> mean over all tokens, in float32 under mixed precision."""
        if self.loss_kind == 'mse':
            return super().loss(prediction, target)
        return 1 - cosine(prediction, target).mean()

    def check_lengths(self, features: Tensor):
        """Refuse features that have no direction, once: a GPU has to be waited for.

        Raises:
            DataError: Some vectors are zero.
        """
        zero = int((features.norm(dim=-1) == 0).sum())
        if zero:
            raise DataError(
                f'{self.model.name} gives {zero} zero vectors among {features.shape[0] * features.shape[1]} tokens, which have no cosine: '
                "are its weights loaded? loss='mse' takes any features"
            )
        self.seen = True


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Cosine of vectors (..., K), in float32 under mixed precision."""
    prediction = F.normalize(prediction.to(torch.promote_types(prediction.dtype, torch.float32)), dim=-1, eps=0)
    return (prediction * F.normalize(target.to(prediction.dtype), dim=-1, eps=0)).sum(-1)
