"""Whether a rewrite changed any number: `python scripts/compare_metrics.py OLD NEW RENAMES`.

OLD and NEW are folders with metrics.json and *.csv files (such as `runs` of two checkouts), RENAMES a file with a line
`stage<TAB>old<TAB>new` for each name that changed: a part of a dotted path below that stage's folder. Every number of
OLD must be in NEW under its new name, and agree to 1e-6 of its size. Left out are times, file sizes, versions, and what
--except names, such as the random draws of a rival.
"""

import argparse, json, math, re, sys
from pathlib import Path

import pandas as pd

TIMES = re.compile(
    r"(^|\.)(run|seconds|milliseconds|.*_seconds|samples_per_second|bytes|.*_bytes|megabytes|.*_mb)(\.|$)"
)


def flat(value, prefix=""):
    "Nested dictionaries and lists under dotted names."
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {prefix: value}
    found = {}
    for name, v in items:
        found |= flat(v, f"{prefix}.{name}" if prefix else str(name))
    return found


def read(folder: Path) -> dict:
    "Every number under its dotted name: file, then keys; or file, then row labels, then column."
    found = {}
    for file in sorted(folder.rglob("*")):
        where = ".".join(file.relative_to(folder).with_suffix("").parts)
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        if file.name.endswith(".json") and not file.parent.name.startswith("."):
            found |= {f"{where}.{k}": v for k, v in flat(json.loads(file.read_text())).items()}
        elif file.suffix == ".csv":
            found |= {f"{where}.{k}": v for k, v in rows(pd.read_csv(file, dtype=str)).items()}
    return found


def rows(table: pd.DataFrame) -> dict:
    "The cells of a table: words name the row, numbers are values; rows with the same words are counted."
    found, seen = {}, {}
    numeric = {c for c in table if pd.to_numeric(table[c].dropna(), errors="coerce").notna().all()}
    words = [
        c
        for c in table
        if c not in numeric or c in ("seed", "epoch", "epochs", "shot", "frame", "frames", "Unnamed: 0")
    ]
    for row in table.to_dict("records"):
        label = ".".join(f"{c}={row[c]}" for c in words)
        seen[label] = seen.get(label, -1) + 1
        for c in table:
            if c not in words:
                found[f"{label}#{seen[label]}.{c}"] = row[c]
    return found


def renamed(name: str, renames: list) -> str:
    "A dotted name in the new words; renames are applied in their order."
    for stage, old, new in renames:
        if name.startswith(stage + "."):
            name = old.sub(new.replace("\\", "\\\\"), name)
    return name


def same(a, b) -> bool:
    "Whether two values agree, numbers to 1e-6 of their size."
    try:
        x, y = float(a), float(b)
    except (TypeError, ValueError):
        return a == b
    return math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-12) or math.isnan(x) and math.isnan(y)


def compare(old: dict, new: dict, renames: list, leave_out: str | None = None) -> dict[str, list]:
    "The names that are missing, changed, and the same."
    found = dict(missing=[], changed=[], same=[])
    for name, value in old.items():
        target = renamed(name, renames)
        if TIMES.search(name) or leave_out and re.search(leave_out, target):
            continue
        if target not in new:
            found["missing"].append((name, target, value))
        elif same(value, new[target]):
            found["same"].append(target)
        else:
            found["changed"].append((target, value, new[target]))
    return found


def read_renames(file: Path) -> list:
    "Stage, pattern of the old name, and new name of each line."
    lines = [line.split("\t") for line in file.read_text().splitlines() if line.strip() and line[0] != "#"]

    def pattern(old):
        return re.compile(rf"(?<![\w-]){re.escape(old)}" + r"(?![\w-])" * old[-1].isalnum())

    return [(stage, pattern(old), new) for stage, old, new in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("renames", type=Path)
    parser.add_argument("--except", dest="leave_out", metavar="REGEX", help="names (new ones) that are not compared")
    parser.add_argument("--show", type=int, default=20, help="how many of the missing and changed ones to list")
    args = parser.parse_args()
    found = compare(read(args.old), read(args.new), read_renames(args.renames), args.leave_out)
    for kind in ("missing", "changed"):
        for line in found[kind][: args.show]:
            print(kind, *line)
    print(", ".join(f"{len(names)} {kind}" for kind, names in found.items()))
    return bool(found["missing"] or found["changed"])


if __name__ == "__main__":
    sys.exit(main())
