"""How a team wants a dataset to be read: the scan's question, classes, condition, patients in names, lost images.

Each choice can be made on the page, over the API and by command; all three do the same, for the same users.
"""

import json
import shutil
import time
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from datasets import findings
from datasets.models import Dataset, DatasetImage, Finding, Scan
from tests.datasets.files import encode, gradient, save
from tests.datasets.test_scan import scan
from tests.factories import ConditionFactory, DatasetFactory, DatasetImageFactory, TeamFactory
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError

pytestmark = pytest.mark.django_db
FOUND = ["NORMAL", "BACTERIA", "VIRUS", "OTHER"]
COUNTS = {"NORMAL": 50, "BACTERIA": 20, "VIRUS": 10, "OTHER": 5}
QUESTION = {
    "code": "splits-beside-classes",
    "text": "Are the class folders a part of their own?",
    "suggested": "both",
    "options": [
        {"value": value, "label": value, "because": "", "counts": {}, "examples": []} for value in ("both", "splits")
    ],
}
CHOICES = {
    "answer": {"answer": "splits"},
    "classes": {"classes": {"BACTERIA": "PNEUMONIA", "VIRUS": "PNEUMONIA", "OTHER": ""}},
    "condition": {"condition": "knees"},
    "pattern": {"pattern": r"^(\d+)_"},
    "accept_missing": {"accept_missing": True},
}


@pytest.fixture
def dataset(team):
    """Four classes, a question, missing images; of alice's and bob's team."""
    ConditionFactory(slug="knees", team=team)
    return DatasetFactory(
        name="CHEST/lungs",
        condition=ConditionFactory(slug="lungs", team=team),
        source_classes=FOUND,
        source_counts=COUNTS,
        classes=FOUND,
        counts=COUNTS,
        positive_class="",
        question=QUESTION,
        missing_count=7,
    )


@pytest.fixture
def two(team):
    """Two classes, the first of them positive: without NORMAL nothing in the names would tell."""
    dataset = DatasetFactory(
        name="ARM/bones",
        condition=ConditionFactory(team=team),
        source_classes=["FRACTURE", "NORMAL"],
        source_counts={"FRACTURE": 4, "NORMAL": 5},
    )
    dataset.derive_classes()
    dataset.save()
    assert dataset.positive_class == "FRACTURE"
    return dataset


# -- The three ways in: each answers (status, text)


def on_the_page(client, user, dataset, choices):
    client.force_login(user)
    if choices.get("accept_missing"):
        response = client.post(reverse("datasets:missing-accept", args=[dataset.pk]))
    else:
        response = client.post(reverse("datasets:dataset-choices", args=[dataset.pk]), _form(dataset, choices))
    return {302: 200}.get(response.status_code, response.status_code), response.content.decode()


def _form(dataset, choices):
    """What the page would send: its fields as they are shown, and what was changed in them."""
    if "condition" in choices:
        condition = dataset.condition.__class__.objects.get(slug=choices["condition"])
        return {"form": "condition", "condition": condition.pk}
    for name in ("answer", "pattern"):
        if name in choices:
            return {"form": name, name: choices[name]}
    wanted = choices.get("classes", {})
    names = {
        f"class_{number}": wanted.get(name, dataset.label_of(name))
        for number, name in enumerate(dataset.source_classes)
    }
    positive = choices.get("positive_class", dataset.positive_class)
    ordinal = choices.get("ordinal", dataset.ordinal)
    return {"form": "classes", "positive": positive, **names} | ({"ordinal": "on"} if ordinal else {})


def over_the_api(client, user, dataset, choices):
    client.force_login(user)
    url = reverse("api:dataset-choices", args=[dataset.pk])
    response = client.patch(url, json.dumps(choices), content_type="application/json")
    return response.status_code, response.content.decode()


def by_command(client, user, dataset, choices):
    options = ["--user", user.username]
    options += [f"--class={found}={used}" for found, used in choices.get("classes", {}).items()]
    for name, option in (("answer", "answer"), ("positive_class", "positive"), ("condition", "condition")):
        options += [f"--{option}={choices[name]}"] if name in choices else []
    options += [f"--pattern={choices['pattern']}"] if "pattern" in choices else []
    options += [f"--grades={'yes' if choices['ordinal'] else 'no'}"] if "ordinal" in choices else []
    options += ["--accept-missing"] if choices.get("accept_missing") else []
    out = StringIO()
    try:
        call_command("curate_dataset", dataset.name, *options, stdout=out, stderr=StringIO())
    except CommandError as error:
        return (404 if "There is no" in str(error) else 403 if "no role" in str(error) else 409), str(error)
    return 200, out.getvalue()


WAYS = [on_the_page, over_the_api, by_command]
every_way = pytest.mark.parametrize("choose", WAYS)


def entries(action):
    return AuditEntry.objects.filter(action=action, outcome="success")


def choices_of(dataset):
    dataset = Dataset.objects.get(pk=dataset.pk)
    return (
        dataset.answer, dataset.class_choices, dataset.positive_class, dataset.ordinal, dataset.condition.slug,
        dataset.pattern, dataset.missing_accepted,
    )  # fmt: skip


# -- Who may


@every_way
@pytest.mark.parametrize("name", CHOICES)
def test_a_data_scientist_of_the_team_chooses_and_the_audit_log_says_so(choose, name, client, alice, dataset):
    before = choices_of(dataset)
    assert choose(client, alice, dataset, CHOICES[name])[0] == 200
    assert choices_of(dataset) != before
    verb = {"accept_missing": "accept_missing"}.get(name, f"choose_{name}")
    entry = entries(f"dataset.{verb}").get()
    assert (entry.actor, entry.object_id) == (alice, str(dataset.pk))


@every_way
@pytest.mark.parametrize("name", CHOICES)
def test_a_clinician_of_the_team_sees_the_dataset_but_may_not_choose(choose, name, client, bob, dataset):
    before = choices_of(dataset)
    assert choose(client, bob, dataset, CHOICES[name])[0] == 403
    assert choices_of(dataset) == before
    client.force_login(bob)
    assert client.get(dataset.get_absolute_url()).status_code == 200


@every_way
@pytest.mark.parametrize("name", CHOICES)
def test_for_another_team_there_is_no_such_dataset(choose, name, client, charlie, dataset):
    before = choices_of(dataset)
    status, text = choose(client, charlie, dataset, CHOICES[name])
    assert status == 404
    assert "lungs" not in text.replace("'CHEST/lungs'", "")
    assert choices_of(dataset) == before


@every_way
@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_cannot_be_recorded_is_not_made(choose, name, client, alice, dataset, monkeypatch):
    before = choices_of(dataset)

    def fail(*args, **options):
        raise RuntimeError("the audit log is full")

    client.force_login(alice)
    monkeypatch.setattr("datasets.models.dataset.audit.record", fail)
    with pytest.raises(RuntimeError):
        choose(client, alice, dataset, CHOICES[name])
    assert choices_of(dataset) == before


# -- Classes


@every_way
def test_classes_are_renamed_merged_and_left_out_and_the_counts_follow(choose, client, alice, dataset):
    wanted = {"NORMAL": "Healthy", "BACTERIA": "Pneumonia", "VIRUS": "Pneumonia", "OTHER": ""}
    choose(client, alice, dataset, {"classes": wanted})
    dataset.refresh_from_db()
    assert dataset.classes == ["Healthy", "Pneumonia"]
    assert dataset.counts == {"Healthy": 50, "Pneumonia": 30}
    assert dataset.positive_class == "Pneumonia"
    entry = entries("dataset.choose_classes").get()
    assert entry.before == {"classes": {}, "positive": "", "ordinal": False}
    assert entry.after == {"classes": wanted, "positive": "Pneumonia", "ordinal": False}


@every_way
def test_a_class_that_was_left_out_can_be_taken_back(choose, client, alice, dataset):
    choose(client, alice, dataset, {"classes": {"OTHER": ""}})
    dataset.refresh_from_db()
    assert dataset.classes == FOUND[:-1]
    choose(client, alice, dataset, {"classes": {"OTHER": "OTHER"}})
    dataset.refresh_from_db()
    assert (dataset.classes, dataset.class_choices) == (FOUND, {})


@every_way
@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ({"BACTERIA": "NORMAL", "VIRUS": "NORMAL", "OTHER": ""}, "at least two classes"),
        (dict.fromkeys(FOUND, ""), "at least two classes"),
        ({"VIRUS": "bacteria"}, "differ only in upper and lower case"),
        ({"VIRUS": "Vi\u202erus"}, "can all be shown"),
    ],
)
def test_classes_that_cannot_be_used_are_refused_in_words(choose, wanted, complaint, client, alice, dataset):
    before = choices_of(dataset)
    status, text = choose(client, alice, dataset, {"classes": wanted})
    assert status in (400, 409)
    assert complaint in text
    assert choices_of(dataset) == before
    assert not entries("dataset.choose_classes").exists()


@pytest.mark.parametrize("choose", [over_the_api, by_command])
def test_a_class_that_was_never_found_is_refused_with_those_there_are(choose, client, alice, dataset):
    status, text = choose(client, alice, dataset, {"classes": {"COVID": "Covid"}})
    assert status == 409
    assert "The dataset has no class COVID. It has: NORMAL, BACTERIA, VIRUS, OTHER." in text


@every_way
def test_a_positive_class_is_one_of_the_two(choose, client, alice, two):
    status, text = choose(client, alice, two, {"positive_class": "COVID"})
    assert status in (400, 409)
    assert "The positive class COVID is not one of the classes: FRACTURE, NORMAL." in text
    assert choose(client, alice, two, {"positive_class": "NORMAL"})[0] == 200
    two.refresh_from_db()
    assert two.positive_class == "NORMAL"


@every_way
@pytest.mark.parametrize("renamed", [{"NORMAL": "intact"}, {"FRACTURE": "broken"}, {"FRACTURE": "a", "NORMAL": "b"}])
def test_renaming_does_not_make_the_other_class_the_positive_one(choose, renamed, client, alice, two):
    assert choose(client, alice, two, {"classes": renamed})[0] == 200
    two.refresh_from_db()
    assert two.positive_class == renamed.get("FRACTURE", "FRACTURE")


@every_way
def test_a_merged_positive_class_that_is_taken_apart_is_forgotten(choose, client, alice, dataset):
    merged = {"NORMAL": "sick", "BACTERIA": "sick", "VIRUS": "zero", "OTHER": ""}
    choose(client, alice, dataset, {"classes": merged})
    dataset.refresh_from_db()
    dataset.choose_classes(dataset.class_choices, positive="sick", by=alice)
    status, _ = choose(client, alice, dataset, {"classes": {name: name for name in FOUND}})
    dataset.refresh_from_db()
    assert (status, dataset.classes, dataset.positive_class) == (200, FOUND, "")


@every_way
def test_grades_follow_each_other_only_where_there_are_three(choose, client, alice, dataset):
    choose(client, alice, dataset, {"ordinal": True})
    dataset.refresh_from_db()
    assert dataset.ordinal
    choose(client, alice, dataset, {"ordinal": False})
    dataset.refresh_from_db()
    assert not dataset.ordinal


def test_saving_two_classes_on_the_page_says_nothing_about_grades(client, alice, two):
    """The page does not ask: a later scan that finds grades must still see them."""
    on_the_page(client, alice, two, {"classes": {"NORMAL": "intact"}})
    two.refresh_from_db()
    assert two.ordinal_choice is None


def test_numbers_as_classes_ask_for_names_until_they_have_them(client, alice, team):
    dataset = DatasetFactory(
        condition=ConditionFactory(team=team), source_classes=list("01234"), source_counts=dict.fromkeys("01234", 9)
    )
    dataset.derive_classes()
    dataset.save()
    assert dataset.ordinal and dataset.unnamed_grades
    client.force_login(alice)
    assert "The classes are numbers" in client.get(dataset.get_absolute_url()).content.decode()
    dataset.choose_classes({name: f"Grade {name}" for name in "01234"}, by=alice)
    assert dataset.ordinal and not dataset.unnamed_grades


def test_a_choice_writes_nothing_that_a_scan_may_be_writing_meanwhile(alice, dataset):
    stale = Dataset.objects.get(pk=dataset.pk)
    Dataset.objects.filter(pk=dataset.pk).update(images_count=99, digest="d" * 64)
    stale.choose_classes({"OTHER": ""}, by=alice)
    dataset.refresh_from_db()
    assert (dataset.images_count, dataset.digest) == (99, "d" * 64)


def test_of_several_choices_all_are_made_or_none(client, alice, dataset):
    before = choices_of(dataset)
    wrong = {"answer": "splits", "classes": {"OTHER": ""}, "pattern": "(("}
    assert over_the_api(client, alice, dataset, wrong)[0] == 409
    assert choices_of(dataset) == before
    assert not AuditEntry.objects.filter(action__startswith="dataset.choose").exists()


# -- Condition


@pytest.mark.parametrize("choose", [over_the_api, by_command])
def test_a_condition_of_another_team_is_not_found(choose, client, alice, dataset):
    ConditionFactory(slug="for-all", team=None, name="For all")
    ConditionFactory(slug="elsewhere", team=alice.teams.get(), name="Another of the team")
    hidden = ConditionFactory(slug="hidden", team=TeamFactory())
    assert choose(client, alice, dataset, {"condition": hidden.slug})[0] == 404
    assert choices_of(dataset)[4] == "lungs"
    assert choose(client, alice, dataset, {"condition": "for-all"})[0] == 409, "every team would see it"
    assert choices_of(dataset)[4] == "lungs"
    assert choose(client, alice, dataset, {"condition": "elsewhere"})[0] == 200


def test_the_page_offers_only_conditions_that_the_user_sees(client, alice, charlie, dataset):
    theirs = ConditionFactory(name="Secret question", team=charlie.teams.get())
    client.force_login(alice)
    url = reverse("datasets:dataset-choices", args=[dataset.pk])
    assert "Secret question" not in client.get(url).content.decode()
    response = client.post(url, {"form": "condition", "condition": theirs.pk})
    assert response.status_code == 400 and "Secret question" not in response.content.decode()
    assert choices_of(dataset)[4] == "lungs"


# -- Patients in file names


@every_way
@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("((", "not a valid regular expression"),
        ("abc", "exactly one group"),
        (r"(\d+)_(\d+)", "exactly one group"),
        ("(?:(?:a{255}){255}){255}(b)", "repeats repetitions too often"),
    ],
)
def test_a_bad_expression_is_refused_in_words(choose, pattern, complaint, client, alice, dataset):
    status, text = choose(client, alice, dataset, {"pattern": pattern})
    assert status in (400, 409)
    assert complaint in text
    assert choices_of(dataset)[5] == ""


@every_way
def test_an_expression_that_would_take_for_ever_is_refused_within_seconds(choose, client, alice, dataset):
    DatasetImageFactory(dataset=dataset, path=f"NORMAL/{'a' * 60}!.png")
    start = time.monotonic()
    status, text = choose(client, alice, dataset, {"pattern": "^((?:a|aa)+)$"})
    assert time.monotonic() - start < 5
    assert status in (400, 409)
    assert "takes too long" in text
    assert choices_of(dataset)[5] == ""


@every_way
def test_an_empty_expression_brings_the_built_in_patterns_back(choose, client, alice, dataset):
    choose(client, alice, dataset, {"pattern": r"^(\d+)_"})
    assert choose(client, alice, dataset, {"pattern": ""})[0] == 200
    assert choices_of(dataset)[5] == ""


def test_patients_are_counted_by_the_expression_in_use_or_not_told(settings, alice):
    for number in range(6):
        for label in ("NORMAL", "PNEUMONIA"):
            save(
                settings.DATASET_ROOT / "d" / label / f"x{number // 2}-{label}{number}.png",
                seed=10 * number + len(label),
            )
    scan()
    dataset = Dataset.objects.get()
    assert dataset.quality["patients"] == {}
    dataset.choose_pattern(r"^(x\d)-", by=alice)
    told = findings.report(dataset)
    assert (told.patients, told.hints[-1]["code"]) == ({}, "patients-uncounted")
    save(settings.DATASET_ROOT / "d/NORMAL/x2-more.png", seed=99)
    scan()
    dataset.refresh_from_db()
    told = findings.report(dataset)
    assert told.patients["text"].startswith("3 patients are known for 13 images: 4 images a patient in the middle")
    assert [hint["code"] for hint in told.hints][-1] != "patients-uncounted"


# -- The scan's question, missing images


@every_way
def test_an_answer_is_one_of_those_offered(choose, client, alice, dataset):
    status, text = choose(client, alice, dataset, {"answer": "neither"})
    assert status in (400, 409)
    assert "not one of" in text
    dataset.refresh_from_db()
    assert dataset.is_asking


def test_answering_on_the_page_starts_the_scan_that_reads_the_folder_that_way(client, alice, dataset):
    on_the_page(client, alice, dataset, {"answer": "splits"})
    dataset.refresh_from_db()
    assert not dataset.is_asking
    assert Scan.objects.get().created_by == alice


def test_a_real_question_is_asked_answered_and_not_asked_again(settings, client, alice):
    root = settings.DATASET_ROOT / "CHEST/study"
    for seed, folder in enumerate(("train/ILL", "train/WELL", "test/ILL", "test/WELL", "ILL", "WELL")):
        save(root / folder / f"{seed}.png", seed=seed)
    scan()
    dataset = Dataset.objects.get()
    assert dataset.is_asking
    client.force_login(alice)
    page = client.get(reverse("datasets:dataset-choices", args=[dataset.pk])).content.decode()
    assert all(option["value"] in page for option in dataset.question["options"])
    other = next(option for option in dataset.question["options"] if option["value"] != dataset.question["suggested"])
    dataset.choose_answer(other["value"], by=alice)
    for _ in range(2):
        scan()
        dataset.refresh_from_db()
        assert (dataset.answer, dataset.is_asking) == (other["value"], False)
        assert dataset.images_count == sum(other["counts"].values())


@every_way
def test_without_missing_images_there_is_nothing_to_accept(choose, client, alice, two):
    choose(client, alice, two, {"accept_missing": True})
    assert not choices_of(two)[6]
    assert not entries("dataset.accept_missing").exists()


def test_images_that_were_removed_on_purpose_are_forgotten_by_the_next_scan(settings, alice, monkeypatch):
    monkeypatch.setattr("datasets.cataloguing.MISSING_AT_LEAST", 3)
    folder = settings.DATASET_ROOT / "CHEST/lungs"
    for number in range(5):
        save(folder / "NORMAL" / f"{number}.png", seed=number)
        save(folder / "PNEUMONIA" / f"{number}.png", seed=50 + number)
    scan()
    for path in [*sorted((folder / "NORMAL").iterdir())[1:], *sorted((folder / "PNEUMONIA").iterdir())[1:]]:
        path.unlink()
    scan()
    dataset = Dataset.objects.get()
    assert (dataset.missing_count, dataset.images.count(), dataset.state) == (8, 10, "offline")
    dataset.accept_missing(by=alice)
    scan()
    dataset.refresh_from_db()
    assert (dataset.missing_count, dataset.images.count(), dataset.state) == (0, 2, "present")
    assert not dataset.missing_accepted


# -- What follows from the choices


@pytest.fixture
def scanned(settings, team):
    """A real scan of three classes; the same picture lies under BACTERIA and under VIRUS."""
    root = settings.DATASET_ROOT / "CHEST/lungs"
    for offset, label in enumerate(("BACTERIA", "NORMAL", "VIRUS")):
        for number in range(4):
            save(root / label / f"{number}.png", seed=10 * offset + number)
    shutil.copy(root / "BACTERIA/0.png", root / "VIRUS/copy.png")
    scan()
    dataset = Dataset.objects.get()
    dataset.condition.team = team
    dataset.condition.save()
    return dataset


def conflicts(dataset):
    found = dataset.findings.filter(code="label-conflict").order_by("image__path")
    return list(found.values_list("image__path", "detail"))


def test_a_label_conflict_disappears_when_the_two_classes_are_merged_and_comes_back(scanned, alice):
    assert conflicts(scanned) == [
        ("BACTERIA/0.png", "The same pixels are labelled BACTERIA here and differently in VIRUS/copy.png (VIRUS)."),
        ("VIRUS/copy.png", "The same pixels are labelled VIRUS here and differently in BACTERIA/0.png (BACTERIA)."),
    ]
    scanned.choose_classes({"BACTERIA": "PNEUMONIA", "VIRUS": "PNEUMONIA"}, by=alice)
    assert conflicts(scanned) == []
    scanned.choose_classes({"VIRUS": "viral"}, by=alice)
    assert len(conflicts(scanned)) == 2
    scanned.choose_classes({"VIRUS": ""}, by=alice)
    assert conflicts(scanned) == []


def test_a_later_scan_keeps_the_choices_and_applies_them_to_what_is_new(scanned, settings, alice):
    condition = ConditionFactory(team=alice.teams.get())
    scanned.choose_classes({"BACTERIA": "PNEUMONIA", "VIRUS": "PNEUMONIA"}, positive="NORMAL", by=alice)
    scanned.choose_condition(condition, by=alice)
    scanned.choose_pattern(r"^(\d)", by=alice)
    save(settings.DATASET_ROOT / "CHEST/lungs/VIRUS/new.png", seed=77)
    save(settings.DATASET_ROOT / "CHEST/lungs/COVID/new.png", seed=78)
    scan()
    scanned.refresh_from_db()
    assert scanned.source_classes == ["BACTERIA", "COVID", "NORMAL", "VIRUS"]
    assert scanned.counts == {"PNEUMONIA": 10, "COVID": 1, "NORMAL": 4}
    assert (scanned.condition, scanned.pattern) == (condition, r"^(\d)")
    shutil.rmtree(settings.DATASET_ROOT / "CHEST/lungs/COVID")
    scan()
    scanned.refresh_from_db()
    assert (scanned.classes, scanned.positive_class) == (["PNEUMONIA", "NORMAL"], "NORMAL")


def test_a_choice_that_is_made_while_a_scan_runs_is_not_lost(scanned, settings, alice, monkeypatch):
    save(settings.DATASET_ROOT / "CHEST/lungs/VIRUS/new.png", seed=77)
    condition = ConditionFactory(team=alice.teams.get())
    real = findings.refresh

    def meanwhile(dataset, say):
        other = Dataset.objects.get(pk=dataset.pk)
        other.choose_classes({"BACTERIA": "PNEUMONIA", "VIRUS": "PNEUMONIA"}, by=alice)
        other.choose_condition(condition, by=alice)
        real(dataset, say)

    monkeypatch.setattr(findings, "refresh", meanwhile)
    scan()
    scanned.refresh_from_db()
    assert scanned.class_choices == {"BACTERIA": "PNEUMONIA", "VIRUS": "PNEUMONIA"}
    assert scanned.counts == {"PNEUMONIA": 10, "NORMAL": 4}
    assert scanned.condition == condition
    assert conflicts(scanned) == []


def test_a_pattern_that_is_chosen_while_patients_are_counted_has_the_next_scan_count_them_anew(
    scanned, settings, alice, monkeypatch
):
    save(settings.DATASET_ROOT / "CHEST/lungs/VIRUS/new.png", seed=77)
    real = findings.refresh

    def meanwhile(dataset, say):
        real(dataset, say)
        Dataset.objects.get(pk=dataset.pk).choose_pattern(r"^(\d)", by=alice)

    monkeypatch.setattr(findings, "refresh", meanwhile)
    scan()
    scanned.refresh_from_db()
    assert (scanned.pattern, scanned.signature) == (r"^(\d)", "")
    monkeypatch.setattr(findings, "refresh", real)
    scan()
    scanned.refresh_from_db()
    assert scanned.quality["pattern"] == r"^(\d)"
    assert scanned.signature


# -- Two at once: each request has its own copy of the row


def test_two_who_rename_different_classes_at_once_both_get_what_they_chose(dataset, alice, bob):
    mine, theirs = (Dataset.objects.get(pk=dataset.pk) for _ in range(2))
    theirs.apply_choices({"classes": {"VIRUS": "PNEUMONIA"}, "ordinal": True}, by=bob)
    mine.apply_choices({"classes": {"BACTERIA": "PNEUMONIA"}}, by=alice)
    dataset.refresh_from_db()
    assert dataset.class_choices == {"VIRUS": "PNEUMONIA", "BACTERIA": "PNEUMONIA"}
    assert dataset.ordinal_choice is True
    assert entries("dataset.choose_classes").first().before["classes"] == {"VIRUS": "PNEUMONIA"}


def test_counts_follow_from_what_a_scan_stored_since_the_page_was_loaded(dataset, alice):
    loaded = Dataset.objects.get(pk=dataset.pk)
    Dataset.objects.filter(pk=dataset.pk).update(source_counts=COUNTS | {"VIRUS": 11})
    loaded.choose_classes({"VIRUS": "PNEUMONIA"}, by=alice)
    dataset.refresh_from_db()
    assert dataset.counts["PNEUMONIA"] == 11


def test_the_log_tells_what_was_chosen_before_not_what_the_page_had_shown(dataset, alice, bob):
    mine = Dataset.objects.get(pk=dataset.pk)
    knees = mine.condition.__class__.objects.get(slug="knees")
    other = Dataset.objects.get(pk=dataset.pk)
    other.apply_choices({"pattern": r"^(\d+)_", "answer": "both", "condition": knees}, by=bob)
    mine.apply_choices({"pattern": "", "answer": "splits", "condition": knees}, by=alice)
    assert entries("dataset.choose_pattern").first().before == {"pattern": r"^(\d+)_"}
    assert entries("dataset.choose_answer").first().before == {"answer": "both"}
    assert entries("dataset.choose_condition").first().before == {"condition": "knees"}


def test_a_loss_that_a_scan_has_settled_meanwhile_cannot_be_accepted(dataset, alice):
    loaded = Dataset.objects.get(pk=dataset.pk)
    Dataset.objects.filter(pk=dataset.pk).update(missing_count=0)
    with pytest.raises(JobError, match="No images of this dataset are missing"):
        loaded.accept_missing(by=alice)
    assert not Dataset.objects.get(pk=dataset.pk).missing_accepted


# -- What nobody types


@pytest.fixture
def patch(client, alice, dataset):
    client.force_login(alice)
    url = reverse("api:dataset-choices", args=[dataset.pk])
    return lambda body: client.patch(url, json.dumps(body), content_type="application/json")


@pytest.mark.parametrize(
    "body",
    [
        {"clases": {"OTHER": ""}},
        {"seed": 1},
        {"classes": "OTHER"},
        {"classes": ["OTHER"]},
        {"classes": {"OTHER": None}},
        {"classes": {"OTHER": ["x"]}},
        {"classes": None},
        {"positive_class": ["x"]},
        {"positive_class": True},
        {"ordinal": "perhaps"},
        {"ordinal": {}},
        {"condition": 5.5},
        {"condition": "no such slug!"},
        {"pattern": None},
        {"pattern": {"x": 1}},
        {"answer": []},
        {"accept_missing": "when"},
        ["classes"],
        "classes",
        None,
    ],
)
def test_unknown_keys_and_wrong_types_are_400_and_change_nothing(body, patch, dataset):
    before = choices_of(dataset)
    response = patch(body)
    assert response.status_code == 400, response.content
    assert response["Content-Type"] == "application/problem+json"
    assert choices_of(dataset) == before


def test_nothing_said_changes_nothing(patch, dataset):
    before = choices_of(dataset)
    for body in ({}, {"classes": {}}, {"accept_missing": False}):
        assert patch(body).status_code == 200
    assert choices_of(dataset) == before
    assert not AuditEntry.objects.filter(action__startswith="dataset.").exists()


def test_a_form_instead_of_json_is_understood_too(client, alice, dataset):
    client.force_login(alice)
    url = reverse("api:dataset-choices", args=[dataset.pk])
    form = "application/x-www-form-urlencoded"
    assert client.patch(url, "pattern=(x)", content_type=form).status_code == 200
    assert client.patch(url, "classes.OTHER=", content_type=form).status_code == 200
    assert client.patch(url, "klasses.OTHER=", content_type=form).status_code == 400
    dataset.refresh_from_db()
    assert (dataset.pattern, dataset.class_choices) == ("(x)", {"OTHER": ""})


@pytest.mark.parametrize("value", ["a\0b", "x" * 10_000, "\u202e", "<script>", "\U0010ffff", "{{ 7 }}", "%00", "\r\n"])
def test_no_value_whatsoever_is_an_error_of_the_platform(value, client, alice, dataset):
    client.force_login(alice)
    page, preview, api, pattern = (
        reverse(name, args=[dataset.pk])
        for name in (
            "datasets:dataset-choices", "datasets:pattern-preview", "api:dataset-choices", "api:dataset-pattern",
        )
    )  # fmt: skip
    forms = [
        {"form": value},
        {"form": "answer", "answer": value},
        {"form": "classes", "class_0": value, "class_1": "b", "class_2": "c", "positive": value},
        {"form": "condition", "condition": value},
        {"form": "pattern", "pattern": value},
        {"form": "pattern", "pattern": f"({value})"},
    ]
    answers = [client.post(page, form) for form in forms]
    answers += [client.get(preview, {"pattern": text}) for text in (value, f"({value})")]
    bodies = [{name: value} for name in ("answer", "positive_class", "condition", "pattern", "ordinal", value)]
    bodies += [{"classes": {"OTHER": value}}, {"classes": {value: "x"}}]
    answers += [client.patch(api, json.dumps(body), content_type="application/json") for body in bodies]
    answers += [client.post(pattern, json.dumps({"pattern": value}), content_type="application/json")]
    assert {answer.status_code for answer in answers} <= {200, 302, 400, 404, 409}
    assert "<script>" not in "".join(answer.content.decode().split("<main")[-1] for answer in answers[:8])


def test_an_error_names_what_was_sent_shortened(patch):
    response = patch({"classes": {"x" * 10_000: "y"}})
    assert response.status_code == 409
    assert len(response.json()["detail"]) < 400


# -- The command on its own


def test_the_command_prints_one_json_object(dataset):
    out = StringIO()
    call_command("curate_dataset", dataset.name, "--class=OTHER=", "--grades=yes", "--json", stdout=out)
    answer = json.loads(out.getvalue())
    assert answer["classes"] == {"NORMAL": 50, "BACTERIA": 20, "VIRUS": 10}
    assert (answer["ordinal"], answer["condition"], answer["missing"]) == (True, "lungs", 7)
    assert entries("dataset.choose_classes").get().channel == "command"


def test_the_command_says_how_a_class_is_to_be_written(dataset):
    with pytest.raises(CommandError, match=r"write FOUND=USED"):
        call_command("curate_dataset", dataset.name, "--class=OTHER")


def test_a_class_of_a_picture_is_never_changed_itself(scanned, alice):
    """Choices lie above what the folders say, so that they can be taken back."""
    before = list(DatasetImage.objects.values_list("path", "class_name"))
    scanned.choose_classes({"BACTERIA": "PNEUMONIA", "VIRUS": "PNEUMONIA"}, by=alice)
    assert list(DatasetImage.objects.values_list("path", "class_name")) == before
    assert {image.label for image in scanned.images.filter(class_name="VIRUS").select_related("dataset")} == {
        "PNEUMONIA"
    }
    assert Finding.objects.filter(code="exact-duplicate").count() == 2


def test_the_hints_of_the_quality_report_use_the_present_names(scanned, alice):
    scanned.choose_classes({"BACTERIA": "PNEUMONIA", "VIRUS": "PNEUMONIA"}, by=alice)
    scan()
    scanned.refresh_from_db()
    text = " ".join(hint["text"] for hint in findings.report(scanned).hints)
    assert "PNEUMONIA (9)" in text and "BACTERIA" not in text


def test_pictures_of_different_sizes_are_no_conflict(settings):
    root = settings.DATASET_ROOT / "d"
    save(root / "a/1.png", encode(gradient(24, 32, seed=1), "PNG"))
    save(root / "b/1.png", encode(gradient(32, 24, seed=1), "PNG"))
    scan()
    assert conflicts(Dataset.objects.get()) == []


@pytest.mark.parametrize(
    ("classes", "tells"),
    [
        (["NORMAL", "PNEUMONIA"], True),
        (["frac", "ok"], True),
        (["broken", "intact"], True),
        (["left", "right"], False),
        (["no finding", "normal"], False),
    ],
)
def test_which_class_means_disease_is_asked_where_the_names_do_not_tell(classes, tells, client, alice, dataset):
    Dataset.objects.filter(pk=dataset.pk).update(classes=classes, positive_class=classes[1], positive_choice="")
    client.force_login(alice)
    page = client.get(dataset.get_absolute_url()).content.decode()
    assert ("Which class means disease?" in page) is not tells
