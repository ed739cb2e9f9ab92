"""The online probe in a real pretraining run: what it reports, and that it changes nothing."""

import json

import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from mmcae.engine import OnlineProbe
from mmcae.engine.hooks.online_probe import PENALTY, linear_scores
from mmcae.evaluation import effective_rank, feature_std
from mmcae.evaluation.features import build_dataloader, loader_features
from mmcae.evaluation.knn import knn_scores
from mmcae.utils.errors import ConfigError, DataError

LOAD = dict(type='mmcae.LoadImage')
PACK = dict(type='mmpretrain.PackInputs')


@pytest.fixture
def probe(image_folder):
    def loader(name, with_label=True, count=4):
        root = image_folder(name, ('a', 'b'), count=count)
        data = dict(type='mmpretrain.CustomDataset', data_root=str(root), with_label=with_label, pipeline=[LOAD, PACK])
        return dict(batch_size=3, dataset=data)

    return loader


def written(runner):
    """What the probe wrote, by step."""
    path = next(iter((runner.visualizer.get_backend('LocalVisBackend')._save_dir,)))
    lines = [json.loads(line) for line in open(f'{path}/scalars.json')]
    return {line['step']: line for line in lines if 'probe/effective_rank' in line}


def test_reports_collapse_without_labels_and_knn_with_them(pretrain, probe):
    bank, queries = probe('bank'), probe('queries', count=3)
    unlabelled = pretrain(dict(type='mmcae.OnlineProbe', dataloader=probe('plain', with_label=False)))
    assert set(written(unlabelled)) == {1, 2}
    assert not any('knn' in name for line in written(unlabelled).values() for name in line)

    runner = pretrain(dict(type='mmcae.OnlineProbe', dataloader=bank, query_dataloader=queries, interval=2, k=(3,), dtype='float32'))
    lines = written(runner)
    assert set(lines) == {2}
    features, labels = loader_features(runner.model, build_dataloader(bank))
    assert lines[2]['probe/effective_rank'] == pytest.approx(effective_rank(features), rel=1e-4)
    assert lines[2]['probe/feature_std'] == pytest.approx(feature_std(features), rel=1e-4)
    unknown, truth = loader_features(runner.model, build_dataloader(queries))
    accuracy = (knn_scores(unknown, features, labels, 2, (3,))[3].argmax(1) == truth).float().mean().item()
    assert lines[2]['probe/knn3_top1'] == pytest.approx(100 * accuracy)
    scale = StandardScaler().fit(features)
    theirs = RidgeClassifier(alpha=PENALTY * len(features)).fit(scale.transform(features), labels)
    assert lines[2]['probe/linear_top1'] == pytest.approx(100 * theirs.score(scale.transform(unknown), truth))


def test_linear_scores_are_scikit_learns():
    labels = torch.arange(90) % 3
    bank, queries = 5 + 2 * torch.randn(3, 7)[labels] + torch.randn(90, 7), 5 + 3 * torch.randn(40, 7)
    bank[:, 4] = queries[:, 4] = 1.5  # constant, as dead channels are
    scale = StandardScaler().fit(bank)
    theirs = Ridge(alpha=PENALTY * 90).fit(scale.transform(bank), torch.eye(3)[labels]).predict(scale.transform(queries))
    assert torch.allclose(linear_scores(queries, bank, labels, 3), torch.from_numpy(theirs).float(), atol=1e-5)


def test_training_goes_on_as_without_it(pretrain, probe):
    hook = dict(type='mmcae.OnlineProbe', dataloader=probe('bank'), interval=1, by_epoch=False)
    watched, plain = pretrain(hook), pretrain()
    assert set(written(watched)) == {1, 2, 3, 4}
    plain = plain.model.state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in watched.model.state_dict().items())


def test_what_is_wrong_with_its_images_shows_before_training(pretrain, probe):
    hook = dict(type='mmcae.OnlineProbe', dataloader=probe('bank'), query_dataloader=probe('queries'), interval=9, k=(9,))
    with pytest.raises(DataError, match='k=9 .* has 8'):  # nine epochs never pass
        pretrain(hook)
    with pytest.raises(ConfigError, match='interval of at least 1'):
        OnlineProbe(probe('more'), interval=0)
