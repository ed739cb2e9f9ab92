"""Compile mmcv, whose operators detection and segmentation need, against this environment's torch, and install it.

    python tools/build_mmcv.py

Where onedl-mmcv is installed, its maintained fork, it is this that is compiled. It takes a C++ compiler, and nvcc where torch sees a GPU.
`pip install mmcv` compiles in an environment without torch, which gives no operators, and fails with setuptools 81. Two lines of setup.py
are repaired here: that of mmcv 2.1 reads `locals()` after `exec`, which fails on Python 3.13, and both ask for C++17, which is too old for
torch 2.14. The wheel is kept in a folder named after Python, torch and
platform, because pip's own cache does not know which torch it was compiled against: in `$MMCAE_CACHE`, `~/.cache/mmcae` by default. An
interrupted compilation goes on where it stopped. The files of mmcv-lite are overwritten by the same ones.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

VERSION = '2.1.0'  # mmdet 3.3 and mmsegmentation 1.2 refuse 2.2
FORK = 'onedl-mmcv'
# What its setup.py imports, and ninja to compile several files at a time.
BUILD_TOOLS = ('setuptools>=80,<81', 'wheel', 'ninja', 'psutil', 'numpy')
# -g0 nearly halves the time to compile. CFLAGS replaces the defaults, so -DNDEBUG has to be said again. Measured at -O1 / -O2 / -O3 on the
# operators that detection spends its time in (one thread): RoIAlign of 128 boxes with 256 channels 21 / 21 / 22 ms forward, 54 / 55 / 31
# backward; NMS of 2,000 boxes 5 / 11 / 11 ms. Compiling RoIAlign takes 10.7 s at -O1, 11.7 s at -O3. It is training that takes long: -O3.
CFLAGS = '-O3 -g0 -DNDEBUG'
NEEDS_CPP20 = (2, 14)  # from this torch on its headers are C++20; mmcv 2.1 says C++17
# `exec` fills the dictionary that it is given, on every Python; the one of `locals()` is a copy from 3.13 on.
REPAIR = (
    "exec(compile(f.read(), version_file, 'exec'))\n    return locals()['__version__']",
    "scope = {}\n        exec(compile(f.read(), version_file, 'exec'), scope)\n    return scope['__version__']",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    package, version = what_to_build()
    shelf = wheel_shelf()
    wheels = list(shelf.glob(f'{package.replace("-", "_")}-{version}-*.whl'))
    pip('install', '--no-deps', '--force-reinstall', wheels[0] if wheels else compile_wheel(shelf, package, version))


def what_to_build():
    """The name and the version of the package: that of the fork which is installed, else of mmcv."""
    try:
        return FORK, metadata.version(FORK)
    except metadata.PackageNotFoundError:
        return 'mmcv', VERSION


def wheel_shelf():
    """The folder for wheels compiled for this Python, this torch, this platform, and this kind of GPU if torch sees one."""
    try:
        import torch
    except ImportError as error:
        sys.exit(f'mmcv is compiled against the torch that is installed, and torch cannot be imported ({error}): pip install torch')
    gpu = 'cuda{}{}'.format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else 'cpu'
    facts = f'cp{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}-{sysconfig.get_platform()}-{gpu}'
    return Path(os.environ.get('MMCAE_CACHE') or Path.home() / '.cache' / 'mmcae') / 'wheels' / facts


def compile_wheel(shelf, package, version):
    """Compile a source package into a wheel.

    The sources stay beside it until the wheel is whole: an interrupted compilation goes on with the files that are left.

    Args:
        shelf (Path): The folder for the wheel.
        package (str): 'mmcv' or its fork.
        version (str): Of the package.

    Returns:
        Path: The wheel.
    """
    check_compiler()
    check_cuda_compiler()
    workbench = shelf / 'source'
    source = workbench / f'{package}-{version}'
    workbench.mkdir(parents=True, exist_ok=True)
    pip('install', *BUILD_TOOLS)
    if not source.exists():
        fetch(workbench / 'scratch', source, package, version)
    environment = dict(os.environ, CFLAGS=os.environ.get('CFLAGS', CFLAGS), MMCV_WITH_OPS='1')
    environment.setdefault('MAX_JOBS', str(os.cpu_count() or 1))
    options = ('-v', '--no-cache-dir', '--no-build-isolation', '--no-deps')
    pip('wheel', *options, '-w', workbench, source, environment=environment)
    wheel = next(workbench.glob(f'{package.replace("-", "_")}-{version}-*.whl'))
    wheel = wheel.replace(shelf / wheel.name)
    shutil.rmtree(workbench)
    return wheel


def fetch(scratch, source, package, version):
    """Download a source package through pip, whose settings (index, certificates, ...) hold, and repair its setup.py.

    pip runs the setup.py of what it downloads, to ask for its dependencies, and stops where that fails, as on Python 3.13. It has unpacked
    the package by then, and leaves it where it was told to.

    Args:
        scratch (Path): A folder for pip to work in.
        source (Path): Where the package goes; it is there in whole or not at all.
        package (str): 'mmcv' or its fork.
        version (str): Of the package.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    options = ('--no-clean', '--no-deps', '--no-build-isolation', '--no-binary', package, '-d', scratch)
    pip('download', *options, f'{package}=={version}', environment=dict(os.environ, TMPDIR=str(scratch)), check=False)
    unpacked = next(scratch.glob(f'pip-*/{package}*/setup.py'), None)
    if unpacked is None:
        sys.exit(f'pip could not download the source package of {package} {version}')
    repair(unpacked, reads_version=package == 'mmcv')
    unpacked.parent.replace(source)


def repair(setup, reads_version):
    """Have a setup.py find its version on every Python, and compile for the standard of C++ that torch's headers need."""
    import torch

    text = setup.read_text(encoding='utf-8')
    if reads_version and REPAIR[0] not in text:
        sys.exit(f'mmcv has changed: {setup} reads its version in another way')
    text = text.replace(*REPAIR)
    if tuple(map(int, torch.__version__.split('.')[:2])) >= NEEDS_CPP20:
        text = text.replace('-std=c++17', '-std=c++20')
    setup.write_text(text, encoding='utf-8')


def check_compiler():
    """Stop at once, with the remedy, where compiling could only fail later."""
    if not (os.environ.get('CXX') or any(map(shutil.which, ('g++', 'clang++', 'c++')))):
        sys.exit('No C++ compiler found; mmcv has to be compiled. Debian and Ubuntu: apt-get install g++ python3-dev')
    header = Path(sysconfig.get_paths()['include']) / 'Python.h'
    if not header.exists():
        sys.exit(f'{header} is missing; mmcv has to be compiled. Debian and Ubuntu: apt-get install python3-dev')


def check_cuda_compiler():
    """mmcv compiles its CUDA operators wherever torch sees a GPU; that takes nvcc."""
    import torch
    from torch.utils import cpp_extension

    if torch.cuda.is_available() and cpp_extension.CUDA_HOME is None:
        sys.exit(
            f"torch sees a GPU, but there is no nvcc to compile mmcv's CUDA operators with. Install the CUDA {torch.version.cuda} toolkit "
            'and set CUDA_HOME, then run the same command again; or hide the GPU with CUDA_VISIBLE_DEVICES= for a CPU build.'
        )


def pip(*arguments, environment=None, check=True):
    """Run this Python's pip, its output on the screen."""
    code = subprocess.run([sys.executable, '-m', 'pip', *map(str, arguments)], env=environment).returncode
    if check and code:
        sys.exit(code)


if __name__ == '__main__':
    main()
