"""Writes the skeleton of a new service: `make service NAME=bookmark`.

The skeleton runs without changes. It contains public methods with REST paths, an internal method, a
table, a topic that it publishes and consumes, and dead letters. Replace these with the service's
own. It consists of contracts in protos/photomesh/NAME/, the folder services/NAME/, and one row in
deploy/processes.py, from which everything else derives.

The files in services/NAME/ have the same names in every service. Add others when you need them:
errors.py (list new reasons in protos/photomesh/common/v1/error_reason.proto), peers.py, jobs.py,
cache.py, admin.py.
"""

import re
import subprocess
import sys
from pathlib import Path

from deploy.local.process import ROOT
from deploy.processes import MESH

_TEMPLATE = Path(__file__).with_name("template")
_ROWS = Path("deploy/processes.py")
_NAME = re.compile(r"[a-z][a-z0-9]{1,29}")

# The new row goes before that of `reflection`, which belongs to the gateway.
_PLACE = '    MeshProcess("reflection",'
_ROW = """\
    MeshProcess(
        "{name}",
        Kind.SERVICE,
        port={port},
        memory_mib=256,
        schema="{name}",
        needs=(Need.EVENTS,),
        consumes=True,
    ),
"""


def write_skeleton(name: str, root: Path = ROOT) -> list[Path]:
    """Writes the skeleton of a service to `root`; returns the files, relative to it.

    Raises:
        ValueError: the name is invalid or taken.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid name: use 2 to 30 lowercase letters and digits")
    if name in {process.name for process in MESH} or (root / "services" / name).exists():
        raise ValueError(f"a service called {name} already exists: choose another name")
    contracts = Path(f"protos/photomesh/{name}/v1")
    files = {
        contracts / f"{name}_service.proto": "protos/service.proto",
        contracts / f"{name}_internal_service.proto": "protos/internal_service.proto",
        contracts / "events.proto": "protos/events.proto",
    }
    for template in sorted((_TEMPLATE / "services").rglob("*.*")):
        path = template.relative_to(_TEMPLATE)
        inside = str(path.relative_to("services")).removesuffix(".tmpl").replace("thing", name)
        files[Path("services") / name / inside] = str(path)
    for path, source in files.items():
        text = (_TEMPLATE / source).read_text()
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text.replace("thing", name).replace("Thing", name.capitalize()))
    # Line breaks and import order depend on the name.
    ruff = Path(sys.executable).with_name("ruff")
    for command in (("check", "--fix-only", "--select=I"), ("format",)):
        subprocess.run(
            [ruff, *command, "--quiet", "--no-cache", root / "services" / name], check=True
        )
    rows = (root / _ROWS).read_text()
    port = max(max(process.port, process.rest_port) for process in MESH) + 1
    row = _ROW.format(name=name, port=port)
    (root / _ROWS).write_text(rows.replace(_PLACE, row + _PLACE))
    return [*files, _ROWS]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: make service NAME=bookmark")
    try:
        files = write_skeleton(sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))
    for file in files:
        print(file)  # noqa: T201 -- The output of the command.
    print("Next, run make gen and make up. The service runs as it is; replace its example methods.")  # noqa: T201


if __name__ == "__main__":
    main()
