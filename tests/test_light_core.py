"""Pretraining, kNN, linear probe, features and conversion work where mmcv has no operators and the packages of the extras are absent."""

import os
import subprocess
import sys

import pytest

from mmcae.compat import EXTRAS

# Makes packages absent: they cannot be imported, and nobody finds them. tests/test_package has environments without them.
HIDE = f"""
import sys
from importlib.machinery import PathFinder
ABSENT = {{'mmcv._ext', *{sorted(EXTRAS)}}}
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in ABSENT else super().find_spec(name, path, target)
sys.meta_path = [finder for finder in sys.meta_path if '_Editable' not in type(finder).__name__ and finder is not PathFinder] + [Finder]
"""


@pytest.fixture
def light(tmp_path, repository):
    """Run Python's arguments in such an environment; returns the exit code and all output."""
    site = tmp_path / 'site'
    site.mkdir()
    (site / 'sitecustomize.py').write_text(HIDE)

    def run(*arguments):
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(site), str(repository)]))
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_all_of_the_core(light, tmp_path, repository):
    code, output = light(repository / 'tests/test_package/smoke.py', tmp_path / 'out', '--together')
    assert code == 0, output[-3000:]
    assert 'Traceback' not in output


@pytest.mark.parametrize(('config', 'extra'), [('digits/mask_rcnn_vit-digits', 'detection'), ('digits/upernet_vit-digits', 'segmentation')])
def test_a_task_names_what_it_needs(light, config, extra):
    code, output = light('-m', 'mmcae', 'train', config)
    (line,) = [line for line in output.splitlines() if line.startswith('error:')]
    assert code == 2 and f'pip install "mmcae[{extra}]" && python ' in line and line.endswith('build_mmcv.py')


def test_the_doctor_is_content(light):
    code, output = light('-m', 'mmcae', 'doctor')
    assert code == 0 and 'Everything mmcae needs is here.' in output, output
    lines = {line.split()[0]: line for line in output.splitlines() if line}
    assert 'no compiled operators' in lines['mmcv'] and 'pip install "mmcae[slides]"' in lines['tifffile']
    assert 'not installed; for detection' in lines['mmdet']
