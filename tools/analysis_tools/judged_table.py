"""One table of several runs of `mmcae judge`, such as one for each seed: mean and standard deviation over the runs for each encoder's name.

    python tools/analysis_tools/judged_table.py judged/seed0/judged.json judged/seed1/judged.json judged/seed2/judged.json

The encoders of a method have the same name in each run (NAME=CHECKPOINT). Runs on several data sets are columns of one table.
"""

import argparse
import json
import statistics
from pathlib import Path


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('judged', nargs='+', type=Path, metavar='JUDGED.JSON', help='as mmcae judge writes them')
    parser.add_argument('--json', type=Path, help='write every score of every run, and their means, to this file')
    return parser.parse_args()


def main():
    args = parse_args()
    from mmcae.utils.errors import one_line_errors  # after the arguments: --help must not wait for torch

    with one_line_errors():
        from mmcae.utils.files import write_file

        runs = [read(path) for path in args.judged]
        found = scores_of(runs, args.judged)
        print(markdown(found))
        if args.json:
            write_file(args.json, json.dumps(content_of(found, runs), indent=1) + '\n')


def read(path: Path) -> dict:
    """A judged.json."""
    from mmcae.utils.errors import DataError
    from mmcae.utils.text_files import read_text

    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f'{path} is no JSON ({error}): give the judged.json that mmcae judge wrote') from error
    if not isinstance(content, dict) or content.get('kind') != 'mmcae.judge':
        raise DataError(f'{path} is not of mmcae judge: give the judged.json that it wrote')
    return content


def scores_of(runs: list, paths: list) -> dict:
    """{(data, probe, metric): {encoder: its values, one of each run}}.

    Raises:
        DataError: Runs on one data set differ in more than the seed, or an encoder has one run alone.
    """
    from mmcae.utils.errors import DataError

    first, found = {}, {}
    for run, path in zip(runs, paths, strict=True):
        alike = dict(counts=run['counts'], settings={**run['settings'], 'seed': None}, encoders=sorted(run['scores']))
        known, other = first.setdefault(run['data'], (alike, path))
        differing = [name for name in alike if alike[name] != known[name]]
        if differing:
            raise DataError(f'{path} and {other} differ in their {differing[0]}: judge all encoders by the same command, up to --seed')
        for encoder, scores in run['scores'].items():
            for score in scores:
                columns = found.setdefault((run['data'], score['probe'], score['metric']), {})
                columns.setdefault(encoder, []).append(score['value'])
    alone = [key for key, columns in found.items() for values in columns.values() if len(values) < 2]
    if alone:
        raise DataError(f'There is one run on {alone[0][0]}: a standard deviation needs two or more')
    return found


def markdown(found: dict) -> str:
    """A row for each encoder; shares in per cent, errors as they are."""
    encoders = list(dict.fromkeys(encoder for columns in found.values() for encoder in columns))
    head = ['encoder', *(f'{data}: {probe.replace("_", " ")}, {metric}' for data, probe, metric in found)]
    lines = ['| ' + ' | '.join(head) + ' |', '| --- |' + ' ---: |' * len(found)]
    for encoder in encoders:
        cells = [shown(columns.get(encoder), metric) for (_, _, metric), columns in found.items()]
        lines.append('| ' + ' | '.join([encoder, *cells]) + ' |')
    return '\n'.join(lines)


def shown(values: list | None, metric: str) -> str:
    """Mean ± sample standard deviation."""
    if values is None:
        return ''
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return f'{mean:.4g} ± {deviation:.2g}' if metric == 'MAE' else f'{100 * mean:.1f} ± {100 * deviation:.1f}'


def content_of(found: dict, runs: list) -> dict:
    """Everything, for programs."""
    scores = [
        dict(
            data=data,
            probe=probe,
            metric=metric,
            encoder=encoder,
            values=values,
            mean=statistics.mean(values),
            std=statistics.stdev(values),
        )
        for (data, probe, metric), columns in found.items()
        for encoder, values in columns.items()
    ]
    settings = [dict(data=run['data'], counts=run['counts'], settings=run['settings']) for run in runs]
    return dict(kind='mmcae.judge.runs', scores=scores, runs=settings)


if __name__ == '__main__':
    main()
