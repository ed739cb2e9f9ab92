"""Probing in seconds: where the encoder is frozen and images are not augmented, its features are computed once and kept."""

import torch
from mmengine.dist import get_world_size
from mmengine.runner import IterBasedTrainLoop
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..registry import LOOPS
from ..utils.errors import ConfigError
from .features import encode_batches

CHECKED_IMAGES = 8


@LOOPS.register_module()
class FrozenFeatureTrainLoop(IterBasedTrainLoop):
    """Train neck and head on features that the frozen encoder computes once: `train_cfg=dict(type='mmcae.FrozenFeatureTrainLoop', ...)`.

    Takes the arguments of mmengine's IterBasedTrainLoop and gives the same result, as long as the training pipeline has no randomness in
    it. The features stay in memory, 4 bytes x images x channels (x tokens, where the head reads all of them).

    Raises:
        ConfigError: The backbone is not frozen, the pipeline gives another image each time, images are mixed, or several processes run.
    """

    def run(self):
        """Compute the features, then train."""
        self.check()
        self.dataloader = self.cached(self.dataloader)
        self.dataloader_iterator = type(self.dataloader_iterator)(self.dataloader)
        return super().run()

    def check(self):
        model = self.runner.model
        if get_world_size() > 1:
            raise ConfigError('FrozenFeatureTrainLoop works in one process; use IterBasedTrainLoop with a launcher')
        if any(parameter.requires_grad for parameter in model.backbone.parameters()):
            raise ConfigError('FrozenFeatureTrainLoop needs a frozen backbone: set model.backbone.frozen_stages to the number of blocks')
        if getattr(model.data_preprocessor, 'batch_augments', None):
            raise ConfigError('FrozenFeatureTrainLoop cannot mix images: remove model.train_cfg, or use IterBasedTrainLoop')
        dataset = self.dataloader.dataset
        for i in range(min(CHECKED_IMAGES, len(dataset))):
            if not torch.equal(dataset[i]['inputs'], dataset[i]['inputs']):
                raise ConfigError(
                    'FrozenFeatureTrainLoop computes the features of each image once, but the training pipeline makes another image of it '
                    'each time: remove the random transforms, or use IterBasedTrainLoop'
                )

    def cached(self, dataloader: DataLoader) -> DataLoader:
        """A dataloader like the given one, with features in the place of images."""
        ordered = DataLoader(
            dataloader.dataset, batch_size=dataloader.batch_size, num_workers=dataloader.num_workers, collate_fn=dataloader.collate_fn
        )
        features, samples = [], []
        for outputs, batch in encode_batches(self.runner.model, ordered):
            features.append(outputs.cpu())
            samples += batch['data_samples']
        dataset = FeatureDataset(torch.cat(features), samples, dataloader.dataset)
        self.runner.logger.info(f'Features of {len(dataset)} images are kept in {dataset.features.nbytes / 2**20:.1f} MiB')
        return DataLoader(dataset, batch_sampler=dataloader.batch_sampler, collate_fn=dataloader.collate_fn)

    def run_iter(self, data_batch: dict):
        """One update of neck and head from cached features."""
        self.runner.call_hook('before_train_iter', batch_idx=self._iter, data_batch=data_batch)
        model, optim_wrapper = self.runner.model, self.runner.optim_wrapper
        with optim_wrapper.optim_context(model):
            data_batch = model.data_preprocessor.cast_data(data_batch)
            features = (data_batch['inputs'],)
            if model.with_neck:
                features = model.neck(features)
            losses = model.head.loss(features, data_batch['data_samples'])
        loss, outputs = model.parse_losses(losses)
        optim_wrapper.update_params(loss)
        self.runner.call_hook('after_train_iter', batch_idx=self._iter, data_batch=data_batch, outputs=outputs)
        self._iter += 1


class FeatureDataset(Dataset):
    """Features (N, ...) and data samples in the form in which a data set of images gives its own."""

    def __init__(self, features: Tensor, samples: list, source: Dataset):
        self.features, self.samples = features, samples
        self.metainfo, self.get_data_info = source.metainfo, source.get_data_info

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return dict(inputs=self.features[index], data_samples=self.samples[index])
