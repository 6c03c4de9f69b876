"""docker/: the files of the images, of the stack and of the work pools, checked as far as that needs no container engine."""

import copy
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.utilities.templating import apply_values

from fake_pipeline import REPOSITORY

FOLDER = REPOSITORY / "docker"
BIN = Path(sys.executable).parent
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
IGNORED = (REPOSITORY / ".dockerignore").read_text().split("\n")


def test_the_dockerfile_has_no_faults() -> None:
    subprocess.run([BIN / "hadolint", FOLDER / "Dockerfile"], check=True)


def test_a_fault_would_be_found(tmp_path: Path) -> None:
    faulty = tmp_path / "Dockerfile"
    faulty.write_text(re.sub(r"^USER .*$", "USER root", DOCKERFILE, flags=re.MULTILINE))
    found = subprocess.run([BIN / "hadolint", faulty], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "DL3002" in found.stdout, "the last user should not be root"


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    subprocess.run([BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FOLDER / name], check=True)


def test_images_are_pinned_and_run_as_a_fixed_user() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    cuda = yaml.safe_load((FOLDER / "compose.cuda.yaml").read_text())["services"]["worker"]["build"]["args"]["BASE"]
    others = [service["image"] for service in SERVICES.values() if "build" not in service]
    for image in (base, cuda, *others):
        assert re.search(r":\d+\.\d+", image), image
    assert re.findall(r"^(?:ARG UID|USER).*$", DOCKERFILE, re.MULTILINE) == ["ARG UID=1000", "USER ${UID}:${UID}"]


def test_only_the_pins_lie_below_the_layer_of_the_packages() -> None:
    before, _, after = DOCKERFILE.partition("RUN --mount")
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", before, re.MULTILINE) for name in line.split()}
    packages = {"perceptio_core/__init__.py", "stages/__init__.py", "pipeline/__init__.py"}
    assert copied == {"pyproject.toml", "constraints.txt", "LICENSE", "pipeline/environment.py", *packages}
    setuptools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {f"{name.removesuffix('*')}/__init__.py" for name in setuptools} == packages
    assert re.findall(r"^COPY .*$", after, re.MULTILINE) == ["COPY --chown=${UID}:${UID} . ."]


def test_the_image_gets_neither_data_nor_secrets() -> None:
    not_in_git = [line.strip("/") for line in (REPOSITORY / ".gitignore").read_text().splitlines()]
    in_no_image = {line.removeprefix("**/") for line in IGNORED}
    assert {name for name in not_in_git if name != "*.py[cod]" and name != "__pycache__"} <= in_no_image
    assert {".git", ".dvc/cache", ".dvc/config.local", "docker/secrets"} <= in_no_image


def test_every_port_is_published_on_loopback_alone() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(ports) == {"server", "store", "report"}
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\d+\}:\d+", port) for published in ports.values() for port in published)


def test_every_service_is_hardened_and_watched() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert name == "deployments" or "healthcheck" in service, name
        for needed, how in service.get("depends_on", {}).items():
            ends = "healthcheck" not in SERVICES[needed]
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy"), (name, needed)


def test_secrets_are_files_of_the_script_and_nowhere_else(tmp_path: Path) -> None:
    script = tmp_path / "make_secrets.sh"
    script.write_text((FOLDER / "make_secrets.sh").read_text())
    subprocess.run(["sh", script], check=True)
    made = tmp_path / "secrets"
    assert made.stat().st_mode & 0o777 == 0o700
    assert {f"secrets/{path.name}" for path in made.iterdir()} == {one["file"] for one in COMPOSE["secrets"].values()}
    (identity,) = json.loads((made / "store_identities").read_text())["identities"]
    (pair,) = identity["credentials"]
    assert (made / "aws_credentials").read_text().split() == [
        "[default]",
        *("aws_access_key_id", "=", pair["accessKey"]),
        *("aws_secret_access_key", "=", pair["secretKey"]),
    ]
    for name, service in SERVICES.items():
        keys = [key for key in service.get("environment", {}) if re.search("PASSWORD|SECRET|KEY", key)]
        assert keys == (["POSTGRES_PASSWORD_FILE"] if name == "database" else []), name
    assert subprocess.run(["sh", script], capture_output=True, check=False).returncode != 0, "made once, never overwritten"


def _pool(kind: str, **given: Any) -> dict[str, Any]:
    """The job configuration that Prefect makes of a pool's template, and of the variables given for one deployment."""
    template = json.loads((FOLDER / "pools" / f"{kind}.json").read_text())
    properties = template["variables"]["properties"]
    jsonschema.validate(given, template["variables"] | {"additionalProperties": False})
    defaults = {name: one["default"] for name, one in properties.items() if "default" in one}
    run = {"name": "run", "command": "prefect flow-run execute", "labels": {"a": "b"}}
    wanted = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert wanted == set(properties), "every variable is used, and every one that is used is declared"
    made = apply_values(template["job_configuration"], defaults | run | given)
    assert isinstance(made, dict)
    return made


def test_jobs_of_the_kubernetes_pool_are_kubernetes_own() -> None:
    job = copy.deepcopy(_pool("kubernetes", gpus=2, claim="work", shared_memory="64Gi", memory="200Gi")["job_manifest"])
    pod = job["spec"]["template"]["spec"]
    # Prefect's worker refuses a template without these two where Kubernetes knows none; a cluster leaves them out.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    (container,) = pod["containers"]
    # What the worker itself brings into this form before it submits the job.
    container["args"] = container["args"].split()
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    for version in ("1.31", "1.37"):
        kubernetes_validate.validate(job, version, strict=True)
    assert container["resources"]["limits"] == {"memory": "200Gi", "nvidia.com/gpu": 2}
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/checkout", "/dev/shm"]
    assert pod["volumes"] == [
        {"name": "checkout", "persistentVolumeClaim": {"claimName": "work"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
    ]
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_containers_of_the_docker_pool_join_the_stack() -> None:
    made = _pool("docker")
    assert made["image"] == SERVICES["worker"]["image"]
    assert made["env"]["PREFECT_API_URL"] == SERVICES["worker"]["environment"]["PREFECT_API_URL"]
    assert made["networks"] == [f"{COMPOSE['name']}_default"]
    assert made["container_create_kwargs"]["cap_drop"] == ["ALL"]
