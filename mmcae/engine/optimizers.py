"""Which learning rate and weight decay each parameter gets: one rule for pretraining and for all that follows."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn
from torch.distributed.tensor import DTensor

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS
from ..utils.errors import ConfigError

OPTIONS = {'layer_decay_rate', 'no_decay', 'lr_mult'}
# Optimizers of torch that update all parameters in one kernel, given fused=True, and where they do.
FUSED = {'Adam', 'AdamW', 'SGD'}
FUSED_SHARDED = {'Adam', 'AdamW'}  # torch's for parameters that FSDP2 has shared out
FUSED_DEVICES = {'cpu', 'cuda'}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning rates, and weight decay for matrices only (arXiv 2202.03026, section 4; the authors' code).

    It asks the model's `backbone` for `get_layer_depth`, so it works in mmpretrain, mmdet and mmseg alike. Vectors (biases, norms,
    layer scales) are never decayed. Parameters with the same learning rate and decay share a group, and torch's fused kernels are used
    where it has them (unless the config says `fused=False`): both keep optimizers fast.

    `paramwise_cfg` may have:

    * `layer_decay_rate`: in (0, 1]; layer i of L gets `rate ** (L - 1 - i)` of the learning rate. Default 1.
    * `no_decay`: ends of names of further parameters without decay, e.g. `['cls_token']`.
    * `lr_mult`: part of a name -> factor on its learning rate, e.g. `{'backbone': 0.1}`.

    Raises:
        ConfigError: An unknown option, a rate out of range, or a model whose backbone does not tell layers apart.
    """

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs):
        """Fill `params` with the groups of a whole model."""
        unknown = set(self.paramwise_cfg) - OPTIONS
        if unknown:
            raise ConfigError(f'paramwise_cfg has {sorted(unknown)}; {type(self).__name__} knows {sorted(OPTIONS)}')
        rate = self.paramwise_cfg.get('layer_decay_rate', 1.0)
        if not 0 < rate <= 1:
            raise ConfigError(f'layer_decay_rate={rate} must lie in (0, 1]')
        backbone = getattr(module, 'backbone', None)
        if rate != 1 and not hasattr(backbone, 'get_layer_depth'):
            raise ConfigError(f'layer_decay_rate needs a backbone with get_layer_depth; {type(backbone).__name__} has none')
        multipliers = self.paramwise_cfg.get('lr_mult', {})
        no_decay = tuple(self.paramwise_cfg.get('no_decay', ()))
        groups = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = 1.0
            if rate != 1:
                layer, layers = backbone.get_layer_depth(name, 'backbone.')
                scale = rate ** (layers - 1 - layer)
            for part, factor in multipliers.items():
                scale *= factor if part in name else 1.0
            decayed = parameter.ndim > 1 and not name.endswith(('.bias', *no_decay))
            decay = (self.base_wd or 0.0) if decayed else 0.0
            group = groups.setdefault((scale, decay), dict(params=[], param_names=[], lr=self.base_lr * scale, weight_decay=decay))
            group['params'].append(parameter)
            group['param_names'].append(name)
        params.extend(groups.values())

    def __call__(self, model: nn.Module):
        """Build the optimizer wrapper; the rules hold without any `paramwise_cfg` too."""
        self.paramwise_cfg = self.paramwise_cfg or dict(layer_decay_rate=1.0)
        kind = self.optimizer_cfg['type']
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        devices = {parameter.device.type for parameter in trained}
        fused = FUSED_SHARDED if any(isinstance(parameter, DTensor) for parameter in trained) else FUSED
        if getattr(kind, '__name__', kind) in fused and devices <= FUSED_DEVICES and not self.optimizer_cfg.get('foreach'):
            self.optimizer_cfg.setdefault('fused', True)
        return super().__call__(model)
