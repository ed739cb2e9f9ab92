"""mmdet's CocoMetric on the checked annotation file."""

import logging

from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmengine.fileio import get_local_path
from mmengine.logging import print_log

from ..datasets.sources.coco.check import check_categories
from ..datasets.sources.coco.file import CheckedCOCO
from ..utils.errors import DataError


class CocoMetric(MMDetCocoMetric):
    """mmdet's CocoMetric, which reads the annotation file as :class:`~mmcae.datasets.sources.coco.dataset.CocoDataset` does.

    COCO's code takes an annotation with the id 0 for missed however well it was found, and reads past the end of masks whose run lengths
    do not add up. Annotations are numbered anew here, masks are checked, and objects that nothing can match are left out.

    Args:
        ann_file (str, optional): The annotation file; what the data set has loaded if there is none. Defaults to None.
        metric (str | list[str]): "bbox", "segm", "proposal", "proposal_fast". Defaults to "bbox".
        **settings: mmdet's.

    Raises:
        DataError: See :func:`~mmcae.datasets.sources.coco.check.check_annotations`; or there are no annotations to score against, or the
            categories are not the classes of the data set in their order.
    """

    def __init__(self, ann_file: str | None = None, metric: str | list = 'bbox', **settings):
        super().__init__(None, metric, **settings)
        self.ann_file = ann_file
        if ann_file is None:
            return
        with get_local_path(ann_file, backend_args=self.backend_args) as path:
            coco = CheckedCOCO(path, ann_file, masks='segm' in self.metrics, scored=not self.format_only)
        if not coco.objects.count and not self.format_only:
            raise DataError(
                f'{ann_file} has no annotations to score against; for images without them set format_only=True and outfile_prefix=... '
                '(mmcae test: --out NAME)'
            )
        if not coco.objects.as_usual():
            print_log(f'Scored by {ann_file}{coco.objects.summary()}', 'current', logging.WARNING)
        if settings.get('sort_categories'):
            coco.dataset['categories'].sort(key=lambda category: category['id'])
        self._coco_api = coco

    @property
    def dataset_meta(self) -> dict | None:
        """Meta information of the data set, whose classes have to be the file's categories."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict):
        if self._coco_api is not None and meta and meta.get('classes') is not None:
            check_categories(self._coco_api.dataset['categories'], self.ann_file, meta['classes'])
        self._dataset_meta = meta
