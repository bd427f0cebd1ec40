"The documentation site: its index says what the source says, its links lead somewhere, and a browser shows it."

import ast, functools, http.server, importlib, inspect, re, threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import project, tool
from primenb.site import PACKAGES, PARTS, Argument, arguments, by_name, catalogue, comments, complete, entries, package
from primenb.site import plain, relink, sources, write_pages

SOME = ("nbs/index.ipynb", "nbs/00_core.ipynb", "nbs/05_site.ipynb", "nbs/media/03_video.ipynb", "CONTRIBUTING.md")
library = sources()


def taken(text):
    return arguments(ast.parse(text).body[0], comments(text))


class Page(HTMLParser):
    "The links and the anchors of a page."

    def __init__(self, file):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[k] for k in ("id", "name") if given.get(k)}
        self.links |= {given[k] for k in ("href", "src") if given.get(k)}


def broken_links(site: Path) -> list[str]:
    "The links within a site that lead to no file, or to no anchor."
    pages = {file: Page(file) for file in site.rglob("*.html")}
    found = []
    for file, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            to = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchor = unquote(parts.fragment)
            if not to.exists() or anchor and to in pages and anchor not in pages[to].anchors:
                found.append(f"{file.relative_to(site)}: {link}")
    return found


class Quiet(http.server.SimpleHTTPRequestHandler):
    "A server that prints nothing."

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A site with a few of the pages."
    site = tmp_path_factory.mktemp("site") / "html"
    assert tool("python", "-m", "primenb.site", "-o", str(site), *SOME) == ""
    return site


@pytest.fixture(scope="module")
def served(small):
    "The address of the small site."
    handler = functools.partial(Quiet, directory=small)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    "text, expected, given",
    [
        ("def f(): return 1  # one", [], ("", "")),
        ("def f(a, /, *b, c=2, **d): pass", ["a", "/", "*b", "c", "**d"], ("", "")),
        ("def f(\n    a,  # first\n) -> int:  # how many\n    return 1", ["a"], ("int", "how many")),
        ("def f(\n    a,  # first\n):  # how many\n    return 1", ["a"], ("", "how many")),
        ("def f(\n    a,  # first\n    b: str):  # second\n    return 1", ["a", "b"], ("", "")),
        ("def f() -> None: pass", [], ("None", "")),
        ('def f(a: "list[X]") -> "X": pass', ["a"], ("X", "")),
    ],
)
def test_what_a_function_takes_and_gives(text, expected, given):
    names, back = taken(text)
    assert [a.name for a in names] == expected
    assert (back.type, back.comment) == given


def test_types_defaults_and_comments():
    text = 'def f(\n    a=None,  # nothing\n    b=2.5, c=(1, 2),\n    d: "X | None" = None,  # `x`\n): pass'
    names, _ = taken(text)
    assert names == [
        Argument("a", "", "None", "nothing"),
        Argument("b", "float", "2.5"),
        Argument("c", "tuple", "(1, 2)"),
        Argument("d", "X | None", "None", "`x`"),
    ]


def test_a_docstring_is_shown_up_to_its_first_empty_line():
    text = 'def f(a):\n    """Does\n    this.\n\n    Parameters\n    ----------\n    a : int\n    """'
    assert entries(text)[0].text == "Does this."


def test_classes_give_their_fields_and_those_of_their_bases():
    text = (
        "class A(NamedTuple):\n    x: int  # one\n"
        "@dataclass\nclass B(A):\n    y: dict = field(default_factory=dict)\n"
        "    @property\n    def z(self) -> str: return ''\n    @classmethod\n    def of(cls, n: int): pass\n"
        "class C(B):\n    def __init__(self, w): pass\n"
        "@patch\ndef later(self: C, k=1): pass"
    )
    found = {e.name: e for e in entries(text)}
    assert [a.name for a in complete(found["B"], found)] == ["x", "y"]
    assert complete(found["B"], found)[1].default == "dict()"
    assert [a.name for a in complete(found["C"], found)] == ["w"]
    assert [(m.name, m.kind, len(m.arguments)) for m in found["B"].members] == [
        ("z", "property", 0),
        ("of", "classmethod", 1),
    ]
    assert (found["later"].owner, found["later"].kind, len(found["later"].arguments)) == ("C", "method", 1)


def differs_from_python(module) -> list[str]:
    "Names of a module whose arguments or defaults are not those that `inspect` finds in the imported module."
    made, known, wrong = importlib.import_module(f"primenb.{module}"), by_name(library), []
    for entry in next(s for s in library if s.module == module).entries:
        if not entry.public or entry.owner or entry.kind in ("data", "exception"):
            continue
        real = inspect.signature(getattr(made, entry.name)).parameters.values()
        found = [a for a in complete(entry, known) if a.name != "/"]
        names = [a.name for a in found]
        star = names.index("*") if "*" in names else len(names)
        found = [(a.name.lstrip("*"), bool(a.default), n > star) for n, a in enumerate(found) if n != star]
        if any(name[0] == "*" for name in names if name != "*"):  # what follows *args
            found = [(name, default, False) for name, default, _ in found]
            real = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in real]
        if found != [(p.name, p.default is not p.empty, p.kind is p.KEYWORD_ONLY) for p in real]:
            wrong.append(entry.name)
    return wrong


@pytest.mark.parametrize("module", ["core", "media.video", "sfm.geometry", "data.records"])
def test_the_index_agrees_with_python(module):
    assert differs_from_python(module) == []


@pytest.mark.slow
def test_the_whole_index_agrees_with_python():
    found = {s.module: differs_from_python(s.module) for s in library}
    assert {module: names for module, names in found.items() if names} == {}


def test_no_type_is_made_up():
    every = [e for s in library for e in s.entries]
    every += [m for e in every for m in e.members]
    types = [a.type for e in every for a in (*e.arguments, e.returns)]
    assert "NoneType" not in types and not any("'" in t for t in types if "Literal" not in t)


def test_every_package_has_a_page():
    assert {package(s.module) for s in library} == set(PACKAGES)
    assert {Path(s.notebook).parent.name for s in library} - {"nbs"} <= set(PARTS)


def test_markup_in_comments_is_shown_as_it_is():
    assert plain("a*b and `c*d` < 2 $") == r"a\*b and `c*d` \< 2 \$"


def test_links_lead_to_pages_or_to_the_repository():
    pages = {"nbs/sfm/00_geometry.ipynb": "sfm/00_geometry.ipynb", "nbs/exp/sfm.ipynb": "exp/sfm.ipynb"}
    text = relink("[a](../exp/sfm.ipynb#x) [b](../../LICENSE) [c](#d) `m[0](x)`", "nbs/sfm/00_geometry.ipynb", pages)
    assert text.startswith("[a](../exp/sfm.ipynb#x) [b](https://")
    assert text.endswith("/LICENSE) [c](#d) `m[0](x)`")


def test_the_side_bar_has_groups_with_minutes(tmp_path):
    write_pages(tmp_path, ("nbs/0*", "nbs/media/*", "CONTRIBUTING.md"))
    text = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^:caption: ([A-Z][a-z]+)", text, flags=re.M) == ["Basics", "Media", "Reference", "The"]
    assert re.search(r"^Core, \d+\u00a0min </00_core>$", text, flags=re.M)
    assert re.search(r"^:caption: Media, \d+\u00a0min$", text, flags=re.M)


def test_all_notebooks_have_a_page():
    numbered = {nb.relative_to(project).as_posix() for nb in (project / "nbs").rglob("[0-9][0-9]_*.ipynb")}
    assert numbered <= set(catalogue())


@pytest.mark.slow
def test_all_internal_links_resolve(small):
    assert broken_links(small) == []


@pytest.mark.slow
def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<p id="x"></p><a href="#x"></a><a href="#y"></a><a href="b.html"></a>')
    assert broken_links(tmp_path) == ["a.html: #y", "a.html: b.html"]


@pytest.mark.slow
def test_the_index_leads_to_the_notebook_and_to_the_line(small):
    page = (small / "api/media.html").read_text(encoding="utf-8")
    assert 'id="primenb.media.video.probe"' in page
    line = next(e.line for s in library for e in s.entries if e.name == "probe")
    assert f"/blob/main/primenb/media/video.py#L{line}" in page
    assert "NoneType" not in page


@pytest.mark.slow
@pytest.mark.parametrize("width, scheme", [(1360, "light"), (1360, "dark"), (390, "light"), (390, "dark")])
def test_pages_in_a_browser(served, browser, width, scheme):
    "Nothing in the console, every image there, and no scrolling from side to side."
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    def failed(request):
        if "ABORTED" not in (request.failure or ""): complaints.append(request.url)  # a font, when the next page comes

    page.on("requestfailed", failed)
    for name in ("index", "readme", "media/03_video", "05_site", "api/names", "api/media", "contributing"):
        page.goto(f"{served}/{name}.html")
        page.wait_for_load_state("networkidle")
        page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        page.wait_for_function("[...document.images].every(i => i.complete)")
        assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0, name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 200) == (scheme == "dark"), name
    page.close()
    assert complaints == []


@pytest.mark.slow
def test_the_landing_page_is_one_screen(served, browser):
    page = browser.new_page(viewport={"width": 1360, "height": 800})
    page.goto(f"{served}/index.html")
    page.wait_for_function("[...document.images].every(i => i.complete)")
    assert page.locator("article img").count() == 1
    box = page.locator(".cards").bounding_box()
    page.close()
    assert box["y"] + box["height"] <= 800


@pytest.mark.slow
@pytest.mark.parametrize("place", ["served", "opened"])
def test_the_search_finds(served, small, browser, place):
    "Over HTTP and from files: a function is found by its name, and leads to its description."
    page = browser.new_page(viewport={"width": 1360, "height": 800})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(f"{served if place == 'served' else small.as_uri()}/index.html")
    page.locator("input.sidebar-search").fill("iter_frames")
    page.locator("input.sidebar-search").press("Enter")
    found = page.locator("ul.search li a")
    found.first.wait_for()
    targets = [found.nth(n).get_attribute("href") for n in range(found.count())]
    assert any("primenb.media.video.iter_frames" in target for target in targets)
    found.first.click()
    page.wait_for_load_state()
    assert "search.html" not in page.url
    page.close()
    assert complaints == []


@pytest.mark.slow
def test_the_whole_site_builds_without_a_warning():
    assert tool("python", "-m", "primenb.site") == ""
    site = project / "_docs/html"
    missing = [page for page in catalogue().values() if not (site / page).with_suffix(".html").exists()]
    assert missing == []
    assert broken_links(site) == []
