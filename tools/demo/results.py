"""Tables of results: figures of several runs summed up, as JSON for machines and as a table for people."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmcae.utils.errors import DataError

# In the order of the tables' rows and columns.
ENCODERS = {
    'random': 'random initialisation',
    'cae': 'CAE',
    'cae_no_align': 'CAE without alignment',
    'mae': 'MAE',
}
PROTOCOLS = {
    'knn': 'kNN',
    'linear': 'linear probe',
    'attentive': 'attentive probe',
    'finetune_100': 'fine-tuning, 100 labels',
    'finetune_500': 'fine-tuning, 500 labels',
    'mIoU': 'UperNet, mIoU',
    'box_mAP': 'Mask R-CNN, box mAP',
    'segm_mAP': 'Mask R-CNN, mask mAP',
}
Results = dict[str, dict[str, dict[str, float]]]


def summarize(figures: Mapping[tuple[str, str], Sequence[float]]) -> Results:
    """Mean, sample standard deviation (0 for a single run) and number of runs.

    Args:
        figures: One figure per run, as fractions in [0, 1], by encoder and protocol.

    Returns:
        `{encoder: {protocol: {'mean', 'std', 'n'}}}`, in the order of the tables.
    """
    results: Results = {}
    for encoder in ENCODERS:
        for protocol in PROTOCOLS:
            values = figures.get((encoder, protocol))
            if values:
                std = statistics.stdev(values) if len(values) > 1 else 0.0
                entry = dict(mean=round(statistics.mean(values), 4), std=round(std, 4), n=len(values))
                results.setdefault(encoder, {})[protocol] = entry
    return results


def read_results(path: str | Path) -> Results:
    """Results from a JSON file, checked.

    Raises:
        DataError: It cannot be read, or has another form.
    """
    from mmcae.utils.text_files import read_json  # not with --help

    try:
        results = read_json(path)
        for encoder, by_protocol in results.items():
            for protocol, entry in by_protocol.items():
                known = encoder in ENCODERS and protocol in PROTOCOLS
                if not known or set(entry) != {'mean', 'std', 'n'} or not 0 <= entry['mean'] <= 1:
                    raise DataError(f'{path}: {encoder}.{protocol} is {entry}, not a result of a known encoder and protocol')
    except (AttributeError, TypeError) as error:
        raise DataError(f'{path} holds no results: {error}') from error
    return results


def table(results: Results) -> list[list[str]]:
    """Rows of text, the header first: one row per encoder, one column per protocol, figures in per cent with their spread."""
    protocols = [protocol for protocol in PROTOCOLS if any(protocol in entry for entry in results.values())]
    rows = [['encoder', *(PROTOCOLS[protocol] for protocol in protocols)]]
    for encoder, name in ENCODERS.items():
        if encoder in results:
            rows.append([name, *(cell(results[encoder].get(protocol)) for protocol in protocols)])
    return rows


def cell(entry: Mapping[str, float] | None) -> str:
    """Such as `57.1 ± 0.8`, in per cent."""
    if entry is None:
        return '–'
    return f'{100 * entry["mean"]:.1f}' + (f' ± {100 * entry["std"]:.1f}' if entry['n'] > 1 else '')


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, the header first, as Markdown."""
    head, *body = rows
    alignment = ['---', *('---:' for _ in head[1:])]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in (head, alignment, *body)) + '\n'
