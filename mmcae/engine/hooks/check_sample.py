"""Stop a pretraining whose images, views or masks do not fit its model, before the first step."""

import random

import numpy as np
import torch
from mmengine.hooks import Hook
from torch.utils.data import IterableDataset

from ...evaluation.features import unwrapped
from ...registry import HOOKS


@HOOKS.register_module()
class CheckSample(Hook):
    """Run the data pipeline on one image and let the model look at it: channels, sizes of the views, grid of the mask.

    For models that have a `check_sample(inputs, data_sample)`: CAE and the trainable tokenizers; others are left alone, and so are streamed
    data sets, which have no first image (CAE checks the shapes of every batch besides). The random numbers of the run stay as they are.

    Raises:
        ConfigError: What does not fit, and which setting makes it fit.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        check = getattr(unwrapped(runner.model), 'check_sample', None)
        dataset = runner.train_dataloader.dataset
        if check is None or isinstance(dataset, IterableDataset):
            return
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            sample = dataset[0]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
        check(sample['inputs'], sample['data_samples'])
