"""Whether features have collapsed, told without any labels."""

import torch
from torch import Tensor


def effective_rank(features: Tensor, eps: float = 1e-7) -> float:
    """RankMe (arXiv 2210.02885): the exponential of the entropy of the normalised singular values.

    Args:
        features: (N, C), at least as many images as channels for a figure that does not depend on N.
        eps: Keeps the logarithm finite.

    Returns:
        Between 1 (all features on one line through zero) and min(N, C) (all directions used equally).
    """
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum().clamp_min(eps) + eps
    return float(torch.exp(-(share * share.log()).sum()))


def feature_std(features: Tensor) -> float:
    """How far features spread (SimSiam, arXiv 2011.10566).

    The standard deviation over images of the features scaled to length 1, averaged over channels, times sqrt(C).

    Args:
        features: (N, C), N at least 2.

    Returns:
        0 where all images have the same feature (collapse), about 1 where features point in all directions alike.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return float(unit.std(dim=0).mean() * features.shape[1] ** 0.5)
