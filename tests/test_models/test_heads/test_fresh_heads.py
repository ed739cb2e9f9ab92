"""Fresh heads have no weight far from all others, however many are made."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.model import initialize
from mmpretrain.registry import MODELS

CUT = 4  # standard deviations


@pytest.mark.parametrize('name', ['finetune', 'linear', 'attentive'])
def test_weights_of_many_heads(repository, name):
    """mmengine cuts at +-2 by default, and gave a weight of -2 in five of a hundred."""
    config = Config.fromfile(repository / f'configs/_base_/models/{name}_vit-base.py').model.head
    head = MODELS.build(config)
    start = head.init_cfg
    layers = {key: each for key, each in head.named_modules() if isinstance(each, torch.nn.Linear)}
    largest = dict.fromkeys(layers, 0.0)
    for _ in range(50 if name == 'attentive' else 100):
        initialize(head, start)
        largest = {key: max(largest[key], float(each.weight.detach().abs().max())) for key, each in layers.items()}
    for key, each in layers.items():
        std = start['override']['std'] if key == 'fc' and 'override' in start else start['std']
        assert float(each.weight.detach().std()) == pytest.approx(std, rel=0.01), key
        # A normal distribution without a cut stays below seven in so many draws.
        assert largest[key] <= (CUT if std == start['std'] else 7) * std * 1.0001, key


def test_every_cut_normal_distribution_has_a_cut(repository):
    """In configs and classes: the one that mmengine sets by default is no cut at all."""
    found = []
    for path in [*(repository / 'configs').rglob('*.py'), *(repository / 'mmcae').rglob('*.py')]:
        for settings in re.findall(r"type='TruncNormal'[^)]*", path.read_text()):
            std, low, high = (float(re.search(rf'\b{key}=([-\de.]+)', settings)[1]) for key in ('std', 'a', 'b'))
            assert (low, high) == (pytest.approx(-CUT * std), pytest.approx(CUT * std)), path
            found.append(path.name)
    assert len(found) == 3
