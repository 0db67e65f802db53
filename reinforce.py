"""REINFORCE with a moving-average baseline ("Back to Basics", Ahmadian et al., arXiv 2402.14740).

    python reinforce.py --level 2

The whole answer y to a prompt x is one action. The objective is, over prompts and answers,

    E_x E_{y ~ pi(.|x)} [ R(x, y) ],
    R(x, y) = r(x, y) - beta log( pi(y|x) / pi_ref(y|x) )                      (the paper's eq. 3)
    r(x, y) = score(x, y) / unit - eos_penalty [y does not end]

where the score is the reward model's number (level 1) or a readout of its distribution (level 2),
and the unit, one SFT spread, is the standard deviation of the scores of SFT answers, measured once
before training.
Its gradient is estimated from one answer a prompt, b the moving average of past R, by the

    mean over the batch of  (R(x, y) - b) grad log pi(y|x)                               (eqs. 6-8)

and Adam follows it, its norm clipped. (The paper's b is the mean of all past R: --baseline mean.)

No gradient goes through R, though pi is in it: the term left out is -beta E[grad log pi] = 0. pi is
softmax(logits / temperature): the same one is sampled, trained and evaluated (where bfloat16 is
used, up to its rounding), and the reference pi_ref, the SFT model, has the same temperature.

The command gets the SFT model and the pairs, makes the reward model of the level if it is not there
yet, runs REINFORCE, lets the SFT model and the aligned one answer held-out prompts with the same
random numbers, and says whether the held-out score rose. The README says what to expect.

Left out, and why:
 1. Ratio, clipping, several epochs a batch (PPO, RLOOTrainer): with one update the ratio is 1.
 2. Value network, GAE: the answer is one action, and the baseline is one number.
 3. Several answers a prompt (RLOO, GRPO): a moving average makes do with one.
 4. top-k, top-p, penalties: answers come from the very distribution that is trained.
 5. Whitening of advantages: the batch mean holds the answer's own reward, which biases, and the
    unit sets the scale already.

Shapes: B prompts with one answer each, P prompt tokens, T answer tokens, K scores, V vocabulary.
"""
import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import DynamicCache

from reward import (PROCESSES, RANK, InputError, RewardConfig, answer_mean, arithmetic, bootstrap,
                    check_room, claim_folder, get_reward_model, in_batches, length_batches,
                    load_reward_model, mean_over_processes, pad_batch, run_cli, setting, start,
                    trunk_scores, wait_for_all, write_whole)

# ----- readouts: a distribution over the scores (B, K) -> a score (B,) -----

# all take p (B, K), past (K,), which only `win` uses, and risk: lambda or alpha

def scores_like(p):
    return torch.arange(1, p.shape[-1] + 1, dtype=p.dtype, device=p.device)  # (K,): 1..K


def readout_mean(p, past, risk):
    """E[S]."""
    return p @ scores_like(p)


def readout_variance(p, past, risk):
    """E[S] - lambda SD[S], the root of the variance: a lower confidence bound."""
    mean = p @ scores_like(p)
    variance = (p * (scores_like(p) - mean[:, None]) ** 2).sum(-1)
    return mean - risk * variance.sqrt()


def readout_entropy(p, past, risk):
    """E[S] - lambda H[p], H in nats: pays for a sure judgement, high or low."""
    return p @ scores_like(p) - risk * torch.special.entr(p).sum(-1)


def readout_entropic(p, past, risk):
    """-(1/alpha) log E[exp(-alpha S)], alpha > 0 (arXiv 2606.09073): risk-averse, within 1..K;
    alpha -> 0 gives E[S], alpha -> infinity the worst case."""
    return -(p.log() - risk * scores_like(p)).logsumexp(-1) / risk


def readout_win(p, past, risk):
    """P(S > S') + P(S = S') / 2, S' drawn from `past` (K,), the moving average of past answers'
    distributions. Depends on the order of the scores alone, which is all that pairs identify."""
    return p @ (past.cumsum(0) - past / 2)


READOUTS = {"mean": readout_mean, "variance": readout_variance, "entropy": readout_entropy,
            "entropic": readout_entropic, "win": readout_win}


def read_scores(logits, past, cfg):
    """A reward model's outputs (B, K) -> scores (B,): the number if K = 1, else the readout. Under
    `win` scores of different steps cannot be compared: past moves."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return READOUTS[cfg.readout](logits.softmax(-1), past, cfg.risk)


# ----- settings: these, and those of the reward model, which may have to be made first -----

@dataclass(frozen=True)
class ReinforceConfig(RewardConfig):
    out: str | None = setting(None, "run folder (default runs/DATA-levelLEVEL)")
    readout: Literal[tuple(READOUTS)] = setting("mean", "level 2: distribution -> score")
    risk: float = setting(0.5, "lambda of variance and entropy, alpha of entropic")
    temperature: float = setting(0.7, "of the policy and of the SFT model, everywhere")
    steps: int | None = setting(None, "updates")
    batch: int | None = setting(None, "prompts an update, one answer each")
    max_prompt: int | None = setting(None, "tokens; a longer prompt is left out")
    max_new: int | None = setting(None, "tokens of an answer")
    lr: float = setting(1e-5, "Adam, after a warm-up over a tenth of the steps")
    beta: float = setting(0.1, "of the KL term, in SFT score spreads per nat")
    eos_penalty: float = setting(1.0, "off an answer that does not end, in spreads")
    baseline: Literal["ema", "mean", "none"] = setting(
        "ema", "ema: moving average of past rewards, mean: average of all of them, none: 0")
    decay: float = setting(0.9, "share of its value that the ema (of win's past too) keeps a step")
    clip: float = setting(1.0, "limit of the gradient norm")
    calibration: int | None = setting(None, "SFT answers that set the unit of reward")
    eval_prompts: int | None = setting(None, "held-out prompts at most")
    save_every: int | None = setting(None, "steps between checkpoints")
    seed: int = setting(0, "of the order of prompts and of the answers")


# ----- baseline -----

def next_baseline(b, batch_mean, step, cfg):
    """b after update number `step` (0, 1, ...).

    ema: moving average of past rewards. mean: of all of them (eq. 8), step + 1 batches and, as one
    more, the first b, from the SFT samples of calibrate(). none: b as it was, 0."""
    keep = {"ema": cfg.decay, "mean": (step + 1) / (step + 2), "none": 1.0}[cfg.baseline]
    return keep * b + (1 - keep) * batch_mean


# ----- sampling and log-probs: one distribution, softmax(logits / temperature) -----

def uniforms(seed, step, keys, max_new):
    """(B, T) random numbers in [0, 1), row i a function of (seed, step, keys[i]) alone."""
    rows = [np.random.default_rng([seed, step, key]).random(max_new, np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows))


def draw(logits, uniform, temperature):
    """Tokens (B,): the inverse CDF of softmax(logits / temperature), (B, V), at uniform (B,)."""
    cdf = (logits.float() / temperature).softmax(-1).cumsum(-1)                  # (B, V)
    if cdf[:, -1].isnan().any():
        raise InputError("the model's logits are not finite; give --precision fp32 or another "
                         "--sft")
    point = uniform[:, None] * cdf[:, -1:]  # the sum may be rounded below 1
    return torch.searchsorted(cdf, point, right=True)[:, 0].clamp(max=cdf.shape[1] - 1)


@torch.no_grad()
def sample(policy, prompts, uniform, temperature, end):
    """One answer a prompt: B lists of ids, uniform (B, T) -> B lists of 1 to T ids, end included.

    Whatever else is in the batch, an answer depends on its own prompt and numbers only, up to
    rounding. Answers that have ended leave the batch now and then."""
    inputs, _ = pad_batch(prompts, [[]] * len(prompts), policy.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]                    # (B, P)
    positions = inputs["position_ids"]                                           # (B, P)
    uniform = uniform.to(policy.device)
    answers = torch.full(uniform.shape, end, device=policy.device)  # (B, T); not drawn: end
    rows = torch.arange(len(prompts), device=policy.device)  # of answers still in the batch
    cache = DynamicCache(config=policy.config)
    for t in range(uniform.shape[1]):
        logits = policy(input_ids=ids, attention_mask=mask, position_ids=positions,
                        past_key_values=cache, logits_to_keep=1).logits[:, -1]   # (rows, V)
        token = draw(logits, uniform[rows, t], temperature)
        answers[rows, t] = token
        # every 8th token, as dropping rows copies the cache; until then, rows that have ended go
        # on, and what stands behind an end is cut on return
        if t % 8 == 7:
            going = (answers[rows, :t + 1] != end).all(1).nonzero()[:, 0]
            if len(going) == 0:
                break
            if len(going) < len(rows):
                cache.batch_select_indices(going)
                rows, token, mask, positions = (x[going] for x in (rows, token, mask, positions))
        ids = token[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        positions = positions[:, -1:] + 1
    return [a[:a.index(end) + 1] if end in a else a for a in answers.tolist()]


def answer_all(policy, prompts, keys, seed, step, cfg, end):
    """An answer to each of N prompts, sampled in batches of similar length, in their order."""
    if cfg.precision == "bf16":  # half the bytes to read for each token; buffers stay float32
        policy = copy.deepcopy(policy)
        for p in policy.parameters():
            p.data = p.data.bfloat16()
    answers = [None] * len(prompts)
    for part in length_batches(prompts, [[]] * len(prompts), 4 * cfg.micro_batch):
        uniform = uniforms(seed, step, [keys[i] for i in part], cfg.max_new)
        sampled = sample(policy, [prompts[i] for i in part], uniform, cfg.temperature, end)
        for i, answer in zip(part, sampled):
            answers[i] = answer
    return answers


def pick_logprobs(logits, ids, mask, temperature):
    """log pi of answer tokens: logits (B, T + 1, V) from one place before the answer on, ids
    (B, P + T), answer mask (B, T) -> (B, T) float32, 0 behind an answer's end."""
    logp = (logits[:, :-1].float() / temperature).log_softmax(-1)                # (B, T, V)
    return logp.gather(-1, ids[:, -mask.shape[1]:, None])[:, :, 0] * mask


def token_logprobs(model, prompts, answers, temperature):
    """log pi(y_t | x, y_<t) of every answer token, (B, T) float32; 0 behind the answer's end."""
    inputs, mask = pad_batch(prompts, answers, model.device)
    output = model(**inputs, use_cache=False, logits_to_keep=mask.shape[1] + 1)
    return pick_logprobs(output.logits, inputs["input_ids"], mask, temperature)


def sequence_logprobs(model, prompts, answers, cfg):
    """log pi(y|x) of N answers, (N,) on the CPU."""
    def one_batch(p, a):
        return token_logprobs(model, p, a, cfg.temperature).sum(1)
    return in_batches(one_batch, prompts, answers, cfg.micro_batch)


def judge(rm, sft, prompts, answers, cfg, precision="fp32"):
    """N answers -> the reward model's outputs (N, K) and log pi_ref(y|x) (N,), on the CPU.

    One pass of the frozen SFT model gives both where it is the reward model's trunk too."""
    def one_batch(p, a):
        inputs, mask = pad_batch(p, a, sft.device)
        with arithmetic(cfg, precision):
            output = sft(**inputs, use_cache=False, logits_to_keep=mask.shape[1] + 1,
                         output_hidden_states=True)
            if rm.trunk == "trained":
                scores = trunk_scores(rm, p, a)                                  # (B, K)
        if rm.trunk == "frozen":  # outside, so that the head is float32
            scores = rm(answer_mean(output.hidden_states[rm.layer], mask))       # (B, K)
        logp = pick_logprobs(output.logits, inputs["input_ids"], mask, cfg.temperature)
        return torch.cat([scores, logp.sum(1, keepdim=True)], 1)                 # (B, K + 1)

    # in_batches wants one tensor
    both = in_batches(one_batch, prompts, answers, cfg.micro_batch)
    return both[:, :-1], both[:, -1]


# ----- REINFORCE -----

def policy_gradient(policy, prompts, answers, r, ref_logp, b, cfg):
    """Adds the gradient of -mean((R - b) log pi(y|x)) to the policy's .grad, by micro-batches.

    r, ref_logp: (B,), b: the baseline. Returns R(x, y) and log pi(y|x), (B,) each."""
    reward = torch.empty(len(prompts))
    logp_all = torch.empty(len(prompts))
    for part in length_batches(prompts, answers, cfg.micro_batch):
        with arithmetic(cfg, cfg.precision):
            logp = token_logprobs(policy, [prompts[i] for i in part], [answers[i] for i in part],
                                  cfg.temperature).sum(1)   # log pi(y|x), with gradient
        logp_all[part] = logp.detach().cpu()
        kl = logp_all[part] - ref_logp[part]                # its mean estimates KL(pi || pi_ref)
        reward[part] = r[part] - cfg.beta * kl              # the KL-shaped reward R(x, y)
        advantage = reward[part] - b                        # b from past batches only
        objective = (advantage.to(logp) * logp).sum() / len(prompts)
        loss = -objective                                   # the one minus sign
        loss.backward()
    return reward, logp_all


def prompt_batches(n, size, steps, seed):
    """Indices (steps, B) of each step's prompts: none twice in an epoch, each in a new order."""
    full = n // size * size  # the rest of an epoch is left out
    orders = [np.random.default_rng([seed, epoch]).permutation(n)[:full]
              for epoch in range(math.ceil(steps * size / full))]
    return np.concatenate(orders).reshape(-1, size)[:steps]


@dataclass
class State:
    """What the loop carries from step to step besides policy and optimizer."""
    unit: float                      # spread of the SFT model's scores
    sft_distribution: torch.Tensor   # (K,) mean score distribution of the SFT model's answers
    baseline: float                  # of rewards; from SFT samples, so that step 0 has one
    past_distribution: torch.Tensor  # (K,) moving average of the policy's: for `win`
    log: list                        # metrics of the updates done


def train_policy(policy, optimizer, sft, rm, prompts, keys, state, chat, cfg, done):
    """The REINFORCE loop, in place, from where state is; calls done(metrics) after each update."""
    batches = prompt_batches(len(prompts), cfg.batch, cfg.steps, cfg.seed)
    for step in range(len(state.log), cfg.steps):
        began = time.perf_counter()
        mine = batches[step][RANK::PROCESSES]  # this process's share
        x = [prompts[i] for i in mine]

        # one answer to each prompt, its score, and r in SFT spreads
        y = answer_all(policy, x, [keys[i] for i in mine], cfg.seed, step, cfg, chat.end)
        logits, ref_logp = judge(rm, sft, x, y, cfg, cfg.precision)              # (B, K), (B,)
        score = read_scores(logits, state.past_distribution, cfg)                # (B,)
        ended = torch.tensor([float(a[-1] == chat.end) for a in y])              # (B,)
        r = score / state.unit - cfg.eos_penalty * (1 - ended)                   # (B,)

        # one update
        b = state.baseline
        reward, logp = policy_gradient(policy, x, y, r, ref_logp, b, cfg)        # (B,), (B,)
        for p in policy.parameters():
            if p.grad is not None:
                mean_over_processes(p.grad)
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), cfg.clip).item()
        kl = logp - ref_logp
        length = torch.tensor([float(len(a)) for a in y])                        # in tokens
        values = {"score": score, "reward": reward, "square": reward**2, "kl": kl, "logp": logp,
                  "length": length, "ended": ended}
        means = mean_over_processes(torch.stack([*values.values()]).double().mean(1))
        m = dict(zip(values, means.tolist()))  # over the whole batch, of all processes
        if not all(math.isfinite(value) for value in (norm, *m.values())):
            raise InputError(f"step {step + 1}: gradient norm {norm}, reward {m['reward']}: not "
                             "finite; start again in another --out with a lower --lr, or with "
                             "--precision fp32 and --rm the folder of this reward model")
        optimizer.param_groups[0]["lr"] = cfg.lr * min(1, (step + 1) / max(1, cfg.steps // 10))
        optimizer.step()
        optimizer.zero_grad()

        # the averages move after their use
        state.baseline = next_baseline(b, m["reward"], step, cfg)
        distribution = mean_over_processes(logits.softmax(-1).mean(0))           # (K,)
        state.past_distribution = (cfg.decay * state.past_distribution
                                   + (1 - cfg.decay) * distribution)

        # one line and, every ten steps, one answer
        metrics = {"step": step + 1, "score": m["score"], "reward": m["reward"], "kl": m["kl"],
                   "baseline": b, "entropy": -m["logp"] / m["length"],  # an estimate
                   # R - b has the spread of R: b is one number
                   "advantage_sd": math.sqrt(max(0.0, m["square"] - m["reward"] ** 2)),
                   "length": m["length"], "ended": m["ended"], "grad_norm": norm,
                   "seconds": time.perf_counter() - began}
        shown = ("score", "reward", "kl", "length", "ended", "seconds")
        print(f"step {step + 1}/{cfg.steps}: "
              + ", ".join(f"{name} {metrics[name]:.2f}" for name in shown), flush=True)
        if step % 10 == 0:
            print(f"  {chat.tokenizer.decode(x[0] + y[0])!r}\n  score {score[0]:.2f}, "
                  f"KL {kl[0]:.2f}, reward {reward[0]:.2f}", flush=True)
        state.log.append(metrics)
        done(metrics)


# ----- before and after training -----

# what `uniforms` gets in place of a training step
CALIBRATION_STEP = 2**31  # and 2**31 + 1, for the second answers
EVAL_STEP = 2**31 + 2


def calibrate(sft, rm, prompts, keys, chat, cfg):
    """SFT answers to training prompts, two to each, give the unit of reward and the first values of
    the moving averages -> the State that training starts from."""
    n = min(max(1, cfg.calibration // 2), len(prompts))
    x = prompts[:n] * 2  # rows i and n + i: two answers to one prompt
    y = []
    for step in (CALIBRATION_STEP, CALIBRATION_STEP + 1):
        y += answer_all(sft, prompts[:n], keys[:n], cfg.seed, step, cfg, chat.end)
    logits, _ = judge(rm, sft, x, y, cfg)                                        # (2n, K)
    sft_distribution = logits.softmax(-1).mean(0)                                # (K,)
    score = read_scores(logits, sft_distribution, cfg)                           # (2n,)
    ended = torch.tensor([float(a[-1] == chat.end) for a in y])
    unit = score.std().item()  # between prompts too, as one baseline serves all of them
    within = ((score[:n] - score[n:]) ** 2 / 2).mean().sqrt().item()
    print(f"calibration: {len(x)} SFT answers score {score.mean():.3f} +- {unit:.3f} (+- "
          f"{within:.3f} among answers to one prompt); {ended.mean():.2f} of them end")
    if not unit > 1e-6:
        raise InputError("the reward model gives all SFT answers the same score: nothing to learn "
                         "from; give other --data or another --rm")
    baseline = score.mean().item() / unit - cfg.eos_penalty * (1 - ended.mean().item())
    if cfg.baseline == "none":
        baseline = 0.0
    return State(unit, sft_distribution, baseline, sft_distribution, [])


def compare(sft_scores, scores, same):
    """Paired comparison of a policy's scores with the SFT model's, (S, N): S seeds, N prompts.

    same: (S, N), the two answers are equal, a tie whatever the rounding of their scores. The prompt
    is the unit of both intervals: several answers to it are averaged first (wins and ties count all
    S N answers). They are about new prompts (several of one dialogue count as independent), for
    this policy and reward model, not about another seed of training."""
    d = (scores - sft_scores).double().masked_fill(same, 0.0)                    # (S, N)
    won = (d > 0).double() + (d == 0).double() / 2
    return {"n": d.shape[1], "sft": sft_scores.mean().item(), "aligned": scores.mean().item(),
            "difference": d.mean().item(), "interval": bootstrap(d.mean(0)),
            "wins": (d > 0).sum().item(), "ties": (d == 0).sum().item(),
            "win_rate": won.mean().item(), "win_interval": bootstrap(won.mean(0))}


def verdict_line(v):
    low, high = v["interval"]
    win_low, win_high = v["win_interval"]
    return (f"held-out score at temperature {v['temperature']:g}: SFT {v['sft']:.3f}, aligned "
            f"{v['aligned']:.3f}, difference {v['difference']:+.3f} [{low:+.3f}, {high:+.3f}] "
            f"({v['difference'] / v['unit']:+.2f} SFT spreads), win rate {v['win_rate']:.3f} "
            f"[{win_low:.3f}, {win_high:.3f}], {v['n']} prompts, KL {v['kl']:.2f} nats, mean "
            f"length {v['sft_length']:.1f} -> {v['length']:.1f} tokens, share of answers that end "
            f"{v['sft_ended']:.2f} -> {v['ended']:.2f}")


def reach_verdict(policy, sft, rm, prompts, keys, state, chat, cfg, out):
    """SFT and aligned answers to the same prompts with the same random numbers, scored in float32;
    the comparison, and samples.md: the first prompts, never chosen, with both answers."""
    scores = {}
    answers = {}
    ref_logp = {}
    for name, model in (("SFT", sft), ("aligned", policy)):
        answers[name] = answer_all(model, prompts, keys, cfg.seed, EVAL_STEP, cfg, chat.end)
        logits, ref_logp[name] = judge(rm, sft, prompts, answers[name], cfg)
        scores[name] = read_scores(logits, state.sft_distribution, cfg)
    logp = sequence_logprobs(policy, prompts, answers["aligned"], cfg)
    kl = (logp - ref_logp["aligned"]).mean().item()
    same = torch.tensor([a == b for a, b in zip(*answers.values())])
    verdict = compare(scores["SFT"][None], scores["aligned"][None], same[None])
    verdict |= {"unit": state.unit, "kl": kl, "temperature": cfg.temperature}
    for name, y in (("sft_", answers["SFT"]), ("", answers["aligned"])):
        verdict[name + "length"] = float(np.mean([len(a) for a in y]))
        verdict[name + "ended"] = float(np.mean([a[-1] == chat.end for a in y]))
    text = []
    for i, prompt in enumerate(prompts[:8]):
        text.append(f"## {i}\n\n~~~~text\n{chat.tokenizer.decode(prompt)}\n~~~~\n")
        for name, y in answers.items():
            text.append(f"{name}, score {scores[name][i]:.3f}:\n\n~~~~text\n"
                        f"{chat.tokenizer.decode(y[i])}\n~~~~\n")
    write_whole(out / "samples.md", "\n".join(text))
    return verdict


def draw_curves(log, path):
    """Reward, KL, length and share that end, by step, as a picture."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(14, 3), layout="constrained")
    for axis, name in zip(figure.subplots(1, 4), ("reward", "kl", "length", "ended")):
        axis.plot([m["step"] for m in log], [m[name] for m in log], color="0.2")
        axis.set(xlabel="step", title=name)
    figure.savefig(path, dpi=100)


def usable_prompts(chat, pairs, cfg, what, most=None):
    """(prompts as ids, keys) of the first different prompts of at most max_prompt tokens; those
    that differ in case and blanks only count as one."""
    unique = {}
    for p in pairs:
        if p.key not in unique:
            unique[p.key] = chat.prompt(p.messages, p.where)
    kept = {key: ids for key, ids in unique.items() if len(ids) <= cfg.max_prompt}
    print(f"{what}: {len(list(kept)[:most])} of {len(kept)} prompts; {len(unique) - len(kept)} "
          f"longer than max_prompt {cfg.max_prompt} left out")
    if len(kept) < 2:
        raise InputError(f"{what}: {len(kept)} prompts have at most max_prompt {cfg.max_prompt} "
                         "tokens, two are needed; raise it or give more data")
    return list(kept.values())[:most], list(kept)[:most]


def check_model(sft, chat, cfg):
    """Refuses a model with too short a context, or one whose padded, cached passes give other
    numbers than its plain ones: two answers of two tokens, drawn almost greedily."""
    check_room(sft, cfg.max_prompt + cfg.max_new, "max_prompt + max_new")
    prompts = [chat.prompt([{"role": "user", "content": text}]) for text in ("Hi", "Why is it so?")]
    answers = sample(sft, prompts, torch.full((2, 2), 0.5), 1e-3, chat.end)
    logp = token_logprobs(sft, prompts, answers, cfg.temperature)                # (2, 2)
    for i, (x, y) in enumerate(zip(prompts, answers)):
        ids = torch.tensor([x + y], device=sft.device)
        logits = sft(ids).logits[0, len(x) - 1:-1].float()                       # (T, V)
        plain = (logits / cfg.temperature).log_softmax(-1)
        plain_logp = plain[range(len(y)), y]
        error = (plain_logp - logp[i, :len(y)]).abs().max()
        if logits.argmax(-1).tolist() != y or not error <= 0.01:
            raise InputError(f"{type(sft).__name__} computes texts in a padded batch otherwise "
                             "than alone, so it cannot be used; give another --sft")


def main(cfg):
    # what the run depends on, and whether it is there already
    setup = start(cfg)
    chat, sft = setup.chat, setup.sft
    out = Path(cfg.out or f"runs/{setup.name}-level{cfg.level}")
    prompts, keys = usable_prompts(chat, setup.train, cfg, "REINFORCE")
    test_prompts, test_keys = usable_prompts(chat, setup.val, cfg, "evaluation", cfg.eval_prompts)
    if cfg.level == 1 and cfg.readout != "mean":
        raise InputError(f"readout is {cfg.readout}, but level 1 has no distribution to read; give "
                         "--level 2, or no --readout")
    if cfg.batch > len(prompts) or cfg.batch % PROCESSES:
        raise InputError(f"batch is {cfg.batch}; give at most the {len(prompts)} training prompts, "
                         f"and a multiple of the {PROCESSES} processes")
    check_model(sft, chat, cfg)
    rm_exists = cfg.rm and (Path(cfg.rm) / "metrics.json").exists()
    wait_for_all()  # all have looked
    if rm_exists:  # named and finished: used whatever --pairs and the like say
        rm = load_reward_model(cfg.rm, setup, cfg.device)
    else:
        rm = get_reward_model(cfg, setup)
    if rm.level != cfg.level:
        raise InputError(f"{cfg.rm} is of level {rm.level}, not {cfg.level}; give another --rm or "
                         "--level")
    checkpoint = out / "checkpoint.pt"
    contents = setup.contents | {"rm_digest": rm.digest}
    finished = claim_folder(out, vars(cfg), contents, "verdict.json")
    if finished:
        checkpoint.unlink(missing_ok=True)  # there if a kill came right behind the verdict
        print("finished before:", verdict_line(json.loads((out / "verdict.json").read_text())))
        return

    # policy, optimizer and averages, new or from the checkpoint
    policy = copy.deepcopy(sft)
    optimizer = torch.optim.Adam(policy.parameters(), lr=cfg.lr, fused=True)
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        policy.load_state_dict(saved["policy"])
        optimizer.load_state_dict(saved["optimizer"])
        state = State(**saved["state"])
        print(f"going on after step {len(state.log)} of {cfg.steps}")
    else:
        state = calibrate(sft, rm, prompts, keys, chat, cfg)

    def done(metrics):
        if metrics["step"] % cfg.save_every == 0 or metrics["step"] == cfg.steps:
            write_whole(out / "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in state.log))
            # no random state: every draw is a function of seed, step and prompt
            write_whole(checkpoint, {"policy": policy.state_dict(), "state": vars(state),
                                     "optimizer": optimizer.state_dict()})

    train_policy(policy, optimizer, sft, rm, prompts, keys, state, chat, cfg, done)
    verdict = reach_verdict(policy, sft, rm, test_prompts, test_keys, state, chat, cfg, out)
    if RANK == 0:
        policy.save_pretrained(out / "model")
        chat.tokenizer.save_pretrained(out / "model")
        draw_curves(state.log, out / "curves.png")
        write_whole(out / "verdict.json", json.dumps(verdict, indent=1))  # last: now it is done
        checkpoint.unlink()
    print(verdict_line(verdict))


if __name__ == "__main__":
    run_cli(main, ReinforceConfig, __doc__)
