"""The view of an image by which encoders are judged: resized, and its centre cut out."""

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from ...registry import TRANSFORMS


@TRANSFORMS.register_module()
class EvaluationView(BaseTransform):
    """Resize an image so that `size / crop` just fits into it, and cut out its centre, of `size`.

    For squares the same as mmpretrain's `ResizeEdge` of the short side and `CenterCrop`, both by PIL. What
    :func:`mmcae.apis.extract_features` shows to an encoder; the values come from the encoder's spec.

    Required and modified key: ``img``, (H, W, C). Modified key: ``img_shape``.

    Args:
        size (tuple[int, int]): Pixels (h, w) of the result.
        crop (float): Share of each side of the resized image that is kept, in (0, 1].
        interpolation (str): One of PIL's: 'bicubic', 'bilinear', 'nearest', 'lanczos', 'box', 'hamming'. Antialiased.
    """

    def __init__(self, size, crop=224 / 256, interpolation='bicubic'):
        self.size, self.crop, self.interpolation = tuple(size), crop, interpolation

    def transform(self, results):
        image = results['img']
        image = cut(image[..., None] if image.ndim == 2 else image, self.size, self.crop, self.interpolation)
        return dict(results, img=image, img_shape=image.shape[:2])

    def __repr__(self):
        return f'{type(self).__name__}(size={self.size}, crop={self.crop:g}, interpolation={self.interpolation!r})'


def cut(image: np.ndarray, size: tuple[int, int], crop: float, interpolation: str = 'bicubic') -> np.ndarray:
    """(H, W, C) -> (h, w, C) of the same type; the arguments are those of :class:`EvaluationView`."""
    (height, width), (rows, columns) = image.shape[:2], (round(side / crop) for side in size)
    if columns * height >= rows * width:
        rows = max(int(columns * height / width), rows)
    else:
        columns = max(int(rows * width / height), columns)
    if (rows, columns) != (height, width):
        image = resize(image, (rows, columns), Image.Resampling[interpolation.upper()])
    top, left = (round((side - kept) / 2) for side, kept in zip((rows, columns), size, strict=True))
    return image[top : top + size[0], left : left + size[1]]


def resize(image: np.ndarray, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC, box=None) -> np.ndarray:
    """An image (H, W, C), or the part `box` (left, top, right, bottom) of it, resized by PIL to (h, w), antialiased."""
    if image.shape[2] == 3 and image.dtype == np.uint8:
        return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], resample, box))
    planes = [Image.fromarray(np.ascontiguousarray(plane)).resize(size[::-1], resample, box) for plane in np.moveaxis(image, 2, 0)]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)
