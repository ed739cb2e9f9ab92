"""Patch features as colours: principal components, the same for all images, matched between encoders; and similarities."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from mmcae.utils.errors import DataError
from mmcae.visualization.patch_features import components, pca_colors, similarities


@pytest.fixture
def features():
    """Two images of other sizes, with distinct variances along the channels."""
    scale = torch.tensor([9.0, 5, 3, 1, 0.5, 0.1])
    return [torch.randn(4, 5, 6) * scale + 3, torch.randn(3, 7, 6) * scale + 3]


def test_components_are_those_of_scikit_learn(features):
    flat = torch.cat([image.flatten(0, 1) for image in features])
    wanted = PCA(3, whiten=True).fit_transform(flat.double().numpy()) * (len(flat) / (len(flat) - 1)) ** 0.5
    found = torch.cat([image.flatten(0, 1) for image in components(features)]).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), rtol=1e-6, atol=1e-8)


def test_colours_of_a_rotated_encoder_are_the_same(features):
    turn, _ = torch.linalg.qr(torch.randn(6, 6))
    (first, second) = pca_colors([features, [image @ turn - 7 for image in features]])
    for one, other in zip(first, second, strict=True):
        assert one.dtype == np.uint8 and np.abs(one.astype(int) - other).max() <= 1
    assert first[0].shape == (4, 5, 3) and first[1].shape == (3, 7, 3)


def test_encoders_of_other_widths_and_grids(features):
    fine = [torch.nn.functional.pad(image, (0, 3)).repeat_interleave(2, 0).repeat_interleave(2, 1) for image in features]
    first, second = pca_colors([features, fine])
    assert second[0].shape == (8, 10, 3)
    assert np.abs(first[0].astype(int) - second[0][::2, ::2]).max() <= 3
    narrow = pca_colors([[torch.randn(3, 3, 2)]])  # fewer channels than colours
    assert narrow[0][0].shape == (3, 3, 3)
    with pytest.raises(DataError, match='3 patches have no three'):
        pca_colors([[torch.randn(1, 3, 4)]])


def test_similarities_are_cosines():
    features = torch.tensor([[[1.0, 0], [2, 0]], [[0, 3], [-1, 0]]])
    assert similarities(features).tolist()[0] == [255, 255, 128, 0]
    random = torch.randn(3, 4, 8)
    slow = torch.nn.functional.cosine_similarity(random.view(12, 1, 8), random.view(1, 12, 8), dim=-1)
    assert np.abs(similarities(random) / 127.5 - 1 - slow.numpy()).max() < 0.005
