"""Seeded evaluation: every policy answers the same held-out prompts with the same random numbers.

    python eval.py --policies l1=runs/demo_pairs-level1 l2=runs/demo_pairs-level2 \\
                   --rewards runs/demo_pairs-reward1 runs/demo_pairs-reward2 --seeds 0 1 2 --plot

For each policy and each reward model: the mean score, the paired difference to the SFT model, win /
tie / loss against it. For each policy: KL, perplexity under the SFT model, length, share of answers
that end, repetition. The SFT model is always the first row. Scoring a policy by a reward model it
was not trained on ("cross-scoring") shows whether it learnt what people prefer, or what its own
reward model likes. Two policies and two reward models on 64 prompts take 3 minutes a seed on two
CPU cores.

Left out, and why: a language model as judge. It needs one; OUT.json holds every score by prompt.

Shapes: S seeds, N prompts, K scores.
"""
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from reinforce import (EVAL_STEP, READOUTS, answer_all, compare, read_scores, sequence_logprobs,
                       usable_prompts)
from reward import (SFT_MODEL, InputError, check_base, check_settings, find_sft, load_pairs,
                    load_model, load_reward_model, load_tokenizer, parse_config, run_cli,
                    score_all, setting, wilson, write_whole)


@dataclass(frozen=True)
class EvalConfig:
    policies: tuple = setting((), "NAME=RUN or RUN: folders of reinforce.py; sft is always there")
    rewards: tuple = setting((), "reward model folders")
    seeds: tuple = setting((0,), "sampling seeds, an answer to each prompt for each")
    sft: str = setting(None, f"SFT model, hub name or folder (default {SFT_MODEL})")
    data: tuple = setting((), "as given to reinforce.py: its validation prompts are used")
    device: str = setting(None, "cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    readout: str = setting("mean", "how a level-2 reward model scores", tuple(READOUTS))
    risk: float = setting(0.5, "lambda of variance and entropy, alpha of entropic", least=0)
    eval_prompts: int = setting(None, "held-out prompts at most", least=2)
    max_prompt: int = setting(None, "tokens; a longer prompt is skipped")
    max_new: int = setting(None, "tokens of an answer")
    micro_batch: int = setting(None, "answers a forward pass")
    rm_micro: int = setting(None, "half the texts a forward pass of a reward model")
    precision: str = setting(None, "arithmetic of the reward model", ("fp32", "fp16", "bf16"))
    out: str = setting("runs/eval", "results go to OUT.json, pictures to OUT.png")
    plot: bool = setting(False, "draw reward against step and sqrt(KL), and the scores")
    blind: str = setting(None, "name of a policy: write OUT.blind.md, SFT against it, sides hidden")
    unblind: str = setting(None, "such a sheet with its verdicts filled in: print who won")

    __post_init__ = check_settings


# ----- statistics of answers -----

def ngrams(ids, n):
    return list(zip(*(ids[i:] for i in range(n))))


def distinct(answers, n):
    """Different n-grams among all n-grams (Li et al. 2016); 1 when none comes twice."""
    grams = [g for ids in answers for g in ngrams(ids, n)]
    return len(set(grams)) / max(1, len(grams))


def repeated(answers, n=4):
    """Share of an answer's n-grams that it has said before, averaged over the answers."""
    shares = [1 - len(set(g)) / len(g) for ids in answers if (g := ngrams(ids, n))]
    return float(np.mean(shares)) if shares else 0.0


def answer_statistics(answers, eos_id):
    """Length (tokens, with the end), share that end, distinct-1, distinct-2, repeated 4-grams."""
    words = [a[:-1] if a[-1] == eos_id else a for a in answers]
    return {"length": float(np.mean([len(a) for a in answers])),
            "ended": float(np.mean([a[-1] == eos_id for a in answers])),
            "distinct1": distinct(words, 1), "distinct2": distinct(words, 2),
            "repeated4": repeated(words)}


# ----- evaluation -----

def named_policies(cfg):
    """{name: run folder}, 'sft' first with None."""
    policies = {"sft": None}
    for item in cfg.policies:
        name, _, folder = item.rpartition("=")
        name = name or Path(folder).name
        if item == "sft":
            continue
        if name in policies:
            raise InputError(f"policy {name}: the name is taken; give another NAME=RUN")
        for file in ("verdict.json", "metrics.jsonl", "model"):
            if not (Path(folder) / file).exists():
                raise InputError(f"policy {name}: there is no {folder}/{file}; give NAME=RUN with "
                                 "a RUN that reinforce.py has finished")
        policies[name] = folder
    return policies


def evaluate_policy(policy, reference, prompts, keys, cfg, eos_id, what):
    """({statistic: value}, answers [S][N]). KL: mean of log pi/pi_ref over the answers, in nats;
    perplexity: exp of the mean -log pi_ref a token, how unlikely the SFT model finds the text."""
    answers = [answer_all(policy, prompts, keys, seed, EVAL_STEP, cfg, eos_id, what)
               for seed in cfg.seeds]
    logp, ref_logp = (torch.stack([sequence_logprobs(model, prompts, y, cfg.micro_batch)
                                   for y in answers]) for model in (policy, reference))   # (S, N)
    tokens = sum(len(a) for y in answers for a in y)
    return {"kl": (logp - ref_logp).mean().item(),
            "perplexity": math.exp(-ref_logp.sum().item() / tokens),
            **answer_statistics(sum(answers, []), eos_id)}, answers


def score_policies(rm, prompts, answers, cfg, what):
    """{policy: scores (S, N)} by one reward model. `win` compares with the SFT answers."""
    logits = {name: torch.stack([score_all(rm, [p + a for p, a in zip(prompts, y)], cfg,
                                           f"{name} by {what}") for y in seeds])
              for name, seeds in answers.items()}                                         # S, N, K
    sft_scores = logits["sft"].softmax(-1).mean((0, 1))                                   # (K,)
    return {name: torch.stack([read_scores(z, cfg.readout, cfg.risk, sft_scores) for z in seeds])
            for name, seeds in logits.items()}


# ----- blind reading -----

def write_blind(path, tokenizer, prompts, sft, aligned, rng):
    """PATH.blind.md: each prompt with both answers, N lists of ids each, in random order and on
    random sides, and a verdict to fill in; PATH.key.json: which side is the aligned policy's."""
    def quoted(ids):  # so that no answer can look like a heading or a verdict
        text = tokenizer.decode(ids, skip_special_tokens=True)  # nor tell whether it has ended
        return "".join(f"\n> {line}" for line in text.strip().splitlines())
    key, text = {}, ["# Blind reading\n\nBehind each `verdict:` write A, B or tie.\n"]
    for number, i in enumerate(rng.permutation(len(prompts)), 1):
        key[number] = "AB"[rng.integers(2)]
        sides = (aligned[i], sft[i]) if key[number] == "A" else (sft[i], aligned[i])
        parts = (("prompt", prompts[i]), *zip("AB", sides))
        text += [f"## {number}\n", *(f"{name}:\n{quoted(ids)}\n" for name, ids in parts),
                 "verdict:\n"]
    write_whole(path + ".key.json", json.dumps(key))
    write_whole(path + ".blind.md", "\n".join(text))


def read_blind(sheet, key_file):
    """A filled-in sheet -> {number: 1 if the aligned answer won, 0 for a tie, else -1}."""
    try:
        text = Path(sheet).read_text(encoding="utf-8")
        key = json.loads(Path(key_file).read_text())
        if not (isinstance(key, dict) and key and set(key.values()) <= {"A", "B"}):
            raise ValueError("the key is no table of A and B")
    except (OSError, ValueError) as error:
        raise InputError(f"{sheet} or its key cannot be read ({error}); give OUT.blind.md, with "
                         "OUT.key.json beside it")
    verdicts, number = {}, None
    for line in text.splitlines():
        if found := re.fullmatch(r"## (\d+)", line):
            number = found[1]
            if number in verdicts or number not in key:
                raise InputError(f"{sheet}: ## {number} comes twice or is not in the key; give the "
                                 "sheet as it was written, with verdicts filled in")
            verdicts[number] = None
        elif (found := re.fullmatch(r"verdict: *(A|B|tie) *", line)) and number:
            if verdicts[number]:
                raise InputError(f"{sheet}: ## {number} has two verdicts; leave one")
            verdicts[number] = found[1]
    if verdicts.keys() != key.keys() or not all(verdicts.values()):
        open_ones = [n for n in key if not verdicts.get(n)]
        raise InputError(f"{sheet}: {len(open_ones)} of {len(key)} have no verdict A, B or tie, "
                         f"such as {open_ones[:3]}; fill in all")
    return {n: (v != "tie") * (1 if v == key[n] else -1) for n, v in verdicts.items()}


def unblind(sheet):
    """A line for a filled-in sheet: how often the aligned answer won, with Wilson's interval."""
    won = [*read_blind(sheet, sheet.replace(".blind.md", ".key.json")).values()]
    n, points = len(won), won.count(1) + won.count(0) / 2
    low, high = wilson(points, n)
    return (f"{sheet}: aligned wins {won.count(1)}, ties {won.count(0)}, loses {won.count(-1)} of "
            f"{n}: win rate {points / n:.3f} [{low:.3f}, {high:.3f}]")


# ----- report -----

def markdown(result):
    """One table, a row a policy: text statistics, then three columns for each reward model."""
    head = ["policy", "KL", "perplexity", "length", "ended", "distinct-1", "distinct-2",
            "repeated-4"]
    for rm in result["rewards"]:
        head += [f"score by {rm}", "difference to SFT [95 %]", "win/tie/loss, win rate [95 %]"]
    lines = [head, ["---"] * len(head)]
    for name, s in result["policies"].items():
        row = [name, f"{s['kl']:.2f}", f"{s['perplexity']:.1f}", f"{s['length']:.1f}",
               f"{s['ended']:.2f}"]
        row += [f"{s[k]:.2f}" for k in ("distinct1", "distinct2", "repeated4")]
        for c in (policies[name] for policies in result["rewards"].values()):
            (low, high), (win_low, win_high) = c["interval"], c["win_interval"]
            row += [f"{c['aligned']:.3f}"] + (["", ""] if name == "sft" else [
                f"{c['difference']:+.3f} [{low:+.3f}, {high:+.3f}]",
                f"{c['wins']}/{c['ties']}/{c['losses']}, "
                f"{c['win_rate']:.2f} [{win_low:.2f}, {win_high:.2f}]"])
        lines.append(row)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(result, policies, path):
    """Reward against step and against sqrt(KL) (Gao et al. 2022), and the scores' distributions."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    rms, n = list(result["rewards"]), 2 + len(result["rewards"])
    figure, axes = plt.subplots(1, n, figsize=(4 * n, 3.6), layout="constrained")
    for i, (name, folder) in enumerate(policies.items()):
        look = {"color": str(0.25 * (i % 4)), "label": name}  # greys and dashes: print in any ink
        line, dot = ("-", "--", ":", "-.")[i % 4], "os^v"[i % 4]
        if folder:
            lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
            log = [m for line in lines if not (m := json.loads(line)).get("skipped")]
            reward = [m["reward"] for m in log]
            axes[0].plot([m["step"] for m in log], reward, linestyle=line, **look)
            axes[1].plot([math.sqrt(max(0, m["kl"])) for m in log], reward, dot, **look)
        for axis, rm in zip(axes[2:], rms):
            everyone = np.concatenate([np.ravel(x) for x in result["scores"][rm].values()])
            axis.hist(np.ravel(result["scores"][rm][name]), np.histogram_bin_edges(everyone, 20),
                      histtype="step", linestyle=line, **look)
            axis.set(xlabel=f"score by {rm}", ylabel="held-out answers")
    axes[0].set(xlabel="step", ylabel="KL-shaped reward, in SFT spreads")
    axes[1].set(xlabel="square root of KL to SFT", ylabel="KL-shaped reward, in SFT spreads")
    for axis in axes:
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    cfg = parse_config(EvalConfig, __doc__)
    if cfg.unblind:
        print(unblind(cfg.unblind))
        return
    policies = named_policies(cfg)
    if min(cfg.seeds) < 0 or len(set(cfg.seeds)) < len(cfg.seeds):
        raise InputError(f"seeds are {cfg.seeds}; give different numbers from 0 up")
    if cfg.blind and Path(cfg.out + ".blind.md").exists():
        raise InputError(f"{cfg.out}.blind.md is there, perhaps filled in; give another --out")
    if cfg.blind and (cfg.blind == "sft" or cfg.blind not in policies):
        raise InputError(f"blind is {cfg.blind}; name one of {[*policies][1:]}, from --policies")
    if not cfg.rewards:
        raise InputError("no reward model is named; give --rewards FOLDER [FOLDER ...]")
    if len({Path(folder).name for folder in cfg.rewards}) < len(cfg.rewards):
        raise InputError(f"rewards: two of {cfg.rewards} have the same name; rename a folder")
    _, val, source = load_pairs(cfg)
    sft, sft_source = find_sft(cfg)
    for folder in (*filter(None, policies.values()), *cfg.rewards):
        check_base(folder, sft_source)
    tokenizer = load_tokenizer(sft)
    rms = {Path(folder).name: load_reward_model(folder, None, cfg, tokenizer)
           for folder in cfg.rewards}
    prompts, keys = usable_prompts(tokenizer, val, cfg, "evaluation")
    prompts, keys = prompts[:cfg.eval_prompts], keys[:cfg.eval_prompts]
    reference, statistics, answers = load_model(AutoModelForCausalLM, sft, cfg.device), {}, {}
    for name, folder in policies.items():
        policy = load_model(AutoModelForCausalLM, Path(folder) / "model", cfg.device,
                            like=tokenizer) if folder else reference
        statistics[name], answers[name] = evaluate_policy(
            policy, reference, prompts, keys, cfg, tokenizer.eos_token_id, name)
    scores = {rm: score_policies(model, prompts, answers, cfg, rm) for rm, model in rms.items()}
    same = {name: torch.tensor([[a == b for a, b in zip(*pair)] for pair in zip(y, answers["sft"])])
            for name, y in answers.items()}                                               # (S, N)
    result = {"settings": asdict(cfg), "sft": sft_source, "data": source, "prompts": keys,
              "policies": statistics,
              "lengths": {name: [[len(a) for a in y] for y in seeds]
                          for name, seeds in answers.items()},
              "rewards": {rm: {name: compare(s["sft"], s[name], same[name]) for name in s}
                          for rm, s in scores.items()},
              "scores": {rm: {name: x.tolist() for name, x in s.items()}
                         for rm, s in scores.items()}}
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    write_whole(cfg.out + ".json", json.dumps(result))
    if cfg.blind:
        write_blind(cfg.out, tokenizer, prompts, answers["sft"][0], answers[cfg.blind][0],
                    np.random.default_rng(cfg.seeds[0]))
        print(f"blind reading: fill in {cfg.out}.blind.md, then --unblind {cfg.out}.blind.md")
    print(f"\n{len(prompts)} held-out prompts, seeds {cfg.seeds}; all scores: {cfg.out}.json\n")
    print(markdown(result))
    if cfg.plot:
        plot(result, policies, cfg.out + ".png")


if __name__ == "__main__":
    run_cli(main)
