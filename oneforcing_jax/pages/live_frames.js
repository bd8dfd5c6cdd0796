// Frames of the live server, from their arrival to the screen; live.js has the rest of the page.
"use strict";

const DELAY = 0.1; // seconds between a frame's arrival and its turn, which hides what arrives unevenly
const LATE = 0.3; // seconds after which the clock follows the frames
const HEADER = 20; // bytes: serial, epoch and number of 4 each, a time of 8

// Frames on their way to the screen.
const waiting = [];
let clock = null; // performance.now() / 1000 at time 0 of the video
let epoch = 0;
let shown = 0;
let recent = []; // times at which frames were shown
const now = () => performance.now() / 1000;

// What is on its way is stale.
function fresh(of) {
  for (const frame of waiting.splice(0)) frame.picture.then((bitmap) => bitmap.close(), () => {});
  clock = null;
  epoch = of;
}

function arrived(buffer) {
  const view = new DataView(buffer);
  const frame = { serial: view.getUint32(0), number: view.getUint32(8), time: view.getFloat64(12) };
  const of = view.getUint32(4);
  if (of < epoch) return acknowledge(frame);
  if (of > epoch) fresh(of);
  const blob = new Blob([new Uint8Array(buffer, HEADER)], { type: "image/jpeg" });
  frame.picture = createImageBitmap(blob);
  frame.picture.then((bitmap) => (frame.bitmap = bitmap), () => (frame.broken = true));
  waiting.push(frame);
  if (clock === null || now() > clock + frame.time + LATE) clock = now() + DELAY - waiting[0].time;
}

function acknowledge(frame) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ do: "ack", serial: frame.serial }));
}

function tick() {
  requestAnimationFrame(tick);
  if (state && state.state === "paused") return void (clock = null);
  if (waiting.length && clock === null) clock = now() - waiting[0].time;
  if (waiting.length && (waiting[0].bitmap || waiting[0].broken) && now() >= clock + waiting[0].time) {
    const frame = waiting.shift();
    if (frame.bitmap) draw(frame);
    acknowledge(frame);
  }
  if (state && state.state === "ended" && !waiting.length && !ended) finished();
}

function draw(frame) {
  const canvas = $("canvas");
  if (canvas.width !== frame.bitmap.width || canvas.height !== frame.bitmap.height) {
    canvas.width = frame.bitmap.width;
    canvas.height = frame.bitmap.height;
  }
  canvas.getContext("2d").drawImage(frame.bitmap, 0, 0);
  frame.bitmap.close();
  canvas.dataset.number = frame.number;
  canvas.dataset.count = ++shown;
  $("idle").hidden = true;
  if (asked) {
    $("m_first").textContent = `${(now() - asked).toFixed(2)} s`;
    asked = 0;
  }
  recent = recent.filter((time) => time > now() - 2);
  recent.push(now());
  $("m_shown").textContent = recent.length > 1 ? ((recent.length - 1) / (now() - recent[0])).toFixed(1) : "–";
  if (state) progress(frame.number + 1);
}

function progress(seen) {
  $("made").style.width = `${(100 * seen) / state.frames}%`;
  const seconds = (frames) => (frames / hello.fps).toFixed(1);
  $("count").textContent = `frame ${seen} of ${state.frames} (${seconds(seen)} of ${seconds(state.frames)} s)`;
}
