// What the page of the live server says; live.js has the rest of it.
"use strict";

let notice = null; // {text, wrong}: what happened, said until something is done or the session stands otherwise

function say(text, wrong = false) {
  notice = { text, wrong };
  tell();
}

// Where the session stands for who watches it: a video has not ended before its last frame is shown.
const phase = () => (state.state === "ended" && waiting.length ? "running" : state.state);

// What is true now.
function standing() {
  if (!hello) return "Connecting …";
  if (!state) return hello.ready ? "Ready." : "The server is warming up; a video can be asked for already.";
  const mark = state.marks.at(-1);
  const soon = state.asked ? "The new prompt takes effect with the next block." : "";
  if (phase() === "waiting") {
    const place = state.place > 1 ? `${state.place - 1} before you` : "you are next";
    return hello.ready ? `Waiting for the device: ${place}.` : `The server is warming up: ${place}.`;
  }
  if (phase() === "paused") return `Paused. ${soon}`.trim();
  if (phase() === "ended") {
    const kept = state.made - state.kept_from;
    return `Ended: ${state.reason}. ${kept} ${kept === 1 ? "frame is" : "frames are"} kept.`;
  }
  if (soon) return soon;
  if (!seen && !state.made) return "The first frame is on its way.";
  return mark.frame && seen <= mark.frame ? `The new prompt takes effect at frame ${mark.frame + 1}.` : "Running.";
}

// All words about the session at once, so that none is left over from before.
function tell() {
  const fact = standing();
  const failed = state && phase() === "ended" && state.reason.startsWith("error");
  const { text, wrong } = notice || { text: fact, wrong: failed };
  if ($("status").textContent !== text) $("status").textContent = text; // it is read aloud when it changes
  $("status").classList.toggle("wrong", Boolean(wrong));
  const open = socket.readyState === WebSocket.OPEN;
  const going = open && state && phase() !== "ended";
  $("idle").hidden = seen > 0 || !$("replayed").hidden;
  $("idle").textContent = going ? fact : "Say what to see, and press Start.";
  $("m_queue").textContent = !open || !state ? "–" : state.place ? `place ${state.place}` : phase();
}
