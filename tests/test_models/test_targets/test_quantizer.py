"""The codebook: nearest codes, k-means, no idle codes, the same on all processes."""

import pytest
import torch
import torch.multiprocessing as mp

from mmcae.models.targets.quantizer import VectorQuantizer
from mmcae.utils.errors import CheckpointError


def clusters(count=8, size=64, dim=4, seed=0):
    """Vectors around `count` far points, and the points."""
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.randn(count, dim, generator=generator)
    return (centres[:, None] + 0.1 * torch.randn(count, size, dim, generator=generator)).flatten(0, 1), centres


def fit(quantizer, vectors, steps):
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    for _ in range(steps):
        ids = quantizer.learn(vectors)
        loss = (quantizer.codes[ids] - vectors).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_nearest(monkeypatch):
    quantizer = VectorQuantizer(50, 6)
    quantizer.codes.data.normal_()
    quantizer.usage.fill_(1 / 50)
    vectors = torch.randn(3, 7, 6)
    expected = torch.cdist(vectors.flatten(0, 1), quantizer.codes).argmin(1).view(3, 7)
    assert torch.equal(quantizer(vectors), expected)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(quantizer.learn(vectors), expected)
    monkeypatch.setattr(VectorQuantizer, 'CHUNK', 4)
    assert torch.equal(quantizer(vectors), expected)


def test_finds_every_cluster():
    """However small: codes start where there is something to cover, not where most vectors are."""
    many, _ = clusters(count=4, size=200, seed=1)
    few, _ = clusters(count=12, size=3, seed=2)
    vectors = torch.cat((many, few))
    quantizer = VectorQuantizer(16, 4)
    assert fit(quantizer, vectors, 100) < 0.1
    assert quantizer.metrics()['codebook_usage'] == 1


def test_as_good_as_scikit_learn():
    from sklearn.cluster import KMeans

    vectors = torch.rand(2000, 4)
    error = fit(VectorQuantizer(32, 4), vectors, 400)
    assert error < 1.05 * KMeans(32, n_init=3, random_state=0).fit(vectors.numpy()).inertia_ / len(vectors)


def test_dead_codes_come_back():
    vectors, _ = clusters()
    quantizer = VectorQuantizer(8, 4)
    quantizer.learn(vectors)
    quantizer.codes.data[4:] = 1e4
    for _ in range(300):
        quantizer.learn(vectors)
    assert quantizer.codes.detach().abs().max() < 100


def test_metrics():
    quantizer = VectorQuantizer(10, 2)
    quantizer.usage.copy_(torch.tensor([0.25] * 4 + [0.0] * 6))
    assert quantizer.metrics() == dict(perplexity=pytest.approx(4), codebook_usage=pytest.approx(0.4))


def test_untrained_is_refused():
    with pytest.raises(CheckpointError, match='never trained'):
        VectorQuantizer(4, 2)(torch.rand(3, 2))


def learn_on(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    torch.manual_seed(rank)
    quantizer = VectorQuantizer(8, 4)
    vectors, _ = clusters(seed=rank)
    for _ in range(250):
        quantizer.learn(vectors[torch.randint(len(vectors), (32,))])
        quantizer.codes.data[6:] = 1e4  # they die, and are revived again and again
    quantizer.learn(vectors)
    torch.save(quantizer.state_dict(), f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


def test_same_codes_on_all_processes(tmp_path):
    mp.start_processes(learn_on, (str(tmp_path),), nprocs=2, start_method='fork')
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(2))
    assert torch.equal(first['codes'], second['codes']) and torch.equal(first['usage'], second['usage'])
    assert first['usage'].sum().item() == pytest.approx(1, abs=0.3)
