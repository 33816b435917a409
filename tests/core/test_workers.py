"""Data loading in processes of their own: the same losses as in one, bad samples named, the wait for data logged."""

import time
from pathlib import Path

import pytest

from regate import ReGateTrainer
from regate.accounting import StepClock, read_steps
from regate.cli import main
from regate.conversations import load_conversations
from regate.media_cache import FrameCache
from regate.turns import BadSample
from tests.core.experiment import arguments
from tests.media_files import turns, write_conversations
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    return load_conversations(write_conversations(folder), folder / "media")


@pytest.fixture(scope="module")
def bad_rows(tmp_path_factory):
    """The same, and two that cannot be read."""
    folder = tmp_path_factory.mktemp("conversations")
    broken = [{"id": f"broken-{i}", "video": "x.mp4", "conversations": turns("What?", "A cube.")} for i in range(2)]
    (folder / "media").mkdir()
    (folder / "media" / "x.mp4").write_text("no video")
    return load_conversations(write_conversations(folder, broken), folder / "media")


def trainer_of(output, rows, **kwargs) -> ReGateTrainer:
    model, processor = tiny_model("internvl")
    args = arguments(output, **{"policy": "dense", "num_frames": 2, "max_steps": 5} | kwargs)
    return ReGateTrainer(model, args, train_dataset=rows, processing_class=processor)


def large(folder: Path) -> set[Path]:
    """Entries of frames; those of hashes and numbers are small."""
    return {entry for entry in folder.rglob("*.safetensors") if entry.stat().st_size > 2000}


def steps_of(trainer) -> list[dict]:
    trainer.train()
    return read_steps(Path(trainer.args.output_dir) / "steps.jsonl")


@pytest.mark.parametrize(
    "options",
    [
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "dataloader_persistent_workers": True},
        {
            "dataloader_num_workers": 1,
            "dataloader_persistent_workers": True,
            "dataloader_multiprocessing_context": "spawn",
        },
    ],
    ids=["fork", "persistent", "spawn"],
)
def test_the_losses_are_those_without_workers(options, rows, tmp_path):
    alone = steps_of(trainer_of(tmp_path / "0", rows))
    frames = str(tmp_path / "frames")
    for _ in range(1 if "dataloader_multiprocessing_context" in options else 2):  # a spawned worker imports for seconds
        steps = steps_of(trainer_of(tmp_path / "2", rows, cache_frames=frames, **options))
        assert [step["loss_kept"] for step in steps] == [step["loss_kept"] for step in alone]
        assert [step["samples"] for step in steps] == [step["samples"] for step in alone] == [2] * 5
    assert FrameCache(frames, 1.0).contents(rows[0]["videos"][0])  # what workers wrote can be read
    assert list((tmp_path / "frames").rglob("*.safetensors"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_named_as_it_is(workers, bad_rows, tmp_path):
    trainer = trainer_of(tmp_path, bad_rows, dataloader_num_workers=workers)
    with pytest.raises(BadSample) as error:
        trainer.train()
    assert str(error.value).startswith("sample 'broken-")  # no worker's traceback inside
    assert error.value.sample_id in ("broken-0", "broken-1")
    assert error.value.file.endswith("x.mp4")
    trainer = trainer_of(tmp_path / "e", bad_rows, dataloader_num_workers=workers, per_device_eval_batch_size=4)
    with pytest.raises(BadSample, match=r"^sample 'broken-0'"):
        trainer.evaluate(bad_rows)


def test_skipped_samples_are_counted_from_workers(bad_rows, tmp_path):
    counted = {}
    for workers in (0, 2):
        options = {"on_bad_sample": "skip", "per_device_train_batch_size": 4, "num_train_epochs": 2, "max_steps": -1}
        trainer = trainer_of(tmp_path / f"{workers}", bad_rows, dataloader_num_workers=workers, **options)
        steps = steps_of(trainer)
        counted[workers] = [(step["skipped"], step["samples"], step["loss_kept"]) for step in steps]
        assert trainer.num_skipped == 4
        assert sum(step["samples"] for step in steps) == 12
    assert counted[2] == counted[0]


def test_the_command_says_it_in_one_message(bad_rows, tmp_path, capsys):
    model, processor = tiny_model("internvl")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    bad_rows.save_to_disk(tmp_path / "rows")
    command = ["train", "--model", tmp_path / "model", "--data", tmp_path / "rows", "--output", tmp_path / "run"]
    options = "--policy dense --num-frames 2 --cpu --batch-size 2 --max-steps 5 --workers 2"
    command += options.split()
    with pytest.raises(SystemExit) as left:
        main(list(map(str, command)))
    message = capsys.readouterr().err
    message = message[message.index("regate: error: ") :]
    assert left.value.code == 2
    assert message.startswith("regate: error: sample 'broken-")
    assert "Traceback" not in message
    assert "worker" not in message


def test_caches_and_the_wait_from_the_command_line(tmp_path, capsys):
    model, processor = tiny_model("internvl")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    data = write_conversations(tmp_path)
    media = ["--media-root", str(tmp_path / "media"), "--cache-frames", str(tmp_path / "frames")]
    scored = str(tmp_path / "scored")
    main(["reference", "--model", str(tmp_path / "model"), "--data", str(data), "--output", scored, *media])
    entries = large(tmp_path / "frames")
    assert len(entries) == 2
    command = ["train", "--model", str(tmp_path / "model"), "--data", scored, "--cpu", "--batch-size", "2", *media]
    options = "--max-steps 4 --freeze-vision --workers 1 --gate-warmup-steps 1 --cycle 2 --dense-steps 1"
    command += options.split()
    for run in ("plain", "cold", "warm"):
        cache = [] if run == "plain" else ["--cache-vision", str(tmp_path / "vision")]
        main([*command, "--output", str(tmp_path / run), *cache])
        assert "samples a second; " in capsys.readouterr().out
    assert large(tmp_path / "frames") == entries  # what `reference` decoded was all
    losses = {run: [s["loss_kept"] for s in read_steps(tmp_path / run / "steps.jsonl")] for run in ("cold", "warm")}
    assert losses["cold"] == losses["warm"]
    refused = [word for word in command if word != "--freeze-vision"]
    with pytest.raises(SystemExit):
        main([*refused, "--output", str(tmp_path / "no"), "--cache-vision", str(tmp_path / "vision")])
    assert "needs a frozen vision tower" in capsys.readouterr().err


def test_the_clock_tells_waiting_from_computing():
    def batches():
        for number in range(4):
            time.sleep(0.02)
            yield number

    clock = StepClock()
    clock.restart()
    iterator = batches()
    for _ in range(2):
        taken = []
        for batch in clock.waiting(iterator):
            taken.append(batch)
            time.sleep(0.03)
            if len(taken) == 2:
                break
        clock.on_step_end(None, None, None)
    assert next(iterator, None) is None
    for seconds, waited in zip(clock.seconds, clock.data_seconds, strict=True):
        assert 0.04 <= waited <= seconds - 0.06
    clock.restart()
    assert list(clock.waiting(iter(()))) == []


def test_the_log_has_the_wait(rows, tmp_path):
    for step in steps_of(trainer_of(tmp_path, rows, max_steps=2)):
        assert 0 < step["data_seconds"] < step["seconds"]
