"""Statistics that show while a pretraining runs whether it goes well, with alarms."""

import time
from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from ...evaluation.attention_weights import entropy, self_attention
from ...evaluation.collapse import effective_rank, feature_std
from ...models.encoders.base import Encoder
from ...models.methods.base import MaskedImageModel
from ...registry import HOOKS
from ...utils.errors import ConfigError, nearest
from ...utils.wrappers import unwrapped
from .alarms import NAMES, ringing

ATTENTION_IMAGES = 16  # their weights between all tokens take memory


@HOOKS.register_module()
class TrainingStatistics(Hook):
    """Log statistics of a pretraining every so many iterations, and warn where they show that something is wrong.

    Computed on the images of the current batch, unmasked but for the alignment, in eval mode; training goes on exactly as without. Written
    to the visualizer's backends (scalars.json, TensorBoard, ...):

    * `stat/effective_rank`: RankMe of the patches' means, at most the number of images.
    * `stat/feature_std`: their spread, 0 where all images look the same to the encoder.
    * `stat/attention_entropy`: of the encoder's last block, from 0 (each token reads one other) to 1 (all alike).
    * `stat/alignment_vs_constant`: squared error of the predicted latents over that of the best constant; below 1 where something is
      learnt. For methods whose `predict` gives `latent_pred` and `latent_target`.
    * `stat/grad_norm/PART`: L2 norm of each part's gradient as the optimizer gets it, after clipping.
    * `stat/images_per_second` of all processes, and `stat/data_wait`, the share of the time that was spent waiting for data.

    Other models than mmcae's pretraining methods have the last two and gradients by their direct children. With FSDP and FSDP2, whose
    parameters are spread over the processes, there are the last two alone. The values are those of the first process and its images.

    Args:
        interval: Iterations between two looks. A look costs about as much as one iteration of so many images.
        images: At most so many of the batch are looked at.
        alarms: False turns all alarms off; a dict single ones, such as `dict(data_wait=False)`: see :mod:`mmcae.engine.hooks.alarms`.

    Raises:
        ConfigError: A number below its least, or an unknown alarm.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 200, images: int = 64, alarms: bool | dict[str, bool] = True):
        if interval < 1 or images < 2:
            raise ConfigError(f'TrainingStatistics: interval={interval} must be at least 1, images={images} at least 2')
        switches = dict.fromkeys(NAMES, alarms) if isinstance(alarms, bool) else alarms
        for name, value in switches.items():
            if name not in NAMES or not isinstance(value, bool):
                raise ConfigError(
                    f'TrainingStatistics: alarms[{name!r}]={value!r}{nearest(name, NAMES)}: True or False of {", ".join(NAMES)}'
                )
        self.interval, self.images = interval, images
        self.off = [name for name, value in switches.items() if not value]
        self.history: dict[str, list[float]] = {}
        self.warned: set = set()
        self.gradients: dict[str, float] = {}
        self.seconds = 0.0

    def before_train(self, runner):
        self.began, self.handle = time.perf_counter(), None
        self.sharded = any(isinstance(module, FullyShardedDataParallel | FSDPModule) for module in runner.model.modules())
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        if isinstance(optimizer, torch.optim.Optimizer) and not self.sharded:
            self.handle = optimizer.register_step_pre_hook(lambda *_: self.read_gradients(runner))

    def after_train(self, runner):
        if self.handle is not None:
            self.handle.remove()

    def is_due(self, runner) -> bool:
        """Whether this iteration is looked at."""
        return (runner.iter + 1) % self.interval == 0

    def read_gradients(self, runner):
        """Take the norms before the optimizer's step, after which gradients are gone."""
        if not self.is_due(runner):
            return
        start = time.perf_counter()
        model = unwrapped(runner.model)
        if isinstance(model, MaskedImageModel):
            parts = {name: model.part_parameters(name) for name in model.PARTS}
        else:
            parts = {name: list(child.parameters()) for name, child in model.named_children()}
        for name, parameters in parts.items():
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            norms = [parameter.grad.norm().double() for parameter in trained if parameter.grad is not None]
            if trained:
                self.gradients[f'stat/grad_norm/{name}'] = float(torch.stack(norms).norm()) if norms else 0.0
        self.seconds += time.perf_counter() - start

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if not self.is_due(runner):
            return
        start = time.perf_counter()
        found = self.speed(runner)
        found.update(self.gradients)
        self.gradients = {}
        model = unwrapped(runner.model)
        if isinstance(model, MaskedImageModel) and not self.sharded:
            found.update(statistics_of(model, data_batch, self.images))
        for name, value in found.items():
            self.history.setdefault(name, []).append(value)
        runner.visualizer.add_scalars(found, step=runner.iter + 1)
        self.warn(runner)
        self.seconds += time.perf_counter() - start
        share = self.seconds / (time.perf_counter() - self.began)
        figures = '  '.join(f'{name.removeprefix("stat/")}: {value:.4g}' for name, value in found.items())
        runner.logger.info(f'Statistics({runner.iter + 1})  {figures}  ({100 * share:.1f} % of the time so far)')

    def speed(self, runner) -> dict[str, float]:
        """Images per second and share of waiting since the last look, as mmengine's timer took them."""
        scalars = runner.message_hub.log_scalars
        if 'train/time' not in scalars:
            return {}
        seconds, wait = (scalars[f'train/{name}'].mean(self.interval) for name in ('time', 'data_time'))
        loader = runner.train_dataloader
        size = getattr(loader, 'batch_size', None) or getattr(loader.batch_sampler, 'batch_size', None)
        found = {'stat/data_wait': float(wait / seconds)}
        return found if size is None else {'stat/images_per_second': float(size * runner.world_size / seconds), **found}

    def warn(self, runner):
        """Say each alarm when it begins, once until it has ended."""
        rings = ringing(self.history, (runner.iter + 1) / runner.max_iters, self.off)
        for key, text in rings.items():
            if key not in self.warned:
                runner.logger.warning(f'Alarm {key[0]} at iteration {runner.iter + 1}: {text}')
        self.warned = set(rings)


@torch.no_grad()
def statistics_of(model: MaskedImageModel, batch: dict, most: int) -> dict[str, float]:
    """The statistics of a model on the first images of a batch out of the data pipeline, see :class:`TrainingStatistics`."""
    samples = batch['data_samples'][:most]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.compiler.set_stance('force_eager'):  # other shapes than the training's would be compiled
            views = model.data_preprocessor(dict(batch), False)['inputs']
            images = (views if isinstance(views, Tensor) else views[0])[:most].to(next(model.backbone.parameters()).dtype)
            return encoder_statistics(model.backbone, images) | alignment_statistics(model, images, samples)
    finally:
        for module, training in modes.items():
            module.training = training


def encoder_statistics(encoder: Encoder, images: Tensor) -> dict[str, float]:
    """What the encoder makes of unmasked images (B, C, H, W)."""
    found = {}
    features = encoder.encode(images)[:, encoder.num_prefix_tokens :].mean(dim=1).float()
    if len(features) > 1 and bool(features.isfinite().all()):
        found = {'stat/effective_rank': effective_rank(features), 'stat/feature_std': feature_std(features)}
    elif len(features) > 1:
        found = {'stat/feature_std': float('nan')}
    return found | {'stat/attention_entropy': entropy(self_attention(encoder, images[:ATTENTION_IMAGES]))}


def alignment_statistics(model: nn.Module, images: Tensor, samples: Sequence) -> dict[str, float]:
    """The error of predicted latents over that of the best constant, for methods that predict latents."""
    if not hasattr(model, 'predict'):
        return {}
    parts = model.predict(images, torch.stack([sample.mask.flatten() for sample in samples]))
    predicted, target = parts.get('latent_pred'), parts.get('latent_target')
    if predicted is None or target is None:
        return {}
    target = target.flatten(0, 1).double()
    spread = (target - target.mean(dim=0)).square().mean()
    return {'stat/alignment_vs_constant': float((predicted.flatten(0, 1).double() - target).square().mean() / spread.clamp_min(1e-12))}
