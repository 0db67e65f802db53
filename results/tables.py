"""The tables of PAGES, from runs.jsonl, rankings.jsonl and sheets.jsonl.xz, and their statistics.

    python results/tables.py    # writes every table anew between its marks; test_all.py compares

A table stands between `<!-- table NAME -->` and `<!-- end -->`.
"""
import gzip
import html
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
PAGES = ("REPORT.md", "data/README.md", "results/TABLES.md")
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


def lines_of(kind, names=".*"):
    """Lines of runs.jsonl of a kind, whose name, if they have one, is of a pattern."""
    return [line for line in read_lines(RUNS)
            if line["kind"] == kind and re.fullmatch(names, line.get("name", ""))]


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
    return 2 * float(np.interp(-abs(np.mean(values)) / error, t, cdf))


def holm(p):
    """Holm's step-down correction of p-values, in their order."""
    order = np.argsort(p)
    steps = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps).clip(max=1)
    return adjusted


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


# ----- tables: runs -----

def markdown(head, rows):
    first, *others = ("| " + " | ".join(map(str, line)) + " |" for line in [head, *rows])
    return "\n".join([first, "|" + "---|" * len(head), *others])


def bracket(mean, low, high, sign=""):
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def cell(values, sign=""):
    """Mean and interval of (S, N) values."""
    return bracket(np.mean(values), *interval(values), sign)


def policies_table(names):
    """A row for each run of reinforce.py whose name is of a pattern: what its verdict says."""
    rows = []
    for run in lines_of("policy", names):
        v = run["verdict"]
        gain = np.array([v["difference"], *v["interval"]]) / v["unit"]
        rows.append([run["name"], bracket(*gain, "+"), bracket(v["win_rate"], *v["win_interval"]),
                     f"{v['kl']:.2f}", f"{v['sft_length']:.0f} -> {v['length']:.0f}",
                     f"{v['sft_ended']:.2f} -> {v['ended']:.2f}"])
    return markdown(["run", "difference to SFT, in SFT spreads", "win rate", "KL", "length",
                     "share that end"], rows)


def temperatures_table():
    """Runs of level 1 without the penalty by the temperature of training, a row for all seeds of
    one; readers against the SFT model at the policy's temperature and at 0.4, there also minus the
    runs trained at 0.7 with the same seeds."""
    known = win_rates(duels())
    kinds = defaultdict(list)
    for run in sorted(lines_of("policy", WARMTH), key=lambda run: run["run"]["temperature"]):
        kinds[re.sub(", seed .", "", run["name"])].append(run)
    rows = []
    for kind, runs in kinds.items():
        own = f" at {runs[0]['verdict']['temperature']}".replace(" at 0.7", "")
        arms = [run["name"].replace("level 1", "l1") for run in runs]
        at_own = [known[arm + own] for arm in arms if arm + own in known]
        cool = [arm + " at 0.4" for arm in arms if arm + " at 0.4" in known]
        same = [re.sub(r", (trained|sampled)[^,]*?(?=, seed| at 0.4$)", "", arm) for arm in cool]
        minus = [[known[arm][p] - known[other][p] for p in known[cool[0]]]
                 for arm, other in zip(cool, same) if arm != other]              # (S, N)
        gains = [run["verdict"]["difference"] / run["verdict"]["unit"] for run in runs]
        entropy = [[np.mean([m["entropy"] for m in run["steps"][part]]) for run in runs]
                   for part in (slice(10), slice(-10, None))]
        rows.append([kind.removeprefix("level 1, no penalty").removeprefix(", ") or "at 0.7",
                     ", ".join(str(run["run"]["seed"]) for run in runs),
                     ", ".join(f"{gain:+.2f}" for gain in gains),
                     ", ".join(f"{run['verdict']['kl']:.2f}" for run in runs),
                     " -> ".join(f"{value:.2f}" for value in np.mean(entropy, 1)),
                     ", ".join(cell([[*rate.values()]]) for rate in at_own),
                     ", ".join(f"{np.mean([*known[arm].values()]):.2f}" for arm in cool),
                     cell(minus, "+") if minus else ""])
    return markdown(["level 1, no penalty", "seeds", "difference to SFT, in SFT spreads", "KL",
                     "entropy, nats a token", "readers at its temperature", "readers at 0.4",
                     "minus trained at 0.7"], rows)


def draw_frontier():
    """Score against KL by the reward model of training: best weights on a pool of samples, best of
    n, and runs of reinforce.py (means over ten steps, above the held-out SFT mean; verdict)."""
    _, axes = plt.subplots(1, 2, sharey=True, figsize=(10, 5), layout="constrained")
    for line, axis in zip(lines_of("frontier"), axes):
        axis.plot([0, *line["kl"]], [0, *line["gain"]], color="0.2",
                  label="best weights, 32 samples")
        for n, marker in ((4, "s"), (16, "D")):
            axis.plot(math.log(n) - 1 + 1 / n, line[f"best of {n}"], marker, color="0.2",
                      label=f"best of {n}")
        names = f"level {line['level']}(, no penalty(, seed .|, 3,200 answers)?)?"
        for run in lines_of("policy", names):
            v = run["verdict"]
            steps = np.array([[m["kl"], (m["score"] - v["sft"]) / v["unit"]] for m in run["steps"]])
            curve, = axis.plot(*steps.reshape(-1, 10, 2).mean(1).T, ".-", alpha=0.5)
            axis.plot(v["kl"], v["difference"] / v["unit"], "*", markersize=12,
                      color=curve.get_color(), label=run["name"])
        axis.set(xlabel="KL to the SFT model, nats", title=f"level {line['level']}")
        axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    axes[0].set(ylabel="gain in score, SFT spreads")


def judged_gains(kind):
    """{run: [(step, KL, gain by its own reward model, gain by an independent one)]} of checkpoints,
    or of runs by readout: paired differences to the SFT model, (1, N), in SFT spreads."""
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
            for name, points in judged_gains("checkpoint").items()
            for step, kl, own, other in points]
    return markdown(["run", "step", "KL", "by its reward model", "by the independent head"], rows)


def readouts_table():
    """Runs that differ in the readout, over seeds and prompts, against those that have the mean: at
    their end, and at equal KL, where the mean's gain is interpolated in the root of the KL between
    the SFT model and updates 20, 30 and 40 (at a larger KL: that of the largest)."""
    ends = defaultdict(list)   # {readout: [(KL, own, other, minus the mean) of each seed]}
    equal = defaultdict(list)  # {readout: [difference of each seed that has these updates]}
    for points in judged_gains("readout").values():
        course = {step: (kl, other) for step, kl, _, other in points if step.startswith("mean")}
        mean = course["mean"][1]
        kls, gains = zip((0, 0 * mean), *sorted(course.values(), key=itemgetter(0)))
        for step, kl, own, other in points:
            if step in course and step != "mean":
                continue
            ends[step].append((kl, own, other, other - mean))
            if len(course) == 3:
                at = [np.interp(kl**0.5, np.sqrt(kls), gain) for gain in np.concatenate(gains).T]
                equal[step].append(other - at)
    rows = []
    for readout, seeds in ends.items():
        kls, *gains = zip(*seeds)
        rows.append([readout, ", ".join(f"{kl:.2f}" for kl in kls),
                     *(cell(np.concatenate(gain), "+") if gain else ""
                       for gain in (*gains, equal[readout]))])
    return markdown(["readout", "KL of each seed", "by the mean of its reward model",
                     "by the independent head", "minus the mean's", "at equal KL"], rows)


def draw_checkpoints():
    """Held-out gain against the root of KL, in the course of runs, by two judges."""
    _, axes = plt.subplots(1, 2, sharey=True, figsize=(10, 3.5), layout="constrained")
    for axis, (name, points) in zip(axes, judged_gains("checkpoint").items()):
        _, kl, *judges = zip(*points)
        for gains, judge in zip(judges, ("its reward model", "a head fitted to other pairs")):
            low, high = np.array([interval(gain) for gain in gains]).T
            axis.errorbar(np.sqrt(kl), (low + high) / 2, (high - low) / 2, fmt="o", alpha=0.6,
                          label=f"by {judge}")
        axis.set(xlabel="root of KL to the SFT model, nats", title=name)
    axes[0].set(ylabel="held-out gain, SFT spreads")
    axes[0].legend(loc="upper left")


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


# ----- tables: reward models -----

SIGNS = ("correlation with length", "correlation with finished")  # of scores of samples
KINDS = ("samples", "one temperature", "two temperatures", "written")  # of held-out pairs

# patterns of reward models' names: by number of ranked prompts, by features, all others, the chief
CURVE = r"written pairs|both(, \d+ ranked prompts|, with later prompts)?"
FEATURES = "both(, la.*)?"  # layers, last token
OTHERS = r"(?!both, la|both, \d).*"
CHIEF = "written pairs|samples|both(, samples by a coin)?|mean log-prob.*"


def accuracies(lines, kind):
    """(S, N): accuracy of S reward models on each of the same N held-out prompts; two old seeds of
    the trained trunk were tried on written pairs alone."""
    known = [line["accuracy"][kind] for line in lines if kind in line["accuracy"]]
    return np.array([[accuracy[key] for key in known[0]] for accuracy in known])


def reward_table(names, *fields, kinds=("samples", "written"), fits=None):
    """A row for each name and level: other fields of the first line that has them, and on which
    held-out pairs such reward models are right; several bootstraps or seeds are averaged, or the
    first of them."""
    rows = []
    for (name, level), lines in grouped(lines_of("reward", names), "name", "level").items():
        lines = lines[:fits]
        more = f" ({len(lines)})" if len(lines) > 1 else ""
        first = {field: line[field] for line in reversed(lines) for field in fields
                 if field in line}
        rows.append([name + more, level, *(f"{first[field]:.3f}" for field in fields),
                     *(cell(accuracies(lines, kind)) for kind in kinds)])
    return markdown(["fitted to", "level", *fields, *kinds], rows)


def gains_table():
    """Paired differences to the head fitted to both, of a trained trunk to the frozen one of the
    same pairs: of bootstraps of the same seeds, else of the one fit; and between the levels."""
    groups = grouped(lines_of("reward", OTHERS), "name", "level")
    pairs = [("both, level 2 minus level 1", "", groups["both", 2], groups["both", 1])]
    for (name, level), theirs in groups.items():
        reference = name.removesuffix(", trained trunk") if "trunk" in name else "both"
        fits = len(theirs) if "bootstrap" in theirs[0] else 1
        if name != "both":
            ours = groups[reference, level][:fits]
            pairs.append((f"{reference} minus {name}", level, ours, theirs))
    rows = []
    for what, level, ours, theirs in pairs:
        cells = [cell(accuracies(ours, kind) - accuracies(theirs, kind), "+")
                 for kind in ("samples", "written")]
        rows.append([what, level, *cells])
    return markdown(["paired difference", "level", "samples", "written"], rows)


def draw_learning():
    """Accuracy on held-out pairs of samples by the number of ranked training prompts."""
    _, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for level in (1, 2):
        lines = [line for line in lines_of("reward", CURVE)
                 if line["level"] == level and line["bootstrap"] == 0]
        lines.sort(key=itemgetter("ranked_prompts"))
        right = [accuracies([line], "samples") for line in lines]
        low, high = np.array([interval(a) for a in right]).T
        numbers = [str(line["ranked_prompts"]) for line in lines]
        axis.plot(numbers, (low + high) / 2, "o-", label=f"level {level}")
        axis.fill_between(numbers, low, high, alpha=0.15)
    axis.axhline(0.5, color="0.7", linestyle=":")
    axis.set(xlabel="ranked training prompts (four answers each), beside 340 written pairs",
             ylabel="accuracy, held-out pairs of samples")
    axis.legend()


def aligned_table():
    """Reward models on pairs of an aligned policy's own samples that both readers order alike."""
    rows = [[line["name"], line["policy"], line["pairs"], cell([[*line["accuracy"].values()]])]
            for line in lines_of("aligned")]
    return markdown(["reward model", "samples of", "pairs", "accuracy"], rows)


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


def noise_table(kl):
    """The controlled world of noise.py: gold reward gained at a KL, by arm and condition, and the
    difference to another arm, over draws of the noise and prompts."""
    lines = grouped(lines_of("noise"), "arm", "condition")
    gain = {key: np.array([line["gain"][f"KL {kl}"] for line in group])          # (S, N)
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


# ----- tables: readers -----

def arm_name(first, second):
    """The second arm; the first one too unless it is the SFT model at the same temperature, which
    is 0.7 where no other is said."""
    short = [arm.removesuffix(" at 0.7").replace(", no penalty, 3,200 answers", ", long")
             for arm in (first, second)]
    temperature = re.search(r"( at [\d.]+)?$", short[1])[0]
    return short[1] if short[0] == "sft" + temperature else f"{short[1]} against {short[0]}"


def duels():
    """Rows of the sheets of two arms with the arm's name and `won`: 1 if the second arm's answer is
    preferred, 1/2 for a tie, 0."""
    rows = []
    for row in read_lines(SHEETS):
        if len(row["arms"]) == 2:
            first, second = row["places"]
            won = (np.sign(first - second) + 1) / 2
            rows.append({**row, "arm": arm_name(*row["arms"]), "won": won})
    return rows


def win_rates(rows):
    """{arm: {prompt: how often it is preferred there, averaged over readers}}"""
    rates = defaultdict(dict)
    for (arm, prompt), same in grouped(rows, "arm", "prompt").items():
        rates[arm][prompt] = np.mean([row["won"] for row in same])
    return rates


def not_shorter(row):
    first, second = (len(answer.split()) for answer in row["answers"])
    return second >= first


def end_alike(row):
    return len(set(row["finished"])) == 1


def sheets_table(names, *columns):
    """Blind readers: how often the answer of an arm whose name is of a pattern is preferred to that
    of another one: to all prompts, to those where length or end cannot have decided in its favour,
    to the 64 prompts that were planned and to those that were added."""
    rows = duels()
    planned = {row["prompt"] for row in rows if row["arm"] == "best of 16"}
    parts = {"win rate (prompts)": rows,
             "where its answer is not shorter": filter(not_shorter, rows),
             "where both or neither ends": filter(end_alike, rows),
             "planned prompts": [row for row in rows if row["prompt"] in planned],
             "added prompts": [row for row in rows if row["prompt"] not in planned]}
    rates = {column: win_rates(parts[column]) for column in columns or parts}
    lines = []
    for arm in win_rates(rows):
        if re.fullmatch(names, arm):
            cells = [f"{cell([[*of_arm[arm].values()]])} ({len(of_arm[arm])})"
                     if len(of_arm[arm]) > 9 else "" for of_arm in rates.values()]
            lines.append([arm, *cells])
    return markdown(["policy", *rates], lines)


def opinions_table():
    """How often readers and other reward models prefer an arm's answer to the SFT model's."""
    known = win_rates(duels())
    rows = []
    judges = dict.fromkeys(line["judge"] for line in lines_of("opinion"))
    for arm, lines in grouped(lines_of("opinion"), "name").items():
        rates = {line["judge"]: line["win rate"] for line in lines}
        rows.append([arm, *(cell([[*rate.values()]]) for rate in
                            (known[arm], *(rates[judge] for judge in judges)))])
    return markdown(["policy", "readers", *judges], rows)


def samples_table(count=6, length=70):
    """The first answers, never chosen, to their first characters, and which one readers prefer."""
    rows = []
    long = [row for row in duels() if row["arm"] == "l2, long"]
    for prompt, same in [*grouped(long, "prompt").items()][:count]:
        shown = []
        for text, ends in zip(same[0]["answers"], same[0]["finished"]):
            start = html.escape(text[:length], quote=False).replace("\n", "↵")
            more = "" if len(text) <= length else "…"
            shown.append(start.replace("|", "&#124;") + more + ("" if ends else " [CUT]"))
        liked = [{1: "aligned", 0.5: "neither", 0: "SFT"}[row["won"]] for row in same]
        rows.append([prompt, *shown, ", ".join(dict.fromkeys(liked))])
    return markdown(["request", "SFT model", "level 2, long", "preferred"], rows)


def readers_table():
    """How two readers of the same sheets agree, and what the first one likes."""
    by_prompt = grouped(read_lines(RANKINGS), "prompt")
    doubles = [[r["places"] for r in rs] for rs in by_prompt.values() if len(rs) == 2]
    i, j = np.triu_indices(4, 1)  # the six pairs of answers
    both = np.transpose(doubles, (1, 2, 0))                                      # (2, 4, prompts)
    first, second = np.sign(both[:, i] - both[:, j]).reshape(2, -1)
    alike = ((first == second) & (first != 0)).sum()
    opposite = ((first == -second) & (first != 0)).sum()
    twice = [[row["won"] for row in same] for same in grouped(duels(), "arm", "prompt").values()]
    rows = [["prompts ranked, of these by two readers", f"{len(by_prompt)}, {len(doubles)}"],
            ["pairs ordered alike, opposite, tied by one or both",
             f"{alike}, {opposite}, {len(first) - alike - opposite}"],
            ["kappa (better, tied, worse)", f"{kappa(first, second):.2f}"],
            ["the same of sheets of two policies", f"{kappa(*zip(*twice)):.2f}"]]
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


ARMS = {  # {arm: those that are compared with it}
    "l1": ["l2"], "l1, coin labels": ["l1", "l2"], "l1, no penalty": ["l1, long"],
    "l2, no penalty": ["l2, long", "l2"], "l2, no penalty at 0.4": ["l2 at 0.4"],
    "l1, long": ["l2, long", "best of 16", "best of 4"],
    "l1, long at 0.4": ["l2, long at 0.4", "l1, doubled at 0.4", "best of 16 at 0.4"],
    "l2, long at 0.4": ["l2, doubled at 0.4", "best of 16 at 0.4"],
    "l1, coin labels, no penalty at 0.4": ["l1, no penalty at 0.4", "l1, long at 0.4",
                                           "l2, long at 0.4"],
    "l2, readout mean, seed 4 at 0.4": ["l2, readout win, seed 4 at 0.4"],
    "l1, no penalty at 0.4": [
        "l1 at 0.4", "l1, long at 0.4", "l1, human pairs at 0.4", "l1, samples alone at 0.4",
        "l1, written pairs alone at 0.4", "l1, trained trunk at 0.4",
        "l1, no penalty, trained at 0.4 at 0.4", "l1, no penalty, trained at 1.0 at 0.4"]}


def arms_table():
    """Win rates against the SFT model, two arms compared, paired by prompt."""
    rates = win_rates(duels())
    found = {}  # {(arm, other arm): (1, N)}
    for other, arms in ARMS.items():
        for arm in arms:
            shared = [prompt for prompt in rates[arm] if prompt in rates[other]]
            found[arm, other] = [[rates[arm][p] - rates[other][p] for p in shared]]
    corrected = holm([p_value(d) for d in found.values()])
    rows = [[f"{arm} minus {other}", len(d[0]), cell(d, "+"), f"{p:.3f}"]
            for ((arm, other), d), p in zip(found.items(), corrected)]
    return markdown(["policies", "prompts", "difference of win rates", "p (Holm)"], rows)


def seeds_table():
    """Seeds of training, without the penalty, read at 0.4: win rates over seeds and prompts, both
    drawn; minus two arms that have one seed."""
    known = win_rates(duels())
    rows = []
    for answers, run, seeds in (("640", "no penalty", (0, 2, 3)), ("3,200", "long", (1, 2, 3))):
        rates = {}  # {policy: (S, N)}
        for level in (1, 2):
            names = [f"l{level}, {run}" + (f", seed {seed}" if seed > 1 else "") for seed in seeds]
            of_seeds = [known[name + " at 0.4"] for name in names]
            rates[f"level {level}"] = np.array([[rate[prompt] for prompt in of_seeds[0]]
                                                for rate in of_seeds])
            for arm in ("best of 16", "l1, coin labels, no penalty"):
                other = known[arm + " at 0.4"]
                rates[f"level {level} minus {arm}"] = np.array([[rate[p] - other[p] for p in other]
                                                                for rate in of_seeds])
        rates["level 2 minus level 1"] = rates["level 2"] - rates["level 1"]
        for policy, values in rates.items():
            sign = "+" if "minus" in policy else ""
            rows.append([answers, policy, ", ".join(map(str, seeds)),
                         ", ".join(f"{mean:{sign}.2f}" for mean in values.mean(1)),
                         cell(values, sign)])
    return markdown(["answers", "policy", "seeds", "each", "mean"], rows)


def draw_readers():
    """Win rates by blind readers against the SFT model, at 0.7 and at 0.4, seeds of training in one
    row, with the interval over seeds and prompts."""
    _, axes = plt.subplots(1, 2, sharex=True, figsize=(11, 5), layout="constrained")
    known = win_rates(duels())
    for axis, ending in zip(axes, ("", " at 0.4")):
        seeds = defaultdict(list)  # {label: [{prompt: rate} of each seed]}
        for arm, rate in known.items():
            if re.search(r"( at [\d.]+)?$", arm)[0] == ending:
                seeds[re.sub(r", seed \d", "", arm.removesuffix(ending))].append(rate)
        names = sorted(seeds)
        values = [[[rate[prompt] for prompt in seeds[name][0]] for rate in seeds[name]]
                  for name in names]                                             # (S, N) each
        low, high = np.array([interval(rates) for rates in values]).T
        places = range(len(names), 0, -1)
        axis.errorbar((low + high) / 2, places, xerr=(high - low) / 2, fmt="o", ecolor="0.4")
        axis.axvline(0.5, color="0.7", linestyle=":")
        axis.set_yticks(places, [f"{name} ({len(rates)} x {len(rates[0])})"
                                 for name, rates in zip(names, values)])
        axis.set(xlabel="win rate by blind readers",
                 title="against the SFT model at " + (ending[4:] or "0.7"))


FEW = r"(?!.*(trained|seed|human|alone|drawn)).*"  # runs that REPORT.md has in a table
WARMTH = "level 1, no penalty(, trained at ...|, sampled at .*)?(, seed .)?"  # by temperature
SHORT = "l[12](, (no penalty|coin labels|long))?|best of 16.*|one.*|l[12], long at 0.4"
TABLES = {"policies": partial(policies_table, FEW),
          "more_policies": partial(policies_table, f"(?!{FEW}$|{WARMTH}$).*"),
          "temperatures": temperatures_table,
          "sheets": partial(sheets_table, ".*"),
          "short_sheets": partial(sheets_table, SHORT, "win rate (prompts)",
                                  "where both or neither ends"),
          "arms": arms_table, "seeds": seeds_table, "opinions": opinions_table,
          "samples": samples_table,
          "checkpoints": checkpoints_table, "readouts": readouts_table, "aligned": aligned_table,
          "rewards": partial(reward_table, OTHERS, *SIGNS, kinds=KINDS),
          "short_rewards": partial(reward_table, CHIEF),
          "features": partial(reward_table, FEATURES, "fold_loss", fits=1), "gains": gains_table,
          "readers": readers_table, "noise_2": partial(noise_table, 2.0),
          "noise_3": partial(noise_table, 3.0), "gradients": gradients_table,
          "validated": validated_table}


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
