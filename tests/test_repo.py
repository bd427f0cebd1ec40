"The repository keeps its own rules."

import ast, filecmp, json, re, shutil, subprocess
from pathlib import Path

import pytest
import yaml
from conftest import project, tool
from primenb.core import typed_params
from primenb.reports import code, page, parameters, read, reading_list

nbs = project / "nbs"
guides = sorted((nbs / "guides").glob("[0-9][0-9]_*.ipynb"))  # recipes: they export nothing
library = [nb for nb in sorted(nbs.rglob("[0-9][0-9]_*.ipynb")) if nb not in guides]
experiments = sorted((nbs / "exp").glob("*.ipynb"))
notebooks = [nbs / "index.ipynb", *library, *guides, *experiments]
modules = sorted((project / "primenb").rglob("*.py"))


def name_of(nb):
    return nb.relative_to(nbs).with_suffix("").as_posix()


each_notebook = pytest.mark.parametrize("nb", notebooks, ids=name_of)
each_library_notebook = pytest.mark.parametrize("nb", library, ids=name_of)

FLOORS = {name: 0 for name in ("core", "viz", "reports", "docstrings", "results", "site")}
FLOORS |= dict(render=1, media=1, learn=1, data=2, sfm=3, clip=3, mgm=3, scenes=3, film=4, cli=5)
APPENDIX = "studio"  # may import from everywhere; imported by nothing but its own notebooks


def code_cells(nb):
    return [cell for cell in read(nb)["cells"] if cell["cell_type"] == "code"]


def exports(nb):
    "The modules that a notebook writes, such as core or sfm.mapper."
    return set(re.findall(r"^#\| *(?:default_exp|export) +([\w.]+)", code(nb), flags=re.M))


def imports(nb):
    "The modules of the library that a notebook uses."
    tree = ast.parse("\n".join(line for line in code(nb).splitlines() if line.lstrip()[:1] not in ("!", "%")))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {f"primenb.{a.name}" for a in node.names} if node.module == "primenb" else {node.module or ""}
    return {name.removeprefix("primenb.") for name in names if name.startswith("primenb.")}


def differences(a: Path, b: Path) -> list[str]:
    "Files of either folder that the other lacks or holds otherwise; templates are written by hand, not exported."

    def made(f):
        return f.is_file() and not re.search("__pycache__|ipynb_checkpoints|film/templates/|py.typed", f.as_posix())

    def files(top):
        return {f.relative_to(top) for f in top.rglob("*") if made(f)}

    return sorted(
        str(f)
        for f in files(a) | files(b)
        if not ((a / f).exists() and (b / f).exists() and filecmp.cmp(a / f, b / f, shallow=False))
    )


@pytest.fixture
def copy(tmp_path):
    "The notebooks and the configuration in a folder of their own, without the library."
    for name in ("settings.ini", "dvc.yaml", "README.md", "setup.py", "pyproject.toml"):
        shutil.copy(project / name, tmp_path)
    shutil.copytree(project / "nbs", tmp_path / "nbs")
    return tmp_path


def test_notebooks_are_clean(copy):
    tool("nbdev_clean", cwd=copy)
    assert differences(project / "nbs", copy / "nbs") == [], "run `make check`"


def test_library_is_what_the_notebooks_export(copy):
    tool("python", "-m", "primenb.docstrings", cwd=copy)
    assert differences(project / "primenb", copy / "primenb") == [], (
        "run `make check`; a module without a notebook must go"
    )


def above(module: str, used: set[str]) -> set[str]:
    "Those of the used modules that lie on the same floor as a module, in another package, or above it."
    package = module.split(".")[0]
    floor = FLOORS.get(package, max(FLOORS.values()) + 1)

    def allowed(other):
        top = other.split(".")[0]
        return top == package or (top in FLOORS and (FLOORS[top] < floor or floor == 0 and FLOORS[top] == 0))

    return {other for other in used if not allowed(other)}


@each_library_notebook
def test_a_floor_imports_only_from_floors_below(nb):
    "All cells of a notebook, also those that explore: no import upwards, none between siblings, none of the studio."
    (module,) = re.findall(r"^#\| *default_exp +(\S+)", code(nb), flags=re.M)
    assert above(module, imports(nb)) == set()


@pytest.mark.parametrize(
    "module, used, wrong",
    [
        ("mgm.train", {"learn.engine", "mgm.masks", "core"}, set()),
        ("mgm.train", {"clip.model"}, {"clip.model"}),
        ("media.video", {"data.corpus", "learn.jobs"}, {"data.corpus", "learn.jobs"}),
        ("sfm.insert", {"studio.world"}, {"studio.world"}),
        ("studio.make", {"learn.jobs", "film.analyse", "studio.world"}, set()),
        ("core", {"viz", "media.video"}, {"media.video"}),
    ],
)
def test_the_rule_of_floors_finds_what_breaks_it(module, used, wrong):
    assert above(module, used) == wrong


@each_library_notebook
def test_imports_within_a_folder_come_from_lower_numbers(nb):
    order = {module: other.name for other in library if other.parent == nb.parent for module in exports(other)}
    wrong = {module for module in imports(nb) - exports(nb) if module in order and order[module] >= nb.name}
    assert wrong == set(), "these come later in the folder"


def test_modules_stand_where_their_notebooks_do():
    "nbs/sfm/06_mapper.ipynb makes sfm.mapper; no module is left over from a notebook that is gone."
    made = set().union(*map(exports, library))
    there = {
        ".".join(m.relative_to(project / "primenb").with_suffix("").parts)
        for m in modules
        if not m.name.startswith("_")
    }
    assert there == made - {"__init__"}
    apart = {
        name_of(nb)
        for nb in library
        for module in exports(nb)
        if Path(name_of(nb)).parent.as_posix() not in (".", module.split(".")[0])
    }
    assert apart == set()


@pytest.mark.parametrize("nb", experiments, ids=lambda nb: nb.stem)
def test_experiments_are_stored_without_outputs(nb):
    assert "out" in parameters(nb)
    assert [cell["source"] for cell in code_cells(nb) if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.parametrize(
    "file", sorted((project / "params").rglob("*.yaml")), ids=lambda f: str(f.relative_to(project))
)
def test_parameters_are_those_of_the_notebook(file):
    given = yaml.safe_load(file.read_text()) or {}
    typed_params(given, parameters(project / f"nbs/exp/{file.stem}.ipynb"), file)
    assert "out" not in given, "the stage says where its results go"


@each_notebook
def test_notebooks_are_small(nb):
    assert nb.stat().st_size <= 400_000
    sizes = [len(json.dumps(output)) for cell in code_cells(nb) for output in cell["outputs"]]
    assert max(sizes, default=0) <= 150_000


@pytest.mark.parametrize("nb", [*library, *guides], ids=name_of)
def test_cells_are_short(nb):
    lines = [
        [line for line in cell["source"].splitlines() if line.strip() and not line.startswith("#|")]
        for cell in code_cells(nb)
    ]
    assert [(cell[0], len(cell)) for cell in lines if len(cell) > 25] == []


@pytest.mark.parametrize("module", modules, ids=lambda m: m.stem)
def test_public_functions_are_documented(module):
    tree = ast.parse(module.read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    nodes = [
        node for part in (tree, *classes) for node in part.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ]
    assert [node.name for node in nodes if not node.name.startswith("_") and not ast.get_docstring(node)] == []


def test_readme_is_the_index():
    text, pictures = page(project / "nbs/index.ipynb")
    assert (project / "README.md").read_text() == text, "run `make readme`"
    assert {name: (project / name).read_bytes() for name in pictures} == pictures, "run `make readme`"
    assert len(text.encode()) <= 12_288


def test_every_notebook_is_in_the_reading_list():
    listed = (project / "nbs/README.md").read_text()
    assert listed == reading_list(), "run `make readme`"
    every = map(name_of, [*library, *guides, *experiments])
    assert [name for name in every if f"({name}.ipynb)" not in listed] == []


@pytest.mark.parametrize("page", ["README.md", "nbs/README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_pages_lead_somewhere(page):
    "Each link to a file of the project, and each image."
    links = re.findall(r"\]\((?!\w+:|#)([^)#]+)", (project / page).read_text())
    assert [link for link in links if not ((project / page).parent / link).exists()] == []


def test_no_machine_in_the_files():
    "No path of somebody's machine, no address of a package index."
    private = re.compile(r"(?<![\w.~/-])/(work|home|root|Users|tmp|opt)/\w|index-url|find-links|/simple/|@ file:")
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=project, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for file in filter(None, files):
        if file.startswith("dvcstore/") or not (project / file).exists():
            continue
        text = (project / file).read_bytes().decode("utf-8", errors="replace")
        if file != "tests/test_repo.py":
            assert not private.search(text), f"{file}: {private.search(text)[0]}"


def needed() -> set[str]:
    "The hashes that dvc.lock and data.dvc name, with those of the files in their folders."
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"].values()
    entries = [out for stage in lock for out in stage.get("outs", [])]
    entries += yaml.safe_load((project / "data.dvc").read_text())["outs"]
    kept = {out["path"] for stage in stages().values() for out in map(cached, stage.get("outs", [])) if out}
    hashes = {e["md5"] for e in entries if e["path"] in kept | {"data"}}
    for folder in [h for h in hashes if h.endswith(".dir")]:
        hashes |= {file["md5"] for file in json.loads(stored(folder).read_text())}
    return hashes


def stages() -> dict:
    return yaml.safe_load((project / "dvc.yaml").read_text())["stages"]


def cached(out):
    "An output that DVC keeps in the store, and not git."
    if isinstance(out, str):
        return dict(path=out)
    ((path, settings),) = out.items()
    return dict(path=path) if (settings or {}).get("cache", True) else None


def stored(md5: str) -> Path:
    return project / "dvcstore/files/md5" / md5[:2] / md5[2:]


def test_store_holds_what_is_needed_and_no_more():
    there = {f.parent.name + f.name for f in (project / "dvcstore/files/md5").rglob("*") if f.is_file()}
    assert needed() - there == set(), "run `dvc push`"
    assert there - needed() == set(), "run `make gc`"


def test_store_is_small():
    assert sum(f.stat().st_size for f in (project / "dvcstore").rglob("*") if f.is_file()) <= 50e6
