"""Make sure that torchvision can be imported beside this environment's torch, and exchange it where it cannot.

    python tools/fit_torchvision.py

A package index may offer torch's CPU build and, of torchvision, only a build for CUDA. Its compiled operators cannot be loaded beside that
torch, and then `import torchvision` stops with "operator torchvision::nms does not exist": at two of its lines that describe an operator
without asking, as all others do, whether the operators are there. This tool repacks the wheel with the two lines guarded and installs it;
its version ends in `+without.ops`. Transforms, datasets and models work; what needs the operators, such as `torchvision.ops.nms`, says that
they could not be loaded. A torchvision that fits is left alone. `make` calls this; it is of use in other environments too.
"""

import argparse
import base64
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

IMPORT = 'import torch, torchvision; print(torchvision.__version__, torch.__version__)'
PROBLEM = 'operator torchvision::nms does not exist'
LABEL = 'without.ops'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--wheels', type=Path, help='a folder to keep the repacked wheel in, and to look for it')
    args = parser.parse_args()
    error = problem()
    if error and PROBLEM in error:
        exchange(args.wheels)
        error = problem()
    if error:
        sys.exit(
            f'{error}\ntorchvision {metadata.version("torchvision")} cannot be imported beside torch {metadata.version("torch")}: have pip '
            'install both from one index, so that both are built for the CPU, or for the same CUDA'
        )


def problem():
    """What a fresh Python says against importing torchvision; nothing where it works."""
    done = subprocess.run([sys.executable, '-c', IMPORT], capture_output=True, text=True)
    if not done.returncode:
        print('torchvision {} fits torch {}'.format(*done.stdout.split()[-2:]), flush=True)
    return done.stderr if done.returncode else ''


def exchange(wheels):
    """Install the repacked wheel of the version that is installed, from a folder of wheels where it is there."""
    version = metadata.version('torchvision').split('+')[0]
    with tempfile.TemporaryDirectory() as scratch:
        wheels = wheels or Path(scratch, 'wheels')
        wheels.mkdir(parents=True, exist_ok=True)
        name = f'torchvision-{version}+{LABEL}-*.whl'
        if not any(wheels.glob(name)):
            run('pip', 'download', '--no-deps', '-d', scratch, f'torchvision=={version}')
            repack(next(Path(scratch).glob('torchvision-*.whl')), wheels)
        run('pip', 'install', '--no-deps', '--force-reinstall', next(wheels.glob(name)))


def repack(wheel, wheels):
    """Write a wheel of torchvision that can be imported without its operators.

    Args:
        wheel (Path): As downloaded.
        wheels (Path): The folder for the new one.
    """
    _, version, *tags = wheel.stem.split('-')
    version = version.split('+')[0]
    old, new = (f'torchvision-{number}.dist-info/' for number in (version, f'{version}+{LABEL}'))
    changes = {
        'torchvision/_meta_registrations.py': GUARD,
        'torchvision/version.py': (r'^__version__ = .*', f"__version__ = '{version}+{LABEL}'"),
        old + 'METADATA': (r'^Version: .*', f'Version: {version}+{LABEL}'),
    }
    records = []
    with tempfile.TemporaryDirectory(dir=wheels) as scratch:
        path = Path(scratch, '-'.join(['torchvision', f'{version}+{LABEL}', *tags]) + '.whl')
        with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as target:
            for entry in source.infolist():
                if entry.filename == old + 'RECORD':
                    continue
                content = source.read(entry)
                if entry.filename in changes:
                    content = substitute(entry.filename, content, *changes[entry.filename])
                entry.filename = entry.filename.replace(old, new)
                target.writestr(entry, content)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip('=')
                records.append(f'{entry.filename},sha256={digest},{len(content)}\n')
            target.writestr(new + 'RECORD', ''.join([*records, f'{new}RECORD,,\n']))
        path.replace(wheels / path.name)


# The two lines, each a decorator.
GUARD = (
    r'^@(torch\.library\.register_fake\(.*\))$',
    r'@(\1 if torchvision.extension._has_ops() else lambda function: function)',
)


def substitute(name, content, pattern, replacement):
    """Change the lines of a file that fit a pattern, of which there must be some."""
    text, count = re.subn(pattern, replacement, content.decode(), flags=re.MULTILINE)
    if not count:
        sys.exit(f'torchvision has changed: no line of its {Path(name).name} looks like {pattern}')
    return text.encode()


def run(*command):
    """Run a module of this Python, whose output goes to the screen."""
    print('$', *command, flush=True)
    done = subprocess.run([sys.executable, '-m', *map(str, command)])
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == '__main__':
    main()
