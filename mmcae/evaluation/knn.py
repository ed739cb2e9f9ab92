"""The k-nearest-neighbour probe: how well an encoder's features tell classes apart without any training."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.runner import TestLoop
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.utils.data import Dataset

from ..checkpoints import load_encoder_weights
from ..registry import LOOPS
from ..utils.errors import ConfigError, DataError
from ..utils.precision import check_dtype
from ..utils.wrappers import unwrapped
from .features import average, build_dataloader, encode_batches, loader_features

SIMILARITIES = 2**25  # computed at a time: 128 MiB


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar rows of a bank for each query, by cosine, the most similar first.

    Exact; the memory it takes besides its arguments does not grow with the bank.

    Args:
        queries: (Q, C).
        bank: (N, C).
        k: At most N.

    Returns:
        Similarities in [-1, 1] and indices into the bank, (Q, k) each.
    """
    queries, bank = F.normalize(queries.float(), dim=1), F.normalize(bank.float(), dim=1)
    rows = max(1, SIMILARITIES // max(1, min(len(bank), 2**16)))
    columns = max(k, SIMILARITIES // rows)
    found = []
    for part in queries.split(rows):
        best = part.new_empty(len(part), 0)
        index = torch.empty(len(part), 0, dtype=torch.int64, device=part.device)
        for start in range(0, len(bank), columns):
            similarity = part @ bank[start : start + columns].T
            similarity, position = similarity.topk(min(k, similarity.shape[1]), dim=1)
            best, order = torch.cat((best, similarity), dim=1).topk(min(k, best.shape[1] + similarity.shape[1]), dim=1)
            index = torch.cat((index, position + start), dim=1).gather(1, order)
        found.append((best, index))
    return torch.cat([best for best, _ in found]), torch.cat([index for _, index in found])


def knn_scores(
    queries: Tensor, bank: Tensor, labels: Tensor, num_classes: int, k: Sequence[int], temperature: float = 0.07
) -> dict[int, Tensor]:
    """Scores of each class by a weighted vote of the k nearest neighbours (DINO, arXiv 2104.14294, section 4.1 and appendix).

    Args:
        queries: (Q, C).
        bank: (N, C).
        labels: int64 (N,) in [0, num_classes).
        num_classes: Number of classes K.
        k: Numbers of neighbours, at most N; one result for each.
        temperature: A neighbour of cosine similarity s votes with exp(s / temperature).

    Returns:
        For each k (Q, K): shares of the vote, summing to 1.
    """
    similarity, index = nearest(queries, bank, max(k))
    # Relative to the nearest one, so that no temperature overflows; the shares stay the same.
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = labels[index]
    scores = {}
    for count in k:
        score = weight.new_zeros(len(queries), num_classes).scatter_add_(1, votes[:, :count], weight[:, :count])
        scores[count] = score / score.sum(dim=1, keepdim=True)
    return scores


def check_bank(bank: Dataset, queries: Dataset, k: Sequence[int]) -> int:
    """The number of classes that a bank of labelled images and the images to classify have in common.

    Args:
        bank: mmengine's kind of data set, with `gt_label` in the information on each image.
        queries: The same.
        k: Numbers of neighbours.

    Raises:
        DataError: The bank has fewer images than k, no labels, other classes than the queries, or a class without an image.
    """
    if max(k) > len(bank):
        raise DataError(
            f'kNN with k={max(k)} needs at least as many images in the bank, which has {len(bank)}: lower k or enlarge the bank'
        )
    labels = {bank.get_data_info(i).get('gt_label') for i in range(len(bank))}
    if None in labels:
        raise DataError('kNN needs labels, and images of the bank have none')
    names, others = (dataset.metainfo.get('classes') for dataset in (bank, queries))
    if names is None or others is None:
        raise DataError('kNN needs data sets that name their classes: give them metainfo=dict(classes=[...])')
    if list(names) != list(others):
        differing = sorted(set(names) ^ set(others)) or 'the same names in another order'
        raise DataError(
            f'The bank has {len(names)} classes and the images to classify {len(others)}; only one side has {differing}: both need the '
            'same class folders'
        )
    empty = [name for label, name in enumerate(names) if label not in labels]
    if empty:
        raise DataError(f'The bank has no image of {len(empty)} of its {len(names)} classes, the first is {empty[0]!r}')
    return len(names)


@LOOPS.register_module()
class KNNLoop(TestLoop):
    """Classify the test images by their nearest neighbours among labelled images: a test loop, `test_cfg=dict(type='mmcae.KNNLoop', ...)`.

    The model is an mmpretrain ImageClassifier with a backbone alone. The checkpoint may be of pretraining, of any layout that
    :mod:`mmcae.checkpoints` knows, or of any model with this backbone: its encoder is loaded, strictly. The evaluator's metrics are given
    for each k, as `k10/accuracy/top1`.

    Args:
        runner: The runner.
        dataloader: The images to classify.
        evaluator: Metrics of classification, such as mmpretrain's Accuracy.
        bank_dataloader: The labelled images, in the form of a dataloader's config without sampler; no augmentation.
        k: Numbers of neighbours.
        temperature: Smaller values listen to the nearest ones more.
        dtype: Precision of the encoder: 'float32', 'bfloat16', 'float16', or None for what the machine is fast in.

    Raises:
        ConfigError: k or temperature out of range, or an unknown dtype.
        DataError: See :func:`check_bank`.
    """

    def __init__(
        self,
        runner,
        dataloader,
        evaluator,
        bank_dataloader: dict,
        k: Sequence[int] = (10, 20),
        temperature: float = 0.07,
        dtype: str | None = 'float32',
    ):
        super().__init__(runner, dataloader, evaluator)
        check_dtype(dtype, 'KNNLoop')
        self.dtype = dtype
        if not k or min(k) < 1 or not temperature > 0:
            raise ConfigError(f'KNNLoop needs k of at least 1 and a temperature above 0, got k={list(k)} and temperature={temperature}')
        self.bank_dataloader = build_dataloader(bank_dataloader)
        self.k, self.temperature = tuple(k), temperature
        self.num_classes = check_bank(self.bank_dataloader.dataset, self.dataloader.dataset, self.k)
        runner.register_hook(EncoderOfAnyCheckpoint())

    def run(self) -> dict:
        """Fill the bank, classify, and return the metrics."""
        self.runner.call_hook('before_test')
        self.runner.call_hook('before_test_epoch')
        bank, labels = loader_features(self.runner.model, self.bank_dataloader, self.dtype)
        predictions = {k: [] for k in self.k}
        batches = encode_batches(self.runner.model, self.dataloader, self.dtype)
        for index, (outputs, batch) in enumerate(batches):
            self.runner.call_hook('before_test_iter', batch_idx=index, data_batch=batch)
            scores = knn_scores(average(outputs), bank, labels, self.num_classes, self.k, self.temperature)
            samples = {k: list(map(predicted, batch['data_samples'], scores[k])) for k in self.k}
            for k in self.k:
                predictions[k] += samples[k]
            self.runner.call_hook('after_test_iter', batch_idx=index, data_batch=batch, outputs=samples[self.k[0]])
        metrics = {}
        for k, samples in predictions.items():
            self.evaluator.process(samples)
            results = self.evaluator.evaluate(len(self.dataloader.dataset))
            metrics.update({f'k{k}/{name}': value for name, value in results.items()})
        self.runner.call_hook('after_test_epoch', metrics=metrics)
        self.runner.call_hook('after_test')
        return metrics


def predicted(sample: DataSample, scores: Tensor) -> DataSample:
    """A copy of a data sample with class scores (K,) and the label of the highest."""
    return sample.new().set_pred_score(scores).set_pred_label(scores.argmax(keepdim=True))


class EncoderOfAnyCheckpoint(Hook):
    """Take the encoder out of whatever checkpoint the runner loads, strictly, and leave the rest of it."""

    def after_load_checkpoint(self, runner, checkpoint: dict):
        """Replace the checkpoint's weights, before the runner loads them, by those of the model with the encoder loaded."""
        model = unwrapped(runner.model)
        load_encoder_weights(model.backbone, checkpoint, origin=runner._load_from)
        checkpoint.clear()
        checkpoint['state_dict'] = model.state_dict()
