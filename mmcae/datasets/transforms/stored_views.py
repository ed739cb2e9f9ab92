"""Show an image in one of the views of which the tokens are stored, in place of a random one."""

import random

import mmcv
from mmcv.transforms import BaseTransform

from ...registry import TRANSFORMS
from ...utils.errors import ConfigError, DataError
from ..sources.token_store import TokenStore
from .two_view_crop import find_filter, height_width, resize


@TRANSFORMS.register_module()
class StoredViews(BaseTransform):
    """Cut one of an image's stored views, chosen at random; its tokens take the place of the tokenizer's view.

    Stands where RandomFlip and :class:`TwoViewCrop` do in other recipes, with :class:`mmcae.models.StoredTokens` as the target.

    Required keys: ``img`` (array (H, W, C), uint8 or float32), ``img_path`` and ``img_bytes``, as mmcae.LoadImage gives them. Modified
    keys: ``img`` becomes a list of the model's view (h, w, C) and the tokens, int32 (rows, columns, 1); ``img_shape`` becomes (h, w).

    Args:
        folder (str): What `mmcae tokens` wrote.
        size (int | tuple[int, int]): Size of the model's view: one side of a square, or (height, width).
        interpolation (str): See :class:`TwoViewCrop`. Defaults to 'bicubic'.
        backend (str): See :class:`TwoViewCrop`. Defaults to 'pillow'.

    Raises:
        ConfigError: The store does not know an image, or no mmcae.LoadImage stands before.
        DataError: There is no such store, or it is not complete; or images are read in another size than when it was made.
    """

    def __init__(self, folder, size, interpolation='bicubic', backend='pillow'):
        self.store = TokenStore(folder)
        self.size = height_width(size, 'size')
        self.interpolation, self.backend = interpolation, backend
        self._filter = find_filter(interpolation, backend)

    def transform(self, results):
        if 'img_bytes' not in results:
            raise ConfigError('StoredViews knows images by the content of their files: put mmcae.LoadImage before it, which keeps that')
        image, path = results['img'], results['img_path']
        row = self.store.row(results['img_bytes'], path)
        (top, left, height, width), flip, tokens = self.store.view(row, random.randrange(self.store.manifest.views))
        if top + height > image.shape[0] or left + width > image.shape[1]:
            raise DataError(f'{path} has another size than when {self.store.folder} was made. Make it again')
        if flip:
            image = mmcv.imflip(image, flip)
        view = resize(image[top : top + height, left : left + width], self.size, self._filter)
        results['img'] = [view, tokens[..., None]]
        results['img_shape'] = self.size
        return results

    def __repr__(self):
        return (
            f'{type(self).__name__}(folder={str(self.store.folder)!r}, size={self.size}, interpolation={self.interpolation!r}, '
            f'backend={self.backend!r})'
        )
