"""The page: what it is given is there, escaped, in order, and its links lead to files."""

import base64
import io
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from PIL import Image

from mmcae.visualization.page import Page


class Reader(HTMLParser):
    """Collects links, text and the balance of tags."""

    def __init__(self, path):
        super().__init__()
        self.links, self.words, self.open, self.alternatives = [], [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ('href', 'src')]
        self.alternatives += [value for name, value in attributes if name == 'alt']
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def page(tmp_path):
    for name in ('pictures/a b.png', 'run/job.log', 'results.json'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    page = Page(tmp_path / 'index.html', 'Title & more')
    page.heading('First')
    page.text('x < y')
    page.table([['encoder', 'kNN'], ['CAE', '57.1 ± 0.8']], 'caption')
    page.heading('Second')
    page.picture(tmp_path / 'pictures/a b.png', 'a "quoted" picture')
    page.commands([('train', "python t.py --x '<1>'", '1:02', tmp_path / 'run/job.log')])
    page.files([tmp_path / 'results.json'])
    page.write()
    return page


def test_links_are_relative_and_lead_to_files(page):
    links = [link for link in Reader(page.path).links if not link.startswith('data:')]
    assert len(links) == 2
    for link in links:
        assert not link.startswith(('/', 'http')) and ' ' not in link and (page.path.parent / unquote(link)).is_file()


def test_pictures_are_in_the_file_with_alternative_texts(page, tmp_path):
    from matplotlib.figure import Figure

    picture = Image.new('RGB', (3, 2), 'red')
    page.pictures([(picture, 'a red one'), (Figure(), 'an empty plot')])
    page.write()
    reader = Reader(page.path)
    assert not reader.open and 'http' not in re.sub('http://www.w3.org', '', page.path.read_text())
    content = next(base64.b64decode(link.split(',')[1]) for link in reader.links if 'png' in link and len(link) > 40)
    assert Image.open(io.BytesIO(content)).getpixel((0, 0)) == (255, 0, 0)
    assert any(link.startswith('data:image/svg+xml;base64,') for link in reader.links)
    assert reader.alternatives == ['a "quoted" picture', 'a red one', 'an empty plot', '']


def test_text_survives_and_tags_are_balanced(page):
    reader = Reader(page.path)
    assert not reader.open
    text = ' '.join(reader.words)
    for words in ('Title & more', 'x < y', '57.1 ± 0.8', "python t.py --x '<1>'", '1:02'):
        assert words in text
    assert re.search('First.*CAE.*Second.*train', text, re.DOTALL)
