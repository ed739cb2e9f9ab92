"""The relative position bias of any patch grid against its definition, cell by cell."""

import pytest
import torch

from mmcae.checkpoints.tables import bias_table_length, resize_bias_table
from mmcae.models.encoders.relative_position import relative_position_bias, relative_position_index


def test_table_length():
    assert bias_table_length((14, 14)) == 27 * 27 + 3
    assert bias_table_length((2, 5)) == 3 * 9 + 3


@pytest.mark.parametrize('grid', [(3, 3), (2, 5), (4, 1)])
def test_bias_depends_on_the_offset_alone(grid):
    height, width = grid
    table = torch.randn(bias_table_length(grid), 2)
    bias = relative_position_bias(table, grid, grid)
    assert bias.shape == (2, 1 + height * width, 1 + height * width)
    for i in range(height * width):
        for j in range(height * width):
            down, right = i // width - j // width, i % width - j % width
            row = (down + height - 1) * (2 * width - 1) + right + width - 1
            assert torch.equal(bias[:, i + 1, j + 1], table[row])
    assert (bias[:, 0, 1:] == table[-3][:, None]).all()  # cls -> patches
    assert (bias[:, 1:, 0] == table[-2][:, None]).all()  # patches -> cls
    assert torch.equal(bias[:, 0, 0], table[-1])


def test_every_row_is_used():
    assert relative_position_index(3, 4, torch.device('cpu')).unique().tolist() == list(range(bias_table_length((3, 4))))


def test_index_agrees_with_timm():
    """timm's BEiT is where exported tables go."""
    from timm.models.beit import gen_relative_position_index

    for grid in ((3, 3), (2, 5)):
        assert torch.equal(relative_position_index(*grid, torch.device('cpu')), gen_relative_position_index(grid))


def test_other_grids_resize_the_table():
    table = torch.randn(bias_table_length((4, 4)), 3)
    assert resize_bias_table(table, (4, 4), (4, 4)) is table
    resized = resize_bias_table(table, (4, 4), (6, 3))
    assert resized.shape == (bias_table_length((6, 3)), 3)
    assert torch.equal(resized[-3:], table[-3:])
    torch.testing.assert_close(relative_position_bias(table, (4, 4), (6, 3)), relative_position_bias(resized, (6, 3), (6, 3)))
    # The offset zero is the centre of both tables, and stays where it is.
    torch.testing.assert_close(resized[:-3].reshape(11, 5, 3)[5, 2], table[:-3].reshape(7, 7, 3)[3, 3])


def test_constant_tables_stay_constant():
    table = torch.ones(bias_table_length((3, 3)), 1)
    torch.testing.assert_close(resize_bias_table(table, (3, 3), (5, 8)), torch.ones(bias_table_length((5, 8)), 1))
