"""The live preview: what an expression for the patient finds in the dataset's own file names, while it is typed."""

import html
import json
import time

import pytest
from django.urls import reverse

from tests.factories import ConditionFactory, DatasetFactory, DatasetImageFactory

pytestmark = pytest.mark.django_db
NAMES = ["NORMAL/12_left.png", "NORMAL/12_right.png", "PNEUMONIA/7_left.png", "PNEUMONIA/scan.png"]


@pytest.fixture
def dataset(team):
    dataset = DatasetFactory(condition=ConditionFactory(team=team))
    for name in NAMES:
        DatasetImageFactory(dataset=dataset, path=name, class_name=name.split("/")[0])
    return dataset


@pytest.fixture
def fragment(client, alice, dataset):
    """The text of the fragment for a pattern."""
    client.force_login(alice)

    def ask(pattern):
        response = client.get(reverse("datasets:pattern-preview", args=[dataset.pk]), {"pattern": pattern})
        assert response.status_code == 200
        return html.unescape(response.content.decode())

    return ask


@pytest.fixture
def api(client, alice, dataset):
    client.force_login(alice)
    url = reverse("api:dataset-pattern", args=[dataset.pk])
    return lambda body: client.post(url, json.dumps(body), content_type="application/json")


def test_the_fragment_counts_patients_and_shows_who_is_found_in_which_name(fragment):
    text = " ".join(fragment(r"^(\d+)_").split())
    assert "<strong>3 of 4</strong> file names name a patient: 2 patients, at most 2 images each." in text
    assert 'such as <code class="break">PNEUMONIA/scan.png</code>' in text
    assert "<code>NORMAL/12_left.png</code></td><td>12</td>" in text
    assert '<code>PNEUMONIA/scan.png</code></td><td><span class="muted">not found</span></td>' in text


def test_without_an_expression_the_built_in_patterns_are_shown(client, alice, dataset, fragment):
    DatasetImageFactory(dataset=dataset, path="NORMAL/person12_virus_3.jpeg")
    text = fragment("")
    assert "person12" in text and "<strong>1 of 5</strong>" in text
    assert "<html" not in text


def test_the_api_finds_the_same_and_stores_nothing(api, dataset):
    answer = api({"pattern": r"^(\d+)_"}).json()
    assert (answer["matched"], answer["unmatched"], answer["groups"], answer["largest"]) == (3, 1, 2, 2)
    assert ["NORMAL/12_left.png", "12"] in answer["examples"]
    assert answer["unmatched_examples"] == ["PNEUMONIA/scan.png"]
    dataset.refresh_from_db()
    assert dataset.pattern == ""


@pytest.mark.parametrize("pattern", ["(", "abc", "(a)(b)", "(?P<who>a)(b)", "[", "*", "(?R)(a)", "x" * 5000])
def test_a_bad_expression_is_explained_in_place_of_the_preview(pattern, fragment, api):
    text = fragment(pattern)
    assert 'class="field-error"' in text
    assert "The pattern" in text or "not supported" in text
    assert "<table" not in text
    answer = api({"pattern": pattern})
    assert answer.status_code in (400, 409)
    assert answer["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("pattern", ["^((?:a|aa)+)$", "^((?:a+)+)$", "(?:a|a?)+(b)$", "^(a*a*a*a*a*a*a*a*)c"])
def test_an_expression_that_would_take_for_ever_is_given_up_within_seconds(pattern, fragment, dataset):
    for number in range(20):
        DatasetImageFactory(dataset=dataset, path=f"NORMAL/{'a' * 120}{number}!.png")
    start = time.monotonic()
    text = fragment(pattern)
    assert time.monotonic() - start < 6
    assert "takes too long" in text or "<table" in text


def test_of_very_many_names_the_first_ones_are_looked_at(fragment, dataset, monkeypatch):
    monkeypatch.setattr("datasets.models.dataset.NAMES_PREVIEWED", 2)
    assert "<strong>2 of 2</strong>" in fragment(r"^(\d+)_")


def test_what_is_found_is_shown_as_text(fragment, dataset, client):
    DatasetImageFactory(dataset=dataset, path="NORMAL/<img src=x>_1.png")
    response = client.get(reverse("datasets:pattern-preview", args=[dataset.pk]), {"pattern": "^(.+)_1"})
    assert "<img" not in response.content.decode()
    assert "&lt;img src=x&gt;" in response.content.decode()


def test_the_page_asks_for_the_fragment_while_somebody_types(client, alice, dataset):
    client.force_login(alice)
    page = client.get(reverse("datasets:dataset-choices", args=[dataset.pk])).content.decode()
    url = reverse("datasets:pattern-preview", args=[dataset.pk])
    assert f'hx-get="{url}"' in page and 'hx-target="#pattern-preview"' in page
    assert '<div id="pattern-preview"' in page


def test_a_dataset_without_images_has_an_empty_preview(client, alice, team):
    dataset = DatasetFactory(condition=ConditionFactory(team=team))
    client.force_login(alice)
    response = client.get(reverse("datasets:pattern-preview", args=[dataset.pk]), {"pattern": "(a)"})
    assert "<strong>0 of 0</strong>" in response.content.decode()


def test_only_who_may_choose_may_try(client, dataset, bob, charlie):
    for user, status in ((bob, 403), (charlie, 404)):
        client.force_login(user)
        assert client.get(reverse("datasets:pattern-preview", args=[dataset.pk])).status_code == status
        assert client.post(reverse("api:dataset-pattern", args=[dataset.pk]), {"pattern": "(a)"}).status_code == status


@pytest.mark.parametrize("body", [{}, {"pattern": None}, {"pattern": ["(a)"]}, {"pattern": "(a\0)"}, [], "x", None])
def test_a_body_of_another_shape_is_400(body, api):
    assert api(body).status_code == 400
