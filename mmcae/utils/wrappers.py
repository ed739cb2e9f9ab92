"""What is wrapped around a model while it trains or is tested."""

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without the wrappers of distributed training and test-time augmentation, which hold it as `module`."""
    while hasattr(model, 'module'):
        model = model.module
    return model
