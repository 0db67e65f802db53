"""Makes the tables and the picture of REPORT.md again from the JSON files in this folder.

    python results/report.py

A table stands in REPORT.md between <!-- table NAME --> and <!-- end -->. Intervals are 95 %, over
both sources of noise: seeds are drawn with replacement, then prompts within each (the same prompts
for all seeds), 10,000 times. Scores of different reward models are compared in their own units: the
spread of the SFT model's scores.
"""
import json
import math
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reward import wilson  # noqa: E402

HERE = Path(__file__).resolve().parent


def interval(values, draws=10_000):
    """95 % interval of the mean of (S, N) values, over seeds and prompts."""
    values, rng = np.asarray(values, dtype=float), np.random.default_rng(0)
    S, N = values.shape
    seeds, columns = rng.integers(0, S, (draws, S, 1)), rng.integers(0, N, (draws, 1, N))
    return np.quantile([values[s, c].mean() for s, c in zip(seeds, columns)], [0.025, 0.975])


def cell(mean, low_high, sign="+"):
    low, high = low_high
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def read_runs():
    """{name: [run, ...]} of the folders NAME-sSEED, in the order of the seeds."""
    runs = defaultdict(list)
    for folder in sorted(HERE.glob("*-s[0-9]*")):
        if (folder / "config.json").exists():
            run = {"settings": json.loads((folder / "config.json").read_text())["settings"]}
            for name in ("verdict", "metrics"):
                if (folder / f"{name}.json").exists():
                    run[name] = json.loads((folder / f"{name}.json").read_text())
            if (folder / "metrics.jsonl").exists():
                lines = (folder / "metrics.jsonl").read_text().splitlines()
                run["steps"] = [json.loads(line) for line in lines]
            runs[folder.name.rpartition("-s")[0]].append(run)
    return runs


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def mean(values):
    return float(np.mean(list(values)))


def models_table(runs):
    """Reward models on the same validation pairs; intervals over pairs, means over seeds."""
    rows = []
    for name in sorted(n for n in runs if "metrics" in runs[n][0]):
        v = [run["metrics"]["validation"] for run in runs[name]]
        n, accuracy = v[0]["n"], mean(m["accuracy"] for m in v)
        gain = mean(m["gain"] for m in v)
        half = mean((m["gain_interval"][1] - m["gain_interval"][0]) / 2 for m in v)
        level2 = "score_sd" in v[0]
        rows.append([
            name, len(v), n, cell(accuracy, wilson(accuracy * n, n), ""),
            f"{v[0]['longer_accuracy']:.2f}", cell(gain, (gain - half, gain + half)),
            f"{mean(m['loss'] for m in v):.3f} ({v[0]['chance_loss']:.3f})",
            f"{mean(m['calibration_error'] for m in v):.3f}",
            *(f"{mean(m[k] for m in v):.2f}" if level2 else ""
              for k in ("score_spread", "score_sd", "score_entropy"))])
    return markdown(["reward model", "seeds", "pairs", "accuracy [95 %]", "longer answer",
                     "gain over it [95 %]", "loss (chance)", "calibration error",
                     "spread of E[S]", "mean SD[S]", "mean H[p]"], rows)


def differences(runs):
    """(S, N): aligned minus SFT by the run's own reward model, in SFT spreads; a tie is 0."""
    return [[0.0 if same else (a - b) / run["verdict"]["unit"] for a, b, same in
             zip(run["verdict"]["scores"]["aligned"], run["verdict"]["scores"]["SFT"],
                 run["verdict"]["same"])] for run in runs]


def policies_table(runs, pattern):
    """REINFORCE runs, judged by the reward model that each was trained on."""
    rows = []
    for name in sorted(n for n in runs if "verdict" in runs[n][0] and re.fullmatch(pattern, n)):
        d, v = np.array(differences(runs[name])), [run["verdict"] for run in runs[name]]
        wins = np.array([[(x > 0) + (x == 0) / 2 for x in row] for row in d])
        rows.append([name, len(v), cell(d.mean(), interval(d)),
                     " ".join(f"{x:+.2f}" for x in d.mean(1)),
                     cell(wins.mean(), interval(wins), ""), f"{mean(x['kl'] for x in v):.2f}",
                     *(f"{mean(x['sft_' + k] for x in v):.2f} -> {mean(x[k] for x in v):.2f}"
                       for k in ("length", "ended"))])
    return markdown(["run", "seeds", "difference to SFT [95 %]", "by seed", "win rate [95 %]", "KL",
                     "length", "share that end"], rows)


def judge_table():
    """Policies by every reward model: their own, its siblings of other seeds, those of the other
    level; and the difference at equal length (a line fitted to it over the length difference)."""
    groups = defaultdict(lambda: ([], []))
    for seed, path in enumerate(sorted(HERE.glob("judge-s*.json"))):
        result = json.loads(path.read_text())
        for rm, scores in result["scores"].items():
            sft = np.array(scores["sft"])
            for name in ("l1", "l2"):
                own = rm[2] == name[1]
                kind = (("its own" if rm.endswith(f"s{seed}") else "same level, other seeds")
                        if own else "the other level")
                d = (np.array(scores[name]) - sft)[0] / sft.std(ddof=1)
                longer = np.subtract(result["lengths"][name], result["lengths"]["sft"])[0]
                groups[name, kind][0].append(d)
                groups[name, kind][1].append(longer)
    rows = []
    for (name, kind), (d, longer) in sorted(groups.items()):
        d, longer = np.array(d), np.array(longer, dtype=float)
        wins = (d > 0) + (d == 0) / 2
        slope, at_equal = np.polyfit(longer.ravel(), d.ravel(), 1)
        rows.append([name, kind, len(d), cell(d.mean(), interval(d)),
                     cell(wins.mean(), interval(wins), ""), f"{at_equal:+.2f}"])
    return markdown(["policy", "reward models", "number", "difference to SFT [95 %]",
                     "win rate [95 %]", "difference at equal length"], rows)


def variance_table():
    v = json.loads((HERE / "variance.json").read_text())
    rows = [[name, f"{x['b']:+.2f}", f"{x['variance']:.1f}",
             f"{x['variance'] / v['none']['variance']:.2f}", f"{x['signal']:.2f}"]
            for name, x in v.items() if isinstance(x, dict)]
    return markdown(["baseline", "b", "variance", "relative to none", "squared norm of the mean"],
                    rows)


def controls_table():
    """Without training: each side against the SFT answer, by reward models that did not choose."""
    c, rows = json.loads((HERE / "controls.json").read_text()), []
    for side in c["lengths"]:
        if side == "sft":
            continue
        d = [(np.array(s[side]) - s["sft"]) / np.std(s["sft"], ddof=1)
             for judge, s in c["scores"].items() if judge not in side]
        rows.append([side, len(d), cell(np.mean(d), interval(d)),
                     f"{mean(c['lengths']['sft']):.1f} -> {mean(c['lengths'][side]):.1f}"])
    return markdown(["answers", "judges", "difference to SFT [95 %]", "length"], rows)


def tables():
    """{name: markdown} of what there are results for."""
    runs = read_runs()
    made = {"models": models_table(runs), "levels": policies_table(runs, r"l1|l2-\w+"),
            "ablations": policies_table(runs, r"l1|l1-(baseline|beta|lr|eos|steps)-.*"),
            "shuffled": policies_table(runs, r"l1-shuffled")}
    for name, make in (("judge-s0", judge_table), ("variance", variance_table),
                       ("controls", controls_table)):
        if (HERE / f"{name}.json").exists():
            made[name.split("-")[0]] = make()
    return made


def with_tables(text):
    """The report with each table made again."""
    made = tables()
    return re.sub(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)",
                  lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}", text, flags=re.S)


def picture(path):
    """Reward against step and against sqrt(KL), a line a run, for both levels."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for name, line, grey, dot in (("l1", "-", "0.0", "o"), ("l2-mean", "--", "0.5", "s")):
        for i, run in enumerate(read_runs().get(name, [])):
            reward = [m["reward"] for m in run["steps"]]
            label = name if i == 0 else None
            axes[0].plot([m["step"] for m in run["steps"]], reward, line, color=grey, label=label)
            axes[1].plot([math.sqrt(max(0, m["kl"])) for m in run["steps"]], reward, dot,
                         color=grey, label=label, markersize=4)
    axes[0].set(xlabel="step", ylabel="KL-shaped reward, in SFT spreads")
    axes[1].set(xlabel="square root of KL to SFT")
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main():
    path = HERE.parent / "REPORT.md"
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
    picture(HERE / "reward.png")


if __name__ == "__main__":
    main()
