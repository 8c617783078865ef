// The number beside a slider is the one that it stands at.
"use strict";

document.addEventListener("input", (event) => {
  if (!event.target.matches("[data-slider]")) return;
  const output = event.target.closest("label").querySelector("output");
  if (output) output.value = event.target.value;
});
