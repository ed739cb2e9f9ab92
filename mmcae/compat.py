"""The versions mmcae runs on, what to say where one does not work, and the few quirks that have to be worked around.

The only file that knows about either. Importing mmcae runs nothing of it: tools call :func:`check_environment` when they start.
"""

import atexit
import importlib
import importlib.util
import re
import sys
import time
from unittest import mock

from .utils.errors import DependencyError

# Import name -> (what to install, lowest version, first version that does not work any more). The same for the official packages and the
# OneDL forks, which share the import names; mmcv alone has a gap between the two.
LIBRARIES = {
    'torch': ('torch', '2.6', None),
    'torchvision': ('torchvision', '0.19', None),
    'mmengine': ('mmengine', '0.10.7', '1.0'),
    'mmcv': ('mmcv', '2.1', None),
    'mmpretrain': ('mmpretrain', '1.2.0', '2.0'),
    'mmdet': ('mmdet', '3.3.0', '4.0'),
    'mmseg': ('mmsegmentation', '1.2.2', '2.0'),
    'timm': ('timm', '1.0.20', None),
}
MMCV_GAP = ('2.2', '2.3')  # mmcv 2.2 is refused by mmdet 3.3 and mmsegmentation 1.2; OneDL's forks start at 2.3
# Optional. mmengine's strategy for it was written for 0.9 to 0.16; with 0.19 it fails.
DEEPSPEED, DEEPSPEED_RANGE = 'deepspeed==0.16.9', ((0, 16, 9), (0, 17))
EVERYTHING = (
    '`make test` builds an environment with everything in it; requirements/constraints.txt lists the versions that were tested together'
)
# Debian's names of the packages that hold what OpenCV's wheel with a graphical interface links to.
SYSTEM_PACKAGES = {
    'libGL.so.1': 'libgl1',
    'libxcb.so.1': 'libxcb1',
    'libgthread-2.0.so.0': 'libglib2.0-0',
    'libglib-2.0.so.0': 'libglib2.0-0',
}


def check_environment():
    """Check what every tool needs, before anything slow begins.

    Raises:
        DependencyError: A library that nothing works without is missing, broken, or of a version that does not work.
    """
    require('torch')
    require_opencv()
    for library in ('mmengine', 'mmcv'):
        require(library)
    require('torchvision')


# ---------------------------------------------------------------- what is installed


def require(library):
    """Import a library and check its version.

    Args:
        library (str): An import name from `LIBRARIES`.

    Returns:
        module: The library.

    Raises:
        DependencyError: It is missing, cannot be imported, or has a version that does not work.
    """
    package, lowest, too_new = LIBRARIES[library]
    try:
        module = importlib.import_module(library)
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else None
        reason = 'is not installed' if missing == library else f'cannot be imported ({error})'
        raise DependencyError(
            f'{library} {reason}. Remedy: pip install "{missing or package}{_range(library, missing)}". {EVERYTHING}'
        ) from error
    except RuntimeError as error:
        if library != 'torchvision' or 'operator torchvision::nms does not exist' not in str(error):
            raise
        raise DependencyError(
            'torchvision is of another build than torch (CUDA beside CPU) and cannot be imported. Remedy: install both from one index, or '
            'run python tools/fit_torchvision.py'
        ) from error
    except AssertionError as error:  # how the OpenMMLab packages refuse each other's versions
        raise DependencyError(f'{library} refuses its neighbours: {error} {EVERYTHING}') from error
    version = _parse(module.__version__)
    gap = library == 'mmcv' and _parse(MMCV_GAP[0]) <= version < _parse(MMCV_GAP[1])
    if version < _parse(lowest) or gap or (too_new and version >= _parse(too_new)):
        raise DependencyError(
            f'{library} {module.__version__} does not work here. Remedy: pip install "{package}{_range(library)}". {EVERYTHING}'
        )
    if library in ('mmdet', 'mmseg') and importlib.util.find_spec('mmcv._ext') is None:
        raise DependencyError(f'{library} needs the compiled operators of mmcv, and this mmcv has none (mmcv-lite?). {EVERYTHING}')
    return module


def _parse(version):
    from packaging.version import parse

    return parse(version)


def _range(library, missing=None):
    """The versions that work, as pip writes them; nothing for a package that is only missing underneath."""
    if missing and missing != library:
        return ''
    _, lowest, too_new = LIBRARIES[library]
    if library == 'mmcv':
        return f'>={lowest},<{MMCV_GAP[0]}'
    return f'>={lowest}' + (f',<{too_new}' if too_new else '')


def require_opencv():
    """Import OpenCV; where its wheel misses a system library, say which package has it.

    Raises:
        DependencyError: OpenCV is missing or cannot be loaded.
    """
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        library = re.search(r'lib[\w.+-]+\.so[.\d]*', str(error))
        if not library:
            raise DependencyError(f'OpenCV cannot be imported ({error}). Remedy: pip install opencv-python-headless') from error
        package = SYSTEM_PACKAGES.get(library[0], 'libgl1 libglib2.0-0 libxcb1')
        raise DependencyError(
            f'OpenCV needs the system library {library[0]}. Remedy on Debian and Ubuntu: apt-get install {package}; '
            'or, without root: pip uninstall opencv-python && pip install opencv-python-headless'
        ) from error


def require_deepspeed():
    """Import DeepSpeed, which is optional, and check its version.

    Raises:
        DependencyError: It is missing or does not work with mmengine's strategy.
    """
    remedy = f'Remedy: pip install "{DEEPSPEED}" (the extra [deepspeed]), or another strategy, such as a config in configs/cae/ with fsdp'
    try:
        import deepspeed
    except ImportError as error:
        raise DependencyError(f'The config trains by DeepSpeed, which cannot be imported ({error}). {remedy}') from error
    if not DEEPSPEED_RANGE[0] <= _parse(deepspeed.__version__).release < DEEPSPEED_RANGE[1]:
        raise DependencyError(f"DeepSpeed {deepspeed.__version__} does not work with mmengine's strategy. {remedy}")


def import_mmpretrain():
    """Import mmpretrain's models without mmdet, which they import for the sake of one layer for detectors if it is there.

    A third of the time that a process takes to start is saved. Whatever asks for mmdet later gets it as usual.
    """
    require('mmpretrain')
    if 'mmdet' in sys.modules or 'mmpretrain.models' in sys.modules:
        return
    sys.modules['mmdet'] = None
    try:
        importlib.import_module('mmpretrain.models')
    finally:
        del sys.modules['mmdet']


# ---------------------------------------------------------------- several processes without a GPU


def init_distributed(launcher, **options):
    """Join the processes of a launcher by gloo, on a machine without an accelerator; mmengine's own way needs a GPU for it.

    The rank, the world size and the meeting point come from the environment that the launcher made, read by mmengine.

    Args:
        launcher (str): 'pytorch', 'slurm' or 'mpi'.
        **options: For `torch.distributed.init_process_group`, such as timeout (seconds).
    """
    from mmengine.dist import init_dist

    options.pop('backend', None)
    with mock.patch('torch.cuda.set_device'):  # what mmengine calls first, whatever the backend
        init_dist(launcher, backend='gloo', **options)
    atexit.register(leave_distributed)


def leave_distributed():
    """End the communication with the other processes, if there is any, before the interpreter ends.

    Tools call it when they have done their work, or stop because of a signal: then all processes do, and NCCL, which else leaves its
    resources to chance, can say goodbye to each of them. Not after an error, where others may be gone, and NCCL would wait for them.

    A thread of gloo's that still waits for Python's lock, to let go of a tensor, aborts a process that has done all its work (in one of
    twenty runs). So these threads get the lock for a moment, and gloo is left after errors too.
    """
    from torch import distributed

    if distributed.is_initialized():
        gloo = distributed.get_backend() == 'gloo'
        distributed.destroy_process_group()
        time.sleep(0.2 if gloo else 0)


def has_accelerator():
    """Whether mmengine will put the model on something other than the CPU."""
    from mmengine.device import get_device

    return get_device() != 'cpu'


def has_fast_bfloat16():
    """Whether this CPU has instructions for bfloat16, by what torch tells of it; torch computes in it on other CPUs too, but slowly."""
    import torch

    if not hasattr(torch.cpu, 'get_capabilities'):  # before torch 2.10
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ('avx512_bf16', 'amx_bf16', 'bf16'))  # the last is ARM's
