// A mask painted over a picture, by mouse, finger, pen or keyboard; a pixel of the canvas is one of the picture.

import { $, $$, fill } from "./dom.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const OPAQUE = 165; // of 255: the picture stays visible below
const UNDOS = 50;

export class Mask {
  #past = [];
  #last = null;

  constructor(root, [, height, width]) {
    Object.assign(this, { root, height, width });
    this.canvas = $("canvas", root);
    Object.assign(this.canvas, { height, width });
    this.painted = new Uint8Array(height * width);
    this.at = [Math.floor(width / 2), Math.floor(height / 2)];
    this.brush = $(".brush", root);
    this.size = $("[name=size]", root);
    this.size.max = Math.max(2, Math.floor(Math.min(height, width) / 2));
    this.size.value = Math.max(1, Math.round(Math.min(height, width) / 5));
    this.size.addEventListener("input", () => this.#outline());
    const does = { undo: () => this.#undo(), invert: () => this.#all((on) => 1 - on), clear: () => this.#all(() => 0) };
    for (const button of $$("[data-do]", root)) button.addEventListener("click", does[button.dataset.do]);
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    for (const name of ["focus", "blur"]) this.canvas.addEventListener(name, () => this.#outline());
    this.#pointers();
    this.#show();
  }

  get count() {
    return this.painted.reduce((sum, on) => sum + on, 0);
  }

  // White where the picture is to be drawn anew, as a PNG.
  image() {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { height: this.height, width: this.width });
    this.#fill(canvas, (on) => [255 * on, 255 * on, 255 * on, 255]);
    return canvas.toDataURL("image/png");
  }

  #pointers() {
    const { canvas } = this;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button === 1) return;
      canvas.setPointerCapture(event.pointerId);
      this.#remember();
      this.#stroke(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      this.at = this.#place(event);
      this.#outline(true);
      if (this.#last) for (const one of event.getCoalescedEvents?.() ?? [event]) this.#stroke(one);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (this.#last = null));
    canvas.addEventListener("pointerleave", () => this.#outline());
  }

  #place({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const pixel = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    return [pixel((clientX - box.left) / box.width, this.width), pixel((clientY - box.top) / box.height, this.height)];
  }

  // From the last place to this one without gaps; the right button and a pen's other end erase.
  #stroke(event) {
    const to = this.#place(event);
    const from = this.#last ?? to;
    const erase = (event.buttons & (2 | 32)) !== 0;
    const count = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
    for (let i = 1; i <= count; i++) {
      const share = i / count;
      this.#stamp(Math.round(from[0] + share * (to[0] - from[0])), Math.round(from[1] + share * (to[1] - from[1])), erase);
    }
    this.#last = this.at = to;
    this.#show();
  }

  #stamp(column, row, erase = false) {
    const size = Number(this.size.value);
    const radius = size / 2 - 0.2; // rounder than size / 2, which has single pixels at its four ends
    const shift = size % 2 ? 0 : 0.5; // an even size has its middle between pixels
    const on = erase || $("[name=mode]:checked", this.root).value === "erase" ? 0 : 1;
    for (let y = Math.max(0, row - size); y <= Math.min(this.height - 1, row + size); y++)
      for (let x = Math.max(0, column - size); x <= Math.min(this.width - 1, column + size); x++)
        if (Math.hypot(x - column - shift, y - row - shift) <= radius) this.painted[y * this.width + x] = on;
  }

  #key(event) {
    const { key } = event;
    if (key in ARROWS) {
      const limit = [this.width, this.height];
      this.at = this.at.map((value, i) => Math.min(limit[i] - 1, Math.max(0, value + ARROWS[key][i])));
      if (event.shiftKey) this.#dab();
    } else if (key === " ") this.#dab();
    else if (key === "+" || key === "-") this.size.value = Number(this.size.value) + (key === "+" ? 1 : -1);
    else if (key === "z" && (event.ctrlKey || event.metaKey)) this.#undo();
    else return;
    event.preventDefault();
    this.#outline();
    const [column, row] = this.at;
    const on = this.painted[row * this.width + column] ? "painted" : "clear";
    $("[data-of=place]", this.root).textContent = `Row ${row + 1}, column ${column + 1}, ${on}`;
  }

  #dab() {
    this.#remember();
    this.#stamp(...this.at);
    this.#show();
  }

  #all(change) {
    this.#remember();
    this.painted = this.painted.map(change);
    this.#show();
  }

  #remember() {
    this.#past.push(this.painted.slice());
    if (this.#past.length > UNDOS) this.#past.shift();
  }

  #undo() {
    this.painted = this.#past.pop() ?? this.painted;
    this.#show();
  }

  #fill(canvas, colour) {
    const context = canvas.getContext("2d");
    const image = context.createImageData(this.width, this.height);
    this.painted.forEach((on, i) => image.data.set(colour(on), 4 * i));
    context.putImageData(image, 0, 0);
  }

  #show() {
    const colour = getComputedStyle(this.canvas).color.match(/\d+/g).slice(0, 3).map(Number);
    this.#fill(this.canvas, (on) => [...colour, OPAQUE * on]);
    this.root.dataset.painted = this.count;
    this.canvas.dispatchEvent(new Event("input", { bubbles: true }));
    this.#outline();
  }

  #outline(hovered = this.canvas.matches(":hover")) {
    const { style } = this.brush;
    const size = Number(this.size.value);
    const middle = size % 2 ? 0.5 : 1;
    this.brush.hidden = !hovered && document.activeElement !== this.canvas;
    style.setProperty("--x", `${(100 * (this.at[0] + middle)) / this.width}%`);
    style.setProperty("--y", `${(100 * (this.at[1] + middle)) / this.height}%`);
    style.setProperty("--size", `${(100 * size) / this.width}%`);
    fill(this.size);
    $("output", this.root).textContent = size;
    this.root.dataset.at = this.at;
  }
}
