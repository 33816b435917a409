"""What the app's tests share: copies of committed results, and looking at a page."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "app" / "main.py"
REGATE = "table4-internvl-regate-s0"
DENSE = "table4-internvl-dense-s0"
SHOWN_FIRST = "table4-smollm2-regate-s0"
"""The committed run that pages open with: the small scale's, in full fine-tuning."""
SCREENSHOTS = ROOT / "runs" / "screenshots"


def copy_results(to: Path) -> Path:
    """Committed results to read and to damage; where a trace has no texts beside it yet, stand-ins."""
    results = to / "results"
    for name in ("records", "artefacts", "evaluations"):
        shutil.copytree(ROOT / "results" / name, results / name)
    shutil.copy(ROOT / "results" / "published.json", results)
    (results / "students").symlink_to(ROOT / "results" / "students")
    for folder in (results / "artefacts").iterdir():
        if (folder / "trace.parquet").exists() and not (folder / "samples.json").exists():
            (folder / "samples.json").write_text(json.dumps(stand_ins(folder / "trace.parquet")))
    return results


def stand_ins(trace: Path) -> list[dict]:
    """Texts for a trace's samples: as many tokens as targets, the last one a marker."""
    words = {row["sample_id"]: len(row["kept"]) for row in pq.read_table(trace).to_pylist()}
    kinds = ("visual", "wording", "template")
    return [
        {
            "sample_id": key, "id": f"sample-{key}", "question": "what happens?",
            "answer": f"answer number {key}", "tokens": [f" word{i}" for i in range(n - 1)] + ["<end>"],
            "tags": [kinds[i % 3] for i in range(n - 1)] + ["special"],
        }
        for key, n in words.items()
    ]  # fmt: skip


def settle(page) -> None:
    """Waits until the app has run through, and its charts are drawn."""
    page.wait_for_function("() => document.querySelector('[data-test-script-state=notRunning]')")
    page.wait_for_function("() => !document.querySelector('[data-testid=stSkeleton]')")
    drawn = "e => e.querySelector('canvas, svg')"
    page.wait_for_function(f"() => [...document.querySelectorAll('[data-testid=stVegaLiteChart]')].every({drawn})")


def shoot(page, path: Path) -> None:
    """A picture of the whole page, however tall: Streamlit scrolls inside a window."""
    width = page.viewport_size["width"]
    height = page.evaluate("Math.max(...[...document.querySelectorAll('section, div')].map(e => e.scrollHeight))")
    page.set_viewport_size({"width": width, "height": min(int(height) + 20, 4000)})
    settle(page)
    page.screenshot(path=path)
