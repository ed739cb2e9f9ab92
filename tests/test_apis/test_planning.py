"""Costs of a step against arithmetic done by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mmcae.apis.fake_training import FakeTraining, build_model, make_batch, training_pipeline
from mmcae.apis.planning import Costs, PeakMemory, by_part, count_costs, count_multiply_adds
from mmcae.utils.configs.loading import load_config
from mmcae.utils.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
EMPTY = SimpleNamespace(state={})


def test_peak_of_tensors_that_come_and_go():
    with FakeTensorMode():
        model = nn.Linear(256, 256, bias=False)  # 256 KiB
        with PeakMemory(model, EMPTY) as memory:
            a = torch.empty(256, 1024)  # 1 MiB
            b = a + 1  # 2 MiB
            view = b[:10]  # no memory
            del a, b
            c = torch.empty(128, 1024)  # half a MiB, beside the view's 1 MiB
    assert memory.peak == 256 * 2**10 + 2 * 2**20
    assert memory.live == 256 * 2**10 + 1.5 * 2**20
    assert view.shape[0] == 10 and c.shape[0] == 128


def test_memory_of_a_training_step():
    """An SGD with momentum of one linear layer: weight, momentum, gradient, input and the gradient of the output."""
    with FakeTensorMode():
        model, images = nn.Linear(512, 512, bias=False), torch.empty(64, 512)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
        for _ in range(2):
            with PeakMemory(model, optimizer) as memory:
                model(images).sum().backward()
                optimizer.step()
            optimizer.zero_grad()
    layer = 512 * 512 * 4
    assert 3 * layer <= memory.peak < 3.5 * layer


def allocated(cfg, batch_size):
    """Bytes of tensors at most in a real step, by what torch's allocator gives out and takes back."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = build_model(cfg)
    wrapper, batch = build_optim_wrapper(model, cfg.optim_wrapper.copy()), make_batch(cfg, model, batch_size)
    model.train_step(dict(batch), wrapper)
    there = (*model.parameters(), *model.buffers(), *tree_leaves(list(wrapper.optimizer.state.values())))
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in there)}
    live = peak = sum(storages.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model.train_step(dict(batch), wrapper)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def assert_peak_is_allocated(name, cfg, batch_size):
    fake = FakeTraining(cfg, batch_size)
    with fake.active():
        fake.step()
        with PeakMemory(fake.model, fake.optim_wrapper.optimizer) as memory:
            fake.step()
    measured = allocated(cfg, batch_size)
    print(f'{name}: counted {memory.peak / 1e6:.1f} MB, allocated {measured / 1e6:.1f} MB')
    assert memory.peak == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize('name', ['cae_pixels', 'cae_v2', 'cae_teacher', 'finetune', 'mae', 'upernet', 'mask_rcnn'])
def test_peak_is_what_torch_allocates(name):
    assert_peak_is_allocated(name, load_config(CONFIGS / f'digits/{name}_vit-digits.py'), 16)


@pytest.fixture
def one_stage():
    """The digits' encoder in a detector of one stage as mmdet configures it, by the name of its config."""
    mmdet = pytest.importorskip('mmdet')

    def make(name):
        theirs = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs' / name).model
        cfg = load_config(CONFIGS / 'digits/mask_rcnn_vit-digits.py')
        training_pipeline(cfg)[1].with_mask = False
        ours, head = cfg.model, dict(theirs.bbox_head, num_classes=10, in_channels=64, feat_channels=64)
        fpn = dict(ours.neck[1], add_extra_convs='on_output', num_outs=5)
        rest = dict(neck=[ours.neck[0], fpn], bbox_head=head, train_cfg=theirs.get('train_cfg'))
        cfg.model = ConfigDict(type=theirs.type, backbone=ours.backbone, data_preprocessor=ours.data_preprocessor, **rest)
        return cfg

    return make


ONE_STAGE = """
_base_/models/retinanet_r50_fpn fcos/fcos_r50-caffe_fpn_gn-head_1x_coco atss/atss_r50_fpn_1x_coco gfl/gfl_r50_fpn_1x_coco
rtmdet/rtmdet_tiny_8xb32-300e_coco yolox/yolox_s_8xb8-300e_coco
""".split()


@pytest.mark.parametrize('name', ONE_STAGE)
def test_peak_of_detectors_of_one_stage(one_stage, name):
    assert_peak_is_allocated(name, one_stage(f'{name}.py'), 4)


def test_operators_whose_arithmetic_is_not_counted(one_stage):
    with pytest.raises(ConfigError, match='operator deform_conv_forward cannot be planned'):
        count_costs(one_stage('vfnet/vfnet_r50_fpn_1x_coco.py'), (2, 4))


def test_multiply_adds_of_a_detector_are_those_of_a_real_step():
    """Within 10%: a real step may have fewer positives, so that fewer masks are computed."""
    cfg = load_config(CONFIGS / 'digits/mask_rcnn_vit-digits.py')
    init_default_scope('mmdet')
    model = build_model(cfg)
    wrapper, batch = build_optim_wrapper(model, cfg.optim_wrapper.copy()), make_batch(cfg, model, 2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.train_step(batch, wrapper)
    measured = counter.get_total_flops() / 4
    parts, step = count_multiply_adds(cfg)
    print(f'counted {step / 1e6:.1f} M, measured {measured / 1e6:.1f} M')
    assert step == pytest.approx(measured, rel=0.1) and set(parts) == {'backbone', 'neck', 'rpn_head', 'roi_head'}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            ['model.train_cfg.rcnn.sampler.type=IoUBalancedNegSampler'],
            'cannot be planned: _sample_neg in .*iou_balanced.* that data decide; .*--dry-run',
        ),
        (['model.train_cfg.rpn_proposal.nms.type=soft_nms'], 'operator softnms cannot be planned'),
    ],
    ids=['a number that no list has', 'an operator that makes tensors'],
)
def test_what_cannot_be_planned(options, message):
    with pytest.raises(ConfigError, match=message):
        count_costs(load_config(CONFIGS / 'digits/mask_rcnn_vit-digits.py', options), (2, 4))


def test_costs_of_a_pretraining():
    cfg = load_config(CONFIGS / 'digits/cae_pixels_vit-digits.py')
    costs = count_costs(cfg, (4, 8))
    model = cfg.model.backbone.arch
    assert costs.parameters['backbone'] > 12 * model.num_layers * model.embed_dims**2
    assert costs.gradients == 4 * sum(costs.parameters.values()) and costs.optimizer == pytest.approx(2 * costs.gradients, rel=1e-3)
    # A backward pass costs at most twice its forward pass; half of the encoder has none: the alignment target.
    assert 1.5 * sum(costs.multiply_adds.values()) < costs.step < 3 * sum(costs.multiply_adds.values())
    assert costs.at_peak[8] > costs.at_peak[4] > costs.weights + costs.optimizer
    assert costs.largest_batch(costs.peak(100)) in (99, 100)
    assert costs.largest_batch(costs.floor - 1) == 0


def test_line():
    costs = Costs({}, {}, 1.0, weights=10, optimizer=20, gradients=10, at_peak={8: 110, 4: 70}, image_size=(8, 8))
    assert costs.line == (30, 10) and costs.peak(6) == 90
    assert costs.peak(1) == 40  # at the update gradients are there
    assert costs.largest_batch(95) == 6 and costs.largest_batch(40) == 1 and costs.largest_batch(39) == 0


def test_what_processes_share_out():
    """Weights that are not trained stay whole; gradients may not be there yet at the peak."""
    whole = Costs({}, {}, 1.0, weights=50, optimizer=80, gradients=40, at_peak={8: 290, 4: 250}, image_size=(8, 8))
    assert whole.shared_out(1) == whole
    costs = whole.shared_out(4)
    assert (costs.weights, costs.optimizer, costs.gradients) == (10 + 10, 20, 10) and costs.at_peak == {8: 200, 4: 160}


def test_operations_of_parts_that_are_not_called_themselves():
    model = nn.ModuleDict(dict(encoder=nn.ModuleDict(dict(block=nn.Identity())), head=nn.Identity()))
    counts = {'Global': {'mm': 16}, 'ModuleDict': {'mm': 16}, 'ModuleDict.head': {'mm': 4, 'bmm': 2}}
    counts |= {'ModuleDict.encoder.block': {'mm': 10}, 'ModuleDict.encoder.block.attn': {'mm': 7}}
    assert by_part(counts, model) == dict(encoder=10, head=6)
