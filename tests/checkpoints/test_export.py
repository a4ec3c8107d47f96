"""Exports contain the same model bit for bit, are written atomically, and are refused if anything is wrong."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
import yaml
from huggingface_hub import HfApi, snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import quiet_trainer

from asyncdiff import AsyncDiffusion
from asyncdiff.__main__ import main
from asyncdiff.checkpoints import object_config, read_checkpoint
from asyncdiff.checkpoints.export import save
from asyncdiff.checkpoints.export.files import FILES
from asyncdiff.checkpoints.export.hub import locate_export, upload_export
from asyncdiff.checkpoints.export.model_card import model_card, without_local_paths
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from asyncdiff.evaluation.result_card import make_card
from asyncdiff.networks import UNet
from datamodules import Digits

DATA = {"class_path": "datamodules.Digits", "init_args": {"batch_size": 32}}


@pytest.fixture(scope="module")
def run(digits_run, tmp_path_factory):
    """A run directory whose configuration has local paths, with result cards of its weights and of others."""
    folder = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(digits_run, folder)
    arguments = {**DATA["init_args"], "root": "/home/somebody/secret", "nested": ["~/also", "kept"]}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {**DATA, "init_args": arguments}, "model": {}}))
    (folder / "evaluation").mkdir()
    sha = hashlib.sha256((folder / "checkpoints" / "last.ckpt").read_bytes()).hexdigest()
    protocol = {"checkpoint": "/home/somebody/last.ckpt", "checkpoint_sha256": sha, "weights": "ema", "split": "val"}
    cards = {
        "training": {"step": 2, "split": "val"},  # as callbacks write it, of the EMA weights
        "ours": protocol,
        "others": protocol | {"checkpoint_sha256": "0" * 64},
        "raw": protocol | {"weights": "raw"},
    }
    for name, about in cards.items():
        (folder / "evaluation" / f"{name}.json").write_text(json.dumps(make_card(about, {"frechet": 1.2345678})))
    (folder / "evaluation" / "broken.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def exported(run):
    """Exports of the run's EMA and raw weights, to be copied."""
    for weights in ("ema", "raw"):
        main(["export", str(run), "--output", str(run / "exports" / weights), "--weights", weights])
    return run / "exports"


@pytest.fixture
def export(run, exported, tmp_path):
    """Copy an export, or export the run with further arguments; returns the folder, which may be changed."""

    def write(*argv, weights="ema", name="shared"):
        if argv:
            main(["export", str(run), "--output", str(tmp_path / name), *argv])
        else:
            shutil.copytree(exported / weights, tmp_path / name, dirs_exist_ok=True)
        return tmp_path / name

    return write


@pytest.fixture
def refused(capfd):
    """Run a command that must fail and return its one-line error."""

    def run(*argv):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in argv])
        assert stopped.value.code == 2
        (line,) = capfd.readouterr().err.splitlines()
        return line.removeprefix("error: ")

    return run


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_model_is_that_of_the_checkpoint_bit_for_bit(run, export, weights):
    folder = export(weights=weights)
    there = AsyncDiffusion.load_from_checkpoint(run / "checkpoints" / "last.ckpt", weights=weights)
    here = AsyncDiffusion.from_pretrained(folder)
    assert {n: w.dtype for n, w in here.state_dict().items()} == {n: w.dtype for n, w in there.state_dict().items()}
    assert all(torch.equal(weight, there.state_dict()[name]) for name, weight in here.state_dict().items())
    assert object_config.describe(here) == object_config.describe(there)
    assert torch.equal(here.generate([0, 1], [2, 3]), there.generate([0, 1], [2, 3]))
    assert not here.training


def test_ema_and_raw_weights_are_distinguished(run, export, refused):
    ema, raw, default = export(name="a"), export(weights="raw", name="b"), export("--name", "c", name="c")
    heads = [load_file(folder / FILES[0])["denoiser.network.head.weight"] for folder in (ema, raw, default)]
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2])
    message = "the export .* contains ema weights only, got weights='raw': use 'auto' or 'ema'"
    with pytest.raises(ValueError, match=message):
        AsyncDiffusion.load_from_checkpoint(ema, weights="raw")
    assert AsyncDiffusion.load_from_checkpoint(raw, weights="raw").classes == 10
    assert "contains ema weights only, got weights='raw'" in refused("sample", ema, "--weights", "raw")


def test_networks_with_channels_last_and_tuples_are_restored(tmp_path):
    """A U-Net is stored with channels last, and YAML reads its tuples as lists."""
    network = UNet(channels=1, width=8, multipliers=(1, 2), blocks=1, head_dim=8, groups=4)
    model = AsyncDiffusion(network, image_size=8)
    checkpoint = {"state_dict": model.state_dict(), "epoch": 0, "global_step": 3, "pytorch-lightning_version": "2.6.0"}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "unet.ckpt")
    main(["export", str(tmp_path / "unet.ckpt"), "--output", str(tmp_path / "unet")])
    again = AsyncDiffusion.from_pretrained(tmp_path / "unet")
    assert object_config.describe(again) == object_config.describe(model)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in again.state_dict().items())


def test_the_configuration_is_complete_and_has_no_local_paths(run, export):
    folder = export("--ckpt_path", "last")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert {"format": 1, "weights": "ema", "step": 2, "classes": 10, "label_names": None}.items() <= config.items()
    assert config["normalisation"] == {"space": "pixels", "range": [-1, 1], "channels": 1, "size": 8}
    assert config["data"] == {**DATA, "init_args": {**DATA["init_args"], "nested": ["kept"]}}
    assert set(config["software"]) == {"commit", "torch", "lightning"}
    assert config["recipe"]["init_args"]["sampler"]["init_args"]["steps"] == 2
    reported = "".join((folder / name).read_text() for name in ("config.yaml", "README.md"))
    assert "somebody" not in reported
    assert str(run) not in reported
    with safe_open(folder / "model.safetensors", "pt") as held:
        about = held.metadata()
    assert about["config_sha256"] == hashlib.sha256((folder / "config.yaml").read_bytes()).hexdigest()


def test_local_paths_of_any_system_are_recognized():
    given = {"a": "/x", "b": "~x", "c": "C:\\x", "d": "x/y", "e": ["/x", "x", 1], "f": {"g": "//x"}, "h": "a: b"}
    assert without_local_paths(given) == {"d": "x/y", "e": ["x", 1], "f": {}, "h": "a: b"}


def test_the_card_lists_only_results_of_these_weights(export, capsys):
    text = (export("--name", "Digits, small") / "README.md").read_text()
    reported = capsys.readouterr().out
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "asyncdiff"
    assert front.startswith("# license: fill in before sharing")
    assert "# Digits, small\n" in body
    assert "`DiT(channels=1, dim=32, depth=1, heads=2, classes=10)`" in body
    assert body.count("| frechet | 1.235 |") == 2
    assert {"### ours", "### training"} <= set(body.splitlines())
    assert '"split": "val"' in body
    assert "others.json: it was measured on other weights (different checkpoint_sha256" in reported
    assert "raw.json: it was measured on other weights (different weights)" in reported
    assert "broken.json cannot be read as a JSON file" in reported
    text = (export(weights="raw", name="raw") / "README.md").read_text()
    assert [name for name in text.splitlines() if name.startswith("###")] == ["### raw"]


def test_the_card_names_the_channels_of_the_images(export):
    config = yaml.safe_load((export() / "config.yaml").read_text())
    for channels, kind in ((1, "gray"), (3, "color"), (4, "4-channel")):
        space = config["normalisation"] | {"channels": channels}
        text = model_card("name", config | {"normalisation": space}, {"network": "DiT()"}, {})
        assert f" It generates {kind} images of 8x8 pixels, " in text


def test_the_python_of_the_card_runs(export):
    folder = export()
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code.replace("PATH", str(folder)), names)
    assert names["images"].shape == (4, 1, 8, 8)


def test_class_names_are_listed_on_the_card(export, refused, tmp_path, run):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"digit {i}" for i in range(10)))
    folder = export("--label_names", str(names))
    assert "Classes: 0 digit 0, 1 digit 1" in (folder / "README.md").read_text()
    names.write_text("one\ntwo\n")
    line = refused("export", run, "--output", tmp_path / "x", "--label_names", names)
    assert line == f"--label_names must have one line per class, got 2 in {names} for 10 classes"


# Where exports are accepted


def test_commands_accept_an_export_and_generate_the_same_images(run, export, tmp_path):
    folder = export()
    for given, output in ((run, "a"), (folder, "b")):
        main(["sample", str(given), "--seeds", "0-1", "--labels", "3", "--output", str(tmp_path / output)])
    a, b = (sorted((tmp_path / name).glob("*.png")) for name in "ab")
    assert [f.name for f in a] == [f.name for f in b]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(a, b, strict=True))


def test_evaluate_accepts_an_export_and_its_data(export):
    folder = export()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["data"]["init_args"]["nested"]
    rewrite_config(folder, config)
    main(["evaluate", str(folder), "--likelihood", "--images", "2", "--points", "2", "--device", "cpu"])
    (card,) = (folder / "evaluation").glob("*.json")
    fingerprint = json.loads(card.read_text())["protocol"]
    assert fingerprint["weights"] == "ema"
    assert fingerprint["checkpoint_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_trainer_validates_an_export_but_does_not_resume_from_it(export, tmp_path):
    folder = export()

    def trainer():
        return quiet_trainer(tmp_path, max_steps=3, limit_val_batches=2, plugins=[AtomicCheckpointIO()])

    loaded = AsyncDiffusion.from_pretrained(folder)
    torch.manual_seed(1)
    fresh = object_config.build(object_config.describe(loaded))
    (found,) = trainer().validate(fresh, datamodule=Digits(), ckpt_path=str(folder), verbose=False)
    (expected,) = trainer().validate(loaded, datamodule=Digits(), verbose=False)
    assert found == expected
    with pytest.raises(
        ValueError, match="ckpt_path .* is an export, which has no optimizer state to resume: .* model.pretrained"
    ):
        trainer().fit(fresh, datamodule=Digits(), ckpt_path=str(folder))


# Atomic writes


def test_folders_are_not_overwritten_without_the_option(export, refused, run, tmp_path):
    folder = export()
    before = {name: (folder / name).read_bytes() for name in FILES}
    assert refused("export", run, "--output", folder) == (
        f"--output {folder} is an earlier export: add --overwrite, or choose a new folder"
    )
    export("--overwrite", "--weights", "raw")
    assert (folder / FILES[0]).read_bytes() != before[FILES[0]]
    (folder / "notes.txt").write_text("mine")
    assert refused("export", run, "--output", folder, "--overwrite") == (
        f"--overwrite would delete notes.txt in {folder}, which is not part of an export: move it, or choose a new "
        "folder"
    )
    (tmp_path / "mine").mkdir()
    assert refused("export", run, "--output", tmp_path / "mine", "--overwrite") == (
        f"--output {tmp_path / 'mine'} exists and is not an export: choose a new folder"
    )
    assert refused("export", folder, "--output", tmp_path / "x").startswith("RUN must be a run directory or a .ckpt")
    other = refused("export", run, "--ckpt_path", folder, "--output", tmp_path / "x")
    assert other.startswith("--ckpt_path must be a run directory or a .ckpt file, got the export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "shared"]  # nothing half done


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("full_at", [*FILES, "the rename"])
def test_a_full_disk_changes_nothing(tmp_path, monkeypatch, full_at, before):
    folder, write = tmp_path / "shared", save.write_atomically
    if before:
        save.write_export(folder, {"weight": torch.zeros(2)}, {"recipe": {}}, "card")
    kept = {file: file.read_bytes() for file in folder.glob("*")}
    assert len(kept) == (3 if before else 0)

    def full(file, parts=(), *_):
        if file.name == full_at or full_at not in FILES:
            raise OSError(28, "No space left on device")
        write(file, parts)

    monkeypatch.setattr(save, "write_atomically" if full_at in FILES else "_move_into_place", full)
    with pytest.raises(OSError, match="cannot write .*shared: .* No space left on device; the folder is unchanged"):
        save.write_export(folder, {"weight": torch.ones(2)}, {"recipe": {}}, "another card")
    assert list(tmp_path.iterdir()) == ([folder] if before else [])
    assert {file: file.read_bytes() for file in folder.glob("*")} == kept


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def write(folder, value, **options):
    save.write_export(folder, {"weight": torch.full((2,), value)}, {"recipe": {}}, f"card {value}", **options)


def test_two_exports_into_one_folder_do_not_mix(tmp_path, monkeypatch):
    folder, move = tmp_path / "shared", save._move_into_place
    write(folder, 0.0)

    def other_meanwhile(*folders):
        with pytest.raises(ValueError, match=r"shared is being exported to by process \d+ on .*: wait for it, stop it"):
            write(folder, 1.0)
        move(*folders)

    monkeypatch.setattr(save, "_move_into_place", other_meanwhile)
    write(folder, 2.0)
    assert content(folder)["README.md"] == b"card 2.0"
    with pytest.raises(ValueError, match="is an earlier export: add --overwrite"):  # created since it was checked
        write(folder, 3.0, overwrite=False)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_what_a_killed_export_left_is_put_in_order(tmp_path, monkeypatch, renames):
    """After the first rename there is no folder of that name: the earlier export comes back."""
    folder = tmp_path / "shared"
    write(folder, 0.0)
    earlier = content(folder)
    if not (child := os.fork()):
        rename, left = Path.rename, [renames]

        def rename_or_die(self, target):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return rename(self, target)

        Path.rename = rename_or_die
        shutil.rmtree = lambda folder, **_: os._exit(9) if folder.exists() else None
        write(folder, 1.0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list(tmp_path.iterdir())) > 1
    with pytest.raises(ValueError, match="is an earlier export: add --overwrite"):
        write(folder, 2.0, overwrite=False)
    assert (content(folder) == earlier) == (renames < 2)
    write(folder, 2.0)
    assert list(tmp_path.iterdir()) == [folder]
    assert content(folder)["README.md"] == b"card 2.0"


# Refusals


def rewrite_config(folder: Path, config) -> None:
    """Write another configuration into an export, with a matching hash."""
    content = config if isinstance(config, bytes) else yaml.safe_dump(config, sort_keys=False).encode()
    (folder / "config.yaml").write_bytes(content)
    tensors = load_file(folder / "model.safetensors")
    reported = {"asyncdiff_format": "1", "config_sha256": hashlib.sha256(content).hexdigest()}
    save_file(tensors, folder / "model.safetensors", metadata=reported)


@pytest.fixture
def line():
    """Return the one-line error with which `from_pretrained` refuses a folder."""

    def of(folder, **options):
        with pytest.raises((ValueError, OSError)) as refusal:
            AsyncDiffusion.from_pretrained(folder, **options)
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    return of


def test_a_changed_configuration_is_refused(export, line):
    folder = export()
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("steps: 2", "steps: 3"))
    assert line(folder).startswith(f"{folder / 'config.yaml'} was changed after the export, its SHA-256 is ")


def test_other_and_missing_format_versions_are_refused(export, line):
    folder = export()
    tensors = load_file(folder / "model.safetensors")
    for reported, version in (({"asyncdiff_format": "2"}, "2"), (None, "none")):
        save_file(tensors, folder / "model.safetensors", metadata=reported)
        assert line(folder) == (
            f"the export format version must be 1, got {version} in {folder / 'model.safetensors'}: "
            "read it with the version of asyncdiff that wrote it"
        )


def test_a_changed_weight_is_refused(export, line):
    """Safetensors has no checksum; the configuration has."""
    folder = export()
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert line(folder).startswith(f"{folder / 'model.safetensors'} is damaged, the SHA-256 of its tensors is ")
    (folder / "model.safetensors").write_bytes(content[:-8])
    assert line(folder).startswith(f"{folder / 'model.safetensors'} is not a valid safetensors file, ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b"recipe: [", "config.yaml:2: not valid YAML: "),
        (b"\xff\xfe\x00", "config.yaml: not valid YAML: "),
        (b"!!python/object/apply:os.system ['true']", "config.yaml:1: tags are not allowed, got !!python/object/apply"),
        (b"- 1", "config.yaml must be a dict, got NoneType"),
        ({"recipe": {}, "tuples": [], "weights": 3}, "config.yaml must be a str, got int"),
        (
            {"recipe": {}, "tuples": [], "weights": "x", "weights_sha256": "", "step": 0, "software": {}},
            "config.yaml must be ema or raw and software.lightning a version, got x and None",
        ),
        (
            {"recipe": {"a": 1}, "tuples": [], "weights": "ema", "weights_sha256": "", "step": 0}
            | {"software": {"lightning": "2"}},
            "config.yaml must have the keys class_path and init_args, got ['a']",
        ),
    ],
)
def test_invalid_configurations_are_refused(export, line, change, message):
    folder = export()
    rewrite_config(folder, change)
    assert message in line(folder)


def test_foreign_classes_are_not_imported(export, line, tmp_path, monkeypatch):
    folder = export()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["recipe"]["init_args"]["levels"] = {"class_path": "elsewhere.Levels", "init_args": {}}
    rewrite_config(folder, config)
    (tmp_path / "elsewhere.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    assert line(folder).startswith("class_path elsewhere.Levels is not in the allowed packages (asyncdiff): ")
    assert not (tmp_path / "marker").exists()


def test_weights_of_another_model_are_refused(export, line):
    folder = export()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["recipe"]["init_args"]["network"]["init_args"]["dim"] = 16
    rewrite_config(folder, config)
    assert "denoiser.network.embed.weight must have the shape (32, 4) as in " in line(folder)


def test_paths_that_are_not_exports_are_refused(export, line, tmp_path):
    folder = export()
    assert line(folder, revision="main") == (
        f"revision applies to Hub repositories, got main for the local path {folder}: omit revision"
    )
    (folder / "config.yaml").unlink()
    assert line(folder).startswith(f"{folder} is not a complete export, config.yaml is missing: ")
    for path in (tmp_path, folder / "README.md"):
        assert line(path).startswith(f"{path} is not an export, it has no model.safetensors: ")
    assert line("no/such/thing") == (
        "no/such/thing is neither an existing folder nor a repository OWNER/NAME on the Hugging Face Hub: "
        "check the path"
    )


# The hub, replaced by mocks with the library's own signatures


@pytest.fixture
def download(monkeypatch):
    mock = create_autospec(snapshot_download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", mock)
    return mock


@pytest.fixture
def hub(monkeypatch):
    mock = create_autospec(HfApi, instance=True)
    mock.create_repo.side_effect = lambda name, **_: f"https://huggingface.co/{name}"
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: mock)
    return mock


def test_a_repository_is_downloaded_from_the_hub(export, download):
    download.return_value = str(export())
    model = AsyncDiffusion.from_pretrained("somebody/digits", revision="v1")
    download.assert_called_once_with("somebody/digits", revision="v1", allow_patterns=list(FILES))
    assert torch.equal(model.generate([0], [1]), AsyncDiffusion.from_pretrained(export()).generate([0], [1]))


def test_what_the_hub_does_not_have_is_reported(line, download, tmp_path):
    download.side_effect = OSError("no\nconnection")
    assert line("somebody/digits", revision="v1") == (
        "somebody/digits at v1 is not a local folder and cannot be downloaded from the Hugging Face Hub: no connection"
    )
    download.side_effect, download.return_value = None, str(tmp_path)
    assert line("somebody/other").startswith("somebody/other is not an export, it has no model.safetensors: ")


def test_an_export_is_uploaded_to_the_requested_repository(export, hub, capsys):
    folder = export("--push_to_hub", "somebody/digits", "--private")
    hub.create_repo.assert_called_once_with("somebody/digits", private=True, exist_ok=True)
    files = {"folder_path": folder, "allow_patterns": list(FILES), "commit_message": "Export of shared"}
    hub.upload_folder.assert_called_once_with(repo_id="somebody/digits", **files)
    assert capsys.readouterr().out.endswith("published: https://huggingface.co/somebody/digits\n")


def test_a_rejected_upload_keeps_the_export(export, hub, tmp_path, monkeypatch, capfd):
    hub.upload_folder.side_effect = OSError("401\nUnauthorized")
    with pytest.raises(SystemExit):
        export("--push_to_hub", "somebody/digits")
    assert "error: cannot upload to somebody/digits, 401 Unauthorized: " in capfd.readouterr().err
    assert AsyncDiffusion.from_pretrained(tmp_path / "shared").guard.stop_after == 10
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.HfApi", lambda: HfApi("http://127.0.0.1:9", token="none"))
        with pytest.raises(OSError, match=r"cannot upload to somebody/digits, .*refused: the export in .* is complete"):
            upload_export(tmp_path / "shared", "somebody/digits")
    with pytest.raises(SystemExit):
        export("--push_to_hub", "digits", name="other")
    assert capfd.readouterr().err == (
        "error: --push_to_hub must be a repository OWNER/NAME, got digits: use somebody/digits, for example\n"
    )
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_is_not_an_export(run):
    assert "export" not in read_checkpoint(run / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="load checkpoints with load_from_checkpoint"):
        locate_export(run / "checkpoints" / "last.ckpt")


def test_the_checkpoint_is_read_once(run, tmp_path, monkeypatch):
    read, original = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: read.append(file) or original(file, **options))
    main(["export", str(run), "--output", str(tmp_path / "once")])
    assert read == [run / "checkpoints" / "last.ckpt"]


def test_a_card_of_hostile_names_has_the_elements_of_any_card(export):
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    config = yaml.safe_load((export() / "config.yaml").read_text())
    elements = []
    for text in (
        "plain",
        "<img src=x onerror=alert(1)>",
        "a|b`c`\n# d\n---\n",
        "\0\x1b[31m\u202e",
        "](x) ![y](z)",
        "$" * 9000,
    ):
        hostile = config | {
            "label_names": [text] * 10,
            "data": {"class_path": text},
            "software": {text: text},
        }
        cards = {f"{text}.json": {"metrics": {text: 1.0}, "protocol": {text: f"{text}\n```\n<b>"}}}
        card = model_card(text, hostile, {"network": text, text: text}, cards)
        assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "asyncdiff"
        body = card.split("---\n", 2)[2]
        assert not set("\0\x1b\u202e") & set(body)
        page = parser.render(body)
        elements.append([tag for tag in re.findall(r"</?[a-z][^>]*>", page) if "code" not in tag])
    assert all(found == elements[0] for found in elements)
