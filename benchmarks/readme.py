"""Write the tables of the README from the results: `python -m benchmarks readme`."""

import json
from pathlib import Path
from typing import Any

from . import between_models
from .recurrent import summary as through_time
from .timing import RESULTS

README = Path(__file__).parent.parent / "README.md"


def main() -> None:
    """Replace what stands between the marks."""
    text = README.read_text()
    blocks = {"costs": costs(), "zoo": zoo(), "recurrent": through_time.tables(), "networks": between_models.networks()}
    for name, made in blocks.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        text = before + begin + made + end + rest.split(end)[1]
    README.write_text(text)


def costs() -> str:
    """Step time, memory and learning, as Markdown."""
    steps, memory, fashion = map(_rows, ("step_time", "memory", "every_layer_cut"))
    return f"{_steps(steps)}\n{_memory(memory)}\n{_learning(fashion)}"


def zoo() -> str:
    """The models of other libraries, as Markdown."""
    lines = ["| library | models | right | of these on hooks | refused | out of time or memory | silently wrong |"]
    lines.append("|---|---|---|---|---|---|---|")
    rows = [row for row in _rows("zoo").values() if row["status"] != "unscored"]
    for library in (*sorted({row["lib"] for row in rows}), "all"):
        own = [row for row in rows if library in (row["lib"], "all")]
        right = [row for row in own if row["status"] == "right"]
        hooks = sum(row["rung"] == "hooks" for row in right)
        refused, wrong = (sum(row["status"] == s for row in own) for s in ("refused", "wrong"))
        late = sum(row["status"] in ("time out", "crashed") for row in own)
        lines.append(f"| {library} | {len(own)} | {len(right)} | {hooks} | {refused} | {late} | {wrong} |")
    return "\n".join(lines) + "\n"


def _rows(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def _steps(rows: list[dict[str, Any]]) -> str:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    found = {(row["arm"], row["cuts"]): f"{row['ratio']:.2f} ({row['ratio quartiles']})" for row in rows}
    lines = [f"| {arm} | {found[arm, 1]} | {found[arm, 2]} |" for arm in arms]
    head = "| training step, MLP 784-256-256-10, batch 256 | 1 cut, x backprop (quartiles) | 2 cuts |\n|---|---|---|\n"
    return head + "\n".join(lines) + "\n"


def _memory(rows: list[dict[str, Any]]) -> str:
    lines = [f"| {r['arm']} | {r['MiB']:.1f} MiB | {r['MiB ratio']:.2f} | {r['ratio']:.2f} |" for r in rows]
    head = "| 16-layer conv net, batch 64 | activations held, peak | x backprop | time x backprop |\n"
    head += "|---|---|---|---|\n"
    return head + "\n".join(lines) + "\n"


def _learning(rows: list[dict[str, Any]]) -> str:
    seeds = len({row["seed"] for row in rows})
    head = f"| Fashion-MNIST, every layer cut, {seeds} seeds: mean (least-most) | test error % | train loss |\n"
    head += "|---|---|---|\n"
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        columns = [[row[key] for row in rows if row["arm"] == arm] for key in ("test error %", "train loss")]
        errors, losses = (f"{sum(c) / len(c):.3g} ({min(c):.3g}-{max(c):.3g})" for c in columns)
        lines.append(f"| {arm} | {errors} | {losses} |")
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
