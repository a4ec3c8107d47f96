"""The fused modulation against plain autograd, as on CPUs and as on GPUs."""

from dataclasses import replace

import pytest
import torch
from small_networks import LABEL, UNETS, dit, draw, noisy, single, unet
from torch import Tensor

from asyncdiff.networks import modulation, one_hot
from asyncdiff.networks.modulation import Conditioning, IndexedVectors, add_gated, modulate
from asyncdiff.randomness import seeded

IMAGES, TOKENS, DIM, LEVELS = 4, 8, 6, 5
WAYS = ["scatter", "product sums", "products"]
KINDS = ["labels", "groups of labels", "no labels", "levels per image"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> str:
    """Sums by scattering, as on CPUs; by products, as on GPUs; gathers by products, too, as on GPUs in bfloat16."""
    monkeypatch.setattr(modulation, "gathers_by_product", lambda _: request.param == "products")
    return request.param


def rows(kind: str, way: str, dtype: torch.dtype = torch.float64) -> tuple[IndexedVectors, list[Tensor]]:
    """Vectors for 4 images of 8 tokens, and the leaves that they are computed from."""
    count = LEVELS * (IMAGES if kind == "levels per image" else 1)
    table = torch.randn(count, DIM, generator=seeded(1), dtype=dtype, requires_grad=True)
    index = torch.randint(LEVELS, (IMAGES, TOKENS), generator=seeded(3))
    labeled = "groups of" in kind or kind == "labels"
    label = torch.randn(IMAGES, DIM, generator=seeded(2), dtype=dtype, requires_grad=True) if labeled else None
    matrix = None
    if way != "scatter":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one_hot, "MAX_IMAGES", 2 if "groups" in kind else 64)
            options = {"labeled": labeled, "per_image": kind == "levels per image"}
            matrix = one_hot.one_hot_matrix(index, LEVELS, dtype, **options)
    if kind == "levels per image":
        index = index + LEVELS * torch.arange(IMAGES)[:, None]
    return IndexedVectors(table, index, label, matrix), [table] if label is None else [table, label]


def tokens(seed: int = 0) -> Tensor:
    return torch.randn(IMAGES, TOKENS, DIM, generator=seeded(seed), dtype=torch.float64, requires_grad=True)


def naive(row: IndexedVectors) -> Tensor:
    vectors = row.table[row.index]
    return vectors if row.label is None else vectors + row.label[:, None]


@pytest.mark.parametrize("kind", KINDS)
def test_fused_gather_matches_the_naive_one(kind, way):
    """Values and gradients of every input, against gathering with plain autograd."""
    x, change = tokens(), tokens(9)
    shift, leaves = rows(kind, way)
    scale = replace(shift, table=shift.table.detach() * 2 + 1)
    scale.table.requires_grad_()
    leaves = [x, change, *leaves, scale.table]
    fused = add_gated(x, shift, modulate(x, shift, scale) + change)
    plain = x + naive(shift) * (x * (1 + naive(scale)) + naive(shift) + change)
    assert torch.allclose(fused, plain, rtol=0, atol=1e-13)
    weight = torch.randn(plain.shape, generator=seeded(4), dtype=torch.float64)
    gradients = (torch.autograd.grad((value * weight).sum(), leaves) for value in (fused, plain))
    assert all(torch.allclose(got, expected, rtol=0, atol=1e-12) for got, expected in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_numerical_gradients(kind, way):
    (row, leaves), x = rows(kind, way), tokens()

    def run(x, table, label=None):
        changed = replace(row, table=table, label=label)
        return add_gated(x, changed, modulate(x, changed, changed))

    assert torch.autograd.gradcheck(run, (x, *leaves), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_one_hot_matrix_is_aligned_and_ends_with_one_and_zeros(kind):
    matrix = rows(kind, "products")[0].one_hot
    used = {"labels": 5 + 4, "groups of labels": 5 + 2, "no labels": 5, "levels per image": 5}[kind]
    assert matrix.shape[2] % 8 == 0
    assert matrix.sum(2).eq(3 if "labels" in kind and kind != "no labels" else 2).all()
    assert (matrix[..., used] == 1).all()
    assert not matrix[..., used + 1 :].any()
    assert matrix.shape[2] > used + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_as_exact_as_scattering(kind, dtype):
    """Sums of 16384 vectors over 64 rows, against sums in float64."""
    index = torch.randint(64, (16, 1024), generator=seeded(0))
    per_image, labeled = kind == "levels per image", kind in KINDS[:2]
    grad = torch.randn(16, 1024, 8, generator=seeded(1)).to(dtype)
    label = torch.zeros(16, 8, dtype=dtype) if labeled else None
    matrix = one_hot.one_hot_matrix(index, 64, dtype, labeled=labeled, per_image=per_image)
    index = index + 64 * torch.arange(16)[:, None] if per_image else index
    table = torch.zeros(64 * (16 if per_image else 1), 8, dtype=dtype)
    exact, *found = (
        modulation._sums(grad.to(kept), table.to(kept), label, index, chosen)
        for kept, chosen in ((torch.float64, None), (dtype, None), (dtype, matrix))
    )
    for k in range(1 + labeled):
        scattered, multiplied = ((each[k] - exact[k]).square().mean().sqrt() for each in found)
        assert found[1][k].dtype == dtype
        assert multiplied <= 1.05 * scattered


def test_gathers_by_products_round_once():
    """In bfloat16: the sum of level, label and 1 is that of float64, rounded; it stays so in every run."""
    (row, _), exact = rows("labels", "products", torch.bfloat16), rows("labels", "scatter", torch.bfloat16)[0]
    expected = 1 + exact.table.double()[exact.index] + exact.label.double()[:, None]
    runs = [modulation._gather(row.table, row.index, row.label, row.one_hot, plus=1) for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(runs[0].view_as(expected), expected.to(torch.bfloat16))


# Entire networks as on a GPU

NETWORKS = {"DiT": dit, "joint": lambda **o: dit(joint_labels=True, **o), "U-Net": unet, "groups": UNETS["groups"]}


def compute(net: torch.nn.Module, levels, label: Tensor | None) -> list[Tensor]:
    """Output and all gradients."""
    net.zero_grad()
    output = net(noisy().to(levels.values.dtype), levels, label)
    (output.float() if output.dtype == torch.bfloat16 else output).square().sum().backward()
    return [output.detach(), *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (4, 4)])
@pytest.mark.parametrize("products", [False, True])
def test_networks_compute_the_same_as_on_a_gpu(name, grid, products, monkeypatch):
    """Output and gradients in float64, with sums by products and with gathers by products, too."""
    net, levels = NETWORKS[name](classes=10), draw(grid)
    expected = compute(net, levels, LABEL)
    monkeypatch.setattr(modulation, "few_passes", lambda _: True)
    monkeypatch.setattr(modulation, "gathers_by_product", lambda _: products)
    for got, wanted in zip(compute(net, levels, LABEL), expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_on_a_gpu_repeat_their_bfloat16_gradients_and_checkpointing_changes_none(name, monkeypatch):
    monkeypatch.setattr(modulation, "few_passes", lambda _: True)
    results = []
    for checkpointing in (False, False, True):
        net = NETWORKS[name](classes=10, checkpointing=checkpointing).float()
        with torch.autocast("cpu", torch.bfloat16):
            results.append(compute(net, single(draw((4, 4))), LABEL))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"device": False}, False),
        ({"rows": 513}, False),
        ({"dtype": torch.float32}, True),
        ({"dtype": torch.float32, "compiled": True}, False),
        ({"dtype": torch.float32, "grad": False}, False),
        ({"compiled": True}, True),
        ({"compiled": True, "grad": False}, False),
        ({"grad": False}, True),
        ({"per_image": True, "rows": 4 * 512}, True),
    ],
)
def test_where_products_are_used(options, expected, monkeypatch):
    """On GPUs, with few rows, and where they gather faster (bfloat16, eager) or sum gradients."""
    wanted = {"device": True, "rows": 512, "dtype": torch.bfloat16, "grad": True, "compiled": False, "per_image": False}
    wanted |= options
    monkeypatch.setattr(modulation, "few_passes", lambda _: wanted["device"])
    levels = torch.zeros(wanted["rows"], 4, dtype=wanted["dtype"])
    index = torch.zeros(4, 8, dtype=torch.int64)
    with torch.set_grad_enabled(wanted["grad"]):
        made = Conditioning(levels, index, None).for_device(per_image=wanted["per_image"], compiled=wanted["compiled"])
    assert (made.one_hot is not None) == expected
    if expected:
        assert made.one_hot.dtype == wanted["dtype"]
        assert made.gather(torch.zeros(4, 2, dtype=torch.int64)).one_hot is None
