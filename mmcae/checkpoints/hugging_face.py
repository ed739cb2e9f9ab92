"""An encoder as a folder of Hugging Face's: config.json, model.safetensors, preprocessor_config.json and a model card."""

import json
from collections.abc import Mapping
from pathlib import Path

from .hugging_face_configs import PIL_MODES
from .hugging_face_models import config_for
from .hugging_face_names import to_hugging_face
from .reading import StateDict, write_state_dict
from .spec import EncoderSpec, ViewSpec

# The class gives all tokens without it; version 4 of transformers has the tower in a part of its own.
NORM_OF_CLIP = "tokens = getattr(model, 'vision_model', model).post_layernorm(tokens)"


def write_hugging_face(out: Path, encoder, state: StateDict) -> list[str]:
    """Write the folder, which `transformers.AutoModel.from_pretrained` and `AutoImageProcessor` read.

    Args:
        out: The folder, which is there and empty.
        encoder: A CAEViT or TimmEncoder.
        state: Its tensors under timm's names.

    Returns:
        How it is read, in lines.

    Raises:
        CheckpointError: Hugging Face has no model with one of its parts.
    """
    spec = encoder.spec
    config = config_for(encoder, state)
    cls_has_position = spec.type == 'CAEViT' or not (encoder.has_cls and encoder.vit.no_embed_class) or 'pos_embed' not in state
    write_state_dict(out / 'model.safetensors', to_hugging_face(state, config, cls_has_position))
    view = spec.view or ViewSpec(size=spec.img_size)
    for name, content in (('config.json', config), ('preprocessor_config.json', preprocessor_for(view))):
        (out / name).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    (out / 'README.md').write_text(model_card(spec, config), encoding='utf-8')
    lines = ["transformers.AutoModel.from_pretrained('{out}')", "transformers.AutoImageProcessor.from_pretrained('{out}')"]
    return lines + ([f'{NORM_OF_CLIP}  # behind last_hidden_state'] if config['model_type'] == 'clip_vision_model' else [])


def preprocessor_for(view: ViewSpec) -> dict:
    """The preprocessor_config.json of a view."""
    mean, std = ([round(value / 255, 6) for value in values] for values in (view.mean, view.std))
    modes = {name: number for number, name in PIL_MODES.items()}
    height, width = view.size
    return dict(
        image_processor_type='BitImageProcessor',
        do_convert_rgb=len(mean) == 3,
        do_resize=True,
        size=dict(shortest_edge=round(max(view.size) / view.crop_pct)),  # what is short of the crop would become black
        resample=modes[view.interpolation],
        do_center_crop=True,
        crop_size=dict(height=height, width=width),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=mean,
        image_std=std,
    )


def model_card(spec: EncoderSpec, config: Mapping) -> str:
    """README.md with the description of the encoder, which is also its JSON."""
    origin = spec.origin
    trained = f'trained by {origin.method}' + (f' on {origin.target}' if origin.target else '') if origin.method else 'of unknown training'
    first = 'The first token is that of cls' if spec.num_prefix_tokens else 'There is no token of cls'
    registers = f', then come {spec.num_prefix_tokens - 1} registers' if spec.num_prefix_tokens > 1 else ''
    outputs = "model(**processor(images=image, return_tensors='pt')).last_hidden_state"
    if config['model_type'] == 'clip_vision_model':
        outputs += f'\n{NORM_OF_CLIP}'
    return f"""---
library_name: transformers
pipeline_tag: image-feature-extraction
---

# {config['architectures'][0]}, {spec.num_layers} blocks, {spec.embed_dims} wide

An encoder exported by mmcae, {trained}{f', {origin.epochs} epochs' if origin.epochs else ''}.

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained('THIS_FOLDER')
model = AutoModel.from_pretrained('THIS_FOLDER')
tokens = {outputs}
```

{first}{registers}; the rest are patches.

```json
{json.dumps(spec.to_dict(), indent=2)}
```
"""
