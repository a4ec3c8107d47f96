"""Laws of the U-Net: what a level map means at every resolution, what it costs, and what depends on what."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import randomize_weights
from lightning.pytorch import Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from asyncdiff.networks.modulation import Modulation
from asyncdiff.networks.unet import UNet
from asyncdiff.networks.unet_blocks import ResidualBlock, pixels_to_tokens, tokens_to_pixels
from asyncdiff.randomness import seeded
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.shapes import UniqueLevels
from asyncdiff.training.lightning_module import AsyncDiffusion
from datamodules import Digits

HERE = Path(__file__).resolve().parent
SIZES = HERE.parents[1] / "experiments" / "networks"
SMALL = {"channels": 1, "width": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (1,), "head_dim": 4}
GRIDS = [(1, 1), (2, 2), (4, 4), (8, 8), (8, 1), (2, 4)]  # levels of 8x8, 4x4 and 2x2 pixels: maps coarser and finer


def unet(**options) -> UNet:
    """A network for 8x8 gray images with random weights, in float64."""
    torch.manual_seed(0)
    return randomize_weights(UNet(**{**SMALL, **options}).double()).eval()


@pytest.fixture
def small() -> UNet:
    return unet(classes=10)


def noisy(batch: int = 3, channels: int = 1, size: tuple[int, int] = (8, 8)) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=seeded(1), dtype=torch.float64)


def draw(grid: tuple[int, int], batch: int = 3, count: int = 5) -> UniqueLevels:
    """A level map of `count` levels, with an index of all patches even if it is constant."""
    index = torch.randint(count, (batch, *grid), generator=seeded(2))
    return UniqueLevels(torch.rand(count, generator=seeded(3), dtype=torch.float64), index)


def of(unique: UniqueLevels) -> torch.Tensor:
    return unique.values[unique.index]


def film_unet(net: UNet, x: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
    """The network written plainly, from the features (b, f, 1 or h, 1 or w) of every level's pixels."""

    def norm(module, h):
        if isinstance(module, torch.nn.GroupNorm):
            return F.group_norm(h, module.num_groups, module.weight, module.bias, module.eps)
        return h / (h.square().mean(1, keepdim=True) + 1e-6).sqrt() * module.weight[:, None, None]

    def attend(module, h):
        b, c, height, width = h.shape
        inner = module.attention
        tokens = norm(module.norm, h).reshape(b, c, -1).transpose(1, 2)
        q, k, v = inner.qkv(tokens).reshape(b, -1, 3, inner.num_heads, c // inner.num_heads).permute(2, 0, 3, 1, 4)
        q, k = (
            a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt() * n.weight
            for a, n in ((q, inner.q_norm), (k, inner.k_norm))
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        change = inner.proj((weights @ v).transpose(1, 2).reshape(b, -1, c))
        return h + change.transpose(1, 2).reshape(b, c, height, width)

    def block(module, h, film):
        linear = module.modulation.linear
        shift, scale = F.conv2d(film, linear.weight[:, :, None, None], linear.bias).chunk(2, dim=1)
        inner = norm(module.norm2, module.conv1(F.silu(norm(module.norm1, h))))
        h = module.skip(h) + module.conv2(F.silu(inner * (1 + scale) + shift))
        return h if isinstance(module.attention, torch.nn.Identity) else attend(module.attention, h)

    trunk = net.trunk
    h = trunk.stem(x)
    skipped = [h]
    for level, blocks in enumerate(trunk.down):
        if level:
            h = trunk.halvings[level - 1].conv(sum(h[..., i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4)
            skipped.append(h)
        for module in blocks:
            h = block(module, h, features[level])
            skipped.append(h)
    for module in trunk.middle:
        h = block(module, h, features[-1])
    for level in (2, 1, 0):
        for module in trunk.up[level]:
            h = block(module, torch.cat([h, skipped.pop()], dim=1), features[level])
        if level:
            h = trunk.doublings[level - 1].conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert not skipped
    return net.head(F.silu(norm(trunk.norm, h)))


def film_per_pixel(net: UNet, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The network without tables: features of every pixel of the image, and their means at coarser resolutions."""
    b, gh, gw = t.shape
    every = t.repeat_interleave(x.shape[2] // gh, 1).repeat_interleave(x.shape[3] // gw, 2)
    finest = F.silu(net.level_embedding(every.flatten())).reshape(b, *every.shape[1:], -1).permute(0, 3, 1, 2)
    labels = F.silu(net.label_embedding(label))[:, :, None, None]
    return film_unet(net, x, [F.avg_pool2d(finest, 2**level) + labels for level in range(3)])


# What a level map means


@pytest.mark.parametrize("options", [{}, {"groups": 4}])
@pytest.mark.parametrize("grid", GRIDS)
def test_constant_map_equals_the_1x1_map(grid, options):
    net, x, label = unet(classes=10, **options), noisy(), torch.tensor([0, 5, 10])
    one = draw((1, 1))
    everywhere = UniqueLevels(one.values, one.index.expand(3, *grid).contiguous())
    expected = net(x, of(one), label, unique=one)
    assert expected.std() > 0.1
    assert torch.allclose(net(x, of(everywhere), label, unique=everywhere), expected, rtol=0, atol=1e-12)
    assert torch.allclose(net(x, of(everywhere), label), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"groups": 4}])
def test_constant_map_equals_scalar_conditioning(options):
    """Comparison with standard FiLM: one shift and scale per image from silu(level) + silu(label)."""
    net, x, t, label = unet(classes=10, **options), noisy(), of(draw((1, 1))), torch.tensor([0, 5, 10])
    c = F.silu(net.level_embedding(t.flatten())) + F.silu(net.label_embedding(label))
    assert torch.allclose(net(x, t, label), film_unet(net, x, [c[:, :, None, None]] * 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_level_tables_match_spatial_film_with_gradients(small, grid):
    x, label, unique = noisy().requires_grad_(), torch.tensor([0, 5, 10]), draw(grid)
    leaves = [x, *small.parameters()]
    weight = torch.randn(x.shape, generator=seeded(4), dtype=torch.float64)
    actual = small(x, of(unique), label, unique=unique)
    naive = film_per_pixel(small, x, of(unique), label)
    assert torch.allclose(actual, naive, rtol=0, atol=1e-12)
    pairs = zip(*(torch.autograd.grad((v * weight).sum(), leaves) for v in (actual, naive)), strict=True)
    assert max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs) < 1e-10


@pytest.mark.parametrize("grid", GRIDS)
def test_passing_the_distinct_levels_changes_nothing(small, grid):
    x, unique = noisy(), draw(grid)
    table = UniqueLevels(torch.cat([unique.values, torch.ones(60, dtype=torch.float64)]), unique.index)
    expected = small(x, of(unique))
    assert torch.allclose(small(x, of(unique), unique=unique), expected, rtol=0, atol=1e-13)
    assert torch.allclose(small(x, of(unique), unique=table), expected, rtol=0, atol=1e-13)


def test_coarser_level_map_equals_the_repeated_map(small):
    coarse = draw((2, 2))
    repeated = of(coarse).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(small(noisy(), of(coarse)), small(noisy(), repeated), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("side", "ratio"), [(2, 4), (4, 6), (8, 6)])
def test_a_patch_depends_most_on_its_own_level(side, ratio):
    net, x, t = unet(multipliers=(1, 2)), noisy(4, size=(16, 16)), of(draw((side, side), batch=4))
    before, responses = net(x, t), []
    for patch in range(side**2):
        changed = t.clone()
        changed.flatten(1)[:, patch] += 0.3
        change = F.avg_pool2d((net(x, changed) - before).square(), 16 // side)
        responses.append(change.mean(dim=(0, 1)).flatten())
    responses = torch.stack(responses)
    own = responses.diagonal()
    assert (responses > 0).all()  # all others depend on it through attention
    assert own.mean() > ratio * (responses.sum() - own.sum()) / (responses.numel() - len(own))


@pytest.mark.parametrize("axis", [2, 3])
def test_shifting_image_and_map_shifts_the_output(axis):
    """By as many pixels as one of the coarsest level has, away from the borders, without attention."""
    net = unet(width=4, attention=(), middle_attention=False, middle_blocks=1, multipliers=(1, 2))
    size = (96, 8) if axis == 2 else (8, 96)
    x, unique = noisy(1, size=size), draw((size[0] // 2, size[1] // 2), batch=1)
    rolled = UniqueLevels(unique.values, unique.index.roll(1, axis - 1))
    v = net(x, of(unique), unique=unique).roll(2, axis)
    shifted = net(x.roll(2, axis), of(rolled), unique=rolled)
    apart = (v - shifted).abs().amax(dim=(0, 1, 5 - axis))
    # A pixel sees 28 others on either side: 1 stem, 2 and 4 blocks and 1 doubling and 1 head at the first level, at the
    # second one halving and blocks of 2 + 2 + 4, twice as large there; and 1 by the pooling.
    assert apart[30:-30].max() < 1e-12
    assert apart[:4].max() > 1e-3


# What it costs


def test_modulations_are_computed_once_per_distinct_level(small):
    rows = {"embedded": []}
    small.level_embedding.register_forward_hook(lambda _, inputs, __: rows["embedded"].append(len(inputs[0])))
    for level in range(3):
        rows[level] = []
        for module in [*small.trunk.down[level], *small.trunk.up[level]]:
            module.modulation.linear.register_forward_hook(
                lambda _, inputs, __, level=level: rows[level].append(len(inputs[0]))
            )
    coarse = draw((4, 4), batch=64, count=2)
    small(noisy(64), of(coarse), unique=coarse)
    assert rows == {"embedded": [2], 0: [2] * 3, 1: [2] * 3, 2: [64 * 4] * 3}  # one row per pixel that covers several


def test_tokens_are_a_view_in_channels_last_memory():
    x = torch.randn(2, 6, 4, 8).to(memory_format=torch.channels_last)
    flat = pixels_to_tokens(x)
    assert flat.data_ptr() == x.data_ptr()
    assert flat.is_contiguous()
    assert torch.equal(flat[1, 9], x[1, :, 1, 1])
    back = tokens_to_pixels(flat, (4, 8))
    assert back.data_ptr() == x.data_ptr()
    assert torch.equal(back, x)
    assert back.stride() == x.stride()


class Copies(TorchDispatchMode):
    """Mode that counts copies of tensors."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten._to_copy)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grid", GRIDS)
def test_everything_stays_in_channels_last_without_copies(grid):
    net = unet(attention=(), middle_attention=False)
    layouts = []
    for module in net.trunk.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_hook(lambda _, inputs, output: layouts.extend([*inputs, output]))
    unique = draw(grid)
    with Copies() as copies:
        features = net.trunk(noisy(), net._condition(unique, (8, 8), None))
    assert len(layouts) > 50
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in [*layouts, features])
    # At most the index of every level's pixels, where patches are larger than these.
    assert copies.count <= 3


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_changes_no_gradient(dropout):
    gradients = []
    for checkpointing in (False, True):
        net = unet(dropout=dropout, checkpointing=checkpointing).train()
        unique = draw((8, 8))
        torch.manual_seed(1)
        net(noisy(), of(unique), unique=unique).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert any(g.any() for g in gradients[0])


def stored_bytes(net: UNet, x: torch.Tensor, unique: UniqueLevels) -> int:
    """Bytes stored for the backward pass, without the parameters."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = net(x, of(unique), unique=unique)
    del output
    return sum(storages.values()) - sum(p.nbytes for p in net.parameters())


def test_checkpointing_stores_less():
    x, unique = noisy(8), draw((4, 4), batch=8)
    assert stored_bytes(unet(checkpointing=True), x, unique) < 0.4 * stored_bytes(unet(), x, unique)


def test_the_two_vectors_per_pixel_are_not_stored():
    """Memory of a level map compared with one level per image: mostly the tables and their gathered index."""
    net = unet(width=32, head_dim=32).float()
    x, values = noisy(4, size=(32, 32)).float(), torch.arange(64) / 63
    every = torch.randint(64, (4, 32, 32), generator=seeded(2))
    scalar, coarse, fine = (
        stored_bytes(net, x, UniqueLevels(values, every[:, ::step, ::step].contiguous())) for step in (32, 8, 1)
    )
    assert coarse < 1.04 * scalar
    assert fine < 1.1 * scalar


def test_operation_count_of_a_level_map_compared_with_one_level():
    """The paper's network at 64x64 pixels, counted: 256 levels of 8x8 patches, and one of every pixel."""
    options = yaml.safe_load((SIZES / "unet_paper_60m.yaml").read_text())["model"]["network"]["init_args"]
    with torch.device("meta"):
        net, x, counted = UNet(**options), torch.empty(64, 3, 64, 64), []
        for side, count in ((1, 64), (8, 256), (64, 256)):
            unique = UniqueLevels(torch.empty(count), torch.empty(64, side, side, dtype=torch.int64))
            with FlopCounterMode(display=False) as counter:
                net(x, torch.empty(64, side, side), unique=unique)
            counted.append(counter.get_total_flops())
    assert counted[1] < 1.001 * counted[0]
    assert counted[2] < 1.08 * counted[0]


# What a network is


def test_the_initial_network_is_zero():
    net = UNet(channels=3, width=8, attention=(1,), head_dim=4, classes=3, uncertainty=True)
    v, logvar = net(torch.randn(2, 3, 16, 16), torch.rand(2, 4, 4))
    assert (v == 0).all()
    assert torch.allclose(logvar, torch.zeros(2, 4, 4), atol=1e-6)
    blocks = [module for module in net.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 4 * (2 + 3) + 2
    assert all(block.conv1.weight.any() and not block.conv2.weight.any() for block in blocks)
    x = torch.randn(2, 8, 8, 8)
    same = next(block for block in blocks if isinstance(block.skip, torch.nn.Identity))
    assert torch.equal(same(x, net._condition(draw((1, 1), 2), (8, 8), None)[0]), x)


def test_gradients_reach_every_parameter():
    net, unique = unet(classes=10, uncertainty=True), draw((8, 8), batch=11)
    label = torch.arange(11)  # all classes and the null class
    v, logvar = net(noisy(11), of(unique), label, unique=unique)
    (v.square().mean() + logvar.square().mean()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_missing_label_means_the_null_class(small):
    x, t = noisy(), of(draw((4, 4)))
    assert torch.equal(small(x, t), small(x, t, torch.full((3,), 10)))
    assert not torch.allclose(small(x, t), small(x, t, torch.zeros(3, dtype=torch.int64)), atol=1e-3)


def test_attention_and_dropout_are_where_requested():
    net = UNet(width=8, attention=(0, 2), middle_blocks=3, head_dim=4, dropout=[0, 0.1, 0.2, 0.3])
    for ways in (net.trunk.down, net.trunk.up):
        for level, blocks in enumerate(ways):
            assert {block.dropout.p for block in blocks} == {level / 10}
            assert {hasattr(block.attention, "attention") for block in blocks} == {level in (0, 2)}
    assert [hasattr(block.attention, "attention") for block in net.trunk.middle] == [True, True, False]
    assert {block.dropout.p for block in net.trunk.middle} == {0.3}
    assert net.trunk.down[2][0].attention.attention.num_heads == 4
    plain = UNet(width=8, attention=(), middle_attention=False, dropout=0.5)
    assert not any(hasattr(module, "qkv") for module in plain.modules())
    assert {block.dropout.p for block in plain.modules() if isinstance(block, ResidualBlock)} == {0.5}


def test_the_uncertainty_is_the_mean_variance_of_a_patch():
    fine = unet(uncertainty=True, level_patch_size=1)
    coarse = unet(uncertainty=True, level_patch_size=4)
    unique = draw((2, 2))
    v, every = fine(noisy(), of(unique))
    same_v, logvar = coarse(noisy(), of(unique))
    assert fine.grid((8, 8)) == every.shape[1:] == (8, 8)
    assert coarse.grid((8, 8)) == logvar.shape[1:] == (2, 2)
    assert torch.equal(v, same_v)
    assert torch.allclose(logvar.exp(), F.avg_pool2d(every.exp(), 4), rtol=1e-12)


def test_all_sizes_that_levels_and_patches_divide_work(small):
    assert small.grid((12, 20)) == (3, 5)
    x = noisy(2, size=(12, 20))
    for grid in ((3, 5), (1, 1), (12, 20), (6, 5)):
        assert small(x, of(draw(grid, 2))).shape == x.shape


@pytest.mark.parametrize("grid", [(1, 1), (8, 8)])
def test_bfloat16_is_close_to_float32(grid):
    net, label, unique = unet(classes=10, uncertainty=True).float(), torch.arange(3), draw(grid)
    unique = UniqueLevels(unique.values.float(), unique.index)
    x, streams = noisy().float(), []
    exact = net(x, of(unique), label, unique=unique)
    for module in net.trunk.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_hook(lambda _, __, output: streams.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, of(unique), label, unique=unique)
    for a, b in zip(rounded, exact, strict=True):
        assert ((a - b).square().mean() / b.square().mean()).sqrt() < 0.05
    assert set(streams) == {torch.float32}
    rounded[0].float().square().sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in net.parameters())
    assert net.trunk.stem.weight.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multipliers": ()}, "number of multipliers must be at least 1, got 0"),
        ({"multipliers": (1, 0)}, "multipliers must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"middle_blocks": 1}, "middle_blocks must be at least 2, got 1: middle_attention"),
        ({"middle_blocks": 0, "middle_attention": False}, "middle_blocks must be at least 1, got 0"),
        ({"attention": (3,)}, r"attention must lie in \[0, 2\], got 3"),
        ({"head_dim": 3}, "head_dim must divide the 16 channels of its level, got 3"),
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"groups": 3}, "groups must divide the 8 channels of its level, got 3"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"dropout": (0.1, 0.2)}, r"dropout must be one number or one per level, got \(0.1, 0.2\) for 3 levels"),
        ({"dropout": 1.5}, r"dropout must lie in \[0, 1\], got 1.5"),
        ({"level_patch_size": 3}, r"level_patch_size must be a divisor or a multiple of 2\^\(levels - 1\) = 4, got 3"),
        ({"level_patch_size": 6}, "got 6"),
        ({"level_patch_size": 0}, "level_patch_size must be at least 1, got 0"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{**SMALL, **options})


def test_images_and_maps_of_unsuitable_size_are_refused(small):
    with pytest.raises(ValueError, match="sides of the image must be multiples of 4, .*got 8x6: resize or crop"):
        small.grid((8, 6))
    with pytest.raises(ValueError, match="got 8x6"):
        small(noisy(size=(8, 6)), of(draw((1, 1))))
    with pytest.raises(ValueError, match="must be multiples of 8, .*got 12x8"):
        unet(level_patch_size=8).grid((12, 8))
    with pytest.raises(ValueError, match="images must have 1 channels, got 3"):
        small(noisy(channels=3), of(draw((4, 4))))
    with pytest.raises(ValueError, match="level map of 3x3 patches does not divide an image of 8x8"):
        small(noisy(), of(draw((3, 3))))
    with pytest.raises(ValueError, match=r"divisors or multiples of 2\^\(levels - 1\) = 4 pixels, got 12x6"):
        small(noisy(size=(12, 12)), of(draw((1, 2))))
    with pytest.raises(ValueError, match="classes=0"):
        unet()(noisy(), of(draw((4, 4))), torch.zeros(3, dtype=torch.int64))


# End to end


def test_a_module_trains_samples_inpaints_and_reloads(tmp_path):
    torch.manual_seed(0)
    network = UNet(**SMALL, classes=10, uncertainty=True, level_patch_size=1, dropout=[0.0, 0.1, 0.1])
    module = AsyncDiffusion(network, sampler=Sampler(steps=3), image_size=8, warmup_steps=1)
    before = network.head.weight.clone()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", max_steps=2, enable_checkpointing=False, **quiet)
    trainer.fit(module, datamodule=Digits(batch_size=8))
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert not torch.equal(network.head.weight, before)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = AsyncDiffusion.load_from_checkpoint(tmp_path / "last.ckpt")
    images = module.generate([0, 1], [3, 4])
    assert torch.isfinite(images).all()
    assert torch.equal(loaded.generate([0, 1], [3, 4]), images)
    known = torch.zeros(8, 8, dtype=torch.bool)
    known[:4] = True
    completed = loaded.inpaint(images[0], known, seeds=[5])
    assert torch.equal(completed[0, :, :4], images[0, :, :4])
    assert not torch.equal(completed[0, :, 4:], images[0, :, 4:])


def run_compiled(options: dict, backend: str, grids: list[int]) -> dict:
    command = [sys.executable, str(HERE / "compiled_unet.py"), json.dumps(options), backend, json.dumps(grids)]
    path = os.pathsep.join(str(p) for p in (HERE.parents[1], HERE.parent))
    environment = os.environ | {"JAXTYPING_DISABLE": "1", "PYTHONPATH": path}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_compiled_network_matches_eager_and_compiles_once():
    """One graph for any number of distinct levels of a map that is finer than all resolutions except the first."""
    report = run_compiled({"multipliers": [1, 2]}, "eager", [8])
    assert report["frames"] == {"8": 1}
    assert report["difference"] < 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"groups": 4}])
def test_aot_eager_matches_eager(options):
    """One graph more for one level an image, and one for another grid."""
    report = run_compiled(options, "aot_eager", [4, 1, 8])
    assert report["frames"] == {"4": 1, "1": 1, "8": 1}
    assert report["difference"] < 2e-4


# channels and classes are the experiment's
PARAMETERS = {
    "unet_cifar": ({"classes": 0}, 38_359_299),
    "unet_imagenet64": ({"classes": 1000}, 273_048_579),
    "unet_paper_60m": ({"classes": 1000}, 59_979_779),
    "unet_paper_620m": ({"classes": 1000}, 626_142_723),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_of_the_official_sizes(name):
    options, count = PARAMETERS[name]
    text = (SIZES / f"{name}.yaml").read_text()
    described = yaml.safe_load(text)["model"]["network"]
    assert described["class_path"] == "asyncdiff.networks.UNet"
    with torch.device("meta"):
        net = UNet(**described["init_args"], **options)
    assert sum(p.numel() for p in net.parameters()) == count
    assert f"{count:,}" in text
    assert not set(options) & set(described["init_args"])


def test_every_modulation_starts_at_zero():
    net = UNet(**SMALL)
    modulations = [module for module in net.modules() if isinstance(module, Modulation)]
    assert len(modulations) == 3 * 3 + 2
    assert not any(module.linear.weight.any() or module.linear.bias.any() for module in modulations)
