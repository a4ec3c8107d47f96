"""Laws of the U-Net: what a level map means at every resolution, what it costs, and what depends on what."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from small_networks import LABEL, SMALL_UNET, UNET_GRIDS, UNETS, draw, noisy, single, stored_bytes, unet
from small_runs import quiet_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from asyncdiff.networks.unet import UNet
from asyncdiff.networks.unet_blocks import ResidualBlock, pixels_to_tokens, tokens_to_pixels
from asyncdiff.randomness import seeded
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.shapes import IndexedLevels
from asyncdiff.training.lightning_module import AsyncDiffusion
from datamodules import Digits

SIZES = Path(__file__).resolve().parents[2] / "experiments" / "networks"


@pytest.fixture
def small() -> UNet:
    return unet(classes=10)


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


@pytest.mark.parametrize("name", UNETS)
def test_constant_map_equals_scalar_conditioning(name):
    """Comparison with standard FiLM: one shift and scale per image from silu(level) + silu(label)."""
    net, x, t = UNETS[name](classes=10), noisy(), draw((1, 1)).t
    c = F.silu(net.level_embedding(t.flatten())) + F.silu(net.label_embedding(LABEL))
    assert torch.allclose(net(x, t, LABEL), film_unet(net, x, [c[:, :, None, None]] * 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", UNET_GRIDS)
def test_level_tables_match_spatial_film_with_gradients(small, grid):
    x, levels = noisy().requires_grad_(), draw(grid)
    leaves = [x, *small.parameters()]
    weight = torch.randn(x.shape, generator=seeded(4), dtype=torch.float64)
    actual = small(x, levels, LABEL)
    naive = film_per_pixel(small, x, levels.t, LABEL)
    assert torch.allclose(actual, naive, rtol=0, atol=1e-12)
    pairs = zip(*(torch.autograd.grad((v * weight).sum(), leaves) for v in (actual, naive)), strict=True)
    assert max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs) < 1e-10


@pytest.mark.parametrize(("side", "ratio"), [(2, 4), (4, 6), (8, 6)])
def test_a_patch_depends_most_on_its_own_level(side, ratio):
    net, x, t = unet(multipliers=(1, 2)), noisy(4, size=(16, 16)), draw((side, side), batch=4).t
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
    x, levels = noisy(1, size=size), draw((size[0] // 2, size[1] // 2), batch=1)
    rolled = IndexedLevels(levels.values, levels.index.roll(1, axis - 1))
    v = net(x, levels).roll(2, axis)
    shifted = net(x.roll(2, axis), rolled)
    apart = (v - shifted).abs().amax(dim=(0, 1, 5 - axis))
    # A pixel sees 28 others on either side: 1 stem, 2 and 4 blocks and 1 doubling and 1 head at the first level, at the
    # second one halving and blocks of 2 + 2 + 4, twice as large there; and 1 by the pooling.
    assert apart[30:-30].max() < 1e-12
    assert apart[:4].max() > 1e-3


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
    small(noisy(64), coarse)
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


@pytest.mark.parametrize("grid", UNET_GRIDS)
def test_everything_stays_in_channels_last_without_copies(grid):
    net = unet(attention=(), middle_attention=False)
    layouts = []
    for module in net.trunk.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_hook(lambda _, inputs, output: layouts.extend([*inputs, output]))
    levels = draw(grid)
    with Copies() as copies:
        features = net.trunk(noisy(), net._condition(levels, (8, 8), None))
    assert len(layouts) > 50
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in [*layouts, features])
    # At most the index of every level's pixels, where patches are larger than these.
    assert copies.count <= 3


def test_the_two_vectors_per_pixel_are_not_stored():
    """Memory of a level map compared with one level per image: mostly the tables and their gathered index."""
    net = unet(width=32, head_dim=32).float()
    x, values = noisy(4, size=(32, 32)).float(), torch.arange(64) / 63
    every = torch.randint(64, (4, 32, 32), generator=seeded(2))
    scalar, coarse, fine = (
        stored_bytes(net, x, IndexedLevels(values, every[:, ::step, ::step].contiguous())) for step in (32, 8, 1)
    )
    assert coarse < 1.04 * scalar
    assert fine < 1.1 * scalar


def test_operation_count_of_a_level_map_compared_with_one_level():
    """The paper's network at 64x64 pixels, counted: 256 levels of 8x8 patches, and one of every pixel."""
    options = yaml.safe_load((SIZES / "unet_paper_60m.yaml").read_text())["model"]["network"]["init_args"]
    with torch.device("meta"):
        net, x, counted = UNet(**options), torch.empty(64, 3, 64, 64), []
        for side, count in ((1, 64), (8, 256), (64, 256)):
            levels = IndexedLevels(torch.empty(count), torch.empty(64, side, side, dtype=torch.int64))
            with FlopCounterMode(display=False) as counter:
                net(x, levels)
            counted.append(counter.get_total_flops())
    assert counted[1] < 1.001 * counted[0]
    assert counted[2] < 1.08 * counted[0]


def test_a_block_is_the_identity_at_initialization():
    net, x = UNet(channels=3, width=8, attention=(1,), head_dim=4), torch.randn(2, 8, 8, 8)
    blocks = [module for module in net.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 4 * (2 + 3) + 2
    assert all(block.conv1.weight.any() and not block.conv2.weight.any() for block in blocks)
    same = next(block for block in blocks if isinstance(block.skip, torch.nn.Identity))
    assert torch.equal(same(x, net._condition(single(draw((1, 1), 2)), (8, 8), None)[0]), x)


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
    levels = draw((2, 2))
    v, every = fine(noisy(), levels)
    same_v, logvar = coarse(noisy(), levels)
    assert fine.grid((8, 8)) == every.shape[1:] == (8, 8)
    assert coarse.grid((8, 8)) == logvar.shape[1:] == (2, 2)
    assert torch.equal(v, same_v)
    assert torch.allclose(logvar.exp(), F.avg_pool2d(every.exp(), 4), rtol=1e-12)


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
        UNet(**SMALL_UNET | options)


@pytest.mark.parametrize(
    ("x", "grid", "label", "message"),
    [
        (noisy(size=(8, 6)), (1, 1), None, "sides of the image must be multiples of 4, .*got 8x6: resize or crop"),
        (noisy(channels=3), (4, 4), None, "images must have 1 channels, got 3"),
        (noisy(), (3, 3), None, "level map of 3x3 patches does not divide an image of 8x8"),
        (noisy(size=(12, 12)), (1, 2), None, r"divisors or multiples of 2\^\(levels - 1\) = 4 pixels, got 12x6"),
        (noisy(), (4, 4), LABEL, "classes=0"),
    ],
)
def test_unsuitable_inputs_are_refused(x, grid, label, message):
    with pytest.raises(ValueError, match=message):
        unet()(x, draw(grid).t, label)


def test_image_sizes_that_do_not_fit_are_refused(small):
    with pytest.raises(ValueError, match="multiples of 4, .*got 8x6: resize or crop"):
        small.grid((8, 6))
    with pytest.raises(ValueError, match="must be multiples of 8, .*got 12x8"):
        unet(level_patch_size=8).grid((12, 8))


def test_a_module_trains_samples_inpaints_and_reloads(tmp_path):
    torch.manual_seed(0)
    network = UNet(**SMALL_UNET, classes=10, uncertainty=True, level_patch_size=1, dropout=[0.0, 0.1, 0.1])
    module = AsyncDiffusion(network, sampler=Sampler(steps=3), image_size=8)
    before = network.head.weight.clone()
    trainer = quiet_trainer(tmp_path, max_steps=2)
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
