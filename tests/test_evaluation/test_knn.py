"""The kNN vote against a slow, obvious implementation, and what it refuses."""

import math

import pytest
import torch

from mmcae.evaluation import knn
from mmcae.evaluation.knn import check_bank, knn_scores, nearest
from mmcae.utils.errors import DataError


def slow_scores(queries, bank, labels, num_classes, k, temperature):
    """One query at a time, one neighbour at a time."""
    rows = []
    for query in queries.tolist():
        similarities = []
        for number, other in enumerate(bank.tolist()):
            dot = sum(a * b for a, b in zip(query, other, strict=True))
            similarities.append((dot / math.hypot(*query) / math.hypot(*other), number))
        votes = [0.0] * num_classes
        for similarity, number in sorted(similarities, reverse=True)[:k]:
            votes[labels[number]] += math.exp(similarity / temperature)
        rows.append([vote / sum(votes) for vote in votes])
    return torch.tensor(rows)


@pytest.fixture
def problem():
    labels = torch.arange(90) % 7
    centres = torch.randn(7, 12)
    bank = centres[labels] + torch.randn(90, 12)
    queries = centres[torch.arange(40) % 7] + torch.randn(40, 12)
    return queries, bank, labels


@pytest.mark.parametrize('temperature', [0.07, 1.0])
def test_scores_equal_the_slow_ones(problem, temperature):
    queries, bank, labels = problem
    scores = knn_scores(queries, bank, labels, 7, k=(1, 5, 20, 90), temperature=temperature)
    for k, score in scores.items():
        expected = slow_scores(queries, bank, labels.tolist(), 7, k, temperature)
        torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(score.argmax(1), expected.argmax(1))


def test_the_size_of_the_chunks_does_not_matter(problem, monkeypatch):
    queries, bank, labels = problem
    whole = nearest(queries, bank, 20)
    monkeypatch.setattr(knn, 'SIMILARITIES', 70)  # several parts of both
    parts = nearest(queries, bank, 20)
    torch.testing.assert_close(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_a_tiny_temperature_overflows_nothing(problem):
    queries, bank, labels = problem
    scores = knn_scores(queries, bank, labels, 7, k=(20,), temperature=1e-4)[20]
    assert torch.isfinite(scores).all()
    assert torch.equal(scores.argmax(1), labels[nearest(queries, bank, 1)[1][:, 0]])


def test_length_of_features_does_not_matter(problem):
    queries, bank, labels = problem
    scaled = knn_scores(3 * queries, bank * torch.rand(90, 1).add(0.5), labels, 7, k=(10,))[10]
    torch.testing.assert_close(scaled, knn_scores(queries, bank, labels, 7, k=(10,))[10])


def test_more_neighbours_than_the_bank_has_are_refused():
    with pytest.raises(DataError, match='k=4 .* has 3'):
        check_bank(Data(['cat'], [0, 0, 0]), Data(['cat']), (1, 4))


def test_the_bank_has_to_know_every_class():
    with pytest.raises(DataError, match="no image of 1 of its 3 classes, the first is 'dog'"):
        check_bank(Data(['cat', 'dog', 'emu'], [0, 2, 2]), Data(['cat', 'dog', 'emu']), (1,))
    with pytest.raises(DataError, match=r"only one side has \['emu'\]"):
        check_bank(Data(['cat', 'dog', 'emu'], [0, 1, 2]), Data(['cat', 'dog']), (1,))
    with pytest.raises(DataError, match='has 2 classes .* another order'):
        check_bank(Data(['cat', 'dog'], [0, 1]), Data(['dog', 'cat']), (1,))
    with pytest.raises(DataError, match='have none'):
        check_bank(Data(['cat'], [0, None]), Data(['cat']), (1,))
    with pytest.raises(DataError, match='name their classes'):
        check_bank(Data(None, [0]), Data(['cat']), (1,))
    assert check_bank(Data(['cat', 'dog'], [1, 0]), Data(('cat', 'dog')), (1, 2)) == 2


class Data:
    """A data set of nothing but labels."""

    def __init__(self, classes, labels=()):
        self.metainfo, self.labels = dict(classes=classes), labels

    def __len__(self):
        return len(self.labels)

    def get_data_info(self, index):
        return {} if self.labels[index] is None else dict(gt_label=self.labels[index])
