"""Build the project's virtual environment from nothing, step by step, and go on where an interrupted build stopped.

`make demo` and `make test` call this; `python tools/build_env.py --help` tells what can be changed. It runs on the machine's
bare Python, so it uses the standard library only. The recipe is the tested one: torch as pip offers it on this machine
(CPU or CUDA), a torchvision that fits it, then mmcv compiled from its source package against exactly that torch, then the rest, then mmcae
itself.

tools/build_mmcv.py keeps the compiled mmcv as a wheel in `$MMCAE_CACHE` (default: `~/.cache/mmcae`). pip is called as it is: its
configuration files and environment variables (index, find-links, certificates, ...) hold.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

from build_mmcv import check_compiler

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements'
CONSTRAINTS = REQUIREMENTS / 'constraints.txt'
INSTALLED = ('runtime', 'detection', 'segmentation', 'slides', 'logging', 'tests')  # of the files in requirements/
SUPPORTED = ((3, 10), (3, 13))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='where to build it (default: %(default)s)')
    args = parser.parse_args()
    environment = Environment(args.venv.absolute())
    if environment.is_complete():
        return
    check_machine()
    try:
        environment.build()
    except KeyboardInterrupt:
        sys.exit('\nInterrupted. The same command goes on from here.')


def check_machine():
    """Stop at once, with the remedy, where the build could only fail later."""
    if not SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        sys.exit(
            f'mmcae needs Python 3.10 to 3.13, this is {sys.version.split()[0]} ({sys.executable}). '
            'Name another one: make demo PYTHON=python3.11'
        )
    check_compiler()


class Environment:
    """A virtual environment that remembers which steps of the recipe it has been through.

    Whatever kills a build, at whatever moment, the next one repairs: a step counts as done only once it is, and is repeated otherwise.
    """

    def __init__(self, path):
        self.path = path
        self.python = path / 'bin' / 'python'
        self.record = path / 'mmcae-build.json'
        self.log = path / 'mmcae-build.log'
        self.lock_file = path / 'mmcae-build.lock'
        self.lock = None

    @property
    def steps(self):
        """Name, expected duration and action of each step, in order."""
        return [
            ('virtual environment', 'seconds', self.create),
            ('torch', 'half a minute, longer for a CUDA build', lambda: self.pip('-r', REQUIREMENTS / 'build.txt')),
            ('torchvision', 'seconds', self.install_torchvision),
            ('mmengine and mmcv-lite', 'seconds', lambda: self.pip('mmengine', 'mmcv-lite')),
            ('mmcv, compiled from source', 'about 6 minutes on 2 cores, seconds when cached', self.install_mmcv),
            ('mmdet, mmsegmentation, mmpretrain, timm and the rest', 'half a minute', self.install_the_rest),
            ('mmcae', 'seconds', lambda: self.pip('--no-deps', '--no-build-isolation', '-e', ROOT)),
        ]

    def is_complete(self):
        """Whether nothing is left to do; quick, because `make demo` and `make test` ask every time."""
        done = self.read_record()
        return done.get('fingerprint') == self.fingerprint() and len(done['steps']) == len(self.steps)

    def build(self):
        """Go through the steps that are not done yet."""
        if self.path.exists() and not self.record.exists() and set(self.path.iterdir()) - {self.lock_file}:
            sys.exit(f'{self.path} exists, and this tool did not make it. Move it away, or name another place: make test VENV=.venv-mmcae')
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.lock_file, 'w') as self.lock:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f'Another build of {self.path} is running; waiting for it.', flush=True)
                fcntl.flock(self.lock, fcntl.LOCK_EX)
            self.build_locked()

    def build_locked(self):
        """Go through the steps that are not done yet, alone."""
        done = self.read_record()
        if done.get('python') != sys.version:
            done = {'python': sys.version, 'steps': []}
        if done.get('fingerprint') != self.fingerprint():
            # Requirements have changed: everything but the virtual environment itself is gone through again, which pip does quickly.
            done.update(fingerprint=self.fingerprint(), steps=done['steps'][:1])
        print(f'Building {self.path}. Interrupt at will: the next run goes on from there.', flush=True)
        began = time.time()
        self.write_record(done)
        self.forget_half_installed()
        for number, (name, expected, action) in enumerate(self.steps, 1):
            if name in done['steps']:
                continue
            print(f'[{number}/{len(self.steps)}] {name} ({expected})', flush=True)
            action()
            done['steps'].append(name)
            self.write_record(done)
        print(f'Environment ready in {self.path} after {(time.time() - began) / 60:.1f} minutes.', flush=True)

    def read_record(self):
        """What was written by `write_record`, or nothing."""
        return json.loads(self.record.read_text()) if self.record.exists() else {}

    def write_record(self, done):
        """Note what is done; the old note is replaced at once, so that no half note is ever read."""
        new = self.record.with_suffix('.new')
        new.write_text(json.dumps(done, indent=1))
        new.replace(self.record)

    def fingerprint(self):
        """What the environment depends on: a change of any of it makes the next run go through the steps again."""
        digest = hashlib.sha256(sys.version.encode())
        for file in sorted(REQUIREMENTS.glob('*.txt')) + [ROOT / 'pyproject.toml']:
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def forget_half_installed(self):
        """Remove the metadata of packages that a killed pip has left half installed; pip would take them for whole.

        The list of installed files, RECORD, is the last that pip writes.
        """
        for metadata in self.path.glob('lib/python*/site-packages/*.dist-info'):
            if not (metadata / 'RECORD').exists():
                shutil.rmtree(metadata)

    def create(self):
        """Make the virtual environment; one of another Python, or half made, is cleared away."""
        for entry in ('bin', 'include', 'lib', 'lib64', 'share', 'pyvenv.cfg'):
            old = self.path / entry
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
        venv.EnvBuilder(with_pip=True).create(self.path)

    def install_torchvision(self):
        """The one for this torch; tools/fit_torchvision.py looks whether pip has found it, and helps where it has not."""
        self.pip('torchvision')
        shelf = self.ask(f'import sys; sys.path.insert(0, {str(ROOT / "tools")!r}); import build_mmcv; print(build_mmcv.wheel_shelf())')
        self.run(ROOT / 'tools' / 'fit_torchvision.py', '--wheels', shelf)

    def install_mmcv(self):
        """The one whose operators are compiled against this torch, over the files of mmcv-lite."""
        self.run(ROOT / 'tools' / 'build_mmcv.py')

    def install_the_rest(self):
        """Everything that needs no compiling."""
        self.pip(*(part for name in INSTALLED for part in ('-r', REQUIREMENTS / f'{name}.txt')))

    def ask(self, script):
        """What a line of Python prints inside the environment."""
        return subprocess.run([self.python, '-c', script], check=True, capture_output=True, text=True).stdout.strip()

    def pip(self, *arguments):
        """Install with the pinned versions."""
        self.pip_command('install', '-c', CONSTRAINTS, *arguments)

    def pip_command(self, *arguments, environment=None):
        self.run('-m', 'pip', *arguments, environment=environment)

    def run(self, *arguments, environment=None):
        """Run the environment's Python, its full output in the log, its progress on the screen; stop with the log's tail if it fails."""
        command = [str(part) for part in (self.python, *arguments)]
        began, shown = time.time(), 0.0
        live, tail = sys.stdout.isatty(), []
        with open(self.log, 'a', buffering=1) as log:  # line by line: whatever kills this, the log is whole
            log.write(f'\n$ {" ".join(command)}\n')
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                start_new_session=True,  # an interruption ends the compilers underneath as well
                pass_fds=[self.lock.fileno()]
                if self.lock and not self.lock.closed
                else [],  # a pip that outlives this process keeps the lock
            )
            try:
                for line in process.stdout:
                    log.write(line)
                    tail = (tail + [line])[-25:]
                    progress = describe(line)
                    if progress and time.time() - shown > (0.2 if live else 15):
                        shown = time.time()
                        text = f'      {shown - began:4.0f} s  {progress}'[:110]
                        print(f'\r{text:<110}' if live else text, end='' if live else '\n', flush=True)
            except BaseException:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                raise
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
