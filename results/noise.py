"""When does a distribution help? A world with a known reward, without sampling in the loop.

    python results/noise.py pool 32 0.7    # answers of the SFT model to 64 held-out prompts
    python results/noise.py frontier 1 runs/demo_pairs-reward1 runs/demo_pairs-level1
                                       # what a reward model's score can gain at a KL
    python results/noise.py world 3    # label noise, reward models, gold; 3 draws of the noise

The gold reward is a level-1 head fitted to the readers' rankings of both parts, on layers 15 and
25; what is judged here sees layer 20. Gold orders the pairs of samples of the training part, noise
spoils the orders (CONDITIONS), heads are fitted to them, and each scores the pool. The best policy
under a score s with a KL term, pi ~ pi_ref exp(s / beta), is approximated on the pool by weights
exp(s / beta) of its n answers (roughly: at a KL of 2 the weight sits on n / e^2 of them): this is
where REINFORCE would end without the noise of sampling. beta is set so that the KL, averaged over
prompts, is the same for all; then gold is compared. A clean order is the sign of gold's difference,
however small: E[S] is calibrated for such labels, not for gold itself.

What theory predicts (written before the first run):
 1. clean, random: all readouts of one fit are alike. Within a prompt only the order counts, and a
    calibrated E[S] is already the reward whose expectation counts.
 2. half (noise in one recognisable half of the prompts): judgements of the noisy half are shrunk by
    the fit itself, so E[S] spends its KL in the clean half. Level 2 can shrink by prompt, level 1,
    a linear map, hardly: level 2 by its mean wins, spread penalties add nothing to it. The oracle,
    which weights pairs by 1 - 2 e (squared when this was written), wins over both.
 3. few (50 prompts): what the head does not know is large. A lower confidence bound over bootstraps
    beats the mean of the same bootstraps at high KL; penalties on the predicted spread do not.
"""
import json
import sys
from itertools import compress, product
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reinforce import READOUTS, ReinforceConfig, answer_all, usable_prompts  # noqa: E402
from results.experiments import (COLUMNS, PROMPTS, SAMPLE_STEP, append_lines,  # noqa: E402
                                 expected, fit, load_features, make_features, pool_file)
from results.tables import CONDITIONS, RUNS  # noqa: E402
from reward import RewardConfig, fit_head, prompt_weights, start  # noqa: E402

NOISY_TOPICS = ("advice", "code", "explain", "facts", "lists")  # the first five by alphabet
HIGH = 0.45                 # share of flipped orders in the noisy topics,
LOW = 0.05                  # in the others
BOOTSTRAPS = 8
RISK = 0.5                  # of the readouts; of the bound, in standard deviations over bootstraps
KLS = (0.5, 1.0, 2.0, 3.0)  # nats, averaged over the prompts


@torch.no_grad()
def pool(n, temperature):
    """n answers of the SFT model at a temperature to each of the verdict's first prompts, with
    their features -> pool_file()."""
    cfg = ReinforceConfig(device="cpu", precision="fp32", temperature=float(temperature))
    setup = start(cfg)
    prompts, keys = usable_prompts(setup.chat, setup.val, cfg, "evaluation", PROMPTS)
    made = {"answers": [], "features": []}
    for number in range(n):
        step = SAMPLE_STEP + 100 + number
        answers = answer_all(setup.sft, prompts, keys, 0, step, cfg, setup.chat.end)
        made["answers"].append(answers)
        features = [make_features(setup, x, [y]) for x, y in zip(prompts, answers)]
        made["features"].append(torch.cat(features))                             # (P, F)
    torch.save(made, pool_file(temperature))


# ----- the best policy on the pool, and what it earns -----

def tilted(score, kl):
    """Weights (P, n) of the n answers of each prompt: softmax(score / beta), with the beta at which
    KL(weights || uniform), averaged over the prompts, is kl."""
    low = -12.0  # of log beta
    high = 12.0
    for _ in range(60):
        middle = (low + high) / 2
        logw = (score / np.exp(middle)).log_softmax(1)
        reached = (logw.exp() * (logw + np.log(score.shape[1]))).sum(1).mean().item()
        if reached > kl:
            low = middle  # beta too small
        else:
            high = middle
    if abs(reached - kl) > 1e-3:
        raise ValueError(f"{score.shape[1]} answers allow a KL of {reached:.2f}, not {kl}")
    return (score / np.exp(high)).log_softmax(1).exp()


def gains(score, gold):
    """{at what KL: gold reward above that of the SFT model, (P,)}; (P, n), (P, n)."""
    return {f"KL {kl}": (tilted(score, kl) * gold).sum(1) - gold.mean(1) for kl in KLS}


def frontier(level, folder, run):
    """What a reward model's score can gain at a KL on the pool, by the best policy and by the best
    of n, in the unit of a run that was trained with it."""
    unit = json.loads((Path(run) / "verdict.json").read_text())["unit"]
    head = load_file(Path(folder) / "head.safetensors")
    pool = torch.stack(torch.load(pool_file(0.7))["features"], 1)                     # (P, n, F)
    score = expected(pool[..., COLUMNS[20]] @ head["weight"].T + head["bias"])
    kls = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)
    line = {"kind": "frontier", "level": level, "kl": kls, "gain": []}
    for kl in kls:
        gain = (tilted(score, kl) * score).sum(1) - score.mean(1)                # (P,)
        line["gain"].append(gain.mean().item() / unit)
    for n in (4, 16):
        gain = score[:, :n].amax(1) - score.mean(1)
        line[f"best of {n}"] = gain.mean().item() / unit
    append_lines(RUNS, line)


# ----- the world -----

def spoil(rows, gold, rate, rng):
    """Rows (B, 2) of pairs, ordered by gold (N,), each order flipped with its rate (B,)."""
    right = torch.where(gold[rows[:, :1]] >= gold[rows[:, 1:]], rows, rows.flip(1))
    flip = torch.from_numpy(rng.random(len(rows))) < rate
    return torch.where(flip[:, None], right.flip(1), right)


def arms(x, rows, encoded, rate, pool):
    """{arm: scores (P, n)} of heads fitted to pairs, for the pool's features (P, n, D)."""
    weight = prompt_weights(encoded, 0)
    known = weight * (1 - 2 * rate)
    mean = x.mean(0)
    scale = x.std(0).clamp(min=1e-6)
    scores = {}
    for level in (1, 2):
        cfg = RewardConfig(level=level)
        W, b, penalty = fit(x, rows, encoded, weight, level)
        logits = pool @ W + b                                                    # (P, n, K)
        scores[f"level {level}, mean"] = expected(logits)
        if level == 2:
            p = logits.softmax(-1).flatten(0, 1)
            for name in ("variance", "entropy", "entropic", "win"):
                score = READOUTS[name](p, p.mean(0), RISK)
                scores[f"level 2, {name}"] = score.view(logits.shape[:2])
        W, b, _ = fit(x, rows, encoded, known / known.sum(), level)
        scores[f"level {level}, oracle"] = expected(pool @ W + b)
        heads = []
        for seed in range(1, BOOTSTRAPS + 1):  # with the penalty of the whole
            W, b = fit_head((x - mean) / scale, rows, prompt_weights(encoded, seed), cfg, penalty,
                            200)
            score = expected(pool @ (W / scale[:, None]) + (b - (mean / scale) @ W))
            heads.append(score - score.mean(1, keepdim=True))  # above the SFT model
        heads = torch.stack(heads)                                               # (S, P, n)
        scores[f"level {level}, mean of bootstraps"] = heads.mean(0)
        for bound in (RISK, 2.0):
            scores[f"level {level}, bound {bound}"] = heads.mean(0) - bound * heads.std(0)
    return scores


def world(draws):
    parts = []
    for part in ("train", "held-out"):
        encoded, x, rows, kinds = load_features(part)
        ranked = kinds["samples"]
        parts.append((list(compress(encoded, ranked)), x, rows[ranked]))
    (encoded, x, rows), (val_encoded, val_x, val_rows) = parts

    # gold: every ranked pair of both parts, on features that no arm sees
    columns = COLUMNS[15] + COLUMNS[25]
    both = encoded + val_encoded
    W, b, _ = fit(torch.cat([x, val_x])[:, columns], torch.cat([rows, len(x) + val_rows]), both,
                  prompt_weights(both, 0), level=1)
    pool = torch.stack(torch.load(pool_file(0.7))["features"], 1)                     # (P, n, F)
    gold_pool = (pool[..., columns] @ W + b)[..., 0]                             # (P, n)
    # unit: spread within a prompt (divided by n, not n - 1: 3 % less than without bias)
    gold_pool /= (gold_pool - gold_pool.mean(1, keepdim=True)).std()
    gold = (x[:, columns] @ W + b)[:, 0]

    noisy = torch.tensor([e.topic in NOISY_TOPICS for e in encoded])
    by_topic = torch.where(noisy, HIGH, LOW)
    share = (prompt_weights(encoded, 0) * by_topic).sum()  # flipped in all
    print(f"{noisy.float().mean():.2f} of the pairs are noisy, {share:.3f} flipped in all")
    none = torch.zeros(len(rows))
    rates = {"clean": none, "random": none + share, "half": by_topic, "few": none}
    prompts = list(dict.fromkeys(e.key for e in encoded))
    for condition, draw in product(CONDITIONS, range(draws)):
        if condition == "clean" and draw > 0:  # nothing is drawn there
            continue
        chosen = set(prompts)
        if condition == "few":
            chosen = set(prompts[50 * draw:50 * draw + 50])
        mask = torch.tensor([e.key in chosen for e in encoded])
        rate = rates[condition][mask]
        spoilt = spoil(rows[mask], gold, rate, np.random.default_rng(draw))
        scores = arms(x[:, COLUMNS[20]], spoilt, list(compress(encoded, mask)), rate,
                      pool[..., COLUMNS[20]])
        for arm, score in scores.items():
            gain = gains(score, gold_pool)
            append_lines(RUNS, {
                "kind": "noise", "condition": condition, "draw": draw, "arm": arm,
                "gain": {k: [round(g, 4) for g in v.tolist()] for k, v in gain.items()}})
            print(condition, draw, arm, gain["KL 2.0"].mean().item(), flush=True)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    globals()[command](*(int(a) if a.isdigit() else a for a in arguments))
