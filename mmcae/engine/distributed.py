"""Data-parallel training: what torch's DistributedDataParallel is told, and its form for machines without a GPU."""

from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm

from ..registry import MODEL_WRAPPERS

DDP = ('MMDistributedDataParallel', 'mmcae.CPUDistributedDataParallel')


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


def ddp_settings(wrapper: dict | None, find_unused_parameters: bool = False) -> dict:
    """Complete a `model_wrapper_cfg` of torch's DistributedDataParallel; others stay as they are.

    Gradients become views of the buckets in which they are exchanged, which saves a copy of all gradients in time and memory.

    Args:
        wrapper: As a config has it; None for mmengine's default.
        find_unused_parameters: The config's, which mmengine reads where there is no `wrapper`.
    """
    wrapper = dict(wrapper or dict(broadcast_buffers=False, find_unused_parameters=find_unused_parameters))
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    if wrapper['type'] in DDP:
        wrapper.setdefault('gradient_as_bucket_view', True)
    return wrapper
