// The page of a rater: joins once, shows the pair of the turn, sends the choice, goes on.
"use strict";

const $ = (id) => document.getElementById(id);
const PLACE = `rater ${document.documentElement.dataset.study}`;
const TINY = 256; // pixels below which videos are scaled up without smoothing
const videos = [$("left"), $("right")];
const choices = [...document.querySelectorAll("[data-choice]")];
const together = new Together(looked);
let pair = null; // number of the pair that is shown
let sending = false;
let retry = null; // what "Try again" does

function allow(may) {
  for (const button of choices) button.setAttribute("aria-disabled", String(!may));
}

// Both videos have been seen: the pair can be judged, unless something is under way or to be tried again.
function looked() {
  if (allowed() || sending || retry) return;
  allow(true);
  say("");
}

const allowed = () => choices[0].getAttribute("aria-disabled") === "false";

function say(text, again = null) {
  $("status").textContent = text;
  retry = again;
  $("again").hidden = !again;
}

function only(name) {
  for (const id of ["start", "rate", "done"]) $(id).hidden = id !== name;
}

// Answers of the server; throws {status, error}, with status 0 where there was no answer.
async function ask(path, body) {
  let answer, found;
  try {
    answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    found = await answer.json();
  } catch {
    throw { status: 0, error: "no answer from the server" };
  }
  if (!answer.ok) throw { status: answer.status, error: found.error };
  return found;
}

const rater = () => localStorage.getItem(PLACE);

async function begin() {
  try {
    if (!rater()) localStorage.setItem(PLACE, (await ask("api/join", {})).rater);
    await show(await ask("api/turn", { rater: rater() }));
  } catch (failure) {
    if (failure.status === 404) {
      localStorage.removeItem(PLACE);
      only("start");
    }
    say(`That did not work: ${failure.error}.`, failure.status === 404 ? null : begin);
  }
}

async function show(turn) {
  pair = turn.pair;
  $("elsewhere").hidden = pair === null;
  $("link").href = `${location.pathname}${location.search}#rater=${rater()}`;
  if (pair === null) {
    together.pause();
    $("made").textContent = turn.done;
    only("done");
    say("");
    $("done").querySelector("h1").focus();
    return;
  }
  $("bar").max = turn.total;
  $("bar").value = turn.done;
  $("count").textContent = `${turn.done + 1} of ${turn.total}`;
  $("words").textContent = turn.prompt;
  $("question").textContent = turn.question;
  document.title = `${turn.done + 1} of ${turn.total}: which video is better?`;
  only("rate");
  await load();
}

async function load() {
  const shown = pair;
  allow(false);
  say("Look at both once; then choose.");
  for (const video of videos) video.src = `clips/${shown}/${video.id}`;
  try {
    if (!together.playing) pause();
    await together.take(videos.slice());
    for (const video of videos) video.classList.toggle("tiny", video.videoWidth < TINY);
  } catch (video) {
    if (shown === pair) say(`The ${video.id} video could not be loaded.`, load);
  }
}

async function vote(choice) {
  if (pair === null || sending || !allowed()) return;
  sending = true;
  allow(false);
  say("Sending …");
  try {
    await show(await ask("api/vote", { rater: rater(), pair, choice }));
    $("question").focus({ preventScroll: true });
  } catch (failure) {
    // Another tab, or others, came first: this pair is done.
    if (failure.status === 409) await begin();
    else say(`Your choice is not kept yet: ${failure.error}.`, () => (allow(true), vote(choice)));
  } finally {
    sending = false;
  }
}

function pause() {
  together.toggle();
  $("pause").textContent = together.playing ? "Pause" : "Play";
}

for (const button of choices) button.onclick = () => vote(button.dataset.choice);
$("begin").onclick = begin;
$("pause").onclick = pause;
$("again").onclick = () => retry();
document.onkeydown = (event) => {
  const choice = { ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right" }[event.key];
  if ($("rate").hidden || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (choice) vote(choice);
  else if (event.key === " " && event.target.tagName !== "BUTTON") pause();
  else return;
  event.preventDefault();
};

const given = new URLSearchParams(location.hash.slice(1)).get("rater");
if (given) {
  localStorage.setItem(PLACE, given);
  history.replaceState(null, "", location.pathname + location.search);
}
if (rater()) begin();
else only("start");
