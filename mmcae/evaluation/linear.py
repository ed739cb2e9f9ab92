"""Linear models on frozen features: logistic regression and ridge regression, with scikit-learn's objectives, on any device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import ConfigError


@dataclass(frozen=True)
class Standardization:
    """Features scaled to mean 0 and standard deviation 1, each channel by itself; constant channels become 0.

    Args:
        mean, std: (D,).
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> 'Standardization':
        """That of training features (N, D)."""
        std, mean = torch.std_mean(features, dim=0, correction=0)
        # Rounding alone gives a constant channel a spread.
        smallest = mean.abs() * torch.finfo(features.dtype).eps * 10
        return cls(mean, torch.where(std > smallest, std, torch.inf))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std


@dataclass(frozen=True)
class LinearModel:
    """`features @ weight.T + bias`; weight (K, D), bias (K,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., K)."""
        return F.linear(features, self.weight, self.bias)


def logistic_regression(features: Tensor, targets: Tensor, C: float = 1.0, num_classes: int | None = None) -> LinearModel:
    """Logistic regression by L-BFGS: minimises `C * sum of losses + |weight|^2 / 2`, as scikit-learn's LogisticRegression does.

    Args:
        features: (N, D), floating point; computed in their dtype. Standardise them first.
        targets: int64 (N,) in [0, K), fitted by softmax; or bool (N, L), an independent logistic regression for each label.
        C: Inverse of the regularisation, above 0.
        num_classes: K; the largest target plus 1 where not given.

    Raises:
        ConfigError: C is not positive.
    """
    if not C > 0:
        raise ConfigError(f'C={C} must be above 0')
    multilabel = targets.ndim == 2
    outputs = targets.shape[1] if multilabel else num_classes or int(targets.max()) + 1
    parameters = features.new_zeros(outputs, features.shape[1] + 1, requires_grad=True)
    truth = targets.to(features.dtype) if multilabel else targets
    scale = 1 / (C * len(features))  # keeps the objective near 1, whatever C and N are
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=2000, history_size=20, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn='strong_wolfe'
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        logits = F.linear(features, weight, bias)
        if multilabel:
            loss = F.binary_cross_entropy_with_logits(logits, truth, reduction='sum')
        else:
            loss = F.cross_entropy(logits, truth, reduction='sum')
        objective = loss / len(features) + scale * weight.square().sum() / 2
        objective.backward()
        return objective

    with torch.enable_grad():
        optimizer.step(closure)
    found = parameters.detach()
    return LinearModel(found[:, :-1].clone(), found[:, -1].clone())


def ridge_regression(features: Tensor, targets: Tensor, alphas: Sequence[float] = (1.0,)) -> list[LinearModel]:
    """Ridge regression in closed form: minimises `|targets - prediction|^2 + alpha * |weight|^2`, as scikit-learn's Ridge does.

    Args:
        features: (N, D).
        targets: (N, T).
        alphas: Not negative; one eigendecomposition serves all of them.

    Returns:
        A model for each alpha.

    Raises:
        ConfigError: An alpha below 0.
    """
    if min(alphas) < 0:
        raise ConfigError(f'alphas={list(alphas)} must not be negative')
    # In double precision: the normal equations square the condition number.
    x, y = features.double(), targets.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    centred = x - x_mean
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    projected = vectors.T @ (centred.T @ (y - y_mean))
    # Directions in which the features do not vary get no weight, as in a least-norm solution.
    floor = values[-1].clamp_min(0) * torch.finfo(torch.float64).eps * len(values)
    models = []
    for alpha in alphas:
        gain = torch.where(values > floor, 1 / (values + alpha).clamp_min(1e-300), 0.0)
        weight = (vectors @ (gain[:, None] * projected)).T
        models.append(LinearModel(weight.to(features.dtype), (y_mean - weight @ x_mean).to(features.dtype)))
    return models
