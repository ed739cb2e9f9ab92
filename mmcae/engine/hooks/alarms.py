"""Signs in the statistics of a pretraining that something is wrong, each with advice."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

History = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Alarm:
    """A sign in the values of one quantity.

    Args:
        name: Of the switch that turns it off.
        quantity: Name of the quantity, or what the names of several begin with.
        rings: Whether the values so far, oldest first, are such a sign.
        text: What is said; `{name}` and `{value}` are filled in.
        learning: It looks at what is learnt, which says nothing before the first tenth of a run is over.
    """

    name: str
    quantity: str
    rings: Callable[[Sequence[float]], bool]
    text: str
    learning: bool = True


def below_best(share: float) -> Callable[[Sequence[float]], bool]:
    """The newest value is below this share of the highest one."""
    return lambda values: len(values) > 1 and values[-1] < share * max(values)


def spike(factor: float) -> Callable[[Sequence[float]], bool]:
    """The newest of at least six values is this many times the median of the others."""
    return lambda values: len(values) > 5 and values[-1] > factor * statistics.median(values[:-1]) > 0


ALARMS = (
    Alarm(
        'spread',
        'stat/feature_std',
        lambda values: values[-1] < 0.02 or below_best(0.2)(values),
        'the features of all images are nearly the same (feature std {value:.3g}): the encoder collapses. Lower the learning rate, and '
        'the weight of losses between latents (model.align_loss_weight) against that of the reconstruction',
    ),
    Alarm(
        'rank',
        'stat/effective_rank',
        below_best(0.5),
        'the features have lost more than half of their directions (effective rank {value:.3g}). Lower the learning rate or lengthen the '
        'warmup; an earlier checkpoint may be the better encoder',
    ),
    Alarm(
        'alignment',
        'stat/alignment_vs_constant',
        lambda values: len(values) > 2 and min(values[-3:]) >= 1,
        'the predicted latents fit no better than one constant latent does ({value:.3g} times its error): the regressor learns nothing of '
        'where or what. Check masks and model.align_loss_weight, and raise the learning rate',
    ),
    Alarm(
        'attention',
        'stat/attention_entropy',
        lambda values: values[-1] < 0.05,
        'each patch looks at one token alone in the last block (attention entropy {value:.3g} of 1), which makes training unstable. Lower '
        'the learning rate, lengthen the warmup, or clip gradients (optim_wrapper.clip_grad)',
    ),
    Alarm(
        'no_gradient',
        'stat/grad_norm/',
        lambda values: values[-1] == 0,
        '{name} is 0: this part is not trained. Check its loss weight, and whether it is frozen',
        learning=False,
    ),
    Alarm(
        'gradient_spike',
        'stat/grad_norm/',
        spike(20),
        '{name} is {value:.3g}, more than 20 times its median so far. If it recurs, clip gradients (optim_wrapper.clip_grad) or lower the '
        'learning rate',
    ),
    Alarm(
        'not_finite',
        'stat/',
        lambda values: not math.isfinite(values[-1]),
        '{name} is {value}: go back to an earlier checkpoint with a lower learning rate or bfloat16',
        learning=False,
    ),
    Alarm(
        'data_wait',
        'stat/data_wait',
        lambda values: values[-1] > 0.3,
        'training waits for data {value:.0%} of the time: raise train_dataloader.num_workers, store smaller images (mmcae pack), or use a '
        'faster disk',
        learning=False,
    ),
)
NAMES = tuple(alarm.name for alarm in ALARMS)


def ringing(history: History, progress: float, off: Sequence[str] = ()) -> dict[tuple[str, str], str]:
    """Which alarms ring now.

    Args:
        history: The values of each quantity so far, oldest first.
        progress: Share of the run that is over, in [0, 1].
        off: Names of alarms that are turned off.

    Returns:
        Messages by the names of alarm and quantity.
    """
    found = {}
    for alarm in ALARMS:
        if alarm.name in off or alarm.learning and progress < 0.1:
            continue
        for name, values in history.items():
            if name.startswith(alarm.quantity) and values and alarm.rings(values):
                found[alarm.name, name] = alarm.text.format(name=name, value=values[-1])
    return found
