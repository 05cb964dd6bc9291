// The first film: an image that was held out goes to noise, and another comes back from there, as in the report.

import { patiently } from "./api.js";
import { $, fill, player, say, show } from "./dom.js";

const FRAME = 160; // milliseconds a frame, as in the report
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class FirstFilm {
  #frames = [];

  constructor(root) {
    this.root = root;
    this.range = $("input", root);
    this.player = player($(".play", root), () => this.#roll());
    this.range.addEventListener("input", () => (this.player.pause(), this.#seek(Number(this.range.value))));
  }

  // Where images would be fetched from elsewhere, only when that is asked for.
  begin(model) {
    if (model.features.film !== true) return;
    this.root.hidden = false;
    if (model.local) this.#load().then(() => calm.matches || this.#roll());
    else say($(".status", this.root), "Play reads the held-out images, which are not on this machine alone");
  }

  end() {
    this.player.pause();
    this.root.hidden = true;
  }

  async #load() {
    const status = $(".status", this.root);
    const waiting = (seconds) => say(status, `The server is busy; asking again in ${seconds} s`);
    this.root.dataset.state = "busy";
    try {
      this.#frames = (await patiently("POST", "film", {}, waiting)).frames;
      this.range.max = this.#frames.length - 1;
      this.#seek(0);
      this.root.dataset.state = "ready";
      say(status, "");
    } catch (error) {
      this.root.dataset.state = "failed";
      say(status, error.message, "error");
    }
  }

  #seek(place) {
    const { image, way, t } = this.#frames[place];
    this.range.value = place;
    fill(this.range);
    show($("img", this.root), image);
    const text = `${way === "q" ? "q \u2192" : "\u2190 p"}  t = ${t}`;
    $("output", this.root).textContent = text;
    this.range.setAttribute("aria-valuetext", text);
    this.root.dataset.t = t;
  }

  async #roll() {
    if (this.#frames.length === 0) await this.#load();
    if (this.#frames.length === 0 || this.root.hidden) return;
    this.player.play(() => {
      if (!document.hidden) this.#seek((Number(this.range.value) + 1) % this.#frames.length);
    }, FRAME);
  }
}
