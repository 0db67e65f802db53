"""The tables of README.md and REPORT.md, from runs.jsonl and rankings.jsonl, and their statistics.

    python results/tables.py    # writes every table anew between its marks; test_all.py compares

A table stands between `<!-- table NAME -->` and `<!-- end -->`.
"""
import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ANGLE = np.linspace(-math.pi / 2, math.pi / 2, 20_001)


def read_lines(name):
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


# ----- statistics -----

def student_t(df):
    """Student's t with df degrees of freedom, (values, their cumulative probabilities): with
    t = sqrt(df) tan(angle) its density is that of cos(angle)^(df - 1)."""
    mass = np.cos(ANGLE[1:-1]) ** (df - 1)
    cdf = np.cumsum(mass) - mass / 2
    return math.sqrt(df) * np.tan(ANGLE[1:-1]), cdf / mass.sum()


def t_quantile(q, df):
    values, cdf = student_t(df)
    return np.interp(q, cdf, values)


def standard_error(values):
    """(standard error, degrees of freedom) of the mean of (S, N) values, S seeds and N prompts both
    drawn at random and crossed: from the mean squares of a two-way table, with Satterthwaite's
    degrees of freedom. One seed: over prompts alone. (A bootstrap of three seeds is no substitute:
    its interval holds the truth in 74 % where seeds are what differs.)"""
    x = np.asarray(values, dtype=float)
    S, N = x.shape
    prompts = S * x.mean(0).var(ddof=1)
    if S == 1:
        return math.sqrt(prompts / N), N - 1
    seeds = N * x.mean(1).var(ddof=1)
    residual = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    rest = (residual**2).sum() / (S - 1) / (N - 1)
    seeds = max(seeds, rest)  # neither source has a negative variance
    prompts = max(prompts, rest)
    square = seeds + prompts - rest
    parts = seeds**2 / (S - 1) + prompts**2 / (N - 1) + rest**2 / (S - 1) / (N - 1)
    return math.sqrt(square / S / N), square**2 / parts if parts else 1.0


def interval(values):
    """95 % interval of the mean of (S, N) values; of paired differences, if they are such."""
    error, df = standard_error(values)
    half = error * t_quantile(0.975, df)
    return np.mean(values) - half, np.mean(values) + half


def p_value(values):
    """Two-sided, of a mean of 0."""
    error, df = standard_error(values)
    t, cdf = student_t(df)
    return 2 * float(np.interp(-abs(np.mean(values)) / error, t, cdf)) if error else 1.0


def holm(p):
    """Holm's step-down correction of p-values, in their order."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def sign_test(wins, losses):
    """Exact two-sided p-value of a coin, without the ties."""
    n = wins + losses
    least = min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


def kappa(first, second):
    """Cohen's kappa of two lists of verdicts: agreement beyond that of independent readers."""
    n = len(first)
    agreed = sum(a == b for a, b in zip(first, second)) / n
    counts = [Counter(verdicts) for verdicts in (first, second)]
    chance = sum(counts[0][v] * counts[1][v] for v in counts[0]) / n**2
    return (agreed - chance) / (1 - chance)


# ----- tables -----

def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(mean, low_high, sign=""):
    low, high = low_high
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def policies_table():
    """A row for each run of reinforce.py: what its verdict says."""
    rows = []
    for run in read_lines("runs.jsonl"):
        if run["kind"] != "policy":
            continue
        v = run["verdict"]
        unit = v["unit"]
        rows.append([
            run["name"], cell(v["difference"] / unit, [x / unit for x in v["interval"]], "+"),
            cell(v["win_rate"], v["win_interval"]), f"{v['kl']:.2f}",
            f"{v['sft_length']:.0f} -> {v['length']:.0f}",
            f"{v['sft_ended']:.2f} -> {v['ended']:.2f}"])
    return markdown(["run", "difference to SFT, in SFT spreads", "win rate", "KL", "length",
                     "share that end"], rows)


def rewards_table():
    """A row for each reward model: what validation says, and on which pairs."""
    rows = []
    for run in read_lines("runs.jsonl"):
        if run["kind"] != "reward":
            continue
        m = run["metrics"]
        rows.append([run["name"], run["pairs"], cell(m["accuracy"], m["accuracy_interval"]),
                     cell(m["longer_accuracy"], m["longer_accuracy_interval"]),
                     f"{m['loss']:.3f} ({m['chance_loss']:.3f})", f"{m['calibration_error']:.3f}"])
    return markdown(["reward model", "held-out pairs", "accuracy", "longer answer",
                     "loss (chance)", "calibration error"], rows)


def verdicts(ranking):
    """For each of a ranking's six pairs of answers -1, 0 or 1: the first better, tied, worse."""
    places = ranking["places"]
    return [int(np.sign(places[i] - places[j])) for i, j in itertools.combinations(range(4), 2)]


def readers_table():
    """How two readers of the same sheets agree, and which temperature they like."""
    by_prompt = {}
    for ranking in read_lines("rankings.jsonl"):
        by_prompt.setdefault(ranking["prompt"], []).append(ranking)
    first = []
    second = []
    for both in by_prompt.values():
        if len(both) == 2:
            first += verdicts(both[0])
            second += verdicts(both[1])
    cooler = []
    for rankings in by_prompt.values():
        r = rankings[0]
        pairs = [(i, j) for i in range(4) for j in range(4)
                 if r["temperatures"][i] < r["temperatures"][j]]
        signs = [np.sign(r["places"][j] - r["places"][i]) for i, j in pairs]
        cooler.append(float(np.mean(signs)) / 2 + 0.5)
    alike = sum(a == b != 0 for a, b in zip(first, second))
    opposite = sum(a == -b != 0 for a, b in zip(first, second))
    values = np.array([cooler])
    return markdown(["readers", "value"], [
        ["prompts ranked, by two readers", f"{len(by_prompt)}, {len(first) // 6}"],
        ["pairs ordered alike, opposite, tied by one or both",
         f"{alike}, {opposite}, {len(first) - alike - opposite}"],
        ["kappa (better, tied, worse)", f"{kappa(first, second):.2f}"],
        ["an answer at 0.4 preferred to one at 0.7", cell(values.mean(), interval(values))]])


TABLES = {"policies": policies_table, "rewards": rewards_table, "readers": readers_table}


def with_tables(text):
    """The text with every table between its marks made anew."""
    def made(match):
        return f"{match[1]}\n{TABLES[match[2]]()}\n<!-- end -->"
    return re.sub(r"(<!-- table (\w+) -->)\n.*?<!-- end -->", made, text, flags=re.S)


def main():
    for name in ("README.md", "REPORT.md"):
        path = HERE.parent / name
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
