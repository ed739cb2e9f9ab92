"""The drawing tools as processes: the pictures are there and hold what they should; bad input is one line."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmcae.checkpoints import metadata_of
from mmcae.models.targets import PatchCodebook

CONFIG = """
default_scope = 'mmpretrain'
data_preprocessor = dict(
    type='mmcae.ViewPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, second_mean=[0.0] * 3, second_std=[255.0] * 3)
model = dict(
    type='mmcae.CAE',
    backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_layers=3, num_heads=4), img_size=64),
    regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=48, embed_dims=48, num_heads=4, num_layers=2),
    decoder=dict(type='mmcae.CAEDecoder', embed_dims=48, num_heads=4, num_layers=2, num_outputs=24),
    target_generator=dict(type='mmcae.PatchCodebook', checkpoint={tokenizer!r}),
)
"""


@pytest.fixture
def pretrained(tiny_cae, tmp_path):
    """A pretraining config and a checkpoint of it."""
    tokenizer = PatchCodebook(vocab_size=24, patch_size=16)
    tokenizer.training_loss(torch.rand(16, 3, 64, 64))
    torch.save(dict(state_dict=tokenizer.state_dict()), tmp_path / 'tokenizer.pth')
    config = CONFIG.format(tokenizer=str(tmp_path / 'tokenizer.pth'))
    (tmp_path / 'config.py').write_text(config)
    torch.save(dict(state_dict=tiny_cae().state_dict(), meta=metadata_of(tiny_cae())), tmp_path / 'cae.pth')
    return tmp_path / 'config.py', tmp_path / 'cae.pth'


def test_reconstruct(pretrained, image_folder, run_tool, tmp_path):
    images = sorted(image_folder(classes=(), count=3, size=(50, 70)).iterdir())
    out = tmp_path / 'new' / 'sheet.png'
    code, output = run_tool(
        'tools/visualization/reconstruct.py', *pretrained, *images, '--out', out, '--mask-ratio', '0.25', '--pairs', '2'
    )
    assert code == 0, output
    assert re.search(r'\d+\.\d% of the masked tokens were predicted right', output)
    # Two rows of two images with four pictures each; the last place is empty.
    width, height = Image.open(out).size
    assert width == 6 + 8 * 150 and height > 2 * 144


def test_several_masks_of_one_image(pretrained, image_folder, fork_tool, tmp_path):
    image = next(image_folder(classes=(), count=1, size=(64, 64)).iterdir())
    out = tmp_path / 'sheet.png'
    code, output = fork_tool('tools/visualization/reconstruct.py', *pretrained, image, '--out', out, '--masks', 3)
    assert code == 0, output
    sheet = np.asarray(Image.open(out)).astype(int)
    height = 144 + 6  # of a row with its gap; three rows, each of another mask
    rows = [sheet[-(n + 1) * height : -n * height or None, 150:300] for n in range(3)]
    assert all((one != other).any() for one, other in ((rows[0], rows[1]), (rows[1], rows[2]), (rows[0], rows[2])))


def test_reconstruct_names_the_missing_tokenizer(pretrained, image_folder, run_tool, tmp_path):
    (tmp_path / 'tokenizer.pth').unlink()
    image = next(image_folder(classes=(), count=1).iterdir())
    code, output = run_tool('tools/visualization/reconstruct.py', *pretrained, image, '--out', tmp_path / 'sheet.png')
    assert code == 2 and 'tokenizer.pth' in output and 'Traceback' not in output
    assert not (tmp_path / 'sheet.png').exists()


def test_attention(pretrained, image_folder, run_tool, tmp_path):
    images = sorted(image_folder(classes=(), count=2).iterdir())
    out = tmp_path / 'sheet.png'
    code, output = run_tool('tools/visualization/attention.py', pretrained[1], *images, '--out', out, '--img-size', '32', '48')
    assert code == 0, output
    sheet = np.asarray(Image.open(out))
    assert sheet.shape[1] == 6 + 6 * 150  # image, mean, four heads
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000
    code, output = run_tool('tools/visualization/attention.py', pretrained[1], images[0], '--out', out, '--num-heads', '5')
    assert code == 2 and '--num-heads 5 was given' in output


def test_plot_curves(run_tool, tmp_path):
    for number, run in enumerate('ab', 1):  # one line must not hide the other
        log = tmp_path / run / '20260101_000000' / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(''.join(json.dumps(dict(loss=number / step, lr=0.1 * number, step=step)) + '\n' for step in (1, 2, 3)))
    out = tmp_path / 'curves.png'
    tool = 'tools/analysis_tools/plot_curves.py'
    code, output = run_tool(tool, tmp_path / 'a', tmp_path / 'b', '-o', out, '--keys', 'loss', 'lr')
    assert code == 0, output
    picture = np.asarray(Image.open(out).convert('RGB')).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # one line each
        assert (picture == colour).all(axis=1).any()
    code, output = run_tool(tool, tmp_path / 'a', '-o', out, '--keys', 'loos')
    assert code == 2 and 'loos' in output and 'loss, lr' in output


@pytest.mark.parametrize('task', ['upernet', 'mask_rcnn'])
def test_predictions(task, digit_scenes, repository, run_tool, tmp_path, monkeypatch):
    """Two models beside the truth, from the real configs."""
    from mmengine.registry import MODELS, init_default_scope

    from mmcae.utils.configs.loading import load_config

    monkeypatch.chdir(digit_scenes.parents[1])
    config = repository / f'configs/digits/{task}_vit-digits.py'
    cfg = load_config(config)
    init_default_scope(cfg.default_scope)
    for name in 'ab':
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / f'{name}.pth')
    out = tmp_path / 'sheet.png'
    code, output = run_tool(
        'tools/visualization/predictions.py', config, tmp_path / 'a.pth', tmp_path / 'b.pth', '--names', 'first', 'second',
        '--out', out, '--count', '2', cwd=digit_scenes.parents[1],
    )  # fmt: skip
    assert code == 0, output
    sheet = np.asarray(Image.open(out))
    assert sheet.shape[1] == 6 + 4 * 294
    image, truth = sheet[-200:-6, 6:294].astype(int), sheet[-200:-6, 300:588].astype(int)
    assert np.abs(image - truth).max() > 50  # something is drawn


def test_predictions_need_a_task_that_has_them(pretrained, run_tool, tmp_path):
    code, output = run_tool('tools/visualization/predictions.py', *pretrained, '--out', tmp_path / 'sheet.png')
    assert code == 2 and 'mmpretrain' in output
    code, output = run_tool('tools/visualization/predictions.py', *pretrained, '--names', 'a', 'b')
    assert code == 2 and '--names' in output


def test_results_table(run_tool, tmp_path):
    results, document = tmp_path / 'results.json', tmp_path / 'README.md'
    results.write_text(json.dumps({'cae': {'knn': {'mean': 0.571, 'std': 0.012, 'n': 3}}}))
    tool = 'tools/analysis_tools/results_table.py'
    code, output = run_tool(tool, results)
    assert code == 0 and output.endswith('| CAE | 57.1 ± 1.2 |\n')
    markers = '<!-- results: made by tools/analysis_tools/results_table.py -->', '<!-- end of results -->'
    document.write_text(f'before\n{markers[0]}\nold\n{markers[1]}\nafter\n')
    for _ in range(2):
        code, output = run_tool(tool, results, '--into', document)
        assert code == 0, output
    table = '| encoder | kNN |\n| --- | ---: |\n| CAE | 57.1 ± 1.2 |\n'
    assert document.read_text() == f'before\n{markers[0]}\n{table}{markers[1]}\nafter\n'
    document.write_text('no place for it\n')
    code, output = run_tool(tool, results, '--into', document)
    assert code == 2 and 'README.md' in output
