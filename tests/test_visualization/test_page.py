"""The page: what it is given is there, escaped, in order, and its links lead to files."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from mmcae.visualization.page import Page


class Reader(HTMLParser):
    """Collects links, text and the balance of tags."""

    def __init__(self, path):
        super().__init__()
        self.links, self.words, self.open = [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ('href', 'src')]
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
    links = Reader(page.path).links
    assert len(links) == 4
    for link in links:
        assert not link.startswith(('/', 'http')) and ' ' not in link and (page.path.parent / unquote(link)).is_file()


def test_text_survives_and_tags_are_balanced(page):
    reader = Reader(page.path)
    assert not reader.open
    text = ' '.join(reader.words)
    for words in ('Title & more', 'x < y', '57.1 ± 0.8', "python t.py --x '<1>'", '1:02'):
        assert words in text
    assert re.search('First.*CAE.*Second.*train', text, re.DOTALL)
