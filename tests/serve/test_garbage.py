"""Random requests to every route: errors name what is wrong, and none is a 5xx."""

import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6,
)
SIXTY_EXAMPLES = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def openapi(mini):
    return httpx.get(f"{mini.url}/openapi.json").json()


@pytest.fixture(scope="module")
def client(mini):
    with httpx.Client(base_url=mini.url, timeout=60) as one:
        yield one


def check_answer(answer):
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"]
        assert set(error) == {"message", "type", "param", "code"}


def value_for(schema, openapi):
    """Returns a strategy of values that the schema allows."""
    if "$ref" in schema:
        schema = openapi["components"]["schemas"][schema["$ref"].split("/")[-1]]
    if "anyOf" in schema:
        return st.one_of([value_for(one, openapi) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = {
        "string": st.text(max_size=12), "integer": st.integers(-3, 60), "number": st.floats(-1, 5, width=32),
        "boolean": st.booleans(), "null": st.none(), "object": st.dictionaries(st.text(max_size=5), ANY, max_size=2),
        "array": st.lists(ANY, max_size=2),
    }
    return kinds.get(schema.get("type"), ANY)


def body_for(schema, openapi):
    schema = openapi["components"]["schemas"][schema["$ref"].split("/")[-1]]
    optional = {
        name: value_for(one, openapi) | ANY for name, one in schema["properties"].items() if name != "max_new_tokens"
    }
    own = st.fixed_dictionaries({}, optional=optional)
    return own | st.dictionaries(st.text(max_size=8), ANY, max_size=3)


def routes(openapi, kind):
    for path, methods in openapi["paths"].items():
        for method, about in methods.items():
            content = about.get("requestBody", {}).get("content", {})
            if kind in content:
                yield method, path, content[kind]["schema"]


def test_the_document_names_every_route(openapi):
    assert set(openapi["paths"]) >= {
        "/v1/audio/speech", "/v1/audio/voices", "/v1/audio/voices/{name}", "/v1/models", "/v1/audio/models",
        "/v1/audio/conversions", "/tts", "/get_predefined_voices", "/get_reference_files", "/api/ui/initial-data",
        "/health", "/health/live", "/health/ready", "/metrics",
    }


@SIXTY_EXAMPLES
@given(data=st.data())
def test_json(data, openapi, client):
    method, path, schema = data.draw(st.sampled_from(list(routes(openapi, "application/json"))))
    body = data.draw(body_for(schema, openapi))
    if isinstance(body, dict):
        body["max_new_tokens"] = 5  # what happens to be right may not take minutes
    content = json.dumps(body).encode(errors="surrogatepass")
    check_answer(client.request(method, path, content=content, headers={"content-type": "application/json"}))


@SIXTY_EXAMPLES
@given(data=st.data())
def test_forms(data, openapi, client):
    method, path, _ = data.draw(st.sampled_from(list(routes(openapi, "multipart/form-data"))))
    fields = data.draw(st.dictionaries(st.sampled_from(["name", "voice", "seed", "consent", "x"]),
                                       st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=3))
    files = data.draw(st.dictionaries(st.sampled_from(["audio_sample", "file", "name"]), st.binary(max_size=60)))
    check_answer(client.request(method, path, data=fields, files={k: ("f", v) for k, v in files.items()} or None))


@SIXTY_EXAMPLES
@given(path=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30), raw=st.binary(max_size=80),
       method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]))
def test_paths_and_bytes(path, raw, method, client):
    for start in ("/", "/v1/", "/v1/audio/voices/", "/v1/models/", "/tts-stream?"):
        answer = client.request(method, start + path.lstrip("/"), content=raw, headers={"content-type": "text/plain"})
        assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/page/../limits.py", "/%2e%2e/%2e%2e/etc/passwd", "/page.html",
                                  "/v1/audio/voices/..%2f..%2fetc%2fpasswd", "//etc/passwd"])
def test_no_file_is_served_that_is_not_the_pages(client, path):
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert "root:" not in answer.text


def test_it_still_speaks(client, mini):
    answer = client.post("/v1/audio/speech", json={"input": "Hello.", "response_format": "pcm"})
    assert answer.status_code == 200
    assert len(answer.content) > 4800
