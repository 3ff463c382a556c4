"""deploy/kuberay.yaml: the part of Ray Serve against Ray's schema and our options, the pods against what replicas need.
All of it against the KubeRay operator's definition of a RayService (v1), if RAYSERVICE_CRD names the definition's file.
"""

import os
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
yaml = pytest.importorskip("yaml")

FILE = Path(__file__).parents[2] / "deploy" / "kuberay.yaml"


@pytest.fixture(scope="module")
def service():
    return next(part for part in yaml.safe_load_all(FILE.read_text()) if part["kind"] == "RayService")


@pytest.fixture(scope="module")
def config(service):
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))


def pods(service):
    cluster = service["spec"]["rayClusterConfig"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def deployment_of(application):
    from ray.serve._private.build_app import build_app

    from chatterbox_opt.scale.serve import app

    (deployment,) = build_app(app(application.args), name=application.name).deployments
    return deployment


def test_its_applications_are_ours_and_accept_their_options(config):
    assert [application.route_prefix for application in config.applications] == ["/", "/small"]
    for application in config.applications:
        assert application.import_path == "chatterbox_opt.scale.serve:app"
        assert deployment_of(application)._deployment_config.autoscaling_config.min_replicas == 1


def test_each_replica_fits_on_a_worker(service, config):
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups]
    assert {group["groupName"] for group in groups} == {"cpu", "gpu"}
    for application in config.applications:
        needed = deployment_of(application).ray_actor_options
        fitting = [
            limit for limit in limits
            if float(limit["cpu"]) >= needed["num_cpus"] and float(limit.get("nvidia.com/gpu", 0)) >= needed["num_gpus"]
        ]
        assert fitting


def test_every_pod_has_the_proxys_environment_and_the_volume_and_time_to_drain(service):
    from chatterbox_opt.scale.again import PROXIES

    head, *workers = pods(service)
    for spec in (head, *workers):
        (container,) = spec["containers"]
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert environment.items() >= PROXIES.items()
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert all(spec["terminationGracePeriodSeconds"] > 120 for spec in workers)


@pytest.mark.skipif("RAYSERVICE_CRD" not in os.environ, reason="RAYSERVICE_CRD names no file")
def test_the_operator_knows_every_field(service):
    jsonschema = pytest.importorskip("jsonschema")
    definition = yaml.safe_load(Path(os.environ["RAYSERVICE_CRD"]).read_text())
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    close(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(service, schema)


def close(schema):
    """Changes the schema so that fields without a definition are errors, and quantities may be whole numbers."""
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("anyOf", None)
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for part in schema.get("properties", {}).values():
        close(part)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            close(schema[name])
