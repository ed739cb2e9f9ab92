"""What a training step of a config costs: multiply-adds and memory, counted on fake tensors."""

import weakref
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..utils.errors import ConfigError
from .fake_device import Wait
from .fake_training import FakeTraining

# Memory in 10^9 bytes, and dense matrix products in bfloat16 (V100: float16) in 10^12 operations a second, from NVIDIA's data sheets.
GPUS = {
    'V100-32': (32, 125),
    'A100-40': (40, 312),
    'A100': (80, 312),
    'L40S': (48, 362),
    'RTX4090': (24, 165),
    'H100': (80, 989),
    'H200': (141, 989),
    'B200': (180, 2250),
}
USABLE = 0.9  # of a GPU's memory: CUDA's context, NCCL's buffers and gaps between tensors take the rest


class PeakMemory(TorchDispatchMode):
    """The memory of all tensors that exist, as they come and go.

    torch's MemTracker (torch.distributed._tools) does the same by modules, but takes no models with frozen parameters.

    Args:
        model, optimizer: Whose parameters, buffers and states exist already.

    Attributes:
        peak: Bytes at most.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        super().__init__()
        self.storages, self.live, self.peak = {}, 0, 0
        for tensor in (*model.parameters(), *model.buffers(), *tree_leaves(list(optimizer.state.values()))):
            self.add(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            self.add(leaf)
        self.peak = max(self.peak, self.live)
        return outputs

    def add(self, value):
        """Count a tensor's storage, once, until it is freed."""
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages[key] = weakref.ref(storage, lambda _: self.remove(key, size))
            self.live += size

    def remove(self, key: int, size: int):
        """Called when a storage is freed."""
        del self.storages[key]
        self.live -= size


@dataclass
class Costs:
    """Of one process.

    Attributes:
        parameters: Name of a part of the model -> number of its parameters; frozen parts too.
        multiply_adds: Name of a part -> multiply-adds of an image in its forward pass, as far as it consists of modules.
        step: Multiply-adds of an image in a whole training step, backward pass included.
        weights, optimizer, gradients: Bytes of parameters and buffers, of the optimizer's state, of all gradients.
        at_peak: Batch size -> bytes at most.
        image_size: Pixels (h, w) of the images; the largest that the pipeline of a detector gives.
        objects: In an image, for a detector; None for other models.
    """

    parameters: dict[str, int]
    multiply_adds: dict[str, float]
    step: float
    weights: int
    optimizer: int
    gradients: int
    at_peak: dict[int, int]
    image_size: tuple[int, int]
    objects: int | None = None

    @property
    def line(self) -> tuple[float, float]:
        """(bytes without images, bytes per image): a straight line through what was counted."""
        (small, low), (large, high) = sorted(self.at_peak.items())
        slope = (high - low) / (large - small)
        return low - slope * small, slope

    @property
    def floor(self) -> int:
        """Bytes that are there whatever the batch: weights, optimizer's state and, at the update, gradients."""
        return self.weights + self.optimizer + self.gradients

    def shared_out(self, processes: int) -> 'Costs':
        """The costs where processes share out what is trained (FSDP), without the blocks that they gather for a while."""
        rest = 1 - 1 / processes
        saved = rest * (self.gradients + self.optimizer)  # parameters are as large as gradients; these may be absent at the peak
        return replace(
            self,
            weights=self.weights - rest * self.gradients,
            optimizer=self.optimizer / processes,
            gradients=self.gradients / processes,
            at_peak={batch_size: peak - saved for batch_size, peak in self.at_peak.items()},
        )

    def peak(self, batch_size: int) -> float:
        """Bytes at most for a batch size."""
        start, slope = self.line
        return max(start + slope * batch_size, self.floor)

    def largest_batch(self, capacity: float) -> int:
        """The largest batch whose peak is within so many bytes; 0 if none is."""
        start, slope = self.line
        return max(int((capacity - start) / slope), 0) if self.floor <= capacity else 0


def count_costs(cfg, batch_sizes: tuple[int, int] = (8, 16)) -> Costs:
    """Count what a training step costs, in the precision that a CPU would compute it in by this config.

    What a detector computes depends on the images. Counted are `rpn_proposal.max_per_img` proposals of an image, as many RoIs as a sampler
    takes (`num`), of which `pos_fraction` are positives with masks, and the RoIs spread evenly over the maps of the pyramid.

    Args:
        cfg (Config): Of a training; set `optim_wrapper.dtype` for mixed precision.
        batch_sizes: For which memory is counted.

    Raises:
        ConfigError: See :class:`.fake_training.FakeTraining`; or the step reads a number that data decide, and that no list has.
    """
    try:
        return count(cfg, batch_sizes)
    except Wait as wait:
        raise ConfigError(
            f'{cfg.filename} cannot be planned: {wait.site[1]} in {wait.site[0]} reads a number that data decide; '
            'mmcae train CONFIG --dry-run measures a step'
        ) from wait


def count(cfg, batch_sizes: tuple[int, int]) -> Costs:
    """`count_costs`, which stops where a number is read."""
    at_peak = {}
    for batch_size in batch_sizes:
        fake = FakeTraining(cfg, batch_size)
        with fake.active():
            fake.step()  # makes the optimizer's state
            with PeakMemory(fake.model, fake.optim_wrapper.optimizer) as memory:
                fake.step()
        at_peak[batch_size] = memory.peak
    model, optimizer = fake.model, fake.optim_wrapper.optimizer
    images, sample = fake.batch['inputs'], fake.batch['data_samples'][0]
    multiply_adds, step = count_multiply_adds(cfg)
    return Costs(
        parameters={name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()},
        multiply_adds=multiply_adds,
        step=step,
        weights=sum(map(bytes_of, (*model.parameters(), *model.buffers()))),
        optimizer=sum(bytes_of(value) for value in tree_leaves(list(optimizer.state.values()))),
        gradients=sum(bytes_of(parameter) for parameter in model.parameters() if parameter.requires_grad),
        at_peak=at_peak,
        image_size=tuple(images[0].shape[-2:]),
        objects=len(sample.gt_instances) if 'gt_instances' in sample else None,
    )


def count_multiply_adds(cfg, batch_size: int = 2) -> tuple[dict[str, float], float]:
    """Multiply-adds of an image: in the forward pass of each part, and in a whole step."""
    counts = []
    for backward in (False, True):
        fake = FakeTraining(cfg, batch_size)
        with fake.active(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            if backward:
                fake.step()
            else:
                with fake.optim_wrapper.optim_context(fake.model):
                    fake.model(**fake.model.data_preprocessor(dict(fake.batch), True), mode='loss')
        counts.append(counter)
    per_image = 2 * batch_size  # an addition counts as an operation of its own
    names = {name: value for name, value in by_part(counts[0].get_flop_counts(), fake.model).items() if value}
    return {name: value / per_image for name, value in names.items()}, counts[1].get_total_flops() / per_image


def by_part(counts: dict[str, dict], model: nn.Module) -> dict[str, int]:
    """Operations of each child of a model: of itself where it was called, else of those of its modules that were."""
    root = f'{type(model).__name__}.'
    totals = {name.removeprefix(root): sum(by_operator.values()) for name, by_operator in counts.items() if name.startswith(root)}

    def total(name):
        if name in totals:
            return totals[name]
        children = {key for key in totals if key.startswith(f'{name}.')}
        return sum(totals[key] for key in children if not any(f'{key}.'.startswith(f'{other}.') for other in children - {key}))

    return {name: total(name) for name, _ in model.named_children()}


def bytes_of(value) -> int:
    """Memory of a tensor; 0 for anything else."""
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
