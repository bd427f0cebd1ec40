"Headlines, tolerances and verdicts; and that what is shown is what the runs have written."

import ast, csv, json, re, subprocess

import nbformat
import pytest
from conftest import project
from hypothesis import given, strategies as st
from primenb.core import PrimenbError
from primenb.reports import run_all, write, write_report
from primenb.results import SHOWN, compare_stage, flat, load_processors, load_values, save_results
from primenb.results import standard_error, summary, tolerances, verdict

STAGES = ["film", "corpus", "sfm", "clip", "mgm", "scenes"]
each_stage = pytest.mark.parametrize("stage", STAGES)
folders = [project / "runs" / stage for stage in STAGES]
folders += sorted(file.parent for file in (project / "results").rglob("values.csv"))
each_folder = pytest.mark.parametrize("folder", folders, ids=lambda f: f.relative_to(project).as_posix())

numbers = st.floats(-1e6, 1e6).map(lambda x: float(f"{x:.4g}")) | st.integers(-1000, 1000)
names = st.text("abc ,:\"'0.", min_size=1, max_size=8).filter(lambda n: n.strip(".") == n and ".." not in n)


@given(st.dictionaries(names, numbers, min_size=1))
def test_what_is_stored_is_read_back(tmp_path_factory, found):
    out = tmp_path_factory.mktemp("stage")
    save_results(out, found, [], seconds=1.0, seeds=[0])
    assert load_values(out) == found


def test_an_unknown_headline_is_refused_with_those_that_are_near(tmp_path):
    found = dict(gain=dict(mean=1.0, sem=0.1), other=2)
    with pytest.raises(PrimenbError, match="there is no such number; use one of gain.mean, gain.sem"):
        save_results(tmp_path, found, ["gain.median"], seconds=1.0, seeds=[0])
    assert list(tmp_path.iterdir()) == []


@given(numbers, numbers, st.floats(0, 10))
def test_verdicts(now, before, tolerance):
    said = verdict(now, before, tolerance)
    assert said == verdict(before, now, tolerance)
    assert (said == "same") == (now == before)
    assert verdict(now, None, tolerance) == "new"
    assert verdict(now, before, abs(now - before)) in ("same", "within")
    if said == "differs":
        assert abs(now - before) > tolerance


def test_tolerances_are_the_larger_of_seeds_and_processors():
    values = {"a.mean": 1.0, "a.sem": 0.1, "b.gain": 3.0, "b.standard_errors": -6.0, "c.gain": 1.0, "c.seed_error": 0.3}
    values["d"] = 4
    assert standard_error(values, "b.gain") == 0.5 and standard_error(values, "d") == 0
    processors = [
        dict(stage="s", name="a.mean", first=1.0, second=1.5),
        dict(stage="t", name="b.gain", first=1.0, second=99.0),
    ]
    found = tolerances("s", values, ["a.mean", "b.gain", "c.gain", "d"], processors)
    assert found == pytest.approx({"a.mean": 0.5, "b.gain": 1.0, "c.gain": 0.6, "d": 0.0})


def test_a_rerun_is_compared_with_what_was_committed(tmp_path):
    "In a repository of its own: the same, within, different, and a new headline."
    out = tmp_path / "runs/toy"
    found = dict(a=dict(mean=0.5, sem=0.1), b=dict(mean=0.5, sem=0.01), c=1.0)
    save_results(out, found, ["a.mean", "b.mean", "c"], seconds=1.0, seeds=[0])
    assert {row["verdict"] for row in compare_stage(out)} == {"new"}
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    found = dict(a=dict(mean=0.6, sem=0.1), b=dict(mean=0.6, sem=0.01), c=1.0, d=7)
    save_results(out, found, ["a.mean", "b.mean", "c", "d"], seconds=1.0, seeds=[0])
    said = {row["name"]: row["verdict"] for row in compare_stage(out)}
    assert said == {"a.mean": "within", "b.mean": "differs", "c": "same", "d": "new"}
    shown = summary(tmp_path / "runs").splitlines()
    assert shown[1] == "toy (statistical; 4 headlines: 1 same, 1 within, 1 differs, 1 new)"
    assert "b.mean" in shown[2]  # what differs stands first


def test_the_table_of_the_pipeline_is_short():
    lines = summary().splitlines()
    assert len(lines) <= 40
    assert [stage for stage in STAGES if not any(line.startswith(f"{stage} (") for line in lines)] == []
    assert max(map(len, lines)) <= 120 and SHOWN >= 3


def test_two_processors_were_compared():
    "Every headline has its two numbers."
    known = {(row["stage"], row["name"]) for row in load_processors()}
    for stage in STAGES:
        headlines = json.loads((project / f"runs/{stage}/metrics.json").read_text())
        assert [name for name in headlines if name != "run" and (stage, name) not in known] == []


@each_folder
def test_metrics_are_few_and_are_among_the_values(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    record, values = metrics.pop("run"), load_values(folder)
    assert 2 <= len(metrics) <= 20
    assert {name: values[name] for name in metrics} == metrics
    assert {"seeds", "sizes", "versions", "seconds", "device"} <= set(record)


@each_stage
def test_reports_can_be_read_where_they_lie(stage):
    folder = project / "runs" / stage
    text = (folder / "report.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.M)[-1] == "Answer"
    assert text.split("## Answer")[1].count("\n") > 3
    links = re.findall(r"\]\((?!\w+:|#)([^)#]+)", text)
    assert [link for link in links if not (folder / link).exists()] == []
    sizes = [f.stat().st_size for f in [folder / "report.md", *(folder / "figures").iterdir()]]
    assert sum(sizes) <= 300_000


@pytest.mark.slow
def test_the_notebook_of_results_shows_the_files():
    "Its stored outputs are those of a run on the committed files."
    stored, new = nbformat.read(project / "nbs/results.ipynb", 4), run_all(project / "nbs/results.ipynb")

    def shown(notebook):
        outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        return ["".join(o.get("data", {}).get("text/markdown") or o["data"]["text/plain"]) for o in outputs]

    assert shown(stored) == shown(new), "run nbs/results.ipynb and store it"


def test_the_table_of_the_readme_shows_the_files():
    "The cells of the index that make tables, on the committed files."
    cells = nbformat.read(project / "nbs/index.ipynb", 4).cells
    space = {}
    for cell in (c for c in cells if c.cell_type == "code"):
        body = ast.parse(cell.source).body
        if "track_camera" in cell.source:
            continue  # draws the image
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), "index", "exec"), space)
        if last is not None:
            shown = eval(compile(ast.Expression(last.value), "index", "eval"), space)
            assert shown.data == cell.outputs[0].data["text/markdown"], "run nbs/index.ipynb, then `make readme`"


def test_flat_names():
    assert flat(dict(a=dict(b=1, c=[1, 2]), d=2.0)) == {"a.b": 1, "d": 2.0}
    with open(project / "runs/film/values.csv", newline="") as f:
        assert next(csv.reader(f)) == ["name", "value"]


def test_tables_of_reports_keep_their_shape(tmp_path):
    "Cells that span rows or columns still do; styles are gone."
    import pandas as pd
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    index = pd.MultiIndex.from_product([["a", "b"], ["x", "y"]])
    table = pd.DataFrame([[1, 2], [3, 4], [5, 6], [7, 8]], index, pd.MultiIndex.from_product([["top"], ["u", "v"]]))
    shown = new_output("display_data", data={"text/html": table._repr_html_()})
    cells = [new_markdown_cell("# T"), new_code_cell("t", outputs=[shown])]
    write(new_notebook(cells=cells), tmp_path / "report.ipynb")
    text = write_report(tmp_path / "report.ipynb", "film.ipynb").read_text()
    assert text.count('rowspan="2"') == 2 and text.count('colspan="2"') == 1
    assert "style" not in text and "class=" not in text and "valign" not in text
    assert text.count("<thead>") == text.count("</thead>") == 1


@pytest.mark.parametrize(
    "file, content",
    [
        ("values.csv", b""),
        ("values.csv", b"name,number\na,1\n"),
        ("values.csv", b"name,value\na\n"),
        ("values.csv", b"name,value\na,1,2\n"),
        ("values.csv", "name,value\nä,1\n".encode("latin-1")),
        ("values.csv", b"name,value\na,2.0\n"),
        ("metrics.json", b""),
        ("metrics.json", b"<<<<<<< HEAD\n{}"),
        ("metrics.json", b"[1]"),
        ("metrics.json", b'{"a": 3.0}'),
        ("metrics.json", b'{"ghost": 1.0}'),
        ("metrics.json", b'{"a": {"b": 1}}'),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content):
    save_results(tmp_path, dict(a=1.0), ["a"], seconds=1.0, seeds=[0])
    (tmp_path / file).write_bytes(content)
    with pytest.raises(PrimenbError, match="restore it with git, or run: make repro") as said:
        compare_stage(tmp_path, before={})
    assert str(tmp_path) in str(said.value) and "\n" not in str(said.value)
    (tmp_path / file).unlink()
    with pytest.raises(PrimenbError, match=file):
        compare_stage(tmp_path, before={})


def test_a_headline_that_is_gone_is_said(tmp_path):
    save_results(tmp_path, dict(a=1.0), ["a"], seconds=1.0, seeds=[0])
    rows = compare_stage(tmp_path, before=dict(a=1.0, b=2.0, run={}))
    assert [(row["name"], row["verdict"]) for row in rows] == [("a", "same"), ("b", "gone")]


@pytest.mark.parametrize("args, said", [(["/nowhere"], "holds no results"), (["README.md"], "holds no results")])
def test_the_command_prints_one_line(args, said, capsys):
    from primenb.results import main

    assert main(args) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
