"""Stop a detection run whose model has other classes than its data."""

from mmengine.hooks import Hook

from ...registry import HOOKS
from ...utils.errors import ConfigError


@HOOKS.register_module()
class CheckDetector(Hook):
    """Compare the number of classes of all heads of a detector with the data sets, before anything is trained or tested.

    Without it a class too few in the model is an assertion inside the loss, and one too many an index error while scoring, or nothing.

    Raises:
        ConfigError: They differ.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        self.check(runner, 'train_dataloader')

    def before_val(self, runner):
        self.check(runner, 'val_dataloader')

    def before_test(self, runner):
        self.check(runner, 'test_dataloader')

    def check(self, runner, name: str):
        """Compare the model with the data set of one dataloader."""
        classes = getattr(runner, name).dataset.metainfo['classes']
        for path, module in runner.model.named_modules():
            path = path.removeprefix('module.')  # of distributed training and test-time augmentation
            # The region proposal network tells objects from background and has one class whatever the data.
            if hasattr(module, 'num_classes') and 'rpn_head' not in path and module.num_classes != len(classes):
                raise ConfigError(
                    f'{name}: the data set has {len(classes)} classes ({", ".join(classes[:3])} ...), but {path} was made for '
                    f'{module.num_classes}: set model.{path}.num_classes={len(classes)}, or metainfo=dict(classes=(...)) of the data set'
                )
