"""The documents in jobs/kubernetes/."""

from __future__ import annotations

import copy
from typing import Any

import yaml
from conftest import REPOSITORY

DOCUMENTS: dict[str, dict[str, Any]] = {
    f"{file.name}:{document['kind']}": document
    for file in sorted((REPOSITORY / "jobs/kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
}
RAY = {
    name: document for name, document in DOCUMENTS.items() if document["apiVersion"] == "ray.io/v1"
}


def manifest(name: str) -> dict[str, Any]:
    """A copy of the document of a file that holds one of KubeRay's kinds."""
    (found,) = [document for key, document in RAY.items() if key.startswith(f"{name}.yaml:")]
    return copy.deepcopy(found)
