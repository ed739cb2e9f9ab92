"""Print the table of a results.json, or put it into a document between its results markers.

python tools/analysis_tools/results_table.py work_dirs/demo/results.json
python tools/analysis_tools/results_table.py docs/results/digits_results.json --into docs/methods.md
"""

import argparse
import re
import sys
from pathlib import Path

BEGIN, END = '<!-- results: made by tools/analysis_tools/results_table.py -->', '<!-- end of results -->'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', help='a results.json, as the demo writes it')
    parser.add_argument('--into', type=Path, help=f'a document with the lines {BEGIN} and {END}')
    return parser.parse_args()


def main():
    args = parse_args()
    from mmcae.utils.errors import one_line_errors  # after the arguments: --help must not wait for torch

    with one_line_errors():
        make(args)


def make(args):
    from mmcae.utils.errors import DataError

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'demo'))
    from results import markdown, read_results, table

    text = markdown(table(read_results(args.results)))
    if args.into is None:
        print(text, end='')
        return
    document = args.into.read_text()
    marked = re.compile(f'({re.escape(BEGIN)}\n).*?({re.escape(END)})', re.DOTALL)
    if not marked.search(document):
        raise DataError(f'{args.into} has no lines {BEGIN} and {END}: put them where the table is to be')
    args.into.write_text(marked.sub(lambda match: match[1] + text + match[2], document))
    print(f'Wrote the table into {args.into}')


if __name__ == '__main__':
    main()
