"""Model Training: the form that starts a run, and the page on which one is followed."""

import pytest
from django.urls import reverse
from django_q.models import OrmQ

from tests.factories import (
    DatasetFactory,
    EpochMetricFactory,
    ModelVersionFactory,
    PreparationFactory,
    TrainingRunFactory,
    put_cache,
)
from training.configurations import GROUPS, OPTIONS, Configuration
from training.models import NotPrepared, TrainingRun

CREATE = "/training/new/"
HTMX = {"HX-Request": "true"}


def text(response):
    return response.content.decode()


def choices(world, **changes):
    return {"dataset": world.dataset.pk, "architecture": "Custom_CNN", "configuration": "quick"} | changes


def test_the_train_button_puts_a_run_into_the_training_queue(logged_in, world, alice):
    response = logged_in.post(CREATE, choices(world, epochs=3, seed=9))
    run = TrainingRun.objects.latest("pk")
    assert response.url == run.get_absolute_url()
    assert (run.preparation, run.created_by, run.state, run.epochs) == (world.preparation, alice, "queued", 3)
    assert (run.configuration["epochs"], run.configuration["seed"], run.preset) == (3, 9, "quick")
    message = OrmQ.objects.get()
    assert (message.key, message.task["args"]) == ("train", ())


def test_every_architecture_and_configuration_is_offered_with_what_to_expect(logged_in, world):
    page = text(logged_in.get(CREATE))
    for name in ("EfficientNetB0", "ResNet50", "DenseNet121", "VGG16", "Custom_CNN"):
        assert f'value="{name}"' in page
    for name in ("Quick Test", "Standard", "Intensive"):
        assert name in page
    assert page.count("ImageNet weights are not installed") == 7


def test_the_dataset_of_the_link_is_chosen_in_the_form(logged_in, world):
    other = DatasetFactory()
    page = text(logged_in.get(CREATE, {"dataset": other.pk}))
    assert f'<option value="{other.pk}" selected>' in page
    assert "(not prepared)" in page


def test_a_dataset_that_is_not_prepared_is_refused_with_a_link_to_where_it_is_prepared(logged_in, world):
    other = DatasetFactory()
    response = logged_in.post(CREATE, choices(world, dataset=other.pk))
    assert response.status_code == 400
    assert "Dataset not prepared:" in text(response)
    assert f'href="{other.get_absolute_url()}#prepare"' in text(response)
    assert TrainingRun.objects.count() == 1


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("epochs", 0, "Epochs must be a whole number from 1 to 500, not 0."),
        ("epochs", 501, "Epochs must be a whole number from 1 to 500"),
        ("batch_size", "many", "Enter a whole number"),
        ("batch_size", 1000, "Batch size must be a whole number from 1 to 512"),
        ("learning_rate", 0, "Learning rate must be a number above 0"),
        ("learning_rate", "nan", "Enter a number"),
        ("seed", -3, "Seed must be a whole number from 0 to 2147483647, not -3."),
        ("architecture", "GPT", "not one of the available choices"),
        ("configuration", "forever", "not one of the available choices"),
        ("dataset", 999999, "not one of the available choices"),
    ],
)
def test_what_is_wrong_is_said_beside_its_field(logged_in, world, field, value, complaint):
    response = logged_in.post(CREATE, choices(world, **{field: value}))
    assert response.status_code == 400
    assert list(response.context["form"].errors) == [field]
    assert complaint in text(response)
    assert not OrmQ.objects.exists()


def test_the_api_names_the_wrong_field_and_the_reason(logged_in, world):
    answer = logged_in.post(reverse("api:run-list"), choices(world, epochs=501))
    assert answer.status_code == 400
    assert "from 1 to 500" in str(answer.json()["errors"]["epochs"])


def test_the_api_answers_409_for_a_dataset_that_is_not_prepared(logged_in, world):
    answer = logged_in.post(reverse("api:run-list"), choices(world, dataset=DatasetFactory().pk))
    assert answer.status_code == 409
    assert "Dataset not prepared" in answer.json()["detail"]


def test_without_any_dataset_the_page_leads_to_the_scan(logged_in, db):
    page = text(logged_in.get(CREATE))
    assert "No dataset to train with" in page and reverse("datasets:dataset-list") in page


@pytest.mark.parametrize("state", ["queued", "running"])
def test_the_status_of_a_run_polls_while_it_goes_on(logged_in, world, state):
    run = TrainingRunFactory(preparation=world.preparation, state=state, epoch=2, message="Training, epoch 3 of 5")
    url = reverse("training:run-status", args=[run.pk])
    response = logged_in.get(url, headers=HTMX)
    assert f'hx-get="{url}"' in text(response)
    assert "Epoch 2 of 5 finished" in text(response) and "Training, epoch 3 of 5" in text(response)
    assert "HX-Refresh" not in response
    assert f'hx-get="{url}"' in text(logged_in.get(run.get_absolute_url()))


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_the_status_of_a_run_that_ended_stops_polling_and_reloads_the_page_once(logged_in, world, state):
    run = TrainingRunFactory(preparation=world.preparation, state=state)
    response = logged_in.get(reverse("training:run-status", args=[run.pk]), headers=HTMX)
    assert response["HX-Refresh"] == "true"
    assert "hx-get" not in text(response)
    assert "hx-get" not in text(logged_in.get(run.get_absolute_url()))


def test_the_page_shows_the_end_of_the_log_as_text(logged_in, world):
    world.run.log_path.parent.mkdir(parents=True)
    lines = [f"line {number}" for number in range(100)]
    world.run.log_path.write_text("\n".join([*lines, "<script>alert(1)</script>"]))
    page = text(logged_in.get(world.run.get_absolute_url()))
    assert "line 99" in page and "line 50" not in page
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    answer = logged_in.get(reverse("api:run-log", args=[world.run.pk])).json()
    assert answer["log"].startswith("line 0\n")


def test_a_run_without_a_log_shows_none(logged_in, world):
    assert "End of the log" not in text(logged_in.get(world.run.get_absolute_url()))
    assert logged_in.get(reverse("api:run-log", args=[world.run.pk])).json() == {"log": ""}


def test_a_log_with_broken_characters_is_shown(world):
    world.run.log_path.parent.mkdir(parents=True)
    world.run.log_path.write_bytes(b"fine \xff\xfe broken")
    assert "fine" in world.run.log_tail() and "broken" in world.run.log_tail()


def test_the_curves_are_one_list_a_quantity_in_the_order_of_the_epochs(logged_in, world):
    run = TrainingRunFactory(preparation=world.preparation)
    for epoch in (2, 1, 3):
        EpochMetricFactory(run=run, epoch=epoch, loss=1 / epoch, val_auc=None if epoch == 1 else 0.9)
    curves = logged_in.get(reverse("training:run-curves", args=[run.pk])).json()
    assert curves["epoch"] == [1, 2, 3]
    assert curves["loss"] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert curves["val_auc"] == [None, 0.9, 0.9]
    assert {len(values) for values in curves.values()} == {3}
    rows = logged_in.get(reverse("api:run-metrics", args=[run.pk])).json()
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_a_failed_run_says_why_and_what_to_do(logged_in, world):
    run = TrainingRunFactory(preparation=world.preparation, state="failed", error="Out of memory.", hint="Use less.")
    page = text(logged_in.get(run.get_absolute_url()))
    assert "Out of memory." in page and "Use less." in page


def test_a_finished_run_leads_to_its_version(logged_in, world):
    version = ModelVersionFactory(condition=world.condition)
    run = TrainingRunFactory(preparation=world.preparation, state="succeeded", version=version)
    page = text(logged_in.get(run.get_absolute_url()))
    assert version.get_absolute_url() in page and "0.950" in page


def test_a_run_is_cancelled_from_its_page(logged_in, world):
    url = reverse("training:run-cancel", args=[world.run.pk])
    assert f'action="{url}"' in text(logged_in.get(world.run.get_absolute_url()))
    logged_in.post(url)
    world.run.refresh_from_db()
    assert world.run.state == "cancelled"
    again = logged_in.post(url, follow=True)
    assert "The run had already ended." in text(again)


def test_who_may_not_cancel_or_start_sees_no_such_button(client, bob, world):
    client.force_login(bob)
    page = text(client.get(world.run.get_absolute_url())) + text(client.get(reverse("training:run-list")))
    assert "/cancel/" not in page and CREATE not in page


def test_the_list_shows_runs_newest_first_without_a_query_for_each(logged_in, world, django_assert_max_num_queries):
    runs = [TrainingRunFactory(preparation=world.preparation, state="succeeded") for _ in range(12)]
    with django_assert_max_num_queries(20):
        page = logged_in.get(reverse("training:run-list"))
    assert [run.pk for run in page.context["page"]] == [run.pk for run in reversed([world.run, *runs])]


# -- All options

# One value for each option that differs from every preset.
OTHERS = {
    "epochs": 3, "batch_size": 8, "learning_rate": 0.01, "optimizer": "sgd", "schedule": "step", "warmup_fraction": 0.2,
    "step_epochs": 4, "step_factor": 0.5, "early_stopping_patience": 2, "minimum_steps": 5, "balance": "sampling",
    "weight_decay": 0.2, "label_smoothing": 0.25, "grade_spread": 0.4, "dropout": 0.5, "head_epochs": 1,
    "fine_tuning_factor": 0.5, "fine_tuning_depth": 0.5,
    "layer_decay": 0.9, "image_size": 64, "preprocessing": [], "flip": True, "shift": 0.2,
    "zoom": 0.3, "rotation": 9.0, "contrast": 0.5, "brightness": 0.2, "gamma": 0.3, "blur": 1.0, "noise": 0.05,
    "erase": 0.3, "seed": 4, "mixed_precision": True, "deterministic": True,
}  # fmt: skip


def test_every_option_has_a_field_in_its_group_with_words_and_the_presets_value(logged_in, world):
    assert set(OTHERS) == set(OPTIONS)
    page = text(logged_in.get(CREATE))
    for name, option in OPTIONS.items():
        assert f'name="{name}"' in page and option.label in page
    for group in GROUPS:
        assert f"<summary>{group}</summary>" in page
    assert 'placeholder="5"' in page and 'placeholder="the architecture&#x27;s own"' in page
    assert 'min="1" max="500"' in page and "AdamW (as configured)" in page and "0 to 0.3." in page


def test_every_option_can_be_set_on_the_page(logged_in, world):
    sent = OTHERS | {"flip": "true", "mixed_precision": "true", "deterministic": "true", "preprocessing": ["none"]}
    logged_in.post(CREATE, choices(world, **sent))
    assert TrainingRun.objects.latest("pk").configuration == OTHERS


def test_every_option_can_be_set_over_the_api(logged_in, world):
    answer = logged_in.post(reverse("api:run-list"), choices(world) | OTHERS, content_type="application/json")
    assert answer.status_code == 202, answer.json()
    assert answer.json()["configuration"] == OTHERS


def test_switches_that_a_form_leaves_out_stay_as_configured(logged_in, world):
    world.preset.configuration |= {"flip": True, "deterministic": True}
    world.preset.save()
    logged_in.post(reverse("api:run-list"), choices(world, configuration=world.preset.key))
    logged_in.post(CREATE, choices(world, configuration=world.preset.key, flip="false"))
    page, api = TrainingRun.objects.order_by("-pk")[:2]
    assert (api.configuration["flip"], api.configuration["deterministic"]) == (True, True)
    assert (page.configuration["flip"], page.configuration["deterministic"]) == (False, True)


def test_all_that_is_wrong_is_marked_at_once(logged_in, world):
    response = logged_in.post(CREATE, choices(world, epochs=0, blur=9, preprocessing=["none", "clahe"]))
    assert set(response.context["form"].errors) == {"epochs", "blur", "preprocessing"}
    # The groups in which something is wrong are open.
    for group in ("optimisation", "augmentation", "images"):
        assert f'id="options-{group}" open' in text(response)
    answer = logged_in.post(reverse("api:run-list"), choices(world, epochs=0, blur=9))
    assert set(answer.json()["errors"]) == {"epochs", "blur"}


def test_choosing_another_configuration_shows_its_values_and_keeps_what_was_entered(logged_in, world):
    entered = choices(world, configuration="intensive", dropout="0.45", flip="true", preprocessing="clahe")
    fragment = text(logged_in.get(CREATE, entered, headers=HTMX))
    assert "<html" not in fragment and 'id="run-options"' in fragment
    assert 'placeholder="50"' in fragment and 'value="0.45"' in fragment
    assert '<option value="true" selected>' in fragment
    assert 'value="clahe"' in fragment and fragment.count("checked") == 1
    del entered["preprocessing"]
    assert "checked" not in text(logged_in.get(CREATE, entered, headers=HTMX))


# -- Which preparation


@pytest.fixture
def others(world):
    """Beside the one of 64 pixels: 128 pixels, and 64 pixels with steps, each with its files."""
    larger = PreparationFactory(dataset=world.dataset, image_size=128)
    clahe = PreparationFactory(dataset=world.dataset, pipeline=world.preparation.pipeline | {"steps": ["clahe"]})
    for preparation in (larger, clahe):
        put_cache(preparation)
    return larger, clahe


@pytest.mark.parametrize(
    ("options", "which"),
    [
        ({}, "clahe"),
        ({"image_size": "128"}, "larger"),
        ({"preprocessing": ["none"], "image_size": "64"}, "plain"),
        ({"preprocessing": ["none"]}, "larger"),
        ({"preprocessing": ["clahe"]}, "clahe"),
    ],
)
def test_the_newest_preparation_that_has_what_is_asked_for_is_used(logged_in, world, others, options, which):
    logged_in.post(CREATE, choices(world, **options))
    found = {"plain": world.preparation, "larger": others[0], "clahe": others[1]}
    assert TrainingRun.objects.latest("pk").preparation == found[which]


def test_what_no_preparation_has_leads_to_where_exactly_that_is_prepared(logged_in, world):
    response = logged_in.post(CREATE, choices(world, image_size="128", preprocessing=["crop_borders", "clahe"]))
    assert response.status_code == 400
    assert "no finished preparation with images of 128 pixels and the preprocessing crop_borders, clahe" in text(
        response
    )
    link = f"{world.dataset.get_absolute_url()}?image_size=128&amp;steps=crop_borders&amp;steps=clahe#prepare"
    assert f'href="{link}"' in text(response)
    page = text(logged_in.get(link.replace("&amp;", "&").partition("#")[0]))
    assert '<option value="128" selected>' in page and page.count("checked") == 2


def test_a_size_that_cannot_be_prepared_is_told_with_those_that_can(logged_in, world):
    answer = logged_in.post(reverse("api:run-list"), choices(world, image_size=100))
    assert answer.status_code == 400
    assert answer.json()["errors"] == {"image_size": ["100 is not a choice; there are 64, 128, 224, 299."]}


def test_a_preparation_whose_pixels_were_removed_does_not_count(world, others, alice):
    others[0].remove_pixels(by=alice)
    with pytest.raises(NotPrepared) as refusal:
        TrainingRun.create(
            world.dataset,
            "Custom_CNN",
            Configuration(image_size=128),
            alice,
            preset="quick",
        )
    assert refusal.value.wanted == {"image_size": 128}


# -- Left and right


@pytest.mark.parametrize(
    ("part", "says"),
    [("chest", "heart lies on the left"), ("knee", "side marker"), ("", "not known which part"), ("spine", None)],
)
def test_flip_is_warned_about_wherever_left_and_right_mean_something(logged_in, world, part, says):
    world.condition.body_part, world.condition.slug = part, f"{part or 'x'}-question"
    world.condition.save()
    answer = logged_in.post(reverse("api:run-list"), choices(world, flip=True)).json()
    page = text(logged_in.post(CREATE, choices(world, flip="true"), follow=True))
    preview = text(logged_in.get(reverse("training:strengths-preview"), choices(world, flip="true"), headers=HTMX))
    if says is None:
        assert answer["warnings"] == [] and "Flip is on" not in page + preview
    else:
        assert says in answer["warnings"][0] and says in page and says in preview
    # Never a refusal, and never a warning without a flip.
    assert TrainingRun.objects.count() == 3
    assert logged_in.post(reverse("api:run-list"), choices(world)).json()["warnings"] == []


# -- The live preview


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"dataset": ""}, "Choose a dataset"),
        ({"blur": "9"}, "Blur must be a number from 0 to 3"),
        ({"blur": "much"}, "Enter a number"),
        ({}, "prepare the dataset again"),
    ],
)
def test_the_preview_says_why_it_shows_nothing(logged_in, world, parameters, says):
    response = logged_in.get(reverse("training:strengths-preview"), choices(world, **parameters), headers=HTMX)
    assert response.status_code == 200
    assert says in text(response) and "<img" not in text(response)


def test_a_dataset_without_preparation_leads_from_the_preview_to_where_it_is_prepared(logged_in, world):
    other = DatasetFactory()
    url = reverse("training:strengths-preview")
    assert f"{other.get_absolute_url()}#prepare" in text(logged_in.get(url, choices(world, dataset=other.pk)))


def test_another_teams_images_are_not_in_the_preview(client, world, charlie):
    client.force_login(charlie)
    fragment = text(client.get(reverse("training:strengths-preview"), choices(world)))
    assert "Choose a dataset" in fragment and world.dataset.name not in fragment


# -- The same again, with other options


def test_a_link_from_a_run_takes_over_all_that_it_was_started_with(logged_in, world):
    configuration = Configuration(epochs=33, dropout=0, flip=True, preprocessing=[], image_size=64, batch_size=8)
    run = TrainingRunFactory(
        preparation=world.preparation, architecture="VGG16", preset="gone", configuration=configuration.to_json(),
        initial="version", initial_version=world.version, state="succeeded",
    )  # fmt: skip
    link = f"{CREATE}?run={run.pk}"
    assert f'href="{link}"' in text(logged_in.get(run.get_absolute_url()))
    form = logged_in.get(link).context["form"]
    assert (form["architecture"].value(), form["initial_version"].value()) == ("VGG16", world.version.pk)
    entered = {name: form[name].value() for name in form.fields if form[name].value() not in (None, "")}
    again = logged_in.post(CREATE, entered | {"initial": "scratch"})
    assert again.status_code == 302
    assert TrainingRun.objects.latest("pk").configuration == configuration.to_json()


def test_what_is_as_in_the_configuration_stays_open_for_another_one(logged_in, world):
    form = logged_in.get(CREATE, {"run": world.run.pk}).context["form"]
    assert form["configuration"].value() == "quick" and not form.entered


@pytest.mark.parametrize(
    ("hint", "rate"), [("diverging", 2e-4), ("jumping", 6.7e-4), ("over-fitting", None), ("x", None)]
)
def test_the_link_beside_an_advice_about_the_learning_rate_follows_it(logged_in, world, hint, rate):
    # That of Custom_CNN is 0.002.
    form = logged_in.get(CREATE, {"run": world.run.pk, "hint": hint}).context["form"]
    assert form["learning_rate"].value() == (rate and pytest.approx(rate))


def test_options_of_an_earlier_release_are_taken_over_as_far_as_they_are_known(logged_in, world):
    world.run.configuration |= {"momentum_of_yesterday": 1, "blur": 2}
    world.run.save()
    assert logged_in.get(CREATE, {"run": world.run.pk}).context["form"].entered == {"blur"}


@pytest.mark.parametrize("number", ["999", "x", "", "-1", "9" * 40, "²"])
def test_a_run_that_does_not_exist_cannot_be_taken_over(logged_in, world, number):
    assert logged_in.get(CREATE, {"run": number}).status_code == 404


def test_the_run_of_another_team_cannot_be_taken_over(client, world, charlie):
    client.force_login(charlie)
    assert client.get(CREATE, {"run": world.run.pk}).status_code == 404


def test_a_form_that_comes_back_does_not_tick_what_nobody_ticked(logged_in, world):
    form = logged_in.post(CREATE, choices(world, epochs=0)).context["form"]
    assert form["preprocessing"].value() is None


# -- What cannot be meant


HUGE = 10**400


@pytest.mark.parametrize(
    ("sent", "field", "says"),
    [
        ({"epochs": HUGE}, "epochs", "from 1 to 500, not 1000"),
        ({"learning_rate": HUGE}, "learning_rate", "above 0 up to 1, not 1000"),
        ({"learning_rate": -HUGE}, "learning_rate", "not -1000"),
        ({"learning_rate": True}, "learning_rate", "valid number"),
        ({"epochs": True}, "epochs", "valid integer"),
        ({"epoch": 3}, "epoch", "There is no field epoch; there are"),
        ({"image_size": 100}, "image_size", "there are 64, 128, 224, 299"),
        ({"optimizer": "adagrad"}, "optimizer", "there are adamw, adam, sgd"),
        ({"architecture": "LeNet"}, "architecture", "LeNet is not a choice; there are"),
        ({"dataset": True}, "dataset", "whole number, not True"),
        ({"dataset": 1.5}, "dataset", "whole number, not 1.5"),
        ({"dataset": HUGE}, "dataset", "does not exist"),
        ({"dataset": "9" * 5000}, "dataset", "does not exist"),
        ({"dataset": [1]}, "dataset", "whole number"),
        ({"initial": "version", "initial_version": 2.5}, "initial_version", "whole number, not 2.5"),
    ],
)
@pytest.mark.parametrize("name", ["api:run-list", "api:run-estimate"])
def test_the_api_refuses_it_beside_its_field(logged_in, world, name, sent, field, says):
    wanted = {"dataset": world.dataset.pk, "architecture": "Custom_CNN"} | sent
    answer = logged_in.post(reverse(name), wanted, content_type="application/json")
    assert answer.status_code == 400
    assert set(answer.json()["errors"]) == {field}
    complaint = str(answer.json()["errors"][field])
    assert says in complaint and "0" * 50 not in complaint


@pytest.mark.parametrize("name", ["api:run-list", "api:run-estimate", "api:search-list"])
def test_a_dataset_without_end_is_refused(logged_in, world, name):
    answer = logged_in.post(reverse(name), '{"dataset": 1e999}', content_type="application/json")
    assert answer.status_code == 400 and "not inf" in str(answer.json()["errors"]["dataset"])


@pytest.mark.parametrize("field", ["epochs", "learning_rate", "seed"])
def test_the_page_refuses_a_huge_number(logged_in, world, field):
    response = logged_in.post(CREATE, choices(world, **{field: HUGE}))
    assert response.status_code == 400 and list(response.context["form"].errors) == [field]


@pytest.mark.parametrize(
    ("wanted", "field", "says"),
    [
        ({"state": "asleep"}, "state", "asleep is not a choice; there are queued"),
        ({"architecture": "LeNet"}, "architecture", "LeNet is not a choice; there are"),
        ({"preparation": "x"}, "preparation", "number"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused_with_what_can(logged_in, world, wanted, field, says):
    answer = logged_in.get(reverse("api:run-list"), wanted)
    assert answer.status_code == 400 and says in str(answer.json()["errors"][field])
    assert logged_in.get(reverse("api:run-list"), {"architecture": "Custom_CNN"}).json()["results"]
