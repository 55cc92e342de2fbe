"""Versions of a comparison are measured on the same images by one click, each once."""

import pytest
from django.urls import reverse

from inference.models import EvaluationRun
from tests.factories import (
    ConditionFactory,
    DatasetFactory,
    EvaluationRunFactory,
    ModelVersionFactory,
    PreparationFactory,
    put_cache,
)
from tests.registry.evaluations import make_evaluation
from tests.tampering import tampered
from xrayplatform.audit import AuditEntry

ADDRESS = reverse("inference:evaluation-run-several")
PIPELINE = {"id": "grey", "version": 1, "fit": "pad"}


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def versions(chest):
    return [
        ModelVersionFactory(condition=chest, number=number, split_digest=str(number) * 64, preprocessing=PIPELINE)
        for number in (1, 2, 3)
    ]


@pytest.fixture
def preparation(chest):
    dataset = DatasetFactory(name="CHEST/common", condition=chest)
    made = PreparationFactory(dataset=dataset, split_digest="a" * 64, pipeline=PIPELINE)
    put_cache(made)
    return made


def post(client, versions, choice):
    return client.post(ADDRESS, {"version": [version.pk for version in versions], "choice": choice}, follow=True)


def choice_of(preparation):
    return f"{preparation.dataset_id}-{preparation.pk}-test"


def test_all_versions_are_started_on_the_test_part_each_with_an_audit_entry(logged_in, alice, versions, preparation):
    answer = post(logged_in, versions, choice_of(preparation))
    runs = EvaluationRun.objects.order_by("version__number")
    assert [(run.version, run.preparation, run.part, run.created_by) for run in runs] == [
        (version, preparation, "test", alice) for version in versions
    ]
    assert AuditEntry.objects.filter(action="evaluation.create", actor=alice).count() == 3
    assert "3 evaluations were started." in answer.content.decode()
    assert answer.redirect_chain[-1][0].startswith(reverse("registry:version-compare"))


def test_versions_that_were_measured_there_are_skipped_and_named(logged_in, versions, preparation):
    measured = make_evaluation(versions[0], kind="external", preparation=preparation.pk)
    tampered(measured, split_digest=preparation.split_digest)
    page = logged_in.get(ADDRESS, {"version": [version.pk for version in versions]}).content.decode()
    assert "measured already: v1" in page
    answer = post(logged_in, versions, choice_of(preparation)).content.decode()
    assert "2 evaluations were started." in answer
    assert "Measured on these images already: v1." in answer
    assert set(EvaluationRun.objects.values_list("version__number", flat=True)) == {2, 3}


def test_one_that_is_being_measured_is_not_started_again(logged_in, versions, preparation):
    EvaluationRunFactory(version=versions[1], dataset=preparation.dataset, preparation=preparation, part="test")
    answer = post(logged_in, versions, choice_of(preparation)).content.decode()
    assert "chest v2 is already being measured on these images." in answer
    assert EvaluationRun.objects.count() == 3


def test_images_that_one_version_cannot_read_are_no_choice_and_it_says_why(logged_in, versions, chest, preparation):
    other = ModelVersionFactory(condition=chest, number=4, classes=["a", "b"], positive_class="b")
    page = logged_in.get(ADDRESS, {"version": [versions[0].pk, other.pk]}).content.decode()
    assert choice_of(preparation) not in page
    assert "v4: It has images of" in page
    answer = post(logged_in, [versions[0], other], choice_of(preparation)).content.decode()
    assert "Choose images that all of the versions can be measured on." in answer
    assert not EvaluationRun.objects.exists()


def test_a_whole_dataset_can_be_chosen(logged_in, versions, preparation):
    post(logged_in, versions[:2], f"{preparation.dataset_id}-0-all")
    assert set(EvaluationRun.objects.values_list("version__number", "preparation", "part")) <= {
        (1, None, "all"), (2, None, "all"),
    }  # fmt: skip


@pytest.mark.parametrize("choice", ["", "1-2", "<b>", "0-0-all"])
def test_a_choice_that_is_none_starts_nothing(logged_in, versions, preparation, choice):
    assert "Choose images" in post(logged_in, versions, choice).content.decode()
    assert not EvaluationRun.objects.exists()


def test_too_few_versions_lead_back_to_the_comparison_with_the_reason(logged_in, versions):
    answer = logged_in.get(ADDRESS, {"version": versions[0].pk}, follow=True)
    assert "Choose 2 to 10 versions to compare; 1 was chosen." in answer.content.decode()


def test_another_teams_versions_are_not_found(client, charlie, versions):
    client.force_login(charlie)
    assert client.get(ADDRESS, {"version": [version.pk for version in versions]}).status_code == 404
    assert client.post(ADDRESS, {"version": [version.pk for version in versions]}).status_code == 404


def test_a_clinician_may_not_start_any(client, bob, versions, preparation):
    client.force_login(bob)
    assert post(client, versions, choice_of(preparation)).status_code == 403
    assert not EvaluationRun.objects.exists()


def test_ten_versions_take_a_bounded_number_of_queries(logged_in, chest, preparation, django_assert_max_num_queries):
    many = [ModelVersionFactory(condition=chest, number=number, preprocessing=PIPELINE) for number in range(11, 21)]
    with django_assert_max_num_queries(25):
        logged_in.get(ADDRESS, {"version": [version.pk for version in many]})


def test_many_datasets_need_no_more_queries(logged_in, versions, django_assert_max_num_queries):
    for _ in range(12):
        PreparationFactory()
    with django_assert_max_num_queries(20):
        page = logged_in.get(ADDRESS, {"version": [version.pk for version in versions]})
    assert len(page.context["usable"]) >= 12


def test_a_whole_dataset_counts_as_measured_until_it_changes(logged_in, versions, preparation):
    dataset = preparation.dataset
    evaluation = make_evaluation(versions[0], kind="external")
    tampered(evaluation, dataset_digest=dataset.digest)
    EvaluationRunFactory(version=versions[0], dataset=dataset, evaluation=evaluation, state="succeeded")
    asked = {"version": [version.pk for version in versions[:2]]}

    def measured():
        offered = {one.offer.value: one.measured for one in logged_in.get(ADDRESS, asked).context["usable"]}
        return offered[f"{dataset.pk}-0-all"]

    assert measured() == (versions[0],)
    type(dataset).objects.filter(pk=dataset.pk).update(digest="f" * 64)
    assert measured() == ()
