"""The environment's report, where all is well and where something is missing."""

import os
import subprocess
import sys


def report(tmp_path, site='', **environment):
    """Run the report in a fresh Python whose start-up executes `site`; returns the exit code and the output."""
    (tmp_path / 'sitecustomize.py').write_text(site)
    done = subprocess.run(
        [sys.executable, '-m', 'mmcae.commands.doctor'],
        env=dict(os.environ, PYTHONPATH=str(tmp_path), **environment),
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def test_everything_is_here(tmp_path):
    import mmcv
    import torch

    code, output = report(tmp_path)
    assert code == 0, output
    assert torch.__version__ in output and mmcv.__version__ in output and 'Everything mmcae needs is here.' in output


def test_several_things_are_missing(tmp_path):
    """Each is named with its remedy, and the rest is still reported."""
    code, output = report(tmp_path, "import sys\nsys.modules['mmengine'] = sys.modules['timm'] = None\n")
    assert code == 1, output
    assert 'pip install "mmengine>=0.10.7' in output and 'pip install "timm>=' in output
    assert 'Traceback' not in output and 'Python' in output and 'torch ' in output


def test_without_a_system_library(tmp_path):
    """OpenCV with a graphical interface on a bare server: one remedy, and the report is whole."""
    (tmp_path / 'cv2').mkdir()
    (tmp_path / 'cv2/__init__.py').write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    code, output = report(tmp_path)
    assert code == 1, output
    (remedy,) = [line for line in output.splitlines() if line.startswith('!')]
    assert 'libGL.so.1' in remedy and 'opencv-python-headless' in remedy and 'apt-get install libgl1' in remedy
    assert 'Traceback' not in output and 'NOT USABLE without cv2' in output and 'deepspeed' in output
