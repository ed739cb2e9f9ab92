"""`mmcae demo`: the whole chain on handwritten digits, which is the program tools/demo.py."""

import runpy
import sys


def main(arguments):
    """Run the program, with all of these arguments; its results go below the current folder."""
    from ..utils.packaged import TOOLS

    program = str(TOOLS / 'demo.py')
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name='__main__')
