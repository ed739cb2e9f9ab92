"""Features come in the order of the data set, in eval mode, and leave the model and the random numbers as they were."""

import subprocess

import pytest
import torch
from mmpretrain.models import ImageClassifier, TwoNormDataPreprocessor
from torch import nn

from mmcae.evaluation.features import average, build_dataloader, loader_features
from mmcae.models import CAEViT
from mmcae.utils.errors import DataError

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 58.0, 57.0]


@pytest.fixture
def loader(image_folder):
    def make(with_label=True, batch_size=3, **settings):
        root = image_folder('images', ('a', 'b', 'c'), count=3)
        pipeline = [dict(type='mmpretrain.LoadImageFromFile'), dict(type='mmpretrain.PackInputs')]
        dataset = dict(type='mmpretrain.CustomDataset', data_root=str(root), with_label=with_label, pipeline=pipeline)
        return build_dataloader(dict(batch_size=batch_size, dataset=dataset, **settings))

    return make


def make_model(**settings):
    torch.manual_seed(0)
    backbone = CAEViT(arch=dict(embed_dims=16, num_layers=2, num_heads=2), img_size=32, patch_size=16, **settings)
    return ImageClassifier(backbone, data_preprocessor=dict(mean=MEAN, std=STD, to_rgb=True))


def test_features_are_those_of_each_image_alone(loader):
    model, data = make_model(out_type='raw', drop_path_rate=0.5).train(), loader(batch_size=4)
    features, labels = loader_features(model, data)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert model.training and model.backbone.training
    model.eval()
    for index, feature in enumerate(features):
        image = data.dataset[index]['inputs'].flip(0).float()
        image = (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        torch.testing.assert_close(feature, model.backbone(image[None])[0].mean(1)[0], rtol=1e-4, atol=1e-5)


def test_a_pretraining_model_normalises_by_its_first_view(loader):
    model, data = make_model(out_type='avg_featmap'), loader()
    expected, _ = loader_features(model, data)
    model.data_preprocessor = TwoNormDataPreprocessor(mean=MEAN, std=STD, second_mean=[0.0], second_std=[255.0], to_rgb=True)
    torch.testing.assert_close(loader_features(model, data)[0], expected)


def test_images_without_labels_have_features(loader):
    features, labels = loader_features(make_model(), loader(with_label=False))
    assert features.shape == (9, 16) and labels is None


def test_random_numbers_are_left_alone(loader):
    data = loader()
    state = torch.get_rng_state()
    loader_features(make_model(), data)
    torch.manual_seed(0)
    make_model()
    state = torch.get_rng_state()
    loader_features(make_model_without_draws(), data)
    assert torch.equal(torch.get_rng_state(), state)


def make_model_without_draws():
    with torch.random.fork_rng():
        return make_model(drop_path_rate=0.5).train()


def test_signals_to_all_processes_leave_its_workers_at_work(loader):
    batches = iter(loader(num_workers=1, prefetch_factor=1))
    next(batches)
    (worker,) = batches._workers
    for number in ('TERM', 'INT', 'HUP', 'USR1'):  # by another process than the one whose workers they are
        subprocess.run(['kill', f'-{number}', str(worker.pid)], check=True)
    assert len(list(batches)) == 2


def test_no_images_are_refused():
    with pytest.raises(DataError, match='no images'):
        loader_features(make_model(), [])


@pytest.mark.parametrize('shape', [(2, 6), (2, 4, 6), (2, 6, 3, 5)])
def test_average_keeps_the_channels(shape):
    outputs = torch.randn(shape)
    pooled = average(outputs)
    assert pooled.shape == (2, 6)
    axes = {2: (), 3: (1,), 4: (2, 3)}[len(shape)]
    torch.testing.assert_close(pooled, outputs.mean(axes) if axes else outputs)


def test_a_model_wrapped_for_distributed_training_is_unwrapped(loader):
    from mmengine.model import MMDistributedDataParallel

    from mmcae.utils.wrappers import unwrapped

    wrapped = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = make_model()
    assert unwrapped(wrapped) is wrapped.module
