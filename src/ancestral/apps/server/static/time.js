// Time: a picture at every t of the forward process, and what the model predicts from it.

import { patiently, server } from "./api.js";
import { Chart } from "./chart.js";
import { closeup } from "./closeup.js";
import { $, $$, decimal, fill, offerClasses, say, show, values } from "./dom.js";
import { Well } from "./well.js";

const DEBOUNCE = 40; // milliseconds
const CLEAN = { signal: 1, noise: 0, log_snr: null, mse: 0 }; // at t = 0, where there is nothing to predict

export class Time {
  #asking = false;
  #stale = false;
  #image = null; // that was asked for last
  #timer;

  constructor(panel, model, hand) {
    Object.assign(this, { panel, hand, schedule: model.schedule });
    this.form = $("form", panel);
    this.status = $("form > .status", panel);
    this.range = $("[name=t]", panel);
    this.range.max = model.T;
    this.range.value = Math.round(model.T / 2);
    new Well($(".well", panel), hand, model);
    this.#draw(model.T);
    this.form.addEventListener("submit", (event) => event.preventDefault());
    const { seed, label } = this.form.elements;
    offerClasses(label, model);
    for (const field of [seed, label]) field.addEventListener("input", () => this.#soon());
    this.range.addEventListener("input", () => {
      this.#mark();
      this.#soon();
    });
    hand.addEventListener("change", () => this.#soon());
    server.addEventListener("change", () => server.there && this.#soon());
    for (const tile of $$(".tile", panel))
      tile.addEventListener("click", () => this.hand.image && closeup($("img", tile).getAttribute("src")));
    this.#mark();
    panel.dataset.state = "empty";
  }

  #draw(most) {
    const { t, signal, noise } = this.schedule;
    const points = (heights) => heights.map((y, i) => [t[i], y]);
    const lines = { signal: points(signal), noise: points(noise) };
    this.chart = new Chart($(".curve", this.panel), lines, [0, most, 0, 1], "Signal and noise over t");
  }

  #mark() {
    const t = Number(this.range.value);
    fill(this.range);
    this.chart.marked(t);
    const { t: times, ...rates } = this.schedule;
    const near = times.reduce((best, time, i) => (Math.abs(time - t) < Math.abs(times[best] - t) ? i : best), 0);
    this.#tell({ t, signal: rates.signal[near], noise: rates.noise[near], log_snr: rates.log_snr[near] });
  }

  #tell({ t, signal, noise, log_snr, mse }) {
    const texts = { t, signal: decimal(signal, 4), noise: decimal(noise, 4), log_snr: signal === 0 ? "−∞" : decimal(log_snr, 2) };
    if (mse !== undefined) texts.mse = decimal(mse, 4);
    for (const [name, text] of Object.entries(texts)) $(`dd[data-of=${name}]`, this.panel).textContent = text;
  }

  // What came while another tool was looked at is asked for now.
  opened() {
    if (this.#image !== this.hand.image) this.#soon();
  }

  #soon() {
    if (!this.hand.image || this.panel.hidden) return;
    this.panel.dataset.state = "busy";
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), DEBOUNCE);
  }

  // One question at a time; what changed meanwhile is asked after it, once.
  async #ask() {
    this.#stale = this.#asking;
    if (this.#asking) return;
    this.#asking = true;
    try {
      do {
        this.#stale = false;
        await this.#once();
      } while (this.#stale);
      this.panel.dataset.state = "ready";
      say(this.status, "");
    } catch (error) {
      this.panel.dataset.state = "failed";
      say(this.status, error.message, "error");
    } finally {
      this.#asking = false;
    }
  }

  async #once() {
    const t = Number(this.range.value);
    const waiting = (seconds) => say(this.status, `The server is busy; asking again in ${seconds} s`);
    const { seed, label = null } = values(this.form);
    this.#image = this.hand.image;
    const { image } = this.hand;
    const asked = { image, t, seed, label };
    const found = t > 0 ? await patiently("POST", "noise", asked, waiting) : { image, x_t: image, x0: image, ...CLEAN };
    for (const name of ["image", "x_t", "x0"]) show($(`img[data-of=${name}]`, this.panel), found[name]);
    this.panel.dataset.t = t;
    if (t === Number(this.range.value)) this.#tell({ ...found, t });
  }
}
