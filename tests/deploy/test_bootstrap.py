import pytest

from deploy.local import bootstrap


def test_the_installer_is_pinned_by_hash():
    name, *hashes = bootstrap.uv_requirement().splitlines()

    assert name.startswith("uv==")
    assert hashes
    assert all(line.strip().startswith("--hash=sha256:") for line in hashes)


def test_pips_settings_are_passed_on_unless_uvs_own_are_there(monkeypatch, tmp_path):
    for variable in (*bootstrap.UV_VARIABLES.values(), "PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "pip.conf").write_text(
        "[global]\n"
        "index-url = https://files.example/simple\n"
        "extra-index-url =\n    https://a.example\n    https://b.example\n"
        "timeout = 180\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://variable.example/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "30")

    environment = bootstrap.uv_environment()

    assert environment["UV_DEFAULT_INDEX"] == "https://variable.example/simple"
    assert environment["UV_INDEX"] == "https://a.example https://b.example"
    assert environment["UV_FIND_LINKS"] == "/wheels"
    assert environment["UV_HTTP_TIMEOUT"] == "30"


def test_an_old_python_prints_the_required_version(monkeypatch, capsys):
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda _: None)

    with pytest.raises(SystemExit):
        bootstrap.require_python()

    assert "needs Python 3.11 or newer" in capsys.readouterr().err
