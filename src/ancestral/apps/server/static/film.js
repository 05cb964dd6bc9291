// The reverse process as it comes in: x_t beside the predicted x0, and a slider over the steps received.

import { closeup } from "./closeup.js";
import { $, $$, clone, columns, fill, player, roving, tiles } from "./dom.js";

const FRAME = 66; // milliseconds a frame, played
const MOST = 240; // frames kept

export class Film {
  #frames = [];
  #shown = -1;
  #follow = true; // the newest frame, until another is looked at
  #due = false;

  constructor(root) {
    this.root = root;
    root.append(clone("film"));
    [this.left, this.right] = $$(".grid", root);
    this.range = $("input", root);
    this.player = player($(".play", root), () => this.#roll());
    for (const grid of [this.left, this.right]) roving(grid);
    this.range.addEventListener("input", () => this.#seek(this.#nearest(Number(this.range.value))));
    this.range.addEventListener("keydown", (event) => this.#key(event));
    this.begin();
  }

  begin() {
    this.player.pause();
    this.#frames = [];
    this.#shown = -1;
    this.#follow = true;
    this.root.dataset.state = "empty";
    for (const name of ["step", "t", "frames"]) delete this.root.dataset[name];
    this.range.value = 0;
    fill(this.range, 0);
    $("output", this.root).textContent = "";
  }

  // A step as the server tells it: the state before it, so that k - 1 steps were taken.
  add({ k, of, t, x_t, x0 }) {
    this.#push({ taken: k - 1, of, t, x_t, x0 });
    this.root.dataset.state = "running";
    if (this.#follow) this.#soon();
  }

  end(images) {
    const of = this.#frames.at(-1)?.of ?? 1;
    this.#push({ taken: of, of, t: 0, x_t: images, x0: images });
    this.root.dataset.state = "done";
    if (this.#follow) this.#seek(this.#frames.length - 1);
  }

  #push(frame) {
    if (this.#frames.length === 0) {
      this.range.max = frame.of;
      for (const grid of [this.left, this.right]) columns(grid, frame.x0.length);
    }
    this.#frames.push(frame);
    if (this.#frames.length > MOST) this.#thin();
    this.root.dataset.frames = this.#frames.length;
    fill(this.range, frame.taken / frame.of);
  }

  // A long walk of many images would fill the memory: every second frame goes, but never the newest.
  #thin() {
    const kept = this.#frames.filter((_, i) => (this.#frames.length - 1 - i) % 2 === 0);
    this.#shown = Math.max(0, kept.length - 1 - Math.round((this.#frames.length - 1 - this.#shown) / 2));
    this.#frames = kept;
  }

  // Shows the newest frame; as much time as that takes is then left to everything else before the next.
  #soon() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame((began) => {
      if (this.#follow && this.#shown < this.#frames.length - 1) this.#seek(this.#frames.length - 1);
      requestAnimationFrame((ended) => setTimeout(() => (this.#due = false), ended - began));
    });
  }

  #nearest(taken) {
    const distance = (frame) => Math.abs(frame.taken - taken);
    return this.#frames.reduce((best, frame, i) => (distance(frame) < distance(this.#frames[best]) ? i : best), 0);
  }

  #seek(index) {
    const frame = this.#frames[index];
    if (!frame) return;
    this.#shown = index;
    this.#follow = index === this.#frames.length - 1;
    this.range.value = frame.taken;
    this.range.setAttribute("aria-valuetext", `step ${frame.taken} of ${frame.of}, t ${frame.t}`);
    $("output", this.root).textContent = `step ${frame.taken} of ${frame.of}, t = ${frame.t}`;
    Object.assign(this.root.dataset, { step: frame.taken, t: frame.t });
    tiles(this.left, frame.x_t, "State of image", closeup);
    tiles(this.right, frame.x0, "Prediction of image", closeup);
  }

  // An arrow goes to the next frame that was received, not to the next step, of which some are left out.
  #key(event) {
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.#seek(this.#shown + moves[event.key]);
  }

  #roll() {
    if (this.#frames.length < 2) return;
    if (this.#shown >= this.#frames.length - 1) this.#seek(0);
    this.#follow = false;
    this.player.play(() => {
      if (this.#shown >= this.#frames.length - 1) this.player.pause();
      else this.#seek(this.#shown + 1);
    }, FRAME);
  }
}
