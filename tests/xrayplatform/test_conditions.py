"""Each dataset asks a question of its own until somebody says otherwise."""

import pytest

from datasets.models import Dataset
from xrayplatform.conditions import Condition, name_for, slug_for

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("dataset", "slug", "name"),
    [
        ("CHEST/chest_xray Pneumonia", "chest-xray-pneumonia", "Chest xray pneumonia"),
        ("ARM/FracAtlas", "arm-fracatlas", "Arm fracatlas"),
        ("KNEE/Osteoarthritis Knee X-ray", "knee-osteoarthritis-x-ray", "Knee osteoarthritis x ray"),
    ],
)
def test_slug_and_name_are_the_words_of_the_path_each_once(dataset, slug, name):
    assert (slug_for(dataset), name_for(dataset)) == (slug, name)


def test_names_without_latin_letters_get_slugs_that_differ():
    slugs = {slug_for(name) for name in ("Грудь/Пневмония", "腕/骨折", ".")}
    assert len(slugs) == 3
    assert all(slug.startswith("dataset-") for slug in slugs)
    assert name_for("腕/骨折") == "腕/骨折"


def test_two_datasets_with_like_names_never_share_a_condition():
    slugs = [Dataset.new_condition(name, "a").slug for name in ("A/b c", "A/b_c", "A/b-c")]
    assert slugs == ["a-b-c", "a-b-c-2", "a-b-c-3"]
    assert Condition.objects.count() == 3
