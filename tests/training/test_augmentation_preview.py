"""The preview of augmentation: computed without TensorFlow, and yet what a training shows its network."""

import base64
import os
import re
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from django.conf import settings as platform_settings
from django.urls import reverse
from PIL import Image

from datasets.cache import open_cache
from datasets.models import IMAGE_SIZES
from tests.datasets.test_prepare import SIZE, fill, prepare_again
from tests.datasets.test_scan import scan
from tests.factories import PreparationFactory, put_cache
from training.configurations import PRESETS, Configuration
from training.ml import augmentation
from xrayplatform.audit import AuditEntry

STRENGTHS = {
    "nothing": Configuration(shift=0, zoom=0, rotation=0, contrast=0, brightness=0),
    "shift": Configuration(shift=0.3, zoom=0, rotation=0, contrast=0, brightness=0),
    "zoom": Configuration(shift=0, zoom=0.5, rotation=0, contrast=0, brightness=0),
    "rotation": Configuration(shift=0, zoom=0, rotation=45, contrast=0, brightness=0),
    "exposure": Configuration(shift=0, zoom=0, rotation=0, contrast=0.5, brightness=0.3),
    "everything": Configuration(shift=0.2, zoom=0.4, rotation=30, contrast=0.4, brightness=0.2),
}
# Grey levels of 255 by which the two may differ: float32 coordinates are rounded in another order.
WITHIN = 2 / 255


def images(kind: str, size: int) -> np.ndarray:
    random = np.random.default_rng(0)
    if kind == "noise":
        return random.integers(0, 256, (6, size, size), dtype=np.uint8)
    rows, columns = np.mgrid[0:size, 0:size] / size
    return np.stack([np.uint8(255 * np.abs(np.sin(3 * rows + k * columns))) for k in range(6)])


# -- The same as TensorFlow


@pytest.mark.parametrize("size", [32, 63])
@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("name", STRENGTHS)
def test_every_pixel_is_what_the_training_would_make_of_it(name, kind, size):
    pictures = images(kind, size)
    changes = augmentation.draw(np.random.default_rng(7), len(pictures), size, STRENGTHS[name])
    here = augmentation.apply_here(pictures, changes)
    there = np.asarray(augmentation.apply(pictures, changes))[..., 0]
    assert here.shape == there.shape == (6, size, size)
    assert here.dtype == there.dtype == np.float32
    np.testing.assert_allclose(here, there, atol=WITHIN, rtol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_too(name):
    pictures = images("noise", 64)
    changes = augmentation.draw(np.random.default_rng(1), len(pictures), 64, PRESETS[name].configuration)
    there = np.asarray(augmentation.apply(pictures, changes))[..., 0]
    np.testing.assert_allclose(augmentation.apply_here(pictures, changes), there, atol=WITHIN, rtol=0)


def test_without_a_change_the_pixels_are_those_that_were_prepared():
    pictures = images("noise", 32)
    changes = augmentation.draw(np.random.default_rng(7), 6, 32, STRENGTHS["nothing"])
    assert np.array_equal(np.rint(augmentation.apply_here(pictures, changes) * 255), pictures)


def test_beyond_the_edge_the_nearest_pixel_goes_on():
    picture = np.zeros((1, 16, 16), np.uint8)
    picture[0, :, 0] = 200
    transform = np.array([[1, 0, -5, 0, 1, 0, 0, 0]], np.float32)
    still = augmentation.draw(np.random.default_rng(0), 1, 16, STRENGTHS["nothing"])
    changes = still._replace(transforms=transform)
    moved = np.rint(augmentation.apply_here(picture, changes)[0] * 255)
    assert (moved[:, :6] == 200).all() and (moved[:, 6:] == 0).all()


def test_it_needs_no_tensorflow():
    """In a process of its own: here another test may have loaded it."""
    program = (
        "import sys, numpy as np\n"
        "from training.configurations import PRESETS\n"
        "from training.ml import augmentation\n"
        "changes = augmentation.draw(np.random.default_rng(0), 1, 8, PRESETS['standard'].configuration)\n"
        "augmentation.apply_here(np.zeros((1, 8, 8), np.uint8), changes)\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=platform_settings.BASE_DIR, env=os.environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


# -- The fragment


@pytest.fixture
def preparation(settings, team, alice):
    fill(settings.DATASET_ROOT / "CHEST/lungs", 12)
    scan()
    job = prepare_again(alice)
    job.dataset.condition.team = team
    job.dataset.condition.save()
    return job


def fragment(client, preparation, **parameters):
    address = reverse("training:augmentation-preview", args=[preparation.pk])
    return client.get(address, parameters, headers={"HX-Request": "true"})


def pictures(response):
    """For each image shown: the picture as prepared, then its variants."""
    rows = response.content.decode().split("<figure")[1:]
    return [
        [
            np.asarray(Image.open(BytesIO(base64.b64decode(text))))
            for text in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", row)
        ]
        for row in rows
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_training_images_are_shown_as_prepared_and_changed(name, client, bob, preparation):
    client.force_login(bob)
    response = fragment(client, preparation, configuration=name)
    assert response.status_code == 200
    data = open_cache(preparation.cache_folder)
    train = {data.images[row].tobytes() for row in data.indices("train")}
    shown = pictures(response)
    assert [len(row) for row in shown] == [4] * 4
    assert len({row[0].tobytes() for row in shown}) == 4
    for prepared, *variants in shown:
        assert prepared.tobytes() in train
        assert all(variant.shape == (SIZE, SIZE) for variant in variants)
        assert any(variant.tobytes() != prepared.tobytes() for variant in variants)
    assert PRESETS[name].label in response.content.decode()
    assert "<html" not in response.content.decode()


def test_without_scripts_the_preview_is_a_page_of_its_own(client, bob, preparation):
    client.force_login(bob)
    page = client.get(reverse("training:augmentation-preview", args=[preparation.pk])).content.decode()
    assert "<html" in page and page.count("<figure") == 4


def test_each_look_at_images_is_in_the_audit_log(client, bob, preparation):
    client.force_login(bob)
    fragment(client, preparation)
    entry = AuditEntry.objects.get(action="preparation.view_images")
    assert (entry.actor, entry.object_id) == (bob, str(preparation.pk))


@pytest.mark.parametrize("name", ["", "none", "x" * 10_000, "<b>", "' or 1=1"])
def test_a_preset_that_does_not_exist_is_the_standard_one(name, client, bob, preparation):
    client.force_login(bob)
    response = fragment(client, preparation, configuration=name)
    assert response.context["chosen"] == PRESETS["standard"]


def test_removed_pixels_are_explained_instead_of_shown(client, alice, preparation):
    preparation.remove_pixels(by=alice)
    client.force_login(alice)
    response = fragment(client, preparation)
    assert response.status_code == 200
    assert pictures(response) == []
    assert "prepare" in response.content.decode().lower()
    assert str(preparation.cache_folder) not in response.content.decode()
    assert not AuditEntry.objects.filter(action="preparation.view_images").exists()
    assert (
        reverse("training:augmentation-preview", args=[preparation.pk])
        not in client.get(preparation.get_absolute_url()).content.decode()
    )


@pytest.mark.parametrize("state", ["queued", "running", "failed", "cancelled"])
def test_a_preparation_that_did_not_finish_has_nothing_to_show(state, client, alice, db):
    client.force_login(alice)
    response = fragment(client, PreparationFactory(state=state))
    assert response.status_code == 200
    assert pictures(response) == []


def test_a_damaged_cache_is_explained(client, alice, preparation):
    (preparation.cache_folder / "rows.npz").write_bytes(b"damaged")
    client.force_login(alice)
    response = fragment(client, preparation)
    assert response.status_code == 200
    assert pictures(response) == []


def test_fewer_training_images_than_are_shown_are_all_shown(client, alice, preparation, monkeypatch):
    monkeypatch.setattr("training.previews.PREVIEWED", 100)
    client.force_login(alice)
    assert len(pictures(fragment(client, preparation))) == preparation.split_total("train")


def test_other_teams_see_nothing_and_the_page_leads_to_it(client, alice, charlie, preparation):
    client.force_login(charlie)
    assert fragment(client, preparation).status_code == 404
    client.force_login(alice)
    page = client.get(preparation.get_absolute_url()).content.decode()
    assert f'hx-get="{reverse("training:augmentation-preview", args=[preparation.pk])}" hx-trigger="load"' in page


def test_who_may_not_see_images_gets_no_preview(client, preparation, alice):
    alice.groups.clear()
    client.force_login(alice)
    assert fragment(client, preparation).status_code == 403


# -- The live preview of the page that starts a training


def live(client, preparation, **parameters):
    chosen = {"dataset": preparation.dataset_id, "configuration": "quick"} | parameters
    return client.get(reverse("training:strengths-preview"), chosen, headers={"HX-Request": "true"})


def test_the_same_images_are_shown_while_a_strength_is_moved(client, alice, preparation):
    client.force_login(alice)
    first, stronger, again = (pictures(live(client, preparation, contrast=value)) for value in (0.1, 0.9, 0.1))
    assert [row[0].tobytes() for row in first] == [row[0].tobytes() for row in stronger]
    assert [row[1].tobytes() for row in first] != [row[1].tobytes() for row in stronger]
    assert [row[1].tobytes() for row in first] == [row[1].tobytes() for row in again]


def test_the_preview_is_of_the_preparation_that_the_size_asks_for_or_says_that_there_is_none(
    client, alice, preparation
):
    client.force_login(alice)
    size = preparation.image_size
    other = next(choice for choice in IMAGE_SIZES if choice != size)
    newer = PreparationFactory(dataset=preparation.dataset, image_size=other)
    put_cache(newer)
    assert len(pictures(live(client, preparation, image_size=size)))
    looks = AuditEntry.objects.filter(action="preparation.view_images")
    assert looks.get().object_id == str(preparation.pk)
    missing = next(choice for choice in IMAGE_SIZES if choice not in (size, other))
    words = live(client, preparation, image_size=missing).content.decode()
    assert f"no finished preparation with images of {missing} pixels" in words
    assert f"?image_size={missing}#prepare" in words


def test_strengths_of_zero_show_the_images_as_prepared(client, alice, preparation):
    client.force_login(alice)
    still = dict.fromkeys(("shift", "zoom", "rotation", "contrast", "brightness"), 0)
    for row in pictures(live(client, preparation, **still)):
        assert all(np.array_equal(picture, row[0]) for picture in row)


def test_moving_a_strength_is_one_look_at_the_images_and_other_images_are_another(client, alice, preparation):
    client.force_login(alice)
    for strength in (0.1, 0.2, 0.3):
        live(client, preparation, contrast=strength)
    looks = AuditEntry.objects.filter(action="preparation.view_images")
    assert looks.count() == 1
    live(client, preparation, look=1)
    assert looks.count() == 2
