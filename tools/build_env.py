"""Build the project's virtual environment from nothing, step by step, and go on where an interrupted build stopped.

`make demo` and `make test` call this; `python tools/build_env.py --help` tells what can be changed. It runs on the machine's
bare Python, so it uses the standard library only. The recipe is the tested one: torch as pip offers it on this machine
(CPU or CUDA), a torchvision that fits it, then mmcv compiled from its source package against exactly that torch, then the rest, then mmcae
itself.

The compiled mmcv is kept as a wheel in `$MMCAE_CACHE` (default: `~/.cache/mmcae`), in a folder named after Python, torch and platform,
because pip's own cache does not know which torch a wheel was compiled against. pip is called as it is: its configuration files and
environment variables (index, find-links, certificates, ...) hold.
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
import sysconfig
import tarfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements'
CONSTRAINTS = REQUIREMENTS / 'constraints.txt'
SUPPORTED = ((3, 10), (3, 12))
# -g0 nearly halves the time to compile. CFLAGS replaces the defaults, so -DNDEBUG has to be said again. Measured at -O1 / -O2 / -O3 on the
# operators that detection spends its time in (one thread): RoIAlign of 128 boxes with 256 channels 21 / 21 / 22 ms forward, 54 / 55 / 31
# backward; NMS of 2,000 boxes 5 / 11 / 11 ms. Compiling RoIAlign takes 10.7 s at -O1, 11.7 s at -O3. It is training that takes long: -O3.
MMCV_CFLAGS = '-O3 -g0 -DNDEBUG'


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
            f'mmcae needs Python 3.10 to 3.12, this is {sys.version.split()[0]} ({sys.executable}). '
            'Name another one: make demo PYTHON=python3.11'
        )
    if not (os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++') or shutil.which('c++')):
        sys.exit('No C++ compiler found; mmcv has to be compiled. Debian and Ubuntu: apt-get install g++ python3-dev')
    header = Path(sysconfig.get_paths()['include']) / 'Python.h'
    if not header.exists():
        sys.exit(f'{header} is missing; mmcv has to be compiled. Debian and Ubuntu: apt-get install python3-dev')


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
            ('mmengine', 'seconds', lambda: self.pip('mmengine')),
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
        for file in sorted(REQUIREMENTS.glob('*.txt')) + [ROOT / 'setup.py']:
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
        self.run(ROOT / 'tools' / 'fit_torchvision.py', '--wheels', self.wheel_shelf())

    def install_the_rest(self):
        """Everything that needs no compiling."""
        self.pip('-r', REQUIREMENTS / 'openmmlab.txt', '-r', REQUIREMENTS / 'runtime.txt', '-r', REQUIREMENTS / 'tests.txt')

    def install_mmcv(self):
        """Install mmcv from the wheel compiled for this machine, after compiling it if need be."""
        shelf = self.wheel_shelf()
        wheels = list(shelf.glob(f'mmcv-{pinned("mmcv")}-*.whl'))
        self.pip('--no-deps', '--force-reinstall', wheels[0] if wheels else self.compile_mmcv(shelf))

    def compile_mmcv(self, shelf):
        """Compile mmcv's source package into a wheel on the shelf.

        The sources stay beside it until the wheel is whole: an interrupted compilation goes on with the files that are left.
        """
        self.check_cuda_compiler()
        workbench = shelf / 'source'
        source = workbench / f'mmcv-{pinned("mmcv")}'
        workbench.mkdir(parents=True, exist_ok=True)
        if not source.exists():
            self.pip_command(
                'download', '--no-deps', '--no-build-isolation', '--no-binary', 'mmcv', '-c', CONSTRAINTS, '-d', workbench, 'mmcv'
            )
            unpack(next(workbench.glob('mmcv-*.tar.gz')), source)
        environment = dict(os.environ, CFLAGS=os.environ.get('CFLAGS', MMCV_CFLAGS), MMCV_WITH_OPS='1')
        environment.setdefault('MAX_JOBS', str(os.cpu_count() or 1))
        options = ('-v', '--no-cache-dir', '--no-build-isolation', '--no-deps')
        self.pip_command('wheel', *options, '-w', workbench, source, environment=environment)
        wheel = next(workbench.glob('mmcv-*.whl'))
        wheel = wheel.replace(shelf / wheel.name)
        shutil.rmtree(workbench)
        return wheel

    def wheel_shelf(self):
        """The folder for wheels compiled for this Python, this torch, this platform, and this kind of GPU if torch sees one."""
        facts = self.ask(
            'import sys, sysconfig, torch; '
            'gpu = "cuda%d%d" % torch.cuda.get_device_capability() if torch.cuda.is_available() else "cpu"; '
            'print(f"cp{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}-{sysconfig.get_platform()}-{gpu}")'
        )
        cache = Path(os.environ.get('MMCAE_CACHE') or Path.home() / '.cache' / 'mmcae')
        return cache / 'wheels' / facts

    def check_cuda_compiler(self):
        """mmcv compiles its CUDA operators wherever torch sees a GPU; that takes nvcc."""
        wanted = self.ask(
            'import torch; from torch.utils.cpp_extension import CUDA_HOME; '
            'print(torch.version.cuda or "") if torch.cuda.is_available() and CUDA_HOME is None else print("")'
        )
        if wanted:
            sys.exit(
                f"torch sees a GPU, but there is no nvcc to compile mmcv's CUDA operators with. Install the CUDA {wanted} "
                'toolkit and set CUDA_HOME, then run the same command again; or hide the GPU with CUDA_VISIBLE_DEVICES= '
                'for a CPU build.'
            )

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


def pinned(package):
    """The version of a package that constraints.txt names."""
    return re.search(rf'^{package}==(\S+)', CONSTRAINTS.read_text(), re.MULTILINE)[1]


def unpack(archive, target):
    """Unpack the one folder inside a .tar.gz to `target`, which is there in whole or not at all."""
    scratch = target.with_suffix('.unpacking')
    shutil.rmtree(scratch, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    next(scratch.iterdir()).rename(target)
    scratch.rmdir()


def describe(line):
    """The part of a line of pip's or ninja's output that tells how far it is, or None."""
    compiled = re.match(r'\s*\[(\d+)/(\d+)\]', line)
    if compiled:
        return f'compiling file {compiled[1]} of {compiled[2]}'
    step = re.match(r'\s*(Collecting|Downloading|Installing collected packages|Building wheel)\b(.*)', line)
    return f'{step[1]}{step[2]}'.strip() if step else None


if __name__ == '__main__':
    main()
