"""Codecs agree with the libraries that they wrap, are identified by their weights, and are never saved with a model."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from latent_models import tiny_files
from PIL import Image
from safetensors.torch import load_file, save_file

from asyncdiff.checkpoints import object_config
from asyncdiff.cli import train as cli
from asyncdiff.cli.commands.shared.command_parser import command_parser
from asyncdiff.cli.errors.user_errors import user_error_message
from asyncdiff.latents import Codec, DiffusersAutoencoder, Identity, TinyAutoencoder, autoencoder, check_same_codec
from asyncdiff.networks.dit import DiT
from asyncdiff.training.lightning_module import AsyncDiffusion

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
PHOTOGRAPHS = SHARED / "imagenet_sample" / "train"


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def tiny(tmp_path):
    return tiny_files(tmp_path)


def saved(folder, kind, **config):
    """A random autoencoder of diffusers in a folder, and its network."""
    import diffusers

    torch.manual_seed(0)
    network = getattr(diffusers, kind)(**config).eval()
    network.save_pretrained(folder)
    return network


KL = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
    "latent_channels": 2,
}
VQ = KL | {"vq_embed_dim": 3, "num_vq_embeddings": 16}
TINY = {"latent_channels": 5, "encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}


def error_of(call, *arguments):
    with pytest.raises((ValueError, OSError)) as caught:
        call(*arguments)
    line = user_error_message(caught.value)
    assert line is not None, "a refusal on purpose"
    assert "\n" not in str(caught.value)
    return line


# Against what they stand for


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs are not here")
@pytest.mark.parametrize(
    ("every", "mean", "low", "high"),
    [(1000, 32.97, 32.97, 32.97), pytest.param(250, 27.60, 19.93, 32.97, marks=pytest.mark.slow)],
)
def test_taef2_reconstructs_photographs(every, mean, low, high):
    weights = SHARED / "weights"
    codec = TinyAutoencoder(str(weights / "taef2_encoder.safetensors"), str(weights / "taef2_decoder.safetensors"))
    images = torch.stack([center_crop(file) for file in sorted(PHOTOGRAPHS.rglob("*.JPEG"))[::every]])
    latents = codec.encode(images)
    assert latents.shape == (1000 // every, 32, 32, 32)
    error = ((codec.decode(latents).clamp(-1, 1) - images) / 2).square().mean((1, 2, 3))
    psnr = -10 * torch.log10(error)
    assert psnr.mean().item() == pytest.approx(mean, abs=0.01)
    assert psnr.min().item() == pytest.approx(low, abs=0.01)
    assert psnr.max().item() == pytest.approx(high, abs=0.01)


def center_crop(file):
    image = Image.open(file).convert("RGB")
    left, top = (image.width - 256) // 2, (image.height - 256) // 2
    pixels = np.array(image.crop((left, top, left + 256, top + 256)))
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize(
    ("kind", "config", "options", "channels"),
    [("AutoencoderKL", KL | {"scaling_factor": 0.25, "shift_factor": 0.5}, {}, 2), ("VQModel", VQ, {"scale": 2.0}, 3)],
)
def test_autoencoders_agree_with_the_library(kind, config, options, channels, tmp_path, images):
    network = saved(tmp_path, kind, **config)
    codec = DiffusersAutoencoder(str(tmp_path), **options)
    assert (codec.channels, codec.pixel_channels, codec.factor) == (channels, 3, 4)
    moments = codec.moments(images)
    with torch.no_grad():
        encoded = network.encode(images)
        raw = encoded.latent_dist.mean if kind == "AutoencoderKL" else encoded.latents
    torch.testing.assert_close(moments.mean, raw)
    if kind == "AutoencoderKL":
        torch.testing.assert_close(moments.logvar, encoded.latent_dist.logvar)
    else:
        assert moments.logvar is None
    latents = codec.encode(images)
    torch.testing.assert_close(latents, (raw - 0.5) * 0.25 if kind == "AutoencoderKL" else raw * 2)
    with torch.no_grad():  # a VQModel quantizes here
        pixels = network.decode(latents / 0.25 + 0.5 if kind == "AutoencoderKL" else latents / 2).sample
    torch.testing.assert_close(codec.decode(latents), pixels)


def test_tiny_autoencoders_agree_with_the_library(tmp_path, images):
    network = saved(tmp_path / "theirs", "AutoencoderTiny", **TINY)
    (tmp_path / "ours").mkdir()
    for name, first in (("encoder", 0), ("decoder", 1)):  # diffusers limits latents in a function, not in a layer
        state = {}
        for key, tensor in getattr(network, name).layers.state_dict().items():
            place, _, rest = key.partition(".")
            state[f"{int(place) + first}.{rest}"] = tensor
        save_file(state, tmp_path / "ours" / f"{name}.safetensors")
    ours = TinyAutoencoder(*(str(tmp_path / "ours" / f"{name}.safetensors") for name in ("encoder", "decoder")))
    theirs = DiffusersAutoencoder(str(tmp_path / "theirs"))
    assert ours.channels == theirs.channels == 5
    assert ours.factor == theirs.factor == 8
    with torch.no_grad():
        raw = network.encode(images).latents
        pixels = network.decode(raw).sample
    for codec in (ours, theirs):
        assert torch.equal(codec.encode(images), raw)
        assert torch.equal(codec.decode(raw), pixels)


def test_pools_are_read_from_the_files(tmp_path, images):
    plain = tiny_files(tmp_path)
    assert plain.encode(images).shape == (3, 4, 4, 3)
    state = load_file(plain.encoder)
    pooled = tiny_files(tmp_path, channels=16, pooled=True)
    assert len(load_file(pooled.encoder)) == len(state) + 3 * 4
    assert pooled.decode(pooled.encode(images)).shape == images.shape
    assert pooled.channels == 16


def test_identity_is_exact(images):
    codec = Identity()
    assert torch.equal(codec.decode(codec.encode(images)), images)
    assert codec.fingerprint() == {
        "class": "asyncdiff.latents.Identity",
        "weights": None,
        "channels": 3,
        "factor": 1,
        "scale": [1.0] * 3,
        "shift": [0.0] * 3,
    }


@pytest.mark.parametrize("numbers", [(0.5, 0.25), ([2.0, 0.5, 4.0, 1.0], [0.5, 0.0, -1.0, 0.25])])
def test_scale_and_shift_are_inverted(tiny, numbers):
    codec = TinyAutoencoder(tiny.encoder, tiny.decoder, *numbers)
    raw = torch.arange(64.0).reshape(2, 4, 2, 4)  # powers of two leave it exact
    scale, shift = (torch.tensor(n).expand(4)[:, None, None] for n in numbers)
    assert torch.equal(codec.scaled(raw), (raw - shift) * scale)
    assert torch.equal(codec.unscaled(codec.scaled(raw)), raw)


def test_chunks_give_the_same_result(tiny, images, monkeypatch):
    whole = tiny.decode(tiny.encode(images))
    sizes = []
    decode_raw = TinyAutoencoder.decode_raw
    monkeypatch.setattr(TinyAutoencoder, "decode_raw", lambda *a: sizes.append(len(a[2])) or decode_raw(*a))
    monkeypatch.setattr(autoencoder, "PIXELS_AT_ONCE", 2 * 32 * 24 + 1)
    torch.testing.assert_close(tiny.decode(tiny.encode(images)), whole)
    assert sizes == [2, 1]


def test_neither_autocast_nor_gradients_nor_inference_reach_the_network(tiny, images):
    expected = copy.deepcopy(tiny).encode(images)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        latents = tiny.encode(images)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, expected)
    leaf = images.clone().requires_grad_()
    assert not tiny.encode(leaf).requires_grad
    assert torch.equal(tiny.decode(tiny.encode(leaf)), tiny.decode(expected))  # loaded during inference, used outside
    half = TinyAutoencoder(tiny.encoder, tiny.decoder, dtype="bfloat16")
    pixels = half.decode(half.encode(images))
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, tiny.decode(expected), atol=0.1, rtol=0)
    assert half.weights_sha256() == tiny.weights_sha256()


def test_loading_draws_no_random_numbers(tmp_path, tiny):
    saved(tmp_path, "AutoencoderKL", **KL)
    for codec in (tiny, DiffusersAutoencoder(str(tmp_path))):
        before = torch.get_rng_state()
        codec.weights_sha256()
        assert torch.equal(torch.get_rng_state(), before)


# Fingerprints


def test_a_codec_copied_to_another_folder_has_the_same_fingerprint(tmp_path):
    saved(tmp_path / "here", "AutoencoderKL", **KL)
    shutil.copytree(tmp_path / "here", tmp_path / "pipeline" / "vae")
    here, there = (DiffusersAutoencoder(str(tmp_path / name)) for name in ("here", "pipeline"))
    assert here.fingerprint() == there.fingerprint()
    assert json.loads(json.dumps(here.fingerprint())) == here.fingerprint()
    assert here.fingerprint()["scale"] == [0.18215] * 2
    check_same_codec(here, there.fingerprint())


def test_another_weight_scale_or_shift_changes_the_fingerprint(tmp_path, tiny):
    fingerprint = tiny.fingerprint()
    state = load_file(tiny.decoder)
    state["19.bias"][0] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    other = TinyAutoencoder(tiny.encoder, str(tmp_path / "other.safetensors"))
    assert other.fingerprint() | {"weights": fingerprint["weights"]} == fingerprint
    expected = f"got weights {other.weights_sha256()[:12]} instead of {fingerprint['weights'][:12]}: "
    assert f"model.codec must be the one that encoded the data, {expected}" in error_of(
        check_same_codec, other, fingerprint
    )
    scaled = TinyAutoencoder(tiny.encoder, tiny.decoder, scale=0.5)
    assert "got scale 0.5 instead of 1: " in error_of(check_same_codec, scaled, fingerprint)
    shifted = TinyAutoencoder(tiny.encoder, tiny.decoder, shift=[0.0, 1.0, 0.0, 0.0])
    assert "got shift [0.0, 1.0, 0.0, 0.0] instead of 0: " in error_of(check_same_codec, shifted, fingerprint)
    check_same_codec(TinyAutoencoder(tiny.encoder, tiny.decoder, scale=[1.0] * 4), fingerprint)


def test_scale_and_shift_of_the_config_json(tmp_path):
    saved(tmp_path, "AutoencoderKL", **KL, scaling_factor=0.5, latents_mean=(1.0, 2.0), latents_std=(2.0, 4.0))
    assert DiffusersAutoencoder(str(tmp_path)).normalization() == ([0.25, 0.125], [1.0, 2.0])
    assert DiffusersAutoencoder(str(tmp_path), scale=3.0, shift=0.0).normalization() == ([3.0] * 2, [0.0] * 2)


# Weights of codecs are never saved


def model_with(codec, channels=4):
    return AsyncDiffusion(DiT(channels=channels, patch_size=2, dim=32, depth=1, heads=2), codec=codec, image_size=8)


def test_a_model_has_no_weights_of_its_codec(tiny, images, tmp_path):
    model = model_with(tiny)
    before = set(model.state_dict())
    assert torch.equal(model.decode(model.encode(images)), tiny.decode(tiny.encode(images)))
    assert set(model.state_dict()) == before
    assert all("codec" not in name for name, _ in model.named_modules())
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    described = checkpoint["recipe"]["init_args"]["codec"]
    assert described["class_path"] == "asyncdiff.latents.TinyAutoencoder"
    assert described["init_args"]["encoder"] == tiny.encoder
    torch.save(checkpoint, tmp_path / "a.ckpt")
    loaded = AsyncDiffusion.load_from_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(loaded.encode(images), tiny.encode(images))


def test_copies_of_a_codec_do_not_contain_weights(tiny, images):
    latents = tiny.encode(images)
    for copied in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
        assert copied._loaded is None
        assert torch.equal(copied.encode(images), latents)
    assert len(pickle.dumps(tiny)) < 1000


def test_codecs_can_be_described_without_their_files():
    for codec in (TinyAutoencoder("a", "b", [1.0, 2.0]), DiffusersAutoencoder("owner/name", "vae")):
        described = object_config.describe(codec)
        assert object_config.describe(object_config.build(described)) == described


def test_models_can_be_built_without_the_codec_s_files_but_not_with_other_channels(tiny, tmp_path):
    model = model_with(TinyAutoencoder(str(tmp_path / "gone.pth"), str(tmp_path / "decoder.pth")))
    assert error_of(model.decode, torch.zeros(1, 4, 8, 8)) == (
        f"encoder must be an existing weights file, got {tmp_path}/gone.pth: "
        "set model.codec, or --codec, to the path of one"
    )
    assert error_of(model_with, tiny, 8).startswith("network.channels must equal the codec's 4, got 8: set it to 4")


# Files of the command lines


@pytest.mark.parametrize("file", sorted((ROOT / "experiments" / "codecs").glob("*.yaml")), ids=lambda f: f.stem)
def test_codec_files_work_for_commands_and_train(file, monkeypatch):
    monkeypatch.setenv("ASYNCDIFF_WEIGHTS", "/weights")
    monkeypatch.setenv("ASYNCDIFF_SD_VAE", "/weights/vae")
    monkeypatch.setenv("ASYNCDIFF_VQ_F4", "/weights/vq")
    parser = command_parser("sample", "")
    parser.add_argument("--codec", type=Codec, sub_configs=True)
    named = parser.instantiate(parser.parse_args(["--codec", str(file)])).codec
    made = []
    monkeypatch.setattr(cli.ExperimentCLI, "_run_subcommand", lambda self, _: made.append(self.model.codec))
    experiment = str(ROOT / "experiments" / "digits_dit_async.yaml")
    cli.main(["fit", "--config", experiment, "--model.codec", str(file), "--trainer.accelerator", "cpu"])
    assert object_config.describe(named) == object_config.describe(made[0])
    first = object_config.describe(named)["init_args"]
    assert next(iter(first.values())).startswith("/weights/")


# Mistakes


def test_pth_files_give_the_same_codec(tmp_path, tiny):
    for name in ("encoder", "decoder"):
        torch.save(load_file(getattr(tiny, name)), tmp_path / f"{name}.pth")
    loaded = TinyAutoencoder(str(tmp_path / "encoder.pth"), str(tmp_path / "decoder.pth"))
    assert loaded.fingerprint() == tiny.fingerprint()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TinyAutoencoder("a", "b", scale=0.0), "scale must be finite and not 0, .* got 0.0"),
        (lambda: TinyAutoencoder("a", "b", shift=[float("nan")]), "shift must be finite, .* got .nan."),
        (lambda: Identity(0), "channels must be at least 1, got 0"),
    ],
)
def test_invalid_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_inputs_and_files_of_the_wrong_shape_are_refused(tiny, images, tmp_path):
    (tmp_path / "text.safetensors").write_text("no tensors")
    text = str(tmp_path / "text.safetensors")
    for call, argument, message in (
        (tiny.encode, images[:, :, 1:-1], "got 3x30x24: resize or crop them"),
        (tiny.encode, images[:, :1], "got 1x32x24"),
        (tiny.decode, torch.zeros(1, 8, 2, 2), "latents must have the codec's 4 channels, got 8"),
        (
            TinyAutoencoder(tiny.encoder, tiny.decoder, [1.0, 2.0]).encode,
            images,
            "got 2 for 4 channels: use 1 or 4 numbers",
        ),
        (TinyAutoencoder(tiny.decoder, tiny.encoder).encode, images, "encoder must have TAESD's layout"),
        (TinyAutoencoder(text, tiny.decoder).encode, images, "encoder must be a safetensors file"),
    ):
        assert message in error_of(call, argument)


def test_folders_without_an_autoencoder_are_refused(tmp_path, monkeypatch, images):
    def refusal(path):
        return error_of(DiffusersAutoencoder(str(path)).encode, images)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    gone = tmp_path / "gone" / "vae"
    assert f"OWNER/NAME on the Hugging Face Hub, got {gone}: set" in refusal(gone)
    assert "got owner/name, which has none or cannot be reached" in refusal("owner/name")
    assert f"got {tmp_path}, which has none: " in refusal(tmp_path)
    for content, message in (
        ('{"_class_name": "UNet2DModel"}', "which has one for UNet2DModel: use the autoencoder's folder"),
        ("[", "config.json cannot be read as a JSON file"),
        ("[]", "config.json must contain a JSON object, got type list"),
    ):
        (tmp_path / "config.json").write_text(content)
        assert message in refusal(tmp_path)


def test_missing_weights_are_refused(tmp_path, images):
    saved(tmp_path, "AutoencoderKL", **KL)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    name = sorted(state)[0]
    save_file({key: tensor for key, tensor in state.items() if key != name}, file, {"format": "pt"})
    assert f"got none called {name}: download it again" in error_of(DiffusersAutoencoder(str(tmp_path)).encode, images)
    file.unlink()
    assert "cannot be loaded with its config.json" in error_of(DiffusersAutoencoder(str(tmp_path)).encode, images)


def test_error_without_diffusers_installed(tmp_path, monkeypatch, images):
    saved(tmp_path, "AutoencoderKL", **KL)
    codec = DiffusersAutoencoder(str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    assert codec.channels == 2  # read from the config.json
    assert error_of(codec.encode, images) == (
        "DiffusersAutoencoder needs the package diffusers, which is not installed: pip install diffusers"
    )
