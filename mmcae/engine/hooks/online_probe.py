"""See during pretraining whether the encoder becomes useful: nearest neighbours, a linear classifier, and signs of collapse."""

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from torch import Tensor

from ...evaluation.collapse import effective_rank, feature_std
from ...evaluation.features import build_dataloader, loader_features
from ...evaluation.knn import check_bank, knn_scores
from ...evaluation.linear import Standardization, ridge_regression
from ...registry import HOOKS
from ...utils.errors import ConfigError
from ...utils.precision import check_dtype

PENALTY = 0.01  # of the squared weights, for each image: for 100 to 2000 images of the digits within 3 points of the best of 1e-4 to 1


@HOOKS.register_module()
class OnlineProbe(Hook):
    """Look at the encoder's features every now and then during pretraining.

    Reports, in the log and to the visualizer's backends (scalars.json, TensorBoard, ...):

    * `probe/effective_rank`: RankMe. A fall during training means that features lose directions; no labels needed.
    * `probe/feature_std`: about 1 for well spread features, 0 when all images look the same to the encoder; no labels needed.
    * `probe/knn10_top1` and so on, in percent, where there are `query_dataloader` and labels.
    * `probe/linear_top1`, in percent, beside them: of ridge regression on the classes, in closed form, of standardised features. It orders
      encoders as a trained linear probe does, within milliseconds.

    The features are the output of the model's `extract_feat`, averaged where it is one per token: for pretraining with CAEViT choose them
    by `model.backbone.out_type`. Training goes on exactly as without the hook. The log tells the share of the time that the hook takes;
    the number of images decides about it (a few thousand are enough).

    Args:
        dataloader: Images, one view each and without augmentation, in the form of a dataloader's config without sampler. With labels they
            are the bank of the neighbours.
        query_dataloader: Labelled images to classify by them.
        interval: Epochs, or iterations, between two looks.
        by_epoch: What `interval` counts.
        k: Numbers of neighbours.
        temperature: See :func:`mmcae.evaluation.knn.knn_scores`.
        dtype: Precision of the encoder: 'float32', 'bfloat16', 'float16', or None for what the machine is fast in.

    Raises:
        ConfigError: `interval` is not positive, or an unknown dtype.
        DataError: At the start of training, see :func:`mmcae.evaluation.knn.check_bank`.
    """

    priority = 'LOW'

    def __init__(
        self,
        dataloader: dict,
        query_dataloader: dict | None = None,
        interval: int = 1,
        by_epoch: bool = True,
        k: Sequence[int] = (10, 20),
        temperature: float = 0.07,
        dtype: str | None = None,
    ):
        check_dtype(dtype, 'OnlineProbe')
        if interval < 1:
            raise ConfigError(f'OnlineProbe needs an interval of at least 1, got {interval}')
        self.configs = dict(bank=dataloader, queries=query_dataloader)
        self.interval, self.by_epoch, self.k, self.temperature = interval, by_epoch, tuple(k), temperature
        self.dtype = dtype
        self.seconds = 0.0

    def before_train(self, runner):
        """Read and check the data sets, so that what is wrong with them shows at once."""
        self.loaders = {name: build_dataloader(config) for name, config in self.configs.items() if config}
        if 'queries' in self.loaders:
            bank, queries = (loader.dataset for loader in self.loaders.values())
            self.num_classes = check_bank(bank, queries, self.k)
        self.began = time.perf_counter()

    def after_train_epoch(self, runner):
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self.probe(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self.probe(runner)

    def probe(self, runner):
        """Compute the figures and write them down."""
        start = time.perf_counter()
        metrics = self.metrics(runner.model)
        self.seconds += time.perf_counter() - start
        share = self.seconds / (time.perf_counter() - self.began)
        runner.visualizer.add_scalars(metrics, step=runner.epoch + 1 if self.by_epoch else runner.iter + 1)
        figures = '  '.join(f'{name}: {value:.4g}' for name, value in metrics.items())
        runner.logger.info(f'{figures}  (the probe took {100 * share:.1f} % of the time so far)')

    @torch.no_grad()
    def metrics(self, model) -> dict[str, float]:
        """The figures described above, by name."""
        features, labels = loader_features(model, self.loaders['bank'], self.dtype)
        metrics = {'probe/effective_rank': effective_rank(features), 'probe/feature_std': feature_std(features)}
        if 'queries' in self.loaders:
            queries, truth = loader_features(model, self.loaders['queries'], self.dtype)
            neighbours = knn_scores(queries, features, labels, self.num_classes, self.k, self.temperature)
            found = {f'knn{k}': scores for k, scores in neighbours.items()}
            found['linear'] = linear_scores(queries, features, labels, self.num_classes)
            for name, scores in found.items():
                metrics[f'probe/{name}_top1'] = 100 * float((scores.argmax(dim=1) == truth).float().mean())
        return metrics


def linear_scores(queries: Tensor, bank: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Scores (Q, K) of queries (Q, C) by ridge regression on the classes of a bank (N, C) with labels (N,)."""
    standardization = Standardization.of(bank)
    (model,) = ridge_regression(standardization(bank), F.one_hot(labels, num_classes), [PENALTY * len(bank)])
    return model(standardization(queries))
