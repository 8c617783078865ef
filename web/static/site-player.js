// The player: it asks where the film is once somebody plays it, and tells how long it was watched.
"use strict";

const REPORT_EVERY = 10;  // Seconds of the film.
const SHORTEST = 0.25;

const frame = document.querySelector(".frame");
const film = frame.querySelector("video");
const toPlay = frame.querySelector("form");
let session = null;
// The stretch of the film that was watched and is not told yet, in seconds.
let from = null;
let until = null;

// Whoever has no token is led to the login, unless anybody may watch.
async function load() {
  const begun = await ask(`/watch/${videoId}/play`, {});
  if (begun === null) return false;
  session = begun.sessionId;
  film.src = begun.url;
  return true;
}

toPlay.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = toPlay.querySelector("button");
  button.disabled = true;
  const isThere = await load();
  button.disabled = false;
  if (!isThere) return;
  toPlay.hidden = true;
  film.hidden = false;
  film.focus();
  // A browser that wants to be asked once more shows its own button.
  film.play().catch(() => {});
});

// The URL of a film that was paused for long is not good any more: a fresh one goes on there.
let renewed = -Infinity;
film.addEventListener("error", async () => {
  const now = performance.now();
  if (now - renewed < 60_000) {
    complain("The film can't be played: its file may be of a kind that your browser does not play.");
    return;
  }
  renewed = now;
  const at = film.currentTime;
  const isPaused = film.paused;
  if (!(await load())) return;
  film.currentTime = at;
  if (!isPaused) film.play().catch(() => {});
});

function report() {
  if (from === null || until - from < SHORTEST) return;
  const told = {session, seconds: (until - from).toFixed(3), position: from.toFixed(3)};
  from = until;
  ask(`/watch/${videoId}/watched`, told, {silent: true, keepalive: true});
}

function follow() {
  if (film.seeking) return;
  until = film.currentTime;
  from ??= until;
  if (until - from >= REPORT_EVERY) report();
}

film.addEventListener("playing", follow);
film.addEventListener("timeupdate", follow);
film.addEventListener("seeking", () => {
  report();
  from = until = null;
});
film.addEventListener("pause", report);
film.addEventListener("ended", report);
addEventListener("pagehide", report);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) report();
});
