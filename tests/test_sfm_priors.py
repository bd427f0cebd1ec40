"Depth priors: sampled as by a slow loop, exact on planes, files and networks that resume, errors of known size."
import signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from primenb.core import PrimenbError
from primenb.data.corpus import tracking_shots
from primenb.data.public import posed_frames
from primenb.sfm.geometry import Tracks, project, triangulate, widest_angle
from primenb.sfm.priors import (
    DepthMaps, check_depth, check_fit, depth_folder, depth_network, depth_of, design_effect, error_sigmas, fit_scale,
    fit_shift, observation_weights, sample_depth, save_depths, sensor_depth,
)
from primenb.sfm.tracks import klt_tracks

seeds = st.integers(0, 2**32 - 1)


def at(xy, size, frame=None, frames=1):
    "Places of an image as tracks of one observation each."
    xy = np.asarray(xy, float).reshape(-1, 2)
    return Tracks(np.zeros(len(xy), int) if frame is None else frame, np.arange(len(xy)), xy, frames, size)


def middles(w, h, size):
    return np.stack(np.meshgrid((np.arange(w) + 0.5) * size[0] / w, (np.arange(h) + 0.5) * size[1] / h), -1)


def refused(make, *words):
    with pytest.raises(PrimenbError) as caught: make()
    for word in words: assert word in str(caught.value)


# ---- maps

@pytest.mark.parametrize("maps, words", [
    (np.ones((4, 5)), "shape (4, 5)"), (np.ones((0, 4, 5)), "shape"), (np.full((2, 4, 5), np.nan), "not one value"), (
        np.zeros((2, 4, 5)), "not one value"
    ),
    (
        np.stack([np.ones((4, 5)), -np.ones((4, 5))]), "frame 1 has negative"
    ), (np.ones((2, 4, 5), complex), "complex"), (np.full((2, 4, 5), np.inf), "not one value")])
def test_maps_that_are_none_are_refused_by_name(maps, words):
    refused(lambda: DepthMaps(maps, source="my maps"), "my maps", words)


def test_kind_count_and_shape_are_checked():
    refused(lambda: DepthMaps(np.ones((1, 4, 5)), "inverse"), "inverse", "disparity")
    depths = DepthMaps(np.ones((3, 54, 96)))
    for size in ((480, 270), (1920, 1080), (481, 270)): check_fit(depths, 3, size)
    refused(lambda: check_fit(depths, 2, (480, 270)), "3 maps for 2 frames")
    for size in ((270, 480), (480, 320), (480, 260)): refused(lambda: check_fit(depths, 3, size), "another shape")
    check_fit(DepthMaps(np.ones((1, 9, 16))), 1, (1920, 1080))
    check_fit(DepthMaps(np.ones((1, 8, 15))), 1, (1920, 1080))  # rounding to whole cells
    refused(lambda: sample_depth(depths, at([[1, 1]], (480, 270))), "3 maps for 1 frames")
    refused(lambda: sample_depth(depths, at([[1, 1]], (300, 300), frames=3)), "another shape")


def test_frames_without_depth_are_allowed_and_give_nothing():
    maps = np.ones((3, 54, 96))
    maps[1] = np.nan
    tracks = at([[100, 100]] * 3, (480, 270), np.arange(3), 3)
    got = sample_depth(DepthMaps(maps), tracks)
    assert got.valid.tolist() == [True, False, True] and got.good.tolist() == [
        True, False, True
    ] and np.isnan(got.value[1]) and np.isnan(got.log_depth()[1])
    refused(lambda: DepthMaps(maps)[1:2], "not one value")
    assert len(DepthMaps(maps)[1:]) == 2


# ---- sampling

def slowly(depths, tracks):
    "Bilinear sampling, one observation and one cell after the other."
    T, h, w = depths.maps.shape
    values = []
    for t, (x, y) in zip(tracks.frame, tracks.xy):
        if not (0 <= x <= tracks.size[0] and 0 <= y <= tracks.size[1]):
            values.append(np.nan)
            continue
        cx, cy = min(max(x * w / tracks.size[0] - 0.5, 0), w - 1), min(max(y * h / tracks.size[1] - 0.5, 0), h - 1)
        total = weight = 0.0
        for r in range(h):
            for c in range(w):
                share, value = max(0, 1 - abs(cx - c)) * max(0, 1 - abs(cy - r)), float(depths.maps[t, r, c])
                if share and np.isfinite(value) and value > 0:
                    weight += share
                    total += share * (1 / value if depths.kind == "depth" else value)
        mean = total / weight if weight >= 0.5 else np.nan
        values.append(1 / mean if depths.kind == "depth" else mean)
    return np.array(values)


@settings(max_examples=40, deadline=None)
@given(
    seeds, st.integers(1, 7), st.integers(1, 7), st.sampled_from(["depth", "disparity"]), st.sampled_from([0, 0.2, 0.6])
)
def test_sampling_is_what_a_slow_loop_finds(seed, w, h, kind, holes):
    rng = np.random.default_rng(seed)
    maps = rng.uniform(0.5, 5, (2, h, w))
    maps[rng.random(maps.shape) < holes] = rng.choice([0, np.nan, np.inf])
    maps[0, 0, 0] = 1
    size = (10 * w, 10 * h)
    tracks = at(rng.uniform(-3, np.array(size) + 3, (30, 2)), size, rng.integers(0, 2, 30), 2)
    depths = DepthMaps(maps, kind)
    got = sample_depth(depths, tracks)
    np.testing.assert_allclose(got.value, slowly(depths, tracks), rtol=1e-9)
    assert (got.valid == np.isfinite(got.value)).all() and not (got.good & got.edge).any()


def test_middle_of_a_cell_has_its_value_at_every_resolution():
    rng = np.random.default_rng(0)
    for w, h in ((480, 270), (96, 54), (16, 9)):
        maps = rng.uniform(1, 9, (1, h, w)).astype(np.float32)
        got = sample_depth(DepthMaps(maps), at(middles(w, h, (480, 270)), (480, 270)))
        np.testing.assert_allclose(got.value, maps.ravel(), rtol=1e-6)


slants = st.tuples(st.floats(-0.8, 0.8), st.floats(-0.8, 0.8))


@settings(max_examples=40, deadline=None)
@given(slants, st.sampled_from([(96, 54), (32, 18), (480, 270)]), st.floats(0, 2), seeds)
def test_planes_are_exact_and_have_no_edges(slant, cells, shift, seed):
    size, xy = (480, 270), np.random.default_rng(seed).uniform((15, 15), (465, 255), (50, 2))
    def disparity(xy):
        return 0.3 + slant[0] * (xy[..., 0] / 480 - 0.5) * 0.3 + slant[1] * (xy[..., 1] / 270 - 0.5) * 0.3
    depth = sample_depth(DepthMaps(1 / disparity(middles(*cells, size))[None]), at(xy, size))
    np.testing.assert_allclose(depth.value, 1 / disparity(xy), rtol=1e-5)
    assert depth.good.all()
    other = sample_depth(DepthMaps(3 * (disparity(middles(*cells, size)) + shift)[None], "disparity"), at(xy, size))
    np.testing.assert_allclose(other.log_depth(3 * shift), depth.log_depth() - np.log(3), atol=1e-4)
    assert other.good.all()


@pytest.mark.parametrize("factor", [1.2, 1.5, 3])
@pytest.mark.parametrize("cells", [(96, 54), (480, 270), (960, 540)])
def test_jumps_and_holes_are_noticed_nearby_and_nowhere_else(factor, cells):
    size, xy = (480, 270), np.random.default_rng(1).uniform((5, 5), (475, 265), (2000, 2))
    distance = np.abs(xy[:, 0] - 200)
    for beyond in (factor, np.nan):
        depth = np.where(middles(*cells, size)[..., 0] < 200, 2.0, 2.0 * beyond)[None]
        got = sample_depth(DepthMaps(depth), at(xy, size))
        assert got.edge[(distance < 3) & got.valid].all() and not got.edge[(distance > 20) & got.valid].any()


def test_observations_outside_the_picture_have_no_prior():
    got = sample_depth(
        DepthMaps(np.ones((1, 54, 96))), at([[-0.1, 5], [480.1, 5], [5, -3], [5, 271], [0, 0], [480, 270]], (480, 270))
    )
    assert got.valid.tolist() == [False] * 4 + [True] * 2 and got.good[4:].all()


def test_no_observations_give_no_samples():
    assert len(sample_depth(DepthMaps(np.ones((1, 54, 96))), at(np.zeros((0, 2)), (480, 270))).value) == 0


# ---- folders

def maps_of(n=3, h=6, w=8): return np.random.default_rng(n).uniform(1, 9, (n, h, w)).astype(np.float32)


@pytest.mark.parametrize("kind, metric", [("depth", True), ("depth", False), ("disparity", False)])
def test_saved_maps_come_back(tmp_path, kind, metric):
    maps = maps_of()
    maps[1, 2, 3], maps[0, 0, 0] = np.nan, np.inf
    save_depths(tmp_path / "d", DepthMaps(maps, kind, metric))
    back = depth_folder(tmp_path / "d")
    np.testing.assert_array_equal(back.maps, maps)
    assert (back.kind, back.metric) == (kind, metric)
    refused(lambda: save_depths(tmp_path / "d", back), "something else in it")
    (tmp_path / "d/00002.npy").unlink()
    refused(lambda: depth_folder(tmp_path / "d"), "2 maps", "note says 3")


def test_pictures_are_millimetres_and_their_void_is_void(tmp_path):
    stored = np.full((6, 8), 1500, np.uint16)
    stored[0, 0], stored[0, 1] = 0, 65535
    for n in range(2):
        Image.fromarray(stored).save(tmp_path / f"frame-{n}.depth.png")
        Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / f"frame-{n}.colour.png")
    depths = depth_folder(tmp_path, pattern="*.depth.png")
    assert depths.metric and depths.kind == "depth" and not depths.valid[:, 0, :2].any()
    np.testing.assert_allclose(depths.maps[depths.valid], 1.5)
    assert not depth_folder(tmp_path, pattern="*.depth.png", kind="disparity").metric
    refused(lambda: depth_folder(tmp_path, pattern="*.colour.png"), "frame-0.colour.png", "16 bits")
    refused(lambda: depth_folder(tmp_path), "4 files have 2 numbers", "pattern")
    refused(lambda: depth_folder(tmp_path, [0, 1]), "4 files have 2 numbers", "pattern")


@pytest.mark.parametrize("ending", [".png", ".PNG", ".tif", ".TIFF"])
def test_millimetres_in_any_case_of_ending(tmp_path, ending):
    stored = np.array([[0, 65535, 1, 1500], [2500, 40000, 65534, 7]], np.uint16)
    kind = "PNG" if "n" in ending.lower() else "TIFF"
    for n in range(2): Image.fromarray(stored).save(tmp_path / f"{n}{ending}", kind)
    depths = depth_folder(tmp_path)
    assert depths.metric and depths.kind == "depth"
    expected = np.where((stored == 0) | (stored == 65535), np.nan, stored / 1000)
    np.testing.assert_allclose(depths.maps, [expected] * 2, rtol=1e-6)


def test_arrays_in_any_case_of_ending(tmp_path):
    for n, one in enumerate(maps_of(2)):
        with open(tmp_path / f"{n}.NPY", "wb") as file: np.save(file, one)
    np.testing.assert_array_equal(depth_folder(tmp_path).maps, maps_of(2))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_floating_point_tiff_is_what_it_says(tmp_path, compression):
    maps = maps_of(2)
    maps[0, 0, 0], maps[1, 0, 0] = np.nan, 1e10
    for n, one in enumerate(maps): Image.fromarray(one).save(tmp_path / f"{n}.tif", compression=compression)
    depths = depth_folder(tmp_path)
    np.testing.assert_array_equal(depths.maps, np.where(maps < 1e9, maps, np.nan))
    assert not depths.metric and depth_folder(tmp_path, metric=True).metric
    (tmp_path / "depths.json").write_text('{"kind": "disparity", "metric": false}')
    assert depth_folder(tmp_path).kind == "disparity"


@pytest.mark.parametrize("dtype, nothing", [(np.float32, 1e10), (np.float16, np.inf), (np.float16, 65504)])
@pytest.mark.parametrize("channel", ["Z", "depth", "V", "R", "Y", "ViewLayer.Depth.Z"])
def test_exr_holds_depth_in_a_channel(tmp_path, dtype, nothing, channel):
    OpenEXR = pytest.importorskip("OpenEXR")
    maps = maps_of(2).astype(dtype)
    maps[:, 0, 0] = nothing
    for n, one in enumerate(maps):
        channels = {channel: one, "B": np.zeros_like(one), "G": np.zeros_like(one)}
        OpenEXR.File(dict(compression=OpenEXR.ZIP_COMPRESSION), channels).write(str(tmp_path / f"z{n}.exr"))
    depths = depth_folder(tmp_path)
    expected = maps.astype(np.float32)
    expected[:, 0, 0] = np.nan
    np.testing.assert_array_equal(depths.maps, expected)
    assert not depths.metric and depth_folder(tmp_path, metric=True).metric


def test_exr_without_depth_or_broken_is_named(tmp_path):
    OpenEXR = pytest.importorskip("OpenEXR")
    one = maps_of(1)[0]
    OpenEXR.File({}, {"B": one, "G": one}).write(str(tmp_path / "a.exr"))
    refused(lambda: depth_folder(tmp_path), "a.exr", "channels are B, G", "named Z")
    (tmp_path / "a.exr").write_bytes(b"no image")
    refused(lambda: depth_folder(tmp_path), "a.exr", "cannot be decoded")


def test_eight_bits_are_disparity_or_refused(tmp_path):
    stored = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(stored).save(tmp_path / "0.png")
    refused(lambda: depth_folder(tmp_path), "0.png", "8 bits", 'kind="disparity"')
    depths = depth_folder(tmp_path, kind="disparity")
    np.testing.assert_array_equal(depths.maps[0], np.where(stored == 0, np.nan, stored))
    assert (depths.kind, depths.metric) == ("disparity", False)
    Image.fromarray(np.repeat(stored[..., None], 3, 2)).save(tmp_path / "0.png")
    refused(lambda: depth_folder(tmp_path, kind="disparity"), "0.png", "kind RGB")


def test_names_are_sorted_as_people_do_and_gaps_are_named(tmp_path):
    maps = maps_of(12)
    for n, one in enumerate(maps): np.savez(tmp_path / f"shot2_{n}.npz", depth=one, confidence=one)
    np.testing.assert_array_equal(depth_folder(tmp_path).maps, maps)
    np.testing.assert_array_equal(depth_folder(tmp_path, range(9, 11)).maps, maps[9:11])
    np.testing.assert_array_equal(depth_folder(tmp_path, range(0, 12, 4)).maps, maps[::4])
    refused(lambda: depth_folder(tmp_path, range(8, 14)), "no map for frame 12")
    (tmp_path / "shot2_7.npz").unlink()
    refused(lambda: depth_folder(tmp_path), "no map for frame 7")
    refused(lambda: depth_folder(tmp_path, kind="disparity", numbers=[1]), "shot2_1.npz", "confidence, depth")


def test_every_second_frame_is_a_rhythm_and_names_without_numbers_are_fine(tmp_path):
    maps = maps_of(4)
    for n, one in enumerate(maps): np.save(tmp_path / f"{10 + 2 * n}.npy", one)
    np.testing.assert_array_equal(depth_folder(tmp_path).maps, maps)
    (tmp_path / "words").mkdir()
    for name, one in zip("abcd", maps): np.save(tmp_path / f"words/{name}.npy", one)
    np.testing.assert_array_equal(depth_folder(tmp_path / "words").maps, maps)


@pytest.mark.parametrize("name", ["only.npy", "frame_7.npy"])
def test_a_single_map_is_a_shot_of_one_frame(tmp_path, name):
    np.save(tmp_path / name, maps_of(1)[0])
    np.testing.assert_array_equal(depth_folder(tmp_path).maps, maps_of(1))


@pytest.mark.parametrize("damage, words", [
    (
        lambda f: f.write_bytes(f.read_bytes()[:150]), "cannot be read"
    ), (lambda f: f.write_bytes(b""), "cannot be read"), (lambda f: np.save(f, np.ones((3, 3))), "(3, 3)"),
    (lambda f: np.save(f, np.ones((6, 8, 3))), "(6, 8, 3)"), (lambda f: np.save(f, np.full((6, 8), "x")), "<U1"), (
        lambda f: np.save(f, np.array([{}]), allow_pickle=True), "cannot be read"
    ),
    (lambda f: f.unlink(), "no map for frame 1")])
def test_a_damaged_map_is_named(tmp_path, damage, words):
    for n, one in enumerate(maps_of(4)): np.save(tmp_path / f"{n}.npy", one)
    damage(tmp_path / "1.npy")
    refused(lambda: depth_folder(tmp_path), "1", words)


def test_an_empty_or_absent_folder_is_refused(tmp_path):
    refused(lambda: depth_folder(tmp_path), "no .npy, .npz, .png, .tif or .exr")
    refused(lambda: depth_folder(tmp_path / "none"), "no such folder")


# ---- networks, tiny and random

@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    "Folders of three tiny networks: relative, metric, and of a kind that says nothing of itself."
    import torch
    from transformers import (
        DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTConfig, DPTForDepthEstimation,
        DPTImageProcessor,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("networks")
    eye = dict(
        image_size=28,
        patch_size=14,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        out_features=["stage1", "stage2"],
        reshape_hidden_states=False,
    )
    small = dict(
        reassemble_hidden_size=16,
        reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    made = {
        name: DepthAnythingForDepthEstimation(
            DepthAnythingConfig(backbone_config=Dinov2Config(**eye), depth_estimation_type=name, max_depth=20, **small)
        )
        for name in ("relative", "metric")
    }
    config = DPTConfig(
        image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=32, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, use_auxiliary_head=False,
    )
    made["dpt"] = DPTForDepthEstimation(config)
    for name, model in made.items():
        with torch.no_grad():
            for p in model.parameters(): p.add_(0.05 * torch.randn_like(p))
            model.head.get_submodule("conv3" if hasattr(model.head, "conv3") else "head.4").bias.fill_(1.0)
        model.save_pretrained(folder / name)
        DPTImageProcessor(
            size=dict(height=56, width=56), keep_aspect_ratio=name != "dpt", ensure_multiple_of=14
        ).save_pretrained(folder / name)
    return folder


frames = np.random.default_rng(0).integers(0, 256, (5, 54, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize("name, kind", [("relative", "disparity"), ("metric", "depth"), ("dpt", "disparity")])
def test_a_network_says_what_it_answers_with(networks, tmp_path, name, kind):
    one = depth_network(frames, networks / name, device="cpu", batch_size=3, cache=tmp_path / "cache")
    assert (one.kind, one.metric, one.maps.shape) == (kind, False, (5, 54, 96)) and one.maps.dtype == np.float32
    other = dict(depth="disparity", disparity="depth")[kind]
    assert depth_network(frames, networks / name, other, cache=tmp_path / "cache").kind == other


def test_the_answer_is_the_models_own(networks):
    import torch
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    processor = AutoImageProcessor.from_pretrained(networks / "relative")
    model = AutoModelForDepthEstimation.from_pretrained(networks / "relative")
    with torch.no_grad(): out = model(**processor(Image.fromarray(frames[2]), return_tensors="pt"))
    theirs = processor.post_process_depth_estimation(out, [(54, 96)])[0]["predicted_depth"].numpy()
    np.testing.assert_allclose(
        depth_network(frames, networks / "relative", device="cpu").maps[2], np.maximum(theirs, 0), rtol=1e-4, atol=1e-6
    )


def test_a_finished_run_needs_no_network_and_is_not_taken_for_another(networks, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    whole = depth_network(frames, networks / "relative", device="cpu", batch_size=1, cache=cache)
    for n in (3, 4): (cache / f"0000{n}.npy").unlink()
    before = {p: p.stat().st_mtime_ns for p in cache.glob("*.npy")}
    again = depth_network(frames, networks / "relative", device="cpu", batch_size=2, cache=cache)
    np.testing.assert_allclose(again.maps, whole.maps, rtol=1e-4, atol=1e-6)  # in batches of another size
    assert len(before) == 3 and before.items() <= {p: p.stat().st_mtime_ns for p in cache.glob("*.npy")}.items()
    monkeypatch.setattr("primenb.sfm.priors._in_own_process", lambda *_, **__: pytest.fail("there is nothing to do"))
    np.testing.assert_array_equal(depth_network(frames, networks / "relative", cache=cache).maps, again.maps)
    assert depth_folder(cache).kind == "disparity"
    for what in (frames[:4], frames[::-1]):
        refused(lambda: depth_network(what, networks / "relative", cache=cache), "other images or of another model")
    refused(lambda: depth_network(frames, networks / "metric", cache=cache), "another model")
    (cache / "00001.npy").write_bytes(b"broken")
    refused(lambda: depth_network(frames, networks / "relative", cache=cache), "00001.npy")


def children(pid):
    "The processes that a process has started."
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(n) for n in found.split()]


def test_an_interrupted_run_ends_its_process_and_goes_on(networks, tmp_path):
    "Ctrl-C comes while maps are made: what is done is kept, and no process is left behind."
    cache = tmp_path / "cache"
    np.save(tmp_path / "many.npy", np.random.default_rng(1).integers(0, 256, (600, 54, 96, 3), dtype=np.uint8))
    program = f"""
import numpy as np
from primenb.sfm.priors import depth_network
try: depth_network(np.load({str(tmp_path / "many.npy")!r}), {str(networks / "relative")!r}, device="cpu",
                   batch_size=1, cache={str(cache)!r})
except KeyboardInterrupt: print("interrupted")
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 240
    while len(list(cache.glob("0*.npy"))) < 3 and parent.poll() is None and time.monotonic() < end: time.sleep(0.02)
    own = children(parent.pid)
    parent.send_signal(signal.SIGINT)
    assert parent.communicate(timeout=60)[0] == "interrupted\n" and len(own) == 1
    assert not Path(f"/proc/{own[0]}").exists()
    done = len(list(cache.glob("0*.npy")))
    assert 3 <= done < 600
    first = np.load(cache / "00000.npy")
    assert first.shape == (54, 96) and np.isfinite(first).all()


def test_drawing_and_a_network_in_one_program(networks):
    "Mesa's LLVM and torch's never meet, whichever comes first."
    program = f"""
import sys
import numpy as np
from primenb.render import Window, read_colours, require_drawing
from primenb.sfm.priors import depth_network
import pyvista as pv
def draw():
    window = Window((64, 48))
    window.add(pv.Sphere(radius=0.3)).GetProperty().SetColor(1, 0, 0)
    window.plotter.render_window.Render()  # PyVista's own render() waits for a first show()
    image = read_colours(window)
    window.close()
    return int((image[..., 0] > 50).sum())
before = draw()
frames = np.random.default_rng(0).integers(0, 256, (2, 54, 96, 3), dtype=np.uint8)
maps = depth_network(frames, {str(networks / "relative")!r}, device="cpu").maps
print(before > 20, draw() == before, maps.shape, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if "this machine has no" in done.stderr: pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.stdout == "True True (2, 54, 96) False\n", done.stderr


def test_a_model_that_is_not_there_or_says_nothing_is_refused(networks, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "cache").mkdir()
    why = "nobody/no-such-depth-model", "cannot be loaded", "folder of a downloaded model"
    refused(lambda: depth_network(frames, why[0], device="cpu", cache=tmp_path / "cache"), *why)
    assert list((tmp_path / "cache").iterdir()) == [], "nothing is left that looks like work done"
    monkeypatch.setattr("primenb.sfm.priors.NETWORK_KINDS", {})
    refused(lambda: depth_network(frames, networks / "dpt", device="cpu"), "whether a dpt", "kind=")
    refused(lambda: depth_network(frames[0], networks / "dpt"), "no shot")
    refused(lambda: depth_network(frames.astype(float), networks / "dpt"), "no shot")


def test_depth_is_checked_before_any_work(networks, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_bytes((networks / "relative/config.json").read_bytes())
    refused(lambda: check_depth("nobody/no-such-depth-model", device="cpu"), "nobody/no-such", "cannot be loaded")
    refused(lambda: check_depth(tmp_path / "none", device="cpu"), "none", "cannot be loaded")
    refused(lambda: check_depth(tmp_path / "bare", device="cpu"), "bare", "cannot be loaded")
    check_depth(networks / "relative", device="cpu")
    (tmp_path / "empty").mkdir()
    refused(lambda: check_depth(tmp_path / "empty"), "no .npy")
    save_depths(tmp_path / "maps", DepthMaps(maps_of()))
    check_depth(tmp_path / "maps")
    (tmp_path / "maps/00000.npy").write_bytes(b"broken")
    refused(lambda: check_depth(tmp_path / "maps"), "00000.npy")
    for fine in (None, DepthMaps(maps_of()), maps_of()): check_depth(fine)
    refused(lambda: check_depth(-maps_of()), "negative")


def test_a_process_that_dies_is_reported(networks, monkeypatch):
    import primenb.sfm.priors as priors
    popen = subprocess.Popen
    monkeypatch.setattr(priors.subprocess, "Popen", lambda command, **how: popen(
        [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], **how
    ))
    refused(lambda: depth_network(frames, networks / "relative"), "ended with code -9", "batch_size=1")


def test_a_model_stored_in_half_precision_runs_in_full(networks, tmp_path):
    import shutil, torch
    from transformers import AutoModelForDepthEstimation
    shutil.copytree(networks / "relative", tmp_path / "half")
    AutoModelForDepthEstimation.from_pretrained(networks / "relative").to(torch.bfloat16).save_pretrained(
        tmp_path / "half"
    )
    half, full = (
        depth_network(frames[:2], folder, device="cpu").maps for folder in (tmp_path / "half", networks / "relative")
    )
    np.testing.assert_allclose(half, full, rtol=0.05, atol=0.05)


def test_large_answers_are_made_smaller_in_the_same_shape(networks):
    big = np.random.default_rng(0).integers(0, 256, (1, 540, 960, 3), dtype=np.uint8)
    assert depth_network(big, networks / "relative", device="cpu").maps.shape == (1, 288, 512)


# ---- scale and shift

@settings(deadline=None)
@given(seeds, st.integers(1, 6), st.integers(0, 60))
def test_scale_is_the_median_of_each_frame(seed, frames, n):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    prior = rng.normal(size=n)
    frame = rng.integers(0, frames, n)
    prior[rng.random(n) < 0.2] = np.nan
    r = z - prior
    slow = [
        np.median(r[(frame == f) & np.isfinite(r)]) if (np.isfinite(r) & (frame == f)).any() else np.nan
        for f in range(frames)
    ]
    np.testing.assert_allclose(fit_scale(z, prior, frame, frames), slow)
    if np.isfinite(r).any(): assert fit_scale(z, prior)[0] == pytest.approx(np.nanmedian(r))


@pytest.fixture(scope="module")
def shots():
    "Four starter shots with tracks."
    chosen = {s.key: s for s in tracking_shots(check=False)}
    return {
        key: (s := chosen[key], klt_tracks(s.frames(), s.masks))
        for key in ("track_00", "track_07", "track_12", "track_20")
    }


def true_shift(shot):
    "The shift that the studio drew for the shifted network, without the size of each frame (2 %)."
    depth = shot.depth()
    finite = np.isfinite(depth)
    rng = np.random.default_rng(shot.facts["guess_seed"])
    return np.exp(rng.normal(0, 0.7)) * rng.choice(
        [0.2 / np.median(depth[finite]), -0.5 / np.quantile(depth[finite], 0.98)]
    )


def test_the_shift_of_the_shifted_network_is_found(shots):
    for shot, tracks in shots.values():
        z = sample_depth(depth_of(shot, "truth"), tracks).log_depth()
        for noise, slack in ((0.0, 0.02), (0.1, 0.15)):
            s = sample_depth(depth_of(shot, "shifted", noise), tracks)
            assert fit_shift(z, s, tracks.frame, tracks.frames) == pytest.approx(
                true_shift(shot), abs=slack * np.nanmedian(s.value)
            )
        s = sample_depth(depth_of(shot, "scaled"), tracks)
        assert fit_shift(z, s, tracks.frame, tracks.frames) == 0
        moved = replace(sample_depth(depth_of(shot, "shifted"), tracks), edge=np.zeros(len(z), bool))
        base = fit_shift(z, moved, tracks.frame, tracks.frames)
        assert fit_shift(
            z, replace(moved, value=5 * moved.value + 2), tracks.frame, tracks.frames
        ) == pytest.approx(5 * base + 2, abs=0.01 * np.nanmedian(5 * moved.value))


def test_shift_without_any_known_depth_is_none(shots):
    s = sample_depth(depth_of(shots["track_00"][0], "shifted"), shots["track_00"][1])
    assert fit_shift(np.full(len(s.value), np.nan), s, shots["track_00"][1].frame, 32) == 0


# ---- how far to trust

def simulated(rng, tracks, sigma_track, sigma_frame, nonsense=0.0, longest=32):
    track = np.repeat(np.arange(tracks), rng.integers(1, longest + 1, tracks))
    e = rng.normal(0, sigma_track, tracks)[track] + rng.normal(0, sigma_frame, len(track))
    return np.where(rng.random(len(e)) < nonsense, rng.normal(0, 3, len(e)), e), track


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0.02, 0.5), st.floats(0.02, 0.5))
def test_spread_finds_what_was_put_in(seed, sigma_track, sigma_frame):
    e, track = simulated(np.random.default_rng(seed), 3000, sigma_track, sigma_frame)
    u, v = error_sigmas(e, track)
    assert v == pytest.approx(sigma_frame, rel=0.06) and u**2 == pytest.approx(
        sigma_track**2, abs=0.15 * (sigma_track**2 + sigma_frame**2)
    )


def test_a_tenth_of_nonsense_changes_little():
    rng = np.random.default_rng(0)
    u, v = error_sigmas(*simulated(rng, 3000, 0.1, 0.1, nonsense=0.1))
    assert 0.08 < u < 0.14 and 0.09 < v < 0.14
    assert np.std(simulated(rng, 3000, 0.1, 0.1, nonsense=0.1)[0]) > 0.5  # what a plain standard deviation makes of it


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0.1, 10), st.floats(-3, 3))
def test_spread_scales_and_does_not_care_for_offset_order_or_gaps(seed, factor, offset):
    rng = np.random.default_rng(seed)
    e, track = simulated(rng, 50, 0.1, 0.05, longest=9)
    base = error_sigmas(e, track)
    assert error_sigmas(factor * e + offset, track) == pytest.approx([factor * b for b in base], rel=1e-6, abs=1e-9)
    other = rng.permutation(50)[track]
    assert error_sigmas(e, 3 * other) == pytest.approx(base)
    holes = np.where(rng.random(len(e)) < 0.3, np.nan, e)
    if np.isfinite(holes).any():
        assert error_sigmas(holes, track) == pytest.approx(
            error_sigmas(holes[np.isfinite(holes)], track[np.isfinite(holes)])
        )


def test_error_sigmas_of_single_observations_are_per_track_and_of_none_are_refused():
    e = np.random.default_rng(0).normal(0, 0.2, 4000)
    assert error_sigmas(e, np.arange(4000)) == pytest.approx((0.2, 0), abs=0.01)
    assert error_sigmas(np.zeros(4), np.zeros(4, int)) == (0, 0)
    refused(lambda: error_sigmas(np.full(3, np.nan), np.arange(3)), "none")


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.floats(0.01, 1), st.floats(0.01, 1))
def test_weights_add_up_to_what_a_track_knows(lengths, sigma_track, sigma_frame):
    track = np.repeat(np.arange(len(lengths)), lengths)
    w = observation_weights(track, sigma_track, sigma_frame)
    for t, n in enumerate(lengths):
        V = sigma_frame**2 * np.eye(n) + sigma_track**2
        assert w[track == t].sum() == pytest.approx(np.linalg.inv(V).sum(), rel=1e-6)
        assert w[track == t].sum() <= 1 / sigma_track**2 * (1 + 1e-9) and np.ptp(w[track == t]) == 0


def neighbours(rng, places, n, spot=0.5):
    "Places of the image, each with n tracks that err together."
    xy = np.repeat(rng.uniform((0, 0), (480, 270), (places, 2)), n, 0) + rng.normal(0, spot, (places * n, 2))
    return np.repeat(rng.normal(0, 0.1, places), n), at(xy, (480, 270))


@pytest.mark.parametrize("n", [1, 3, 10, 30])
def test_a_crowd_is_as_large_as_the_groups_that_err_together(n):
    found = [design_effect(*neighbours(np.random.default_rng(seed), 60, n)) for seed in range(20)]
    assert np.median(found) == pytest.approx(n, rel=0.15) and max(found) < 3 * n


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0.1, 10), st.floats(-3, 3))
def test_a_crowd_does_not_care_for_size_offset_or_what_is_missing(seed, factor, offset):
    rng = np.random.default_rng(seed)
    e, tracks = neighbours(rng, 40, 8)
    assert design_effect(factor * e + offset, tracks) == pytest.approx(design_effect(e, tracks), rel=1e-6)
    twice = Tracks(np.tile([0, 1], len(e)), np.repeat(np.arange(len(e)), 2), np.repeat(tracks.xy, 2, 0), 2, tracks.size)
    assert design_effect(
        np.stack([e, np.full(len(e), np.nan)], 1).ravel(), twice
    ) == pytest.approx(design_effect(e, tracks))


def test_a_crowd_of_more_tracks_than_are_compared_is_counted_whole():
    e, tracks = neighbours(np.random.default_rng(0), 60, 50)
    assert design_effect(e, tracks) == pytest.approx(50, rel=0.4)


def test_a_crowd_of_nobody_is_one():
    tracks = at(np.zeros((3, 2)), (480, 270))
    for e in ([np.nan] * 3, [0, np.nan, np.nan], [0.1, 0.1, 0.1]): assert design_effect(np.array(e), tracks) == 1
    assert design_effect(np.zeros(0), at(np.zeros((0, 2)), (480, 270))) == 1


# ---- the starter shots

def errors(shot, tracks, name, noise):
    "Errors at the keypoints beside no jump, as the ground truth has them, and all of them."
    z, s = sample_depth(depth_of(shot, "truth"), tracks).log_depth(), sample_depth(depth_of(shot, name, noise), tracks)
    e = z - s.log_depth(fit_shift(z, s, tracks.frame, tracks.frames))
    e -= fit_scale(np.where(s.good, e, np.nan), 0, tracks.frame, tracks.frames)[tracks.frame]
    return np.where(s.good, e, np.nan), e


def test_weights_promise_the_error_that_leans_over_the_picture(shots):
    "Slopes of the errors over their predicted sigma are about one; without the design effect they are larger."
    ratios = []
    for shot, tracks in shots.values():
        for name in ("scaled", "shifted"):
            e, _ = errors(shot, tracks, name, 0.1)
            keep = np.isfinite(e)
            for m in (1, design_effect(e, tracks)):
                w = observation_weights(tracks.track[keep], *error_sigmas(e, tracks.track), m)
                xy = tracks.xy[keep] - w @ tracks.xy[keep] / w.sum()
                ratios.append(((w * e[keep]) @ xy / (w @ xy**2) ** 0.5) ** 2)
    alone, crowded = (np.sqrt(np.mean(ratios[i::2])) for i in (0, 1))
    assert 0.6 < crowded < 1.6 and alone > 3


@pytest.mark.parametrize("name", ["scaled", "shifted"])
def test_errors_have_the_configured_size_and_are_mostly_constant_over_tracks(shots, name):
    found = {}
    for noise in (0.1, 0.25):
        for shot, tracks in shots.values():
            e, every = errors(shot, tracks, name, noise)
            assert np.nanmean(e**2) <= np.nanmean(every**2) and np.isfinite(e).sum() > 0.5 * np.isfinite(every).sum()
            u, v = error_sigmas(e, tracks.track)
            assert u > 0.5 * v and 0.6 * noise < np.hypot(u, v) < 1.2 * noise
            found.setdefault(noise, []).append((u, v))
    for median in (np.median(f, 0) for f in found.values()): assert median[0] > median[1]
    assert (np.median(found[0.25], 0) > 1.8 * np.median(found[0.1], 0)).all()


def test_depth_of_a_shot_says_what_it_is(shots):
    shot = shots["track_12"][0]
    assert [
        (d.kind, d.metric) for d in (depth_of(shot, n) for n in ("truth", "scaled", "shifted"))
    ] == [("depth", True), ("depth", False), ("disparity", False)]
    assert not depth_of(shot, "truth").valid.all()  # the sky
    refused(lambda: depth_of(shot, "magic"), "scaled or shifted")


# ---- real sensors

def seen(posed):
    "Tracks of a sequence and the depth that its cameras give them; only where they fit and are seen from well apart."
    tracks = klt_tracks(np.stack([f.image for f in posed]))
    poses, K = (np.array([getattr(f, name) for f in posed]) for name in ("cam_from_world", "K"))
    X = triangulate(tracks, poses, K)
    xy, z = project(X[tracks.track], poses[tracks.frame], K[tracks.frame])
    off = np.zeros(len(tracks))
    np.maximum.at(off, tracks.track, np.linalg.norm(xy - tracks.xy, axis=1))
    good = (widest_angle(tracks, X, poses) > np.radians(4)) & (off < 3)
    return tracks, np.where(good[tracks.track] & (z > 0), z, np.nan)


def test_sensor_depth_agrees_with_triangulation(real):
    posed = list(posed_frames(real / "hololens", check=False))
    depths = sensor_depth(posed)
    # the sensor's field is narrower than the image's
    assert depths.metric and depths.maps.shape == (60, 360, 540) and 0.5 < depths.valid.mean() < 0.8
    tracks, z = seen(posed)
    s = sample_depth(depths, tracks)
    e = np.log(z) - s.log_depth()
    e, track, good = e[np.isfinite(e)], tracks.track[np.isfinite(e)], s.good[np.isfinite(e)]
    assert len(e) > 3000 and abs(np.median(e)) < 0.02 and np.median(np.abs(e)) < 0.03
    assert np.sqrt((e[good] ** 2).mean()) < 0.8 * np.sqrt((e**2).mean())
    sigma_track, sigma_frame = error_sigmas(e[good], track[good])
    assert 0.01 < sigma_track < 0.05 and sigma_frame < sigma_track / 2
    assert np.abs(
        fit_scale(np.log(z), np.where(s.good, s.log_depth(), np.nan), tracks.frame, tracks.frames)
    ).max() < 0.06


def test_a_folder_of_a_real_sequence_is_what_its_frames_say(real):
    posed = list(posed_frames(real / "sevenscenes", check=False))[20:30]
    depths, files = sensor_depth(posed), depth_folder(real / "sevenscenes", range(420, 430), pattern="*.depth.png")
    np.testing.assert_array_equal(depths.maps, files.maps)
    assert files.metric and depths.maps.shape == (10, 480, 640)
    assert np.nanmin(depths.maps) > 0.1 and np.nanmax(depths.maps) < 20
    tracks = klt_tracks(np.stack([f.image for f in posed]))
    s = sample_depth(depths, tracks)
    assert s.valid.mean() > 0.9 and 0.5 < s.good.mean() < s.valid.mean()


def test_frames_without_a_sensor_are_refused(real):
    posed = [replace(f, depth_path=None) for f in list(posed_frames(real / "hololens", check=False))[:3]]
    refused(lambda: sensor_depth(posed), "no frame has sensor depth")
    refused(lambda: sensor_depth([]), "no frame has sensor depth")
    half = [posed[0], *list(posed_frames(real / "hololens", check=False))[1:3]]
    assert sensor_depth(half).valid.any((1, 2)).tolist() == [False, True, True]
