"""Pretraining methods at an equal budget of computation: data sets x methods x seeds, judged by several protocols, with a paired test.

    python tools/benchmarks/compare_methods.py --split val --methods cae cae_pixels mae --seeds 0 1 2
    python tools/benchmarks/compare_methods.py --split val --methods mae cae_half=cae --cfg-options cae_half:mask_ratio=0.5

A method is a recipe in configs/DATA/METHOD_vit-DATA.py; NAME=METHOD is a variant of one, which options after `NAME:` change. In options
{data} and {seed} stand for those of the training, so that it can start from, or be taught by, the result of another. The cost of a step is
counted, the forward and the backward pass, the target's and the target encoder's included: products of matrices and convolutions in
multiply-adds. Each method trains for as many steps as the budget has room for. What is made beforehand, a tokenizer or the encoder that a
teacher is, is not counted. Choose by `--split val`, publish `--split test`. Interrupt it at will: the next run keeps the cells that have
finished.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

INTERRUPTED = 'Interrupted. The same command goes on from here.'
DATA = ('digits', 'fashion')
METHODS = ('cae', 'cae_pixels', 'mae', 'beit', 'simmim', 'data2vec', 'ijepa')
PROTOCOLS = ('knn', 'linear', 'attentive', 'finetune_100')
GIGA = 1e9


@dataclass(frozen=True)
class Cell:
    """One training and its judgement."""

    data: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f'cells/{self.data}/{self.method}/seed{self.seed}'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--split', choices=['val', 'test'], required=True, help='what is judged on: val to choose, test to publish')
    parser.add_argument('--methods', nargs='+', default=METHODS, metavar='NAME[=METHOD]', help='what to compare (default: %(default)s)')
    parser.add_argument('--data', nargs='+', choices=DATA, default=DATA, help='which data sets (default: %(default)s)')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], metavar='N', help='(default: %(default)s)')
    parser.add_argument(
        '--budget',
        type=float,
        metavar='GIGA',
        help='giga multiply-adds of a pretraining (default: those of the first method by its recipe)',
    )
    parser.add_argument('--against', metavar='NAME', help='the method that the others are compared with (default: the first)')
    parser.add_argument('--protocols', nargs='+', default=PROTOCOLS, metavar='NAME', help='of mmcae evaluate (default: %(default)s)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/compare_methods'), help='where results go (default: %(default)s)')
    parser.add_argument('--lanes', type=int, default=1, help='commands at a time, each of one thread (default: %(default)s)')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='of all pretrainings; NAME:KEY=VALUE changes one method alone'
    )
    parser.add_argument(
        '--protocol-options', nargs='+', default=[], metavar='KEY=VALUE', help='of all protocols; PROTOCOL:KEY=VALUE changes one alone'
    )
    args = parser.parse_args()
    recipes = [text.partition('=') for text in args.methods]
    args.recipes = {name: recipe or name for name, _, recipe in recipes}
    args.against = args.against or next(iter(args.recipes))
    if len(args.recipes) < len(recipes) or len(set(args.seeds)) < len(args.seeds) or len(set(args.data)) < len(args.data):
        parser.error('a method, a seed or a data set is named twice; call variants of a method NAME=METHOD')
    if args.against not in args.recipes:
        parser.error(f'--against {args.against}: it is none of the methods {", ".join(args.recipes)}')
    if args.lanes < 1 or min(args.seeds) < 0 or (args.budget is not None and not args.budget > 0):
        parser.error('--lanes must be at least 1, --seeds must not be negative, --budget must be above 0')
    return args


def main():
    args = parse_args()
    from mmcae.utils.errors import one_line_errors  # after the options are read: --help must not wait for torch

    try:
        with one_line_errors():
            compare(args)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def compare(args):
    from mmcae.commands import protocols as core
    from mmcae.commands.jobs import JobFailed, JobRunner
    from mmcae.utils.files import write_file

    for data in args.data:
        core.split_options(args.protocol_options, core.choose(core.protocols_for(data, None), args.protocols))
    options = {method: options_of(args, method) for method in args.recipes}
    try:
        tokenizers = tokenizer_jobs(args, options)
        JobRunner(tokenizers, args.out / 'tokenizers', args.lanes, env=dict(OMP_NUM_THREADS='1')).run()
        plans = plan_trainings(args, options)
        cells = [Cell(data, method, seed) for seed in args.seeds for data in args.data for method in args.recipes]
        jobs = [job for cell in cells for job in jobs_of(args, cell, *plans[cell.data, cell.method])]
        runner = JobRunner(jobs, args.out, args.lanes, env=dict(OMP_NUM_THREADS='1'))
        runner.run()
    except JobFailed as error:
        sys.exit(str(error))
    results = [result_of(args, cell, plans[cell.data, cell.method], runner.record(f'{cell.name}/pretrain')) for cell in cells]
    text = table(results, args)
    facts = dict(split=args.split, against=args.against, command=' '.join(['python', *sys.argv]))
    write_file(args.out / f'results_{args.split}.json', json.dumps(facts | dict(cells=results), indent=1) + '\n')
    write_file(args.out / f'results_{args.split}.md', text + '\n')
    print(f'\n{text}\n\nWrote {args.out / f"results_{args.split}.json"} and .md')


# ---------------------------------------------------------------- what is run


def options_of(args, method) -> list[str]:
    """The options of a method: those of all, and its own without its name.

    Raises:
        ConfigError: An option for a method that is not compared.
    """
    from mmcae.utils.errors import ConfigError

    chosen = []
    for option in args.cfg_options:
        name, colon, rest = option.partition(':')
        alone = colon and '=' not in name
        if alone and name not in args.recipes:
            raise ConfigError(f'--cfg-options {option}: there is no method {name!r} here; there are {", ".join(args.recipes)}')
        if not alone or name == method:
            chosen.append(rest if alone else option)
    return chosen


def filled(options, data, seed) -> list[str]:
    """Options for one training: {data} and {seed} replaced."""
    return [option.replace('{data}', data).replace('{seed}', str(seed)) for option in options]


def config_of(args, data, method) -> Path:
    """The recipe of a method on a data set."""
    from mmcae.utils.packaged import find_config

    return find_config(f'{data}/{args.recipes[method]}_vit-{data}.py')


def reads_tokenizer(cfg) -> bool:
    """Whether a recipe's targets are those of the data set's tokenizer, under the name that the recipe gives it."""
    target = cfg.model.get('target_generator') or {}
    return bool(cfg.get('tokenizer')) and target.get('checkpoint') == cfg.tokenizer


def tokenizer_jobs(args, options):
    """The tokenizers that a method needs: one for each data set, the same for all seeds."""
    from mmcae.commands.jobs import Job
    from mmcae.utils.configs.loading import load_config
    from mmcae.utils.packaged import find_config

    jobs = []
    for data in args.data:
        configs = (load_config(config_of(args, data, method), filled(options[method], data, args.seeds[0])) for method in args.recipes)
        if any(map(reads_tokenizer, configs)):
            config = find_config(f'{data}/tokenizer_{data}.py')
            command = ('python', '-m', 'mmcae', 'train', str(config), '--work-dir', str(args.out / 'tokenizers' / data))
            jobs.append(Job(data, f'{data}: tokenizer', command, (), content_of(load_config(config))))
    return jobs


def content_of(cfg) -> str:
    return json.dumps(cfg.to_dict(), sort_keys=True, default=str)


def plan_trainings(args, options):
    """For each data set and method: the options of its training, the steps it has, and the multiply-adds of one."""
    from mmcae.utils.configs.loading import load_config

    plans = {}
    for data in args.data:
        budget = args.budget and args.budget * GIGA
        for method in args.recipes:
            config, chosen = config_of(args, data, method), list(options[method])
            if reads_tokenizer(load_config(config, filled(chosen, data, args.seeds[0]))):
                chosen.append(f'model.target_generator.checkpoint={args.out / "tokenizers" / data / "tokenizer.pth"}')
            cfg = load_config(config, filled(chosen, data, args.seeds[0]))
            recipe_steps = cfg.train_cfg.max_iters
            cost = cost_of(cfg)
            budget = budget or cost * recipe_steps
            steps = max(1, round(budget / cost))
            plans[data, method] = ([*chosen, f'max_iters={steps}'], steps, cost)
            print(f'{data}, {method}: {cost / GIGA:.3f} giga multiply-adds a step, {steps:,} steps in {budget / GIGA:,.0f}', flush=True)
    return plans


def cost_of(cfg) -> int:
    """Multiply-adds of one step of training, on a batch of the data: an addition counts as an operation of its own."""
    from timing import count_flops

    from mmcae.engine.launch import build_runner

    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        cfg.update(work_dir=folder, experiment_name=Path(folder).name, log_level='ERROR')
        runner, counted = build_runner(cfg), []
        loop = runner.train_loop

        def one_step():
            batch = next(iter(loop.dataloader))
            runner.model.train()
            counted.append(count_flops(lambda: runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)))

        loop.run = one_step
        runner.train()
    return counted[0] // 2


def jobs_of(args, cell, chosen, steps, cost):
    """The training of a cell, and its judgement."""
    from mmcae.commands.jobs import Job
    from mmcae.utils.configs.loading import last_checkpoint, load_config

    config = config_of(args, cell.data, cell.method)
    chosen = [*filled(chosen, cell.data, cell.seed), f'randomness.seed={cell.seed}']
    cfg = load_config(config, chosen)
    work_dir, judged = args.out / cell.name / 'pretrain', folder_of(args, cell)
    title = f'{cell.data}, {cell.method}, seed {cell.seed}'
    train = ('python', '-m', 'mmcae', 'train', str(config), '--work-dir', str(work_dir), '--cfg-options', *chosen)
    yield Job(f'{cell.name}/pretrain', f'{title}: {steps:,} steps', train, (), content_of(cfg))
    evaluate = ('python', '-m', 'mmcae', 'evaluate', str(work_dir / last_checkpoint(cfg)), '--config-family', cell.data)
    evaluate += ('--protocols', *args.protocols, '--out', str(judged), '--seed', str(cell.seed))
    evaluate += ('--cfg-options', f'test_split={args.split}', *args.protocol_options)
    outputs = (str(judged / 'results.json'),)
    arch = cfg.model.backbone.get('arch')
    if isinstance(arch, dict):  # a checkpoint of mmpretrain's MAE does not tell
        evaluate += ('--num-heads', str(arch['num_heads']))
    needs = (f'{cell.name}/pretrain',)
    yield Job(f'{cell.name}/evaluate_{args.split}', f'{title}: {", ".join(args.protocols)}', evaluate, needs, '', outputs)


def folder_of(args, cell) -> Path:
    """Where the protocols of a cell are run."""
    return args.out / cell.name / f'protocols_{args.split}'


# ---------------------------------------------------------------- what came out


def result_of(args, cell, plan, record) -> dict:
    """The numbers of a cell: fractions of 1 by protocol and metric, the main metric first."""
    figures = json.loads((folder_of(args, cell) / 'results.json').read_text())['protocols']
    _, steps, cost = plan
    facts = dict(data=cell.data, method=cell.method, seed=cell.seed, steps=steps, multiply_adds_of_a_step=cost, seconds=record['seconds'])
    return facts | dict(figures={protocol: figures[protocol] for protocol in args.protocols})


def table(results, args) -> str:
    """Means, standard deviations over the seeds, and of all but one method the lead over that one, with the p of a paired test."""
    main = {protocol: next(iter(found)) for protocol, found in results[0]['figures'].items()}
    header = [
        'data',
        'method',
        'giga multiply-adds a step',
        'steps',
        'minutes',
        *(f'{protocol} {main[protocol]}' for protocol in args.protocols),
    ]
    lines = [header, ['---'] * len(header)]
    for data in args.data:
        for method in args.recipes:
            own, other = ([cell for cell in results if (cell['data'], cell['method']) == (data, name)] for name in (method, args.against))
            minutes = statistics.mean(cell['seconds'] for cell in own) / 60
            row = [data, method, f'{own[0]["multiply_adds_of_a_step"] / GIGA:.2f}', f'{own[0]["steps"]:,}', f'{minutes:.1f}']
            for protocol in args.protocols:
                ours, theirs = ([100 * cell['figures'][protocol][main[protocol]] for cell in cells] for cells in (own, other))
                row.append(summary(ours) + (difference(ours, theirs) if method != args.against else ''))
            lines.append(row)
    seeds = f'{len(args.seeds)} seed{"s" if len(args.seeds) > 1 else ""}'
    notes = (
        f'Scores on {args.split} in per cent, mean and standard deviation over {seeds}; in brackets the lead over {args.against} and the '
    )
    notes += 'p of a paired t-test over the seeds. Minutes are those of the pretraining, with its start.'
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + f'\n\n{notes}'


def summary(values) -> str:
    """Mean and standard deviation (of a sample) of some numbers."""
    return f'{statistics.mean(values):.1f}' + (f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else '')


def difference(ours, theirs) -> str:
    """The mean lead of numbers over others, and the p of a paired t-test where there are two gaps or more that differ."""
    from scipy.stats import ttest_rel

    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    tested = len(gaps) > 1 and statistics.stdev(gaps) > 0
    return f' ({statistics.mean(gaps):+.1f}' + (f', p {ttest_rel(ours, theirs).pvalue:.3f})' if tested else ')')


if __name__ == '__main__':
    main()
