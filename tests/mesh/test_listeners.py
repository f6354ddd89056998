"""The mesh listens only on loopback addresses."""

from pathlib import Path


def listening(pids: set[int]) -> set[str]:
    """Returns the local addresses, in the kernel's hexadecimal, on which processes listen."""
    sockets = set()
    for pid in pids:
        try:
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                sockets.add(str(descriptor.readlink()))
        except OSError:
            # A backend of PostgreSQL has ended, or a descriptor was closed, meanwhile.
            continue
    addresses = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            columns = line.split()
            remote, state, inode = columns[2], columns[3], columns[9]
            bound = state == "0A" if table.startswith("tcp") else set(remote) <= set("0:")
            if bound and f"socket:[{inode}]" in sockets:
                addresses.add(columns[1].rpartition(":")[0])
    return addresses


def test_nothing_listens_on_a_non_loopback_address(mesh):
    children: dict[int, set[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, set()).add(int(entry.name))
    family: set[int] = set()
    todo = {pid for name in mesh.processes if (pid := mesh.pid(name))}
    assert todo
    while todo:
        pid = todo.pop()
        family.add(pid)
        todo |= children.get(pid, set())

    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    found = listening(family)
    assert found
    assert found <= loopback
