"""Build the project's virtual environment from nothing, step by step, and pick up where an interrupted build stopped.

`make demo` and `make test` call this; `python tools/build_env.py --help` tells what can be changed. It runs on the machine's
bare Python, so it uses the standard library only. The recipe is the tested one: torch as pip offers it on this machine
(CPU or CUDA), then mmcv compiled from its source package against exactly that torch, then the rest, then mmcae itself.

The compiled mmcv is kept as a wheel in `$MMCAE_CACHE` (default: `~/.cache/mmcae`), in a folder named after Python, torch and platform,
because pip's own cache does not know which torch a wheel was compiled against.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements'
CONSTRAINTS = REQUIREMENTS / 'constraints.txt'
SUPPORTED = ((3, 10), (3, 12))
# -g0 halves the compile time, -O2 is within noise of the default -O3 on nms and roi_align, NDEBUG is what the defaults define.
MMCV_CFLAGS = '-O1 -g0 -DNDEBUG'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='where to build it (default: %(default)s)')
    args = parser.parse_args()
    check_machine()
    Environment(args.venv).build()


def check_machine():
    """Stop at once, with the remedy, where the build could only fail later."""
    if not SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        sys.exit(f'mmcae needs Python 3.10 to 3.12, this is {sys.version.split()[0]} ({sys.executable}). '
                 'Name another one: make demo PYTHON=python3.11')
    if not (os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++') or shutil.which('c++')):
        sys.exit('No C++ compiler found; mmcv has to be compiled. Debian and Ubuntu: apt-get install g++ python3-dev')
    header = Path(sysconfig.get_paths()['include']) / 'Python.h'
    if not header.exists():
        sys.exit(f'{header} is missing; mmcv has to be compiled. Debian and Ubuntu: apt-get install python3-dev')


class Environment:
    """A virtual environment that remembers which steps of the recipe it has been through."""

    def __init__(self, path):
        self.path = path
        self.python = path / ('Scripts' if os.name == 'nt' else 'bin') / 'python'
        self.record = path / 'mmcae-build.json'
        self.log = path / 'mmcae-build.log'

    def build(self):
        steps = [
            ('virtual environment', 'seconds', self.create),
            ('torch', 'half a minute, longer for a CUDA build', lambda: self.pip('-r', REQUIREMENTS / 'build.txt')),
            ('mmengine', 'seconds', lambda: self.pip('mmengine')),
            ('mmcv, compiled from source', 'about 6 minutes on 2 cores, seconds when cached', self.install_mmcv),
            ('mmdet, mmsegmentation, mmpretrain, timm and the rest', 'half a minute', self.install_the_rest),
            ('mmcae', 'seconds', lambda: self.pip('--no-deps', '--no-build-isolation', '-e', ROOT)),
        ]
        fingerprint = self.fingerprint()
        done = json.loads(self.record.read_text()) if self.record.exists() else {}
        if done.get('fingerprint') != fingerprint:
            done = {'fingerprint': fingerprint, 'steps': []}
        if len(done['steps']) == len(steps):
            return
        print(f'Building {self.path}. Interrupt at will: the next run goes on from there.', flush=True)
        began = time.time()
        for number, (name, expected, action) in enumerate(steps, 1):
            if name in done['steps']:
                continue
            print(f'[{number}/{len(steps)}] {name} ({expected})', flush=True)
            action()
            done['steps'].append(name)
            self.record.write_text(json.dumps(done, indent=1))
        print(f'Environment ready in {self.path} after {(time.time() - began) / 60:.1f} minutes.', flush=True)

    def fingerprint(self):
        """What the environment depends on: a change of any of it makes the next run go through the steps again."""
        digest = hashlib.sha256(sys.version.encode())
        for file in sorted(REQUIREMENTS.glob('*.txt')) + [ROOT / 'setup.py']:
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def create(self):
        venv.EnvBuilder(with_pip=True, clear=False, symlinks=os.name != 'nt').create(self.path)

    def install_the_rest(self):
        self.pip('-r', REQUIREMENTS / 'openmmlab.txt', '-r', REQUIREMENTS / 'runtime.txt', '-r', REQUIREMENTS / 'tests.txt')

    def install_mmcv(self):
        shelf = self.wheel_shelf()
        if not list(shelf.glob('mmcv-*.whl')):
            self.check_cuda_compiler()
            shelf.mkdir(parents=True, exist_ok=True)
            # Written under another name first: an interrupted build must not leave half a wheel on the shelf.
            workbench = shelf / f'.building-{os.getpid()}'
            environment = dict(os.environ, CFLAGS=os.environ.get('CFLAGS', MMCV_CFLAGS), MMCV_WITH_OPS='1')
            environment.setdefault('MAX_JOBS', str(os.cpu_count() or 1))
            try:
                self.run([self.python, '-m', 'pip', 'wheel', '-v', '--no-cache-dir', '--no-build-isolation', '--no-deps',
                          '--no-binary', 'mmcv', '-c', CONSTRAINTS, '-w', workbench, 'mmcv'], env=environment)
                for wheel in workbench.glob('mmcv-*.whl'):
                    wheel.replace(shelf / wheel.name)
            finally:
                shutil.rmtree(workbench, ignore_errors=True)
        self.pip('--no-deps', '--force-reinstall', *shelf.glob('mmcv-*.whl'))

    def wheel_shelf(self):
        """The folder for wheels compiled for this Python, this torch and this platform."""
        script = ('import sys, sysconfig, torch; '
                  'print(f"cp{sys.version_info[0]}{sys.version_info[1]}", f"torch{torch.__version__}", sysconfig.get_platform(), '
                  '"cuda" if torch.cuda.is_available() else "cpu", sep="-")')
        facts = self.ask(script)
        cache = Path(os.environ.get('MMCAE_CACHE') or Path.home() / '.cache' / 'mmcae')
        return cache / 'wheels' / facts

    def check_cuda_compiler(self):
        """mmcv compiles its CUDA operators wherever torch sees a GPU; that takes nvcc."""
        script = ('import torch; from torch.utils.cpp_extension import CUDA_HOME; '
                  'print(torch.version.cuda or "") if torch.cuda.is_available() and CUDA_HOME is None else print("")')
        wanted = self.ask(script)
        if wanted:
            sys.exit(f'torch sees a GPU, but there is no nvcc to compile mmcv\'s CUDA operators with. Install the CUDA {wanted} '
                     'toolkit and set CUDA_HOME, then run the same command again; or hide the GPU with CUDA_VISIBLE_DEVICES= '
                     'for a CPU build.')

    def ask(self, script):
        """What a line of Python prints inside the environment."""
        return subprocess.run([self.python, '-c', script], check=True, capture_output=True, text=True).stdout.strip()

    def pip(self, *arguments):
        self.run([self.python, '-m', 'pip', 'install', '-c', CONSTRAINTS, *arguments])

    def run(self, command, env=None):
        """Run a step, its full output in the log, its progress on the screen; stop with the log's tail if it fails."""
        command = [str(part) for part in command]
        began, shown = time.time(), 0.
        with open(self.log, 'a') as log:
            log.write(f'\n$ {" ".join(command)}\n')
            process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            tail, live = [], sys.stdout.isatty()
            for line in process.stdout:
                log.write(line)
                tail = (tail + [line])[-25:]
                progress = describe(line)
                elapsed = time.time() - began
                if progress and time.time() - shown > (.2 if live else 15):
                    shown = time.time()
                    text = f'      {elapsed:4.0f} s  {progress}'[:110]
                    print(f'\r{text:<110}' if live else text, end='' if live else '\n', flush=True)
            if live:
                print('\r' + ' ' * 110, end='\r')
        if process.wait():
            sys.exit(''.join(tail) + f'\nThis command failed: {" ".join(command)}\nThe whole output is in {self.log}')
        print(f'      done in {time.time() - began:.0f} s', flush=True)


def describe(line):
    """The part of a line of pip's or ninja's output that tells how far it is, or None."""
    compiled = re.match(r'\s*\[(\d+)/(\d+)\]', line)
    if compiled:
        return f'compiling file {compiled[1]} of {compiled[2]}'
    step = re.match(r'\s*(Collecting|Downloading|Installing collected packages|Building wheel)\b(.*)', line)
    return f'{step[1]}{step[2]}'.strip() if step else None


if __name__ == '__main__':
    main()
