"""The hook that runs all checks, and the base class of a check."""

from mmengine.hooks import Hook
from torch import nn

from ...registry import CHECKS, HOOKS
from ...utils.errors import ConfigError, nearest
from ...utils.wrappers import unwrapped


class Check:
    """One check, a class registered in `mmcae.registry.CHECKS` under the name of its switch.

    A check overrides what it needs and raises one of the errors of :mod:`mmcae.utils.errors`. It is built once per run.
    """

    def applies_to(self, model: nn.Module) -> bool:
        """Whether the check is for this kind of model, which comes without wrappers."""
        return True

    def before_split(self, runner, split: str):
        """Called once before the first use of a data set; `split` is 'train', 'val' or 'test'. 'val' comes before the training starts."""

    def before_iter(self, runner, batch):
        """Called with each batch of training, validation and test."""

    def after_train_iter(self, runner, batch, outputs):
        """Called after each training iteration with the logged values of :meth:`mmengine.model.BaseModel.train_step`."""

    def after_train_epoch(self, runner):
        """Called after each training epoch; in a run counted in iterations once, at its end."""


@HOOKS.register_module()
class Checks(Hook):
    """Run the registered checks: `default_hooks=dict(checks=dict(type='mmcae.Checks'))`.

    ============== =================== =====================================================================================
    switch         models              see
    ============== =================== =====================================================================================
    `sample`       pretraining         :class:`mmcae.engine.checks.sample.SampleCheck`
    `classes`      all with labels     :class:`mmcae.engine.checks.classes.ClassesCheck`
    `objects`      detectors           :class:`mmcae.engine.checks.objects.ObjectsCheck`
    `label_maps`   segmentors          :class:`mmcae.engine.checks.label_maps.LabelMapsCheck`
    `loss`         all                 :class:`mmcae.engine.checks.loss.LossCheck`
    `bad_files`    pretraining         :class:`mmcae.engine.checks.bad_files.BadFilesCheck`
    ============== =================== =====================================================================================

    Args:
        **switches: For each check False (off), True (on, the default), or a dict with its arguments. A check of your own is registered in
            a module that `custom_imports` names, and has a switch under its registered name.

    Raises:
        ConfigError: No check has this name, or a check has no such argument or value.
    """

    priority = 'VERY_HIGH'  # before any other hook acts on the data; after_train_iter before a checkpoint is written

    def __init__(self, **switches: bool | dict):
        CHECKS.import_from_location()
        self.checks = {}
        known = CHECKS.module_dict
        for name in switches.keys() - known.keys():
            raise ConfigError(f'mmcae.Checks has no check {name!r}{nearest(name, known)} (it has {", ".join(sorted(known))})')
        for name in known:
            setting = switches.get(name, True)
            if not isinstance(setting, bool | dict):
                raise ConfigError(f'mmcae.Checks: {name}={setting!r} must be True, False or a dict of arguments')
            if setting is not False:
                self.checks[name] = CHECKS.build(dict(type=name, _scope_='mmcae', **(setting if isinstance(setting, dict) else {})))
        self.checked = set()

    def before_split(self, runner, split: str):
        """Run the checks of one data set, once."""
        if split not in self.checked:
            for check in self.applicable(runner):
                check.before_split(runner, split)
            self.checked.add(split)

    def applicable(self, runner) -> list[Check]:
        """The checks for the runner's model."""
        model = unwrapped(runner.model)
        return [check for check in self.checks.values() if check.applies_to(model)]

    def before_train(self, runner):
        self.before_split(runner, 'train')
        if runner.val_loop is not None:
            self.before_split(runner, 'val')

    def before_val(self, runner):
        self.before_split(runner, 'val')

    def before_test(self, runner):
        self.before_split(runner, 'test')

    def _before_iter(self, runner, batch_idx, data_batch=None, mode='train'):
        for check in self.applicable(runner):
            check.before_iter(runner, data_batch)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for check in self.applicable(runner):
            check.after_train_iter(runner, data_batch, outputs)

    def after_train_epoch(self, runner):
        for check in self.applicable(runner):
            check.after_train_epoch(runner)


def is_kind(model: nn.Module, *bases: str) -> bool:
    """Whether a model derives from a class of one of these names, such as mmdet's `BaseDetector`, without importing the library."""
    return any(base.__name__ in bases for base in type(model).__mro__)
