"""`make demo` on a folder of photos and an edge list."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx

from tests.eventually import PATIENCE_SECONDS
from tests.pictures import photo

ROOT = Path(__file__).parents[2]


def demo(mesh, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        **mesh.shell_environment(),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "COLUMNS": "120",
    }
    return subprocess.run(
        [sys.executable, "-m", "deploy.demo", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_the_demo_posts_a_folder_of_photos_into_the_feeds_of_a_graph(mesh, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "market_day.jpg").write_bytes(photo(1200, 900, orientation=6))
    (folder / "night.webp").write_bytes(photo(800, 600, image_format="WEBP", seed=2))
    (folder / "notes.txt").write_text("no photo")
    (tmp_path / "edges.txt").write_text("# follower followee\nana ben\nana cem\nben cem\n")
    sheet = tmp_path / "feed.html"

    done = demo(
        mesh,
        *("--photos", str(folder)),
        *("--graph", str(tmp_path / "edges.txt")),
        *("--sheet", str(sheet)),
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped notes.txt: not a JPEG, PNG or WebP file" in done.stdout
    assert "market day" in done.stdout
    page = sheet.read_text()
    sources = re.findall(r'<img src="([^"]+)"', page)
    assert len(sources) == 2
    for url in sources:
        answer = httpx.get(url.replace("&amp;", "&"), timeout=PATIENCE_SECONDS)
        assert answer.headers["content-type"] == "image/jpeg"
    # This page may hold URLs with tokens; other files of a run may not.
    sheet.unlink()


def test_unusable_arguments_are_reported_in_one_line(mesh, tmp_path):
    (tmp_path / "edges.txt").write_text("ana\n")
    for arguments, complaint in [
        (("--photos", str(tmp_path / "nowhere")), "is not a folder"),
        (("--graph", str(tmp_path / "edges.txt")), "line 1: expected two names"),
        (("--gateway", "http://127.0.0.1:1"), "start the mesh with make up"),
    ]:
        done = demo(mesh, *arguments)
        assert done.returncode == 1
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr
