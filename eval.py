r"""Seeded evaluation: every policy answers the same held-out prompts with the same random numbers.

    python eval.py --policies l1=runs/demo_pairs-level1 l2=runs/demo_pairs-level2 \
                   --rewards runs/demo_pairs-reward1 runs/demo_pairs-reward2 --seeds 0 1 2

For each policy and each reward model: the mean score, the paired difference to the SFT model, and
the share of answers that score above the SFT model's to the same prompt and seed (a tie: half). For
each policy: KL, perplexity under the SFT model, length, share of answers that end, repetition. The
SFT model is always the first row. Scores are computed in float32. Scoring a policy by a reward
model it was not trained on ("cross-scoring") hints at whether it learnt more than what its own
reward model likes; the less the two share data, the better.

Left out, and why: a language model as judge. It needs one; OUT.json holds every answer and score.

Shapes: S seeds, N prompts, K scores.
"""
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from reinforce import (EVAL_STEP, READOUTS, answer_all, compare, judge, read_scores,
                       sequence_logprobs, usable_prompts)
from reward import (InputError, check_room, complete, load_model, load_reward_model, read_config,
                    run_cli, setting, start, write_whole)


@dataclass(frozen=True)
class EvalConfig:
    policies: list[str] | None = setting(None, "NAME=RUN: finished runs; sft is always there")
    rewards: list[str] | None = setting(None, "reward model folders")
    seeds: list[int] | None = setting(None, "one answer to a prompt for each (default 0)")
    sft: str | None = setting(None, "SFT model, hub name or folder, as given to reinforce.py")
    data: list[str] | None = setting(None, "as given to reinforce.py: its validation prompts")
    split: str = setting("train", "of --data from the hub or from a folder")
    device: str | None = setting(None, "cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    precision: Literal["fp32", "bf16"] | None = setting(None, "of the weights that sample")
    micro_batch: int | None = setting(None, "texts a forward pass")
    temperature: float = setting(0.7, "of all policies, as they were trained")
    readout: Literal[tuple(READOUTS)] = setting("mean", "how a level-2 reward model scores")
    risk: float = setting(0.5, "lambda of variance and entropy, alpha of entropic")
    eval_prompts: int | None = setting(None, "held-out prompts at most")
    max_prompt: int | None = setting(None, "tokens; a longer prompt is left out")
    max_new: int | None = setting(None, "tokens of an answer")
    out: str = setting("runs/eval", "results go to OUT.json")

    __post_init__ = complete


# ----- statistics of answers -----

def distinct(answers, n):
    """Different n-grams among all n-grams (Li et al. 2016); 1 when none comes twice. Falls with the
    number of tokens: compare it between policies of like lengths."""
    grams = [tuple(ids[i:i + n]) for ids in answers for i in range(len(ids) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def repeated(answers, n=4):
    """Share of an answer's n-grams that it has said before, averaged over the answers."""
    shares = [1 - distinct([ids], n) for ids in answers if len(ids) >= n]
    return float(np.mean(shares)) if shares else 0.0


def answer_statistics(answers, end):
    """Length (tokens, with the end), share that end, distinct-1, distinct-2, repeated 4-grams."""
    words = [a[:-1] if a[-1] == end else a for a in answers]
    return {"length": float(np.mean([len(a) for a in answers])),
            "ended": float(np.mean([a[-1] == end for a in answers])),
            "distinct1": distinct(words, 1), "distinct2": distinct(words, 2),
            "repeated4": repeated(words)}


# ----- evaluation -----

def named_policies(cfg, contents):
    """{name: run folder}, 'sft' first with None; each was made from the same SFT model."""
    policies = {"sft": None}
    for item in cfg.policies or []:
        name, _, folder = item.partition("=")
        run = Path(folder)
        if not name or not folder or name in policies or not (run / "verdict.json").exists():
            raise InputError(f"policy {item!r}: give NAME=RUN, each NAME once (not sft), and RUN "
                             "a folder that reinforce.py has finished")
        made = read_config(run, contents)
        here = {"data_digest": contents["data_digest"], "temperature": cfg.temperature,
                "max_prompt": cfg.max_prompt, "max_new": cfg.max_new}
        for part, value in here.items():
            if made[part] != value:
                raise InputError(f"policy {name} was made with {part} {made[part]}, here it is "
                                 f"{value}; give --{part.removesuffix('_digest')} as it was")
        policies[name] = run
    return policies


def evaluate_policy(policy, sft, prompts, keys, end, cfg):
    """({statistic: value}, answers [S][N]). KL: mean of log pi/pi_ref over the answers, in nats;
    perplexity: exp of the mean -log pi_ref a token (at the temperature): how unlikely the SFT
    model finds the text."""
    answers = [answer_all(policy, prompts, keys, seed, EVAL_STEP, cfg, end) for seed in cfg.seeds]
    texts = sum(answers, [])
    logp = sequence_logprobs(policy, prompts * len(cfg.seeds), texts, cfg)       # (S N,)
    ref_logp = sequence_logprobs(sft, prompts * len(cfg.seeds), texts, cfg)
    tokens = sum(len(a) for a in texts)
    return {"kl": (logp - ref_logp).mean().item(),
            "perplexity": math.exp(-ref_logp.sum().item() / tokens),
            **answer_statistics(texts, end)}, answers


def score_policies(rm, sft, prompts, answers, cfg):
    """{policy: scores (S, N)} by one reward model; `win` compares with these SFT answers."""
    logits = {}
    for name, by_seed in answers.items():
        logits[name], _ = judge(rm, sft, prompts * len(by_seed), sum(by_seed, []), cfg)  # (S N, K)
    sft_distribution = logits["sft"].softmax(-1).mean(0)                         # (K,)
    return {name: read_scores(z, sft_distribution, cfg).view(-1, len(prompts))
            for name, z in logits.items()}


def markdown(result):
    """One table, a row a policy: text statistics, then three columns for each reward model."""
    head = ["policy", "KL", "perplexity", "length", "ended", "distinct-1", "distinct-2",
            "repeated-4"]
    for rm in result["rewards"]:
        head += [f"score by {rm}", "difference to SFT [95 %]", "win rate [95 %]"]
    lines = [head, ["---"] * len(head)]
    for name, s in result["policies"].items():
        line = [name, f"{s['kl']:.2f}", f"{s['perplexity']:.1f}", f"{s['length']:.1f}",
                f"{s['ended']:.2f}"]
        line += [f"{s[k]:.2f}" for k in ("distinct1", "distinct2", "repeated4")]
        for policies in result["rewards"].values():
            c = policies[name]
            line.append(f"{c['aligned']:.3f}")
            if name == "sft":
                line += ["", ""]
                continue
            line.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(c["difference"], *c["interval"]))
            line.append("{:.2f} [{:.2f}, {:.2f}]".format(c["win_rate"], *c["win_interval"]))
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(cfg):
    cfg = replace(cfg, seeds=cfg.seeds or [0])
    if min(cfg.seeds) < 0:
        raise InputError(f"seeds are {cfg.seeds}; give numbers from 0 on")
    names = {Path(folder).name for folder in cfg.rewards or []}
    if not names or len(names) < len(cfg.rewards):
        raise InputError(f"rewards are {cfg.rewards}; give --rewards FOLDER ... of different names")
    setup = start(cfg)
    chat = setup.chat
    sft = setup.sft
    check_room(sft, cfg.max_prompt + cfg.max_new, "max_prompt + max_new")
    policies = named_policies(cfg, setup.contents)
    rms = {Path(path).name: load_reward_model(path, setup, cfg.device) for path in cfg.rewards}
    prompts, keys = usable_prompts(chat, setup.val, cfg, "evaluation", cfg.eval_prompts)
    result = {"temperature": cfg.temperature, "seeds": cfg.seeds, "prompts": keys, "policies": {},
              "rewards": {}, "scores": {}, "answers": {}}
    answers = {}
    same = {}
    for name, run in policies.items():  # sft is the first one
        policy = load_model(AutoModelForCausalLM, run / "model", cfg.device) if run else sft
        result["policies"][name], y = evaluate_policy(policy, sft, prompts, keys, chat.end, cfg)
        result["answers"][name] = [chat.tokenizer.batch_decode(one_seed) for one_seed in y]
        answers[name] = y
        same[name] = torch.tensor([[a == b for a, b in zip(ours, sfts)]
                                   for ours, sfts in zip(y, answers["sft"])])           # (S, N)
    for rm_name, rm in rms.items():
        scores = score_policies(rm, sft, prompts, answers, cfg)
        result["rewards"][rm_name] = {name: compare(scores["sft"], x, same[name])
                                      for name, x in scores.items()}
        result["scores"][rm_name] = {name: x.tolist() for name, x in scores.items()}
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    write_whole(cfg.out + ".json", json.dumps(result))
    print(f"\n{len(prompts)} held-out prompts, seeds {cfg.seeds}, temperature {cfg.temperature:g}; "
          f"all answers and scores: {cfg.out}.json\n\n{markdown(result)}")


if __name__ == "__main__":
    run_cli(main, EvalConfig, __doc__)
