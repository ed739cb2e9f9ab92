"""What the packages hold and declare; tests/test_package/check.py installs them."""

import ast
import importlib.util
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mmcae.compat import EXTRAS, LIBRARIES, PACKAGES

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = {'pyarrow', 'zarr', 'webdataset', 'onnx', 'onnxruntime', 'transformers', 'huggingface_hub'}  # named with the command where used
EXTRA_NAMES = {'detection', 'segmentation', 'slides', 'logging', 'onedl', 'deepspeed', 'docs', 'tests'}


@pytest.fixture(scope='module')
def packages(tmp_path_factory):
    """The source package, and the wheel that is made of it."""
    spec = importlib.util.spec_from_file_location('check', Path(__file__).with_name('check.py'))
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    return check.build(tmp_path_factory.mktemp('packages') / 'dist')


@pytest.fixture(scope='module')
def wheel(packages):
    with zipfile.ZipFile(packages['wheel']) as archive:
        yield archive


@pytest.fixture(scope='module')
def repository_files():
    """Files of the repository, as git knows them, and those that are about to be added."""
    command = ('git', 'ls-files', '--cached', '--others', '--exclude-standard')
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip('this is no checkout of git')
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


def in_package(files):
    """Of these, those that get into the package, some through the links of mmcae/.mim, by their names there."""
    links = ('configs/', 'tools/', 'model-index.yml')
    found = {name for name in files if name.startswith('mmcae/') and name.endswith('.py')}
    return found | {f'mmcae/.mim/{name}' for name in files if name.startswith(links)}


@pytest.fixture(scope='module')
def metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith('.dist-info/METADATA')]
    return message_from_string(wheel.read(name).decode())


def test_the_wheel_holds_the_package_with_configs_and_tools_and_nothing_else(wheel, repository_files):
    inside = {name for name in wheel.namelist() if '.dist-info/' not in name}
    assert inside == in_package(repository_files)
    assert wheel.read('mmcae/.mim/model-index.yml') == (ROOT / 'model-index.yml').read_bytes()
    assert any(name.endswith('.dist-info/licenses/LICENSE') for name in wheel.namelist())
    script = wheel.getinfo('mmcae/.mim/tools/dist_train.sh')
    assert script.external_attr >> 16 & 0o100, 'it has to be executable'


def test_the_source_package_holds_the_repository_and_nothing_else(packages, repository_files):
    with tarfile.open(packages['sdist']) as archive:
        inside = {member.name.split('/', 1)[1] for member in archive if not member.isdir()}
        config = archive.extractfile(next(member for member in archive if member.name.endswith('mmcae/.mim/model-index.yml'))).read()
    made = {name for name in inside if name in ('PKG-INFO', 'setup.cfg') or name.startswith('mmcae.egg-info/')}
    links = {'mmcae/.mim/configs', 'mmcae/.mim/tools'}  # in the package they are folders
    assert inside - made == (repository_files - links) | in_package(repository_files)
    assert config == (ROOT / 'model-index.yml').read_bytes()


def test_metadata(wheel, metadata):
    assert metadata['Name'] == 'mmcae' and metadata['License-Expression'] == 'Apache-2.0' and metadata['License-File'] == 'LICENSE'
    assert metadata['Requires-Python'] == '>=3.10' and metadata['Description-Content-Type'] == 'text/markdown'
    assert set(metadata.get_all('Provides-Extra')) == EXTRA_NAMES
    assert any('Paper' in url for url in metadata.get_all('Project-URL'))
    assert f'Programming Language :: Python :: 3.{min(sys.version_info[1], 13)}' in metadata.get_all('Classifier')
    (name,) = [name for name in wheel.namelist() if name.endswith('entry_points.txt')]
    assert 'mmcae = mmcae.commands.main:main' in wheel.read(name).decode()


def requirements(metadata, extra=''):
    """Those of the core or of one extra: name -> Requirement."""
    found = [Requirement(text) for text in metadata.get_all('Requires-Dist')]
    return {item.name: item for item in found if (f'extra == "{extra}"' in str(item.marker) if extra else item.marker is None)}


def test_bounds_are_those_that_are_checked_at_run_time(metadata):
    declared = {**requirements(metadata), **requirements(metadata, 'detection'), **requirements(metadata, 'segmentation')}
    for library, (package, lowest, too_new) in LIBRARIES.items():
        bounds = declared[package].specifier
        assert f'>={lowest}' in str(bounds).replace('2.1.0', '2.1'), library
        assert too_new is None or f'<{too_new}' in str(bounds)


def test_extras_hold_what_is_asked_for_by_name(metadata):
    named = {'mmseg': 'mmsegmentation'}
    for module, extra in EXTRAS.items():
        assert named.get(module, module) in requirements(metadata, extra)
        assert module not in requirements(metadata)


def test_what_is_imported_is_declared(metadata):
    """Of the core or of an extra, or it is optional and asked for with its command."""
    known = set(sys.stdlib_module_names) | {'mmcae', *EXTRAS, *OPTIONAL}
    for package in requirements(metadata):
        known |= {package.replace('-', '_')}
    known |= {module for module, package in PACKAGES.items() if package in requirements(metadata)}
    known |= {'mmcv', 'cv2'}  # of mmcv-lite; of mmengine, which requires opencv-python
    unknown = set()
    for file in (ROOT / 'mmcae').rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            unknown |= {(name.split('.')[0], str(file.relative_to(ROOT))) for name in names if name.split('.')[0] not in known}
    assert not unknown


def test_citation_and_changelog_know_the_version():
    import yaml

    from mmcae import __version__

    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == __version__ and citation['license'] == 'Apache-2.0'
    assert {'cff-version', 'message', 'title', 'authors'} <= set(citation)
    assert f'\n## {__version__}\n' in (ROOT / 'CHANGELOG.md').read_text()


def test_model_index():
    """Names every metafile, and these name every config of their folders."""
    import yaml

    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert sorted(index) == sorted(str(file.relative_to(ROOT)) for file in ROOT.glob('configs/*/metafile.yml'))
    collections, used, names = set(), set(), []
    for path in index:
        metafile = yaml.safe_load((ROOT / path).read_text())
        collections |= {entry['Name'] for entry in metafile.get('Collections', [])}
        used |= {entry['In Collection'] for entry in metafile['Models']}
        names += [entry['Name'] for entry in metafile['Models']]
        configs = sorted(str(file.relative_to(ROOT)) for file in (ROOT / path).parent.glob('*.py'))
        assert [entry['Config'] for entry in metafile['Models']] == configs, f'{path} has to name these configs in this order'
        assert all(entry['Name'] == Path(entry['Config']).stem for entry in metafile['Models'])
        for entry in metafile.get('Collections', []):
            assert (ROOT / entry['README']).is_file() and re.fullmatch(r'https://arxiv.org/abs/\d{4}\.\d{5}', entry['Paper']['URL'])
    assert used == collections and len(set(names)) == len(names)


def test_configs_by_name_of_the_package(monkeypatch):
    """As mmengine finds an installed package; it does not follow editable ones. tests/test_package/check.py asks a real installation."""
    from mmengine.hub import get_config, hub

    import mmcae

    monkeypatch.setattr(hub, 'get_installed_path', lambda name: str(Path(mmcae.__file__).parent))
    name = 'mmcae::cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py'
    assert get_config(name).model.type == 'mmcae.CAE'
    with pytest.raises(AssertionError, match='Cannot find `Weights`'):  # none are published
        get_config(name, pretrained=True)
