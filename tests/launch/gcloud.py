"""A replacement of gcloud, with the workers of slices as processes on this machine.

It refuses what the real commands refuse, and does what they do. GCLOUD_STATE is its directory:

    future          the next states of the queued resource, one for each request, until it is
                    ACTIVE (or has the last of these states); GONE: it does not exist any more
    resource.json   the queued resource; at most one exists
    reason          why it FAILED, as Cloud TPU says it
    node            the next states of the node; without this file it is READY if there are workers
    refusals.json   {"queued-resources.create": [[3, "the words"]]}: the next three calls of this
                    command are refused; -1: all; the words "hang": the call does not return
    unreachable     numbers of workers to which ssh fails
    num_workers     of a slice; 4 without this file
    workers/N/      the home of worker N of all slices, one slice after the other; created when the
                    resource becomes ACTIVE, removed when it no longer exists
    worker.json     environment of the workers' processes, with {worker} and {port} to fill in
    bin/            commands of the workers in addition to the system's: a Python, gcsfuse, findmnt
    buckets/        what gcsfuse mounts
    calls           the command lines, as JSON
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

NUM_WORKERS = 4  # if the file num_workers is not there
# Names of queued resources and nodes:
# https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources/create
NAME = re.compile(r"[A-Za-z0-9_.~+%-]+")

_REFERENCE = "https://cloud.google.com/sdk/gcloud/reference"
# --zone is on all five pages, the others are
# https://cloud.google.com/sdk/gcloud/reference#GCLOUD-WIDE-FLAGS
WIDE = {"--zone", "--project", "--format", "--quiet", "--verbosity", "--account", "--configuration"}
SSH = {
    *("--dry-run", "--force-key-file-overwrite", "--internal-ip", "--plain", "--ssh-key-file"),
    *("--strict-host-key-checking", "--worker", "--ssh-key-expiration", "--ssh-key-expire-after"),
}
# (group, command): the page that lists its flags (release 528.0.0), and the flags
FLAGS = {
    ("queued-resources", "create"): (
        f"{_REFERENCE}/compute/tpus/queued-resources/create",
        {
            *("--runtime-version", "--accelerator-type", "--topology", "--type", "--node-id"),
            *("--node-count", "--node-prefix", "--async", "--data-disk", "--description"),
            *("--guaranteed", "--internal-ips", "--labels", "--metadata", "--metadata-from-file"),
            *("--network", "--range", "--reserved", "--scopes", "--service-account"),
            *("--shielded-secure-boot", "--spot", "--subnetwork", "--tags"),
            *("--valid-after-duration", "--valid-after-time"),
            *("--valid-until-duration", "--valid-until-time"),
            *("--reservation-host-folder", "--reservation-host-organization"),
            *("--reservation-host-project",),
        },
    ),
    ("queued-resources", "describe"): (
        f"{_REFERENCE}/compute/tpus/queued-resources/describe",
        set(),
    ),
    ("queued-resources", "delete"): (
        f"{_REFERENCE}/compute/tpus/queued-resources/delete",
        {"--async", "--force"},
    ),
    ("queued-resources", "ssh"): (
        f"{_REFERENCE}/compute/tpus/queued-resources/ssh",
        {*SSH, "--node", "--batch-size", "--ssh-flag", "--command", "--output-directory"},
    ),
    ("queued-resources", "scp"): (
        f"{_REFERENCE}/compute/tpus/queued-resources/scp",
        {*SSH, "--node", "--batch-size", "--scp-flag", "--compress", "--recurse"},
    ),
    ("tpu-vm", "describe"): (f"{_REFERENCE}/compute/tpus/tpu-vm/describe", set()),
    ("tpu-vm", "ssh"): (
        f"{_REFERENCE}/compute/tpus/tpu-vm/ssh",
        {*SSH, "--ssh-flag", "--command", "--output-directory"},
    ),
    ("tpu-vm", "scp"): (
        f"{_REFERENCE}/compute/tpus/tpu-vm/scp",
        {*SSH, "--scp-flag", "--compress", "--recurse"},
    ),
}
SWITCHES = {
    *(
        "--quiet",
        "--async",
        "--guaranteed",
        "--internal-ips",
        "--reserved",
        "--shielded-secure-boot",
        "--spot",
    ),
    *(
        "--force",
        "--dry-run",
        "--force-key-file-overwrite",
        "--internal-ip",
        "--plain",
        "--compress",
        "--recurse",
    ),
}
STATE = pathlib.Path(os.environ.get("GCLOUD_STATE", "/nowhere"))


def refuse(command: str, reason: str, status: int = 1):
    """Ends as gcloud does."""
    print(f"ERROR: (gcloud.compute.tpus.{command}) {reason}", file=sys.stderr)
    sys.exit(status)


def parse(arguments: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """Returns (group.command, positional arguments, flags)."""
    if arguments[:2] != ["compute", "tpus"] or tuple(arguments[2:4]) not in FLAGS:
        refuse(".".join(arguments[2:4]), f"Invalid choice: {' '.join(arguments)!r}.", 2)
    group, verb, *rest = arguments[2:]
    command, known, given, places = f"{group}.{verb}", FLAGS[group, verb][1] | WIDE, {}, []
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            places.append(argument)
        elif flag not in known:
            refuse(command, f"unrecognized arguments: {argument}", 2)
        elif (flag in SWITCHES) == bool(equals):
            refuse(
                command,
                f"argument {flag}: "
                f"{'ignored explicit argument' if equals else 'expected one argument'}",
                2,
            )
        else:
            given[flag] = value
    if "--zone" not in given:
        refuse(command, "The required property [zone] is not currently set.")
    return command, places, given


def load() -> dict | None:
    path = STATE / "resource.json"
    return json.loads(path.read_text()) if path.exists() else None


def save(resource: dict) -> None:
    (STATE / "resource.json").write_text(json.dumps(resource))


def end_workers() -> None:
    """Removes the VMs, and ends all processes on them."""
    for pid in (STATE / "workers").glob("*/flamingo_pod/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text().split()[0]), signal.SIGKILL)
    shutil.rmtree(STATE / "workers", ignore_errors=True)


def nodes(resource: dict) -> list[str]:
    """Returns the names of the nodes: one slice each."""
    flags = resource["flags"]
    if "--node-id" in flags:
        return [flags["--node-id"]]
    return [f"{flags['--node-prefix']}-{i}" for i in range(int(flags["--node-count"]))]


def num_workers() -> int:
    """Returns the number of workers of a slice."""
    count = STATE / "num_workers"
    return int(count.read_text()) if count.exists() else NUM_WORKERS


def named(command: str, name: str) -> dict:
    """Returns the resource of this name, or with a node of this name; it must exist."""
    resource = load()
    names = resource and ([resource["name"]] if command.startswith("queued") else nodes(resource))
    if resource is None or name not in names:
        kind = "queuedResources" if command.startswith("queued") else "nodes"
        refuse(command, f"NOT_FOUND: Resource 'projects/p/locations/z/{kind}/{name}' was not found")
    return resource


def create(command: str, name: str, given: dict[str, str]) -> None:
    several = ("--node-count", "--node-prefix") if "--node-count" in given else ("--node-id",)
    for flag in (*several, "--accelerator-type", "--runtime-version"):
        if not given.get(flag):
            refuse(command, f"argument {flag}: Must be specified.", 2)
    if "--node-id" in given and {"--node-count", "--node-prefix"} & set(given):
        refuse(command, "argument --node-id: Exactly one of (--node-id | --node-count) ...", 2)
    if not (NAME.fullmatch(name) and NAME.fullmatch(given[several[-1]])):
        refuse(command, f"INVALID_ARGUMENT: {name!r} is not a valid name")
    if {"--spot", "--reserved"} <= set(given):
        refuse(command, "INVALID_ARGUMENT: a request has one tier")
    if load() is not None:
        refuse(command, f"ALREADY_EXISTS: Resource '{name}' already exists")
    future = STATE / "future"
    states = future.read_text().split() if future.exists() else ["ACTIVE"]
    future.unlink(missing_ok=True)
    save({"name": name, "states": states, "flags": given})


def refuse_as_told(command: str) -> None:
    """Refuses the call if refusals.json says so."""
    path = STATE / "refusals.json"
    left = json.loads(path.read_text()) if path.exists() else {}
    if not left.get(command):
        return
    times, words = left[command][0]
    if times == 1:
        left[command].pop(0)
    else:
        left[command][0][0] = times - 1
    path.write_text(json.dumps(left))
    if words == "hang":
        time.sleep(3600)
    refuse(command, words)


def look_at_node(command: str, name: str) -> str:
    """Returns the state of the node, and changes to the next one."""
    path = STATE / "node"
    state, *later = path.read_text().split() if path.exists() else ["READY"]
    if path.exists():
        path.write_text(" ".join(later or [state]))
    if state == "MISSING" or not (STATE / "workers").exists():
        refuse(command, f"NOT_FOUND: Resource 'projects/p/locations/z/nodes/{name}' was not found")
    return state


def look(command: str, resource: dict) -> str:
    """Returns the state, and changes to the next one."""
    state, *later = resource["states"]
    if state == "GONE":
        end_workers()
        (STATE / "resource.json").unlink()
        named(command, resource["name"])
    if state == "ACTIVE" and not (STATE / "workers").exists():
        for worker in range(num_workers() * len(nodes(resource))):
            (STATE / "workers" / str(worker)).mkdir(parents=True)
    if state in ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING"):
        end_workers()
    save({**resource, "states": later or [state]})
    return state


def chosen(command: str, given: dict[str, str]) -> list[pathlib.Path]:
    """Returns the homes of the workers that --worker, and --node of a resource, name."""
    homes = sorted((STATE / "workers").iterdir()) if (STATE / "workers").exists() else []
    place = {home: divmod(int(home.name), num_workers()) for home in homes}  # node, worker
    node, worker = given.get("--node", "0"), given.get("--worker", "0")
    found = [
        home
        for home in homes
        if node in ("all", str(place[home][0])) and worker in ("all", str(place[home][1]))
    ]
    if not found:
        refuse(command, f"there is no worker {worker} of node {node}")
    return found


def ssh(command: str, given: dict[str, str]) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    variables = (STATE / "worker.json").read_text()
    unreachable = STATE / "unreachable"
    away = unreachable.read_text().split() if unreachable.exists() else []
    running = []
    for home in chosen(command, given):
        if home.name in away:
            print("ssh: connect to host 10.0.0.1 port 22: Connection timed out", file=sys.stderr)
            continue
        environment = json.loads(
            variables.replace("{worker}", home.name).replace("{port}", str(port))
        )
        environment |= {
            "HOME": str(home),
            "PATH": f"{STATE / 'bin'}:/usr/bin:/bin",
            "GCLOUD_STATE": str(STATE),
        }
        node, worker = divmod(int(home.name), num_workers())
        environment["HOSTNAME"] = f"t1v-n-{node}123abcd-w-{worker}"
        shell = ["bash", "-c", given["--command"]]
        running.append(subprocess.Popen(shell, cwd=home, env=environment, stdin=subprocess.DEVNULL))
    statuses = [process.wait() for process in running]
    sys.exit(next((status for status in statuses if status), 255 if away else 0))


def scp(places: list[str], homes: list[pathlib.Path]) -> None:
    *sources, destination = places
    for home in homes:
        for source in sources:
            shutil.copy(source, home / destination.partition(":")[2])


def main() -> None:
    arguments = sys.argv[1:]
    with (STATE / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    command, places, given = parse(arguments)
    name = places[-1].partition(":")[0]
    refuse_as_told(command)
    if command == "queued-resources.create":
        create(command, name, given)
        return
    resource = named(command, name)
    if command == "queued-resources.describe":
        if given.get("--format") == (
            "value(state.failedData.error.code,state.failedData.error.message)"
        ):
            code, reason = (
                (STATE / name).read_text() if (STATE / name).exists() else ""
                for name in ("code", "reason")
            )
            print(f"{code}\t{reason}")
        elif given.get("--format") == "value(state.state)":
            print(look(command, resource))
        else:
            refuse(command, "this stand-in knows other values of --format alone")
    elif command == "tpu-vm.describe":
        if given.get("--format") != "value(state)":
            refuse(command, "this stand-in knows --format='value(state)' alone")
        print(look_at_node(command, name))
    elif command == "queued-resources.delete":
        if "--force" not in given and (STATE / "workers").exists():
            refuse(command, "FAILED_PRECONDITION: the resource has nodes; use --force")
        end_workers()
        (STATE / "resource.json").unlink()
    elif command.endswith(".ssh"):
        ssh(command, given)
    else:
        scp(places, chosen(command, given))


if __name__ == "__main__":
    main()
