"""Config files and their changes on the command line."""

from .loading import load_config, set_work_dir

__all__ = ['load_config', 'set_work_dir']
