"""deploy/kuberay.yaml: Serve's part against Ray's own schema and our options, the pods against what replicas ask for.
The rest is held to the operator's definition of a RayService (v1) where RAYSERVICE_CRD names its file."""

import os
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
yaml = pytest.importorskip("yaml")

FILE = Path(__file__).parents[2] / "deploy" / "kuberay.yaml"


@pytest.fixture(scope="module")
def service():
    return next(one for one in yaml.safe_load_all(FILE.read_text()) if one["kind"] == "RayService")


@pytest.fixture(scope="module")
def config(service):
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))


def pods(service):
    cluster = service["spec"]["rayClusterConfig"]
    return [one["template"]["spec"] for one in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def replica_of(one):
    from ray.serve._private.build_app import build_app

    from chatterbox_opt.scale.serve import app

    (deployment,) = build_app(app(one.args), name=one.name).deployments
    return deployment


def test_its_applications_are_ours_and_take_their_options(config):
    assert [one.route_prefix for one in config.applications] == ["/", "/small"]
    for one in config.applications:
        assert one.import_path == "chatterbox_opt.scale.serve:app"
        assert replica_of(one)._deployment_config.autoscaling_config.min_replicas == 1


def test_each_replica_finds_a_worker_that_has_what_it_asks_for(service, config):
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups]
    assert {group["groupName"] for group in groups} == {"cpu", "gpu"}
    for one in config.applications:
        asked = replica_of(one).ray_actor_options
        fitting = [
            has for has in limits
            if float(has["cpu"]) >= asked["num_cpus"] and float(has.get("nvidia.com/gpu", 0)) >= asked["num_gpus"]
        ]
        assert fitting


def test_every_pod_has_the_proxys_environment_the_volume_and_the_time_to_drain(service):
    from chatterbox_opt.scale.again import PROXIES

    head, *workers = pods(service)
    for spec in (head, *workers):
        (container,) = spec["containers"]
        environment = {one["name"]: one["value"] for one in container["env"]}
        assert environment.items() >= PROXIES.items()
        volumes = {one["name"] for one in spec["volumes"]}
        assert {one["name"] for one in container["volumeMounts"]} == volumes
    assert all(spec["terminationGracePeriodSeconds"] > 120 for spec in workers)


@pytest.mark.skipif("RAYSERVICE_CRD" not in os.environ, reason="RAYSERVICE_CRD names no definition of a RayService")
def test_the_operator_knows_every_field(service):
    jsonschema = pytest.importorskip("jsonschema")
    definition = yaml.safe_load(Path(os.environ["RAYSERVICE_CRD"]).read_text())
    version = next(one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    close(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(service, schema)


def close(schema):
    """Nothing beside what is named; a whole number may be written where a quantity is asked for."""
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("anyOf", None)
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for part in schema.get("properties", {}).values():
        close(part)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            close(schema[name])
