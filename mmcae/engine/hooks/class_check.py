"""Stop a classification run whose classes do not fit: in number, between the splits, or one without images."""

from mmengine.hooks import Hook

from ...evaluation.features import unwrapped
from ...registry import HOOKS
from ...utils.errors import ConfigError, DataError


@HOOKS.register_module()
class CheckClasses(Hook):
    """Compare the classes of the data sets with the classifier and with each other before anything is trained or tested.

    Class folders are numbered in each split on its own: where a split lacks one, all later classes silently change their numbers. A class
    without training images is never predicted.

    Raises:
        ConfigError: The head has another number of classes than a data set.
        DataError: A data set does not name its classes, training and evaluation have other classes, or a class has no training image.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        dataset = runner.train_dataloader.dataset
        classes = self.check_number(runner, dataset, 'train_dataloader')
        present = {int(dataset.get_data_info(i)['gt_label']) for i in range(len(dataset))}
        empty = [name for label, name in enumerate(classes) if label not in present]
        if empty:
            raise DataError(
                f'train_dataloader: {len(empty)} of {len(classes)} classes have no image, the first is {empty[0]!r}: add images, or remove '
                'the class everywhere'
            )
        if runner.val_loop is not None:
            self.check_same(classes, runner.val_dataloader.dataset, 'val_dataloader')

    def before_val(self, runner):
        self.check_number(runner, runner.val_dataloader.dataset, 'val_dataloader')

    def before_test(self, runner):
        self.check_number(runner, runner.test_dataloader.dataset, 'test_dataloader')

    def check_number(self, runner, dataset, name: str) -> list[str]:
        """The names of a data set's classes, after comparing their number with the head's."""
        classes = dataset.metainfo.get('classes')
        if classes is None:
            raise DataError(f'{name}: the data set does not name its classes: give it metainfo=dict(classes=[...])')
        head = unwrapped(runner.model).head
        if head is not None and head.num_classes != len(classes):
            raise ConfigError(
                f'{name}: the data set has {len(classes)} classes ({", ".join(classes[:3])} ...), but the head was made for '
                f'{head.num_classes}: set model.head.num_classes={len(classes)}'
            )
        return list(classes)

    def check_same(self, classes: list[str], dataset, name: str):
        """Compare the classes of training with those of another data set."""
        others = list(dataset.metainfo.get('classes') or ())
        if others != classes:
            only = sorted(set(classes) - set(others))[:3], sorted(set(others) - set(classes))[:3]
            raise DataError(
                f'train_dataloader and {name} have different classes: only the first has {only[0]}, only the second {only[1]}. Every split '
                'needs the same class folders, because they are numbered in alphabetical order'
            )
