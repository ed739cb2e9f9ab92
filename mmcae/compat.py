"""The versions mmcae runs on, what to say where one does not work, and the few quirks that have to be worked around.

The only file that knows about either. Importing mmcae runs nothing of it: tools call :func:`check_environment` when they start.
"""

import atexit
import importlib
import pkgutil
import re
import sys
import time
import warnings
from importlib import metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

from .utils.errors import DependencyError
from .utils.packaged import TOOLS

# What the core runs on, and what detection and segmentation add. Import name -> (what to install, lowest version, first version that does
# not work any more). The same for the official packages and the OneDL forks, which share the import names; mmcv alone has a gap between
# the two.
LIBRARIES = {
    'torch': ('torch', '2.6', None),
    'torchvision': ('torchvision', '0.21', None),
    'mmengine': ('mmengine', '0.10.7', '1.0'),
    'mmcv': ('mmcv-lite', '2.1', None),
    'mmpretrain': ('mmpretrain', '1.2.0', '2.0'),
    'timm': ('timm', '1.0.20', None),
    'mmdet': ('mmdet', '3.3.0', '4.0'),
    'mmseg': ('mmsegmentation', '1.2.2', '2.0'),
}
MMCV_GAP = ('2.2', '2.3')  # mmcv 2.2 is refused by mmdet 3.3 and mmsegmentation 1.2; OneDL's forks start at 2.3
# What only some tasks need: import name -> the extra of mmcae that installs it.
EXTRAS = {
    'mmdet': 'detection',
    'pycocotools': 'detection',
    'mmseg': 'segmentation',
    'ftfy': 'segmentation',
    'regex': 'segmentation',
    'tifffile': 'slides',
    'tensorboard': 'logging',
    'deepspeed': 'deepspeed',
}
# Packages that are called otherwise than what is imported from them.
PACKAGES = {
    'cv2': 'opencv-python-headless',
    'pkg_resources': '"setuptools<81"',
    'sklearn': 'scikit-learn',
    'PIL': 'pillow',
    'skimage': 'scikit-image',
    'yaml': 'pyyaml',
}
# Packages that share files: uninstalling one takes files of another away, and of two stacks the one installed last overwrites the other.
SHARED_FILES = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv-lite', 'mmcv', 'onedl-mmcv'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'cv2': ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless'),
}
# Optional. mmengine's strategy for it was written for 0.9 to 0.16; with 0.19 it fails.
DEEPSPEED_RANGE = ((0, 16, 9), (0, 17))
# Debian's names of the packages that hold what OpenCV's wheel with a graphical interface links to.
SYSTEM_PACKAGES = {
    'libGL.so.1': 'libgl1',
    'libxcb.so.1': 'libxcb1',
    'libgthread-2.0.so.0': 'libglib2.0-0',
    'libglib-2.0.so.0': 'libglib2.0-0',
}
HEADLESS = 'pip install --force-reinstall --no-deps opencv-python-headless'


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
    _, lowest, too_new = LIBRARIES[library]
    try:
        module = importlib.import_module(library)
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else None
        reason = 'is not installed' if missing == library else f'cannot be imported ({error})'
        culprit = missing or library
        remedy = damage(library) or damage(culprit.split('.')[0]) or how_to_install(culprit)
        raise DependencyError(f'{library} {reason}. Remedy: {remedy}') from error
    except RuntimeError as error:
        if 'operator torchvision::nms does not exist' not in str(error):
            raise
        raise DependencyError(
            'torchvision is of another build than torch (CUDA beside CPU) and cannot be imported. Remedy: install both from one index, or '
            f'run python {TOOLS / "fit_torchvision.py"}'
        ) from error
    except AssertionError as error:  # how the OpenMMLab packages refuse each other's versions
        raise DependencyError(f'{library} refuses its neighbours: {error}') from error
    if not hasattr(module, '__version__'):  # folders that an uninstalled package has left are a module without content
        raise DependencyError(f'{library} is not whole. Remedy: {damage(library) or how_to_install(library)}')
    version = _parse(module.__version__)
    gap = library == 'mmcv' and _parse(MMCV_GAP[0]) <= version < _parse(MMCV_GAP[1])
    if version < _parse(lowest) or gap or (too_new and version >= _parse(too_new)):
        raise DependencyError(f'{library} {module.__version__} does not work here. Remedy: pip install "{_requirement(library)}"')
    if library == 'mmengine' and not hasattr(pkgutil, 'find_loader') and not installed('onedl-mmengine'):
        raise DependencyError(
            f'mmengine {module.__version__} does not work on Python 3.14 and later, which have no pkgutil.find_loader. '
            'Remedy: an environment of Python 3.10 to 3.13, or pip uninstall -y mmengine && pip install --no-deps onedl-mmengine'
        )
    if library in ('mmdet', 'mmseg'):
        require_operators(library)
    return module


def require_operators(library):
    """Check that the operators of mmcv are there and fit torch.

    Args:
        library (str): What needs them, for the message.

    Raises:
        DependencyError: They are missing (mmcv-lite has none, or mmcv was built without torch), or were compiled for another torch.
    """
    try:
        importlib.import_module('mmcv._ext')
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError)
        reason = 'which are not installed (mmcv-lite has none)' if absent else f'which do not fit torch ({error})'
        raise DependencyError(f'{library} needs the compiled operators of mmcv, {reason}. Remedy: {how_to_install("mmcv._ext")}') from error


def has_operators():
    """Whether the compiled operators of mmcv are installed; mmcv is not imported for it, since that may fail."""
    mmcv = find_spec('mmcv')
    finders = [finder for finder in sys.meta_path if isinstance(finder, type) and issubclass(finder, PathFinder)]
    return mmcv is not None and any(finder.find_spec('mmcv._ext', mmcv.submodule_search_locations) for finder in finders)


def how_to_install(name):
    """The command that installs what is missing.

    Args:
        name (str): As in an import, such as 'tifffile' or 'mmcv._ext'.

    Returns:
        str: Such as 'pip install "mmcae[slides]"'.
    """
    library = name.split('.')[0]
    if name.startswith(('mmcv._ext', 'mmcv.ops')):
        return f'python {TOOLS / "build_mmcv.py"}'
    if library in ('mmdet', 'mmseg') and find_spec('mmcv') and not has_operators():
        return f'pip install "mmcae[{EXTRAS[library]}]" && {how_to_install("mmcv._ext")}'
    if library in EXTRAS:
        return f'pip install "mmcae[{EXTRAS[library]}]"'
    if library in LIBRARIES:
        return f'pip install "{_requirement(library)}"'
    return f'pip install {PACKAGES.get(library, library)}'


def import_extra(name, purpose):
    """Import a library that only some tasks need.

    Args:
        name (str): As in an import.
        purpose (str): What needs it, as the beginning of a message: 'Images of 5 channels'.

    Returns:
        module: The library.

    Raises:
        DependencyError: It cannot be imported; names the purpose and the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(f'{purpose}: {name} cannot be imported ({error}). Remedy: {how_to_install(name)}') from error


def installed(package):
    """The version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def damage(library):
    """How to repair packages that have taken each other's files.

    Args:
        library (str): An import name.

    Returns:
        str: The commands, or '' where nothing is damaged.
    """
    there = [package for package in SHARED_FILES.get(library, (library,)) if installed(package)]
    forks = [package for package in there if package.startswith('onedl-')]
    if forks and there != forks:
        others = ' '.join(package for package in there if package not in forks)
        return (
            f'pip uninstall -y {others} && pip install --force-reinstall --no-deps {forks[0]} '
            f'({others} and {forks[0]} overwrite each other)'
        )
    for package in there:
        files = metadata.files(package) or ()
        if any(file.suffix in ('.py', '.so') and not file.locate().exists() for file in files):
            if package == 'mmcv':
                return f'{how_to_install("mmcv._ext")} (files of mmcv are missing)'
            command = f'pip install --force-reinstall --no-deps {package}=={installed(package)}'
            return f'{command} (files of {package} are missing; a package that shares them was uninstalled)'
    return ''


def _parse(version):
    from packaging.version import parse

    return parse(version)


def _requirement(library):
    """A package and the versions of it that work, as pip writes them."""
    package, lowest, too_new = LIBRARIES[library]
    if library == 'mmcv':
        too_new = MMCV_GAP[0]
    return f'{package}>={lowest}' + (f',<{too_new}' if too_new else '')


def require_opencv():
    """Import OpenCV; where its wheel misses a system library, say which package has it.

    Raises:
        DependencyError: OpenCV is missing or cannot be loaded.
    """
    try:
        import cv2
    except ImportError as error:
        library = re.search(r'lib[\w.+-]+\.so[.\d]*', str(error))
        if not library:
            raise DependencyError(f'OpenCV cannot be imported ({error}). Remedy: {damage("cv2") or HEADLESS}') from error
        package = SYSTEM_PACKAGES.get(library[0], 'libgl1 libglib2.0-0 libxcb1')
        raise DependencyError(
            f'OpenCV needs the system library {library[0]}. Remedy: {HEADLESS}; or, as root on Debian and Ubuntu: apt-get install {package}'
        ) from error
    if not hasattr(cv2, '__version__'):
        raise DependencyError(f'OpenCV is not whole. Remedy: {damage("cv2") or HEADLESS}')


def require_deepspeed():
    """Import DeepSpeed, which is optional, and check its version.

    Raises:
        DependencyError: It is missing or does not work with mmengine's strategy.
    """
    remedy = f'Remedy: {how_to_install("deepspeed")}, or another strategy, such as a config in configs/cae/ with fsdp'
    try:
        import deepspeed
    except ImportError as error:
        raise DependencyError(f'The config trains by DeepSpeed, which cannot be imported ({error}). {remedy}') from error
    if not DEEPSPEED_RANGE[0] <= _parse(deepspeed.__version__).release < DEEPSPEED_RANGE[1]:
        raise DependencyError(f"DeepSpeed {deepspeed.__version__} does not work with mmengine's strategy. {remedy}")


def import_mmpretrain():
    """Import mmpretrain's models without mmdet, which they import for the sake of one layer for detectors if it is there.

    A third of the time that a process takes to start is saved. Whatever asks for mmdet later gets it as usual. Without the operators of
    mmcv, mmpretrain warns of the layers that need them; none of ours does.
    """
    require('mmpretrain')
    spare_multimodal()
    if 'mmdet' in sys.modules or 'mmpretrain.models' in sys.modules:
        return
    sys.modules['mmdet'] = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*MultiScaleDeformableAttention')
            importlib.import_module('mmpretrain.models')
    finally:
        del sys.modules['mmdet']


def spare_multimodal():
    """Tell mmpretrain that it has no multimodal models, where a newer transformers is installed.

    They ask it for functions that it has no longer (4.57 has not, nor has 5), and nothing of mmpretrain could be imported. None of ours
    needs them.
    """
    transformers = find_spec('transformers')
    if transformers is None or not transformers.submodule_search_locations:
        return
    home = Path(transformers.submodule_search_locations[0]) / 'modeling_utils.py'
    newer = not home.is_file() or 'apply_chunking_to_forward' not in home.read_text(encoding='utf-8')
    if newer and find_spec('mmpretrain') and 'mmpretrain.models' not in sys.modules:
        importlib.import_module('mmpretrain.utils.dependency').WITH_MULTIMODAL = False


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
