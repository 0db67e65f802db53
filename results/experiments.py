"""The data and the experiments behind REPORT.md, a function and a command each: run.sh has them in
order.

    python results/experiments.py record "level 1" runs/demo_pairs-level1

Samples, sheets and features go to runs/samples, which is not committed; rankings.jsonl, which holds
the ranked answers themselves, and runs.jsonl, a line for each result, are.
"""
import copy
import gzip
import json
import re
import sys
from dataclasses import replace
from functools import partial
from itertools import compress, permutations
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import reinforce  # noqa: E402
from reinforce import (EVAL_STEP, ReinforceConfig, answer_all, judge, next_baseline,  # noqa: E402
                       pick_logprobs, readout_mean, sequence_logprobs, token_logprobs,
                       usable_prompts)
from results.tables import (RANKINGS, RUNS, SHEETS, duels, grouped,  # noqa: E402
                            open_lines, read_lines)
from reward import (VAL_SHARE, RewardConfig, answer_features, answer_mean,  # noqa: E402
                    encode_pairs, fit_penalised, group_means, hash_words, held_out_loss, load_model,
                    load_pairs, load_reward_model, over_answers, pad_batch, prompt_weights,
                    read_config, start, to_pair, win_probability)

WORK = ROOT / "runs" / "samples"
LATER = ROOT / "results" / "later_rankings.jsonl"  # of prompts ranked last, which are in no bundle
BUNDLE = ROOT / "data" / "sample_pairs.jsonl.gz"
LETTERS = "ABCD"
END = "<|im_end|>"
TEMPERATURES = (0.7, 0.7, 0.4, 0.4)
SAMPLE_STEP = 2**31 + 10  # of `uniforms`: + 0..3, one for each answer
HELD_OUT = VAL_SHARE * 2**32  # prompts with a smaller key are
ADDED = 656               # of prompts.jsonl, the last ones: added after the bundle was made
DOUBLE = 150              # held-out prompts that two readers rank: the smallest keys without ADDED
PROMPTS = 64              # held-out prompts of aligned sheets and of the pool


def append_lines(path, *records):
    with open_lines(path, "a") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def all_prompts():
    """{key, as reward.Pair has it: {"prompt", "topic"}} of demo pairs and prompts.jsonl."""
    rows = read_lines(ROOT / "data/demo_pairs.jsonl") + read_lines(ROOT / "data/prompts.jsonl")
    return {key_of(row): {"prompt": row["prompt"], "topic": row["topic"]} for row in rows}


def key_of(row):
    return hash_words([row["prompt"]])


# ----- samples, sheets, rankings, bundle -----

def sample_answers(path, policy, chat, rows, temperatures, step):
    """Answers to each row's prompt, one at each temperature -> a line of `path` each; goes on where
    it was stopped."""
    for first in range(len(read_lines(path)), len(rows), 64):
        part = rows[first:first + 64]
        ids = [chat.prompt([{"role": "user", "content": row["prompt"]}]) for row in part]
        keys = [key_of(row) for row in part]
        answers = []
        for number, temperature in enumerate(temperatures):
            cfg = ReinforceConfig(device="cpu", precision="fp32", temperature=temperature)
            answers.append(answer_all(policy, ids, keys, 0, step + number, cfg, chat.end))
        for row, four in zip(part, zip(*answers)):
            append_lines(path, {
                **row, "answers": chat.tokenizer.batch_decode(four, skip_special_tokens=True),
                "finished": [a[-1] == chat.end for a in four], "temperatures": temperatures})


def samples():
    """Four answers to every prompt -> WORK/samples.jsonl."""
    setup = start(RewardConfig(device="cpu"))
    WORK.mkdir(parents=True, exist_ok=True)
    rows = [*all_prompts().values()]
    sample_answers(WORK / "samples.jsonl", setup.sft, setup.chat, rows, TEMPERATURES, SAMPLE_STEP)


def aligned_sheets(run, part="held-out"):
    """Sheets of four answers of an aligned policy to the prompts with the smallest keys: held-out
    ones, for two readers; of part "train" to those of the bundle, for one."""
    run = Path(run)
    chat = start(RewardConfig(device="cpu")).chat
    policy = load_model(AutoModelForCausalLM, run / "model", "cpu")
    rows = sorted(all_prompts().values(), key=key_of)
    first = rows[:PROMPTS]  # all of them held out
    temperatures = (0.7,) * 4
    readers = "AB"
    name = f"aligned-{run.name}"
    if part == "train":
        ranked = {row["prompt"] for row in read_lines(RANKINGS)}
        first = [row for row in rows if key_of(row) >= HELD_OUT and row["prompt"] in ranked][:400]
        temperatures = TEMPERATURES
        readers = "A"
        name += "-train"
    path = WORK / f"{name}.jsonl"
    first = [{**row, "arms": [run.name] * 4} for row in first]
    sample_answers(path, policy, chat, first, temperatures, SAMPLE_STEP + 10)
    for reader in readers:
        write_sheets(path.stem, read_lines(path), reader)


def write_sheets(name, rows, reader, size=40):
    """Blind sheets of requests with their answers, in drawn order, and the keys that tell it."""
    for first in range(0, len(rows), size):
        text = []
        key = {}
        for number, row in enumerate(rows[first:first + size], 1):
            rng = np.random.default_rng([ord(reader), key_of(row)])
            order = rng.permutation(len(row["answers"])).tolist()
            key[number] = {**row, "reader": reader, "order": order}
            text.append(f"## {number}\n\nRequest: {row['prompt']}\n")
            for letter, j in zip(LETTERS, order):
                cut = "" if row["finished"][j] else " [CUT]"
                text.append(f"{letter}: {row['answers'][j].strip()}{cut}\n")
        sheet = WORK / f"{name}-{reader}-{first // size:02d}.md"
        sheet.write_text("\n".join(text), encoding="utf-8")
        sheet.with_suffix(".key.json").write_text(json.dumps(key), encoding="utf-8")


def sheets(part):
    """Sheets of samples: of the training prompts (parts "train" and, ranked after the bundle was
    made, "later") for one reader, of the "held-out" ones with the smallest keys for two."""
    added = {row["prompt"] for row in read_lines(ROOT / "data/prompts.jsonl")[-ADDED:]}
    rows = [row for row in sorted(read_lines(WORK / "samples.jsonl"), key=key_of)
            if (key_of(row) < HELD_OUT) == (part == "held-out")
            and (row["prompt"] in added) == (part == "later")]
    if part == "held-out":
        rows = rows[:DOUBLE]
        write_sheets(part, rows, "B")
    write_sheets(part, rows, "A")


def write_answers(out, keys, answers, chat):
    """{arm: answers} as duel_sheets() reads them, added to what OUT has for the same prompts."""
    known = {"prompts": keys, "answers": {}}
    if Path(out).exists():
        known = json.loads(Path(out).read_text())
    if known["prompts"] != keys:
        raise ValueError(f"{out} has answers to other prompts")
    known["answers"] |= {arm: chat.tokenizer.batch_decode(y) for arm, y in answers.items()}
    Path(out).write_text(json.dumps(known))


def cooled(temperature, out, *policies):
    """Answers of policies, NAME=RUN or sft, to the held-out prompts at a temperature, with the
    random numbers of the verdict."""
    # fp32, as it was for all answers that were read before
    cfg = ReinforceConfig(temperature=float(temperature), precision="fp32")
    setup = start(cfg)
    prompts, keys = usable_prompts(setup.chat, setup.val, cfg, "evaluation")
    answers = {}
    for item in policies:
        name, _, run = item.partition("=")
        policy = setup.sft
        if run:
            policy = load_model(AutoModelForCausalLM, Path(run) / "model", cfg.device)
        y = answer_all(policy, prompts, keys, cfg.seed, EVAL_STEP, cfg, setup.chat.end)
        answers[f"{name} at {temperature}"] = y
    write_answers(out, keys, answers, setup.chat)


def pool_file(temperature):
    """Of noise.py: n answers to each of the first held-out prompts."""
    return WORK / f"pool-{temperature}.pt"


def untrained_arms(folder, temperature, out):
    """What needs no REINFORCE, beside the SFT model: the best of 4 and of 16 samples (noise.py
    pool) by a reward model, and the SFT model asked for one short sentence."""
    cfg = ReinforceConfig(temperature=float(temperature), precision="fp32")
    setup = start(cfg)
    prompts, keys = usable_prompts(setup.chat, setup.val, cfg, "evaluation", PROMPTS)
    rm = load_reward_model(folder, setup, "cpu")
    pool = torch.load(pool_file(temperature))
    rows = all_prompts()
    short = []
    for key in keys:
        text = rows[key]["prompt"] + "\n\nAnswer in one short sentence."
        short.append(setup.chat.prompt([{"role": "user", "content": text}]))
    answers = {}
    for name, x in (("sft", prompts), ("one short sentence", short)):
        y = answer_all(setup.sft, x, keys, cfg.seed, EVAL_STEP, cfg, setup.chat.end)
        answers[f"{name} at {temperature}"] = y
    scores = expected(rm(torch.stack(pool["features"])[..., COLUMNS[rm.layer]]))  # (n, P)
    for n in (4, 16):
        best = scores[:n].argmax(0)
        y = [pool["answers"][j][i] for i, j in enumerate(best)]
        answers[f"best of {n} at {temperature}"] = y
    write_answers(out, keys, answers, setup.chat)


def duel_sheets(file, first, *seconds):
    """Sheets of the answers of two arms in a file of write_answers(), for two readers."""
    result = json.loads(Path(file).read_text())
    prompts = all_prompts()
    for second in seconds:
        rows = []
        for i, key in enumerate(result["prompts"]):
            both = [result["answers"][arm][i] for arm in (first, second)]
            rows.append({"prompt": prompts[key]["prompt"], "arms": [first, second],
                         "answers": [text.removesuffix(END) for text in both],
                         "finished": [text.endswith(END) for text in both]})
        for reader in "AB":
            write_sheets(f"{Path(file).stem}-{first}-{second}", rows, reader)


def read_ranking(line, answers=4):
    """`B>A=D>C` -> the place of each letter, best 0: {"B": 0, "A": 1, "D": 1, "C": 2}."""
    groups = [group.split("=") for group in line.split(">")]
    if sorted(sum(groups, [])) != list(LETTERS[:answers]):
        raise ValueError(f"{line!r} ranks no {answers} answers")
    return {letter: place for place, group in enumerate(groups) for letter in group}


def collect():
    """Sheets with a .ranked file (lines `17: B>A=D>C`) -> rankings.jsonl; of duels SHEETS, of part
    "later" LATER."""
    new = {SHEETS: [], RANKINGS: [], LATER: []}
    for path in sorted(WORK.glob("*.ranked")):
        key = json.loads(path.with_suffix(".key.json").read_text(encoding="utf-8"))
        for number, line in re.findall(r"^(\d+): *(\S+)$", path.read_text(), re.M):
            row = key[number]
            order = row.pop("order")
            places = read_ranking(line, len(order))
            row["places"] = [places[LETTERS[order.index(j)]] for j in range(len(order))]
            target = SHEETS if "arms" in row else RANKINGS
            if path.name.startswith("later-"):
                target = LATER
            new[target].append(row)
    for path, rows in new.items():
        known = read_lines(path)
        append_lines(path, *(row for row in rows if row not in known))


def agreed_pairs(rankings):
    """(row of the data's format, whether they are of one temperature) for every two answers to one
    prompt that all rankings order alike, the better one first."""
    for prompt, same in grouped(rankings, "prompt").items():
        answers = same[0]["answers"]
        finished = same[0]["finished"]
        for i, j in permutations(range(4), 2):
            if all(ranking["places"][i] < ranking["places"][j] for ranking in same):
                yield {"prompt": prompt, "chosen": answers[i], "rejected": answers[j],
                       "chosen_finished": finished[i], "rejected_finished": finished[j],
                       "topic": same[0].get("topic")}, TEMPERATURES[i] == TEMPERATURES[j]


def bundle():
    """All pairs of every ranking (held-out: on which both readers agree) in the data's format."""
    rankings = sorted(read_lines(RANKINGS), key=itemgetter("prompt"))
    with gzip.GzipFile(BUNDLE, "wb", mtime=0) as file:
        for row, _ in agreed_pairs(rankings):
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def one_pair(out):
    """Of each ranked training prompt one row of the bundle, drawn, as a file: all that an epoch of
    a trained trunk has time for on a CPU."""
    rng = np.random.default_rng(0)
    groups = grouped(read_lines(BUNDLE), "prompt")
    drawn = [same[rng.integers(len(same))] for same in groups.values()]
    append_lines(Path(out), *(row for row in drawn if key_of(row) >= HELD_OUT))


def is_written(pair):
    return None not in pair.ratings


def by_a_coin(out):
    """All bundled pairs as a file, training pairs of samples in an order that a coin has drawn."""
    train, val, _, _ = load_pairs(RewardConfig())
    flips = np.random.default_rng(0).random(len(train)) < 0.5
    rows = []
    for number, pair in enumerate(train + val):
        prompt, *answers = texts_of(pair)
        chosen, rejected = zip(answers, pair.finished)
        if number < len(train) and flips[number] and not is_written(pair):
            chosen, rejected = rejected, chosen
        rows.append({"prompt": prompt, "chosen": chosen[0], "rejected": rejected[0],
                     "chosen_finished": chosen[1], "rejected_finished": rejected[1]})
    append_lines(Path(out), *rows)


def aligned_pairs(policy, out):
    """All pairs of an aligned policy's ranked answers to training prompts, as a file."""
    rankings = [row for row in read_lines(SHEETS)
                if row["arms"] == [policy] * 4 and key_of(row) >= HELD_OUT]
    append_lines(Path(out), *(row for row, _ in agreed_pairs(rankings)))


def texts_of(pair):
    return pair.messages[0]["content"], pair.chosen, pair.rejected


# ----- reward models: what they are fitted to, and on which pairs they are right -----

# columns of features: layers (of 30) averaged over the answer's tokens, the state of its last token
# in layer 20, the SFT model's mean log-prob at 0.7, length in tokens, and whether the answer ends
LAYERS = (10, 15, 20, 25)
WIDTH = 576
COLUMNS = {place: [*range(i * WIDTH, i * WIDTH + WIDTH)]
           for i, place in enumerate([*LAYERS, "last token"])}
LOGPROB = WIDTH * len(COLUMNS)
LENGTH = LOGPROB + 1
FINISHED = LENGTH + 1


@torch.no_grad()
def make_features(setup, prompt, answers):
    """(n, 5 WIDTH + 3) of n answers to one prompt, by one pass of the whole SFT model."""
    inputs, mask = pad_batch([prompt] * len(answers), answers, "cpu")
    T = mask.shape[1]
    output = setup.sft(**inputs, use_cache=False, output_hidden_states=True, logits_to_keep=T + 1)
    logp = pick_logprobs(output.logits, inputs["input_ids"], mask, 0.7)
    length = mask.sum(1)
    last = output.hidden_states[20][range(len(answers)), length - T - 1]
    ended = torch.tensor([[float(a[-1] == setup.chat.end)] for a in answers])
    return torch.cat([*(answer_mean(output.hidden_states[layer], mask) for layer in LAYERS), last,
                      (logp.sum(1) / length)[:, None], length[:, None], ended], 1)


def load_features(part):
    """The pairs of a part, "train", "held-out" or "more" (train and those of LATER), as (encoded,
    features (N, D), rows (B, 2), {kind: which pairs are of it (B,)}). Kept in WORK, as they take
    half an hour; delete them there when the data change."""
    path = WORK / f"features-{part}.pt"
    if path.exists():
        return torch.load(path, weights_only=False)
    cfg = RewardConfig(device="cpu")
    setup = start(cfg)
    later = [to_pair(row, "ranking") for row, _ in agreed_pairs(read_lines(LATER))]
    pairs = {"train": setup.train, "held-out": setup.val, "more": setup.train + later}[part]
    encoded = encode_pairs(setup.chat, pairs, cfg.max_len, "pairs")
    alike = {texts_of(to_pair(row, "ranking")): same
             for row, same in agreed_pairs(read_lines(RANKINGS) + read_lines(LATER))}
    one = torch.tensor([alike.get(texts_of(pair), False) for pair in pairs])
    written = torch.tensor([is_written(pair) for pair in pairs])
    kinds = {"written": written, "samples": ~written, "one temperature": ~written & one,
             "two temperatures": ~written & ~one}  # they fit, as no pair is left out
    WORK.mkdir(parents=True, exist_ok=True)
    result = (encoded, *over_answers(partial(make_features, setup), encoded), kinds)
    torch.save(result, path)
    return result


def expected(logits):
    """The score: the number at level 1, E[S] at level 2; (..., K) -> (...)."""
    if logits.shape[-1] == 1:
        return logits[..., 0]
    return readout_mean(logits.softmax(-1), None, None)


def accuracy_by_prompt(logits, rows, encoded):
    """{key of a prompt: on which share of its pairs the outputs (N, K) are right, a tie half}"""
    z_w, z_l = logits[rows].double().unbind(1)
    win = win_probability(z_w, z_l).numpy().round(6)  # so that a tie is 0.5 exactly
    right = (np.sign(win - 0.5) + 1) / 2
    means = group_means(right, [str(e.key) for e in encoded])
    return {key: round(mean, 4) for key, mean in means.items()}


def record_heldout(name, level, logits, part, **more):
    """One line of runs.jsonl: on which held-out pairs the outputs (N, K) for the answers of a part
    are right, by prompt and kind of pairs, and how scores of samples go with length and end."""
    encoded, x, rows, kinds = part
    line = {"kind": "reward", "name": name, "level": level, **more}
    line["accuracy"] = {kind: accuracy_by_prompt(logits, rows[mask], compress(encoded, mask))
                        for kind, mask in kinds.items()}
    samples = rows[kinds["samples"]].unique()
    for sign, column in (("length", LENGTH), ("finished", FINISHED)):
        both = torch.stack([expected(logits)[samples], x[samples, column]])
        line["correlation with " + sign] = torch.corrcoef(both)[0, 1].item()
    append_lines(RUNS, line)


def fit(x, rows, encoded, weight, level):
    """A frozen head for features of pairs: W (D, K), b (K,), penalty."""
    folds = torch.tensor([e.dialogue % 5 for e in encoded])
    return fit_penalised(x, rows, weight, folds, RewardConfig(level=level))


def fit_and_record(name, level, train, val, mask=None, columns=COLUMNS[20], seed=0, share=None):
    """A frozen head on some columns of features, fitted to the training pairs of a mask, or to all;
    written pairs have a share of the weight, or as much as prompts that count once give them."""
    encoded, x, rows, kinds = train
    written = kinds["written"]
    if mask is not None:
        encoded = list(compress(encoded, mask))
        written = written[mask]
        rows = rows[mask]
    weight = prompt_weights(encoded, seed)
    if share:
        weight = torch.where(written, weight / weight[written].sum() * share,
                             weight / weight[~written].sum() * (1 - share))
    x = x[:, columns]
    W, b, penalty = fit(x, rows, encoded, weight, level)
    z = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    folds = torch.tensor([e.dialogue % 5 for e in encoded])
    loss = held_out_loss(z, rows, weight, folds, RewardConfig(level=level), penalty)
    ranked = {e.key for e in compress(encoded, ~written)}
    record_heldout(name, level, val[1][:, columns] @ W + b, val, bootstrap=seed, penalty=penalty,
                   fold_loss=loss, ranked_prompts=len(ranked))


def heads(level):
    """Frozen heads of one level -> runs.jsonl: by what they are fitted to, by the number of ranked
    prompts, and (level 1) by their features."""
    train = load_features("train")
    val = load_features("held-out")
    encoded, _, _, kinds = train
    written = kinds["written"]
    fit_and_record("samples", level, train, val, ~written)
    fit_and_record("both, with later prompts", level, load_features("more"), val)
    for seed in range(5):
        fit_and_record("written pairs", level, train, val, written, seed=seed)
        fit_and_record("both", level, train, val, seed=seed)
    prompts = list(dict.fromkeys(e.key for e in compress(encoded, ~written)))
    for n in (60, 125, 250, 500, 1000):
        few = torch.tensor([e.key in prompts[:n] for e in encoded])
        fit_and_record(f"both, {n} ranked prompts", level, train, val, written | few)
    for share in (0.2, 0.5, 0.8):
        fit_and_record(f"both, written pairs {share} of the weight", level, train, val, share=share)
    if level == 1:
        for name, columns in (
                ("layer 10", COLUMNS[10]), ("layer 15", COLUMNS[15]), ("layer 25", COLUMNS[25]),
                ("layers 15, 20, 25", COLUMNS[15] + COLUMNS[20] + COLUMNS[25]),
                ("last token of layer 20", COLUMNS["last token"]),
                ("layer 20 and its last token", COLUMNS[20] + COLUMNS["last token"]),
                ("layer 20 and mean log-prob", [*COLUMNS[20], LOGPROB])):
            fit_and_record("both, " + name, level, train, val, columns=columns)
        x = val[1]
        for name, score in (("shorter", -x[:, LENGTH]), ("finished", x[:, FINISHED]),
                            ("mean log-prob of the SFT model", x[:, LOGPROB])):  # no reader needed
            record_heldout(name, 1, score[:, None], val)


def outputs_of(folder, setup, encoded):
    """A finished reward model, its outputs (N, K) for the answers of pairs, and rows (B, 2)."""
    rm = load_reward_model(folder, setup, "cpu")
    cfg = ReinforceConfig(device="cpu", precision="fp32")

    def outputs(prompt, answers):
        return judge(rm, setup.sft, [prompt] * len(answers), answers, cfg)[0]

    return rm, *over_answers(outputs, encoded)


def held_out(name, folder):
    """A reward model of reward.py, judged as the heads are -> runs.jsonl."""
    val = load_features("held-out")
    rm, logits, _ = outputs_of(folder, start(RewardConfig(device="cpu")), val[0])
    record_heldout(name, rm.level, logits, val)


def aligned(name, folder, policy):
    """A reward model on the pairs of an aligned policy's samples that both readers order alike."""
    rankings = [row for row in read_lines(SHEETS)
                if row["arms"] == [policy] * 4 and key_of(row) < HELD_OUT]
    pairs = [to_pair(row, "sheet") for row, _ in agreed_pairs(rankings)]
    cfg = RewardConfig(device="cpu")
    setup = start(cfg)
    encoded = encode_pairs(setup.chat, pairs, cfg.max_len, "aligned")
    rm, logits, rows = outputs_of(folder, setup, encoded)
    append_lines(RUNS, {"kind": "aligned", "name": name, "policy": policy, "level": rm.level,
                        "pairs": len(encoded),
                        "accuracy": accuracy_by_prompt(logits, rows, encoded)})


def opinions(temperature, names, *judges):
    """Frozen reward models, NAME=FOLDER, on answers that readers compared with the SFT model's at a
    temperature, of arms whose name is of a pattern: which of the two they prefer."""
    rows = [row for row in duels() if row["arms"][0] == f"sft at {temperature}"
            and re.fullmatch(names, row["arm"]) and row["reader"] == "A"]  # B had the same
    rates = {row["arm"]: {} for row in rows}
    for row in rows:
        rates[row["arm"]][str(key_of(row))] = 0.5
    rows = [row for row in rows if row["answers"][0].strip() != row["answers"][1].strip()]
    pairs = [to_pair({"prompt": row["prompt"], "rejected": row["answers"][0],
                      "chosen": row["answers"][1], "rejected_finished": row["finished"][0],
                      "chosen_finished": row["finished"][1]}, "sheet") for row in rows]
    setup = start(RewardConfig(device="cpu"))
    encoded = encode_pairs(setup.chat, pairs, 1024, "read pairs")
    x, sides = over_answers(partial(answer_features, setup.sft, layer=20), encoded)
    for name, folder in (judge.split("=") for judge in judges):
        logits = load_reward_model(folder, setup, "cpu")(x)
        for arm, ties in rates.items():
            mask = torch.tensor([row["arm"] == arm for row in rows])
            others = accuracy_by_prompt(logits, sides[mask], compress(encoded, mask))
            append_lines(RUNS, {"kind": "opinion", "judge": name, "name": arm,
                                "win rate": ties | others})


def validated(name, folder):
    """A reward model's own validation, on other data than ours, as a line of runs.jsonl."""
    metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    level = read_config(folder)["level"]
    append_lines(RUNS, {"kind": "validated", "name": name, "level": level} | metrics)


# ----- policies -----

def record(name, folder):
    """A finished run of reinforce.py as a line of runs.jsonl."""
    folder = Path(folder)
    verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    append_lines(RUNS, {"kind": "policy", "name": name, "verdict": verdict,
                        "run": read_config(folder), "steps": read_lines(folder / "metrics.jsonl")})


def judged(kind, name, reward_model, seed, most, *policies):
    """The SFT model and policies, STEP=CHECKPOINT or READOUT=RUN, on at most so many held-out
    prompts -> runs.jsonl: KL, and the scores of their answers by the reward model of training
    ("own") and by a head fitted to the held-out pairs alone, which shares no label with it."""
    encoded, x, rows, _ = load_features("held-out")
    W, b, _ = fit(x[:, COLUMNS[20]], rows, encoded, prompt_weights(encoded, 0), 1)
    cfg = ReinforceConfig(device="cpu", precision="fp32")
    setup = start(cfg)
    prompts, keys = usable_prompts(setup.chat, setup.val, cfg, "evaluation", most)
    own = load_reward_model(reward_model, setup, "cpu")
    for item in ("sft=", *policies):
        step, _, path = item.partition("=")
        policy = copy.deepcopy(setup.sft)
        if path.endswith(".pt"):
            policy.load_state_dict(torch.load(path, weights_only=True)["policy"])
        elif path:
            policy = load_model(AutoModelForCausalLM, Path(path) / "model", "cpu")
        y = answer_all(policy, prompts, keys, seed, EVAL_STEP, cfg, setup.chat.end)
        with torch.no_grad():
            features = torch.cat([answer_features(setup.sft, prompt, [answer], 20)
                                  for prompt, answer in zip(prompts, y)])        # (N, D)
        ref_logp = sequence_logprobs(setup.sft, prompts, y, cfg)
        kl = (sequence_logprobs(policy, prompts, y, cfg) - ref_logp).mean().item()
        scores = {"own": expected(own(features)), "other": (features @ W + b)[:, 0]}
        line = {"kind": kind, "name": name, "step": step, "kl": kl}
        append_lines(RUNS, line | {by: [round(v, 3) for v in score.tolist()]
                                   for by, score in scores.items()})


def doubled(out, *files):
    """Policies with the mean of some checkpoints' weights, OUT/1, and with weights twice as far
    from the SFT model, OUT/2."""
    policy = start(RewardConfig(device="cpu")).sft
    sft = copy.deepcopy(policy.state_dict())
    saved = [torch.load(file, weights_only=True, mmap=True)["policy"] for file in files]
    for factor in (1, 2):
        weights = {}
        for part, weight in sft.items():
            mean = sum(one[part].double() for one in saved) / len(saved)
            weights[part] = weight + factor * (mean.float() - weight)
        policy.load_state_dict(weights)
        policy.save_pretrained(Path(out) / str(factor) / "model")


def pure_noise(level, reward_model, out):
    """A run (default settings, without the penalty for not ending) whose r, in SFT spreads, are
    drawn, whatever the answer -> runs.jsonl: how far noise alone moves a policy."""
    cfg = ReinforceConfig(level=level, rm=reward_model, out=out, eos_penalty=0.0, seed=7,
                          save_every=10**6)  # if it is stopped, it starts again
    policy_gradient = reinforce.policy_gradient
    rng = torch.Generator().manual_seed(cfg.seed)

    def of_noise(policy, prompts, answers, r, *others):
        drawn = torch.randn(len(r), generator=rng)
        return policy_gradient(policy, prompts, answers, drawn, *others)

    reinforce.policy_gradient = of_noise
    reinforce.main(cfg)
    record(f"level {level}, drawn rewards", out)


def sampled_only(reward_model, seed, out):
    """A run of level 1 (default settings, without the penalty for not ending) with the usual
    mistake: answers are sampled at 0.7, but log-probs, of policy and reference, are at 1.0. It is
    calibrated and judged at 0.7."""
    cfg = ReinforceConfig(level=1, rm=reward_model, out=out, eos_penalty=0.0, seed=seed)
    train_policy = reinforce.train_policy

    def sampled(*arguments):  # policy, prompts, keys, seed, step, cfg, end
        return answer_all(*arguments[:5], replace(arguments[5], temperature=0.7), arguments[6])

    def trained(*arguments):  # the last two: cfg, done
        reinforce.answer_all = sampled
        train_policy(*arguments[:-2], replace(arguments[-2], temperature=1.0), arguments[-1])
        reinforce.answer_all = answer_all

    reinforce.train_policy = trained
    reinforce.main(cfg)
    record(f"level 1, no penalty, sampled at 0.7 only, seed {seed}", out)


# ----- how noisy a gradient is, by baseline -----

def sketch(tensors, width=2**20):
    """(width,): tensors as one vector with drawn signs, folded. Inner products stay what they are,
    up to noise of 1 / sqrt(width) of the vectors' lengths."""
    flat = torch.cat([t.flatten() for t in tensors])
    rng = torch.Generator().manual_seed(0)
    flat *= torch.randint(2, flat.shape, generator=rng, dtype=torch.int8) * 2 - 1
    return torch.nn.functional.pad(flat, (0, -len(flat) % width)).view(-1, width).sum(0)


def variance(name, run, reward_model, at, prompts=96):
    """Gradients of single answers, at the start or at the end of a run of REINFORCE (of default
    settings but for level and penalty) -> runs.jsonl: their rewards R, the products of grad log pi
    (N, N), and the baselines b that the run has there, or would have. Answers to training prompts,
    the last ones, with random numbers of their own."""
    run = Path(run)
    log = read_lines(run / "metrics.jsonl")
    there = read_config(run)
    cfg = ReinforceConfig(device="cpu", level=there["level"], eos_penalty=there["eos_penalty"])
    setup = start(cfg)
    rm = load_reward_model(reward_model, setup, "cpu")
    x, keys = usable_prompts(setup.chat, setup.train, cfg, "REINFORCE")
    x = x[-prompts:]
    policy = setup.sft
    b = {"ema": log[0]["baseline"], "mean": log[0]["baseline"], "none": 0.0}
    if at == "end":
        policy = load_model(AutoModelForCausalLM, run / "model", "cpu")
        b["ema"] = next_baseline(log[-1]["baseline"], log[-1]["reward"], len(log) - 1, cfg)
        b["mean"] = float(np.mean([b["mean"], *(m["reward"] for m in log)]))

    y = answer_all(policy, x, keys[-prompts:], cfg.seed, SAMPLE_STEP + 200, cfg, setup.chat.end)
    outputs, ref_logp = judge(rm, setup.sft, x, y, cfg)
    ended = torch.tensor([float(a[-1] == setup.chat.end) for a in y])
    unit = json.loads((run / "verdict.json").read_text(encoding="utf-8"))["unit"]
    r = expected(outputs) / unit - cfg.eos_penalty * (1 - ended)                 # (N,)
    sketches = []
    logp = torch.empty(prompts)
    for i in range(prompts):
        policy.zero_grad()
        one = token_logprobs(policy, x[i:i + 1], y[i:i + 1], cfg.temperature).sum()
        one.backward()
        logp[i] = one.detach()
        sketches.append(sketch([p.grad for p in policy.parameters()]))
    g = torch.stack(sketches)                                                    # (N, width)
    reward = r - cfg.beta * (logp - ref_logp)
    append_lines(RUNS, {"kind": "variance", "name": name, "at": at, "baselines": b,
                        "rewards": [round(R, 4) for R in reward.tolist()],
                        "products": [[round(v) for v in row] for row in (g @ g.T).tolist()]})


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    globals()[command](*(int(a) if a.isdigit() else a for a in arguments))
