"The guides are short, export nothing, and use names that exist."

import ast, re

import primenb
import pytest
from conftest import project
from primenb.reports import code, read

guides = sorted((project / "nbs/guides").glob("*.ipynb"))
each_guide = pytest.mark.parametrize("nb", guides, ids=lambda nb: nb.stem)


def prose(nb):
    return "\n".join(cell["source"] for cell in read(nb)["cells"] if cell["cell_type"] == "markdown")


@each_guide
def test_a_guide_is_short_and_exports_nothing(nb):
    assert 10 <= len(read(nb)["cells"]) <= 18
    assert re.findall(r"^#\|.*", code(nb), flags=re.M) == []


@each_guide
def test_a_guide_takes_what_it_can_through_the_front_door(nb):
    tree = ast.parse(code(nb))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    front = {alias.name for node in imports if node.module == "primenb" for alias in node.names}
    known = {name for names in primenb.CONTENTS.values() for name in names}
    assert front and front <= known
    inside = {a.name for n in imports if (n.module or "").startswith("primenb.") for a in n.names}
    assert inside & known == set()


@each_guide
def test_a_guide_says_what_to_install_and_what_to_replace(nb):
    text = prose(nb)
    assert [word for word in ("At the end you have", "Install", "Replace", "does not work") if word not in text] == []
    extras = set(re.findall(r"primenb\[(\w+)\]", text))
    assert extras and extras <= {"cameras", "learn", "studio"}


@each_guide
def test_a_guide_is_stored_with_its_outputs(nb):
    cells = [cell for cell in read(nb)["cells"] if cell["cell_type"] == "code"]
    assert sum(bool(cell["outputs"]) for cell in cells) > len(cells) / 2
    assert [o for cell in cells for o in cell["outputs"] if o.get("name") == "stderr"] == []


def test_guides_are_numbered():
    assert [nb.name[:2] for nb in guides] == [f"{n:02d}" for n in range(len(guides))]
