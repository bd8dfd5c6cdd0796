// The page of a report: which methods (or models of a run), prompt and seed are shown stands in the fragment
// of its address.
"use strict";

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const TINY = 256; // pixels below which videos are scaled up without smoothing
const boxes = [...document.querySelectorAll("#methods input")];
const number = Object.fromEntries(boxes.map((box, n) => [box.value, n]));
const seeds = [...new Set(data.flatMap((row) => row.tiles.map((tile) => tile.seed)))].sort();
const hidden = (name) => name in number && !boxes[number[name]].checked;
const together = new Together();
const hiding = document.head.appendChild(document.createElement("style"));

function options(select, values) {
  select.replaceChildren(...values.map((value, n) => new Option(value, n)));
}

const pick = (select, values, wanted) => (select.value = Math.max(0, values.indexOf(wanted)));

// From the fragment to the controls; what it does not name stays at the first, and all methods are shown.
function read() {
  const said = new URLSearchParams(location.hash.slice(1));
  const shown = said.getAll("show").filter((name) => name in number);
  for (const box of boxes) box.checked = !shown.length || shown.includes(box.value);
  pick($("prompt"), data.map((row) => row.prompt), said.get("prompt"));
  pick($("seed"), seeds, said.get("seed"));
  draw();
}

// From the controls to the fragment.
function write() {
  const said = new URLSearchParams();
  if (data.length) said.set("prompt", data[$("prompt").value].prompt);
  if (seeds.length > 1) said.set("seed", seeds[$("seed").value]);
  if (!boxes.every((box) => box.checked)) {
    for (const box of boxes) if (box.checked) said.append("show", box.value);
  }
  history.replaceState(null, "", `#${said}`);
  draw();
}

function draw() {
  const away = boxes.filter((box) => !box.checked).map((box) => `main :not(label).m${number[box.value]}`);
  hiding.textContent = away.length ? `${away.join(", ")} { display: none; }` : "";
  if (!data.length) return;
  const shown = data[$("prompt").value].tiles.filter(
    (tile) => !hidden(tile.name) && tile.seed === seeds[$("seed").value]);
  const figures = shown.map(figure);
  $("tiles").replaceChildren(...figures);
  $("tiles").style.setProperty("--count", figures.length);
  $("tiles").classList.toggle("few", figures.length <= 4);
  const videos = figures.map((one) => one.firstChild);
  speed(videos);
  together.take(videos).catch((video) => {
    video.nextSibling.textContent += ": this browser cannot play it";
  });
}

function figure(tile) {
  const made = document.createElement("figure");
  if (tile.name in number) made.className = `m${number[tile.name]}`;
  const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, src: tile.url });
  video.setAttribute("aria-label", tile.name);
  video.onloadedmetadata = () => video.classList.toggle("tiny", video.videoWidth < TINY);
  const caption = document.createElement("figcaption");
  caption.textContent = tile.name;
  made.append(video, caption);
  return made;
}

function step(by) {
  $("prompt").value = (Number($("prompt").value) + by + data.length) % data.length;
  write();
}

function speed(videos = together.videos) {
  const half = $("slower").getAttribute("aria-pressed") === "true";
  for (const video of videos) video.playbackRate = video.defaultPlaybackRate = half ? 0.5 : 1;
}

options($("prompt"), data.map((row) => row.prompt));
options($("seed"), seeds);
$("videos").hidden = !data.length;
$("seeds").hidden = seeds.length < 2;
$("methods").hidden = boxes.length < 2;
$("scores").hidden = !document.querySelector("#scores table");
$("curves").hidden = !document.querySelector("#curves svg");
$("config").hidden = !document.querySelector("#config table");
$("notes").hidden = !document.querySelector("#notes li");
$("before").onclick = () => step(-1);
$("after").onclick = () => step(1);
$("pause").onclick = () => {
  together.toggle();
  $("pause").textContent = together.playing ? "Pause" : "Play";
};
$("slower").onclick = (event) => {
  const button = event.currentTarget;
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  speed();
};
for (const control of [...boxes, $("prompt"), $("seed")]) control.onchange = write;
addEventListener("hashchange", read);
read();
