"""tools/analysis_tools/judged_table.py: means over runs of mmcae judge, and runs that do not belong together."""

import json
import statistics

import pytest

from mmcae.apis.judging import Judgement
from mmcae.evaluation.probes import Score, Settings

TOOL = 'tools/analysis_tools/judged_table.py'


@pytest.fixture
def judged(tmp_path):
    """Write a judged.json of two encoders: `judged('a.json', seed, top-1 values, mean absolute errors)`."""

    def make(name, seed, top1, error, data='tree', settings=()):
        scores = {
            encoder: [Score('knn', 'top-1', value, 0, 1), Score('numbers', 'MAE', wrong, 0, 1)]
            for encoder, value, wrong in zip(('cae', 'mae'), top1, error, strict=True)
        }
        judgement = Judgement(data, dict(train=3, val=2, test=2), scores, Settings(seed=seed, **dict(settings)))
        (tmp_path / name).write_text(judgement.json())
        return tmp_path / name

    return make


def test_means_and_deviations(judged, fork_tool, tmp_path):
    runs = [judged(f'{seed}.json', seed, (0.5 + seed / 10, 0.25), (12.5 * seed, 3.0)) for seed in range(3)]
    code, output = fork_tool(TOOL, *runs, '--json', tmp_path / 'out.json')
    assert code == 0, output
    assert '| encoder | tree: knn, top-1 | tree: numbers, MAE |' in output
    assert '| cae | 60.0 ± 10.0 | 12.5 ± 12 |' in output and '| mae | 25.0 ± 0.0 | 3 ± 0 |' in output
    content = json.loads((tmp_path / 'out.json').read_text())
    (cae,) = (score for score in content['scores'] if score['encoder'] == 'cae' and score['metric'] == 'top-1')
    assert cae['values'] == [0.5, 0.6, 0.7] and cae['std'] == pytest.approx(statistics.stdev(cae['values']))
    assert [run['settings']['seed'] for run in content['runs']] == [0, 1, 2]


def test_runs_that_do_not_belong_together(judged, fork_tool, tmp_path):
    first = judged('0.json', 0, (0.5, 0.2), (1.0, 1.0))
    other = judged('1.json', 1, (0.5, 0.2), (1.0, 1.0), settings=dict(patches=7))
    for arguments, told in (
        ((first, other), '1.json and'),
        ((first,), 'one run on tree'),
        ((first, judged('2.json', 0, (0.5, 0.2), (1.0, 1.0), data='others')), 'one run on tree'),
        ((first, tmp_path / 'none.json'), 'none.json'),
    ):
        code, output = fork_tool(TOOL, *arguments)
        assert code == 2 and told in output.splitlines()[-1], output
    first.write_text('{"kind": "else"}')
    code, output = fork_tool(TOOL, first, other)
    assert code == 2 and '0.json is not of mmcae judge' in output.splitlines()[-1]
