"""A device that is not there: its tensors have shapes and dtypes and no numbers.

Where a training step reads a number all the same, a list says what it reads (`READS`).
"""

import sys
from contextlib import contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..utils.errors import ConfigError

PACKAGE, TORCH = Path(__file__).resolve().parents[1], Path(torch.__file__).parent
# Where a training step waits for a number that a device computes, and what is read here; of a selection, the share of the elements that
# are selected. A function computes it from the local variables of the place and the operator's name.
READS = {
    ('engine/amp.py', 'update_params'): 1.0,  # the norm of the gradients, for the log, when the update is under way
    ('mmengine/optim/optimizer/optimizer_wrapper.py', '_clip_grad'): 1.0,  # the same in float32, before the update
    ('mmengine/model/averaged_model.py', 'update_parameters'): 0,  # how many updates a moving average has had
    ('mmpretrain/engine/optimizers/lars.py', 'step'): 1.0,  # the norms of each weight and of its gradient
    ('mmpretrain/models/losses/utils.py', 'convert_to_one_hot'): 0,  # the largest label, which mmpretrain's label smoothing checks
    ('mmseg/models/losses/accuracy.py', 'accuracy'): 1,  # the pixels that are not ignored, for the log
    ('models/targets/quantizer.py', 'forward'): 1,  # whether a tokenizer was trained, in the first step alone
    ('models/targets/quantizer.py', 'learn'): 0,  # whether codes are dead, while a tokenizer is trained: then others take their places
    ('models/targets/teacher.py', 'check_lengths'): 0,  # whether a teacher gives zero vectors, in the first step alone
    # Detectors. Where all are selected, a sampler takes as many positives as it may, and as many negatives as it then lacks.
    ('mmengine/model/utils.py', 'stack_batch'): 0,  # how far images have to be padded: they are already
    ('mmdet/models/dense_heads/anchor_head.py', '_get_targets_single'): 1,  # anchors within the image
    ('mmdet/models/task_modules/assigners/max_iou_assigner.py', 'assign_wrt_overlaps'): 1,  # whether an object has an anchor; positives
    ('mmdet/models/task_modules/samplers/random_sampler.py', '_sample_pos'): 1,
    ('mmdet/models/task_modules/samplers/random_sampler.py', '_sample_neg'): 1,
    ('mmdet/models/task_modules/samplers/base_sampler.py', 'sample'): 1,  # indices without repetitions
    ('mmdet/models/losses/cross_entropy_loss.py', '_expand_onehot_labels'): 1,  # labels of objects
    ('mmdet/models/losses/smooth_l1_loss.py', 'forward'): 1,  # whether there are positives
    ('mmdet/models/losses/iou_loss.py', 'forward'): 1,  # the same
    ('mmdet/models/dense_heads/rpn_head.py', '_bbox_post_process'): 1,  # proposals that are large enough
    ('mmcv/ops/nms.py', 'forward'): 1,  # proposals that are left: rpn_proposal.max_per_img of them are taken
    # RoIs of a map: they are spread evenly
    ('mmdet/models/roi_heads/roi_extractors/single_level_roi_extractor.py', 'forward'): lambda here, _: 1 / here['num_levels'],
    ('mmdet/models/roi_heads/bbox_heads/bbox_head.py', 'loss'): 1,  # RoIs with weights, and of them positives
    ('mmdet/models/roi_heads/bbox_heads/bbox_head.py', 'refine_bboxes'): lambda here, operator: {  # of a cascade
        '_unique2': 0,  # numbers of images, which are but checked
        'nonzero': 1 / len(here['batch_img_metas']),  # RoIs of an image
        'index': 1,  # those that are not objects themselves
    }[operator],
    ('mmdet/structures/mask/mask_target.py', 'mask_target_single'): 0,  # positives' corners and objects
    # Detectors of one stage: all points or anchors count as positives; their heads compute the same for others, but for a few columns.
    ('mmdet/models/task_modules/samplers/pseudo_sampler.py', 'sample'): 1,
    ('mmdet/models/task_modules/assigners/atss_assigner.py', 'assign'): 1,
    ('mmdet/models/task_modules/assigners/dynamic_soft_label_assigner.py', 'assign'): 1,
    ('mmdet/models/task_modules/assigners/dynamic_soft_label_assigner.py', 'dynamic_k_matching'): 1,
    ('mmdet/models/task_modules/assigners/sim_ota_assigner.py', 'get_in_gt_and_in_center_info'): 1,
    ('mmdet/models/task_modules/assigners/sim_ota_assigner.py', 'assign'): 1,
    ('mmdet/models/task_modules/assigners/sim_ota_assigner.py', 'dynamic_k_matching'): 1,
    ('mmdet/models/dense_heads/fcos_head.py', 'loss_by_feat'): 1,
    ('mmdet/models/dense_heads/atss_head.py', '_get_targets_single'): 1,
    ('mmdet/models/dense_heads/atss_head.py', 'get_num_level_anchors_inside'): 1,
    ('mmdet/models/dense_heads/atss_head.py', 'centerness_target'): 0,  # whether one is not a number
    ('mmdet/models/dense_heads/atss_head.py', 'loss_by_feat_single'): 1,
    ('mmdet/models/dense_heads/atss_head.py', 'loss_by_feat'): 1,
    ('mmdet/models/dense_heads/gfl_head.py', '_get_targets_single'): 1,
    ('mmdet/models/dense_heads/gfl_head.py', 'get_num_level_anchors_inside'): 1,
    ('mmdet/models/dense_heads/gfl_head.py', 'loss_by_feat_single'): 1,
    ('mmdet/models/dense_heads/gfl_head.py', 'loss_by_feat'): 1,
    ('mmdet/models/losses/gfocal_loss.py', 'quality_focal_loss'): 1,
    ('mmdet/models/dense_heads/rtmdet_head.py', '_get_targets_single'): 1,
    ('mmdet/models/dense_heads/rtmdet_head.py', 'loss_by_feat_single'): 1,
    ('mmdet/models/dense_heads/rtmdet_head.py', 'loss_by_feat'): 1,
    ('mmdet/models/dense_heads/yolox_head.py', 'loss_by_feat'): 1,
}


COMPREHENSIONS = ('<listcomp>', '<genexpr>', '<dictcomp>', '<setcomp>')  # frames of their own before Python 3.12


class Wait(Exception):
    """The host would have to wait for a number that a device computes.

    Attributes:
        site: The nearest function outside torch: (file, relative to mmcae or to where libraries are; name).
    """

    def __init__(self, site: tuple[str, str]):
        super().__init__(f'{site[1]} in {site[0]} reads a number that the device computes: the step waits for it')
        self.site = site


class HostAndDevice(TorchDispatchMode):
    """Real tensors are those of the host, fake ones those of a device. Operations on real tensors alone are done for real.

    Args:
        fake: The mode of the fake tensors, which is entered before this one.
        device: Where the fake tensors are.

    Raises:
        Wait: A number of a fake tensor is read where `READS` has no entry.
    """

    def __init__(self, fake: FakeTensorMode, device: torch.device):
        super().__init__()
        self.fake, self.device = fake, device
        self.reads = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fake = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        if tensors and not fake:
            with unset_fake_temporarily():
                outputs = func(*args, **kwargs)
            return tree_map(lambda output: fake_on(self, output) if is_on(output, self.device) else output, outputs)
        if func is torch.ops.aten._local_scalar_dense.default:
            return self.read('item')
        if func is torch.ops.aten.index.Tensor and any(selects(index) for index in args[1]):
            share = self.read('index')
            args = (args[0], [part for index in args[1] for part in (selected(index, share) if selects(index) else [index])])
        if func in (torch.ops.aten.nonzero.default, torch.ops.aten._unique2.default):
            indices = torch.stack(selected(args[0], self.read(func.overloadpacket.__name__)), dim=1)
            return indices if func is torch.ops.aten.nonzero.default else (indices[:, 0].to(args[0].dtype), indices[:, 0], indices[:, 0])
        try:
            return func(*args, **kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException) as error:
            raise Wait(site_of(calling_frame())) from error

    def read(self, operator: str) -> float:
        """What a read of a fake tensor gives."""
        frame = calling_frame()
        site = site_of(frame)
        if site not in READS:
            raise Wait(site)
        self.reads.append(site)
        return READS[site](frame.f_locals, operator) if callable(READS[site]) else READS[site]


class CopiesOfTensors(TorchFunctionMode):
    """Arrays made of fake tensors, of the number that `READS` has for the place, and deep copies of them. torch's dispatch sees neither.

    Args:
        host: Knows what is read.
    """

    def __init__(self, host: HostAndDevice):
        super().__init__()
        self.host = host

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.numpy and isinstance(args[0], FakeTensor):
            return np.full(args[0].shape, self.host.read('numpy'), dtype=str(args[0].dtype).removeprefix('torch.'))
        if func is Tensor.__deepcopy__ and isinstance(args[0], FakeTensor):
            return args[0].clone()
        return func(*args, **(kwargs or {}))


@contextmanager
def operators_of_mmcv(host: HostAndDevice):
    """The compiled operators of mmcv, such as RoIAlign, take fake tensors while this context lasts. torch's dispatch does not see them.

    Nearly all write into tensors that their callers made: they write nothing. Non-maximum suppression gives the indices of a selection.

    Raises:
        ConfigError: Another operator is called that makes tensors.
    """
    try:
        from mmcv import _ext
    except ImportError:  # mmcv-lite: no model has them
        yield
        return

    def operator(name, original, *args, **kwargs):
        fake = [value for value in (*args, *kwargs.values()) if isinstance(value, FakeTensor)]
        if not fake:
            return original(*args, **kwargs)
        if 'deform_conv' in name:
            raise ConfigError(f"mmcv's operator {name} cannot be planned: its arithmetic is in no count of torch's")
        if name == 'nms':
            return selected(fake[1], host.read(name))[0]
        if not original.__doc__.rstrip().splitlines()[0].endswith('-> None'):
            raise ConfigError(f"mmcv's operator {name} cannot be planned: the sizes of what it makes are not known")
        return None

    functions = {name: value for name, value in vars(_ext).items() if callable(value) and not name.startswith('_')}
    with mock.patch.multiple(_ext, **{name: partial(operator, name, function) for name, function in functions.items()}):
        yield


def is_on(value, device: torch.device) -> bool:
    """Whether a value is a tensor of a device that is not the host."""
    return isinstance(value, Tensor) and value.device.type == device.type != 'cpu'


def fake_on(mode: HostAndDevice, tensor: Tensor) -> FakeTensor:
    """A fake tensor like a real one, on the mode's device."""
    with mode.fake:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=mode.device)


def selects(index) -> bool:
    """Whether an index is a mask, so that the host has to know how many of its elements are set."""
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def selected(mask: Tensor, share: float) -> list[Tensor]:
    """A mask of which a share is set, as one index for each of its dimensions."""
    number = ceil(mask.numel() * share)
    return [mask.new_zeros(number, dtype=torch.int64) for _ in mask.shape]


def calling_frame():
    """The frame of the innermost function outside torch, this file and other modes of dispatch."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        name = frame.f_code.co_name
        inside = path == Path(__file__) or TORCH in path.parents or name in ('__torch_dispatch__', '__torch_function__', *COMPREHENSIONS)
        if not inside and path.suffix == '.py':
            break
        frame = frame.f_back
    return frame


def site_of(frame) -> tuple[str, str]:
    """File and name of a frame's function."""
    path = Path(frame.f_code.co_filename)
    if PACKAGE in path.parents:
        return path.relative_to(PACKAGE).as_posix(), frame.f_code.co_name
    return path.as_posix().split('site-packages/')[-1], frame.f_code.co_name
