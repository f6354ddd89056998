import pytest

from deploy.local import state
from deploy.local.ports import is_free


def test_the_first_claim_is_kept(tmp_path):
    first = state.claim(tmp_path, {})

    assert state.claim(tmp_path, {}) == state.read(tmp_path) == first
    assert is_free(first.ports.gateway_http)


def test_the_environment_decides_and_is_remembered(tmp_path):
    state.claim(tmp_path, {})

    assert state.claim(tmp_path, {"PHOTOMESH_PORT_BASE": "20000"}).ports.postgres == 20_432
    assert state.claim(tmp_path, {}).port_base == 20_000


@pytest.mark.parametrize("base", ["many", "-1", "70000"])
def test_a_base_that_cannot_be_is_refused_and_not_remembered(tmp_path, base):
    with pytest.raises(ValueError, match=base):
        state.claim(tmp_path, {"PHOTOMESH_PORT_BASE": base})

    assert state.read(tmp_path) is None


def test_a_broken_file_counts_as_a_fresh_clone(tmp_path):
    (tmp_path / "state.json").write_text('{"port_')

    assert state.read(tmp_path) is None
    assert state.claim(tmp_path, {}).port_base >= 18_000
