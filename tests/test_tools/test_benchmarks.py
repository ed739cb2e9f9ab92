"""tools/benchmarks/ as processes, on small models: what they check, print and write. Nothing is asserted about speed."""

import json

import pytest
from PIL import Image

SMALL = ('--width', '64', '--depth', '2')
STEP = (*SMALL, '--img-size', '64', '--batch-size', '2', '--tokenizer-width', '8')


def rows_of(output, path):
    """The rows written to a file, after a look at the table that was printed."""
    written = json.loads(path.read_text())
    lines = [line for line in output.splitlines() if line.startswith('| ')]
    assert len(lines) == len(written['rows']) + 2
    assert [cell.strip() for cell in lines[0].strip('|').split('|')] == list(written['rows'][0])
    assert 'torch' in written['machine']['versions'] and 'tools/benchmarks/' in written['command']
    return written, written['rows']


def test_pretrain_step(run_tool, tmp_path):
    arguments = (*STEP, '--rounds', '2', '--mask-ratios', '0.75', '--json', tmp_path / 'out/step.json')
    code, output = run_tool('tools/benchmarks/pretrain_step.py', *arguments)
    assert code == 0, output
    written, rows = rows_of(output, tmp_path / 'out/step.json')
    ratios = written['ours_vs_mmpretrain']
    assert set(ratios) == {'throughput', 'peak_memory', 'throughput_bf16'} and all(value > 0 for value in ratios.values())
    contenders = ['mmpretrain', 'mmcae', 'mmcae bf16', 'mmcae bf16, tokenizer too']
    halves = ['mmcae, plain', 'mmcae, complementary']
    assert [row['contender'] for row in rows] == [*contenders, 'mmcae', 'mmcae bf16', *halves]
    assert [row['masked'] for row in rows] == [0.5] * 4 + [0.75] * 2 + [0.5] * 2
    ratio = written['complementary_vs_plain']
    assert set(ratio) == {'predictions_per_second', 'peak_memory_per_prediction'} and all(value > 0 for value in ratio.values())
    assert all(len(times) == 2 for times in written['seconds'].values())
    parts = ('tokenizer', 'encoder', 'target', 'regressor', 'decoder', 'loss', 'backward', 'optimizer')
    for row in rows[:4]:
        assert all(row[part] > 0 for part in parts) and row['peak MiB'] > 0
    memory = written['peak_memory_mib']
    assert ratios['peak_memory'] == pytest.approx(memory['mmcae'] / memory['mmpretrain'])


@pytest.mark.parametrize(('bias', 'adopted'), [(('--rel-pos-bias',), ()), ((), ('TimmEncoder',))])
def test_backbone(run_tool, tmp_path, bias, adopted):
    arguments = (*SMALL, *bias, '--sizes', '40x60', '--batch-sizes', '1', '--rounds', '2', '--json', tmp_path / 'backbone.json')
    code, output = run_tool('tools/benchmarks/backbone.py', *arguments)
    assert code == 0, output
    written, rows = rows_of(output, tmp_path / 'backbone.json')
    assert [(row['mode'], row['backbone']) for row in rows] == [
        (mode, name) for mode in ('inference', 'training') for name in ('CAEViT', *adopted, 'BEiTViT', 'timm Beit')
    ]
    assert set(written['settings']) == {'40x60 inference', '40x60 training'}
    assert written['settings']['40x60 training']['time']['BEiTViT'] == dict(median=1, low=1, high=1)


def test_flops(run_tool, tmp_path):
    code, output = run_tool('tools/benchmarks/flops.py', *STEP, '--mask-ratios', '0.5', '0.75', '--json', tmp_path / 'flops.json')
    assert code == 0, output
    _, rows = rows_of(output, tmp_path / 'flops.json')
    theirs, ours, fewer_visible = rows
    assert (ours['visible patches'], fewer_visible['visible patches']) == (8, 4)
    width, tokens = 64, 9
    linear = 12 * width**2 * 2  # of two blocks, in multiply-adds per token
    embedded = 3 * 16**2 * width * (tokens - 1) / tokens
    assert ours['encoder per token'] == pytest.approx((linear + embedded) / 1e6, rel=1e-6)
    assert fewer_visible['encoder per token'] == pytest.approx(ours['encoder per token'], rel=0.1)
    attention = 2 * 2 * tokens**2 * width
    assert ours['encoder'] == pytest.approx((tokens * (linear + embedded) + attention) / 1e9, rel=1e-6)
    # The same arithmetic, but that mmpretrain embeds all patches twice and tokenizes all of them.
    assert ours['regressor'] == pytest.approx(theirs['regressor']) and ours['decoder'] == pytest.approx(theirs['decoder'])
    assert ours['encoder'] < theirs['encoder'] and ours['target'] < theirs['target'] and ours['tokenizer'] < theirs['tokenizer']
    assert ours['step'] == pytest.approx(sum(ours[part] for part in ('tokenizer', 'encoder', 'target', 'regressor', 'decoder', 'backward')))


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        ('pretrain_step', ('--mask-ratio', '1.5'), 'between 0 and 1'),
        ('backbone', ('--sizes', '224', '512'), '2 --sizes need as many --batch-sizes'),
        ('flops', ('--mask-ratios', '0'), 'between 0 and 1'),
        ('embedding', ('--size', '100'), '--size must be a multiple of 16'),
    ],
)
def test_arguments_that_cannot_work(run_tool, tool, arguments, message):
    code, output = run_tool(f'tools/benchmarks/{tool}.py', *arguments)
    assert code == 2 and message in output


def test_dataloader(run_tool, tmp_path):
    arguments = ('--sizes', '80x60', '1000x960', '--images', '3', '--batch-size', '2', '--rounds', '2', '--json', tmp_path / 'loading.json')
    code, output = run_tool('tools/benchmarks/dataloader.py', *arguments)
    assert code == 0, output
    written, rows = rows_of(output, tmp_path / 'loading.json')
    names = ['mmpretrain', 'mmcae', 'mmcae, resized by PIL', 'mmcae, views on the device', 'mmcae, reduced', 'mmcae, packed']
    assert [(row['files'], row['pipeline']) for row in rows] == [(size, name) for size in ('80x60', '1000x960') for name in names]
    parts = ('decode', 'flip', 'crop', 'mask', 'pack')
    assert all(row[f'{part} ms'] > 0 for row in rows for part in parts) and all(row['images / s and core'] > 0 for row in rows)
    assert set(written['ours_vs_mmpretrain']) == {f'{size} {name}' for size in ('80x60', '1000x960') for name in names[1:]}
    assert written['settings']['80x60']['bytes_per_file'] == pytest.approx(1000 * rows[0]['KB'])


def test_dataloader_takes_files_of_your_own(run_tool, tmp_path):
    for number in range(2):
        Image.new('RGB', (70, 50), (90, 60 * number, 30)).save(tmp_path / f'{number}.jpg')
    code, output = run_tool('tools/benchmarks/dataloader.py', '--folder', tmp_path, '--rounds', '1')
    assert code == 0 and tmp_path.name in output, output
    code, output = run_tool('tools/benchmarks/dataloader.py', '--folder', tmp_path / 'absent')
    assert code == 2 and 'absent' in output and 'Traceback' not in output


def test_embedding(run_tool, tmp_path):
    arguments = ('--images', '12', '--size', '64', '--width', '64', '--depth', '1', '--batch-size', '8')
    code, output = run_tool('tools/benchmarks/embedding.py', *arguments, '--json', tmp_path / 'embedding.json')
    assert code == 0, output
    written, rows = rows_of(output, tmp_path / 'embedding.json')
    assert [row['contender'] for row in rows] == ['mmcae embed', 'plain loop']
    assert all(0 < row['MB at least'] <= row['MB at most'] and row['images / s and core'] > 0 for row in rows)
    assert written['ours_vs_plain'] == pytest.approx(rows[0]['images / s and core'] / rows[1]['images / s and core'])
