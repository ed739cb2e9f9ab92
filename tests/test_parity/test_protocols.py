"""What the protocols of classification read from the encoder, the attentive head and the layers' learning rates, against the reference."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from reference import cae, probes
from reference.examples import CAE, Weights, example
from reference.layers import part
from torch import nn

from mmcae.apis import load_encoder
from mmcae.models import AttentiveClsHead, CAEViT
from mmcae.models.encoders.vit import ARCHITECTURES


def test_sizes_of_the_named_encoders():
    """Twelve heads in the tiny and the small one too, whose heads are narrower than usual."""
    sizes = {name: (each['embed_dims'], each['num_layers'], each['num_heads']) for name, each in ARCHITECTURES.items()}
    assert sizes == cae.ARCHITECTURES


@pytest.mark.parametrize('name', CAE)
@torch.no_grad()
def test_features_of_probing_and_fine_tuning(name):
    """The cls token after the final norm, the norm of the mean over the patches, all tokens after the final norm."""
    found = example(name)
    heads, image = found['config']['num_heads'], found['image'].double()
    state = {key: tensor.double() for key, tensor in found['state_dict'].items()}
    tokens, norm = cae.after_blocks(state, image, torch.ones_like(found['mask']), heads), part(state, 'encoder.norm.')
    for out_type, wanted, tolerance in (
        ('cls_token', probes.linear_feature(tokens, norm), 1e-10),
        ('avg_featmap', probes.fine_tuning_feature(tokens, norm), 1e-10),
        ('raw', found['encoder_full'].double(), 2e-6),  # kept in float32
    ):
        encoder = load_encoder(found['state_dict'], num_heads=heads, out_type=out_type).double()
        torch.testing.assert_close(encoder(image)[0], wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize('heads', [4, 12])
def test_attentive_head(heads):
    """While training, where the batch norm uses the batch; gradients included."""
    weights, width, classes = Weights(0), 48, 5
    weights.add('query_token', 1, 1, width)
    for name in ('norm1_q', 'norm1_k', 'norm1_v'):
        weights.norm(name, width)
    for name in 'qkv':
        weights.linear(f'cross_attn.{name}', width, width, bias=False)
    for name in ('cross_attn.q_bias', 'cross_attn.v_bias'):
        weights.add(name, width)
    weights.linear('cross_attn.proj', width, width)
    weights.linear('head', width, classes)
    state = {name: tensor.double().requires_grad_() for name, tensor in weights.state.items()}
    head = AttentiveClsHead(classes, width, heads).double()
    ours = {name.replace('norm1_', 'norm_').replace('cross_attn', 'attn').replace('head.', 'fc.'): t for name, t in state.items()}
    missing, unexpected = head.load_state_dict(ours, strict=False)
    assert not unexpected and all(name.startswith('bn.') for name in missing)
    tokens = weights.normal(6, 17, width).double()
    found, wanted = head((tokens,)), probes.attentive_logits(tokens, state, heads)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    found.square().sum().backward()
    gradients = torch.autograd.grad(wanted.square().sum(), list(state.values()))
    for name, gradient in zip(ours, gradients, strict=True):
        torch.testing.assert_close(dict(head.named_parameters())[name].grad, gradient, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize('decay', [0.65, 1.0])
def test_learning_rate_and_weight_decay_of_each_parameter(decay):
    """Of an encoder with bias tables and what stands behind it."""
    model = nn.Module()
    model.backbone = CAEViT(dict(embed_dims=16, num_layers=3, num_heads=2), img_size=32, use_rel_pos_bias=True)
    model.head = nn.Linear(16, 5)
    config = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        constructor='mmcae.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=decay),
    )
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    found = {id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    for name, parameter in model.named_parameters():
        rate = probes.layer_scale_of_rate(name.removeprefix('backbone.'), 3, decay)
        assert found[id(parameter)] == (pytest.approx(rate), 0.05 if probes.is_decayed(name, parameter) else 0), name
