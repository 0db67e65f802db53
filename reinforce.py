"""REINFORCE with a moving-average baseline ("Back to Basics", Ahmadian et al., arXiv 2402.14740).

    python reinforce.py --level 2

The whole answer y to a prompt x is one action. With r the reward model's score, the objective is

    E_{y ~ pi(.|x)} [ R(x, y) ],   R(x, y) = r(x, y) - beta log( pi(y|x) / pi_ref(y|x) )   (eq. 3)

and its gradient, from one answer a prompt and one update a batch, b the moving average of past R,

    mean over the batch of  (R(x, y) - b) grad log pi(y|x)                               (eqs. 6-8)

r is in units of the SFT model's own spread. If a prompt's scores were normal with that spread, the
best policy would gain 1/beta of them at 1/(2 beta^2) nats: 5.6 at 0.3, as in the paper's fig. 5.

The command gets the SFT model and the pairs, trains the reward model of the level if it is not
there yet, samples the SFT model on held-out prompts, runs REINFORCE, samples the aligned model on
the same prompts with the same random numbers, and answers: did the held-out reward rise? On the
bundled data that takes about 10 minutes on two CPU cores; the README says what to expect.

Left out, and why:
 1. Ratio, clipping, several epochs a batch (PPO, RLOOTrainer): with one update the ratio is 1.
 2. Value network, GAE: the answer is one action, and the baseline is one number.
 3. Several answers a prompt (RLOO, GRPO): the moving average needs one.
 4. top-k, top-p, temperature, penalties: answers come from the very distribution that is trained.
 5. Whitening of advantages: it rescales the gradient by a number that depends on the batch.

Shapes: B prompts with one answer each, P prompt tokens, T answer tokens, L all tokens, K scores,
V vocabulary, D hidden width.
"""
import copy
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from reward import (SKIP_LIMIT, InputError, RewardConfig, claim_folder, encode_prompt, find_sft,
                    from_first, frozen, get_reward_model, lay_out, load_checkpoint, load_model,
                    load_pairs, load_tokenizer, pack_linears, parse_config, process, run_cli,
                    run_folder, run_layout, save_checkpoint, save_model, score_all, setting, share,
                    sum_gradients, text_states, together, whole_steps, wilson, within_memory,
                    write_whole)

# ----- readouts: a distribution of scores (B, K) -> a reward (B,) -----

def scores_like(p):
    return torch.arange(1, p.shape[-1] + 1, dtype=p.dtype, device=p.device)  # (K,): 1..K


def readout_mean(p, reference=None, risk=None):
    """E[S]."""
    return p @ scores_like(p)


def readout_variance(p, reference=None, risk=0.5):
    """E[S] - lambda SD[S]: a lower confidence bound."""
    mean = readout_mean(p)
    return mean - risk * (p * (scores_like(p) - mean[:, None]) ** 2).sum(-1).sqrt()


def readout_entropy(p, reference=None, risk=0.5):
    """E[S] - lambda H[p], H in nats: pays for a sure judgement, high or low."""
    return readout_mean(p) - risk * torch.special.entr(p).sum(-1)


def readout_entropic(p, reference=None, risk=0.5):
    """-(1/alpha) log E[exp(-alpha S)] (arXiv 2606.09073): risk-averse, within 1..K; alpha -> 0
    gives E[S], alpha -> infinity the worst case."""
    return -(p.log() - risk * scores_like(p)).logsumexp(-1) / risk if risk else readout_mean(p)


def readout_win(p, reference, risk=None):
    """P(S > B) + P(S = B) / 2, B drawn from `reference` (K,), the moving average of past answers'
    distributions. Depends on the order of the scores alone, which is all that pairs identify."""
    return p @ (reference.cumsum(0) - reference / 2)


READOUTS = {"mean": readout_mean, "variance": readout_variance, "entropy": readout_entropy,
            "entropic": readout_entropic, "win": readout_win}


def read_scores(logits, readout, risk, reference):
    """A reward model's outputs (B, K) -> scores (B,): the number if K = 1, else the readout."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return READOUTS[readout](logits.softmax(-1), reference, risk)


# ----- settings: these, and those of the reward model, which may have to be trained first -----

@dataclass(frozen=True)
class ReinforceConfig(RewardConfig):
    out: str = setting(None, "run folder (default runs/DATA-levelLEVEL)")
    readout: str = setting("mean", "level 2: distribution of scores -> reward", tuple(READOUTS))
    risk: float = setting(0.5, "lambda of variance and entropy, alpha of entropic", least=0)
    steps: int = setting(None, "updates")
    batch: int = setting(None, "prompts an update, one answer each")
    micro_batch: int = setting(None, "answers a forward pass: less memory, the same gradient")
    max_prompt: int = setting(None, "tokens; a longer prompt is skipped")
    max_new: int = setting(None, "tokens of an answer")
    lr: float = setting(None, "Adam, after a warm-up over a tenth of the steps", least=0)
    beta: float = setting(0.3, "of the KL term, in SFT score spreads per nat", least=0)
    eos_penalty: float = setting(1.0, "off an answer that does not end, in spreads", least=0)
    baseline: str = setting("ema", "of past rewards: moving, all, 0", ("ema", "mean", "none"))
    decay: float = setting(0.9, "share of its value that the ema keeps a step", least=0, most=1)
    clip: float = setting(1.0, "limit of the gradient norm", least=1e-6)
    calibration: int = setting(None, "SFT answers that set the unit of reward", least=2)
    eval_prompts: int = setting(None, "held-out prompts at most", least=2)
    seed: int = setting(0, "of the order of prompts and of the answers", least=0)


# ----- baseline -----

@dataclass
class Baseline:
    """Moving average b of past values (numbers or vectors), to be used before it is updated.

    ema: b <- decay b + (1 - decay) batch mean; mean: the average of all batches so far (eq. 8),
    the starting value counting as one; none: 0."""
    kind: str
    value: object   # from SFT samples, so that not even the first step is without
    decay: float
    count: int = 1  # batches averaged

    def __post_init__(self):
        self.value = 0.0 if self.kind == "none" else self.value

    def update(self, batch_mean):
        self.count += 1
        keep = {"ema": self.decay, "mean": 1 - 1 / self.count, "none": 1.0}[self.kind]
        if self.kind != "none":
            self.value = keep * self.value + (1 - keep) * batch_mean


# ----- sampling and log-probs -----

def uniforms(seed, step, keys, max_new):
    """(B, T) random numbers in [0, 1), row i a function of (seed, step, keys[i]) alone."""
    rows = [np.random.default_rng([seed, step, key]).random(max_new, np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows))


def sampling_copy(policy):
    """The policy as `sample` runs it: its present weights, packed on the CPU, float16 on a GPU."""
    if policy.device.type == "cpu":  # only the packed weights are new, the rest is shared
        return pack_linears(copy.deepcopy(policy, {id(p): p for p in policy.parameters()}))
    return copy.deepcopy(policy).to(torch.float16)


class StaticCache:
    """Keys and values of B texts, allocated once; the attention layers call update."""

    def __init__(self, where, filled, size):
        self.where, self.filled, self.size, self.kv = where, filled, size, {}

    def update(self, key, value, layer, *_, **__):
        """First call: the prompts as laid out, each copied to end at slot `filled`. Later: a token
        of every text (B, H, 1, d), written to slot self.now (1,); returns the first self.end."""
        if layer not in self.kv:
            self.kv[layer] = tuple(key.new_zeros(len(self.where), key.shape[1], self.size,
                                                 key.shape[3]) for _ in range(2))
            for held, new in zip(self.kv[layer], (key, value)):
                new = new.transpose(0, 1).flatten(1, 2)                           # (H, tokens, d)
                for i, places in enumerate(self.where):
                    held[i, :, self.filled - len(places):self.filled] = new[:, places]
            return key, value
        for held, new in zip(self.kv[layer], (key, value)):
            held.index_copy_(2, self.now, new)
        return tuple(held[:, :, :self.end] for held in self.kv[layer])

    def keep(self, rows):
        self.kv = {layer: (k[rows], v[rows]) for layer, (k, v) in self.kv.items()}


def captured(step):
    """Records the kernels of step() as a CUDA graph: one launch instead of hundreds, no Python."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # once outside the graph, for what libraries set up at their first call
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        logits = step()
    return lambda: graph.replay() or logits


@torch.no_grad()
def sample(policy, prompts, uniform, eos_id):
    """One answer a prompt, drawn at temperature 1 from the full softmax with a static KV cache.

    policy: a sampling_copy; prompts: B lists of ids; uniform: (B, T) -> B lists of at most T ids,
    eos included. Token t is the inverse CDF of the softmax at uniform[:, t]: whatever else is in
    the batch, an answer depends on its own prompt and numbers only, up to rounding."""
    device, graph = policy.device, policy.device.type == "cuda"
    B, P, T = len(prompts), max(map(len, prompts)), uniform.shape[1]
    inputs, where = lay_out(prompts, device)
    cache = StaticCache([w.to(device) for w in where], P, P + T)  # all prompts end at slot P
    states = run_layout(policy, inputs, past_key_values=cache)                    # (tokens, D)
    logits = policy.lm_head(states[torch.stack([w[-1] for w in where])])          # (B, V)
    rows, first = torch.tensor([(i, P - len(p)) for i, p in enumerate(prompts)]).to(device).T
    slot, uniform = torch.arange(P + T, device=device), uniform.to(device)
    ids, now = torch.zeros(B, 1, dtype=torch.long, device=device), slot[P:P + 1].clone()

    def step():
        """ids (rows, 1), the tokens for slot `now` -> logits (rows, V) after them."""
        cache.now, cache.end = now, P + T if graph else P + t + 1
        seen = (slot[:cache.end] <= now) & (slot[:cache.end] >= first[:, None])   # (rows, end)
        return policy(input_ids=ids, attention_mask=seen[:, None, None], past_key_values=cache,
                      position_ids=(now - first)[:, None], use_cache=True).logits[:, -1]

    step = captured(step) if graph else step
    answers = torch.full(uniform.shape, eos_id, device=device)                    # (B, T)
    for t in range(T):
        cdf = logits.float().softmax(-1).cumsum(-1)                               # (rows, V)
        u = uniform[rows, t, None] * cdf[:, -1:]                                  # rounding: < 1
        ids.copy_(torch.searchsorted(cdf, u, right=True).clamp(max=cdf.shape[1] - 1))
        answers[rows, t] = ids[:, 0]
        if t % 8 == 7:  # now and then, look which rows go on
            if not cdf[:, -1].isfinite().all():
                raise InputError("the policy's logits are not finite; on a GPU, where float16 may "
                                 "have overflowed, give --device cpu")
            going = (answers[rows, :t + 1] != eos_id).all(1)
            if not going.any():
                break
            if not graph and not going.all():  # a graph keeps its shapes
                rows, ids, first = rows[going], ids[going], first[going]
                cache.keep(going)
        if t + 1 < T:
            logits = step()
            now += 1
    return [a[:a.index(eos_id) + 1] if eos_id in a else a for a in answers.tolist()]


HEAD_ROWS = 1024  # tokens at a time through the head: V numbers each, 0.2 GB in all


def head_logprobs(head, hidden, target):
    """log softmax(head(hidden))[target], (n, D), (n,) -> (n,) float32; chunks are computed again
    in the backward pass, so that memory holds the (n, V) logits of one chunk only."""
    if len(target) <= HEAD_ROWS:
        return -F.cross_entropy(head(hidden).float(), target, reduction="none")
    chunks = zip(hidden.split(HEAD_ROWS), target.split(HEAD_ROWS))
    return torch.cat([checkpoint(head_logprobs, head, *c, use_reentrant=False) for c in chunks])


def token_logprobs(model, prompts, answers):
    """log pi(y_t | x, y_<t) of every answer token, (B, T) float32; 0 after the answer's end.

    An answer's last token goes in nowhere: it predicts nothing. The head sees answers only."""
    T = torch.tensor([len(a) for a in answers])
    states, where = text_states(model, [p + a[:-1] for p, a in zip(prompts, answers)])
    before = torch.cat([w[len(p) - 1:] for w, p in zip(where, prompts)])         # (answer tokens,)
    target = torch.tensor(sum(answers, []), device=model.device)                 # in that order
    flat = head_logprobs(model.lm_head, states[before], target)
    mask = (torch.arange(int(T.max())) < T[:, None]).to(flat.device)             # (B, T)
    return torch.zeros(mask.shape).to(flat).masked_scatter(mask, flat)


@torch.no_grad()
def sequence_logprobs(model, prompts, answers, size):
    """log pi(y|x) of whole answers, (N,) on the CPU, without gradient."""
    parts = [slice(i, i + size) for i in range(0, len(prompts), size)]
    return torch.cat([token_logprobs(model, prompts[p], answers[p]).sum(1).cpu() for p in parts])


# ----- REINFORCE -----

def policy_gradient(policy, prompts, answers, score, ref_logp, b, cfg):
    """Adds the gradient of -mean((R - b) log pi(y|x)) to the policy's .grad, by micro-batches.

    score, ref_logp: (B,); b: the baseline. Returns R(x, y) and log pi(y|x), (B,) each."""
    B, reward, logp_all = len(prompts), torch.empty(len(prompts)), torch.empty(len(prompts))
    order = sorted(range(B), key=lambda i: len(prompts[i]) + len(answers[i]))  # little padding
    for i in range(0, B, cfg.micro_batch):
        part = order[i:i + cfg.micro_batch]
        x, y = [prompts[j] for j in part], [answers[j] for j in part]
        logp = token_logprobs(policy, x, y).sum(1)       # log pi(y|x), with gradient
        logp_all[part] = logp.detach().cpu()
        kl = logp_all[part] - ref_logp[part]             # its mean estimates KL(pi || pi_ref)
        reward[part] = score[part] - cfg.beta * kl       # the KL-shaped reward R(x, y)
        advantage = reward[part] - b
        objective = (advantage.to(logp) * logp).sum() / B
        loss = -objective                                # the one minus sign
        loss.backward()
    return reward, logp_all


def prompt_batches(n, size, steps, seed):
    """Indices (steps, B) of each step's prompts: none twice in an epoch, each in a new order."""
    if size > n:
        raise InputError(f"batch is {size}, but there are {n} training prompts; lower it")
    full = n // size * size  # the rest of an epoch is left out
    orders = [np.random.default_rng([seed, epoch]).permutation(n)[:full]
              for epoch in range(-(-steps * size // full))]
    return np.concatenate(orders).reshape(-1, size)[:steps]


KL_LIMIT = 10.0  # nats; beyond, an answer is over e^10 times as likely as under the SFT model


def warnings_of(m):
    """What is wrong with a step's metrics, in words; a run can look healthy and learn nothing."""
    return [text for wrong, text in (
        (m["grad_norm"] == 0, "the gradient is 0: nothing is learnt"),
        (m["advantage_sd"] < 1e-6, "all answers have the same reward: nothing to learn from"),
        (m["kl"] > KL_LIMIT, f"KL is over {KL_LIMIT:.0f} nats: the answers have left what the "
                             "reward model knows; raise --beta, lower --lr or --steps"),
        (m["ended"] < 0.1, "fewer than a tenth of the answers end: their scores are those of "
                           "unfinished texts; raise --max_new")) if wrong]


def note_step(metrics, state, log):
    """Logs a step, null for what is not finite; warns, of each thing once; ends the run after
    SKIP_LIMIT skipped steps in a row."""
    step, skipped = metrics["step"], metrics["skipped"]
    log({k: None if isinstance(v, float) and not math.isfinite(v) else v
         for k, v in metrics.items()})
    for text in ["skipped, a number is not finite"] * skipped + warnings_of(metrics):
        if text not in state["warned"] or skipped:
            tqdm.write(f"warning: step {step}: {text}", file=sys.stderr)
            state["warned"].append(text)
    state["skipped"] = state["skipped"] + 1 if skipped else 0
    if state["skipped"] == SKIP_LIMIT:
        raise InputError(f"step {step}: {SKIP_LIMIT} steps in a row with numbers that are not "
                         f"finite (gradient norm {metrics['grad_norm']}, mean score "
                         f"{metrics['score']}); lower --lr or train another --rm")


def fresh_state(cfg, unit, first_reward, first_scores):
    """What the loop carries from step to step, besides policy and optimizer; plain JSON.

    unit: spread of SFT scores; first_reward, first_scores (K,): mean reward and mean distribution
    of SFT answers, where the moving averages start."""
    return {"step": 0, "skipped": 0, "unit": unit, "warned": [],
            "baseline": asdict(Baseline(cfg.baseline, first_reward, cfg.decay)),
            "past_scores": asdict(Baseline("ema", first_scores, cfg.decay))}


def train_policy(policy, optimizer, reference, rm, prompts, keys, cfg, eos_id, state, log,
                 save=lambda: None):
    """The REINFORCE loop, in place, from state["step"] on; calls log(metrics) after each step and
    save() every cfg.save_every. Of several processes, each samples and scores its share of a
    step's prompts; the numbers and the gradient are put together."""
    baseline = Baseline(**state["baseline"])
    past_scores = Baseline(**state["past_scores"])  # of distributions: what `win` compares with
    past_scores.value = torch.tensor(past_scores.value)
    batches = prompt_batches(len(prompts), cfg.batch, cfg.steps, cfg.seed)
    micro, rm_micro = cfg.micro_batch, cfg.rm_micro
    bar = tqdm(total=cfg.steps, initial=state["step"], desc="REINFORCE", unit="step")
    with whole_steps() as stopped:
        for step in range(state["step"], cfg.steps):
            began, batch = time.perf_counter(), batches[step]
            optimizer.param_groups[0]["lr"] = cfg.lr * min(1, (step + 1) / max(1, cfg.steps // 10))
            x, k = [prompts[i] for i in share(batch)], [keys[i] for i in share(batch)]
            y = sample(sampling_copy(policy), x, uniforms(cfg.seed, step, k, cfg.max_new), eos_id)
            texts = [p + a for p, a in zip(x, y)]
            logits, rm_micro = within_memory(
                lambda n: score_all(rm, texts, replace(cfg, rm_micro=n)), rm_micro)  # (B, K)
            raw = read_scores(logits, cfg.readout, cfg.risk, past_scores.value)      # (B,)
            ended = torch.tensor([float(a[-1] == eos_id) for a in y])                # (B,)
            score = raw / state["unit"] - cfg.eos_penalty * (1 - ended)              # (B,)
            ref_logp, micro = within_memory(
                lambda n: sequence_logprobs(reference, x, y, n), micro)              # (B,)
            (reward, logp), micro = within_memory(
                lambda n: policy_gradient(policy, x, y, score, ref_logp, baseline.value,
                                          replace(cfg, micro_batch=n)),
                micro, optimizer.zero_grad)
            sum_gradients(policy, len(x) / len(batch))
            length = torch.tensor([float(len(a)) for a in y])                        # in tokens
            raw, logits, ended, length, reward, logp, ref_logp = map(
                together, (raw, logits, ended, length, reward, logp, ref_logp))      # of all
            grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), cfg.clip).item()
            finite = reward.isfinite() & logp.isfinite()  # reward holds score, logp and ref_logp
            skip = not (finite.all() and math.isfinite(grad_norm))
            kl, tokens = (logp - ref_logp).mean().item(), length.sum().item()
            metrics = {
                "step": step, "score": raw.mean().item(), "reward": reward.mean().item(), "kl": kl,
                "baseline": baseline.value, "advantage_sd": reward.std(correction=0).item(),
                "entropy": -logp.sum().item() / tokens, "length": length.mean().item(),
                "ended": ended.mean().item(), "grad_norm": grad_norm, "skipped": int(skip),
                "tokens_per_second": tokens / (time.perf_counter() - began)}
            if skip:  # nothing that is not finite reaches the weights or the averages
                metrics["prompts"] = [keys[i] for i, ok in zip(batch, finite) if not ok]
            else:
                optimizer.step()
                baseline.update(reward.mean().item())                                # after its use
                past_scores.update(logits.softmax(-1).mean(0))
            optimizer.zero_grad()
            note_step(metrics, state, log)
            state |= {"step": step + 1, "baseline": asdict(baseline), "past_scores": asdict(
                replace(past_scores, value=past_scores.value.tolist()))}
            bar.set_postfix(score=f"{raw.mean():.2f}", kl=f"{kl:.2f}", ended=f"{ended.mean():.2f}")
            bar.update()
            stop = stopped()
            if stop or (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
                save()
            if stop or stopped():  # it may have come while saving
                raise KeyboardInterrupt(f"after step {step + 1} of {cfg.steps}, saved; the same "
                                        "command goes on")


# ----- held-out comparison -----

EVAL_STEP, CALIBRATION_STEP = 2**31, 2**31 + 1  # for `uniforms`, where no training step comes


def answer_all(policy, prompts, keys, seed, step, cfg, eos_id, what):
    """An answer to each of N prompts, sampled in batches of similar length, in their order."""
    policy, answers, size = sampling_copy(policy), [None] * len(prompts), 4 * cfg.micro_batch
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for i in tqdm(range(0, len(order), size), desc=what, unit="batch", leave=False):
        part = order[i:i + size]
        drawn = uniforms(seed, step, [keys[j] for j in part], cfg.max_new)
        for j, answer in zip(part, sample(policy, [prompts[j] for j in part], drawn, eos_id)):
            answers[j] = answer
    return answers


def bootstrap(values, draws=10_000, seed=0):
    """95 % percentile interval of the mean of (N,) values, resampled with replacement."""
    values = np.asarray(values, dtype=float)
    index = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    return np.quantile(values[index].mean(1), [0.025, 0.975]).tolist()


def compare(sft, aligned, same):
    """Paired comparison of scores (S, N): S seeds, N prompts, the same in both; plain numbers.

    same: (S, N), the two answers are equal, a tie whatever the rounding of their scores. The prompt
    is the unit of both intervals: several answers to it are averaged first."""
    d, n = (aligned - sft).double().masked_fill(same, 0.0), sft.shape[1]
    wins, ties, losses = (int(x.sum()) for x in (d > 0, d == 0, d < 0))
    rate = (wins + ties / 2) / d.numel()
    return {"n": n, "sft": sft.mean().item(), "aligned": aligned.mean().item(),
            "difference": d.mean().item(), "interval": bootstrap(d.mean(0)), "wins": wins,
            "ties": ties, "losses": losses, "win_rate": rate, "win_interval": wilson(rate * n, n)}


def verdict_line(v):
    low, high = v["interval"]
    return (f"held-out reward: SFT {v['sft']:.3f}, aligned {v['aligned']:.3f}, "
            f"difference {v['difference']:+.3f} [{low:+.3f}, {high:+.3f}] "
            f"({v['difference'] / v['unit']:+.2f} SFT spreads), win rate {v['win_rate']:.3f} "
            f"[{v['win_interval'][0]:.3f}, {v['win_interval'][1]:.3f}], {v['n']} prompts, "
            f"KL {v['kl']:.2f} nats, mean length {v['sft_length']:.1f} -> {v['length']:.1f} tokens,"
            f" share of answers that end {v['sft_ended']:.2f} -> {v['ended']:.2f}")


def write_samples(path, tokenizer, prompts, sides, count=8):
    """The first `count` held-out prompts, never chosen, with each side's answer and its score."""
    with open(path, "w", encoding="utf-8") as file:
        for i, prompt in enumerate(prompts[:count]):
            print(f"## {i}\n\n~~~~text\n{tokenizer.decode(prompt)}\n~~~~\n", file=file)
            for name, (answers, scores) in sides.items():
                print(f"{name}, score {scores[i]:.3f}:\n\n~~~~text\n"
                      f"{tokenizer.decode(answers[i])}\n~~~~\n", file=file)


def usable_prompts(tokenizer, pairs, cfg, what):
    """(prompts as ids, keys), without duplicates and those over max_prompt, both counted."""
    unique = {p.key: encode_prompt(tokenizer, p.messages) for p in pairs}
    kept = {key: ids for key, ids in unique.items() if len(ids) <= cfg.max_prompt}
    print(f"{what}: {len(kept)} prompts; left out: {len(pairs) - len(unique)} duplicates, "
          f"{len(unique) - len(kept)} longer than max_prompt {cfg.max_prompt}")
    if len(kept) < 2:
        raise InputError(f"{what}: {len(kept)} prompts have at most max_prompt {cfg.max_prompt} "
                         "tokens, two are needed; raise it or give more data")
    return list(kept.values()), list(kept)


def calibrate(answer_and_score, prompts, keys, cfg, eos_id, rm_folder):
    """SFT answers to training prompts, two to each, give the unit of reward and the first values
    of the moving averages -> the state that training starts from."""
    n = min(cfg.calibration // 2, len(prompts))
    drawn = [answer_and_score(prompts[:n], keys[:n], CALIBRATION_STEP + i, "calibration")
             for i in range(2)]
    logits = torch.cat([z for _, z in drawn])                                    # (2n, K)
    sft_scores = logits.softmax(-1).mean(0)                                      # (K,)
    raw = read_scores(logits, cfg.readout, cfg.risk, sft_scores)                 # (2n,)
    ended = torch.tensor([a[-1] == eos_id for y, _ in drawn for a in y])
    unit, within = raw.std().item(), ((raw[:n] - raw[n:]) ** 2 / 2).mean().sqrt().item()
    if not unit > 1e-6:
        raise InputError(f"the reward model {rm_folder} gives all SFT answers the score "
                         f"{raw[0]:.4f}: nothing to learn from; train another")
    print(f"calibration: {len(raw)} SFT answers score {raw.mean():.3f} +- {unit:.3f} (+- "
          f"{within:.3f} among answers to one prompt); the {ended.sum()} that end "
          f"{raw[ended].mean():.3f}, the others {raw[~ended].mean():.3f}")
    if within < unit / 10:
        print("warning: the reward model's scores barely differ among answers to one prompt: it "
              "scores the prompts, and REINFORCE can learn nothing from that", file=sys.stderr)
    unended = 1 - ended.float().mean().item()
    return {"sft_scores": sft_scores.tolist(),
            **fresh_state(cfg, unit, raw.mean().item() / unit - cfg.eos_penalty * unended,
                          sft_scores.tolist())}


def main():
    cfg = parse_config(ReinforceConfig, __doc__)
    train, val, source = load_pairs(cfg)
    sft, sft_source = from_first(lambda: find_sft(cfg))
    out = Path(cfg.out or run_folder(source, f"level{cfg.level}"))
    print(f"SFT model: {sft_source}\nsettings:",
          ", ".join(f"{k} {v}" for k, v in asdict(cfg).items() if v not in (None, ())))
    if cfg.rm and Path(cfg.rm).resolve() == out.resolve():
        raise InputError(f"out and rm are both {out}; name two folders")
    if from_first(lambda: claim_folder(out, "verdict.json", asdict(cfg), sft_source=sft_source,
                                       data_source=source)):
        print("finished before:", verdict_line(json.loads((out / "verdict.json").read_text())))
        return
    tokenizer = load_tokenizer(sft)
    eos = tokenizer.eos_token_id
    prompts, keys = usable_prompts(tokenizer, train, cfg, "REINFORCE")
    held_out = [x[:cfg.eval_prompts] for x in usable_prompts(tokenizer, val, cfg, "evaluation")]
    prompt_batches(len(prompts), cfg.batch, 1, cfg.seed)  # complains now if there are too few
    if min(cfg.batch, len(held_out[0]), cfg.calibration // 2) < process()[1]:
        raise InputError(f"batch is {cfg.batch}, held-out prompts are {len(held_out[0])}, half of "
                         f"calibration is {cfg.calibration // 2}, for {process()[1]} processes; "
                         "each needs one of each, start fewer")
    rm, rm_folder = get_reward_model(cfg, sft, sft_source, train, val, source, reuse=True)
    policy, reference = (load_model(AutoModelForCausalLM, sft, cfg.device) for _ in range(2))
    frozen(reference)
    most = policy.config.max_position_embeddings
    if cfg.max_prompt + cfg.max_new > most:
        raise InputError(f"max_prompt {cfg.max_prompt} and max_new {cfg.max_new} are more than the "
                         f"{most} tokens the SFT model was made for; lower one")
    optimizer = torch.optim.Adam(policy.parameters(), lr=cfg.lr, fused=True)
    checkpoint, first = out / "checkpoint.safetensors", process()[0] == 0  # `first` writes
    state = load_checkpoint(checkpoint, policy, optimizer)

    def answer_and_score(x, k, step, what):
        x, k = share(x), share(k)
        y = answer_all(policy, x, k, cfg.seed, step, cfg, eos, what)
        logits = score_all(rm, [p + a for p, a in zip(x, y)], cfg, what)
        return together(y), together(logits)                                     # (N, K)

    if not state:
        state = calibrate(answer_and_score, prompts, keys, cfg, eos, rm_folder)
        y, logits = answer_and_score(*held_out, EVAL_STEP, "SFT on held-out prompts")
        state |= {"before": [y, logits.tolist()], "metrics_size": 0}
    else:
        print(f"{checkpoint}: going on after step {state['step']} of {cfg.steps}")
    path = out / "metrics.jsonl" if first else os.devnull
    with open(path, "a", encoding="utf-8") as file:
        if first and os.path.getsize(path) < state["metrics_size"]:
            raise InputError(f"{path} is shorter than when {checkpoint} was written; put it back, "
                             f"or remove {out} to start again")
        if first:
            file.truncate(state["metrics_size"])  # steps after the checkpoint are done again

        def save():
            file.flush()
            os.fsync(file.fileno()) if first else None
            state["metrics_size"] = os.path.getsize(path) if first else 0
            save_checkpoint(checkpoint, policy, optimizer, state)

        train_policy(policy, optimizer, reference, rm, prompts, keys, cfg, eos, state,
                     lambda metrics: print(json.dumps(metrics), file=file, flush=True), save)
    before = state["before"][0], torch.tensor(state["before"][1])
    after = answer_and_score(*held_out, EVAL_STEP, "aligned on held-out prompts")
    sft_scores = torch.tensor(state["sft_scores"])
    sides = {name: (y, read_scores(logits, cfg.readout, cfg.risk, sft_scores))
             for name, (y, logits) in (("SFT", before), ("aligned", after))}
    logp, ref_logp = (together(sequence_logprobs(model, share(held_out[0]), share(after[0]),
                                                 cfg.micro_batch)) for model in (policy, reference))
    same = torch.tensor([a == b for a, b in zip(before[0], after[0])])
    verdict = compare(sides["SFT"][1][None], sides["aligned"][1][None], same[None])
    verdict |= {"unit": state["unit"], "kl": (logp - ref_logp).mean().item(), "rm": str(rm_folder),
                "prompts": held_out[1], "same": same.tolist(),
                "scores": {name: scores.tolist() for name, (_, scores) in sides.items()}}
    for name, (y, _) in (("sft_", before), ("", after)):
        verdict[name + "length"] = float(np.mean([len(a) for a in y]))
        verdict[name + "ended"] = float(np.mean([a[-1] == eos for a in y]))
    if first:
        save_model(out, tokenizer, policy)
        write_samples(out / "samples.md", tokenizer, held_out[0], sides)
        write_whole(out / "verdict.json", json.dumps(verdict, indent=1))  # last: now it is done
        checkpoint.unlink()
    print(verdict_line(verdict))


if __name__ == "__main__":
    run_cli(main)
