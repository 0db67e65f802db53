"""The data and the experiments behind REPORT.md, one command each (run.sh has them in order).

    python results/experiments.py samples            # four SFT answers to every prompt
    python results/experiments.py sheets A train 40  # blind sheets for reader A, 40 requests each
    python results/experiments.py collect            # filled-in sheets -> rankings.jsonl
    python results/experiments.py bundle             # rankings.jsonl -> data/sample_pairs.jsonl.gz
    python results/experiments.py heads              # frozen heads by what they are fitted to
    python results/experiments.py record policy l1 runs/demo_pairs-level1    # -> runs.jsonl

Samples, sheets and features go to runs/samples, which is not committed; rankings.jsonl, which holds
the ranked answers themselves, and runs.jsonl, a line for each result, are.
"""
import gzip
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from reinforce import sample, uniforms  # noqa: E402
from reward import (VAL_SHARE, Chat, Pair, RewardConfig, answer_features,  # noqa: E402
                    encode_pairs, find_sft, fit_penalised, load_model, load_pairs, over_answers,
                    prompt_weights, validate)

WORK = ROOT / "runs" / "samples"
RANKINGS = ROOT / "results" / "rankings.jsonl"
RUNS = ROOT / "results" / "runs.jsonl"
TEMPERATURES = (0.7, 0.7, 0.4, 0.4)
SAMPLE_STEP = 2**31 + 10  # of `uniforms`: + 0..3, one for each answer
MAX_NEW = 64
DOUBLE = 150              # held-out prompts that two readers rank: those with the smallest keys


def read_lines(path):
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append_line(path, record):
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def load_sft():
    source = find_sft(RewardConfig())
    model = load_model(AutoModelForCausalLM, source, "cpu").requires_grad_(False)
    return model, Chat(source)


def all_prompts():
    """{prompt: Pair} of demo pairs and prompts.jsonl; a Pair knows its key and its part."""
    pairs = {}
    for name in ("demo_pairs.jsonl", "prompts.jsonl"):
        for row in read_lines(ROOT / "data" / name):
            messages = [{"role": "user", "content": row["prompt"]}]
            pairs[row["prompt"]] = Pair(messages, "", "", [], [], row["topic"], name)
    return pairs


def is_held_out(pair):
    return pair.dialogue < VAL_SHARE * 2**32


# ----- samples, sheets, rankings, bundle -----

def make_samples(batch=24):
    """Four answers to every prompt -> WORK/samples.jsonl; goes on where it was stopped."""
    sft, chat = load_sft()
    path = WORK / "samples.jsonl"
    WORK.mkdir(parents=True, exist_ok=True)
    done = {row["prompt"] for row in read_lines(path)}
    todo = [pair for prompt, pair in all_prompts().items() if prompt not in done]
    todo.sort(key=lambda pair: len(pair.messages[0]["content"]))
    for i in range(0, len(todo), batch):
        part = todo[i:i + batch]
        ids = [chat.prompt(pair.messages) for pair in part]
        keys = [pair.key for pair in part]
        answers = []
        for number, temperature in enumerate(TEMPERATURES):
            numbers = uniforms(0, SAMPLE_STEP + number, keys, MAX_NEW)
            answers.append(sample(sft, ids, numbers, temperature, chat.end))
        for pair, four in zip(part, zip(*answers)):
            append_line(path, {
                "prompt": pair.messages[0]["content"], "topic": pair.topic,
                "answers": [chat.tokenizer.decode(a, skip_special_tokens=True) for a in four],
                "finished": [a[-1] == chat.end for a in four], "temperatures": TEMPERATURES})
        print(f"{i + len(part)} of {len(todo)} prompts", flush=True)


def make_sheets(reader, part, size):
    """Sheets of the prompts of a part (train, or the held-out ones that two readers rank) that this
    reader (of the training part: any reader) has not ranked; the order of answers is drawn."""
    pairs = all_prompts()
    ranked = {(r["prompt"], r["reader"]) for r in read_lines(RANKINGS)}
    rows = [r for r in read_lines(WORK / "samples.jsonl")
            if is_held_out(pairs[r["prompt"]]) == (part != "train")]
    rows.sort(key=lambda row: pairs[row["prompt"]].key)
    if part != "train":
        rows = rows[:DOUBLE]
    rows = [r for r in rows if (r["prompt"], reader) not in ranked]
    for start in range(0, len(rows), size):
        name = f"{part}-{reader}-{len(list(WORK.glob('*.md'))):03d}"
        text = []
        key = {}
        for number, row in enumerate(rows[start:start + size], 1):
            rng = np.random.default_rng([ord(reader), pairs[row["prompt"]].key])
            order = rng.permutation(4).tolist()
            key[number] = {**row, "reader": reader, "order": order}
            text.append(f"## {number}\n\nRequest: {row['prompt']}\n")
            for letter, j in zip("ABCD", order):
                cut = "" if row["finished"][j] else " [CUT]"
                text.append(f"{letter}: {row['answers'][j].strip()}{cut}\n")
        (WORK / f"{name}.md").write_text("\n".join(text), encoding="utf-8")
        (WORK / f"{name}.key.json").write_text(json.dumps(key), encoding="utf-8")


def read_ranking(line):
    """`B>A=D>C` -> the place of each letter, best 0: {"B": 0, "A": 1, "D": 1, "C": 2}."""
    letters = line[0::2]
    if sorted(letters) != list("ABCD") or set(line[1::2]) - set(">="):
        raise ValueError(f"{line!r} ranks no four answers")
    places = {letters[0]: 0}
    for sign, letter in zip(line[1::2], letters[1:]):
        places[letter] = max(places.values()) + (sign == ">")
    return places


def collect():
    """Sheets with a .ranked file (lines `17: B>A=D>C`) -> rankings.jsonl."""
    have = {(r["prompt"], r["reader"]) for r in read_lines(RANKINGS)}
    for path in sorted(WORK.glob("*.ranked")):
        key = json.loads(path.with_suffix(".key.json").read_text(encoding="utf-8"))
        for number, line in re.findall(r"^(\d+): *(\S+)$", path.read_text(), re.M):
            row = key[number]
            if (row["prompt"], row["reader"]) in have:
                continue
            places = read_ranking(line)
            letter_of = {j: letter for letter, j in zip("ABCD", row.pop("order"))}
            append_line(RANKINGS, {**row, "places": [places[letter_of[j]] for j in range(4)]})


def ordered_pairs(ranking):
    """(better, worse) of all pairs of answers of one ranking that are not tied."""
    return [(i, j) for i, j in itertools.permutations(range(4), 2)
            if ranking["places"][i] < ranking["places"][j]]


def by_prompt():
    """{prompt: its rankings}"""
    rankings = {}
    for ranking in read_lines(RANKINGS):
        rankings.setdefault(ranking["prompt"], []).append(ranking)
    return rankings


def agreed_pairs(rankings):
    """The pairs of answers that all readers of a prompt order alike."""
    return [pair for pair in ordered_pairs(rankings[0])
            if all(pair in ordered_pairs(other) for other in rankings[1:])]


def bundle():
    """All pairs of every ranking (held-out: on which both readers agree) in the data's format."""
    with gzip.GzipFile(ROOT / "data" / "sample_pairs.jsonl.gz", "wb", mtime=0) as file:
        for prompt, rankings in sorted(by_prompt().items()):
            row = rankings[0]
            for i, j in agreed_pairs(rankings):
                record = {"prompt": prompt, "chosen": row["answers"][i],
                          "rejected": row["answers"][j], "chosen_finished": row["finished"][i],
                          "rejected_finished": row["finished"][j], "topic": row["topic"]}
                file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


# ----- reward models: what they are fitted to, and on which pairs they are right -----

def all_features(layer=20):
    """Both parts' encoded pairs, the features (N, D) of all their answers and the pairs' rows; kept
    in WORK/features.pt, as they take minutes."""
    cfg = RewardConfig()
    sft, chat = load_sft()
    train, val, _, _ = load_pairs(cfg)
    encoded = [encode_pairs(chat, part, cfg, "pairs") for part in (train, val)]
    path = WORK / "features.pt"

    def features(prompt, answers):
        return answer_features(sft, prompt, answers, layer)

    if not path.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        torch.save([over_answers(features, part) for part in encoded], path)
    return train, val, encoded, torch.load(path)


def heads(bootstraps=5):
    """Frozen heads of both levels, fitted to written pairs, to samples, to both, to both with the
    samples' order drawn by a coin, and to samples of fewer prompts -> runs.jsonl."""
    train, val, (encoded, held_out), ((x, pairs), (x_val, pairs_val)) = all_features()
    written = np.array([None not in p.ratings for p in train])
    prompts = list(dict.fromkeys(e.key for e, w in zip(encoded, written) if not w))
    coin = pairs.clone()
    flip = torch.tensor(np.random.default_rng(0).random(len(pairs)) < 0.5) & torch.tensor(~written)
    coin[flip] = coin[flip].flip(1)
    arms = {"written": (written, pairs), "samples": (~written, pairs),
            "both": (written | True, pairs), "both, samples by a coin": (written | True, coin)}
    for n in (60, 125, 250, 500):
        chosen = set(prompts[:n])
        arms[f"written and samples of {n} prompts"] = (
            written | np.array([e.key in chosen for e in encoded]), pairs)
    for name, (mask, order) in arms.items():
        for level, seed in itertools.product((1, 2), range(bootstraps if name == "both" else 1)):
            cfg = RewardConfig(level=level, rm_seed=seed)
            part = [e for e, m in zip(encoded, mask) if m]
            weight = prompt_weights(part, seed)
            keys = torch.tensor([e.key for e in part])
            W, b, penalty = fit_penalised(x, order[torch.tensor(mask)], weight, keys % 5, cfg)
            logits = x_val @ W + b
            for kind in ("written", "samples"):
                rows = [i for i, p in enumerate(val) if (None in p.ratings) == (kind == "samples")]
                metrics = validate(logits[pairs_val[rows, 0]], logits[pairs_val[rows, 1]],
                                   [held_out[i] for i in rows], cfg)
                append_line(RUNS, {
                    "kind": "reward", "name": f"{name}, level {level}, bootstrap {seed}",
                    "pairs": kind, "penalty": penalty, "metrics": metrics})
                print(name, level, seed, kind, penalty, metrics["accuracy"],
                      metrics["accuracy_interval"], flush=True)


def record(kind, name, folder):
    """A finished run of reinforce.py (policy) or reward.py (reward) as a line of runs.jsonl."""
    folder = Path(folder)
    file = {"policy": "verdict", "reward": "metrics"}[kind]
    result = json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))
    line = {"kind": kind, "name": name, file: result}
    line["run"] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["run"]
    if kind == "policy":
        line["steps"] = read_lines(folder / "metrics.jsonl")
    else:
        line["pairs"] = "all"
    append_line(RUNS, line)


COMMANDS = {"samples": make_samples, "sheets": make_sheets, "collect": collect, "bundle": bundle,
            "heads": heads, "record": record}

if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    COMMANDS[command](*(int(a) if a.isdigit() else a for a in arguments))
