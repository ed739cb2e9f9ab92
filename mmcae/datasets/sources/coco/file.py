"""A COCO annotation file that is checked once it is parsed, for the data set and for its scoring."""

import json

from mmdet.datasets.api_wrappers import COCO

from ....utils.errors import DataError
from ....utils.files import read_file
from .check import check_annotations


class CheckedCOCO(COCO):
    """pycocotools' COCO with the objects that can be used.

    Args:
        path (str): The file, in any encoding of JSON, with a byte order mark or without.
        name (str): What messages call it.
        **check: See :func:`~mmcae.datasets.sources.coco.check.check_annotations`.

    Attributes:
        objects (Objects): How many there are, and what was left out.

    Raises:
        DataError: It is no JSON, or what `check_annotations` finds.
    """

    def __init__(self, path: str, name: str, **check):
        super().__init__()
        try:
            self.dataset = json.loads(read_file(path))
        except (ValueError, RecursionError) as error:  # no JSON, no text, numbers of thousands of digits, thousands of brackets
            raise DataError(f'{name} is no COCO annotation file, because it is no JSON: {error}') from error
        self.objects = check_annotations(self.dataset, name, **check)
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs
