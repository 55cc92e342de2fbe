"""Which version answers a study: by lot, evenly, and the same each time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.assignment import is_challenger, position, subject_of

SALT = "5a" * 32
SUBJECTS = [f"1.2.826.0.1.3680043.{number}" for number in range(20_000)]


@pytest.mark.parametrize("share", [1, 5, 10, 50, 90, 99])
def test_the_challenger_answers_its_share_of_the_studies(share):
    count = sum(is_challenger(SALT, subject, share) for subject in SUBJECTS)
    expected = len(SUBJECTS) * share / 100
    deviation = math.sqrt(expected * (1 - share / 100))
    # Five standard deviations: a fair lottery is outside once in two million.
    assert abs(count - expected) < 5 * deviation


def test_the_studies_are_spread_evenly():
    counts = [0] * 20
    for subject in SUBJECTS:
        counts[int(20 * position(SALT, subject))] += 1
    expected = len(SUBJECTS) / 20
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    # The 99.99 % quantile of the chi-square distribution with 19 degrees of freedom.
    assert chi_square < 50.8


def test_nobody_is_the_challengers_at_no_share_and_everybody_at_all():
    assert not any(is_challenger(SALT, subject, 0) for subject in SUBJECTS[:1000])
    assert all(is_challenger(SALT, subject, 100) for subject in SUBJECTS[:1000])


@given(st.text(max_size=64), st.integers(0, 100), st.integers(0, 100))
def test_a_study_of_the_challenger_stays_so_when_the_share_grows(subject, share, other):
    smaller, larger = sorted((share, other))
    assert is_challenger(SALT, subject, smaller) <= is_challenger(SALT, subject, larger)
    assert 0 <= position(SALT, subject) < 1


def test_a_study_is_always_given_to_the_same_version():
    drawn = [is_challenger(SALT, subject, 30) for subject in SUBJECTS[:500]]
    assert drawn == [is_challenger(SALT, subject, 30) for subject in SUBJECTS[:500]]
    # As this very release of the rule draws: another rule would move studies in the middle of an experiment.
    assert position("salt", "1.2.3") == pytest.approx(0.75997, abs=1e-5)


def test_another_experiment_divides_the_studies_anew():
    both = sum(is_challenger(SALT, s, 50) and is_challenger("other", s, 50) for s in SUBJECTS)
    assert abs(both - len(SUBJECTS) / 4) < 5 * math.sqrt(len(SUBJECTS) * 3 / 16)


@pytest.mark.parametrize("share", [-1, 100.5, float("nan")])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="between 0 and 100"):
        is_challenger(SALT, "1.2.3", share)


def test_what_belongs_together_is_the_study_else_the_patient_else_the_image():
    assert subject_of("1.2", "patient", "image") == "1.2"
    assert subject_of("", "patient", "image") == "patient"
    assert subject_of("", "", "image") == "image"
