"""The experiments of REPORT.md that are no plain run of the three files; results/run.sh calls them.

    python results/experiments.py controls       # best-of-n, and the SFT model asked to be brief
    python results/experiments.py variance NAME  # of the gradient, by baseline; reward model NAME
    python results/experiments.py distributions  # what reward models predict, pair by pair
    python results/experiments.py overoptimise 0 # a policy on one half of the pairs, judged by both
    python results/experiments.py onpolicy       # pairs "written > sampled": runs/onpolicy.jsonl
    python results/experiments.py sampled        # pairs of samples, to be read: results/read/
    python results/experiments.py preferred      # their verdicts as pairs: runs/read.jsonl
    python results/experiments.py compared RM... # those verdicts against reward models
    python results/experiments.py written        # a blind sheet of the demo set's own pairs
    python results/experiments.py cooler         # a blind sheet of a lower temperature
    python results/experiments.py cool           # the model of that temperature: runs/sft-cool
    python results/experiments.py shuffle 0      # wrong labels: runs/shuffled-0.jsonl
    python results/experiments.py split FILE...  # human pairs: runs/human-*.jsonl and runs/test-*
    python results/experiments.py judge NAME RM FILE...   # reward models on every pair of a file

The first four and `judge` write results/NAME.json, `written` results/blind/written*. Times are for
one CPU core.
"""
import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval import write_blind  # noqa: E402
from reinforce import (EVAL_STEP, ReinforceConfig, answer_all, calibrate,  # noqa: E402
                       prompt_batches, read_scores, sample, sampling_copy, sequence_logprobs,
                       token_logprobs, train_policy, uniforms, usable_prompts)
from reward import (DEMO_DATA, VAL_SHARE, InputError, RewardConfig, encode_pairs,  # noqa: E402
                    encode_prompt, find_sft, frozen, get_reward_model, load_model, load_pairs,
                    load_reward_model, load_tokenizer, read_pairs, run_cli, score_all,
                    to_pair, validate, write_whole)

HERE = Path(__file__).resolve().parent


def keep(name, result):
    write_whole(HERE / f"{name}.json", json.dumps(result))


def setup(cfg):
    """(training pairs, validation pairs, tokenizer, SFT folder, SFT source, data source)."""
    train, val, source = load_pairs(cfg)
    sft, sft_source = find_sft(cfg)
    return train, val, load_tokenizer(sft), sft, sft_source, source


def held_out_prompts(tokenizer, val, cfg):
    return [x[:cfg.eval_prompts] for x in usable_prompts(tokenizer, val, cfg, "held out")]


def score(rm, prompts, answers, cfg, what):
    """(N,): the number of a level-1 reward model, the mean of a level-2 one."""
    texts = [p + a for p, a in zip(prompts, answers)]
    return read_scores(score_all(rm, texts, cfg, what), "mean", 0, None)


# ----- without training: about 20 minutes -----

def controls(brief=" Answer in one short sentence.", n=16):
    """Of 96 held-out prompts: an SFT answer, the best of 4 and of 16 others by runs/rm1-s0, and an
    answer to the prompt with `brief` behind it; all scored as answers to the prompt itself by
    reward models of other seeds. KL of best-of-n: log n - (n - 1) / n nats at most."""
    cfg = ReinforceConfig(micro_batch=16)
    _, val, tokenizer, sft, *_ = setup(cfg)
    prompts, keys = held_out_prompts(tokenizer, val, cfg)
    asked = {p.key: encode_prompt(tokenizer, [*p.messages[:-1], p.messages[-1] | {
        "content": p.messages[-1]["content"] + brief}]) for p in val}
    policy, eos = load_model(AutoModelForCausalLM, sft, cfg.device), tokenizer.eos_token_id

    def answers(x, seed, what):
        return answer_all(policy, x, keys, seed, EVAL_STEP, cfg, eos, what)
    drawn = [answers(prompts, i + 1, f"sample {i}") for i in range(n)]
    selector = load_reward_model("runs/rm1-s0", 1, cfg, tokenizer)
    scores = torch.stack([score(selector, prompts, y, cfg, "select") for y in drawn])     # (n, N)
    sides = {"sft": answers(prompts, 0, "SFT"),
             "brief": answers([asked[k] for k in keys], 0, "brief")}
    for k in (4, n):
        best = scores[:k].argmax(0)
        sides[f"best of {k}"] = [drawn[i][j] for j, i in enumerate(best)]
    result = {"prompts": keys, "scores": {},
              "lengths": {name: [len(a) for a in y] for name, y in sides.items()},
              "ended": {name: [a[-1] == eos for a in y] for name, y in sides.items()}}
    for judge in ("rm1-s1", "rm1-s2", "rm2-s1", "rm2-s2"):
        rm = load_reward_model(f"runs/{judge}", None, cfg, tokenizer)
        result["scores"][judge] = {name: score(rm, prompts, y, cfg, judge).tolist()
                                   for name, y in sides.items()}
    keep("controls", result)


# ----- variance of the gradient by baseline: about 12 minutes -----

def spread_of_gradient(products, means, n, b):
    """(trace of the covariance of a batch's gradient G1 - b G0, squared norm of its mean), without
    bias, from (2, 2) inner products: the mean of Gi . Gj over n batches, and mean Gi . mean Gj."""
    w = torch.tensor([-b, 1.0], dtype=torch.float64)
    trace = (w @ (products - means) @ w).item() * n / (n - 1)
    return trace, (w @ means @ w).item() - trace / n


def variance(name, batches=20):
    """By runs/NAME, at equal batches of SFT answers. A batch's gradient is G1 - b G0 with G1 =
    mean R grad log pi and G0 = mean grad log pi, so one pass gives it for every b: 0 (none), the
    mean reward of SFT answers (where `ema` and `mean` start, and stay near while the policy moves
    little), and the b of least variance. At the SFT model the KL term is 0."""
    cfg = ReinforceConfig(level=1)
    train, _, tokenizer, sft, *_ = setup(cfg)
    eos = tokenizer.eos_token_id
    prompts, keys = usable_prompts(tokenizer, train, cfg, "variance")
    policy = load_model(AutoModelForCausalLM, sft, cfg.device)
    rm = load_reward_model(f"runs/{name}", None, cfg, tokenizer)
    copy, drawn = sampling_copy(policy), []
    for step, batch in enumerate(prompt_batches(len(prompts), cfg.batch, batches, 0)):
        x, k = [prompts[i] for i in batch], [keys[i] for i in batch]
        y = sample(copy, x, uniforms(0, step, k, cfg.max_new), eos)
        drawn.append((x, y, score(rm, x, y, cfg, None),
                      torch.tensor([float(a[-1] == eos) for a in y])))
    unit = torch.cat([raw for _, _, raw, _ in drawn]).std()
    rewards = [raw / unit - cfg.eos_penalty * (1 - ended) for _, _, raw, ended in drawn]
    total = {i: [torch.zeros_like(p) for p in policy.parameters()] for i in (0, 1)}
    products = torch.zeros(2, 2, dtype=torch.float64)  # mean over batches of Gi . Gj

    def dot(a, b):
        return sum((p * q).sum().item() for p, q in zip(a, b))
    for (x, y, _, _), reward in zip(drawn, rewards):
        grads = {}
        for i, weight in ((0, torch.ones(len(x))), (1, reward)):
            policy.zero_grad()
            for part in (slice(j, j + cfg.micro_batch) for j in range(0, len(x), cfg.micro_batch)):
                logp = token_logprobs(policy, x[part], y[part]).sum(1)
                ((weight[part] * logp).sum() / len(x)).backward()
            grads[i] = [p.grad.clone() for p in policy.parameters()]
            for t, g in zip(total[i], grads[i]):
                t += g / batches
        products += torch.tensor([[dot(grads[i], grads[j]) for j in (0, 1)]
                                  for i in (0, 1)]) / batches
    means = torch.tensor([[dot(total[i], total[j]) for j in (0, 1)] for i in (0, 1)],
                         dtype=torch.float64)
    scatter = products - means
    result = {"batches": batches, "batch": cfg.batch, "unit": unit.item()}
    for kind, b in (("none", 0.0), ("mean SFT reward", torch.cat(rewards).mean().item()),
                    ("least variance", (scatter[0, 1] / scatter[0, 0]).item())):
        trace, signal = spread_of_gradient(products, means, batches, b)
        result[kind] = {"b": b, "variance": trace, "signal": signal}
    path = HERE / "variance.json"
    keep("variance", (json.loads(path.read_text()) if path.exists() else {}) | {name: result})


# ----- what level-2 reward models predict: half a minute a model -----

def distributions(*names):
    """Of the validation pairs, by the reward models of section 2 (or those named): at level 1 the
    probability that the chosen answer wins, at level 2 the predicted distributions of all answers;
    with the ratings. Adds to results/distributions.json."""
    cfg, win, p = RewardConfig(level=2), {}, {}
    _, val, tokenizer, *_ = setup(cfg)
    encoded = encode_pairs(tokenizer, val[:cfg.val_pairs], cfg, "distributions")
    chosen, rejected, ratings = zip(*encoded)
    ratings = [r for side in zip(*ratings) for r in side]
    for name in names or sorted(x.name for x in Path("runs").glob("rm*-s[0-9]*")):
        if re.fullmatch(r"rm(1|2|2-strict|2-anchor)-s\d+", name):
            rm = load_reward_model(f"runs/{name}", None, cfg, tokenizer)
            logits = score_all(rm, chosen + rejected, cfg, name)
            if rm.num_labels > 1:
                p[name] = [[round(x, 4) for x in row] for row in logits.softmax(-1).tolist()]
            else:
                w, l = logits[:, 0].chunk(2)
                win[name] = [round(x, 6) for x in torch.sigmoid(w - l).tolist()]
    path = HERE / "distributions.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    if old.get("ratings") == ratings:  # of the same pairs
        win, p = {**old.get("win", {}), **win}, {**old["p"], **p}
    keep("distributions", {"ratings": ratings, "win": win, "p": p})


# ----- over-optimisation: about 25 minutes -----

def overoptimise(seed, steps=40, every=4):
    """REINFORCE, level 1, without a KL penalty, on a reward model of one half of the training
    pairs; every 4 steps 64 held-out answers are scored by it and by a second one, of the other half
    and another seed, which the policy never meets. A gap shows what is learnt of one half's noise;
    what both halves have in common, such as a liking for answers that end, it cannot show: the
    second is no gold standard that labels the data, as in Gao et al. 2022."""
    seed = int(seed)
    cfg = ReinforceConfig(level=1, steps=steps, save_every=every, eval_prompts=64, seed=seed,
                          beta=0.0)
    train, val, tokenizer, sft, sft_source, source = setup(cfg)
    eos, rms = tokenizer.eos_token_id, {}
    for half, name in enumerate(("own", "other")):
        own = replace(cfg, rm=f"runs/rm1-half-{name}-s{seed}", rm_seed=seed + 100 * half,
                      save_every=5)
        rms[name], _ = get_reward_model(own, sft, sft_source, train[half::2], val,
                                        f"{source}, half {half}")
    prompts, keys = usable_prompts(tokenizer, train, cfg, "REINFORCE")
    x, k = held_out_prompts(tokenizer, val, cfg)
    policy, reference = (load_model(AutoModelForCausalLM, sft, cfg.device) for _ in range(2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=cfg.lr, fused=True)

    def answer_and_score(x, k, step, what):
        y = answer_all(policy, x, k, cfg.seed, step, cfg, eos, what)
        return y, score_all(rms["own"], [p + a for p, a in zip(x, y)], cfg, what)
    state, points = calibrate(answer_and_score, prompts, keys, cfg, eos, "own"), []

    def look():
        y = answer_all(policy, x, k, cfg.seed, EVAL_STEP, cfg, eos, "held out")
        kl = (sequence_logprobs(policy, x, y, cfg.micro_batch)
              - sequence_logprobs(reference, x, y, cfg.micro_batch))
        points.append({"step": state["step"], "kl": kl.mean().item(),
                       "length": float(np.mean([len(a) for a in y])),
                       "ended": float(np.mean([a[-1] == eos for a in y])),
                       **{name: score(rm, x, y, cfg, name).tolist() for name, rm in rms.items()}})
        keep(f"overoptimise-s{seed}", {"unit": state["unit"], "prompts": k, "points": points})
        print({name: v if isinstance(v, (int, float)) else round(float(np.mean(v)), 3)
               for name, v in points[-1].items()}, flush=True)
    look()
    train_policy(policy, optimizer, frozen(reference), rms["own"], prompts, keys, cfg, eos, state,
                 lambda metrics: None, look)


# ----- pairs from the policy itself: about 10 minutes -----

def onpolicy(draws=4):
    """For each training prompt the first of `draws` SFT samples that ends within 128 tokens, as the
    rejected answer to the prompt's chosen one."""
    cfg = ReinforceConfig(max_new=128, micro_batch=16)
    train, _, tokenizer, sft, *_ = setup(cfg)
    eos, rows, open_pairs = tokenizer.eos_token_id, [], train
    policy = load_model(AutoModelForCausalLM, sft, cfg.device)
    for seed in range(draws):
        prompts = [encode_prompt(tokenizer, p.messages) for p in open_pairs]
        answers = answer_all(policy, prompts, [p.key for p in open_pairs], seed, EVAL_STEP, cfg,
                             eos, f"draw {seed}")
        for p, a in zip(open_pairs, answers):
            if a[-1] == eos and (text := tokenizer.decode(a[:-1]).strip()):
                rows.append({"prompt": p.messages, "chosen": p.chosen, "rejected": text})
        done = {id(p) for p, a in zip(open_pairs, answers) if a[-1] == eos}
        open_pairs = [p for p in open_pairs if id(p) not in done]
    Path("runs/onpolicy.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    print(f"runs/onpolicy.jsonl: {len(rows)} pairs")


# ----- pairs of samples that readers compare: about 10 minutes, then the reading -----

def sampled(seeds=(20, 21, 22, 23)):
    """results/read/pairs.jsonl: for each demo prompt two pairs of SFT samples of at most 64 tokens,
    each up to its last sentence that ends, so that no answer of a pair is cut and none has to be
    preferred for that. Dropped: pairs with an answer of less than 20 characters, or equal ones."""
    path = HERE / "read/pairs.jsonl"
    if path.exists():
        raise InputError(f"{path} is there, perhaps with verdicts; move it away to sample again")
    cfg = ReinforceConfig(max_new=64, micro_batch=16)
    train, val, tokenizer, sft, *_ = setup(cfg)
    pairs, eos, rows = train + val, tokenizer.eos_token_id, []
    policy = load_model(AutoModelForCausalLM, sft, cfg.device)
    prompts, keys = [encode_prompt(tokenizer, p.messages) for p in pairs], [p.key for p in pairs]

    def sentences(answer):
        text = tokenizer.decode(answer, skip_special_tokens=True)
        return (re.match(r".*[.!?]", text, re.S) or [""])[0].strip()
    draws = [[sentences(a) for a in answer_all(policy, prompts, keys, seed, EVAL_STEP, cfg, eos,
                                               f"draw {seed}")] for seed in seeds]
    for i, p in enumerate(pairs):
        for a, b in ((draws[k][i], draws[k + 1][i]) for k in range(0, len(seeds), 2)):
            if min(len(a), len(b)) >= 20 and a != b:
                rows.append({"prompt": p.messages, "a": a, "b": b, "held_out": i >= len(train)})
    path.parent.mkdir(exist_ok=True)
    write_whole(path, "\n".join(map(json.dumps, rows)))
    print(f"{path}: {len(rows)} pairs, {sum(r['held_out'] for r in rows)} of held-out prompts")


def preferred(seed=None):
    """runs/read.jsonl: the pairs of training prompts on which a reader took a side. With a seed
    runs/read-shuffled-SEED.jsonl: these, the sides by a coin."""
    path, rows, coin = Path("runs/read.jsonl"), [], random.Random(seed and int(seed))
    if seed is not None:
        path = Path(f"runs/read-shuffled-{seed}.jsonl")
    for line in (HERE / "read/pairs.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if not row["held_out"] and row["verdicts"][0] != "tie":
            sides = ("a", "b") if row["verdicts"][0] == "A" else ("b", "a")
            if seed is not None:
                sides = coin.sample(sides, 2)
            rows.append({"prompt": row["prompt"], "chosen": row[sides[0]],
                         "rejected": row[sides[1]]})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    print(f"{path}: {len(rows)} pairs")


def compared(*rms):
    """results/compared.json: what reward models say of the pairs of held-out prompts."""
    cfg = RewardConfig(level=2, max_len=1024)
    _, _, tokenizer, *_ = setup(cfg)
    lines = (HERE / "read/pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["held_out"]]
    pairs = [to_pair({"prompt": r["prompt"], "chosen": r["a"], "rejected": r["b"]}, "read/")
             for r in rows]
    a, b, _ = zip(*encode_pairs(tokenizer, pairs, cfg, "samples"))
    assert len(a) == len(rows), "a pair was skipped"
    path = HERE / "compared.json"
    result = json.loads(path.read_text()) if path.exists() else {"scores": {}}
    result |= {"verdicts": [r["verdicts"] for r in rows], "keys": [p.key for p in pairs],
               "lengths": [[len(x) for x in side] for side in (a, b)]}
    prompts = [encode_prompt(tokenizer, p.messages) for p in pairs]
    policy = frozen(load_model(AutoModelForCausalLM, find_sft(cfg)[0], cfg.device))
    result["sft_logprob"] = [  # a token, of the answer and its end
        (sequence_logprobs(policy, prompts, answers, 8)
         / torch.tensor([len(y) for y in answers])).tolist()
        for answers in ([x[len(p):] for x, p in zip(side, prompts)] for side in (a, b))]
    for folder in rms:
        rm = load_reward_model(folder, None, cfg, tokenizer)
        x = read_scores(score_all(rm, a + b, cfg, folder), "mean", 0, None)
        result["scores"][Path(folder).name] = [v.tolist() for v in x.chunk(2)]
    keep("compared", result)


# ----- readers and reward models on written answers: about 5 minutes -----

def written(n=64):
    """A blind sheet of the first n held-out demo pairs, chosen against rejected, and what every
    reward model of the main runs says about them: a sheet of policies shows only the product of a
    reward model right about written answers and of one that carries over to samples."""
    cfg = RewardConfig(level=2, max_len=1024)  # long enough for all
    _, val, tokenizer, *_ = setup(cfg)
    pairs = val[:n]
    chosen, rejected, _ = zip(*encode_pairs(tokenizer, pairs, cfg, "written"))
    sides = [[tokenizer.encode(text) for text in side]
             for side in zip(*((p.rejected, p.chosen) for p in pairs))]
    write_blind(str(HERE / "blind/written"), tokenizer,
                [encode_prompt(tokenizer, p.messages) for p in pairs], *sides,
                np.random.default_rng(0))
    result = {"lengths": dict(zip(("rejected", "chosen"), ([len(x) for x in s] for s in sides))),
              "scores": {}}
    for folder in (f"rm{level}-s{seed}" for level in (1, 2) for seed in range(3)):
        rm = load_reward_model(f"runs/{folder}", None, cfg, tokenizer)
        x = read_scores(score_all(rm, chosen + rejected, cfg, folder), "mean", 0, None)
        result["scores"][folder] = {"chosen": x[:n].tolist(), "rejected": x[n:].tolist()}
    keep("blind/written", result)


def at_temperature(model, t):
    """The model, in place, with logits divided by t: its samples at 1 are those at t before."""
    head = model.get_input_embeddings().weight.detach() / t
    model.lm_head.weight = torch.nn.Parameter(head)  # no longer tied to the embeddings
    model.config.tie_word_embeddings = False
    return model


def cooler(temperature=0.5, n=64, seed=7):
    """A blind sheet as those of the policies, of the SFT model at this temperature against itself
    at 1, same random numbers: what the readers see where nothing was trained at all."""
    cfg = ReinforceConfig(max_new=128, micro_batch=16, eval_prompts=n)
    _, val, tokenizer, sft, *_ = setup(cfg)
    prompts, keys = held_out_prompts(tokenizer, val, cfg)
    policy, sides = load_model(AutoModelForCausalLM, sft, cfg.device), {}
    eos = tokenizer.eos_token_id
    for name, t in (("sft", 1.0), ("sft-cooler", temperature)):
        sides[name] = answer_all(at_temperature(policy, t), prompts, keys, seed, EVAL_STEP, cfg,
                                 eos, name)
    write_blind(str(HERE / "blind/sft-cooler-s0"), tokenizer, prompts, *sides.values(),
                np.random.default_rng(seed))
    result = {"lengths": {name: [[len(a) for a in y]] for name, y in sides.items()},
              "ended": {name: [[a[-1] == eos for a in y]] for name, y in sides.items()}}
    result["scores"] = {folder: {
        name: [score(rm, prompts, y, cfg, folder).tolist()] for name, y in sides.items()}
        for folder, rm in ((f, load_reward_model(f"runs/{f}", None, cfg, tokenizer))
                           for f in ("rm1-s1", "rm2-s1"))}
    keep("blind/sft-cooler-s0", result)


def cool(temperature=0.5):
    """runs/sft-cool: the SFT model whose softmax at temperature 1 is that of the SFT model at this
    one, for --sft: a policy that starts where its samples can be read."""
    cfg = ReinforceConfig()
    *_, tokenizer, sft, _, _ = setup(cfg)
    model = at_temperature(load_model(AutoModelForCausalLM, sft, "cpu"), temperature)
    for part in (model, tokenizer):
        part.save_pretrained("runs/sft-cool")


# ----- human preferences -----

def split(*files):
    """Of each file, the dialogues with a hash in [0.25, 0.45) become runs/test-FILE, which nothing
    reads before the choice is made; the others runs/human-FILE, a part of which (hash < 0.25) is
    the validation part of reward.py."""
    for file in map(Path, files):
        lines = [x for x in file.read_text(encoding="utf-8").split("\n") if x.strip()]
        test = [0.25 <= pair.dialogue / 2**32 < 0.45 for pair in read_pairs(file)]
        for name, want in (("human", False), ("test", True)):
            rows = [line for line, is_test in zip(lines, test) if is_test == want]
            Path("runs").mkdir(exist_ok=True)
            Path(f"runs/{name}-{file.name}").write_text("\n".join(rows) + "\n", encoding="utf-8")
            print(f"runs/{name}-{file.name}: {len(rows)} pairs")


# ----- a reward model that learns nothing true -----

def shuffle(seed):
    """runs/shuffled-SEED.jsonl: the demo pairs, in half of the training ones chosen and rejected
    exchanged; the validation pairs as they are."""
    coin, rows = random.Random(int(seed)), []
    for line in open(DEMO_DATA, encoding="utf-8"):
        row = json.loads(line)
        if coin.random() < 0.5 and to_pair(row, DEMO_DATA).dialogue >= VAL_SHARE * 2**32:
            for part in ("", "_score"):
                a, b = "chosen" + part, "rejected" + part
                row[a], row[b] = row[b], row[a]
        rows.append(row)
    Path("runs").mkdir(exist_ok=True)
    Path(f"runs/shuffled-{seed}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def judge(name, rm, *files):
    """A reward model on pairs of these files: all of runs/test-*, of others the validation part;
    in the arithmetic it was trained in, but at most 1,024 tokens whatever it was trained with. Adds
    to results/NAME.json."""
    settings = json.loads((Path(rm) / "config.json").read_text(encoding="utf-8"))["settings"]
    cfg = RewardConfig(level=2, max_len=1024, rm_micro=2, precision=settings["precision"])
    path, found = HERE / f"{name}.json", {}
    tokenizer = load_tokenizer(find_sft(cfg)[0])
    model = load_reward_model(rm, None, cfg, tokenizer)
    for file in files:
        pairs = (read_pairs(file) if Path(file).name.startswith("test-")
                 else load_pairs(replace(cfg, data=(file,)))[1])
        level = 1 if model.num_labels == 1 else 2
        metrics = validate(model, encode_pairs(tokenizer, pairs, cfg, file),
                           replace(cfg, level=level))
        found[Path(file).name] = metrics
        print(rm, file, metrics)
    result = json.loads(path.read_text()) if path.exists() else {}  # others may have written
    result.setdefault(Path(rm).name, {}).update(found)
    write_whole(path, json.dumps(result, indent=1))


def main():
    name, *values = sys.argv[1:] or [""]
    parts = (controls, variance, distributions, overoptimise, onpolicy, sampled, preferred,
             compared, written, cooler, cool, shuffle, split, judge)
    todo = {part.__name__: part for part in parts}
    if name not in todo:
        raise SystemExit(__doc__)
    todo[name](*values)


if __name__ == "__main__":
    run_cli(main)
