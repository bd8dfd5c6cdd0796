"""The site of docs/: it is built without a warning, its links lead somewhere, and it has all of the code."""

import html.parser
import runpy
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import oneforcing_jax
from oneforcing_jax import cli
from oneforcing_jax.setup import config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# No answer to a program is no broken link; these answers say that there is no such page.
GONE = (404, 410)


class Page(NamedTuple):
    """What a page links to, and what can be linked to in it."""

    links: set[str]
    anchors: set[str]


class Reader(html.parser.HTMLParser):
    """Notes links and anchors."""

    def __init__(self):
        super().__init__()
        self.page = Page(set(), set())

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.page.anchors.add(value)
            elif name == "src" or (name == "href" and tag == "a"):
                self.page.links.add(value)


def read(file):
    reader = Reader()
    reader.feed(file.read_text())
    return reader.page


def broken(pages):
    """Links between pages that lead nowhere."""
    for file, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            there = (
                (file.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else file
            )
            anchor = urllib.parse.unquote(parts.fragment)
            lost = anchor and there in pages and anchor not in pages[there].anchors
            if lost or not there.is_file():
                yield f"{file.name}: {link}"


def answer(url):
    """The status of a page of somebody else; None: nobody answers."""
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})
    try:
        with urllib.request.urlopen(request, timeout=10) as found:
            return found.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def build(source, out, environment):
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(source), str(out)],
        env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory, light_environment):
    out = tmp_path_factory.mktemp("site")
    done = build(DOCS, out, light_environment)
    assert not done.returncode, done.stderr[-3000:]
    return {file: read(file) for file in out.rglob("*.html")}


@pytest.mark.long
def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(site):
    assert not list(broken(site))
    names = {file.stem for file in site}
    assert {page.stem for page in DOCS.rglob("*.md")} < names and "quickstart" in names
    root = min(site, key=lambda file: len(file.parts)).parent
    said = {name: (root / f"{name}.html").read_text() for name in ("gallery", "training")}
    assert said["gallery"].count("<video ") == said["gallery"].count('.mp4" width=') > 20
    assert (
        'href="reliability.html"' in said["training"]
    )  # `docs/reliability.md`, as code in the page


@pytest.mark.long
def test_every_verb_and_field_is_in_the_reference(site):
    anchors = {anchor for page in site.values() for anchor in page.anchors}
    for verb in cli.VERBS:
        assert f"oneforcing-{verb.replace(' ', '-')}" in anchors, verb
    assert "cmdoption-oneforcing-generate-window" in anchors
    assert "oneforcing_jax.Pipeline.from_pretrained" in anchors
    shown = next(f for f in site if f.stem == "configs").read_text()
    fields = {
        name
        for name, _ in config.fields(config.load("toy"))
        if name.startswith(("one_", "ode", "world"))
    }
    assert len(fields) > 30
    for name in fields | {"stages.NAME.optimisers.NET.learning_rate", "remat"}:
        assert f">{name}</span>" in shown, name


@pytest.mark.long
def test_links_to_others_are_answered(site):
    urls = {
        link.partition("#")[0] for page in site.values() for link in page.links if "://" in link
    }
    answers = {url: answer(url) for url in sorted(urls)}
    assert not [url for url, status in answers.items() if status in GONE]
    if None in answers.values():
        pytest.skip(
            f"nobody answers at {[url for url, status in answers.items() if status is None]}"
        )


@pytest.mark.long
def test_what_is_wrong_in_a_page_ends_the_build(tmp_path, light_environment):
    (tmp_path / "conf.py").write_text((DOCS / "conf.py").read_text())
    (tmp_path / "extension").symlink_to(DOCS / "extension")
    page = "# A\n\n[b](b.md)\n\n[c](#c)\n\n`docs/nothing.md`\n"
    (tmp_path / "index.md").write_text(page)
    done = build(tmp_path, tmp_path / "out", light_environment)
    assert done.returncode
    for name in ("b.md", "'c'", "nothing"):
        assert name in done.stderr, done.stderr


def test_videos_stand_below_the_block_that_made_them(tmp_path):
    shown = runpy.run_path(str(DOCS / "extension" / "gallery.py"))["shown"]
    page = "```bash\ntouch a.mp4\n```\n\n```python\nopen('b c.mp4', 'w').close()\n```\n"
    said = shown(page, tmp_path / "made")
    assert said.index("touch") < said.index('src="_gallery/a.mp4"') < said.index("open(")
    assert said.index("open(") < said.index('src="_gallery/b%20c.mp4"')
    (tmp_path / "made" / "a.mp4").write_text("kept")
    assert shown(page, tmp_path / "made") == said
    assert (tmp_path / "made" / "a.mp4").read_text() == "kept"
    said = shown(page.replace("b c", "d"), tmp_path / "made")
    assert said.count("<video ") == 2 and (tmp_path / "made" / "a.mp4").read_text() == ""
    with pytest.raises(RuntimeError, match="a block of the gallery failed"):
        shown("```bash\nfalse\n```\n", tmp_path / "made")


# The file that says how to cite this.

PERSON = {"family-names", "given-names", "affiliation", "orcid"}
ENTITY = {"name", "website"}


def test_citation():
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert said["cff-version"] == "1.2.0" and said["type"] == "software"
    assert all(isinstance(said[name], str) for name in ("message", "title", "version", "license"))
    assert said["version"] == oneforcing_jax.__version__
    assert said["license"] in (ROOT / "setup.py").read_text()
    (paper,) = said["references"]
    assert {"type", "title", "authors", "year"} <= paper.keys() and paper["year"] == 2026
    assert [person["family-names"] for person in paper["authors"]] == [
        "Feng",
        "Cui",
        "Ban",
        "Hsieh",
    ]
    for author in (*said["authors"], *paper["authors"]):
        assert author.keys() <= PERSON or author.keys() <= ENTITY, author
    for word in (paper["title"], str(paper["year"])):
        assert word.split(": ")[-1] in (ROOT / "README.md").read_text()
