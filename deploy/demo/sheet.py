"""A contact sheet of one feed: an HTML page with CDN URLs."""

from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$reader's feed - Photomesh</title>
<style>
  body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; background: #fafafa;
         font: 16px/1.5 system-ui, sans-serif; }
  main { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
  figure { margin: 0; background: #fff; border: 1px solid #ddd; border-radius: 8px;
           overflow: hidden; }
  img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: cover;
        background: #eee; }
  figcaption { padding: .75rem 1rem; }
  small { color: #666; }
</style>
<h1>$reader's feed</h1>
<p><small>$note</small></p>
<main>
$figures
</main>
</html>
""")

_FIGURE = Template("""<figure>
  <a href="$largest"><picture>
    <source type="image/webp" srcset="$webp" sizes="17rem">
    <img src="$jpeg" srcset="$jpegs" sizes="17rem" loading="lazy" width="$width" height="$height"
         alt="$caption">
  </picture></a>
  <figcaption><b>$author</b> $caption<br>
    <small>$size, in the feed after $seconds</small></figcaption>
</figure>""")


def contact_sheet(
    reader: str, posts: Sequence[Any], seconds: Mapping[str, float], note: str
) -> str:
    """Returns the page. `seconds` maps each post id to the time until it was in the feed."""
    figures = "\n".join(
        _figure(post, media, seconds[post["postId"]]) for post in posts for media in post["media"]
    )
    return _PAGE.substitute(reader=escape(reader), note=escape(note), figures=figures)


def _figure(post: Any, media: Any, seconds: float) -> str:
    # The square variant is a different crop, so it cannot be in the same source set.
    wide = [variant for variant in media["variants"] if not variant["name"].startswith("square")]
    jpegs = [variant for variant in wide if variant["contentType"] == "image/jpeg"]
    webps = [variant for variant in wide if variant["contentType"] == "image/webp"]
    return _FIGURE.substitute(
        largest=escape(jpegs[-1]["url"]),
        webp=_srcset(webps),
        jpeg=escape(jpegs[0]["url"]),
        jpegs=_srcset(jpegs),
        width=jpegs[0]["width"],
        height=jpegs[0]["height"],
        author=escape(post["author"]["username"]),
        caption=escape(post["caption"]),
        size=f"{media['width']} x {media['height']}",
        seconds=f"{seconds:.2f} s",
    )


def _srcset(variants: Sequence[Any]) -> str:
    return escape(", ".join(f"{variant['url']} {variant['width']}w" for variant in variants))
