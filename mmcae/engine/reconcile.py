"""What a resumed run takes from its checkpoint and what from its config: where they differ about the schedule, the config holds.

mmengine restores optimizer settings and schedules whole, so that a new learning rate or length in the config has no effect and nobody is
told (mmengine's issue 1565). Here both are compared before they are restored. Without a difference nothing is touched. With one, the log
names it, and the config's schedule is built anew and brought to the iteration of the checkpoint.
"""

import warnings

from mmengine.runner import EpochBasedTrainLoop

from ..utils.errors import CheckpointError
from .loops import ExactLoop, IterBasedTrainLoop

# What changes in a scheduler while it works; all else are its settings.
PROGRESS = {'last_step', '_global_step', '_last_value', 'verbose', 'best', 'num_bad_epochs', 'cooldown_counter'}
# How torch computes a step, not which; some exist in some versions only.
IMPLEMENTATION = {'params', 'param_names', 'foreach', 'fused', 'capturable', 'differentiable', 'maximize', 'decoupled_weight_decay'}
ANEW = (
    'Going on with {}, because it is not known which of the images the interrupted one has had; to go on after the same share of it set '
    "default_hooks.checkpoint.changed_data='continue'"
)
FOREVER = 10**9  # mmengine's schedulers without end have this one


def reconcile(runner, checkpoint, changed_data='next_epoch'):
    """Adapt a checkpoint, as read, to the runner that is about to resume from it.

    Args:
        runner (Runner): With training loop, optimizer and schedulers as its config says.
        checkpoint (dict): Changed in place.
        changed_data (str): Where to go on within an epoch if the data set is another one: 'next_epoch', or 'continue' after the same share.

    Raises:
        CheckpointError: Its optimizer has other parameter groups, or its schedule cannot be built anew because it depends on metrics.
    """
    meta, loop = checkpoint['meta'], runner.train_loop
    record, saved_at = meta.get('mmcae', {}), meta['iter']
    anew = False
    if isinstance(loop, ExactLoop):
        loop.seed = record.get('seed', loop.seed)
        anew = tell_changed_data(runner, record.get('data')) and changed_data == 'next_epoch'
    if isinstance(loop, EpochBasedTrainLoop):
        fit_to_epochs(runner, meta, record.get('epoch_length'), anew)
    elif isinstance(loop, IterBasedTrainLoop) and loop.go_to(saved_at, record.get('position'), anew):
        runner.logger.warning(ANEW.format('a new pass over all images'))
    adopted = adopt_schedule(runner, checkpoint, moved=meta['iter'] != saved_at)
    before = record.get('max_iters', runner.max_iters)
    if adopted or before != runner.max_iters:
        runner.logger.warning(f'The training has {runner.max_iters} iterations ({before} in the checkpoint){ends(runner)}')
    if meta['iter'] >= runner.max_iters:
        length = 'max_epochs' if isinstance(loop, EpochBasedTrainLoop) else 'max_iters'
        runner.logger.warning(f'Nothing is left to train: the checkpoint is the end. For a longer training raise train_cfg.{length}')


def tell_changed_data(runner, before):
    """Whether the data set is another one than in the checkpoint; the log says what has changed."""
    if before is None or before == (now := runner.train_loop.data):  # earlier versions did not write it down
        return False
    if before['images'] != now['images']:
        what = f'{before["images"]:,} images then, {now["images"]:,} now'
    else:
        what = f'{now["images"]:,} images as before, but other files, or in another order'
    runner.logger.warning(f'The data set has changed since the checkpoint was written: {what}')
    return True


def fit_to_epochs(runner, meta, before, anew):
    """Go on with the next epoch; or, where an epoch has another number of iterations than in the checkpoint, after the same share of it."""
    now = len(runner.train_dataloader)
    if before is None and meta['epoch']:  # mmengine's own, written at the end of an epoch
        before = meta['iter'] // meta['epoch']
    before = before or now
    within = meta['iter'] > meta['epoch'] * before
    last = (meta['epoch'] + 1) * now >= runner.max_iters
    if anew and within and not last:
        meta.update(epoch=meta['epoch'] + 1, iter=(meta['epoch'] + 1) * now)
        runner.logger.warning(ANEW.format(f'epoch {meta["epoch"] + 1}, from iteration {meta["iter"]}'))
        return
    if anew and within:
        runner.logger.warning('Going on within the epoch, because it is the last')
    if before != now:
        meta['iter'] = meta['iter'] * now // before
        runner.logger.warning(
            f'An epoch has {now} iterations, and had {before} in the checkpoint (another batch size, number of processes, or data set): '
            f'going on from iteration {meta["iter"]}, after as many images'
        )


def adopt_schedule(runner, checkpoint, moved):
    """Have the config's optimizer settings and schedulers, if they are others; returns whether they are.

    With `moved`, the training goes on from another iteration than it was saved at, and the schedules are brought there.
    """
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
    follows_metric = any(getattr(scheduler, 'need_val_args', False) for scheduler in schedulers)
    if changes and follows_metric:
        raise CheckpointError(f'A schedule that follows a metric cannot be changed on resuming: {"; ".join(changes)}')
    if not changes and (not moved or follows_metric):
        return False
    if changes:
        unique = list(dict.fromkeys(changes))
        runner.logger.warning(f'From here on the config holds: {"; ".join(unique[:8])}{"; ..." if len(unique) > 8 else ""}')
    replay(schedulers, checkpoint['meta']['epoch'], checkpoint['meta']['iter'], len(runner.train_dataloader))
    if checkpoint['optimizer'].get('base_param_settings'):  # by which mmengine's wrapper knows the rate of a group without factors
        groups = [*groups, checkpoint['optimizer']['base_param_settings']]
    for new, old in zip(runner.optim_wrapper.param_groups, groups, strict=True):
        old.update({name: value for name, value in new.items() if name not in ('params', 'param_names')})
    checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
    return bool(changes)


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
