"""Colours are changed as torchvision changes them, by PIL, in RGB."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mmcae.datasets.transforms import ColorJitter
from mmcae.utils.errors import ConfigError, DataError


def test_equals_torchvision():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    torch.manual_seed(3)
    found = ColorJitter(0.4, 0.4, 0.4, 0.1).transform(dict(img=image))['img']
    torch.manual_seed(3)
    expected = np.asarray(transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)(Image.fromarray(image)))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8 and not np.array_equal(found, image)


def test_saturation_weighs_red_green_and_blue_as_rgb():
    """Pure red becomes a darker grey than pure green."""
    for factor, colour in ((76, 0), (150, 1), (29, 2)):
        image = np.zeros((2, 2, 3), np.uint8)
        image[..., colour] = 255
        grey = ColorJitter(saturation=(0, 0)).transform(dict(img=image))['img']
        assert (grey == factor).all()


def test_bad_input():
    with pytest.raises(ConfigError, match='ColorJitter: .*brightness'):
        ColorJitter(brightness=-1)
    with pytest.raises(ConfigError, match='ColorJitter: hue'):
        ColorJitter(hue=0.7)
    for image in (np.zeros((2, 2, 5), np.uint8), np.zeros((2, 2, 3), np.float32)):
        with pytest.raises(DataError, match='a.tif is .*leave it out of the pipeline'):
            ColorJitter(0.4).transform(dict(img=image, img_path='a.tif'))
