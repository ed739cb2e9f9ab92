"""A training step without numbers: tensors have shapes, dtypes and devices, and no memory. For planning, and for finding waits."""

from contextlib import contextmanager
from math import ceil

import numpy as np
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..models.targets import StoredTokens, Tokenizer
from ..registry import MODELS, TRANSFORMS
from ..utils.errors import ConfigError
from .fake_device import CopiesOfTensors, HostAndDevice, fake_on, operators_of_mmcv

UNSEEN = ('normal_', 'uniform_', 'trunc_normal_', 'erfinv_', 'mul_', 'add_', 'clamp_', 'zero_', 'fill_')  # of initialisation
LARGE = 4096  # elements from which a parameter is left uninitialised
OBJECTS = 8  # in an image for a detector; COCO's have 7.3 on average


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


class FakeTraining:
    """A config's model, optimizer and batch, on a device that is not there.

    Args:
        cfg (Config): Of a training, as :func:`mmcae.utils.configs.loading.load_config` reads it. Checkpoints that it names are not read.
        batch_size: Images of a batch; the config's by default.
        device: 'cpu' knows mixed precision, and does not tell what a step moves to the device apart from the host's. 'meta' has no
            autocast, finds every wait, refuses operations on tensors of host and device as CUDA does, and takes no detectors, because
            mmengine does not know its tensors as indices. 'cuda' needs a build of torch with CUDA, and knows the forward pass alone.

    Attributes:
        model (nn.Module): Its parameters and buffers are fake.
        batch (dict): As a dataloader gives it: real tensors.

    Raises:
        ConfigError: There is no batch for such a model, or its pipeline does not say how large images are.
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
        with self.fake, self.host, CopiesOfTensors(self.host), operators_of_mmcv(self.host):
            yield self

    def step(self):
        """One iteration of training, as the runner makes it; returns the values to log."""
        return self.model.train_step(dict(self.batch), self.optim_wrapper)


class UnreadTokens(StoredTokens):
    """Stored tokens of a store that need not be there."""

    def __init__(self, vocab_size: int):
        Tokenizer.__init__(self)
        self.vocab_size = vocab_size


def build_model(cfg) -> nn.Module:
    """The model of a config in training mode, without the weights of any file."""
    settings = cfg.model.copy()
    for part in (settings, settings.get('backbone', {})):
        part.pop('init_cfg', None)
    if settings.get('target_generator'):
        settings.target_generator.update({key: None for key in settings.target_generator if key.endswith('checkpoint')})
        if MODELS.get(settings.target_generator.type) is StoredTokens:
            settings.target_generator = dict(type=UnreadTokens, vocab_size=settings.decoder.num_outputs)
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
    if isinstance(model, TrainableTokenizer) or 'MAE' in bases:  # mmpretrain's, which masks by itself
        from mmpretrain.structures import DataSample

        channels = getattr(model, 'in_channels', None) or 3
        return dict(inputs=images(channels, *image_size(cfg)), data_samples=[DataSample() for _ in range(batch_size)])
    if 'BaseClassifier' in bases:
        from mmpretrain.structures import DataSample

        samples = [DataSample().set_gt_label(index % model.head.num_classes) for index in range(batch_size)]
        spec = getattr(model.backbone, 'spec', None)  # of mmcae's encoders
        size = largest_size(training_pipeline(cfg)) or (view_size(model.backbone) if spec else image_size(cfg))
        return dict(inputs=images(spec.in_channels if spec else 3, *size), data_samples=samples)
    if 'BaseSegmentor' in bases:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        size = model.data_preprocessor.size or image_size(cfg, model.data_preprocessor.size_divisor or 1)
        labels = PixelData(data=torch.zeros(1, *size, dtype=torch.int64))
        samples = [SegDataSample(gt_sem_seg=labels.clone(), metainfo=dict(img_shape=size)) for _ in range(batch_size)]
        return dict(inputs=list(images(3, *size)), data_samples=samples)
    if 'BaseDetector' in bases:
        return detection_batch(cfg, model, images)
    raise ConfigError(f'{cfg.filename}: there is no batch for a {type(model).__name__}')


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


def detection_batch(cfg, model, images) -> dict:
    """Images of the largest size that the config's pipeline gives, as they are padded, with `OBJECTS` objects each."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = size = image_size(cfg, model.data_preprocessor.pad_size_divisor)
    corners = torch.arange(OBJECTS)[:, None] / (2 * OBJECTS) * torch.tensor([width, height])
    boxes = torch.cat([corners, corners + torch.tensor([width, height]) / 4], dim=1)
    masks = np.zeros((OBJECTS, height, width), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))

    def sample():
        objects = InstanceData(bboxes=boxes.clone(), labels=torch.zeros(OBJECTS, dtype=torch.int64))
        if loads_masks(cfg.train_dataloader.dataset):
            objects.masks = BitmapMasks(masks, *size)
        return DetDataSample(gt_instances=objects, ignored_instances=InstanceData(bboxes=boxes[:0], labels=torch.zeros(0)), metainfo=meta)

    inputs = list(images(3, *size))
    return dict(inputs=inputs, data_samples=[sample() for _ in inputs])


def loads_masks(dataset) -> bool:
    """Whether a data set, or one that it is made of, gives the masks of objects."""
    if any(transform.get('with_mask') for transform in dataset.get('pipeline', [])):
        return True
    return 'dataset' in dataset and loads_masks(dataset.dataset)


def image_size(cfg, divisor: int = 1) -> tuple[int, int]:
    """Pixels (h, w) of the largest images that the training pipeline gives, padded to multiples of a number.

    Raises:
        ConfigError: No transform names a size.
    """
    size = largest_size(training_pipeline(cfg))
    if size is None:
        raise ConfigError(f'{cfg.filename}: no transform of the training pipeline says how large images become (scale, scales, crop_size)')
    return tuple(ceil(side / divisor) * divisor for side in size)


def largest_size(transforms) -> tuple[int, int] | None:
    """Pixels (h, w) of the largest images that transforms give: of the last that names a size; None where none does."""
    size = None
    for transform in transforms:
        if 'transforms' in transform:
            choices = [largest_size(choice if isinstance(choice, (list, tuple)) else [choice]) for choice in transform['transforms']]
            size = max(filter(None, choices), key=np.prod, default=size)
            continue
        if 'relative' in transform.get('crop_type', ''):  # a share of the image, which may be all of it
            continue
        # A transform that has a size may call the share of the image that it cuts out its scale; other scales are of colours.
        key = next((key for key in ('size', 'crop_size', 'scales', 'scale') if transform.get(key)), None)
        values = transform.get(key)
        if isinstance(values, int):
            values = (values, values)
        if isinstance(values, (list, tuple)):
            pairs = [values] if isinstance(values[0], (int, float)) else values
            most = max(transform.get('ratio_range', [1])) if key == 'scale' else 1
            height_first = key == 'size' and transform.get('type') != 'Pad'  # else (width, height)
            pairs = pairs if height_first else map(reversed, pairs)
            size = max((tuple(int(side * most) for side in pair) for pair in pairs), key=np.prod)
    return size


def transform_of(cfg, key: str) -> dict:
    """The first transform of the training pipeline that has an argument."""
    for transform in training_pipeline(cfg):
        if key in transform:
            return transform
    raise ConfigError(f'{cfg.filename}: no transform of the training pipeline has {key!r}, such as mmcae.BlockMaskGenerator')


def training_pipeline(cfg) -> list:
    """The transforms of the training images."""
    dataset = cfg.train_dataloader.dataset
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset.get('pipeline', [])


def view_size(encoder) -> tuple[int, int]:
    """Pixels (h, w) of the images that an encoder was made for."""
    return tuple(cells * pixels for cells, pixels in zip(encoder.grid, encoder.patch_size, strict=True))
