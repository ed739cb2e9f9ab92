"""Judging frozen encoders: against scikit-learn and slow references, from the cache, and what is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from mmcae.apis.judging import judge
from mmcae.checkpoints import write_state_dict
from mmcae.datasets.sources.labelled_readers import read_labelled
from mmcae.evaluation.probes import Settings
from mmcae.models import CAEViT
from mmcae.utils.errors import ConfigError, DataError

QUICK = Settings(blocks=(1, 2), k=(1,), patch_k=(1, 3), rates=(0.01, 0.1), epochs=1, min_steps=20, draws=3, resamples=20)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMCAE_CACHE', str(tmp_path / 'kept'))


@pytest.fixture
def encoder():
    torch.manual_seed(5)
    return CAEViT(arch=dict(embed_dims=16, num_layers=2, num_heads=2), img_size=32, patch_size=8).eval()


@pytest.fixture
def classes(image_folder, tmp_path):
    for split, seed in (('train', 0), ('val', 1), ('test', 2)):
        image_folder(f'set/{split}', ('cat', 'dog'), 6, seed=seed)
    return tmp_path / 'set'


@pytest.fixture
def scenes(tmp_path):
    """Images of two halves, red and green, and their label maps; other sizes than the encoder's, 255 along the edge."""
    random = np.random.default_rng(0)
    for split, count in (('train', 6), ('val', 3), ('test', 3)):
        for number in range(count):
            edge = random.integers(10, 38)
            truth = np.zeros((40, 48), np.uint8)
            truth[:, edge:] = 1
            pixels = np.where(truth[..., None] == 1, (200, 30, 30), (30, 200, 30)).astype(np.uint8)
            truth[:, edge] = 255
            for folder, array in (('images', pixels), ('label_maps', truth)):
                path = tmp_path / 'scenes' / folder / split / f'{number}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / 'scenes'


def by_name(judgement, name='e'):
    return {(score.probe, score.metric): score for score in judgement.scores[name]}


def features_by_hand(encoder, images, split):
    from mmcae.apis import extract_features

    paths = [images.paths[row] for row in images.index(split)]
    return extract_features(encoder, paths), images.classes[1][images.index(split)]


def test_classes_against_scikit_learn(encoder, classes):
    images = read_labelled(classes)
    found = by_name(judge(dict(e=encoder), images, settings=QUICK))
    assert list(found) == [('knn', 'top-1'), ('linear', 'top-1'), ('few_shot_1', 'top-1'), ('few_shot_5', 'top-1')]
    known, labels = features_by_hand(encoder, images, 'train')
    asked, truth = features_by_hand(encoder, images, 'test')
    pooled = {'cls': (known, asked)}
    means = CAEViT(arch=dict(embed_dims=16, num_layers=2, num_heads=2), img_size=32, patch_size=8, out_type='avg_featmap').eval()
    means.load_state_dict(encoder.state_dict())
    pooled['mean'] = features_by_hand(means, images, 'train')[0], features_by_hand(means, images, 'test')[0]
    known, asked = pooled[found['knn', 'top-1'].choice.split()[0]]
    score = KNeighborsClassifier(1, metric='cosine').fit(known, labels).score(asked, truth)
    assert found['knn', 'top-1'].value == pytest.approx(score)
    assert all(0 <= score.low <= score.value <= score.high + 1e-9 for score in found.values() if 'few' not in score.probe)


def test_label_maps_against_a_slow_nearest_patch(encoder, scenes):
    from mmcae.apis.features import load_encoder_and_view
    from mmcae.apis.images import load_image, resize

    settings = Settings(patch_k=(1,), rates=(0.05,), epochs=1, min_steps=100, resamples=20)
    found = by_name(judge(dict(e=encoder), scenes, settings=settings))
    assert {probe for probe, _ in found} == {'knn_segmentation', 'linear_segmentation'}
    assert found['linear_segmentation', 'mIoU'].value > 0.5

    _, view = load_encoder_and_view(encoder)
    images = read_labelled(scenes)

    def patches(row):
        image = view.normalize([resize(load_image(images.paths[row]), (32, 32))])
        with torch.no_grad():
            return encoder.encode(image)[0, 1:].half().float()

    def majority(row):
        truth = np.array(Image.open(images.label_maps.paths[row]))
        shrunk = truth[((np.arange(32) + 0.5) * 40 / 32).astype(int)][:, ((np.arange(32) + 0.5) * 48 / 32).astype(int)]
        tiles = [shrunk[y : y + 8, x : x + 8].ravel() for y in range(0, 32, 8) for x in range(0, 32, 8)]
        return [max((0, 1, 255), key=lambda label: ((tile == label).sum(), -label)) for tile in tiles]

    bank = torch.cat([patches(row) for row in images.index('train')])
    labels = np.concatenate([majority(row) for row in images.index('train')])
    both, union = np.zeros(2), np.zeros(2)
    for row in images.index('test'):
        similarity = torch.nn.functional.cosine_similarity(patches(row)[:, None], bank[None], dim=-1)
        votes = torch.nn.functional.one_hot(torch.from_numpy(labels[similarity.argmax(dim=1).numpy()]), 2).float()
        scores = torch.nn.functional.interpolate(votes.T.unflatten(1, (4, 4))[None], (40, 48), mode='bilinear')[0]
        truth, predicted = np.array(Image.open(images.label_maps.paths[row])), scores.argmax(dim=0).numpy()
        for label in range(2):
            scored = truth != 255
            both[label] += (scored & (truth == label) & (predicted == label)).sum()
            union[label] += (scored & ((truth == label) | (predicted == label))).sum()
    assert found['knn_segmentation', 'mIoU'].value == pytest.approx((both / union).mean(), abs=0.02)


def test_table_with_groups_tags_and_numbers(encoder, image_folder, tmp_path):
    root = image_folder('images', ('cat', 'dog'), 12)
    rows = [f'{path.relative_to(tmp_path)},{path.stem[:3]},{int(path.parent.name == "cat")},{int(path.stem)}' for path in root.rglob('*.*')]
    table = tmp_path / 'table.csv'
    table.write_text('path,group,is_cat,age\n' + '\n'.join(sorted(rows)) + '\n')
    found = by_name(judge(dict(e=encoder), table, settings=QUICK))
    assert list(found) == [('tags', 'mAP'), ('numbers', 'R2'), ('numbers', 'MAE')]
    assert found['tags', 'mAP'].value == 1  # the classes have colours of their own
    images = read_labelled(table)
    places = {group: set(images.splits[images.groups == group]) for group in images.groups}
    assert all(len(splits) == 1 for splits in places.values()) and len(places) == 12


def test_second_call_computes_nothing(encoder, classes, monkeypatch):
    first = judge(dict(e=encoder), classes, settings=QUICK)
    monkeypatch.setattr('mmcae.apis.judging.pooled_features', None)
    assert judge(dict(e=encoder), classes, settings=QUICK) == first
    other = Settings(**{**QUICK.__dict__, 'seed': 1})  # other draws, the same features
    assert judge(dict(e=encoder), classes, ['few_shot'], other).scores['e']
    with torch.no_grad():
        encoder.cls_token += 1
    with pytest.raises(TypeError):  # other weights are computed
        judge(dict(e=encoder), classes, settings=QUICK)


def test_random_is_the_architecture_of_the_first(encoder, classes):
    with torch.no_grad():
        encoder.patch_embed.proj.weight.zero_()
    judgement = judge(dict(e=encoder, random='random'), classes, ['knn'], QUICK)
    assert set(judgement.scores) == {'e', 'random'}
    assert judgement.scores['e'] != judgement.scores['random']


def test_grids(encoder, classes):
    torch.manual_seed(0)
    fine = CAEViT(arch=dict(embed_dims=16, num_layers=2, num_heads=2), img_size=32, patch_size=4).eval()
    with pytest.raises(ConfigError, match=r'4x4 patches and fine as 8x8.*--grid 4 4'):
        judge(dict(e=encoder, fine=fine), classes, ['knn'], QUICK)
    assert set(judge(dict(e=encoder, fine=fine), classes, ['knn'], QUICK, grid=(4, 4)).scores) == {'e', 'fine'}


def test_refused(encoder, classes, scenes):
    with pytest.raises(ConfigError, match="no probe 'kn'"):
        judge(dict(e=encoder), classes, ['kn'])
    with pytest.raises(ConfigError, match="no labels for the probe 'knn': it has label_maps"):
        judge(dict(e=encoder), scenes, ['knn'])
    with pytest.raises(ConfigError, match='Name a checkpoint'):
        judge(dict(e='random'), classes)
    with pytest.raises(DataError, match='Class cat has 6 images to learn from, and 7'):
        judge(dict(e=encoder), classes, ['few_shot'], Settings(shots=(7,)))
    damaged = classes / 'test' / 'cat' / '000.jpg'
    damaged.write_bytes(b'no image')
    with pytest.raises(DataError, match='000.jpg'):
        judge(dict(e=encoder), classes, ['knn'], QUICK)


def test_command(encoder, classes, tmp_path, fork_tool):
    write_state_dict(tmp_path / 'encoder.pth', encoder.state_dict())
    out = tmp_path / 'out'
    options = [
        '--probes',
        'knn',
        'few_shot',
        '--shots',
        '2',
        '--draws',
        '2',
        '--blocks',
        '1',
        '--device',
        'cpu',
        '--num-heads',
        2,
        '--out',
        out,
    ]
    code, output = fork_tool('mmcae/__main__.py', 'judge', f'mine={tmp_path / "encoder.pth"}', 'random', '--data', classes, *options)
    assert code == 0, output
    assert '| mine | ' in output and '12 train, 12 val, 12 test' in output
    content = json.loads((out / 'judged.json').read_text())
    assert list(content['scores']) == ['mine', 'random'] and content['table'][0] == ['encoder', 'knn, top-1', 'few shot 2, top-1']
    lines = list(csv.DictReader((out / 'judged.csv').open()))
    assert [(line['encoder'], line['probe']) for line in lines] == [(n, p) for n in ('mine', 'random') for p in ('knn', 'few_shot_2')]
    code, output = fork_tool('mmcae/__main__.py', 'judge', tmp_path / 'encoder.pth', tmp_path / 'encoder.pth', '--data', classes)
    assert code == 2 and 'Two encoders are called' in output.splitlines()[-1]
