"""mmdet's CocoDataset, with a clear error for what is wrong in the annotation file or with an image."""

import logging
import os

from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmengine.logging import print_log

from ....utils.errors import DataError, nearest
from ....utils.files import may_pass
from ..image_headers import UPRIGHT, missing_files, read_header, spread, turns_upright
from .file import CheckedCOCO

HEADERS = 500  # images whose headers are read before the run


class CocoDataset(MMDetCocoDataset):
    """mmdet's CocoDataset, for data of one's own: what is wrong with them is found and named before the training starts.

    Takes the arguments of mmdet's. Without the checks another order of categories silently exchanges their names, categories with other
    names silently leave no objects, and most other mistakes show as a KeyError somewhere. The log says how many objects there are, and
    how many were left out for which reason.

    Attributes:
        objects (Objects): The same; see :class:`~mmcae.datasets.sources.coco.check.Objects`.

    Raises:
        DataError: See :func:`.check.check_annotations`; or images are missing, or no image or no object is left to
            train on. When an image is read: it has another size than its annotations say, or an EXIF orientation of which they may know
            or not, or the pipeline cannot process it. Size and orientation of 500 images are looked at when the data set is built.
    """

    def COCOAPI(self, path: str) -> CheckedCOCO:
        """The parsed annotation file, checked."""
        loaders = [transform for transform in self.pipeline.transforms if getattr(transform, 'with_mask', False)]
        polygons = any(not getattr(loader, 'poly2mask', True) for loader in loaders)
        check = dict(classes=self.metainfo['classes'], masks=bool(loaders), polygons=polygons, scored=self.test_mode)
        coco = CheckedCOCO(path, self.ann_file, **check)
        self.objects = coco.objects
        return coco

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if not kept:
            raise DataError(
                f'{self.ann_file}: none of its {len(self.data_list)} images can be used; filter_cfg={self.filter_cfg} leaves out images '
                'without objects (filter_empty_gt) or with a side shorter than min_size pixels'
            )
        self.check_files(kept)
        self.report(kept)
        return kept

    def check_files(self, infos: list[dict]):
        """Refuse missing images, and sizes that are wrong; names with the backslashes of Windows are read as paths."""
        for info in infos:
            path = info['img_path']
            if '\\' in path and not os.path.exists(path) and os.path.exists(path.replace('\\', '/')):
                info['img_path'] = path.replace('\\', '/')
        missing = missing_files(info['img_path'] for info in infos)
        if missing:
            folder, name = os.path.split(missing[0])
            hint = nearest(name, os.listdir(folder)) if os.path.isdir(folder) else f'; there is no folder {folder}.'
            raise DataError(
                f'{len(missing):,} of the {len(infos):,} images of {self.ann_file} are missing, the first is {missing[0]}{hint or "."} '
                'Correct data_root and data_prefix of the data set, or file_name in the file; it is relative to data_prefix'
            )
        for i in spread(len(infos), HEADERS):
            self.check_image(infos[i])

    def report(self, infos: list[dict]):
        """Write to the log what there is, and what was left out."""
        count = sum(not instance['ignore_flag'] for info in infos for instance in info['instances'])
        left_out = self.objects.left_out
        if not count and not self.test_mode and (left_out or self.objects.count):
            raise DataError(
                f'{self.ann_file}: no object is left to train on in {len(infos):,} images of {len(self.data_list):,}. Left out are '
                f'{self.objects.reasons() or "images"}; filter_cfg={self.filter_cfg}'
            )
        text = f'{self.ann_file}: {len(infos):,} images, objects: {self.objects.count if self.test_mode else count:,}'
        text += self.objects.summary()
        if len(infos) < len(self.data_list):
            least = (self.filter_cfg or {}).get('min_size', 0)
            small = sum(min(info['width'], info['height']) < least for info in self.data_list)
            empty = len(self.data_list) - len(infos) - small
            text += f'. Left out by filter_cfg: {small:,} images that are too small, {empty:,} others without objects'
        print_log(text, 'current', logging.INFO if self.objects.as_usual() else logging.WARNING)

    def check_image(self, info: dict):
        """Compare the header of an image with what the annotation file says about it."""
        header = read_header(info['img_path'])
        if header is None:
            return
        upright = turns_upright(self.pipeline.transforms)
        self.check_size(info, header.upright if upright else header.stored)
        if upright and header.ambiguous:
            raise DataError(
                f'{info["img_path"]} has the EXIF orientation {header.orientation}, and its size does not tell whether its annotations in '
                f'{self.ann_file} know of it. {UPRIGHT}'
            )

    def check_size(self, info: dict, found: tuple):
        """Compare (height, width) of an image with the annotation file."""
        height, width = info['height'], info['width']
        if tuple(found) != (height, width):
            raise DataError(
                f'{info["img_path"]} is {found[1]}x{found[0]} pixels (width x height), but {self.ann_file} says {width}x{height}. '
                'Correct the file; if the two are exchanged, the image has an EXIF rotation that its annotations do not know'
            )

    def prepare_data(self, idx: int):
        info = self.get_data_info(idx)
        self.check_image(info)
        try:
            data = self.pipeline(dict(info))
        except DataError:  # it says itself what is wrong
            raise
        except Exception as error:
            if may_pass(error):
                raise
            cause = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise DataError(
                f'{info["img_path"]} ({info["width"]}x{info["height"]} pixels, width x height) cannot be prepared: repair it or take it '
                f'out of {self.ann_file}. {cause}'
            ) from error
        samples = data['data_samples'] if data else []
        for sample in samples if isinstance(samples, list) else [samples]:
            self.check_size(info, sample.metainfo.get('ori_shape', (info['height'], info['width'])))
        return data
