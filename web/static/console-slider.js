// The number beside a slider is the one that it stands at.
"use strict";

document.addEventListener("input", (event) => {
  if (!event.target.matches("[data-slider]")) return;
  // No <output>: a label names the first element in it that can have one, and that has to be the slider.
  const shown = event.target.closest("label").querySelector("[data-value]");
  if (shown) shown.textContent = event.target.value;
});
