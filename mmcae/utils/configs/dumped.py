"""The configs that a run leaves in its work dir, made to hold wherever that folder is copied or moved to."""

import os
import re
from pathlib import Path

from ..files import write_file


def make_portable(runner):
    """Have the dumped configs name the folder they lie in as their work dir, so that training by one of a copy goes on in the copy.

    mmengine dumps the settings of that start: with its work dir, by the path it had then, and where the run was resumed, with the file it
    was resumed from, which is soon deleted. `resume=True` alone means the newest one.

    Args:
        runner (Runner): After its start; of the first process.
    """
    name = os.path.basename(runner.cfg.filename) if runner.cfg.filename else f'{runner.timestamp}.py'
    resumed = bool(runner.cfg.get('resume'))
    for path in (Path(runner.work_dir, name), *Path(runner.log_dir).glob('vis_data/config.py')):
        if not path.is_file():
            continue
        place = f'{{{{ fileDirname }}}}/{os.path.relpath(runner.work_dir, path.parent)}'.removesuffix('/.')
        text = re.sub(r'^work_dir = .*$', f'work_dir = {place!r}', path.read_text(encoding='utf-8'), flags=re.MULTILINE)
        if resumed:
            text = re.sub(r'^load_from = .*$', 'load_from = None', text, flags=re.MULTILINE)
        write_file(path, text)
