"""The files that make clusters: valid for those who read them, in agreement with the package, and closed by default."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from paths import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

from genray.cluster import node_types
from genray.cluster.placement import (
    GENERATOR_NODE,
    HEAD_NODE,
    LEARNER_NODE,
    ROLE_LABEL,
    SUBCLUSTER_LABEL,
    node_counts,
    verdict,
)
from genray.cluster.ray_cluster import RESERVATION_S
from genray.config.errors import ConfigError
from genray.config.load import load, presets
from genray.runs.stopping import GRACE_S

CLUSTER = ROOT / "cluster"
SCHEMAS = [json.loads(path.read_text()) for path in (Path(__file__).parent / "schemas").glob("*.json")]
UP = ["aws.yaml", "gcp.yaml"]
KUBERNETES = ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "mlflow.yaml"]
DESCRIBED = [*UP, *KUBERNETES[:2]]
RESERVED = "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PINNED = dict(re.findall(r"^([\w.-]+)==([^ \\]+)", (ROOT / "requirements.lock").read_text(), re.M))
MAKES_SECRETS = re.compile(r"(?i)(password|passwd|secret|token|credential|access_key|private)")


def of(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def up(name: str) -> dict[str, Any]:
    [config] = of(name)
    return config


def spec_of(name: str) -> dict[str, Any]:
    """The RayCluster of a manifest."""
    [found] = [document for document in of(name) if document["kind"].startswith("Ray")]
    return found["spec"].get("rayClusterSpec", found["spec"])


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a document, by its path."""
    yield path, node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from walk(value, f"{path}/{key}")


def pods(name: str) -> list[dict[str, Any]]:
    return [node for path, node in walk(of(name)) if isinstance(node, dict) and "containers" in node]


def containers(name: str) -> list[dict[str, Any]]:
    return [container for pod in pods(name) for container in pod["containers"]]


def groups(name: str) -> list[tuple[dict[str, str], bool, int]]:
    """Labels of each kind of node, whether it is the head, and how many there can be."""
    return [(dict(kind.labels), kind.head, kind.limit) for kind in node_types.fleet_from_file(CLUSTER / name).kinds]


def problems(document: dict[str, Any]) -> list[str]:
    kind = f"{document['apiVersion']}/{document['kind']}"
    [schema] = [schema for schema in SCHEMAS if kind in schema["roots"]]
    validator = jsonschema.Draft202012Validator({**schema["roots"][kind], "$defs": schema["$defs"]})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("name", UP)
def test_ray_accepts_what_it_is_to_put_up(name: str) -> None:
    config = prepare_config(up(name))
    validate_config(config)
    broken = copy.deepcopy(config)
    broken["available_node_types"]["learner"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError):
        validate_config(broken)
    broken = copy.deepcopy(config)
    broken["head_node_type"] = "nowhere"
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(broken)


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_accepts_every_manifest(name: str) -> None:
    for document in of(name):
        assert problems(document) == []


def test_a_manifest_that_is_wrong_is_found() -> None:
    job, [service, deployment, *_] = of("kuberay/rayjob.yaml")[0], of("mlflow.yaml")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = 3
    service["spec"]["ports"] = {"port": 5000}
    job["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "none"
    assert [len(problems(document)) for document in (job, deployment, service)] == [2, 1, 1]
    [cluster] = [document for document in of("kuberay/raycluster.yaml") if document["kind"] == "RayCluster"]
    del cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["name"]
    [missing] = problems(cluster)
    assert "'name' is a required property" in missing


@pytest.mark.parametrize("name", DESCRIBED)
def test_nodes_carry_the_labels_that_the_package_looks_for(name: str) -> None:
    found = groups(name)
    assert [labels for labels, head, _ in found if head] == [HEAD_NODE]
    workers = [labels for labels, head, _ in found if not head]
    assert all(labels in (GENERATOR_NODE, LEARNER_NODE) for labels in workers)  # and no node is of both kinds
    assert GENERATOR_NODE in workers
    assert LEARNER_NODE in workers
    named = {key for path, node in walk(of(name)) if isinstance(node, dict) for key in node}
    assert {key for key in named if "genray-" in str(key) or "subcluster" in str(key)} == {ROLE_LABEL, SUBCLUSTER_LABEL}


@pytest.mark.parametrize("name", DESCRIBED)
@pytest.mark.parametrize("preset", ["biggan128-simclr", "biggan128-supcon", "biggan256-supcon"])
def test_the_presets_for_gpus_fit(name: str, preset: str) -> None:
    config, fleet = load(preset), node_types.fleet_from_file(CLUSTER / name)
    assert verdict(config, fleet).line.startswith("fits once it has grown: ")
    assert re.match(r"at least \d x generator[\w-]*, 1 x learner", node_counts(config, fleet))
    with pytest.raises(
        ConfigError, match=r"^learners\.num_workers must fit the nodes of the cluster with genray-role="
    ):
        verdict(load(preset, ["--learners.num_workers", "4"]), fleet)


@pytest.mark.parametrize("name", DESCRIBED)
def test_heads_take_no_work(name: str) -> None:
    [head] = [kind for kind in node_types.fleet_from_file(CLUSTER / name).kinds if kind.head]
    assert (head.cpus, head.gpus) == (0, 0)


@pytest.mark.parametrize("name", UP)
def test_generators_are_on_spot_instances_first_and_learners_never(name: str) -> None:
    types = up(name)["available_node_types"]
    assert up(name)["max_workers"] == sum(kind.get("max_workers", 0) for kind in types.values())
    spot = {key for key, kind in types.items() if re.search(r"(?i)spot", json.dumps(kind["node_config"]))}
    assert spot == {"generator-spot"}
    assert types["generator-spot"]["labels"] == GENERATOR_NODE
    assert types["generator-spot"]["priority"] > types["generator"].get("priority", 0)
    assert all(kind.get("min_workers", 0) == 0 for kind in types.values())


@pytest.mark.parametrize("name", UP)
def test_every_node_asks_for_the_token_and_the_dashboard_stays_at_home(name: str) -> None:
    config = up(name)
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all(re.search(r"RAY_AUTH_MODE=token\b.* ray start ", command) for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in (CLUSTER / name).read_text()
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in config["setup_commands"])
    assert any("export RAY_AUTH_MODE=token" in command for command in config["setup_commands"])  # for `ray exec`
    assert config["provider"].get("cache_stopped_nodes") is not True
    if config["provider"]["type"] == "aws":
        metadata = [kind["node_config"]["MetadataOptions"] for kind in config["available_node_types"].values()]
        assert all(options == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1} for options in metadata)


@pytest.mark.parametrize("name", UP)
def test_nodes_are_installed_by_the_script_with_all_that_it_needs(name: str) -> None:
    config = up(name)
    commands = [config[f"{side}_setup_commands"] for side in ("head", "worker")]
    assert all(re.search(r"~/genray/install\.sh\b", command[-1]) for command in commands)
    assert "pip install" not in json.dumps(config)
    sources = {
        source.rstrip("/").split("*")[0].rstrip("/")
        for line in re.findall(r"^COPY (.*) \S+$", (CLUSTER / "Dockerfile").read_text(), re.M)
        for source in line.split()
    }
    mounts = {remote.removeprefix("~/genray/"): local for remote, local in config["file_mounts"].items()}
    assert mounts.pop("~/.ray/auth_token")
    assert mounts == {source: source for source in sources}
    for path in [*mounts.values(), *re.findall(r"cluster/[\w-]+\.lock", json.dumps(commands))]:
        assert (ROOT / path).exists()


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_stopped_job_gets_the_time_that_its_last_checkpoint_may_take(name: str) -> None:
    [*seconds] = map(int, re.findall(r"RAY_JOB_STOP_WAIT_TIME_S\W+(?:value: )?\"?(\d+)", (CLUSTER / name).read_text()))
    environment = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())["env_vars"]
    assert set(seconds) == {int(environment["RAY_JOB_STOP_WAIT_TIME_S"])}
    assert seconds[0] > 2 * GRACE_S


@pytest.mark.parametrize("name", DESCRIBED)
def test_what_a_killed_stream_had_is_soon_free(name: str) -> None:
    [*seconds] = re.findall(rf"{RESERVED}\W+(?:value: )?\"?(\d+)", (CLUSTER / name).read_text())
    assert set(seconds) == {str(RESERVATION_S)}
    assert yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())["env_vars"][RESERVED] == str(RESERVATION_S)


def test_a_job_on_kubernetes_has_the_cluster_and_the_environment_of_the_others() -> None:
    [job] = of("kuberay/rayjob.yaml")
    assert spec_of("kuberay/rayjob.yaml") == spec_of("kuberay/raycluster.yaml")
    environment = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": environment["env_vars"]}
    assert job["spec"]["jobId"] == job["metadata"]["name"]
    command = job["spec"]["entrypoint"].split()
    assert command[:2] == ["python", "/opt/genray/jobs/train.py"]
    assert (ROOT / "jobs/train.py").exists()
    config = load(command[2], command[3:])
    assert config.name == job["spec"]["jobId"]
    mounts = {
        mount["mountPath"] for container in containers("kuberay/rayjob.yaml")[1:] for mount in container["volumeMounts"]
    }
    assert any(config.storage_path.startswith(mount) for mount in mounts)


@pytest.mark.parametrize("name", KUBERNETES[:2])
def test_clusters_of_kuberay_grow_and_heal_and_ask_for_the_token(name: str) -> None:
    spec = spec_of(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["rayVersion"] == PINNED["ray"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["restartPolicy"] == "Never"  # KubeRay refuses any other with this autoscaler
        assert "labels" not in group["rayStartParams"]  # KubeRay refuses them there
        [container] = pod["containers"]
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        [shm] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
        assert shm["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        sizes = [
            int(text.removesuffix("Gi")) for text in (shm["sizeLimit"], container["resources"]["limits"]["memory"])
        ]
        assert 0.3 * sizes[1] <= sizes[0] < sizes[1]  # Ray takes 30 % of the memory for its objects


@pytest.mark.parametrize("name", KUBERNETES)
def test_no_pod_is_root_and_every_image_is_pinned(name: str) -> None:
    assert pods(name)
    for pod in pods(name):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            image, tag = container["image"].rsplit(":", 1)
            assert re.match(r"\d+\.\d+", tag)
            if image.endswith("/genray"):
                assert tag.partition("-")[0] == VERSION


@pytest.mark.parametrize("name", [*DESCRIBED, "mlflow.yaml", "grafana/alerts.yaml"])
def test_no_file_holds_a_secret(name: str) -> None:
    for path, node in walk(of(name)):
        if isinstance(node, dict) and MAKES_SECRETS.search(str(node.get("name", ""))):
            assert "value" not in node, path
        if isinstance(node, dict) and node.get("kind") == "Secret":
            raise AssertionError(path)
        if isinstance(node, str) and (found := re.search(r"://[^/\s]*:([^/\s]*)@", node)):
            assert re.fullmatch(r"\$\(\w+\)", found.group(1)), path
    assert not re.search(r"\b[0-9a-f]{32,}\b", (CLUSTER / name).read_text())


def test_nothing_on_kubernetes_has_a_public_address() -> None:
    documents = [document for name in KUBERNETES for document in of(name)]
    services = [document["spec"] for document in documents if document["kind"] == "Service"]
    assert services
    assert {service.get("type", "ClusterIP") for service in services} == {"ClusterIP"}
    assert not [document for document in documents if document["kind"] in ("Ingress", "HTTPRoute", "Gateway")]
    assert not [
        path for path, node in walk(documents) if path.endswith(("/hostPort", "/hostNetwork", "/enableIngress"))
    ]


def test_every_port_is_closed_to_other_pods() -> None:
    documents = [document for name in KUBERNETES for document in of(name)]
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    closed = [policy["podSelector"]["matchLabels"] for policy in policies]
    assert all(policy["policyTypes"] == ["Ingress"] for policy in policies)
    assert all(rule["from"] for policy in policies for rule in policy["ingress"])
    labels = [
        node["metadata"]["labels"]
        for path, node in walk(documents)
        if isinstance(node, dict) and "containers" in node.get("spec", {}) and "submitter" not in path
    ]
    assert labels
    assert all(any(select.items() <= label.items() for select in closed) for label in labels)


def test_mlflow_answers_to_its_own_names_alone() -> None:
    [server] = [container for container in containers("mlflow.yaml") if container["name"] == "mlflow"]
    options = dict(argument.removeprefix("--").split("=", 1) for argument in server["args"])
    allowed = options["allowed-hosts"].split(",")
    assert "*" not in allowed
    [uri] = {
        variable["value"]
        for container in containers("kuberay/raycluster.yaml")
        for variable in container.get("env", ())
        if variable["name"] == "MLFLOW_TRACKING_URI"
    }
    assert uri.removeprefix("http://") in allowed
    from mlflow.server.security_utils import is_allowed_host_header

    assert is_allowed_host_header(allowed, "mlflow:5000")
    assert is_allowed_host_header(allowed, "127.0.0.1:5000")
    assert not is_allowed_host_header(allowed, "evil.example.com")
    assert options["artifacts-destination"].startswith("s3://")


@pytest.mark.parametrize("name", [*DESCRIBED, "mlflow.yaml", "Dockerfile"])
def test_every_file_opens_with_its_command_and_what_it_costs(name: str) -> None:
    header = re.match(r"(#.*\n)+", (CLUSTER / name).read_text())
    assert header is not None
    told = " ".join(line.lstrip("# ") for line in header.group().splitlines())
    assert re.search(rf"^#   .*{re.escape(f'cluster/{name}')}", header.group(), re.M)
    assert re.search(r"costs to (leave running|keep)", told)
    assert re.search(r"USD|what raycluster.yaml says", told)
    if "USD" in told:
        assert re.search(r"list price", told)
        assert "2025" in told
    for path in re.findall(r"\b(?:cluster|jobs)/[\w./-]+\.(?:yaml|py|lock)", told):
        assert (ROOT / path).exists(), path
    for preset in re.findall(r"(?:genray train|jobs/train\.py) ([\w-]+)", told):
        assert preset in presets()
