"Experiments rerun when their code, data or parameters change, give the same bytes, and come complete with a clone."

import ast, json
from importlib.util import resolve_name
from pathlib import Path

import pytest
import yaml
from conftest import project, tool
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from primenb.reports import code, read, write

stages = yaml.safe_load((project / "dvc.yaml").read_text()) or {"stages": {}}
experiments = {name: stage for name, stage in stages["stages"].items() if "deps" in stage}
each_experiment = pytest.mark.parametrize("stage", experiments.values(), ids=experiments)


def used_modules(source: Path) -> set[str]:
    "The files of the library that a Python file imports, and those that they import."
    package = ".".join(source.relative_to(project).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = resolve_name("." * node.level + (node.module or ""), package)
        names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        files = {name.replace(".", "/") + ".py" for name in names if name.startswith("primenb.")}
        for file in files - found:
            if (project / file).is_file():
                found |= {file} | used_modules(project / file)
    return found


@each_experiment
def test_stages_depend_on_what_they_use(stage):
    (notebook,) = (Path(word) for word in stage["cmd"].split() if word.endswith(".ipynb"))
    extracted = f"runs/.code/{notebook.stem}.py"
    assert (project / extracted).read_text() == code(project / notebook), "run `make repro`"
    wanted = {extracted} | used_modules(project / extracted)
    assert {dep for dep in stage["deps"] if dep.endswith(".py")} == wanted


@pytest.mark.slow
def test_a_clone_is_complete(tmp_path):
    tool("git", "clone", "-q", str(project), str(tmp_path / "clone"))
    tool("dvc", "pull", cwd=tmp_path / "clone")
    assert json.loads(tool("dvc", "status", "--json", cwd=tmp_path / "clone")) == {}, (
        "run `make repro`, commit, and `dvc push`"
    )


pipeline = """
stages:
  code:
    foreach: [film]
    do:
      cmd: python -m primenb.reports code nbs/exp/${item}.ipynb runs/.code/${item}.py
      deps:
        - nbs/exp/${item}.ipynb
      outs:
        - runs/.code/${item}.py: {cache: false}
  film:
    cmd: python -m primenb.reports run nbs/exp/film.ipynb params/film.yaml runs/film
    deps:
      - data
      - runs/.code/film.py
    params:
      - params/film.yaml:
    outs:
      - runs/film/report.ipynb
      - runs/film/curve.csv: {cache: false}
    metrics:
      - runs/film/metrics.json: {cache: false, persist: true}
"""
cells = [
    new_markdown_cell("# How many letters?"),
    new_code_cell(
        'seed = 0\nsmoke = True\nrate = 0.5\nnames = ["a"]\nlimit = None\nout = "out"',
        metadata=dict(tags=["parameters"]),
    ),
    new_code_cell(
        "import time\nfrom pathlib import Path\nfrom primenb.core import save_metrics\nstart = time.perf_counter()"
    ),
    new_code_cell(
        'text = Path("data/text.txt").read_text()\nPath(out, "curve.csv").write_text(f"letters\\n{len(text)}\\n")'
    ),
    new_code_cell(
        "values = dict(smoke=smoke, rate=rate, names=names, limit=limit)\n"
        "types = {name: type(value).__name__ for name, value in values.items()}\nobject()"
    ),
    new_code_cell(
        'found = dict(letters=len(text), types=types)\n'
        'save_metrics(Path(out, "metrics.json"), found, seconds=time.perf_counter() - start, seeds=[seed])["types"]'
    ),
]
params = dict(smoke=False, rate=2.0, names=["b", "c"], limit=3)


@pytest.fixture
def small(tmp_path):
    "A project with one experiment, run once."
    for folder in ("nbs/exp", "params", "data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/text.txt").write_text("three")
    (tmp_path / "dvc.yaml").write_text(pipeline)
    (tmp_path / "params/film.yaml").write_text(yaml.safe_dump(params))
    write(new_notebook(cells=cells), tmp_path / "nbs/exp/film.ipynb")
    tool("git", "init", "-q", cwd=tmp_path)
    tool("dvc", "init", "-q", cwd=tmp_path)
    (tmp_path / ".dvc/config").write_text((project / ".dvc/config").read_text())
    tool("dvc", "add", "-q", "data", cwd=tmp_path)
    tool("dvc", "repro", cwd=tmp_path)
    return tmp_path


def change(nb, cell, text):
    "Adds text to one cell of a notebook."
    notebook = read(nb)
    notebook["cells"][cell]["source"] += text
    write(notebook, nb)


@pytest.mark.slow
def test_prose_reruns_nothing(small):
    change(small / "nbs/exp/film.ipynb", 0, " Let us count.")
    said = tool("dvc", "repro", cwd=small)
    assert "Running stage 'code@film'" in said and "Running stage 'film'" not in said
    change(small / "nbs/exp/film.ipynb", 3, "\ntext")
    assert "Running stage 'film'" in tool("dvc", "repro", cwd=small)


@pytest.mark.slow
def test_forced_rerun_gives_the_same_bytes(small):
    names = [
        "dvc.lock",
        "runs/.code/film.py",
        *(f"runs/film/{name}" for name in ("report.ipynb", "metrics.json", "curve.csv")),
    ]

    def made():
        return {name: (small / name).read_bytes() for name in names}

    before = made()
    assert "Running stage 'film'" in tool("dvc", "repro", "-f", cwd=small)
    assert made() == before


@pytest.mark.slow
def test_parameters_keep_their_types(small):
    metrics = json.loads((small / "runs/film/metrics.json").read_text())
    assert metrics["types"] == {name: type(value).__name__ for name, value in params.items()}
    (small / "params/film.yaml").write_text("smoke: 'false'\n")
    with pytest.raises(AssertionError, match="smoke is 'false', a str; give a bool like True"):
        tool("dvc", "repro", cwd=small)
