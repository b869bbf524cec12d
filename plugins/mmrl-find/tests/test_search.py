"""Searches in an environment whose images are the latents themselves, so that the best noise is known."""

import math

import pytest
import torch

from mmrl_core.errors import ConfigError, RewardError
from mmrl_find.search import best_of_n, cross_entropy, zero_order

SEARCHES = (best_of_n, zero_order, cross_entropy)


class Environment:
    """Returns each latent as its image, with `spread` of noise that its seed draws; remembers what it was given."""

    def __init__(self, spread=0.0):
        self.spread, self.latents, self.seeds, self.sizes = spread, [], [], []

    def __call__(self, latents, prompts, seeds):
        assert len(latents) == len(prompts) == len(seeds) and set(prompts) == {"a red book"}
        self.latents += list(latents)
        self.seeds += seeds
        self.sizes.append(len(latents))
        noises = [torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return [latent + self.spread * noise for latent, noise in zip(latents, noises, strict=True)]


def first_entry(images, prompt):
    return [float(image.flatten()[0]) for image in images]


def search(method, score=first_entry, shape=(2, 3), spread=0.0, **options):
    environment = Environment(spread)
    return environment, method(environment, score, "a red book", shape, **{"budget": 50, **options})


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_makes_as_many_images_as_its_budget_and_returns_the_best_of_them(method):
    environment, found = search(method, spread=0.5)
    seen = [
        float((latent + 0.5 * torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)))[0, 0])
        for latent, seed in zip(environment.latents, environment.seeds, strict=True)
    ]
    assert len(seen) == 50 and len(set(environment.seeds)) == 50
    best = seen.index(max(seen))
    assert torch.equal(found.latent, environment.latents[best]) and found.seed == environment.seeds[best]
    assert found.reward == pytest.approx(seen[best])
    ends = torch.tensor(environment.sizes).cumsum(0).tolist()
    assert [made for made, _ in found.history] == ends
    assert [reward for _, reward in found.history] == pytest.approx([max(seen[:end]) for end in ends])


@pytest.mark.parametrize("method", SEARCHES)
def test_a_seed_fixes_a_search_whatever_the_size_of_its_batches(method):
    runs = [search(method, spread=0.5, seed=3, batch_size=size)[0] for size in (8, 8, 3)]
    other = search(method, spread=0.5, seed=4)[0]
    for run in runs[1:]:
        assert all(map(torch.equal, run.latents, runs[0].latents)) and run.seeds == runs[0].seeds
    assert not any(map(torch.equal, other.latents, runs[0].latents))


def test_the_best_of_four_is_as_good_as_order_statistics_say():
    """The greatest of four standard normal numbers is 1.0294 in expectation, with variance 0.4917."""
    rewards = [search(best_of_n, budget=4, shape=(1,), seed=seed)[1].reward for seed in range(2000)]
    assert sum(rewards) / 2000 == pytest.approx(1.0294, abs=4 * math.sqrt(0.4917 / 2000))


def test_neighbours_keep_their_distance_and_the_norm_of_the_pivot():
    environment, _ = search(zero_order, budget=9, num_neighbours=4, distance=0.3, shape=(4, 5))
    pivot, first, second = environment.latents[0], environment.latents[1:5], environment.latents[5:]
    moved = max([pivot, *first], key=lambda latent: latent[0, 0])
    for center, neighbours in ((pivot, first), (moved, second)):
        for latent in neighbours:
            assert latent.norm() == pytest.approx(float(pivot.norm()), rel=1e-5)
            assert (latent - center).norm() == pytest.approx(0.3 * float(pivot.norm()), rel=1e-5)


def test_the_pivot_stays_where_no_neighbour_is_better():
    def likes_the_pivot(images, prompt):
        return [-float((image - environment.latents[0]).norm()) for image in images]

    environment = Environment()
    found = zero_order(environment, likes_the_pivot, "a red book", (20,), budget=9, distance=0.3)
    assert torch.equal(found.latent, environment.latents[0]) and found.reward == 0.0
    distances = [float((latent - environment.latents[0]).norm()) for latent in environment.latents[1:]]
    assert distances == pytest.approx([0.3 * float(environment.latents[0].norm())] * 8, rel=1e-5)


def test_one_generation_of_the_cross_entropy_method_by_hand():
    """Mean 0 -> 0.4 * elite mean; variance 1 -> 0.6 + 0.4 * elite variance with n - 1, not below min_std."""
    environment, found = search(cross_entropy, budget=9, population=6, num_elite=3, smoothing=0.4, min_std=0.9)
    ranked = sorted(environment.latents[:6], key=lambda latent: float(latent[0, 0]), reverse=True)
    best = torch.stack(ranked[:3]).double()
    mean = best.sum(0) / 3
    variance = ((best - mean) ** 2).sum(0) / 2
    torch.testing.assert_close(found.mean.double(), 0.4 * mean)
    torch.testing.assert_close(found.std.double(), (0.6 + 0.4 * variance).sqrt().clamp(min=0.9))
    assert 0 < (found.std == 0.9).sum() < 6


def test_the_gaussian_of_the_cross_entropy_method_moves_to_the_optimum():
    target = torch.tensor([1.5, -1.0, 0.5])

    def near(images, prompt):
        return [-float((image - target).square().sum()) for image in images]

    _, found = search(cross_entropy, near, (3,), budget=800, population=40, num_elite=10)
    torch.testing.assert_close(found.mean, target, rtol=0, atol=0.2)
    assert found.std.tolist() == [0.5] * 3


@pytest.mark.parametrize("method", [zero_order, cross_entropy])
def test_directed_searches_beat_the_best_of_n_at_equal_cost(method):
    """In 32 dimensions the cosine of 200 random latents to a direction stays near 0.45."""

    def along(images, prompt):
        return [float(torch.cosine_similarity(image, torch.ones(32), dim=0)) for image in images]

    random = [search(best_of_n, along, (32,), budget=200, seed=seed)[1].reward for seed in range(3)]
    directed = [search(method, along, (32,), budget=200, seed=seed)[1].reward for seed in range(3)]
    assert min(directed) > max(random) + 0.15


@pytest.mark.parametrize("method", SEARCHES)
def test_what_was_not_scored_is_never_the_best(method):
    def half(images, prompt):
        values = first_entry(images, prompt)
        return [value if value < 1 else (None, math.nan)[int(value * 1000) % 2] for value in values]

    environment, found = search(method, half)
    assert found.reward == max(value for value in first_entry(environment.latents, "") if value < 1)
    with pytest.raises(RewardError, match="none of the 50 images of 'a red book' could be scored"):
        search(method, lambda images, prompt: [None] * len(images))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (best_of_n, {"budget": 0}, "budget is 0"),
        (best_of_n, {"batch_size": 0}, "batch_size is 0"),
        (zero_order, {"num_neighbours": 0}, "num_neighbours is 0"),
        (zero_order, {"distance": 1.5}, "distance 1.5"),
        (cross_entropy, {"population": 4, "num_elite": 4}, "num_elite 4"),
        (cross_entropy, {"smoothing": 0.0}, "smoothing 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(method, options, message):
    with pytest.raises(ConfigError, match=message):
        search(method, **options)
