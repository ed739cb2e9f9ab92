"""The documentation as a site: its navigation, its reference, its examples; `make docs` builds it and checks every link."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import yaml

import mmcae

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / 'docs'
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob('*.md'))


class Loader(yaml.SafeLoader):
    """mkdocs.yml may hold tags of Python's, which say nothing here."""


Loader.add_multi_constructor('tag:yaml.org,2002:python/', lambda loader, suffix, node: suffix)


def named(entries):
    """The pages of a navigation, however deep."""
    for entry in entries:
        if isinstance(entry, dict):
            for below in entry.values():
                yield from named(below) if isinstance(below, list) else [below]
        else:
            yield entry


def test_every_page_stands_once_in_the_navigation():
    settings = yaml.load((ROOT / 'mkdocs.yml').read_text(), Loader)
    assert sorted(named(settings['nav'])) == PAGES


def resolve(name):
    """A module, or what one defines; modules go first, as in mkdocstrings."""
    if importlib.util.find_spec(name.rpartition('.')[0]).submodule_search_locations and importlib.util.find_spec(name):
        return importlib.import_module(name)
    module, _, attribute = name.rpartition('.')
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize('page', [page for page in PAGES if page.startswith('reference/')])
def test_what_the_reference_names_is_there_and_described(page):
    names = re.findall(r'^::: (\S+)', (DOCS / page).read_text(), re.MULTILINE)
    assert names
    for name in names:
        assert resolve(name).__doc__, name


def test_the_functions_for_notebooks_are_all_in_the_reference():
    from mmcae import apis

    text = (DOCS / 'reference/apis.md').read_text() + (DOCS / 'reference/index.md').read_text()
    assert all(
        re.search(rf'::: mmcae\.\S*\b{name}$', text, re.MULTILINE) for name in [*apis.__all__, *set(mmcae.__all__) - {'__version__'}]
    )


def files_of(page):
    """Blocks of Python whose first line is a comment with a file name."""
    blocks = re.findall(r'```python\n# (\w+\.py)\n(.*?)```', (DOCS / page).read_text(), re.DOTALL)
    return dict(blocks)


@pytest.mark.parametrize('page', ['method', 'target', 'dataset', 'task'])
def test_examples_of_the_contributing_pages_are_trained(page, image_folder, tmp_path, monkeypatch):
    """As they stand there."""
    files = files_of(f'contributing/{page}.md')
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (config,) = [name for name in files if name.endswith('_config.py')]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    labelled = page == 'task'
    folder = {'dataset': 'FOLDER', 'task': 'data/train'}.get(page, 'data/tiles32')
    data = image_folder(folder, classes=tuple('0123456789') if labelled else ('a', 'b'), count=2 if labelled else 8)
    if page == 'dataset':
        rows = [f'{path.relative_to(data)},{"HE" if "a" in path.parts else "IHC"}' for path in sorted(data.rglob('*.*'))]
        (data / 'images.csv').write_text('\n'.join(['path,stain', *rows]))
    settings = {'train_cfg.max_iters': 2, 'train_dataloader.batch_size': 4, 'default_hooks.checkpoint.interval': 2}
    if labelled:
        settings |= {'train_dataloader.dataset.labels': 20, 'train_cfg.val_interval': 9, 'max_iters': 2}
    variables = {} if page == 'dataset' else dict(data_root=tmp_path / 'data')
    checkpoint = mmcae.train(config, tmp_path / 'run', settings=settings, no_validate=labelled, **variables)
    assert checkpoint.name == 'iter_2.pth' and checkpoint.exists()
    for name in files:
        sys.modules.pop(name.removesuffix('.py'), None)


def test_the_site_is_built(tmp_path):
    """As `make docs` does; where mkdocs is not installed, links to files are checked by tests/test_docs.py."""
    pytest.importorskip('mkdocs')
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / 'mkdocs.yml'), strict=True, site_dir=str(tmp_path / 'site')))
    assert (tmp_path / 'site/source/mmcae/models/methods/cae.py.html').exists()
    assert '<a href="choose.html">Which method, which target, which start</a>' in (tmp_path / 'site/index.html').read_text()
