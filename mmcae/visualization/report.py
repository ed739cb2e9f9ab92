"""One page about one or several work dirs: how they were configured, where they ran, what they logged, scored and drew."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from ..utils.configs.loading import load_config
from ..utils.errors import ConfigError, DataError
from ..utils.packaged import find_config
from ..utils.text_files import parse_json, read_text
from .curves import BOOKKEEPING, Series, plot_curves, read_scalars
from .page import Page

PICTURES = ('.png', '.jpg', '.jpeg', '.svg', '.webp')
MOST_PICTURES = 60  # of all work dirs; each is a part of the page
LARGEST = 8 * 2**20  # bytes of a picture
PLACES = {'work_dir', 'resume', 'load_from', 'launcher'}  # differ between runs by their nature


def write_report(
    work_dirs: Mapping[str, str | Path], out: str | Path, title: str | None = None, more: Callable[[Page], None] | None = None
) -> Path:
    """Write a page about work dirs.

    Args:
        work_dirs: By the names that runs have on the page.
        out: The file, `.html`; pictures and curves are in it.
        title: Of the page.
        more: Adds further parts to the page, before the configuration.

    Raises:
        DataError: A folder has neither logs nor tables of :mod:`mmcae.apis.judging`, or a file in it is damaged.
    """
    folders = {name: Path(folder) for name, folder in work_dirs.items()}
    runs, tables = {}, {}
    for name, folder in folders.items():
        tables[name] = judged_tables(folder)
        if tables[name] and not list(folder.glob('*/vis_data/scalars.json')):
            continue
        runs[name] = read_scalars(folder)
    page = Page(out, title or ('Report: ' + ', '.join(folders)))
    if runs:
        page.heading('Last and best figures')
        page.table(figures_table(runs))
    for name, found in tables.items():
        for caption, rows in found:
            page.heading(f'Frozen encoders: {name}')
            page.table(rows, caption)
    if curves := curves_of(runs):
        page.heading('Curves')
        page.pictures(curves)
    add_pictures(page, folders)
    if more:
        more(page)
    configs = {name: config for name, folder in folders.items() if (config := config_of(folder)) is not None}
    add_configs(page, configs)
    if environments := {name: text for name, folder in folders.items() if (text := environment_of(folder))}:
        page.heading('Environment')
        for name, text in environments.items():
            page.details(name, text)
    page.write()
    return page.path


# ---------------------------------------------------------------- figures


def figures_table(runs: Mapping[str, Series]) -> list[list[str]]:
    """For each quantity and run the last value with its step, the lowest and the highest; the run is named where there are several."""
    names = dict.fromkeys(name for series in runs.values() for name in series if name not in BOOKKEEPING)
    several = len(runs) > 1
    rows = [['quantity', *['run'] * several, 'last', 'step', 'lowest', 'highest']]
    for name in names:
        for run, series in runs.items():
            if name in series:
                (step, last), values = series[name][-1], [value for _, value in series[name]]
                rows.append([name, *[run] * several, f'{last:.4g}', f'{step:,}', f'{min(values):.4g}', f'{max(values):.4g}'])
    return rows


def curves_of(runs: Mapping[str, Series]) -> list[tuple]:
    """A figure and a caption for each quantity that was logged more than once."""
    names = dict.fromkeys(
        name for series in runs.values() for name, points in series.items() if len(points) > 1 and name not in BOOKKEEPING - {'lr'}
    )
    return [(plot_curves(runs, [name]), f'{name} over steps: {", ".join(run for run in runs if name in runs[run])}') for name in names]


def judged_tables(folder: Path) -> list[tuple[str, list[list[str]]]]:
    """The tables that `mmcae judge` and `mmcae evaluate` have left in a folder, with captions."""
    tables = []
    for path in sorted(folder.rglob('judged.json')):
        content = parse_json(read_text(path), str(path))
        if not isinstance(content, dict) or content.get('kind') != 'mmcae.judge':
            raise DataError(f'{path} was not written by mmcae judge: remove or rename it')
        tables.append((f'{content["data"]}. Test split, shares in per cent, with 95 % intervals.', content['table']))
    for path in sorted(folder.rglob('results.json')):
        content = parse_json(read_text(path), str(path))
        if isinstance(content, dict) and isinstance(content.get('protocols'), dict):
            scores = content['protocols']
            metrics = list(dict.fromkeys(metric for found in scores.values() for metric in found))
            rows = [
                [name, *(f'{100 * found[metric]:.1f}' if metric in found else '' for metric in metrics)] for name, found in scores.items()
            ]
            tables.append((f'{content.get("checkpoint")}: protocols, in per cent.', [['protocol', *metrics], *rows]))
    return tables


def add_pictures(page: Page, folders: Mapping[str, Path]):
    """The pictures that lie in work dirs, each folder under a heading of its own."""
    left, skipped = MOST_PICTURES, 0
    for name, folder in folders.items():
        by_folder: dict[Path, list[Path]] = {}
        for path in sorted(folder.rglob('*')):
            if path.suffix.lower() in PICTURES and path.is_file() and path != page.path:
                if left and path.stat().st_size <= LARGEST:
                    by_folder.setdefault(path.parent, []).append(path)
                    left -= 1
                else:
                    skipped += 1
        for place, paths in by_folder.items():
            inside = '' if place == folder else f', {place.relative_to(folder)}'
            page.heading(f'Pictures: {name}{inside}')
            page.pictures([(path, path.stem.replace('_', ' ')) for path in paths])
    if skipped:
        page.text(f'{skipped} more pictures in these folders are not shown: a page holds {MOST_PICTURES}, of at most 8 MiB each.')


# ---------------------------------------------------------------- configuration


def config_of(folder: Path) -> Config | None:
    """The config that the newest run has left in its work dir."""
    configs = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    return Config.fromfile(configs[-1]) if configs else None


def add_configs(page: Page, configs: Mapping[str, Config]):
    """Differences to the config of the same name that comes with mmcae, between the runs, and the whole."""
    if not configs:
        return
    page.heading('Configuration')
    flat = {name: flattened(config) for name, config in configs.items()}
    for name, config in configs.items():
        base = base_of(config)
        if base is None:
            continue
        rows = differences(dict(base=base, run=flat[name]))
        stem = Path(config.filename).stem
        if len(rows) > 1:
            page.table(rows, f'{name}: differences to {stem}, which comes with mmcae', text=True)
        else:
            page.text(f'{name} is {stem} as it comes with mmcae.')
    if len(flat) > 1:
        rows = differences(flat)
        page.table(rows, 'Differences between the runs', text=True) if len(rows) > 1 else page.text('The runs have the same configuration.')
    for name, config in configs.items():
        page.details(f'All of {name}', config.pretty_text)


def base_of(config: Config) -> dict[str, str] | None:
    """The settings of the packaged config of the same name, if there is one."""
    try:
        return flattened(load_config(find_config(Path(config.filename).stem)))
    except (ConfigError, DataError):  # a base that this machine cannot run tells nothing about the run
        return None


def flattened(value, prefix: str = '') -> dict[str, str]:
    """Settings by dotted names, as text; lists of dicts by numbers."""
    if isinstance(value, Config):
        value = value.to_dict()
    if isinstance(value, Mapping) and value:
        items = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(part, Mapping) for part in value):
        items = enumerate(value)
    else:
        return {prefix: json.dumps(value, default=str, ensure_ascii=False)}
    return {key: text for name, part in items for key, text in flattened(part, f'{prefix}.{name}' if prefix else str(name)).items()}


def differences(configs: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """A row for each setting in which configs differ, the header first."""
    names = sorted({name for settings in configs.values() for name in settings if name not in PLACES})
    rows = [[name, *(settings.get(name, '-') for settings in configs.values())] for name in names]
    return [['setting', *configs], *(row for row in rows if len(set(row[1:])) > 1)]


def environment_of(folder: Path) -> str:
    """What mmengine wrote about system and runtime into the newest log; empty where it did not."""
    logs = sorted(folder.glob('*/*.log'))
    found = re.search(r'^-{20,}\n(System environment:.*?)\n-{20,}$', read_text(logs[-1]), re.DOTALL | re.MULTILINE) if logs else None
    return re.sub(r'(?m)^\s+- .*\n|^.*compiling details.*\n', '', found.group(1)) if found else ''
