"""The README's examples, run as they stand there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.eventually import PATIENCE_SECONDS
from tests.mesh.people import ApiError
from tests.pictures import photo

ROOT = Path(__file__).parents[2]


def blocks(language: str) -> str:
    """Returns all of the README's code in one language, in its order."""
    found = re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert found
    return "\n".join(found)


@pytest.fixture
def variables(mesh, tmp_path) -> dict[str, str]:
    (tmp_path / "photo.jpg").write_bytes(photo(1200, 800, orientation=6))
    return {
        **os.environ,
        **mesh.shell_environment(),
        "PHOTO": str(tmp_path / "photo.jpg"),
        "BUF_CACHE_DIR": str(tmp_path),
    }


def run(command: list[str], **options) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_shell_examples(variables, tmp_path):
    # The one line that would ask the stack of `make up`, not the test's, about its addresses.
    script = (
        blocks("sh")
        .replace('eval "$(make -s env)"', ":")
        .replace(".venv/bin/", f"{ROOT}/.venv/bin/")
    )

    output = run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=variables)

    assert (tmp_path / "picture.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    assert "photomesh.feed.v1.FeedService/GetFeed" in output
    assert "SERVING" in output


def test_the_python_examples(variables):
    output = run(
        [sys.executable, "-c", blocks("python")], env={**variables, "PYTHONPATH": str(ROOT / "gen")}
    )

    assert re.fullmatch(r"carol\.\w+ 0 FEED_STATE_\w+\n", output)


async def test_the_error_that_it_shows_is_the_error_that_comes(person):
    shown = json.loads(blocks("json"))
    author = await person().sign_up()

    with pytest.raises(ApiError) as refused:
        await author.post("1", caption="x" * 2201)

    assert refused.value.status == 400
    trace = refused.value.body["details"][0]["metadata"]
    assert trace.keys() == {"traceId"}
    trace["traceId"] = shown["details"][0]["metadata"]["traceId"]
    assert refused.value.body == shown


def test_the_verbs_that_the_readme_names_exist():
    verbs = set(re.findall(r"`?make ([a-z]+)", (ROOT / "README.md").read_text()))
    makefile = (ROOT / "Makefile").read_text()

    assert verbs
    for verb in verbs:
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb
