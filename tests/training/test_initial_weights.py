"""What a training starts from: ImageNet, chance, or a version of the registry, and what is written down about it."""

import hashlib
import json

import numpy as np
import pytest
from django.core.management import call_command
from django.urls import reverse

from registry import artifacts
from registry.models import ModelVersion, StateError
from tests.datasets.test_prepare import fill, prepare_again
from tests.datasets.test_scan import scan
from tests.factories import ConditionFactory, DatasetFactory, PreparationFactory, TeamFactory, put_cache
from tests.inference.versions import manifest
from tests.tampering import tampered
from training.configurations import PRESETS
from training.management.commands import train_run
from training.ml.architectures import ARCHITECTURES, PublishedWeights, build
from training.ml.export import weights_of
from training.ml.initial import WeightsUnusable, assign, from_version, imagenet
from training.models import TrainingRun
from training.models import run as run_module
from training.pretrained import pretrained_folder
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError

QUICK = PRESETS["quick"].configuration
CLASSES = ["NORMAL", "PNEUMONIA"]
CONTENT = b"weights of a million photographs"


def saved(folder, model, **changes):
    """The folder of a version that consists of the weights of `model`, and its digest."""
    content = manifest(classes=CLASSES) | {"architecture": model.name, "image_size": model.input_shape[1]} | changes
    return folder, artifacts.save(folder, manifest=content, weights=weights_of(model), openvino=None, predictions={})


def unlike(model):
    for variable in model.weights:
        variable.assign(np.asarray(variable) + 0.25)
    return model


def network(classes=2, size=64, name="Custom_CNN"):
    return build(name, image_size=size, classes=classes)


@pytest.fixture
def initial(tmp_path):
    return from_version("chest v3", *saved(tmp_path / "3", unlike(network())), "Custom_CNN")


@pytest.fixture
def version(world):
    """A version of alice's team with real weights of a Custom_CNN."""
    staged, sha256 = saved(world.version.folder.parent / "staged", network())
    return ModelVersion.objects.register(
        world.condition, staged, sha256=sha256, manifest=artifacts.load(staged, sha256).manifest, by=None,
        dataset_name="x", dataset_digest="d", split_digest="s", origin="made in a test",
    )  # fmt: skip


@pytest.fixture
def installed(monkeypatch):
    """The ImageNet weights of VGG16 are on this server."""
    digest = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    entry = ARCHITECTURES["VGG16"]
    published = PublishedWeights("vgg16_notop.h5", digest, "folder")
    monkeypatch.setitem(ARCHITECTURES, "VGG16", type(entry)(**(vars(entry) | {"pretrained": published})))
    pretrained_folder().mkdir()
    path = pretrained_folder() / published.file_name
    path.write_bytes(CONTENT)
    return path


# -- Weights of a version in a network


def test_with_the_same_classes_the_whole_network_is_taken_over(initial):
    model = network()
    assert assign(model, initial, CLASSES) is True
    given = initial.artifact.weights()
    assert all(np.array_equal(value, given[name]) for name, value in weights_of(model).items())


@pytest.mark.parametrize("classes", [["PNEUMONIA", "NORMAL"], ["NORMAL", "COVID"], ["A", "B", "C"]])
def test_with_other_classes_or_another_order_the_head_stays_fresh(initial, classes):
    model = network(len(classes))
    fresh = weights_of(model)
    assert assign(model, initial, classes) is False
    given = initial.artifact.weights()
    for name, value in weights_of(model).items():
        assert np.array_equal(value, fresh[name] if name.startswith("head/") else given[name]), name


def test_images_of_another_size_do_not_matter(initial):
    model = network(size=96)
    assert assign(model, initial, CLASSES)
    assert np.array_equal(weights_of(model)["head/kernel"], initial.artifact.weights()["head/kernel"])


def test_another_architecture_is_refused_in_words(tmp_path, initial):
    with pytest.raises(WeightsUnusable, match="chest v3 is a Custom_CNN; its weights do not fit into VGG16") as refused:
        from_version("chest v3", initial.artifact.folder, initial.artifact.sha256, "VGG16")
    assert "Choose the architecture Custom_CNN" in refused.value.hint
    model = network(name="MobileNetV3Small")
    before = weights_of(model)
    with pytest.raises(WeightsUnusable, match="do not fit into MobileNetV3Small"):
        assign(model, initial, CLASSES)
    assert all(np.array_equal(value, before[name]) for name, value in weights_of(model).items())


def test_a_network_that_has_changed_since_is_refused_and_nothing_is_set(tmp_path):
    model = network()
    folder, _ = saved(tmp_path / "4", model)
    weights = {name: value for name, value in weights_of(model).items() if name != "block1_convolution/kernel"}
    content = manifest(classes=CLASSES)
    sha256 = artifacts.save(folder, manifest=content, weights=weights, openvino=None, predictions={})
    before = weights_of(model)
    with pytest.raises(WeightsUnusable, match="block1_convolution/kernel is in one only"):
        assign(model, from_version("chest v4", folder, sha256, "Custom_CNN"), CLASSES)
    assert all(np.array_equal(value, before[name]) for name, value in weights_of(model).items())


def test_changed_files_are_found_before_anything_in_them_is_used(tmp_path):
    folder, sha256 = saved(tmp_path / "5", network())
    with (folder / artifacts.WEIGHTS).open("r+b") as file:
        file.seek(1000)
        file.write(b"\1\2\3\4")
    with pytest.raises(WeightsUnusable, match=r"chest v5 cannot be used: weights\.safetensors .* was changed"):
        from_version("chest v5", folder, sha256, "Custom_CNN")


def test_the_words_name_the_source_and_fit_the_table(tmp_path, initial, installed):
    assert initial.words == f"chest v3 (sha256 {initial.artifact.sha256[:12]}…)"
    long = from_version("x" * 300, initial.artifact.folder, initial.artifact.sha256, "Custom_CNN")
    assert len(long.words) == 100 and long.words.endswith(f"(sha256 {initial.artifact.sha256[:12]}…)")
    digest = ARCHITECTURES["VGG16"].pretrained.digest
    assert imagenet("VGG16", pretrained_folder()).words == f"ImageNet (vgg16_notop.h5, MD5 {digest[:12]}…)"
    for entry in ARCHITECTURES.values():
        if entry.pretrained:
            assert len(f"ImageNet ({entry.pretrained.file_name}, SHA-256 {'0' * 12}…)") <= 100


# -- What a run may start from


def create(world, alice, **choice):
    choice = {"architecture": "Custom_CNN"} | choice
    architecture = choice.pop("architecture")
    return TrainingRun.create(world.dataset, architecture, QUICK, alice, preset="quick", **choice)


def test_by_itself_a_run_takes_imagenet_where_it_is_installed_and_says_so(world, alice, installed):
    run = create(world, alice, architecture="VGG16")
    assert run.initial == "auto" and run.initial_weights.startswith("ImageNet (vgg16_notop.h5, MD5 ")
    assert run.starting_weights().path == installed
    other = create(world, alice, architecture="ResNet50")
    assert (other.initial_weights, other.starting_weights()) == ("scratch", None)
    entries = AuditEntry.objects.filter(action="run.start").order_by("seq")
    assert [entry.after["initial_weights"] for entry in entries] == [run.initial_weights, "scratch"]


def test_scratch_means_scratch_even_where_imagenet_is_installed(world, alice, installed):
    run = create(world, alice, architecture="VGG16", initial="scratch")
    assert (run.initial_weights, run.starting_weights()) == ("scratch", None)


def test_every_attempt_starts_from_the_same_whatever_was_installed_meanwhile(world, alice, installed):
    content = installed.read_bytes()
    installed.unlink()
    run = create(world, alice, architecture="VGG16")
    installed.write_bytes(content)
    assert TrainingRun.objects.get(pk=run.pk).starting_weights() is None


def test_imagenet_without_the_file_is_refused_with_advice_and_never_replaced_by_scratch(world, alice):
    with pytest.raises(JobError, match="ImageNet weights of VGG16 are not installed") as refused:
        create(world, alice, architecture="VGG16", initial="imagenet")
    for words in ("pretrained fetch VGG16", "pretrained add FILE", ARCHITECTURES["VGG16"].pretrained.url):
        assert words in refused.value.hint
    assert TrainingRun.objects.count() == 1


def test_a_damaged_file_is_not_taken_for_the_published_one(world, alice, installed):
    installed.write_bytes(b"an error page")
    with pytest.raises(JobError, match="is damaged"):
        create(world, alice, architecture="VGG16", initial="imagenet")
    assert create(world, alice, architecture="VGG16").initial_weights == "scratch"


def test_a_file_that_vanishes_while_the_run_waits_ends_it_instead_of_training_from_scratch(world, alice, installed):
    run = create(world, alice, architecture="VGG16")
    installed.unlink()
    with pytest.raises(WeightsUnusable, match="not installed"):
        TrainingRun.objects.get(pk=run.pk).starting_weights()


def test_an_architecture_without_published_weights_says_so(world, alice):
    with pytest.raises(JobError, match="Custom CNN has no published ImageNet weights"):
        create(world, alice, initial="imagenet")


def test_a_run_from_a_version_names_it_and_loads_its_weights(world, alice, version):
    run = create(world, alice, initial="version", version=version)
    assert run.initial_weights == f"chest v{version.number} (sha256 {version.sha256[:12]}…)"
    assert run.initial_version == version
    assert run.starting_weights().artifact.sha256 == version.sha256


@pytest.mark.parametrize("choice", [{"initial": "version"}, {"initial": "scratch", "version": True}])
def test_a_version_is_named_exactly_when_it_is_started_from(world, alice, version, choice):
    with pytest.raises(JobError, match="not clear"):
        create(world, alice, **{name: version if value is True else value for name, value in choice.items()})


def test_an_archived_version_is_refused(world, alice, version):
    ModelVersion.objects.filter(pk=version.pk).update(state="archived")
    version.refresh_from_db()
    with pytest.raises(JobError, match="is archived"):
        create(world, alice, initial="version", version=version)


def test_a_version_that_is_archived_while_its_weights_are_verified_is_refused(world, alice, version, monkeypatch):
    def verified(*args):
        version.archive(by=alice, reason="superseded")
        return from_version(str(version), version.folder, version.sha256, "Custom_CNN")

    monkeypatch.setattr(run_module, "_weights_of", verified)
    with pytest.raises(JobError, match="is archived"):
        create(world, alice, initial="version", version=version)
    assert not TrainingRun.objects.filter(initial_version=version).exists()


def test_a_version_from_which_a_training_starts_is_not_archived_until_that_has_ended(world, alice, version):
    run = create(world, alice, initial="version", version=version)
    with pytest.raises(StateError, match="cannot be archived: a training starts from its weights"):
        version.archive(by=alice, reason="superseded")
    TrainingRun.objects.filter(pk=run.pk).update(state="succeeded")
    version.archive(by=alice, reason="superseded")


def test_a_version_whose_files_are_gone_is_refused(world, alice):
    with pytest.raises(JobError, match="cannot be used: The files of version"):
        create(world, alice, initial="version", version=world.version)


def test_another_teams_version_does_not_exist(world, charlie, version):
    own = DatasetFactory(condition=ConditionFactory(team=charlie.teams.get()))
    put_cache(PreparationFactory(dataset=own))
    with pytest.raises(JobError, match="There is no such version"):
        TrainingRun.create(own, "Custom_CNN", QUICK, charlie, preset="quick", initial="version", version=version)


def test_what_learned_from_a_teams_images_stays_with_that_team(world, alice, version):
    """alice sees both, but others who see the new run would not."""
    second = TeamFactory()
    second.members.add(alice)
    for team in (second, None):
        dataset = DatasetFactory(condition=ConditionFactory(team=team))
        put_cache(PreparationFactory(dataset=dataset))
        with pytest.raises(JobError, match="belongs to Chest clinic"):
            TrainingRun.create(dataset, "Custom_CNN", QUICK, alice, preset="quick", initial="version", version=version)


@pytest.mark.slow
def test_a_version_trained_on_from_another_names_its_parent_and_starts_where_that_ended(settings, roles, monkeypatch):
    fill(settings.DATASET_ROOT / "CHEST/lungs", 12)
    scan()
    preparation = prepare_again()
    started_from = []
    true_assign = assign
    monkeypatch.setattr(
        "training.ml.initial.assign",
        lambda model, initial, classes: started_from.append((initial.words, true_assign(model, initial, classes))),
    )
    brief = QUICK.with_options(epochs=1, minimum_steps=1, batch_size=4)
    versions = []
    for choice in ({}, {"initial": "version"}):
        if choice:
            choice |= {"version": versions[0]}
        run = TrainingRun.create(preparation.dataset, "Custom_CNN", brief, None, preset="quick", **choice)
        assert run.claim(run.attempt)
        train_run._train(run, lambda text: None, train_run.StopCheck(run))
        run.refresh_from_db()
        assert run.state == "succeeded", run.error
        versions.append(run.version)
    first, second = versions
    words = f"{first} (sha256 {first.sha256[:12]}…)"
    assert set(started_from) == {(words, True)}
    assert (first.parent, first.initial_weights) == (None, "scratch")
    assert (second.parent, second.initial_weights) == (first, words)
    assert artifacts.load(second.folder, second.sha256).manifest["initial_weights"] == words


# -- The page, the API and the command


def asked(world, **choice):
    return {"dataset": world.dataset.pk, "architecture": "Custom_CNN", "configuration": "quick"} | choice


def test_the_page_starts_from_a_version_that_its_link_has_chosen(client, alice, world, version):
    client.force_login(alice)
    assert f'href="/training/new/?version={version.pk}"' in client.get(version.get_absolute_url()).content.decode()
    page = client.get("/training/new/", {"version": version.pk}).content.decode()
    assert f'<option value="{version.pk}" selected>chest v{version.number}, Custom_CNN</option>' in page
    response = client.post("/training/new/", asked(world, initial="version", initial_version=version.pk))
    run = TrainingRun.objects.latest("pk")
    assert response.url == run.get_absolute_url() and run.initial_version == version
    assert version.get_absolute_url() in client.get(run.get_absolute_url()).content.decode()


def test_the_page_asks_which_version(client, alice, world):
    client.force_login(alice)
    response = client.post("/training/new/", asked(world, initial="version"))
    assert response.status_code == 400
    assert "Choose the version whose weights" in response.content.decode()


def test_a_version_in_the_list_does_not_count_when_something_else_is_chosen(client, alice, world, version):
    client.force_login(alice)
    client.post("/training/new/", asked(world, initial="scratch", initial_version=version.pk))
    run = TrainingRun.objects.latest("pk")
    assert (run.initial, run.initial_version) == ("scratch", None)


@pytest.mark.parametrize("number", ["x", "99999999999999", "-1", ""])
def test_a_link_to_no_version_opens_the_page_as_usual(client, alice, world, number):
    client.force_login(alice)
    assert client.get("/training/new/", {"version": number}).status_code == 200


def test_the_page_says_what_to_do_when_imagenet_is_missing(client, alice, world):
    client.force_login(alice)
    response = client.post("/training/new/", asked(world, architecture="VGG16", initial="imagenet"))
    assert response.status_code == 400 and "pretrained fetch VGG16" in response.content.decode()


def test_the_api_starts_from_a_version(api, alice, world, version):
    api.force_authenticate(alice)
    answer = api.post("/api/v1/runs/", asked(world, initial="version", initial_version=version.pk))
    assert answer.status_code == 202
    assert (answer.data["initial"], answer.data["initial_version"]) == ("version", version.pk)
    assert answer.data["initial_weights"].startswith(f"chest v{version.number} (sha256 ")


def test_the_api_does_not_know_another_teams_version(api, charlie, world, version):
    own = DatasetFactory(condition=ConditionFactory(team=charlie.teams.get()))
    api.force_authenticate(charlie)
    answer = api.post("/api/v1/runs/", asked(world, dataset=own.pk, initial="version", initial_version=version.pk))
    assert answer.status_code == 400 and "initial_version" in json.dumps(answer.json())


def test_the_command_starts_from_a_version(world, version, capsys):
    arguments = [world.dataset.name, "--initial-version", f"chest:{version.number}", "--json"]
    call_command("train", *arguments)
    run = TrainingRun.objects.get(pk=json.loads(capsys.readouterr().out)["run"])
    assert (run.initial, run.initial_version) == ("version", version)


@pytest.mark.parametrize("wanted", ["chest", "chest:x", ":1", "chest:99", "knee:1"])
def test_the_command_refuses_a_version_that_is_not_there(world, version, capsys, wanted):
    with pytest.raises(SystemExit):
        call_command("train", world.dataset.name, "--initial-version", wanted, "--json")
    assert wanted.partition(":")[0] in json.loads(capsys.readouterr().out)["error"]
    assert TrainingRun.objects.count() == 1


def test_the_command_refuses_imagenet_that_is_not_there(world, capsys):
    with pytest.raises(SystemExit):
        call_command("train", world.dataset.name, "--architecture", "VGG16", "--initial", "imagenet", "--json")
    assert "pretrained add FILE" in json.loads(capsys.readouterr().out)["error"]


def test_the_page_of_a_version_names_the_version_it_was_trained_on_from(client, alice, world, version):
    parent = world.version
    tampered(version, parent=parent, initial_weights=f"{parent} (sha256 0…)")
    client.force_login(alice)
    page = client.get(reverse("registry:version-detail", args=[version.pk])).content.decode()
    assert f'<dt>Trained on from</dt><dd><a href="{parent.get_absolute_url()}">{parent}</a></dd>' in page
