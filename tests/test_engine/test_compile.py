"""Compiled parts: nothing breaks a graph, nothing is compiled again from step to step, and the numbers stay."""

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmpretrain.structures import DataSample
from torch import nn
from torch._dynamo.utils import counters

from mmcae.engine import CompileParts
from mmcae.registry import HOOKS
from mmcae.utils.errors import ConfigError

# Traced, and differentiated, as for the real compiler, which takes minutes here; the code it would generate is not what is tested.
TRACED, DIFFERENTIATED = dict(backend='eager'), dict(backend='aot_eager')
GRAPHS = 5  # encoder with and without gradient, regressor, decoder, tokenizer


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def tokenizer(tmp_path):
    """How to build DALL-E's encoder, small, with `tiny_cae`'s vocabulary; each model gets its own, since `tiny_cae` changes the weights."""
    from mmpretrain.models.selfsup.cae import DALLEEncoder

    torch.save(DALLEEncoder(n_hid=8, n_blk_per_group=1, vocab_size=24).state_dict(), tmp_path / 'encoder.pth')
    return dict(type='mmcae.DALLETokenizer', checkpoint=tmp_path / 'encoder.pth')


def batch(masked, seed):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(2, 3, size, size, generator=generator) for size in (64, 32)]
    masks = torch.rand(2, 16, generator=generator).argsort(dim=1) < masked
    return dict(inputs=views, data_samples=[DataSample(mask=mask.view(4, 4)) for mask in masks])


def train(model, optimizer, precision, steps):
    """Steps on changing images and masks; the log of the last one."""
    for seed in steps:
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=precision == 'bfloat16'):
            log = model.train_step(batch(6, seed), optimizer)
    return {name: value.item() for name, value in log.items()}


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_no_graph_breaks_and_no_recompilation(tiny_cae, tokenizer, precision):
    rates = dict(drop_path_rate=0.2)
    arch = dict(embed_dims=48, num_layers=2, num_heads=4)
    model = tiny_cae(backbone=dict(rates, arch=arch), regressor=rates, decoder=rates, target_generator=tokenizer).train()
    CompileParts(**TRACED).compile(model)
    optimizer = OptimWrapper(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3))
    train(model, optimizer, precision, range(1))
    assert counters['stats']['unique_graphs'] == GRAPHS
    with torch.compiler.set_stance('fail_on_recompile'):
        train(model, optimizer, precision, range(1, 4))
    assert counters['stats']['unique_graphs'] == GRAPHS
    assert not counters['graph_break']


def test_the_counters_would_notice(tiny_cae, tokenizer):
    """Another number of masked patches is another shape: the encoder, the regressor and the decoder are compiled again."""
    model = tiny_cae(target_generator=tokenizer)
    CompileParts(**TRACED).compile(model)
    optimizer = OptimWrapper(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3))
    train(model, optimizer, 'float32', range(1))
    with torch.compiler.set_stance('fail_on_recompile'), pytest.raises(RuntimeError, match='recompil'):
        model.train_step(batch(5, 0), optimizer)
    model.train_step(batch(5, 0), optimizer)
    assert counters['stats']['unique_graphs'] == 2 * GRAPHS - 1


def test_same_training_as_uncompiled(tiny_cae, tokenizer):
    logs = []
    for compiled in (False, True):
        model = tiny_cae(target_generator=tokenizer)
        if compiled:
            names = list(model.state_dict())
            CompileParts(**DIFFERENTIATED).compile(model)
            assert list(model.state_dict()) == names
        optimizer = OptimWrapper(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05))
        logs.append(train(model, optimizer, 'float32', range(3)))
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)


class Breaks(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum().item() > 0 else x


def test_a_part_that_cannot_be_compiled_whole_is_an_error():
    model = nn.Module()
    model.backbone = Breaks()
    CompileParts(['backbone'], **TRACED).compile(model)
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        model.backbone(torch.ones(2))
    other = nn.Module()
    other.backbone = Breaks()
    HOOKS.build(dict(type='mmcae.CompileParts', parts='backbone', fullgraph=False, **TRACED)).compile(other)
    assert other.backbone(torch.ones(2)).tolist() == [2, 2]


def test_unknown_part(tiny_cae):
    with pytest.raises(ConfigError, match="CAE has no part 'regresor'; did you mean 'regressor'"):
        CompileParts(['regresor']).compile(tiny_cae())
    with pytest.raises(ConfigError, match="no part 'target_generator.embed'"):
        CompileParts().compile(tiny_cae())  # built without a tokenizer
