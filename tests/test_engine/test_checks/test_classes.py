"""Classes that differ between data sets and model stop the run before it starts."""

from types import SimpleNamespace

import pytest
from torch import nn

from mmcae.engine import Checks
from mmcae.utils.errors import ConfigError, DataError


class Data:
    def __init__(self, classes, labels=()):
        self.metainfo, self.labels = dict(classes=classes) if classes else {}, labels

    def __len__(self):
        return len(self.labels)

    def get_data_info(self, index):
        return dict(gt_label=self.labels[index])


class BaseClassifier(nn.Module):
    """As far as the check looks at mmpretrain's."""


def runner(train=None, val=None, test=None, num_classes=3):
    model = BaseClassifier()
    model.head = None if num_classes is None else nn.Module()
    if model.head:
        model.head.num_classes = num_classes
    loaders = dict(train_dataloader=train, val_dataloader=val, test_dataloader=test)
    return SimpleNamespace(model=model, val_loop=val, **{name: SimpleNamespace(dataset=data) for name, data in loaders.items()})


GOOD = Data(('cat', 'dog', 'emu'), [0, 1, 2, 2])


def test_what_fits_passes():
    hook = Checks()
    hook.before_train(runner(GOOD, GOOD))
    Checks().before_train(runner(GOOD))
    Checks().before_train(runner(Data(('cat', 'dog', 'emu'), [[0, 1], [2]])))  # several labels per image
    hook.before_val(runner(val=GOOD))
    hook.before_test(runner(test=GOOD))
    hook.before_test(runner(test=GOOD, num_classes=None))


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_another_number_of_classes_is_refused(split):
    with pytest.raises(ConfigError, match=rf'{split}_dataloader: .* 3 classes .* set model.head.num_classes=3'):
        getattr(Checks(), f'before_{split}')(runner(**{split: GOOD}, num_classes=10))


def test_parts_that_do_not_depend_on_the_data():
    run = runner(GOOD)
    run.model.backbone = nn.Module()
    run.model.backbone.num_classes = 1000
    run.model.head.loss_module = nn.Module()
    run.model.head.loss_module.num_classes = None
    Checks().before_train(run)
    run.model.head.loss_module.num_classes = 4
    with pytest.raises(ConfigError, match='set model.head.loss_module.num_classes=3'):
        Checks().before_train(run)


def test_test_time_augmentation():
    run = runner(test=GOOD, num_classes=4)
    run.model = SimpleNamespace(module=run.model)
    with pytest.raises(ConfigError, match='set model.head.num_classes=3'):
        Checks().before_test(run)


def test_a_class_without_images_is_refused():
    with pytest.raises(DataError, match="1 of 3 classes have no image, the first is 'dog'"):
        Checks().before_train(runner(Data(('cat', 'dog', 'emu'), [0, 2])))


def test_splits_with_other_classes_are_refused():
    other = Data(('cat', 'dog', 'fox'), [0])
    with pytest.raises(DataError, match=r"only the first has \['emu'\], only the second \['fox'\]"):
        Checks().before_train(runner(GOOD, other))


def test_a_data_set_has_to_name_its_classes():
    with pytest.raises(DataError, match='does not name its classes'):
        Checks().before_train(runner(Data(None, [0])))
