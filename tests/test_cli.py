"The command `primenb` as a person meets it: options, many films, a file of options, and the page that leads to them."

import errno, json, os, shutil, signal, subprocess, sys, time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from conftest import project
from primenb import cli
from primenb.cli import main
from primenb.core import PrimenbError
from primenb.film import films
from primenb.film.analyse import PAGE_PARTS, Part, analyse
from primenb.film.films import analyse_films, film_span, find_films, read_moment, write_index
from primenb.media.packets import FILM_ENDINGS
from primenb.media.shots import DETECTORS
from primenb.media.timelines import film_clock, frame_of_timecode, timecode
from primenb.media.video import encode, probe

FAST = ["--parts", "keyframes", "--detector", "content"]


def film(path, seed=0, seconds=2, rate=24, **how):
    "A tiny film with a cut in the middle."
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 255, (2, 1, 1, 3), np.uint8)
    noise = np.random.default_rng(seed).integers(0, 30, (64, 96, 1), np.uint8)
    count = int(seconds * rate)
    return encode(path, [colours[int(n >= count // 2)] // 2 + noise for n in range(count)], rate, **how)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    "A folder with films in folders, and what lies beside them."
    top = tmp_path_factory.mktemp("archive") / "films"
    for n, name in enumerate(("a.mp4", "a.mov", "s1/e01.mp4", "s2/e01.mp4", ".hidden/b.mp4")):
        film(top / name, n)
    for name in ("a.srt", "s1/poster.jpg", "._a.mp4"):
        (top / name).write_text("beside")
    (top / "cut.mp4").write_bytes((top / "a.mp4").read_bytes()[:600])
    return top


def said(capsys):
    out = capsys.readouterr()
    return out.out.splitlines(), out.err.splitlines()


# ---- options


@pytest.mark.parametrize(
    "words, line",
    [
        (["--detector", "conten"], "--detector 'conten': 'conten' is not known; did you mean content?"),
        (["--threshold", "nan"], "threshold nan: it is not a number"),
        (["--threshold", "inf"], "threshold inf"),
        (["--threshold", "x"], "'--threshold'"),
        (["--min-length", "-1"], "-1.0: it is not a number"),
        (["--scenes-per-hour", "0"], "--scenes-per-hour 0.0"),
        (["--jobs", "0"], "'--jobs'"),
        (["--jobs", "1.5"], "'--jobs'"),
        (["--parts", ""], "--parts ''"),
        (["--parts", "shots,,motion"], "'' is not known"),
        (["--parts", "shot"], "did you mean shots?"),
        (["--timeline", "otio,avi"], "'avi' is not known; choose from otio, edl, fcpxml, csv"),
        (["--proxy", "perhaps"], "'auto', 'always', 'never'"),
        (["--from", "10", "--to", "5"], "--from 10 --to 5: it ends before it begins"),
        (["--from", "1:00", "--to", "60"], "it ends before it begins"),
        (["--from", "20f", "--to", "20f"], "it ends before it begins"),
        (["--from", "-1"], "no moment"),
        (["--to", "nan"], "no moment"),
        (["--from", "1:75"], "there is no such time"),
        (["--depth", ""], "--depth '': it is empty"),
        (["--focal", "0"], "--focal 0.0: it is not a number above 0"),
        (["--sensor", "inf"], "--sensor inf"),
        (["--first-frame", "second"], "--first-frame 'second': it is no frame number; give 1, film"),
        (["--plate", "exr"], "'jpg', 'png', 'none'"),
        (["--detektor", "content"], "--detector"),
        (["--config", "none.toml"], "none.toml: No such file"),
    ],
)
def test_an_option_that_means_nothing_is_one_line_and_writes_nothing(archive, tmp_path, capsys, words, line):
    assert main(["analyse", str(archive / "a.mp4"), "-o", str(tmp_path / "out"), *words]) == 2
    out, err = said(capsys)
    assert out == [] and len(err) == 1 and err[0].startswith("primenb: ") and line in err[0] and ";" in err[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["analys"],
        ["analyse"],
        ["analyse", "a.mp4"],
        ["train", "x", "p", "-o", "o"],
        ["analyse", "", "-o", "x"],
        ["analyse", "a.mp4", "-o", ""],
    ],
)
def test_a_call_that_says_too_little_is_one_line(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = said(capsys)
    assert out == [] and len(err) == 1 and list(tmp_path.iterdir()) == []


odd = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    st.floats().map(str),
    st.sampled_from(["1:00:00:00", "5f", "--", "-", "é", "a,b", "nan"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "--parts",
                    "--threshold",
                    "--from",
                    "--to",
                    "--jobs",
                    "--timeline",
                    "--proxy",
                    "--scenes-per-hour",
                    "--min-length",
                    "--detector",
                    "--lens",
                ]
            ),
            odd,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_whatever_the_options_nobody_sees_a_traceback(tmp_path_factory, capsys, options):
    "The film is missing, so what is accepted ends with 1 and what is not with 2: one line each time."
    out = tmp_path_factory.getbasetemp() / "never"
    words = [word for pair in options for word in pair]
    assert main(["analyse", str(out / "no.mp4"), "-o", str(out), *words]) in (1, 2)
    printed, err = said(capsys)
    assert printed == [] and not out.exists()
    assert [line for line in err if not line.startswith("primenb: ")] == [] and err


def test_names_for_the_shell_are_those_of_the_library():
    assert set(cli._DETECTORS) == set(DETECTORS)
    assert {part.name for part in PAGE_PARTS} == set(cli._PARTS)


HEAVY = ("torch", "cv2", "scenedetect", "pandas", "matplotlib", "scipy", "pycolmap")


def shell(words, **environment):
    "What the command prints in a process of its own, and which of the heavy modules it loads."
    program = (
        "import atexit, sys; from primenb.cli import main; "
        f"atexit.register(lambda: print('LOADED', *[m for m in {HEAVY} if m in sys.modules])); "
        f"sys.exit(main({words!r}))"
    )
    env = {**os.environ, "PYTHONPATH": str(project), **environment}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    *lines, loaded = done.stdout.splitlines()
    return done.returncode, lines, loaded


@pytest.mark.parametrize("words", [["--help"], ["analyse", "--help"], ["track", "--help"], ["--version"]])
def test_help_and_version_load_nothing_heavy(words):
    code, lines, loaded = shell(words)
    assert code == 0 and lines and loaded == "LOADED"
    assert [line for line in lines if "╭" in line or "\x1b" in line] == []


def test_the_version_names_what_the_parts_rest_on(monkeypatch, capsys):
    def version(name, real=cli.metadata.version):
        if name == "pycolmap":
            raise cli.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(cli.metadata, "version", version)
    assert main(["--version"]) == 0
    lines, err = said(capsys)
    assert lines[0].startswith("primenb ") and lines[1].startswith("FFmpeg ")
    assert "pycolmap not installed (pip install 'primenb[cameras]')" in lines and not err


@pytest.mark.parametrize(
    "begun, wanted",
    [
        ("primenb analyse --detector tra", ["transitions", "transnetv2"]),
        ("primenb analyse --parts shots,ke", ["shots,keyframes"]),
        ("primenb analyse --timeline otio,e", ["otio,edl"]),
        ("primenb tr", ["track", "train"]),
        ("primenb track --tracker s", ["sift"]),
        ("primenb train mo", ["motion_contrast"]),
    ],
)
def test_the_shell_completes_names(begun, wanted):
    words = begun.split()
    code, lines, loaded = shell([], _PRIMENB_COMPLETE="complete_bash", COMP_WORDS=begun, COMP_CWORD=str(len(words) - 1))
    assert [line for line in lines if line] == wanted and loaded == "LOADED"


def test_the_completion_script_is_printed():
    code, lines, _ = shell(["--show-completion", "bash"], _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert code == 0 and "_PRIMENB_COMPLETE=complete_bash" in "\n".join(lines)


def test_options_reach_the_analysis_under_their_names(archive, tmp_path, monkeypatch, capsys):
    "The parts clips and player may not be there yet; what would be called is looked at."
    called = {}

    def stand_in(path, out, **how):
        called.update(how)
        raise PrimenbError(path, "enough", "stop")

    monkeypatch.setattr(films, "analyse", stand_in)
    words = ["--split", "--timeline", "otio,edl", "--proxy", "never", "--skip-damaged", "--from", "12f", "--to", "1.5"]
    words += ["--focal", "35", "--lens", "-0.1,0"]
    assert main(["analyse", str(archive / "a.mp4"), "-o", str(tmp_path / "o"), "--parts", "keyframes", *words]) == 1
    called.pop("log")
    assert called == dict(
        parts=["keyframes", "clips"],
        timelines=("otio", "edl"),
        proxy="never",
        damaged="skip",
        span=(0.5, 1.5),
        detector="transitions",
        min_length=0.6,
        overwrite=False,
        jobs=1,
        focal=35,
        lens="-0.1,0",
    )


# ---- a file of options


def configured(tmp_path, monkeypatch, text):
    "The keyword arguments that a file of options leads to, and the exit code."
    (tmp_path / "primenb.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    called = {}
    monkeypatch.setattr(films, "analyse", lambda path, out, **how: called.update(how) or 1 / 0)
    return called


def test_a_file_gives_options_and_the_command_line_wins(archive, tmp_path, monkeypatch, capsys):
    text = (
        '[analyse]\ndetector = "content"\nmin-length = 1\nscenes_per_hour = 40\ntimeline = ["otio", "csv"]\nfrom = 1\n'
    )
    called = configured(tmp_path, monkeypatch, text + 'out = "there"\nskip-damaged = true\n[train]\ndevice = "cpu"\n')
    main(["analyse", str(archive / "a.mp4"), "--detector", "hash"])
    assert (called["detector"], called["min_length"], called["scenes_per_hour"]) == ("hash", 1, 40)
    assert called["timelines"] == ("otio", "csv") and called["span"] == (1.0, 2.0) and called["damaged"] == "skip"
    assert "options: primenb.toml" in said(capsys)[1]
    main(["analyse", str(archive / "a.mp4"), "--quiet"])
    assert "options: primenb.toml" not in said(capsys)[1]


def test_a_file_may_begin_with_a_mark(archive, tmp_path, monkeypatch):
    called = configured(tmp_path, monkeypatch, '\ufeff[analyse]\ndetector = "content"\nout = "there"\n')
    main(["analyse", str(archive / "a.mp4")])
    assert called["detector"] == "content"


@pytest.mark.parametrize("code, place", [(errno.ENOSPC, "there"), (errno.EIO, "a.mp4")])
def test_a_full_disk_is_that_of_the_report(archive, tmp_path, monkeypatch, code, place):
    def full(path, out, **how): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(films, "analyse", full)
    outcome = films.analyse_film(archive / "a.mp4", tmp_path / "there")
    assert Path(outcome.error.what).name == place


@pytest.mark.parametrize(
    "text, line",
    [
        ("[analyse]\ndetektor = 'hash'", "primenb.toml: [analyse] has no option 'detektor'; did you mean detector?"),
        ("[analyze]\ndetector = 'hash'", "no command [analyze]; did you mean analyse?"),
        ("analyse = 3", "analyse is no table"),
        ("[analyse]\nmin-length = 'soon'", "primenb.toml, min-length: 'soon' is not a number"),
        ("[analyse]\njobs = 1.5", "jobs: 1.5 is not a whole number"),
        ("[analyse]\njobs = true", "jobs: True is not a whole number"),
        ("[analyse]\nsplit = 1", "split: 1 is not true or false"),
        ("[analyse]\nparts = [1]", "parts: [1] is not a text"),
        (
            "[analyse]\ndetector = 'hahs'",
            "primenb.toml, [analyse]: --detector 'hahs': 'hahs' is not known; did you mean",
        ),
        ("[analyse]\nthreshold = nan", "primenb.toml, [analyse]: threshold nan: it is not a number"),
        ("[analyse\n", "primenb.toml: it is not TOML"),
        ("[analyse]\ndetector = 'é", "it is not TOML"),
    ],
)
def test_a_slip_in_the_file_names_the_file_and_the_key(archive, tmp_path, monkeypatch, capsys, text, line):
    configured(tmp_path, monkeypatch, text)
    assert main(["analyse", str(archive / "a.mp4"), "-o", "out"]) == 2
    out, err = said(capsys)
    assert len(err) == 1 and line in err[0] and not out and not (tmp_path / "out").exists()


# ---- moments


@pytest.mark.parametrize(
    "text, moment",
    [
        ("12.5", ("seconds", 12.5)),
        ("1:02", ("seconds", 62.0)),
        ("1:00:02.5", ("seconds", 3602.5)),
        ("90:00", ("seconds", 5400)),
        ("240f", ("frame", 240)),
        ("01:00:00:00", ("timecode", "01:00:00:00")),
        ("00:01:00;02", ("timecode", "00:01:00;02")),
    ],
)
def test_moments_are_read(text, moment):
    assert read_moment(text) == moment


@given(st.floats(0, 1e6).map(lambda s: round(s, 3)))
def test_a_time_in_any_writing_is_the_same(seconds):
    whole, rest = divmod(seconds, 60)
    for text in (
        f"{seconds:.3f}",
        f"{int(whole)}:{rest:06.3f}",
        f"{int(whole) // 60}:{int(whole) % 60:02}:{rest:06.3f}",
    ):
        if rest < 59.9995:
            assert read_moment(text)[1] == pytest.approx(seconds, abs=2e-3)


def test_a_range_by_timecode_and_by_frames_is_that_of_the_frames(tmp_path):
    path = film(tmp_path / "a.mp4", rate=30000 / 1001, seconds=3)
    for first, stop in ((0, 10), (7, 61), (30, 89)):
        labels = [timecode(n, 30, False) for n in (first, stop)]
        assert film_span((f"{first}f", f"{stop}f"), path) == film_span(tuple(labels), path)
    with pytest.raises(PrimenbError, match="is not in it: it begins at 00:00:00;00"):
        film_span(("01:00:00:00", None), path)
    with pytest.raises(PrimenbError, match="there is nothing"):
        film_span(("50f", "00:00:01:00"), path)
    lines = []
    assert film_span((None, 60), path, lines.append)[1] == pytest.approx(3, abs=0.1) and "it ends at" in lines[0]


def test_a_range_counts_on_the_films_own_timecode():
    path = project / "tests/media/tc.mov"
    first = probe(path).timecode
    assert film_span((first, None), path)[0] == 0 and not first.startswith("00:")
    clock = film_clock(None, probe(path))
    label = timecode(clock.first + 12, clock.rate, clock.drop)
    assert film_span((label, None), path) == film_span(("12f", None), path)


@pytest.mark.parametrize("first", ["00:59:58;00", "00:59:58:00"])
def test_a_timecode_is_counted_as_the_film_counts(tmp_path, first):
    path, rate = tmp_path / "a.mov", Fraction(30000, 1001)
    with av.open(str(path), "w") as out:
        out.metadata["timecode"] = first
        video = out.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for n in range(150):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), n, np.uint8), "rgb24")))
        out.mux(video.encode())
    label = timecode(frame_of_timecode(first, rate) + 70, rate, ";" in first)
    for written in (label, label.replace(";", ":"), ";".join(label.replace(";", ":").rsplit(":", 1))):
        assert film_span((written, None), path) == film_span(("70f", None), path)


# ---- many films


def test_the_films_of_a_folder_are_found_and_the_rest_is_counted(archive, tmp_path):
    found = find_films([archive, archive / "a.mp4", archive / "s1" / ".." / "a.mov"])
    names = sorted(path.relative_to(archive).as_posix() for path in found.films)
    assert names == ["a.mov", "a.mp4", "cut.mp4", "s1/e01.mp4", "s2/e01.mp4"]
    assert found.others == {".srt": 1, ".jpg": 1} and not found.failed and not found.reports
    (tmp_path / "empty/.git").mkdir(parents=True)
    film(tmp_path / "empty/.git/x.mp4")
    with pytest.raises(PrimenbError, match="there are no film files"):
        find_films([tmp_path / "empty"])
    with pytest.raises(PrimenbError, match="both"):
        find_films([archive], archive)
    assert {".mp4", ".mkv", ".mxf", ".ts", ".webm"} <= set(FILM_ENDINGS)


def test_a_folder_with_a_bad_film(archive, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["analyse", str(archive), "-o", str(out), *FAST]) == 1
    lines, err = said(capsys)
    assert lines[-1] == str(out / "index.html")
    names = ["a.mov", "a.mp4", "s1-e01", "s2-e01"]
    assert lines[:-1] == [str(out / name / "report.html") for name in names]
    assert "2 other files were left alone: .jpg, .srt" in err
    assert [line for line in err if line.startswith(f"primenb: {archive / 'cut.mp4'}: ") and ";" in line]
    assert any(line.startswith("s1-e01: shots:") for line in err)
    page = (out / "index.html").read_text()
    assert "cut.mp4" in page and all(f'href="{name}/report.html"' in page for name in names)
    assert main(["analyse", str(archive), "-o", str(out), *FAST]) == 1  # again: nothing is done twice
    _, err = said(capsys)
    assert [line for line in err if line.split(": ")[-1] not in ("done before",)] != err
    assert not [line for line in err if line.endswith(" s")]


def test_reports_keep_their_folders_when_films_are_added(tmp_path):
    top, out = tmp_path / "films", tmp_path / "films/reports"
    film(top / "a.mp4", 1)
    film(top / "x/b.mp4", 2)

    def places(*paths):
        found = find_films(paths or [top], out)
        return {
            o.path: o.report.parent.name for o in analyse_films(found.films, out, parts=["shots"], detector="content")
        }

    first = places()
    assert sorted(first.values()) == ["a", "x-b"]
    film(top / "a.mov", 3)
    film(top / "0/a.mp4", 4)
    film(tmp_path / "other/a.mp4", 5)
    second = places(top, tmp_path / "other")
    assert first.items() <= second.items() and len(set(second.values())) == 5
    assert second[top / "a.mov"] == "a.mov" and second[top / "0/a.mp4"] == "0-a"
    assert places(top, tmp_path / "other") == second
    (top / "a.mov").unlink()
    assert places(tmp_path / "other", top).items() <= second.items()


def test_a_folder_of_reports_is_not_mixed_with_others(archive, tmp_path, capsys):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(PrimenbError, match="not written by primenb"):
        analyse_films([archive / "a.mp4"], tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine"
    single = analyse(archive / "a.mp4", tmp_path / "r", parts=["shots"], detector="content").out
    with pytest.raises(PrimenbError, match="a single film"):
        analyse_films([archive / "a.mp4"], single)


def test_a_film_named_twice_is_one_film(archive, tmp_path, capsys):
    path = str(archive / "a.mp4")
    assert main(["analyse", path, path, "-o", str(tmp_path / "r"), *FAST]) == 0
    assert said(capsys)[0] == [str(tmp_path / "r/report.html")]


def test_json_is_all_there_is_on_standard_output(archive, tmp_path, capsys):
    words = [
        "analyse",
        str(archive / "a.mp4"),
        str(archive / "cut.mp4"),
        "-o",
        str(tmp_path / "o"),
        "--json",
        "--quiet",
    ]
    assert main([*words, *FAST]) == 1
    out = capsys.readouterr()
    good, bad = (facts := json.loads(out.out))["films"]
    assert facts["index"] == str(tmp_path / "o/index.html")
    assert good["report"] == str(tmp_path / "o/a/report.html") and good["shots"] == 2 and good["error"] is None
    assert bad["report"] is None and "cut.mp4" in bad["error"] and good["scenes"] is None
    keys = {"path", "report", "shots", "scenes", "seconds", "problems", "notes", "error"}
    assert keys <= set(good) == set(bad)
    assert out.err.splitlines() == [f"primenb: {bad['error']}"]


def test_two_at_a_time_give_the_same_tables(archive, tmp_path, capsys):
    for jobs in ("1", "2"):
        assert main(["analyse", str(archive), "-o", str(tmp_path / jobs), "--jobs", jobs, *FAST]) == 1
    lines, err = said(capsys)
    tables = [
        {f.relative_to(tmp_path / jobs): f.read_bytes() for f in (tmp_path / jobs).rglob("shots.csv")} for jobs in "12"
    ]
    assert tables[0] == tables[1] and len(tables[0]) == 4
    assert len([line for line in err if "cut.mp4" in line]) == 2


killed = """
import os, signal
from primenb.film import films
def analyse_or_die(path, out, say, **how):
    if "s1" in str(path): os.kill(os.getpid(), signal.SIGKILL)
    return films.analyse_film(path, out, say, **how)
def job(path, out, settings, say): return analyse_or_die(path, out, say, **settings)
"""


def test_a_process_that_is_killed_fails_its_film_alone(archive, tmp_path, monkeypatch):
    (tmp_path / "killed_job.py").write_text(killed)
    monkeypatch.syspath_prepend(tmp_path)
    import killed_job

    monkeypatch.setattr(films, "_job", killed_job.job)
    found = find_films([archive])
    outcomes = analyse_films(found.films, tmp_path / "o", jobs=2, parts=["shots"], detector="content")
    errors = {o.path.relative_to(archive).as_posix(): o.error for o in outcomes if o.error}
    assert set(errors) == {"cut.mp4", "s1/e01.mp4"}
    assert "killed (signal 9)" in str(errors["s1/e01.mp4"]) and "memory" in str(errors["s1/e01.mp4"])
    assert "killed (signal 9)" in (tmp_path / "o/index.html").read_text()
    monkeypatch.undo()
    outcomes = analyse_films(found.films, tmp_path / "o", jobs=1, parts=["shots"], detector="content")
    assert [o.path.name for o in outcomes if o.error] == ["cut.mp4"]


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_ends_soon_and_goes_on(tmp_path, jobs, stop):
    for n in range(3):
        film(tmp_path / f"films/f{n}.mp4", n, seconds=20)
    out = tmp_path / "out"
    words = [sys.executable, "-m", "primenb.cli", "analyse", tmp_path / "films", "-o", out, "--jobs", jobs]
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        list(map(str, words)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen,
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
    )
    line = process.stderr.readline()
    assert "shots:" in line
    began = time.monotonic()
    process.send_signal(stop)
    out_text, messages = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[stop] and time.monotonic() - began < 30
    assert messages.splitlines()[-1] == "primenb: stopped; the same command continues" and "Traceback" not in messages
    assert "no page" in (out / "index.html").read_text()
    left = [f for f in out.rglob(".*") if f.is_file() and jobs == "1"]
    assert left == []
    words += ["--quiet"]
    done = subprocess.run(
        list(map(str, words)),
        capture_output=True,
        text=True,
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
    )
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 4
    assert [f for f in out.rglob(".*") if f.is_file()] == []


# ---- a report's folder


def parts_that(do):
    "One part that does something in the middle of its work."

    def make(report):
        do(report)
        return {}

    return [Part("odd", make, lambda report: "", files=("odd.txt",))]


def test_the_second_process_in_a_folder_says_who_works_there(archive, tmp_path):
    def second(report):
        with pytest.raises(PrimenbError, match=f"process {os.getpid()} on .* works in it"):
            analyse(archive / "a.mp4", tmp_path / "r")

    analyse(archive / "a.mp4", tmp_path / "r", available=parts_that(second))
    assert not (tmp_path / "r/.lock").exists()


def test_what_a_killed_process_left_is_cleared_away(archive, tmp_path):
    out = tmp_path / "r"
    out.mkdir()
    (out / ".lock").write_text("process 1 on nowhere")
    (out / ".film.4711-0a1b2c.json").write_text("{")
    report = analyse(archive / "a.mp4", out, parts=["shots"], detector="content")
    assert [f.name for f in report.out.glob(".*")] == []
    (out / "keyframes").mkdir()
    (out / "keyframes/.0000-1.99-abcdef.jpg").touch()
    (out / ".mine").touch()
    analyse(archive / "a.mp4", out, parts=["shots"], detector="content")
    assert [f.name for f in out.rglob(".*")] == [".mine"]


def test_a_film_that_fails_leaves_no_folder(archive, tmp_path):
    with pytest.raises(PrimenbError):
        analyse(archive / "cut.mp4", tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["rewritten", "replaced", "gone"])
def test_a_film_that_is_replaced_in_the_middle_is_an_error(archive, tmp_path, how):
    path = Path(shutil.copy(archive / "a.mp4", tmp_path / "a.mp4"))

    def replace(report):
        other = path.read_bytes()[:-1] + b"x"
        if how == "gone":
            path.unlink()
        elif how == "rewritten":
            path.write_bytes(other)
        else:
            (tmp_path / "new").write_bytes(other)
            os.replace(tmp_path / "new", path)

    with pytest.raises(PrimenbError, match="replaced or changed while"):
        analyse(path, tmp_path / "r", available=parts_that(replace))
    assert json.loads((tmp_path / "r/film.json").read_text())["parts"] == {}


def test_a_film_that_is_only_touched_is_the_same(archive, tmp_path):
    path = Path(shutil.copy(archive / "a.mp4", tmp_path / "a.mp4"))
    analyse(path, tmp_path / "r", available=parts_that(lambda report: os.utime(path, (1, 1))))


def test_a_changed_report_is_named(archive, tmp_path):
    words = dict(parts=["shots"], detector="content")
    out = analyse(archive / "a.mp4", tmp_path / "r", **words).out
    whole = (out / "film.json").read_text(), (out / "shots.csv").read_text()
    (out / "shots.csv").write_text(whole[1].replace("none", "<script>"))
    with pytest.raises(PrimenbError, match="shots.csv: it is missing, or was changed"):
        analyse(archive / "a.mp4", out, **words)
    (out / "shots.csv").write_text(whole[1])
    analyse(archive / "a.mp4", out, **words)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_film_json_is_named(archive, tmp_path_factory, data):
    top = tmp_path_factory.getbasetemp() / "damaged"
    words = dict(parts=["shots"], detector="content")
    if not top.exists():
        analyse(archive / "a.mp4", top / "r", **words)
    state, kept = top / "r/film.json", top / "film.json"
    if not kept.exists():
        shutil.copy(state, kept)
    text = bytearray(kept.read_bytes())
    at = data.draw(st.integers(0, len(text) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda b: b != text[at]))
    text[at] = new
    state.write_bytes(text)
    if bytes(text).split() == kept.read_bytes().split():
        return  # only its layout
    try:
        same = json.loads(text) == json.loads(kept.read_bytes())
    except ValueError:
        same = False
    if same:
        return
    if b'"seal"' in text:
        with pytest.raises(PrimenbError, match="film.json: it is damaged, or was changed"):
            analyse(archive / "a.mp4", top / "r", **words)
    page = write_index(top).read_text()
    assert "film.json" in page or "begin anew" in page or b'"seal"' not in text


def test_names_that_are_no_text_are_one_line(archive, tmp_path, capsys):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")
    shutil.copy(archive / "a.mp4", path)
    assert main(["analyse", path, "-o", str(tmp_path / "o")]) == 1
    assert said(capsys)[1] == [f"primenb: {tmp_path}/\\xff.mp4: the name is not UTF-8; rename it"]
    assert main(["analyse", str(archive / "a.mp4"), "-o", os.fsdecode(os.fsencode(tmp_path) + b"/\xfe")]) == 1
    assert said(capsys)[1] == [f"primenb: {tmp_path}/\\xfe: the name is not UTF-8; rename it"]
    assert main(["analyse", str(tmp_path), "-o", str(tmp_path / "o")]) == 1
    assert "\\xff.mp4" in (tmp_path / "o/index.html").read_text()


# ---- the page


@pytest.fixture(scope="module")
def pages(archive, tmp_path_factory):
    top = tmp_path_factory.mktemp("pages")
    odd = shutil.copy(archive / "a.mp4", top / "<b>&\"'%20 #?ü.mp4")
    analyse_films([*find_films([archive]).films, Path(odd)], top / "out", parts=["keyframes"], detector="content")
    return top / "out"


def test_names_on_the_page_are_escaped(pages):
    text = (pages / "index.html").read_text()
    assert (
        '<b>&"' not in text and "&lt;b&gt;&amp;" in text and "%3Cb%3E%26%22%27%2520%20%23%3F%C3%BC/report.html" in text
    )


def test_a_card_says_what_its_own_film_lacks(archive, tmp_path):
    for name in ("a", "b"):
        analyse(archive / "a.mp4", tmp_path / name, parts=["keyframes"], detector="content")
    (tmp_path / "b/report.html").unlink()
    whole, lacking = write_index(tmp_path).read_text().split("<article")[1:]
    lines = lambda card: card.count("<p>")
    assert lines(whole) == 1 and lines(lacking) == 2 and "<p>no page: " in lacking


@pytest.mark.slow
@pytest.mark.parametrize("width", [1360, 390])
def test_the_page_in_a_browser(pages, browser, width):
    page = browser.new_page(viewport=dict(width=width, height=900))
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    def failed(request):
        if "ABORTED" not in (request.failure or ""): errors.append(request.url)  # the film, when the page is closed

    page.on("requestfailed", failed)
    page.goto((pages / "index.html").as_uri())
    assert page.locator("article").count() == 5 and "cut.mp4" in page.locator(".notes").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for n in range(page.locator("article img").count()):
        page.locator("article img").nth(n).scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(i => i.complete)")
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    page.locator("article h2 a").first.click()
    assert page.url.endswith("report.html") and page.locator("h1").count() == 1
    page.close()
    assert errors == []
