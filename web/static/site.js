// What visitors do on the watch page: forms are sent by script, and the page stays.
"use strict";

const place = document.querySelector("[data-video]");
const videoId = place.dataset.video;
const me = place.dataset.user;

// Returns a part of a comment, and not that of a reply within it; null where there is none.
function slot(within, name) {
  const own = within.closest(".comment");
  const found = [...within.querySelectorAll(`[data-slot="${name}"]`)];
  return found.find((each) => each.closest(".comment") === own) ?? null;
}

// Shows what went wrong: HTML of ours, or plain text.
function complain(text, isHtml = false) {
  const problem = document.getElementById("problem");
  if (isHtml) {
    problem.innerHTML = text;
  } else {
    const told = document.createElement("p");
    told.className = "flash bad";
    told.textContent = text;
    problem.replaceChildren(told);
  }
  problem.scrollIntoView({block: "nearest"});
}

// Sends an act to our side, which has the visitor's token; returns what the API answered, or null.
async function ask(path, fields, {silent = false, keepalive = false} = {}) {
  const csrf = JSON.parse(document.body.getAttribute("hx-headers") || "{}");
  const headers = {...csrf, "HX-Request": "true", "HX-Current-URL": location.href};
  const body = new URLSearchParams(fields);
  let answer;
  try {
    answer = await fetch(path, {method: "POST", headers, body, keepalive});
  } catch {
    if (!silent) complain("The server can't be reached just now; try again soon.");
    return null;
  }
  const elsewhere = answer.headers.get("HX-Redirect");
  if (elsewhere) {
    if (!silent) location.assign(elsewhere);
    return null;
  }
  if (!answer.ok) {
    if (!silent) complain(await answer.text(), true);
    return null;
  }
  if (!silent) document.getElementById("problem").replaceChildren();
  return answer.json();
}

function press(form, isOn) {
  form.elements.on.value = isOn ? "0" : "1";
  form.querySelector("button").setAttribute("aria-pressed", String(isOn));
}

function count(name, value) {
  for (const shown of document.querySelectorAll(`[data-count="${name}"]`)) {
    shown.textContent = value.toLocaleString("en");
  }
}

function closeMenu(form) {
  const menu = form.closest("details.menu");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
}

// What becomes of the page once an act was done, by the form's `data-act`.
const done = {
  like(form, answer) {
    press(form, answer.hasLiked);
    count("likes", answer.likesCount);
  },
  report(form) {
    closeMenu(form);
    const menu = form.closest("details.menu");
    menu.querySelector("summary").textContent = "Reported";
    form.reset();
  },
  "comment-post"(form, answer) {
    form.reset();
    comments.show(answer, true);
  },
  "comment-edit"(form, answer) {
    closeMenu(form);
    comments.show(answer, true);
  },
  "comment-delete"(form, answer) {
    comments.remove(answer.commentId);
  },
  "comment-like"(form, answer) {
    press(form, answer.hasLiked);
    slot(form, "likes").textContent = answer.likesCount;
  },
  dismiss(form, answer) {
    const film = form.closest(".film");
    const isOut = answer.notInterested;
    form.elements.on.value = isOut ? "0" : "1";
    film.classList.toggle("dismissed", isOut);
    form.querySelector("button").firstChild.textContent = isOut ? "Undo: not interested" : "Not interested";
  },
};

document.addEventListener("submit", async (event) => {
  const form = event.target;
  const finish = done[form.dataset.act];
  if (!finish || event.defaultPrevented) return;
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  const answer = await ask(form.getAttribute("action"), new FormData(form));
  button.disabled = false;
  if (answer !== null) finish(form, answer);
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.form) {
    event.target.form.requestSubmit();
  }
});

document.querySelector("[data-share]").addEventListener("click", async (event) => {
  const button = event.currentTarget;
  try {
    await navigator.clipboard.writeText(location.origin + location.pathname);
  } catch {
    complain("The browser does not let pages copy here: copy the address above.");
    return;
  }
  button.textContent = "Copied";
  ask(`/watch/${videoId}/share`, {channel: "link"}, {silent: true});
});

// Which of the recommendations the visitor could see, and which one they go for.
document.addEventListener("htmx:afterSettle", (event) => {
  const list = event.target.querySelector?.("[data-list]");
  if (!list) return;
  const seen = new Set();
  let timer = null;
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      seen.add(entry.target.dataset.listed);
      watcher.unobserve(entry.target);
      clearTimeout(timer);
      timer = setTimeout(() => {
        const videos = [...seen].join(",");
        seen.clear();
        ask("/watch/recommended", {list: list.dataset.list, videos}, {silent: true});
      }, 500);
    }
  });
  for (const film of list.querySelectorAll("[data-listed]")) watcher.observe(film);
  list.addEventListener("click", (click) => {
    const film = click.target.closest("a") && click.target.closest("[data-listed]");
    if (!film) return;
    const told = {list: list.dataset.list, videos: film.dataset.listed, chosen: "1"};
    ask("/watch/recommended", told, {silent: true, keepalive: true});
  });
});
