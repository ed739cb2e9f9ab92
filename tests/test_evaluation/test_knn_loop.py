"""The kNN loop in a real runner: what it computes from which checkpoints, and what it refuses."""

import json
import shutil

import pytest
import torch

from mmcae.apis import load_encoder
from mmcae.compat import has_accelerator
from mmcae.evaluation.features import loader_features
from mmcae.evaluation.knn import knn_scores
from mmcae.utils.errors import CheckpointError, ConfigError, DataError


@pytest.fixture
def test_knn(make_runner, options):
    """Run configs/digits/knn_vit-digits.py on a checkpoint."""

    def run(checkpoint, *changes):
        runner = make_runner('knn', [*options('knn'), *changes], load_from=str(checkpoint))
        return runner, runner.test()

    return run


def test_metrics_are_those_of_the_encoder_in_a_pretraining_checkpoint(test_knn, checkpoint):
    runner, metrics = test_knn(checkpoint())
    encoder = load_encoder(checkpoint(), num_heads=4, out_type='avg_featmap')
    for key, value in encoder.state_dict().items():
        assert torch.equal(runner.model.backbone.state_dict()[key], value)
    bank, labels = loader_features(runner.model, runner.test_loop.bank_dataloader)
    queries, truth = loader_features(runner.model, runner.test_dataloader)
    assert labels.tolist() == [label for label in range(10) for _ in range(4)]
    for k, scores in knn_scores(queries, bank, labels, 10, (10, 20), 0.07).items():
        assert metrics[f'k{k}/accuracy/top1'] == pytest.approx(100 * (scores.argmax(1) == truth).float().mean().item())
        hits = (scores.topk(5)[1] == truth[:, None]).any(1)
        assert metrics[f'k{k}/accuracy/top5'] == pytest.approx(100 * hits.float().mean().item())


def test_images_of_the_bank_find_themselves(test_knn, checkpoint, digits):
    shutil.rmtree(digits / 'test')
    shutil.copytree(digits / 'train', digits / 'test')
    _, metrics = test_knn(checkpoint(), 'test_cfg.k=(1,)')
    assert metrics['k1/accuracy/top1'] == 100


@pytest.mark.parametrize('wrong', [dict(embed_dims=64), dict(patch_size=4)])
def test_an_encoder_of_another_size_is_refused(test_knn, checkpoint, wrong):
    path = checkpoint(**wrong)
    with pytest.raises(CheckpointError, match=r'cae\.pth .* does not fit this CAEViT .* arch and patch_size'):
        test_knn(path)


def test_a_bank_smaller_than_k_is_refused(test_knn, checkpoint):
    with pytest.raises(DataError, match='k=41 .* which has 40'):
        test_knn(checkpoint(), 'test_cfg.k=(10,41)')


def test_senseless_settings_are_refused(test_knn, checkpoint):
    with pytest.raises(ConfigError, match='temperature above 0'):
        test_knn(checkpoint(), 'test_cfg.temperature=0')


def test_a_class_that_one_side_lacks_is_refused(test_knn, checkpoint, digits):
    shutil.rmtree(digits / 'test' / '4')
    with pytest.raises(DataError, match=r"bank has 10 classes and the images to classify 9; only one side has \['4'\]"):
        test_knn(checkpoint())


def test_mixed_precision_is_for_the_encoder_alone(test_knn, checkpoint, monkeypatch):
    precisions = []
    original = torch.nn.functional.normalize
    monkeypatch.setattr(
        'mmcae.evaluation.knn.F.normalize',
        lambda x, dim: precisions.append((x.dtype, torch.is_autocast_enabled('cpu'))) or original(x, dim=dim),
    )
    runner, _ = test_knn(checkpoint(), 'test_cfg.dtype=bfloat16')
    assert set(precisions) == {(torch.float32, False)}
    half, _ = loader_features(runner.model, runner.test_loop.bank_dataloader, dtype='bfloat16')
    full, _ = loader_features(runner.model, runner.test_loop.bank_dataloader)
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)


def test_predictions_can_be_drawn(test_knn, checkpoint, tmp_path):
    pictures = tmp_path / 'pictures'
    draw = [f'default_hooks.visualization.{setting}' for setting in ('enable=True', 'interval=1', f'out_dir={pictures}')]
    test_knn(checkpoint(), *draw)
    assert len(list(pictures.iterdir())) == 2  # named by the files, of which every class has the same two


@pytest.mark.skipif(has_accelerator(), reason='two processes would need two GPUs')
def test_two_processes_find_what_one_finds(test_knn, checkpoint, options, run_tool, tmp_path):
    fewer = 'test_cfg.bank_dataloader.dataset.labels=39'  # an odd number: one process gets a copy
    _, metrics = test_knn(checkpoint(), fewer)
    config = 'configs/digits/knn_vit-digits.py'
    changes = ('--cfg-options', *options('knn'), fewer)
    code, output = run_tool('tools/dist_test.sh', config, checkpoint(), 2, '--work-dir', tmp_path / 'two', *changes)
    assert code == 0, output
    assert json.loads((tmp_path / 'two/metrics.json').read_text()) == pytest.approx(metrics)
