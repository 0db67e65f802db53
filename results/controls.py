"""Controls without any training: best-of-n of the SFT model, and the SFT model asked to be brief.

    python results/controls.py          # after the parts main1 and main2 of results/run.sh

Writes results/controls.json: for each held-out prompt and each reward model, the score of the SFT
model's answer, of the best of 4 and of 16 answers (chosen by runs/rm1-s0 or runs/rm2-s0), and of an
answer to the prompt with "Answer in one short sentence." behind it, scored as an answer to the
prompt itself. KL of best-of-n: log n - (n - 1) / n nats at most (Beirami et al. 2024), 0.64 and
1.83. A reward model that chose the answer is no judge of it; the other five are.
"""
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reinforce import (EVAL_STEP, ReinforceConfig, answer_all, read_scores,  # noqa: E402
                       usable_prompts)
from reward import (encode_prompt, find_sft, frozen, load_model, load_pairs,  # noqa: E402
                    load_reward_model, load_tokenizer, run_cli, score_all, write_whole)

BRIEF, N = " Answer in one short sentence.", 16
JUDGES = [f"rm{level}-s{seed}" for level in (1, 2) for seed in range(3)]


def main():
    cfg = ReinforceConfig(micro_batch=16)
    _, val, _ = load_pairs(cfg)
    sft, _ = find_sft(cfg)
    tokenizer = load_tokenizer(sft)
    eos = tokenizer.eos_token_id
    prompts, keys = (x[:cfg.eval_prompts] for x in usable_prompts(tokenizer, val, cfg, "controls"))
    short = {p.key: encode_prompt(tokenizer, [*p.messages[:-1], p.messages[-1] | {
        "content": p.messages[-1]["content"] + BRIEF}]) for p in val}
    policy = frozen(load_model(AutoModelForCausalLM, sft, cfg.device))
    answers = {f"sft-{i}": answer_all(policy, prompts, keys, i, EVAL_STEP, cfg, eos, f"sample {i}")
               for i in range(N)}
    answers["brief"] = answer_all(policy, [short[k] for k in keys], keys, 0, EVAL_STEP, cfg, eos,
                                  "brief")
    scores = {}
    for judge in JUDGES:
        level = int(judge[2])
        rm = load_reward_model(f"runs/{judge}", level, replace(cfg, level=level), tokenizer)
        scores[judge] = {name: read_scores(
            score_all(rm, [p + a for p, a in zip(prompts, y)], cfg, f"{name} by {judge}"),
            "mean", 0, None) for name, y in answers.items()}
    lengths = {name: torch.tensor([float(len(a)) for a in y]) for name, y in answers.items()}
    sides = {}
    for selector in ("rm1-s0", "rm2-s0"):
        for n in (4, N):
            best = torch.stack([scores[selector][f"sft-{i}"] for i in range(n)]).argmax(0)

            def pick(table):
                return torch.stack([table[f"sft-{i}"] for i in range(n)]).gather(0, best[None])[0]
            sides[f"best of {n} by {selector}"] = pick
    sides |= {"sft": lambda table: table["sft-0"], "brief": lambda table: table["brief"]}
    result = {"prompts": keys, "scores": {judge: {name: pick(table).tolist()
                                                  for name, pick in sides.items()}
                                          for judge, table in scores.items()},
              "lengths": {name: pick(lengths).tolist() for name, pick in sides.items()}}
    write_whole(Path(__file__).parent / "controls.json", json.dumps(result))


if __name__ == "__main__":
    run_cli(main)
