"What the README says can be done is done, on small files."

import ast, json, re, shutil

import pytest
from conftest import project
from primenb.data.corpus import clips, tracking_shots
from primenb.sfm.priors import depth_of, save_depths

README = (project / "README.md").read_text()


def test_the_ten_lines_run(tmp_path, monkeypatch):
    "The library example, word for word; a folder of depth maps stands for the network."
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    shot = next(s for s in tracking_shots() if s.key == "track_02")
    clip = next(c for c in clips("test") if c.labels["kind"] == "objects")
    for name, source in (("film", project / "data/starter/starter.mp4"), ("shot", shot.path), ("clip", clip.path)):
        shutil.copy(source, tmp_path / f"{name}.mp4")
    save_depths(tmp_path / "depth", depth_of(shot, "scaled"))
    network = '"depth-anything/Depth-Anything-V2-Small-hf"'
    assert network in block
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(block.replace(network, '"depth"'), space)
    assert len(space["shots"]) == 12 and len(space["scenes"]) >= 1
    assert (space["track"].status == "solved").all()
    assert (tmp_path / "shot.py").stat().st_size > 1000
    assert (tmp_path / "shot_with_object.mp4").stat().st_size > 1000
    assert abs(space["hidden"].mean() - 0.75) < 0.05 and callable(space["loss"])


def shown_by(cell, space):
    "What a cell shows: the value of its last line."
    *lines, last = ast.parse("".join(cell["source"])).body
    exec(compile(ast.Module(lines, []), "nbs/index.ipynb", "exec"), space)
    return eval(compile(ast.Expression(last.value), "nbs/index.ipynb", "eval"), space)


def test_numbers_of_the_readme_are_those_of_the_results():
    "The table is made anew from the files of results that it names, and stands word for word in the README."
    cells = [c for c in json.loads((project / "nbs/index.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    space = {}
    exec("".join(cells[0]["source"]), space)
    (table,) = [c for c in cells if "def points(" in "".join(c["source"])]
    rows = shown_by(table, space).data.replace("](../", "](").splitlines()
    assert len(rows) > 6 and [row for row in rows if row not in README.splitlines()] == []


def test_commands_of_the_readme_exist():
    makefile = (project / "Makefile").read_text()
    for verb in set(re.findall(r"(?:^|`)make (\w+)", README, re.M)):
        assert re.search(rf"^{verb}:", makefile, re.M), verb
    from primenb.cli import app

    commands = {command.name for command in app.registered_commands}

    for command in set(re.findall(r"primenb (analyse|train|track|segments|search)\b", README)):
        assert command in commands


@pytest.mark.parametrize("extra", ["cameras", "studio", "all"])
def test_extras_of_the_readme_exist(extra):
    from configparser import ConfigParser

    config = ConfigParser()
    config.read(project / "settings.ini")
    assert f"[{extra}]" in README
    assert extra == "all" or f"{extra}_requirements" in config["DEFAULT"]
