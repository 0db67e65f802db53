"""The tables of README.md and REPORT.md, from runs.jsonl and rankings.jsonl, and their statistics.

    python results/tables.py    # writes every table anew between its marks; test_all.py compares

A table stands between `<!-- table NAME -->` and `<!-- end -->`.
"""
import gzip
import json
import lzma
import math
import re
from collections import Counter, defaultdict
from functools import partial
from operator import itemgetter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).resolve().parent
RUNS = HERE / "runs.jsonl"
RANKINGS = HERE / "rankings.jsonl"
SHEETS = HERE / "sheets.jsonl.xz"
PAGES = ("README.md", "REPORT.md", "data/README.md", "results/TABLES.md")
ANGLE = np.linspace(-math.pi / 2, math.pi / 2, 20_001)


def open_lines(path, mode):
    """A .jsonl file, or a compressed one; xz also finds what is said again far away."""
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, mode + "t", encoding="utf-8")


def read_lines(path):
    """The records of a .jsonl file; none if it is not there yet."""
    if not path.exists():
        return []
    with open_lines(path, "r") as file:  # not splitlines: answers may hold U+2028
        return [json.loads(line) for line in file]


def lines_of(kind):
    return [line for line in read_lines(RUNS) if line["kind"] == kind]


def grouped(rows, *names):
    """{value of the named field, or of several: the rows that have it}"""
    groups = defaultdict(list)
    for row in rows:
        groups[itemgetter(*names)(row)].append(row)
    return groups


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
    steps = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps).clip(max=1)
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


def jackknife(statistic, n):
    """Estimate and 95 % interval of a statistic(indices of answers), or of an array of them, from
    leaving one out at a time (for U-statistics, whose terms share answers)."""
    everything = np.arange(n)
    value = statistic(everything)
    without = np.array([statistic(np.delete(everything, i)) for i in range(n)])
    half = np.sqrt((n - 1) * without.var(0)) * t_quantile(0.975, n - 1)
    return value, value - half, value + half


def gradient_moments(products, advantages):
    """Of N answers' gradients a_i grad log pi, from products of grad log pi (N, N) and advantages
    a (N,): the mean squared length, and the squared length of the expected gradient, without bias:
    the mean product of two different answers' gradients."""
    n = len(advantages)
    G = advantages[:, None] * advantages * products
    second = np.trace(G) / n
    signal = (G.sum() - np.trace(G)) / n / (n - 1)
    return second, signal


# ----- tables -----

def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def bracket(mean, low, high, sign=""):
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def cell(values, sign=""):
    """Mean and interval of (S, N) values."""
    return bracket(np.mean(values), *interval(values), sign)


def policies_table(names):
    """A row for each run of reinforce.py whose name is of a pattern: what its verdict says."""
    rows = []
    for run in lines_of("policy"):
        v = run["verdict"]
        if not re.fullmatch(names, run["name"]):
            continue
        gain = np.array([v["difference"], *v["interval"]]) / v["unit"]
        rows.append([run["name"], bracket(*gain, "+"), bracket(v["win_rate"], *v["win_interval"]),
                     f"{v['kl']:.2f}", f"{v['sft_length']:.0f} -> {v['length']:.0f}",
                     f"{v['sft_ended']:.2f} -> {v['ended']:.2f}"])
    return markdown(["run", "difference to SFT, in SFT spreads", "win rate", "KL", "length",
                     "share that end"], rows)


PAIRS = ("samples", "one temperature", "two temperatures", "written")
SHORT = ("samples", "written")

# patterns of reward models' names: by number of ranked prompts, by features, all others, the chief
CURVE = r"written pairs|both(, \d+ ranked prompts|, with later prompts)?"
FEATURES = "both(, la.*)?"  # layers, last token
OTHERS = r"(?!both, la|both, \d|.*trained).*"
CHIEF = "written pairs|samples|both(, samples by a coin)?|mean log-prob.*"


def accuracies(lines, kind):
    """(S, N): accuracy of S reward models on each of the same N held-out prompts."""
    keys = lines[0]["accuracy"][kind]
    return np.array([[line["accuracy"][kind][key] for key in keys] for line in lines])


def reward_lines(names):
    """Lines of the reward models whose name is of a pattern."""
    return [line for line in lines_of("reward") if re.fullmatch(names, line["name"])]


def reward_table(names, columns=PAIRS):
    """A row for each name and level: on which held-out pairs such reward models are right; several
    bootstraps are averaged."""
    rows = []
    for (name, level), lines in grouped(reward_lines(names), "name", "level").items():
        more = f" ({len(lines)})" if len(lines) > 1 else ""
        rows.append([name + more, level, *(cell(accuracies(lines, kind)) for kind in columns)])
    return markdown(["fitted to", "level", *columns], rows)


def features_table():
    """Level-1 heads on other features; the loss is on training prompts left out."""
    lines = [x for x in reward_lines(FEATURES) if x["level"] == 1 and x["bootstrap"] == 0]
    lines.sort(key=itemgetter("fold_loss"))
    rows = []
    for line in lines:
        name = line["name"].replace("both, ", "").replace("both", "layer 20 (default)")
        rows.append([name, f"{line['fold_loss']:.4f}", f"{line['penalty']:g}",
                     *(cell(accuracies([line], kind)) for kind in SHORT)])
    return markdown(["features", "loss in cross-validation", "penalty", *SHORT], rows)


def gains_table():
    """Paired differences to the head fitted to both, on held-out pairs of samples and written: of
    bootstraps of the same seeds (they draw the same prompts only where the training prompts are the
    same), the one fit with the one fit; and between the levels."""
    groups = grouped(reward_lines(OTHERS), "name", "level")
    both = {level: groups.pop(("both", level)) for level in (1, 2)}
    rows = []
    for (name, own_level), lines in groups.items():
        levels = [own_level] if "bootstrap" in lines[0] else both  # what needs no fit has no level
        for level in levels:
            ours = both[level]
            if "bootstrap" in lines[0]:
                seeds = [line["bootstrap"] for line in lines]
                ours = [line for seed in seeds for line in ours if line["bootstrap"] == seed]
            cells = [cell(accuracies(ours, kind) - accuracies(lines, kind), "+") for kind in SHORT]
            rows.append([f"both minus {name}", level, *cells])
    levels = [cell(accuracies(both[2], kind) - accuracies(both[1], kind), "+") for kind in SHORT]
    rows.append(["both, level 2 minus level 1", "", *levels])
    return markdown(["paired difference", "level", *SHORT], rows)


def draw_learning():
    """Accuracy on held-out pairs of samples by the number of ranked training prompts."""
    _, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for level, color in ((1, "tab:blue"), (2, "tab:orange")):
        lines = [x for x in reward_lines(CURVE) if x["level"] == level and x["bootstrap"] == 0]
        lines.sort(key=itemgetter("ranked_prompts"))
        right = [accuracies([line], "samples") for line in lines]
        low, high = np.array([interval(a) for a in right]).T
        axis.plot([a.mean() for a in right], "o-", color=color, label=f"level {level}")
        axis.fill_between(range(len(lines)), low, high, color=color, alpha=0.15)
        axis.set_xticks(range(len(lines)), [str(line["ranked_prompts"]) for line in lines])
    axis.axhline(0.5, color="0.7", linestyle=":")
    axis.set(xlabel="ranked training prompts (four answers each), beside 340 written pairs",
             ylabel="accuracy, held-out pairs of samples")
    axis.legend()


def draw_frontier():
    """Score against KL by the reward model of training: best weights on a pool of samples, best of
    n, and runs of reinforce.py (means over ten steps, above the held-out SFT mean; verdict)."""
    digests = {run["run"]["rm_digest"] for run in lines_of("policy")[:2]}  # of the main runs
    _, axes = plt.subplots(1, 2, sharey=True, figsize=(10, 5), layout="constrained")
    for line in lines_of("frontier"):
        axis = axes[line["level"] - 1]
        axis.plot([0, *line["kl"]], [0, *line["gain"]], color="0.2",
                  label="best weights, 16 samples")
        for n in (4, 16):
            place = (math.log(n) - 1 + 1 / n, line[f"best of {n}"])
            axis.plot(*place, "s", color="0.2")
            axis.annotate(f"best of {n}", place, xytext=(6, -10), textcoords="offset points")
    for run in lines_of("policy"):
        if run["run"]["temperature"] != 0.7 or run["run"]["rm_digest"] not in digests:
            continue
        if "drawn" in run["name"]:  # its log has no reward model's scores
            continue
        axis = axes[run["run"]["level"] - 1]
        v = run["verdict"]
        steps = np.array([[m["kl"], (m["score"] - v["sft"]) / v["unit"]] for m in run["steps"]])
        kl, gain = steps[:len(steps) // 10 * 10].reshape(-1, 10, 2).mean(1).T
        curve = axis.plot(kl, gain, ".-", alpha=0.5)[0]
        axis.plot(v["kl"], v["difference"] / v["unit"], "*", markersize=12,
                  color=curve.get_color(), label=run["name"])
    for level, axis in enumerate(axes, 1):
        axis.set(xlabel="KL to the SFT model, nats", title=f"level {level}")
        axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    axes[0].set(ylabel="gain in score, SFT spreads")


def readers_table():
    """How two readers of the same sheets agree, and what the first one likes."""
    by_prompt = grouped(read_lines(RANKINGS), "prompt")
    doubles = [[r["places"] for r in rs] for rs in by_prompt.values() if len(rs) == 2]
    i, j = np.triu_indices(4, 1)  # the six pairs of answers
    both = np.transpose(doubles, (1, 2, 0))                                      # (2, 4, prompts)
    first, second = np.sign(both[:, i] - both[:, j]).reshape(2, -1)
    alike = ((first == second) & (first != 0)).sum()
    opposite = ((first == -second) & (first != 0)).sum()
    rows = [["prompts ranked, of these by two readers", f"{len(by_prompt)}, {len(doubles)}"],
            ["pairs ordered alike, opposite, tied by one or both",
             f"{alike}, {opposite}, {len(first) - alike - opposite}"],
            ["kappa (better, tied, worse)", f"{kappa(first, second):.2f}"]]
    shares = defaultdict(list)  # of the answer with the sign, over those pairs of which one has it
    for r, *_ in by_prompt.values():
        places = np.array(r["places"])
        better = np.sign(places - places[:, None]) / 2 + 0.5  # (4, 4): 1 where the row's is better
        for name, sign in (("at 0.4", r["temperatures"]),
                           ("shorter", [len(answer.split()) for answer in r["answers"]]),
                           ("finished", [not x for x in r["finished"]])):
            has_it = np.array(sign)[:, None] < sign
            if has_it.any():
                shares[name].append(better[has_it].mean())
    for name, values in shares.items():
        rows.append([f"preferred, of two of which one is {name}", cell([values])])
    return markdown(["readers", "value"], rows)


def duels():
    """{(first arm, second arm): {prompt: rows, one by each reader}}; arms are at temperature 0.7
    where they do not say another."""
    rows = {}
    for row in read_lines(SHEETS):
        if len(row["arms"]) == 2:
            arms = [arm.removesuffix(" at 0.7") for arm in row["arms"]]
            arms = tuple(arm.replace(", no penalty, 3,200 answers", ", long") for arm in arms)
            rows.setdefault(arms, {}).setdefault(row["prompt"], []).append(row)
    return rows


def duel_name(first, second):
    """The second arm; the first one too unless it is the SFT model at the same temperature."""
    temperature = re.search(r"( at [\d.]+)?$", second)[0]
    return second if first == "sft" + temperature else f"{second} against {first}"


def preferred(row):
    """1 if the second arm's answer is preferred, 0 for a tie, -1."""
    first, second = row["places"]
    return int(np.sign(first - second))


def win_rates(prompts):
    """(1, N): how often the second arm is preferred to each of N prompts, a tie half."""
    return np.array([[0.5 + np.mean([*map(preferred, rows)]) / 2 for rows in prompts.values()]])


def not_shorter(row):
    first, second = (len(answer.split()) for answer in row["answers"])
    return second >= first


def end_alike(row):
    return len(set(row["finished"])) == 1


CONDITIONS_OF_READING = {"where its answer is not shorter": not_shorter,
                         "where both or neither ends": end_alike}


def sheets_table(*columns, without=()):
    """Blind readers: how often the answer of an arm is preferred to that of another one: to all
    prompts, and to those where length or end cannot have decided in its favour."""
    rows = []
    for (first, second), prompts in duels().items():
        if any(name in second for name in without):
            continue
        cells = []
        for column in columns:
            condition = CONDITIONS_OF_READING[column]
            part = {p: verdicts for p, verdicts in prompts.items() if condition(verdicts[0])}
            cells.append(f"{cell(win_rates(part))} ({len(part)})" if len(part) > 9 else "")
        rows.append([duel_name(first, second), f"{cell(win_rates(prompts))} ({len(prompts)})",
                     *cells])
    return markdown(["policy", "win rate (prompts)", *columns], rows)


def samples_table(count=6, length=70):
    """The first answers, never chosen, to their first characters, and which one readers prefer."""
    rows = []
    for prompt, verdicts in [*duels()["sft", "l2, long"].items()][:count]:
        answers = []
        for text, ends in zip(verdicts[0]["answers"], verdicts[0]["finished"]):
            shown = text[:length] + ("" if len(text) <= length else "…")
            for old, new in (("\n", "↵"), ("|", "\\|"), ("<", "&lt;"), ("```", "'''")):
                shown = shown.replace(old, new)
            answers.append(shown + ("" if ends else " [CUT]"))
        liked = [{1: "aligned", 0: "neither", -1: "SFT"}[preferred(row)] for row in verdicts]
        rows.append([prompt, *answers, ", ".join(dict.fromkeys(liked))])
    return markdown(["request", "SFT model", "level 2, long", "preferred"], rows)


def agreement_table():
    """How two readers of the same sheets of two arms agree."""
    rows = []
    for arms, prompts in duels().items():
        first, second = zip(*([*map(preferred, verdicts)] for verdicts in prompts.values()))
        counts = [Counter(verdicts) for verdicts in (first, second)]
        rows.append([duel_name(*arms), *(f"{c[1]}, {c[0]}, {c[-1]}" for c in counts),
                     f"{kappa(first, second):.2f}"])
    return markdown(["policy", "wins, ties, losses by reader A", "by reader B", "kappa"], rows)


def parts_table():
    """Of arms that were read on more prompts: the first 64, and those that were added."""
    first_64 = duels()["sft", "best of 16"]
    rows = []
    for arms, prompts in duels().items():
        added = {p: verdicts for p, verdicts in prompts.items() if p not in first_64}
        if added:
            first = {p: prompts[p] for p in prompts if p in first_64}
            rows.append([duel_name(*arms),
                         *(f"{cell(win_rates(part))} ({len(part)})" if part else ""
                           for part in (first, added))])
    return markdown(["policies", "first prompts", "added prompts"], rows)


def contrasts_table():
    """Win rates against the SFT model, minus those of a policy of coin labels at the same
    temperature, paired by prompt: of the one trained without the penalty where the arm was, and
    where that one was read, which is at 0.4."""
    differences = {}  # {(arm, control): (1, N)}
    for temperature in ("", " at 0.4"):
        rates = {second: dict(zip(prompts, win_rates(prompts)[0]))
                 for (first, second), prompts in duels().items() if first == "sft" + temperature}
        for arm, wins in rates.items():
            if "coin" in arm or "seed" in arm:  # other controls; seeds_table() has these
                continue
            has_penalty = arm in ("l1 at 0.4", "l2 at 0.4")
            control = "l1, coin labels"
            if temperature and not has_penalty:
                control += ", no penalty"
            those = rates[control + temperature]
            name = duel_name("sft" + temperature, arm)
            differences[name, control] = [[wins[p] - those[p] for p in wins if p in those]]
    corrected = holm([p_value(d) for d in differences.values()])
    rows = [[arm, control, len(d[0]), cell(d, "+"), f"{p:.3f}" if p >= 0.001 else "< 0.001"]
            for ((arm, control), d), p in zip(differences.items(), corrected)]
    return markdown(["policy", "control", "prompts", "difference of win rates", "p (Holm)"], rows)


ARMS = (("l1, long", "l1, no penalty"), ("l2, long", "l2, no penalty"), ("l2, long", "l1, long"),
        ("l2, long at 0.4", "l1, long at 0.4"), ("l2", "l1"), ("l2", "l2, no penalty"),
        ("l1, doubled at 0.4", "l1, long at 0.4"), ("l2, doubled at 0.4", "l2, long at 0.4"),
        ("best of 16", "l1, long"), ("best of 4", "l1, long"),
        ("l1, long at 0.4", "l1, no penalty at 0.4"),
        ("l1, no penalty at 0.4", "l1, coin labels, no penalty at 0.4"),
        ("l1, no penalty at 0.4", "l1, human pairs at 0.4"),
        ("l1, no penalty at 0.4", "l1, samples alone at 0.4"),
        ("l1, no penalty at 0.4", "l1, written pairs alone at 0.4"),
        ("l1, no penalty at 0.4", "l1, trained trunk at 0.4"),
        ("l1, no penalty, trained at 0.4 at 0.4", "l1, no penalty at 0.4"),
        ("l1, no penalty, trained at 1.0 at 0.4", "l1, no penalty at 0.4"))


def arms_table():
    """Win rates against the SFT model, two arms compared, paired by prompt."""
    rates = {duel_name(*arms): dict(zip(prompts, win_rates(prompts)[0]))
             for arms, prompts in duels().items()}
    rows = []
    for one, other in ARMS:
        d = [rates[one][p] - rates[other][p] for p in rates[one] if p in rates[other]]
        rows.append([f"{one} minus {other}", len(d), cell([d], "+")])
    return markdown(["policies", "prompts", "difference of win rates"], rows)


def seeds_table():
    """Seeds of training, without the penalty, read at 0.4: win rates over seeds and prompts, both
    drawn."""
    known = duels()
    rows = []
    for answers, arm, seeds in (("640", "no penalty", (0, 2, 3)), ("3,200", "long", (1, 2, 3))):
        rates = {}  # {level: (S, N)}
        for level in (1, 2):
            names = [f"l{level}, {arm}" + (f", seed {seed}" if seed > 1 else "") for seed in seeds]
            of_arm = [known["sft at 0.4", name + " at 0.4"] for name in names]
            rates[level] = np.concatenate([win_rates({p: verdicts[p] for p in of_arm[0]})
                                           for verdicts in of_arm])
            rows.append([answers, f"level {level}", ", ".join(map(str, seeds)),
                         ", ".join(f"{rate:.2f}" for rate in rates[level].mean(1)),
                         cell(rates[level])])
        d = rates[2] - rates[1]
        rows.append([answers, "level 2 minus level 1", ", ".join(map(str, seeds)),
                     ", ".join(f"{mean:+.2f}" for mean in d.mean(1)), cell(d, "+")])
    return markdown(["answers", "policy", "seeds", "each", "mean"], rows)


def draw_readers():
    """Win rates by blind readers against the SFT model, at 0.7 and at 0.4."""
    _, axes = plt.subplots(1, 2, sharex=True, figsize=(11, 5), layout="constrained")
    for axis, suffix in zip(axes, ("", " at 0.4")):
        arms = {second.removesuffix(suffix): prompts for (first, second), prompts in duels().items()
                if first == "sft" + suffix}
        rates = [win_rates(prompts) for prompts in arms.values()]
        low, high = np.array([interval(r) for r in rates]).T
        places = range(len(arms), 0, -1)
        axis.hlines(places, low, high, color="0.4")
        axis.plot([r.mean() for r in rates], places, "o", color="tab:blue")
        axis.axvline(0.5, color="0.7", linestyle=":")
        axis.set_yticks(places, [f"{arm} ({len(prompts)})" for arm, prompts in arms.items()])
        axis.set(xlabel="win rate by blind readers", title="against sft" + (suffix or " at 0.7"))


def checkpoint_gains(kind="checkpoint"):
    """{run: [(step, KL, gain by its own reward model, gain by an independent one)]} of checkpoints:
    paired differences to the SFT model, (1, N), in SFT spreads."""
    points = defaultdict(list)
    for name, (sft, *lines) in grouped(lines_of(kind), "name").items():
        for line in lines:
            gains = [(np.array([line[judge]]) - sft[judge]) / np.std(sft[judge], ddof=1)
                     for judge in ("own", "other")]
            points[name].append((line["step"], line["kl"], *gains))
    return points


def checkpoints_table():
    """Held-out gain and KL in the course of runs."""
    rows = [[name, step, f"{kl:.2f}", cell(own, "+"), cell(other, "+")]
            for name, points in checkpoint_gains().items() for step, kl, own, other in points]
    return markdown(["run", "step", "KL", "by its reward model", "by the independent head"], rows)


def readouts_table():
    """Runs that differ in the readout, against the first of them, which has the mean."""
    rows = []
    for name, points in checkpoint_gains("readout").items():
        mean = points[0][-1]
        rows += [[name, readout, f"{kl:.2f}", cell(own, "+"), cell(other, "+"),
                  cell(other - mean, "+")] for readout, kl, own, other in points]
    return markdown(["runs", "readout", "KL", "by its reward model", "by the independent head",
                     "minus the mean's"], rows)


def draw_checkpoints():
    """Held-out gain against the root of KL, in the course of runs, by two judges."""
    _, axes = plt.subplots(1, 2, sharey=True, figsize=(10, 3.5), layout="constrained")
    for axis, (name, points) in zip(axes, checkpoint_gains().items()):
        steps, kl, *judges = zip(*points)
        root = np.sqrt(kl)
        for gains, judge in zip(judges, ("its reward model", "a head fitted to other pairs")):
            low, high = np.array([interval(gain) for gain in gains]).T
            axis.errorbar(root, (low + high) / 2, (high - low) / 2, fmt="o", label=f"by {judge}")
            root = root + 0.01  # beside the first
        axis.annotate(steps[-1], (root[-1], 0.15), ha="right")
        axis.plot(0, 0, "ok")
        axis.set(xlabel="root of KL to the SFT model, nats", title=name)
    axes[0].set(ylabel="held-out gain, SFT spreads")
    axes[0].legend(loc="upper left")


def aligned_table():
    """Reward models on pairs of an aligned policy's own samples that both readers order alike."""
    rows = [[line["name"], line["policy"], line["pairs"], cell([[*line["accuracy"].values()]])]
            for line in lines_of("aligned")]
    return markdown(["reward model", "samples of", "pairs", "accuracy"], rows)


def gradients_table():
    """The gradient of REINFORCE by baseline, from products of single answers' gradients."""
    rows = []
    for line in lines_of("variance"):
        products = np.array(line["products"])                                    # (N, N)
        rewards = np.array(line["rewards"])                                      # (N,)

        def statistics(i, b):
            among = products[np.ix_(i, i)]
            second, square = gradient_moments(among, rewards[i] - b)
            without, _ = gradient_moments(among, rewards[i])
            return np.array([second / without, 1000 * square / (second - square)])

        length = np.diag(products)
        best = (rewards * length).sum() / length.sum()  # least mean squared length
        for name, b in (line["baselines"] | {"best constant": best}).items():
            found = np.transpose(jackknife(partial(statistics, b=b), len(rewards)))
            rows.append([line["name"], line["at"], name, f"{b:.2f}",
                         *(bracket(*one) for one in found)])
    return markdown(["run", "at its", "baseline", "b", "mean squared length, none: 1",
                     "signal to noise of 1,000 answers"], rows)


def trunks_table():
    """Frozen (the fit, then bootstraps) and trained trunk (seeds), fitted to the same pairs; the
    difference is of the fit."""
    rows = []
    for (name, level), trained in grouped(reward_lines(".*trained trunk"), "name", "level").items():
        data = name.removesuffix(", trained trunk")
        frozen = [x for x in reward_lines(data) if x["level"] == level]
        cells = []
        for kind in SHORT:
            known = [line for line in trained if kind in line["accuracy"]]
            ours, theirs = (accuracies(lines, kind) for lines in (frozen, known))
            cells += [cell(ours), cell(theirs), cell(ours[:1] - theirs, "+")]
        rows.append([data, level, *cells])
    return markdown(["fitted to", "level", *(f"{kind}: {trunk}" for kind in SHORT for trunk in (
        "frozen", "trained", "frozen minus trained"))], rows)


def validated_table():
    """Frozen heads on human pairs, by their own validation."""
    rows = []
    for line in lines_of("validated"):
        cells = [bracket(line[name], *line[name + "_interval"], sign)
                 for name, sign in (("accuracy", ""), ("longer_accuracy", ""),
                                    ("gain_over_longer", "+"), ("loss", ""))]
        rows.append([line["name"], line["level"], line["pairs"], *cells])
    return markdown(["data", "level", "held-out pairs", "accuracy", "longer answer", "difference",
                     "loss"], rows)


CONDITIONS = ("clean", "random", "half", "few")


def noise_table():
    """The controlled world of noise.py: gold reward gained at 2 nats, by arm and condition, and the
    difference to another arm, over draws of the noise and prompts."""
    lines = grouped(lines_of("noise"), "arm", "condition")
    gain = {key: np.array([line["gain"]["KL 2.0"] for line in group])            # (S, N)
            for key, group in lines.items()}
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in gain):
        level, name = arm.split(", ")
        other = level + (", mean of bootstraps" if "bound" in name else ", mean")
        if arm == "level 2, mean":
            other = "level 1, mean"
        row = [arm, "" if other == arm else other]
        for condition in CONDITIONS:
            difference = gain[arm, condition] - gain[other, condition]
            row.append(f"{gain[arm, condition].mean():.2f}")
            if difference.any():
                row[-1] += ", " + cell(difference, "+")
        rows.append(row)
    return markdown(["score", "compared with", *CONDITIONS], rows)


TABLES = {"policies": partial(policies_table, "(?!.*(trained|seed|human|alone)).*"),
          "more_policies": partial(policies_table, ".*(trained|seed|human|alone).*"),
          "sheets": partial(sheets_table, *CONDITIONS_OF_READING),
          "short_sheets": partial(
              sheets_table, "where both or neither ends",
              without=("doubled", "trained", "l1 at 0.4", "l2 at 0.4", "seed", "labels at", "human",
                       "alone", "l2, no penalty at")),
          "contrasts": contrasts_table, "parts": parts_table, "agreement": agreement_table,
          "arms": arms_table, "seeds": seeds_table, "samples": samples_table,
          "checkpoints": checkpoints_table, "readouts": readouts_table, "aligned": aligned_table,
          "rewards": partial(reward_table, OTHERS),
          "short_rewards": partial(reward_table, CHIEF, SHORT), "gains": gains_table,
          "features": features_table, "readers": readers_table, "noise": noise_table,
          "gradients": gradients_table, "trunks": trunks_table, "validated": validated_table}


def with_tables(text):
    """The text with every table between its marks made anew."""
    def made(match):
        return f"{match[1]}\n{TABLES[match[2]]()}\n<!-- end -->"
    return re.sub(r"(<!-- table (\w+) -->)\n.*?<!-- end -->", made, text, flags=re.S)


def main():
    for name in PAGES:
        path = HERE.parent / name
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
    for name, draw in (("readers", draw_readers), ("learning", draw_learning),
                       ("frontier", draw_frontier), ("checkpoints", draw_checkpoints)):
        draw()
        plt.savefig(HERE / f"{name}.png", dpi=100)


if __name__ == "__main__":
    main()
