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
OF_TEXT = dict(OF_16, vocab_size=8, max_position_embeddings=4, num_hidden_layers=1, bos_token_id=1, eos_token_id=2, pad_token_id=0)
V3 = dict(OF_16, num_register_tokens=4)
FOLDERS = {
    'vit': ('ViT', OF_16),
    'dinov2': ('Dinov2', OF_14),
    'dinov2-swiglu': ('Dinov2', dict(OF_14, use_swiglu_ffn=True)),
    'dinov2-registers': ('Dinov2WithRegisters', dict(OF_14, num_register_tokens=4)),
    'dinov3': ('DINOv3ViT', V3),
    'dinov3-gated': ('DINOv3ViT', dict(V3, use_gated_mlp=True, hidden_act='silu')),
    'beit': ('Beit', dict(OF_16, use_relative_position_bias=True, use_mean_pooling=False)),
    'clip': ('CLIP', dict(vision_config=OF_16, text_config=OF_TEXT, projection_dim=8)),
    'clip-vision': ('CLIPVision', dict(OF_16, hidden_act='gelu')),
    'siglip': ('Siglip', dict(vision_config=OF_16, text_config=OF_TEXT)),
    'siglip-vision': ('SiglipVision', OF_16),
}


@torch.no_grad()
def make(out: Path):
    """Write one folder for each model: config.json, model.safetensors, and expected.safetensors with an image and its tokens."""
    torch.manual_seed(0)
    for name, (kind, settings) in FOLDERS.items():
        config = getattr(transformers, f'{kind}Config')(**settings)
        model = getattr(transformers, f'{kind}Model')(config).eval()
        tower, vision = getattr(model, 'vision_model', model), getattr(config, 'vision_config', config)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(out / name)
        image = torch.randn(1, 3, vision.image_size, vision.image_size)
        tokens = tower(image).last_hidden_state
        if vision.model_type == 'clip_vision_model':
            tokens = tower.post_layernorm(tokens)  # its class normalises the cls token alone
        expected = dict(image=image, tokens=tokens.contiguous())
        if kind == 'CLIP':
            expected['projected'] = model.visual_projection(tokens)
        save_file(expected, out / name / 'expected.safetensors')


if __name__ == '__main__':
    make(Path(sys.argv[1]))
