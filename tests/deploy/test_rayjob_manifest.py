"""The KubeRay manifest: its pods against Kubernetes' own schemas, its job against Headrace's."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from headrace.cluster.config import JobConfig
from headrace.cluster.placement import Node, bundles, check_fits
from headrace.cluster.placement import custom_resources as custom_resources_of
from headrace.cluster.run_records import Pool
from headrace.verifiers.errors import UserError

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.33"
DOCUMENTS: dict[str, dict[str, Any]] = {
    document["kind"]: document for document in yaml.safe_load_all((ROOT / "deploy" / "rayjob.yaml").read_text())
}
SPEC = DOCUMENTS["RayJob"]["spec"]
CLUSTER = SPEC["rayClusterSpec"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
TEMPLATES = {
    "submitter": SPEC["submitterPodTemplate"],
    "head": CLUSTER["headGroupSpec"]["template"],
    **{name: group["template"] for name, group in GROUPS.items()},
}
RAY_NODES = [name for name in TEMPLATES if name != "submitter"]


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", **template}


def container(name: str) -> dict[str, Any]:
    (only,) = TEMPLATES[name]["spec"]["containers"]
    return only


def quantity(value: str | int) -> float:
    """A Kubernetes quantity as a number: CPUs, bytes or devices."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|Ki|Mi|Gi|Ti)?", str(value))
    assert match, value
    scale = {None: 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(match[1]) * scale[match[2]]


def custom_resources(group: dict[str, Any]) -> dict[str, float]:
    # KubeRay hands the value to a shell: JSON inside quotes, inside quotes.
    return json.loads(json.loads(group["rayStartParams"]["resources"].strip("'")))


def start_params(name: str) -> dict[str, str]:
    return CLUSTER["headGroupSpec"]["rayStartParams"] if name == "head" else GROUPS[name]["rayStartParams"]


@pytest.fixture(scope="module")
def job() -> JobConfig:
    return JobConfig.model_validate(tomllib.loads(DOCUMENTS["ConfigMap"]["data"]["job.toml"]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_pod_template_follows_the_schema(name: str) -> None:
    kubernetes_validate.validate(as_pod(TEMPLATES[name]), KUBERNETES, strict=True)


@pytest.mark.parametrize("kind", ["ConfigMap", "PersistentVolumeClaim", "Service"])
def test_core_object_follows_the_schema(kind: str) -> None:
    kubernetes_validate.validate(DOCUMENTS[kind], KUBERNETES, strict=True)


def test_schema_refuses_a_misspelt_field() -> None:
    wrong = copy.deepcopy(TEMPLATES["rollout"])
    wrong["spec"]["containers"][0]["resource"] = wrong["spec"]["containers"][0].pop("resources")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(as_pod(wrong), KUBERNETES, strict=True)


def test_rayjob_has_what_kuberay_asks_for() -> None:
    assert DOCUMENTS["RayJob"]["apiVersion"] == "ray.io/v1"
    assert SPEC["entrypoint"] == "headrace run /jobs/job.toml"
    # KubeRay refuses a time to live for a cluster that is not shut down.
    assert SPEC["shutdownAfterJobFinishes"] is True
    assert SPEC["ttlSecondsAfterFinished"] >= 0
    assert SPEC["submitterPodTemplate"]["spec"]["restartPolicy"] in {"Never", "OnFailure"}
    for group in GROUPS.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        # Ray takes no number here: every value is a flag's text.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_each_pool_has_a_group_with_its_own_resource() -> None:
    assert set(GROUPS) == {str(pool) for pool in Pool}
    for name, group in GROUPS.items():
        assert custom_resources(group) == {f"headrace_{name}": 1}


def test_ray_and_image_are_those_of_the_project() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert f"\nray=={CLUSTER['rayVersion']} " in lock
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {container(name)["image"] for name in TEMPLATES} == {f"headrace:{version}-gpu"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_pod_gives_away_no_rights(name: str) -> None:
    pod = TEMPLATES[name]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_pods_run_as_the_user_of_the_image() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    users = set(re.findall(r"^USER (\d+):(\d+)$", dockerfile, flags=re.MULTILINE))
    for template in TEMPLATES.values():
        security = template["spec"]["securityContext"]
        assert users == {(str(security["runAsUser"]), str(security["runAsGroup"]))}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_read_only_root_leaves_room_to_write(name: str) -> None:
    writable = {mount["mountPath"] for mount in container(name)["volumeMounts"] if not mount.get("readOnly")}
    assert {"/tmp", "/home/headrace"} <= writable
    assert {mount["name"] for mount in container(name)["volumeMounts"]} == {
        volume["name"] for volume in TEMPLATES[name]["spec"]["volumes"]
    }


@pytest.mark.parametrize("name", TEMPLATES)
def test_pod_asks_for_what_it_may_use(name: str) -> None:
    requests, limits = container(name)["resources"]["requests"], container(name)["resources"]["limits"]
    assert {"cpu", "memory"} <= requests.keys() and requests.keys() == limits.keys()
    for resource, request in requests.items():
        assert quantity(request) <= quantity(limits[resource])


@pytest.mark.parametrize("name", RAY_NODES)
def test_object_store_fits_into_shared_memory_and_shared_memory_into_the_pod(name: str) -> None:
    (shared,) = [v["emptyDir"] for v in TEMPLATES[name]["spec"]["volumes"] if v["name"] == "shared-memory"]
    assert shared["medium"] == "Memory"
    store = int(start_params(name)["object-store-memory"])
    # A larger store would be moved by Ray to a disk, without more than a warning.
    assert store <= quantity(shared["sizeLimit"]) < quantity(container(name)["resources"]["limits"]["memory"])


@pytest.mark.parametrize("name", RAY_NODES)
def test_every_ray_node_sees_job_and_runs(name: str) -> None:
    volumes = {volume["name"]: volume for volume in TEMPLATES[name]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container(name)["volumeMounts"]}
    assert mounts["/jobs"]["configMap"]["name"] == DOCUMENTS["ConfigMap"]["metadata"]["name"]
    claim = DOCUMENTS["PersistentVolumeClaim"]
    assert mounts["/runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert "ReadWriteMany" in claim["spec"]["accessModes"]


def test_example_job_is_valid_and_its_files_are_in_the_config_map(job: JobConfig) -> None:
    data = DOCUMENTS["ConfigMap"]["data"]
    assert job.job.run_dir is not None and job.job.run_dir.parts[:2] == ("/", "runs")
    assert job.data.train.parent == Path("/jobs") and job.data.train.name in data
    rows = [json.loads(line) for line in data[job.data.train.name].splitlines()]
    assert len(rows) >= job.algorithm.groups_per_step
    assert all(isinstance(row[job.data.prompt_field], str) for row in rows)
    assert job.reward.function is not None
    file, function = job.reward.function.rsplit(":", 1)
    namespace: dict[str, Any] = {}
    exec(data[Path(file).name], namespace)
    for row in rows:
        assert sum(int(term) for term in row["prompt"].rstrip("= ").split("+")) == int(row["answer"])
        scores = [namespace[function](text, row) for text in (row["answer"], f"It is {row['answer']}", "no")]
        assert scores == [1.0, 0.5, 0.0]


@pytest.fixture(scope="module")
def nodes() -> list[Node]:
    """What Ray sees of the manifest's pods."""
    counts = {"head": 1} | {name: group["replicas"] for name, group in GROUPS.items()}
    return [Node(f"{name}-{index}", ray_resources(name)) for name, count in counts.items() for index in range(count)]


def ray_resources(name: str) -> dict[str, float]:
    limits = container(name)["resources"]["limits"]
    own = custom_resources(GROUPS[name]) if name in GROUPS else {}
    return {"CPU": quantity(limits["cpu"]), "GPU": quantity(limits.get("nvidia.com/gpu", 0)), **own}


def test_example_job_fits_and_every_pool_stays_on_its_group(job: JobConfig, nodes: list[Node]) -> None:
    wanted = bundles(job, custom_resources_of(nodes))
    check_fits(wanted, nodes)
    for bundle in wanted:
        assert {name for name in bundle.resources if name.startswith("headrace_")} == {f"headrace_{bundle.pool}"}


@pytest.mark.parametrize("pool", list(Pool))
def test_a_group_of_fewer_pods_is_too_small(job: JobConfig, nodes: list[Node], pool: Pool) -> None:
    fewer = [node for node in nodes if node.name != f"{pool}-0"]
    with pytest.raises(UserError, match=pool):
        check_fits(bundles(job, custom_resources_of(nodes)), fewer)


def test_controller_is_reached_under_a_name_that_stays(job: JobConfig) -> None:
    service = DOCUMENTS["Service"]
    labels = TEMPLATES["head"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    for name in RAY_NODES:
        if name != "head":
            assert not service["spec"]["selector"].items() <= TEMPLATES[name]["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    ports = {entry["name"]: entry["containerPort"] for entry in container("head")["ports"]}
    assert job.metrics.port == port["port"] == ports[port["targetPort"]]
    assert job.metrics.host == "0.0.0.0"
