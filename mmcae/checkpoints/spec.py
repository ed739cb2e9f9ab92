"""EncoderSpec: what an encoder is, which images it expects, and where it comes from. It travels with every file of weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..utils.errors import CheckpointError

META = 'encoder'  # its place in the metadata of a file: meta['encoder'] of a .pth, the JSON of this name in .safetensors
VERSION = 1
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)
IMAGENET_CROP = 224 / 256
SMALL = 64  # pixels; data sets of smaller images, such as digits, have nothing to cut off
INTERPOLATIONS = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming')  # PIL's
LARGEST = 2**20  # no size is beyond it; what a file states beyond it is not believed


@dataclass(frozen=True)
class ViewSpec:
    """How an image is prepared for an encoder: resized, cut, normalised as `(pixels - mean) / std` with pixels in [0, 255], in RGB.

    Args:
        mean, std: For each channel, or one number for all.
        size: (h, w) in pixels.
        interpolation: Of the resizing, antialiased.
        crop_pct: The short side of the image is resized to `size / crop_pct`, and the centre is cut out. Defaults to 224/256, and to 1 for
            sizes below 64.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size: tuple[int, int] = (224, 224)
    interpolation: str = 'bicubic'
    crop_pct: float | None = None

    def __post_init__(self):
        numbers(self, 'mean', 'std')
        sizes(self, 'size')
        if self.crop_pct is None:
            object.__setattr__(self, 'crop_pct', default_crop(self.size))
        if len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)) or not self.mean or min(self.std) <= 0:
            raise CheckpointError(f'A view with mean={self.mean} and std={self.std}: both need one value for each channel, std above 0')
        if self.interpolation not in INTERPOLATIONS or type(self.crop_pct) not in (int, float) or not 0 < self.crop_pct <= 1:
            raise CheckpointError(
                f'A view with interpolation={self.interpolation!r} and crop_pct={self.crop_pct!r}: the first is one of '
                f'{", ".join(INTERPOLATIONS)}, the second lies in (0, 1]'
            )


@dataclass(frozen=True)
class Origin:
    """Where weights come from; '' and 0 for what is not known.

    Args:
        method: How they were trained, such as 'CAE'.
        target: What was predicted, such as 'DALLETokenizer'.
        epochs: Passes over the data.
        library: Whose layout they were read from: 'mmcae', 'official', 'mmpretrain', 'timm'.
    """

    method: str = ''
    target: str = ''
    epochs: int = 0
    library: str = 'mmcae'

    def __post_init__(self):
        for name in ('method', 'target', 'library'):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > 1000:
                raise CheckpointError(f'An origin with {name}={value!r:.80}: it must be a short text')
        if type(self.epochs) is not int or self.epochs < 0:
            raise CheckpointError(f'An origin with epochs={self.epochs!r:.80}: it must be a whole number')


@dataclass(frozen=True)
class EncoderSpec:
    """Description of an encoder.

    Args:
        embed_dims: Width C of the tokens.
        num_layers: Number of blocks.
        num_heads: Attention heads; None where nobody knows, since tensors do not tell.
        feedforward_channels: Width of the MLPs' hidden layer.
        img_size, patch_size: (h, w) in pixels.
        in_channels: Of the images.
        layer_scale: Blocks scale their branches (gamma_1, gamma_2).
        use_rel_pos_bias: Blocks learn a relative position bias.
        window_size, global_blocks: Windows of attention, see :class:`mmcae.models.CAEViT`.
        num_prefix_tokens: Tokens in front of the patches: cls, and registers.
        final_norm: The output of the last block is normalised.
        type: The class that is built of it.
        arguments: Further arguments of that class.
        view: How images are prepared; None where it is not known.
        origin: Where the weights come from.
    """

    embed_dims: int
    num_layers: int
    num_heads: int | None
    feedforward_channels: int
    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_channels: int = 3
    layer_scale: bool = True
    use_rel_pos_bias: bool = False
    window_size: int | None = None
    global_blocks: tuple[int, ...] = ()
    num_prefix_tokens: int = 1
    final_norm: bool = True
    type: str = 'CAEViT'
    arguments: Mapping[str, Any] = field(default_factory=dict)
    view: ViewSpec | None = None
    origin: Origin = Origin()

    def __post_init__(self):
        sizes(self, 'img_size', 'patch_size')
        for name in ('embed_dims', 'num_layers', 'feedforward_channels', 'in_channels', 'num_prefix_tokens', 'num_heads', 'window_size'):
            value, optional = getattr(self, name), name in ('num_heads', 'window_size')
            least = 0 if name == 'num_prefix_tokens' else 1
            if not (optional and value is None) and (type(value) is not int or not least <= value <= LARGEST):
                raise CheckpointError(f'An encoder with {name}={value!r:.80}: it must be a whole number from {least}')
        for name in ('layer_scale', 'use_rel_pos_bias', 'final_norm'):
            if type(getattr(self, name)) is not bool:
                raise CheckpointError(f'An encoder with {name}={getattr(self, name)!r:.80}: it must be true or false')
        object.__setattr__(self, 'global_blocks', tuple(self.global_blocks))
        if not set(self.global_blocks) <= set(range(self.num_layers)):
            raise CheckpointError(f'An encoder of {self.num_layers} blocks with global_blocks={self.global_blocks}')
        if any(pixels % patch for pixels, patch in zip(self.img_size, self.patch_size, strict=True)):
            raise CheckpointError(f'An encoder with img_size={self.img_size}, which patches of {self.patch_size} do not tile')

    @property
    def grid(self) -> tuple[int, int]:
        """Patches, (rows, columns)."""
        return self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1]

    def config(self, **settings) -> dict:
        """The config that builds the encoder from the registry, such as `dict(type='mmcae.CAEViT', ...)`; `settings` are added to it."""
        arch = dict(
            embed_dims=self.embed_dims,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            feedforward_channels=self.feedforward_channels,
        )
        own = dict(
            arch=arch,
            img_size=self.img_size,
            patch_size=self.patch_size,
            in_channels=self.in_channels,
            layer_scale_init_value=float(self.layer_scale),
            use_rel_pos_bias=self.use_rel_pos_bias,
            window_size=self.window_size,
            global_blocks=self.global_blocks,
            final_norm=self.final_norm,
        )
        return {'type': f'mmcae.{self.type}', **(own if self.type == 'CAEViT' else {}), **self.arguments, **settings}

    def to_dict(self) -> dict:
        """Plain data, for JSON and for metadata of a checkpoint."""
        content = asdict(self)
        content['arguments'] = dict(self.arguments)
        return plain(dict(version=VERSION, **content))

    @classmethod
    def from_dict(cls, content: Any, where: str) -> 'EncoderSpec':
        """The inverse of :meth:`to_dict`.

        Args:
            content: As read from a file.
            where: The file, for messages.

        Raises:
            CheckpointError: It is no description of an encoder, or one of a later version.
        """
        if not isinstance(content, Mapping) or content.get('version') != VERSION:
            version = content.get('version') if isinstance(content, Mapping) else content
            raise CheckpointError(
                f'{where} describes its encoder in version {version!r:.80}, and this mmcae reads version {VERSION}: '
                'use the mmcae that wrote it, or a newer one'
            )
        settings = {name: value for name, value in content.items() if name != 'version'}
        try:
            view, origin = settings.get('view'), settings.get('origin', {})
            return cls(**{**settings, 'view': None if view is None else ViewSpec(**view), 'origin': Origin(**origin)})
        except (TypeError, CheckpointError) as error:
            raise CheckpointError(f'{where} has no valid description of its encoder in meta[{META!r}]: {error}') from error

    def replaced(self, **changes) -> 'EncoderSpec':
        """A copy with other values."""
        return replace(self, **changes)


def default_crop(size: tuple[int, int]) -> float:
    """The share of a resized image's sides that is kept where nothing else is known, as :class:`ViewSpec` has it."""
    return IMAGENET_CROP if min(size) >= SMALL else 1.0


def sizes(owner, *names: str):
    """Check pairs of whole numbers above 0, and keep them as tuples."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, tuple | list) or len(value) != 2 or any(type(x) is not int or not 0 < x <= LARGEST for x in value):
            raise CheckpointError(f'{name}={value!r:.80} must be two whole numbers above 0, (height, width)')
        object.__setattr__(owner, name, tuple(value))


def numbers(owner, *names: str):
    """Check sequences of finite numbers, and keep them as tuples."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, tuple | list) or any(type(x) not in (int, float) or not abs(x) < 1e9 for x in value):
            raise CheckpointError(f'{name}={value!r:.80} must be a list of numbers')
        object.__setattr__(owner, name, tuple(value))


def plain(value: Any) -> Any:
    """Lists for tuples, dicts for mappings."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value
