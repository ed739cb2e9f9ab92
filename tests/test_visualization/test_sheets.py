"""Sheets of pictures: everything is where its title says, enlarged, nothing is lost."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from mmcae.apis import Reconstruction
from mmcae.visualization.reconstruction import reconstruction_sheet
from mmcae.visualization.sheet import enlarge, picture_sheet, save_picture, wrap

RED, GREEN, BLUE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def plain(colour, height=8, width=8):
    return np.full((height, width, 3), colour, np.uint8)


def areas(sheet):
    """Bounding box (left, top, right, bottom) of each pure colour."""
    pixels = np.asarray(sheet)
    found = {}
    for colour in (RED, GREEN, BLUE):
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        if len(rows):
            found[colour] = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return found


def test_cells_keep_their_order_and_size():
    found = areas(picture_sheet([[plain(RED), plain(GREEN)], [None, plain(BLUE, 8, 4)]], ['a', 'b'], side=40))
    red, green, blue = found[RED], found[GREEN], found[BLUE]
    assert red[2] - red[0] == red[3] - red[1] == 40
    assert red[1] == green[1] and red[2] < green[0]
    # The narrow one stands in the middle of its column, below.
    assert (blue[2] - blue[0], blue[3] - blue[1]) == (20, 40)
    assert blue[1] > green[3] and blue[0] - green[0] == green[2] - blue[2]


def test_titles_and_captions_take_room_of_their_own():
    bare = picture_sheet([[plain(RED)]], [''], side=40)
    short = picture_sheet([[plain(RED)]], ['a'], side=40)
    long = picture_sheet([[plain(RED)]], ['words that need lines'], side=40)
    caption = picture_sheet([[plain(RED)]], ['a'], side=40, captions=[['below']])
    assert bare.height <= short.height < long.height and caption.height > short.height
    for sheet in (short, long, caption):
        box = areas(sheet)[RED]
        assert (box[2] - box[0], box[3] - box[1]) == (40, 40)  # no letter over the picture


def test_enlarging():
    checks = np.kron(np.array([[0, 1], [1, 0]], np.uint8)[..., None] * 255, np.ones((1, 1, 3), np.uint8))
    np.testing.assert_array_equal(enlarge(checks, 4, smooth=False), checks.repeat(2, axis=0).repeat(2, axis=1))
    assert len(np.unique(enlarge(checks, 16))) > 2
    assert enlarge(plain(RED, 30, 10), 90).shape == (90, 30, 3)


def test_wrapping_breaks_at_words():
    font = ImageFont.load_default(15)
    assert wrap('one two', 1000, font) == 'one two'
    assert wrap('one two', 30, font) == 'one\ntwo'
    assert wrap('unbreakable', 10, font) == 'unbreakable'


@pytest.mark.parametrize('pairs', [1, 2])
def test_reconstructions_stand_side_by_side(pairs):
    one = Reconstruction(plain(RED), plain(BLUE), plain(GREEN, 4, 4), plain((255, 255, 0)), np.zeros((2, 2), bool), 0.5)
    found = areas(reconstruction_sheet([one] * 3, side=30, pairs=pairs))
    assert found[RED][0] < found[BLUE][0] < found[GREEN][0]
    heights = {1: 3, 2: 2}[pairs]
    assert found[RED][3] - found[RED][1] == 30 * heights + 6 * (heights - 1)


def test_saving_makes_the_folder(tmp_path, capsys):
    path = tmp_path / 'new' / 'sheet.png'
    save_picture(picture_sheet([[plain(RED)]], ['a']), path)
    assert Image.open(path).size[0] > 100 and str(path) in capsys.readouterr().out
