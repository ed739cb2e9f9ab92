"""Measure mmcae on one GPU, within half an hour and without a network: tests, speed, loading, memory; one JSON and one page.

    make gpu-check                                          # python tools/gpu_check.py --device cuda
    python tools/gpu_check.py --device cpu --tiny           # try the program itself, in minutes

Runs the tests marked `gpu`, tools/benchmarks/pretrain_step.py for several batches with and without torch.compile, the loader, the GPU's
matrix rates, and a profile of three steps. What fails is noted, and the rest goes on. Everything lands in one folder; send it back whole.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

TOOLS = Path(__file__).resolve().parent
sys.path.insert(0, str(TOOLS / 'benchmarks'))
TINY = '--img-size 32 --width 64 --depth 1 --tokenizer-width 8'.split()
FAILED = 1


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda', help='where to compute (default: %(default)s)')
    parser.add_argument('--tiny', action='store_true', help='tiny models, one round: to try the program')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu_check'), help='folder of the results (default: %(default)s)')
    parser.add_argument('--minutes', type=float, default=25, help='when no further step is begun (default: %(default)s)')
    return parser.parse_args()


def steps_of(args):
    """Name -> (command, seconds it may take)."""
    python, device = sys.executable, ['--device', args.device]
    batches = [2] if args.tiny else [64, 128, 256]
    size = [*TINY, '--rounds', '1'] if args.tiny else ['--rounds', '5']
    size += ['--mask-ratios', *([] if args.tiny else ['0.4', '0.75'])]
    steps = {'tests': ([python, '-m', 'pytest', '-q', '-m', 'gpu', str(TOOLS.parent / 'tests/test_gpu')], 600)}
    for name in ('rates', 'profile'):
        steps[name] = ([python, __file__, '--out', str(args.out), *device, *(['--tiny'] if args.tiny else []), f'--step={name}'], 180)
    for batch in batches:
        for compiled in (False,) if args.tiny else (False, True):
            name = f'step_{batch}{"_compiled" if compiled else ""}'
            command = [python, str(TOOLS / 'benchmarks/pretrain_step.py'), *device, *size, '--batch-size', str(batch)]
            steps[name] = ([*command, *(['--compile'] if compiled else []), '--json', str(args.out / f'{name}.json')], 400)
    loader = ['--images', '4', '--rounds', '1', '--batch-size', '2'] if args.tiny else ['--rounds', '3']
    command = [python, str(TOOLS / 'benchmarks/dataloader.py'), *device, *loader, '--json', str(args.out / 'loader.json')]
    steps['loader'] = (command, 300)
    return steps


def run_steps(args):
    """Run all steps one after the other; returns what became of each."""
    environment = dict(os.environ, MMCAE_TEST_DEVICE=args.device)
    began, results = time.monotonic(), {}
    patience = 1 if args.device == 'cuda' else 3  # a CPU that others use too
    for name, (command, limit) in steps_of(args).items():
        left = args.minutes * 60 - (time.monotonic() - began)
        if left <= 0:
            results[name] = dict(status='not begun: no time left')
            continue
        start = time.monotonic()
        print(f'{name} ...', flush=True)
        with open(args.out / f'{name}.log', 'w') as log:
            # A session of its own, so that whatever a step has started ends with it.
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
            try:
                code = process.wait(timeout=min(limit * patience, left))
                status = 'done' if code == 0 else f'failed with exit code {code}'
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = 'not finished in time'
        results[name] = dict(status=status, seconds=round(time.monotonic() - start, 1))
        path = args.out / f'{name}.json'
        if status == 'done' and path.exists():
            results[name]['figures'] = json.loads(path.read_text())
        print(f'    {status}', flush=True)
    return results


# ---------------------------------------------------------------- steps of its own


def measure_rates(args):
    """Operations per second in matrix products."""
    import timing

    device, size = timing.device_of(args.device), 256 if args.tiny else 8192
    dtypes = ('float32', 'bfloat16', 'float16') if args.device == 'cuda' else ('float32', 'bfloat16')
    return {dtype: timing.matrix_rate(device, dtype, size) for dtype in dtypes}


def profile_steps(args):
    """Profile of three steps of ours in mixed precision: the operators that take most, and a trace for chrome://tracing."""
    import contenders
    import torch
    from torch.profiler import ProfilerActivity, profile

    settings = '--img-size 32 --width 64 --depth 1 --tokenizer-width 8'.split() if args.tiny else []
    parser = argparse.ArgumentParser()
    parser.add_argument('--device')
    contenders.add_size_arguments(parser, batch_size=2 if args.tiny else 128)
    sizes = parser.parse_args([*settings, '--device', args.device])
    model = contenders.build(sizes, ours=True, dtype='bfloat16')
    batch = contenders.make_batch(sizes, 0.5)
    contenders.step(*model, batch)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if args.device == 'cuda' else [])]
    with profile(activities=activities) as profiler:
        for _ in range(3):
            contenders.step(*model, batch)
    profiler.export_chrome_trace(str(args.out / 'trace.json'))
    key = 'self_device_time_total' if args.device == 'cuda' else 'self_cpu_time_total'
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))[:20]
    result = dict(microseconds={event.key: getattr(event, key) for event in events})
    if args.device == 'cuda':
        result['peak_bytes'] = torch.cuda.max_memory_allocated()
    return result


STEPS = dict(rates=measure_rates, profile=profile_steps)


# ---------------------------------------------------------------- the page


def bars(results):
    """Rows of what was asked of a GPU: at the batch where ours is fastest, for ViT-B/16 in full size."""
    steps = [result['figures'] for name, result in results.items() if name.startswith('step_') and result.get('figures')]
    compiled, theirs = 'mmcae bf16, compiled', 'mmpretrain fp16'
    steps = [figures for figures in steps if compiled in figures['seconds'] and theirs in figures['seconds']]
    if not steps:
        return []
    ratio = max(median(figures['seconds'][theirs]) / median(figures['seconds'][compiled]) for figures in steps)
    rows = [row for figures in steps for row in figures['rows'] if row['contender'] == compiled and row['of matrix rate']]
    rate = max((row['of matrix rate'] for row in rows), key=lambda text: float(text.rstrip('%')), default='')
    twice = [figures['complementary_vs_plain']['predictions_per_second'] for figures in steps if figures['complementary_vs_plain']]
    found = [
        ("bf16, compiled, against mmpretrain's fp16", f'{ratio:.2f} times', '1.8 times'),
        ('share of the measured bf16 matrix rate', rate, '45%'),
        ('complementary masks, predictions per second', f'{max(twice):.2f} times' if twice else '', '1.3 times'),
    ]
    return [dict(zip(('figure', 'found', 'asked'), row, strict=True)) for row in found]


def page(results, machine):
    """The results as Markdown."""
    lines = ['# mmcae on one device', '', *(f'{name}: {value}  ' for name, value in machine.items()), '', '| step | status | seconds |']
    lines += ['| --- | --- | --- |']
    lines += [f'| {name} | {result["status"]} | {result.get("seconds", "")} |' for name, result in results.items()]
    import timing

    if rows := bars(results):
        lines += ['', timing.table(rows)]
    for name, result in results.items():
        figures = result.get('figures')
        if not figures:
            continue
        lines += ['', f'## {name}', '']
        if 'rows' in figures:
            lines.append(timing.table(figures['rows']))
        else:
            lines += ['```', json.dumps(figures, indent=1), '```']
    return '\n'.join([*lines, '', 'Send the whole folder back: results.json, this page, trace.json and the logs.', ''])


def main():
    step = next((argument.removeprefix('--step=') for argument in sys.argv if argument.startswith('--step=')), None)
    sys.argv = [argument for argument in sys.argv if not argument.startswith('--step=')]
    args = parse_args()
    import timing

    from mmcae.utils.errors import one_line_errors
    from mmcae.utils.files import write_file

    with one_line_errors():
        device = timing.device_of(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        if step:
            write_file(args.out / f'{step}.json', json.dumps(STEPS[step](args), indent=1))
            return
        results = run_steps(args)
        machine = timing.machine(device)
        write_file(args.out / 'results.json', json.dumps(dict(machine=machine, tiny=args.tiny, steps=results), indent=1))
        write_file(args.out / 'index.md', page(results, machine))
        print(f'Wrote {args.out}/results.json and {args.out}/index.md: send the whole folder back')
    sys.exit(0 if all(result['status'] == 'done' for result in results.values()) else FAILED)


if __name__ == '__main__':
    main()
