"""The page of what encoders make of images."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmcae.apis import reconstruct
from mmcae.apis.features import load_encoder_and_view
from mmcae.apis.look import Shown, add_reconstructions, framed, load_shown, patches_of, regressor_sheet, whole_image, write_encoder_page
from mmcae.checkpoints import layouts, metadata_of, read_checkpoint
from mmcae.commands.look import named_configs
from mmcae.models import CAEViT
from mmcae.utils.errors import ConfigError
from mmcae.visualization.page import Page
from mmcae.visualization.reconstruction import reconstruction_sheet

PREPROCESSOR = dict(
    type='mmpretrain.TwoNormDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, second_mean=[0.0] * 3, second_std=[255.0] * 3
)


@pytest.fixture
def encoder():
    return CAEViT(arch=dict(embed_dims=16, num_layers=2, num_heads=2), img_size=32, patch_size=8).eval()


def test_images_of_any_size_are_shown_whole(encoder, image_folder):
    (path, *_) = sorted(image_folder('flat', (), 1, size=(40, 100)).iterdir())
    _, view = load_encoder_and_view(encoder)
    cut = whole_image(path, encoder, view, 64)
    assert cut.shape == (24, 64, 3)
    features = patches_of(encoder, view, cut)
    assert features.shape == (3, 8, 16)
    with torch.no_grad():
        torch.testing.assert_close(features.flatten(0, 1), encoder.encode(view.normalize([cut]))[0, 1:])


def test_page(encoder, image_folder, tmp_path, tiny_cae):
    paths = sorted(image_folder('flat', (), 2, size=(40, 60)).iterdir())
    model = tiny_cae().eval()
    encoders = dict(small=Shown(*load_encoder_and_view(encoder)), cae=Shown(*load_encoder_and_view(model.backbone), model))
    page = write_encoder_page(encoders, paths, tmp_path / 'look.html')
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    canvases = re.findall(r'data-rows="(\d+)" data-columns="(\d+)" data-cells="([^"]+)"', text)
    assert [(int(rows), int(columns)) for rows, columns, _ in canvases] == [(3, 4), (3, 4)] * 2
    for rows, columns, cells in canvases:
        matrix = np.frombuffer(base64.b64decode(cells), np.uint8).reshape(int(rows) * int(columns), -1)
        assert (matrix.diagonal() == 255).all() and (matrix == matrix.T).all()
    assert text.count('<figure><button') == 1 + 2 * 2 + 2  # colours; attention; regressor
    assert 'What the regressor reads: cae' in text and 'What the regressor reads: small' not in text


def test_a_checkpoint_is_read_once(tiny_cae, tmp_path, monkeypatch):
    """For its encoder, the pretraining model, and the model of a config."""
    model, reads = tiny_cae(), []
    torch.save(dict(state_dict=model.state_dict(), meta=metadata_of(model)), tmp_path / 'cae.pth')
    monkeypatch.setattr(layouts, 'read_checkpoint', lambda path: reads.append(path) or read_checkpoint(path))
    (tmp_path / 'config.py').write_text("""
latent = dict(embed_dims=48, num_heads=4, num_layers=2)
model = dict(
    type='mmcae.CAE',
    backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_layers=3, num_heads=4), img_size=64),
    regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=48, **latent),
    decoder=dict(type='mmcae.CAEDecoder', num_outputs=24, **latent),
)
""")
    shown = load_shown(tmp_path / 'cae.pth', tmp_path / 'config.py')
    assert reads == [tmp_path / 'cae.pth']
    for loaded in (shown.model, shown.pretrained):
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(shown.encoder.blocks[0].attn.qkv.weight, model.backbone.blocks[0].attn.qkv.weight)


def test_regressor_sheet(tiny_cae):
    model = tiny_cae().eval()
    _, view = load_encoder_and_view(model.backbone)
    image = np.full((64, 64, 3), 200, np.uint8)
    one, same, other = (regressor_sheet(model, view, image, 0.5, seed) for seed in (0, 0, 1))
    assert one.tobytes() == same.tobytes() != other.tobytes()
    assert regressor_sheet(model, view, image, 0.99, 0).size[0] == one.size[0]  # one patch stays visible
    frame = framed(np.zeros((16, 16, 3), np.uint8), 3, 2, (8, 8))
    assert frame[:8].sum() == 0 and frame[8, 8:].min() == 255 and frame[12, 12].sum() == 0


def test_command(tiny_cae, image_folder, tmp_path, fork_tool):
    model = tiny_cae()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'cae.pth')
    paths = sorted(image_folder('flat', (), 1, size=(40, 60)).iterdir())
    heads = ['--num-heads', 4, '--decoder-num-heads', 4]
    command = ['look', f'mine={tmp_path / "cae.pth"}', *heads, '--out', tmp_path / 'look.html', '--size', 64, '--images', *paths]
    code, output = fork_tool('mmcae/__main__.py', *command)
    assert code == 0, output
    assert 'What the regressor reads: mine' in (tmp_path / 'look.html').read_text()
    code, output = fork_tool('mmcae/__main__.py', *command, '--mask-ratio', 1.5)
    assert code == 2 and '--mask-ratio 1.5' in output.splitlines()[-1]
    (tmp_path / 'notes.png').write_text('no picture')
    for wrong, said in (('notes.png', 'cannot be read as an image'), ('none.png', 'There is no image'), ('', 'is a folder')):
        code, output = fork_tool('mmcae/__main__.py', *command, tmp_path / wrong)
        assert code == 2 and str(tmp_path / wrong) in output.splitlines()[-1] and said in output.splitlines()[-1]


def test_reconstructions(tiny_cae, image_folder, tmp_path):
    """Several masks of each image; of a target that cannot be drawn, or is not there, the reason."""
    paths = sorted(image_folder('flat', (), 2, size=(40, 60)).iterdir())
    pixels = dict(target_generator=dict(type='mmcae.PixelTargets', patch_size=16), decoder=dict(num_outputs=768))
    model = tiny_cae(**pixels, data_preprocessor=PREPROCESSOR).eval()
    shown = Shown(*load_encoder_and_view(model.backbone), pretrained=model)
    page = Page(tmp_path / 'look.html', 'look')
    add_reconstructions(page, 'cae', shown, paths, 0.5, 3, 0)
    sheets = [Image.open(io.BytesIO(base64.b64decode(part))) for part in re.findall('base64,([^"]*)', ''.join(page.parts))]
    three = reconstruction_sheet([reconstruct(model, paths[0], seed=seed) for seed in range(3)])
    assert len(sheets) == 2 and (np.array(sheets[0]) == np.array(three)).all()
    for other in (Shown(shown.encoder, shown.view, pretrained=tiny_cae().eval()), Shown(shown.encoder, shown.view, note='no tokenizer')):
        page = Page(tmp_path / 'look.html', 'look')
        add_reconstructions(page, 'cae', other, paths, 0.5, 3, 0)
        assert 'no tokenizer' in page.parts[-1] and 'img' not in ''.join(page.parts)


def test_configs_belong_to_encoders():
    assert named_configs(['a.py'], dict(x='x.pth')) == dict(x='a.py')
    assert named_configs(['y=a.py'], dict(x='x.pth', y='y.pth')) == dict(y='a.py')
    for wrong in ('a.py', 'z=a.py', 'x='):
        with pytest.raises(ConfigError, match='NAME=CONFIG, with a name out of x, y'):
            named_configs([wrong], dict(x='x.pth', y='y.pth'))
