// What all pages have in common: the theme, copied commands, questions before acts, live parts.
"use strict";

document.addEventListener("click", (event) => {
  const pressed = event.target.closest("[data-theme-switch], [data-copy]");
  if (!pressed) return;
  if (pressed.dataset.copy !== undefined) {
    navigator.clipboard.writeText(pressed.dataset.copy).then(() => {
      pressed.textContent = "Copied";
    });
    return;
  }
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const now = document.documentElement.dataset.theme || system;
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("theme", next);
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
}, true);

// Parts that are asked for again and again say so when they are not.
let lastGood = new Date();

function tell(isLive) {
  for (const state of document.querySelectorAll("[data-live-state]")) {
    const text = isLive ? "live" : `not live since ${lastGood.toLocaleTimeString()}`;
    if (state.textContent !== text) state.textContent = text;
    state.classList.toggle("bad", !isLive);
  }
}

document.addEventListener("htmx:afterRequest", (event) => {
  if (!event.detail.elt.matches("[data-live]")) return;
  if (event.detail.successful) lastGood = new Date();
  tell(event.detail.successful);
});

// A live part that fails says so in its state, and leaves what it showed.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.isError && event.detail.requestConfig.elt.matches("[data-live]")) {
    event.detail.shouldSwap = false;
  }
});
