"""pass@k and maj@k against counting all subsets."""

from itertools import combinations

import pytest

from mmrl_core.scoring.passes import majority_at_k, pass_at_k, pass_metrics


@pytest.mark.parametrize("num_right", range(7))
@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(num_right, k):
    samples = [index < num_right for index in range(6)]
    subsets = list(combinations(samples, k))
    assert pass_at_k(6, num_right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_metrics_are_means_over_prompts():
    right = [[True, False, False, False], [False] * 4, [True] * 4]
    found = pass_metrics(right)
    assert found == pytest.approx({"pass@1": (0.25 + 0 + 1) / 3, "pass@2": (0.5 + 0 + 1) / 3, "pass@4": 2 / 3})


def test_the_number_of_samples_is_a_k_of_its_own():
    assert set(pass_metrics([[True] * 6])) == {"pass@1", "pass@2", "pass@4", "pass@6"}


def test_unscored_samples_are_left_out():
    """A prompt of whose two samples one is unscored counts for k = 1 alone."""
    found = pass_metrics([[True, None], [False, False]])
    assert found == pytest.approx({"pass@1": 0.5, "pass@2": 0.0})


@pytest.mark.parametrize(
    ("votes", "k", "expected"),
    [
        ([("7", True), ("7", True), ("8", False), ("9", False)], 4, 1.0),
        ([("8", False), ("8", False), ("7", True)], 3, 0.0),
        ([("7", True), ("8", False)], 2, 0.5),  # a tie
        ([("7", True), ("8", False)], 1, 0.5),  # two runs of one
        ([(None, False), ("7", True)], 2, 1.0),  # no answer, no vote
        ([(None, False), (None, False)], 2, 0.0),
        ([("7", True), ("7", True), ("8", False), ("8", False), ("7", True)], 2, 0.5),  # the fifth is left over
    ],
)
def test_the_most_frequent_answer_counts(votes, k, expected):
    assert majority_at_k(votes, k) == expected


def test_answers_that_are_equal_and_right_once_are_right():
    """The same answer judged by its own text each time: right if any of them was."""
    found = pass_metrics([[True, False, False]], [["1/2", "0.4", "0.3"]])
    assert found["maj@3"] == pytest.approx(1 / 3) and found["pass@3"] == 1.0
