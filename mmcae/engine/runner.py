"""mmengine's Runner as mmcae trains and tests with it."""

from mmengine.dist import is_distributed
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner as MMEngineRunner

from .. import compat
from ..registry import RUNNERS
from ..utils.errors import CheckpointError
from ..utils.precision import set_matmul_precision
from . import reader
from .distributed import ddp_settings


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """mmengine's Runner, whose checkpoints run no code and have to fit, and whose processes also meet on machines without a GPU.

    * Checkpoints are read by :func:`mmcae.checkpoints.read_checkpoint`.
    * On resuming and testing, a checkpoint that does not fit the model tensor by tensor is refused; mmengine warns and goes on with random
      weights. Starting from other weights goes through `init_cfg=dict(type='Pretrained', ...)`, or `load_from` of a training, where
      mmengine's rules hold.
    * With a launcher on a machine without an accelerator, the processes are joined by gloo.
    * `env_cfg.float32_matmul_precision` is passed to :func:`torch.set_float32_matmul_precision`.

    Takes the arguments of mmengine's.
    """

    def setup_env(self, env_cfg: dict):
        """As mmengine's; the process group of a machine without an accelerator is made here.

        Raises:
            ConfigError: An unknown `float32_matmul_precision`.
        """
        reader.register()
        set_matmul_precision(env_cfg.get('float32_matmul_precision'))
        if self.distributed and not is_distributed() and not compat.has_accelerator():
            compat.init_distributed(self.launcher, **env_cfg.get('dist_cfg', {}))
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model):
        """As mmengine's; gradients are views of the buckets in which processes exchange them."""
        if self.distributed and not is_model_wrapper(model):
            model_wrapper_cfg = ddp_settings(model_wrapper_cfg, self.cfg.get('find_unused_parameters', False))
        return super().wrap_model(model_wrapper_cfg, model)

    def resume(self, filename: str, *args, **kwargs):
        """As mmengine's, from a checkpoint of this very model."""
        self._exact = True
        super().resume(filename, *args, **kwargs)

    def test(self) -> dict:
        """As mmengine's, of a checkpoint of this very model."""
        self._exact = True
        return super().test()

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        """As mmengine's.

        Raises:
            CheckpointError: It cannot be read, or does not fit while resuming or testing.
        """
        if not getattr(self, '_exact', False):
            return super().load_checkpoint(filename, *args, **kwargs)
        try:
            return super().load_checkpoint(filename, *args, **dict(kwargs, strict=True))
        except RuntimeError as error:
            if 'do not match exactly' not in str(error):
                raise
            config = getattr(self.cfg, 'filename', None) or 'the config'
            raise CheckpointError(f'{filename} belongs to another model than {config} describes. {shortened(error)}') from error


def shortened(error: RuntimeError, most: int = 400) -> str:
    """mmengine's list of tensors that do not fit, as the beginning of one line."""
    text = ' '.join(str(error).split()).replace('The model and loaded state dict do not match exactly', '').strip()
    return text if len(text) <= most else text[:most] + ' ...'
