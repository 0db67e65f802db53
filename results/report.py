"""Makes every table and picture of REPORT.md again from the JSON files in this folder.

    python results/report.py

A table stands in REPORT.md (and the short one in README.md) between <!-- table NAME --> and
<!-- end -->. Intervals are 95 % and, where there are several seeds, hold both sources of noise,
training seeds and prompts (see `standard_error`). Scores of different reward models are compared
in their own unit, the spread of the SFT model's scores.
"""
import json
import math
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402

from eval import read_blind  # noqa: E402
from reinforce import READOUTS  # noqa: E402
from reward import wilson  # noqa: E402

# ----- statistics -----

ANGLE = np.linspace(-math.pi / 2, math.pi / 2, 20_001)


def student_t(df):
    """Student's t with df degrees of freedom, (values, their cumulative probabilities): with
    t = sqrt(df) tan(angle) its density is that of cos(angle)^(df - 1)."""
    mass = np.cos(ANGLE[1:-1]) ** (df - 1)
    cdf = np.cumsum(mass) - mass / 2
    return math.sqrt(df) * np.tan(ANGLE[1:-1]), cdf / mass.sum()


def t_quantile(q, df):
    return np.interp(q, student_t(df)[1], student_t(df)[0])


def standard_error(values):
    """(standard error, degrees of freedom) of the mean of (S, N) values, S seeds and N prompts both
    drawn at random and crossed: from the mean squares of a two-way table, with Satterthwaite's
    degrees of freedom. One seed: over prompts alone.

    A bootstrap of three seeds is no substitute: it draws one seed three times in a ninth of its
    draws, and its interval holds the truth in 74 % where seeds are what differs."""
    x = np.asarray(values, dtype=float)
    S, N = x.shape
    prompts = S * x.mean(0).var(ddof=1)
    if S == 1:
        return math.sqrt(prompts / N), N - 1
    seeds = N * x.mean(1).var(ddof=1)
    rest = ((x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()) ** 2).sum() / (S - 1) / (N - 1)
    seeds, prompts = max(seeds, rest), max(prompts, rest)  # neither source has a negative variance
    square = seeds + prompts - rest
    parts = seeds**2 / (S - 1) + prompts**2 / (N - 1) + rest**2 / (S - 1) / (N - 1)
    return math.sqrt(square / S / N), square**2 / parts if parts else 1.0


def interval(values):
    """95 % interval of the mean of (S, N) values."""
    error, df = standard_error(values)
    half = error * t_quantile(0.975, df)
    return np.mean(values) - half, np.mean(values) + half


def p_value(values):
    """Two-sided, of a mean of 0."""
    error, df = standard_error(values)
    t, cdf = student_t(df)
    return 2 * float(np.interp(-abs(np.mean(values)) / error, t, cdf)) if error else 1.0


def smallest_effect(values):
    """The mean that one test at 0.05 finds with probability 0.8, about."""
    error, df = standard_error(values)
    return error * (t_quantile(0.975, df) + t_quantile(0.8, df))


def share_of(part, whole):
    """(S, N) values whose mean is sum(part) / sum(whole), and whose interval is that ratio's."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    ratio = part.sum() / whole.sum()
    return ratio + (part - ratio * whole) / whole.mean()


def at_equal_length(d, longer):
    """(S, N) values whose mean is where the line fitted to the differences d over the differences
    of length meets equal length, and whose interval is that intercept's."""
    x, y = np.asarray(longer, dtype=float), np.asarray(d)
    slope = ((x - x.mean()) * (y - y.mean())).mean() / x.var()
    intercept = y.mean() - slope * x.mean()
    return intercept + (1 - x.mean() * (x - x.mean()) / x.var()) * (y - intercept - slope * x)


def holm(p):
    """Holm's step-down correction of p-values, in their order."""
    order, adjusted, highest = np.argsort(p), np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def sign_test(wins, losses):
    """Exact two-sided p-value of a coin, without the ties."""
    n, least = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


def rank_correlation(x, y):
    """Spearman's; equal values share their mean rank."""
    ranks = ((np.asarray(v)[:, None] > v).sum(1) + (np.asarray(v)[:, None] == v).sum(1) / 2
             for v in map(np.asarray, (x, y)))
    return float(np.corrcoef(*ranks)[0, 1])


def wins(d):
    return (d > 0) + (d == 0) / 2


# ----- what the runs left -----

def read(name):
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def read_runs():
    """{name: [run, ...]} of the folders NAME-sSEED, in the order of the seeds."""
    runs = defaultdict(list)
    for folder in sorted(HERE.glob("*-s[0-9]*/config.json")):
        folder = folder.parent
        run = {"settings": json.loads((folder / "config.json").read_text())["settings"]}
        for name in ("verdict", "metrics"):
            if (folder / f"{name}.json").exists():
                run[name] = json.loads((folder / f"{name}.json").read_text())
        if (folder / "metrics.jsonl").exists():
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            run["steps"] = [json.loads(line) for line in lines]
        runs[folder.name.rpartition("-s")[0]].append(run)
    return runs


def differences(runs):
    """(S, N): aligned minus SFT by the run's own reward model, in SFT spreads; a tie is 0."""
    return np.array([[0.0 if same else (a - b) / run["verdict"]["unit"] for a, b, same in
                      zip(run["verdict"]["scores"]["aligned"], run["verdict"]["scores"]["SFT"],
                          run["verdict"]["same"])] for run in runs])


def judged(policies):
    """The seeds in which all of `policies` were judged -> ({policy: {kind of judge: (S, N)}},
    {policy: {statistic: (S,) or (S, N)}}).

    Aligned minus SFT in SFT spreads, and wins, averaged over the reward models of a kind; all have
    other seeds than the policy, so that none of them trained it."""
    d, text = (defaultdict(lambda: defaultdict(list)) for _ in range(2))
    for path in sorted(HERE.glob("judge-s*.json")):
        result = json.loads(path.read_text())
        if not set(policies) <= set(result["policies"]):
            continue
        lengths = {name: np.array(x[0]) for name, x in result["lengths"].items()}
        for name in policies:
            kinds = defaultdict(list)
            for rm, scores in result["scores"].items():
                sft = np.array(scores["sft"][0])
                x = (np.array(scores[name][0]) - sft) / sft.std(ddof=1)
                x[abs(x) < 1e-5] = 0  # the same answer
                kinds[f"level {rm[2]}"].append(x)
            for kind, x in kinds.items():
                d[name][kind].append(np.mean(x, 0))
                d[name][kind + ", wins"].append(np.mean([wins(y) for y in x], 0))
            text[name]["longer"].append(lengths[name] - lengths["sft"])
            ends = {n: lengths[n] < result["settings"]["max_new"] for n in (name, "sft")}
            for group, is_in in (("only the policy's ends", ends[name] & ~ends["sft"]),
                                 ("both end", ends[name] & ends["sft"]),
                                 ("neither ends", ~ends[name] & ~ends["sft"]),
                                 ("only the SFT model's ends", ~ends[name] & ends["sft"])):
                text[name][group].append(is_in)
            for key, value in result["policies"][name].items():
                text[name][key].append(value)
        text["sft"]["perplexity"].append(result["policies"]["sft"]["perplexity"])
    return ({name: {k: np.array(v) for k, v in kinds.items()} for name, kinds in x.items()}
            for x in (d, text))


# ----- tables -----

def small(p):
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def markdown(head, rows):
    return "\n".join("| " + " | ".join(map(str, line)) + " |"
                     for line in [head, ["---"] * len(head), *rows])


def cell(mean, low_high, sign="+"):
    low, high = low_high if sign else np.clip(low_high, 0, 1)  # without a sign: a share
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def mean(values):
    return float(np.mean(list(values)))


def chosen_wins(found):
    """P(the chosen answer wins) of the validation pairs, {reward model: (n,)}: kept at level 1, at
    level 2 P(S_w > S_l) + P(S_w = S_l) / 2 of the kept distributions."""
    win = {name: np.array(x) for name, x in found["win"].items()}
    for name, p in found["p"].items():
        w, l = np.reshape(np.array(p) / np.sum(p, 1, keepdims=True), (2, -1, 10))
        joint = w[:, :, None] * l[:, None]                                       # (n, 10, 10)
        win[name] = (np.tril(joint, -1) + np.tril(joint)).sum((1, 2)) / 2
    return win


def models_table(runs, pattern):
    """Reward models on the same validation pairs: means over seeds, intervals over pairs; minus
    rm1 over both."""
    rows, right = [], defaultdict(list)
    win = chosen_wins(read("distributions.json"))
    for name in sorted(win):
        right[name.rpartition("-s")[0]].append(wins(win[name] - 0.5))
    for name in sorted(n for n in runs if "metrics" in runs[n][0] and re.fullmatch(pattern, n)):
        v = [run["metrics"]["validation"] for run in runs[name]]
        n, accuracy, gain = v[0]["n"], mean(m["accuracy"] for m in v), mean(m["gain"] for m in v)
        half = mean((m["gain_interval"][1] - m["gain_interval"][0]) / 2 for m in v)
        rows.append([
            name, len(v), cell(accuracy, wilson(accuracy * n, n), ""), "",
            f"{min(m['accuracy'] for m in v):.2f} .. {max(m['accuracy'] for m in v):.2f}",
            cell(gain, (gain - half, gain + half)),
            f"{mean(m['loss'] for m in v):.3f} ({v[0]['chance_loss']:.3f})",
            f"{mean(m['calibration_error'] for m in v):.3f}"])
        if name != "rm1" and len(right[name]) == len(right["rm1"]) > 0:
            d = np.subtract(right[name], right["rm1"])
            rows[-1][3] = cell(d.mean(), interval(d))
    return markdown(["reward model", "seeds", "accuracy [95 %]", "minus rm1 [95 %]",
                     "lowest .. highest seed", "above the longer-answer rule [95 %]",
                     "loss (chance)", "calibration error"], rows)


def policies_table(runs, pattern):
    """REINFORCE runs, judged by the reward model that each was trained on. Objective: the gain in
    what was maximised, score and ending less the penalty for KL."""
    rows = []
    for name in sorted(n for n in runs if "verdict" in runs[n][0] and re.fullmatch(pattern, n)):
        d, v = differences(runs[name]), [run["verdict"] for run in runs[name]]
        objective = [x.mean() + run["settings"]["eos_penalty"] * (y["ended"] - y["sft_ended"])
                     - run["settings"]["beta"] * y["kl"] for x, y, run in zip(d, v, runs[name])]
        rows.append([name, len(v), cell(d.mean(), interval(d)),
                     " ".join(f"{x:+.2f}" for x in d.mean(1)),
                     " ".join(f"{x:+.2f}" for x in objective),
                     cell(wins(d).mean(), interval(wins(d)), ""),
                     f"{mean(x['kl'] for x in v):.2f}",
                     *(f"{mean(x['sft_' + k] for x in v):{f}} -> {mean(x[k] for x in v):{f}}"
                       for k, f in (("length", ".0f"), ("ended", ".2f")))])
    return markdown(["run", "seeds", "difference to SFT [95 %]", "by seed", "objective by seed",
                     "win rate [95 %]", "KL", "length", "share that end"], rows)


def judge_table():
    """A policy by the reward models of other seeds, of its own level and of the other."""
    rows = []
    for name in ("l1", "l2-mean", "l1-eos-0", "l1-beta-0.05", "l1-read", "l1-shuffled",
                 "l1-noise"):
        d, text = judged((name,))
        for kind in ("level 1", "level 2") if d else ():
            x, w = d[name][kind], d[name][kind + ", wins"]
            flat = at_equal_length(x, text[name]["longer"])
            rows.append([name, len(x), kind, cell(x.mean(), interval(x)),
                         cell(w.mean(), interval(w), ""), cell(flat.mean(), interval(flat))])
    return markdown(["policy", "seeds", "judges", "difference to SFT [95 %]", "win rate [95 %]",
                     "difference at equal length [95 %]"], rows)


def ending_table():
    """The same differences, judges of both levels averaged, by which of the two answers end."""
    rows = []
    for name in ("l1", "l2-mean", "l1-shuffled", "l1-beta-0.05"):
        d, text = judged((name,))
        if not d:
            continue
        x = (d[name]["level 1"] + d[name]["level 2"]) / 2
        for group in ("only the policy's ends", "both end", "neither ends",
                      "only the SFT model's ends"):
            is_in = text[name][group]
            v = share_of(x * is_in, is_in)
            difference = (cell(v.mean(), interval(v)) if is_in.sum() >= 10 else
                          f"{v.mean():+.2f} ({is_in.sum()} of them)")
            rows.append([name, group, f"{is_in.mean():.2f}", difference,
                         f"{round((x * is_in).mean(), 2) + 0.0:+.2f}"])
    return markdown(["policy", "answers before token 48", "share of prompts",
                     "difference to SFT [95 %]", "its part of the whole difference"], rows)


def ranking_table():
    """All policies on one scale: win rate against SFT by reward models that never met them, the two
    levels weighing the same; differences to l2-mean prompt by prompt."""
    names = ["l1", "l2-mean", "l2-win", "l2-variance", "l2-entropy", "l2-entropic"]
    d, text = judged(names)
    both = {n: (d[n]["level 1, wins"] + d[n]["level 2, wins"]) / 2 for n in names}        # (S, N)
    gap = {n: both[n] - both["l2-mean"] for n in names if n != "l2-mean"}
    corrected = dict(zip(gap, holm([p_value(g) for g in gap.values()])))
    by_seed = np.argsort(np.argsort([-x.mean(1) for x in both.values()], 0), 0) + 1
    rows = []
    for n in sorted(names, key=lambda n: -both[n].mean()):
        t = text[n]
        rows.append([n, len(both[n]), *(cell(x.mean(), interval(x), "") for x in (
            d[n]["level 1, wins"], d[n]["level 2, wins"], both[n])),
            " ".join(map(str, by_seed[names.index(n)])),
            *((cell(gap[n].mean(), interval(gap[n])), f"{corrected[n]:.2f}",
               f"{smallest_effect(gap[n]):.2f}") if n in gap else [""] * 3),
            f"{t['kl'].mean():.1f}", f"{t['perplexity'].mean():.0f}", f"{t['length'].mean():.0f}"])
    return markdown(["policy", "seeds", "win rate by level-1 judges", "by level-2 judges", "both",
                     "rank by seed", "difference to l2-mean [95 %]", "p (Holm)",
                     "smallest effect", "KL",
                     f"perplexity (SFT {text['sft']['perplexity'].mean():.0f})", "length"], rows)


def variance_table():
    rows = [[rm, name, f"{x['b']:+.2f}", f"{x['variance']:.0f}",
             f"{x['variance'] / v['none']['variance']:.2f}", f"{x['signal']:.0f}"]
            for rm, v in read("variance.json").items() for name, x in v.items()
            if isinstance(x, dict)]
    return markdown(["reward model", "baseline", "b", "variance of a batch's gradient",
                     "relative to none", "squared norm of its mean"], rows)


def controls_table():
    """Without training: each side against another SFT answer, by reward models that did not
    choose."""
    c, rows = read("controls.json"), []
    for side in [s for s in c["lengths"] if s != "sft"]:
        each = [(np.array(s[side]) - s["sft"]) / np.std(s["sft"], ddof=1)
                for s in c["scores"].values()]
        d, w = np.mean(each, 0)[None], np.mean([wins(x) for x in each], 0)[None]
        n = re.search(r"\d+", side)
        kl = f"{math.log(int(n[0])) - 1 + 1 / int(n[0]):.2f}" if n else ""
        rows.append([side, kl, cell(d.mean(), interval(d)), cell(w.mean(), interval(w), ""),
                     *(f"{mean(c[k]['sft']):{f}} -> {mean(c[k][side]):{f}}"
                       for k, f in (("lengths", ".0f"), ("ended", ".2f")))])
    return markdown(["answers", "KL at most", "difference to SFT [95 %]", "win rate [95 %]",
                     "length", "share that end"], rows)


def paired_table():
    """Run against run, prompt by prompt and seed by seed: what is compared in the text."""
    runs, rows = read_runs(), []

    def row(what, by, x, y, minus="l1"):
        x, y = (np.atleast_2d(v) for v in (x, y))
        if len(x) == len(y):  # else a seed is missing still
            d = x - y
            rows.append([what, minus, by, len(d), cell(d.mean(), interval(d)),
                         " ".join(f"{v:+.2f}" for v in d.mean(1)), f"{smallest_effect(d):.2f}"])

    def by_judges(name):
        d, _ = judged((name,))
        return (d[name]["level 1"] + d[name]["level 2"]) / 2 if d else []
    for name in sorted(n for n in runs if re.fullmatch("l1-(baseline|beta|eos|lr)-.*", n)):
        row(name, "its own reward models", differences(runs[name]), differences(runs["l1"]))
    for name in sorted(n for n in runs if re.fullmatch("l2-(baseline|beta)-.*", n)):
        row(name, "its own reward models", differences(runs[name]), differences(runs["l2-mean"]),
            "l2-mean")
    for name in ("l1-beta-0.05", "l1-eos-0", "l1-shuffled", "l1-noise", "l1-read"):
        row(name, "reward models of other seeds", by_judges(name), by_judges("l1"))
    controls, judge = read("controls.json")["scores"], read("judge-s0.json")["scores"]
    for side in ("brief", "best of 4", "best of 16"):  # sampling seed 0
        x, y = (np.mean([(np.array(v) - sft) / np.std(sft, ddof=1) for v, sft in pairs], 0)
                for pairs in ([(c[side], c["sft"]) for c in controls.values()],
                              [(judge[rm]["l1"][0], judge[rm]["sft"][0]) for rm in controls]))
        row(side, "reward models of other seeds", x, y)

    def on_the_sheets(policy, level, seeds):
        return [wins(np.subtract(x[policy][0], x["sft"][0])) for seed in seeds
                for rm, x in read(f"blind/{policy}-s{seed}.json")["scores"].items()
                if rm[2] == level]
    for name in ("l1-beta-0.05", "l1-shuffled", "l1-read", "sft-cooler"):
        seeds = [s for s in range(3)
                 if (HERE / f"blind/{name}-s{s}-reader-2.blind.md").exists()]
        for level in "12" if seeds else "":
            row(name, f"level {level}, other seeds, wins on the readers' sheets",
                *(on_the_sheets(p, level, seeds) for p in (name, "l1")))
        if seeds:
            row(name, "readers, wins",
                *([blind_points(p, s).mean(0) for s in seeds] for p in (name, "l1")))
    return markdown(["run", "minus", "by", "seeds", "difference [95 %]", "by seed",
                     "smallest effect"], rows)


def distributions_table():
    """Predicted distributions of the validation answers (both sides of every pair)."""
    found, rows = read("distributions.json"), []
    rating = np.array(found["ratings"])
    distance = np.subtract(*rating.reshape(2, -1))  # chosen answers come first, then rejected ones
    scores = np.arange(1, 11)
    all_alike = np.tile((np.rint(rating)[:, None] == scores).mean(0), (len(rating), 1))
    found = {name: np.array(p) / np.sum(p, 1, keepdims=True)
             for name, p in [*sorted(found["p"].items()),
                              ("(all ratings, for every answer)", all_alike)]}
    for name, p in found.items():
        m = p @ scores
        sd = np.sqrt(np.maximum(p @ scores**2 - m**2, 0))
        top = np.sort(np.argsort(-p.mean(0))[:2])
        entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(1).mean()
        rows.append([name, f"{top[0] + 1} and {top[1] + 1}", f"{p[:, top].sum(1).mean():.2f}",
                     f"{m.mean():.2f}", f"{m.std(ddof=1):.2f}", f"{sd.mean():.2f}",
                     f"{entropy:.2f}"])
        if np.ptp(m) < 1e-9:  # nothing to correlate
            rows[-1] += [""] * 5
            continue
        siblings = [rank_correlation(m, q @ scores) for other, q in found.items() if other != name
                    and other.rpartition("-s")[0] == name.rpartition("-s")[0]]
        against = [rank_correlation(m, READOUTS[k](torch.tensor(p), torch.tensor(p.mean(0)), 0.5))
                   for k in ("win", "variance", "entropy", "entropic")]
        rows[-1] += [f"{np.mean(siblings):+.2f}", f"{rank_correlation(m, rating):+.2f}",
                     f"{rank_correlation(sd, abs(m - rating)):+.2f}",
                     f"{rank_correlation(sd.reshape(2, -1).mean(0), distance):+.2f}",
                     " ".join(f"{x:.3f}" for x in against)]
    return markdown(["reward model", "two commonest scores", "their share", "mean E[S]",
                     "spread of E[S]", "mean SD[S]", "mean H[p], nats",
                     "E[S] with that of other seeds", "E[S] with rating",
                     "SD[S] with its error", "SD[S] with the pair's rating distance",
                     "E[S] with the readouts win, variance, entropy, entropic"], rows)


def overoptimise_table():
    """Differences to step 0 in spreads at step 0, by the reward model of training and the other."""
    looks = [read(path.name)["points"] for path in sorted(HERE.glob("overoptimise-s*.json"))]
    rows = []
    for points in zip(*looks):
        d = {name: np.array([(np.array(at[name]) - run[0][name]) / np.std(run[0][name], ddof=1)
                             for at, run in zip(points, looks)]) for name in ("own", "other")}
        rows.append([points[0]["step"], f"{mean(math.sqrt(max(0, x['kl'])) for x in points):.2f}",
                     *(cell(x.mean(), interval(x)) for x in d.values()),
                     f"{mean(x['length'] for x in points):.0f}",
                     f"{mean(x['ended'] for x in points):.2f}"])
    return markdown(["step", "sqrt(KL)", "by its own reward model [95 %]",
                     "by the one of the other half [95 %]", "length", "share that end"], rows)


def sheet_points(name, seed):
    """(readers, N): 1 won, 1/2 tie, 0 lost, in the order of the prompts, which the sheet shuffled
    with this seed."""
    sheets = sorted((HERE / "blind").glob(f"{name}-reader-*.blind.md"))
    won = np.array([[*read_blind(s, HERE / f"blind/{name}.key.json").values()] for s in sheets])
    shuffled = np.random.default_rng(seed).permutation(won.shape[1])
    return (won[:, np.argsort(shuffled)] + 1) / 2


def blind_points(policy, seed):
    return sheet_points(f"{policy}-s{seed}", 7 + seed)  # eval.py shuffles with its first seed


def blind_table():
    """Each sheet by each reader, with Cohen's kappa; all sheets of a policy, readers averaged."""
    rows, sheets = [], sorted((HERE / "blind").glob("*-s?.key.json"))
    names = sorted({s.name.rpartition("-s")[0] for s in sheets})
    for policy in names:
        points = {s: blind_points(policy, s) for s in range(3)
                  if (HERE / f"blind/{policy}-s{s}.key.json").exists()}
        for seed, p in points.items():
            agree = (p[0] == p[1]).mean()
            chance = sum((p[0] == k).mean() * (p[1] == k).mean() for k in (0, 0.5, 1))
            for i, x in enumerate(p, 1):
                count = [int((x == k).sum()) for k in (1, 0.5, 0)]
                rows.append([policy, seed, i, *count, cell(x.mean(), wilson(x.sum(), len(x)), ""),
                             small(sign_test(count[0], count[2])),
                             f"{(agree - chance) / (1 - chance):.2f}", ""])
        both = np.stack([p.mean(0) for p in points.values()])                          # (S, N)
        rows.append([policy, "all", "both", "", "", "", cell(both.mean(), interval(both), ""),
                     small(p_value(both - 0.5)), "", f"{smallest_effect(both):.2f}"])
    return markdown(["policy", "seed", "reader", "wins", "ties", "losses", "win rate [95 %]",
                     "p", "kappa", "smallest effect"], rows)


def readers_gap_table():
    """Level 2 minus level 1 by the readers, prompt by prompt, readers averaged."""
    gap = np.stack([blind_points("l2-mean", s).mean(0) - blind_points("l1", s).mean(0)
                    for s in range(3)])
    return markdown(["win rate by readers, l2-mean minus l1 [95 %]", "by seed", "smallest effect"],
                    [[cell(gap.mean(), interval(gap)),
                      " ".join(f"{x:+.2f}" for x in gap.mean(1)), f"{smallest_effect(gap):.2f}"]])


def agreement_table():
    """Of the sampled answers that a reader could tell apart: how often a reward model that never
    met the policy prefers the same one. All sheets of a policy, both readers; then those of both
    main runs."""
    said = defaultdict(lambda: defaultdict(int))
    for path in sorted((HERE / "blind").glob("*-s?.json")):
        policy, seed, result = path.stem[:-3], int(path.stem[-1]), json.loads(path.read_text())
        points = blind_points(policy, seed)                                       # (readers, N)
        scores = {f"level {rm[2]}": np.subtract(s[policy][0], s["sft"][0])
                  for rm, s in result["scores"].items()}
        scores["the shorter answer"] = np.subtract(*(result["lengths"][k][0]
                                                     for k in ("sft", policy)))
        for name, x in scores.items():
            told = (points != 0.5) & (x != 0)
            counts = np.array([told.sum(0), (told & (points > 0.5)).sum(0), (told & (x > 0)).sum(0),
                               (told & ((points > 0.5) == (x > 0))).sum(0)])      # (4, N)
            said[policy, name][seed] += counts
            if policy in ("l1", "l2-mean"):
                said["both", name][seed] += counts  # sheets of one seed share their SFT answers
    rows = []
    for (policy, name), counts in sorted(said.items(), key=lambda x: (x[0][0] == "both", x[0])):
        told, theirs, mine, same = np.array([*counts.values()]).swapaxes(0, 1)    # (S, N) each
        rows.append([policy, name, told.sum(), *(cell(v.mean(), interval(v), "") for v in (
            share_of(x, told) for x in (theirs, mine, same))),
            " ".join(f"{x:.2f}" for x in same.sum(1) / told.sum(1))])
    return markdown(["policy", "judge", "verdicts", "readers prefer the policy [95 %]",
                     "the judge does [95 %]", "they agree [95 %]", "by seed"], rows)


def written_table():
    """Readers and reward models on written held-out pairs: who is right about which was meant to be
    the better one, and how often a reward model agrees with a reader who could tell."""
    points, result = sheet_points("written", 0), read("blind/written.json")       # (readers, N)
    told = points != 0.5
    right = {f"reward models of level {level}, 3 seeds": np.stack(
        [np.subtract(s["chosen"], s["rejected"]) for rm, s in result["scores"].items()
         if rm.startswith(f"rm{level}")]) for level in (1, 2)}                         # (S, N)
    right["the shorter answer"] = np.subtract(result["lengths"]["rejected"],
                                              result["lengths"]["chosen"])[None]
    both = points.mean(0)[None]
    rows = [[f"readers ({told.sum()} of {told.size} told apart)",
             cell(both.mean(), wilson(both.sum(), both.size), ""), ""]]
    for name, d in right.items():
        same = ((points[:, None] > 0.5) == (d > 0)) & told[:, None] & (d != 0)   # (readers, S, N)
        whole = told[:, None] & (d != 0)
        share = share_of(same.sum(0), whole.sum(0))
        rows.append([name, cell(wins(d).mean(), interval(wins(d)), ""),
                     cell(share.mean(), interval(share), "")])
    return markdown(["judge", "right about the written pair [95 %]",
                     "agrees with the readers [95 %]"], rows)


def compared_table():
    """Reward models on pairs of samples where two readers name the same side; counted by prompt,
    because a prompt has up to two pairs."""
    c, rows = read("compared.json"), []
    readers = np.array([[(v == "A") - (v == "B") for v in pair] for pair in c["verdicts"]])
    told = readers[:, 0] * readers[:, 1] > 0                                          # (pairs,)
    which = np.unique(c["keys"], return_inverse=True)[1]
    judges = defaultdict(list)
    for name, _, seed in sorted(name.rpartition("-s") for name in c["scores"]):
        judges[name].append(np.subtract(*c["scores"][f"{name}-s{seed}"]))
    judges["the shorter answer"].append(-np.subtract(*c["lengths"]))
    judges["the SFT model's mean log-prob"].append(np.subtract(*c["sft_logprob"]))

    def by_prompt(x):
        return np.stack([np.bincount(which[told], v[told], which.max() + 1) for v in x])
    whole = by_prompt([told])
    same = {name: by_prompt([wins(readers[:, 0] * d) for d in x]) for name, x in judges.items()}

    def minus(x, other):
        if x is other or len(x) < len(other):
            return ""
        d = share_of(x - other, np.repeat(whole, len(x), 0))
        return cell(d.mean(), interval(d))

    for name, x in same.items():
        share = share_of(x, np.repeat(whole, len(x), 0))
        rows.append([name, len(x) if "rm" in name else "", told.sum(),
                     cell(share.mean(), interval(share), ""),
                     " ".join(f"{v:.2f}" for v in x.sum(1) / told.sum()),
                     *(minus(x, same[k]) for k in ("rm1", "the shorter answer",
                                                   "the SFT model's mean log-prob"))])
    agree = (readers[:, 0] == readers[:, 1]).mean()
    chance = sum((readers[:, 0] == k).mean() * (readers[:, 1] == k).mean() for k in (-1, 0, 1))
    against = (readers[:, 0] * readers[:, 1] < 0).sum()
    rows.append([f"(the readers: kappa {(agree - chance) / (1 - chance):.2f}; opposite sides: "
                 f"{against})", "", len(told), "", "", "", "", ""])
    return markdown(["judge", "seeds", "pairs", "agrees with both readers [95 %]", "by seed",
                     "minus rm1 [95 %]", "minus the shorter answer", "minus the log-prob"], rows)


def human_table(name):
    """A row a candidate, its settings, and what it is worth on the pairs of each file."""
    judged, rows = read(name), []
    files = {file: m for by_file in judged.values() for file, m in by_file.items()}
    for rm, by_file in sorted(judged.items()):
        kept, n = read(f"{rm}/config.json")["settings"], sum(m["n"] for m in by_file.values())
        loss = sum(m["n"] * m["loss"] for m in by_file.values()) / n
        rows.append([rm, kept["max_len"], f"{kept['rm_lr']:.0e}".replace("e-0", "e-"),
                     kept["epochs"], *(text for m in map(by_file.get, files) for text in (
                         cell(m["accuracy"], m["accuracy_interval"], ""),
                         cell(m["gain"], m["gain_interval"]), f"{m['loss']:.3f}")), f"{loss:.3f}"])
    rows.append(["(the longer answer)", "", "", "", *(text for m in files.values() for text in (
        cell(m["longer_accuracy"], m["longer_interval"], ""), "", "")), ""])
    short = [f"{re.sub('^(human|test)-|_.*', '', file)} ({m['n']} pairs)"
             for file, m in files.items()]
    heads = (text for file in short for text in (
        f"{file}: accuracy [95 %]", "above the longer answer [95 %]", "loss"))
    return markdown(["reward model", "tokens", "lr", "epochs", *heads, "loss over all"], rows)


def samples_table(*folders, count=4):
    """The first held-out prompts with every side's answer, from samples.md, never chosen."""
    def quoted(text):
        return " ".join(text.replace("<|im_end|>", " *(end)*").replace("|", "\\|").split())
    rows = []
    for i in range(count):
        for folder in folders:
            text = (HERE / folder / "samples.md").read_text(encoding="utf-8")
            part = re.split(r"(?m)^## \d+$", text)[i + 1]
            prompt, sft, aligned = re.findall(r"~~~~text\n(.*?)\n~~~~", part, re.S)
            question = re.split(r"<\|im_start\|>user\n", prompt)[-1].partition("<|im_end|>")[0]
            if folder == folders[0]:
                rows.append([quoted(question), "SFT", quoted(sft)])
            rows.append(["", folder, quoted(aligned)])
    return markdown(["prompt", "", "answer"], rows)


def tables():
    """{name: markdown} of what there are results for."""
    runs = read_runs()
    kinds = "strict|anchor|shuffled|noise|onpolicy|read"
    made = {"models": models_table(runs, rf"rm[12](-({kinds}))?"),
            "curve": models_table(runs, r"rm[12](-pairs-\d+)?"),
            "levels": policies_table(runs, r"l1|l2-[a-z]+"),
            "ablations": policies_table(runs, r"l1|l2-mean|l[12]-(baseline|beta|lr|eos)-.*"),
            "rewards": policies_table(runs, r"l1|l1-(shuffled|noise|onpolicy|read|cool|read-cool)"),
            "main": policies_table(runs, r"l1|l2-mean")}
    for name, file, make in (
            ("judge", "judge-s0.json", judge_table), ("ending", "judge-s0.json", ending_table),
            ("ranking", "judge-s0.json", ranking_table),
            ("samples", "l2-mean-s0", lambda: samples_table("l1-s0", "l2-mean-s0")),
            ("variance", "variance.json", variance_table),
            ("controls", "controls.json", controls_table),
            ("paired", "controls.json", paired_table),
            ("distributions", "distributions.json", distributions_table),
            ("overoptimise", "overoptimise-s0.json", overoptimise_table),
            ("human", "human-validation.json", lambda: human_table("human-validation.json")),
            ("test", "human-test.json", lambda: human_table("human-test.json")),
            ("compared", "compared.json", compared_table),
            ("gap", "blind/l2-mean-s2-reader-2.blind.md", readers_gap_table),
            ("written", "blind/written-reader-2.blind.md", written_table),
            ("agreement", "blind/l2-mean-s0-reader-2.blind.md", agreement_table),
            ("blind", "blind/l2-mean-s0-reader-2.blind.md", blind_table)):
        if (HERE / file).exists():
            made[name] = make()
    return made


def with_tables(text):
    """A text with each of its tables made again."""
    made = tables()
    return re.sub(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)",
                  lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}", text, flags=re.S)


# ----- pictures -----

def training_picture(plt):
    """Reward by step above the SFT model's; the win rate by three kinds of judge."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    runs, (d, _) = read_runs(), judged(("l1", "l2-mean"))
    for k, (name, line, grey) in enumerate((("l1", "-", "0.0"), ("l2-mean", "--", "0.5"))):
        for i, run in enumerate(runs[name]):
            axes[0].plot([m["step"] for m in run["steps"]],
                         [m["reward"] - run["steps"][0]["baseline"] for m in run["steps"]], line,
                         color=grey, label=name if i == 0 else None)
        own = wins(differences(runs[name]))
        siblings = (d[name]["level 1, wins"] + d[name]["level 2, wins"]) / 2
        read_by = np.stack([blind_points(name, s).mean(0) for s in range(3)])
        for x, v in enumerate((own, siblings, read_by)):
            low, high = interval(v)
            axes[1].errorbar(x + 0.15 * k, v.mean(), [[v.mean() - low], [high - v.mean()]],
                             fmt="os"[k], color=grey, capsize=3, label=name if x == 0 else None)
    axes[0].axhline(0, color="0.8", linewidth=1)
    axes[0].set(xlabel="step", ylabel="KL-shaped reward above SFT, in spreads")
    axes[1].axhline(0.5, color="0.8", linewidth=1)
    axes[1].set(xticks=[0.07, 1.07, 2.07], ylabel="win rate against SFT", ylim=(0.2, 1))
    axes[1].set_xticklabels(["reward model\nof training", "reward models\nof other seeds",
                             "blind\nreaders"])
    for axis in axes:
        axis.legend()
    figure.savefig(HERE / "training.png", dpi=120)


def overoptimise_picture(plt):
    """Held-out gain against sqrt(KL), by the reward model of training and one of other pairs."""
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for name, dot, grey, label in (("own", "o", "0.0", "the reward model of training"),
                                   ("other", "s", "0.6", "the one of the other half")):
        for i, path in enumerate(sorted(HERE.glob("overoptimise-s*.json"))):
            points = read(path.name)["points"]
            first = np.array(points[0][name])
            axis.plot([math.sqrt(max(0, x["kl"])) for x in points],
                      [(np.mean(x[name]) - first.mean()) / first.std(ddof=1) for x in points],
                      "-" + dot, color=grey, markersize=4, label=label if i == 0 else None)
    axis.set(xlabel="square root of KL to SFT", ylabel="held-out difference, in SFT spreads")
    axis.legend()
    figure.savefig(HERE / "overoptimise.png", dpi=120)


def distributions_picture(plt):
    """Mean predicted distribution of every level-2 reward model, a row a loss."""
    found = read("distributions.json")["p"]
    rows = [[n for n in found if re.fullmatch(rf"{kind}-s\d+", n)]
            for kind in ("rm2", "rm2-strict", "rm2-anchor")]
    figure, axes = plt.subplots(len(rows), max(map(len, rows)), figsize=(8, 5), squeeze=False,
                                layout="constrained", sharex=True, sharey=True)
    for axis, name in ((a, n) for line, names in zip(axes, rows) for a, n in zip(line, names)):
        axis.bar(range(1, 11), np.mean(found[name], 0), color="0.4")
        axis.set_title(name, fontsize=9)
        axis.set_xticks([1, 4, 7, 10])
    figure.supxlabel("score")
    figure.supylabel("mean probability")
    figure.savefig(HERE / "distributions.png", dpi=120)


def pictures():
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    training_picture(plt)
    distributions_picture(plt)
    if (HERE / "overoptimise-s0.json").exists():
        overoptimise_picture(plt)


def main():
    for name in ("REPORT.md", "README.md"):
        path = HERE.parent / name
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
    pictures()


if __name__ == "__main__":
    main()
