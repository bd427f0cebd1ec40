"What browsers play, asked of a browser, and proxies: every frame at its time, upright, with sound, in pieces."
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

from conftest import project
from primenb.core import PrimenbError
from primenb.media import players
from primenb.media.players import browser_plays, save_proxy
from primenb.media.video import frame_times, iter_frames, probe, read_audio, read_frames

real_folders = ("codecs", "film_clips", "static_camera", "motion_vectors")
endings = (".mp4", ".mkv", ".avi", ".webm", ".mov", ".gif", ".264")

PLAY = """([src, at]) => new Promise(done => {
  const video = document.createElement('video');
  let last = -1, timer = setTimeout(() => done({state: 'silent'}), 20000);
  const look = (now, shown) => { last = shown.mediaTime; video.requestVideoFrameCallback(look); };
  const answer = state => { clearTimeout(timer); done(state); };
  const seen = () => last < 0 ? setTimeout(seen, 50) : answer({state: 'played', width: video.videoWidth,
    height: video.videoHeight, duration: video.duration, shown: last, now: video.currentTime});
  video.muted = true;
  video.preload = 'auto';
  document.body.replaceChildren(video);
  video.requestVideoFrameCallback(look);
  video.onerror = () => answer({state: video.error.message});
  const jump = waits => {  // once the first frame is on the screen, which a busy machine shows late
    if (last < 0 && waits > 0) return setTimeout(jump, 50, waits - 1);
    last = -1;
    video.onseeked = () => setTimeout(seen, 200);
    video.currentTime = at;
  };
  video.onloadeddata = () => jump(60);
  video.src = src; })"""


@pytest.fixture(scope="module")
def play(browser, tmp_path_factory):
    "Plays a film in a page that is a file: what the browser says after a jump to a time."
    html = tmp_path_factory.mktemp("page") / "page.html"
    html.write_text("<body></body>")
    page = browser.new_page()
    page.goto(html.as_uri())
    yield lambda film, at: page.evaluate(PLAY, [film.resolve().as_uri(), at])
    page.close()


def check_plays(play, film):
    "The browser shows the film's size and length, and in the middle the frame that the library has there."
    info, times = probe(film), frame_times(film)
    n = len(times) // 2
    following = times[n + 1] if n + 1 < len(times) else info.duration
    seen = play(film, info.offset + (times[n] + following) / 2)
    assert seen["state"] == "played", (film.name, seen)
    assert (seen["width"], seen["height"]) == (info.width, info.height), film.name
    assert seen["shown"] - info.offset == pytest.approx(times[n], abs=2e-3), film.name
    longer = seen["duration"] - info.offset - info.duration  # sound may go on after the images
    unsure = info.duration - times[-1] if info.variable else 0  # how long the last image is shown
    assert -2e-3 - unsure < longer < (1 if info.audio else 2e-3), film.name


def mux_image(file, stream, image, seconds, duration=0.04):
    frame = av.VideoFrame.from_ndarray(image, "rgb24")
    frame.pts, frame.time_base = round(seconds * 90000), Fraction(1, 90000)
    frame.duration = round(duration * 90000)
    file.mux(stream.encode(frame))


def picture(n, width=64, height=36):
    "An image with a bright bar whose place says its number, brighter at the top left."
    image = np.full((height, width, 3), 60, np.uint8)
    image[:, (3 * n) % width :][:, :6] = 220
    image[: height // 3, : width // 4] = (250, 120, 30)
    return image


def film_of(path, times=None, *, size=(64, 36), codec="libx264", sound=None, late=0.0, turn=0, aspect=None,
            options=None, header=None, pix_fmt="yuv420p", clicks=(), seconds=None):
    "A film with frames at these times and, `late` seconds after them, sound with clicks at times of the images."
    times = [n / 25 for n in range(50)] if times is None else times
    with av.open(str(path), "w", options=header or {}) as file:
        video = file.add_stream(codec, rate=25, width=size[0], height=size[1], pix_fmt=pix_fmt, options=options or {})
        video.codec_context.time_base = Fraction(1, 90000) if codec != "mpeg4" else Fraction(1, 25)
        if turn: video.set_display_rotation(turn)
        if aspect: video.codec_context.sample_aspect_ratio = aspect
        voice = file.add_stream(sound, rate=48000, layout="stereo") if sound else None
        for n, second in enumerate(times): mux_image(file, video, picture(n, *size), second)
        file.mux(video.encode())
        if voice: mux_clicks(file, voice, clicks, late, seconds or times[-1])
    return path


def mux_clicks(file, voice, clicks, late, seconds):
    samples = np.zeros((2, round((seconds - late) * 48000)), np.float32)
    for click in clicks: samples[:, round((click - late) * 48000) :][:, :300] = np.linspace(0.7, 0, 300)
    samples[1] *= 0.5
    frame = av.AudioFrame.from_ndarray(samples, "fltp", "stereo")
    frame.sample_rate, frame.pts = 48000, round(late * 48000)
    frame.time_base = Fraction(1, 48000)
    file.mux(voice.encode(frame))
    file.mux(voice.encode())


def heard(path):
    return np.abs(read_audio(path, rate=48000)).argmax() / 48000


def check_proxy(film, proxy, least=26):
    "The proxy has the film's frames, as shown, at their times, and browsers play it."
    info, copy = probe(film), probe(proxy)
    assert browser_plays(proxy) == ""
    assert np.abs(frame_times(proxy) - frame_times(film)).max() < 1e-3
    assert copy.duration == pytest.approx(info.duration, abs=1.1e-3) and copy.offset < 1e-3
    assert len(copy.audio) == min(len(info.audio), 1) and copy.width % 2 == copy.height % 2 == 0
    assert copy.width / copy.height == pytest.approx(info.width / info.height, abs=3 / copy.height)
    size = copy.width, copy.height
    for a, b in zip(iter_frames(film, size=size), iter_frames(proxy)):
        error = np.mean((a.image.astype(float) - b.image) ** 2)
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > least, (film.name, a.number)


# What browsers play


def test_the_answers_for_real_films(real):
    films = [f for name in real_folders for f in sorted((real / name).iterdir()) if f.suffix in endings]
    causes = {film.name: browser_plays(film) for film in films}
    assert len(films) > 40 and sum(not cause for cause in causes.values()) > 10
    assert {cause for name, cause in causes.items() if "265" in name} == {"browsers do not play HEVC everywhere"}
    assert causes["testsrc2_mpeg4.avi"] == "its container is AVI (Audio Video Interleaved) and its ending .avi"
    assert causes["testsrc2_mpeg4.mp4"] == "browsers do not play MPEG-4 part 2"
    assert causes["testsrc2_odd_height_444.mp4"] == "its pixel format is yuv444p"
    assert causes["h264_10bits.mp4"] == causes["testsrc2_av1_10bit.mp4"] == "its samples have 10 bit"
    assert causes["nasa_13013.mp4"] == "it has 2 video streams"
    assert causes["test_non_zero_start.mp4"].startswith("its clock begins at")
    assert causes["bikes.mp4"] == causes["testsrc2_vp8.webm"] == causes["nasa_13013_rotated.mp4"] == ""


def test_real_films_play_where_the_answer_says_so(real, play):
    films = [f for name in real_folders for f in sorted((real / name).iterdir()) if f.suffix in endings]
    for film in films:
        if not browser_plays(film): check_plays(play, film)


made = {  # name -> how it is made; all of these play
    "plain.mp4": dict(), "plain.mov": dict(), "plain.m4v": dict(),
    "sound.mp4": dict(sound="aac", seconds=2.0), "late_sound.mp4": dict(sound="aac", late=0.7, seconds=2.0),
    "late_images.mp4": dict(times=[3 + n / 25 for n in range(50)], sound="aac"),
    "flac.mp4": dict(sound="flac", seconds=2.0), "mp3.mp4": dict(sound="libmp3lame", seconds=2.0),
    "b.mp4": dict(options=dict(bf="3", g="20")), "turned.mp4": dict(turn=90), "wide.mp4": dict(aspect=Fraction(4, 3)),
    "fragments.mp4": dict(header=dict(movflags="frag_keyframe+empty_moov+default_base_moof"),
    options=dict(bf="0")),
    "slides.mp4": dict(times=[0, 0.04, 0.34, 0.5, 0.9]), "one.mp4": dict(times=[0.0]),
    "opus.webm": dict(codec="libvpx-vp9", sound="libopus", seconds=2.0),
    "vp8.webm": dict(codec="libvpx", sound="libopus", seconds=2.0), "av1.mp4": dict(codec="libsvtav1"),
    "odd.webm": dict(codec="libvpx-vp9", size=(63, 35))}


@pytest.mark.parametrize("name", made)
def test_made_films_play(tmp_path, play, name):
    film = film_of(tmp_path / name, **made[name])
    assert browser_plays(film) == ""
    check_plays(play, film)


@pytest.mark.parametrize("name, how, cause", [
    ("a.mkv", dict(), "its container is Matroska / WebM and its ending .mkv"),
    ("a.ts", dict(), "its container is MPEG-TS (MPEG-2 Transport Stream) and its ending .ts"),
    ("hevc.mp4", dict(codec="libx265", options={"x265-params": "log-level=error"}), "HEVC"),
    ("ac3.mp4", dict(sound="ac3", seconds=2.0), "its sound is ATSC A/52A (AC-3)"),
    ("pcm.mov", dict(sound="pcm_s16le", seconds=2.0), "its sound is PCM signed 16-bit little-endian"),
    ("444.mp4", dict(pix_fmt="yuv444p"), "its pixel format is yuv444p"),
    ("lossless.mp4", dict(options=dict(qp="0")), "its profile of h264 is High 4:4:4 Predictive"),
    ("fields.mp4", dict(options={"x264-params": "tff=1"}), "it is interlaced")])
def test_causes(tmp_path, name, how, cause):
    assert cause in browser_plays(film_of(tmp_path / name, **how))


def test_causes_of_times_and_damage(tmp_path):
    assert "it hides images" in browser_plays(project / "tests/media/trimmed.mp4")
    film = film_of(tmp_path / "a.webm", codec="libvpx-vp9", times=[n / 25 for n in range(100)], options=dict(g="10"))
    cut = tmp_path / "cut.webm"
    cut.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    assert "it is damaged" in browser_plays(cut)
    renamed = tmp_path / "renamed.webm"
    renamed.write_bytes(film_of(tmp_path / "a.mkv", codec="libvpx-vp9").read_bytes())
    assert "Matroska under the ending of WebM" in browser_plays(renamed)
    text = tmp_path / "a.mp4"
    text.write_text("no film")
    with pytest.raises(PrimenbError, match="a.mp4: it is a text"): browser_plays(text)


# Proxies

films = {  # name -> how it is made
    "plain.mp4": dict(), "b.mp4": dict(options=dict(bf="3", g="20")), "a.mkv": dict(sound="flac", seconds=2.0),
    "steps.mp4": dict(times=[n * n / 400 for n in range(40)]), "slides.mkv": dict(times=[0, 0.04, 1, 1.5, 4]),
    "turned.mp4": dict(turn=90), "upside.mp4": dict(turn=180), "wide.mp4": dict(aspect=Fraction(64, 45)),
    "odd.webm": dict(codec="libvpx-vp9", size=(63, 35)), "one.mp4": dict(times=[0.0]), "a.gif": dict(codec="gif",
    pix_fmt="rgb8"), "ten.mp4": dict(pix_fmt="yuv420p10le"), "a.ts": dict(times=[9 + n / 25 for n in range(50)]),
    "late.mp4": dict(times=[3 + n / 25 for n in range(50)], sound="aac"), "a.avi": dict(codec="mpeg4"),
    "narrow.mp4": dict(size=(640, 18))}


@pytest.mark.parametrize("name", films)
def test_proxies_are_the_film(tmp_path, play, name):
    film = film_of(tmp_path / name, **films[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proxy = save_proxy(film, tmp_path / "proxy.mp4")
    check_proxy(film, proxy, least=19 if name == "a.gif" else 26)  # a GIF of 256 colours is dithered
    check_plays(play, proxy)


@pytest.mark.parametrize("name", ["bt2020_10bit.mp4", "testsrc2_hdr.mp4", "nasa_13013_rotated.mp4", "gradient.gif",
                                  "testsrc2_odd_height_and_width_444_10bit.mp4", "test_non_zero_start.mp4"])
def test_proxies_of_real_films(real, tmp_path, play, name):
    proxy = save_proxy(real / "codecs" / name, tmp_path / "proxy.mp4", height=180)
    check_proxy(real / "codecs" / name, proxy, least=24)
    check_plays(play, proxy)


@pytest.mark.parametrize("name, how", [
    ("a.mp4", dict(sound="aac")), ("late.mp4", dict(sound="aac", late=0.8)), ("a.mkv", dict(sound="flac", late=0.5)),
    ("images_late.mp4", dict(sound="aac", times=[1.5 + n / 25 for n in range(100)])),
    ("a.ts", dict(sound="ac3", times=[1.4 + n / 25 for n in range(100)])), ("a.avi", dict(codec="mpeg4",
    sound="libmp3lame"))])
def test_sound_stays_in_step(tmp_path, name, how):
    film = film_of(tmp_path / name, **{"times": [n / 25 for n in range(100)]} | how, clicks=[3.2], seconds=5.0)
    proxy = save_proxy(film, tmp_path / "proxy.mp4")
    first = how.get("times", [0])[0]
    assert heard(film) == pytest.approx(3.2 - first, abs=0.03)
    assert heard(proxy) == pytest.approx(heard(film), abs=0.005)
    with av.open(str(proxy)) as file:
        left, right = np.concatenate([f.to_ndarray() for f in file.decode(audio=0)], 1)
    assert np.abs(left).max() == pytest.approx(2 * np.abs(right).max(), rel=0.1)


def test_key_frames_each_second_and_the_index_first(tmp_path):
    proxy = save_proxy(film_of(tmp_path / "a.mp4", [n / 25 for n in range(100)]), tmp_path / "p.mp4")
    with av.open(str(proxy)) as file:
        keys = [float(p.pts * p.time_base) for p in file.demux(video=0) if p.size and p.is_keyframe]
    data = proxy.read_bytes()
    assert max(np.diff(keys)) <= 1 and data.index(b"moov") < data.index(b"mdat")


@pytest.fixture
def short_pieces(monkeypatch):
    "Pieces of a second instead of a minute."
    edges = players._edges
    monkeypatch.setattr(players, "_edges", lambda index: edges(index, 1.0))


class Stopped(Exception): pass


def test_an_interrupted_run_goes_on(tmp_path, short_pieces, monkeypatch):
    film = film_of(tmp_path / "a.mp4", [n / 25 + n % 3 / 100 for n in range(110)], options=dict(g="40", bf="2"))
    whole = save_proxy(film, tmp_path / "whole.mp4")
    numbers = []

    def counted(path, stop_at, **how):
        for frame in iter_frames(path, **how):
            if frame.number == stop_at: raise Stopped
            numbers.append(frame.number)
            yield frame

    monkeypatch.setattr(players, "iter_frames", lambda path, **how: counted(path, 60, **how))
    with pytest.raises(Stopped): save_proxy(film, tmp_path / "p.mp4", partial=tmp_path / "pieces")
    assert not (tmp_path / "p.mp4").exists() and len(list((tmp_path / "pieces").iterdir())) == 2
    finished = {file: file.stat().st_mtime_ns for file in (tmp_path / "pieces").iterdir()}
    numbers.clear()
    monkeypatch.setattr(players, "iter_frames", lambda path, **how: counted(path, -1, **how))
    proxy = save_proxy(film, tmp_path / "p.mp4", partial=tmp_path / "pieces")
    assert numbers == list(range(50, 110)) and len(list((tmp_path / "pieces").iterdir())) == 5
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert (frame_times(proxy) == frame_times(whole)).all()
    assert (read_frames(proxy) == read_frames(whole)).all()
    check_proxy(film, proxy)
    numbers.clear()
    save_proxy(film, tmp_path / "smaller.mp4", height=24, partial=tmp_path / "pieces")  # other settings, other pieces
    assert len(numbers) == 110 and probe(tmp_path / "smaller.mp4").height == 24


def spoiled(film, path, first, stop):
    "The film with zeros instead of the data of some packets."
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as file:
        for n, packet in enumerate(file.demux(video=0)):
            if first <= n < stop: data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    return path


def test_damaged_films(tmp_path, short_pieces):
    options = dict(g="25", bf="0", sc_threshold="1000000000")
    film = film_of(tmp_path / "a.mp4", [n / 25 for n in range(100)], codec="mpeg4", options=options)
    broken = spoiled(film, tmp_path / "broken.mp4", 25, 50)  # no frame of one piece is left
    with pytest.raises(PrimenbError, match="frame 25 at 1.00 s cannot be decoded"):
        save_proxy(broken, tmp_path / "p.mp4")
    assert not (tmp_path / "p.mp4").exists()
    with pytest.warns(UserWarning, match="25 of 100 frames cannot be decoded; the proxy has what is whole"):
        proxy = save_proxy(broken, tmp_path / "p.mp4", damaged="skip", partial=tmp_path / "pieces")
    with pytest.warns(UserWarning, match="what is whole was read"):
        times = [frame.time for frame in iter_frames(broken, damaged="skip")]
    assert len(times) == 75 and np.abs(frame_times(proxy) - times).max() < 1e-3
    with pytest.warns(UserWarning, match="the proxy has what is whole"):  # from finished pieces
        save_proxy(broken, proxy, damaged="skip", partial=tmp_path / "pieces")


def test_joined_recordings(tmp_path, play):
    one = film_of(tmp_path / "one.ts", options=dict(bf="3"), sound="ac3", clicks=[1.2], seconds=2.0).read_bytes()
    film = tmp_path / "joined.ts"
    film.write_bytes(one + one)
    proxy = save_proxy(film, tmp_path / "p.mp4")
    check_proxy(film, proxy)
    check_plays(play, proxy)
    loud = np.abs(read_audio(film, rate=48000)) > 0.2
    assert (np.abs(read_audio(proxy, rate=48000)) > 0.2).nonzero()[0][[0, -1]] == pytest.approx(
        loud.nonzero()[0][[0, -1]], abs=300)


def test_names(tmp_path):
    film = film_of(tmp_path / "ü [1] %d.mp4")
    with pytest.raises(PrimenbError, match="it is the film itself"): save_proxy(film, film)
    with pytest.raises(PrimenbError, match="a proxy is an MP4"): save_proxy(film, tmp_path / "a.webm")
    with pytest.raises(PrimenbError, match="its height would be 0"): save_proxy(film, tmp_path / "a.mp4", height=0)
    assert [file.name for file in tmp_path.iterdir()] == [film.name]
    check_proxy(film, save_proxy(film, tmp_path / "new folder" / "a.mp4"))
