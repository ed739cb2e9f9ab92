"""tools/benchmarks/compare_methods.py: two methods on a few images as a process, resumed; the table by hand; refusals."""

import importlib.util
import json
from argparse import Namespace

import pytest
from scipy.stats import ttest_rel

TOOL = 'tools/benchmarks/compare_methods.py'


@pytest.fixture
def module(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / 'tools/benchmarks'))
    spec = importlib.util.spec_from_file_location('compare_methods', repository / TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def workplace(image_folder, tmp_path):
    for split, count in (('train', 4), ('val', 1), ('test', 1)):
        image_folder(f'data/digits/classification/{split}', tuple('0123456789'), count)
    image_folder('data/digits/pretrain/tiles32', (), 16)
    return tmp_path


def test_equal_computation_kept_cells_and_one_table(run_tool, workplace):
    methods = ('--methods', 'half=cae_pixels', 'mae', '--against', 'mae', '--seeds', '3')
    pretraining = ('train_dataloader.batch_size=4', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False')
    options = (
        '--cfg-options',
        *pretraining,
        'half:mask_ratio=0.5',
        'half:experiment_name={data}{seed}',
        '--protocol-options',
        'knn:test_cfg.bank_dataloader.dataset.labels=40',
    )
    command = (TOOL, '--split', 'val', *methods, '--data', 'digits', '--protocols', 'knn', '--budget', '0.7', *options, '--out', 'out')
    code, output = run_tool(*command, '--lanes', '2', cwd=workplace)
    assert code == 0, output
    written = json.loads((workplace / 'out/results_val.json').read_text())
    assert [(cell['method'], cell['seed']) for cell in written['cells']] == [('half', 3), ('mae', 3)]
    for cell in written['cells']:
        assert 0 <= cell['figures']['knn']['top1'] <= 1 and cell['seconds'] > 0
        assert cell['steps'] == max(1, round(0.7e9 / cell['multiply_adds_of_a_step']))
        metrics = json.loads((workplace / f'out/cells/digits/{cell["method"]}/seed3/protocols_val/knn/test/metrics.json').read_text())
        assert cell['figures']['knn']['top1'] == pytest.approx(metrics['k10/accuracy/top1'] / 100)
    assert "experiment_name = 'digits3'" in next((workplace / 'out/cells/digits/half/seed3/pretrain').glob('*.py')).read_text()
    assert written['cells'][0]['multiply_adds_of_a_step'] != written['cells'][1]['multiply_adds_of_a_step']
    lines = (workplace / 'out/results_val.md').read_text().splitlines()
    assert len([line for line in lines if line.startswith('| digits |')]) == 2 and 'lead over mae' in lines[-1]
    code, output = run_tool(*command, cwd=workplace)
    assert code == 0 and '4 of 4 jobs had finished before and are kept' in output, output


def test_options_of_one_training(module):
    options = ['model.backbone.init_cfg.checkpoint=cells/{data}/cae/seed{seed}/last.pth', "a={'b': 1}"]
    assert module.filled(options, 'fashion', 2) == ['model.backbone.init_cfg.checkpoint=cells/fashion/cae/seed2/last.pth', "a={'b': 1}"]


def test_table(module):
    tops = dict(a=(0.5, 0.6, 0.7), b=(0.52, 0.66, 0.71))

    def figures(top):
        return dict(knn=dict(top1=top, top5=1.0), mask_rcnn=dict(box_mAP=top / 2, segm_mAP=0.1))

    results = [
        dict(data='digits', method=method, seed=seed, steps=1234, multiply_adds_of_a_step=2.5e9, seconds=90, figures=figures(top))
        for method, values in tops.items()
        for seed, top in enumerate(values)
    ]
    args = Namespace(data=['digits'], recipes=dict(a='a', b='b'), against='a', protocols=['knn', 'mask_rcnn'], split='val', seeds=[0, 1, 2])
    text = module.table(results, args)
    p = ttest_rel(tops['b'], tops['a']).pvalue
    assert '| digits | a | 2.50 | 1,234 | 1.5 | 60.0 ± 10.0 | 30.0 ± 5.0 |' in text and '| knn top1 | mask_rcnn box_mAP |' in text
    assert f'| digits | b | 2.50 | 1,234 | 1.5 | 63.0 ± 9.8 (+3.0, p {p:.3f}) | 31.5 ± 4.9 (+1.5, p {p:.3f}) |' in text


def test_differences_that_cannot_be_tested(module):
    assert module.difference([50.0], [49.0]) == ' (+1.0)'
    assert module.difference([50.0, 51.0], [49.0, 50.0]) == ' (+1.0)'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--split', 'val', '--methods', 'mae', 'mae'), 'named twice'),
        (('--split', 'val', '--methods', 'mae', '--against', 'cae'), '--against cae: it is none of the methods mae'),
        (('--split', 'val', '--budget', '0'), '--budget must be above 0'),
        (('--split', 'val', '--methods', 'maee', '--data', 'digits'), 'maee_vit-digits.py'),
        (('--split', 'val', '--protocols', 'knnn'), "There is no protocol 'knnn'"),
        (('--split', 'val', '--methods', 'mae', '--cfg-options', 'cae:max_iters=3'), "there is no method 'cae' here"),
        (('--methods', 'mae'), 'required: --split'),
    ],
)
def test_refusals(fork_tool, workplace, arguments, message):
    code, output = fork_tool(TOOL, *arguments, '--out', 'out', cwd=workplace)
    assert code == 2 and message in output.splitlines()[-1], output
