"""Install mmcae as a user does, and run its commands: wheel and source package, in an empty environment, in an empty directory.

    python tests/test_package/check.py                                    # `make package-check`: both, on this Python
    python tests/test_package/check.py --kinds wheel --pythons all        # `make matrix`: the wheel on every Python that is found
    python tests/test_package/check.py --pythons /usr/bin/python3.13 --stacks full    # detection and segmentation too; compiles mmcv

One environment at a time; each is removed afterwards. After each, its row is written to `OUT/rows.jsonl` and the table is printed; the exit
code is 0 where everything has worked. Interrupt it at will: the same command goes on with the environments that have not worked yet, as
long as the package is the same. What an environment's commands print is in `OUT/NAME.log`.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).with_name('smoke.py')
COLUMNS = ('environment', 'python', 'torch', 'install', 'size', 'commands', 'time', 'failures')
TABLE = f'\n| {" | ".join(COLUMNS)} |\n|{" --- |" * len(COLUMNS)}'
MINORS = range(10, 15)  # of Python 3, of which any may be missing
# No extra; detection and segmentation on OpenMMLab's packages; the same on their forks.
EXTRAS = dict(core='', full='[detection,segmentation]', onedl='[onedl]')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kinds', nargs='+', choices=['wheel', 'sdist'], default=['wheel', 'sdist'])
    parser.add_argument('--pythons', nargs='+', default=[sys.executable], metavar='PYTHON', help="interpreters, or 'all' that are found")
    parser.add_argument('--stacks', nargs='+', choices=EXTRAS, default=['core'], help='core, or with detection and segmentation')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/package_check', help='the folder to work in (default: %(default)s)')
    parser.add_argument('--keep', action='store_true', help='leave the environments there')
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with open(out / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits
        return check_all(args, out)


def check_all(args, out):
    """Go through the environments and print the table.

    Returns:
        bool: Whether any has failed.
    """
    packages = build(out / 'dist')
    state, known = digest(packages['wheel']), read_rows(out / 'rows.jsonl')
    rows = []
    for python in find_pythons() if args.pythons == ['all'] else args.pythons:
        version = subprocess.check_output([python, '-c', 'import platform; print(platform.python_version())'], text=True).strip()
        for kind, stack in ((kind, stack) for kind in args.kinds for stack in args.stacks):
            key = dict(environment=f'{kind}, {stack}', python=version, state=state)
            row = known.get(tuple(key.values()))
            if row is None or row['failures']:
                folder = out / f'{Path(python).name}-{kind}-{stack}'
                row = {**key, **check(python, packages[kind], stack, folder)}
                with open(out / 'rows.jsonl', 'a') as file:
                    file.write(json.dumps(row) + '\n')
                if not args.keep:
                    shutil.rmtree(folder)
            rows.append(row)
            print(TABLE, *map(line, rows), sep='\n', flush=True)
    return any(row['failures'] for row in rows)


def line(row):
    """Of the table."""
    return f'| {" | ".join(row[column].replace("|", "/") or "none" for column in COLUMNS)} |'


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
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as copy:  # setuptools leaves folders behind where it works
        tree = Path(copy, 'mmcae')
        ignored = shutil.ignore_patterns('.git', '.venv*', 'work_dirs', 'data', 'build', 'dist', '__pycache__', '*.egg-info', 'shared')
        shutil.copytree(ROOT, tree, symlinks=True, ignore=ignored)
        backend = 'import sys, setuptools.build_meta as backend; print(backend.build_sdist(sys.argv[1]))'
        subprocess.run([sys.executable, '-c', backend, folder], cwd=tree, check=True, stdout=subprocess.DEVNULL)
    sdist = next(folder.glob('mmcae-*.tar.gz'))
    subprocess.run([*pip_of(sys.executable), 'wheel', '--no-deps', '--no-build-isolation', '-w', folder, sdist], check=True)
    wheel = next(folder.glob('mmcae-*.whl'))
    for package in (sdist, wheel):
        print(f'{package.name}: {package.stat().st_size / 1e6:.1f} MB', flush=True)
    return dict(sdist=sdist, wheel=wheel)


def pip_of(python):
    return [python, '-m', 'pip', '--disable-pip-version-check', '-q']


def digest(wheel):
    """What rows are valid for: the files of the package and the commands that are run."""
    with zipfile.ZipFile(wheel) as archive:
        files = sorted((entry.filename, entry.CRC) for entry in archive.infolist())
    return hashlib.sha256(repr(files).encode() + SMOKE.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]


def read_rows(file):
    """The last row of each environment: (environment, Python, state) -> row."""
    rows = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return {(row['environment'], row['python'], row['state']): row for row in rows}


def check(python, package, stack, folder):
    """Install a package into an environment of its own, in this folder, and run its commands.

    Returns:
        dict[str, str]: What the columns of the table say; no failures is ''.
    """
    print(f'---- {folder.name}', flush=True)
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    folder.mkdir()
    own = folder / 'venv/bin/python'
    row = dict.fromkeys(COLUMNS[2:], '')
    with open(folder.with_name(f'{folder.name}.log'), 'w') as log:
        try:
            began = time.time()
            subprocess.run([python, '-m', 'venv', folder / 'venv'], check=True)
            install(own, package, stack, log)
            row['install'] = f'{time.time() - began:.0f} s'
            row['torch'] = run(log, own, '-c', 'from importlib.metadata import version; print(version("torch"))').split()[-1]
            row['size'] = f'{sum(file.stat().st_size for file in (folder / "venv").rglob("*") if file.is_file()) / 1e9:.1f} GB'
            began = time.time()
            run(log, folder / 'venv/bin/mmcae', '--version')
            arguments = (SMOKE, folder / 'out', *(['--full'] if stack != 'core' else []))
            run(log, own, *arguments, cwd=folder, check=False, show=True)
            row['time'] = f'{time.time() - began:.0f} s'
            passed, total, row['failures'] = json.loads((folder / 'out/summary.json').read_text())
            row['commands'] = f'{passed}/{total}'
        except (subprocess.CalledProcessError, OSError) as error:
            row['failures'] = str(error)
    if row['failures']:
        print(row['failures'], flush=True)
    return row


def install(python, package, stack, log):
    """As docs/install.md says."""

    def pip(*arguments):
        run(log, *pip_of(python), *arguments)

    pip('install', f'{package}{EXTRAS[stack]}')
    pip('check')
    tools = next(python.parents[1].glob('lib/python*/site-packages/mmcae/.mim/tools'))
    run(log, python, tools / 'fit_torchvision.py')
    if stack == 'core':  # mim asks for a setuptools that torch does not work with
        pip('install', 'openmim')
        pip('install', 'setuptools>=77.0.3,<81')
    if stack == 'onedl':
        pip('uninstall', '-y', 'mmengine', 'mmcv-lite', 'mmpretrain')
        pip('install', '--force-reinstall', '--no-deps', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain')
    if stack != 'core':
        run(log, python, tools / 'build_mmcv.py')


def run(log, *command, cwd=None, check=True, show=False):
    """Run a command without the variables by which a checkout could be found instead of the installed package.

    Args:
        log (TextIO): Gets the output.
        show (bool): Print the output as it comes, too.

    Returns:
        str: The output.

    Raises:
        CalledProcessError: It has failed; says the command and the last line of the output.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    command, output = list(map(str, command)), ['']
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    log.write(f'$ {" ".join(command)}\n')
    with subprocess.Popen(command, cwd=cwd, env=environment, **options) as process:
        for line in process.stdout:
            output.append(line)
            log.write(line)
            log.flush()
            if show:
                print(line, end='', flush=True)
    if check and process.returncode:
        last = next((line.strip() for line in reversed(output) if line.strip()), 'no output')
        raise OSError(f'{" ".join(Path(part).name for part in command[:6])}: {last}')
    return ''.join(output)


if __name__ == '__main__':
    sys.exit(main())
