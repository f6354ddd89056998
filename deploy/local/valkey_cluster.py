"""Forms a cluster of six empty Valkey servers: three masters with a replica each.

    python -m deploy.local.valkey_cluster PORT:BUS PORT:BUS ...

The masters, the first half of the servers, share the slots. Returns when every slot is served and
every replica has copied its master, which takes a second or two. Does nothing if the cluster is
already formed.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

_SLOTS = 16_384


def main() -> None:
    pairs = [word.split(":") for word in sys.argv[1:]]
    nodes = [Redis(port=int(port), decode_responses=True) for port, _ in pairs]
    ids = [_ask(node, "CLUSTER MYID") for node in nodes]
    half = len(nodes) // 2
    masters, replicas = nodes[:half], nodes[half:]

    if _ask(nodes[0], "CLUSTER INFO")["cluster_known_nodes"] == "1":
        bounds = [_SLOTS * number // half for number in range(half + 1)]
        for epoch, (master, (first, end)) in enumerate(
            zip(masters, pairwise(bounds), strict=True), start=1
        ):
            _ask(master, "CLUSTER ADDSLOTSRANGE", first, end - 1)
            # Set distinct epochs at the start, because resolving each conflict would take a second.
            _ask(master, "CLUSTER SET-CONFIG-EPOCH", epoch)
        port, bus = pairs[0]
        for node in nodes[1:]:
            _ask(node, "CLUSTER MEET", "127.0.0.1", port, bus)
        for replica, master_id in zip(replicas, ids, strict=False):
            _until(partial(_ask, replica, "CLUSTER REPLICATE", master_id))

    _until(lambda: all(_ask(n, "CLUSTER INFO")["cluster_state"] == "ok" for n in nodes))
    _until(lambda: all(_is_synced(node) for node in nodes))


def _is_synced(node: Redis) -> bool:
    replication = _ask(node, "INFO", "replication")
    return bool(replication["role"] == "master" or replication["master_link_status"] == "up")


def _until(done: Callable[[], object]) -> None:
    """Waits until `done` returns true. The process that started this one enforces the timeout."""
    while True:
        # A node may not know its master yet.
        with contextlib.suppress(ResponseError):
            if done():
                return
        time.sleep(0.02)


def _ask(node: Redis, *words: object) -> Any:
    return node.execute_command(*words)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
