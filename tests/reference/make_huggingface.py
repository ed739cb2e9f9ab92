"""Small folders of Hugging Face's models with random weights, and what transformers computes: made once, with transformers installed.

    python tests/reference/make_huggingface.py tests/reference/huggingface

The tests read these folders in place of making them, so that they need no transformers.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
OF_16 = dict(SMALL, intermediate_size=32, image_size=32, patch_size=16)
OF_14 = dict(SMALL, mlp_ratio=2, image_size=28, patch_size=14)
V3 = dict(OF_16, num_register_tokens=4)
FOLDERS = {
    'vit': ('ViT', OF_16),
    'dinov2': ('Dinov2', OF_14),
    'dinov2-swiglu': ('Dinov2', dict(OF_14, use_swiglu_ffn=True)),
    'dinov2-registers': ('Dinov2WithRegisters', dict(OF_14, num_register_tokens=4)),
    'dinov3': ('DINOv3ViT', V3),
    'dinov3-gated': ('DINOv3ViT', dict(V3, use_gated_mlp=True, hidden_act='silu')),
    'beit': ('Beit', dict(OF_16, use_relative_position_bias=True, use_mean_pooling=False)),
}


@torch.no_grad()
def make(out: Path):
    """Write one folder for each model: config.json, model.safetensors, and expected.safetensors with an image and its tokens."""
    torch.manual_seed(0)
    for name, (kind, settings) in FOLDERS.items():
        config = getattr(transformers, f'{kind}Config')(**settings)
        model = getattr(transformers, f'{kind}Model')(config).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(out / name)
        image = torch.randn(1, 3, config.image_size, config.image_size)
        save_file(dict(image=image, tokens=model(image).last_hidden_state.contiguous()), out / name / 'expected.safetensors')


if __name__ == '__main__':
    make(Path(sys.argv[1]))
