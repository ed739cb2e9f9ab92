"""What data2vec and I-JEPA share: targets are latents of a target encoder, the exponential moving average of the one that learns."""

from collections.abc import Mapping

from mmengine.model import BaseAveragedModel
from torch import Tensor, nn

from ...checkpoints import EncoderSpec
from ...registry import MODELS
from ...utils.errors import ConfigError
from .base import MaskedImageModel

EMA = dict(type='mmengine.ExponentialMovingAverage', momentum=0.004)


class LatentTargetModel(MaskedImageModel):
    """Base of the methods whose target is a moving average of their encoder.

    The average is one of mmengine's averaged models. It moves at the beginning of each pass of training, so by what the step before has
    changed, and is a part like the others: saved, resumed exactly, and continued from. With accumulated gradients it moves by no more than
    in one step, since the encoder rests between them, but several times towards the same weights.

    Args:
        backbone: The encoder, a :class:`CAEViT`.
        ema: The average, by default `ExponentialMovingAverage(momentum=0.004)`: the share that each step adds, 1 - tau in papers. To
            lower it over training: `dict(type='mmpretrain.CosineEMA', momentum=0.004, end_momentum=0.0)`.
        weight_init, data_preprocessor, init_cfg: See :class:`.base.MaskedImageModel`.

    Raises:
        ConfigError: `ema` is no average; or a target is given.
    """

    NEEDS_TARGET = False

    def __init__(self, backbone: dict, ema: dict | None = None, target_generator: None = None, **settings):
        if target_generator is not None:
            raise ConfigError(f'{type(self).__name__} makes its targets itself: leave target_generator out')
        super().__init__(backbone, **settings)
        ema = {**EMA, **(ema or {})}
        if not 0 < ema['momentum'] < 1:
            raise ConfigError(f'ema.momentum={ema["momentum"]} must lie between 0 and 1: it is the share that each step adds')
        self.target_encoder = MODELS.build(ema, default_args=dict(model=self.backbone))
        if not isinstance(self.target_encoder, BaseAveragedModel):
            raise ConfigError(f'ema.type={ema["type"]} is no averaged model: take mmengine.ExponentialMovingAverage')
        self.target_encoder.eval()

    @property
    def teacher(self) -> nn.Module:
        """The averaged encoder itself."""
        return self.target_encoder.module

    def loss(self, inputs, data_samples) -> dict[str, Tensor]:
        """Losses of one batch; see :meth:`MaskedImageModel.loss`. In training mode the target moves first."""
        if self.training:
            self.target_encoder.update_parameters(self.backbone)
        return super().loss(inputs, data_samples)

    def init_weights(self):
        """Fresh weights, or those of a checkpoint. A target that no checkpoint has filled begins as the encoder."""
        super().init_weights()
        if not self.target_encoder.steps:
            self.teacher.load_state_dict(self.backbone.state_dict())
        self.target_encoder.requires_grad_(False)

    def fit_state_dict(self, state: Mapping[str, Tensor], spec: EncoderSpec | None = None) -> dict[str, Tensor]:
        """Resize the tables of encoder and target to this model's grid."""
        state, prefix = super().fit_state_dict(state, spec), 'target_encoder.module.'
        teacher = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        return state | {f'{prefix}{key}': value for key, value in self.backbone.fit_state_dict(teacher, spec).items()}

    def train(self, mode: bool = True):
        """Training mode for all but the target."""
        super().train(mode)
        self.target_encoder.eval()
        return self
