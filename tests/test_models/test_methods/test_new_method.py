"""A method is one file and one config: this one is written, trained by tools/train.py, and its encoder is loaded and looked at."""

import torch

from mmcae.apis import load_encoder

METHOD = '''
"""SimMIM-like: the visible patches' mean latent predicts the mean target of the hidden ones."""

from torch import nn

from mmcae.models.methods.base import MaskedImageModel
from mmcae.registry import MODELS


@MODELS.register_module()
class MeanOfPatches(MaskedImageModel):
    PARTS = ('backbone', 'head')

    def __init__(self, backbone, **settings):
        super().__init__(backbone, **settings)
        self.head = nn.Linear(self.backbone.embed_dims, self.target_generator.num_outputs)

    def forward_loss(self, images, view, visible, masked):
        latents = self.backbone.encode(images, visible)
        target = self.targets(view, masked, visible).mean(dim=1)
        return dict(loss_main=self.target_generator.loss(self.head(latents.mean(dim=1)), target))
'''
CONFIG = """
_base_ = '{configs}/digits/cae_pixels_vit-digits.py'
custom_imports = dict(imports=['mean_of_patches'])
model = dict(
    _delete_=True,
    type='mmcae.MeanOfPatches',
    backbone=_base_.encoder,
    target_generator=dict(type='mmcae.PixelTargets', patch_size=8),
)
"""


def test_one_file_and_one_config(repository, image_folder, run_tool, tmp_path):
    (tmp_path / 'mean_of_patches.py').write_text(METHOD)
    (tmp_path / 'mean_of_patches_config.py').write_text(CONFIG.format(configs=repository / 'configs'))
    settings = (
        f'train_dataloader.dataset.data_root={image_folder(size=(40, 40), count=4)}',
        'train_dataloader.dataset.data_prefix=',
        'train_dataloader.batch_size=4',
        'train_cfg.max_iters=3',
        'param_scheduler.0.warmup=1',
        'param_scheduler.0.end=3',
        'default_hooks.checkpoint.interval=3',
        'default_hooks.logger.interval=1',
    )
    arguments = (tmp_path / 'mean_of_patches_config.py', '--work-dir', tmp_path / 'run', '--cfg-options', *settings)
    code, output = run_tool('tools/train.py', *arguments, env=dict(PYTHONPATH=str(tmp_path)))
    assert code == 0 and output.count('loss_main: ') == 3, output
    checkpoint = tmp_path / 'run/iter_3.pth'
    described = torch.load(checkpoint, weights_only=False)['meta']
    assert described['method'] == dict(name='MeanOfPatches', target='PixelTargets')
    encoder = load_encoder(checkpoint)
    assert encoder.spec.num_heads == 4 and encoder(torch.rand(1, 3, 32, 32))[-1].shape[-1] == 96
