"""torch.compile by config."""

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from torch import nn

from ...registry import HOOKS
from ...utils.errors import ConfigError, nearest
from ...utils.wrappers import unwrapped

# The boxes of the figure: the encoder, which also makes the alignment target, and the convolutions of the tokenizer.
CAE_PARTS = ('backbone.encode', 'regressor', 'decoder', 'target_generator.embed')


@HOOKS.register_module()
class CompileParts(Hook):
    """Compiles the parts of the model before training, each by itself.

    mmengine's own `compile=True` compiles the whole training step, optimizer included, and stops at the optimizer's groups. The parts have
    neither graph breaks nor anything that differs from step to step, so each is compiled once for every shape it meets: the encoder twice
    in pretraining, with gradient and, for the alignment target, without. Names in checkpoints stay as they are.

    Args:
        parts: Dotted names of modules or methods of the model. The default is for CAE; for a classifier, detector or segmentor it is
            `['backbone']`. Images of many sizes want `dynamic=True`.
        **options: Of torch.compile, such as `mode='max-autotune'`. Here `fullgraph=True` and `dynamic=False` where not given: a part
            that cannot be compiled in one piece raises an error instead of being slow.

    Raises:
        ConfigError: The model has no such part.
    """

    def __init__(self, parts: Sequence[str] = CAE_PARTS, **options):
        self.parts = [parts] if isinstance(parts, str) else list(parts)
        self.options = dict(fullgraph=True, dynamic=False) | options

    def before_train(self, runner):
        """Compile what the runner trains, wrapped for several processes or not."""
        self.compile(unwrapped(runner.model))

    def compile(self, model: nn.Module):
        """Compile the parts of a model in place; the work itself is done at their first call."""
        for name in self.parts:
            *path, last = name.split('.')
            owner = model
            for step in path:
                owner = getattr(owner, step, None)
            part = getattr(owner, last, None)
            if part is None:
                known = [*dict(model.named_modules())][1:]
                raise ConfigError(f'CompileParts: {type(model).__name__} has no part {name!r}{nearest(name, known)}')
            if isinstance(part, nn.Module):
                part.compile(**self.options)
            else:
                setattr(owner, last, torch.compile(part, **self.options))
