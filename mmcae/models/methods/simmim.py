"""SimMIM (arXiv 2111.09886): BEiT with pixels as targets and the absolute error as loss."""

import torch.nn.functional as F
from torch import Tensor

from ...registry import MODELS
from ...utils.errors import ConfigError
from ..targets.base import Tokenizer
from .base import at_least_float
from .beit import BEiT


@MODELS.register_module()
class SimMIM(BEiT):
    """Mask tokens in the encoder, a linear head, and the mean absolute error over the numbers of the masked patches.

    Args:
        backbone, num_outputs, complementary, weight_init, data_preprocessor, init_cfg: See :class:`.beit.BEiT`.
        target_generator: A target of numbers; the paper's is `PixelTargets(normalize=False)`. Its pixels lie in [0, 1], where the paper's
            have the mean and spread of the encoder's view: a factor of the loss for each channel.

    Raises:
        ConfigError: A target of tokens; parts that do not fit each other.
    """

    def __init__(self, backbone: dict, target_generator: dict | None = None, num_outputs: int | None = None, **settings):
        super().__init__(backbone, target_generator, num_outputs, **settings)
        if isinstance(self.target_generator, Tokenizer):
            raise ConfigError(f'SimMIM regresses numbers, and {type(self.target_generator).__name__} has tokens: take mmcae.BEiT')

    def criterion(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean absolute error of predictions and targets (B, m, num_outputs)."""
        prediction = at_least_float(prediction)
        return F.l1_loss(prediction, target.to(prediction.dtype))
