import pytest
import torch

from datamodules import Digits
from datamodules.base import Split

SPLITS: tuple[Split, Split] = ("train", "val")


def full_split(data: Digits, split: Split) -> dict[str, torch.Tensor]:
    (batch,) = data.images(split, 2000)
    return dict(batch)


def test_counts_shapes_and_range() -> None:
    data = Digits()
    sizes = [len(data.dataset(split)) for split in SPLITS]
    assert sum(sizes) == 1797
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        data.dataset("dev")  # type: ignore[arg-type]
    assert sizes[1] == pytest.approx(0.2 * 1797, abs=5)
    assert (data.channels, data.size, data.classes) == (1, 8, 10)
    image = torch.cat([full_split(data, split)["image"] for split in SPLITS])
    assert image.shape == (1797, 1, 8, 8)
    assert image.dtype == torch.float32
    assert torch.equal(image.unique(), torch.linspace(-1, 1, 17))


def test_every_class_is_held_out_in_the_same_proportion() -> None:
    data = Digits(held_out=0.3)
    train, held_out = (full_split(data, split)["label"].bincount(minlength=10) for split in SPLITS)
    assert torch.allclose(held_out / (train + held_out), torch.tensor(0.3), atol=0.5 / 174)


def test_splits_are_disjoint_and_do_not_depend_on_the_seed() -> None:
    a, b = Digits(seed=0), Digits(seed=1)
    for split in SPLITS:
        assert torch.equal(full_split(a, split)["image"], full_split(b, split)["image"])
    train, held_out = ({row.numpy().tobytes() for row in full_split(a, split)["image"]} for split in SPLITS)
    assert not train & held_out
    order_a, order_b = (next(iter(d.train_dataloader()))["index"] for d in (a, b))
    assert not torch.equal(order_a, order_b)


def test_a_batch_is_its_items() -> None:
    data = Digits().dataset("train")
    batch = data.__getitems__([(5, 11), (3, 12)])
    for at, item in enumerate([(5, 11), (3, 12)]):
        single = data[item]
        assert all(torch.equal(single[name][0], batch[name][at]) for name in ("image", "label", "index", "key"))
    assert batch["index"].tolist() == [5, 3]
    assert batch["key"].tolist() == [11, 12]


def test_loaders_have_full_batches_in_training_and_everything_in_evaluation() -> None:
    data = Digits(batch_size=100, eval_batch_size=50)
    assert {len(batch["label"]) for batch in data.train_dataloader()} == {100}
    assert [len(b["label"]) for b in data.val_dataloader()] == [len(b["label"]) for b in data.test_dataloader()]
    assert sum(len(batch["label"]) for batch in data.val_dataloader()) == len(data.dataset("val"))
    assert next(iter(data.val_dataloader()))["label"].shape == (50,)
    shares = [torch.cat([b["index"] for b in data.images("val", 64, rank=r, world=3)]).tolist() for r in range(3)]
    assert shares == [list(range(rank, len(data.dataset("val")), 3)) for rank in range(3)]


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, 1e-6])
def test_impossible_fractions_are_refused(held_out: float) -> None:
    with pytest.raises(ValueError, match="held_out"):
        Digits(held_out=held_out).setup()
