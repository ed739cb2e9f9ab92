"""What continuous integration runs is `make test`, and it fails when the tests fail."""

import os
import subprocess

import pytest


@pytest.mark.parametrize(
    ('printed', 'code', 'closing', 'expected'),
    [
        ('== 12 passed, 1 skipped in 3.45s ==', 0, '== 12 passed, 1 skipped in 3.45s ==', 0),
        ('== 11 passed, 1 rerun in 3.45s ==', 0, '== 11 passed, 1 rerun in 3.45s ==', 0),
        ('== 1 failed, 11 passed in 3.45s (0:00:03) ==', 2, '== 1 failed, 11 passed in 3.45s (0:00:03) ==', 2),
        ('ruff: 3 errors', 2, 'The tests did not run.', 1),
        ('nothing at all', 0, 'The tests did not run.', 1),
    ],
)
def test_run(repository, tmp_path, printed, code, closing, expected):
    make = tmp_path / 'make'
    make.write_text(f'#!/bin/sh\necho "called with: $*"\necho "{printed}"\necho "make: the end"\nexit {code}\n')
    make.chmod(0o755)
    environment = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}')
    done = subprocess.run([repository / '.ci' / 'run'], env=environment, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert lines[0] == 'called with: test' and lines[-1] == closing
    assert done.returncode == expected


def test_run_passes_on_nothing_but_what_reaches_the_package_index(repository, tmp_path):
    """A variable that is set on one machine only cannot hide that the tests fail without it."""
    make = tmp_path / 'make'
    make.write_text('#!/bin/sh\nenv\n')
    make.chmod(0o755)
    passed = dict(
        PATH=f'{tmp_path}:{os.environ["PATH"]}',
        HOME='/home/a b',
        CI='true',
        PIP_FIND_LINKS='/wheels /more wheels',
        PIP_INDEX_URL='https://index/simple',
        UV_INDEX='https://index/simple',
        SSL_CERT_FILE='/certificates',
        REQUESTS_CA_BUNDLE='/certificates',
        CURL_CA_BUNDLE='/certificates',
        HTTPS_PROXY='http://proxy',
    )
    withheld = dict(
        PYTHONUNBUFFERED='1', PYTHONPATH='/elsewhere', MMCAE_GOLDEN='/elsewhere', LC_ALL='C', OMP_NUM_THREADS='3', XPIP_CERT='x', MY_CI='1'
    )
    done = subprocess.run([repository / '.ci' / 'run'], env=passed | withheld, capture_output=True, text=True, timeout=300)
    found = dict(line.split('=', 1) for line in done.stdout.splitlines() if '=' in line)
    assert {name: found.get(name) for name in passed} == passed
    assert not set(found) & set(withheld)
    # What is not set stays unset, and a shell adds a few of its own.
    assert set(found) - set(passed) <= {'PWD', 'OLDPWD', 'SHLVL', '_'}, found


def test_make_test_lints_and_runs_everything(repository):
    """`make -n` prints what would be run."""
    done = subprocess.run(['make', '-n', 'test'], cwd=repository, capture_output=True, text=True, timeout=300)
    for command in ('tools/build_env.py', 'ruff check .', 'ruff format --check .', '-m pytest -n'):
        assert command in done.stdout, done.stdout
    assert 'tests/' not in done.stdout  # no choice among the tests
