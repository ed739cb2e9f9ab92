"""Stop a detection run whose model has other classes than its data, or whose data cannot be learnt from or scored."""

from pathlib import PurePosixPath

from mmengine.hooks import Hook

from ...datasets.wrappers import innermost
from ...registry import HOOKS
from ...utils.errors import ConfigError, DataError


@HOOKS.register_module()
class CheckDetector(Hook):
    """Compare the classes of all heads of a detector with the data sets, and look for objects, before anything is trained or tested.

    Without it a class too few in the model is an assertion inside the loss, and one too many an index error while scoring, or nothing;
    and a training without objects ends with losses of 0. Data of the validation are looked at before the training too.

    Raises:
        ConfigError: The numbers of classes differ; an evaluator has the annotations of other images; or mmdet's own CocoMetric would score
            annotations with the id 0.
        DataError: No image of the training has an object.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        dataset = runner.train_dataloader.dataset
        self.check_classes(runner, dataset, 'train_dataloader')
        if not any(has_object(part.get_data_info(i)) for part in innermost(dataset) for i in range(len(part))):
            raise DataError(f'train_dataloader: none of its {len(dataset)} images has an object to learn from')
        if runner.val_loop is not None:
            self.before_val(runner)

    def before_val(self, runner):
        self.check_classes(runner, runner.val_dataloader.dataset, 'val_dataloader')
        self.check_metrics(runner.val_evaluator, runner.val_dataloader.dataset, 'val_evaluator')

    def before_test(self, runner):
        self.check_classes(runner, runner.test_dataloader.dataset, 'test_dataloader')
        self.check_metrics(runner.test_evaluator, runner.test_dataloader.dataset, 'test_evaluator')

    def check_classes(self, runner, dataset, name: str):
        """Compare the model with the data set of one dataloader."""
        classes = dataset.metainfo['classes']
        for path, module in runner.model.named_modules():
            path = path.removeprefix('module.')  # of distributed training and test-time augmentation
            # The region proposal network tells objects from background and has one class whatever the data.
            if hasattr(module, 'num_classes') and 'rpn_head' not in path and module.num_classes != len(classes):
                raise ConfigError(
                    f'{name}: the data set has {len(classes)} classes ({", ".join(classes[:3])} ...), but {path} was made for '
                    f'{module.num_classes}: set model.{path}.num_classes={len(classes)}, or metainfo=dict(classes=(...)) of the data set'
                )

    def check_metrics(self, evaluator, dataset, name: str):
        """Refuse what COCO's code would score wrongly: annotations of other images; and the annotation of the id 0, which it takes for
        missed, however well it was found."""
        for metric in evaluator.metrics:
            coco = getattr(metric, '_coco_api', None)
            if coco is None:
                continue
            infos = [part.get_data_info(i) for part in innermost(dataset) for i in range(len(part))]
            others = [info['img_path'] for info in infos if not is_known(info, coco.imgs)]
            if others:
                raise ConfigError(
                    f'{name}: {len(others)} of {len(infos)} images of the data set have another name, or none, under their id in the '
                    f'annotation file of the evaluator, the first is {others[0]}: set {name}.ann_file to the ann_file of the data set'
                )
            if 0 in coco.anns:
                raise ConfigError(
                    f'{name}: the annotation file has an annotation with the id 0, which {type(metric).__name__} takes for missed: set '
                    f"{name}.type='mmcae.CocoMetric'"
                )


def is_known(info: dict, images: dict) -> bool:
    """Whether the images of a COCO file, by their ids, have one of a data set with its name; data sets without ids are not compared."""
    name = images.get(info.get('img_id'), {}).get('file_name')
    if 'img_id' not in info or name == '':
        return True
    return name is not None and PurePosixPath(name.replace('\\', '/')).name == PurePosixPath(info['img_path'].replace('\\', '/')).name


def has_object(info: dict) -> bool:
    """Whether an image has an object that is not to be ignored; data sets that do not tell have one."""
    return any(not instance.get('ignore_flag', 0) for instance in info['instances']) if 'instances' in info else True
