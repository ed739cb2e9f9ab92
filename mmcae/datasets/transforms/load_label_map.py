"""mmseg's LoadAnnotations, with the numbers of the file checked before they become 8 bits."""

import cv2
import mmcv
import numpy as np
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations

from ...utils.errors import ConfigError, DataError
from ..sources.image_headers import read_header
from ..sources.label_maps import one_channel, read_label_map
from .image_file import TURNS, turned


class LoadLabelMap(LoadAnnotations):
    """Load the label map of an image for semantic segmentation, as mmseg's LoadAnnotations does, and refuse what is none.

    mmseg cuts all numbers to 8 bits (256 becomes class 0), hands colours on to the loss, and leaves maps of another size than their image
    to whatever fails first. Images without a ``seg_map_path`` are left as they are.

    Required keys: ``seg_map_path``, ``reduce_zero_label``, ``seg_fields``. Optional keys: ``label_map``, ``img_path``, ``ori_shape``.
    Added key: ``gt_seg_map``, uint8 array (H, W): classes, or 255 where a pixel is ignored.

    Args:
        remap (dict[int, int], optional): Numbers in the files, and what they stand for: a class, or 255 for ignored. Others stay. It is
            applied before ``reduce_zero_label``. Binary masks of 0 and 255 take ``{255: 1}``. Defaults to None.
        drawn_on (str, optional): On what maps were drawn where an image has an EXIF orientation: "upright", the image as viewers show it,
            or "stored", its pixels as they lie in the file, so that the map is turned with them. None refuses a pair where the size does
            not tell. Defaults to None.
        **settings: mmseg's.

    Raises:
        ConfigError: ``remap`` has others than whole numbers, or leads outside 0 to 255; ``drawn_on`` is none of these.
        DataError: See :func:`mmcae.datasets.sources.label_maps.read_label_map`; or a number is
            outside 0 to 255, the map has another size than its image, or nothing tells on what it was drawn. The message names the file and
            the number.
    """

    def __init__(self, remap=None, drawn_on=None, **settings):
        super().__init__(**settings)
        try:
            self.remap = {int(old): int(new) for old, new in (remap or {}).items()}
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(f'LoadLabelMap: remap={remap} must be a dict of whole numbers, such as {{255: 1}}') from None
        if not all(0 <= new <= 255 for new in self.remap.values()):
            raise ConfigError(f'LoadLabelMap: remap={remap} leads outside 0 to 254 for classes and 255 for ignored')
        if drawn_on not in (None, 'upright', 'stored'):
            raise ConfigError(f'LoadLabelMap: drawn_on={drawn_on!r} must be "upright", "stored" or None')
        self.drawn_on = drawn_on

    def transform(self, results):
        return super().transform(results) if results.get('seg_map_path') is not None else results

    def _load_seg_map(self, results):
        numbers = self.read(results)
        if 'ori_shape' in results:
            check_size(numbers.shape, results['ori_shape'], results)
        results['gt_seg_map'] = self.classes(numbers, results)
        results['seg_fields'].append('gt_seg_map')

    def read(self, info):
        """The numbers in the file, upright.

        Args:
            info (dict): Of the data set.

        Returns:
            np.ndarray: (H, W), integers.
        """
        path, image = info['seg_map_path'], info.get('img_path')
        data = fileio.get(path, backend_args=self.backend_args)
        if self.imdecode_backend == 'pillow':
            numbers = read_label_map(path, data, upright=self.drawn_on != 'stored')
        else:
            numbers = one_channel(mmcv.imfrombytes(data, flag='unchanged', backend=self.imdecode_backend), path)
        header = read_header(image) if image else None
        if header is None or header.orientation == 1:
            return numbers
        if self.drawn_on == 'stored':
            return turned(numbers, TURNS[header.orientation])
        own = read_header(path)
        if self.drawn_on is None and header.ambiguous and (own is None or own.orientation == 1):
            raise DataError(
                f'{path} belongs to {image}, which has the EXIF orientation {header.orientation}, and its size does not tell whether the '
                "map was drawn on the upright image or on the pixels as they are stored: set drawn_on='upright' or 'stored' of "
                'mmcae.LoadLabelMap, or store the image upright (ImageMagick: mogrify -auto-orient)'
            )
        return numbers

    def classes(self, numbers, info):
        """The classes that the numbers in a file stand for.

        Args:
            numbers (np.ndarray): (H, W), integers.
            info (dict): Of the data set: ``reduce_zero_label``, and ``label_map`` if it takes a part of the classes.

        Returns:
            np.ndarray: (H, W), uint8, 255 for ignored.
        """
        found = numbers
        if self.remap:
            found = numbers.copy()
            for old, new in self.remap.items():
                found[numbers == old] = new
        if found.dtype != np.uint8:
            wrong = np.unique(found[(found < 0) | (found > 255)])
            if len(wrong):
                raise DataError(
                    f'{info["seg_map_path"]} has the numbers {wrong[:8].tolist()}; classes are 0 to 254, and 255 is ignored. Correct it, '
                    f'or say what they stand for: remap={{{wrong[0]}: ...}} of mmcae.LoadLabelMap'
                )
        reduce = self.reduce_zero_label if self.reduce_zero_label is not None else info.get('reduce_zero_label')
        table = np.arange(256, dtype=np.uint8)
        if reduce:
            table[1:255] -= 1
            table[0] = 255
        reduced = table.copy()
        for old, new in (info.get('label_map') or {}).items():
            table[reduced == old] = new
        return cv2.LUT(found.astype(np.uint8, copy=False), table)

    def __repr__(self):
        return f'{super().__repr__()[:-1]}, remap={self.remap}, drawn_on={self.drawn_on!r})'


def check_size(found, wanted, info):
    """Refuse a label map of another (height, width) than its image.

    Args:
        found (tuple[int, int]): Of the map.
        wanted (tuple[int, int]): Of the image.
        info (dict): ``seg_map_path`` and ``img_path``, for the message.

    Raises:
        DataError: They differ.
    """
    if tuple(found) != tuple(wanted):
        turn = tuple(found) == tuple(wanted)[::-1]
        raise DataError(
            f'{info["seg_map_path"]} is {found[1]}x{found[0]} pixels (width x height), but {info.get("img_path", "its image")} is '
            f'{wanted[1]}x{wanted[0]}: '
            + (
                "if the image has an EXIF orientation that the map does not know, set drawn_on='stored' of mmcae.LoadLabelMap"
                if turn
                else 'store the map in the size of its image, resized without interpolation (nearest)'
            )
        )
