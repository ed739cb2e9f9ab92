"""Install mmcae as a user does, and run its commands: wheel and source package, in an empty environment, in an empty directory.

    python tests/test_package/check.py                                    # `make package-check`: both, on this Python
    python tests/test_package/check.py --kinds wheel --pythons all        # `make matrix`: the wheel on every Python that is found
    python tests/test_package/check.py --pythons /usr/bin/python3.11 --full    # detection and segmentation too; compiles mmcv

Prints a table; the exit code is 0 where everything has worked. One environment at a time; each is removed afterwards.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).with_name('smoke.py')
TABLE = '\n| Python | from | install | size | commands | |\n|---|---|---|---|---|---|'
MINORS = range(10, 15)  # of Python 3, of which any may be missing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kinds', nargs='+', choices=['wheel', 'sdist'], default=['wheel', 'sdist'])
    parser.add_argument('--pythons', nargs='+', default=[sys.executable], metavar='PYTHON', help="interpreters, or 'all' that are found")
    parser.add_argument('--full', action='store_true', help='with the extras detection and segmentation')
    parser.add_argument('--keep', type=Path, metavar='FOLDER', help='work in this folder and leave everything there')
    args = parser.parse_args()
    pythons = find_pythons() if args.pythons == ['all'] else args.pythons
    with tempfile.TemporaryDirectory() as scratch:
        scratch = (args.keep or Path(scratch)).resolve()
        packages = build(scratch / 'dist')
        rows = []
        for python in pythons:
            for kind in args.kinds:
                rows.append(check(python, packages[kind], scratch, args.full, args.keep))
                print(TABLE, *(f'| {" | ".join(row)} |' for row in rows), sep='\n', flush=True)
    return any(row[-1] != 'works' for row in rows)


def find_pythons():
    """Interpreters by their names in PATH, and those of pyenv and uv; the newest of each minor version."""
    folders = [
        *map(Path, os.environ['PATH'].split(os.pathsep)),
        *sorted(Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv')).glob('versions/3.*/bin'), reverse=True),
        *sorted(Path.home().glob('.local/share/uv/python/cpython-3.*/bin'), reverse=True),
    ]
    found = {}
    for minor in MINORS:
        for python in (folder / f'python3.{minor}' for folder in folders):
            if python.is_file() and subprocess.run([python, '-c', 'import venv, ensurepip'], capture_output=True).returncode == 0:
                found.setdefault(minor, str(python))
    missing = [f'3.{minor}' for minor in MINORS if minor not in found]
    if missing:
        print(f'Not found, and left out: Python {", ".join(missing)}', flush=True)
    return list(found.values())


def build(folder):
    """Both packages; the wheel from the source package, as pip makes it.

    Returns:
        dict[str, Path]: 'sdist' and 'wheel'.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as copy:  # setuptools leaves folders behind where it works
        tree = Path(copy, 'mmcae')
        ignored = shutil.ignore_patterns('.git', '.venv*', 'work_dirs', 'data', 'build', 'dist', '__pycache__', '*.egg-info', 'shared')
        shutil.copytree(ROOT, tree, symlinks=True, ignore=ignored)
        backend = 'import sys, setuptools.build_meta as backend; print(backend.build_sdist(sys.argv[1]))'
        subprocess.run([sys.executable, '-c', backend, folder], cwd=tree, check=True, stdout=subprocess.DEVNULL)
    sdist = next(folder.glob('mmcae-*.tar.gz'))
    pip(sys.executable, 'wheel', '--no-deps', '--no-build-isolation', '-w', folder, sdist)
    wheel = next(folder.glob('mmcae-*.whl'))
    for package in (sdist, wheel):
        print(f'{package.name}: {package.stat().st_size / 1e6:.1f} MB', flush=True)
    return dict(sdist=sdist, wheel=wheel)


def check(python, package, scratch, full, keep):
    """Install a package into an environment of its own and run its commands.

    Returns:
        list[str]: A row of the table.
    """
    version = subprocess.run([python, '-V'], capture_output=True, text=True, check=True).stdout.split()[1]
    name = 'sdist' if package.name.endswith('.tar.gz') else 'wheel'
    print(f'---- Python {version}, {name}', flush=True)
    folder = scratch / f'{version}-{name}'
    folder.mkdir(parents=True)
    environment = folder / 'venv'
    own = environment / 'bin' / 'python'
    row, failure = [version, name, '', '', ''], 'works'
    try:
        began = time.time()
        subprocess.run([python, '-m', 'venv', environment], check=True)
        pip(own, 'install', f'{package}[detection,segmentation]' if full else package)
        row[2] = f'{time.time() - began:.0f} s'
        pip(own, 'check')
        tools = next(environment.glob('lib/python*/site-packages/mmcae/.mim/tools'))
        run(own, tools / 'fit_torchvision.py')
        if full:
            began = time.time()
            run(own, tools / 'build_mmcv.py')
            row[2] += f', mmcv {time.time() - began:.0f} s'
        row[3] = f'{sum(file.stat().st_size for file in environment.rglob("*") if file.is_file()) / 2**20:.0f} MiB'
        began = time.time()
        run(environment / 'bin' / 'mmcae', '--version')
        run(own, SMOKE, folder / 'out', *(['--full'] if full else []), cwd=folder)
        row[4] = f'{time.time() - began:.0f} s'
    except subprocess.CalledProcessError as error:
        failure = 'FAILED: ' + ' '.join(Path(str(part)).name for part in error.cmd[:4])
        print(failure, flush=True)
    if not keep:
        shutil.rmtree(folder)
    return [*row, failure]


def pip(python, *arguments):
    run(python, '-m', 'pip', '--disable-pip-version-check', '-q', *arguments)


def run(*command, cwd=None):
    """Run a command without the variables by which a checkout could be found instead of the installed package."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    subprocess.run(list(map(str, command)), cwd=cwd, env=environment, check=True)


if __name__ == '__main__':
    sys.exit(main())
