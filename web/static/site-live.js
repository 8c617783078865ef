// Likes and comments as they change: a stream of the API tells of them while the page is seen.
"use strict";

const RETRY_MS = 5_000;
const list = document.getElementById("comments");

const comments = {
  find(id) {
    return document.getElementById(`comment-${id}`);
  },

  // Fills a comment's markup with what the API told of it.
  fill(node, told) {
    const put = (name, text) => { slot(node, name).textContent = text; };
    const hide = (name, isHidden) => { const it = slot(node, name); if (it) it.hidden = isHidden; };
    const isMine = told.userId === me;
    put("author", told.userId);
    put("text", told.content);
    slot(node, "text").lang = told.language || "";
    hide("edited", !told.edited);
    const status = {
      held: "waits for approval: only you see it",
      removed: `removed${told.statusReason ? `: ${told.statusReason}` : ""}`,
    }[told.status];
    put("status", status || "");
    hide("status", !status);
    put("language", told.language ? ` from ${told.language}` : "");
    put("translated", told.translatedText || "");
    hide("translation", !told.translatedText);
    hide("pending", told.translationStatus !== "pending" || Boolean(told.status));
    hide("own", !isMine);
    hide("deletes", !isMine && !place.dataset.decides);
    hide("others", isMine);
    const draft = slot(node, "draft");
    // Somebody who edits just now keeps what they write.
    if (draft && !draft.closest("details").open) draft.defaultValue = draft.value = told.content;
    this.count(node, told);
    if (told.hasLiked !== undefined) {
      const form = node.querySelector("[data-act=comment-like]");
      if (form) press(form, told.hasLiked);
    }
  },

  count(node, told) {
    if (told.likeCount !== undefined) slot(node, "likes").textContent = told.likeCount;
    const replies = slot(node, "replies");
    if (replies && told.replyCount !== undefined) {
      const {replyCount} = told;
      replies.textContent = replyCount ? `${replyCount} ${replyCount === 1 ? "reply" : "replies"}` : "Reply";
      if (replyCount) slot(node, "thread").hidden = false;
    }
  },

  make(told) {
    const node = document.getElementById("blank-comment").content.firstElementChild.cloneNode(true);
    node.id = `comment-${told.commentId}`;
    node.dataset.comment = told.commentId;
    node.dataset.parent = told.parentId || "";
    for (const field of node.querySelectorAll("input[name=comment]")) field.value = told.commentId;
    const thread = slot(node, "thread");
    if (told.parentId) {
      thread.remove();
    } else {
      thread.setAttribute("hx-get", `/watch/${videoId}/replies/${told.commentId}`);
      thread.setAttribute("hx-trigger", "toggle once");
      thread.setAttribute("hx-target", "find .replies");
    }
    const time = document.createElement("time");
    time.dateTime = time.title = told.createdAt;
    time.textContent = "just now";
    slot(node, "time").replaceChildren(time);
    return node;
  },

  // Shows what is new of a comment that is shown; returns whether it is.
  update(told) {
    const node = this.find(told.commentId);
    if (node) this.fill(node, told);
    return node !== null;
  },

  // Shows a comment as it is now; `isOwn` says that the visitor has just written it.
  show(told, isOwn = false) {
    if (this.update(told)) return;
    const where = told.parentId ? this.repliesOf(told.parentId) : list;
    if (!where) return;
    const node = this.make(told);
    this.fill(node, told);
    const more = where.querySelector(":scope > .more");
    if (told.parentId || list.dataset.sort === "oldest") {
      // What is further down comes with its page, but what one wrote is seen at once.
      if (more && !isOwn) return;
      where.append(node);
    } else {
      where.prepend(node);
    }
    node.classList.add("fresh");
    htmx.process(node);
  },

  // The list of replies to a comment; none while nobody has opened it.
  repliesOf(id) {
    return this.find(id)?.querySelector(".replies > .comments") ?? null;
  },

  remove(id) {
    this.find(id)?.remove();
  },
};

let stream = null;
let last = list.dataset.position;
let timer = null;

async function connect() {
  clearTimeout(timer);
  if (stream || document.hidden) return;
  const asked = new URLSearchParams(last ? {after: last} : {});
  if (place.dataset.private) {
    const given = await ask(`/watch/${videoId}/ticket`, {}, {silent: true});
    if (given === null) {
      later();
      return;
    }
    asked.set("ticket", given.ticket);
  }
  stream = new EventSource(`/videos/${videoId}/events?${asked}`);
  stream.onopen = () => tell(true);
  stream.onerror = () => {
    tell(false);
    if (stream.readyState === EventSource.CLOSED) later();
  };
  for (const [kind, take] of Object.entries(events)) {
    stream.addEventListener(kind, (event) => {
      if (event.lastEventId) last = event.lastEventId;
      lastGood = new Date();
      take(JSON.parse(event.data));
    });
  }
}

function disconnect() {
  stream?.close();
  stream = null;
}

function later() {
  disconnect();
  timer = setTimeout(connect, RETRY_MS);
}

// How many comments there are is in the video; however many come at once, it is read once.
let recount = null;
function countAgain() {
  if (place.dataset.private || recount) return;
  recount = setTimeout(async () => {
    recount = null;
    const answer = await fetch(`/videos/${videoId}`).catch(() => null);
    if (answer?.ok) count("comments", (await answer.json()).comments);
  }, 300 + 700 * Math.random());
}

const events = {
  likes: (told) => count("likes", told.likesCount),
  comment: (told) => { comments.show(told); countAgain(); },
  reply: (told) => { comments.show(told); countAgain(); },
  "comment-edited": (told) => comments.update(told),
  "comment-translated": (told) => comments.update(told),
  "comment-counts": (told) => {
    const node = comments.find(told.commentId);
    if (node) comments.count(node, told);
  },
  "comment-removed": (told) => { comments.remove(told.commentId); countAgain(); },
  reset: () => {
    htmx.ajax("GET", `/watch/${videoId}/comments?sort=${list.dataset.sort}`, {target: list});
    countAgain();
  },
  removed: () => {
    disconnect();
    complain("The video is not there any more.");
    tell(false);
  },
};

document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
addEventListener("pagehide", disconnect);
addEventListener("pageshow", connect);
