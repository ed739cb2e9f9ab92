"""One training for each work dir."""

import os
from contextlib import ExitStack, contextmanager

from mmengine.dist import broadcast_object_list

from ..checkpoints.pieces import remove_unfinished_pieces
from ..utils.errors import DataError
from ..utils.files import remove_unfinished
from ..utils.locks import locked
from .launch import choose_launcher, is_first, join_processes
from .resume import own_folder


@contextmanager
def hold_work_dir(cfg, launcher):
    """Keep other trainings out of the folders of a config, and remove what killed ones have left unfinished.

    These are its work dir, and the folder of its checkpoints where `default_hooks.checkpoint.out_dir` names another one. Of a distributed
    training the first process holds them, and the others learn whether it could; they meet here for that.

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
                for folder in folders_of(cfg):
                    stack.enter_context(locked(folder))
                    remove_unfinished(folder)
                    remove_unfinished_pieces(folder)
            except (DataError, OSError) as error:
                refusal = str(error)
        told = [refusal]
        broadcast_object_list(told)
        if told[0]:
            raise DataError(told[0])
        yield


def folders_of(cfg):
    """The local folders that a training writes to: its work dir, and where else its checkpoints go."""
    out_dir = (cfg.get('default_hooks', {}).get('checkpoint') or {}).get('out_dir')
    folders = [cfg.work_dir] if out_dir is None or '://' in str(out_dir) else [cfg.work_dir, own_folder(cfg.work_dir, out_dir)]
    return {os.path.realpath(folder): folder for folder in folders}.values()
