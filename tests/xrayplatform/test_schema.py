"""The OpenAPI schema describes the whole API without a warning."""

from io import StringIO

import pytest
import yaml
from django.core.management import call_command


@pytest.fixture(scope="module")
def schema():
    out = StringIO()
    call_command("spectacular", fail_on_warn=True, validate=True, stdout=out)
    return yaml.safe_load(out.getvalue())


def test_the_schema_is_valid_and_generated_without_a_warning(schema):
    assert schema["openapi"].startswith("3.")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("post", "/api/v1/tokens/"),
        ("post", "/api/v1/datasets/scan/"),
        ("post", "/api/v1/datasets/{id}/prepare/"),
        ("post", "/api/v1/runs/"),
        ("post", "/api/v1/runs/{id}/cancel/"),
        ("get", "/api/v1/runs/{id}/metrics/"),
        ("post", "/api/v1/versions/{id}/activate/"),
        ("get", "/api/v1/evaluations/{id}/"),
        ("get", "/api/v1/versions/{id}/operating-points/"),
        ("post", "/api/v1/versions/{id}/operating-points/"),
        ("post", "/api/v1/predictions/"),
        ("get", "/api/v1/conditions/{slug}/"),
    ],
)
def test_the_steps_of_the_main_job_are_described(schema, method, path):
    assert schema["paths"][path][method]["responses"]


def test_an_image_is_sent_as_a_file(schema):
    body = schema["paths"]["/api/v1/predictions/"]["post"]["requestBody"]["content"]
    reference = body["multipart/form-data"]["schema"]["$ref"].split("/")[-1]
    assert schema["components"]["schemas"][reference]["properties"]["image"]["format"] == "binary"


def test_tokens_are_the_way_in(schema):
    schemes = schema["components"]["securitySchemes"].values()
    assert any(scheme.get("name") == "Authorization" for scheme in schemes), schemes
