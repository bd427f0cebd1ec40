"Towers, words and images: what belongs together stays together, and what does not fit is refused."
import io, json, os, pickle, re, subprocess, sys

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings, strategies as st
from open_clip.push_to_hf_hub import save_for_hf
from PIL import Image
from safetensors.torch import load_file, save_file

from primenb.clip.model import CLIP_CONFIG, CLIP_WEIGHTS, CaptionTokenizer, ConvTower, load_clip, small_clip, to_rgb
from primenb.clip.model import word_tokenizer
from primenb.core import PrimenbError
from primenb.data.corpus import PairDataset
from primenb.data.records import Pair

CAPTIONS = ["A person in a red coat, by day", "two people at night", "a close-up of a dog", "in the snow"]
pytestmark = pytest.mark.usefixtures("one_thread")
quick = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module")
def clip():
    "A model whose batch norm has seen something, so that evaluation differs from training."
    clip = small_clip(CAPTIONS, image_size=32)
    for n in range(3):
        clip.model(
            torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(n)) + n, clip.tokenizer(CAPTIONS * 2)
        )
    return clip


@pytest.fixture(scope="module")
def saved(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    clip.save(folder)
    return folder


def random_images(n=5, size=(40, 56), seed=0):
    return np.random.default_rng(seed).integers(0, 255, (n, *size, 3), dtype=np.uint8)


def refused(make, *words):
    "It is refused, with all these words."
    with pytest.raises(PrimenbError) as error: make()
    assert all(word in str(error.value) for word in words), str(error.value)


def same(a, b): return torch.equal(a, b) and a.dtype == b.dtype


# --- the image tower


@pytest.mark.parametrize("size", [32, 48, 64, 33])
def test_tower_in_open_clip(size):
    tower = open_clip.timm_model.TimmModel("primenb_conv", 24, size)
    assert tower(torch.zeros(2, 3, size, size)).shape == (2, 24)
    loss = tower(torch.randn(4, 3, size, size)).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tower.parameters())
    tower.lock()
    assert not any(p.requires_grad for p in tower.trunk.parameters())


def test_tower_in_timm():
    import timm
    tower = timm.create_model("primenb_conv", num_classes=7, widths=(8, 16))
    assert tower(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    tower.reset_classifier(0)
    assert tower(torch.zeros(2, 3, 16, 16)).shape == (2, tower.num_features) == (2, 16)
    tower.reset_classifier(0, "")
    assert tower(torch.zeros(2, 3, 16, 16)).shape == (2, 16, 4, 4)
    refused(lambda: timm.create_model("primenb_conv", pretrained=True), "no weights of it")


def test_tower_is_plain_convolutions():
    "The same as PyTorch's own layers, one after the other, in its ordinary layout."
    tower, x = ConvTower().eval(), torch.randn(3, 3, 48, 48)
    plain = x
    for conv, norm, _ in tower.stages:
        plain = torch.relu(torch.nn.functional.batch_norm(
            torch.nn.functional.conv2d(plain, conv.weight, stride=2, padding=1), norm.running_mean, norm.running_var,
            norm.weight, norm.bias
        ))
    assert torch.allclose(tower(x), plain.mean((2, 3)), atol=1e-5)


# --- words

words = st.lists(st.sampled_from("a red close-up of dog , . Dog SNOW in two".split()), min_size=1, max_size=12)


def split(text): return re.findall(r"\w+(?:-\w+)*|[^\w\s]", text.lower())


@quick
@given(st.lists(words, min_size=1, max_size=8))
def test_words_are_those_of_a_regular_expression(sentences):
    captions = [" ".join(s) for s in sentences]
    tokenizer = word_tokenizer(captions)
    inner, longest = tokenizer.tokenizer.tokenizer, max(len(split(c)) for c in captions)
    assert tokenizer.context_length == longest + 2
    assert set(inner.get_vocab()) == {
        "[pad]", "[unknown]", "[start]", "[end]"
    } | {w for c in captions for w in split(c)}
    tokens = tokenizer(captions)
    assert tokens.shape == (len(captions), longest + 2) and tokens.dtype == torch.int64
    for caption, row in zip(captions, tokens):
        n = len(split(caption))
        assert inner.convert_ids_to_tokens(row[: n + 2]) == ["[start]", *split(caption), "[end]"]
        assert (row[n + 2 :] == inner.pad_token_id).all() and int(row.argmax()) == n + 1


def test_order_and_repetition_of_captions_do_not_matter():
    assert same(word_tokenizer(CAPTIONS)(CAPTIONS), word_tokenizer(CAPTIONS[::-1] * 2)(CAPTIONS))


def test_unknown_words_are_one_word(clip):
    a, b = clip.tokenizer(["a zebra", "a GNU"])
    assert same(a, b) and clip.tokenizer.tokenizer.tokenizer.unk_token_id in a


@pytest.mark.parametrize("bad, why", [(["a dog", ""], "caption 1: there is no word in ''"), (["  \n\t"], "caption 0"), (
    ["a dog", None], "caption 1: it is None, of type NoneType"
), ([3], "caption 0: it is 3, of type int"),
                                      ([float("nan")], "nan, of type float"), ([b"a dog"], "of type bytes"), (
                                          None, "give a list of texts"
                                      ), (7, "give a list of texts"), (
                                          ["a dog " * 9], "'a dog a dog"
                                      ), ([["a dog"]], "of type list")])
def test_captions_that_cannot_be_read(clip, bad, why): refused(lambda: clip.tokenizer(bad), why)


@pytest.mark.parametrize(
    "make",
    [lambda: word_tokenizer(["dog " * 10]), lambda: CaptionTokenizer(open_clip.SimpleTokenizer(context_length=12))],
    ids=["words", "pieces"]
)
def test_nothing_is_truncated_by_default(make):
    tokenizer = make()
    assert tokenizer.context_length == 12
    fits, longer = "dog " * 10, "dog " * 11
    assert tokenizer([fits, "dog"]).shape == (2, 12)
    refused(lambda: tokenizer(["dog", longer]), "caption 1", "dog dog", "longer than the 12 tokens", "truncate=True")
    assert same(tokenizer([longer], truncate=True), tokenizer([fits]))
    assert same(tokenizer("dog"), tokenizer(["dog"])) and tokenizer([]).shape == (0, 12)


@pytest.mark.parametrize("captions, context, why", [
    ([], None, "there is no word in 0"), (["", "a dog"], None, "caption 0"),
    (["a dog", "a dog in the snow"], 5, "caption 1"), ([None], None, "NoneType")
])
def test_captions_no_vocabulary_can_be_made_of(captions, context, why):
    refused(lambda: small_clip(captions, context=context), why)


def test_a_longer_context_has_room_for_longer_prompts():
    assert small_clip(["a dog"], context=9).tokenizer(["a dog a dog a dog"]).shape == (1, 9)


# --- images


def test_preparation_is_that_of_open_clip(saved, clip):
    _, _, reference = open_clip.create_model_and_transforms(f"local-dir:{saved}")
    for image in random_images(): assert same(clip.preprocess(image), reference(Image.fromarray(image)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_images_of_any_kind(clip, mode):
    image = Image.fromarray(np.full((40, 50, 3), 255, np.uint8)).convert("L" if mode == "PA" else "RGB").convert(mode)
    assert torch.allclose(clip.preprocess(image), clip.preprocess(np.full((40, 50, 3), 255, np.uint8)), atol=0.03)


def test_a_image_from_a_file_from_bytes_and_from_memory(clip, tmp_path):
    image = Image.fromarray(random_images()[0])
    image.save(tmp_path / "a.png")
    for same_image in (
        tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), Image.open(tmp_path / "a.png"),
        random_images()[0]
    ):
        assert same(clip.preprocess(same_image), clip.preprocess(image))
    grey = np.full((9, 9), 77, np.uint8)
    assert np.array_equal(np.asarray(to_rgb(grey)), np.full((9, 9, 3), 77))


def test_images_that_cannot_be_read(clip, tmp_path):
    Image.fromarray(random_images()[0]).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no image")
    refused(lambda: clip.encode_images([tmp_path / "half.png"]), "half.png: it cannot be decoded")
    refused(lambda: clip.encode_images([Image.open(tmp_path / "half.png")]), "half.png: it cannot be decoded")
    refused(lambda: clip.encode_images([tmp_path / "text.jpg"]), "text.jpg")
    refused(lambda: clip.encode_images([tmp_path / "none.jpg"]), "there is no such file")
    refused(lambda: clip.encode_images([b"no image"]), "an image: it cannot be decoded")
    for bad, why in (
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "I;16"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), "kind F"), (np.zeros((4, 4, 3)), "float64 of shape (4, 4, 3)"),
        (None, "NoneType"), (np.zeros((4, 4, 2), np.uint8), "(4, 4, 2)")
    ):
        refused(lambda: clip.encode_images([bad]), why)


def test_training_images_differ_and_are_seeded(clip):
    def some():
        torch.manual_seed(3)
        return [clip.augment(random_images()[0]) for _ in range(4)]
    a, b = some(), some()
    assert all(same(x, y) for x, y in zip(a, b)) and not same(a[0], a[1]) and a[0].shape == (3, 32, 32)


# --- embeddings


def test_embeddings_do_not_depend_on_the_form_of_images(clip):
    many = random_images(7)
    embeddings = clip.encode_images(many)
    assert embeddings.shape == (7, 64)
    assert embeddings.dtype == torch.float32
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(7))
    assert torch.allclose(clip.encode_images(many, batch_size=2), embeddings, atol=1e-6)
    for form in (
        list(many), [Image.fromarray(p) for p in many], (p for p in many),
        torch.stack([clip.preprocess(p) for p in many])
    ):
        assert same(clip.encode_images(form), embeddings)
    with torch.no_grad():
        reference = clip.model.eval().encode_image(torch.stack([clip.preprocess(p) for p in many]), normalize=True)
    assert torch.allclose(embeddings, reference, atol=1e-6)


def test_embeddings_of_texts(clip):
    embeddings = clip.encode_texts(CAPTIONS)
    assert embeddings.shape == (4, 64) and torch.allclose(embeddings.norm(dim=1), torch.ones(4))
    assert same(clip.encode_texts(clip.tokenizer(CAPTIONS)), embeddings)
    assert torch.allclose(clip.encode_texts(CAPTIONS, batch_size=3), embeddings, atol=1e-6)
    refused(lambda: clip.encode_texts(["a dog", " "]), "caption 1")
    refused(lambda: clip.encode_texts(clip.tokenizer(CAPTIONS)[:, :5]), "int64 of shape (4, 5)")


def test_nothing_gives_no_embeddings(clip):
    for nothing in ([], np.zeros((0, 8, 8, 3), np.uint8), torch.zeros(0, 3, 32, 32)):
        assert clip.encode_images(nothing).shape == (0, 64)
    assert clip.encode_texts([]).shape == (0, 64)


@pytest.mark.parametrize("one", [
    "a.png", b"", np.zeros((4, 4, 3), np.uint8), Image.new("RGB", (4, 4)), torch.zeros(3, 32, 32),
    torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
], ids=lambda x: type(x).__name__)
def test_one_picture_is_no_list_of_images(clip, one): refused(lambda: clip.encode_images(one), "images")


def test_training_goes_on_as_before():
    clip = small_clip(CAPTIONS, image_size=32)
    clip.model.train()
    clip.model.visual.trunk.stages[0].eval()  # a frozen part
    modes = [m.training for m in clip.model.modules()]
    state = {k: v.clone() for k, v in clip.model.state_dict().items()}
    images, texts = clip.encode_images(random_images()), clip.encode_texts(CAPTIONS)
    assert [m.training for m in clip.model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in clip.model.state_dict().items())
    with pytest.raises(PrimenbError): clip.encode_images([None])
    assert [m.training for m in clip.model.modules()] == modes
    probe = torch.nn.Linear(64, 2)  # embeddings can be learnt from
    probe(images).sum().backward()
    (images[:4] * texts * torch.ones(64, requires_grad=True)).sum().backward()


def test_same_seed_same_model_and_the_global_generator_is_untouched():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a = small_clip(CAPTIONS, image_size=32)
    assert torch.equal(torch.rand(3), expected)
    b, c = small_clip(CAPTIONS, image_size=32), small_clip(CAPTIONS, image_size=32, seed=1)
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters()))
    assert not torch.equal(a.model.text_projection, c.model.text_projection)


def test_works_with_open_clip_and_loaders(clip):
    Image.fromarray(random_images()[0]).save(buffer := io.BytesIO(), "PNG")
    data = PairDataset(
        [Pair(str(n), buffer.getvalue(), (c,)) for n, c in enumerate(CAPTIONS)], clip.augment, clip.tokenizer
    )
    images, tokens = next(iter(torch.utils.data.DataLoader(data, 4)))
    out = clip.model(images, tokens)
    assert set(out) == {"image_features", "text_features", "logit_scale"} and images.shape == (4, 3, 32, 32)
    assert open_clip.ClipLoss()(**out).isfinite()
    weights = open_clip.build_zero_shot_classifier(
        clip.model, clip.tokenizer, ["dog", "coat"], [lambda c: f"a {c}", lambda c: f"a red {c}"],
        num_classes_per_batch=None
    )
    assert weights.shape == (64, 2)
    for part in (clip.preprocess, clip.augment, clip.tokenizer): pickle.loads(pickle.dumps(part))
    assert "primenb_conv at 32 pixels" in repr(clip) and len(repr(clip)) < 300


# --- folders


def test_written_and_read_to_the_last_bit(clip, saved):
    back = load_clip(saved)
    assert same(back.encode_images(random_images()), clip.encode_images(random_images()))
    assert same(back.encode_texts(CAPTIONS), clip.encode_texts(CAPTIONS))
    assert same(back.tokenizer(CAPTIONS), clip.tokenizer(CAPTIONS)) and back.config == clip.config
    assert all(same(a, b) for a, b in zip(back.model.state_dict().values(), clip.model.state_dict().values()))
    assert same(load_clip(f"local-dir:{saved}").encode_texts(CAPTIONS), clip.encode_texts(CAPTIONS))
    torch.manual_seed(1)
    a = clip.augment(random_images()[0])
    torch.manual_seed(1)
    assert same(back.augment(random_images()[0]), a)


def test_open_clip_reads_it_in_a_process_of_its_own_and_without_a_hub(clip, saved, tmp_path):
    np.save(tmp_path / "images.npy", random_images())
    script = """if True:
        import sys, numpy as np, open_clip, torch
        from PIL import Image
        from primenb.clip.model import load_clip
        from primenb.core import PrimenbError
        torch.set_num_threads(1)
        folder, out = sys.argv[1:]
        model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(%r)
        with torch.no_grad():
            prepared = torch.stack([prepare(Image.fromarray(p)) for p in np.load(f"{out}/images.npy")])
            images = model.eval().encode_image(prepared, normalize=True)
            texts = model.encode_text(tokens, normalize=True)
        torch.save((images, texts, tokens), f"{out}/out.pt")
        for name, tag in (("ViT-B-32", "openai"), ("ViT-B-16-SigLIP", None), ("hf-hub:nobody/nothing", None)):
            try: load_clip(name, tag)
            except PrimenbError as e: print(e)""" % (CAPTIONS,)
    done = subprocess.run(
        [sys.executable, "-c", script, saved, tmp_path], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True,
        text=True
    )
    assert done.returncode == 0, done.stderr
    images, texts, tokens = torch.load(tmp_path / "out.pt")
    assert same(images, clip.encode_images(random_images()))
    assert same(texts, clip.encode_texts(CAPTIONS))
    assert same(tokens, clip.tokenizer(CAPTIONS))
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(
        "cannot be downloaded" in line and "copy a folder" in line for line in lines
    ), done.stdout + done.stderr


def test_a_folder_that_open_clip_wrote(clip, tmp_path):
    model = {k: v for k, v in clip.config.items() if k != "preprocess_cfg"}
    save_for_hf(clip.model, clip.tokenizer.tokenizer, model, tmp_path, safe_serialization=True)
    assert same(load_clip(tmp_path).encode_images(random_images()), clip.encode_images(random_images()))
    (tmp_path / CLIP_WEIGHTS).unlink()
    torch.save(clip.model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    assert same(load_clip(tmp_path).encode_texts(CAPTIONS), clip.encode_texts(CAPTIONS))


def test_a_folder_without_tokenizer_files_has_the_words_of_clip(tmp_path):
    towers = dict(
        embed_dim=16, vision_cfg=dict(timm_model_name="primenb_conv", image_size=32),
        text_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1)
    )
    (tmp_path / CLIP_CONFIG).write_text(json.dumps(dict(model_cfg=towers)))
    torch.manual_seed(0)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    save_file(model.state_dict(), tmp_path / CLIP_WEIGHTS)
    clip = load_clip(tmp_path)
    assert same(clip.tokenizer(["a zebra"]), open_clip.get_tokenizer("ViT-B-32", context_length=16)(["a zebra"]))
    clip.save(tmp_path / "again")
    assert same(load_clip(tmp_path / "again").encode_texts(["a zebra"]), clip.encode_texts(["a zebra"]))
    assert sorted(f.name for f in (tmp_path / "again").iterdir()) == [CLIP_CONFIG, CLIP_WEIGHTS]


def test_saving_again_and_beside_other_files(clip, saved, tmp_path):
    clip.save(tmp_path / "deep/er")
    (tmp_path / "deep/er/notes.txt").write_text("mine")
    other = small_clip(["another", "two words"], image_size=32, embed_dim=8)
    other.save(tmp_path / "deep/er")
    assert same(load_clip(tmp_path / "deep/er").encode_texts(["another"]), other.encode_texts(["another"]))
    assert {f.name for f in (tmp_path / "deep/er").iterdir()} == {f.name for f in saved.iterdir()} | {"notes.txt"}
    assert str(tmp_path) not in "".join(f.read_text() for f in (tmp_path / "deep/er").glob("*.json"))


def test_a_save_that_fails_leaves_the_model_that_was_there(clip, saved, tmp_path):
    clip.save(tmp_path)
    (tmp_path / CLIP_WEIGHTS).chmod(0o444)
    other = small_clip(CAPTIONS, image_size=32, seed=7)
    refused(lambda: other.save(tmp_path), CLIP_WEIGHTS, "write-protected")
    assert same(load_clip(tmp_path).encode_texts(CAPTIONS), clip.encode_texts(CAPTIONS))
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in saved.iterdir()}


def test_images_of_another_mean(tmp_path):
    clip = small_clip(CAPTIONS, image_size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert torch.allclose(clip.preprocess(np.full((32, 32, 3), 255, np.uint8)), torch.full((3, 32, 32), 2.0))
    clip.save(tmp_path)
    assert same(load_clip(tmp_path).preprocess(random_images()[0]), clip.preprocess(random_images()[0]))


def test_other_image_towers(tmp_path):
    clip = small_clip(CAPTIONS, image_size=32, vision="resnet10t", embed_dim=16, width=32, layers=2)
    clip.save(tmp_path)
    assert same(load_clip(tmp_path).encode_images(random_images()), clip.encode_images(random_images()))
    refused(lambda: small_clip(CAPTIONS, vision="no_such_net"), "no_such_net")


# --- what does not fit


def spoil(saved, folder, **files):
    "A copy of a model with some files changed, or removed where None."
    folder.mkdir()
    for file in saved.iterdir():
        content = files.get(file.name.split(".")[0], file.read_bytes())
        if content is not None: (folder / file.name).write_bytes(content)
    return folder


def test_damaged_folders(saved, tmp_path):
    weights, config = (saved / CLIP_WEIGHTS).read_bytes(), json.loads((saved / CLIP_CONFIG).read_text())
    refused(
        lambda: load_clip(spoil(saved, tmp_path / "a", open_clip_model=None)), "there are no weights in it",
        "interrupted"
    )
    refused(
        lambda: load_clip(spoil(saved, tmp_path / "b", open_clip_model=weights[: len(weights) // 2])), CLIP_WEIGHTS,
        "cannot be read as weights"
    )
    refused(lambda: load_clip(spoil(saved, tmp_path / "c", open_clip_config=None)), f"there is no {CLIP_CONFIG}")
    refused(lambda: load_clip(spoil(saved, tmp_path / "d", open_clip_config=b'{"model_cfg": ')), CLIP_CONFIG, "no JSON")
    refused(lambda: load_clip(spoil(saved, tmp_path / "e", open_clip_config=b"{}")), "no model_cfg")
    refused(
        lambda: load_clip(spoil(saved, tmp_path / "f", tokenizer=b"{", tokenizer_config=b"{")),
        "tokenizer cannot be read"
    )
    config["model_cfg"]["vision_cfg"]["colour"] = 3
    refused(
        lambda: load_clip(spoil(saved, tmp_path / "g", open_clip_config=json.dumps(config).encode())), CLIP_CONFIG,
        "colour"
    )


@pytest.mark.parametrize("change, names", [(
    dict(embed_dim=32),
    ["visual.head.proj.weight is (32, 256) in the file and (64, 256) in the model", "text_projection"]
), (dict(context=20), ["positional_embedding is (20, 64)"]),
                                           (dict(layers=2), ["transformer.resblocks.1", "is not in the model"])], ids=[
                                               "dim", "context", "layers"
                                           ])
def test_weights_of_another_config(saved, tmp_path, change, names):
    small_clip(CAPTIONS, image_size=32, **change).save(tmp_path)
    refused(lambda: load_clip(saved, tmp_path / CLIP_WEIGHTS), CLIP_WEIGHTS, "another config", *names)


def test_weights_of_which_some_are_missing(saved, tmp_path):
    state = load_file(saved / CLIP_WEIGHTS)
    del state["visual.head.proj.weight"]
    save_file(state, tmp_path / "less.safetensors")
    refused(lambda: load_clip(saved, tmp_path / "less.safetensors"), "visual.head.proj.weight, (64, 256), is missing")


def test_checkpoints_of_training(clip, saved, tmp_path):
    torch.save(
        dict(epoch=3, state_dict={f"module.{k}": v for k, v in clip.model.state_dict().items()}),
        tmp_path / "epoch_3.pt"
    )
    assert same(load_clip(saved, tmp_path / "epoch_3.pt").encode_texts(CAPTIONS), clip.encode_texts(CAPTIONS))
    torch.save(dict(step=3, model=clip.model.state_dict()), tmp_path / "other.pt")
    refused(lambda: load_clip(saved, tmp_path / "other.pt"), "'step', which is no weight")
    (tmp_path / "text.pt").write_text("no weights")
    refused(lambda: load_clip(saved, tmp_path / "text.pt"), "cannot be read as weights")
    refused(lambda: load_clip(saved, tmp_path / "none.pt"), "none.pt")


# --- open_clip's own names


def test_open_clip_by_name(tmp_path):
    clip = load_clip("ViT-S-32-alt")
    assert clip.encode_images(random_images(1)).shape == (1, 256) and clip.tokenizer.context_length == 77
    torch.save(clip.model.state_dict(), tmp_path / "weights.pt")
    assert same(
        load_clip("ViT-S-32-alt", tmp_path / "weights.pt").encode_texts(["a dog"]), clip.encode_texts(["a dog"])
    )
    refused(
        lambda: load_clip("ViT-S-16-alt", tmp_path / "weights.pt"), "another config",
        "visual.conv1.weight is (384, 3, 32, 32)"
    )


def test_names_that_are_none():
    refused(lambda: load_clip("ViT-B-33"), "neither a folder nor a model", "ViT-B-32")
    refused(lambda: load_clip("no/such/folder"), "neither a folder nor a model")
    refused(lambda: load_clip("ViT-B-32", "best"), "neither a file nor a tag of ViT-B-32", "openai")
