"""What an encoder makes of the images of a dataloader: the input of kNN, the collapse metrics and the probes on cached features."""

from collections.abc import Iterator
from functools import partial

import torch
from mmengine.dist import all_gather, get_world_size
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier, SelfSupDataPreprocessor
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader

from ..datasets.seeded_loader import leave_signals
from ..utils.errors import ConfigError, DataError
from ..utils.precision import autocast
from ..utils.wrappers import unwrapped


def build_dataloader(config: dict) -> DataLoader:
    """A dataloader that visits a data set once, in order; `config` as mmengine's, with sampler and collation filled in.

    It draws random numbers of its own, so that looking at features in the middle of training does not change the training.
    """
    config = dict(config)
    config.setdefault('sampler', dict(type='DefaultSampler', shuffle=False))
    config.setdefault('collate_fn', dict(type='default_collate'))
    dataloader = Runner.build_dataloader(config, seed=0)
    dataloader.generator = torch.Generator()
    leave_signals(dataloader)
    return dataloader


@torch.no_grad()
def encode_batches(model: nn.Module, dataloader: DataLoader, dtype: str | None = 'float32') -> Iterator[tuple[Tensor, dict]]:
    """The encoder's last output for each batch, in eval mode and without gradient. The model's mode is restored at the end.

    Args:
        model: A classifier or a self-supervised model of mmpretrain's kind, in whatever wrapper of distributed training.
        dataloader: Batches of one view per image, packed by mmpretrain's PackInputs.
        dtype: Precision of the encoder, see :func:`mmcae.utils.precision.autocast`.

    Yields:
        The output as the encoder gives it, on the model's device, and the batch it is made of.

    Raises:
        ConfigError: A classifier in torch's FSDP.
    """
    wrapper, model = model, unwrapped(model)
    preprocess = type(model.data_preprocessor).forward
    if issubclass(type(model.data_preprocessor), SelfSupDataPreprocessor):
        # That of a pretraining model may want two views; the one for one view has the first one's mean and std.
        preprocess = SelfSupDataPreprocessor.forward
    encode = model.extract_feat
    if isinstance(model, ImageClassifier):
        encode = partial(encode, stage='backbone')
    if isinstance(wrapper, FullyShardedDataParallel):  # whose forward alone gathers the parameters
        if isinstance(model, ImageClassifier):
            raise ConfigError('The features of a classifier cannot be looked at while FSDP shares it out: use DDP or mmcae.FSDP2Strategy')
        encode = wrapper
    was_training = model.training
    model.eval()
    try:
        for batch in dataloader:
            data = preprocess(model.data_preprocessor, dict(inputs=batch['inputs'], data_samples=batch['data_samples']), False)
            views = data['inputs']
            with autocast(dtype):
                outputs = encode(views[0] if isinstance(views, list) else views)
            yield outputs[-1] if isinstance(outputs, (tuple, list)) else outputs, batch
    finally:
        model.train(was_training)


def loader_features(model: nn.Module, dataloader: DataLoader, dtype: str | None = 'float32') -> tuple[Tensor, Tensor | None]:
    """One feature vector per image of a data set, the same on all processes.

    Args:
        model: See :func:`encode_batches`. Outputs (B, C) are taken as they are, tokens (B, n, C) and maps (B, C, h, w) are averaged.
        dataloader: See :func:`build_dataloader`.
        dtype: Precision of the encoder, see :func:`mmcae.utils.precision.autocast`.

    Returns:
        float32 (N, C) and int64 labels (N,) in the order of the data set, on the model's device. None where the images have no labels.

    Raises:
        DataError: There are no images.
    """
    features, labels = [], []
    for outputs, batch in encode_batches(model, dataloader, dtype):
        features.append(average(outputs).float())
        labels += [sample.gt_label for sample in batch['data_samples'] if 'gt_label' in sample]
    if not features:
        raise DataError('There are no images to compute features of')
    length = len(dataloader.dataset)
    features = in_order(torch.cat(features), length)
    return features, in_order(torch.cat(labels).to(features.device), length) if labels else None


def average(outputs: Tensor) -> Tensor:
    """(B, C), (B, n, C) or (B, C, h, w) -> (B, C)."""
    if outputs.ndim == 4:
        return outputs.mean(dim=(2, 3))
    return outputs.mean(dim=1) if outputs.ndim == 3 else outputs


def in_order(shard: Tensor, length: int) -> Tensor:
    """This process's share of a data set (every n-th item, as mmengine's DefaultSampler deals them) -> all `length` items."""
    if get_world_size() == 1:
        return shard
    return torch.stack(all_gather(shard.contiguous()), dim=1).flatten(0, 1)[:length]
