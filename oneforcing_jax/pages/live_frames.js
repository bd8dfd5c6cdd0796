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
let decoder = null; // of H.264; null: frames are JPEG
const decoding = new Map(); // serial number -> what to do with its picture
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
  const data = new Uint8Array(buffer, HEADER);
  frame.picture = small ? decoded(frame.serial, data) : createImageBitmap(new Blob([data], { type: "image/jpeg" }));
  if (of < epoch) {
    frame.picture.then((bitmap) => bitmap.close(), () => {});
    return acknowledge(frame);
  }
  if (of > epoch) fresh(of);
  frame.picture.then((bitmap) => (frame.bitmap = bitmap), () => (frame.broken = true));
  waiting.push(frame);
  if (clock === null || now() > clock + frame.time + LATE) clock = now() + DELAY - waiting[0].time;
}

// A picture out of the stream of H.264, every frame of which must be decoded, seen or not.
function decoded(serial, data) {
  const key = (data[4] & 31) === 7; // begins with the settings of the decoder
  if (key) {
    const codec = "avc1." + [...data.slice(5, 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    const finish = (picture) => {
      const settle = decoding.get(picture.timestamp);
      decoding.delete(picture.timestamp);
      createImageBitmap(picture).then(settle.done, settle.failed).finally(() => picture.close());
    };
    decoder = new VideoDecoder({ output: finish, error: () => large() });
    decoder.configure({ codec, optimizeForLatency: true });
  }
  return new Promise((done, failed) => {
    if (!decoder || decoder.state !== "configured") return failed();
    decoding.set(serial, { done, failed });
    decoder.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp: serial, data }));
  });
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
    tell();
  }
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
  seen = frame.number + 1;
  if (asked) {
    $("m_first").textContent = `${(now() - asked).toFixed(2)} s`;
    asked = 0;
  }
  recent = recent.filter((time) => time > now() - 2);
  recent.push(now());
  $("m_shown").textContent = recent.length > 1 ? ((recent.length - 1) / (now() - recent[0])).toFixed(1) : "–";
  if (state) progress();
}

function progress() {
  $("made").style.width = `${(100 * seen) / state.frames}%`;
  const seconds = (frames) => (frames / hello.fps).toFixed(1);
  $("count").textContent = `frame ${seen} of ${state.frames} (${seconds(seen)} of ${seconds(state.frames)} s)`;
}
