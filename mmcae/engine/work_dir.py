"""One training for each work dir."""

from contextlib import ExitStack, contextmanager

from mmengine.dist import broadcast_object_list

from ..checkpoints.pieces import remove_unfinished_pieces
from ..utils.errors import DataError
from ..utils.files import remove_unfinished
from ..utils.locks import locked
from .launch import choose_launcher, is_first, join_processes


@contextmanager
def hold_work_dir(cfg, launcher):
    """Keep other trainings out of the config's work dir, and remove what killed ones have left unfinished.

    Of a distributed training the first process holds the folder, and the others learn whether it could; they meet here for that.

    Args:
        cfg (Config): With a work_dir. Its launcher is set.
        launcher (str): 'none', 'pytorch', 'slurm', 'mpi', or 'auto' to look at the environment.

    Raises:
        DataError: Another training is at work there; in all processes.
        ConfigError: The launcher has not started this process.
    """
    choose_launcher(cfg, launcher)
    join_processes(cfg)
    with ExitStack() as stack:
        refusal = None
        if is_first():
            try:
                stack.enter_context(locked(cfg.work_dir))
                remove_unfinished(cfg.work_dir)
                remove_unfinished_pieces(cfg.work_dir)
            except (DataError, OSError) as error:
                refusal = str(error)
        told = [refusal]
        broadcast_object_list(told)
        if told[0]:
            raise DataError(told[0])
        yield
