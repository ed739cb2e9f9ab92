"""The versions mmcae runs on and the fixes for their quirks: the only file that knows about either.

`import mmcae` calls `apply()`. It changes what is broken or unsafe without the change, and nothing else:

- a library that is missing, broken or of the wrong version is named, with what to install;
- torchvision's CUDA build next to torch's CPU build (what plain pip installs on a machine without a GPU) is made importable;
- mmengine's own checkpoints load under torch's `weights_only=True`, and no checkpoint can run code: neither through objects in the
  pickle, nor through OneDL's second attempt without that protection, nor downloads, nor the config text that mmengine executes on
  resuming;
- with `launcher='pytorch'`, 'slurm' or 'mpi' on a machine without a GPU, `init_distributed` joins the processes by gloo.
"""

import atexit
import functools
import importlib
import importlib.util
import logging
import os
import pickle
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
SAFE_DTYPES = '?bBhHiIlLqQefd'
_keep_alive = []  # torch forgets operators whose Library object is gone


def apply():
    """Check the environment and repair it; called once, by `import mmcae`.

    Raises:
        DependencyError: A library that nothing works without is missing, broken, or of a version that does not work.
    """
    refuse_unsafe_loading()
    require('torch')
    require_opencv()
    for library in ('mmengine', 'mmcv'):
        require(library)
    repair_torchvision()
    allow_plain_data()
    read_checkpoints_safely()


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


def repair_torchvision():
    """Make torchvision's CUDA build importable next to torch's CPU build.

    Its compiled operators cannot be loaded then, and importing it stops at registering a shape function for one of them. Declaring the two
    operators, without an implementation, lets the rest be used: the transforms, which is all that mmpretrain needs.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if 'operator torchvision::nms does not exist' not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        library = torch.library.Library('torchvision', 'DEF')
        for operator in ('nms', 'qnms'):
            library.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _keep_alive.append(library)
        import torchvision  # noqa: F401
    except ImportError:
        require('torchvision')


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


# ---------------------------------------------------------------- checkpoints that cannot run code


def refuse_unsafe_loading():
    """Refuse the environment variable by which torch.load forgets its protection.

    Raises:
        DependencyError: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set.
    """
    if os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '0').lower() in ('1', 'y', 'yes', 'true'):
        raise DependencyError(
            'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: any checkpoint could run code on this machine. '
            'Remedy: unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD. mmcae needs no exception from safe loading'
        )


class _ArrayType:
    """What the name `numpy.ndarray` means inside a checkpoint: a token to hand to `_reconstruct`, not a constructor."""

    def __new__(cls, *_):
        raise pickle.UnpicklingError('a checkpoint may not make an array from memory')


def _history_method(owner, name):
    """What `getattr` means inside a checkpoint: a method of HistoryBuffer that computes a statistic."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'a checkpoint may not ask for the attribute {name!r} of {owner!r}')
    return getattr(HistoryBuffer, name)


def _plain_dtype(spec, *_):
    """What `numpy.dtype` means inside a checkpoint: numbers and booleans, no objects and no records."""
    import numpy as np

    if not isinstance(spec, str) or not re.fullmatch(r'[biuf]\d+', spec):
        raise pickle.UnpicklingError(f'a checkpoint may not ask for the array type {spec!r}')
    return np.dtype(spec, False, True)  # a copy: the checkpoint fills it, and numpy's own must not change


def _empty_array(kind, shape, code):
    """What `_reconstruct` means inside a checkpoint: an empty array, to be filled from the checkpoint's next words."""
    import numpy as np

    if kind is not _ArrayType or shape != (0,) or code not in (b'b', 'b'):
        raise pickle.UnpicklingError('a checkpoint may not make this kind of array')
    return np.ndarray((0,), np.int8)


def allow_plain_data():
    """Extend torch's list of what a checkpoint may hold by what mmengine's own checkpoints hold: arrays and scalars of numbers, and logs.

    The plain constructors are not on the list. With `getattr` a checkpoint reaches any function; `numpy.ndarray` on a buffer with the
    type of objects turns bytes into pointers. So each name is bound to a function that does what mmengine's checkpoints need. An array or
    a type may be filled only once it exists, which takes its class on the list: under a name without a dot, that no checkpoint can
    pronounce.
    """
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer

    scalar = np.float64(0).__reduce__()[0]  # the same function under the different names that numpy 1 and 2 give its module
    allowed = [HistoryBuffer, (_history_method, 'builtins.getattr'), (_ArrayType, 'numpy.ndarray'), (_plain_dtype, 'numpy.dtype')]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed += [(_empty_array, f'{module}._reconstruct'), (scalar, f'{module}.scalar')]
    for code in SAFE_DTYPES:
        allowed.append((type(np.dtype(code)), f'only to be filled: dtype {code}'))
    allowed.append((np.ndarray, 'only to be filled: ndarray'))
    torch.serialization.add_safe_globals(allowed)


def read_checkpoints_safely():
    """Have mmengine read every checkpoint by `mmcae.checkpoints.read_checkpoint`, or at least by torch.load(weights_only=True)."""
    import torch
    from mmengine.runner import checkpoint as mmengine_checkpoint

    def load_from_local(filename, map_location=None):
        # Imported here, because that module needs a working torch. Its tensors come to the CPU whatever map_location says: mmengine copies
        # them to wherever the model and the optimizer are.
        from .checkpoints import read_checkpoint

        return read_checkpoint(os.path.expanduser(filename))

    def safe_torch_load(file, map_location=None, weights_only=True):
        return torch.load(file, map_location=map_location, weights_only=True)

    loader = mmengine_checkpoint.CheckpointLoader
    loader.register_scheme('', load_from_local, force=True)
    mmengine_checkpoint.load_from_local = load_from_local
    mmengine_checkpoint.load_url = functools.partial(torch.hub.load_state_dict_from_url, weights_only=True)
    if hasattr(mmengine_checkpoint, '_safe_torch_load'):  # OneDL: falls back to full unpickling when the safe way fails
        mmengine_checkpoint._safe_torch_load = safe_torch_load
    if not getattr(loader.load_checkpoint, 'drops_config', False):
        loader.load_checkpoint = classmethod(_without_config(loader.load_checkpoint.__func__))


def _without_config(load_checkpoint):
    """Wrap mmengine's loader so that what it returns has no `meta['config']`: on resuming, mmengine executes that text as Python.

    mmengine itself does not write it (its own config text is `meta['cfg']`, which is not executed).
    """

    @functools.wraps(load_checkpoint)
    def wrapper(cls, filename, *args, **kwargs):
        checkpoint = load_checkpoint(cls, filename, *args, **kwargs)
        meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
        if isinstance(meta, dict) and meta.pop('config', None) is not None:
            from mmengine.logging import print_log

            print_log(f'{filename}: the config text in it is ignored, because reading it means to execute it', 'current', logging.WARNING)
        return checkpoint

    wrapper.drops_config = True
    return wrapper


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
