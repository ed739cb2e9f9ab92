"""FSDP2, torch's `fully_shard`, by mmengine's FlexibleRunner, with checkpoints of torch.distributed.checkpoint (DCP)."""

import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import mmengine
import torch
from mmengine._strategy import DDPStrategy as MMEngineDDPStrategy
from mmengine._strategy.base import BaseStrategy
from mmengine.device import get_device
from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.model import BaseAveragedModel
from mmengine.utils import get_git_hash
from torch import Tensor, nn
from torch.distributed import DeviceMesh, checkpoint, init_device_mesh, new_group
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.futures import Future

from ..checkpoints import read_checkpoint, write_state_dict
from ..checkpoints.pieces import TRAINING, UNFINISHED, is_sharded, publish, remove, write_piece
from ..checkpoints.reading import read_sharded
from ..checkpoints.sharded import MODEL, OPTIMIZER
from ..registry import STRATEGIES
from ..utils.errors import CheckpointError, ConfigError, DependencyError
from .reader import for_mmengine
from .strategies import WholeCheckpoints, other_model

NAME = 'mmcae.FSDP2Strategy'
WEIGHTS = 'weights.pth'  # what a training leaves beside its folders: the model alone, in one file
DTYPES = {None: None, 'bfloat16': torch.bfloat16}
# What other code calls of a model besides its forward; parameters have to be gathered for it too.
ENTRIES = ('extract_feat', 'predict')
# Hooks that read or compile the whole parameters of a model, and what to do about each.
REFUSED_HOOKS = {
    'EMAHook': 'leave the hook out, or train by DDP',
    'CompileParts': 'leave the hook out, or train by DDP, whose parts compile',
    'DrawReconstructions': 'leave the hook out',
}


def check_combination(cfg):
    """Refuse what does not work with FSDP2, before anything slow begins.

    Args:
        cfg (Config): With mmcae.FSDP2Strategy.

    Raises:
        ConfigError: Names the part of the config and what to do.
    """
    for hook in [*cfg.get('custom_hooks', []), *cfg.get('default_hooks', {}).values()]:
        kind = str((hook or {}).get('type')).rpartition('.')[2]
        if kind in REFUSED_HOOKS:
            raise ConfigError(f'{NAME} has a part of every parameter in each process, and {kind} needs whole ones: {REFUSED_HOOKS[kind]}')
    if cfg.get('compile'):
        raise ConfigError(f'{NAME} does not run with compile={cfg.compile}: leave compile out, or train by DDP with mmcae.CompileParts')
    wrapper = cfg.get('optim_wrapper') or {}
    kind = str(wrapper.get('type', 'OptimWrapper')).rpartition('.')[2]
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f"{NAME} does not train by optim_wrapper.type={kind}: set 'mmcae.AmpOptimWrapper', or 'OptimWrapper' for float32")
    if wrapper.get('use_fsdp'):
        raise ConfigError(f'optim_wrapper.use_fsdp is for mmcae.FSDPStrategy; {NAME} clips by the norm of all parts itself: leave it out')
    out_dir = (cfg.get('default_hooks', {}).get('checkpoint') or {}).get('out_dir')
    if '://' in str(out_dir):
        raise ConfigError(f'{NAME} writes folders to a file system, not to out_dir={out_dir}: leave it out')


def shard(model: nn.Module, mesh: DeviceMesh, param_dtype: torch.dtype | None = None, reshard_after_forward: bool | int = True):
    """Share the parameters of a model out over processes, in place: each transformer block is a unit, all else is another.

    Args:
        model: Its children without a trained parameter, such as a tokenizer, stay whole.
        mesh: Of one dimension, all processes.
        param_dtype: What parameters of blocks are gathered and used in; None for their own. Gradients are summed in float32.
        reshard_after_forward: Of torch's `fully_shard`, for the blocks.
    """
    frozen = [child for child in model.children() if not any(p.requires_grad for p in child.parameters())]
    ignored = {parameter for child in frozen for parameter in child.parameters()}
    policy = MixedPrecisionPolicy()
    if param_dtype is not None:  # outputs are float32 again, which everything outside the blocks is in
        policy = MixedPrecisionPolicy(param_dtype, reduce_dtype=torch.float32, output_dtype=torch.float32)
    stacks = (part for child in model.children() if child not in frozen for part in child.modules())
    blocks = [block for stack in stacks for block in getattr(stack, 'blocks', ())]
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh, ignored_params=ignored)
    # What is gathered ahead in the backward pass. torch would follow the forward pass, in which the encoder is run for the alignment too.
    for block, before in zip(blocks, [model, *blocks], strict=False):
        block.set_modules_to_backward_prefetch([before])
    for child in frozen:
        child.to(mesh.device_type)
    for name in ENTRIES:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


@STRATEGIES.register_module()
class FSDP2Strategy(WholeCheckpoints, MMEngineDDPStrategy):
    """Parameters, gradients and optimizer state shared out over processes by torch's `fully_shard`, block by block.

    Names and shapes of parameters stay as they are, so the rules of the optimizer constructor hold, and the norm by which
    mmcae.AmpOptimWrapper clips is that of the whole gradient.

    A checkpoint is a folder to which each process writes its part (torch.distributed.checkpoint). It appears whole or not at all, and can
    be resumed by another number of processes. Whatever reads checkpoints reads it like a file. At the end of a training `weights.pth` has
    the model in one file. Needs torch 2.7.

    Args:
        param_dtype: 'bfloat16': parameters of blocks are gathered and used in bfloat16, which halves what the processes exchange for it,
            and gradients are summed in float32. None: they are gathered in their own type, and what is computed in lower precision is
            decided by autocast alone, as in DDP.
        reshard_after_forward: True: a block is let go after the forward pass and gathered again for the backward pass. False: it is kept,
            which exchanges less and takes more memory. A number: it is kept in a group of so many processes, such as those of a machine.
        async_save: Training goes on while a checkpoint is written; memory of the host holds a copy of it meanwhile. The next one waits
            until it is written.
        **kwargs: Of mmengine's strategies: work_dir, experiment_name, env_kwargs, log_kwargs, auto_scale_lr.

    Raises:
        ConfigError: There is no process group; an argument of another strategy; an unknown dtype; a method that averages its encoder.
        DependencyError: torch is older than 2.7.
        CheckpointError: On loading, the checkpoint is of another model.
    """

    def __init__(self, *, param_dtype: str | None = None, reshard_after_forward: bool | int = True, async_save: bool = False, **kwargs):
        known = inspect.signature(BaseStrategy.__init__).parameters
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise ConfigError(f'strategy: {NAME} has no {", ".join(unknown)}: set param_dtype, reshard_after_forward, async_save, or none')
        if param_dtype not in DTYPES:
            raise ConfigError(f"strategy.param_dtype={param_dtype!r} must be 'bfloat16' or None")
        if 'ignored_params' not in inspect.signature(fully_shard).parameters:
            raise DependencyError(f'{NAME} needs torch 2.7, this is {torch.__version__}: install it, or train by mmcae.FSDPStrategy')
        super().__init__(**kwargs)
        if not self.distributed:
            raise ConfigError(f'{NAME} shares a model out over processes: start them by tools/dist_train.sh or tools/slurm_train.sh')
        self.param_dtype, self.reshard_after_forward, self.async_save = DTYPES[param_dtype], reshard_after_forward, async_save
        self.group = new_group(backend='gloo')  # for checkpoints, which are of the CPU
        self.background, self.saving = ThreadPoolExecutor(1), None

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if any(isinstance(part, BaseAveragedModel) for part in model.modules()):
            raise ConfigError(
                f'{type(model).__name__} averages its encoder, which needs whole parameters: train it by DDP, without strategy={NAME}'
            )
        mesh = init_device_mesh(get_device(), (get_world_size(),))
        shard(model, mesh, self.param_dtype, self.reshard_after_forward)
        return model

    # ---------------------------------------------------------------- saving

    def save_checkpoint(self, filename, *, save_optimizer=True, save_param_scheduler=True, extra_ckpt=None, callback=None):
        """Save a folder; with `async_save` it is there some time later, see :meth:`finish`."""
        self.finish()
        content = dict(state_dict=self.model.state_dict(), **(extra_ckpt or {}))
        if save_optimizer and hasattr(self, 'optim_wrapper'):
            content['optimizer'] = self.optim_wrapper.state_dict()
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            content['param_schedulers'] = self.scheduler_state_dict()
        written = time.strftime('%Y%m%d_%H%M%S')
        content.setdefault('meta', {}).update(seed=self.seed, time=written, mmengine=mmengine.__version__ + get_git_hash())
        if callback is not None:
            callback(content)
        tensors = self.tensors_of(content)
        path = Path(filename)
        partial = path.with_name(UNFINISHED)
        if is_main_process():
            remove(partial)
            partial.mkdir(parents=True)
            write_piece(content, partial / TRAINING)
        barrier()
        target = dict(storage_writer=FileSystemWriter(partial), process_group=self.group)
        if self.async_save:
            written = checkpoint.async_save(tensors, **target)
            self.saving = self.background.submit(self.complete, partial, path, written)
        else:
            with failure_of_one(path):
                checkpoint.save(tensors, **target)
            self.complete(partial, path)
            barrier()
            self.check_seen(path)

    def tensors_of(self, content: dict) -> dict[str, Tensor]:
        """Take the tensors of model and optimizer out of a checkpoint's content."""
        tensors = {f'{MODEL}{name}': value for name, value in content.pop('state_dict').items()}
        if 'optimizer' not in content:
            return tensors
        names, plain = self.optimized, {}
        for number, values in content['optimizer']['state'].items():
            of_tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
            tensors.update({f'{OPTIMIZER}{names[number]}.{key}': value for key, value in of_tensors.items()})
            plain[number] = {key: value for key, value in values.items() if key not in of_tensors}
        content['optimizer'] = {**content['optimizer'], 'state': plain}
        return tensors

    @property
    def optimized(self) -> list[str]:
        """Names of the parameters in the order in which the optimizer numbers them."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in self.optim_wrapper.optimizer.param_groups for parameter in group['params']]

    def complete(self, partial: Path, path: Path, written=None):
        """Give a folder its name when all processes have written their parts of it."""
        if written is not None:
            with failure_of_one(path):
                written.result()
        if is_main_process():  # whose part of DCP ends when all others have ended
            publish(partial, path)

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written in the background."""
        return self.saving is not None and not self.saving.done()

    def finish(self):
        """Wait for the checkpoint that is being written, if there is one.

        Raises:
            Exception: What went wrong with it, such as an OSError of a full disk.
        """
        saving, self.saving = self.saving, None
        if saving is not None:
            saving.result()

    def consolidate(self, filename: str):
        """Write the model of a checkpoint as one file beside it, `weights.pth`; for the first process."""
        content = read_checkpoint(filename)
        write_state_dict(Path(filename).with_name(WEIGHTS), content['state_dict'], content['meta'])

    # ---------------------------------------------------------------- loading

    def load_checkpoint(self, filename, *, callback=None, **kwargs):
        """Load a file, or a folder; each process reads its own parts of one that is resumed."""
        if not self.resuming:
            return super().load_checkpoint(filename, callback=callback, **kwargs)
        if not is_sharded(filename):
            raise CheckpointError(f'{filename} is no checkpoint of {NAME}: resume with the strategy that the run was trained with')
        content, stored = for_mmengine(read_checkpoint(Path(filename) / TRAINING), filename), read_sharded(filename)
        model, state = self.model.state_dict(), self.empty_state(stored)
        check_same(stored, model)
        tensors = self.tensors_of(dict(state_dict=dict(model), optimizer=dict(state=state)))
        with failure_of_one(filename):
            checkpoint.load(tensors, storage_reader=Reader(stored), process_group=self.group)
        for number, values in content['optimizer']['state'].items():
            state.setdefault(number, {}).update(values)
        content['optimizer']['state'], content['state_dict'] = state, model
        if callback is not None:
            callback(content)
        del content['state_dict']
        return content

    def empty_state(self, stored) -> dict[int, dict[str, Tensor]]:
        """The optimizer's state as a checkpoint has it, by the parameters' numbers, still without its values."""
        state, parameters = {}, dict(self.model.named_parameters())
        numbers = {name: number for number, name in enumerate(self.optimized)}
        for full, entry in stored.tensors.items():
            name, _, key = full.removeprefix(OPTIMIZER).rpartition('.')
            if full.startswith(OPTIMIZER) and name not in numbers:
                raise other_model(RuntimeError(f'It has a state of the optimizer for {name}, which is not trained.'))
            if full.startswith(OPTIMIZER):
                like, dtype = parameters[name], entry.properties.dtype
                whole = torch.zeros_like(like, dtype=dtype) if entry.size == like.shape else torch.zeros(entry.size, dtype=dtype)
                state.setdefault(numbers[name], {})[key] = whole
        return state

    def load_model_state_dict(self, state_dict, **kwargs):
        """Load whole tensors, of which each process takes its part."""
        own = self.model.state_dict()
        parts = {}
        for name, value in state_dict.items():
            target = own.get(name.removeprefix('module.'))
            fits = isinstance(target, DTensor) and not isinstance(value, DTensor) and target.shape == value.shape
            parts[name] = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None) if fits else value
        super().load_model_state_dict(parts, **kwargs)


@contextmanager
def failure_of_one(path: str | Path):
    """Raise what went wrong with a checkpoint in one of the processes, in place of DCP's summary of all of them.

    Raises:
        OSError: Such as a full disk; it names `path`.
        CheckpointError: Anything else.
    """
    try:
        yield
    except checkpoint.CheckpointException as error:  # no Exception
        failures = {rank: failure for rank, (failure, _) in error.failures.items()}
        for failure in failures.values():
            if isinstance(failure, OSError):
                raise OSError(failure.errno, failure.strerror, str(path)) from error
        rank, failure = next(iter(failures.items()))  # torch.save says so of a full disk too
        raise CheckpointError(
            f'{path}: process {rank} failed with {type(failure).__name__}: {failure}. Look at the disk: is there space left?'
        ) from error


class Reader(FileSystemReader):
    """DCP's reader, which would unpickle, by :class:`mmcae.checkpoints.sharded.ShardedCheckpoint`, which does not."""

    def __init__(self, stored):
        super().__init__(stored.folder)
        self.stored = stored

    def read_metadata(self, *args, **kwargs):
        return self.stored.metadata

    def read_data(self, plan, planner):
        for item in plan.items:
            part = self.stored.part(item.storage_index.fqn, item.storage_index.offset or ())
            region = tuple(slice(at, at + size) for at, size in zip(item.storage_offsets, item.lengths, strict=True))
            target = planner.resolve_tensor(item).detach()
            target.copy_(part[region])
            planner.commit_tensor(item, target)
        done = Future()
        done.set_result(None)
        return done


def check_same(stored, model: dict[str, Tensor]):
    """Refuse a checkpoint with other tensors than the model's.

    Raises:
        CheckpointError: Names some of them.
    """
    there = {name.removeprefix(MODEL): entry.size for name, entry in stored.tensors.items() if name.startswith(MODEL)}
    wrong = sorted(name for name in there.keys() | model.keys() if name not in model or there.get(name) != model[name].shape)
    if wrong:
        raise other_model(RuntimeError(f'{len(wrong)} tensors are missing or have another size ({", ".join(wrong[:3])})'))
