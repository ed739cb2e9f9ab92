"""Child registries of mmengine's under the scope `mmcae`: what makes `type='mmcae.X'` buildable from any OpenMMLab config.

`locations` name the packages that mmengine imports when something of ours is first looked up, so nothing has to be listed in
`custom_imports`.
"""

from importlib import import_module

from mmengine import registry as parent
from mmengine.config.utils import MODULE2PACKAGE

# mmengine finds configs such as 'mmcae::cae/NAME.py' in the packages of this table only.
MODULE2PACKAGE.setdefault('mmcae', 'mmcae')

RUNNERS = parent.Registry('runner', parent=parent.RUNNERS, scope='mmcae', locations=['mmcae.engine'])
MODELS = parent.Registry('model', parent=parent.MODELS, scope='mmcae', locations=['mmcae.models'])
MODEL_WRAPPERS = parent.Registry('model_wrapper', parent=parent.MODEL_WRAPPERS, scope='mmcae', locations=['mmcae.engine'])
DATASETS = parent.Registry('dataset', parent=parent.DATASETS, scope='mmcae', locations=['mmcae.datasets'])
DATA_SAMPLERS = parent.Registry('data sampler', parent=parent.DATA_SAMPLERS, scope='mmcae', locations=['mmcae.datasets'])
FUNCTIONS = parent.Registry('function', parent=parent.FUNCTIONS, scope='mmcae', locations=['mmcae.datasets'])
TRANSFORMS = parent.Registry('transform', parent=parent.TRANSFORMS, scope='mmcae', locations=['mmcae.datasets.transforms'])
HOOKS = parent.Registry('hook', parent=parent.HOOKS, scope='mmcae', locations=['mmcae.engine'])
CHECKS = parent.Registry('check', scope='mmcae', locations=['mmcae.engine.checks'])
OPTIM_WRAPPERS = parent.Registry('optim_wrapper', parent=parent.OPTIM_WRAPPERS, scope='mmcae', locations=['mmcae.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = parent.Registry(
    'optimizer wrapper constructor', parent=parent.OPTIM_WRAPPER_CONSTRUCTORS, scope='mmcae', locations=['mmcae.engine']
)
PARAM_SCHEDULERS = parent.Registry('parameter scheduler', parent=parent.PARAM_SCHEDULERS, scope='mmcae', locations=['mmcae.engine'])
STRATEGIES = parent.Registry('strategy', parent=parent.STRATEGIES, scope='mmcae', locations=['mmcae.engine'])
LOG_PROCESSORS = parent.Registry('log_processor', parent=parent.LOG_PROCESSORS, scope='mmcae', locations=['mmcae.engine'])
LOOPS = parent.Registry('loop', parent=parent.LOOPS, scope='mmcae', locations=['mmcae.engine', 'mmcae.evaluation'])
METRICS = parent.Registry('metric', parent=parent.METRICS, scope='mmcae', locations=['mmcae.evaluation'])
VISUALIZERS = parent.Registry('visualizer', parent=parent.VISUALIZERS, scope='mmcae', locations=['mmcae.visualization'])


def register_lazily(registry, module: str, *names: str):
    """Make `type='mmcae.NAME'` buildable for names in a module that is imported only then, because it needs mmdet or mmseg."""

    def builder(name):
        return lambda **settings: getattr(import_module(module), name)(**settings)

    for name in names:
        registry.register_module(name=name, module=builder(name))
