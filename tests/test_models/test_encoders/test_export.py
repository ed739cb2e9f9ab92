"""Traced and exported encoders: any batch size, and any image size, give what the encoder itself gives."""

import pytest
import torch
from torch.export import Dim

from mmcae.checkpoints.tables import resize_position_table
from mmcae.models import CAEViT
from mmcae.utils.errors import ConfigError
from mmcae.utils.open_sizes import resize_to_open_grid

# (batch, height, width): the encoder's own size among them.
BATCHES = [(2, 64, 64), (5, 64, 64), (1, 64, 64)]
SIZES = [*BATCHES, (3, 96, 128), (2, 64, 96), (1, 32, 48), (4, 80, 64)]
ENCODERS = {
    'cls_token': dict(),
    'maps of two blocks': dict(out_type='featmap', out_indices=(1, 0), final_norm=False),
    'mean with bias tables': dict(out_type='avg_featmap', use_rel_pos_bias=True),
    'recomputed': dict(with_cp=True),
    'windows': dict(out_type='featmap', window_size=3, global_blocks=(1,), use_rel_pos_bias=True),
}
WITHOUT_WINDOWS = [name for name in ENCODERS if name != 'windows']
ANY_SIZE = ({0: Dim('batch'), 2: 16 * Dim('rows', min=2, max=64), 3: 16 * Dim('columns', min=2, max=64)},)
ANY_BATCH = ({0: Dim('batch')},)
TRACER = pytest.mark.filterwarnings(
    'ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning', 'ignore::FutureWarning', 'ignore:Constant folding'
)


def make(name):
    torch.manual_seed(0)
    model = CAEViT(dict(embed_dims=24, num_layers=2, num_heads=3), img_size=64, **ENCODERS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def assert_same(exported, model, sizes):
    """The same outputs for images of all sizes."""
    for batch, height, width in sizes:
        images = torch.randn(batch, 3, height, width)
        found, wanted = exported(images), model(images)
        assert len(found) == len(wanted)
        for each, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(each, expected, rtol=1e-4, atol=2e-5)


def assert_uneven_images_fail(exported):
    """An image that the patches do not tile is not cut off."""
    for size in ((72, 64), (64, 72), (90, 90)):
        with pytest.raises(Exception, match='size of tensor|Guard failed|broadcast'):
            exported(torch.randn(2, 3, *size))


@pytest.mark.parametrize('name', ENCODERS)
@TRACER
def test_traced(name, tmp_path):
    """Also after writing and reading."""
    model = make(name)
    with torch.no_grad():
        torch.jit.trace(model, torch.randn(2, 3, 64, 64)).save(tmp_path / 'encoder.pt')
    traced = torch.jit.load(tmp_path / 'encoder.pt')
    assert_same(traced, model, SIZES)
    assert_uneven_images_fail(traced)


@pytest.mark.parametrize(('name', 'strict'), [*((name, False) for name in ENCODERS), ('recomputed', True), ('windows', True)])
def test_exported_for_any_batch_size(name, strict):
    model = make(name)
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=ANY_BATCH, strict=strict)
    assert_same(exported.module(), model, BATCHES)


@pytest.mark.parametrize(('name', 'size'), [*((name, (64, 64)) for name in WITHOUT_WINDOWS), ('cls_token', (64, 96))])
def test_exported_for_any_image_size(name, size):
    """Whether or not the example has the size that the encoder was made for."""
    model = make(name)
    exported = torch.export.export(model, (torch.randn(2, 3, *size),), dynamic_shapes=ANY_SIZE)
    assert_same(exported.module(), model, SIZES)
    assert_uneven_images_fail(exported.module())


def test_windows_are_exported_for_one_image_size():
    with pytest.raises(ConfigError, match='with windows at one image size: leave height and width out of dynamic_shapes'):
        torch.export.export(make('windows'), (torch.randn(2, 3, 64, 96),), dynamic_shapes=ANY_SIZE)


@pytest.mark.parametrize('source', [(4, 4), (3, 7)])
@pytest.mark.parametrize('grid', [(4, 4), (3, 7), (4, 6), (9, 2), (14, 14), (1, 1), (3, 4)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_table_of_an_open_grid(source, grid, dtype):
    """The matrices give torch's bicubic resizing by scale."""
    table = torch.randn(1, source[0] * source[1], 5, dtype=dtype)
    wanted = resize_position_table(table, source, grid, by_scale=True)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(resize_to_open_grid(table, source, grid), wanted, rtol=0, atol=tolerance)


# ---------------------------------------------------------------- ONNX


@pytest.fixture
def run_onnx(tmp_path):
    """Run an ONNX file by onnxruntime: `run_onnx(path)(images)`."""
    onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed: pip install -r requirements/tests.txt')
    pytest.importorskip('onnxscript', reason='onnxscript is not installed: pip install -r requirements/tests.txt')

    def load(path):
        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        name = session.get_inputs()[0].name
        return lambda images: [torch.from_numpy(output) for output in session.run(None, {name: images.numpy()})]

    return load


@pytest.mark.parametrize('name', ENCODERS)
@TRACER
def test_onnx_by_tracing(name, run_onnx, tmp_path):
    model = make(name)
    outputs = [f'output{number}' for number in range(len(model.out_indices))]
    spatial = {2: 'h', 3: 'w'} if model.out_type == 'featmap' else {}
    axes = dict(images={0: 'batch', 2: 'height', 3: 'width'}, **{output: {0: 'batch', **spatial} for output in outputs})
    torch.onnx.export(
        model, torch.randn(2, 3, 64, 64), tmp_path / 'x.onnx', dynamo=False, input_names=['images'], output_names=outputs, dynamic_axes=axes
    )
    run = run_onnx(tmp_path / 'x.onnx')
    assert_same(run, model, SIZES)
    assert_uneven_images_fail(run)


@pytest.mark.parametrize(
    ('name', 'shapes', 'sizes'),
    [('maps of two blocks', ANY_SIZE, SIZES), ('windows', ANY_BATCH, BATCHES)],
)
@TRACER
def test_onnx_by_export(name, shapes, sizes, run_onnx, tmp_path):
    model = make(name)
    example = (torch.randn(2, 3, 64, 64),)
    torch.onnx.export(model, example, tmp_path / 'x.onnx', dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert_same(run_onnx(tmp_path / 'x.onnx'), model, sizes)
