"""The command line, in process: what it writes, what it refuses and how it says so."""

import dataclasses
import json
import shutil

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from regate import ReGateConfig
from regate.accounting import read_steps
from regate.cli import Train, main
from regate.commands import add_lora, freeze_vision, training_arguments
from regate.conversations import load_conversations
from tests.data.test_fingerprint import other_tokenizer
from tests.media_files import turns, write_conversations
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """model/, train.json, media/ and scored/, made once."""
    folder = tmp_path_factory.mktemp("home")
    model, processor = tiny_model("internvl")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    write_conversations(folder)
    main(reference_command(folder, folder / "scored"))
    return folder


def reference_command(home, output, *more, data=None):
    command = ["reference", "--model", str(home / "model"), "--data", str(data or home / "train.json")]
    return [
        *command,
        "--media-root",
        str(home / "media"),
        "--output",
        str(output),
        "--num-frames",
        "2",
        *map(str, more),
    ]


def train_command(home, output, *more, data=None):
    command = ["train", "--model", str(home / "model"), "--data", str(data or home / "scored"), "--output", str(output)]
    quick = "--max-steps 3 --save-steps 2 --batch-size 2 --gate-warmup-steps 1 --cycle 2 --dense-steps 1 --cpu"
    return [*command, *quick.split(), "--learning-rate", "1e-3", *map(str, more)]


def refused(capsys, command, *words, status=2):
    """Runs a command that must fail with one message and without a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(command)
    error = capsys.readouterr().err
    assert left.value.code == status, error
    assert "Traceback" not in error
    message = error[error.index("regate: error: ") :]
    for word in words:
        assert word in message, message


def test_reference_writes_a_table_with_losses(home):
    table = load_conversations(home / "scored")
    plain = load_conversations(home / "train.json", home / "media")
    assert table.select_columns(plain.column_names).to_list() == plain.to_list()
    assert table.features["reference_losses"].feature.dtype == "float16"
    assert len(set(table["reference_id"])) == 1
    settings = json.loads((home / "scored" / "regate.json").read_text())
    assert settings["samples"] == 6
    assert settings["skipped"] == 0
    assert settings["targets"] == sum(len(row) for row in table["reference_losses"])
    assert settings["num_frames"] == 2
    assert not [p.name for p in home.iterdir() if p.name.startswith(".")]  # no parts left behind


def test_reference_skips_bad_samples_where_asked(home, tmp_path, capsys):
    (home / "media" / "broken.mp4").write_text("no video")
    extra = [
        {"id": "gone", "image": "gone.jpg", "conversations": turns("What?", "A cube.")},
        {"id": "broken", "video": "broken.mp4", "conversations": turns("What?", "A cube.")},
    ]
    data = write_conversations(home, extra, "bad.json")
    output = tmp_path / "scored"
    refused(capsys, reference_command(home, output, data=data), "'gone'", "gone.jpg", "--on-bad-sample skip")
    samples = [s for s in json.loads(data.read_text()) if s["id"] != "gone"]
    only = home / "broken.json"
    only.write_text(json.dumps(samples))
    refused(capsys, reference_command(home, output, data=only), "'broken'", "broken.mp4")
    assert not output.exists()
    main(reference_command(home, output, "--on-bad-sample", "skip", data=data))
    assert "6 samples, 2 left out" in capsys.readouterr().out
    assert "broken" not in load_conversations(output)["id"][:]
    main(train_command(home, tmp_path / "run", data=output))


def test_reference_keeps_what_is_there(home, tmp_path, capsys, monkeypatch):
    output = tmp_path / "scored"
    shutil.copytree(home / "scored", output)
    refused(capsys, reference_command(home, output), "is there already", "--overwrite")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "save_to_disk", full)
        refused(capsys, reference_command(home, output, "--overwrite"), "No space left on device")
    assert load_conversations(output).to_list() == load_conversations(home / "scored").to_list()
    main(reference_command(home, output, "--overwrite", "--max-length", "200"))
    assert json.loads((output / "regate.json").read_text())["max_length"] == 200
    refused(capsys, reference_command(home, tmp_path / "again", data=output), "has reference losses already")


def test_train_writes_model_and_processor_and_goes_on(home, tmp_path, capsys):
    run = tmp_path / "run"
    main(train_command(home, run))
    out = capsys.readouterr().out
    assert "starting" in out
    assert "answer tokens trained on" in out
    assert [step["step"] for step in read_steps(run / "steps.jsonl")] == [0, 1, 2]
    model = AutoModelForImageTextToText.from_pretrained(run / "final")
    before = AutoModelForImageTextToText.from_pretrained(home / "model")
    assert not torch.equal(model.get_output_embeddings().weight, before.get_output_embeddings().weight)
    AutoProcessor.from_pretrained(run / "final")
    main([*train_command(home, run), "--max-steps", "5"])
    assert f"going on from {run}/checkpoint-3" in capsys.readouterr().out
    assert [step["step"] for step in read_steps(run / "steps.jsonl")] == [0, 1, 2, 3, 4]
    refused(
        capsys, train_command(home, run, "--keep-ratio", "0.25"), "keep_ratio was 0.5, now 0.25", "another --output"
    )


def test_a_half_written_checkpoint_is_passed_over(home, tmp_path, capsys):
    run = tmp_path / "run"
    main(train_command(home, run))
    (run / "checkpoint-3" / "model.safetensors").write_bytes(b"")
    capsys.readouterr()
    main(train_command(home, run))
    assert f"going on from {run}/checkpoint-2" in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["dense", "random"])
def test_policies_without_a_teacher_train_on_plain_conversations(home, tmp_path, policy):
    more = ("--policy", policy, "--media-root", home / "media", "--num-frames", "2")
    main(train_command(home, tmp_path / "run", *more, data=home / "train.json"))


def test_train_with_lora(home, tmp_path):
    pytest.importorskip("peft")
    run = tmp_path / "run"
    main(train_command(home, run, "--lora-r", "2", "--gradient-checkpointing"))
    assert (run / "final" / "adapter_model.safetensors").exists()
    main([*train_command(home, run, "--lora-r", "2", "--gradient-checkpointing"), "--max-steps", "4"])
    assert len(read_steps(run / "steps.jsonl")) == 4


def test_lora_adapts_the_decoder_alone(kind):
    pytest.importorskip("peft")
    model, _ = tiny_model(kind)
    decoder = model.get_decoder()
    linear = sum(isinstance(module, torch.nn.Linear) for module in decoder.modules())
    adapted = add_lora(model, 2)
    inside = {id(p) for p in decoder.parameters()}
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    assert len(trainable) == 2 * linear == 2 * 14
    assert all(id(p) in inside for p in trainable)


def test_freeze_vision_freezes_the_tower_alone(kind):
    model, _ = tiny_model(kind)
    tower = {id(p) for p in model.get_encoder(modality="image").parameters()}
    freeze_vision(model)
    assert tower
    assert all((id(p) in tower) != p.requires_grad for p in model.parameters())


def test_show_prints_tokens_losses_and_the_kept_half(home, capsys):
    main(["show", "--data", str(home / "scored"), "--index", "3"])
    out = capsys.readouterr().out
    assert "id two" in out
    assert "11 of 22 candidates are kept" in out
    assert out.count("kept\n") == 11 + 2 + 1  # tokens, ends of turns, the headline
    losses = load_conversations(home / "scored")[3]["reference_losses"]
    shown = [line for line in out.splitlines() if "'" in line]
    assert [line.split()[0] for line in shown] == [f"{loss:.2f}" for loss in losses]
    assert "\033[" not in out
    main(["show", "--data", str(home / "scored"), "--keep-ratio", "1"])
    assert "kept" in capsys.readouterr().out


def test_user_errors_are_one_message(home, tmp_path, capsys):
    run, scored = tmp_path / "run", str(home / "scored")
    refused(capsys, train_command(tmp_path, run, data=scored), f"{tmp_path}/model: no such folder")
    (tmp_path / "model").mkdir()
    refused(capsys, train_command(tmp_path, run, data=scored), "cannot be loaded as a multimodal model")
    refused(capsys, train_command(home, run, data=tmp_path / "no"), f"{tmp_path}/no: no such file or folder")
    refused(capsys, train_command(home, run, "--keep-ratio", "0"), "keep_ratio must be in (0, 1]; got 0.0")
    refused(capsys, train_command(home, run, "--cycle", "1", "--dense-steps", "2"), "dense_steps", "cycle=1")
    refused(capsys, train_command(home, run, "--policy", "best"), "policy", "regate")
    refused(capsys, train_command(home, run, "--max-length", "70"), "another truncation")
    refused(capsys, train_command(home, run, "--teacher", "abc"), "another teacher")
    data, media = home / "train.json", ("--media-root", home / "media")
    refused(capsys, train_command(home, run, *media, data=data), "no reference_losses")
    refused(capsys, ["show", "--data", scored, "--index", "6"], "index is 6, expected a row in [0, 6)")
    refused(capsys, ["show", "--data", scored, "--keep-ratio", "0"], "keep_ratio must be in (0, 1]; got 0.0")
    refused(capsys, ["show", "--data", str(data)], "does not say which model")
    assert not list(run.glob("checkpoint-*"))


def test_another_model_is_refused_before_the_first_step(home, tmp_path, capsys):
    model, processor = tiny_model("internvl", seed=1)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    refused(capsys, train_command(tmp_path, tmp_path / "run", data=home / "scored"), "another teacher")
    processor.chat_template += " "
    processor.save_pretrained(tmp_path / "model")
    shutil.copytree(home / "model", tmp_path / "same")
    processor.save_pretrained(tmp_path / "same")
    command = train_command(home, tmp_path / "run")
    command[command.index("--model") + 1] = str(tmp_path / "same")
    refused(capsys, command, "another template")


def test_a_teacher_chosen_for_the_data_is_the_one_expected_in_training(home, tmp_path):
    model, processor = tiny_model("internvl", seed=1)
    model.save_pretrained(tmp_path / "teacher")
    processor.save_pretrained(tmp_path / "teacher")
    main(reference_command(home, tmp_path / "scored", "--teacher", tmp_path / "teacher"))
    main(train_command(home, tmp_path / "run", data=tmp_path / "scored"))


def test_a_teacher_with_another_tokenizer_is_refused(home, tmp_path, capsys):
    model, _ = tiny_model("internvl")
    model.save_pretrained(tmp_path / "teacher")
    other_tokenizer().save_pretrained(tmp_path / "teacher")
    command = reference_command(home, tmp_path / "scored", "--teacher", tmp_path / "teacher")
    refused(capsys, command, "another tokenizer")


def test_a_missing_weight_is_an_error(home, tmp_path, capsys):
    shutil.copytree(home / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    del weights[sorted(weights)[0]]
    save_file(weights, path, metadata={"format": "pt"})
    refused(capsys, train_command(tmp_path, tmp_path / "run", data=home / "scored"), "1 weights are missing")


def test_ctrl_c(home, tmp_path, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("regate.commands.load_conversations", stop)
    with pytest.raises(SystemExit) as left:
        main(train_command(home, tmp_path / "run"))
    assert left.value.code == 130
    assert "goes on" in capsys.readouterr().err


def test_debug_shows_the_traceback(home, monkeypatch):
    monkeypatch.setenv("REGATE_DEBUG", "1")
    with pytest.raises(ValueError, match="index is 99"):
        main(["show", "--data", str(home / "scored"), "--index", "99"])


def test_every_field_of_the_method_has_a_flag(home):
    """The flags' defaults are those of ReGateConfig."""
    flags = {field.name: field.default for field in dataclasses.fields(Train)}
    inherited = {field.name for field in dataclasses.fields(ReGateConfig.__mro__[1])}
    for field in dataclasses.fields(ReGateConfig):
        if field.name not in inherited:
            assert field.name in flags
            if field.default is not dataclasses.MISSING and field.name != "num_frames":
                assert flags[field.name] == field.default, field.name
    args = Train(model="m", data=home, output=home / "run", bf16=False, gradient_checkpointing=True, lambda_=0.25)
    config = training_arguments(args, {})
    assert config.num_frames == 8
    assert config.lambda_ == 0.25
    assert config.activation_checkpointing
