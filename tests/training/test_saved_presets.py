"""Training options under a name: saved, shared in a team, chosen, changed, deleted; pages, API and command line."""

import json
from io import StringIO

import pytest
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.urls import reverse

from tests.factories import SavedPresetFactory, TeamFactory, UserFactory
from training.configurations import PRESETS, Configuration
from training.models import SavedPreset, TrainingRun
from xrayplatform.audit import AuditEntry

LIST, NEW, START = "/training/presets/", "/training/presets/new/", "/training/new/"
API = "/api/v1/presets/"
STANDARD = PRESETS["standard"].configuration


def text(response):
    return response.content.decode()


def saved(**fields):
    return SavedPreset.objects.get(**fields)


def command(*args, **options):
    out = StringIO()
    call_command("training_presets", *args, stdout=out, stderr=StringIO(), json=True, **options)
    return json.loads(out.getvalue())


# -- Saving


def test_options_are_saved_for_the_team_and_what_is_empty_is_as_in_standard(logged_in, team, alice):
    response = logged_in.post(NEW, {"name": "Night", "team": team.pk, "epochs": 80, "flip": "true"})
    assert response.url == LIST
    preset = saved(name="Night")
    assert (preset.team, preset.created_by) == (team, alice)
    assert Configuration.from_json(preset.configuration) == STANDARD.with_options(epochs=80, flip=True)
    entry = AuditEntry.objects.get(action="savedpreset.add")
    assert (entry.actor, entry.after["configuration"]["epochs"], entry.after["team"]) == (alice, 80, team.name)


def test_the_options_entered_for_a_training_can_be_saved_instead(logged_in, world):
    entered = {"dataset": world.dataset.pk, "architecture": "Custom_CNN", "configuration": "intensive", "blur": "1.5"}
    response = logged_in.post(NEW, entered | {"prefill": "1", "preprocessing": ["clahe"]})
    initial = response.context["form"].initial
    assert response.status_code == 200
    assert (initial["epochs"], initial["blur"], initial["preprocessing"]) == (50, "1.5", ["clahe"])
    assert initial["team"] == world.team.pk
    assert not SavedPreset.objects.filter(name="").exists() and SavedPreset.objects.count() == 1


def test_the_options_of_a_run_can_be_saved(logged_in, world):
    world.run.configuration |= {"epochs": 33, "deterministic": True}
    world.run.save()
    initial = logged_in.get(NEW, {"run": world.run.pk}).context["form"].initial
    assert (initial["epochs"], initial["deterministic"]) == (33, "true")


def test_the_run_of_another_team_is_not_found(client, world, charlie):
    client.force_login(charlie)
    assert client.get(NEW, {"run": world.run.pk}).status_code == 404


@pytest.mark.parametrize(
    ("entered", "field", "complaint"),
    [
        ({"name": ""}, "name", "required"),
        ({"name": "Quick Test"}, "name", "that everybody has"),
        ({"name": "STANDARD"}, "name", "that everybody has"),
        ({"name": "saved:3"}, "name", "that everybody has"),
        ({"name": "Mine"}, "name", "There is a preset Mine already"),
        ({"name": "x", "blur": "9"}, "blur", "Blur must be a number from 0 to 3"),
        ({"name": "x", "preprocessing": ["clahe", "equalise"]}, "preprocessing", "not both"),
        ({"name": "x", "team": "9999"}, "team", "not one of the available choices"),
    ],
)
def test_what_is_wrong_is_said_beside_its_field(logged_in, team, entered, field, complaint):
    SavedPresetFactory(name="Mine", team=team)
    response = logged_in.post(NEW, {"team": team.pk} | entered)
    assert response.status_code == 400
    assert list(response.context["form"].errors) == [field] and complaint in text(response)
    assert SavedPreset.objects.count() == 1


def test_two_teams_may_use_the_same_name_and_everybody_has_one_of_it(logged_in, team):
    SavedPresetFactory(name="Night", team=TeamFactory())
    assert logged_in.post(NEW, {"name": "Night", "team": team.pk}).status_code == 302
    assert logged_in.post(NEW, {"name": "Night"}).status_code == 302
    assert logged_in.post(NEW, {"name": "Night"}).status_code == 400


# -- Using


def test_a_saved_preset_stands_beside_the_others_and_a_run_keeps_its_name(logged_in, world):
    key = world.preset.key
    page = text(logged_in.get(START))
    assert f'value="{key}"' in page and world.preset.name in page and f"Shared by {world.team}" in page
    chosen = {"dataset": world.dataset.pk, "architecture": "Custom_CNN", "configuration": key, "seed": 3}
    logged_in.post(START, chosen)
    run = TrainingRun.objects.latest("pk")
    assert (run.preset, run.configuration["epochs"], run.configuration["seed"]) == (world.preset.name, 7, 3)
    world.preset.remove(None)
    assert logged_in.post(START, chosen).status_code == 400
    run.refresh_from_db()
    assert run.configuration["epochs"] == 7


def test_over_the_api_it_is_chosen_by_its_key(logged_in, world):
    chosen = {"dataset": world.dataset.pk, "architecture": "Custom_CNN", "configuration": world.preset.key}
    assert logged_in.post("/api/v1/runs/", chosen).json()["epochs"] == 7
    answer = logged_in.post("/api/v1/runs/", chosen | {"configuration": "saved:999"})
    assert answer.status_code == 400
    assert "There is no configuration 'saved:999'; there are quick" in str(answer.json()["errors"]["configuration"])


def test_the_preset_of_another_team_cannot_be_chosen_and_is_not_named(client, world, charlie):
    world.condition.team = None
    world.condition.save()
    client.force_login(charlie)
    chosen = {"dataset": world.dataset.pk, "architecture": "Custom_CNN", "configuration": world.preset.key}
    for url in (START, "/api/v1/runs/"):
        response = client.post(url, chosen)
        assert response.status_code == 400 and world.preset.name not in text(response)


def test_one_that_this_release_does_not_understand_is_told_and_not_offered(logged_in, world):
    world.preset.configuration |= {"momentum_of_yesterday": 1}
    world.preset.save()
    assert "This release cannot use it" in text(logged_in.get(LIST))
    assert f'value="{world.preset.key}"' not in text(logged_in.get(START))


def test_the_list_says_what_is_not_as_in_standard(logged_in, world):
    world.preset.configuration |= {"blur": 1.5, "flip": True}
    world.preset.save()
    page = text(logged_in.get(LIST))
    assert "<dt>Epochs</dt><dd>7</dd>" in page and "<dt>Blur</dt><dd>1.5</dd>" in page
    assert "<dt>Flip</dt><dd>on</dd>" in page and "<dt>Zoom</dt>" not in page


# -- Changing and deleting


def test_a_colleague_changes_it_and_both_states_are_in_the_audit_log(logged_in, world, alice):
    page = text(logged_in.get(world.preset.get_absolute_url()))
    assert 'value="7"' in page and f'value="{world.preset.name}"' in page
    logged_in.post(world.preset.get_absolute_url(), {"name": "Longer", "team": world.team.pk, "epochs": 9})
    world.preset.refresh_from_db()
    assert (world.preset.name, world.preset.configuration["epochs"]) == ("Longer", 9)
    entry = AuditEntry.objects.get(action="savedpreset.change")
    assert (entry.before["configuration"]["epochs"], entry.after["configuration"]["epochs"]) == (7, 9)


def test_an_empty_field_of_a_preset_means_standard_and_an_optional_one_the_architectures_own(logged_in, world):
    world.preset.configuration |= {"batch_size": 4, "dropout": 0.6}
    world.preset.save()
    logged_in.post(world.preset.get_absolute_url(), {"name": "x", "batch_size": "", "dropout": ""})
    world.preset.refresh_from_db()
    assert world.preset.configuration["batch_size"] is None
    assert world.preset.configuration["dropout"] == STANDARD.dropout


def test_it_is_deleted_by_hand_and_recorded(logged_in, world, alice):
    logged_in.post(reverse("training:preset-delete", args=[world.preset.pk]))
    assert not SavedPreset.objects.exists()
    assert AuditEntry.objects.get(action="savedpreset.delete").before["name"] == world.preset.name


def test_who_only_looks_sees_no_buttons(client, world, bob):
    client.force_login(bob)
    page = text(client.get(LIST))
    assert world.preset.name in page and "Delete" not in page and NEW not in page


# -- API


def test_the_api_saves_changes_and_deletes(logged_in, team, alice):
    answer = logged_in.post(
        API, {"name": "Night", "configuration": {"epochs": 80, "flip": True}}, content_type="application/json"
    )
    assert answer.status_code == 201, answer.json()
    made = answer.json()
    assert (made["team"], made["created_by"], made["key"]) == (team.pk, "alice", f"saved:{made['id']}")
    assert (made["configuration"]["epochs"], made["configuration"]["flip"]) == (80, True)
    assert made["configuration"]["dropout"] == STANDARD.dropout
    url = f"{API}{made['id']}/"
    changed = logged_in.patch(url, {"configuration": {"dropout": 0.5}}, content_type="application/json").json()
    assert (changed["configuration"]["epochs"], changed["configuration"]["dropout"]) == (80, 0.5)
    assert [row["name"] for row in logged_in.get(API).json()["results"]] == ["Night"]
    assert logged_in.delete(url).status_code == 204 and not SavedPreset.objects.exists()
    assert AuditEntry.objects.filter(action__startswith="savedpreset.", actor=alice).count() == 3


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"name": "Standard"}, "name"),
        ({"name": "x", "team": 9999}, "team"),
        ({"name": "x", "configuration": {"epochs": 0}}, "configuration"),
        ({"name": "x", "configuration": {"optimizer": "adagrad"}}, "configuration"),
        ({"name": "x", "configuration": {"epoch": 3}}, "configuration"),
        ({"name": "x", "configuration": {"epochs": 10**400}}, "configuration"),
        ({"name": "x", "configuration": {"dropout": True}}, "configuration"),
        ({"name": "x", "configuration": {"image_size": 300}}, "configuration"),
        ({"name": "x", "epochs": 3}, "epochs"),
        ({"name": "x", "team": True}, "team"),
        ({"name": "x", "team": 1.5}, "team"),
        ({"name": "x", "team": 10**30}, "team"),
    ],
)
def test_the_api_names_what_is_wrong(logged_in, sent, field):
    answer = logged_in.post(API, sent, content_type="application/json")
    assert answer.status_code == 400 and set(answer.json()["errors"]) == {field}
    assert not SavedPreset.objects.exists()


def test_the_api_does_not_change_what_this_release_does_not_understand(logged_in, world):
    world.preset.configuration |= {"momentum_of_yesterday": 1}
    world.preset.save()
    answer = logged_in.patch(f"{API}{world.preset.pk}/", {"name": "New"}, content_type="application/json")
    assert answer.status_code == 400 and "momentum_of_yesterday" in str(answer.json()["errors"]["configuration"])


def test_null_puts_an_option_back_to_that_of_standard(logged_in, world):
    world.preset.configuration |= {"batch_size": 4, "image_size": 128, "dropout": 0.6, "blur": 2}
    world.preset.save()
    reset = {"configuration": {"batch_size": None, "image_size": None, "dropout": None}}
    answer = logged_in.patch(f"{API}{world.preset.pk}/", reset, content_type="application/json")
    kept = answer.json()["configuration"]
    assert (kept["batch_size"], kept["image_size"]) == (None, None)
    assert (kept["dropout"], kept["blur"]) == (STANDARD.dropout, 2)


def test_what_was_read_can_be_sent_back_with_a_change(logged_in, world):
    url = f"{API}{world.preset.pk}/"
    read = logged_in.get(url).json() | {"name": "Changed"}
    assert logged_in.patch(url, read, content_type="application/json").json()["name"] == "Changed"


def test_a_stored_size_that_cannot_be_prepared_is_told_and_can_be_put_right(logged_in, world):
    world.preset.configuration |= {"image_size": 300}
    world.preset.save()
    complaint = "Image size must be one of 64, 128, 224, 299, not 300."
    assert complaint in text(logged_in.get(LIST))
    assert logged_in.get(world.preset.get_absolute_url()).status_code == 200
    url = f"{API}{world.preset.pk}/"
    answer = logged_in.patch(url, {"name": "New"}, content_type="application/json")
    assert complaint in str(answer.json()["errors"]["configuration"])
    right = {"configuration": {"image_size": 224}}
    assert logged_in.patch(url, right, content_type="application/json").json()["configuration"]["image_size"] == 224


def test_presets_are_listed_by_team_and_a_team_that_is_no_number_is_refused(logged_in, world):
    assert len(logged_in.get(API, {"team": world.team.pk}).json()["results"]) == 1
    assert logged_in.get(API, {"team": world.team.pk + 1}).json()["results"] == []
    for wrong in ("x", "1.5", 10**30):
        assert logged_in.get(API, {"team": wrong}).status_code == 400


def test_of_two_who_take_a_name_at_once_the_second_is_told_so(logged_in, team, monkeypatch):
    check = SavedPreset.full_clean

    def check_before_another_is_faster(preset, **kwargs):
        check(preset, **kwargs)
        SavedPresetFactory(name=preset.name, team=team)

    monkeypatch.setattr(SavedPreset, "full_clean", check_before_another_is_faster)
    answer = logged_in.post(API, {"name": "Night"}, content_type="application/json")
    assert answer.status_code == 400
    assert "There is a preset Night already" in str(answer.json()["errors"]["name"])
    assert not AuditEntry.objects.filter(action="savedpreset.add").exists()


# -- What everybody has


@pytest.fixture
def shared(world):
    return SavedPresetFactory(name="Ours", team=None, created_by=UserFactory())


def refusals(user):
    return AuditEntry.objects.filter(action="access.refused", outcome="refused", actor=user).count()


def test_what_everybody_has_is_taken_away_by_nobody_but_its_creator(logged_in, shared, team, alice):
    assert reverse("training:preset-delete", args=[shared.pk]) not in text(logged_in.get(LIST))
    url = f"{API}{shared.pk}/"
    answers = [
        logged_in.post(reverse("training:preset-delete", args=[shared.pk])),
        logged_in.post(shared.get_absolute_url(), {"name": "Mine", "team": team.pk}),
        logged_in.delete(url),
        logged_in.patch(url, {"team": team.pk}, content_type="application/json"),
    ]
    assert [answer.status_code for answer in answers] == [403] * 4
    assert "Everybody has Ours" in answers[-1].json()["detail"] and "Everybody has Ours" in text(answers[0])
    for arguments in (("delete", shared.key), ("change", shared.key, "--team", team.name)):
        with pytest.raises(CommandError, match="Everybody has Ours"):
            call_command("training_presets", *arguments, user="alice", stdout=StringIO(), stderr=StringIO())
    assert refusals(alice) == 6
    shared.refresh_from_db()
    assert (shared.name, shared.team) == ("Ours", None)


def test_its_options_may_be_changed_by_all_who_may_change_presets(logged_in, shared):
    assert logged_in.post(shared.get_absolute_url(), {"name": "Ours", "epochs": 9}).status_code == 302


@pytest.mark.parametrize("who", ["creator", "administrator", "superuser", "command line"])
def test_its_creator_and_administrators_may_take_it_away(shared, team, alice, who):
    if who == "creator":
        shared.created_by = alice
        shared.save()
    elif who == "administrator":
        alice.groups.add(Group.objects.get(name="administrator"))
    alice.is_superuser = who == "superuser"
    by = None if who == "command line" else alice
    shared.team = team
    shared.store(by)
    shared.team = None
    shared.store(by)
    shared.remove(by)
    assert not SavedPreset.objects.filter(name="Ours").exists()


# -- Command


def test_the_command_resets_options(world):
    made = command("save", "Night", "--batch-size", "4", "--dropout", "0.6", "--blur", "2")["saved"]
    changed = command("change", made["key"], "--reset", "batch_size", "--reset", "dropout")["saved"]["configuration"]
    assert (changed["batch_size"], changed["dropout"], changed["blur"]) == (None, STANDARD.dropout, 2)


def test_the_command_puts_right_what_this_release_does_not_allow(world):
    world.preset.configuration |= {"image_size": 300}
    world.preset.save()
    with pytest.raises(CommandError, match="What is stored: Image size must be one of 64, 128, 224, 299, not 300"):
        call_command("training_presets", "change", world.preset.key, "--blur", "1", stdout=StringIO())
    changed = command("change", world.preset.key, "--reset", "image_size")["saved"]
    assert changed["configuration"]["image_size"] is None


def test_the_command_saves_lists_changes_and_deletes(world, alice):
    made = command("save", "Night", "--epochs", "80", "--no-flip", "--team", world.team.name, user="alice")["saved"]
    assert (made["name"], made["team"], made["configuration"]["epochs"]) == ("Night", world.team.name, 80)
    assert {row["name"] for row in command("list", user="alice")["presets"]} == {"Night", world.preset.name}
    changed = command("change", made["key"], "--rename", "Longer", "--dropout", "0.4", user="alice")["saved"]
    assert (changed["name"], changed["configuration"]["epochs"]) == ("Longer", 80)
    assert changed["configuration"]["dropout"] == 0.4
    copied = command("save", "Copy", "--from", f"run:{world.run.pk}", user="alice")["saved"]
    assert copied["configuration"] == world.run.configuration
    assert command("delete", made["key"], user="alice")["deleted"]["name"] == "Longer"
    assert not SavedPreset.objects.filter(name="Longer").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("save",), "Say which"),
        (("save", "Quick Test"), "that everybody has"),
        (("save", "x", "--epochs", "0"), "Epochs must be a whole number"),
        (("save", "x", "--epochs", str(10**400)), r"from 1 to 500, not 10{36}\.\.\.\.$"),
        (("save", "x", "--blur", "1", "--reset", "blur"), "blur cannot be set and reset at once"),
        (("save", "x", "--from", "saved:99"), "There is no configuration"),
        (("save", "x", "--from", "run:99"), "There is no run"),
        (("save", "x", "--team", "nobody"), "There is no team"),
        (("change", "saved:99"), "There is no preset"),
        (("change", f"saved:{'9' * 30}"), "There is no preset"),
        (("delete", "x"), "There is no preset"),
    ],
)
def test_the_command_says_what_is_wrong(db, arguments, complaint):
    with pytest.raises(CommandError, match=complaint):
        call_command("training_presets", *arguments, stdout=StringIO(), stderr=StringIO())


def test_the_command_acts_with_the_rights_of_its_user(world, bob, charlie):
    with pytest.raises(CommandError, match="no role that allows this"):
        call_command("training_presets", "save", "x", user="bob", stdout=StringIO())
    assert command("list", user="charlie")["presets"] == []
    with pytest.raises(CommandError, match="There is no preset"):
        call_command("training_presets", "delete", world.preset.key, user="charlie", stdout=StringIO())


def test_people_read_the_list_as_words(world):
    out = StringIO()
    call_command("training_presets", stdout=out)
    assert world.preset.key in out.getvalue() and world.team.name in out.getvalue()
