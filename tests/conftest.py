"""What the tests share: small image folders, a small model, and running a tool as a real process.

OpenMP gets one thread here and in every process the tests start: on tiny models its threads only wait for each other.
"""

import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'
os.environ['GLOO_SOCKET_IFNAME'] = 'lo'  # gloo would look up the machine's own name, which a network may answer late or wrongly
os.environ.pop('PYTHONUNBUFFERED', None)  # the order of output and errors is to be right without it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that runs the tests in its background has all their processes ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


@pytest.fixture(scope='session')
def repository():
    """The root of the checkout, where tools/ and configs/ are."""
    return ROOT


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
    """What mmcae keeps, in all processes that the tests start, does not lie in the user's own cache."""
    os.environ['MMCAE_CACHE'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def no_default_scope():
    """A test that builds a Runner must not leave its default scope to the next test."""
    yield
    if 'mmengine' in sys.modules:
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()


@pytest.fixture
def image_folder(tmp_path):
    """Write a folder of small images and return its path: `image_folder('train', classes=('a', 'b'), count=4, size=(32, 48))`.

    JPEG and PNG files take turns; with classes=() they lie flat in the folder. The images of a class share a colour, so that a model can
    learn to tell classes apart.
    """

    def make(name='images', classes=('cat', 'dog'), count=4, size=(32, 32), seed=0):
        random = np.random.default_rng(seed)
        root = tmp_path / name
        height, width = size
        for label, folder in enumerate([root / c for c in classes] or [root]):
            folder.mkdir(parents=True, exist_ok=True)
            colour = np.array([40 + 170 * (label % 2), 60 * (label % 4), 200 - 50 * (label % 3)])
            for i in range(count):
                pixels = np.clip(colour + random.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f'{i:03d}.{("jpg", "png")[i % 2]}')
        return root

    return make


@pytest.fixture
def run_tool():
    """Run a tool of the checkout as a process: `code, output = run_tool('tools/train.py', config, '--work-dir', folder)`.

    Returns the exit code, and stdout and stderr together. `env` adds environment variables (None removes one); after `timeout` seconds the
    process and all it started are killed, and the test fails. Shell scripts run under bash, everything else under this Python.
    """

    def run(tool, *arguments, env=None, timeout=600, cwd=ROOT):
        tool = ROOT / tool
        command = ['bash' if tool.suffix == '.sh' else sys.executable, str(tool), *map(str, arguments)]
        environment = dict(os.environ, PYTHON=sys.executable, **(env or {}))
        environment = {name: value for name, value in environment.items() if value is not None}
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f'{tool.name} did not end within {timeout} s; its output:\n{output}')
        return process.returncode, output

    return run


@pytest.fixture(scope='session')
def tool_server():
    """A process that has the libraries imported and forks one for every tool it is asked to run: tests/tool_server.py."""
    server = None

    def ask(request):
        nonlocal server
        if server is None:
            command = [sys.executable, str(ROOT / 'tests/tool_server.py')]
            environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]))
            server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        server.stdin.write(json.dumps(request) + '\n')
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, 'tests/tool_server.py has ended; what it printed is above'
        return json.loads(answer)

    yield ask
    if server is not None:
        server.stdin.close()
        server.wait(timeout=300)


@pytest.fixture(scope='session')
def free_port():
    """Choose a port that nothing listens to, as a string: `free_port()`.

    It lies below those that Linux gives to connections and to servers without a port of their own, and each worker of pytest has numbers of
    its own: nothing takes it in the seconds until processes meet there.
    """
    worker = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw'))
    numbers = itertools.count(10_000 + worker % 10 * 1_000 + secrets.randbelow(700))

    def is_free(port):
        with socket.socket() as probe:
            return probe.connect_ex(('127.0.0.1', port)) != 0

    return lambda: str(next(filter(is_free, numbers)))


@pytest.fixture(scope='session')
def fork_tool(tool_server, free_port, tmp_path_factory):
    """Run a Python tool like `run_tool`, but ten times faster, because the libraries are imported already.

    With `processes` above 1 it runs as so many ranks over gloo, as under torchrun; a function of the rank as `env` gives each its own
    environment. Returns the exit code (the first that is not 0) and the outputs of all ranks, one after the other.
    """
    folder = tmp_path_factory.mktemp('outputs')

    def run(tool, *arguments, env=None, processes=1, timeout=300, cwd=ROOT):
        ranks = []
        port = free_port()
        for rank in range(processes):
            environment = dict(os.environ, PYTHON=sys.executable)
            if processes > 1:
                environment |= dict(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1', MASTER_PORT=port
                )
            environment |= (env(rank) if callable(env) else env) or {}
            environment = {name: value for name, value in environment.items() if value is not None}
            ranks.append(dict(environment=environment, output=str(folder / f'rank{rank}.txt')))
        request = dict(tool=str(ROOT / tool), arguments=[str(argument) for argument in arguments], cwd=str(cwd), seconds=timeout)
        codes = tool_server(dict(request, processes=ranks))
        output = ''.join(Path(rank['output']).read_text(errors='replace') for rank in ranks)
        assert -signal.SIGALRM not in codes, f'{tool} did not end within {timeout} s; its output:\n{output}'
        return next((code for code in codes if code), 0), output

    return run


@pytest.fixture
def tiny_cae():
    """Build a small CAE whose tensors are all random, biases, norms and layer scales included: `tiny_cae(latent_dims=32)`.

    64 px images, 16 px patches (a grid of 4x4), 48 wide with 4 heads, three blocks in the encoder, two each in regressor and decoder, 24
    outputs. `backbone`, `regressor` and `decoder` take further arguments of these parts; everything else goes to CAE.
    """
    import mmcae.models

    def make(latent_dims=48, backbone=(), regressor=(), decoder=(), seed=0, **settings):
        torch.manual_seed(seed)
        latent = dict(embed_dims=latent_dims, num_heads=4, num_layers=2)
        model = mmcae.models.CAE(
            backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_layers=3, num_heads=4), img_size=64) | dict(backbone),
            regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=48, **latent) | dict(regressor),
            decoder=dict(type='mmcae.CAEDecoder', num_outputs=24, **latent) | dict(decoder),
            **settings,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def tiny_classifier(tmp_path):
    """Write the config of a tiny classifier of two classes, `more` at its end: `tiny_classifier(data, more)` gives its path."""

    def write(data='nowhere', more=''):
        path = tmp_path / 'tiny.py'
        path.write_text(
            f"""
default_scope = 'mmpretrain'
data_root = '{data}'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=16, num_layers=1, num_heads=2), img_size=16, patch_size=8),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=16),
    data_preprocessor=dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root=data_root, pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]),
)
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
{more}
"""
        )
        return path

    return write


@pytest.fixture(scope='session')
def digit_scenes(tmp_path_factory):
    """A small copy of the embedded data, made by the tool itself; its path ends in data/digits, where the configs look for it."""
    out = tmp_path_factory.mktemp('digit_scenes') / 'data' / 'digits'
    tool = ROOT / 'tools/dataset_converters/make_digit_scenes.py'
    subprocess.run(
        [sys.executable, str(tool), '--out', str(out), '--scale', '0.02', '--workers', '1'], check=True, stdout=subprocess.DEVNULL
    )
    return out
