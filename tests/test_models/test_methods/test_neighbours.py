"""MAE, BEiT and SimMIM against mmpretrain's own classes; data2vec and I-JEPA against their papers' equations, patch by patch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.heads import BEiTV1Head, MAEPretrainHead, SimMIMHead
from mmpretrain.models.necks import MAEPretrainDecoder, SimMIMLinearDecoder
from mmpretrain.models.selfsup import BEiTPretrainViT
from mmpretrain.models.selfsup.mae import MAEViT
from mmpretrain.structures import DataSample
from torch import nn

from mmcae.apis import load_encoder
from mmcae.checkpoints import load_strictly, to_mmcae
from mmcae.datasets.transforms import MultiBlockMaskGenerator
from mmcae.models import PatchCodebook
from mmcae.models.methods.beit import encode_masked
from mmcae.registry import MODELS
from mmcae.utils.errors import ConfigError

WIDTH, HEADS, DEPTH, PATCH, GRID = 48, 4, 3, 8, 4
ARCH = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS)
ENCODER = dict(type='mmcae.CAEViT', arch=ARCH, img_size=PATCH * GRID, patch_size=PATCH)
PIXELS = dict(type='mmcae.PixelTargets', patch_size=PATCH)
DECODER = dict(type='mmcae.MAEDecoder', in_dims=WIDTH, embed_dims=32, num_layers=2, num_heads=4)
PREDICTOR = dict(type='mmcae.JEPAPredictor', in_dims=WIDTH, embed_dims=24, num_layers=1, num_heads=4)
METHODS = {
    'MAE': dict(decoder=DECODER, target_generator=PIXELS),
    'BEiT': dict(target_generator=PIXELS),
    'SimMIM': dict(target_generator=PIXELS),
    'Data2Vec': dict(top_blocks=2),
    'IJEPA': dict(predictor=PREDICTOR),
}
THEIR_ARCH = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=4 * WIDTH)


def build(name, **settings):
    model = MODELS.build(dict(type=f'mmcae.{name}', backbone=ENCODER) | METHODS[name] | settings)
    return shaken(model).double()


def shaken(model):
    """Random values in all parameters, biases and norms included."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def images():
    return torch.randn(5, 3, PATCH * GRID, PATCH * GRID, dtype=torch.float64)


@pytest.fixture
def mask():
    return torch.rand(5, GRID**2).argsort(dim=1) < 9


def samples_of(mask, **fields):
    return [DataSample(mask=row.reshape(GRID, GRID), **{k: v[i] for k, v in fields.items()}) for i, row in enumerate(mask)]


def take_encoder(model, theirs):
    """Give our encoder the weights of mmpretrain's."""
    state = {f'backbone.{key}': value for key, value in theirs.state_dict().items()}
    converted = {key.removeprefix('backbone.'): value for key, value in to_mmcae(state, 'mmpretrain').items()}
    load_strictly(model.backbone, {key: value for key, value in converted.items() if key in model.backbone.state_dict()}, 'mmpretrain')


def take_block(block, theirs):
    """Give a block of ours the weights of one of mmpretrain's transformer layers, and take the keys' bias, which changes nothing, off."""
    query, _, value = theirs.attn.qkv.bias.chunk(3)
    pairs = [(block.attn.qkv.weight, theirs.attn.qkv.weight), (block.attn.q_bias, query), (block.attn.v_bias, value)]
    for ours, layer in (
        (block.norm1, theirs.ln1),
        (block.norm2, theirs.ln2),
        (block.attn.proj, theirs.attn.proj),
        (block.mlp.fc1, theirs.ffn.layers[0][0]),
        (block.mlp.fc2, theirs.ffn.layers[1]),
    ):
        pairs += [(ours.weight, layer.weight), (ours.bias, layer.bias)]
    with torch.no_grad():
        for ours, other in pairs:
            ours.copy_(other)


def copy(layer, other):
    layer.load_state_dict(other.state_dict())


@pytest.mark.parametrize('normalize', [True, False])
def test_mae_is_mmpretrains(images, mask, normalize, monkeypatch):
    encoder = MAEViT(arch=THEIR_ARCH, img_size=PATCH * GRID, patch_size=PATCH, mask_ratio=9 / 16)
    neck = MAEPretrainDecoder(GRID**2, PATCH, 3, WIDTH, 32, 2, 4)
    encoder.init_weights(), neck.init_weights()
    shaken(encoder.layers), shaken(neck.decoder_blocks)
    encoder, neck = encoder.double(), neck.double()
    head = MAEPretrainHead(dict(type='PixelReconstructionLoss', criterion='L2'), norm_pix=normalize, patch_size=PATCH)
    # Their noise decides the mask: patches with the smallest stay.
    monkeypatch.setattr(torch, 'rand', lambda *size, **kwargs: mask.double())
    latent, their_mask, ids_restore = encoder(images)
    assert torch.equal(their_mask.bool(), mask)
    expected = head.loss(neck(latent, ids_restore), images, their_mask)

    model = build('MAE', backbone=ENCODER | dict(layer_scale_init_value=0), target_generator=PIXELS | dict(normalize=normalize))
    take_encoder(model, encoder)
    copy(model.decoder.embed, neck.decoder_embed), copy(model.decoder.norm, neck.decoder_norm), copy(model.decoder.head, neck.decoder_pred)
    model.decoder.mask_token.data.copy_(neck.mask_token)
    torch.testing.assert_close(model.pos_embed, neck.decoder_pos_embed[:, 1:].detach(), rtol=0, atol=1e-6)
    model.pos_embed.copy_(neck.decoder_pos_embed[:, 1:])
    for block, theirs in zip(model.decoder.blocks, neck.decoder_blocks, strict=True):
        take_block(block, theirs)
    loss = model.loss([images, images], samples_of(mask))['loss_main']
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(model.backbone.patch_embed.proj.weight.grad, encoder.patch_embed.projection.weight.grad)


def masked_encoder_of_mmpretrain():
    encoder = BEiTPretrainViT(
        arch=THEIR_ARCH, img_size=PATCH * GRID, patch_size=PATCH, use_abs_pos_emb=True, use_shared_rel_pos_bias=False, out_type='raw'
    )
    return shaken(encoder).double()


class Ids(nn.Module):
    """One-hot maps of given ids, as DALL-E's encoder of mmpretrain gives scores."""

    def __init__(self, ids):
        super().__init__()
        self.scores = F.one_hot(ids, 24).double().transpose(1, 2).reshape(len(ids), 24, GRID, GRID)

    def forward(self, view):
        return self.scores


def test_beit_is_mmpretrains(images, mask):
    encoder = masked_encoder_of_mmpretrain()
    head = shaken(BEiTV1Head(WIDTH, 24, dict(type='mmpretrain.CrossEntropyLoss'))).double()
    codebook = dict(type='mmcae.PatchCodebook', vocab_size=24, patch_size=PATCH)
    model = build('BEiT', target_generator=codebook)
    take_encoder(model, encoder)
    model.mask_token.data.copy_(encoder.mask_token)
    copy(model.head, head.cls_head)
    model.target_generator.quantizer.usage.fill_(1)
    ids = model.target_generator.tokenize(images).flatten(1)
    expected = head.loss(encoder(images, mask.view(-1, GRID, GRID))[0], Ids(ids)(images), mask.view(-1, GRID, GRID))
    losses = model.loss([images, images], samples_of(mask))
    torch.testing.assert_close(losses['loss_main'], expected, rtol=1e-6, atol=0)
    assert 0 <= losses['mlm_acc'] <= 1


def test_simmim_is_mmpretrains(images, mask):
    encoder = masked_encoder_of_mmpretrain()
    neck = shaken(SimMIMLinearDecoder(WIDTH, PATCH)).double()
    head = SimMIMHead(PATCH, dict(type='PixelReconstructionLoss', criterion='L1', channel=3))
    maps = encoder(images, mask.view(-1, GRID, GRID))[0][:, 1:].transpose(1, 2).reshape(-1, WIDTH, GRID, GRID)
    expected = head.loss(neck(maps), images, mask.view(-1, GRID, GRID).double())

    model = build('SimMIM', target_generator=PIXELS | dict(normalize=False))
    take_encoder(model, encoder)
    model.mask_token.data.copy_(encoder.mask_token)
    # Their pixel shuffle has the channels outermost, our patches innermost.
    order = torch.arange(3 * PATCH**2).view(3, PATCH, PATCH).permute(1, 2, 0).flatten()
    conv = neck.decoder[0]
    model.head.load_state_dict(dict(weight=conv.weight.flatten(1)[order], bias=conv.bias[order]))
    torch.testing.assert_close(model.loss([images, images], samples_of(mask))['loss_main'], expected, rtol=1e-6, atol=0)


def normalised(vector):
    """A vector without its mean, of variance one."""
    centred = vector - vector.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt()


@pytest.mark.parametrize('beta', [None, 0.3, 2.0])
def test_data2vec_is_the_papers_equations(images, mask, beta):
    model = build('Data2Vec', beta=beta).eval()
    shaken(model.target_encoder.module)
    terms = []
    for image, hidden in zip(images, mask, strict=True):
        outputs, x = [], model.teacher.embed(image[None])[0]
        for block in model.teacher.blocks:
            x = block(x)
            outputs.append(x[0, 1:])
        tokens = model.backbone.embed(image[None])[0]
        for patch in hidden.nonzero().flatten():
            tokens[0, 1 + patch] = model.mask_token[0, 0] + model.backbone.pos_embed[0, 1 + patch]
        for block in model.backbone.blocks:
            tokens = block(tokens)
        predictions = model.head(model.backbone.norm(tokens))[0, 1:]
        for patch in hidden.nonzero().flatten():
            target = sum(normalised(layer[patch]) for layer in outputs[-2:]) / 2  # y_t, equation 1 and section 3.3
            for error in (predictions[patch] - target).abs():
                squares = error**2 if beta is None else error**2 / (2 * beta)
                terms.append(squares if beta is None or error <= beta else error - beta / 2)
    loss = model.loss(images, samples_of(mask))['loss_main']
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_ijepa_is_the_papers_equations(images):
    generator = MultiBlockMaskGenerator(GRID, block=(2, 1), num_visible=6, num_blocks=3)
    drawn = [generator.transform({}) for _ in images]
    mask, blocks = torch.tensor(np.stack([d['mask'] for d in drawn])).flatten(1), [d['target_blocks'] for d in drawn]
    model = build('IJEPA').eval()
    shaken(model.target_encoder.module)
    terms = []
    for image, hidden, targets in zip(images, mask, blocks, strict=True):
        latents = model.teacher.encode(image[None])[0, 1:]
        seen = (~hidden).nonzero().flatten()
        context = model.backbone.encode(image[None], seen[None])[0, 1:]
        predictor = model.predictor
        for block in targets:
            tokens = [predictor.embed(c) + model.pos_embed[0, place] for c, place in zip(context, seen, strict=True)]
            tokens += [predictor.mask_token[0, 0] + model.pos_embed[0, place] for place in block]
            x = torch.stack(tokens)[None]
            for layer in predictor.blocks:
                x = layer(x)
            predictions = predictor.head(predictor.norm(x))[0, len(seen) :]
            terms += [F.smooth_l1_loss(p, normalised(latents[place])) for p, place in zip(predictions, block, strict=True)]
    loss = model.loss(images, samples_of(mask, target_blocks=blocks))['loss_main']
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_ijepa_takes_the_masked_patches_as_one_block_from_other_generators(images, mask):
    model = build('IJEPA').eval()
    block = [row.nonzero().flatten().numpy()[None] for row in mask]
    one, other = (model.loss(images, samples_of(mask, **fields))['loss_main'] for fields in ({}, dict(target_blocks=block)))
    torch.testing.assert_close(one, other)


def test_multi_block_masks():
    generator = MultiBlockMaskGenerator((6, 8), block=(2, 3), num_visible=20, num_blocks=4)
    seen = set()
    for _ in range(50):
        results = generator.transform({})
        mask, blocks = results['mask'], results['target_blocks']
        assert mask.shape == (6, 8) and (~mask).sum() == 20 and blocks.shape == (4, 6)
        assert mask.flatten()[blocks].all()  # no target is in the context
        for block in blocks:
            rows, columns = np.unravel_index(block, (6, 8))
            assert np.ptp(rows) == 1 and np.ptp(columns) == 2 and len(set(block)) == 6
            seen.add(block[0])
    assert {0, 5, 32, 37} <= seen  # blocks touch every corner
    assert 'block=(2, 3)' in repr(generator)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(grid=4, block=5, num_visible=2), r'block=\(5, 5\) does not fit the grid of 4x4'),
        (dict(grid=4, block=2, num_visible=16), 'num_masked must lie between'),
        (dict(grid=4, block=2, num_visible=13), 'hardly ever leave 13 patches'),
        (dict(grid=4, block=2, num_visible=4, num_blocks=0), 'num_blocks=0 must be at least 1'),
    ],
)
def test_multi_block_masks_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        MultiBlockMaskGenerator(**settings)


@pytest.mark.parametrize('name', ['Data2Vec', 'IJEPA'])
def test_the_target_is_a_moving_average_that_is_saved_and_resumed_exactly(images, mask, name):
    model = build(name, ema=dict(momentum=0.25), backbone=ENCODER | dict(drop_path_rate=0.5)).train()
    model.init_weights()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    expected = None
    for _ in range(4):
        current = {key: value.detach().clone() for key, value in model.backbone.named_parameters()}
        expected = current if expected is None else {key: 0.75 * expected[key] + 0.25 * value for key, value in current.items()}
        optimizer.zero_grad()
        model.loss(images, samples_of(mask))['loss_main'].backward()
        optimizer.step()
    torch.testing.assert_close(dict(model.teacher.named_parameters()), expected)
    assert not any(p.requires_grad for p in model.target_encoder.parameters()) and not model.teacher.training
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    resumed = build(name, ema=dict(momentum=0.25), backbone=ENCODER | dict(drop_path_rate=0.5)).train()
    resumed.load_state_dict(model.state_dict())
    for one in (model, resumed):
        torch.manual_seed(1)
        one.loss(images, samples_of(mask))
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert resumed.target_encoder.steps == 5


@pytest.mark.parametrize('name', METHODS)
def test_goes_on_from_its_own_checkpoint_and_from_no_other(images, mask, name, tmp_path):
    source = build(name).float()
    if name in ('Data2Vec', 'IJEPA'):
        source.target_encoder.steps += 3
        shaken(source.target_encoder)
    torch.save(dict(state_dict=source.state_dict(), meta=dict(method=source.description)), tmp_path / 'source.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'source.pth'))
    model = build(name, init_cfg=pretrained).float()
    model.init_weights()
    torch.testing.assert_close(model.state_dict(), source.state_dict())
    other = 'MAE' if name != 'MAE' else 'BEiT'
    with pytest.raises(ConfigError, match=f'source.pth is of {name}, the model of {other}: start from its encoder alone'):
        build(other, init_cfg=pretrained).init_weights()
    encoder = load_encoder(tmp_path / 'source.pth', num_heads=HEADS, patch_size=PATCH)
    torch.testing.assert_close(encoder.state_dict(), source.backbone.state_dict())
    if name in ('Data2Vec', 'IJEPA'):
        encoder = load_encoder(tmp_path / 'source.pth', prefix='target_encoder.', num_heads=HEADS, patch_size=PATCH)
        torch.testing.assert_close(encoder.state_dict(), source.teacher.state_dict())


@pytest.mark.parametrize('name', METHODS)
def test_larger_images(name, tmp_path):
    """The tables of all parts, the target encoder's included, are resized."""
    source = build(name).float()
    torch.save(dict(state_dict=source.state_dict(), meta=dict(method=source.description)), tmp_path / 'source.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'source.pth'))
    larger = build(name, backbone=ENCODER | dict(img_size=PATCH * 6), init_cfg=pretrained).float()
    larger.init_weights()
    images, mask = torch.randn(2, 3, PATCH * 6, PATCH * 6), torch.arange(36).expand(2, 36) < 20
    losses = larger.loss([images, images] if larger.needs_two_views else images, [DataSample(mask=row.view(6, 6)) for row in mask])
    assert losses['loss_main'].isfinite()


@pytest.mark.parametrize('name', ['MAE', 'BEiT', 'SimMIM'])
def test_complementary_masks_are_two_ordinary_passes(images, name):
    mask = torch.rand(5, GRID**2).argsort(dim=1) < GRID**2 // 2
    plain, double = build(name), build(name, complementary=True)
    double.load_state_dict(plain.state_dict())
    losses = [plain.loss([images, images], samples_of(m))['loss_main'] for m in (mask, ~mask)]
    torch.testing.assert_close(double.loss([images, images], samples_of(mask))['loss_main'], sum(losses) / 2)


@pytest.mark.parametrize('name', ['MAE', 'BEiT', 'SimMIM', 'Data2Vec', 'IJEPA'])
def test_learns(name, images, mask):
    model = build(name).float().train()
    model.init_weights()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    images, losses = images.float(), []
    for _ in range(40):
        loss = model.loss([images, images] if model.needs_two_views else images, samples_of(mask))['loss_main']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ('name', 'settings', 'message'),
    [
        ('MAE', dict(decoder=None), 'model.decoder=None: MAE needs a decoder'),
        ('IJEPA', dict(predictor=None), 'model.predictor=None: IJEPA needs a predictor'),
        ('Data2Vec', dict(backbone=None), 'model.backbone=None: Data2Vec needs a backbone'),
        ('MAE', dict(decoder=DECODER | dict(in_dims=7)), 'decoder.in_dims=7, but the encoder is 48 wide'),
        ('MAE', dict(decoder=DECODER | dict(num_outputs=7)), 'decoder.num_outputs=7, but PixelTargets has targets of 192'),
        ('BEiT', dict(num_outputs=7), 'num_outputs=7, but PixelTargets has targets of 192'),
        ('SimMIM', dict(target_generator=dict(type='mmcae.PatchCodebook', patch_size=8)), 'PatchCodebook has tokens: take mmcae.BEiT'),
        ('Data2Vec', dict(top_blocks=4), 'top_blocks=4 must lie between 1 and 3'),
        ('Data2Vec', dict(beta=0), 'beta=0 must be above 0, or None'),
        ('Data2Vec', dict(ema=dict(momentum=1.5)), 'ema.momentum=1.5 must lie between 0 and 1'),
        ('Data2Vec', dict(target_generator=PIXELS), 'Data2Vec makes its targets itself: leave target_generator out'),
        ('IJEPA', dict(predictor=PREDICTOR | dict(in_dims=7)), 'predictor.in_dims=7, but the encoder is 48 wide'),
        ('IJEPA', dict(target_generator=PIXELS), 'IJEPA makes its targets itself: leave target_generator out'),
    ],
)
def test_parts_that_do_not_fit(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **settings)


@pytest.mark.parametrize('name', METHODS)
def test_encoders_of_timm_do_as_well(name, images, mask):
    """Mask tokens too: what is hidden is not seen."""
    vit = dict(type='mmcae.TimmEncoder', model_name='vit_tiny_patch16_224', embed_dim=48, depth=3, num_heads=4, patch_size=8, img_size=32)
    model = build(name, backbone=vit).eval()
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        hidden = mask.view(-1, 1, GRID, GRID).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        visible, masked = model.split(samples_of(mask), images)
        seen = torch.where(hidden, torch.randn_like(images), images)
        if name in ('MAE', 'BEiT', 'SimMIM'):
            losses.append(model.forward_parts(seen, visible, masked))
        elif name == 'IJEPA':
            losses.append(model.predict_blocks(seen, visible, masked, (GRID, GRID)))
        else:
            losses.append(encode_masked(model.backbone, seen, masked, model.mask_token, GRID**2))
    torch.testing.assert_close(*losses)
    assert model.loss([images, images], samples_of(mask))['loss_main'].isfinite()


@pytest.mark.parametrize('name', ['MAE', 'BEiT', 'SimMIM'])
def test_without_target_it_only_predicts(name, images, mask):
    model = build(name, target_generator=None)
    with pytest.raises(ConfigError, match=f'{name} was built without target_generator'):
        model.loss([images, images], samples_of(mask))


@pytest.mark.parametrize('name', ['beit', 'simmim', 'data2vec', 'ijepa'])
def test_recipe_trains_and_resumes_exactly(name, repository, image_folder, fork_tool, tmp_path):
    settings = [
        f'train_dataloader.dataset.data_root={image_folder(size=(40, 40), count=4)}',
        'train_dataloader.dataset.data_prefix=',
        'train_dataloader.batch_size=4',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'train_cfg.max_iters=4',
        'param_scheduler.0.warmup=1',
        'param_scheduler.0.end=4',
        'default_hooks.checkpoint.interval=2',
        'default_hooks.logger.interval=1',
        'randomness.seed=0',
    ]
    if name == 'beit':
        tokenizer = PatchCodebook(vocab_size=64, patch_size=8)
        tokenizer.quantizer.usage.fill_(1)
        torch.save(dict(state_dict=tokenizer.state_dict()), tmp_path / 'tokenizer.pth')
        settings.append(f'model.target_generator.checkpoint={tmp_path / "tokenizer.pth"}')
    command = ('tools/train.py', repository / f'configs/digits/{name}_vit-digits.py')
    code, output = fork_tool(*command, '--work-dir', tmp_path / 'whole', '--cfg-options', *settings)
    assert code == 0 and output.count('loss_main: ') == 4, output
    resumed = ('--work-dir', tmp_path / 'halves', '--resume', tmp_path / 'whole/iter_2.pth')
    code, output = fork_tool(*command, *resumed, '--cfg-options', *settings)
    assert code == 0 and output.count('loss_main: ') == 2, output
    whole, halves = (torch.load(tmp_path / run / 'iter_4.pth', weights_only=False)['state_dict'] for run in ('whole', 'halves'))
    torch.testing.assert_close(halves, whole, rtol=0, atol=0)
    assert any(key.startswith('target_encoder.module.blocks') for key in whole) == (name in ('data2vec', 'ijepa'))
    other = ('tools/train.py', repository / 'configs/digits/cae_pixels_vit-digits.py', '--work-dir', tmp_path / 'other')
    code, output = fork_tool(*other, '--resume', tmp_path / 'whole/iter_2.pth', '--cfg-options', *settings[:11])
    assert code == 2 and 'the model of CAE: start from its encoder alone' in output.splitlines()[-1], output
