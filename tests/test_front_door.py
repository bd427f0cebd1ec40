"What `import primenb` gives, and what it says where something is not installed."

import subprocess, sys

import primenb
import pytest
from conftest import project, tool
from primenb.core import MissingExtra, PrimenbError

HEAVY = ("numpy", "pandas", "torch", "av", "cv2", "matplotlib", "scipy")


def python(program):
    "What a fresh Python prints."
    return tool(sys.executable, "-c", program)


def test_the_door_is_light():
    assert python(f"import sys, primenb; print([m for m in {HEAVY} if m in sys.modules])") == "[]\n"


def test_shots_need_no_pytorch():
    heavy = ("torch", "transformers", "scipy", "pycolmap", "pyvista", "sklearn")
    program = "import sys, primenb; primenb.detect_shots, primenb.analyse; "
    assert python(program + f"print([m for m in {heavy} if m in sys.modules])") == "[]\n"


def test_help_is_a_table_of_contents():
    shown = python("import primenb; help(primenb)")
    names = [name for names in primenb.CONTENTS.values() for name in names]
    assert [name for name in names if f"    {name} " not in shown] == []
    assert "track_camera       A camera for every frame of a shot [sfm.mapper]" in shown


@pytest.mark.parametrize(
    "missing, statement, extra",
    [
        ("torch", "from primenb import PSDClipLoss", "learn"),
        ("torch", "from primenb.learn.engine import Trainer", "learn"),
        ("torch", "from primenb.core import choose_device; choose_device()", "learn"),
        ("sklearn", "import primenb.scenes.evaluate", "learn"),
        ("pycolmap", "from primenb import track_camera", "cameras"),
        ("pxr", "from primenb.sfm.mapper import track_camera", "cameras"),
        ("pyvista", "from primenb import insert", "studio"),
        ("skimage", "import primenb.studio.world", "studio"),
    ],
)
def test_a_missing_package_names_the_extra(missing, statement, extra):
    program = f"""
import sys
sys.modules[{missing!r}] = None  # as if it were not installed
try:
    {statement}
except ImportError as e:
    print(type(e).__name__, e)
"""
    said = python(program)
    assert said == f"MissingExtra primenb[{extra}]: the package {missing} is not installed; " + (
        f'run: pip install "primenb[{extra}]"\n'
    )


def test_the_command_says_so_before_it_works(tmp_path):
    "No shot is searched for when cameras cannot be made."
    program = f"""
import sys
sys.modules["pycolmap"] = None
from primenb.cli import main
sys.exit(main(["analyse", "{project}/data/starter/starter.mp4", "-o", "{tmp_path}/out", "--parts", "cameras"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and 'pip install "primenb[cameras]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_missing_extra_is_both_kinds_of_error():
    assert issubclass(MissingExtra, ImportError) and issubclass(MissingExtra, PrimenbError)


def test_an_unknown_name_says_where_to_look():
    with pytest.raises(AttributeError, match="help\\(primenb\\)"):
        primenb.analyze
    with pytest.raises(ImportError):
        from primenb import analyze  # noqa: F401


def test_a_track_can_be_exported_at_once():
    for program in ("from primenb import CameraTrack", "from primenb.sfm.mapper import CameraTrack"):
        assert python(program + "; print(hasattr(CameraTrack, 'to_usd'))") == "True\n"


def test_names_can_be_completed():
    names = {name for group in primenb.CONTENTS.values() for name in group}
    assert names <= set(dir(primenb))
    loaded = "import sys, primenb, pydoc; pydoc.render_doc(primenb); print('numpy' in sys.modules)"
    assert python(loaded) == "False\n"


def test_a_package_that_is_there_and_broken_is_not_called_missing():
    program = """
from primenb.core import extra
try:
    with extra("learn"): raise ModuleNotFoundError("Could not import module 'X'")
except ModuleNotFoundError as e: print(type(e).__name__, e)
"""
    assert python(program) == "ModuleNotFoundError Could not import module 'X'\n"
