"The repository keeps its own rules."
import ast, filecmp, json, re, shutil, subprocess
from pathlib import Path

import pytest
import yaml
from conftest import project, tool
from primenb.core import typed_params
from primenb.reports import code, page, parameters, read, results_table

library = sorted((project / "nbs").glob("[0-9]*.ipynb"))
experiments = sorted((project / "nbs/exp").glob("*.ipynb"))
notebooks = [project / "nbs/index.ipynb", *library, *experiments]
modules = sorted((project / "primenb").rglob("*.py"))
each_notebook = pytest.mark.parametrize("nb", notebooks, ids=lambda nb: nb.stem)
each_library_notebook = pytest.mark.parametrize("nb", library, ids=lambda nb: nb.stem)


def code_cells(nb): return [cell for cell in read(nb)["cells"] if cell["cell_type"] == "code"]


def exports(nb):
    "The modules that a notebook writes, such as core or sfm.mapper."
    return set(re.findall(r"^#\| *(?:default_exp|export) +([\w.]+)", code(nb), flags=re.M))


def imports(nb):
    "The modules of the library that a notebook uses."
    tree = ast.parse("\n".join(line for line in code(nb).splitlines() if line.lstrip()[:1] not in ("!", "%")))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom): names |= {f"primenb.{a.name}" for a in node.names} if node.module == "primenb" else {node.module or ""}
    return {name.removeprefix("primenb.") for name in names if name.startswith("primenb.")}


def differences(a: Path, b: Path) -> list[str]:
    "Files of either folder that the other lacks or holds otherwise."
    def files(top): return {f.relative_to(top) for f in top.rglob("*") if f.is_file() and not re.search("__pycache__|ipynb_checkpoints", str(f))}
    return sorted(str(f) for f in files(a) | files(b) if not ((a / f).exists() and (b / f).exists() and filecmp.cmp(a / f, b / f, shallow=False)))


@pytest.fixture
def copy(tmp_path):
    "The notebooks and the configuration in a folder of their own, without the library."
    for name in ("settings.ini", "dvc.yaml", "README.md", "setup.py", "pyproject.toml"): shutil.copy(project / name, tmp_path)
    shutil.copytree(project / "nbs", tmp_path / "nbs")
    return tmp_path


def test_notebooks_are_clean(copy):
    tool("nbdev_clean", cwd=copy)
    assert differences(project / "nbs", copy / "nbs") == [], "run `make check`"


def test_library_is_what_the_notebooks_export(copy):
    tool("nbdev_export", cwd=copy)
    assert differences(project / "primenb", copy / "primenb") == [], "run `make check`; a module without a notebook must go"


@each_library_notebook
def test_imports_come_from_lower_numbers(nb):
    number = {module: other.stem.split("_")[0] for other in library for module in exports(other)}  # "13a" comes before "13b" and "14"
    wrong = {module for module in imports(nb) - exports(nb) if number.get(module, "none") >= nb.stem.split("_")[0]}
    assert wrong == set(), "these come later, or from no notebook"


@pytest.mark.parametrize("nb", experiments, ids=lambda nb: nb.stem)
def test_experiments_are_stored_without_outputs(nb):
    assert "out" in parameters(nb)
    assert [cell["source"] for cell in code_cells(nb) if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.parametrize("file", sorted((project / "params").rglob("*.yaml")), ids=lambda f: str(f.relative_to(project)))
def test_parameters_are_those_of_the_notebook(file):
    given = yaml.safe_load(file.read_text()) or {}
    typed_params(given, parameters(project / f"nbs/exp/{file.stem}.ipynb"), file)
    assert "out" not in given, "the stage says where its results go"


@each_notebook
def test_notebooks_are_small(nb):
    assert nb.stat().st_size <= 400_000
    sizes = [len(json.dumps(output)) for cell in code_cells(nb) for output in cell["outputs"]]
    assert max(sizes, default=0) <= 150_000


@each_library_notebook
def test_cells_are_short(nb):
    lines = [[line for line in cell["source"].splitlines() if line.strip() and not line.startswith("#|")] for cell in code_cells(nb)]
    assert [(cell[0], len(cell)) for cell in lines if len(cell) > 25] == []


@pytest.mark.parametrize("module", modules, ids=lambda m: m.stem)
def test_public_functions_are_documented(module):
    tree = ast.parse(module.read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    nodes = [node for part in (tree, *classes) for node in part.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert [node.name for node in nodes if not node.name.startswith("_") and not ast.get_docstring(node)] == []


def test_readme_is_the_index():
    text, pictures = page(project / "nbs/index.ipynb")
    assert (project / "README.md").read_text() == text, "run `make readme`"
    assert {name: (project / name).read_bytes() for name in pictures} == pictures, "run `make readme`"
    assert results_table() in text, "run `make readme`: the results have changed"


def test_index_leads_to_every_notebook():
    index = "\n".join(cell["source"] for cell in read(project / "nbs/index.ipynb")["cells"])
    assert [nb.name for nb in library if f"({nb.name})" not in index] == []


@pytest.mark.slow
def test_site_builds_without_a_warning():
    assert tool("python", "-m", "primenb.reports", "docs") == ""
    assert [nb.stem for nb in library if not (project / f"_docs/html/{nb.stem}.html").exists()] == []


def test_no_machine_in_the_files():
    "No path of somebody's machine, no address of a package index."
    private = re.compile(r"(?<![\w.~/-])/(work|home|root|Users|tmp|opt)/\w|index-url|find-links|/simple/|@ file:")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=project, capture_output=True, text=True, check=True).stdout.split("\0")
    for file in filter(None, files):
        if file.startswith("dvcstore/") or not (project / file).exists(): continue
        text = (project / file).read_bytes().decode("utf-8", errors="replace")
        if file != "tests/test_repo.py": assert not private.search(text), f"{file}: {private.search(text)[0]}"


def test_store_is_small():
    assert sum(f.stat().st_size for f in (project / "dvcstore").rglob("*") if f.is_file()) <= 50e6
