"use strict";

const $ = (id) => document.getElementById(id);
const NAMES = {
  exaggeration: "Exaggeration", cfg_weight: "Guidance (cfg_weight)", temperature: "Temperature", top_p: "top_p",
  min_p: "min_p", top_k: "top_k", repetition_penalty: "Repetition penalty", speed: "Speed",
};
const SPEED = { default: 1, min: 0.5, max: 2, step: 0.05 };
const PEAKS_A_SECOND = 50;
const KEPT = 30; // sounds of the session

let model = null; // as the server describes it
let current = null; // the speech being made or heard
let conversion = null;

// ---- the server ---------------------------------------------------------------------------------

async function call(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = new Headers(options.headers);
  try {
    if (key) headers.set("authorization", `Bearer ${key}`);
  } catch { // no header takes such letters: kept, the key would stop every request before it is sent
    sessionStorage.removeItem("key");
    askForKey("The key was not accepted: it has characters that cannot be sent.");
    throw failure(401, "A valid API key is needed");
  }
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) askForKey(key ? "The key was not accepted." : "");
  else keyIsTaken();
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw failure(answer.status, body?.error?.message ?? `The server answered ${answer.status}`);
}

function failure(status, message) {
  return Object.assign(new Error(message), { status });
}

/** `trouble`: what was wrong with the last one, if there was one. */
function askForKey(trouble) {
  $("other-key").hidden = false; // Esc closes the dialog
  if (!$("key-dialog").open) $("key-dialog").showModal();
  $("key-trouble").hidden = !trouble;
  $("key-trouble").textContent = trouble; // last: only what changes in sight is read out
}

function keyIsTaken() {
  if (document.activeElement === $("other-key")) $("text").focus(); // where the dialog left it, and it goes
  $("other-key").hidden = true;
}

async function connect() {
  try {
    model = (await (await call("/v1/audio/models")).json()).models[0];
    await listVoices();
  } catch (error) {
    $("status").textContent = error.message;
    if (error.status !== 401) setTimeout(connect, 2000);
    return;
  }
  $("status").textContent = `Ready: ${model.id}`;
  $("go").disabled = false;
  $("upload").hidden = $("convert-card").hidden = !model.clones;
  $("no-clones").hidden = model.clones;
  $("voices-card").classList.toggle("wide", !model.clones);
  const languages = Object.entries(model.languages);
  $("language").replaceChildren(...languages.map(([id, name]) => new Option(name, id, id === "en", id === "en")));
  $("language-field").hidden = languages.length < 2;
  buildSliders();
}

function buildSliders() {
  const rows = Object.entries({ ...model.parameters, speed: SPEED }).map(([name, range]) => {
    const input = document.createElement("input");
    Object.assign(input, { type: "range", id: `p-${name}`, min: range.min, max: range.max, step: range.step });
    input.value = range.default;
    const output = document.createElement("output");
    const show = () => { output.textContent = input.value; };
    input.addEventListener("input", show);
    show();
    const label = document.createElement("label");
    label.htmlFor = input.id;
    label.append(NAMES[name] ?? name, output);
    const row = document.createElement("div");
    row.append(label, input);
    return row;
  });
  $("sliders").replaceChildren(...rows);
}

/** Only what was moved: the rest is the server's to choose. */
function chosen() {
  const out = {};
  for (const [name, range] of Object.entries({ ...model.parameters, speed: SPEED })) {
    const value = Number($(`p-${name}`).value);
    if (value !== range.default) out[name] = value;
  }
  if ($("seed").value !== "") out.seed = Number($("seed").value);
  if (!$("language-field").hidden) out.language = $("language").value;
  return out;
}

// ---- voices -------------------------------------------------------------------------------------

async function listVoices() {
  const { voices } = await (await call("/v1/audio/voices")).json();
  const own = voices.filter((voice) => voice.id === "default" || voice.deletable);
  const whole = own.filter((voice) => !voice.error);
  for (const select of [$("voice"), $("target")]) {
    const before = select.value;
    select.replaceChildren(...whole.map((voice) => new Option(voice.id === "default" ? "The model's own" : voice.name, voice.id)));
    if (whole.some((voice) => voice.id === before)) select.value = before;
  }
  const held = $("voices").contains(document.activeElement);
  $("voices").replaceChildren(...own.map(voiceRow));
  if (held) $("voices").focus({ preventScroll: true }); // the button that had it is gone
}

function voiceRow(voice) {
  const row = document.createElement("li");
  const what = document.createElement("span");
  what.className = "what";
  what.textContent = voice.id === "default" ? "The model's own" : voice.name;
  if (voice.error) what.textContent += ` (damaged: ${voice.error})`;
  row.append(what);
  if (voice.deletable) {
    const remove = button("Delete", async () => {
      if (!confirm(`Delete the voice "${voice.name}"?`)) return;
      await told($("upload-note"), async () => {
        await call(`/v1/audio/voices/${encodeURIComponent(voice.id)}`, { method: "DELETE" });
        await listVoices();
        return `${voice.name} is deleted.`;
      });
    });
    remove.setAttribute("aria-label", `Delete the voice ${voice.name}`);
    row.append(remove);
  }
  return row;
}

function button(name, act) {
  const out = document.createElement("button");
  Object.assign(out, { type: "button", className: "quiet", textContent: name });
  out.addEventListener("click", act);
  return out;
}

/** What `work` returns, or what was wrong with it, is said in `note`. */
async function told(note, work) {
  note.classList.remove("trouble");
  try {
    note.textContent = (await work()) ?? "";
  } catch (error) {
    note.classList.add("trouble");
    note.textContent = error.name === "AbortError" ? "Stopped." : error.message;
  }
}

$("upload").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData();
  form.append("name", $("voice-name").value);
  form.append("audio_sample", $("voice-file").files[0]);
  form.append("consent", "given on the page");
  $("add").disabled = true;
  $("upload-note").textContent = "Preparing the voice …";
  await told($("upload-note"), async () => {
    const voice = await (await call("/v1/audio/voices", { method: "POST", body: form })).json();
    await listVoices();
    $("voice").value = voice.id;
    $("upload").reset();
    return `${voice.name} is there.`;
  });
  $("add").disabled = false;
});

// ---- speech -------------------------------------------------------------------------------------

/** Sound that is heard from its first samples on. */
class Speech {
  constructor(text, rate) {
    Object.assign(this, { text, rate, parts: [], peaks: [], samples: 0, done: false, rest: null });
    this.abort = new AbortController();
    this.context = new AudioContext({ sampleRate: rate });
    this.sources = new Set();
    this.next = 0; // when what comes next is due, on the context's clock
    this.origin = null; // when the first sample was, or is, heard
  }

  /** Bytes of 16-bit samples, cut anywhere. */
  add(bytes) {
    if (this.rest) bytes = joined([this.rest, bytes]);
    const whole = bytes.length - (bytes.length % 2);
    this.rest = whole < bytes.length ? bytes.slice(whole) : null;
    if (!whole) return;
    const view = new DataView(bytes.buffer, bytes.byteOffset, whole);
    const wave = Float32Array.from({ length: whole / 2 }, (_, i) => view.getInt16(2 * i, true) / 32768);
    this.parts.push(bytes.slice(0, whole));
    this.samples += wave.length;
    this.measure(wave);
    this.play(wave);
  }

  measure(wave) {
    const step = Math.round(this.rate / PEAKS_A_SECOND);
    for (let at = 0; at < wave.length; at += step) {
      let peak = 0;
      for (let i = at; i < Math.min(at + step, wave.length); i += 1) peak = Math.max(peak, Math.abs(wave[i]));
      this.peaks.push(peak);
    }
  }

  play(wave) {
    const buffer = this.context.createBuffer(1, wave.length, this.rate);
    buffer.copyToChannel(wave, 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    const start = Math.max(this.next, this.context.currentTime + 0.05);
    source.start(start);
    this.origin ??= start;
    this.next = start + buffer.duration;
    this.sources.add(source);
    source.onended = () => this.sources.delete(source);
  }

  get seconds() { return this.samples / this.rate; }
  get heard() {
    return this.origin === null ? 0 : Math.max(0, Math.min(this.seconds, this.context.currentTime - this.origin));
  }

  stop() {
    this.abort.abort();
    for (const source of this.sources) source.stop();
    this.sources.clear();
    if (this.context.state !== "closed") this.context.close();
  }

  replay() {
    for (const source of this.sources) source.stop();
    if (this.context.state !== "closed") this.context.close();
    this.context = new AudioContext({ sampleRate: this.rate });
    Object.assign(this, { next: 0, origin: null, sources: new Set() });
    const bytes = joined(this.parts);
    const view = new DataView(bytes.buffer);
    this.play(Float32Array.from({ length: this.samples }, (_, i) => view.getInt16(2 * i, true) / 32768));
  }

  file() {
    const head = new DataView(new ArrayBuffer(44));
    const word = (at, text) => [...text].forEach((c, i) => head.setUint8(at + i, c.charCodeAt(0)));
    const size = 2 * this.samples;
    word(0, "RIFF"); head.setUint32(4, 36 + size, true); word(8, "WAVEfmt "); head.setUint32(16, 16, true);
    head.setUint16(20, 1, true); head.setUint16(22, 1, true); head.setUint32(24, this.rate, true);
    head.setUint32(28, 2 * this.rate, true); head.setUint16(32, 2, true); head.setUint16(34, 16, true);
    word(36, "data"); head.setUint32(40, size, true);
    return new Blob([head, ...this.parts], { type: "audio/wav" });
  }
}

function joined(parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { out.set(part, at); at += part.length; }
  return out;
}

async function speak() {
  current?.stop();
  const speech = current = new Speech($("text").value, model.sample_rate);
  const began = performance.now();
  $("trouble").hidden = true;
  $("go").disabled = $("replay").disabled = true;
  $("stop").disabled = false;
  $("download").hidden = true;
  $("progress").textContent = "Waiting for the first sound …";
  Object.assign($("progress").dataset, { received: 0, state: "working" });
  requestAnimationFrame(() => draw(speech));
  try {
    const body = { input: speech.text, voice: $("voice").value, response_format: "pcm", ...chosen() };
    const answer = await call("/v1/audio/speech", {
      method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" },
      signal: speech.abort.signal,
    });
    const reader = answer.body.getReader();
    let first = null;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (first === null) {
        first = (performance.now() - began) / 1000;
        $("progress").textContent = ""; // the count is not said here: screen readers read all of this out
      }
      speech.add(value);
      $("progress").dataset.received = speech.samples;
      $("made").textContent = `${speech.seconds.toFixed(1)} s made, the first sound after ${first.toFixed(2)} s …`;
    }
    const spent = (performance.now() - began) / 1000;
    $("progress").textContent =
      `${speech.seconds.toFixed(1)} s of speech in ${spent.toFixed(1)} s, the first sound after ${first.toFixed(2)} s.`;
    $("progress").dataset.state = "done";
  } catch (error) {
    $("progress").dataset.state = error.name === "AbortError" ? "stopped" : "failed";
    $("progress").textContent = error.name === "AbortError" ? `Stopped after ${speech.seconds.toFixed(1)} s.` : "";
    if (error.name !== "AbortError" && current === speech) {
      $("trouble").textContent = error.message;
      $("trouble").hidden = false;
    }
  }
  $("made").textContent = "";
  speech.done = true;
  if (speech.samples) remember(speech);
  if (current !== speech) return;
  $("go").disabled = false;
  $("stop").disabled = !speech.sources.size;
  $("replay").disabled = !speech.samples;
  if (speech.samples) {
    $("download").href = speech.url;
    $("download").hidden = false;
  }
}

function draw(speech) {
  if (current !== speech) return;
  const canvas = $("wave"), paper = canvas.getContext("2d");
  const { width, height } = canvas;
  const shown = Math.max(speech.peaks.length, 4 * PEAKS_A_SECOND), bar = width / shown;
  const told = speech.heard * PEAKS_A_SECOND;
  paper.clearRect(0, 0, width, height);
  const strong = getComputedStyle($("theme")).color, faint = getComputedStyle($("text-note")).color;
  speech.peaks.forEach((peak, i) => {
    paper.fillStyle = i < told ? strong : faint;
    const tall = Math.max(2, peak * height);
    paper.fillRect(i * bar, (height - tall) / 2, Math.max(1, bar * 0.7), tall);
  });
  if (!speech.done || speech.sources.size) requestAnimationFrame(() => draw(speech));
  else $("stop").disabled = true;
}

function stop() {
  if (!current) return;
  current.stop();
  $("stop").disabled = true;
}

function remember(speech) {
  speech.url = URL.createObjectURL(speech.file());
  const row = document.createElement("li");
  const what = document.createElement("span");
  what.className = "what";
  what.textContent = shortened(speech.text, 120);
  const note = document.createElement("small");
  note.textContent = `${$("voice").selectedOptions[0]?.text ?? ""} · ${speech.seconds.toFixed(1)} s`;
  what.append(note);
  const audio = document.createElement("audio");
  Object.assign(audio, { controls: true, preload: "none", src: speech.url });
  audio.setAttribute("aria-label", `Speech: ${shortened(speech.text, 40)}`);
  const again = button("Use the text", () => { $("text").value = speech.text; count(); $("text").focus(); });
  again.setAttribute("aria-label", `Use the text: ${shortened(speech.text, 40)}`);
  row.append(what, audio, again);
  $("history").prepend(row);
  $("no-history").hidden = true;
  while ($("history").children.length > KEPT) {
    URL.revokeObjectURL($("history").lastElementChild.querySelector("audio").src);
    $("history").lastElementChild.remove();
  }
}

function shortened(text, most) {
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

function count() { $("count").textContent = $("text").value.length; }

$("speak").addEventListener("submit", (event) => {
  event.preventDefault();
  if (model && !$("go").disabled) speak();
});
$("text").addEventListener("input", count);
$("stop").addEventListener("click", stop);
$("replay").addEventListener("click", () => {
  current.replay();
  $("stop").disabled = false;
  requestAnimationFrame(() => draw(current));
});
$("reset").addEventListener("click", buildSliders);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("speak").requestSubmit();
});

// ---- conversion ---------------------------------------------------------------------------------

$("convert").addEventListener("submit", async (event) => {
  event.preventDefault();
  conversion = new AbortController();
  const form = new FormData();
  form.append("file", $("source").files[0]);
  form.append("voice", $("target").value);
  $("change").disabled = true;
  $("halt").disabled = false;
  $("convert-note").textContent = "Converting …";
  forgetConverted();
  await told($("convert-note"), async () => {
    const answer = await call("/v1/audio/conversions", { method: "POST", body: form, signal: conversion.signal });
    $("converted").src = URL.createObjectURL(await answer.blob());
    $("converted").hidden = false;
    return "Done.";
  });
  $("change").disabled = false;
  $("halt").disabled = true;
});
$("halt").addEventListener("click", () => conversion?.abort());

/** What was converted before must not pass for the answer to come. */
function forgetConverted() {
  const sound = $("converted");
  sound.hidden = true;
  URL.revokeObjectURL(sound.src);
  sound.removeAttribute("src");
  sound.load(); // it may be playing
}

// ---- the rest -----------------------------------------------------------------------------------

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  $("key-form").reset();
  $("key-dialog").close(); // before connect(), which may open it again at once
  connect();
});
$("other-key").addEventListener("click", () => $("key-dialog").showModal());

function dark() {
  const set = document.documentElement.dataset.theme;
  return set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
$("theme").addEventListener("click", () => {
  const theme = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
});

connect();
