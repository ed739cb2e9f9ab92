"""The pages in a browser: clicks do what they promise, and nothing is wider than a phone."""

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image

from mmcae.apis.features import load_encoder_and_view
from mmcae.apis.look import Shown, write_encoder_page
from mmcae.models import CAEViT
from mmcae.visualization.page import Page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no chromium, chromium-browser or google-chrome on the PATH')
ALL_FIT = 'document.documentElement.scrollWidth <= innerWidth'


@pytest.fixture(scope='module')
def look_page(tmp_path_factory):
    """Two encoders of different grids, an image that is wider than high."""
    folder, encoders = tmp_path_factory.mktemp('look'), {}
    for name, patch in (('fine', 8), ('coarse', 16)):
        torch.manual_seed(0)
        encoder = CAEViT(arch=dict(embed_dims=16, num_layers=2, num_heads=2), img_size=64, patch_size=patch)
        encoders[name] = Shown(*load_encoder_and_view(encoder.eval()))
    pixels = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / 'image.png')
    return write_encoder_page(encoders, [folder / 'image.png'], folder / 'look.html')


@pytest.fixture(scope='module')
def table_page(tmp_path_factory):
    """What a report has: a wide table, one of long words, a wide picture, a long text."""
    page = Page(tmp_path_factory.mktemp('page') / 'report.html', 'Report: ' + 'work_dirs/a_long_name_of_a_run_' * 3)
    page.heading('Pictures: ' + 'work_dirs/a_long_name_of_a_run_' * 3)
    page.table([['encoder', *(f'probe {n}' for n in range(9))], ['CAE', *['57.1 ± 0.8'] * 9]], 'caption')
    page.table([['setting', 'base', 'run'], ['train_dataloader.dataset.pipeline.3.second_interpolation', 'x' * 90, 'y' * 90]], text=True)
    page.pictures([(Image.new('RGB', (900, 300), 'red'), 'a red one')] * 3)
    page.details('all', 'word_' * 80)
    page.write()
    return page.path


def test_a_click_on_a_patch_redraws_all_encoders(look_page, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(look_page)
        canvases = "[...document.querySelectorAll('.similar canvas')]"
        state = f"{canvases}.map(canvas => [canvas.getAttribute('aria-label'), canvas.toDataURL()])"
        before = browser.run(state)
        browser.click(f'{canvases}[0]', 0.99, 0.01)
        after = browser.run(state)
        assert [label.split(': ')[1] for label, _ in after] == [
            'similarity to the patch in row 1, column 8',
            'similarity to the patch in row 1, column 4',
        ]
        assert all(old[1] != new[1] for old, new in zip(before, after, strict=True))
        for kind in ('keyDown', 'keyUp'):
            browser.call('Input.dispatchKeyEvent', type=kind, key='ArrowDown', code='ArrowDown', windowsVirtualKeyCode=40)
        assert 'row 2, column 8' in browser.run(state)[0][0]


def test_a_click_enlarges_a_picture_and_another_closes_it(table_page, tmp_path):
    with Browser(tmp_path, width=420) as browser:
        browser.open(table_page)
        browser.click("document.querySelector('.zoom')")
        assert browser.run("[large.open, large.querySelector('img').alt]") == [True, 'a red one']
        browser.click("large.querySelector('img')", 0.1)
        assert browser.run('large.open') is False


@pytest.mark.parametrize('width', [420, 1400])
def test_nothing_is_wider_than_the_window(look_page, table_page, width, tmp_path):
    with Browser(tmp_path, width=width) as browser:
        for page in (look_page, table_page):
            browser.open(page)
            browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert browser.run(ALL_FIT), page.name
        assert browser.run("[...document.images].every(image => image.alt || image.closest('dialog'))")


def test_dark_pages_are_dark(table_page, tmp_path):
    grounds = []
    for dark in (False, True):
        with Browser(tmp_path / str(dark), dark=dark) as browser:
            browser.open(table_page)
            grounds.append(browser.run('getComputedStyle(document.body).backgroundColor'))
    assert grounds == ['rgb(255, 255, 255)', 'rgb(24, 26, 27)']
