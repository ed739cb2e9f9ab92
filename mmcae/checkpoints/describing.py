"""The description of a model that goes into its checkpoints."""

from torch import nn

from ..utils.wrappers import unwrapped
from .spec import META, EncoderSpec, Origin, ViewSpec
from .weights import METHOD

HARDLY = 0.5  # levels of a pixel in [0, 255]


def metadata(spec: EncoderSpec, method: dict | None = None) -> dict:
    """The metadata of a file that holds an encoder, or a whole method with it."""
    return {META: spec.to_dict(), **({METHOD: dict(method)} if method else {})}


def metadata_of(model: nn.Module, epochs: int = 0) -> dict:
    """The metadata for a model's checkpoint.

    Args:
        model: Any model whose `backbone` has a `spec`: a pretraining method, which also has a `description` of itself, or a classifier,
            detector or segmentor.
        epochs: How long the method was trained.

    Returns:
        Plain data; empty for a model without such a backbone.
    """
    model = unwrapped(model)
    backbone = getattr(model, 'backbone', None)
    if not hasattr(backbone, 'spec'):
        return {}
    spec, method = backbone.spec, getattr(model, 'description', None)
    spec = spec.replaced(view=view_of(getattr(model, 'data_preprocessor', None), spec) or spec.view)
    if method:
        spec = spec.replaced(origin=Origin(method['name'], method.get('target') or '', epochs))
    return metadata(spec, method)


def view_of(preprocessor: nn.Module | None, spec: EncoderSpec) -> ViewSpec | None:
    """The view that a data preprocessor makes for an encoder, or None where it does not normalise."""
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    if mean is None or std is None:
        return None
    mean, std = (tuple(round(number, 4) for number in values.flatten().tolist()) for values in (mean, std))
    return ViewSpec(mean, std, spec.img_size)


def normalised_otherwise(preprocessor: nn.Module | None, spec: EncoderSpec) -> str:
    """What to say where images are normalised otherwise than those that an encoder's weights were trained on, such as CLIP's and SigLIP's.

    Returns:
        A sentence with the settings that would fit; '' where the two agree, or one is not known.
    """
    ours, theirs = view_of(preprocessor, spec), spec.view
    if ours is None or theirs is None:
        return ''
    pairs = ((ours.mean, theirs.mean), (ours.std, theirs.std))
    if all(abs(a - b) < HARDLY for first, second in pairs for a, b in zip(first, second, strict=False)):
        return ''
    lists = {name: '[' + ','.join(map(str, values)) + ']' for name, values in (('mean', theirs.mean), ('std', theirs.std))}
    settings = ' '.join(f'data_preprocessor.{name}={values}' for name, values in lists.items())
    return f'Images are normalised otherwise than those that the encoder was trained on: set {settings}'
