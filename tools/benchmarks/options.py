"""Options that several benchmarks have. Nothing heavy is imported here: --help must not wait for torch."""

import argparse
import re


def size_of(text):
    """`224` or `800x1333` -> two numbers in the order given, (224, 224) or (800, 1333)."""
    match = re.fullmatch('([1-9][0-9]*)(?:x([1-9][0-9]*))?', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} is no size such as 224 or 800x1333')
    return int(match[1]), int(match[2] or match[1])


def add_timing_options(parser, rounds):
    """--clock, --rounds (with this default) and --json."""
    parser.add_argument(
        '--clock',
        choices=['wall', 'cpu'],
        default='wall',
        help='cpu: seconds of computing, for a CPU in use by others (default: %(default)s)',
    )
    parser.add_argument('--rounds', type=int, default=rounds, help='how often each contender has its turn (default: %(default)s)')
    parser.add_argument('--json', metavar='FILE', help='write the results there')
