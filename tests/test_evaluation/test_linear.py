"""Linear probes against scikit-learn, torch's own optimizer, and slow, obvious implementations."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestCentroid
from torch import nn

from mmcae.evaluation.few_shot import draw_labels, few_shot
from mmcae.evaluation.linear import Standardization, logistic_regression, ridge_regression
from mmcae.evaluation.sweep import MOMENTUM, Feature, batches, features_for, linear_sweep, top1, train_heads
from mmcae.utils.errors import ConfigError, DataError


@pytest.fixture
def problem():
    """Features (200, 10) in double precision, with labels of four classes that overlap."""
    labels = torch.arange(200) % 4
    return (1.2 * torch.randn(4, 10)[labels] + torch.randn(200, 10)).double(), labels


@pytest.mark.parametrize('C', [0.01, 1.0, 30.0])
def test_logistic_regression_is_scikit_learns(problem, C):
    features, labels = problem
    ours = logistic_regression(features, labels, C)
    theirs = LogisticRegression(C=C, tol=1e-10, max_iter=10000).fit(features.numpy(), labels.numpy())
    assert torch.allclose(ours.weight, torch.from_numpy(theirs.coef_), atol=2e-4)
    probabilities = torch.from_numpy(theirs.predict_proba(features.numpy()))
    assert torch.allclose(ours(features).softmax(1), probabilities, atol=1e-4)


def test_logistic_regression_of_several_labels_is_one_for_each(problem):
    features, labels = problem
    targets = torch.stack([labels == 0, labels >= 2, (labels == 1) | (features[:, 0] > 0)], dim=1)
    ours = logistic_regression(features, targets, 0.5)
    for column in range(3):
        theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=10000).fit(features.numpy(), targets[:, column].numpy())
        assert torch.allclose(ours.weight[column], torch.from_numpy(theirs.coef_[0]), atol=2e-4)
        assert ours.bias[column].item() == pytest.approx(theirs.intercept_[0], abs=2e-4)


def test_ridge_is_scikit_learns(problem):
    features, _ = problem
    targets = torch.randn(200, 3).double() + features[:, :3]
    for alpha, ours in zip((1e-3, 1.0, 500.0), ridge_regression(features, targets, (1e-3, 1.0, 500.0)), strict=True):
        theirs = Ridge(alpha=alpha).fit(features.numpy(), targets.numpy())
        assert torch.allclose(ours.weight, torch.from_numpy(theirs.coef_), atol=1e-8)
        assert torch.allclose(ours(features), torch.from_numpy(theirs.predict(features.numpy())), atol=1e-8)


def test_ridge_without_penalty_of_features_that_depend_on_each_other():
    features = torch.randn(30, 4).double()
    features = torch.cat((features, features[:, :2] + features[:, 2:]), dim=1)
    targets = features @ torch.randn(6, 1).double()
    (model,) = ridge_regression(features, targets, [0.0])
    assert torch.allclose(model(features), targets, atol=1e-6)
    assert model.weight.abs().max() < 10


def test_numbers_that_cannot_be(problem):
    with pytest.raises(ConfigError, match='C=0'):
        logistic_regression(*problem, C=0)
    with pytest.raises(ConfigError, match='alphas'):
        ridge_regression(problem[0], problem[0], [-1.0])
    with pytest.raises(ConfigError, match='rates'):
        train_heads(*problem, 4, rates=(0.1, 0.0))
    with pytest.raises(ConfigError, match='pools'):
        features_for(4, pools=('max',))


def test_constant_channels_become_zero():
    features = torch.randn(50, 3)
    features[:, 1] = 7.3
    scaled = Standardization.of(features)(features)
    assert torch.equal(scaled[:, 1], torch.zeros(50))
    assert torch.allclose(scaled[:, [0, 2]].std(dim=0, correction=0), torch.ones(2), atol=1e-5)


# ---------------------------------------------------------------- the sweep


def test_all_heads_at_once_are_each_head_alone(problem):
    """Against torch's SGD and cosine schedule, one learning rate at a time, on the same batches."""
    features, labels = problem
    rates, steps, batch_size = (0.003, 0.1, 2.0), 60, 32
    heads = train_heads(features, labels, 4, rates, epochs=1, min_steps=steps, batch_size=batch_size, seed=3)
    for rate, head in zip(rates, heads, strict=True):
        layer = nn.Linear(10, 4).double()
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=MOMENTUM)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for index in batches(200, batch_size, steps, 3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(features[index]), labels[index]).backward()
            optimizer.step()
            schedule.step()
        assert torch.allclose(head.weight, layer.weight, atol=1e-10)
        assert torch.allclose(head.bias, layer.bias, atol=1e-10)


def test_batches_go_through_all_samples():
    seen = torch.cat(list(batches(20, 5, 8, 0)))
    assert all(sorted(part.tolist()) == list(range(20)) for part in seen.split(20))
    assert not torch.equal(*seen.split(20))


def test_number_of_steps(problem):
    """Passes over large data sets, `min_steps` over small ones; all features in each step where they are fewer than a batch."""
    features, labels = problem
    alone = train_heads(features, labels, 4, (0.1,), epochs=3, min_steps=1, batch_size=20)
    same = train_heads(features, labels, 4, (0.1,), epochs=0, min_steps=30, batch_size=20)
    assert torch.equal(alone[0].weight, same[0].weight)


@pytest.fixture
def tokens():
    """Features (300, 3 blocks, 2, 8), of which the mean over the patches of the second but last block tells the classes."""
    labels = torch.arange(300) % 3
    features = torch.randn(300, 3, 2, 8)
    features[:, 1, 1] += 3 * torch.eye(8)[labels]
    return features, labels


def test_the_feature_that_tells_the_classes_is_chosen(tokens):
    features, labels = tokens
    train, val, test = ((features[part], labels[part]) for part in (slice(0, 150), slice(150, 225), slice(225, 300)))
    choices, rates, settings = features_for(3, blocks=(1, 2)), (0.0001, 0.1, 1e38), dict(min_steps=20, batch_size=50)
    chosen = linear_sweep(train, val, 3, choices, rates, **settings)
    scores = {}
    for choice in choices:
        scale = Standardization.of(choice.of(train[0]))
        heads = train_heads(scale(choice.of(train[0])), train[1], 3, rates, **settings)
        scores |= {(choice, rate): top1(head(scale(choice.of(val[0]))), val[1]) for rate, head in zip(rates, heads, strict=True)}
    assert top1(chosen(val[0]), val[1]) == max(scores.values()) == scores[chosen.feature, chosen.rate]
    assert chosen.feature in (Feature(2, 'mean'), Feature(2, 'both')) and 'last 2 blocks' in str(chosen)
    assert top1(chosen(test[0]), test[1]) > 0.9
    assert chosen.at_edge == (chosen.rate != 0.1) == ('end of the sweep' in str(chosen))


def test_features_are_what_their_names_say(tokens):
    features, _ = tokens
    assert torch.equal(Feature(1, 'cls').of(features), features[:, 2, 0])
    assert torch.equal(Feature(2, 'mean').of(features), torch.cat((features[:, 1, 1], features[:, 2, 1]), dim=1))
    assert torch.equal(Feature(1, 'both').of(features), features[:, 2].flatten(1))
    assert features_for(2, has_cls=False) == [Feature(1, 'mean'), Feature(2, 'mean')]
    assert features_for(1) == [Feature(1, pool) for pool in ('cls', 'mean', 'both')]


# ---------------------------------------------------------------- few labels


def test_draws_are_balanced_without_repetition_and_nested():
    labels = torch.arange(40) % 4
    chosen = draw_labels(labels, 4, 5, seed=1)
    assert (labels[chosen] == torch.arange(4)[:, None]).all()
    assert len(set(chosen.flatten().tolist())) == 20
    assert torch.equal(draw_labels(labels, 4, 2, seed=1), chosen[:, :2])
    assert not torch.equal(draw_labels(labels, 4, 5, seed=2), chosen)


def test_few_shot_is_the_nearest_centroid(problem):
    """Against scikit-learn's NearestCentroid on centred features of length 1."""
    features, labels = problem
    train, test = (features[:100], labels[:100]), (features[100:], labels[100:])
    ours = few_shot(train, test, 4, shots=5, draws=3, seed=7)
    known, asked = (part - train[0].mean(0) for part in (train[0], test[0]))
    known, asked = known / known.norm(dim=1, keepdim=True), asked / asked.norm(dim=1, keepdim=True)
    for draw, accuracy in enumerate(ours):
        index = draw_labels(train[1], 4, 5, 7 + draw).flatten()
        theirs = NearestCentroid().fit(known[index].numpy(), train[1][index].numpy())
        assert accuracy == pytest.approx(theirs.score(asked.numpy(), test[1].numpy()))


def test_a_class_with_one_image():
    labels = torch.tensor([0] * 5 + [1])
    with pytest.raises(DataError, match='Class dog has 1 image to learn from, and 5 labels a class were asked for.*--shots'):
        few_shot((torch.randn(6, 3), labels), (torch.randn(6, 3), labels), 2, shots=5, names=['cat', 'dog'])
    with pytest.raises(ConfigError, match='shots=0'):
        draw_labels(labels, 2, 0, seed=0)
