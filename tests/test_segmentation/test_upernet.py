"""UperNet on CAEViT: checkpoints, training steps, and every way of testing, at any image size."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.models import SegTTAModel
from mmseg.structures import SegDataSample

from mmcae.checkpoints import metadata_of, read_checkpoint
from mmcae.checkpoints.tables import resize_bias_table, resize_position_table
from mmcae.models import CAEViT
from mmcae.utils.errors import CheckpointError

from .conftest import CLASSES, ENCODER, SIDE


def tables(model):
    return [block.attn.relative_position_bias_table for block in model.backbone.blocks]


def learn_bias(model):
    """Bias tables as training could have left them: far from zero."""
    with torch.no_grad():
        for table in tables(model):
            table.normal_()
    return model


def batch(height=SIDE, width=SIDE, count=2):
    """A training batch as mmseg's data loader gives it: BGR bytes and label maps."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator) for _ in range(count)]
    labels = [torch.randint(0, CLASSES, (1, height, width), generator=generator) for _ in range(count)]
    return dict(inputs=images, data_samples=[SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels])


def losses_of(model, data):
    data = model.data_preprocessor(data, training=True)
    return model(**data, mode='loss')


def predict(model, image, **meta):
    """Logits (classes, height, width) of one image (3, height, width) of bytes, all of mmseg's pre- and postprocessing included."""
    size = tuple(image.shape[1:])  # a torch.Size would mean a window to mmseg
    sample = SegDataSample(metainfo=dict(ori_shape=size, img_shape=size, **meta))
    with torch.no_grad():
        return model.eval().test_step(dict(inputs=[image], data_samples=[sample]))[0].seg_logits.data


def test_checkpoint_is_resized_to_the_training_crop(segmentor, pretrained):
    """The position table once and by size; bias tables, which pretraining does not have, are zero."""
    model = segmentor()
    saved = {name.removeprefix('backbone.'): value for name, value in read_checkpoint(pretrained).items()}
    for name, value in model.backbone.state_dict().items():
        if name == 'pos_embed':
            maps = saved[name][:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
            wanted = F.interpolate(maps, size=(6, 6), mode='bicubic', align_corners=False).flatten(2).transpose(1, 2)
            torch.testing.assert_close(value[:, 1:], wanted)
            torch.testing.assert_close(value[:, :1], saved[name][:, :1])
        elif name.endswith('relative_position_bias_table'):
            assert value.shape == (11 * 11 + 3, 4) and not value.any()
        else:
            torch.testing.assert_close(value, saved[name], rtol=0, atol=0)


def test_other_crop_at_load_time(segmentor, tmp_path):
    """A trained segmentor's encoder goes on at another crop, square or not: both kinds of tables are resized, once."""
    first = learn_bias(segmentor())
    path = tmp_path / 'segmentor.pth'
    torch.save(dict(state_dict=first.state_dict()), path)
    second = segmentor(model__backbone__img_size=(64, 128), model__backbone__init_cfg__checkpoint=str(path))
    for old, new in zip(tables(first), tables(second), strict=True):
        torch.testing.assert_close(new, resize_bias_table(old, (6, 6), (4, 8)))
    old, new = first.backbone.pos_embed, second.backbone.pos_embed
    torch.testing.assert_close(new[:, 1:], resize_position_table(old[:, 1:], (6, 6), (4, 8)))
    # A resized table does not tell its sides, if it is not square: the description does, and without it the way out is named.
    torch.save(dict(state_dict=second.state_dict()), path)
    with pytest.raises(CheckpointError, match='32 patches, which are no square, and nothing tells their grid'):
        segmentor(model__backbone__init_cfg__checkpoint=str(path))
    torch.save(dict(state_dict=second.state_dict(), meta=metadata_of(second)), path)
    third = segmentor(model__backbone__init_cfg__checkpoint=str(path))
    torch.testing.assert_close(third.backbone.pos_embed[:, 1:], resize_position_table(new[:, 1:], (4, 8), (6, 6)))


def test_checkpoint_has_to_fit(segmentor, tmp_path):
    path = tmp_path / 'wider.pth'
    torch.save(CAEViT(dict(ENCODER, embed_dims=64), img_size=64).state_dict(), path)
    with pytest.raises(CheckpointError, match='does not fit this CAEViT'):
        segmentor(model__backbone__init_cfg__checkpoint=str(path))


def test_training_step_reaches_every_part(segmentor):
    """Both losses are there, and every parameter gets a gradient, the zero bias tables included."""
    model = segmentor(model__backbone__drop_path_rate=0.0).train()
    losses = losses_of(model, batch())
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(losses)
    # Untrained heads are undecided between the classes; the auxiliary loss has the weight 0.4.
    assert losses['aux.loss_ce'].item() == pytest.approx(0.4 * losses['decode.loss_ce'].item(), rel=0.1)
    (losses['decode.loss_ce'] + losses['aux.loss_ce']).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert all(table.grad.abs().sum() > 0 for table in tables(model))


def test_gradient_checkpointing_changes_nothing(segmentor):
    found = []
    for with_cp in (False, True):
        model = learn_bias(segmentor(model__backbone__with_cp=with_cp, model__backbone__drop_path_rate=0.5)).train()
        torch.manual_seed(1)
        losses = losses_of(model, batch())
        (losses['decode.loss_ce'] + losses['aux.loss_ce']).backward()
        found.append({name: parameter.grad for name, parameter in model.backbone.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_bfloat16_trains(segmentor, small_recipe):
    """Mixed precision as the recipe asks for it, in the only precision that a CPU has."""
    model = segmentor().train()
    wrapper = build_optim_wrapper(model, dict(small_recipe().optim_wrapper, dtype='bfloat16'))
    assert wrapper.cast_dtype == torch.bfloat16
    before = [table.clone() for table in tables(model)]
    for _ in range(2):
        losses = model.train_step(batch(), wrapper)
        assert torch.isfinite(losses['loss'])
    assert all(not torch.equal(table, old) and table.dtype == torch.float32 for table, old in zip(tables(model), before, strict=True))


def test_loss_decreases(segmentor):
    """Learns two images by heart."""
    model = segmentor(model__backbone__drop_path_rate=0.0).train()
    wrapper = build_optim_wrapper(model, dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=5e-3)))
    data = batch()
    for sample in data['data_samples']:
        sample.gt_sem_seg.data[:, :48], sample.gt_sem_seg.data[:, 48:] = 1, 3
    found = [float(model.train_step(data, wrapper)['loss']) for _ in range(20)]
    assert sum(found[-3:]) < 0.8 * sum(found[:3]), found


def test_attention_in_windows(segmentor):
    """An option of the encoder for segmentation as well: bias tables for the windows of 4x4 patches, and for the crop in a global block."""
    model = segmentor(model__backbone__window_size=4, model__backbone__global_blocks=(3,)).train()
    assert [len(table) for table in tables(model)] == [7 * 7 + 3] * 3 + [11 * 11 + 3]
    losses = losses_of(model, batch())
    (losses['decode.loss_ce'] + losses['aux.loss_ce']).backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert predict(model, batch(150, 170)['inputs'][0]).shape == (CLASSES, 150, 170)


def test_images_smaller_than_the_crop_are_padded(segmentor):
    """Training: zeros after normalisation and ignored labels. Testing: the result has the size of the image."""
    model = segmentor()
    small = batch(40, 56)
    data = model.data_preprocessor(small, training=True)
    assert data['inputs'].shape == (2, 3, SIDE, SIDE) and not data['inputs'][:, :, 40:].any() and not data['inputs'][..., 56:].any()
    labels = data['data_samples'][0].gt_sem_seg.data
    assert labels.shape == (1, SIDE, SIDE) and (labels[:, 40:] == 255).all() and (labels[..., 56:] == 255).all()
    model.train()(**data, mode='loss')
    assert predict(model, small['inputs'][0]).shape == (CLASSES, 40, 56)


def test_sliding_window_averages_windows(segmentor):
    """Against windows cut by hand: 96 wide, 64 apart, the last ones pushed back to the border."""
    model = learn_bias(segmentor()).eval()
    image = batch(150, 170)['inputs'][0]
    normalised = model.data_preprocessor(dict(inputs=[image], data_samples=[SegDataSample()]))['inputs']
    total, count = torch.zeros(CLASSES, 150, 170), torch.zeros(150, 170)
    for top in (0, 54):
        for left in (0, 64, 74):
            area = ..., slice(top, top + SIDE), slice(left, left + SIDE)
            with torch.no_grad():
                logits = model.decode_head(model.extract_feat(normalised[area]))
            total[area] += F.interpolate(logits, size=(SIDE, SIDE), mode='bilinear', align_corners=False)[0]
            count[area] += 1
    torch.testing.assert_close(predict(model, image), total / count, rtol=1e-4, atol=1e-5)


def test_whole_images_of_any_size(segmentor):
    """Whole-image testing pads to twice the patch size and resizes both tables; at the size of the crop it equals the sliding window."""
    slide = learn_bias(segmentor())
    whole = segmentor(
        model__test_cfg__mode='whole', model__data_preprocessor__test_cfg__size=None, model__data_preprocessor__test_cfg__size_divisor=32
    )
    whole.load_state_dict(slide.state_dict())
    image = batch()['inputs'][0]
    torch.testing.assert_close(predict(whole, image), predict(slide, image))
    for height, width in ((150, 170), (48, 208), (33, 16)):
        logits = predict(whole, batch(height, width)['inputs'][0])
        assert logits.shape == (CLASSES, height, width) and torch.isfinite(logits).all()


def test_bias_is_resized_for_whole_images(segmentor):
    """The result at another size equals that of a segmentor whose tables were resized to it beforehand."""
    model = learn_bias(segmentor())
    model.backbone.pos_embed.zero_()  # leaves the bias as the only position
    images = torch.randn(1, 3, 64, 128)
    resized = segmentor(model__backbone__img_size=(64, 128))
    state = model.backbone.fit_state_dict(model.backbone.state_dict()) | {
        name: resize_bias_table(value, (6, 6), (4, 8))
        for name, value in model.backbone.state_dict().items()
        if name.endswith('relative_position_bias_table')
    }
    resized.backbone.load_state_dict(state | dict(pos_embed=torch.zeros(1, 33, 32)))
    for got, wanted in zip(model.eval().backbone(images), resized.eval().backbone(images), strict=True):
        torch.testing.assert_close(got, wanted)


def test_averaging_over_mirror_images(segmentor):
    """Test-time augmentation by the flip makes the result of a mirrored image the mirrored result."""
    model = SegTTAModel(module=learn_bias(segmentor())).eval()
    image = batch(100, 120)['inputs'][0]

    def augmented(image):
        meta = dict(ori_shape=(100, 120), img_shape=(100, 120), img_path='image')
        samples = [SegDataSample(metainfo=dict(meta, flip=flip, flip_direction='horizontal')) for flip in (False, True)]
        data = dict(inputs=[[image], [image.flip(2)]], data_samples=[[sample] for sample in samples])
        with torch.no_grad():
            return model.test_step(data)[0].pred_sem_seg.data

    torch.testing.assert_close(augmented(image.flip(2)), augmented(image).flip(-1))


def test_crop_has_to_be_tiled_by_patches(segmentor):
    with pytest.raises(ValueError, match=r'Images of 100x96 pixels .* are not tiled by patches of 16x16: resize, crop or pad them'):
        segmentor(model__backbone__img_size=(100, 96))
