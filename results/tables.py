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
PAGES = ("README.md", "REPORT.md", "data/README.md", "results/TABLES.md")
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


PAIRS = ("samples", "one temperature", "two temperatures", "written")


def reward_lines():
    return [run for run in read_lines("runs.jsonl") if run["kind"] == "reward"]


def accuracies(lines, kind):
    """(S, N): accuracy of S reward models on each of the same N held-out prompts."""
    keys = lines[0]["accuracy"][kind]
    return np.array([[line["accuracy"][kind][key] for key in keys] for line in lines])


def reward_table(chosen, columns=PAIRS):
    """A row for each name (and level) among the reward models that are `chosen` by their line: on
    which held-out pairs it is right; several bootstraps or seeds are averaged."""
    groups = {}
    for line in reward_lines():
        if chosen(line):
            groups.setdefault((line["name"], line["level"]), []).append(line)
    rows = []
    for (name, level), lines in groups.items():
        more = f" ({len(lines)})" if len(lines) > 1 else ""
        cells = [cell(a.mean(), interval(a)) for a in (accuracies(lines, k) for k in columns)]
        rows.append([name + more, str(level), *cells])
    return markdown(["fitted to", "level", *columns], rows)


def is_control(line):
    return "bootstrap" not in line and "trunk" not in line


def is_feature(line):
    return line["name"].startswith("both, la")


def is_curve(line):
    return line["name"].endswith("ranked prompts")


def rewards_table():
    return reward_table(lambda line: not is_feature(line) and not is_curve(line))


def short_rewards_table():
    names = ("written pairs", "samples", "both", "both, samples by a coin", "shorter", "finished",
             "mean log-prob of the SFT model")
    return reward_table(lambda line: line["name"] in names, PAIRS[::3])


def features_table():
    """Level-1 heads on other features; the loss is on training prompts left out."""
    lines = [x for x in reward_lines() if x["level"] == 1 and (
        is_feature(x) or x["name"] == "both" and x["bootstrap"] == 0)]
    rows = [[x["name"].replace("both, ", "") if "," in x["name"] else "layer 20 (default)",
             f"{x['fold_loss']:.4f}", f"{x['penalty']:g}",
             *(cell(a.mean(), interval(a)) for a in (accuracies([x], k) for k in PAIRS[::3]))]
            for x in sorted(lines, key=lambda x: x["fold_loss"])]
    return markdown(["features", "loss in cross-validation", "penalty", *PAIRS[::3]], rows)


def gains_table():
    """Paired differences to the head fitted to both, on held-out pairs of samples and written."""
    groups = {}
    for line in reward_lines():
        if not is_feature(line) and not is_curve(line):
            groups.setdefault((line["name"], line["level"]), []).append(line)
    rows = []
    for (name, own_level), lines in groups.items():
        for level in (1, 2):
            if name == "both" or not is_control(lines[0]) and level != own_level:
                continue
            cells = []
            for kind in PAIRS[::3]:
                difference = accuracies(groups["both", level], kind) - accuracies(
                    lines, kind).mean(0)
                cells.append(cell(difference.mean(), interval(difference), "+"))
            rows.append([f"both minus {name}", str(level), *cells])
    return markdown(["paired difference", "level", *PAIRS[::3]], rows)


def draw_learning(path):
    """Accuracy on held-out pairs of samples by the number of ranked training prompts."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for level, color in ((1, "tab:blue"), (2, "tab:orange")):
        lines = [line for line in reward_lines() if line["level"] == level and (
            is_curve(line) or line["name"] == "written pairs"
            or line["name"] == "both" and line["bootstrap"] == 0)]
        lines.sort(key=lambda line: line["ranked_prompts"])
        right = [accuracies([line], "samples") for line in lines]
        low, high = np.array([interval(a) for a in right]).T
        axis.plot([a.mean() for a in right], "o-", color=color, label=f"level {level}")
        axis.fill_between(range(len(lines)), low, high, color=color, alpha=0.15)
        axis.set_xticks(range(len(lines)), [str(line["ranked_prompts"]) for line in lines])
    axis.axhline(0.5, color="0.7", linestyle=":")
    axis.set(xlabel="ranked training prompts (four answers each), beside 340 written pairs",
             ylabel="accuracy, held-out pairs of samples")
    axis.legend()
    figure.savefig(path, dpi=100)


def draw_frontier(path):
    """Score against KL by the reward model of training: best weights on a pool of samples, best of
    n, and runs of reinforce.py (means over ten steps, above the held-out SFT mean; verdict)."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    lines = read_lines("runs.jsonl")
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for line in lines:
        if line["kind"] == "frontier":
            axis = axes[line["level"] - 1]
            axis.plot([0, *line["kl"]], [0, *line["gain"]], color="0.2",
                      label="best weights, 16 samples")
            for n in (4, 16):
                axis.plot(math.log(n) - 1 + 1 / n, line[f"best of {n}"], "s", color="0.2")
                axis.annotate(f"best of {n}", (math.log(n) - 1 + 1 / n, line[f"best of {n}"]),
                              xytext=(6, -10), textcoords="offset points")
    for run in lines:
        if run["kind"] == "policy":
            axis = axes[run["run"]["level"] - 1]
            v = run["verdict"]
            steps = np.array([[m["kl"], (m["score"] - v["sft"]) / v["unit"]] for m in run["steps"]])
            kl, gain = steps[:len(steps) // 10 * 10].reshape(-1, 10, 2).mean(1).T
            curve = axis.plot(kl, gain, ".-", alpha=0.5)[0]
            axis.plot(v["kl"], v["difference"] / v["unit"], "*", markersize=12,
                      color=curve.get_color(), label=run["name"])
    for level, axis in enumerate(axes, 1):
        axis.set(xlabel="KL to the SFT model, nats", title=f"level {level}")
        axis.legend(fontsize="small", loc="lower right")
    axes[0].set(ylabel="gain in score, SFT spreads")
    figure.savefig(path, dpi=100)


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
    shares = {}  # of the answer with the sign, over a prompt's pairs of which one has it
    for rankings in by_prompt.values():
        r = rankings[0]
        words = [len(answer.split()) for answer in r["answers"]]
        for name, sign in (("at 0.4", r["temperatures"]), ("shorter", words),
                           ("finished", [not x for x in r["finished"]])):
            signs = [np.sign(r["places"][j] - r["places"][i])
                     for i, j in itertools.permutations(range(4), 2) if sign[i] < sign[j]]
            if signs:
                shares.setdefault(name, []).append(float(np.mean(signs)) / 2 + 0.5)
    alike = sum(a == b != 0 for a, b in zip(first, second))
    opposite = sum(a == -b != 0 for a, b in zip(first, second))
    likes = [[f"preferred, of two of which one is {name}", cell(np.mean(a), interval([a]))]
             for name, a in shares.items()]
    return markdown(["readers", "value"], [
        ["prompts ranked, of these by two readers", f"{len(by_prompt)}, {len(first) // 6}"],
        ["pairs ordered alike, opposite, tied by one or both",
         f"{alike}, {opposite}, {len(first) - alike - opposite}"],
        ["kappa (better, tied, worse)", f"{kappa(first, second):.2f}"], *likes])


def sheets_table():
    """Blind readers: how often the answer of an arm is preferred to that of another one."""
    duels = {}
    for row in read_lines("sheets.jsonl"):
        if len(row["arms"]) == 2:
            first, second = row["arms"]
            verdict = int(np.sign(row["places"][0] - row["places"][1]))  # 1: the second one wins
            duels.setdefault((first, second), {}).setdefault(row["reader"], {})[
                row["prompt"]] = verdict
    rows = []
    for (first, second), readers in duels.items():
        counts = []
        for verdicts_of in readers.values():
            count = Counter(verdicts_of.values())
            counts.append(f"{count[1]}, {count[0]}, {count[-1]}")
        shared = [[v[p] for v in readers.values()] for p in next(iter(readers.values()))]
        rates = [[0.5 + np.mean(verdicts) / 2 for verdicts in shared]]
        rows.append([f"{second} against {first}", " and ".join(counts),
                     cell(np.mean(rates), interval(rates)),
                     f"{kappa(*zip(*shared)):.2f}" if len(readers) == 2 else ""])
    return markdown(["policies", "wins, ties, losses by each reader", "win rate", "kappa"], rows)


CONDITIONS = ("clean", "random", "half", "few")


def noise_table(measure="KL 2.0"):
    """The controlled world of noise.py: gold reward gained at an equal KL, by arm and condition,
    and the difference to another arm, over draws of the noise and prompts."""
    gained = {}  # {draw: (prompts,)} for each arm and condition
    for line in read_lines("runs.jsonl"):
        if line["kind"] == "noise":
            draws = gained.setdefault((line["arm"], line["condition"]), {})
            draws[line["draw"]] = line["gain"][measure]
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in gained):
        level, name = arm.split(", ")
        other = level + (", mean of bootstraps" if "bound" in name else ", mean")
        if arm == "level 2, mean":
            other = "level 1, mean"
        row = [arm, "" if other == arm else other]
        for condition in CONDITIONS:
            gain = np.array([*gained[arm, condition].values()])                  # (S, N)
            difference = gain - np.array([*gained[other, condition].values()])
            row.append(f"{gain.mean():.2f}")
            if difference.any():
                row[-1] += ", " + cell(difference.mean(), interval(difference), "+")
        rows.append(row)
    return markdown(["score", "compared with", *CONDITIONS], rows)


def contrasts_table(control="l1, coin labels at 0.7"):
    """Win rates against the SFT model, minus that of a control, paired by prompt."""
    rates = {}  # {arm: {prompt: wins of each reader}}
    for row in read_lines("sheets.jsonl"):
        if len(row["arms"]) == 2 and "at 0.4" not in row["arms"][0]:
            win = 0.5 + np.sign(row["places"][0] - row["places"][1]) / 2
            rates.setdefault(row["arms"][1], {}).setdefault(row["prompt"], []).append(win)
    rows = []
    for arm, wins in rates.items():
        if arm != control:
            difference = [[np.mean(wins[p]) - np.mean(rates[control][p]) for p in wins]]
            rows.append([arm, cell(np.mean(difference), interval(difference), "+")])
    return markdown(["policy", f"win rate minus that of {control}"], rows)


def aligned_table():
    """Reward models on pairs of an aligned policy's own samples that both readers order alike."""
    rows = []
    for line in read_lines("runs.jsonl"):
        if line["kind"] == "aligned":
            a = [[*line["accuracy"].values()]]
            rows.append([line["name"], line["policy"], str(line["pairs"]),
                         cell(np.mean(a), interval(a))])
    return markdown(["reward model", "samples of", "pairs", "accuracy"], rows)


TABLES = {"policies": policies_table, "sheets": sheets_table, "contrasts": contrasts_table,
          "aligned": aligned_table, "rewards": rewards_table, "short_rewards": short_rewards_table,
          "gains": gains_table, "features": features_table, "readers": readers_table,
          "noise": noise_table}


def with_tables(text):
    """The text with every table between its marks made anew."""
    def made(match):
        return f"{match[1]}\n{TABLES[match[2]]()}\n<!-- end -->"
    return re.sub(r"(<!-- table (\w+) -->)\n.*?<!-- end -->", made, text, flags=re.S)


def main():
    for name in PAGES:
        path = HERE.parent / name
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
    draw_learning(HERE / "learning.png")
    draw_frontier(HERE / "frontier.png")


if __name__ == "__main__":
    main()
