"""Splits by patient: nobody on both sides, near the wanted share, stable; ids that are missing are an error."""

import pytest

from mmcae.datasets.sources.group_split import group_split, groups_of
from mmcae.utils.errors import ConfigError, DataError

PATHS = [f'slide{s:02d}/patient-{s // 2}_tile{t}.png' for s in range(20) for t in range(1 + s)]


@pytest.mark.parametrize('pattern, ids', [(r'patient-(\d+)', 10), (r'^[^/]+', 20), (r'slide(?P<id>\d)', 2)])
def test_every_id_is_on_one_side(pattern, ids):
    split = group_split(PATHS, pattern, 0.3)
    assert not set(split['train']) & set(split['val']) and len(split['train']) + len(split['val']) == ids
    assert set(groups_of(PATHS, pattern)) == {*split['train'], *split['val']}


@pytest.mark.parametrize('share', [0.05, 0.1, 0.3, 0.7])
def test_share_is_as_near_as_whole_groups_allow(share):
    groups = groups_of(PATHS, r'^[^/]+')
    for seed in range(5):
        val = set(group_split(PATHS, r'^[^/]+', share, seed)['val'])
        assert sum(group in val for group in groups) == pytest.approx(share * len(PATHS), abs=20)


def test_both_sides_get_something_however_uneven_the_groups():
    paths = [f'a/{i}' for i in range(50)] + [f'b/{i}' for i in range(50)]
    for share in (0.01, 0.99):
        split = group_split(paths, r'^\w+', share)
        assert len(split['train']) == len(split['val']) == 1


def test_choice_depends_on_the_seed_and_not_on_the_order():
    split = group_split(PATHS, r'^[^/]+', 0.3)
    assert split == group_split(PATHS[::-1], r'^[^/]+', 0.3)
    assert any(split != group_split(PATHS, r'^[^/]+', 0.3, seed) for seed in range(1, 4))


def test_paths_without_an_id_one_id_and_no_expression():
    with pytest.raises(DataError, match='no id in 2 of 212 paths, such as x.png, y.png'):
        group_split([*PATHS, 'x.png', 'y.png'], r'^[^/]+(?=/)', 0.1)
    with pytest.raises(DataError, match="one id alone, 'slide'"):
        group_split(PATHS, 'slide', 0.1)
    with pytest.raises(DataError, match='finds no id'):
        group_split(['a_/1.png', 'b_/2.png'], r'_(\d*)/', 0.1)  # an empty id is none
    with pytest.raises(ConfigError, match='no regular expression'):
        group_split(PATHS, '(', 0.1)
