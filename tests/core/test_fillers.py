"""Rows that give every micro-batch what a sharded vision tower must be called with: found once, never counted."""

import datasets
import torch

from regate.collate import NO_PLACE, GateCollator
from regate.fillers import find_fillers, kinds_of
from regate.scoring import IGNORE
from regate.turns import BadSample
from tests.core.experiment import TinyCollator, tiny_data
from tests.tiny import tiny_processor


def rows_of(kind: str) -> tuple[TinyCollator, datasets.Dataset]:
    """Rows 0, 3, 6 hold videos, 1, 4, 7 images, 2, 5 text alone."""
    processor = tiny_processor(kind)
    data, rows = tiny_data(kind, processor)
    losses = [[0.5] * sum(label != IGNORE for label in row["labels"]) for row in data]
    data = data.add_column("sample_id", list(range(len(rows)))).add_column("reference_losses", losses)
    return TinyCollator(kind, processor, rows), data


def test_each_kind_of_visual_input_gets_a_row():
    for kind, expected in {
        "internvl": {"pixel_values": 0},
        "llava_onevision": {"pixel_values": 1, "pixel_values_videos": 0},
    }.items():
        collator, data = rows_of(kind)
        found = find_fillers(data, GateCollator(collator))
        assert {name: row["sample_id"] for name, row in found.items()} == expected


def test_conversations_are_searched_where_media_are_named():
    """Text, a damaged video, a video, an image: the damaged one is passed over, and text is not even collated."""
    seen = []

    def collator(rows):
        (row,) = rows
        seen.append(row["name"])
        if row["name"] == "damaged":
            raise BadSample("damaged", row["name"])
        return {"pixel_values_videos" if row["videos"] else "pixel_values": None}

    names = ["text", "damaged", "video", "text", "image", "other video"]
    data = datasets.Dataset.from_dict(
        {
            "name": names,
            "images": [[n] if n == "image" else [] for n in names],
            "videos": [[n] if n in ("damaged", "video", "other video") else [] for n in names],
        }
    )
    found = find_fillers(data, collator)
    assert {kind: row["name"] for kind, row in found.items()} == {
        "pixel_values": "image",
        "pixel_values_videos": "video",
    }
    assert seen == ["image", "damaged", "video"]
    assert find_fillers(data.select([0, 3]), collator) == {}


def test_a_row_is_added_where_the_batch_lacks_it_and_counts_nothing():
    collator, data = rows_of("llava_onevision")
    gate = GateCollator(collator, find_fillers(data, GateCollator(collator)))
    for asked, added in {(0, 1): 0, (1, 4): 1, (2, 5): 2, (2,): 2}.items():
        rows = [data[i] for i in asked]
        batch = gate(rows)
        assert kinds_of(batch) == {"pixel_values", "pixel_values_videos"}
        assert batch["row"] == [*range(len(asked)), *[NO_PLACE] * added]
        assert batch["num_skipped"] == 0
        filled = torch.tensor(batch["row"]) == NO_PLACE
        assert (batch["labels"][filled] == IGNORE).all()
        assert batch["reference_losses"][filled].isnan().all()
        plain = GateCollator(collator)(rows)
        width = plain["labels"].shape[1]
        assert torch.equal(batch["labels"][~filled][:, :width], plain["labels"])
        assert batch["sample_id"][~filled].tolist() == list(asked)
