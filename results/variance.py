"""Variance of the policy gradient under each baseline, at equal batches of SFT answers.

    python results/variance.py          # after the part main1 of results/run.sh; about 12 minutes

The gradient of a batch is G1 - b G0 with G1 = mean R grad log pi and G0 = mean grad log pi, so one
pass over a batch gives its gradient for every baseline b: 0 (none), the mean reward of SFT answers
(where `ema` and `mean` start, and what both stay near while the policy moves little), and the value
that makes the variance least. At the SFT model the KL term is 0. Prints, and writes to
results/variance.json, the trace of the covariance of a batch's gradient, and the squared norm of
the mean gradient (the signal), both estimated without bias from pairs of batches.
"""
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reinforce import (ReinforceConfig, prompt_batches, read_scores, sample,  # noqa: E402
                       sampling_copy, token_logprobs, uniforms, usable_prompts)
from reward import (find_sft, load_model, load_pairs, load_reward_model,  # noqa: E402
                    load_tokenizer, run_cli, score_all, write_whole)

BATCHES = 20


def main():
    cfg = ReinforceConfig(level=1)
    train, _, _ = load_pairs(cfg)
    sft, _ = find_sft(cfg)
    tokenizer = load_tokenizer(sft)
    eos = tokenizer.eos_token_id
    prompts, keys = usable_prompts(tokenizer, train, cfg, "variance")
    policy = load_model(AutoModelForCausalLM, sft, cfg.device)
    rm, copy, drawn = load_reward_model("runs/rm1-s0", 1, cfg, tokenizer), sampling_copy(policy), []
    for step, batch in enumerate(prompt_batches(len(prompts), cfg.batch, BATCHES, 0)):
        x, k = [prompts[i] for i in batch], [keys[i] for i in batch]
        y = sample(copy, x, uniforms(0, step, k, cfg.max_new), eos)
        raw = read_scores(score_all(rm, [p + a for p, a in zip(x, y)], cfg), "mean", 0, None)
        drawn.append((x, y, raw, torch.tensor([float(a[-1] == eos) for a in y])))
    unit = torch.cat([raw for _, _, raw, _ in drawn]).std()
    rewards = [raw / unit - cfg.eos_penalty * (1 - ended) for _, _, raw, ended in drawn]
    b = torch.cat(rewards).mean().item()
    total = {i: [torch.zeros_like(p) for p in policy.parameters()] for i in (0, 1)}
    products = torch.zeros(2, 2, dtype=torch.float64)  # mean over batches of Gi . Gj
    for (x, y, _, _), reward in zip(drawn, rewards):
        grads = {}
        for i, weight in ((0, torch.ones(len(x))), (1, reward)):
            policy.zero_grad()
            for part in (slice(j, j + cfg.micro_batch) for j in range(0, len(x), cfg.micro_batch)):
                logp = token_logprobs(policy, x[part], y[part]).sum(1)
                ((weight[part] * logp).sum() / len(x)).backward()
            grads[i] = [p.grad.clone() for p in policy.parameters()]
            for t, g in zip(total[i], grads[i]):
                t += g / BATCHES
        products += torch.tensor([[sum((p * q).sum().item() for p, q in zip(grads[i], grads[j]))
                                   for j in (0, 1)] for i in (0, 1)]) / BATCHES
        print(f"{products.tolist()}", flush=True)
    means = torch.tensor([[sum((p * q).sum().item() for p, q in zip(total[i], total[j]))
                           for j in (0, 1)] for i in (0, 1)], dtype=torch.float64)
    scatter = (products - means) * BATCHES / (BATCHES - 1)  # unbiased covariance traces
    best = (scatter[0, 1] / scatter[0, 0]).item()
    result = {"batches": BATCHES, "batch": cfg.batch, "unit": unit.item()}
    for name, value in (("none", 0.0), ("mean SFT reward", b), ("least variance", best)):
        w = torch.tensor([-value, 1.0], dtype=torch.float64)
        variance = (w @ scatter @ w).item()
        result[name] = {"b": value, "variance": variance,
                        "signal": (w @ means @ w).item() - variance / BATCHES}
        print(name, result[name])
    write_whole(Path(__file__).parent / "variance.json", json.dumps(result, indent=1))


if __name__ == "__main__":
    run_cli(main)
