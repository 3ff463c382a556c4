"""The recipe of the small model at its real sizes: what is trained is what the package runs."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch

from chatterbox_opt.config import SPEECH_CODES, START_TEXT
from chatterbox_opt.engine.mel import MelJob
from chatterbox_opt.text.tokenizer import EnTokenizer
from chatterbox_opt.weights import keymap
from chatterbox_opt.weights.files import MEANFLOW, MINI
from chatterbox_opt.weights.load import load_folder
from tools.mini import (
    book,
    card,
    codes,
    common,
    distil,
    evaluate,
    flow,
    lexicon,
    reading,
    t3,
    tokenizer,
    vocabulary,
    vocoder,
)
from tools.mini.sentences import everyday, number, sentences
from tools.mini.sizes import CONFIG, LIMIT

SPOKEN = ["^", "h", "ə", "l", "ˈ", "o", "ʊ", ".", "$"]  # hello
SAMPLES = [1000, 441, 882, 882, 441, 1764, 441, 1500, 400]


def utterance(n: int = 30) -> dict:
    noise = torch.Generator().manual_seed(n)
    mel = torch.randn(80, 2 * n, generator=noise).half()
    spoken = torch.randint(0, SPEECH_CODES, (n,), generator=noise).short()
    return {
        "text": "Hello there, you.", "phonemes": SPOKEN, "samples": SAMPLES, "rate": 22_050,
        "mel": mel, "codes": spoken, "heard": torch.randn(128, 4 * n, generator=noise).half(),
        "wav": (torch.randn(960 * n, generator=noise) * 2000).short(),
    }


def test_codes_name_the_phones_where_they_lie() -> None:
    frames = codes.phone_frames(SPOKEN, SAMPLES, 22_050, 18)  # 441 samples a frame
    o = codes.INDEX["ˈo"]
    assert frames[:2].tolist() == [codes.SILENCE] * 2  # the middle of the third lies behind 1000 samples
    assert frames.tolist().count(o) == 5  # its stress mark's time is its own
    assert codes.INDEX["ʊ"] in frames.tolist()
    assert (frames[-4:] == codes.SILENCE).all()


def test_codes_and_digits_agree_with_the_quantizer() -> None:
    phones = torch.randint(0, codes.PHONES, (40,))
    packed = codes.pack(phones)
    assert torch.equal(codes.unpack(packed).flatten(), phones)
    digits = codes.digits(packed)
    assert digits.min() >= -1
    assert digits.max() <= 1
    assert torch.equal(((digits + 1) * 3 ** torch.arange(8)).sum(-1), packed)


def test_every_phone_has_a_code_of_its_own() -> None:
    assert len(set(codes.INDEX.values())) == len(codes.INDEX) < codes.PHONES


def test_sentences_are_clean() -> None:
    assert number(342) == "three hundred and forty two"
    assert sentences("He SHOUTED it.\n\nThis is plain, and short.\n\nnot a start.") == ["This is plain, and short."]
    made = everyday(random.Random(0), 200)
    assert len(made) == len(set(made)) > 100


def test_codes_carry_two_phones_and_a_place() -> None:
    noise = torch.Generator().manual_seed(0)
    phones = torch.randint(0, 40, (4000,), generator=noise)
    pairs = codes.pack(phones.repeat_interleave(3)[: 2 * len(phones)])  # both halves alike, two of three times
    kept = book.Book.of(pairs)
    places = torch.randint(0, 300, (len(pairs),), generator=noise)
    said = kept.write(pairs, places)
    assert 0 <= said.min() <= said.max() < SPEECH_CODES
    exact = kept.pair[said] == pairs
    first, second = codes.unpack(pairs).unbind(-1)
    assert exact[first == second].all()
    assert torch.equal(codes.unpack(kept.pair[said])[~exact], second[~exact, None].expand(-1, 2))  # its second phone
    a, b_ones, ones, both = kept.parts[said].unbind(-1)
    b = b_ones // book.BASE
    assert torch.equal(codes.pack(torch.stack([a, b], -1).flatten()), kept.pair[said])
    assert torch.equal(ones, places % book.BASE)
    assert torch.equal(b_ones % book.BASE, ones)
    assert torch.equal(both[a == b], (places % book.BASE**2)[a == b])
    assert (both[a != b] == book.BASE**2).all()


def test_words_said_in_one_are_found() -> None:
    assert reading.matched([3, 2, 5], [3, 2, 5]) == [(1, 1)] * 3
    assert reading.matched([2, 3, 4], [5, 4]) == [(2, 1), (1, 1)]
    assert reading.matched([6, 4], [3, 3, 4]) == [(1, 2), (1, 1)]
    assert reading.matched([1], [1, 2, 3, 4, 5]) == [(1, 5)]  # nothing fits: all is one word


def test_sentences_join_into_one(work) -> None:
    """Positions of codes in the text stay correct after another sentence."""
    read = t3.prepare_vocabulary(work)
    space = read.encode(" ")[0]
    items = reading.examples(work, "train", read)
    a, b = items[:2]
    both = reading.join(a, b, space)
    assert both["text"].tolist() == [*a["text"][:-1].tolist(), space, *b["text"][1:].tolist()]
    assert len(both["window"]) == len(both["pairs"]) + 1 == len(a["pairs"]) + len(b["pairs"]) + 1
    at = len(a["pairs"]) + torch.arange(len(b["pairs"]))
    begun = b["place"] > 0  # before that it is at the start, where now the blank stands
    assert begun.any()
    assert torch.equal(both["text"][both["place"][at]][begun], b["text"][b["place"]][begun])
    for end in (0, 1):
        old, new = b["window"][:-1, 1, end], both["window"][at, 1, end]
        assert torch.equal(both["text"][new], b["text"][old])
    rows = reading.joined(reading.grouped(items, 2), 2, random.Random(0), space)
    assert len({len(r["text"]) for r in rows}) == 1
    assert reading.collate(rows, book.Book.at(work), "cpu")[0].shape[1] == len(rows[0]["text"])


def test_the_penalty_is_the_one_of_sampling() -> None:
    torch.manual_seed(0)
    logits, index = torch.randn(2, 9, 12), torch.randint(0, 12, (2, 9))
    got = t3.penalised(logits, index, 1.2)
    for row in range(2):
        for step in range(9):
            wanted, seen = logits[row, step].clone(), index[row, :step].unique()
            wanted[seen] = torch.where(wanted[seen] < 0, wanted[seen] * 1.2, wanted[seen] / 1.2)
            assert torch.equal(got[row, step], wanted)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder after a few steps of every stage."""
    folder = tmp_path_factory.mktemp("mini")
    (folder / "data").mkdir()
    items = [utterance(52), utterance(30), utterance(34), utterance(40)]
    torch.save(items, folder / "data" / "train-00000.pt")
    torch.save(items[:2], folder / "data" / "test-00000.pt")
    vocabulary.write(folder / "tokenizer.json", {"there": "ĖĶġ"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "EVERY", 1)
        for stage in (t3, flow, tokenizer, vocoder):
            stage.main(["--work", str(folder), "--device", "cpu", "--steps", "2", "--batch", "2"])
    return folder


@pytest.mark.parametrize("stage", ["t3", "flow", "tokenizer", "vocoder"])
def test_the_log_of_a_stage_has_losses_of_both_parts(work, stage) -> None:
    lines = [line for line in card.lines(work / f"{stage}.log") if "seconds" in line]
    assert [line["step"] for line in lines][:2] == [1, 2]
    for line in lines:
        trained = {name for name in line if f"held_{name}" in line}
        assert len(trained) >= 3
        assert all(line[name] >= 0 for name in trained)


def test_a_stage_goes_on_where_it_stopped(work) -> None:
    before = torch.load(work / "flow.pt", weights_only=True)["step"]
    flow.main(["--work", str(work), "--device", "cpu", "--steps", str(before + 1), "--batch", "2"])
    assert torch.load(work / "flow.pt", weights_only=True)["step"] == before + 1


def test_the_asset_loads_and_speaks(work) -> None:
    from tools.mini import export

    export.main(["--work", str(work), "--device", "cpu"])
    folder = work / "asset"
    assert json.loads((folder / "config.json").read_text())["family"] == "tts"
    assert sum(f.stat().st_size for f in folder.iterdir()) <= LIMIT
    speaker = evaluate.Speaker(folder, work, steps=2)
    assert speaker.mel(torch.tensor([1, 2, 3, 4])).shape == (80, 8)
    wav = speaker.model.generate("Hello.", seed=0, max_new_tokens=12, n_cfm_timesteps=2)
    assert torch.isfinite(wav).all()


@pytest.fixture(scope="module")
def distilled(work, tmp_path_factory):
    """A work folder with trajectories and a decoder of a few steps, made from the package's own model."""
    folder = tmp_path_factory.mktemp("distil")
    asset = shutil.copytree(MINI, folder / "asset")
    (asset / MEANFLOW).unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "EVERY", 1)
        patch.setattr(distil, "corpus", lambda seed: (["Come in, please.", "It is here."], ["Hello there."]))
        distil.main(["--work", str(folder), "--device", "cpu", "--steps", "3", "--batch", "2"])
    return folder


def test_what_is_taught_is_what_the_engine_says(distilled) -> None:
    """The end is the mel of ten guided steps, of a sentence and of what goes on from inside; the middle lies between
    the two states around it."""
    teacher = distil.Teacher(distilled / "asset")
    tokens = teacher.spoken(["Come in, please."], 3)[0]
    kept = teacher.example(tokens, 1)
    begun = tokens[:8], kept["end"][30:46].float().mT
    for item, job in ((kept, (tokens, None)), (teacher.example(tokens[8:], 2, begun), (tokens[8:], begun))):

        class Same:
            def normal(self, shape, noise=item["noise"]):
                return noise.float().mT[None]

        mel = MelJob(job[0], teacher.gen, Same(), said=job[1])
        (said,) = teacher.model.pipeline.mel.render([mel])
        assert (said.mT - item["end"][len(item["prompt"]) :].float()).abs().max() < 0.05, "half precision lies between"
    span, states = distil.time_span(10, False), []
    euler = teacher.flow.euler
    teacher.flow.euler = lambda *args: states.append(euler(*args)) or states[-1]
    middle = teacher.solve(kept, 10)[0]
    assert span[6] < 0.5 < span[7]
    share = (0.5 - span[6]) / (span[7] - span[6])
    assert torch.allclose(middle, torch.lerp(states[5], states[6], share)[0])


def test_distillation_is_compared_with_the_flow_of_fewer_steps(distilled) -> None:
    lines = [line for line in card.lines(distilled / "distil.log") if "held_error" in line]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert {"flow_2", "flow_4", "flow_6"} <= lines[0].keys()


def test_some_sentences_are_also_gone_on_with(distilled) -> None:
    items = distil.read(distilled, "train")
    prompts = [len(item["prompt"]) for item in items]
    assert len(items) > prompts.count(30) == 2
    assert all(len(i["prompt"]) < len(i["mu"]) == len(i["noise"]) == len(i["end"]) for i in items)


def test_the_student_begins_as_the_flow_and_is_what_is_loaded(distilled) -> None:
    asset = distilled / "asset"
    teacher, model = distil.Teacher(asset), distil.Model(asset)
    batch = distil.collate(distil.read(distilled, "test")[:1])
    own = torch.ones(1, dtype=torch.bool)
    estimator = teacher.flow.decoder.estimator
    with torch.no_grad():
        first, middle, second = model(batch, teacher.speaker, own)
        known = estimator.constant(batch["mu"], teacher.speaker, batch["prompt"])
        wanted = estimator(batch["noise"], estimator.time_table(torch.tensor([0.0, 1.0]))[0], known)
    assert (first - wanted).abs().max() < 1e-4, "untaught it is the flow without guidance"
    model.load_state_dict(torch.load(distilled / "distil.pt", weights_only=True)["net"])
    loaded = load_folder(asset, "tts", torch.device("cpu"), torch.float32, decoder="meanflow")
    assert loaded.config.flow.meanflow
    net = loaded.s3gen.flow
    with torch.no_grad():
        _, middle, second = model(batch, teacher.speaker, own)
        end, x = middle + 0.5 * second, batch["noise"]
        conditions = net.conditions(batch["mu"], teacher.speaker, batch["prompt"])
        for time in net.decoder.estimator.time_table(distil.SPAN):
            x = net.euler(x, time, torch.tensor(0.5), conditions)
    assert (x - end).abs().max() < 0.02, "half precision lies between them"
    assert sum(f.stat().st_size for f in asset.iterdir()) <= LIMIT


def test_rows_of_unlike_lengths_are_taught_what_each_alone_is(distilled) -> None:
    items = distil.read(distilled, "train")
    teacher, model = distil.Teacher(distilled / "asset"), distil.Model(distilled / "asset")
    item = min(items, key=lambda i: len(i["mu"]))
    other = max(items, key=lambda i: len(i["mu"]))
    assert len(item["mu"]) < len(other["mu"])
    own = torch.tensor([True, False])
    with torch.no_grad():
        both = model(distil.collate([item, other]), teacher.speaker, own)
        alone = model(distil.collate([item]), teacher.speaker, own[:1])
    for a, b in zip(alone, both):
        assert (a[0] - b[0, : a.shape[1]]).abs().max() < 1e-3
    assert torch.equal(both[1][1], distil.collate([other])["middle"][0]), "where the flow is"


def test_training_sees_the_logits_that_sampling_sees(work) -> None:
    """Teacher forcing with the published names against the package's network, loaded from the exported file."""
    from tools.mini import export

    export.main(["--work", str(work), "--device", "cpu"])
    net = load_folder(work / "asset", "tts", torch.device("cpu"), torch.float32).t3
    model = export.parameters("t3", t3.Model(0, book.Book.at(work)), work)
    items = reading.examples(work, "train", t3.prepare_vocabulary(work))
    batch = reading.collate(items[:1], book.Book.at(work), "cpu")
    voice = t3.voice_of(work, "cpu")
    with torch.no_grad():
        hidden, _, head = model(batch, torch.zeros(1, dtype=torch.bool), voice)
        text, target, _ = batch
        said = target[:, :-1]
        x = torch.cat([net.voice_prefix(*voice), net.text_part(text, torch.zeros(1, dtype=torch.bool)),
                       net.embed_speech(said, torch.arange(said.shape[1]))], 1)
        wanted = net.logits(net(x, torch.arange(x.shape[1])[None])[:, -target.shape[1] :])
    used = torch.load(work / "used.pt", weights_only=True)
    got = t3.SHARPER * (hidden @ head.t())[..., used]
    assert (got - wanted[..., used]).abs().max() < 2e-2 * wanted.abs().max()  # half precision lies between them


def test_heads_are_told_where_the_voice_is() -> None:
    phones = [codes.INDEX[p] for p in ("h", "ə", "l", "ˈo", "ʊ")]
    ids, letters = [START_TEXT, *(1000 + p for p in phones), 9, 0], [0, 1, 1, 1, 1, 1, 0, 0]
    heard = codes.pack(codes.phone_frames(SPOKEN, SAMPLES, 22_050, 18))
    item = {"phonemes": SPOKEN, "samples": SAMPLES, "rate": 22_050, "codes": heard}
    reached = reading.places(ids, item, 2, letters)
    said = codes.unpack(heard)[:, 1]
    assert torch.equal(torch.tensor(ids)[reached][said > 0] - 1000, said[said > 0])
    assert reached[0] == 0
    assert reached[-1] == len(ids) - 1  # the pause behind it
    here, ahead = reading.windows(reached, letters).unbind(1)
    assert torch.equal(here[1:, 0], reached)
    assert torch.equal(here[:, 0], here[:, 1])
    inside = here[:, 0] < 5
    assert torch.equal(ahead[inside, 1], here[inside, 1] + 1)  # the next letter
    assert (ahead[here[:, 0] == 5] == torch.tensor([6, 7])).all()  # the mark, and the end: no letter comes


def test_known_words_reach_t3_as_phones(tmp_path) -> None:
    said = lexicon.spelled(["d", "ˈ", "o", "ʊ", "n", "t"])
    assert said == "".join(lexicon.character(codes.INDEX[p]) for p in ("d", "ˈo", "ʊ", "n", "t"))
    file = tmp_path / "tokenizer.json"
    vocabulary.write(file, {"don't": said, "don": "Č", "three": "Ċē"})
    read = EnTokenizer(file)
    pieces = {i: piece for piece, i in read.tokenizer.get_vocab().items()}
    assert "".join(pieces[i] for i in read.encode("Don't.")) == said + "."
    assert "".join(pieces[i] for i in read.encode("donkey")) == "donkey"  # a whole word or none
    assert read.encode("3") == read.encode("three")


def test_the_flow_begins_as_a_denoiser() -> None:
    """Untrained, it removes noise: its velocity is about GAIN (mu - x)."""
    torch.manual_seed(0)
    model, n = flow.Model(0), 20
    tokens = torch.randint(0, SPEECH_CODES, (2, n))
    mel, noise = torch.randn(2, 2 * n, 80), torch.randn(2, 2 * n, 80)
    with torch.no_grad():
        for t in (0.0, 0.5):
            batch = tokens, torch.tensor([n, n]), mel, torch.zeros(2).long(), torch.zeros(2).bool()
            mu, velocity, wanted = model(*batch, flow.xvector_of("cpu"), torch.full((2,), t), noise)
            x = (1 - t) * noise + t * (wanted + noise)
            right = flow.GAIN * (mu - x)
            left = velocity - right
            assert left.square().mean() < 0.2 * right.square().mean()
            assert (left * noise).mean().abs() < 0.1


def test_the_trainable_vocoder_is_the_vocoder() -> None:
    torch.manual_seed(0)
    model = vocoder.Model(0)
    net = vocoder.Hift(CONFIG.hift)
    own = {k.removeprefix("mel2wav."): v.detach().clone() for k, v in model.body.published().items()}
    net.load_state_dict(keymap.remap(own, keymap.HIFT))
    mel, h = torch.randn(1, 80, 6), CONFIG.hift.harmonics + 1
    f0, phases, noise = torch.full((1, 6), 110.0), torch.zeros(1, h, 1), torch.randn(1, h, 6 * 480)
    with torch.no_grad():
        got, _ = model(mel, f0, phases, noise)
        wanted = net.decode(mel, net.spectrum(net.m_source(f0, phases, noise)))
    assert (got.clamp(-0.99, 0.99) - wanted).abs().max() < 1e-5


def test_pitch_of_a_voice_like_tone() -> None:
    time = torch.arange(24_000) / 24_000
    tone = sum(torch.sin(2 * torch.pi * 120 * k * time) / k for k in range(1, 6)) * 0.1
    found = vocoder.pitch(tone, 48)[4:-4]
    assert (found - 120).abs().max() < 1.5


def test_pausing_stops_the_clock(tmp_path) -> None:
    args = common.arguments("x").parse_args(["--work", str(tmp_path), "--seconds", "0"])
    assert not common.setup(args).tick()
