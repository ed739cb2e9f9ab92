"""What mmcae finds on this machine, what is missing or broken, and the remedy.

    mmcae doctor
    python -m mmcae.commands.doctor     # the same

Exit code 0 if everything that the core needs is there and nothing is broken, else 1. What only some tasks need may be absent; it is listed
with the command that installs it. The report runs, above all, where `import mmcae` does not.
"""

import os
import platform
import shutil
import sys
from importlib.util import find_spec

from .. import compat
from ..utils.errors import DependencyError

ON_OPENCV = ('mmcv', 'mmpretrain', 'mmdet', 'mmseg')  # they import cv2, and cannot be judged where it fails


def collect():
    """Look at the machine and at every library.

    Returns:
        tuple[list[tuple[str, str]], list[str]]: Name and finding for each thing, and a remedy for each thing that is not as it should be.
    """
    found = [
        ('Python', f'{platform.python_version()} ({sys.executable})'),
        ('system', f'{platform.platform()}, {os.cpu_count()} cores'),
        ('C++ compiler', os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++') or 'none (only compiling mmcv needs one)'),
    ]
    remedies = {}
    for name in ('cv2', *compat.LIBRARIES, *(name for name in compat.EXTRAS if name not in compat.LIBRARIES)):
        if name in ON_OPENCV and 'cv2' in remedies and find_spec(name):
            found.append((name, 'NOT USABLE without cv2'))
            continue
        finding, remedy = look_at(name)
        found.append((name, finding))
        if remedy:
            remedies[name] = remedy
    return found, list(remedies.values())


def look_at(name):
    """What is found of one library.

    Args:
        name (str): As in an import.

    Returns:
        tuple[str, str]: The finding, and the remedy, which is '' where nothing has to be done.
    """
    if name in compat.EXTRAS and find_spec(name) is None and not compat.damage(name):
        return f'not installed; for {compat.EXTRAS[name]}: {compat.how_to_install(name)}', ''
    try:
        if name in compat.LIBRARIES:
            compat.require(name)
        elif name == 'cv2':
            compat.require_opencv()
        elif name == 'deepspeed':
            compat.require_deepspeed()
        else:
            compat.import_extra(name, 'Optional')
    except DependencyError as error:
        return 'NOT USABLE', str(error)
    damage = compat.damage(name)
    return _describe(sys.modules[name]), f'{name} is damaged. Remedy: {damage}' if damage else ''


def _describe(module):
    text = f'{getattr(module, "__version__", "there")} ({os.path.dirname(module.__file__)})'
    if module.__name__ == 'mmcv':
        text += '; compiled operators' if compat.has_operators() else '; no compiled operators (detection and segmentation need them)'
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
