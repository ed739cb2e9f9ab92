"""Runs tools in processes forked from one that has imported the libraries already: a fraction of a second for what else takes five.

Reads one request a line from stdin, as JSON: `tool` (path), `arguments`, `cwd`, `seconds` (after which a process is killed), and
`processes`, a list of dict(environment=..., output=FILE), one for each process. Answers with the list of their exit codes. As under
torchrun, the others are ended when one fails. Whatever a tool changes in its process dies with it. The fixture `fork_tool` asks.
"""

import atexit
import importlib
import json
import os
import runpy
import signal
import sys
import traceback

LIBRARIES = [
    *(f'mmcae.{part}' for part in ('models', 'datasets', 'engine', 'evaluation', 'visualization')),
    *(f'mmpretrain.{part}' for part in ('datasets', 'evaluation', 'visualization')),
    *(f'{library}.{part}' for library in ('mmdet', 'mmseg') for part in ('models', 'datasets', 'engine', 'evaluation', 'visualization')),
    'matplotlib.pyplot',
]


def main():
    answers = os.fdopen(os.dup(1), 'w')  # what the libraries print goes elsewhere
    os.dup2(2, 1)
    from mmcae import compat

    compat.import_mmpretrain()
    for library in LIBRARIES:
        importlib.import_module(library)
    for line in sys.stdin:
        request = json.loads(line)
        children = [fork(request, process) for process in request['processes']]
        print(json.dumps(wait(children)), file=answers, flush=True)


def fork(request, process):
    """Start the tool in a process of its own; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        signal.alarm(request['seconds'])  # nobody handles it: the process is killed
        output = os.open(process['output'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout.reconfigure(line_buffering=False)  # as of any process whose output goes to a file
        os.environ.clear()
        os.environ.update(process['environment'])
        os.chdir(request['cwd'])
        code = run(request['tool'], request['arguments'])
        atexit._run_exitfuncs()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(tool, arguments):
    """Run a script as `python TOOL ARGUMENTS` does; returns the exit code."""
    sys.argv = [tool, *arguments]
    sys.path[:0] = [os.path.dirname(tool), *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))]
    try:
        runpy.run_path(tool, run_name='__main__')
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def wait(children):
    """The exit codes of all children; negative for one that a signal ended."""
    codes = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:
            for other in set(children) - set(codes):
                os.kill(other, signal.SIGTERM)
    return [codes[child] for child in children]


if __name__ == '__main__':
    main()
