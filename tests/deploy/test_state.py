import pytest

from deploy.local.ports import Ports, is_free
from deploy.local.state import claim_ports, read_ports


def test_the_first_claim_is_kept(tmp_path):
    first = claim_ports(tmp_path, {})

    assert claim_ports(tmp_path, {}) == read_ports(tmp_path) == first
    assert is_free(first.gateway_http)


def test_the_environment_overrides_the_claim_and_is_stored(tmp_path):
    claim_ports(tmp_path, {})

    assert claim_ports(tmp_path, {"PHOTOMESH_PORT_BASE": "20000"}).postgres == 20_432
    assert claim_ports(tmp_path, {}) == Ports.block(20_000)


@pytest.mark.parametrize("base", ["many", "-1", "70000"])
def test_an_invalid_base_is_refused_and_not_stored(tmp_path, base):
    with pytest.raises(ValueError, match=base):
        claim_ports(tmp_path, {"PHOTOMESH_PORT_BASE": base})

    assert read_ports(tmp_path) is None


def test_a_broken_file_counts_as_a_fresh_clone(tmp_path):
    (tmp_path / "state.json").write_text('{"port_')

    assert read_ports(tmp_path) is None
    assert claim_ports(tmp_path, {}).postgres >= 18_432
