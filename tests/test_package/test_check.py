"""The table of tests/test_package/check.py: rows are kept, and an environment that has passed is not tried again."""

import importlib.util
import platform
import sys
from argparse import Namespace
from pathlib import Path


def test_rows_are_kept(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('check', Path(__file__).with_name('check.py'))
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    tried = []

    def checked(python, package, stack, folder):
        folder.mkdir()
        tried.append(package)
        failures = 'one failed' if package == 'a sdist' and len(tried) == 2 else ''
        return dict.fromkeys(check.COLUMNS[2:], 'x') | dict(failures=failures)

    monkeypatch.setattr(check, 'build', lambda folder: dict(wheel='a wheel', sdist='a sdist'))
    monkeypatch.setattr(check, 'digest', lambda wheel: 'files')
    monkeypatch.setattr(check, 'check', checked)
    args = Namespace(pythons=[sys.executable], kinds=['wheel', 'sdist'], stacks=['core'], keep=False)
    assert check.check_all(args, tmp_path)  # one has failed
    assert not check.check_all(args, tmp_path)
    assert tried == ['a wheel', 'a sdist', 'a sdist']
    assert f'| wheel, core | {platform.python_version()} | x ' in capsys.readouterr().out
