"""KubeRay's `ray.io/v1`, as far as deploy/kubernetes uses it: written from the types' reference (KubeRay 1.7), strict.

A field that is not listed here is refused, since the API server would drop it without a word. Pod templates are checked
as Kubernetes' own. With the files of the CRDs themselves (`TRIMTAB_KUBERAY_CRDS=folder`) `by_crds` checks
against their schemas too; KubeRay's chart has them in `crds/`.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import kubernetes_validate
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

KUBERNETES = "1.37"
GROUP = "ray.io/v1"

Resource = dict[str, Any]
Texts = dict[str, str]
Count = Annotated[int, Field(ge=0)]


def core_fault(resource: Resource) -> str | None:
    """What Kubernetes' own schema has against a resource of its own kinds; unknown fields too."""
    return _core_fault(json.dumps(resource))


@cache  # since broken copies are the same but for a line
def _core_fault(resource: str) -> str | None:
    try:
        kubernetes_validate.validate(json.loads(resource), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None


def _pod(template: Resource) -> Resource:
    holder = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": template}
    if told := core_fault(holder):
        raise ValueError(told)
    return template


def _container(fields: Resource) -> None:
    _pod({"spec": {"containers": [{"name": "any", **fields}]}})


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Pod = Annotated[Resource, AfterValidator(_pod)]


class AuthOptions(Strict):
    """`secretName` from KubeRay 1.6 on; its secret has the key `auth_token`."""

    mode: Literal["disabled", "token"] = "token"
    secretName: str


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: Count
    resources: Resource
    securityContext: Resource
    volumeMounts: list[Resource]

    @model_validator(mode="after")
    def _of_a_container(self) -> "AutoscalerOptions":
        _container(self.model_dump(include={"resources", "securityContext", "volumeMounts"}))
        return self


class RedisPassword(Strict):
    valueFrom: Resource

    @model_validator(mode="after")
    def _of_a_variable(self) -> "RedisPassword":
        _container({"env": [{"name": "any", "valueFrom": self.valueFrom}]})
        return self


class GcsFaultToleranceOptions(Strict):
    redisAddress: str
    redisPassword: RedisPassword


class HeadGroup(Strict):
    rayStartParams: Texts
    labels: Texts
    template: Pod


class WorkerGroup(Strict):
    groupName: str
    minReplicas: Count
    replicas: Count
    maxReplicas: Count
    rayStartParams: Texts
    template: Pod

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerGroup":
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError("not minReplicas ≤ replicas ≤ maxReplicas")
        return self


class ClusterSpec(Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool
    autoscalerOptions: AutoscalerOptions
    gcsFaultToleranceOptions: GcsFaultToleranceOptions | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class UpgradeStrategy(Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class ServiceSpec(Strict):
    upgradeStrategy: UpgradeStrategy
    serveConfigV2: str
    rayClusterConfig: ClusterSpec


class SubmitterConfig(Strict):
    backoffLimit: Count


class JobSpec(Strict):
    """One that selects a cluster, and so can neither shut it down nor try again on a new one."""

    clusterSelector: Texts
    entrypoint: str
    entrypointNumCpus: float | int
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    runtimeEnvYAML: str
    submitterConfig: SubmitterConfig
    submitterPodTemplate: Pod


SPECS: Mapping[str, type[Strict]] = {"RayCluster": ClusterSpec, "RayService": ServiceSpec, "RayJob": JobSpec}


def ray_fault(resource: Resource) -> str | None:
    """What KubeRay's API has against one of its resources."""
    if set(resource) != {"apiVersion", "kind", "metadata", "spec"}:
        return f"fields {sorted(resource)}"
    if told := core_fault({"apiVersion": "v1", "kind": "ConfigMap", "metadata": resource["metadata"]}):
        return told
    try:
        SPECS[resource["kind"]].model_validate(resource["spec"])
    except ValidationError as error:
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return None


def by_crds(folder: Path, resource: Resource) -> Iterator[str]:
    """What the schemas of the CRDs in `folder` have against a resource; raises KeyError where none is of its kind."""
    crds = (yaml.safe_load(file.read_text()) for file in sorted(folder.glob("*.yaml")))
    schemas = {
        (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]): version["schema"][
            "openAPIV3Schema"
        ]
        for crd in crds
        for version in crd["spec"]["versions"]
    }
    schema = schemas[resource["apiVersion"], resource["kind"]]
    for error in jsonschema.Draft202012Validator(_closed(schema)).iter_errors(resource):
        yield f"{error.json_path}: {error.message}"


def _closed(schema: Any) -> Any:
    """The schema with unknown fields refused wherever it lists some."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    listed = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if listed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed
