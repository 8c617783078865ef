// Uploads from a page: the parts of a file are sent side by side, and again until they have arrived.
//
// The browser remembers which upload a file is, so that after a reload only what is missing is sent.
"use strict";

const LANES = 4;
const URLS = 50;
const LONGEST_PAUSE = 15_000;
const RETRIED = new Set([408, 409, 423, 425, 429, 500, 502, 503, 504]);

const section = document.getElementById("uploads");
const rows = section.querySelector("ul");
const model = section.querySelector("template");
const PREFIX = `backlot-upload:${encodeURIComponent(section.dataset.user)}:`;
const csrf = JSON.parse(document.body.getAttribute("hx-headers"));

// What the server refuses, and what asking again does not change.
class Refusal extends Error {
  constructor(message, status, body) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

// What ends the work on an upload that is paused.
class Paused extends Error {}

async function call(path, fields) {
  const request = fields && { method: "POST", body: new URLSearchParams(fields) };
  const answer = await fetch(path, { headers: csrf, redirect: "manual", ...request });
  if (answer.type === "opaqueredirect" || answer.status === 401) {
    throw new Refusal("You are logged out. Log in again and choose the same file: what has arrived is kept.", 401);
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body) return body;
  throw new Refusal(body?.detail || "The server refused that; load the page again.", answer.status, body);
}

function put(url, blob, requests, onSent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    requests.add(request);
    request.open("PUT", url);
    request.upload.addEventListener("progress", (event) => onSent(event.loaded));
    request.addEventListener("load", () => {
      if (request.status < 300) return resolve();
      reject(new Refusal(`The part was refused (${request.status}).`, request.status));
    });
    request.addEventListener("error", () => reject(new TypeError("the connection broke")));
    request.addEventListener("abort", () => reject(new Paused()));
    request.addEventListener("loadend", () => requests.delete(request));
    request.send(blob);
  });
}

function size(bytes) {
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) [bytes, unit] = [bytes / 1000, unit + 1];
  return unit ? `${bytes.toFixed(1)} ${units[unit]}` : `${bytes} bytes`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const told = (error) => (error instanceof TypeError ? "The server can't be reached; try again." : error.message);
const nameOf = (file) => `${PREFIX}${file.name}:${file.size}:${file.lastModified}`;

// One upload: what is remembered of it, its file once that was chosen, and its row in the page.
class Upload {
  constructor(name, known) {
    this.name = name;
    this.known = known;
    this.requests = new Set();
    this.urls = new Map();
    this.sent = new Map();
    this.row = model.content.firstElementChild.cloneNode(true);
    this.part("[data-title]").textContent = known.title;
    this.part("[data-file]").textContent = `${known.filename}, ${size(known.size)}`;
    this.bar = this.part("progress");
    this.bar.max = known.size;
    this.bar.setAttribute("aria-label", `Progress of ${known.title}`);
    this.act("pause").addEventListener("click", () => (this.isPaused ? this.run() : this.pause()));
    this.act("abort").addEventListener("click", () => this.abort());
    this.act("pick").querySelector("input").addEventListener("change", (event) => this.pick(event.target));
    rows.append(this.row);
    section.hidden = false;
    this.row.upload = this;
  }

  part(selector) {
    return this.row.querySelector(selector);
  }

  act(name) {
    return this.part(`[data-act="${name}"]`);
  }

  // Say how it stands, and offer what can be done then.
  tell(state, text, ...acts) {
    this.row.dataset.state = state;
    this.part(".state").textContent = text;
    for (const each of this.row.querySelectorAll("[data-act]")) {
      each.hidden = !acts.includes(each.dataset.act);
    }
    if (state !== "sending") this.part("[data-figures]").textContent = "";
  }

  get path() {
    return `/studio/uploads/${this.known.uploadId}`;
  }

  get isPaused() {
    return this.row.dataset.state === "paused";
  }

  // Look how it stands on the server, without its file.
  async look() {
    try {
      const status = await call(this.path);
      // Its file may have been chosen meanwhile.
      if (this.row.dataset.state) return;
      if (status.status === "completed") return this.finish();
      if (status.status !== "started") return this.forget();
      this.bar.value = status.parts.reduce((sum, part) => sum + part.sizeBytes, 0);
      const percent = Math.floor((100 * this.bar.value) / this.known.size);
      this.tell("waiting", `${percent} % have arrived. Choose the same file, and it goes on.`, "pick", "abort");
    } catch (error) {
      if (this.row.dataset.state) return;
      if (error.status === 404 || error.status === 403) return this.forget();
      this.tell("waiting", told(error), "pick", "abort");
    }
  }

  pick(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    if (nameOf(file) !== this.name) {
      this.tell("waiting", `That is another file. This upload is of ${this.known.filename}, as it was then.`, "pick", "abort");
      return;
    }
    this.file = file;
    this.run();
  }

  // Send what is missing, and complete the upload.
  async run() {
    const turn = (this.turn = {});
    this.act("pause").textContent = "Pause";
    this.tell("sending", "Sending", "pause", "abort");
    this.began = performance.now();
    try {
      await this.send(turn);
    } catch (error) {
      if (!this.goesOn(turn)) return;
      this.stop();
      if (error.status === 404 || (error.body?.uploadStatus ?? "started") !== "started") {
        this.tell("over", "This upload is over: it was given up, or too old. Choose the file in the form to begin anew.");
        localStorage.removeItem(this.name);
        return;
      }
      this.tell("waiting", told(error), "pick", "abort");
    }
  }

  // Whether this turn of sending is not over: paused, given up, or begun anew.
  goesOn(turn) {
    return this.turn === turn && this.row.dataset.state === "sending";
  }

  async send(turn) {
    const status = await this.insist(turn, () => call(this.path));
    if (status.status === "completed") return this.finish();
    if (status.status !== "started") throw new Refusal("over", 404);
    this.partSize = status.partSizeBytes;
    const arrived = new Map(status.parts.map((part) => [part.number, part.sizeBytes]));
    this.sent = new Map();
    const missing = [];
    for (let number = 1; number <= status.partCount; number += 1) {
      const bytes = this.blob(number).size;
      if (arrived.get(number) === bytes) this.sent.set(number, bytes);
      else missing.push(number);
    }
    this.before = this.total();
    this.show();
    await Promise.all(Array.from({ length: LANES }, () => this.lane(turn, missing)));
    this.tell("sending", "All parts have arrived; the video is being made", "abort");
    await this.insist(turn, () => call(`${this.path}/complete`, {}));
    this.finish();
  }

  async lane(turn, missing) {
    while (missing.length) {
      const number = missing.shift();
      await this.insist(turn, async () => {
        const url = await this.url(number, missing);
        try {
          await put(url, this.blob(number), this.requests, (bytes) => this.note(number, bytes));
        } catch (error) {
          this.note(number, 0);
          this.urls.delete(number);
          throw error;
        }
        this.note(number, this.blob(number).size);
      });
    }
  }

  blob(number) {
    return this.file.slice((number - 1) * this.partSize, number * this.partSize);
  }

  // Return where a part goes; the URLs of those that follow are fetched along.
  async url(number, missing) {
    if (!this.urls.has(number)) {
      const numbers = [number, ...missing.slice(0, URLS - 1)];
      const { parts } = await call(`${this.path}/part-urls`, { numbers: numbers.join() });
      for (const part of parts) this.urls.set(part.number, part.url);
    }
    return this.urls.get(number);
  }

  // Do it until it succeeds: again after a break, and at once when the browser is online again.
  async insist(turn, work) {
    let refusals = 0;
    for (let attempt = 0; ; attempt += 1) {
      if (!this.goesOn(turn)) throw new Paused();
      try {
        const result = await work();
        if (attempt) this.tell("sending", "Sending", "pause", "abort");
        return result;
      } catch (error) {
        // A URL that is too old is asked for anew; a part that was cut off is sent again.
        const stale = [400, 403].includes(error.status) && (refusals += 1) <= 3;
        const again = stale || error instanceof TypeError || RETRIED.has(error.status);
        if (!again || error.body?.uploadStatus || !this.goesOn(turn)) throw error;
        this.part(".state").textContent = "The connection broke; it goes on by itself";
        await new Promise((resolve) => {
          setTimeout(resolve, Math.min(LONGEST_PAUSE, 250 * 2 ** attempt));
          addEventListener("online", resolve, { once: true });
        });
      }
    }
  }

  total() {
    return [...this.sent.values()].reduce((sum, bytes) => sum + bytes, 0);
  }

  note(number, bytes) {
    this.sent.set(number, bytes);
    this.show();
  }

  show() {
    const total = this.total();
    this.bar.value = total;
    const rate = (total - this.before) / ((performance.now() - this.began) / 1000);
    const left = rate > 0 ? `, ${size(Math.round(rate))}/s, ${duration((this.known.size - total) / rate)} left` : "";
    this.part("[data-figures]").textContent = `${size(total)} of ${size(this.known.size)}${left}`;
  }

  stop() {
    for (const request of [...this.requests]) request.abort();
  }

  pause() {
    this.tell("paused", "Paused", "pause", "abort");
    this.act("pause").textContent = "Go on";
    this.stop();
  }

  async abort() {
    if (!confirm(`Give up the upload of ${this.known.title}?`)) return;
    this.tell("aborting", "Giving it up");
    this.stop();
    try {
      await call(`${this.path}/abort`, {});
      this.forget();
    } catch (error) {
      if (error.status === 404 || error.body?.uploadStatus) return this.forget();
      this.tell("waiting", told(error), "pick", "abort");
    }
  }

  finish() {
    localStorage.removeItem(this.name);
    this.bar.value = this.known.size;
    this.act("open").href = `/studio/videos/${this.known.uploadId}`;
    this.tell("done", "The video is there", "open");
  }

  forget() {
    localStorage.removeItem(this.name);
    this.row.remove();
    section.hidden = !rows.children.length;
  }
}

function find(name) {
  return [...rows.children].map((row) => row.upload).find((upload) => upload.name === name && upload.row.dataset.state !== "over");
}

// Begin an upload, once however often the question is asked.
async function begin(file, form) {
  const key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const fields = new FormData(form);
  fields.delete("file");
  for (const [name, value] of Object.entries({ key, filename: file.name, contentType: file.type, sizeBytes: file.size })) {
    fields.set(name, value);
  }
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await call("/studio/uploads", fields);
    } catch (error) {
      if (!(error instanceof TypeError) || attempt === 5) throw error;
      await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** attempt));
    }
  }
}

const form = document.getElementById("upload");
if (form) {
  const refused = document.getElementById("refused");
  const tell = (text) => {
    refused.textContent = text;
    refused.className = text ? "flash bad" : "";
  };
  form.elements.file.addEventListener("change", () => {
    const [file] = form.elements.file.files;
    if (file && !form.elements.title.value) form.elements.title.value = file.name.replace(/\.[^.]+$/, "").slice(0, 200);
  });
  const drop = form.querySelector(".drop");
  for (const [name, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", isOver);
      if (name !== "drop" || !event.dataTransfer.files.length) return;
      form.elements.file.files = event.dataTransfer.files;
      form.elements.file.dispatchEvent(new Event("change"));
    });
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const [file] = form.elements.file.files;
    const name = nameOf(file);
    const button = form.querySelector("button");
    button.disabled = true;
    tell("");
    try {
      let upload = find(name);
      if (!upload || upload.row.dataset.state === "done") {
        const begun = await begin(file, form);
        const known = { uploadId: begun.uploadId, title: form.elements.title.value, filename: file.name, size: file.size };
        localStorage.setItem(name, JSON.stringify(known));
        upload = new Upload(name, known);
        for (const part of begun.parts) upload.urls.set(part.number, part.url);
      }
      upload.file = file;
      if (upload.row.dataset.state !== "sending") upload.run();
      form.reset();
      upload.row.scrollIntoView({ block: "nearest" });
    } catch (error) {
      tell(told(error));
    } finally {
      button.disabled = false;
    }
  });
}

for (const name of Object.keys(localStorage).filter((each) => each.startsWith(PREFIX))) {
  new Upload(name, JSON.parse(localStorage.getItem(name))).look();
}
