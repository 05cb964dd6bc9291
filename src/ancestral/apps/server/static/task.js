// A form that starts a job: its buttons, its progress and the line that says how it stands.

import { Job } from "./api.js";
import { $, clone, say, values } from "./dom.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const BUSY = new Set(["waiting", "queued", "running"]);

export class Task {
  #job = null;

  // `body` makes the request of the form's values and may throw a line to show; begin, step, done hear of the work.
  constructor(panel, path, { body, begin = () => {}, step = () => {}, done }) {
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
        this.#run(path, request, step, done);
      } catch (error) {
        this.fail(error.message);
      }
    });
    this.stop.addEventListener("click", () => this.#job?.cancel());
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
    const place = $(".film", this.panel) ?? $(".stage", this.panel);
    if (place.getBoundingClientRect().top < 0.6 * innerHeight) return;
    place.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  }

  #run(path, request, step, done) {
    const began = performance.now();
    this.#reveal();
    this.progress.removeAttribute("value");
    this.turn("waiting", "Asking the server");
    this.#job = new Job(path, request, {
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
        this.turn("done", `Done in ${((performance.now() - began) / 1000).toFixed(1)} s`);
      },
      failed: (detail) => this.fail(detail),
      cancelled: () => this.turn("cancelled", "Cancelled"),
      lost: () => this.turn("waiting", "The connection broke; trying to go on"),
    });
  }
}
