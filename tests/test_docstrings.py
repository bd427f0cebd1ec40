"Comments of parameters reach help(), and nothing else of a module changes."

import ast, inspect, pydoc

import primenb
import pytest
from conftest import project
from fastcore.docments import docments
from primenb.docstrings import document

modules = [m for m in sorted((project / "primenb").rglob("*.py")) if m.name != "_modidx.py" and m.read_text()]


def without_docstrings(source):
    "The code, each docstring empty."
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node):
            node.body[0].value.value = ""
    return ast.dump(tree)


@pytest.mark.parametrize("module", modules, ids=lambda m: m.relative_to(project).as_posix())
def test_only_docstrings_differ(module):
    source = module.read_text()
    assert document(source) == source, "run `python -m primenb.docstrings`"
    assert without_docstrings(document(source)) == without_docstrings(source)


NAMES = ["detect_shots", "read_motion", "track_camera", "Masks", "PSDClipLoss", "MaskedRun", "find_scenes", "zero_shot"]


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_what_the_comments_say(name):
    "Parity with fastcore, which reads the comments from the source of a living function."
    thing = getattr(primenb, name)
    target = thing.__init__ if "__init__" in vars(thing) and "@dataclass" not in inspect.getsource(thing) else thing
    said = {k: v for k, v in docments(target).items() if v and k not in ("return", "self")}
    shown = " ".join(pydoc.render_doc(thing, renderer=pydoc.plaintext).split())
    assert said and [text for text in said.values() if " ".join(text.split()) not in shown] == []


ODD = '''
def f(
    a, b=2,  # of both, which stand on one line
    *rest: int,  # some "quoted" text with a \\\\ in it
    c=(1,
       2),  # over two lines
    **more: str,  # others
) -> None:
    r"""A sentence.

    And a second paragraph with \\alpha."""

def g(x: int) -> int: return x

class K:
    "A class."
    x: int = 3  # a field
    _y: int = 4  # private
'''


def test_odd_signatures():
    exec(document(ODD), made := {})
    doc = inspect.getdoc(made["f"])
    assert doc.startswith("A sentence.\n\nAnd a second paragraph with \\alpha.")
    assert '*rest : int\n    some "quoted" text with a \\\\ in it' in doc
    assert "c : tuple, default (1, 2)\n    over two lines" in doc and "**more : str\n    others" in doc
    assert "a :" not in doc and "Returns" not in doc
    assert made["g"].__doc__ is None
    assert "x : int, default 3\n    a field" in inspect.getdoc(made["K"]) and "_y" not in inspect.getdoc(made["K"])
    assert document(document(ODD)) == document(ODD)
