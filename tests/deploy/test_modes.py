"""Only the owner can read the files of a stack, because logs contain data of users."""

import stat
from collections.abc import Iterable
from pathlib import Path

from deploy.local import proc
from deploy.local.ports import free_ports
from deploy.local.stack import Stack


def open_to_others(paths: Iterable[Path]) -> dict[str, str]:
    modes = {path: path.lstat().st_mode for path in paths}
    return {
        str(path): stat.filemode(mode)
        for path, mode in modes.items()
        if mode & 0o077 and not stat.S_ISLNK(mode)
    }


def test_only_the_owner_can_read_the_files_of_the_mesh(mesh):
    state = mesh.layout.state
    # weed sets the mode of its volume descriptions, which contain no content, itself.
    written = [state, *(path for path in state.rglob("*") if path.suffix != ".vif")]

    assert {mesh.log(name) for name in mesh.processes} <= set(written)
    assert open_to_others(written) == {}


def test_no_process_of_the_mesh_writes_core_files(mesh):
    pids = [pid for name in mesh.processes if (pid := mesh.pid(name))]
    families = {member.pid for pid in pids for member in proc.family(proc.identify(pid))}
    limits = {
        line.split()[4:6] == ["0", "0"]
        for pid in families
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        if line.startswith("Max core file size")
    }

    assert len(families) > len(pids)
    assert limits == {True}


def test_only_the_owner_can_use_sockets_outside_the_state_folder(mesh):
    sockets = [path for process in mesh.processes.values() for path in process.litter]

    assert any(path.exists() for path in sockets)
    assert open_to_others(path for path in sockets if path.exists()) == {}


def test_up_corrects_wider_modes(tmp_path):
    state = tmp_path / "var"
    with Stack(state, ports=free_ports(), ephemeral=True) as stack:
        stack.up(["valkey"])
        stack.log("valkey").with_suffix(".log.1").write_text("an older line\n")
        (state / "state.json").write_text("{}\n")
        for path in [state, *state.rglob("*")]:
            if stack.layout.pki not in path.parents:
                path.chmod(0o755)

        stack.up(["valkey"])

        deeper = (stack.layout.data / "valkey").rglob("*")
        assert open_to_others({state, *state.rglob("*")}.difference(deeper)) == {}
