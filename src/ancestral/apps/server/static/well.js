// Where a picture comes in: chosen, dropped, pasted, drawn, or sent from another tool.

import { Job, patiently } from "./api.js";
import { $, clone, dimensions, readFile, redrawn, say, show } from "./dom.js";

const TAKEN = new Set(["image/png", "image/jpeg", "image/webp"]);
const MOST_SIDE = 12_000; // pixels that a browser is asked to decode
const wells = [];

// Pictures that several wells show are one `Hand`: putting one in changes all of them.
export class Hand extends EventTarget {
  image = null;

  put(image) {
    this.image = image;
    this.dispatchEvent(new Event("change"));
  }
}

export class Well {
  constructor(root, hand, model) {
    Object.assign(this, { root, hand, model });
    root.append(clone("well"));
    this.status = $(".status", root);
    root.dataset.state = "empty";
    const input = $("input", root);
    input.addEventListener("change", () => {
      this.take(input.files[0]);
      input.value = "";
    });
    $(".drawn", root).addEventListener("click", () => this.#draw());
    hand.addEventListener("change", () => this.#show());
    wells.push(this);
  }

  async take(file) {
    if (!file) return;
    const { upload_bytes, upload_pixels } = this.model.limits;
    await this.#try(async () => {
      const [width, height] = (await dimensions(file)) ?? [0, 0]; // what no header says, the server says
      const plain = TAKEN.has(file.type) && file.size <= upload_bytes && width * height <= upload_pixels;
      if (Math.max(width, height) > MOST_SIDE)
        throw new Error(
          `${file.name}: ${width} × ${height} pixels are too many for a browser to make smaller; save it with at most ${MOST_SIDE} a side`,
        );
      await this.use(await (plain ? readFile(file) : redrawn(file)));
    });
  }

  // Takes a data URI; what is kept is the picture as the server cuts and scales it to the model's size.
  async use(uri) {
    await this.#try(async () => {
      this.#busy("Fitting it to the model");
      const waiting = (seconds) => this.#busy(`The server is busy; asking again in ${seconds} s`);
      this.hand.put((await patiently("POST", "noise", { image: uri, t: 1, seed: 0 }, waiting)).image);
    });
  }

  #draw() {
    if (this.root.dataset.state === "busy") return;
    this.#busy("Drawing one");
    const seed = Math.floor(Math.random() * 1e6);
    const { steps } = this.model.default;
    const request = { seed, images: 1, steps, solver: null, eta: null, guidance: null, label: null };
    Job.begun("draw", request, {
      waiting: (seconds) => this.#busy(`The queue is full; asking again in ${seconds} s`),
      queued: ({ place }) => this.#busy(place > 0 ? `Waiting: place ${place} in the queue` : "Drawing one"),
      step: ({ x0 }) => this.#picture(x0[0]),
      done: ({ images }) => this.hand.put(images[0]),
      failed: (detail) => this.#fail(detail),
      cancelled: () => this.#fail("It was cancelled; draw another"),
      lost: () => this.#busy("The connection broke; trying to go on"),
    });
  }

  async #try(action) {
    try {
      await action();
    } catch (error) {
      this.#fail(error.message);
    }
  }

  #busy(text) {
    this.root.dataset.state = "busy";
    say(this.status, text);
  }

  #fail(text) {
    this.root.dataset.state = "failed";
    say(this.status, text, "error");
  }

  #show() {
    this.#picture(this.hand.image);
    this.root.dataset.state = "ready";
    this.root.dataset.filled = "";
    this.root.dispatchEvent(new Event("input", { bubbles: true }));
    say(this.status, "");
  }

  #picture(uri) {
    show($("img", this.root), uri);
    $("img", this.root).hidden = false;
    $(".frame p", this.root).hidden = true;
  }
}

const visible = () => wells.filter((well) => !well.root.closest("[hidden]"));
const image = (list) => [...list].find((file) => file.type.startsWith("image/"));

function receive(file, place) {
  const open = visible();
  const well = open.find((one) => one.root.contains(place)) ?? open.find((one) => !one.hand.image) ?? open[0];
  if (file) well?.take(file);
}

// Files dropped beside a well would otherwise replace the page.
export function listen() {
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    receive(image(event.dataTransfer.files), event.target);
  });
  document.addEventListener("paste", (event) => receive(image(event.clipboardData.files), document.activeElement));
}
