"""Results: means and spreads of the runs, tables in order, and what other tools may not hand in."""

import json

import pytest
from results import markdown, read_results, summarize, table

from mmcae.utils.errors import DataError


def test_mean_spread_and_number_of_runs():
    results = summarize({('cae', 'knn'): [0.5, 0.6, 0.7], ('random', 'knn'): [0.25]})
    assert results == {
        'random': {'knn': {'mean': 0.25, 'std': 0.0, 'n': 1}},
        'cae': {'knn': {'mean': 0.6, 'std': 0.1, 'n': 3}},
    }


def test_the_table_has_fixed_order_and_shows_what_is_missing():
    results = summarize({('mae', 'mIoU'): [0.4, 0.5], ('cae', 'knn'): [0.5], ('random', 'knn'): [0.2], ('cae', 'mIoU'): [0.45]})
    assert table(results) == [
        ['encoder', 'kNN', 'UperNet, mIoU'],
        ['random initialisation', '20.0', '–'],
        ['CAE', '50.0', '45.0'],
        ['MAE', '–', '45.0 ± 7.1'],
    ]
    assert markdown([['a', 'b'], ['1', '2']]) == '| a | b |\n| --- | ---: |\n| 1 | 2 |\n'


def test_results_go_through_a_file(tmp_path):
    results = summarize({('cae', 'knn'): [0.5, 0.6], ('cae', 'box_mAP'): [0.7]})
    path = tmp_path / 'results.json'
    path.write_text(json.dumps(results))
    assert read_results(path) == results


@pytest.mark.parametrize(
    'content, culprit',
    [
        ('{', 'is no JSON'),
        ('[1]', 'holds no results'),
        ('{"cae": {"knn": 0.5}}', 'holds no results'),
        ('{"cae": {"knn": {"mean": 57.0, "std": 0, "n": 1}}}', 'cae.knn'),
        ('{"cae": {"guess": {"mean": 0.5, "std": 0, "n": 1}}}', 'cae.guess'),
        ('{"dino": {"knn": {"mean": 0.5, "std": 0, "n": 1}}}', 'dino.knn'),
        ('{"cae": {"knn": {"mean": 0.5}}}', 'cae.knn'),
    ],
)
def test_other_files_are_refused(tmp_path, content, culprit):
    path = tmp_path / 'results.json'
    path.write_text(content)
    with pytest.raises(DataError, match=culprit):
        read_results(path)
