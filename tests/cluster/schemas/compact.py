"""Writes the schemas beside this file from the published ones, without their descriptions and repetitions.

python tests/cluster/schemas/compact.py SWAGGER CRD…

SWAGGER is api/openapi-spec/swagger.json of https://github.com/kubernetes/kubernetes; these are of its release 1.36, as
kubernetes/swagger.json.unprocessed of https://github.com/kubernetes-client/python has it in commit 024658493d12. Each
CRD is one of ray-operator/config/crd/bases of https://github.com/ray-project/kuberay, tag v1.7.0. All are under the
Apache licence, version 2.0.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
KINDS = (
    "io.k8s.api.apps.v1.Deployment",
    "io.k8s.api.apps.v1.StatefulSet",
    "io.k8s.api.core.v1.PersistentVolumeClaim",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.networking.v1.NetworkPolicy",
    "io.k8s.api.policy.v1.PodDisruptionBudget",
)
KEPT = (
    "$ref",
    "additionalProperties",
    "enum",
    "items",
    "maximum",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
)
SMALL = 120
"""Characters up to which a repeated part is written out."""


def kept(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with what validation needs. As `kubectl apply` does, fields that it does not name are refused."""
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    found = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in found:
        found["properties"] = {name: kept(field) for name, field in found["properties"].items() if name != "status"}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = kept(found[key])
    return found


def of_kubernetes(definitions: dict[str, Any]) -> dict[str, Any]:
    """The kinds and all that they refer to; roots are named `apiVersion/kind`."""
    found: dict[str, Any] = {}
    left = list(KINDS)
    while left:
        name = left.pop()
        if name in found:
            continue
        text = json.dumps(kept(definitions[name])).replace("#/definitions/", "#/$defs/")
        found[name] = json.loads(text)
        left += [part.partition('"')[0] for part in text.split("#/$defs/")[1:]]
    roots = {}
    for name in KINDS:
        [kind] = definitions[name]["x-kubernetes-group-version-kind"]
        roots["/".join(filter(None, (kind["group"], kind["version"], kind["kind"])))] = {"$ref": f"#/$defs/{name}"}
    return {"roots": roots, "$defs": dict(sorted(found.items()))}


def of_crds(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The stored versions of custom resources, each part that is repeated only once."""
    roots: dict[str, Any] = {}
    for document in documents:
        spec = document["spec"]
        [version] = [version for version in spec["versions"] if version["storage"]]
        schema = kept(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}  # checked by Kubernetes itself
        roots[f"{spec['group']}/{version['name']}/{spec['names']['kind']}"] = schema
    seen = Counter(text for root in roots.values() for text in parts(root))
    shared = [text for text, number in seen.items() if number > 1 and len(text) > SMALL]
    names = {text: f"s{index}" for index, text in enumerate(sorted(shared, key=len))}

    def short(node: Any, top: bool = False) -> Any:
        if isinstance(node, list):
            return node
        if not top and (name := names.get(json.dumps(node, sort_keys=True))):
            return {"$ref": f"#/$defs/{name}"}
        return {
            key: {name: short(field) for name, field in value.items()}
            if key == "properties"
            else short(value)
            if key in ("items", "additionalProperties") and isinstance(value, dict)
            else value
            for key, value in node.items()
        }

    defs = {name: short(json.loads(text), top=True) for text, name in names.items()}
    roots = {name: short(root, top=True) for name, root in roots.items()}
    used = json.dumps([roots, defs])
    return {"roots": roots, "$defs": {name: part for name, part in defs.items() if f'#/$defs/{name}"' in used}}


def parts(node: dict[str, Any]) -> list[str]:
    """Every part of a schema as text."""
    found = [json.dumps(node, sort_keys=True)]
    below = [*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")]
    return found + [text for part in below if isinstance(part, dict) for text in parts(part)]


def write(path: Path, schemas: dict[str, Any]) -> None:
    """One line for each definition, so that a renewal can be read."""
    lines = [
        f"{json.dumps(section)}: {{\n"
        + ",\n".join(
            f"{json.dumps(name)}: {json.dumps(part, separators=(',', ':'))}" for name, part in schemas[section].items()
        )
        + "\n}"
        for section in ("roots", "$defs")
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    swagger, *crds = map(Path, sys.argv[1:])
    write(HERE / "kubernetes.json", of_kubernetes(json.loads(swagger.read_text())["definitions"]))
    write(HERE / "kuberay.json", of_crds([yaml.safe_load(crd.read_text()) for crd in crds]))
