"""`make example`: a small data set in LLaVA's format, real mp4 files and a JSON, for the README's worked example."""

import json
import random
import sys
from pathlib import Path

from eval import world
from eval.world import mvbench


def write(folder: Path, samples: int = 64, seed: int = 1) -> Path:
    """``samples`` conversations about clips of the embedded world; returns the path of the JSON."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(samples):
        scene = world.sample_scene(seed * 10_000 + number, "train")
        turn = world.conversation(scene, random.Random(number))
        video = f"videos/{number:04d}.mp4"
        mvbench.encode(world.render(scene), folder / video)
        conversations = [{"from": "human", "value": f"<video>\n{turn.question}"}, {"from": "gpt", "value": turn.answer}]
        rows.append({"id": f"clip-{number:04d}", "video": video, "conversations": conversations})
    path = folder / "train.json"
    path.write_text(json.dumps(rows, indent=1))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example")))
