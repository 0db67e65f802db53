"""Seeded evaluation: every policy answers the same held-out prompts with the same random numbers.

    python eval.py --policies l1=runs/demo_pairs-level1 l2=runs/demo_pairs-level2 \\
                   --rewards runs/demo_pairs-reward1 runs/demo_pairs-reward2 --seeds 0 1 2 --plot

For each policy and each reward model, the mean score, the difference to the SFT model and win / tie / loss
against it; for each policy KL, length, share of answers that end, and repetition. The SFT model is always the
first row. Scoring a policy by a reward model it was not trained on ("cross-scoring") shows whether it learnt
what people prefer or what its own reward model likes. About 5 minutes on two CPU cores.

Differences are paired: same prompt, same random numbers. The unit of resampling is the prompt; the answers of
several seeds to one prompt are averaged first, because they are not independent.

Left out, and why: a language model as judge (needs one; the scores are written down for one to use).

Shapes: S seeds, N prompts.
"""
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reinforce import (EVAL_STEP, READOUTS, answer_all, compare, read_scores, sequence_logprobs, usable_prompts)
from reward import (SFT_MODEL, InputError, check_settings, find_sft, load_pairs, load_reward_model, parse_config,
                    run_cli, score_all, setting)


@dataclass(frozen=True)
class EvalConfig:
    policies: tuple = setting((), "NAME=RUN or RUN, folders written by reinforce.py; 'sft' is always there")
    rewards: tuple = setting((), "reward model folders written by reward.py")
    seeds: tuple = setting((0,), "sampling seeds, an answer a prompt for each")
    sft: str = setting(None, f"SFT model: hub name or folder (default {SFT_MODEL})")
    data: tuple = setting((), "pairs, as for reinforce.py: their validation prompts are used")
    device: str = setting(None, "cpu, cuda, cuda:1, ... (default cuda if there is one)")
    readout: str = setting("mean", "how level-2 reward models score", tuple(READOUTS))
    risk: float = setting(0.5, "lambda of readouts variance and entropy, alpha of entropic", least=0)
    eval_prompts: int = setting(None, "held-out prompts at most", least=2)
    max_prompt: int = setting(None, "tokens; a longer prompt is skipped")
    max_new: int = setting(None, "tokens of an answer")
    micro_batch: int = setting(None, "answers a forward pass")
    rm_micro: int = setting(None, "half the texts a forward pass of a reward model")
    precision: str = setting(None, "arithmetic of the reward models", ("fp32", "fp16", "bf16"))
    out: str = setting("runs/eval", "where to write OUT.json and, with --plot, OUT.png")
    plot: bool = setting(False, "draw reward against step and sqrt(KL), and the scores' distributions")

    __post_init__ = check_settings


# ----- statistics of answers -----

def ngrams(ids, n):
    return list(zip(*(ids[i:] for i in range(n))))


def distinct(answers, n):
    """Different n-grams among all n-grams of all answers (Li et al. 2016); 1 when none comes twice."""
    grams = [g for ids in answers for g in ngrams(ids, n)]
    return len(set(grams)) / max(1, len(grams))


def repeated(answers, n=4):
    """Share of an answer's n-grams that it has said before, averaged over the answers that have any."""
    shares = [1 - len(set(g)) / len(g) for ids in answers if (g := ngrams(ids, n))]
    return float(np.mean(shares)) if shares else 0.0


def answer_statistics(answers, eos_id):
    """Length (tokens, with the end), share that end, distinct-1, distinct-2, repeated 4-grams."""
    words = [a[:-1] if a[-1] == eos_id else a for a in answers]
    return {"length": float(np.mean([len(a) for a in answers])),
            "ended": float(np.mean([a[-1] == eos_id for a in answers])),
            "distinct1": distinct(words, 1), "distinct2": distinct(words, 2), "repeated4": repeated(words)}


# ----- evaluation -----

def named_policies(cfg):
    """{name: run folder}, 'sft' first with None."""
    policies = {"sft": None}
    for item in cfg.policies:
        name, _, folder = item.rpartition("=")
        if item != "sft":
            policies[name or Path(folder).name] = folder
    for name, folder in policies.items():
        if folder is not None and not (Path(folder) / "model").is_dir():
            raise InputError(f"policy {name}: {folder}/model is not there; give a folder that reinforce.py has finished")
    return policies


def evaluate_policy(policy, reference, prompts, keys, cfg, eos_id, what):
    """({statistic: value}, answers of all seeds [S][N]); KL is the mean of log pi/pi_ref over the answers."""
    answers = [answer_all(policy, prompts, keys, seed, EVAL_STEP, cfg, eos_id, what) for seed in cfg.seeds]
    kl = torch.stack([sequence_logprobs(policy, prompts, a, cfg.micro_batch)
                      - sequence_logprobs(reference, prompts, a, cfg.micro_batch) for a in answers])  # (S, N)
    return {"kl": kl.mean().item()} | answer_statistics([a for seed in answers for a in seed], eos_id), answers


def score_policies(rm, prompts, answers, cfg, what):
    """{policy: (S, N) scores} under one reward model; `win` compares with the SFT answers' mean distribution."""
    level = 1 if rm.num_labels == 1 else 2
    logits = {name: torch.stack([score_all(rm, [p + a for p, a in zip(prompts, seed)], cfg, what) for seed in seeds])
              for name, seeds in answers.items()}                                                     # (S, N, K)
    reference = logits["sft"].softmax(-1).mean((0, 1))                                                # (K,)
    return {name: torch.stack([read_scores(z, level, cfg.readout, cfg.risk, reference) for z in seeds])
            for name, seeds in logits.items()}


def markdown(result):
    """One table: a row for each policy, columns of text statistics, then three for each reward model."""
    rms = list(result["rewards"])
    head = ["policy", "KL", "length", "ended", "distinct-1", "distinct-2", "repeated-4"]
    head += [f"{title} {rm}" for rm in rms for title in ("score", "difference to SFT [95 %]", "win/tie/loss, rate [95 %]")]
    lines = [head, ["---"] * len(head)]
    for name, s in result["policies"].items():
        row = [name, f"{s['kl']:.2f}", f"{s['length']:.1f}"] + [
            f"{s[k]:.2f}" for k in ("ended", "distinct1", "distinct2", "repeated4")]
        for rm in rms:
            c = result["rewards"][rm][name]
            row += [f"{c['aligned']:.3f}"] + (["", ""] if name == "sft" else [
                "{:+.3f} [{:+.3f}, {:+.3f}]".format(c["difference"], *c["interval"]),
                "{}/{}/{}, {:.2f} [{:.2f}, {:.2f}]".format(c["wins"], c["ties"], c["losses"], c["win_rate"],
                                                           *c["win_interval"])])
        lines.append(row)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(result, policies, path):
    """Reward against step, reward against sqrt(KL) (Gao et al. 2022), and the scores' distributions."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    rms = list(result["rewards"])
    figure, axes = plt.subplots(1, 2 + len(rms), figsize=(4 * (2 + len(rms)), 3.6), layout="constrained")
    look = {name: {"color": str(0.25 * (i % 4)), "linestyle": ("-", "--", ":", "-.")[i % 4], "label": name}
            for i, name in enumerate(policies)}
    for name, folder in policies.items():
        if folder is not None:
            log = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
            reward = [m["reward"] for m in log]
            axes[0].plot([m["step"] for m in log], reward, **look[name])
            axes[1].plot([math.sqrt(max(0.0, m["kl"])) for m in log], reward, **look[name] | {"linestyle": "", "marker":
                         "os^v"[list(policies).index(name) % 4]})
    axes[0].set(xlabel="step", ylabel="KL-shaped reward, in SFT spreads")
    axes[1].set(xlabel="sqrt(KL to SFT), nats$^{1/2}$", ylabel="KL-shaped reward, in SFT spreads")
    for axis, rm in zip(axes[2:], rms):
        pooled = {name: np.ravel(result["scores"][rm][name]) for name in policies}
        edges = np.histogram_bin_edges(np.concatenate(list(pooled.values())), 20)
        for name, scores in pooled.items():
            axis.hist(scores, edges, histtype="step", **look[name])
        axis.set(xlabel=f"score by {rm}", ylabel="held-out answers")
    for axis in axes:
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    cfg = parse_config(EvalConfig, __doc__)
    policies, seeds = named_policies(cfg), tuple(cfg.seeds)
    rms = {Path(folder).name: load_reward_model(folder, None, cfg.device) for folder in cfg.rewards}
    if not rms:
        raise InputError("no reward model is named; give --rewards FOLDER [FOLDER ...]")
    sft, sft_source = find_sft(cfg)
    _, val, source = load_pairs(cfg)
    tokenizer = AutoTokenizer.from_pretrained(sft)
    prompts, keys = (x[:cfg.eval_prompts] for x in usable_prompts(tokenizer, val, cfg, "evaluation"))
    load = lambda where: AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).to(cfg.device).eval()  # noqa: E731
    reference = load(sft)
    statistics, answers = {}, {}
    for name, folder in policies.items():
        policy = reference if folder is None else load(Path(folder) / "model")
        statistics[name], answers[name] = evaluate_policy(policy, reference, prompts, keys, cfg,
                                                          tokenizer.eos_token_id, name)
    scores = {rm: score_policies(model, prompts, answers, cfg, rm) for rm, model in rms.items()}
    result = {"settings": asdict(cfg), "sft": sft_source, "data": source, "prompts": keys, "policies": statistics,
              "rewards": {rm: {name: compare(s["sft"], s[name]) for name in policies} for rm, s in scores.items()},
              "scores": {rm: {name: x.tolist() for name, x in s.items()} for rm, s in scores.items()}}
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    Path(cfg.out + ".json").write_text(json.dumps(result))
    print(f"\n{len(prompts)} held-out prompts, seeds {', '.join(map(str, seeds))}; written to {cfg.out}.json\n")
    print(markdown(result))
    if cfg.plot:
        plot(result, policies, cfg.out + ".png")


if __name__ == "__main__":
    run_cli(main)
