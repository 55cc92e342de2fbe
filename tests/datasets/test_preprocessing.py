"""Preprocessing steps: borders cropped, contrast evened out; and that training, viewer and serving do the same."""

import numpy as np
import pytest
from PIL import Image

from datasets import imaging, rendering
from datasets.cache import open_cache
from datasets.enhancement import MAX_CROP, STEPS, clahe, equalise, ordered, without_borders
from datasets.models import Dataset, Preparation
from tests.datasets.test_prepare import fill, prepare_again
from tests.datasets.test_scan import scan
from xrayplatform.jobs import JobError


def anatomy(height=120, width=100, seed=0):
    """Grey values between 40 and 200, smooth with some noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = 120 + 60 * np.sin(rows / 17) * np.cos(columns / 23)
    return np.clip(smooth + random.normal(0, 6, (height, width)), 40, 200).astype(np.uint8)


def framed(inner, top=0, bottom=0, left=0, right=0, level=3):
    return np.pad(inner, ((top, bottom), (left, right)), constant_values=level)


# -- Borders


@pytest.mark.parametrize("level", [0, 12, 248, 255])
def test_the_shutters_of_a_collimator_are_cropped(level):
    inner = anatomy()
    cropped = without_borders(framed(inner, 20, 9, 15, 4, level=level))
    assert np.array_equal(cropped, inner)


def test_a_picture_without_borders_is_not_touched():
    inner = anatomy()
    assert without_borders(inner) is inner or np.array_equal(without_borders(inner), inner)


def test_a_letter_in_the_border_does_not_save_it():
    picture = framed(anatomy(120, 100), top=24)
    picture[4:12, 10:14] = 255
    assert without_borders(picture).shape == (120, 100)


def test_a_dark_background_beside_the_anatomy_is_no_border():
    """As on a chest film, where the air above the shoulders is dark and the neck between is not."""
    picture = anatomy(120, 100)
    picture[:20, :40] = picture[:20, 60:] = 0
    assert without_borders(picture).shape == picture.shape


def test_at_most_a_quarter_of_a_side_is_cropped():
    picture = framed(anatomy(40, 40), top=60)
    cropped = without_borders(picture)
    assert cropped.shape == (100 - int(100 * MAX_CROP), 40)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_of_one_value_stays_as_it_is(level):
    flat = np.full((50, 40), level, np.uint8)
    assert np.array_equal(without_borders(flat), flat)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 2)])
def test_tiny_pictures_survive_every_step(shape):
    tiny = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) * 20
    for steps in (["crop_borders"], ["clahe"], ["equalise"]):
        assert imaging.to_model_input(tiny, 16, "pad", steps).shape == (16, 16)


# -- Equalisation


def test_equalising_makes_every_grey_value_about_equally_frequent():
    grey = anatomy(256, 256)
    shares = np.cumsum(np.bincount(equalise(grey).ravel(), minlength=256)) / grey.size
    assert abs(shares - np.arange(256) / 255).max() < 0.03
    assert equalise(grey).min() == 0 and equalise(grey).max() == 255


def test_equalising_keeps_the_order_of_the_grey_values_and_does_not_care_for_exposure():
    grey = anatomy()
    levels, first = np.unique(grey, return_index=True)
    assert (np.diff(equalise(grey).ravel()[first].astype(int)) >= 0).all()
    darker = (grey // 2).astype(np.uint8)
    assert np.array_equal(equalise(2 * darker), equalise(darker))
    assert len(levels) > 50


def test_a_flat_picture_is_not_equalised():
    flat = np.full((16, 16), 77, np.uint8)
    assert np.array_equal(equalise(flat), flat)


def test_clahe_of_one_tile_without_a_limit_is_plain_equalisation():
    grey = anatomy(64, 64)
    share = np.cumsum(np.bincount(grey.ravel(), minlength=256)) / grey.size
    assert abs(clahe(grey, tiles=1, clip=1e9).astype(int) - np.rint(255 * share[grey])).max() <= 1


def test_clahe_with_a_limit_of_one_is_the_identity():
    """Every level may count once: all histograms are flat, and the curves are straight lines."""
    grey = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    assert abs(clahe(grey, tiles=1, clip=1.0).astype(int) - grey).max() <= 1


def test_clahe_shows_in_the_dark_part_what_global_equalisation_leaves_flat():
    random = np.random.default_rng(0)
    picture = np.concatenate([random.integers(20, 30, (64, 128)), random.integers(50, 250, (64, 128))]).astype(np.uint8)
    assert clahe(picture)[:48].std() > 1.5 * picture[:48].std()


def test_the_limit_keeps_noise_from_being_blown_up():
    noise = np.random.default_rng(0).normal(100, 2, (128, 128)).astype(np.uint8)
    assert clahe(noise, clip=2.0).std() < clahe(noise, clip=8.0).std() < clahe(noise, clip=1e9).std()
    # The slope of a curve is at most the limit, and one more for what is shared out.
    assert clahe(noise, clip=2.0).std() < 3 * noise.std()


def test_there_are_no_seams_between_the_tiles():
    rows, columns = np.mgrid[0:224, 0:224]
    smooth = (60 + 0.5 * rows + 0.2 * columns).astype(np.uint8)
    assert abs(np.diff(clahe(smooth).astype(int), axis=0)).max() <= 4
    assert abs(np.diff(clahe(smooth).astype(int), axis=1)).max() <= 4


@pytest.mark.parametrize("shape", [(224, 224), (100, 57), (9, 8), (7, 5)])
def test_clahe_keeps_the_shape_also_where_tiles_do_not_fit(shape):
    grey = anatomy(*shape)
    assert clahe(grey).shape == shape and clahe(grey).dtype == np.uint8


# -- As part of the one pixel code


def test_without_steps_the_pixels_are_those_of_before():
    grey = anatomy()
    assert np.array_equal(imaging.to_model_input(grey, 64), imaging.to_model_input(grey, 64, "pad", ()))


def test_borders_are_cropped_before_the_size_changes_and_bars_are_not_equalised():
    inner = anatomy(120, 60)
    seen = imaging.to_model_input(framed(inner, 10, 10, 10, 10), 60, "pad", ["crop_borders", "equalise"])
    assert (seen[:, :15] == 0).all() and (seen[:, 45:] == 0).all()
    expected = imaging.to_model_input(inner, 60, "pad", ["equalise"])
    assert np.array_equal(seen, expected)


@pytest.mark.parametrize("steps", [["crop_borders"], ["clahe"], ["equalise"], ["crop_borders", "clahe"]])
def test_the_same_picture_as_8_bits_and_as_float_gives_the_same(steps):
    grey = framed(anatomy(), 12, 12, 12, 12, level=16)
    fine = grey.astype(np.float32) / np.float32(255)
    assert np.array_equal(
        imaging.to_model_input(grey, 64, "stretch", steps), imaging.to_model_input(fine, 64, "stretch", steps)
    )


def test_steps_have_one_order_and_only_those_that_exist():
    assert ordered(["clahe", "crop_borders", "clahe"]) == ("crop_borders", "clahe")
    with pytest.raises(ValueError, match="no preprocessing step 'sharpen'; there are crop_borders"):
        imaging.to_model_input(anatomy(), 32, "pad", ["sharpen"])
    with pytest.raises(ValueError, match="not both"):
        ordered(["clahe", "equalise"])


# -- As part of a preparation


@pytest.fixture
def dataset(settings, alice):
    fill(settings.DATASET_ROOT / "CHEST/lungs", 12)
    scan()
    return Dataset.objects.get()


def test_a_preparation_applies_its_steps_and_records_them(dataset, alice):
    plain, enhanced = prepare_again(alice), prepare_again(alice, steps=["equalise", "crop_borders"])
    assert enhanced.pipeline["steps"] == ["crop_borders", "equalise"] == enhanced.steps
    assert "steps" not in plain.pipeline
    assert enhanced.steps_in_words == [STEPS["crop_borders"], STEPS["equalise"]]
    assert enhanced.pixels != plain.pixels and enhanced.split_digest == plain.split_digest
    data = open_cache(enhanced.cache_folder)
    image = enhanced.manifest.first()
    expected = imaging.model_input(
        imaging.read(dataset.folder / image.path), enhanced.image_size, enhanced.pipeline["fit"], enhanced.steps
    )
    assert np.array_equal(data.images[image.row], expected)
    assert data.pipeline == enhanced.pipeline


def test_pixels_without_steps_keep_their_name(dataset, alice):
    """So that nothing that was prepared before has to be decoded again."""
    assert prepare_again(alice).pixels == prepare_again(alice, steps=[]).pixels
    assert Preparation.objects.last().pipeline == imaging.PIPELINE | {"fit": Preparation.objects.last().pipeline["fit"]}


def test_a_step_that_does_not_exist_is_refused_before_any_work(dataset, alice):
    with pytest.raises(JobError, match="no preprocessing step 'sharpen'"):
        Preparation.create(dataset, alice, steps=["sharpen"])
    with pytest.raises(JobError, match="not both"):
        Preparation.create(dataset, alice, steps=["clahe", "equalise"])
    assert not Preparation.objects.exists()


def test_the_viewer_shows_the_input_with_the_steps_and_names_them(dataset, alice):
    prepare_again(alice, steps=["crop_borders", "equalise"])
    image = dataset.images.first()
    view = rendering.view_of(image)
    words = " | ".join(view.steps)
    assert words.index(STEPS["crop_borders"]) < words.index("brought to") < words.index(STEPS["equalise"])
    assert not view.error


def test_the_steps_are_chosen_on_the_page_and_over_the_api(dataset, alice, client):
    client.force_login(alice)
    page = client.get(f"{dataset.get_absolute_url()}?image_size=64&steps=clahe").content.decode()
    assert '<option value="64" selected>' in page
    assert 'value="clahe" id="id_steps_1" checked' in page or 'value="clahe"' in page.split("checked")[0][-200:]
    choices = {"seed": 0, "image_size": 64, "fit": "auto", "validation_share": 0.2, "test_share": 0.2}
    choices |= {"source_splits": "honour", "steps": ["clahe", "equalise"]}
    refused = client.post(f"/datasets/{dataset.pk}/prepare/", choices)
    assert refused.status_code == 400 and "not both" in refused.content.decode()
    answer = client.post(f"/api/v1/datasets/{dataset.pk}/prepare/", choices)
    assert answer.status_code == 400 and "not both" in str(answer.json()["errors"]["steps"])
    answer = client.post(f"/api/v1/datasets/{dataset.pk}/prepare/", choices | {"steps": ["clahe"]})
    assert answer.status_code == 202 and answer.json()["steps"] == ["clahe"]


def test_a_picture_of_a_border_and_anatomy_survives_the_whole_way(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(framed(anatomy(), 20, 20, 20, 20)).save(path)
    radiograph = imaging.read(path)
    assert np.array_equal(
        imaging.model_input(radiograph, 64, "stretch", ("crop_borders",)),
        imaging.to_model_input(anatomy(), 64, "stretch"),
    )
