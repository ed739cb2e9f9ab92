"""Check that images, views and masks fit a model for pretraining."""

import random

import numpy as np
import torch
from torch.utils.data import IterableDataset

from ...datasets.crops import collate_views, is_crop
from ...models.device_views import make_views
from ...registry import CHECKS
from ...utils.wrappers import unwrapped
from .base import Check


@CHECKS.register_module('sample')
class SampleCheck(Check):
    """Load one training sample and pass it to the model's `check_sample(inputs, data_sample)`: channels, sizes of the views, mask grid.

    For models that have this method. Streamed data sets are skipped, because they have no first sample. The state of the random number
    generators is restored.

    Raises:
        ConfigError: The sample does not fit; the message names the setting to change.
    """

    def applies_to(self, model):
        return hasattr(model, 'check_sample')

    def before_split(self, runner, split):
        dataset = runner.train_dataloader.dataset if split == 'train' else None
        if dataset is None or isinstance(dataset, IterableDataset):
            return
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            sample = dataset[0]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
        inputs = sample['inputs']
        if is_crop(inputs):
            inputs = [view[0] for view in make_views(*collate_views([sample])['inputs'], 'cpu')]
        unwrapped(runner.model).check_sample(inputs, sample['data_samples'])
