"""The encoder: every argument, every kind of output, any grid, frozen parts, layers for learning rates, loading."""

import pytest
import torch
from torch import nn

from mmcae.checkpoints.tables import sincos_position_table
from mmcae.models import CAEViT
from mmcae.models.encoders.layers import pick
from mmcae.models.encoders.vit import PatchEmbed
from mmcae.utils.errors import CheckpointError

ARCH = dict(embed_dims=32, num_layers=3, num_heads=4)


def make(**settings):
    """A small encoder with random tensors everywhere, in eval mode."""
    torch.manual_seed(0)
    model = CAEViT(**{**dict(arch=ARCH, img_size=64), **settings})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def images(*size, channels=3, batch=2):
    return torch.randn(batch, channels, *(size or (64, 64)))


# ---------------------------------------------------------------- architecture


@pytest.mark.parametrize(
    ('arch', 'sizes'),
    [('tiny', (192, 12, 12)), ('small', (384, 12, 12)), ('base', (768, 12, 12)), ('large', (1024, 24, 16))],
)
def test_named_architectures(arch, sizes):
    with torch.device('meta'):
        model = CAEViT(arch)
    assert (model.embed_dims, model.num_layers, model.blocks[0].attn.num_heads) == sizes
    assert model.blocks[0].mlp.fc1.out_features == 4 * sizes[0]
    assert model.pos_embed.shape == (1, 197, sizes[0])


def test_size_of_base_is_that_of_vit_base():
    with torch.device('meta'):
        model = CAEViT('base')
    # ViT-B/16 without a head, with layer scale (2 * 12 * 768), without the key biases (12 * 768).
    assert sum(p.numel() for p in model.parameters()) == 85_798_656 - 197 * 768 + 24 * 768 - 12 * 768


def test_own_architecture():
    model = make(arch=dict(ARCH, feedforward_channels=40))
    assert model.blocks[0].mlp.fc1.out_features == 40
    assert make().blocks[0].mlp.fc1.out_features == 128


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(arch='huge'), "arch='huge' is none of"),
        (dict(arch=dict(embed_dims=32, num_layers=2)), r"missing keys \['num_heads'\]"),
        (dict(arch=dict(ARCH, depth=2)), r"unknown keys \['depth'\]"),
        (dict(img_size=65), '65x65 pixels .* not tiled by patches of 16x16'),
        (dict(out_type='mean'), "out_type='mean' is none of"),
        (dict(out_indices=(0, 3)), r'out_indices \[3\] name no block: give some of the 3 of this encoder'),
        (dict(out_indices=()), r'out_indices \[\] name no block'),
        (dict(out_indices=('1', True, 1.0)), r"out_indices \['1', True, 1.0\] name no block"),
        (dict(frozen_stages=4), r'frozen_stages=4 must lie in \[-1, 3\]'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_state_dict_has_the_names_of_beit():
    names = set(make(use_rel_pos_bias=True).state_dict())
    attention = ('q_bias', 'v_bias', 'relative_position_bias_table', 'qkv.weight', 'proj.weight', 'proj.bias')
    block = ['gamma_1', 'gamma_2', *(f'attn.{name}' for name in attention)]
    block += [f'{layer}.{kind}' for layer in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2') for kind in ('weight', 'bias')]
    wanted = {'cls_token', 'pos_embed', 'patch_embed.proj.weight', 'patch_embed.proj.bias', 'norm.weight', 'norm.bias'}
    assert names == wanted | {f'blocks.{i}.{name}' for i in range(3) for name in block}


def test_position_table_is_fixed_and_zero_for_cls():
    model = make(img_size=(32, 64))
    assert 'pos_embed' not in dict(model.named_parameters())
    assert (model.pos_embed[:, 0] == 0).all()
    torch.testing.assert_close(model.pos_embed[:, 1:], sincos_position_table((2, 4), 32))


def test_layer_scale_value():
    model = CAEViT(ARCH, layer_scale_init_value=1e-5)
    assert all((block.gamma_1 == 1e-5).all() and (block.gamma_2 == 1e-5).all() for block in model.blocks)
    assert CAEViT(ARCH, layer_scale_init_value=0).blocks[0].gamma_1 is None


def test_drop_path_rises_linearly_and_each_block_has_its_own():
    model = CAEViT(ARCH, drop_path_rate=0.2)
    assert isinstance(model.blocks[0].drop_path, nn.Identity)
    assert [block.drop_path.drop_prob for block in model.blocks[1:]] == pytest.approx([0.1, 0.2])


def test_drop_path_works_in_training_only():
    model, x = make(drop_path_rate=0.5), images(batch=8)
    with torch.no_grad():
        assert torch.equal(model(x)[0], model(x)[0])
        assert not torch.equal(model.train()(x)[0], model(x)[0])
        # Samples are independent of each other in eval mode.
        torch.testing.assert_close(model.eval()(x)[0][:1], model(x[:1])[0])


# ---------------------------------------------------------------- outputs


@torch.no_grad()
def test_kinds_of_output():
    model, x = make(), images()
    raw = make(out_type='raw')(x)[0]
    assert raw.shape == (2, 17, 32)
    torch.testing.assert_close(model.encode(x), raw)
    torch.testing.assert_close(model(x)[0], raw[:, 0])
    featmap = make(out_type='featmap')(x)[0]
    assert featmap.shape == (2, 32, 4, 4) and featmap.is_contiguous()
    torch.testing.assert_close(featmap.flatten(2).transpose(1, 2), raw[:, 1:])


@torch.no_grad()
def test_average_is_normalised_after_pooling():
    """The final norm takes the place of the paper's fc_norm: it sees the mean of tokens that were not normalised."""
    x = images()
    tokens = make(out_type='raw', final_norm=False)(x)[0]
    model = make(out_type='avg_featmap')
    torch.testing.assert_close(model(x)[0], model.norm(tokens[:, 1:].mean(dim=1)))
    assert not torch.allclose(model(x)[0], make(out_type='raw')(x)[0][:, 1:].mean(dim=1), atol=1e-3)


@torch.no_grad()
def test_out_indices():
    """One output per block asked for; only the last block's is normalised."""
    x = images()
    model = make(out_type='featmap', out_indices=(0, 1, -1))
    assert model.out_indices == (0, 1, 2)
    maps = model(x)
    assert len(maps) == 3
    torch.testing.assert_close(maps[2], make(out_type='featmap')(x)[0])
    tokens, grid, _ = model.embed(x)
    torch.testing.assert_close(maps[0].flatten(2).transpose(1, 2), model.blocks[0](tokens, grid)[:, 1:])
    plain = make(out_type='featmap', out_indices=(0, 1, 2), final_norm=False)
    assert isinstance(plain.norm, nn.Identity)
    torch.testing.assert_close(plain(x)[1], maps[1])
    assert not torch.allclose(plain(x)[2], maps[2], atol=1e-3)


@torch.no_grad()
def test_outputs_come_in_the_order_asked_for_and_as_often():
    x = images()
    first, second, third = make(out_type='featmap', out_indices=(0, 1, 2))(x)
    found = make(out_type='featmap', out_indices=[2, 0, -1, 1])(x)
    for output, wanted in zip(found, (third, first, third, second), strict=True):
        assert torch.equal(output, wanted)


@pytest.mark.parametrize('out_indices', [0, (1, 0), -2, (0, 1, 2), (-1, 0)])
def test_blocks_that_no_output_needs_are_neither_run_nor_trained(monkeypatch, out_indices):
    """Nor is the final norm, which is that of the last block."""
    model, run = make(out_type='raw', out_indices=out_indices).train(), []
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: run.append(number))
    sum(output.square().sum() for output in model(images())).backward()
    last = max(model.out_indices)
    assert run == list(range(last + 1))
    # Every parameter that asks for a gradient gets one, as distributed training wants it.
    for name, parameter in model.named_parameters():
        needed = last == 2 or not name.startswith(('norm.', *(f'blocks.{number}.' for number in range(last + 1, 3))))
        assert parameter.requires_grad == needed == (parameter.grad is not None), name


def test_picked_patches_are_those_of_the_whole_image():
    """What the convolution gives, values and gradients; neither patches nor grid need to be square."""
    embed = PatchEmbed(5, 12, (4, 8)).double()
    x, index = torch.randn(2, 5, 12, 32, dtype=torch.float64), torch.tensor([[11, 0, 6], [5, 5, 2]])
    found = []
    for tokens in (embed(x, index), pick(embed(x), index)):
        found.append((tokens, *torch.autograd.grad(tokens.square().sum(), embed.parameters())))
    for picked, whole in zip(*found, strict=True):
        torch.testing.assert_close(picked, whole)


@torch.no_grad()
def test_encode_sees_the_picked_patches_alone():
    model, x = make(), images()
    index = torch.tensor([[3, 0, 7], [15, 14, 1]])
    latents = model.encode(x, index)
    assert latents.shape == (2, 4, 32)
    # The order of the index is the order of the output ...
    torch.testing.assert_close(model.encode(x, index.flip(1))[:, 1:].flip(1), latents[:, 1:])
    # ... and what the other patches show does not matter.
    for sample, patches in enumerate(index.tolist()):
        for patch in set(range(16)) - set(patches):
            row, column = 16 * (patch // 4), 16 * (patch % 4)
            x[sample, :, row : row + 16, column : column + 16] = 9
    torch.testing.assert_close(model.encode(x, index), latents)
    # All patches in raster order are what no index means.
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(model.encode(x, everything), model.encode(x))


@pytest.mark.parametrize('size', [(64, 96), (32, 32), (128, 48)])
@pytest.mark.parametrize('bias', [False, True])
@torch.no_grad()
def test_other_image_sizes(size, bias):
    """Any multiple of the patch size; the tables are those of the cls token unchanged and of the patches resized."""
    model = make(out_type='featmap', use_rel_pos_bias=bias)
    grid = (size[0] // 16, size[1] // 16)
    assert model(images(*size))[0].shape == (2, 32, *grid)
    table = model.positions(grid)
    assert table.shape == (1, 1 + grid[0] * grid[1], 32) and (table[:, 0] == 0).all()
    assert model.positions((4, 4)) is model.pos_embed


def test_images_must_be_tiled():
    with pytest.raises(ValueError, match=r'Images of 64x70 pixels .* patches of 16x16.*pad_size_divisor'):
        make()(images(64, 70))


@torch.no_grad()
def test_patch_size_and_channels():
    model = make(img_size=(16, 24), patch_size=(8, 4), in_channels=5, out_type='featmap')
    assert model.grid == (2, 6)
    assert model(images(16, 24, channels=5))[0].shape == (2, 32, 2, 6)


@torch.no_grad()
def test_relative_position_bias_changes_the_output_once_trained():
    x = images()
    model = CAEViT(ARCH, img_size=64, use_rel_pos_bias=True).eval()
    plain = CAEViT(ARCH, img_size=64).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(x), plain(x))  # it starts at zero
    model.blocks[1].attn.relative_position_bias_table.normal_()
    assert not torch.allclose(model(x)[0], plain(x)[0], atol=1e-4)


def test_mixed_precision():
    model, x = make(out_type='raw'), images()
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        low = model(x)[0]
    high = model(x)[0]
    assert (low.float() - high).norm() / high.norm() < 0.02


def test_gradient_checkpointing_gives_the_same_gradients():
    x = images()
    gradients = []
    for with_cp in (False, True):
        model = make(with_cp=with_cp, use_rel_pos_bias=True, out_type='raw').train()
        model(x)[0].square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda m, n=name: f'{n}: {m}')


def test_gradient_checkpointing_recomputes(monkeypatch):
    """The blocks run a second time in the backward pass: that is how it saves memory."""
    model, calls = make(with_cp=True), []
    forward = type(model.blocks[0]).forward
    monkeypatch.setattr(type(model.blocks[0]), 'forward', lambda self, *a: calls.append(1) or forward(self, *a))
    out = model.train()(images())[0]
    assert len(calls) == 3
    out.sum().backward()
    assert len(calls) == 6


# ---------------------------------------------------------------- frozen parts


@pytest.mark.parametrize('stages', [-1, 0, 2, 3])
def test_frozen_stages(stages):
    model = CAEViT(ARCH, img_size=64, drop_path_rate=0.5, frozen_stages=stages)
    model.train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if stages < 0:
        assert trained == {name for name, _ in model.named_parameters()}
        return
    assert not any(name.startswith(('patch_embed', 'cls_token')) for name in trained)
    assert {int(name.split('.')[1]) for name in trained if name.startswith('blocks.')} == set(range(stages, 3))
    assert ('norm.weight' in trained) == (stages < 3)
    assert [block.training for block in model.blocks] == [i >= stages for i in range(3)]
    x = images()
    assert model(x)[0].requires_grad == (stages < 3)
    if stages == 3:
        assert not trained
        assert torch.equal(model(x)[0], model(x)[0])  # no drop path in frozen blocks


# ---------------------------------------------------------------- layers for learning rates


def test_layer_depth():
    model = make()
    assert model.get_layer_depth('backbone.cls_token', 'backbone.') == (0, 5)
    assert model.get_layer_depth('backbone.pos_embed', 'backbone.') == (0, 5)
    assert model.get_layer_depth('backbone.patch_embed.proj.weight', 'backbone.') == (0, 5)
    assert [model.get_layer_depth(f'blocks.{i}.gamma_1') for i in range(3)] == [(1, 5), (2, 5), (3, 5)]
    assert model.get_layer_depth('backbone.norm.weight', 'backbone.') == (4, 5)
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (4, 5)


# ---------------------------------------------------------------- initialisation and loading


def test_init_weights_starts_afresh():
    model = make()
    model.init_weights()
    assert (model.blocks[0].attn.q_bias == 0).all() and (model.norm.weight == 1).all()


@torch.no_grad()
def test_pretrained(tmp_path):
    source = make()
    torch.save(source.state_dict(), tmp_path / 'encoder.pth')
    model = CAEViT(ARCH, img_size=64, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'encoder.pth')))
    model.init_weights()
    x = images()
    assert torch.equal(model.eval()(x)[0], source(x)[0])


@torch.no_grad()
def test_pretrained_for_another_grid_with_bias_tables(tmp_path):
    torch.save(make(use_rel_pos_bias=True).state_dict(), tmp_path / 'encoder.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'encoder.pth'))
    model = CAEViT(ARCH, img_size=(96, 32), use_rel_pos_bias=True, init_cfg=init_cfg)
    model.init_weights()
    assert model.blocks[0].attn.relative_position_bias_table.abs().max() > 0
    model(images(96, 32))


def test_tables_of_unknown_shape_are_not_guessed():
    state = make(img_size=(32, 64)).state_dict()
    assert make(img_size=96).fit_state_dict(state)['pos_embed'].shape == make(img_size=96).pos_embed.shape  # the sin-cos table tells it
    state['pos_embed'] = torch.randn_like(state['pos_embed'])
    with pytest.raises(CheckpointError, match='pos_embed .* grid of 8 cells that is not square'):
        make(img_size=96).fit_state_dict(state)
