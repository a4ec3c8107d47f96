"""Ported networks against the originals: diffusers' models, and the equations of the paper."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel
from diffusers.models.embeddings import get_timestep_embedding
from reference_dit import TIME, forward, random_weights

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.targets import NoiseTarget
from asyncdiff.networks import dit
from asyncdiff.networks.diffusers_keys import DIFFUSERS_PERIOD, from_diffusers, has_diffusers_names
from asyncdiff.networks.embeddings import grid_positions, sinusoids
from asyncdiff.networks.porting import DIT, SIT, Convention, _mlp_ratio, has_original_names, port_weights
from asyncdiff.noise.processes import LinearVP, RectifiedFlow
from asyncdiff.randomness import normal, per_image, seeded
from asyncdiff.sampling.guidance import ClassifierFree
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import DDIM

DIFFUSERS = Convention(1000.0, -1.0, period=DIFFUSERS_PERIOD)
LABELS = torch.tensor([0, 7, 10])  # 10 is "no label"
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
TIMES = [0, 1, 37, 250, 500, 871, 998, 999]


def noisy(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 4, 8, 8, generator=seeded(1), dtype=torch.float64).to(dtype)


def levels(t: float, dtype: torch.dtype = torch.float32, grid: tuple[int, int] = (4, 4)) -> torch.Tensor:
    return torch.full((3, *grid), t, dtype=torch.float64).to(dtype)


def diffusers_model(heads: int = 4, sigma: bool = True, **options) -> DiTTransformer2DModel:
    """A diffusers model with random weights; its blocks share their embeddings, as in published weights."""
    options = {"norm_eps": 1e-6, "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 10} | options
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=16, in_channels=4, out_channels=8 if sigma else 4, **options
    )
    generator = seeded(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 1 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1
            spread = TIME if name.endswith("timestep_embedder.linear_1.weight") else spread
            p.copy_(spread * torch.randn(p.shape, generator=generator))
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model.eval()


def ported(model: DiTTransformer2DModel, convention: Convention = DIFFUSERS):
    weights = from_diffusers(model.state_dict())
    return port_weights(weights, convention, heads=model.config.num_attention_heads, image_size=8, classes=10)


def original(model: DiTTransformer2DModel, x: torch.Tensor, k: int) -> torch.Tensor:
    """The noise that the diffusers model predicts at time step k."""
    return model(x, timestep=torch.full((3,), k, dtype=x.dtype), class_labels=LABELS).sample[:, :4]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("heads", "sigma", "eps"), [(4, True, 1e-6), (2, False, 1e-6), (4, True, 1e-5)])
@torch.no_grad()
def test_ported_network_matches_diffusers(heads, sigma, eps):
    """Also if the second norms have another eps: the diffusers class uses 1e-5 by default, the authors 1e-6."""
    model, x = diffusers_model(heads, sigma, norm_eps=eps), noisy()
    port = ported(model)
    assert port.dropped == (4 if sigma else 0)
    for k in TIMES if eps == 1e-6 else [500]:
        for grid in ((1, 1), (4, 4)):
            found = port.network(x, levels((k + 1) / 1000, grid=grid), LABELS)
            assert relative_error(found, original(model, x, k)) < 1e-5


@torch.no_grad()
def test_ported_network_matches_diffusers_to_twelve_digits_in_float64(monkeypatch):
    """The sinusoids of both libraries, float32 otherwise, are also computed in double precision."""
    model, x = diffusers_model().double(), noisy(torch.float64)

    def exact_waves(timesteps):
        angle = timesteps[:, None] * 10000.0 ** -(torch.arange(128, dtype=torch.float64) / 127)
        return torch.cat([angle.cos(), angle.sin()], 1)

    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.forward = exact_waves
    plain = model.pos_embed.pos_embed[0].reshape(16, 4, 16)  # rounded, but the same for both
    monkeypatch.setattr(dit, "grid_positions", lambda *_: plain.flip(1).reshape(16, 64))
    network = ported(model).network
    for k in TIMES:
        found = network(x, levels((k + 1) / 1000, torch.float64), LABELS)
        assert relative_error(found, original(model, x, k)) < 1e-12


@torch.no_grad()
def test_predictions_and_noise_levels_match_the_diffusers_schedule():
    """This includes the clean image, at the last step 157 times as large as the noise, and so are its errors."""
    model, x = diffusers_model(), noisy()
    denoiser = Denoiser(ported(model).network, LinearVP(), NoiseTarget())
    scheduler = DDPMScheduler(**BETAS)
    for k in TIMES:
        t, eps = levels((k + 1) / 1000), original(model, x, k)
        prediction = denoiser(x, t, LABELS)
        assert relative_error(prediction.eps, eps) < 1e-5
        assert relative_error(prediction.x, scheduler.step(eps, k, x).pred_original_sample) < 1e-5
        expected = scheduler.add_noise(x, x.flip(0), torch.tensor([k]))
        assert torch.allclose(LinearVP().noised(x, x.flip(0), t), expected, atol=1e-5)  # theirs cancels


@pytest.mark.parametrize("scale", [1.0, 4.0])
@torch.no_grad()
def test_sampled_images_match_the_diffusers_sampler(scale):
    """DDIM on the same time steps, with the same guidance scale, from the same noise."""
    model, steps = diffusers_model(), 20
    scheduler = DDIMScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    sampler = Sampler(solver=DDIM(), steps=steps, guidance=[ClassifierFree(scale)] if scale != 1 else [])
    denoiser = Denoiser(ported(model).network, LinearVP(), NoiseTarget())
    found = sampler(denoiser, seeds=range(2), shape=(4, 8, 8), label=LABELS[:2])
    x = normal((2, 4, 8, 8), generator=per_image(range(2)))
    for k in scheduler.timesteps:
        both = model(x.repeat(2, 1, 1, 1), timestep=k.expand(4), class_labels=torch.tensor([0, 7, 10, 10])).sample
        conditional, unconditional = both[:, :4].chunk(2)
        x = scheduler.step(unconditional + scale * (conditional - unconditional), k, x).prev_sample
    assert relative_error(found, x) < 1e-4


@torch.no_grad()
def test_time_frequencies_follow_diffusers_by_default():
    model, x = diffusers_model(), noisy()
    authors = ported(model, DIT).network(x, levels(0.501), LABELS)
    assert (authors - original(model, x, 500)).abs().max() > 0.01
    waves = get_timestep_embedding(torch.tensor([500.0]), 256, flip_sin_to_cos=True, downscale_freq_shift=1)
    assert torch.allclose(sinusoids(torch.tensor([500.0]), 256, DIFFUSERS_PERIOD), waves, atol=1e-4)


def test_blocks_with_different_embeddings_are_refused():
    model = diffusers_model()
    with torch.no_grad():
        model.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.weight[0, 0] += 1
    with pytest.raises(ValueError, match="all blocks must share their time and label embeddings, got transf"):
        ported(model)


def equations(w: dict, x: torch.Tensor, convention: Convention, t: float, heads: int = 4) -> torch.Tensor:
    """The paper's network at noise level t."""
    time = torch.full((3,), convention.slope * t + convention.offset, dtype=torch.float64).to(x.dtype)
    return convention.sign * forward(w, x, time, LABELS, heads)[:, :4]


@pytest.mark.parametrize("convention", [DIT, SIT], ids=["dit", "sit"])
@pytest.mark.parametrize(("heads", "sigma", "patch"), [(4, True, 2), (2, False, 4)])
@torch.no_grad()
def test_output_matches_the_paper_s_equations(convention, heads, sigma, patch):
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):  # positions are float32 in both
        w, x = random_weights(sigma=sigma, patch=patch, side=8 // patch, dtype=dtype), noisy(dtype)
        port = port_weights(w, convention, heads=heads, classes=10)
        assert (port.image_size, port.dropped) == (8, 4 if sigma else 0)
        for t in (0.001, 0.25, 0.5, 0.963, 1.0):
            found = port.network(x, levels(t, dtype, (1, 1)), LABELS)
            assert relative_error(found, equations(w, x, convention, t, heads)) < tolerance


@pytest.mark.parametrize("convention", [DIT, SIT], ids=["dit", "sit"])
@torch.no_grad()
def test_output_is_exact_with_the_same_positions(convention, monkeypatch):
    w, x = random_weights(), noisy(torch.float64)
    monkeypatch.setattr(dit, "grid_positions", lambda *_: w["pos_embed"][0].reshape(16, 4, 8).flip(1).reshape(16, 32))
    network = port_weights(w, convention, heads=4, classes=10).network
    for t in torch.linspace(0, 1, 21, dtype=torch.float64).tolist():
        found = network(x, levels(t, torch.float64), LABELS)
        assert relative_error(found, equations(w, x, convention, t)) < 1e-12


def test_time_runs_from_the_image_in_sit_and_in_steps_of_a_thousand_in_dit():
    assert [convention.slope * 0.3 + convention.offset for convention in (DIT, SIT)] == [299, 0.7]


@torch.no_grad()
def test_sit_samples_from_noise_to_image():
    """Its velocity is d x / d time with time 1 at the image; that of asyncdiff points to the noise (rectified flow)."""
    w, x = random_weights(), noisy(torch.float64)
    t = levels(0.3, torch.float64, (1, 1))
    prediction = Denoiser(port_weights(w, SIT, heads=4, classes=10).network, RectifiedFlow())(x, t, LABELS)
    to_image = forward(w, x, torch.full((3,), 0.7, dtype=torch.float64), LABELS, 4)[:, :4]
    assert torch.allclose(prediction.x, x + 0.3 * to_image, atol=1e-6)
    assert torch.allclose(prediction.eps, x - 0.7 * to_image, atol=1e-6)


def test_levels_may_differ_from_patch_to_patch_and_the_network_trains():
    network = port_weights(random_weights(dtype=torch.float32), DIT, heads=4, classes=10).network
    mixed = network(noisy(), torch.rand(3, 4, 4, generator=seeded(2)), LABELS)
    assert not torch.allclose(mixed, network(noisy(), levels(0.5), LABELS), atol=1e-2)
    assert network.joint_labels
    mixed.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_half_precision_weights_become_float32():
    w = random_weights(dtype=torch.float32)
    half = {name: weight.half() for name, weight in w.items()}
    network = port_weights(half, DIT, heads=4, classes=10).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    with torch.no_grad():
        found, full = (
            port_weights(v, DIT, heads=4, classes=10).network(noisy(), levels(0.5), LABELS) for v in (half, w)
        )
    assert torch.allclose(found, full, atol=0.02)


@pytest.mark.parametrize(("dim", "heads"), [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_sizes_are_read_from_weights_and_heads_from_official_sizes(dim, heads):
    w = random_weights(dim, depth=1, channels=3, patch=4, classes=5, dtype=torch.float32)
    network = port_weights(w, DIT, classes=5).network
    found = (network.channels, network.patch_size, network.dim, network.depth, network.heads, network.classes)
    assert found == (3, 4, dim, 1, heads, 5)


def test_mlp_ratio_reproduces_the_hidden_width():
    assert all(
        int(dim * _mlp_ratio(hidden, dim)) == hidden for dim in range(4, 200, 4) for hidden in range(1, 5 * dim, 7)
    )


def test_layouts_are_distinguished():
    assert has_original_names(random_weights())
    assert not has_diffusers_names(random_weights())
    state = diffusers_model().state_dict()
    assert has_diffusers_names(state)
    assert has_original_names(from_diffusers(state))
    assert not has_original_names(state)


def edited(**weights) -> dict[str, torch.Tensor]:
    """Small weights with some replaced, added, or, if None, removed; two underscores stand for a dot."""
    w = random_weights() | {name.replace("__", "."): weight for name, weight in weights.items()}
    return {name: weight for name, weight in w.items() if weight is not None}


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (edited(blocks__1__mlp__fc1__bias=None), "must be complete, got no blocks.1.mlp.fc1.bias: download"),
        (edited(x_embedder__proj__weight=None), "got no x_embedder.proj.weight with 4 axes: use"),
        (edited(blocks__0__attn__q_norm__weight=torch.ones(8)), "got also blocks.0.attn.q_norm.weight: use"),
        (edited(blocks__3__mlp__fc1__bias=torch.ones(128)), "got no blocks.2.attn.qkv.weight"),
        (edited(t_embedder__mlp__2__weight=torch.ones(32, 16)),
         r"t_embedder.mlp.2.weight must have shape \(32, 32\) to .* got \(32, 16\)"),
        (edited(pos_embed=torch.ones(1, 15, 32)), r"must be for a square grid of tokens, got shape \(1, 15, 32\)"),
        (edited(pos_embed=torch.ones(1, 16, 32)), "must contain DiT's sines and cosines, got other"),
        (edited(pos_embed=torch.full((1, 16, 32), torch.nan)), "must contain DiT's sines and cosines, got other"),
        (edited(final_layer__linear__weight=torch.ones(48, 32), final_layer__linear__bias=torch.ones(48)),
         "or twice as many with a learned sigma, got 12 for 4"),
    ],
)  # fmt: skip
def test_wrong_weights_are_refused(w, message):
    with pytest.raises(ValueError, match=message):
        port_weights(w, DIT, heads=4, classes=10)


@pytest.mark.parametrize(
    ("w", "options", "message"),
    [
        ({}, {}, "no official model has a width of 32, .* add --heads"),
        ({}, {"heads": 5}, "dim must be divisible by heads"),
        ({"pos_embed": None}, {"heads": 4}, "the weights contain no positions, .* add --image_size"),
        ({}, {"heads": 4, "image_size": 16}, "image_size must be 8, .* got 16: omit --image_size"),
        (
            {},
            {"heads": 4, "classes": None},
            "has 11 rows, so the number of classes is unknown, 11 or 10 ",
        ),
        ({}, {"heads": 4, "classes": 11}, "must have a row for no label after those of the 11 classes, got 11 rows: a"),
        ({}, {"heads": 4, "classes": 12}, "classes must be 10, one less than the rows of the label table, got 12"),
    ],
)
def test_missing_or_wrong_heads_image_size_and_classes_are_refused(w, options, message):
    with pytest.raises(ValueError, match=message):
        port_weights(edited(**w), DIT, **{"classes": 10, **options})


def test_stored_positions_are_a_permutation_of_grid_positions():
    stored = random_weights(side=5, dim=16)["pos_embed"][0]
    assert torch.allclose(
        stored.reshape(25, 4, 4).flip(1).reshape(25, 16).float(), grid_positions((5, 5), 16, stored.device), atol=1e-6
    )


def test_a_table_of_the_official_size_needs_no_number_of_classes():
    w = random_weights(classes=1000, dtype=torch.float32)
    assert port_weights(w, DIT, heads=4).network.classes == 1000
    with pytest.raises(ValueError, match="got 1000 rows: a network trained without label dropout predicts nothing wi"):
        port_weights(random_weights(classes=999, dtype=torch.float32), DIT, heads=4, classes=1000)
