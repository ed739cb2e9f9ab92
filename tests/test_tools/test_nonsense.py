"""What every tool says to input that cannot work: an exit code, one line that names the culprit and the remedy, and no file harmed.

Each row of the tables is a call of the real tool in a process of its own. What stands in braces is made by `World` when a row needs it.
"""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch

SECONDS = 180  # after which a refusal counts as hanging; they take one or two, more where a machine is busy


class RunsCode:
    """A pickle that makes a file when it is loaded without protection."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


class World(dict):
    """Files for the tables by name, made on first use; also whatever fixture of conftest.py has that name."""

    def __init__(self, request, repository):
        super().__init__(repository=repository, folder=request.getfixturevalue('tmp_path'))
        self.request = request

    def __missing__(self, name):
        make = getattr(self, name, None)
        self[name] = make() if make else self.request.getfixturevalue(name)
        return self[name]

    def file(self, name, content=''):
        path = self['folder'] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    # ------------------------------------------------------------ data

    def images(self):
        return self.request.getfixturevalue('image_folder')(classes=(), count=8)

    def image(self):
        return self['images'] / '000.jpg'

    def empty_folder(self):
        (self['folder'] / 'empty').mkdir()
        return self['folder'] / 'empty'

    def text(self):
        return self.file('notes.txt', 'no picture, no checkpoint')

    def full_folder(self):
        return self.file('full/mine.txt', 'mine').parent

    def other_scenes(self):
        return self.file('scenes/digit_scenes.json', json.dumps(dict(version=0, seed=0, scale=1.0, complete=True))).parent

    def run(self):
        """The work dir of a training, as far as its curves."""
        self.file('run/1/vis_data/scalars.json', '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
        return self['folder'] / 'run'

    def broken_scenes(self):
        return self.file('broken_scenes/digit_scenes.json', '{"version"').parent

    # ------------------------------------------------------------ configs

    def cae(self):
        """The digits' pretraining on eight images."""
        return self.file(
            'own_cae.py',
            f"""
_base_ = ['{self['repository']}/configs/digits/cae_vit-digits.py']
model = dict(target_generator=dict(checkpoint='{self['codebook']}'))
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='{self['images']}', data_prefix=''),
)
train_cfg = dict(max_iters=2)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=0, end=2, by_epoch=False)]
""",
        )

    def by_epochs(self):
        return self.file(
            'by_epochs.py',
            f"""
_base_ = ['{self['cae']}']
train_dataloader = dict(sampler=dict(type='DefaultSampler'))
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=1)
""",
        )

    def fsdp(self):
        return self.file(
            'fsdp.py', f"_base_ = ['{self['cae']}']\nrunner_type = 'FlexibleRunner'\nstrategy = dict(type='mmcae.FSDPStrategy')\n"
        )

    def deepspeed(self):
        return self.file(
            'deepspeed.py', f"_base_ = ['{self['cae']}']\nrunner_type = 'FlexibleRunner'\nstrategy = dict(type='mmcae.DeepSpeedStrategy')\n"
        )

    def broken_config(self):
        return self.file('broken.py', 'model = dict(\n')

    def tagged_config(self):
        return self.file('tagged.yaml', f'model:\n  type: !!python/object/apply:os.system ["touch {self["folder"]}/code-was-run"]\n')

    def empty_config(self):
        return self.file('nothing.py', '')

    def classifier(self):
        hooks = "custom_hooks = [dict(type='mmcae.Checks')]"
        return self.file('classifier.py', f"_base_ = ['{self['classification_config']}']\n{hooks}\n")

    def other_classes(self):
        return self.request.getfixturevalue('image_folder')('others', classes=('cat', 'cow'), size=(16, 16))

    def detector(self):
        hooks = "custom_hooks = [dict(type='mmcae.Checks')]"
        dataset = "train_dataloader = dict(dataset=dict(type='mmcae.CocoDataset'))"
        return self.file('detector.py', f"_base_ = ['{self['detection_config']}']\n{hooks}\n{dataset}\n")

    def segmentor(self):
        hooks = "custom_hooks = [dict(type='mmcae.Checks')]"
        return self.file('segmentor.py', f"_base_ = ['{self['segmentation_config']}']\n{hooks}\n")

    # ------------------------------------------------------------ checkpoints

    def codebook(self):
        from mmcae.models.targets import PatchCodebook

        codebook = PatchCodebook(vocab_size=64, patch_size=8)
        codebook.quantizer.usage.fill_(1 / 64)  # or it would count as never trained
        torch.save(dict(state_dict=codebook.state_dict()), self['folder'] / 'codebook.pth')
        return self['folder'] / 'codebook.pth'

    def model(self, width=96, name='cae.pth'):
        from mmcae.checkpoints import metadata_of
        from mmcae.models import CAE

        latent = dict(embed_dims=width, num_heads=4, num_layers=1, layer_scale_init_value=0.05)
        backbone = dict(type='mmcae.CAEViT', arch=dict(embed_dims=width, num_layers=4, num_heads=4), img_size=32, patch_size=8)
        model = CAE(
            backbone=backbone,
            regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=width, **latent),
            decoder=dict(type='mmcae.CAEDecoder', num_outputs=64, **latent),
        )
        meta, optimizer = (
            dict(epoch=0, iter=1, cfg='', **metadata_of(model)),
            dict(state={}, param_groups=[dict(params=[0], lr=1e-3, initial_lr=1e-3)]),
        )
        content = dict(state_dict=model.state_dict(), meta=meta, message_hub={}, optimizer=optimizer, param_schedulers=[])
        torch.save(content, self['folder'] / name)
        return self['folder'] / name

    def checkpoint(self):
        return self.model()

    def other_checkpoint(self):
        return self.model(64, 'other.pth')

    def truncated(self):
        return self.file('truncated.pth', self['checkpoint'].read_bytes()[:20000])

    def zero_bytes(self):
        return self.file('zero.pth')

    def code(self):
        torch.save(
            dict(state_dict={}, meta=dict(epoch=1, iter=2), x=RunsCode(self['folder'] / 'code-was-run')), self['folder'] / 'code.pth'
        )
        return self['folder'] / 'code.pth'

    def code_pickle(self):
        return self.file('code.pkl', self['code'].read_bytes())

    def no_tensors(self):
        torch.save(dict(state_dict={}, meta={}), self['folder'] / 'no_tensors.pth')
        return self['folder'] / 'no_tensors.pth'

    def strange_layout(self):
        torch.save(dict(state_dict=dict(conv=torch.zeros(2))), self['folder'] / 'strange.pth')
        return self['folder'] / 'strange.pth'

    def safetensors(self):
        return self.file('broken.safetensors', b'\x00' * 40)


@pytest.fixture
def world(request, repository):
    return World(request, repository)


@pytest.fixture
def refused(world, fork_tool):
    """Run a tool; check that it refuses properly, and return the line it says."""

    def run(tool, arguments):
        arguments = [word.format_map(world) for word in shlex.split(arguments)]
        before = listing(world['folder'])
        code, output = fork_tool(tool, *arguments, timeout=SECONDS, cwd=world['folder'])
        assert code == 2, f'exit code {code}\n{output}'
        assert 'Traceback' not in output, output
        after = listing(world['folder'])
        changed = [path for path in before if after.get(path) != before[path]]
        assert not changed, f'{tool} has changed or removed {changed}'
        assert not (world['folder'] / 'code-was-run').exists()
        return output.strip().splitlines()[-1]

    return run


def listing(folder):
    """Every file below a folder with its size and the time of its last change."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob('*') if path.is_file()}


TRAIN = {
    # the config
    '{cae}x': ('There is no config', "did you mean '{cae}'"),
    '{images}': ('There is no config {images}', 'it is a folder'),
    '{broken_config}': ('broken.py cannot be read: SyntaxError',),
    '{image}': ('000.jpg cannot be read', '.py, .yaml, .yml or .json'),
    '{empty_config}': ('nothing.py has no `model`',),
    '{tagged_config}': ('tagged.yaml, line 2', 'the tag !!python/object/apply:os.system was refused'),
    '{code_pickle}': ('code.pkl cannot be read', '.py, .yaml, .yml or .json'),
    '{cae} --cfg-options train_dataloadr.batch_size=1': ("did you mean 'train_dataloader'",),
    '{cae} --cfg-options batch_siz=1': ("did you mean 'batch_size'",),  # a variable of the file
    '{cae} --cfg-options train_dataloader.batch_size': ('--cfg-options takes key=value',),
    '{cae} --cfg-options data_root=None': ('data_root=None', 'expected a text'),
    '{cae} --cfg-options data_root=2024 train_dataloader.dataset.data_root=a,b/imgs': ('a,b/imgs does not exist',),
    '{cae} --cfg-options model.target_generator.checkpoint=lr=1e-3,wd=0/x.pth': ('There is no tokenizer', 'lr=1e-3,wd=0/x.pth'),
    '{cae} --cfg-options custom_hooks=[dict(type=CheckpontHook)]': ("'CheckpointHook'",),
    '{cae} --cfg-options "custom_hooks=[dict(type=Check"': ('custom_hooks=[dict(type=Check', 'do not match'),
    '{cae} --cfg-options train_dataloader.batch_size=[1,2]': ('train_dataloader.batch_size=[1, 2]', 'at least 1'),
    '{cae} --cfg-options train_dataloader.dataset.type=ImageNet train_dataloader.dataset.ann_file={code_pickle}': (
        'code.pkl was refused',
        'can run code',
    ),
    '{cae} --cfg-options model.backbone=None': ('expected a ', 'None is no value'),
    '{cae} --cfg-options train_cfg=None': ('has train_dataloader, optim_wrapper, but no train_cfg',),
    '{cae} --cfg-options randomness.seed=-1': ('randomness.seed=-1', 'at least 0'),
    '{cae} --cfg-options visualizer.vis_backends.0.type=NeptuneVisBackend': ('NeptuneVisBackend', 'pip install neptune'),
    '{cae} --cfg-options visualizer.vis_backends.0.type=WandbVisBackned': ("did you mean 'WandbVisBackend'",),
    '{cae} --cfg-options model.backbone.type=CAEViT': ("did you mean 'mmcae.CAEViT'",),
    '{cae} --cfg-options default_scope=mmpretrian': ("did you mean 'mmpretrain'",),
    '{cae} --cfg-options model.backbone.type=mmcae.CAEVit': ("'mmcae.CAEViT'",),
    '{cae} --cfg-options model.backbone.img_sizes=16': ("CAEViT has no argument 'img_sizes'; did you mean 'img_size'",),
    '{cae} --cfg-options model.backbone.arch=huge': ("arch='huge' is none of", 'embed_dims'),
    '{cae} --cfg-options model.backbone.arch.depth=5': ("unknown keys ['depth']",),
    '{cae} --cfg-options default_hooks.timing.interval=5': ('a part without a `type`', 'interval'),
    # sizes that do not fit
    '{cae} --cfg-options train_dataloader.batch_size=0': ('train_dataloader.batch_size=0', 'at least 1'),
    '{cae} --cfg-options train_dataloader.num_workers=-1': ('train_dataloader.num_workers=-1', 'at least 0'),
    '{cae} --cfg-options train_cfg.max_iters=0': ('train_cfg.max_iters=0', 'at least 1'),
    '{by_epochs} --cfg-options train_cfg.max_epochs=0': ('train_cfg.max_epochs=0', 'at least 1'),
    '{by_epochs} --cfg-options train_dataloader.batch_size=9': ('no batch', '8 images', 'batch_size=9'),
    '{cae} --cfg-options model.backbone.img_size=33': ('33x33 pixels', 'multiple of the patch size'),
    '{cae} --cfg-options train_dataloader.dataset.pipeline.1.size=36': ('36x36 pixels', 'multiple of the patch size'),
    '{cae} --cfg-options train_dataloader.dataset.pipeline.1.size=40 train_dataloader.dataset.pipeline.1.second_size=40': (
        '(4, 4)',
        '(5, 5) patches',
        'grid=(5, 5)',
    ),
    '{cae} --cfg-options train_dataloader.dataset.pipeline.1.scale=(0.5,2)': ('scale must be', '(0.5, 2)'),
    '{cae} --cfg-options train_dataloader.dataset.pipeline.1.interpolation=sharp': ("no interpolation is called 'sharp'", 'bicubic'),
    '{cae} --cfg-options train_dataloader.dataset.pipeline.2.ratio=1.0': ('num_masked must lie between 1 and 15', 'got 16'),
    '{cae} --cfg-options train_dataloader.dataset.pipeline.2.num_masked=20': ('either num_masked or ratio',),
    '{cae} --cfg-options train_dataloader.dataset.pipeline.2.ratio=None train_dataloader.dataset.pipeline.2.num_masked=20': (
        'num_masked must lie between 1 and 15',
        'got 20',
    ),
    '{cae} --cfg-options train_dataloader.dataset.pipeline.2.type=mmcae.BlockMaskGenerator train_dataloader.dataset.pipeline.2.grid=2 '
    'train_dataloader.dataset.pipeline.2.ratio=None train_dataloader.dataset.pipeline.2.num_masked=3': ('ratio',),
    '{cae} --cfg-options model.backbone.arch.num_heads=0': ('num_heads=0', 'between 1 and', '96'),
    '{cae} --cfg-options model.regressor.in_dims=64': ('regressor.in_dims=64', 'the encoder is 96 wide'),
    '{cae} --cfg-options model.decoder.embed_dims=64': ('decoder.embed_dims=64', 'make them equal'),
    # the tokenizer
    '{cae} --cfg-options model.target_generator.type=mmcae.PatchCodebok': ("'mmcae.PatchCodebook'",),
    '{cae} --cfg-options model.target_generator.checkpoint={folder}/absent.pth': ('There is no tokenizer', 'absent.pth', 'mmcae train'),
    '{cae} --cfg-options model.target_generator.checkpoint={checkpoint}': ('cae.pth holds no PatchCodebook',),
    '{cae} --cfg-options model.target_generator.checkpoint={code}': ('code.pth was refused', 'can run code'),
    '{cae} --cfg-options model.target_generator.type=mmcae.DiscreteVAE': ('codebook.pth holds no DiscreteVAE',),
    '{cae} --cfg-options model.decoder.num_outputs=8192': ('decoder.num_outputs=8192', 'set num_outputs=64'),
    '{cae} --cfg-options train_dataloader.dataset.pipeline.1.second_size=64': (
        '(8, 8) patches',
        'set the size of the second view to (32, 32)',
    ),
    '{cae} --cfg-options train_dataloader.dataset.pipeline.1.second_size=30': ('multiples of 8x8 pixels', '30x30'),
    '{cae} --cfg-options data_preprocessor.second_std=[1,1,1]': ('data_preprocessor.second_std=[1, 1, 1]', 'made for 255'),
    # optimisation
    '{cae} --cfg-options optim_wrapper.optimizer.type=AdamWW': ("'AdamW'",),
    '{cae} --cfg-options optim_wrapper.optimizer.lr=fast': ('expected a number',),
    '{cae} --cfg-options optim_wrapper.optimizer.lr=-1': ('AdamW refuses its arguments', 'learning rate: -1'),
    '{cae} --cfg-options optim_wrapper.accumulative_counts=0': ('accumulative_counts',),
    '{cae} --cfg-options optim_wrapper.paramwise_cfg.layer_decay_rate=2': ('layer_decay_rate=2 must lie in (0, 1]',),
    '{cae} --cfg-options optim_wrapper.paramwise_cfg.norm_decay_mult=0': ("['norm_decay_mult']", 'layer_decay_rate'),
    '{cae} --cfg-options param_scheduler.0.warmup=5': ('the warm-up (5) must be shorter than the schedule',),
    '{cae} --cfg-options optim_wrapper.type=Strange --amp': ('decides about precision itself',),
    '{cae} --cfg-options optim_wrapper.type=mmcae.AmpOptimWrapper optim_wrapper.dtype=float8': ("got 'float8'", 'bfloat16'),
    '{cae} --auto-scale-lr': ('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...)',),
    # data
    '{cae} --cfg-options train_dataloader.dataset.data_root={folder}/absent': ('absent', 'make_digit_scenes.py'),
    '{cae} --cfg-options train_dataloader.dataset.data_root={empty_folder}': ('no image', '{empty_folder}', 'data_root'),
    '{cae} --cfg-options train_dataloader.dataset.data_root={text}': ('Not a directory', 'notes.txt'),
    # starting weights
    '{cae} --resume {folder}/absent.pth': ('There is no checkpoint', 'absent.pth'),
    '{cae} --resume ""': ('--resume', 'empty name'),
    '{cae} --resume {images}': ('There is no checkpoint', 'images'),
    '{cae} --resume {other_checkpoint}': ("The checkpoint's optimizer is another one", 'resume with the config that it was trained with'),
    '{cae} --resume {truncated}': ('truncated.pth is damaged',),
    '{cae} --resume {zero_bytes}': ('zero.pth is damaged',),
    '{cae} --resume {text}': ('notes.txt', 'refused'),
    '{cae} --cfg-options load_from={folder}/absent.pth': ('There is no checkpoint',),
    '{cae} --cfg-options model.init_cfg.type=Pretrained model.init_cfg.checkpoint={other_checkpoint}': (
        'other.pth does not fit this CAE',
        'arch',
    ),
    '{cae} --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint={strange_layout}': (
        'holds no encoder of a known layout',
        'conv',
    ),
    '{cae} --cfg-options model.backbone.init_cfg.type=Constant': ("only dict(type='Pretrained', checkpoint=PATH)",),
    # where it runs
    '{cae} --work-dir {cae}/run': ('Cannot write results to', '--work-dir'),
    '{cae} --launcher pytorch': ('RANK is not in the environment', 'tools/dist_train.sh'),
    '{cae} --launcher carrier-pigeon': ('invalid choice',),
    '{cae} --work-dir run --cfg-options runner_type=FlexibelRunner': ("'FlexibleRunner'",),
    '{fsdp}': ('FSDP shares a model out over processes', 'tools/dist_train.sh'),
    '{deepspeed}': ('DeepSpeed', 'pip install "mmcae[deepspeed]"'),
    # classification, detection and segmentation
    '{classifier} --cfg-options model.head.num_classes=3': ('2 classes', 'set model.head.num_classes=2'),
    '{classifier} --cfg-options val_evaluator=None': ('val_evaluator', '--no-validate'),
    '{classifier} --cfg-options val_evaluator.type=Acuracy': ("'Accuracy'",),
    '{classifier} --cfg-options train_dataloader.sampler.type=DefaultSamplr': ("'DefaultSampler'",),
    '{classifier} --cfg-options val_dataloader.dataset.data_root={other_classes}': ('different classes', 'cow', 'dog'),
    '{detector} --cfg-options train_dataloader.dataset.metainfo.classes=[circle]': ("no category 'circle'", "'square'", 'metainfo'),
    '{detector} --cfg-options train_dataloader.dataset.ann_file=absent.json': ('absent.json does not exist',),
    '{detector} --cfg-options train_dataloader.dataset.ann_file=0.png': ('0.png', 'COCO'),
    '{detector} --cfg-options train_dataloader.dataset.data_prefix.img=absent/': ('absent', 'does not exist'),
    '{detector} --cfg-options model.bbox_head.num_classes=3': ('1 classes', 'bbox_head.num_classes=1'),
    '{segmentor} --cfg-options model.decode_head.num_classes=3': ('2 classes', 'set model.decode_head.num_classes=2'),
    '{segmentor} --cfg-options train_dataloader.dataset.img_suffix=.tif': ('found no image', "'img_suffix': '.tif'"),
    '{segmentor} --cfg-options train_dataloader.dataset.seg_map_suffix=.tif': ('label maps are missing', 'seg_map_suffix'),
    '{segmentor} --cfg-options train_dataloader.dataset.data_prefix.seg_map_path=images': ('has 3 channels', 'one channel'),
}
TEST = {
    '{cae} {checkpoint}': ('describes no test',),
    '{classification_config} {folder}/absent.pth': ('There is no checkpoint',),
    '{classification_config} {checkpoint}': ('cae.pth belongs to another model',),
    '{classification_config} {truncated}': ('truncated.pth is damaged',),
    '{classification_config} {code}': ('code.pth was refused', 'can run code'),
    '{classification_config} {classification_config}': ('tiny_classifier.py is damaged or no checkpoint',),
    '{classification_config} {no_tensors}': ('no_tensors.pth', 'another model'),
    '{classification_config} {checkpoint} --out predictions.txt': ('name a .pkl file',),
    '{classification_config} {checkpoint} --out {images}': ('images is a folder', 'name a file in it'),
    '{classification_config} {checkpoint} --out {text}/x.pkl': ('--out', 'notes.txt is a file'),
    '{classification_config} {checkpoint} --show-dir {text}': ('--show-dir', 'notes.txt is a file'),
    '{segmentation_config} {checkpoint} --out {text}': ('--out', 'notes.txt is a file'),
    '{detection_config} {checkpoint} --out {text}/boxes': ('--out', 'notes.txt is a file'),
    '{classification_config} {images}': ('There is no checkpoint',),
    '{classification_config} {checkpoint} --tta --show-dir pictures': ('leave --tta out',),
    '{classification_config} {checkpoint} --cfg-options test_evaluator=None': ('describes no test',),
    '{classification_config} {checkpoint} --cfg-options test_dataloader.dataset.data_root={folder}/absent': ('absent does not exist',),
    '{segmentation_config} {checkpoint} --out maps.pkl': ('segmentation writes label maps; name a folder',),
    '{detection_config} {checkpoint} --out boxes --cfg-options test_evaluator.type=VOCMetric': ('CocoMetric',),
    '{classification_config}': ('required: checkpoint',),
}
CONVERT = {
    '{folder}/absent.pth x.pth --to mmcae': ('There is no checkpoint', 'absent.pth'),
    '{text} x.pth --to mmcae': ('notes.txt',),
    '{images} x.pth --to mmcae': ('images is a folder without model.safetensors', 'name the file of weights'),
    '{truncated} x.pth --to mmcae': ('truncated.pth is damaged',),
    '{zero_bytes} x.pth --to mmcae': ('zero.pth is damaged',),
    '{safetensors} x.pth --to mmcae': ('broken.safetensors is damaged',),
    '{code} x.pth --to mmcae': ('code.pth was refused', 'can run code'),
    '{code_pickle} x.pth': ('code.pkl', 'system'),
    '{no_tensors} x.pth --to mmcae': ('no_tensors.pth holds no tensors',),
    '{strange_layout} x.pth --to mmcae': ('strange.pth holds no encoder of a known layout', 'conv'),
    '{codebook} x.pth --to encoder': ('holds no encoder of a known layout',),
    '{checkpoint} x.pth --to tokenizer': ('holds no tokenizer',),
    '{checkpoint} x.pth --to mmcae --from official': ('belongs to no known part of CAE',),
    '{checkpoint} {codebook} --to mmcae': ('codebook.pth exists', '--overwrite'),
    '{checkpoint} x.onnx --to mmcae': ('must end in .pth, .pt or .safetensors',),
    '{checkpoint} {text}/x.pth --to mmcae': ('notes.txt',),
    '{checkpoint} x.pth': ('required: --to',),
    '{checkpoint} x.pth --to mmcae --pool avg': ('--pool has no meaning',),
    '{checkpoint} x.pth --to timm --num-heads 7': ('7', 'heads'),
    '{checkpoint} x.pth --to timm --num-heads 0': ('--num-heads must be at least 1',),
    '{checkpoint} x.pth --to timm --num-heads -4': ('--num-heads must be at least 1',),
    '{checkpoint} {checkpoint} --to mmcae --force': ('cae.pth is SRC itself',),
    '{checkpoint} {images} --to mmcae': ('images exists',),
    '{checkpoint} x --to mmcae': ('must end in .pth, .pt or .safetensors',),
}
SCENES = {
    '--scale 0': ('must be positive',),
    '--workers 0': ('must be positive',),
    '--seed -1': ('must not be negative',),
    '--scale much': ('invalid float value',),
    '--out {text}': ('notes.txt is a file', '--out'),
    '--out {text}/scenes': ('notes.txt/scenes', 'Not a directory', '--out'),
    '--out {full_folder}': ('is not empty and was not made by this tool', '--out'),
    '--out {other_scenes}': ('made with', 'Delete it or choose another folder'),
    '--out {broken_scenes}': ('digit_scenes.json', 'Delete'),
}
OTHERS = {
    'benchmarks/evaluate_encoder.py {folder}/absent.pth --config-family digits': ('There is no checkpoint',),
    'benchmarks/evaluate_encoder.py {checkpoint} --config-family cifar': ('invalid choice',),
    'benchmarks/evaluate_encoder.py {checkpoint} --config-family digits --protocols lineer': ('lineer', 'linear'),
    'benchmarks/evaluate_encoder.py {checkpoint} --config-family digits --lanes 0': ('at least 1',),
    'benchmarks/evaluate_encoder.py {checkpoint} --config-family digits --seed -1': ('--seed must not be negative',),
    'benchmarks/evaluate_encoder.py {checkpoint} --config-family digits --out {text}': ('notes.txt',),
    'benchmarks/backbone.py --sizes 0x0': ("'0x0' is no size",),
    'benchmarks/backbone.py --sizes big': ("'big' is no size",),
    'benchmarks/backbone.py --depth 0': ('--depth 0: expected a number, at least 1',),
    'benchmarks/backbone.py --width 65 --sizes 32 --batch-sizes 1': ('multiple of 4, got 65',),
    'benchmarks/backbone.py --json {images}': ('--json', 'is a folder'),
    'benchmarks/checkpointing.py {detection_config} --json {text}/x.json': ('--json', 'notes.txt is a file'),
    'benchmarks/checkpointing.py {folder}/absent.py': ('There is no config',),
    'benchmarks/dataloader.py --folder {empty_folder}': ('no image', '{empty_folder}'),
    'benchmarks/dataloader.py --json {images}': ('--json', 'is a folder'),
    'benchmarks/flops.py --batch-size 0': ('--batch-size 0: expected a number, at least 1',),
    'benchmarks/flops.py --json {images}': ('--json', 'is a folder'),
    'benchmarks/folder_index.py --files -5': ('--files must be positive',),
    'benchmarks/folder_index.py --files 1 --folder {folder}/absent': ('absent',),
    'benchmarks/folder_index.py --files 1 --out {images}': ('--out', 'is a folder'),
    'benchmarks/pretrain_step.py --mask-ratio nan': ('mask ratios must lie between 0 and 1',),
    'benchmarks/pretrain_step.py --width 0': ('--width 0',),
    'dataset_converters/pack_images.py {folder}/absent packed': ('absent does not exist',),
    'dataset_converters/pack_images.py {images} {text}': ('notes.txt',),
    'dataset_converters/pack_images.py {images} {images}': ('lies in', 'name a folder outside'),
    'dataset_converters/pack_images.py {images} {images}/packed': ('lies in', 'name a folder outside'),
    'dataset_converters/pack_images.py {images} {full_folder}': ('is not empty', 'mine.txt'),
    'dataset_converters/pack_images.py {images} packed --shard-size nan': ('--shard-size must be above 0',),
    'dataset_converters/pack_images.py {images} packed --workers -1': ('--workers',),
    'dataset_converters/pack_images.py {images} packed --max-bad-files nan': ('nan is no share',),
    'dataset_converters/pack_images.py {images} packed --list {images}': ('images cannot be read',),
    'dataset_converters/pack_images.py {images} packed --split-by (': ('is no regular expression',),
    'dataset_converters/pack_images.py --verify {text}': ('holds no packed images',),
    'dataset_converters/store_tokens.py {classifier} tokens': ('no model.target_generator',),
    'dataset_converters/store_tokens.py {cae} {text}': ('notes.txt',),
    'dataset_converters/store_tokens.py {cae} tokens --seed -1': ('--seed must not be negative',),
    'dataset_converters/make_tissue_tiles.py --out {full_folder}': ('is not empty',),
    'visualization/reconstruct.py {cae} {checkpoint} {image} --pairs 0': ('--pairs 0: expected a number, at least 1',),
    'visualization/reconstruct.py {cae} {checkpoint} {image} --seed -1': ('--seed -1',),
    'visualization/reconstruct.py {cae} {checkpoint} {image} --mask-ratio nan': ('--mask-ratio nan: expected a number between 0 and 1',),
    'visualization/reconstruct.py {cae} {checkpoint} {image} --out x.txt': ('--out x.txt: the name must end in .png',),
    'visualization/reconstruct.py {cae} {checkpoint} {image} --out {images}': ('images is a folder: name a file in it',),
    'visualization/reconstruct.py {cae} {checkpoint} {images}': ('images is a folder: give the image files in it',),
    'visualization/reconstruct.py {cae} {checkpoint} {folder}/absent.png': ('absent.png',),
    'visualization/reconstruct.py {cae} {checkpoint} {text}': ('notes.txt',),
    'visualization/reconstruct.py {cae} {other_checkpoint} {image}': ('other.pth does not fit this CAE',),
    'visualization/reconstruct.py {cae} {checkpoint} {image} --mask-ratio 2': ('mask', '2'),
    'visualization/reconstruct.py {cae} {checkpoint} {image} --img-size 33 33': ('33x33', 'multiple of the patch size'),
    'visualization/attention.py {checkpoint} {image} --block 99': ('99', 'block'),
    'visualization/attention.py {checkpoint} {image} --num-heads 7': ('7', 'heads'),
    'visualization/attention.py {codebook} {image}': ('holds no encoder of a known layout',),
    'visualization/attention.py {checkpoint} {image} --out x': ('--out x: the name must end in .png',),
    'visualization/attention.py {checkpoint} {image} --out {text}/x.png': ('notes.txt is a file',),
    'visualization/attention.py {checkpoint} {image} --img-size 0 0': ('--img-size 0: expected a number, at least 1',),
    'visualization/attention.py {checkpoint} {image} --num-heads 0': ('--num-heads 0',),
    'visualization/attention.py {checkpoint} {images}': ('images is a folder',),
    'visualization/attention.py {image} {image}': ('000.jpg is damaged or no checkpoint',),
    'visualization/predictions.py {detection_config} {checkpoint} --count 0': ('--count 0: expected a number, at least 1',),
    'visualization/predictions.py {detection_config} {checkpoint} --min-score nan': ('--min-score nan',),
    'visualization/predictions.py {detection_config} {checkpoint}': ('cae.pth belongs to another model than',),
    'visualization/predictions.py {cae} {checkpoint}': ("default_scope='mmdet'", 'mmseg'),
    'visualization/predictions.py {detection_config} {checkpoint} --names a b': ('--names needs a different title for each',),
    'analysis_tools/plot_curves.py {empty_folder}': ('empty',),
    'analysis_tools/plot_curves.py {folder}/absent': ('no */vis_data/scalars.json',),
    'analysis_tools/plot_curves.py {text}': ('notes.txt, line 1, is no JSON',),
    'analysis_tools/plot_curves.py {run} --out x.txt': ('--out x.txt: the name must end in .png',),
    'analysis_tools/plot_curves.py {run} --out {images}': ('images is a folder',),
    'analysis_tools/plot_curves.py {run} --keys nonsense': ('No run has logged nonsense',),
    'analysis_tools/results_table.py {images}': ('Is a directory',),
    'analysis_tools/results_table.py {text}': ('notes.txt',),
    'analysis_tools/results_table.py {folder}/absent.json': ('absent.json',),
}
ROWS = [
    *(('train.py', arguments, said) for arguments, said in TRAIN.items()),
    *(('test.py', arguments, said) for arguments, said in TEST.items()),
    *(('model_converters/convert.py', arguments, said) for arguments, said in CONVERT.items()),
    *(('dataset_converters/make_digit_scenes.py', arguments, said) for arguments, said in SCENES.items()),
    *((*call.split(' ', 1), said) for call, said in OTHERS.items()),
]


HELP = """
import io, runpy, sys
from contextlib import redirect_stdout
from pathlib import Path
for tool in map(Path, sys.argv[1:]):
    sys.argv, sys.path[0], out = [str(tool), '--help'], str(tool.parent), io.StringIO()
    try:
        with redirect_stdout(out):
            runpy.run_path(str(tool), run_name='__main__')
        raise AssertionError(f'{tool} has no --help')
    except SystemExit as stop:
        assert not stop.code, tool
    assert out.getvalue().startswith(f'usage: {tool.name}'), tool
    assert not {'torch', 'mmcv'} & set(sys.modules), tool
"""


def test_help_waits_for_no_library(repository):
    """Every tool answers --help before it imports anything slow; all in one process, which would show it."""
    tools = [
        tool
        for tool in sorted(repository.glob('tools/**/*.py'))
        if re.search(r'(ArgumentParser\(|run_command|import main).*__main__', tool.read_text(), re.DOTALL)
    ]
    assert len(tools) > 15
    done = subprocess.run([sys.executable, '-c', HELP, *map(str, tools)], capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(('tool', 'arguments', 'said'), ROWS, ids=[f'{tool} {arguments}' for tool, arguments, _ in ROWS])
def test_refused(refused, world, tool, arguments, said):
    line = refused(f'tools/{tool}', arguments)
    for part in said:
        assert part.format_map(world) in line, line
