// The console: rows that are ticked, questions of single buttons, and lists that change with care.
"use strict";

document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-tick-all]")) return;
  const boxes = event.target.closest("form").querySelectorAll("input[name^='pick:']");
  for (const box of boxes) box.checked = event.target.checked;
});

document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.ask;
  if (question && !confirm(question)) event.preventDefault();
}, true);

// A list in which somebody has ticked or written something stays as it is until they are done.
function isInUse(part) {
  const ticked = part.querySelector("input[type='checkbox']:checked, details[open]");
  const written = [...part.querySelectorAll("input:not([type])")].some((input) => input.value);
  return ticked !== null || written || part.contains(document.activeElement);
}

document.addEventListener("htmx:beforeSwap", (event) => {
  const part = event.detail.target;
  if (part.matches("[data-careful]") && isInUse(part)) event.detail.shouldSwap = false;
});
