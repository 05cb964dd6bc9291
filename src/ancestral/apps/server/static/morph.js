// Morph: frames between two pictures, looked through by slider or as a film that goes to and fro.

import { closeup } from "./closeup.js";
import { $, $$, enter, fill, offerClasses, offerSeeds, offerShell, player, roving, shell, show, tiles } from "./dom.js";
import { Task } from "./task.js";
import { Hand, Well } from "./well.js";

const FRAME = 140; // milliseconds a frame, played

export class Morph {
  #way = 1;

  constructor(panel, model) {
    Object.assign(this, { panel, frames: [], ends: { a: new Hand(), b: new Hand() } });
    for (const well of $$(".well", panel)) new Well(well, this.ends[well.dataset.name], model);
    this.#offer(model);
    this.reel = $(".reel", panel);
    this.range = $("input", this.reel);
    this.player = player($(".play", panel), () => this.#roll());
    roving($(".strip", panel));
    this.range.addEventListener("input", () => this.#seek(Number(this.range.value)));
    $(".big", panel).addEventListener("click", () => closeup(this.frames[this.range.value]));
    new Task(panel, "morph", {
      restore: ({ a, b }) => (this.ends.a.put(a), this.ends.b.put(b)),
      body: (found) => {
        const [a, b] = [this.ends.a.image, this.ends.b.image];
        if (!a || !b) throw new Error("Choose both pictures first");
        return { a, b, ...found };
      },
      begin: () => {
        this.player.pause();
        shell(panel, null);
      },
      step: ({ x0 }) => this.#take(x0),
      done: ({ images, again }, { a, b }) => {
        this.#take(images);
        shell(panel, again, { "a.png": a, "b.png": b });
      },
    });
    offerShell(panel);
  }

  #offer(model) {
    const { t, frames, steps, label } = $("form", this.panel).elements;
    offerClasses(label, model);
    const tell = () => {
      $("output", t.closest("label")).textContent = `t = ${t.value}`;
      fill(t);
    };
    t.max = model.T;
    t.value = Math.round(model.T / 2);
    t.addEventListener("input", tell);
    tell();
    frames.max = model.limits.images;
    frames.value = Math.min(9, model.limits.images);
    steps.max = model.limits.steps;
    steps.value = Math.min(model.limits.steps, Math.max(model.default.steps, 50));
    offerSeeds($("form", this.panel));
  }

  #take(frames) {
    if (!frames.length) return;
    const fresh = frames.length !== this.frames.length;
    this.frames = frames;
    this.reel.hidden = false;
    $(".empty", this.panel).hidden = true;
    this.range.max = frames.length - 1;
    tiles($(".strip", this.panel), frames, "Frame", (_, number) => this.#seek(number));
    this.#seek(fresh ? 0 : Number(this.range.value));
  }

  #seek(number) {
    this.range.value = number;
    fill(this.range);
    show($(".big img", this.panel), this.frames[number]);
    $("output", this.reel).textContent = `${number + 1} of ${this.frames.length}`;
    this.panel.dataset.frame = number;
    const items = $$(".strip .tile", this.panel);
    items.forEach((item, i) => item.setAttribute("aria-current", i === number));
    enter($(".strip", this.panel), items[number]);
  }

  #roll() {
    this.player.play(() => {
      const place = Number(this.range.value);
      if (!this.frames[place + this.#way]) this.#way = -this.#way;
      this.#seek(place + this.#way);
    }, FRAME);
  }
}
