"""mmdet's CocoDataset, with a clear error for what is wrong in the annotation file or with an image."""

import json

from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmdet.datasets.api_wrappers import COCO

from ..utils.errors import DataError
from .coco_check import check_annotations


class CocoDataset(MMDetCocoDataset):
    """mmdet's CocoDataset, for data of one's own: what is wrong with them is found and named before the training starts.

    Takes the arguments of mmdet's. Without the checks another order of categories silently exchanges their names, categories with other
    names silently leave no objects, and most other mistakes show as a KeyError somewhere.

    Raises:
        DataError: See :func:`~mmcae.datasets.coco_check.check_annotations`; or no image is left to train on. When an image is read: it has
            another size than its annotations say, or the pipeline cannot process it.
    """

    def COCOAPI(self, path: str) -> COCO:
        """The parsed annotation file, checked."""
        masks = any(getattr(transform, 'with_mask', False) for transform in self.pipeline.transforms)
        try:
            return CheckedCOCO(self.ann_file, self.metainfo['classes'], masks, self.test_mode, path)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f'{self.ann_file} is no COCO annotation file, because it is no JSON: {error}') from error

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if not kept:
            raise DataError(
                f'{self.ann_file}: none of its {len(self.data_list)} images can be used; filter_cfg={self.filter_cfg} leaves out images '
                'without objects (filter_empty_gt) or with a side shorter than min_size pixels'
            )
        return kept

    def prepare_data(self, idx: int):
        info = self.get_data_info(idx)
        path, size = info['img_path'], (info['height'], info['width'])
        try:
            data = self.pipeline(info)
        except Exception as error:
            cause = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise DataError(
                f'{path} ({size[1]}x{size[0]} pixels, width x height) cannot be prepared: repair it or take it out of {self.ann_file}. '
                f'{cause}'
            ) from error
        samples = data['data_samples'] if data else []
        for sample in samples if isinstance(samples, list) else [samples]:
            loaded = sample.metainfo.get('ori_shape', size)
            if tuple(loaded) != size:
                raise DataError(
                    f'{path} is {loaded[1]}x{loaded[0]} pixels (width x height), but {self.ann_file} says {size[1]}x{size[0]}. Correct the '
                    'file; if the two are exchanged, the image has an EXIF rotation that its annotations do not know'
                )
        return data


class CheckedCOCO(COCO):
    """pycocotools' COCO, which checks the file's content once it is parsed."""

    def __init__(self, name: str, classes, masks: bool, scored: bool, path: str):
        self.check = dict(path=name, classes=classes, masks=masks, scored=scored)
        try:
            super().__init__(path)
        except AssertionError as error:  # the content is no dict
            raise DataError(f'{name} is no COCO annotation file: {error}') from error

    def createIndex(self):
        check_annotations(self.dataset, **self.check)
        super().createIndex()
