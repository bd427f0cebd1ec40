"""Contracts of the video auto-encoder: the order of tokens, the loss, equal counts, what comes out, and what others
can load."""
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import VideoMAEImageProcessor, VideoMAEModel

from primenb.core import PrimenbError
from primenb.mgm.model import (
    PIXEL_MEAN, PIXEL_STD, check_masks, features, from_patches, grid_of, load_videomae, pixel_values,
    reconstruct, save_videomae, to_patches, videomae)

pytestmark = pytest.mark.usefixtures("one_thread")
tiny = dict(
    image_size=16, num_frames=4, patch_size=8, tubelet_size=2, width=32, depth=2, heads=2, decoder_width=32,
    decoder_depth=1)


def some_clips(n=3, frames=4, side=16, seed=0): return torch.from_numpy(
    np.random.default_rng(seed).integers(0, 256, (n, frames, 3, side, side), np.uint8))


def some_masks(n=3, tokens=8, hidden=5, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([rng.permutation(tokens) < hidden for _ in range(n)]))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))
def test_tokens_are_counted_slot_by_slot_row_by_row(slots, rows, columns, tubelet, high, wide):
    shape = slots * tubelet, 2, rows * high, columns * wide
    clips = torch.arange(2 * int(np.prod(shape))).reshape(2, *shape)
    patches = to_patches(clips, (slots, rows, columns))
    assert torch.equal(from_patches(patches, (slots, rows, columns), shape), clips)
    for s in range(slots):
        for r in range(rows):
            for c in range(columns):
                block = clips[
                    1, s * tubelet : (s + 1) * tubelet, :, r * high : (r + 1) * high, c * wide : (c + 1) * wide]
                assert torch.equal(patches[1, (s * rows + r) * columns + c], block.permute(0, 2, 3, 1).flatten())


@pytest.mark.parametrize("normalised", [False, True])
def test_the_loss_is_the_formula(normalised):
    model = videomae(**tiny, norm_pix_loss=normalised).eval()
    clips, masks = some_clips(), some_masks()
    with torch.no_grad(): out = model(pixel_values(model, clips), masks)
    target = to_patches(clips / 255, (2, 2, 2))[masks].reshape(3, 5, -1, 3)
    if normalised: target = (target - target.mean(2, keepdim=True)) / (target.std(2, keepdim=True) + 1e-6)
    assert out.loss.item() == pytest.approx((out.logits - target.flatten(2)).square().mean().item(), rel=1e-3)


def test_a_hidden_token_is_not_seen():
    model = videomae(**tiny).eval()
    clips, masks = some_clips(), some_masks()
    patches = to_patches(clips, (2, 2, 2)).clone()
    patches[masks] = 255 - patches[masks]
    other = from_patches(patches, (2, 2, 2), clips.shape[1:])
    with torch.no_grad(): a, b = (model(pixel_values(model, x), masks).logits for x in (clips, other))
    assert torch.equal(a, b)
    with torch.no_grad(): assert not torch.equal(a, model(pixel_values(model, other), some_masks(seed=1)).logits)


def test_pixels_are_prepared_as_transformers_prepares_them(tmp_path):
    model, clips = videomae(**tiny), some_clips()
    save_videomae(model, tmp_path)
    theirs = VideoMAEImageProcessor.from_pretrained(tmp_path)(list(clips[0]), return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixel_values(model, clips)[0], theirs[0], atol=1e-5)
    assert torch.allclose(pixel_values(model, clips), (clips / 255 - PIXEL_MEAN) / PIXEL_STD, atol=1e-5)


@pytest.mark.parametrize("clips", [some_clips(frames=2), some_clips(side=8), some_clips().float(), some_clips()[0]])
def test_clips_of_another_shape_are_refused(clips):
    with pytest.raises(PrimenbError, match=r"\(n, 4, 3, 16, 16\)"): pixel_values(videomae(**tiny), clips)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=5))
def test_only_equal_counts_pass(counts):
    masks = torch.stack([torch.arange(8) < n for n in counts])
    if len(set(counts)) == 1 and 0 < counts[0] < 8: assert check_masks(masks, 8) == counts[0]
    else:
        with pytest.raises(PrimenbError, match="another|all of|none of"): check_masks(masks, 8)


def test_unequal_counts_would_mix_clips():
    "Why they are refused: what the first clip sees changes what is said of the second, without an error."
    model, masks = videomae(**tiny).eval(), torch.stack([torch.arange(8) < 2, torch.arange(8) < 6])
    clips = some_clips(2)
    other = torch.stack([255 - clips[0], clips[1]])
    with torch.no_grad(): a, b = (model(pixel_values(model, x), masks).logits[1] for x in (clips, other))
    assert not torch.equal(a, b)
    with pytest.raises(PrimenbError, match="one clip hides 2 tokens and another 6"): reconstruct(model, clips, masks)


@pytest.mark.parametrize("masks", [
    torch.ones(0, 8, dtype=torch.bool), torch.ones(2, 8), torch.ones(2, 9, dtype=torch.bool),
    torch.ones(8, dtype=torch.bool)])
def test_what_is_no_mask_is_refused(masks):
    with pytest.raises(PrimenbError): check_masks(masks, 8)


@pytest.mark.parametrize("normalised", [False, True])
def test_reconstruction_leaves_alone_what_is_visible(normalised):
    model = videomae(**tiny, norm_pix_loss=normalised)
    clips, masks = some_clips(), some_masks()
    reconstructed = reconstruct(model, clips, masks)
    assert reconstructed.shape == clips.shape and reconstructed.dtype == torch.uint8
    a, b = (to_patches(x, (2, 2, 2)) for x in (reconstructed, clips))
    assert torch.equal(a[~masks], b[~masks]) and not torch.equal(a[masks], b[masks])


@pytest.mark.parametrize("normalised", [False, True])
def test_a_perfect_answer_gives_the_clip_back(normalised):
    "A decoder that has learnt one clip by heart."
    torch.manual_seed(0)
    y, x = np.mgrid[:16, :16]
    ramp = np.stack([np.stack([8 * x + 4 * t, 8 * y, 60 + 4 * (x + y)]) for t in range(4)])[None].astype(np.uint8)
    model = videomae(**tiny, norm_pix_loss=normalised)
    clips, masks = torch.from_numpy(ramp), some_masks(1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(250):
        loss = model(pixel_values(model, clips), masks).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (reconstruct(model, clips, masks).float() - clips.float()).abs().mean() < 4


def test_features_are_those_of_the_encoder_alone():
    model, clips = videomae(**tiny), some_clips(5)
    model.train()
    found = features(model, clips, batch_size=2)
    assert found.shape == (5, 8, 32) and model.training
    with torch.no_grad():
        assert torch.allclose(found, model.videomae(pixel_values(model, clips)).last_hidden_state, atol=1e-5)


def test_the_seed_decides_the_weights_and_nothing_else():
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    a, b = (videomae(**tiny, seed=1).state_dict() for _ in range(2))
    c = videomae(**tiny, seed=2).state_dict()
    assert torch.equal(torch.rand(1), before)
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize("wrong", [dict(patch_size=7), dict(tubelet_size=3), dict(heads=5), dict(patch_size=0)])
def test_sizes_must_fit(wrong):
    with pytest.raises(PrimenbError, match="no multiple"): videomae(**{**tiny, **wrong})


def test_others_can_load_it(tmp_path):
    model, clips = videomae(**tiny), some_clips()
    save_videomae(model, tmp_path)
    theirs = VideoMAEModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(theirs(pixel_values(model, clips)).last_hidden_state, features(model, clips))
    again = load_videomae(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    masks = some_masks()
    with torch.no_grad():
        assert again.eval()(
            pixel_values(again, clips), masks).loss == model.eval()(pixel_values(model, clips), masks).loss
    assert grid_of(again.config) == (2, 2, 2)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(PrimenbError, match="it holds no VideoMAE"): load_videomae(tmp_path / "nothing")
    save_videomae(videomae(**tiny), tmp_path)
    VideoMAEModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "encoder")
    with pytest.raises(PrimenbError, match="no decoder"): load_videomae(tmp_path / "encoder")
    prepare = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepare | dict(image_mean=[0.5, 0.5, 0.5])))
    with pytest.raises(PrimenbError, match="the loss takes ImageNet's for granted"): load_videomae(tmp_path)


def test_sizes_may_be_any():
    model = videomae(
        image_size=24, num_frames=6, patch_size=6, tubelet_size=3, width=48, depth=1, heads=3, decoder_width=64,
        decoder_depth=1)
    assert grid_of(model.config) == (2, 4, 4)
    assert features(model, some_clips(2, 6, 24)).shape == (2, 32, 48)
