"""Data-parallel training on machines without a GPU: for tests, for tuning launch scripts, and for clusters of CPUs."""

from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm

from ..registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's MMDistributedDataParallel over gloo: no device numbers, and ordinary batch norm.

    Synchronised batch norm exists on GPUs only; it becomes ordinary batch norm, whose statistics are those of each process, and a note
    says so.

    Args:
        module (nn.Module): The model, on the CPU.
        device_ids (list, optional): Ignored: mmengine passes the number of a GPU.
        **kwargs: For torch's DistributedDataParallel, such as find_unused_parameters.
    """

    def __init__(self, module, device_ids=None, **kwargs):
        synchronised = sum(type(layer).__name__ == 'SyncBatchNorm' for layer in module.modules())  # torch's and mmcv's
        if synchronised:
            module = revert_sync_batchnorm(module)
            print_log(f'No GPU: {synchronised} synchronised batch norms compute the statistics of each process alone.', logger='current')
        super().__init__(module=module, device_ids=None, **kwargs)
