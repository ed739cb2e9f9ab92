"""A training step without numbers: tensors have shapes, dtypes and devices, and no memory. For planning, and for finding waits."""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..registry import MODELS, TRANSFORMS
from ..utils.errors import ConfigError

PACKAGE, TORCH = Path(__file__).resolve().parents[1], Path(torch.__file__).parent
UNSEEN = ('normal_', 'uniform_', 'trunc_normal_', 'erfinv_', 'mul_', 'add_', 'clamp_', 'zero_', 'fill_')  # of initialisation
LARGE = 4096  # elements from which a parameter is left uninitialised
# Where a training step waits for a number that a device computes, and what is read here; of a selection, all there is.
READS = {
    ('engine/amp.py', 'update_params'): 1.0,  # the norm of the gradients, for the log, when the update is under way
    ('mmengine/optim/optimizer/optimizer_wrapper.py', '_clip_grad'): 1.0,  # the same in float32, before the update
    ('mmpretrain/models/losses/utils.py', 'convert_to_one_hot'): 0,  # the largest label, which mmpretrain's label smoothing checks
    ('mmseg/models/losses/accuracy.py', 'accuracy'): None,  # the pixels that are not ignored, for the log
    ('models/targets/quantizer.py', 'forward'): 1,  # whether a tokenizer was trained, in the first step alone
    ('models/targets/quantizer.py', 'learn'): 0,  # whether codes are dead, while a tokenizer is trained: then others take their places
    ('models/targets/teacher.py', 'check_lengths'): 0,  # whether a teacher gives zero vectors, in the first step alone
}


class Wait(Exception):
    """The host would have to wait for a number that a device computes.

    Attributes:
        site: The nearest function outside torch: (file, relative to mmcae or to where libraries are; name).
    """

    def __init__(self, site: tuple[str, str]):
        super().__init__(f'{site[1]} in {site[0]} reads a number that the device computes: the step waits for it')
        self.site = site


class Uninitialised(TorchDispatchMode):
    """Parameters are made without their initialisation, so that models of any size are built at once and take no memory.

    Draws that are repeated until all values lie within bounds end at once: whatever the memory held, no value counts as outside.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split('::')[-1]
        if args and isinstance(args[0], Tensor) and args[0].numel() > LARGE:
            if name in UNSEEN:
                return args[0]
            if name == 'any':
                return torch.tensor(False)
        return func(*args, **(kwargs or {}))


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
            return self.read()
        if func is torch.ops.aten.index.Tensor and any(selects(index) for index in args[1]):
            self.read()
            args = (args[0], [part for index in args[1] for part in (everywhere(index) if selects(index) else [index])])
        try:
            return func(*args, **kwargs)
        except DynamicOutputShapeException as error:
            raise Wait(calling_site()) from error

    def read(self) -> float | None:
        """What a read of a fake tensor gives."""
        site = calling_site()
        if site not in READS:
            raise Wait(site)
        self.reads.append(site)
        return READS[site]


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


def everywhere(mask: Tensor) -> list[Tensor]:
    """A mask whose elements are all set, as one index for each of its dimensions."""
    return [mask.new_zeros(mask.numel(), dtype=torch.int64) for _ in mask.shape]


def calling_site() -> tuple[str, str]:
    """File and name of the innermost function outside torch, this file and other modes of dispatch."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        inside = path == Path(__file__) or TORCH in path.parents or frame.f_code.co_name == '__torch_dispatch__'
        if not inside and path.suffix == '.py':
            break
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    if PACKAGE in path.parents:
        return path.relative_to(PACKAGE).as_posix(), frame.f_code.co_name
    return path.as_posix().split('site-packages/')[-1], frame.f_code.co_name


# ---------------------------------------------------------------- models and batches of a config


class FakeTraining:
    """A config's model, optimizer and batch, on a device that is not there.

    Args:
        cfg (Config): Of a training, as :func:`mmcae.utils.configs.loading.load_config` reads it. Checkpoints that it names are not read.
        batch_size: Images of a batch; the config's by default.
        device: 'cpu' knows mixed precision, and does not tell what a step moves to the device apart from the host's. 'meta' has no
            autocast, finds every wait, and refuses operations on tensors of host and device as CUDA does. 'cuda' needs a build of torch
            with CUDA, and knows the forward pass alone.

    Attributes:
        model (nn.Module): Its parameters and buffers are fake.
        batch (dict): As a dataloader gives it: real tensors.

    Raises:
        ConfigError: There is no batch for such a model: detectors choose by numbers what they compute.
    """

    def __init__(self, cfg, batch_size: int | None = None, device: str = 'cpu'):
        self.cfg, self.device = cfg, torch.device(device)
        self.batch_size = batch_size or cfg.train_dataloader.batch_size
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        with Uninitialised():
            self.model = build_model(cfg)
        self.batch = make_batch(cfg, self.model, self.batch_size)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.host = HostAndDevice(self.fake, self.device)
        self.move_model()
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper.copy())

    def move_model(self):
        """Replace parameters and buffers by fake ones; what the data preprocessor moves becomes fake too."""
        replaced = {}
        for module in self.model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in replaced:
                        new = fake_on(self.host, tensor.detach())
                        is_parameter = isinstance(tensor, nn.Parameter)
                        replaced[id(tensor)] = (nn.Parameter(new, tensor.requires_grad) if is_parameter else new, tensor)
                    tensors[name] = replaced[id(tensor)][0]
        preprocessor = self.model.data_preprocessor
        preprocessor._device = self.device
        cast = preprocessor.cast_data

        def cast_data(data):
            return tree_map(self.faked, cast(data))

        preprocessor.cast_data = cast_data

    def faked(self, value):
        """Tensors and the tensors in data samples as fake ones; anything else as it is."""
        if isinstance(value, FakeTensor):
            return value
        if isinstance(value, Tensor):
            return fake_on(self.host, value)
        if hasattr(value, 'to_tensor') and hasattr(value, 'all_items'):  # a data sample, changed in place
            for name, item in value.all_items():
                if name in value.keys():
                    setattr(value, name, self.faked(item))
        return value

    @contextmanager
    def active(self):
        """The context in which fake tensors compute."""
        with self.fake, self.host:
            yield self

    def step(self):
        """One iteration of training, as the runner makes it; returns the values to log."""
        return self.model.train_step(dict(self.batch), self.optim_wrapper)


def build_model(cfg) -> nn.Module:
    """The model of a config in training mode, without the weights of any file."""
    settings = cfg.model.copy()
    for part in (settings, settings.get('backbone', {})):
        part.pop('init_cfg', None)
    if settings.get('target_generator'):
        settings.target_generator.update({key: None for key in settings.target_generator if key.endswith('checkpoint')})
    if cfg.get('data_preprocessor'):
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(settings).train()


def make_batch(cfg, model: nn.Module, batch_size: int) -> dict:
    """A batch for a model as its dataloader collates it, of grey images."""
    from ..models.methods.base import MaskedImageModel
    from ..models.targets.base import TrainableTokenizer

    def images(*size):
        return torch.full((batch_size, *size), 128, dtype=torch.uint8)

    if isinstance(model, MaskedImageModel):
        return pretraining_batch(cfg, model, images)
    bases = [base.__name__ for base in type(model).__mro__]
    if isinstance(model, TrainableTokenizer):
        from mmpretrain.structures import DataSample

        size = transform_of(cfg, 'size', default=224)
        return dict(inputs=images(model.in_channels or 3, size, size), data_samples=[DataSample() for _ in range(batch_size)])
    if 'BaseClassifier' in bases:
        from mmpretrain.structures import DataSample

        samples = [DataSample().set_gt_label(index % model.head.num_classes) for index in range(batch_size)]
        return dict(inputs=images(model.backbone.spec.in_channels, *view_size(model.backbone)), data_samples=samples)
    if 'BaseSegmentor' in bases:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        size = model.data_preprocessor.size
        labels = PixelData(data=torch.zeros(1, *size, dtype=torch.int64))
        samples = [SegDataSample(gt_sem_seg=labels.clone(), metainfo=dict(img_shape=size)) for _ in range(batch_size)]
        return dict(inputs=list(images(3, *size)), data_samples=samples)
    raise ConfigError(f'{type(model).__name__} cannot be planned without data: what it computes depends on the objects of the images')


def pretraining_batch(cfg, model, images) -> dict:
    """Views and masks, masked by the generator of the config's pipeline."""
    from mmpretrain.structures import DataSample

    views = [images(model.backbone.spec.in_channels, *view_size(model.backbone))]
    target = model.target_generator
    if target is not None and not target.reads_encoder_view:
        size = (cells * pixels for cells, pixels in zip(model.backbone.grid, target.downsample, strict=True))
        views.append(images(target.in_channels or 3, *size))
    generator = TRANSFORMS.build(transform_of(cfg, 'grid'))
    masks = [torch.from_numpy(generator.transform({})['mask']) for _ in range(len(views[0]))]
    return dict(inputs=views, data_samples=[DataSample(mask=mask) for mask in masks])


def transform_of(cfg, key: str, default=None):
    """The first transform of the training pipeline that has an argument: itself for 'grid', else the argument's value."""
    dataset = cfg.train_dataloader.dataset
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    for transform in dataset.get('pipeline', ()):
        if key in transform:
            return transform if default is None else transform[key]
    if default is None:
        raise ConfigError(f'{cfg.filename}: no transform of the training pipeline has {key!r}, such as mmcae.BlockMaskGenerator')
    return default


def view_size(encoder) -> tuple[int, int]:
    """Pixels (h, w) of the images that an encoder was made for."""
    return tuple(cells * pixels for cells, pixels in zip(encoder.grid, encoder.patch_size, strict=True))
