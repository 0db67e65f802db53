"""The data and the experiments behind REPORT.md, one command each (run.sh has them in order).

    python results/experiments.py samples            # four SFT answers to every prompt
    python results/experiments.py sheets A train     # blind sheets for reader A, 40 requests each
    python results/experiments.py collect            # filled-in sheets -> rankings.jsonl
    python results/experiments.py bundle             # rankings.jsonl -> data/sample_pairs.jsonl.gz
    python results/experiments.py heads 1            # frozen heads of level 1 -> runs.jsonl
    python results/experiments.py duels runs/eval.json A sft l1    # sheets of two policies
    python results/experiments.py record l1 runs/demo_pairs-level1    # a run -> runs.jsonl

Samples, sheets and features go to runs/samples, which is not committed; rankings.jsonl, which holds
the ranked answers themselves, and runs.jsonl, a line for each result, are.
"""
import gzip
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from reinforce import (EVAL_STEP, ReinforceConfig, answer_all, pick_logprobs,  # noqa: E402
                       sample, uniforms, usable_prompts)
from reward import (VAL_SHARE, Chat, RewardConfig, answer_features,  # noqa: E402
                    answer_mean, bootstrap, encode_pairs, find_sft, fit_penalised, group_means,
                    hash_words, held_out_loss, load_model, load_pairs, load_reward_model,
                    over_answers, pad_batch, prompt_weights, start, to_pair, trunk_scores, validate,
                    win_probability)

WORK = ROOT / "runs" / "samples"
RANKINGS = ROOT / "results" / "rankings.jsonl"
SHEETS = ROOT / "results" / "sheets.jsonl"
RUNS = ROOT / "results" / "runs.jsonl"
LETTERS = "ABCD"
END = "<|im_end|>"
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
            pairs[row["prompt"]] = to_pair({"prompt": row["prompt"], "topic": row["topic"],
                                            "chosen": "+", "rejected": "-"}, name)
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


def write_sheets(name, rows, reader, size=40):
    """Blind sheets of requests with their answers, in drawn order, and the keys that tell it."""
    for start in range(0, len(rows), size):
        text = []
        key = {}
        for number, row in enumerate(rows[start:start + size], 1):
            rng = np.random.default_rng([ord(reader), hash_words([row["prompt"]])])
            order = rng.permutation(len(row["answers"])).tolist()
            key[number] = {**row, "reader": reader, "order": order}
            text.append(f"## {number}\n\nRequest: {row['prompt']}\n")
            for letter, j in zip(LETTERS, order):
                cut = "" if row["finished"][j] else " [CUT]"
                text.append(f"{letter}: {row['answers'][j].strip()}{cut}\n")
        sheet = WORK / f"{name}-{reader}-{start // size:02d}.md"
        sheet.write_text("\n".join(text), encoding="utf-8")
        sheet.with_suffix(".key.json").write_text(json.dumps(key), encoding="utf-8")


def make_sheets(reader, part):
    """Sheets of the prompts of a part (train, or the held-out ones that two readers rank) that this
    reader (of the training part: any reader) has not ranked."""
    pairs = all_prompts()
    ranked = {(r["prompt"], r["reader"]) for r in read_lines(RANKINGS)}
    rows = [r for r in read_lines(WORK / "samples.jsonl")
            if is_held_out(pairs[r["prompt"]]) == (part != "train")]
    rows.sort(key=lambda row: pairs[row["prompt"]].key)
    if part != "train":
        rows = rows[:DOUBLE]
    rows = [r for r in rows if (r["prompt"], reader) not in ranked]
    write_sheets(f"{part}-{len(ranked)}", rows, reader)


def cooled(temperature, out, *runs):
    """Answers of the SFT model and of policies (NAME=RUN) at another temperature than that of
    training, to the first held-out prompts with the random numbers of the verdict, as make_duels
    reads them."""
    cfg = ReinforceConfig(temperature=float(temperature), eval_prompts=64)
    setup = start(cfg)
    prompts, keys = usable_prompts(setup.chat, setup.val, cfg, "evaluation")
    policies = {"sft": setup.sft}
    for item in runs:
        name, _, run = item.partition("=")
        policies[name] = load_model(AutoModelForCausalLM, Path(run) / "model", cfg.device)
    answers = {}
    for name, policy in policies.items():
        y = answer_all(policy, prompts[:64], keys[:64], cfg.seed, EVAL_STEP, cfg, setup.chat.end)
        answers[f"{name} at {temperature}"] = [setup.chat.tokenizer.batch_decode(y)]
    Path(out).write_text(json.dumps({"prompts": keys[:64], "answers": answers}))


def untrained_arms(folder, out):
    """What needs no REINFORCE, beside the SFT model and with the prompts of the verdict: the best
    of 4 and of 16 samples (noise.py pool) by a reward model, and the SFT model asked for one short
    sentence; as make_duels reads them."""
    cfg = ReinforceConfig()
    setup = start(cfg)
    rm = load_reward_model(folder, setup, cfg.device)
    prompts, keys = usable_prompts(setup.chat, setup.val, cfg, "evaluation")
    prompts, keys = prompts[:64], keys[:64]
    pool = torch.load(WORK / "pool.pt")
    if pool["keys"] != keys:
        raise ValueError("the pool was made for other prompts")
    scores = rm(torch.stack(pool["features"])[:, :, layer_columns(rm.layer)])    # (n, P, K)
    scores = scores[..., 0] if rm.level == 1 else scores.softmax(-1) @ torch.arange(1.0, 11)
    short = []
    pair_of = {p.key: p for p in setup.val}
    for key in keys:
        text = pair_of[key].messages[-1]["content"] + "\n\nAnswer in one short sentence."
        short.append(setup.chat.prompt([{"role": "user", "content": text}]))
    answers = {}
    for name, x in (("sft", prompts), ("one short sentence", short)):
        answers[name] = answer_all(setup.sft, x, keys, cfg.seed, EVAL_STEP, cfg, setup.chat.end)
    for n in (4, 16):
        best = scores[:n].argmax(0)
        answers[f"best of {n}"] = [pool["answers"][j][i] for i, j in enumerate(best)]
    texts = {name: [setup.chat.tokenizer.batch_decode(y)] for name, y in answers.items()}
    Path(out).write_text(json.dumps({"prompts": keys, "answers": texts}))


def make_duels(evaluation, reader, first, second, prompts=64):
    """Sheets of two policies' answers of one evaluation (the json of eval.py, its first seed)."""
    result = json.loads(Path(evaluation).read_text(encoding="utf-8"))
    texts = {pair.key: text for text, pair in all_prompts().items()}
    rows = []
    for i, key in enumerate(result["prompts"][:prompts]):
        both = [result["answers"][name][0][i] for name in (first, second)]
        rows.append({"prompt": texts[key], "arms": [first, second],
                     "answers": [text.removesuffix(END) for text in both],
                     "finished": [text.endswith(END) for text in both]})
    write_sheets(f"{first}-{second}", rows, reader)


def make_aligned(run, reader, prompts=64):
    """Sheets of four answers of an aligned policy to held-out prompts."""
    _, chat = load_sft()
    policy = load_model(AutoModelForCausalLM, Path(run) / "model", "cpu").requires_grad_(False)
    chosen = [text for text, pair in all_prompts().items() if is_held_out(pair)]
    chosen = sorted(chosen, key=lambda text: hash_words([text]))[:prompts]
    path = WORK / f"aligned-{Path(run).name}.jsonl"
    for start in range(0 if not path.exists() else prompts, prompts, 16):
        texts = chosen[start:start + 16]
        ids = [chat.prompt([{"role": "user", "content": text}]) for text in texts]
        four = []
        for number in range(4):
            keys = [hash_words([text]) for text in texts]
            numbers = uniforms(0, SAMPLE_STEP + 10 + number, keys, MAX_NEW)
            four.append(sample(policy, ids, numbers, 0.7, chat.end))
        for text, answers in zip(texts, zip(*four)):
            append_line(path, {
                "prompt": text, "arms": [Path(run).name] * 4,
                "answers": [chat.tokenizer.decode(a, skip_special_tokens=True) for a in answers],
                "finished": [a[-1] == chat.end for a in answers]})
    write_sheets(path.stem, read_lines(path), reader)


def read_ranking(line, answers=4):
    """`B>A=D>C` -> the place of each letter, best 0: {"B": 0, "A": 1, "D": 1, "C": 2}."""
    letters = line[0::2]
    if sorted(letters) != list(LETTERS[:answers]) or set(line[1::2]) - set(">="):
        raise ValueError(f"{line!r} ranks no {answers} answers")
    places = {letters[0]: 0}
    for sign, letter in zip(line[1::2], letters[1:]):
        places[letter] = max(places.values()) + (sign == ">")
    return places


def collect():
    """Sheets with a .ranked file (lines `17: B>A=D>C`) -> rankings.jsonl; of duels sheets.jsonl."""
    for path in sorted(WORK.glob("*.ranked")):
        key = json.loads(path.with_suffix(".key.json").read_text(encoding="utf-8"))
        for number, line in re.findall(r"^(\d+): *(\S+)$", path.read_text(), re.M):
            row = key[number]
            order = row.pop("order")
            places = read_ranking(line, len(order))
            letter_of = {j: letter for letter, j in zip(LETTERS, order)}
            row["places"] = [places[letter_of[j]] for j in range(len(order))]
            target = SHEETS if "arms" in row else RANKINGS
            if row not in read_lines(target):
                append_line(target, row)


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


def as_row(prompt, ranking, i, j):
    """Answer i over answer j in the data's format."""
    answers = ranking["answers"]
    finished = ranking["finished"]
    return {"prompt": prompt, "chosen": answers[i], "rejected": answers[j],
            "chosen_finished": finished[i], "rejected_finished": finished[j]}


def bundle():
    """All pairs of every ranking (held-out: on which both readers agree) in the data's format."""
    with gzip.GzipFile(ROOT / "data" / "sample_pairs.jsonl.gz", "wb", mtime=0) as file:
        for prompt, rankings in sorted(by_prompt().items()):
            for i, j in agreed_pairs(rankings):
                row = as_row(prompt, rankings[0], i, j) | {"topic": rankings[0]["topic"]}
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


# ----- reward models: what they are fitted to, and on which pairs they are right -----

LAYERS = (10, 15, 20, 25)  # of 30
WIDTH = 576
LAST = WIDTH * len(LAYERS)  # columns of features: LAYERS averaged over the answer, its last token's
LOGPROB = LAST + WIDTH      # state in layer 20, then the SFT model's mean log-prob at 0.7,
LENGTH = LOGPROB + 1        # tokens,
FINISHED = LENGTH + 1       # whether the answer ends


def make_features(sft, end, prompt, answers):
    """(n, 5 WIDTH + 3) of n answers to one prompt, by one pass of the whole SFT model."""
    inputs, mask = pad_batch([prompt] * len(answers), answers, "cpu")
    T = mask.shape[1]
    output = sft(**inputs, use_cache=False, output_hidden_states=True, logits_to_keep=T + 1)
    logp = pick_logprobs(output.logits, inputs["input_ids"], mask, 0.7)
    length = mask.sum(1)
    last = output.hidden_states[20][range(len(answers)), length - T - 1]
    ended = torch.tensor([[float(a[-1] == end)] for a in answers])
    return torch.cat([*(answer_mean(output.hidden_states[layer], mask) for layer in LAYERS), last,
                      (logp.sum(1) / length)[:, None], length[:, None], ended], 1)


def load_features():
    """The pairs of both parts (train, val), each as (pairs, encoded, features (N, D), rows (B, 2)).
    Features are kept in WORK/features.pt, as they take half an hour."""
    cfg = RewardConfig()
    sft, chat = load_sft()
    path = WORK / "features.pt"
    known = torch.load(path) if path.exists() else {}

    def features(prompt, answers):
        names = [str((prompt, answer)) for answer in answers]
        if not all(name in known for name in names):
            known.update(zip(names, make_features(sft, chat.end, prompt, answers)))
            if len(known) % 100 < 4:
                torch.save(known, path)
        return torch.stack([known[name] for name in names])

    parts = []
    for pairs in load_pairs(cfg)[:2]:
        encoded = encode_pairs(chat, pairs, cfg.max_len, "pairs")
        parts.append((pairs, encoded, *over_answers(features, encoded)))
    torch.save(known, path)
    return parts


def is_written(pairs):
    return np.array([None not in p.ratings for p in pairs])


def record_heldout(name, level, logits, part, **more):
    """One line of runs.jsonl: on which held-out pairs the outputs (N, K) for the answers of a part
    are right: accuracy by prompt on written pairs and on pairs of samples, of one temperature and
    of two; and how its scores go with length and end on samples."""
    pairs, encoded, x, rows = part
    temperatures = {}
    for prompt, rankings in by_prompt().items():
        for i, j in agreed_pairs(rankings):
            answers = rankings[0]["answers"]
            temperatures[prompt, answers[i], answers[j]] = TEMPERATURES[i] == TEMPERATURES[j]
    written = is_written(pairs)
    same = np.array([temperatures.get((p.messages[0]["content"], p.chosen, p.rejected), False)
                     for p in pairs])
    kinds = {"written": written, "samples": ~written, "one temperature": ~written & same,
             "two temperatures": ~written & ~same}
    line = {"kind": "reward", "name": name, "level": level, **more, "accuracy": {}}
    z_w, z_l = logits[rows[:, 0]], logits[rows[:, 1]]
    for kind, mask in kinds.items():
        if mask.any():
            chosen = [e for e, m in zip(encoded, mask) if m]
            metrics = validate(z_w[mask], z_l[mask], chosen, RewardConfig(level=level))
            right = (preference(z_w[mask], z_l[mask]) + 1) / 2
            by_key = group_means(right, [e.key for e in chosen])
            line["accuracy"][kind] = {str(key): round(a, 4) for key, a in by_key.items()}
            line[kind] = {m: metrics[m] for m in ("loss", "chance_loss", "calibration_error",
                                                  "accuracy", "accuracy_interval")}
    score = logits[:, 0] if level == 1 else logits.softmax(-1) @ torch.arange(1.0, 11)
    answers = rows[~written].unique()
    for sign, column in (("length", LENGTH), ("finished", FINISHED)):
        both = torch.stack([score[answers].float(), x[answers, column]])
        line["correlation with " + sign] = torch.corrcoef(both)[0, 1].item()
    append_line(RUNS, line)
    print(name, level, {kind: round(np.mean([*a.values()]), 3)
                        for kind, a in line["accuracy"].items()}, more, flush=True)


def preference(z_w, z_l):
    """1 where the first of two outputs (B, K) is preferred, -1 where the second, 0 at a tie."""
    return np.sign(win_probability(z_w.double(), z_l.double()).numpy().round(6) - 0.5)


def fit_and_record(name, level, train, val, columns, mask, order, seed=0, share=None):
    """A frozen head on some columns of features, fitted to the pairs of `mask` in an order; written
    pairs have a share of the weight, or as much as prompts that count once give them."""
    cfg = RewardConfig(level=level, rm_seed=seed)
    part = [e for e, m in zip(train[1], mask) if m]
    folds = torch.tensor([e.dialogue % 5 for e in part])
    x = train[2][:, columns]
    rows = order[torch.tensor(mask)]
    weight = prompt_weights(part, seed)
    written = torch.tensor(is_written(train[0])[mask])
    if share:
        weight = torch.where(written, weight / weight[written].sum() * share,
                             weight / weight[~written].sum() * (1 - share))
    W, b, penalty = fit_penalised(x, rows, weight, folds, cfg)
    z = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    loss = held_out_loss(z, rows, weight, folds, cfg, penalty)
    ranked = {e.key for e, w in zip(part, written) if not w}
    record_heldout(name, level, val[2][:, columns] @ W + b, val, bootstrap=seed, penalty=penalty,
                   fold_loss=loss, ranked_prompts=len(ranked))


def layer_columns(*layers):
    starts = [LAYERS.index(layer) * WIDTH for layer in layers]
    return [column for start in starts for column in range(start, start + WIDTH)]


def heads(level):
    """Frozen heads of one level -> runs.jsonl: by what they are fitted to, by the number of ranked
    prompts, and (level 1) by their features."""
    train, val = load_features()
    written = is_written(train[0])
    rows = train[3]
    prompts = list(dict.fromkeys(e.key for e, w in zip(train[1], written) if not w))
    coin = rows.clone()
    flip = np.random.default_rng(0).random(len(rows)) < 0.5
    coin[flip & ~written] = coin[flip & ~written].flip(1)
    everything = written | True
    default = layer_columns(20)
    for name, mask, order in (("written pairs", written, rows), ("samples", ~written, rows),
                              ("both, samples by a coin", everything, coin)):
        fit_and_record(name, level, train, val, default, mask, order)
    for seed in range(5):
        fit_and_record("both", level, train, val, default, everything, rows, seed)
    for n in (60, 125, 250, 500, 1000):
        chosen = set(prompts[:n])
        few = np.array([e.key in chosen for e in train[1]])
        fit_and_record(f"both, {n} ranked prompts", level, train, val, default, written | few, rows)
    for share in (0.2, 0.5, 0.8):
        fit_and_record(f"both, written pairs {share} of the weight", level, train, val, default,
                       everything, rows, share=share)
    if level == 1:
        last = [*range(LAST, LAST + WIDTH)]
        for name, columns in (
                ("layer 10", layer_columns(10)), ("layer 15", layer_columns(15)),
                ("layer 25", layer_columns(25)), ("layers 15, 20, 25", layer_columns(15, 20, 25)),
                ("last token of layer 20", last), ("layer 20 and its last token", default + last),
                ("layer 20 and mean log-prob", [*default, LOGPROB])):
            fit_and_record("both, " + name, level, train, val, columns, everything, rows)


def coin_head(like, out):
    """The control "both, samples by a coin" of level 1 as a reward model folder for reinforce.py:
    LIKE, a reward model of the bundled data, with another head."""
    train, _ = load_features()
    cfg = RewardConfig(level=1)
    written = is_written(train[0])
    rows = train[3].clone()
    flip = np.random.default_rng(0).random(len(rows)) < 0.5
    rows[flip & ~written] = rows[flip & ~written].flip(1)
    folds = torch.tensor([e.dialogue % 5 for e in train[1]])
    W, b, penalty = fit_penalised(train[2][:, layer_columns(20)], rows, prompt_weights(train[1], 0),
                                  folds, cfg)
    shutil.copytree(like, out)
    save_file({"weight": W.T.contiguous(), "bias": b}, Path(out) / "head.safetensors")
    (Path(out) / "metrics.json").write_text(json.dumps({"layer": 20, "penalty": penalty}))


def controls():
    """What needs no reader, on the held-out pairs -> runs.jsonl."""
    _, val = load_features()
    x = val[2]
    for name, score in (("shorter", -x[:, LENGTH]), ("finished", x[:, FINISHED]),
                        ("mean log-prob of the SFT model", x[:, LOGPROB])):
        record_heldout(name, 1, score[:, None], val)


def held_out(name, folder):
    """A reward model made by reward.py or reinforce.py, on the held-out pairs -> runs.jsonl."""
    _, val = load_features()
    setup = start(RewardConfig())
    rm = load_reward_model(folder, setup, "cpu")

    def scores(prompt, answers):
        if isinstance(rm, torch.nn.Linear):
            return rm(answer_features(setup.sft, prompt, answers, rm.layer))
        return trunk_scores(rm, [prompt] * len(answers), answers)

    record_heldout(name, rm.level, over_answers(scores, val[1])[0], val)


def aligned(name, folder, policy):
    """A reward model on the pairs of an aligned policy's samples that both readers order alike."""
    cfg = RewardConfig()
    setup = start(cfg)
    rm = load_reward_model(folder, setup, "cpu")
    rankings = {}
    for row in read_lines(SHEETS):
        if row["arms"] == [policy] * 4:
            rankings.setdefault(row["prompt"], []).append(row)
    pairs = []
    for prompt, both in rankings.items():
        for i, j in agreed_pairs(both):
            pairs.append(to_pair(as_row(prompt, both[0], i, j), "sheet"))
    encoded = encode_pairs(setup.chat, pairs, cfg.max_len, "aligned")

    def scores(prompt, answers):
        return rm(answer_features(setup.sft, prompt, answers, rm.layer))

    logits, rows = over_answers(scores, encoded)
    right = (preference(logits[rows[:, 0]], logits[rows[:, 1]]) + 1) / 2
    by_key = group_means(right, [e.key for e in encoded])
    append_line(RUNS, {
        "kind": "aligned", "name": name, "policy": policy, "level": rm.level,
        "pairs": len(encoded), "accuracy": {str(k): round(a, 4) for k, a in by_key.items()}})
    print(name, len(encoded), np.mean([*by_key.values()]), bootstrap([*by_key.values()]))


def record(name, folder):
    """A finished run of reinforce.py as a line of runs.jsonl."""
    folder = Path(folder)
    line = {"kind": "policy", "name": name}
    line["verdict"] = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    line["run"] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["run"]
    line["steps"] = read_lines(folder / "metrics.jsonl")
    append_line(RUNS, line)


COMMANDS = {
    "samples": make_samples, "sheets": make_sheets, "duels": make_duels, "collect": collect,
    "cooled": cooled, "aligned_sheets": make_aligned, "bundle": bundle, "heads": heads,
    "controls": controls, "held_out": held_out, "aligned": aligned, "record": record,
    "untrained_arms": untrained_arms, "coin_head": coin_head}

if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    COMMANDS[command](*(int(a) if a.isdigit() else a for a in arguments))
