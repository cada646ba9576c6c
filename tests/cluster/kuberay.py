"""A schema of KubeRay's custom resources: the fields cluster/kubernetes/ uses or may use.

By hand from the reference of KubeRay v1.7.0,
https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html, since the resource definitions
are no package that could be installed. Pod templates are left to kubernetes-validate.
"""

from __future__ import annotations

from typing import Any

STRING, BOOLEAN, NATURAL = (
    {"type": "string"},
    {"type": "boolean"},
    {"type": "integer", "minimum": 0},
)
STRINGS = {"type": "object", "additionalProperties": STRING}
POD_PART = {"type": "object"}  # a part of a pod, such as its resources


def record(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """Return the schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


CREDENTIAL = record(value=STRING, valueFrom=POD_PART)
GROUP = {
    "rayStartParams": STRINGS,
    "resources": STRINGS,
    "labels": STRINGS,
    "template": {"type": "object", "required": ["spec"]},
}
CLUSTER_SPEC = record(
    ("headGroupSpec", "rayVersion"),
    rayVersion=STRING,
    suspend=BOOLEAN,
    authOptions=record(
        ("mode",), mode=one_of("disabled", "token"), secretName=STRING, enableK8sTokenAuth=BOOLEAN
    ),
    enableInTreeAutoscaling=BOOLEAN,
    autoscalerOptions=record(
        version=one_of("v1", "v2"),
        upscalingMode=one_of("Conservative", "Default", "Aggressive"),
        idleTimeoutSeconds=NATURAL,
        image=STRING,
        imagePullPolicy=STRING,
        resources=POD_PART,
        securityContext=POD_PART,
        env={"type": "array"},
        envFrom={"type": "array"},
        volumeMounts={"type": "array"},
    ),
    gcsFaultToleranceOptions=record(
        backend=one_of("redis", "rocksdb"),
        redisAddress=STRING,
        redisUsername=CREDENTIAL,
        redisPassword=CREDENTIAL,
        externalStorageNamespace=STRING,
    ),
    headServiceAnnotations=STRINGS,
    headGroupSpec=record(
        ("template",),
        serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
        headService=POD_PART,
        enableIngress=BOOLEAN,
        **GROUP,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": record(
            ("groupName", "template", "minReplicas", "maxReplicas"),
            groupName=STRING,
            replicas=NATURAL,
            minReplicas=NATURAL,
            maxReplicas=NATURAL,
            idleTimeoutSeconds=NATURAL,
            numOfHosts=NATURAL,
            priority=NATURAL,
            suspend=BOOLEAN,
            **GROUP,
        ),
    },
)
JOB_SPEC = record(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=STRING,
    rayClusterSpec=CLUSTER_SPEC,
    clusterSelector=STRINGS,
    jobId=STRING,
    metadata=STRINGS,
    runtimeEnvYAML=STRING,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    backoffLimit=NATURAL,
    submitterConfig=record(backoffLimit=NATURAL),
    submitterPodTemplate=POD_PART,
    activeDeadlineSeconds=NATURAL,
    preRunningDeadlineSeconds=NATURAL,
    shutdownAfterJobFinishes=BOOLEAN,
    ttlSecondsAfterFinished=NATURAL,
    suspend=BOOLEAN,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=STRING,
)
SPECS = {"RayCluster": CLUSTER_SPEC, "RayJob": JOB_SPEC}
