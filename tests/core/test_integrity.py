"""What is sealed is found whole, or named as damaged: no flipped bit, cut or missing file is let pass."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regate.accounting import LOG_STATE, StepLog, read_steps
from regate.checkpoint import IncompleteCheckpoint, last_complete, rotate
from regate.integrity import MARKER, NotWhole, hash_file, require_whole, seal, unseal, write_whole

FILES = {"model.safetensors": bytes(range(256)) * 40, "sub/rng.pth": b"\x00" * 77, "empty": b""}


def checkpoint(root, step, content=b"weights"):
    folder = root / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    seal(folder)
    return folder


@pytest.fixture
def sealed(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    seal(tmp_path)
    return tmp_path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.sampled_from([n for n, c in FILES.items() if c]), st.integers(0, 10**6), st.integers(0, 7))
def test_every_flipped_bit_is_found(sealed, name, at, bit):
    content = FILES[name]
    at %= len(content)
    (sealed / name).write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
    with pytest.raises(NotWhole, match="its content is not what was written") as error:
        require_whole(sealed)
    assert error.value.file == str(sealed / name)
    require_whole(sealed, contents=False)  # sizes alone do not tell
    (sealed / name).write_bytes(content)
    require_whole(sealed)


def test_files_that_are_gone_cut_or_longer_are_named(sealed):
    (sealed / "empty").write_bytes(b"x")
    with pytest.raises(NotWhole, match="empty: 0 bytes were written, found 1"):
        require_whole(sealed, contents=False)
    (sealed / "empty").unlink()
    with pytest.raises(NotWhole, match="empty: 0 bytes were written, no such file"):
        require_whole(sealed)
    require_whole(sealed, wanted=lambda path: path.name != "empty")
    unseal(sealed)
    with pytest.raises(NotWhole, match=f"has no readable {MARKER}"):
        require_whole(sealed)


def test_markers_of_sizes_alone_are_read(sealed):
    (sealed / MARKER).write_text(json.dumps({name: len(content) for name, content in FILES.items()}))
    require_whole(sealed)
    (sealed / MARKER).write_text("[]")
    with pytest.raises(NotWhole, match="no readable"):
        require_whole(sealed)


def test_hashes_of_beginnings(tmp_path):
    (tmp_path / "long").write_bytes(b"ab" * 5_000_000)
    (tmp_path / "short").write_bytes(b"ab" * 3_000_000)
    assert hash_file(tmp_path / "long", length=6_000_000) == hash_file(tmp_path / "short")
    assert hash_file(tmp_path / "long") != hash_file(tmp_path / "short")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "x", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "x", "\ud800")
    assert (tmp_path / "x").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_a_damaged_checkpoint_is_passed_over_and_told(tmp_path, caplog):
    first, second = checkpoint(tmp_path, 2), checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-12").mkdir()  # writing it was interrupted
    assert last_complete(tmp_path) == str(second)
    (second / "model.safetensors").write_bytes(b"Weights")
    assert last_complete(tmp_path) == str(first)
    assert "passed over" in caplog.text
    assert str(second / "model.safetensors") in caplog.text
    (first / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(IncompleteCheckpoint, match="all 2 finished checkpoints are damaged"):
        last_complete(tmp_path)


def test_rotation_counts_complete_checkpoints_only(tmp_path):
    for step in (2, 4, 6, 8, 20):
        checkpoint(tmp_path, step)
    unseal(tmp_path / "checkpoint-6")
    rotate(tmp_path, 8, 2, best=None)
    left = lambda: sorted(int(p.name[11:]) for p in tmp_path.iterdir())  # noqa: E731
    assert left() == [4, 8, 20]  # 6 is none, 20 is of a run that was taken back
    checkpoint(tmp_path, 10)
    rotate(tmp_path, 10, 2, best=str(tmp_path / "checkpoint-4"))
    assert left() == [4, 10, 20]
    rotate(tmp_path, 10, None, best=None)
    assert left() == [4, 10, 20]


class TestStepLog:
    @pytest.fixture
    def log(self, tmp_path):
        log = StepLog(tmp_path / "steps.jsonl")
        for step in range(5):
            log.add(step=step, loss=0.1 * step)
        (tmp_path / "at").mkdir()
        log.save_state(tmp_path / "at")
        for step in range(5, 8):
            log.add(step=step, loss=0.0)
        log.flush()
        return log

    def test_it_is_what_it_was_to_the_byte(self, log, tmp_path):
        log.path.write_text(log.path.read_text() + '{"step": 8, "lo')  # cut short by a kill
        log.rewind(5, tmp_path / "at")
        assert [e["step"] for e in read_steps(log.path)] == [0, 1, 2, 3, 4]

    def test_a_digit_that_changed_is_found(self, log, tmp_path):
        log.path.write_text(log.path.read_text().replace("0.1", "0.7", 1))
        with pytest.raises(ValueError, match=r"steps\.jsonl: the log of the steps before 5 is not what it was"):
            log.rewind(5, tmp_path / "at")

    def test_a_log_that_was_moved_away_is_told(self, log, tmp_path, caplog):
        log.path.unlink()
        log.rewind(5, tmp_path / "at")
        assert "steps.jsonl is gone" in caplog.text

    def test_checkpoints_without_a_state(self, log, tmp_path):
        (tmp_path / "at" / LOG_STATE).unlink()
        log.rewind(3, tmp_path / "at")
        assert [e["step"] for e in read_steps(log.path)] == [0, 1, 2]

    def test_it_does_not_hold_back_much(self, tmp_path):
        log = StepLog(tmp_path / "many.jsonl")
        for step in range(250):
            log.add(step=step)
        assert len(read_steps(log.path)) == 200
