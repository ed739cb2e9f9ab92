"""CAE against mmpretrain's own modules with the same weights, mapped by our converter, in both directions."""

import pytest
import torch
from mmpretrain.models import CAE as MMPretrainCAE
from mmpretrain.models import BEiTViT
from mmpretrain.structures import DataSample

import mmcae.models  # noqa: F401
from mmcae.apis import load_cae
from mmcae.checkpoints import convert_mmpretrain, to_mmpretrain

EXACT = dict(rtol=0, atol=1e-10)
MASKED = 7
GRID = 4
VOCABULARY = 24
ARCH = dict(embed_dims=48, num_layers=3, num_heads=4, feedforward_channels=192)


class FixedTokens(torch.nn.Module):
    """A tokenizer for mmpretrain: logits that mean the given ids (B, h, w)."""

    def __init__(self, ids):
        super().__init__()
        self.ids = ids

    def forward(self, images):
        return torch.nn.functional.one_hot(self.ids, VOCABULARY).permute(0, 3, 1, 2).double()


def mmpretrain_cae(tokens=None):
    """mmpretrain's CAE in the sizes of `tiny_cae`, in float64, its teacher equal to its encoder; all tensors random."""
    torch.manual_seed(1)
    model = MMPretrainCAE(
        backbone=dict(type='CAEPretrainViT', arch=ARCH, img_size=64, layer_scale_init_value=0.1, bias='qv_bias'),
        neck=dict(
            type='CAENeck',
            num_classes=VOCABULARY,
            embed_dims=48,
            regressor_depth=2,
            decoder_depth=2,
            num_heads=4,
            layer_scale_init_value=0.1,
            mask_tokens_num=MASKED,
        ),
        head=dict(type='CAEHead', loss=dict(type='CAELoss', lambd=2)),
        target_generator=tokens,
    )
    model.init_weights()
    for name, parameter in model.named_parameters():
        if not name.endswith('pos_embed'):
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.teacher.load_state_dict(model.backbone.state_dict())
    return model.double()


@pytest.fixture
def batch():
    """Two images, masks with `MASKED` patches each, and a token for every patch."""
    torch.manual_seed(2)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    mask = torch.rand(2, GRID * GRID).argsort(dim=1) < MASKED
    tokens = torch.randint(VOCABULARY, (2, GRID, GRID))
    return images, mask, tokens


def mmpretrain_losses(model, images, mask):
    samples = []
    for row in mask:
        samples.append(DataSample(mask=row.reshape(GRID, GRID)))
    return model.loss([images, images], samples)


@torch.no_grad()
def mmpretrain_outputs(model, images, mask):
    """Logits, predicted and aligned latents by mmpretrain's modules, called as its `loss` calls them."""
    table = model.backbone.pos_embed[:, 1:].expand(len(images), -1, -1)
    hidden, shown = (table[m].reshape(len(images), -1, 48) for m in (mask, ~mask))
    logits, latent_pred = model.neck(model.backbone(images, mask)[:, 1:], hidden, shown)
    return dict(logits=logits, latent_pred=latent_pred, latent_target=model.teacher(images, ~mask)[:, 1:])


def assert_same(theirs, ours, batch):
    images, mask, tokens = batch
    found = ours.predict(images, mask)
    for name, wanted in mmpretrain_outputs(theirs, images, mask).items():
        torch.testing.assert_close(found[name], wanted, **EXACT)
    labels = tokens.flatten(1)[mask].reshape(2, -1)
    losses = ours.losses(found['logits'], labels, found['latent_pred'], found['latent_target'])
    wanted = mmpretrain_losses(theirs, images, mask)
    assert losses['loss_main'].item() == pytest.approx(wanted['main'].item(), abs=1e-10)
    assert losses['loss_align'].item() == pytest.approx(wanted['align'].item(), abs=1e-10)


def test_our_weights_in_mmpretrain(tiny_cae, batch):
    ours = tiny_cae().double()
    theirs = mmpretrain_cae(FixedTokens(batch[2]))
    theirs.load_state_dict(to_mmpretrain(ours.state_dict()), strict=True)
    assert_same(theirs, ours, batch)


def test_mmpretrain_weights_in_ours(batch):
    theirs = mmpretrain_cae(FixedTokens(batch[2]))
    ours = load_cae(theirs.state_dict(), num_heads=4, decoder_num_heads=4).double()
    assert_same(theirs, ours, batch)


def test_gradients(batch):
    theirs = mmpretrain_cae(FixedTokens(batch[2]))
    images, mask, tokens = batch
    ours = load_cae(theirs.state_dict(), num_heads=4, decoder_num_heads=4).double()
    mmpretrain_losses(theirs, images, mask)['loss'].backward()
    out = ours.predict(images, mask)
    losses = ours.losses(out['logits'], tokens.flatten(1)[mask].reshape(2, -1), out['latent_pred'], out['latent_target'])
    (losses['loss_main'] + losses['loss_align']).backward()
    gradients = convert_mmpretrain({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    parameters = dict(ours.named_parameters())
    assert set(gradients) == set(parameters)
    for name, wanted in gradients.items():
        torch.testing.assert_close(parameters[name].grad, wanted, rtol=1e-7, atol=1e-12)


@torch.no_grad()
def test_relative_position_bias_and_featmaps(tiny_cae, batch):
    """mmpretrain's BEiTViT with bias tables gives the same maps of every block."""
    from mmcae.models import CAEViT

    torch.manual_seed(3)
    settings = dict(arch=ARCH, img_size=64, use_rel_pos_bias=True, out_type='featmap', out_indices=[0, 1, 2], final_norm=True)
    ours = CAEViT(**settings)
    for parameter in ours.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    theirs = BEiTViT(**settings, use_abs_pos_emb=True)
    state = to_mmpretrain({f'backbone.{key}': value for key, value in ours.state_dict().items()})
    missing, unexpected = theirs.load_state_dict({key.removeprefix('backbone.'): value for key, value in state.items()}, strict=False)
    assert not unexpected and all(key.endswith('relative_position_index') for key in missing)
    theirs.double().train(False)  # which returns None in mmpretrain
    for found, wanted in zip(ours.double().eval()(batch[0]), theirs(batch[0]), strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)


def test_mmpretrain_target_lags_ours_does_not(batch):
    """The documented difference: after one step of training the two part, since mmpretrain's teacher is one step old."""
    images, mask, tokens = batch
    theirs = mmpretrain_cae(FixedTokens(tokens))
    ours = load_cae(theirs.state_dict(), num_heads=4, decoder_num_heads=4).double()
    labels = tokens.flatten(1)[mask].reshape(2, -1)

    def our_losses():
        out = ours.predict(images, mask)
        return ours.losses(out['logits'], labels, out['latent_pred'], out['latent_target'])

    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.05) for m in (ours, theirs)]
    found, wanted = our_losses(), mmpretrain_losses(theirs, images, mask)
    for optimizer, loss in zip(optimizers, (found['loss_main'] + found['loss_align'], wanted['loss']), strict=True):
        loss.backward()
        optimizer.step()
    found, wanted = our_losses(), mmpretrain_losses(theirs, images, mask)
    assert found['loss_main'].item() == pytest.approx(wanted['main'].item(), abs=1e-6)
    assert abs(found['loss_align'].item() - wanted['align'].item()) > 1e-4
