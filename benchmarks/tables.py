"""Makes Markdown tables of a benchmark's JSON, when it runs and when the documents are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

STAGES = ("text", "tokens", "mel", "wav", "watermark", "other")
FAMILY = {"tts": "Chatterbox", "mtl": "Chatterbox Multilingual", "turbo": "Chatterbox Turbo", "nano": "Chatterbox Nano"}


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table; all columns but the first are aligned right."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def device(record: dict[str, Any]) -> str:
    if record["kind"] != "cpu":
        return record["device"]
    known = f" ({record['capability']})" if "capability" in record else ""
    return f"{record['cores']} cores of {record['device']}{known}"


def where(record: dict[str, Any]) -> str:
    kind = f", {record['threads']} threads" if record["kind"] == "cpu" else ""
    return (
        f"{device(record)}{kind}, torch {record['torch']}, "
        f"commit {record['commit']}, {record['date']}"
    )


def markdown(document: dict[str, Any]) -> str:
    """Returns the page that a benchmark prints: machine, tables, command."""
    page = {
        "comparison": comparison, "inference": inference, "ladder": ladder, "quality": quality, "streaming": streaming,
        "server": server, "concurrency": concurrency,
    }
    return "\n".join([*page[document["benchmark"]](document), "", f"`{document['command']}`"])


def title(document: dict[str, Any], what: str) -> str:
    settings = document["settings"]
    size = "" if settings.get("size") == "full" or settings.get("weights") != "random" else f", {settings['size']}"
    family = FAMILY[settings["model"]]
    return f"**{family}**{what}, {settings['weights']} weights{size}: {where(document['environment'])}"


# ---- comparison ----------------------------------------------------------------------------------


def comparison(document: dict[str, Any]) -> list[str]:
    equal = "the same number of tokens on every side" if document["equal_work"] else "each side ended by its own draws"
    equal = equal if document["rows"] else "none was compared"
    return [
        title(document, ""),
        "",
        comparison_table(document),
        "",
        f"Seconds by stage, {timed([document])}:",
        "",
        stage_seconds(document),
        "",
        f"Work: {equal}. RTF: seconds of computing for a second of speech; below 1 is faster than real time. "
        "Cold starts and first voices: one of each side, in the order of the columns.",
        *document["notes"],
    ]


def comparison_table(document: dict[str, Any]) -> str:
    names = [n for n, s in document["sides"].items() if not s["failed"]]
    ours = [n for n in names if n != "baseline"]
    found = {(r["length"], r["side"]): r for r in document["rows"]}
    ratio = {(r["length"], r["side"]): r for r in document["ratios"]}
    rows = []
    for length in dict.fromkeys(r["length"] for r in document["rows"]):
        speech = next(r["speech_seconds"] for r in document["rows"] if r["length"] == length)
        cells = [f"{length}, {speech:.3g} s of speech"]
        cells += [_seconds(found.get((length, n))) for n in names]
        rows.append(cells + [ratio_cell(ratio.get((length, n)), 2) for n in ours])
    for what, key in (
        ("cold start to first sound, 1 s of speech", "first_audio"),
        ("of it: import and load", "import_and_load"),
        ("of it: first voice, 12 s recording", "voice"),
        ("another voice", "another_voice"),
    ):
        values = [document["cold"][n].get(key) for n in names]
        if any(values):
            rows.append(_fixed(what, values, names, "{:.2f} s"))
    for what, key in (
        ("peak resident memory, speaking", "peak_rss_mb"),
        ("peak resident memory, loading", "peak_loading_rss_mb"),
        ("peak GPU memory", "peak_vram_mb"),
    ):
        values = [document["memory"][n].get(key) for n in names]
        if any(values):
            rows.append(_fixed(what, values, names, "{:,.0f} MB"))
    head = ["", *(_side(n) for n in names), *(f"{_side(n)}: ratio (range)" for n in ours if "baseline" in names)]
    return table(head, [r[: len(head)] for r in rows])


def stage_seconds(document: dict[str, Any]) -> str:
    rows = []
    for r in document["rows"]:
        warm = f"{r['warmup_seconds']:.2f}" if r["warmup_seconds"] else ""
        rows.append([f"{r['length']}, {_side(r['side'])}", *(f"{r['stages'][s]:.3f}" for s in STAGES), warm])
    return table(["", *STAGES, "first call at this length"], rows)


def _side(name: str) -> str:
    return {"baseline": "chatterbox-tts"}.get(name, name.replace("optimized", "chatterbox_opt"))


def _seconds(found: dict | None) -> str:
    return f"{found['seconds']['median']:.2f} s, RTF {found['rtf']['median']:.3g}" if found else "not run"


def ratio_cell(found: dict | None, digits: int) -> str:
    """A single turn has no range."""
    if not found:
        return ""
    ratio, low, high = (f"{found[k]:.{digits}f}" for k in ("ratio", "low", "high"))
    return f"**{ratio}** ({low} to {high})" if found["turns"] > 1 else f"**{ratio}** (one turn)"


def timed(documents: list[dict[str, Any]]) -> str:
    """What a figure of these comparisons is."""
    counts = sorted({len(r["rtf"]["runs"]) for d in documents for r in d["rows"]})
    if not counts:
        return "no call fitted into the time given"
    if counts[-1] == 1:
        return "one call each"
    return f"medians of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} calls"


def _fixed(what: str, values: list[float | None], names: list[str], form: str) -> list[str]:
    cells = [what, *("" if v is None else form.format(v) for v in values)]
    base = values[names.index("baseline")] if "baseline" in names else None
    return cells + [f"{base / v:.2f}" if base and v else "" for n, v in zip(names, values) if n != "baseline"]


# ---- inference -----------------------------------------------------------------------------------


def inference(document: dict[str, Any]) -> list[str]:
    machine = document["machine"]
    rates = ", ".join(f"{d} {machine['gflops'][d]:,.0f} GFLOP/s" for d in ("float32", "bfloat16", "int8"))
    lines = [
        title(document, ", stage by stage"),
        "",
        f"Measured on the same device: {machine['read_gb_per_s']:.1f} GB/s read; matrix products {rates}.",
        "",
        inference_table(document["rows"]),
    ]
    if document["logits"]:
        lines += ["", "Logits against float32, the same history on both sides:", "", logit_table(document["logits"])]
    if document["skipped"]:
        lines += ["", "Not measured: " + "; ".join(document["skipped"])]
    return [*lines, "", "tokens: one step of the whole batch; the other stages: a whole call."]


def ceiling_table(floors: list[dict[str, Any]]) -> str:
    rows = []
    for f in floors:
        size = f"{f['mb']:,.0f}" if f["mb"] else ""
        name = f"{f['stage']}, {f['precision']}, batch {f['batch']}"
        rows.append([name, f"{f['gflop']:,.2f}", size, f"{1000 * f['seconds']:,.2f}", f["bound_by"]])
    return table(["ceiling", "GFLOP", "MB", "floor, ms", "bound by"], rows)


def inference_table(rows: list[dict[str, Any]]) -> str:
    out = []
    for r in rows:
        median, low, high = (1000 * r["steady"][k] for k in ("median", "low", "high"))
        out.append([
            f"{r['stage']}, {r['precision']}, batch {r['batch']}",
            f"{1000 * r['floor']:,.2f}",
            f"{median:,.2f} ({low:,.2f} to {high:,.2f})",
            f"{100 * r['reached']:.0f} %",
            f"{r['times_real_time']:.2f}",
            f"{r['gb_per_s']:.1f}" if "gb_per_s" in r else "",
            f"{r['first_seconds']:.2f} s",
        ])
    return table(["", "ceiling, ms", "measured, ms (range)", "reached", "times real time", "GB/s", "first call"], out)


def logit_table(rows: list[dict[str, Any]]) -> str:
    out = [
        [
            r["precision"], f"{r['rms_error']:.3g}", f"{r['spread']:.3g}", f"{r['kl']:.3g}",
            f"{100 * r['argmax_agreement']:.1f} %",
        ]
        for r in rows
    ]
    return table(["", "rms error", "spread of the logits", "KL", "same likeliest token"], out)


# ---- ladder --------------------------------------------------------------------------------------


def ladder(document: dict[str, Any]) -> list[str]:
    lines = [title(document, f", {document['speech_seconds']:g} s of speech"), "", ladder_table(document)]
    if document["skipped"]:
        lines += ["", "Not measured, over the budget: " + "; ".join(document["skipped"])]
    held = "holds: the same tokens were drawn" if document["exact_holds"] else "DID NOT HOLD"
    return [*lines, "", f"What is called exact {held}."]


def ladder_table(document: dict[str, Any]) -> str:
    out = []
    for r in document["rows"]:
        if "failed" in r:
            out.append([r["name"], f"failed: {r['failed'][:60]}", *[""] * 6])
            continue
        out.append([
            r["name"] if r["kind"] != "alone" else f"*defaults, and {r['name']}*",
            _kind(r), f"{r['ms_per_token']:.2f}", f"{r['stages']['mel']:.3f}", f"{r['stages']['wav']:.3f}",
            f"{r['seconds']['median']:.3f}", f"{r['step']:.2f}", f"**{r['ratio']:.2f}**",
        ])
    head = ["one after another", "", "T3, ms/token", "flow, s", "HiFT, s", "whole, s", "ratio to the one before"]
    return table([*head, "ratio to all off"], out)


def _kind(r: dict[str, Any]) -> str:
    if r["kind"] == "reference":
        return "reference"
    if not r["exact"]:
        return "approximate"
    return "exact: same tokens" if r["same_tokens"] else "exact, but OTHER TOKENS"


# ---- quality -------------------------------------------------------------------------------------


def quality(document: dict[str, Any]) -> list[str]:
    lines = [title(document, ", approximate modes against the exact one"), "", quality_table(document)]
    if document["skipped"]:
        lines += ["", "Not measured, over the budget: " + ", ".join(document["skipped"])]
    if document["settings"]["weights"] == "random":
        lines += ["", "Random weights say nothing about words, and spread their logits otherwise than trained ones do."]
    return [*lines, *document["notes"]]


def quality_table(document: dict[str, Any]) -> str:
    columns = [
        ("same likeliest token", "argmax_agreement", "{:.1%}"),
        ("KL", "kl", "{:.2g}"),
        ("mel: mean error", "mel_mean_abs", "{:.3f}"),
        ("mel: SNR", "mel_snr_db", "{:.1f} dB"),
        ("sound: spectral distance", "spectral_db", "{:.1f} dB"),
        ("WER", "wer", "{:.1%}"),
        ("voice similarity", "similarity", "{:.3f}"),
        ("length ratio", "length_ratio", "{:.2f}"),
        ("ended by itself", "ended_by_itself", "{:.0%}"),
    ]
    columns = [c for c in columns if any(r.get(c[1]) is not None for r in document["rows"])]
    out = []
    for r in document["rows"]:
        cells = ["" if r.get(key) is None else form.format(r[key]) for _, key, form in columns]
        if r.get("mel_mean_abs") == 0:  # it all happens before the mel
            cells[2:5] = ["same"] * 3
        if "failed" in r:
            cells[0] = f"failed: {r['failed'][:60]}"
        out.append([f"{r['mode']}: {r['what']}", *cells])
    return table(["mode", *(c[0] for c in columns)], out)


# ---- streaming -----------------------------------------------------------------------------------


def streaming(document: dict[str, Any]) -> list[str]:
    head = ["speech", "first_chunk", "in one call", "first sound of a stream", "sooner", "its last", "gaps"]
    rows = [
        [
            f"{r['length']}, {r['speech_seconds']:.1f} s", f"{r['first_chunk']:g} s",
            *(f"{r[k]['median']:.2f} s" for k in ("whole_seconds", "first_seconds")), f"**{r['sooner']:.1f}**",
            f"{r['last_seconds']['median']:.2f} s",
            f"{gap:.2f} s" if (gap := r["gap_seconds"]["median"]) > 0.005 else "none",
        ]
        for r in document["rows"]
    ]
    options = document["settings"]["options"]
    return [
        title(document, "" if options == "defaults" else f", {options}"),
        "",
        table(head, rows),
        "",
        "Seconds from the call, medians. Gaps: the silence in all, for one who plays each chunk when it is there.",
    ]


# ---- server --------------------------------------------------------------------------------------


def server(document: dict[str, Any]) -> list[str]:
    gap = 1000 * document["settings"]["gap"]
    return [
        title(document, ", served"),
        "",
        server_table(document),
        "",
        "All clients ask at the same moment, each for one sentence. RTF: seconds from asking to the last sample for a "
        f"second of speech, medians. Without a gap: streams that play on, once begun, with no silence above {gap:.0f} "
        f"ms. {_served(document['rows'])}",
    ]


def server_table(document: dict[str, Any]) -> str:
    head = ["clients", "may wait", "answered", "sent away (429)", "first sound, p50", "p95", "RTF"]
    rows = [
        [
            r["clients"], r["waiting"], r["answered"], r["refused"], f"{r['first_p50']:.2f} s",
            f"{r['first_p95']:.2f} s", f"{r['rtf_p50']:.2f}", f"{r['speech_per_second']:.1f}",
            f"{100 * r['continuous']:.0f} %",
        ]
        for r in document["rows"]
    ]
    return table([*head, "speech a second, s", "without a gap"], rows)


def _served(rows: list[dict[str, Any]]) -> str:
    lost, other, same, answered = (sum(r[key] for r in rows) for key in ("lost", "other", "same", "answered"))
    if lost or other:
        return f"{lost} ANSWERS WERE LOST, AND {other} ARE NOT WHAT THE SAME REQUEST GETS ALONE."
    alone = f"{same} of {answered} answers are byte for byte what the same request gets alone"
    others = "; the others are as long to the sample, and correlate with it above 0.9."
    rest = "." if same == answered else others
    return f"Nothing was lost or mixed up. {alone}{rest}"


# ---- concurrency ---------------------------------------------------------------------------------


def concurrency(document: dict[str, Any]) -> list[str]:
    settings = document["settings"]
    each, before = settings["each"], settings.get("before", "an older one, not recorded")
    turns = f"Medians of {settings['turns']} turns." if settings.get("turns", 1) > 1 else "One turn."
    beside = f" Before: commit {before}." if sides(document) > 1 else ""
    return [
        title(document, ", many callers at once"),
        "",
        concurrency_table(document),
        "",
        f"Each caller is a thread that asks for {each} sentences, one after another. First sound: of a call its end. "
        "RTF: seconds from asking to the last sample for a second of speech, median. Gap: silence in all while it "
        f"plays, median. {turns}{beside}",
    ]


def sides(document: dict[str, Any]) -> int:
    return len({r["side"] for r in document["rows"]})


def concurrency_table(document: dict[str, Any]) -> str:
    head = ["", "callers", *(["side"] if sides(document) > 1 else []), "sentences a minute", "first sound, p50", "p95"]
    rows = [
        [
            r["mode"], r["callers"], *([r["side"]] if sides(document) > 1 else []), f"{r['sentences_per_minute']:.0f}",
            f"{r['first_p50']:.2f} s", f"{r['first_p95']:.2f} s", f"{r['rtf_p50']:.2f}", f"{r['gap_p50']:.2f} s",
            f"{r['speech_per_second']:.2f}",
        ]
        for r in document["rows"]
    ]
    return table([*head, "RTF", "gap", "speech a second, s"], rows)
