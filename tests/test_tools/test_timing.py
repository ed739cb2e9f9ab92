"""What the benchmarks share: whose turn it is, ratios within a round, memory of a process of its own, the table."""

import importlib
import json
import statistics

import pytest
import timing
import torch

from mmcae.utils.errors import ConfigError

CPU = torch.device('cpu')
ARRAY_MIB = 64


def test_contenders_take_turns():
    calls = []
    times = timing.take_turns(dict(a=lambda: calls.append('a'), b=lambda: calls.append('b')), rounds=3, device=CPU)
    assert calls == ['a', 'b', *'ab', *'ba', *'ab']  # a warm-up, then every other round the other way round
    assert {name: len(seconds) for name, seconds in times.items()} == dict(a=3, b=3)
    assert all(second >= 0 for seconds in times.values() for second in seconds)


def test_ratio_is_of_times_of_the_same_round():
    """A machine that is ten times slower in the second half changes no ratio."""
    fast, slow = [1, 1, 10, 10, 10], [2, 2, 20, 20, 30]
    found = timing.ratio(slow, fast)
    assert found == dict(median=2, low=2, high=2)
    assert statistics.median(slow) / statistics.median(fast) == 2
    assert timing.ratio([1, 2, 3, 4, 5], [1] * 5) == dict(median=3, low=2, high=4)
    assert timing.ratio([3], [2]) == dict(median=1.5, low=1.5, high=1.5)
    assert timing.show(dict(median=1.5, low=1.456, high=2)) == '1.50 (1.46 to 2.00)'


# In a module that another process can import, unlike this one.
MEMORY_CONTENDERS = """
import numpy as np

MIB = 2**20


def hold(mebibytes, more):
    '''A contender that has an array from the start and takes another while it runs.'''
    kept = np.ones(mebibytes * MIB, np.uint8)
    return lambda: kept.sum() + np.ones(more * MIB, np.uint8).sum()


def build_large_run_small(mebibytes):
    np.ones(3 * mebibytes * MIB, np.uint8)
    return hold(mebibytes, 0)
"""


def test_peak_memory_is_what_the_contender_takes_while_it_runs(tmp_path, monkeypatch):
    (tmp_path / 'memory_contenders.py').write_text(MEMORY_CONTENDERS)
    monkeypatch.syspath_prepend(tmp_path)
    contenders = importlib.import_module('memory_contenders')
    assert timing.peak_memory(contenders.hold, ARRAY_MIB, ARRAY_MIB, device=CPU) == pytest.approx(2 * ARRAY_MIB, abs=8)
    assert timing.peak_memory(contenders.build_large_run_small, ARRAY_MIB, device=CPU) == pytest.approx(ARRAY_MIB, abs=8)


def test_report(tmp_path, capsys):
    rows = [dict(name='ours', seconds=0.12345, images=1234.5, note=None), dict(name='theirs', seconds=1.0, images=8.0, note='slow')]
    timing.report('A title', rows, CPU, dict(ratios=dict(a=1.5)), tmp_path / 'new' / 'x.json')
    printed = capsys.readouterr().out
    assert '| ours   | 0.123   | 1234   |      |' in printed and printed.startswith('A title\n')
    assert f'torch {torch.__version__}' in printed and f'{torch.get_num_threads()} threads' in printed
    written = json.loads((tmp_path / 'new' / 'x.json').read_text())
    assert written['ratios'] == dict(a=1.5) and written['rows'] == rows and 'torch' in written['machine']['versions']


@pytest.mark.skipif(torch.cuda.is_available(), reason='has a GPU')
def test_a_gpu_that_is_not_there():
    with pytest.raises(ConfigError, match='use --device cpu'):
        timing.device_of('cuda')
