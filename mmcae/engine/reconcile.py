"""What a resumed run takes from its checkpoint and what from its config: where they differ about the schedule, the config holds.

mmengine restores optimizer settings and schedules whole, so that a new learning rate or length in the config has no effect and nobody is
told (mmengine's issue 1565). Here both are compared before they are restored. Without a difference nothing is touched. With one, the log
names it, and the config's schedule is built anew and brought to the iteration of the checkpoint.
"""

import warnings

from mmengine.runner import EpochBasedTrainLoop

from ..utils.errors import CheckpointError
from .loops import ExactLoop

# What changes in a scheduler while it works; all else are its settings.
PROGRESS = {'last_step', '_global_step', '_last_value', 'verbose', 'best', 'num_bad_epochs', 'cooldown_counter'}
# How torch computes a step, not which; some exist in some versions only.
IMPLEMENTATION = {'params', 'param_names', 'foreach', 'fused', 'capturable', 'differentiable', 'maximize', 'decoupled_weight_decay'}
FOREVER = 10**9  # mmengine's schedulers without end have this one


def reconcile(runner, checkpoint):
    """Adapt a checkpoint, as read, to the runner that is about to resume from it.

    Args:
        runner (Runner): With training loop, optimizer and schedulers as its config says.
        checkpoint (dict): Changed in place.

    Raises:
        CheckpointError: Its optimizer has other parameter groups, or its schedule cannot be built anew because it depends on metrics.
    """
    record, loop = checkpoint['meta'].get('mmcae', {}), runner.train_loop
    if isinstance(loop, ExactLoop) and 'seed' in record:
        loop.seed = record['seed']
    if isinstance(loop, EpochBasedTrainLoop):
        fit_to_epochs(runner, checkpoint['meta'], record.get('epoch_length'))
    adopted = adopt_schedule(runner, checkpoint)
    before = record.get('max_iters', runner.max_iters)
    if adopted or before != runner.max_iters:
        runner.logger.warning(f'The training has {runner.max_iters} iterations ({before} in the checkpoint){ends(runner)}')
    if checkpoint['meta']['iter'] >= runner.max_iters:
        length = 'max_epochs' if isinstance(loop, EpochBasedTrainLoop) else 'max_iters'
        runner.logger.warning(f'Nothing is left to train: the checkpoint is the end. For a longer training raise train_cfg.{length}')


def fit_to_epochs(runner, meta, before):
    """Where an epoch has another number of iterations than in the checkpoint, count the same share of it."""
    now = len(runner.train_dataloader)
    if before is None and meta['epoch']:  # mmengine's own, written at the end of an epoch
        before = meta['iter'] // meta['epoch']
    if before in (None, now):
        return
    meta['iter'] = meta['iter'] * now // before
    runner.logger.warning(
        f'An epoch has {now} iterations, and had {before} in the checkpoint (another batch size, number of processes, or data set): going '
        f'on from iteration {meta["iter"]}, after as many images'
    )


def adopt_schedule(runner, checkpoint):
    """Have the config's optimizer settings and schedulers, if they are others; returns whether they are."""
    schedulers, stored = runner.param_schedulers or [], checkpoint.get('param_schedulers') or []
    if 'optimizer' not in checkpoint or isinstance(schedulers, dict):
        runner.logger.warning('Learning rates and schedules are those of the checkpoint; changes of them in the config have no effect')
        return False
    optimizer = runner.optim_wrapper.optimizer
    groups = checkpoint['optimizer']['param_groups']
    check_groups(optimizer.param_groups, groups)
    scheduled = {scheduler.param_name for scheduler in schedulers}
    scheduled |= {'betas'} if 'momentum' in scheduled else set()
    changes = [
        f'{name.removeprefix("initial_")} {old[name]} -> {new[name]}'
        for new, old in zip(optimizer.param_groups, groups, strict=True)
        for name in sorted((new.keys() & old.keys()) - IMPLEMENTATION - scheduled)
        if new[name] != old[name]
    ]
    if len(schedulers) != len(stored):
        changes.append(f'{len(stored)} schedulers -> {len(schedulers)}')
    for scheduler, old in zip(schedulers, stored, strict=False):
        new = scheduler.state_dict()
        if new.keys() ^ old.keys():
            changes.append(f'another scheduler -> {type(scheduler).__name__}')
        names = (new.keys() & old.keys()) - PROGRESS - {'base_values'}  # those follow from the groups
        changes += [f'{type(scheduler).__name__}.{name} {old[name]} -> {new[name]}' for name in sorted(names) if new[name] != old[name]]
    if not changes:
        return False
    if any(getattr(scheduler, 'need_val_args', False) for scheduler in schedulers):
        raise CheckpointError(f'A schedule that follows a metric cannot be changed on resuming: {"; ".join(changes)}')
    unique = list(dict.fromkeys(changes))
    runner.logger.warning(f'From here on the config holds: {"; ".join(unique[:8])}{"; ..." if len(unique) > 8 else ""}')
    replay(schedulers, checkpoint['meta']['epoch'], checkpoint['meta']['iter'], len(runner.train_dataloader))
    if checkpoint['optimizer'].get('base_param_settings'):  # by which mmengine's wrapper knows the rate of a group without factors
        groups = [*groups, checkpoint['optimizer']['base_param_settings']]
    for new, old in zip(runner.optim_wrapper.param_groups, groups, strict=True):
        old.update({name: value for name, value in new.items() if name not in ('params', 'param_names')})
    checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
    return True


def check_groups(new, old):
    """Refuse a checkpoint whose optimizer state belongs to other parameters or to another kind of optimizer."""
    shapes = [[len(group['params']) for group in groups] for groups in (new, old)]
    names = [[group.get('param_names') for group in groups] for groups in (new, old)]
    settings = [{name for group in groups for name in group} - IMPLEMENTATION for groups in (new, old)]
    if shapes[0] != shapes[1] or (None not in names[0] + names[1] and names[0] != names[1]) or (settings[0] ^ settings[1]) - {'initial_lr'}:
        raise CheckpointError(
            "The checkpoint's optimizer is another one than the config's (its kind, or how it groups the parameters): resume with the "
            'config that it was trained with, or start anew from its weights with load_from'
        )


def replay(schedulers, epoch, iteration, epoch_length):
    """Bring new schedulers to an iteration, in the order of steps that training has; some values follow from the ones before."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch's, that an optimizer should step in between
        for done in range(1, iteration + 1):
            end_of_epoch = done % epoch_length == 0 and done <= epoch * epoch_length
            for scheduler in schedulers:
                if not scheduler.by_epoch or end_of_epoch:
                    scheduler.step()


def ends(runner):
    """What to say where the schedule does not end with the training; '' where it does."""
    schedulers = [scheduler for scheduler in runner.param_schedulers or [] if scheduler.end < FOREVER]
    last = max((scheduler.end * (len(runner.train_dataloader) if scheduler.by_epoch else 1) for scheduler in schedulers), default=None)
    if last is None or abs(last - runner.max_iters) <= 1:  # mmengine's reach their last value one step early or late
        return ''
    stays = ', the rates then stay as they are' if last < runner.max_iters else ''
    return f'; the schedule ends after {last}{stays} (`end` in param_scheduler)'
