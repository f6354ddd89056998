from pathlib import Path

from deploy.local import proc

_LISTEN = "0A"
_LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def test_nothing_listens_beyond_loopback(mesh):
    families = [
        member for name in mesh.processes if (pid := mesh.pid(name)) for member in family(pid)
    ]
    listening = {address for member in families for address in listeners(member.pid)}

    assert len(listening) > 20
    assert {address for address, _ in listening} <= _LOOPBACK


def test_nothing_listens_on_a_port_that_the_table_does_not_name(mesh):
    named = {port for process in mesh.processes.values() for port in process.ports.values()}
    pids = [pid for name in mesh.processes if (pid := mesh.pid(name))]

    assert {port for pid in pids for _, port in listeners(pid)} == named


def family(pid: int) -> set[proc.Identity]:
    return proc.family(proc.identify(pid))


def listeners(pid: int) -> set[tuple[str, int]]:
    """Returns the hexadecimal address and the port of each listening socket of a process."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == _LISTEN and f"socket:[{columns[9]}]" in sockets:
                address, port = columns[1].split(":")
                found.add((address, int(port, 16)))
    return found
