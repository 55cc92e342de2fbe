"""Versions are found by words, figures, dates, people, tags and states, and sorted; the page and the API alike."""

from base64 import b64encode
from datetime import UTC, datetime
from itertools import chain
from unittest import mock

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from registry.models import Deployment, IntegrityCheck, ModelVersion, VersionNote, VersionTag
from registry.sorting import METRICS, ORDERINGS, Metric
from tests.factories import ConditionFactory, ModelVersionFactory, UserFactory

PAGE = "/models/"
API = "/api/v1/versions/"


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest-pneumonia", name="Chest pneumonia", team=team)


def version_of_2024(**fields):
    with mock.patch("django.utils.timezone.now", return_value=datetime(2024, 5, 1, 12, tzinfo=UTC)):
        return ModelVersionFactory(**fields)


@pytest.fixture
def versions(chest, alice):
    """Four that differ in everything: a good one in service, a poor one, an archived one, one without figures."""
    knee = ConditionFactory(slug="knee", name="Knee")
    made = {
        "chest": ModelVersionFactory(
            condition=chest, number=1, dataset_name="CHEST/alpha", sha256="a1" * 32, created_by=alice, state="approved"
        ),
        "knee": version_of_2024(
            condition=knee,
            number=3,
            architecture="ResNet50",
            metrics={"auc": 0.7, "accuracy": 0.6, "f1": 0.2, "quadratic_kappa": -0.1, "n": 250},
            sha256="b" * 64,
        ),
        "old": ModelVersionFactory(condition=chest, number=2, state="archived", sha256="c" * 64),
        "bare": ModelVersionFactory(
            condition=knee, number=12, architecture="VGG16", metrics={"auc": None, "f1": None}, sha256="d" * 64
        ),
    }
    VersionTag.objects.create(version=made["knee"], name="paper 2024", by=alice)
    VersionNote.objects.create(version=made["bare"], text="Diverged on the ward's films", by=alice)
    Deployment.objects.create(condition=chest, active=made["chest"], epoch=1)
    IntegrityCheck.objects.create(version=made["knee"], reason="changed", checked_at=timezone.now())
    IntegrityCheck.objects.create(version=made["bare"], checked_at=timezone.now())
    return made


@pytest.fixture
def found(client, bob, versions):
    """Names of the versions that the page and the API both find, in their order."""
    client.force_login(bob)
    names = {version.pk: name for name, version in versions.items()}

    def search(**query):
        page = [names[version.pk] for version in client.get(PAGE, {"state": "all"} | query).context["page"]]
        api = [names[row["id"]] for row in client.get(API, query).json()["results"]]
        assert page == api
        return page

    return search


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, {"chest", "knee", "old", "bare"}),
        ({"q": "PNEUMONIA"}, {"chest", "old"}),
        ({"q": "chest pneumonia"}, {"chest", "old"}),
        ({"q": "chest-pneumonia v2"}, {"old"}),
        ({"q": "alpha"}, {"chest"}),
        ({"q": "resnet"}, {"knee"}),
        ({"q": "A1a1a1"}, {"chest"}),
        ({"q": "bbbbbb"}, {"knee"}),
        ({"q": "v3"}, {"knee"}),
        ({"q": "V1"}, {"chest"}),
        ({"q": "v999999999999999999999999"}, set()),
        ({"q": "PAPER"}, {"knee"}),
        ({"q": "diverged ward's"}, {"bare"}),
        ({"q": "knee diverged"}, {"bare"}),
        ({"q": "pneumonia diverged"}, set()),
        ({"q": "100%_"}, set()),
        ({"q": "nothing like this"}, set()),
        ({"condition": "knee"}, {"knee", "bare"}),
        ({"architecture": "ResNet50"}, {"knee"}),
        ({"state": "archived"}, {"old"}),
        ({"state": "all"}, {"chest", "knee", "old", "bare"}),
        ({"state": "candidate"}, {"knee", "bare"}),
        ({"tag": "Paper 2024"}, {"knee"}),
        ({"tag": "paper"}, set()),
        ({"author": "ALICE"}, {"chest"}),
        ({"author": "nobody"}, set()),
        ({"made_until": "2024-05-01"}, {"knee"}),
        ({"made_from": "2024-05-02"}, {"chest", "old", "bare"}),
        ({"made_from": "2024-05-01", "made_until": "2024-05-01"}, {"knee"}),
        ({"made_from": "0001-01-01", "made_until": "9999-12-31"}, {"chest", "knee", "old", "bare"}),
        ({"in_service": "true"}, {"chest"}),
        ({"in_service": "false"}, {"knee", "old", "bare"}),
        ({"damaged": "true"}, {"knee"}),
        ({"damaged": "false"}, {"chest", "old", "bare"}),
        ({"min_accuracy": "0.6"}, {"chest", "knee", "old"}),
        ({"min_accuracy": "0.61"}, {"chest", "old"}),
        ({"min_auc": "0.8"}, {"chest", "old"}),
        ({"min_auc": "0.8", "state": "approved"}, {"chest"}),
        ({"metric": "f1"}, {"chest", "knee", "old"}),
        ({"metric": "f1", "at_least": "0.2"}, {"chest", "knee", "old"}),
        ({"metric": "f1", "at_least": "0.200001"}, {"chest", "old"}),
        ({"metric": "f1", "at_most": "0.2"}, {"knee"}),
        ({"metric": "f1", "at_least": "0.1", "at_most": "0.15"}, set()),
        ({"metric": "n", "at_least": "100"}, {"knee"}),
        ({"metric": "quadratic_kappa", "at_most": "0"}, {"knee"}),
        ({"metric": "balanced_accuracy", "at_least": "-1"}, {"chest", "old"}),
    ],
)
def test_page_and_api_find_the_same_versions(found, query, names):
    assert set(found(**query)) == names


@pytest.mark.parametrize("metric", METRICS)
def test_every_figure_is_a_filter(found, metric):
    assert found(metric=metric, at_least="1000") == []
    assert set(found(metric=metric, at_least="-1000")) <= {"chest", "knee", "old"}


def test_what_is_no_number_is_no_figure(db):
    for number, value in enumerate(["0.9", True, [1], {"value": 1}, None, 1, 0.5], start=1):
        ModelVersionFactory(condition=ConditionFactory(slug=f"c{number}"), metrics={"f1": value})
    values = ModelVersion.objects.annotate(f1=Metric("f1")).order_by("pk").values_list("f1", flat=True)
    assert list(values) == [None, None, None, None, None, 1, 0.5]


def test_only_known_figures_become_part_of_a_statement():
    with pytest.raises(ValueError, match="no figure"):
        Metric("f1') OR 1=1 --")


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        ({"min_accuracy": "90"}, "min_accuracy", "write 0.9 for 90 percent"),
        ({"min_auc": "-0.1"}, "min_auc", "between 0 and 1"),
        ({"min_auc": "NaN"}, "min_auc", "Enter a number"),
        ({"min_auc": "inf"}, "min_auc", "Enter a number"),
        ({"min_auc": "1e400"}, "min_auc", "between 0 and 1"),
        ({"metric": "f1", "at_least": "-Infinity"}, "at_least", "Enter a number"),
        ({"metric": "f1", "at_least": "1e99999"}, "at_least", "No figure is that far from 0"),
        ({"metric": "f1", "at_most": "high"}, "at_most", "Enter a number"),
        ({"metric": "f1", "at_least": "0.9", "at_most": "0.8"}, "at_most", "must not be less"),
        ({"at_least": "0.9"}, "metric", "Choose the figure"),
        ({"metric": "beauty", "at_least": "0.9"}, "metric", "not one of the available choices"),
        ({"state": "lost"}, "state", "not one of the available choices"),
        ({"condition": "none-such"}, "condition", "not one of the available choices"),
        ({"made_from": "yesterday"}, "made_from", "Enter a valid date"),
        ({"made_from": "2024-02-02", "made_until": "2024-02-01"}, "made_until", "must not be before"),
        ({"in_service": "perhaps"}, "in_service", "Must be true or false"),
        ({"ordering": "password"}, "ordering", "there are condition"),
        ({"q": "x" * 201}, "q", "at most 200 characters"),
        ({"q": "a b c d e f g h i"}, "q", "at most 8 words"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_and_nothing_is_listed_under_it(
    client, bob, versions, query, field, words
):
    client.force_login(bob)
    page = client.get(PAGE, query)
    assert page.status_code == 200
    assert list(page.context["page"]) == []
    assert words in str(page.context["filter"].errors[field])
    fragment = client.get(PAGE, query, headers={"HX-Request": "true"}).content.decode()
    assert "No version is listed, because a filter cannot be used" in fragment
    answer = client.get(API, query)
    assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json")
    assert words in str(answer.json()["errors"][field])


def test_the_page_hides_archived_versions_and_says_how_many(client, bob, versions):
    client.force_login(bob)
    page = client.get(PAGE)
    assert versions["old"] not in page.context["page"].object_list
    assert "1 archived version is hidden." in page.content.decode()
    assert "archived version" not in client.get(PAGE, {"q": "knee"}).content.decode()
    everything = client.get(PAGE, {"state": "all"})
    assert versions["old"] in everything.context["page"].object_list
    assert "hidden." not in everything.content.decode()
    only = client.get(PAGE, {"q": "ccccc"}).content.decode()
    assert "No version that is not archived fits." in only
    assert 'href="?q=ccccc&amp;state=all"' in only


SORTED = {
    "condition": ["old", "chest", "bare", "knee"],
    "-condition": ["bare", "knee", "old", "chest"],
    "number": ["chest", "old", "knee", "bare"],
    "architecture": ["old", "chest", "knee", "bare"],
    "-accuracy": ["old", "chest", "knee", "bare"],
    "accuracy": ["knee", "old", "chest", "bare"],
    "-auc": ["old", "chest", "knee", "bare"],
    "auc": ["knee", "old", "chest", "bare"],
    "-f1": ["old", "chest", "knee", "bare"],
    "f1": ["knee", "old", "chest", "bare"],
    "-precision": ["old", "chest", "bare", "knee"],
    "recall": ["old", "chest", "bare", "knee"],
    "state": ["bare", "knee", "chest", "old"],
    "made": ["knee", "chest", "old", "bare"],
    "-made": ["bare", "old", "chest", "knee"],
    "size": ["bare", "old", "knee", "chest"],
}


@pytest.mark.parametrize(("ordering", "names"), SORTED.items())
def test_versions_are_sorted_and_those_without_the_figure_come_last(found, ordering, names):
    assert found(ordering=ordering) == names


def test_without_a_wish_the_newest_are_first(found):
    assert found() == ["bare", "old", "knee", "chest"]


def test_a_sorted_head_says_so_and_turns_round_and_keeps_the_filter(client, bob, versions):
    client.force_login(bob)
    plain = client.get(PAGE, {"q": "knee", "page": 1}).content.decode()
    assert plain.count("aria-sort") == 1
    assert 'aria-sort="descending"' in plain
    assert 'id="sort-accuracy" href="?q=knee&amp;ordering=-accuracy"' in plain
    by_accuracy = client.get(PAGE, {"q": "knee", "ordering": "-accuracy"}).content.decode()
    assert 'id="sort-accuracy" href="?q=knee&amp;ordering=accuracy"' in by_accuracy
    assert 'name="ordering" form="version-filters" value="-accuracy"' in by_accuracy
    assert "2 versions, by accuracy, highest first" in by_accuracy


def test_tags_state_and_author_are_in_the_table(client, bob, versions):
    client.force_login(bob)
    page = client.get(PAGE, {"q": "resnet"}).content.decode()
    assert 'href="?q=resnet&amp;tag=paper+2024"' in page or 'href="?q=resnet&amp;tag=paper%202024"' in page
    assert "Candidate" in page
    assert "alice" in client.get(PAGE, {"q": "alpha"}).content.decode()


def test_the_rarer_filters_are_open_where_one_is_used(client, bob, versions):
    client.force_login(bob)
    closed, opened = '<details class="option-group w-100">', '<details class="option-group w-100" open>'
    assert closed in client.get(PAGE, {"q": "knee", "tag": ""}).content.decode()
    assert opened in client.get(PAGE, {"tag": "paper 2024"}).content.decode()


@pytest.fixture
def many(chest):
    """Twelve with equal values, missing ones and texts that differ in case only."""
    figures = [0.5, 0.5, None, 0.9, 0.5, None, 0.1, 1, 0.5, -0.2, None, 0.5]
    for number, figure in enumerate(figures, start=1):
        ModelVersionFactory(
            condition=chest,
            number=number,
            architecture=["Custom_CNN", "custom_cnn", "VGG16"][number % 3],
            state=ModelVersion.State.values[number % 3],
            size=number // 4,
            metrics=dict.fromkeys(["accuracy", "auc", "precision", "recall", "f1"], figure),
        )
    return list(ModelVersion.objects.values_list("pk", flat=True))


@pytest.mark.parametrize("ordering", ["", *ORDERINGS])
def test_paging_gives_each_version_once_forwards_and_backwards(client, bob, many, ordering):
    client.force_login(bob)

    def walk(address, step):
        pages = []
        while address:
            answer = client.get(address).json()
            pages.append([row["id"] for row in answer["results"]])
            address, last = answer[step], answer
        return pages, last

    whole = [row["id"] for row in client.get(API, {"ordering": ordering}).json()["results"]]
    assert sorted(whole) == sorted(many)
    first = f"{API}?page_size=5&ordering={ordering}"
    forwards, last = walk(first, "next")
    assert list(chain(*forwards)) == whole
    assert [len(page) for page in forwards] == [5, 5, 2]
    backwards, _ = walk(last["previous"], "previous")
    assert list(chain(*reversed(backwards))) == whole[: -len(forwards[-1])]
    on_the_page = client.get(PAGE, {"ordering": ordering, "state": "all"}).context["page"].object_list
    assert [version.pk for version in on_the_page] == whole


def test_a_version_made_meanwhile_moves_no_other_to_another_page(client, bob, chest, many):
    client.force_login(bob)
    first = client.get(API, {"page_size": 5, "ordering": "-f1"}).json()
    ModelVersionFactory(condition=chest, number=99, metrics={"f1": 0.95})
    second = client.get(first["next"]).json()
    seen = {row["id"] for row in [*first["results"], *second["results"]]}
    assert len(seen) == 10


def cursor_of(address):
    return address.split("cursor=")[1].split("&")[0].replace("%3D", "=")


@pytest.mark.parametrize(
    "cursor",
    ["x", "é", "bnVsbA==", "W10=", "W1siLXBrIl0sIFsiYWJjIl0sIGZhbHNlXQ==", "W1siLXBrIl0sIFtdLCBmYWxzZV0=",
     "W1siLXBrIl0sIFtbMV1dLCBmYWxzZV0=", "W1siLXBrIl0sIFt7fV0sIGZhbHNlXQ==", "W1siLXBrIl0sIFtudWxsXSwgZmFsc2Vd",
     "W1siLXBrIl0sIFsiXHUwMDAwIl0sIGZhbHNlXQ==", "cD00ODY="],
)  # fmt: skip
def test_a_cursor_that_nobody_gave_is_told_so(client, bob, many, cursor):
    client.force_login(bob)
    answer = client.get(API, {"cursor": cursor})
    assert (answer.status_code, answer["Content-Type"]) == (404, "application/problem+json")


def test_a_cursor_nested_deeper_than_anybody_reads_is_told_so(client, bob, many):
    client.force_login(bob)
    assert client.get(API, {"cursor": b64encode(b"[" * 3000).decode()}).status_code == 404


def test_a_cursor_of_another_order_is_told_so(client, bob, many):
    client.force_login(bob)
    cursor = cursor_of(client.get(API, {"page_size": 5, "ordering": "-f1"}).json()["next"])
    assert client.get(API, {"cursor": cursor, "ordering": "-f1"}).status_code == 200
    assert client.get(API, {"cursor": cursor, "ordering": "f1"}).status_code == 404
    assert client.get(API, {"cursor": cursor}).status_code == 404


QUERIES = [
    {},
    {"q": "chest v1 word", "ordering": "-f1", "metric": "recall", "at_least": "0.1", "damaged": "false"},
]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("name", ["registry:version-list", "api:version-list"])
def test_thirty_versions_cost_as_many_queries_as_three(client, bob, chest, django_assert_num_queries, name, query):
    client.force_login(bob)

    def make(numbers):
        for number in numbers:
            version = ModelVersionFactory(
                condition=chest, number=number, dataset_name="word v1", created_by=UserFactory()
            )
            VersionTag.objects.create(version=version, name="first", by=bob)
            VersionTag.objects.create(version=version, name="second", by=bob)
            IntegrityCheck.objects.create(version=version, checked_at=timezone.now())

    address, query = reverse(name), {"page_size": 100, "state": "all"} | query
    make(range(1, 4))
    client.get(address, query)

    with CaptureQueriesContext(connection) as three:
        assert client.get(address, query).status_code == 200
        few = len(three)
    make(range(4, 31))
    with django_assert_num_queries(few):
        assert client.get(address, query).status_code == 200
