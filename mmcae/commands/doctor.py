"""What mmcae finds on this machine, what is missing or broken, and the remedy.

    mmcae doctor
    python -m mmcae.commands.doctor     # the same

Exit code 0 if everything mmcae needs is there, else 1. It runs, above all, where nothing else does.
"""

import functools
import os
import platform
import shutil
import sys

from .. import compat
from ..utils.errors import DependencyError


def collect():
    """Look at the machine and at every library.

    Returns:
        tuple[list[tuple[str, str]], list[str]]: Name and finding for each thing, and a remedy for each thing that is not as it should be.
    """
    found = [
        ('Python', f'{platform.python_version()} ({sys.executable})'),
        ('system', f'{platform.platform()}, {os.cpu_count()} cores'),
        ('C++ compiler', os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++') or 'none (only needed to compile mmcv)'),
    ]
    remedies = []
    steps = [('OpenCV', compat.require_opencv, _opencv_version)]
    for library in compat.LIBRARIES:
        steps.append((library, functools.partial(compat.require, library), _describe))
    for name, check, describe in steps:
        try:
            found.append((name, describe(check())))
        except DependencyError as error:
            found.append((name, 'NOT USABLE'))
            remedies.append(str(error))
    return found, remedies


def _opencv_version(_):
    import cv2

    return cv2.__version__


def _describe(module):
    text = f'{module.__version__} ({os.path.dirname(module.__file__)})'
    if module.__name__ == 'torch':
        cuda = module.version.cuda
        if module.cuda.is_available():
            gpus = [module.cuda.get_device_name(i) for i in range(module.cuda.device_count())]
            text += f'; CUDA {cuda}, {len(gpus)} GPU: {", ".join(gpus)}'
        else:
            text += f'; built for CUDA {cuda}, but sees no GPU' if cuda else '; CPU build'
    return text


def add_arguments(parser):
    pass


def run(args=None):
    """Print the findings, then what to do."""
    found, remedies = collect()
    width = max(len(name) for name, _ in found)
    for name, finding in found:
        print(f'{name:{width}}  {finding}')
    print()
    for remedy in remedies:
        print(f'! {remedy}')
    if not remedies:
        print('Everything mmcae needs is here.')
    sys.exit(bool(remedies))


if __name__ == '__main__':
    run()
