"How the code is written: short lines, one idea a line, one meaning for each public name, no path of one machine."

import ast, collections, re, subprocess

import pytest
from conftest import project
from primenb.reports import read

nbs = project / "nbs"
notebooks = sorted(p for p in nbs.rglob("*.ipynb") if not any(part.startswith(".") for part in p.parts))
scripts = [p for folder in ("tests", "bench", "scripts", "docs") for p in sorted((project / folder).glob("*.py"))]
each_notebook = pytest.mark.parametrize("nb", notebooks, ids=lambda p: p.relative_to(nbs).with_suffix("").as_posix())
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def sources(nb):
    return [cell["source"] for cell in read(nb)["cells"] if cell["cell_type"] == "code"]


def python(source):
    return "\n".join("" if line.lstrip()[:1] in ("!", "%") else line for line in source.split("\n"))


def nesting(node) -> int:
    "How many comprehensions lie in one another below a node."
    deepest = max(map(nesting, ast.iter_child_nodes(node)), default=0)
    return deepest + isinstance(node, COMPREHENSIONS)


def wide_assignments(tree) -> list[str]:
    "Tuple assignments of more than two targets."
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    return [
        ast.unparse(node)[:80]
        for node in found
        if isinstance(node.targets[0], ast.Tuple) and len(node.targets[0].elts) > 2
    ]


def test_the_rules_find_what_breaks_them():
    assert nesting(ast.parse("x = [[[a for a in b] for b in c] for c in d]")) == 3
    assert nesting(ast.parse("x = [a for a in b]; y = {c: [d for d in c] for c in e}")) == 2
    assert wide_assignments(ast.parse("a, b, c = 1, 2, 3\nd, e = f\nfor g, h, i in j: pass")) == ["a, b, c = (1, 2, 3)"]


@each_notebook
def test_code_in_notebooks(nb):
    "Lines of at most 120 characters, at most one comprehension in another, tuples of at most two targets."
    for source in sources(nb):
        assert [line for line in source.split("\n") if len(line) > 120] == []
        tree = ast.parse(python(source))
        assert nesting(tree) <= 2, source
        assert wide_assignments(tree) == []


@pytest.mark.parametrize("file", scripts, ids=lambda p: p.relative_to(project).as_posix())
def test_lines_of_scripts_and_tests(file):
    assert [line for line in file.read_text().splitlines() if len(line) > 120] == []


@each_notebook
def test_no_cell_is_hidden_from_jupyter(nb):
    "JupyterLab does not know `eval: false`: what nbdev would skip stops a reader's Run All."
    assert [source for source in sources(nb) if re.search(r"^#\| *eval: *false", source, flags=re.M)] == []


def public_names(file) -> list[str]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def test_a_public_name_means_one_thing():
    "No name of `__all__` stands in two modules, apart from the command lines' `main`."
    where = collections.defaultdict(list)
    for file in sorted((project / "primenb").rglob("*.py")):
        for name in public_names(file):
            where[name].append(file.relative_to(project).as_posix())
    assert {name: files for name, files in where.items() if len(files) > 1 and name != "main"} == {}


def test_real_footage_is_found_through_the_environment():
    "No default names a folder outside the repository."
    files = subprocess.run(
        ["git", "ls-files", "-z", "nbs", "tests", "bench", "scripts", "params", "Makefile"],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    texts = {
        f: (project / f).read_bytes().decode("utf-8", errors="replace")
        for f in filter(None, files)
        if (project / f).exists()
    }
    assert [f for f, text in texts.items() if "shared/" + "real" in text] == []


def test_links_between_notebooks_lead_somewhere():
    broken = []
    for nb in notebooks:
        prose = "\n".join(cell["source"] for cell in read(nb)["cells"] if cell["cell_type"] == "markdown")
        for link in re.findall(r"\]\(([^)\s]+\.ipynb)(?:#[^)]*)?\)", prose):
            if not link.startswith("http") and not (nb.parent / link).exists():
                broken.append(f"{nb.name}: {link}")
    assert broken == []
