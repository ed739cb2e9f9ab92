"""Cut one random box and resize it: once for what learns tokens, twice for the model and the tokenizer that makes its targets."""

import math
import random
from functools import cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from PIL import Image

from ...registry import TRANSFORMS
from ...utils.errors import ConfigError
from ..crops import FILTERS, CropRow


@TRANSFORMS.register_module()
class TwoViewCrop(BaseTransform):
    """Cut one random box out of the image and resize it to two sizes, antialiased.

    Area and aspect ratio of the box are drawn as in Inception training; a box as large as the image and boxes at its very edge can occur.
    After ten draws that do not fit, the largest central box within the ratio limits is taken. The resizing is PIL's, which all released
    weights and tokenizers were trained with (the CAE paper, arXiv 2202.03026, section 4.1),
    or torch's, three to four times as fast.

    Required keys: ``img`` (array (H, W, C), uint8 or float32 in [0, 255]). Optional keys: ``drawn_box``, where LoadImage has drawn the box
    to decode no more than it needs. Modified keys: ``img`` becomes a list of two arrays, the model's
    view (h, w, C) and the tokenizer's view (h2, w2, C); ``img_shape`` becomes (h, w). Added keys: ``crop_box``: top, left, height, width.

    Args:
        size (int | tuple[int, int]): Size of the model's view: one side of a square, or (height, width).
        second_size (int | tuple[int, int], optional): Size of the target's view. Without it there is one view, for targets that read the
            model's own.
        scale (tuple[float, float]): Smallest and largest area of the box as a share of the image's, for images that have no
            ``crop_scale`` of their own (from MicronScale). Defaults to (0.08, 1).
        ratio (tuple[float, float]): Smallest and largest width / height of the box. Defaults to (3/4, 4/3).
        interpolation (str): PIL's filter for the model's view: 'nearest', 'box', 'bilinear', 'hamming', 'bicubic' or 'lanczos'.
            Defaults to 'bicubic'.
        second_interpolation (str): The same for the tokenizer's view. Defaults to 'lanczos'.
        backend (str): 'pillow', or 'torch' for the same filters in less time where torch has them: 'bilinear', 'bicubic' and, from
            version 2.13 on, 'lanczos'; PIL does the others. Values differ by one level of 255 where they are rounded in another order, and
            by more, at most 25, in fewer than one of a thousand, next to clipped white or black. With 'device' the crop is handed over as
            it is, and the data preprocessor makes the views of the whole batch on its device, by 'bilinear', 'bicubic' or 'lanczos'; needs
            ``collate_fn=dict(type='mmcae.collate_views')`` and :class:`mmcae.ViewPreprocessor`. ``img`` becomes the crop's pixels and a
            :class:`~mmcae.datasets.crops.CropRow` then. Defaults to 'pillow'.

    Raises:
        ConfigError: A size is not positive, a range is empty or out of bounds, or an interpolation has no such name.
    """

    ATTEMPTS = 10

    def __init__(
        self,
        size,
        second_size=None,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation='bicubic',
        second_interpolation='lanczos',
        backend='pillow',
    ):
        self.size = height_width(size, 'size')
        self.second_size = None if second_size is None else height_width(second_size, 'second_size')
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(f'scale must be (smallest, largest) share of the area within (0, 1], got {scale}')
        if not 0 < ratio[0] <= ratio[1]:
            raise ConfigError(f'ratio must be (smallest, largest) width / height above 0, got {ratio}')
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.interpolation = interpolation
        self.second_interpolation = second_interpolation
        self.backend = backend
        self._filters = (find_filter(interpolation, backend, True), find_filter(second_interpolation, backend, True))

    def transform(self, results):
        if self.backend == 'device':
            results['img'] = self.hand_over(results)
            results['img_shape'] = self.size
            return results
        if 'jitter' in results:
            raise ConfigError("ColorJitter(backend='device') needs TwoViewCrop(backend='device') (resize_backend=device in the recipes)")
        crop, box = self.cut(results)
        views = zip(self.sizes, self._filters, strict=False)
        results['img'] = [resize(crop, size, resample, box) for size, resample in views]
        results['img_shape'] = self.size
        return results

    def hand_over(self, results):
        """The pixels of the crop and what the device is to make of them."""
        part, box = self.cut(results, copy=False)
        part = whole_pixels(part, box)
        mirrored = part.strides[1] < 0
        if mirrored:  # a view of the image as it was before
            part = part[:, ::-1]
        sizes, (first, second) = self.sizes, self._filters
        row = CropRow(*part.shape, int(mirrored), *sizes[0], first, *((*sizes[1], second) if len(sizes) > 1 else ()))
        for name, value in results.get('jitter', {}).items():
            setattr(row, name, value)
        return [np.ascontiguousarray(part).reshape(-1), row.tensor()]

    @property
    def sizes(self):
        """(height, width) of each view."""
        return (self.size,) if self.second_size is None else (self.size, self.second_size)

    def cut(self, results, copy=True):
        """The part of the image that holds a box drawn for it, and the box within that as PIL takes it; None where it is all.

        The part is an array without gaps, or with `copy=False` a view of the image.
        """
        finish = contiguous if copy else np.asarray
        image, drawn = results['img'], results.pop('drawn_box', None)
        if drawn:
            if 'crop_scale' in results:
                raise ConfigError('MicronScale must come before the box is drawn: leave out crop of LoadImage')
            results['crop_box'] = drawn.box
            part, within = drawn.cut(image, results.get('flip_direction'), self.sizes)
            return finish(part), within
        given = dict(scale=results['crop_scale']) if 'crop_scale' in results else {}
        top, left, height, width = results['crop_box'] = self.sample_box(*image.shape[:2], **given)
        return finish(image[top : top + height, left : left + width]), None

    def sample_box(self, height, width, scale=None):
        """Draw a box inside an image of the given size, in pixels.

        Args:
            height (int): The image's height.
            width (int): The image's width.
            scale (tuple[float, float], optional): In place of the transform's own.

        Returns:
            tuple[int, int, int, int]: top, left, height and width of the box.
        """
        log_ratio = (math.log(self.ratio[0]), math.log(self.ratio[1]))
        for _ in range(self.ATTEMPTS):
            area = random.uniform(*(scale or self.scale)) * height * width
            ratio = math.exp(random.uniform(*log_ratio))
            w = round(math.sqrt(area * ratio))
            h = round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return random.randint(0, height - h), random.randint(0, width - w), h, w
        return self._central_box(height, width)

    def _central_box(self, height, width):
        h, w = height, width
        if width < height * self.ratio[0]:
            h = max(1, round(width / self.ratio[0]))
        elif width > height * self.ratio[1]:
            w = max(1, round(height * self.ratio[1]))
        return (height - h) // 2, (width - w) // 2, h, w

    def __repr__(self):
        return (
            f'{type(self).__name__}(size={self.size}, second_size={self.second_size}, scale={self.scale}, ratio={self.ratio}, '
            f'interpolation={self.interpolation!r}, second_interpolation={self.second_interpolation!r}, backend={self.backend!r})'
        )


@TRANSFORMS.register_module()
class OneViewCrop(TwoViewCrop):
    """The same for one view, on which tokenizers are trained; for images of any number of channels.

    Args:
        size (int | tuple[int, int]): One side of a square, or (height, width).
        scale (tuple[float, float]): See :class:`TwoViewCrop`.
        ratio (tuple[float, float]): See :class:`TwoViewCrop`.
        interpolation (str): PIL's filter, that of the tokenizer's view in pretraining. Defaults to 'lanczos'.
        backend (str): See :class:`TwoViewCrop`.
    """

    def __init__(self, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation='lanczos', backend='pillow'):
        find_filter(interpolation, backend)  # there is no 'device' for one view
        super().__init__(size, size, scale, ratio, interpolation, interpolation, backend)

    def transform(self, results):
        crop, box = self.cut(results)
        results['img'] = resize(crop, self.size, self._filters[0], box)
        results['img_shape'] = self.size
        return results

    def __repr__(self):
        return (
            f'{type(self).__name__}(size={self.size}, scale={self.scale}, ratio={self.ratio}, interpolation={self.interpolation!r}, '
            f'backend={self.backend!r})'
        )


def resize(image, size, resample, box=None):
    """Resize an image, antialiased.

    Args:
        image (np.ndarray): (H, W, C), uint8 or float32 in [0, 255].
        size (tuple[int, int]): (height, width).
        resample (Image.Resampling | str): PIL's filter, or the name of torch's.
        box (tuple[float, float, float, float], optional): left, top, right, bottom of the part to resize; torch rounds them to whole
            pixels. Defaults to all.

    Returns:
        np.ndarray: (h, w, C) of the same dtype. float32 stays within [0, 255], which sharp filters would leave.
    """
    if isinstance(resample, str):
        return _resize_by_torch(image, size, resample, box)
    height, width = size
    if image.shape[2] == 3 and image.dtype == np.uint8:
        return np.array(Image.fromarray(contiguous(image)).resize((width, height), resample, box))
    planes = [Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), resample, box) for plane in np.moveaxis(image, 2, 0)]
    resized = np.stack([np.asarray(plane) for plane in planes], axis=2)
    return resized if image.dtype == np.uint8 else resized.clip(0, 255)


def contiguous(image):
    """An image (H, W, C), or a part of one, mirrored or not, as an array without gaps; a copy where it has some."""
    if image.shape[2] == 3 and image.strides[1] < 0:  # numpy copies mirrored pixels one by one
        return cv2.flip(image[:, ::-1], 1)
    return np.ascontiguousarray(image)


def _resize_by_torch(image, size, mode, box):
    image = whole_pixels(image, box)
    image = torch.from_numpy(np.require(contiguous(image), requirements='W'))  # torch takes no array that is read-only
    resized = F.interpolate(image.permute(2, 0, 1)[None], size, mode=mode, antialias=True)[0].permute(1, 2, 0).numpy()
    return resized if resized.dtype == np.uint8 else resized.clip(0, 255)


def whole_pixels(image, box):
    """The part of an image in a box as PIL takes it, its edges rounded; all of it for None."""
    left, top, right, bottom = (round(edge) for edge in box or (0, 0, image.shape[1], image.shape[0]))
    return image[top:bottom, left:right]


def height_width(size, name):
    """One side of a square or (height, width) -> (height, width).

    Raises:
        ConfigError: It is not positive; the message calls it `name`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ConfigError(f'{name} must be positive, got {size}')
    return height, width


def find_filter(name, backend, on_device=False):
    """What :func:`resize` takes for the filter of a name, in a backend of :class:`TwoViewCrop`; for 'device' its number in `FILTERS`.

    Raises:
        ConfigError: There is no filter or no backend of that name.
    """
    if backend == 'device' and on_device:
        if name not in FILTERS:
            raise ConfigError(f"backend='device' has no interpolation {name!r}; choose from {', '.join(FILTERS)}")
        return FILTERS.index(name)
    if backend not in ('pillow', 'torch'):
        raise ConfigError(f"backend={backend!r} is neither 'pillow' nor 'torch'{', nor device' * on_device}")
    return _torch_filter(name) if backend == 'torch' else _pil_filter(name)


def _pil_filter(name):
    try:
        return Image.Resampling[name.upper()]
    except KeyError:
        names = ', '.join(f.name.lower() for f in Image.Resampling)
        raise ConfigError(f'no interpolation is called {name!r}; choose from {names}') from None


@cache
def _torch_filter(name):
    """What torch calls a filter of PIL; PIL's where this version of torch has none of that kind."""
    pil = _pil_filter(name)
    try:
        F.interpolate(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), (2, 2), mode=name, antialias=True)
    except (NotImplementedError, ValueError, RuntimeError):
        return pil
    return name
