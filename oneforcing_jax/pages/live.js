// The page of the live server: one connection, frames shown at their times, and what can be said meanwhile.
"use strict";

const $ = (id) => document.getElementById(id);
const PLACE = "live session"; // {session, key, boot} of this tab, so that a reload goes on
const LARGEST_SIDE = 1280; // pixels of an image that is sent

let socket = null;
let hello = null; // what the server said of itself
let state = null; // where the session stands
let mine = null; // {session, key, boot}; no key: only watched
let image = null; // base64 of the first frame
let asked = 0; // when Start was pressed; 0: a first frame was shown since
let retry = 500;
let small = false; // whether this connection's frames are H.264, which pages of localhost and HTTPS may decode
let began = 0; // epoch in which the shown video began
let seen = 0; // its frames up to the one on the screen
let blank = false; // whether the form waits to be filled as the video that a loaded page goes on with

function send(message) {
  notice = null;
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  else say("There is no connection to the server yet.", true);
}

function connect() {
  const address = new URL("live", location.href.split("#")[0]);
  address.protocol = address.protocol.replace("http", "ws");
  small = $("small").checked;
  if (small) address.searchParams.set("video", "h264");
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => (typeof data === "string" ? heard(JSON.parse(data)) : arrived(data));
  socket.onclose = ({ code, reason }) => {
    allow();
    const why = code === 1008 ? `The server closed the connection: ${reason}.` : "The connection is lost.";
    say(`${why} Trying again …`, true);
    setTimeout(connect, retry);
    retry = Math.min(retry * 1.5, 5000);
  };
}

// Connects again for frames in the other form.
function again() {
  for (const { failed } of decoding.values()) failed();
  decoding.clear();
  decoder = null;
  fresh(0);
  retry = 50;
  socket.close();
}

// A decoder that fails is not asked again.
function large() {
  $("small").checked = false;
  $("may_small").hidden = true;
  again();
}

function heard(message) {
  if (message.say === "hello") greeted(message);
  else if (message.say === "session") joined(message);
  else if (message.say === "state") stands(message);
  else if (message.say === "refused") refused(message);
}

function greeted(message) {
  const first = hello === null;
  const given = new URLSearchParams(location.hash.slice(1));
  hello = message;
  retry = 500;
  document.documentElement.style.setProperty("--shape", `${hello.columns} / ${hello.rows}`);
  $("prompt").maxLength = hello.longest_prompt;
  $("frames").max = hello.most_frames;
  document.title = `${hello.model} · Live video`;
  $("model").textContent = `${hello.model}, ${hello.columns}×${hello.rows}, ${hello.fps} fps`;
  if (first) {
    $("frames").value = hello.frames;
    for (let n = 1; n <= hello.first_steps; n++) $("steps").add(new Option(n === 1 ? "1 step" : `${n} steps`, n));
    $("steps").value = hello.first_steps;
    for (const n of hello.windows) $("window").add(new Option(`${n} frames`, n));
    for (const name of hello.adapters) $("adapter").add(new Option(name, name));
    $("adapters").hidden = !hello.adapters.length;
    $("examples").replaceChildren(...hello.examples.map(example));
    $("prompt").value ||= hello.examples[0] || "";
    fill(given);
    blank = !given.has("prompt");
  }
  const linked = given.get("watch");
  mine = JSON.parse(sessionStorage.getItem(PLACE)) || (linked && { session: linked });
  if (mine) send({ do: "watch", session: mine.session, key: mine.key || "" });
  else notice = null;
  tell();
  if (!hello.ready) warming();
}

async function warming() {
  const answer = await fetch("health").then((found) => found.json()).catch(() => null);
  if (!answer || !answer.ready) return void setTimeout(warming, 1000);
  hello.ready = true;
  tell();
}

function example(words) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = words;
  button.onclick = () => ($("prompt").value = words);
  return button;
}

function fill(given) {
  for (const name of ["prompt", "seed", "frames", "steps", "window", "adapter"]) if (given.has(name)) $(name).value = given.get(name);
  $("recompute").checked = given.get("recompute") === "true";
}

// What a video was asked for, as links have it.
function settings({ seed, frames, first_steps: steps, window, recompute, adapter }, prompt) {
  return new URLSearchParams({ prompt, seed, frames, steps, window, recompute, adapter });
}

function joined(message) {
  const again = mine && mine.session === message.session;
  mine = { session: message.session, key: message.key, boot: hello.boot };
  if (message.own) sessionStorage.setItem(PLACE, JSON.stringify(mine));
  if (!again || waiting.length === 0) fresh(0);
  state = null;
  $("watch").href = `${location.pathname}${location.search}#watch=${mine.session}`;
  $("links").hidden = false;
}

function refused(message) {
  if (message.status === 404 && mine) {
    const anew = mine.boot && mine.boot !== hello.boot;
    sessionStorage.removeItem(PLACE);
    mine = state = null;
    $("links").hidden = true;
    allow();
    say(
      anew
        ? `The server was started anew, and the video is gone after ${shown ? `${shown} shown frames` : "a while"}. Press Start to make it again.`
        : "That video is gone: it ended long ago. Press Start to make another.",
      true,
    );
    return;
  }
  asked = 0;
  say(`That was refused: ${message.error}`, true);
}

function stands(found) {
  const before = state;
  state = found;
  if (blank) {
    fill(settings(found, found.asked || found.prompt));
    blank = false;
  }
  if (began !== found.marks[0].epoch) begin(found.marks[0].epoch);
  if (!before || before.epoch !== found.epoch) marks(found);
  if (before && ["state", "place", "epoch", "asked"].some((name) => before[name] !== found[name])) notice = null;
  if (found.meters) {
    const milliseconds = (seconds) => `${(1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
    $("m_model").textContent = milliseconds(found.meters.model);
    $("m_decode").textContent = milliseconds(found.meters.decode);
    $("m_made").textContent = found.meters.made.toFixed(1);
  }
  $("again").href = `${location.pathname}${location.search}#${settings(found, found.marks[0].prompt)}`;
  $("canvas").setAttribute("aria-label", `Video: ${found.prompt}`);
  allow();
  tell();
}

// Another video: nothing of the one before is left on the screen.
function begin(epoch) {
  began = epoch;
  seen = 0;
  const canvas = $("canvas");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  $("made").style.width = 0;
  $("count").textContent = "\u00a0";
}

function marks(found) {
  for (const old of document.querySelectorAll(".mark")) old.remove();
  for (const { frame, prompt } of found.marks.slice(1)) {
    const line = document.createElement("span");
    line.className = "mark";
    line.style.left = `${(100 * frame) / found.frames}%`;
    line.title = `from frame ${frame + 1}: ${prompt}`;
    $("timeline").append(line);
  }
  $("marks").replaceChildren(
    ...found.marks.map(({ frame, prompt }) => {
      const item = document.createElement("li");
      item.textContent = `From frame ${frame + 1}: ${prompt}`;
      return item;
    }),
  );
  const switches = found.marks.length - 1;
  $("timeline").setAttribute("aria-label", `Timeline with ${switches} prompt ${switches === 1 ? "switch" : "switches"}`);
}

// Which controls can be used.
function allow() {
  const open = socket.readyState === WebSocket.OPEN;
  const own = open && state && mine && mine.key;
  const set = (id, may) => $(id).setAttribute("aria-disabled", String(!may));
  const going = own && ["running", "paused"].includes(state.state);
  set("pause", going);
  $("pause").textContent = state && state.state === "paused" ? "Resume" : "Pause";
  set("stop", own && state.state !== "ended");
  set("switch", own && state.state !== "ended");
  const kept = open && state && state.made > 0;
  set("replay", kept);
  set("download", kept);
  if (kept) $("download").href = `videos/${state.session}.mp4`;
  else $("download").removeAttribute("href");
}

const may = (id) => $(id).getAttribute("aria-disabled") !== "true";

function start() {
  blank = false;
  const wish = { do: "start", prompt: $("prompt").value };
  wish.recompute = $("recompute").checked;
  wish.adapter = $("adapter").value;
  const numbers = { seed: "seed", frames: "frames", first_steps: "steps", window: "window" };
  for (const [name, id] of Object.entries(numbers)) wish[name] = Number($(id).value);
  if (image) wish.image = image;
  live();
  asked = now();
  history.replaceState(null, "", location.pathname + location.search);
  send(wish);
}

function pause() {
  if (may("pause")) send({ do: state.state === "paused" ? "resume" : "pause" });
}

async function replay() {
  if (!$("replayed").hidden) return live();
  if (!may("replay")) return;
  say("Fetching the video …");
  const answer = await fetch(`videos/${state.session}.mp4`).catch(() => null);
  if (!answer || !answer.ok) return say("The video could not be fetched.", true);
  $("replayed").src = URL.createObjectURL(await answer.blob());
  $("replayed").hidden = false;
  $("canvas").hidden = true;
  $("replay").textContent = "Back";
  $("replayed").focus();
  await $("replayed").play().catch(() => {});
  say("Replay.");
}

// Back from a replay.
function live() {
  if ($("replayed").src) URL.revokeObjectURL($("replayed").src);
  $("replayed").removeAttribute("src");
  $("replayed").hidden = true;
  $("canvas").hidden = false;
  $("replay").textContent = "Replay";
  notice = null;
  tell();
}

// An image as the server takes it: no larger than needed, and without what a camera adds.
async function take(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(bitmap.width * scale);
    canvas.height = Math.round(bitmap.height * scale);
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    image = canvas.toDataURL("image/jpeg", 0.92).split(",")[1];
    $("image_name").textContent = `Begins with ${file.name || "the image"}.`;
    $("chosen").hidden = false;
  } catch {
    say("That is no image that this browser can read.", true);
  }
}

function forget() {
  image = null;
  $("image").value = "";
  $("chosen").hidden = true;
}

$("form").onsubmit = (event) => {
  event.preventDefault();
  start();
};
$("switch").onclick = () => may("switch") && send({ do: "prompt", prompt: $("prompt").value });
$("pause").onclick = pause;
$("small").onchange = again;
$("may_small").hidden = !("VideoDecoder" in window);
$("stop").onclick = () => may("stop") && send({ do: "stop" });
$("replay").onclick = replay;
$("image").onchange = ({ target }) => target.files.length && take(target.files[0]);
$("no_image").onclick = forget;
document.ondragover = (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
};
document.ondragleave = () => $("drop").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
};
document.onkeydown = (event) => {
  const free = !["BUTTON", "A", "INPUT", "TEXTAREA", "SELECT", "VIDEO"].includes(event.target.tagName);
  if (event.key === " " && free) pause();
  else if (event.key === "Enter" && event.ctrlKey && event.target === $("prompt")) $("form").requestSubmit();
  else return;
  event.preventDefault();
};
window.onhashchange = () => location.reload();

connect();
tell();
requestAnimationFrame(tick);
