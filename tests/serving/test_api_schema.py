"""The server keeps to its own OpenAPI description, whatever is sent by it."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from api_server import SteeredEngine, served
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from sightbridge.config.serving import ServingSettings
from sightbridge.serving.api.app import make_app, make_state
from sightbridge.serving.api.limits import BODIES

schema = schemathesis.openapi.from_asgi(
    "/openapi.json", make_app(make_state([served(SteeredEngine())], ServingSettings(default_tokens=2)))
)


@pytest.mark.slow
@schema.parametrize()
@hypothesis.settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_answers_are_as_described(case: schemathesis.Case) -> None:
    case.call_and_validate(
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
            unsupported_method,
        ]
    )


def test_all_routes_are_described() -> None:
    operations = [operation.ok() for operation in schema.get_all_operations()]
    posts = {operation.path for operation in operations if operation.method.lower() == "post"}
    assert posts == {"/v1/chat/completions", "/score", "/features", "/v1/files"} <= set(BODIES)
    paths = {operation.path for operation in operations}
    assert paths == {
        "/v1/chat/completions",
        "/score",
        "/features",
        "/v1/files",
        "/v1/files/{file_id}",
        "/v1/models",
        "/v1/models/{name}",
        "/healthz",
        "/metrics",
    }
