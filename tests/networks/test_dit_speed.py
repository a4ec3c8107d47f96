"""Optimizations of the DiT change no result: tables, the fused backward, checkpointing, compilation, bf16."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import randomize_weights
from timm.layers import apply_rot_embed_cat
from torch.utils.flop_counter import FlopCounterMode

from asyncdiff import AsyncDiffusion
from asyncdiff.networks import modulation
from asyncdiff.networks.dit import DiT
from asyncdiff.networks.embeddings import rotations
from asyncdiff.networks.modulation import IndexedVectors, add_gated, modulate
from asyncdiff.randomness import seeded
from asyncdiff.shapes import UniqueLevels

HERE = Path(__file__).parent
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


def rows(dim: int = 6, levels: int = 5, label: bool = True) -> tuple[IndexedVectors, list[torch.Tensor]]:
    """Vectors for 3 images of 8 tokens, and the leaves that they are computed from."""
    table = torch.randn(levels, dim, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    by_image = torch.randn(3, dim, generator=seeded(2), dtype=torch.float64, requires_grad=True) if label else None
    index = torch.randint(levels, (3, 8), generator=seeded(3))
    return IndexedVectors(table, index, by_image), [table] + ([by_image] if label else [])


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 8, 6, generator=seeded(seed), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("label", [True, False])
def test_fused_gather_matches_the_naive_one(label):
    """Values and gradients of every input, against gathering with plain autograd."""
    x, change = tokens(), tokens(9)
    shift, leaves = rows(label=label)
    scale = IndexedVectors(shift.table.detach() * 2 + 1, shift.index, shift.label)
    scale.table.requires_grad_()
    leaves = [x, change, *leaves, scale.table]
    fused = add_gated(x, shift, modulate(x, shift, scale) + change)

    def naive(row: IndexedVectors) -> torch.Tensor:
        vectors = row.table[row.index]
        return vectors if row.label is None else vectors + row.label[:, None]

    plain = x + naive(shift) * (x * (1 + naive(scale)) + naive(shift) + change)
    assert torch.allclose(fused, plain, rtol=0, atol=1e-13)
    weight = torch.randn(plain.shape, generator=seeded(4), dtype=torch.float64)
    for got, expected in zip(
        torch.autograd.grad((fused * weight).sum(), leaves),
        torch.autograd.grad((plain * weight).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(got, expected, rtol=0, atol=1e-12)


def test_numerical_gradients():
    (shift, leaves), x = rows(), tokens()
    table, label = leaves

    def run(x, table, label):
        row = IndexedVectors(table, shift.index, label)
        return add_gated(x, row, modulate(x, row, row))

    assert torch.autograd.gradcheck(run, (x, table, label))


def naive_network(network: DiT, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The network with one conditioning per token, gathered, computed and stored by plain autograd."""
    unique = UniqueLevels(t.flatten(), torch.arange(t.numel()).view(t.shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modulation.IndexedVectors, "gather", lambda r: naive_rows(r))
        patch.setattr(modulation.IndexedVectors, "shared", True)
        return network(x, t, label, unique=unique)


def naive_rows(row: IndexedVectors) -> torch.Tensor:
    vectors = row.table[row.index]
    return vectors if row.label is None else vectors + row.label[:, None]


@pytest.mark.parametrize("options", [{}, {"joint_labels": True}, {"rope": True, "qk_norm": True}])
def test_level_table_matches_one_conditioning_per_patch(options):
    """The entire network, with the gradients of all parameters."""
    torch.manual_seed(0)
    network = randomize_weights(DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4, classes=10, **options).double())
    index = torch.randint(7, (3, 4, 4), generator=seeded(0))
    values = torch.rand(7, generator=seeded(1), dtype=torch.float64)
    x = torch.randn(3, 1, 8, 8, generator=seeded(2), dtype=torch.float64)
    label, weight = torch.tensor([0, 4, 10]), torch.randn(3, 1, 8, 8, generator=seeded(3), dtype=torch.float64)
    ours = network(x, values[index], label, unique=UniqueLevels(values, index))
    naive = naive_network(network, x, values[index], label)
    assert torch.allclose(ours, naive, rtol=0, atol=1e-12)
    parameters = list(network.parameters())
    for got, expected in zip(
        torch.autograd.grad((ours * weight).sum(), parameters),
        torch.autograd.grad((naive * weight).sum(), parameters),
        strict=True,
    ):
        assert torch.allclose(got, expected, rtol=0, atol=1e-10)


def stored_bytes(network: DiT, x: torch.Tensor, t: torch.Tensor, unique: UniqueLevels, naive: bool = False) -> int:
    """Bytes that the forward pass stores for the backward pass, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = naive_network(network, x, t, None) if naive else network(x, t, unique=unique)
    del output
    return sum(storages.values())


def test_the_six_vectors_per_token_are_not_stored():
    """DiT-S with 64 tokens: memory of a level map compared with one level per image."""
    torch.manual_seed(0)
    network = DiT(channels=3, patch_size=4, dim=384, depth=2, heads=6)
    x, index = torch.randn(64, 3, 32, 32), torch.randint(256, (64, 8, 8))
    values = torch.arange(256) / 255
    one_each = UniqueLevels(values, index[:, :1, :1])
    scalar = stored_bytes(network, x, values[one_each.index], one_each)
    ours = stored_bytes(network, x, values[index], UniqueLevels(values, index))
    naive = stored_bytes(network, x, values[index], UniqueLevels(values, index), naive=True)
    assert ours < 1.08 * scalar
    assert naive > 1.3 * scalar


def test_operation_count_of_a_level_map_compared_with_one_level():
    """DiT-XL/2 at 256 tokens, batch 64, forward and backward, counted: 256 levels against one per image, and naive."""
    counted = {}
    with torch.device("meta"):
        network = DiT(channels=4, patch_size=2, dim=1152, depth=28, heads=16)
        x = torch.empty(64, 4, 32, 32)
        index = torch.empty(64, 16, 16, dtype=torch.int64)
        every = torch.empty(64 * 256)
        cases = {
            "scalar": UniqueLevels(every[:64], index[:, :1, :1]),
            "ours": UniqueLevels(every[:256], index),
            "naive": UniqueLevels(every, index),
        }
        for name, unique in cases.items():
            with FlopCounterMode(display=False) as counter:
                network(x, torch.empty(unique.index.shape), unique=unique).sum().backward()
            counted[name] = counter.get_total_flops()
    assert counted["ours"] < 1.01 * counted["scalar"]
    assert counted["naive"] == pytest.approx(1.48 * counted["scalar"], rel=0.02)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_changes_no_gradient(dropout):
    gradients, stored = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = DiT(1, 2, 32, 2, 4, classes=10, dropout=dropout, checkpointing=checkpointing)
        randomize_weights(network)
        x, index = torch.randn(3, 1, 8, 8, generator=seeded(0)), torch.randint(5, (3, 4, 4), generator=seeded(1))
        unique = UniqueLevels(torch.rand(5, generator=seeded(2)), index)
        torch.manual_seed(1)
        network(x, unique.values[index], torch.arange(3), unique=unique).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
        stored.append(stored_bytes(network, x, unique.values[index], unique))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert stored[1] < 0.5 * stored[0]


@pytest.mark.parametrize("options", [{}, {"rope": True, "qk_norm": True}, {"joint_labels": True}])
def test_compiled_network_matches_eager_and_compiles_once(options):
    """One graph for training, however many levels there are; two for sampling and two for validation, one level an
    image or a map, however many images."""
    report = run_compiled(options, "aot_eager")
    assert report["training"] == 1
    assert report["all"] <= 5
    assert report["difference"] < 2e-4


@pytest.mark.slow
def test_inductor_matches_eager():
    report = run_compiled({"checkpointing": True}, "inductor")
    assert report["training"] == 1
    assert report["difference"] < 2e-3  # float32 sums in another order, relative to the largest entry of each tensor


def test_a_run_compiles_its_network_and_a_checkpoint_does_not_require_it(monkeypatch):
    compiled = []
    monkeypatch.setattr(DiT, "compile", lambda self, *_, **__: compiled.append(self))
    model = AsyncDiffusion(DiT(channels=1, dim=32, depth=1, heads=4), image_size=8, compiled=True)
    assert compiled == [model.network]
    checkpoint: dict = {}
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["recipe"]["init_args"]["compiled"] is False


def run_compiled(options: dict, backend: str) -> dict:
    command = [sys.executable, str(HERE / "compiled_dit.py"), json.dumps(options), backend]
    path = os.pathsep.join(str(p) for p in (HERE.parents[1], HERE.parent))
    environment = os.environ | {"JAXTYPING_DISABLE": "1", "PYTHONPATH": path}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("options", [{}, {"rope": True, "qk_norm": True, "uncertainty": True}])
def test_bfloat16_is_close_to_float32(options):
    torch.manual_seed(0)
    network = randomize_weights(DiT(channels=1, patch_size=2, dim=64, depth=2, heads=4, classes=10, **options))
    index = torch.randint(5, (3, 4, 4), generator=seeded(1))
    unique = UniqueLevels(torch.rand(5, generator=seeded(2)), index)
    x, label = torch.randn(3, 1, 8, 8, generator=seeded(0)), torch.arange(3)

    def run() -> torch.Tensor:
        output = network(x, unique.values[index], label, unique=unique)
        return output[0] if network.uncertainty else output

    exact = run()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run()
    rounded.float().square().sum().backward()
    assert ((rounded - exact).square().mean() / exact.square().mean()).sqrt() < 0.02
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_parameter_count_matches_dit(name):
    """Exactly, except for learned variances, which this DiT does not have. The level map itself adds none."""
    dim, depth, heads = SIZES[name]
    with torch.device("meta"):
        network = DiT(4, 2, dim, depth, heads, classes=1000)
    linear = {(16, dim): 1, (256, dim): 1, (dim, dim): 1 + depth, (dim, 3 * dim): depth, (dim, 6 * dim): depth}
    linear |= {(dim, 4 * dim): depth, (4 * dim, dim): depth, (dim, 2 * dim): 1, (dim, 16): 1}
    expected = sum(count * (i + 1) * o for (i, o), count in linear.items()) + 1001 * dim
    assert sum(p.numel() for p in network.parameters()) == expected
    positions, variances = 256 * dim, (dim + 1) * 16  # the fixed embedding is counted in the figure that DiT prints
    assert name != "XL" or expected + positions + variances == 675_129_632


def test_rope_depends_only_on_distances():
    """Scores of equal queries and keys depend on the distance of their tokens, by row and by column separately."""
    torch.manual_seed(0)
    network = randomize_weights(DiT(1, 2, 32, 2, 4, positions=False, rope=True).double())
    x = torch.randn(1, 1, 16, 16, generator=seeded(0), dtype=torch.float64)
    t = torch.rand(1, 8, 8, generator=seeded(1), dtype=torch.float64)
    shifted = network(x.roll((2, 4), (2, 3)), t.roll((1, 2), (1, 2)))
    assert not torch.allclose(shifted, network(x, t).roll((2, 4), (2, 3)), atol=1e-3)
    q, k = torch.randn(2, 1, 4, 1, 8, generator=seeded(2), dtype=torch.float64).expand(2, 1, 4, 64, 8)
    rope = rotations((8, 8), 8, x.device).double()
    scores = (apply_rot_embed_cat(q, rope) @ apply_rot_embed_cat(k, rope).transpose(2, 3))[0]
    grid = scores.reshape(4, 8, 8, 8, 8)
    assert torch.allclose(grid[:, :-1, :-1, :-1, :-1], grid[:, 1:, 1:, 1:, 1:], atol=1e-5)
    assert not torch.allclose(grid[:, 0, 0, 1, 0], grid[:, 0, 0, 0, 1], atol=1e-2)
