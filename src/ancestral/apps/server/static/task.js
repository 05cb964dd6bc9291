// A form that starts a job: its buttons, its progress and the line that says how it stands.

import { call, Job } from "./api.js";
import { $, clone, say, values } from "./dom.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const BUSY = new Set(["waiting", "queued", "running"]);

export class Task {
  #job = null;

  // `body` makes the request of the form's values and may throw a line to show; begin, step, done hear of the work,
  // and `restore` of a request that a page before this one has made. `rejoined` tells whether there was one.
  constructor(panel, path, { body, begin = () => {}, step = () => {}, done, restore = () => {} }) {
    this.panel = panel;
    this.form = $("form", panel);
    $(".actions", this.form).after(clone("progress"));
    this.progress = $("progress", this.form);
    this.status = $(".actions ~ .status", this.form);
    this.go = $(".go", this.form);
    this.stop = $(".stop", this.form);
    this.turn("idle");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.busy) return;
      try {
        const request = body(values(this.form));
        begin(request);
        this.#reveal();
        this.turn("waiting", "Asking the server");
        this.#job = Job.begun(path, request, this.#hears(path, request, step, done));
      } catch (error) {
        this.fail(error.message);
      }
    });
    this.stop.addEventListener("click", () => this.#job?.cancel());
    this.rejoined = this.#rejoin(path, { begin, step, done, restore });
    // What was wrong may be mended with that.
    this.form.addEventListener("input", () => panel.dataset.state === "failed" && this.turn("idle"));
  }

  get busy() {
    return BUSY.has(this.panel.dataset.state);
  }

  turn(state, text = "", kind = "") {
    this.panel.dataset.state = state;
    say(this.status, text, kind);
    const focused = document.activeElement === this.stop;
    this.stop.hidden = this.progress.hidden = !this.busy;
    this.go.setAttribute("aria-disabled", this.busy);
    if (focused && !this.busy) this.go.focus();
  }

  fail(text) {
    this.turn("failed", text, "error");
  }

  // On a narrow screen the pictures come below the settings.
  #reveal() {
    const shown = $(".film", this.panel) ?? $(".stage", this.panel);
    if (shown.getBoundingClientRect().top < 0.6 * innerHeight) return;
    shown.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  }

  // A page that is loaded again goes on with the job that it had begun, or shows what that has made, as long as the
  // server knows it.
  async #rejoin(path, { begin, step, done, restore }) {
    const kept = remembered(path);
    if (!kept) return false;
    const job = await call("GET", `jobs/${kept.id}`).catch(() => null);
    if (!job || this.busy) {
      if (!job) forget(path);
      return false;
    }
    for (const [name, value] of Object.entries(kept.fields)) {
      const field = this.form.elements[name];
      if (field && field.type !== "file" && !(field instanceof RadioNodeList)) field.value = value;
    }
    restore(kept.request);
    begin(kept.request);
    this.turn("waiting", "Going on with what this page had begun");
    this.#job = Job.joined(kept.id, this.#hears(path, kept.request, step, done, kept.began));
    return true;
  }

  #hears(path, request, step, done, began = Date.now()) {
    this.progress.removeAttribute("value");
    return {
      accepted: (id) => remember(path, { id, request, began, fields: fields(this.form) }),
      waiting: (seconds) => this.turn("waiting", `The queue is full; asking again in ${seconds} s`),
      queued: ({ place }) => {
        this.panel.dataset.place = place;
        this.turn("queued", place > 0 ? `Waiting: place ${place} in the queue` : "Starting");
      },
      step: (data) => {
        const text = `${(data.note ?? "running").replace(/^./, (letter) => letter.toUpperCase())}…`;
        if (this.panel.dataset.state !== "running" || this.status.textContent !== text) this.turn("running", text);
        this.progress.max = data.of;
        this.progress.value = data.k;
        step(data);
      },
      done: (data) => {
        done(data, request);
        this.turn("done", `Done in ${((Date.now() - began) / 1000).toFixed(1)} s`);
      },
      failed: (detail) => (forget(path), this.fail(detail)),
      cancelled: () => (forget(path), this.turn("cancelled", "Cancelled")),
      lost: () => this.turn("waiting", "The connection broke; trying to go on"),
    };
  }
}

const fields = (form) => Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string"));

// What a window has begun is known to it alone, and until it is closed; a browser may keep nothing.
const named = (path) => `ancestral job ${path}`;

function remember(path, kept) {
  try {
    sessionStorage.setItem(named(path), JSON.stringify(kept));
  } catch {
    forget(path); // too large, or not allowed: a page that is loaded again begins anew
  }
}

function remembered(path) {
  try {
    return JSON.parse(sessionStorage.getItem(named(path)));
  } catch {
    return null;
  }
}

function forget(path) {
  try {
    sessionStorage.removeItem(named(path));
  } catch {
    // nothing was kept
  }
}
